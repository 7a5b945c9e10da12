// SPDX-License-Identifier: MIT
// Bringing a device up and down, as the commands `up`, `down` and `demo` share it. Single-threaded, blocking.
#pragma once

#include <sys/types.h>

#include <string>

#include "base/result.h"
#include "ctl/control_request.h"
#include "ctl/messages.h"
#include "sys/proc.h"
#include "sys/swap_area.h"

namespace vramswap {

/// Starts guardian and worker and waits until the block device exists. Errors: exists, and whatever the
/// worker met; then nothing stays behind.
struct RunningDevice {
    std::string name;
    std::string device;  ///< "/dev/loop0"
    pid_t guardian = 0;
};
Result<RunningDevice> launch_device(const DeviceConfig& config);

/// Writes the swap header and calls swapon(2). On failure the device stays up.
Result<void> start_swapping(const RunningDevice& running, int priority);
/// The same for any device or file; the label is cut to what fits.
Result<void> start_swapping(const std::string& path, const std::string& label, const SwapOnOptions& options);

/// Refuses if RAM cannot take the pages back, saying how much is missing; then swapoff(2) in this process,
/// which may take minutes. Nothing to do if `device` is no swap area. Errors: no_memory, failed; the area
/// stays in use then.
Result<void> stop_swapping(const std::string& device);

/// A device that serves, to be asked for something. Errors: usage (no name), not_found, failed (its worker
/// does not serve).
Result<DeviceStatus> serving_device(const std::string& name);
/// Asks its worker; what it answers is its status. Errors: the worker's, or that it did not answer.
Result<DeviceStatus> ask_device(const std::string& name, const ControlRequest& request);

/// Ends worker and guardian of a device that is no swap area; also cleans up after dead ones. Errors: busy,
/// failed.
Result<void> remove_device(const std::string& name);

/// As the worker tells it, or else the guardian's last word, with the state "silent" if the worker lives but
/// has not answered in time (10 s, or `timeout_ms`); the swap columns from /proc/swaps. Errors: not_found.
Result<DeviceStatus> device_status(const std::string& name);
Result<DeviceStatus> device_status(const std::string& name, int timeout_ms);

}  // namespace vramswap
