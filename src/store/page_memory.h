// SPDX-License-Identifier: MIT
// How pages move through the CPU's caches. Any thread; nothing blocks.
#pragma once

#include <cstddef>
#include <cstring>

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

#include "base/units.h"

namespace vramswap {

/// Asks for all lines of a page at once: read one after the other, each would wait for memory.
inline void prefetch_page(const std::byte* page) {
    constexpr std::size_t kLineBytes = 64;
    for (std::size_t at = 0; at < kPageBytes; at += kLineBytes) __builtin_prefetch(page + at);
}

/// Asks for a line that is about to be written to, so that it comes once, and not first for reading.
inline void prefetch_to_write(const void* line) {
#if defined(__x86_64__)
    asm volatile("prefetchw %0" : : "m"(*static_cast<const char*>(line)));  // a no-op on CPUs that lack it
#else
    __builtin_prefetch(line, 1);
#endif
}

/// Copies a page that the CPU will not read again soon past the caches: neither does the target's old content
/// have to be fetched, nor another CPU's copy of it. Both page-aligned. Visible to other threads and to the
/// GPU after whatever orders later stores.
inline void stream_page(std::byte* to, const std::byte* from) {
#if defined(__x86_64__)
    for (std::size_t at = 0; at < kPageBytes; at += 4 * sizeof(__m128i)) {
        const auto* in = reinterpret_cast<const __m128i*>(from + at);
        auto* out = reinterpret_cast<__m128i*>(to + at);
        const __m128i a = _mm_loadu_si128(in);
        const __m128i b = _mm_loadu_si128(in + 1);
        const __m128i c = _mm_loadu_si128(in + 2);
        const __m128i d = _mm_loadu_si128(in + 3);
        _mm_stream_si128(out, a);
        _mm_stream_si128(out + 1, b);
        _mm_stream_si128(out + 2, c);
        _mm_stream_si128(out + 3, d);
    }
    _mm_sfence();
#else
    std::memcpy(to, from, kPageBytes);
#endif
}

}  // namespace vramswap
