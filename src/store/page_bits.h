// SPDX-License-Identifier: MIT
// PageBits: one bit for each page of a chunk. A plain value in shared memory; whoever holds the chunk's lock
// uses it.
#pragma once

#include <array>
#include <bit>
#include <cstdint>

#include "base/units.h"

namespace vramswap {

/// Pages [first, first + count) of a chunk.
struct PageRun {
    std::uint32_t first = 0;
    std::uint32_t count = 0;
};

class PageBits {
  public:
    [[nodiscard]] bool test(std::uint32_t page) const {
        return ((words_[page / 64] >> (page % 64)) & 1) != 0;
    }
    void set(std::uint32_t page) { words_[page / 64] |= std::uint64_t{1} << (page % 64); }
    void clear(std::uint32_t page) { words_[page / 64] &= ~(std::uint64_t{1} << (page % 64)); }
    void clear_all() { words_ = {}; }

    [[nodiscard]] bool any() const {
        std::uint64_t all = 0;
        for (const auto w : words_) all |= w;
        return all != 0;
    }
    [[nodiscard]] std::uint32_t count() const {
        int n = 0;
        for (const auto w : words_) n += std::popcount(w);
        return static_cast<std::uint32_t>(n);
    }
    void set_run(PageRun run) {
        for (std::uint32_t p = run.first; p < run.first + run.count; ++p) set(p);
    }
    void add(const PageBits& other) {
        for (std::size_t i = 0; i < words_.size(); ++i) words_[i] |= other.words_[i];
    }
    void remove(const PageBits& other) {
        for (std::size_t i = 0; i < words_.size(); ++i) words_[i] &= ~other.words_[i];
    }
    void keep_only(const PageBits& other) {
        for (std::size_t i = 0; i < words_.size(); ++i) words_[i] &= other.words_[i];
    }
    /// From the first to the last set page; count 0 if none is set.
    [[nodiscard]] PageRun span() const {
        const std::uint32_t first = next_set(0);
        if (first == kChunkPages) return {};
        std::size_t w = words_.size() - 1;
        while (words_[w] == 0) --w;
        const auto last =
            static_cast<std::uint32_t>(w * 64 + 63) - static_cast<std::uint32_t>(std::countl_zero(words_[w]));
        return {first, last + 1 - first};
    }

    /// First set page at or after `page`, kChunkPages if none.
    [[nodiscard]] std::uint32_t next_set(std::uint32_t page) const { return next<false>(page); }
    /// First clear page at or after `page`, kChunkPages if none.
    [[nodiscard]] std::uint32_t next_clear(std::uint32_t page) const { return next<true>(page); }

    /// Calls visit(PageRun) for each longest run of set pages, in order.
    template <typename Visit>
    void for_each_run(Visit visit) const {
        for (std::uint32_t first = next_set(0); first < kChunkPages;) {
            const std::uint32_t end = next_clear(first);
            visit(PageRun{first, end - first});
            first = next_set(end);
        }
    }

  private:
    template <bool kInverted>
    [[nodiscard]] std::uint32_t next(std::uint32_t page) const {
        for (std::size_t w = page / 64; w < words_.size(); ++w) {
            std::uint64_t bits = kInverted ? ~words_[w] : words_[w];
            if (w == page / 64) bits &= ~std::uint64_t{0} << (page % 64);
            if (bits != 0)
                return static_cast<std::uint32_t>(w * 64) +
                       static_cast<std::uint32_t>(std::countr_zero(bits));
        }
        return kChunkPages;
    }

    std::array<std::uint64_t, kChunkPages / 64> words_{};
};

}  // namespace vramswap
