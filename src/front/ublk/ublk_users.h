// SPDX-License-Identifier: MIT
// Who has a block device open without claiming it; see front/block_device.h for the others. Needed where the
// kernel cannot answer that itself: before Linux 7.0 STOP_DEV takes a device away from its users. Control
// thread only; reads /proc and /sys, opens the device, may block. Needs root to see all processes.
#pragma once

#include <string>

#include "base/unique_fd.h"

namespace vramswap {

/// An exclusive descriptor of the device: while it is held, nobody can mount it or make it swap. Invalid with
/// errno EBUSY if somebody has claimed it already.
[[nodiscard]] UniqueFd claim_block_device(const std::string& path);

/// Whether a process has the device open, or a loop device lies over it; `ours` does not count. Descriptors
/// on their way through a socket are not seen, nor device nodes of another name.
[[nodiscard]] bool is_open_elsewhere(const std::string& kernel_name, const UniqueFd& ours);

}  // namespace vramswap
