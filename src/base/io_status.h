// SPDX-License-Identifier: MIT
// IoStatus: the only error on the I/O path. One byte, never ignored, any thread.
#pragma once

#include <cstdint>
#include <string_view>

namespace vramswap {

enum class [[nodiscard]] IoStatus : std::uint8_t{
    ok,            ///< done
    pending,       ///< accepted; its completion comes later
    retry,         ///< no room now; ask again after a completion or the queue's event
    no_space,      ///< refused for good: no tier can take it; a page stays in RAM, nothing is lost
    out_of_range,  ///< beyond the end of the device
    misaligned,    ///< offset or length not a multiple of 4 KiB, or length 0
    io_error,      ///< tried again and failed; for a read: the page cannot be had
    lost,          ///< the page was on a GPU that is gone
};

/// True for the outcomes that end a request.
[[nodiscard]] constexpr bool is_final(IoStatus s) {
    return s != IoStatus::pending && s != IoStatus::retry;
}

/// The positive errno that a frontend answers. REQUIRES: is_final(s).
[[nodiscard]] int to_errno(IoStatus s);

[[nodiscard]] std::string_view to_string(IoStatus s);

/// The worse of two final outcomes, for a request made of several parts.
[[nodiscard]] constexpr IoStatus worse(IoStatus a, IoStatus b) {
    return a > b ? a : b;
}

}  // namespace vramswap
