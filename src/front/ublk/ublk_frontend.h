// SPDX-License-Identifier: MIT
// The ublk frontend: a block device whose requests the kernel hands to user space through io_uring. The best
// one where there is a driver for it: Linux 6.0 and later with CONFIG_BLK_DEV_UBLK; see docs/frontends.md.
// Control thread only; may block.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "front/frontend.h"
#include "front/ublk/ublk_host.h"

namespace vramswap {

[[nodiscard]] std::unique_ptr<Frontend> make_ublk_frontend();

/// Why this machine cannot run it (no driver, no io_uring, no permission), with the remedy; empty if it can.
/// Loads the driver's module if it is missing.
[[nodiscard]] std::string ublk_problem();

/// For a device that waits for a server: its I/O fails from now on, whoever uses it. `path`: "/dev/ublkb3".
/// Calls `ended` when that is so (or the device is another's, which is left as it is), and returns when
/// nobody uses the device any more and it is gone. Errors: those of UblkDevice::take_over.
Result<void> abandon_ublk_device(const std::string& path, const std::function<void()>& ended);

/// The first two with other folders in the place of /dev and /proc: for tests of what happens when things are
/// missing.
[[nodiscard]] std::unique_ptr<Frontend> make_ublk_frontend_in(UblkHost host);
[[nodiscard]] std::string ublk_problem_in(const UblkHost& host);

}  // namespace vramswap
