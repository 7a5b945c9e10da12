// SPDX-License-Identifier: MIT
// The messages on an NBD socket: requests from the kernel, replies to it. Pure functions and values; any
// thread; no allocation. Nothing that is read is trusted: a header out of step is told apart, everything else
// that makes no sense becomes a request that will be refused.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "base/io_status.h"
#include "front/nbd/nbd_abi.h"

namespace vramswap {

struct NbdRequest {
    enum class Kind : std::uint8_t {
        read,
        write,
        discard,     ///< TRIM, and WRITE_ZEROES: what is discarded reads as zeros and takes no room
        flush,       ///< nothing to do: VRAM is no more durable after a flush than before
        disconnect,  ///< the kernel is going away; never answered
        refused,     ///< unknown command or flags; its payload, if any, has to be read all the same
    };
    Kind kind = Kind::refused;
    std::uint64_t cookie = 0;  ///< opaque, goes into the reply as it came
    std::uint64_t offset = 0;
    std::uint32_t bytes = 0;          ///< as asked for: any value
    std::uint32_t payload_bytes = 0;  ///< that follow the header
};

/// No value: the magic number is wrong, so the stream is out of step and nothing after it can be understood.
[[nodiscard]] std::optional<NbdRequest> parse_nbd_request(
    std::span<const std::byte, nbd_abi::kRequestBytes> header);

/// The error number of a reply. The protocol has its own list; these happen to be Linux' numbers for them.
/// REQUIRES: is_final(status).
[[nodiscard]] std::uint32_t nbd_error(IoStatus status);

void write_nbd_reply(std::span<std::byte, nbd_abi::kReplyBytes> header, std::uint64_t cookie,
                     std::uint32_t error);

}  // namespace vramswap
