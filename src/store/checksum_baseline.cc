// SPDX-License-Identifier: MIT
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "store/checksum_kernels.h"

std::uint64_t vramswap::checksum_kernels::xxh3_page_baseline(const void* page, std::uint64_t seed) {
    return XXH3_64bits_withSeed(page, 4096, seed);
}
