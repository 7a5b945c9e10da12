// SPDX-License-Identifier: MIT
// FdKeeper: somebody who keeps descriptors alive when this process dies (the guardian). Control thread only;
// may block on a socket.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <string_view>

#include "base/result.h"
#include "base/unique_fd.h"

namespace vramswap {

class FdKeeper {
  public:
    virtual ~FdKeeper() = default;
    /// Keeps a duplicate under `key`, in place of an older one. The descriptor stays the caller's.
    virtual Result<void> keep(std::string_view key, const UniqueFd& fd) = 0;
    /// Closes what is kept under `key`, if anything.
    virtual Result<void> drop(std::string_view key) = 0;
};

/// The block device of a frontend: who has it, and what else was kept, can go on serving it.
inline constexpr std::string_view kFrontDeviceKey = "front-device";

/// What was kept of a process that has died, by key, for the one that takes over.
using HeldFds = std::map<std::string, UniqueFd, std::less<>>;

}  // namespace vramswap
