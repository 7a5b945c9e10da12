// SPDX-License-Identifier: MIT
#include "front/nbd/nbd_wire.h"

#include <cerrno>
#include <cstring>

namespace vramswap {
namespace {

// The error numbers of the protocol's specification (doc/proto.md of nbd, "Error values").
constexpr std::uint32_t kErrorIo = 5;
constexpr std::uint32_t kErrorInvalid = 22;
constexpr std::uint32_t kErrorNoSpace = 28;

template <typename Integer>
Integer load_big_endian(const std::byte* at) {
    Integer value = 0;
    for (std::size_t i = 0; i < sizeof(Integer); ++i)
        value = static_cast<Integer>((value << 8) | std::to_integer<Integer>(at[i]));
    return value;
}

void store_big_endian(std::byte* at, std::uint32_t value) {
    for (int shift = 24; shift >= 0; shift -= 8) *at++ = static_cast<std::byte>(value >> shift);
}

NbdRequest::Kind kind_of(std::uint16_t command, std::uint16_t flags) {
    if ((flags & ~(nbd_abi::kRequestFua | nbd_abi::kRequestNoHole)) != 0) return NbdRequest::Kind::refused;
    switch (command) {
        case nbd_abi::kCmdRead:
            return NbdRequest::Kind::read;
        case nbd_abi::kCmdWrite:
            return NbdRequest::Kind::write;
        case nbd_abi::kCmdTrim:
        case nbd_abi::kCmdWriteZeroes:
            return NbdRequest::Kind::discard;
        case nbd_abi::kCmdFlush:
            return NbdRequest::Kind::flush;
        case nbd_abi::kCmdDisconnect:
            return NbdRequest::Kind::disconnect;
        default:
            return NbdRequest::Kind::refused;
    }
}

}  // namespace

std::optional<NbdRequest> parse_nbd_request(std::span<const std::byte, nbd_abi::kRequestBytes> header) {
    const std::byte* at = header.data();
    if (load_big_endian<std::uint32_t>(at) != nbd_abi::kRequestMagic) return std::nullopt;
    const auto flags = load_big_endian<std::uint16_t>(at + 4);
    const auto command = load_big_endian<std::uint16_t>(at + 6);
    NbdRequest request;
    request.kind = kind_of(command, flags);
    std::memcpy(&request.cookie, at + 8, sizeof request.cookie);
    request.offset = load_big_endian<std::uint64_t>(at + 16);
    request.bytes = load_big_endian<std::uint32_t>(at + 24);
    if (command == nbd_abi::kCmdWrite) request.payload_bytes = request.bytes;
    return request;
}

std::uint32_t nbd_error(IoStatus status) {
    switch (to_errno(status)) {
        case 0:
            return 0;
        case EINVAL:
            return kErrorInvalid;
        case ENOSPC:
            return kErrorNoSpace;
        default:
            return kErrorIo;
    }
}

void write_nbd_reply(std::span<std::byte, nbd_abi::kReplyBytes> header, std::uint64_t cookie,
                     std::uint32_t error) {
    store_big_endian(header.data(), nbd_abi::kReplyMagic);
    store_big_endian(header.data() + 4, error);
    std::memcpy(header.data() + 8, &cookie, sizeof cookie);
}

}  // namespace vramswap
