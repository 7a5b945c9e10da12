// SPDX-License-Identifier: MIT
// The NBD frontend: a network block device of the kernel whose server is this process, over socket pairs, set
// up by netlink. Works on every kernel since 5.8 that has the driver; slower than ublk, and weaker when
// memory is short (see nbd_connection.h).
#pragma once

#include <memory>
#include <string>

#include "front/frontend.h"
#include "front/nbd/nbd_device.h"

namespace vramswap {

[[nodiscard]] std::unique_ptr<Frontend> make_nbd_frontend();

/// Why this machine cannot run it (no driver, no permission, no device nodes), with the remedy; empty if it
/// can. Loads the driver if it is not there.
[[nodiscard]] std::string nbd_problem();

/// Ends a device that was `name`'s, whoever uses it; another's is left as it is. `path`: "/dev/nbd3". Errors:
/// those of NbdNetlink.
Result<void> abandon_nbd_device(const std::string& path, const std::string& name);

/// The first two with other places for /dev, /sys and modprobe: for tests of what happens when something is
/// missing.
[[nodiscard]] std::unique_ptr<Frontend> make_nbd_frontend_in(NbdSystem system);
[[nodiscard]] std::string nbd_problem_in(const NbdSystem& system);

}  // namespace vramswap
