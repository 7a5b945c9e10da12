// SPDX-License-Identifier: MIT
#include "store/slots.h"

#include <algorithm>

namespace vramswap {

SlotAllocator::SlotAllocator(std::uint32_t segments_max, std::uint32_t slots_per_segment)
    : slots_per_segment_(slots_per_segment), table_(segments_max) {
    for (auto& s : table_) s.is_free.assign(slots_per_segment, 0);
}

std::optional<std::uint32_t> SlotAllocator::take() {
    if (free_slots() == 0) return std::nullopt;
    const MutexLock lock(mutex_);
    for (std::uint32_t n = 0; n < table_.size(); ++n) {
        Segment& s = table_[n];
        if (!s.in_use || s.free == 0) continue;
        while (s.is_free[s.search_from] == 0) ++s.search_from;
        s.is_free[s.search_from] = 0;
        --s.free;
        free_total_.fetch_sub(1);
        return n * slots_per_segment_ + s.search_from;
    }
    return std::nullopt;
}

void SlotAllocator::give(std::uint32_t slot) {
    const MutexLock lock(mutex_);
    Segment& s = table_[slot / slots_per_segment_];
    const std::uint32_t at = slot % slots_per_segment_;
    s.is_free[at] = 1;
    ++s.free;
    s.search_from = std::min(s.search_from, at);
    free_total_.fetch_add(1);
}

void SlotAllocator::add_segment(std::uint32_t segment) {
    const MutexLock lock(mutex_);
    Segment& s = table_[segment];
    s.in_use = true;
    s.free = slots_per_segment_;
    s.search_from = 0;
    std::ranges::fill(s.is_free, std::uint8_t{1});
    free_total_.fetch_add(slots_per_segment_);
    segments_.fetch_add(1, std::memory_order_relaxed);
}

std::optional<std::uint32_t> SlotAllocator::unused_segment() const {
    const MutexLock lock(mutex_);
    for (std::uint32_t n = 0; n < table_.size(); ++n)
        if (!table_[n].in_use) return n;
    return std::nullopt;
}

std::optional<std::uint32_t> SlotAllocator::remove_empty_segment() {
    const MutexLock lock(mutex_);
    for (auto n = static_cast<std::uint32_t>(table_.size()); n-- > 0;) {
        Segment& s = table_[n];
        if (!s.in_use || s.free != slots_per_segment_) continue;
        s.in_use = false;
        s.free = 0;
        free_total_.fetch_sub(slots_per_segment_);
        segments_.fetch_sub(1, std::memory_order_relaxed);
        return n;
    }
    return std::nullopt;
}

}  // namespace vramswap
