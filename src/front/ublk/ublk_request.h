// SPDX-License-Identifier: MIT
// What a request of the ublk driver means for a Target, and what its outcome means for the driver. Pure
// functions; any thread; no allocation, no blocking.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "front/target.h"
#include "front/ublk/ublk_abi.h"

namespace vramswap {

/// Fills `request` for the target, with its data at the beginning of `buffer`; or returns the result of a
/// request that needs none: 0, -EOPNOTSUPP (unknown operation), -EINVAL (longer than `buffer`).
[[nodiscard]] std::optional<std::int32_t> translate(const UblkIoDescriptor& descriptor,
                                                    std::span<std::byte> buffer, BlockRequest& request);

/// What to commit. Never a part of a read or write: Linux 7.3 takes a short write for a complete one, 6.12
/// sends the rest again, for ever if it is all. REQUIRES: is_final(status).
[[nodiscard]] std::int32_t ublk_result(const BlockRequest& request, IoStatus status);

}  // namespace vramswap
