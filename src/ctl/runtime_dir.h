// SPDX-License-Identifier: MIT
// /run/vramswap/NAME: what belongs to a running device. `lock` is held (flock) by its guardian as long as it
// lives, so a directory whose lock is free is stale, whatever else lies in it. Control threads and commands.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"

namespace vramswap {

/// The base directory: $VRAMSWAP_RUNTIME_DIR for tests, else /run/vramswap.
[[nodiscard]] std::string runtime_root();

/// Errors: usage, unless the name is 1 to 32 characters of A-Z a-z 0-9 _ - and begins with a letter or digit.
Result<void> check_name(std::string_view name);

struct DeviceDir {
    std::string path;  ///< "/run/vramswap/NAME"
    [[nodiscard]] std::string lock() const { return path + "/lock"; }
    [[nodiscard]] std::string socket() const { return path + "/control"; }
    [[nodiscard]] std::string state() const { return path + "/state.json"; }
    [[nodiscard]] std::string log() const { return path + "/log"; }
};
[[nodiscard]] DeviceDir device_dir(std::string_view name);

/// Makes the directory and takes its lock; what a dead device left in it is removed. The lock lives as long
/// as any copy of the descriptor. Errors: exists (a device of that name is up), usage, failed.
Result<UniqueFd> claim(const DeviceDir& dir);

/// True if a guardian holds the lock.
[[nodiscard]] bool is_held(const DeviceDir& dir);
/// Waits until nobody holds the lock. Errors: failed after timeout_ms.
Result<void> wait_until_free(const DeviceDir& dir, int timeout_ms);

/// Names that have a directory, sorted.
[[nodiscard]] std::vector<std::string> list_names();

/// Removes the directory with the files above.
void remove_dir(const DeviceDir& dir);

}  // namespace vramswap
