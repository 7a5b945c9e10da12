// SPDX-License-Identifier: MIT
// The units of the device as types: bytes, pages of 4 KiB, chunks of 2 MiB; and sizes as people write them.
// Pure functions and values; any thread.
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/result.h"

namespace vramswap {

/// An amount or an offset in bytes.
struct Bytes {
    std::uint64_t n = 0;
    constexpr auto operator<=>(const Bytes&) const = default;
};
constexpr Bytes operator+(Bytes a, Bytes b) {
    return {a.n + b.n};
}
constexpr Bytes operator-(Bytes a, Bytes b) {
    return {a.n - b.n};
}
constexpr Bytes operator*(Bytes a, std::uint64_t k) {
    return {a.n * k};
}

/// Number of a page of the device, counted from 0.
struct PageIndex {
    std::uint64_t n = 0;
    constexpr auto operator<=>(const PageIndex&) const = default;
};

/// Number of a chunk of the device, counted from 0.
struct ChunkIndex {
    std::uint32_t n = 0;
    constexpr auto operator<=>(const ChunkIndex&) const = default;
};

constexpr Bytes kib(std::uint64_t n) {
    return {n << 10};
}
constexpr Bytes mib(std::uint64_t n) {
    return {n << 20};
}
constexpr Bytes gib(std::uint64_t n) {
    return {n << 30};
}

/// The kernel swaps pages of this size on x86-64; vramswap supports no other.
inline constexpr std::size_t kPageBytes = 4096;
/// One swap cluster of the kernel with THP_SWAP on x86-64 (512 pages).
inline constexpr std::size_t kChunkBytes = 2u << 20;
inline constexpr std::size_t kChunkPages = kChunkBytes / kPageBytes;

constexpr PageIndex page_at(std::uint64_t byte_offset) {
    return {byte_offset / kPageBytes};
}
constexpr ChunkIndex chunk_of(PageIndex p) {
    return {static_cast<std::uint32_t>(p.n / kChunkPages)};
}
constexpr std::uint32_t page_in_chunk(PageIndex p) {
    return static_cast<std::uint32_t>(p.n % kChunkPages);
}
constexpr PageIndex first_page(ChunkIndex c) {
    return {std::uint64_t{c.n} * kChunkPages};
}

constexpr std::uint64_t round_up(std::uint64_t value, std::uint64_t step) {
    return (value + step - 1) / step * step;
}
constexpr std::uint64_t round_down(std::uint64_t value, std::uint64_t step) {
    return value / step * step;
}

/// An amount as users write it: bytes, or a share of something known later.
struct SizeSpec {
    enum class Kind : std::uint8_t { bytes, percent };
    Kind kind = Kind::bytes;
    std::uint64_t amount = 0;  ///< bytes, or hundredths of a percent

    /// The amount in bytes; `whole` is what 100 % means.
    [[nodiscard]] Bytes of(Bytes whole) const;
    bool operator==(const SizeSpec&) const = default;
};

/// Reads "6G", "1.5GiB", "512M", "4096", "80%". Suffixes are powers of 1024, in either case, with or without
/// "iB"/"B". `what` names the option in the message. Errors: usage, for zero, negative, above 100 %, or text.
[[nodiscard]] Result<SizeSpec> parse_size(std::string_view text, std::string_view what);

/// "1.5G", "512M", "4K", "0B": at most one decimal, as zramctl and swapon print.
[[nodiscard]] std::string format_size(Bytes size);

}  // namespace vramswap
