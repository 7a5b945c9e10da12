// SPDX-License-Identifier: MIT
#include "front/ublk/ublk_request.h"

#include <cerrno>

namespace vramswap {

std::optional<std::int32_t> translate(const UblkIoDescriptor& descriptor, std::span<std::byte> buffer,
                                      BlockRequest& request) {
    constexpr std::uint32_t kOpMask = 0xff;
    // Not of the request but of what was copied to `buffer`, for a write; the kernel cuts the number of
    // sectors.
    const std::uint64_t bytes = std::uint64_t{descriptor.sectors} * kSectorBytes;
    request = BlockRequest{.offset = descriptor.first_sector * kSectorBytes, .bytes = bytes};
    switch (static_cast<UblkOp>(descriptor.op_flags & kOpMask)) {
        case UblkOp::read:
            request.op = BlockRequest::Op::read;
            break;
        case UblkOp::write:
            request.op = BlockRequest::Op::write;
            break;
        case UblkOp::discard:
        case UblkOp::write_zeroes:  // what was discarded reads as zeros, and takes no room
            request.op = BlockRequest::Op::discard;
            return std::nullopt;
        case UblkOp::flush:
            return 0;  // VRAM is no more durable after a flush than before
        default:
            return -EOPNOTSUPP;
    }
    if (bytes > buffer.size()) return -EINVAL;
    request.data = buffer.data();
    return std::nullopt;
}

std::int32_t ublk_result(const BlockRequest& request, IoStatus status) {
    if (status != IoStatus::ok) return -to_errno(status);
    return request.op == BlockRequest::Op::discard ? 0 : static_cast<std::int32_t>(request.bytes);
}

}  // namespace vramswap
