// SPDX-License-Identifier: MIT
// What `resize` and `yield` share: amounts of VRAM as users write them, and waiting until a device has moved.
// Commands only, single-threaded, blocking.
#pragma once

#include <string>

#include "base/result.h"
#include "cli/move_watch.h"
#include "cli/swap_trial.h"
#include "ctl/messages.h"

namespace vramswap {

/// "2G", "50%" (of the device's size), "0". Errors: usage, also for more than the device has.
[[nodiscard]] Result<Bytes> parse_vram(const std::string& text, const DeviceStatus& device);

/// A device that serves, with what is told of its VRAM on this GPU alone; of all its GPUs if `gpu` is empty.
/// Errors: as serving_device; usage, if it is not on such a GPU.
[[nodiscard]] Result<DeviceStatus> device_on(const std::string& name, const std::string& gpu);

/// Asks for the status until the watch says that it is done, with a progress line on a terminal. `interrupts`
/// may be null: then an interrupt ends this process. Errors: failed, if it is stuck (how much stays and why),
/// interrupted, or the worker does not serve any more.
Result<void> follow_move(const std::string& name, const std::string& gpu, MoveWatch& watch,
                         const Interrupts* interrupts);

}  // namespace vramswap
