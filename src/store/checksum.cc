// SPDX-License-Identifier: MIT
#include "store/checksum.h"

#include <cstring>

#include "store/checksum_kernels.h"
#include "store/state.h"

namespace vramswap {
namespace {

using Kernel = std::uint64_t (*)(const void*, std::uint64_t);

Kernel widest_kernel() {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2")) return checksum_kernels::xxh3_page_avx2;
#endif
    return checksum_kernels::xxh3_page_baseline;
}

const Kernel kKernel = widest_kernel();

}  // namespace

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
    return kKernel(page, index.n) & PageEntry::kChecksumMask;
}

}  // namespace vramswap
