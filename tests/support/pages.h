// SPDX-License-Identifier: MIT
// For tests that move pages: memory for requests, random numbers from a seed, and contents of pages that name
// themselves. Pure but for the memory; any thread.
#pragma once

#include <sys/mman.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>
#include <optional>
#include <span>

#include "base/units.h"

namespace vramswap::test {

/// Page-aligned memory.
class HostMemory {
  public:
    explicit HostMemory(std::size_t bytes) : bytes_(bytes) {
        void* base = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (base == MAP_FAILED) throw std::bad_alloc();
        base_ = static_cast<std::byte*>(base);
    }
    ~HostMemory() { ::munmap(base_, bytes_); }
    HostMemory(const HostMemory&) = delete;
    HostMemory& operator=(const HostMemory&) = delete;

    [[nodiscard]] std::byte* data() const { return base_; }
    [[nodiscard]] std::byte* page(std::size_t n) const { return base_ + n * kPageBytes; }
    [[nodiscard]] std::span<std::byte> all() const { return {base_, bytes_}; }

  private:
    const std::size_t bytes_;
    std::byte* base_;
};

/// A well-mixed function of one word (splitmix64).
constexpr std::uint64_t mix(std::uint64_t x) {
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

/// Numbers from a seed, the same on every machine.
class Random {
  public:
    explicit Random(std::uint64_t seed) : state_(mix(seed)) {}
    std::uint64_t next() { return mix(++state_); }
    /// 0 … n - 1.
    std::uint64_t below(std::uint64_t n) { return next() % n; }
    bool one_in(std::uint64_t n) { return below(n) == 0; }

  private:
    std::uint64_t state_;
};

/// What is in a page, as a number: 0 is all zeros, any other one fills the page in its own way.
using Content = std::uint64_t;
inline constexpr std::size_t kPageWords = kPageBytes / sizeof(std::uint64_t);

inline void fill_page(std::byte* page, Content content) {
    std::array<std::uint64_t, kPageWords> words{};
    if (content != 0) words[0] = content;
    for (std::size_t i = 1; i < kPageWords && content != 0; ++i) words[i] = mix(content * kPageWords + i);
    std::memcpy(page, words.data(), kPageBytes);
}

/// The content, or none if the page is torn, corrupt or something else.
inline std::optional<Content> content_of(const std::byte* page) {
    Content content = 0;
    std::memcpy(&content, page, sizeof content);
    alignas(64) std::array<std::byte, kPageBytes> expected;
    fill_page(expected.data(), content);
    if (std::memcmp(page, expected.data(), kPageBytes) != 0) return std::nullopt;
    return content;
}

/// A content that names its page; versions count from 1.
constexpr Content content_for(PageIndex page, std::uint32_t version) {
    return (page.n + 1) << 32 | version;
}
constexpr PageIndex page_named_by(Content content) {
    return {(content >> 32) - 1};
}

}  // namespace vramswap::test
