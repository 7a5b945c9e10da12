// SPDX-License-Identifier: MIT
// LockedThread: a thread on the I/O path, owned by whoever starts it. All signals are blocked in it, and its
// stack (256 KiB) is present and locked before it runs anything, so that its first deep call under memory
// pressure takes no page.
#pragma once

#include <pthread.h>

#include <optional>
#include <string>

#include "base/result.h"

namespace vramswap {

class LockedThread {
  public:
    LockedThread() = default;
    LockedThread(const LockedThread&) = delete;
    LockedThread& operator=(const LockedThread&) = delete;
    /// REQUIRES: joined, or never started.
    ~LockedThread() = default;

    /// Runs main(argument); `name`: 15 characters at most. Blocks and allocates. REQUIRES: not running.
    /// Errors: failed.
    Result<void> start(const std::string& name, void (*main)(void*), void* argument);
    [[nodiscard]] bool is_started() const { return thread_.has_value(); }
    /// Waits for its end; nothing if it was not started.
    void join();

  private:
    static void* enter(void* self);

    void (*main_)(void*) = nullptr;
    void* argument_ = nullptr;
    std::optional<pthread_t> thread_;
};

}  // namespace vramswap
