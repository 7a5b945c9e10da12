// SPDX-License-Identifier: MIT
// RequestPages: a set of pages of a request. A plain value; how many it has is counted along, since most
// requests have one page and the set has room for the largest.
#pragma once

#include <array>
#include <cstdint>

#include "base/units.h"
#include "front/target.h"

namespace vramswap {

class RequestPages {
  public:
    static constexpr std::uint32_t kMax = BlockRequest::kMaxTransferBytes / kPageBytes;

    /// REQUIRES: page < kMax, in all of them.
    [[nodiscard]] bool test(std::uint32_t page) const { return (words_[page / 64] & bit(page)) != 0; }
    void set(std::uint32_t page) {
        if (!test(page)) ++count_;
        words_[page / 64] |= bit(page);
    }
    void reset(std::uint32_t page) {
        if (test(page)) --count_;
        words_[page / 64] &= ~bit(page);
    }
    void reset() { *this = {}; }
    [[nodiscard]] std::uint32_t count() const { return count_; }
    [[nodiscard]] bool any() const { return count_ != 0; }
    [[nodiscard]] bool none() const { return count_ == 0; }

  private:
    static constexpr std::uint64_t bit(std::uint32_t page) { return std::uint64_t{1} << (page % 64); }

    static_assert(kMax % 64 == 0);
    std::array<std::uint64_t, kMax / 64> words_{};
    std::uint32_t count_ = 0;
};

}  // namespace vramswap
