// SPDX-License-Identifier: MIT
#include "sys/process_end.h"

#include <fmt/format.h>

namespace vramswap {

Result<ProcessEnd> ProcessEnd::of(pid_t pid, const SysRoot& root) {
    auto pidfd = open_pidfd(pid);
    if (!pidfd && pidfd.error().code == Errc::not_found) return std::move(pidfd).error();
    auto end = by_number(pid, root);
    if (!end || !pidfd) return end;
    // The descriptor's process lives, so the number was its own all the while.
    if (!process_alive(pidfd->get()))
        return Error{Errc::not_found, 0, fmt::format("process {} has ended", pid)};
    end->pidfd_ = std::move(*pidfd);
    return end;
}

Result<ProcessEnd> ProcessEnd::by_number(pid_t pid, const SysRoot& root) {
    auto process = identify_process(pid, root);
    if (!process) return std::move(process).error();
    if (!process_alive(*process, root))
        return Error{Errc::not_found, 0, fmt::format("process {} has ended", pid)};
    return ProcessEnd(*process, UniqueFd(), root);
}

bool ProcessEnd::has_ended() const {
    return pidfd_.valid() ? !process_alive(pidfd_.get()) : !process_alive(process_, root_);
}

}  // namespace vramswap
