// SPDX-License-Identifier: MIT
#include "base/io_status.h"

#include <cerrno>

namespace vramswap {

int to_errno(IoStatus s) {
    switch (s) {
        case IoStatus::ok:
            return 0;
        case IoStatus::no_space:
            return ENOSPC;
        case IoStatus::out_of_range:
        case IoStatus::misaligned:
            return EINVAL;
        default:
            return EIO;
    }
}

std::string_view to_string(IoStatus s) {
    switch (s) {
        case IoStatus::ok:
            return "ok";
        case IoStatus::pending:
            return "pending";
        case IoStatus::retry:
            return "retry";
        case IoStatus::no_space:
            return "no space";
        case IoStatus::out_of_range:
            return "out of range";
        case IoStatus::misaligned:
            return "misaligned";
        case IoStatus::io_error:
            return "I/O error";
        case IoStatus::lost:
            return "lost";
    }
    return "unknown";
}

}  // namespace vramswap
