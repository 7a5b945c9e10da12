// SPDX-License-Identifier: MIT
#include "store/checksum.h"

#include <xxhash.h>

#include <cstring>

#include "store/state.h"

namespace vramswap {

bool is_zero_page(const std::byte* page) {
    constexpr std::size_t kStep = 64;
    for (std::size_t at = 0; at < kPageBytes; at += kStep) {
        std::uint64_t words[kStep / sizeof(std::uint64_t)];
        std::memcpy(words, page + at, kStep);
        std::uint64_t any = 0;
        for (const auto w : words) any |= w;
        if (any != 0) return false;
    }
    return true;
}

std::uint64_t page_checksum(const std::byte* page, PageIndex index) {
    return XXH3_64bits_withSeed(page, kPageBytes, index.n) & PageEntry::kChecksumMask;
}

}  // namespace vramswap
