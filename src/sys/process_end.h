// SPDX-License-Identifier: MIT
// ProcessEnd: waits for the end of a process that is not a child of ours. Owned by whoever waits; control
// thread; nothing blocks. By a pidfd, and where there is none (a seccomp profile may forbid it) by number and
// start time, which have to be looked at. exec(2) does not end a process.
#pragma once

#include <sys/types.h>

#include <optional>

#include "base/result.h"
#include "base/unique_fd.h"
#include "sys/process.h"

namespace vramswap {

class ProcessEnd {
  public:
    /// Errors: not_found, if it has ended already; failed.
    static Result<ProcessEnd> of(pid_t pid, const SysRoot& root = {});
    /// Without a pidfd, as where the kernel gives none.
    static Result<ProcessEnd> by_number(pid_t pid, const SysRoot& root = {});

    [[nodiscard]] pid_t pid() const { return process_.pid; }
    /// Readable when it has ended; -1 if it has to be looked at now and then.
    [[nodiscard]] int fd() const { return pidfd_.get(); }
    [[nodiscard]] bool has_ended() const;

  private:
    ProcessEnd(ProcessId process, UniqueFd pidfd, SysRoot root)
        : process_(process), pidfd_(std::move(pidfd)), root_(std::move(root)) {}

    ProcessId process_;
    UniqueFd pidfd_;
    SysRoot root_;
};

}  // namespace vramswap
