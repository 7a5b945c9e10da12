// SPDX-License-Identifier: MIT
// Candidates: chunks that may be worth moving, best first, from a look at the whole chunk table without its
// locks. Such a look takes a tenth of a millisecond for each 80 GiB of device, so it gives many at once; who
// takes one looks again under its lock. The mover's alone; no allocation once made.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>

#include "store/state.h"

namespace vramswap {

class Candidates {
  public:
    /// The next, or none: then it is time for another look.
    [[nodiscard]] std::optional<ChunkIndex> next() {
        if (taken_ == count_) return std::nullopt;
        return ChunkIndex{items_[taken_++].chunk};
    }
    /// The one that next gave comes again.
    void put_back() { --taken_; }
    void clear() { taken_ = count_ = 0; }

    /// Looks for those with the smallest keys. `key_of(entry)`: optional<uint32_t>, none if it is no
    /// candidate.
    template <typename KeyOf>
    void look(const State& state, KeyOf key_of) {
        clear();
        const auto chunks = state.chunks();
        for (std::uint32_t n = 0; n < chunks.size(); ++n)
            if (const std::optional<std::uint32_t> key = key_of(chunks[n])) add({*key, n});
        std::sort(items_.begin(), items_.begin() + static_cast<std::ptrdiff_t>(count_));
    }

  private:
    struct Item {
        std::uint32_t key = 0;
        std::uint32_t chunk = 0;
        auto operator<=>(const Item&) const = default;
    };
    static constexpr std::size_t kMax = 256;

    /// A heap with the worst on top, as long as it is full.
    void add(Item item) {
        const auto begin = items_.begin();
        if (count_ < kMax) {
            items_[count_++] = item;
            std::push_heap(begin, begin + static_cast<std::ptrdiff_t>(count_));
        } else if (item < items_[0]) {
            std::pop_heap(begin, items_.end());
            items_[kMax - 1] = item;
            std::push_heap(begin, items_.end());
        }
    }

    std::array<Item, kMax> items_{};
    std::size_t count_ = 0;
    std::size_t taken_ = 0;
};

}  // namespace vramswap
