// SPDX-License-Identifier: MIT
// What frontends ask and tell the kernel about their block device: who uses it, and the settings of its
// queue. Functions without state; control thread only, they open files and may block. Errors: failed.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/result.h"
#include "base/unique_fd.h"

namespace vramswap {

/// "loop3" of "/dev/loop3".
[[nodiscard]] std::string kernel_name_of(std::string_view path);

/// Who holds the device at `path` exclusively ("in use as swap", "mounted or claimed by another user"); empty
/// if nobody does. Who merely has it open is not noticed. Asks /proc/swaps, then the device itself.
[[nodiscard]] std::string block_device_claimed_by(const std::string& path);

/// busy: "PATH is WHO", with how to find out more.
[[nodiscard]] Error block_device_busy(const std::string& path, std::string_view who);

/// A number in SYS_DIR/block/NAME/queue; 0 if it cannot be read.
[[nodiscard]] std::uint64_t read_queue_setting(std::string_view sys_dir, std::string_view kernel_name,
                                               std::string_view setting);
/// Its size in sectors of 512 bytes; 0 if it cannot be read.
[[nodiscard]] std::uint64_t block_device_sectors(std::string_view sys_dir, std::string_view kernel_name);

/// Best effort, with a warning: without its settings a device is slower, not wrong.
void write_queue_setting(std::string_view sys_dir, std::string_view kernel_name, std::string_view setting,
                         std::string_view value);
/// No scheduler (with one queue the kernel would take mq-deadline, which is for devices slower than its
/// sorting), and no throttling of writes: with it, reclaim waits for writes that are complete. On 6.12 kswapd
/// and a process stood in wbt_wait for minutes. In this order, since a change of the scheduler may switch it
/// on.
void send_requests_at_once(std::string_view sys_dir, std::string_view kernel_name);

/// A low descriptor number, kept for the descriptor of a device that is opened later: see LoopDevice and
/// NbdDevice.
Result<UniqueFd> reserve_fd_number();

/// A descriptor that names the device node at `path` and does not open it (O_PATH), for an FdKeeper to keep.
Result<UniqueFd> name_node(const std::string& path);
/// The file name of what such a descriptor names ("ublkc3"); empty if it cannot be told.
[[nodiscard]] std::string named_node(const UniqueFd& fd);

}  // namespace vramswap
