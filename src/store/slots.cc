// SPDX-License-Identifier: MIT
#include "store/slots.h"

#include <algorithm>

namespace vramswap {

SlotAllocator::SlotAllocator(std::uint32_t segments_max, std::uint32_t slots_per_segment)
    : slots_per_segment_(slots_per_segment), closed_(segments_max), gpu_(segments_max), table_(segments_max) {
    for (auto& s : table_) s.is_free.assign(slots_per_segment, 0);
    weights_.fill(1);
}

std::optional<std::uint32_t> SlotAllocator::take() {
    if (free_slots() == 0) return std::nullopt;
    const MutexLock lock(mutex_);
    return take_locked(next_gpu());
}

std::optional<std::uint32_t> SlotAllocator::take_on(std::uint32_t gpu) {
    if (free_slots(gpu) == 0) return std::nullopt;
    const MutexLock lock(mutex_);
    return take_locked(gpu);
}

std::optional<std::uint32_t> SlotAllocator::take_locked(std::uint32_t gpu) {
    for (std::uint32_t n = 0; n < table_.size(); ++n) {
        Segment& s = table_[n];
        if (!s.in_use || s.closed || s.gpu != gpu || s.free == 0) continue;
        while (s.is_free[s.search_from] == 0) ++s.search_from;
        s.is_free[s.search_from] = 0;
        --s.free;
        uncount_free(s, 1);
        per_gpu_[gpu].used.fetch_add(1);
        return n * slots_per_segment_ + s.search_from;
    }
    return std::nullopt;
}

/// Whose turn it is, of those with a free slot: each saves up its weight, and who takes pays for all. Who has
/// none to give saves nothing, or it would be asked alone for long afterwards.
std::uint32_t SlotAllocator::next_gpu() {
    std::uint32_t best = 0;
    std::int64_t sum = 0;
    bool found = false;
    for (std::uint32_t g = 0; g < kGpusMax; ++g) {
        if (per_gpu_[g].free.load() == 0) continue;
        credits_[g] += weights_[g];
        sum += weights_[g];
        if (!found || credits_[g] > credits_[best]) best = g;
        found = true;
    }
    credits_[best] -= sum;
    return best;
}

void SlotAllocator::count_free(const Segment& s, std::uint32_t slots) {
    per_gpu_[s.gpu].free.fetch_add(slots);
    free_total_.fetch_add(slots);
}

void SlotAllocator::uncount_free(const Segment& s, std::uint32_t slots) {
    per_gpu_[s.gpu].free.fetch_sub(slots);
    free_total_.fetch_sub(slots);
}

void SlotAllocator::give(std::uint32_t slot) {
    const MutexLock lock(mutex_);
    Segment& s = table_[slot / slots_per_segment_];
    const std::uint32_t at = slot % slots_per_segment_;
    s.is_free[at] = 1;
    ++s.free;
    s.search_from = std::min(s.search_from, at);
    per_gpu_[s.gpu].used.fetch_sub(1);
    if (!s.closed)
        count_free(s, 1);
    else if (s.free == slots_per_segment_)
        empty_closed_.fetch_add(1);
}

bool SlotAllocator::adopt(std::uint32_t slot) {
    const MutexLock lock(mutex_);
    if (slot / slots_per_segment_ >= table_.size()) return false;
    Segment& s = table_[slot / slots_per_segment_];
    std::uint8_t& is_free = s.is_free[slot % slots_per_segment_];
    if (is_free == 0) return false;
    is_free = 0;
    --s.free;
    uncount_free(s, 1);
    per_gpu_[s.gpu].used.fetch_add(1);
    return true;
}

void SlotAllocator::set_closed(std::uint32_t segment, bool closed) {
    Segment& s = table_[segment];
    s.closed = closed;
    closed_[segment].store(closed, std::memory_order_relaxed);
    if (closed) {
        uncount_free(s, s.free);
        per_gpu_[s.gpu].closed.fetch_add(1);
        if (s.free == slots_per_segment_) empty_closed_.fetch_add(1);
    } else {
        count_free(s, s.free);
        per_gpu_[s.gpu].closed.fetch_sub(1);
        if (s.free == slots_per_segment_) empty_closed_.fetch_sub(1);
    }
}

bool SlotAllocator::close_one(std::uint32_t gpu) {
    const MutexLock lock(mutex_);
    std::optional<std::uint32_t> emptiest;
    for (std::uint32_t n = 0; n < table_.size(); ++n) {
        const Segment& s = table_[n];
        if (!s.in_use || s.closed || s.gpu != gpu) continue;
        if (!emptiest || s.free >= table_[*emptiest].free) emptiest = n;
    }
    if (emptiest) set_closed(*emptiest, true);
    return emptiest.has_value();
}

bool SlotAllocator::open_one(std::uint32_t gpu) {
    const MutexLock lock(mutex_);
    std::optional<std::uint32_t> fullest;
    for (std::uint32_t n = 0; n < table_.size(); ++n) {
        const Segment& s = table_[n];
        if (!s.in_use || !s.closed || s.gpu != gpu) continue;
        if (!fullest || s.free < table_[*fullest].free) fullest = n;
    }
    if (fullest) set_closed(*fullest, false);
    return fullest.has_value();
}

void SlotAllocator::add_segment(std::uint32_t segment, std::uint32_t gpu) {
    const MutexLock lock(mutex_);
    Segment& s = table_[segment];
    s.in_use = true;
    s.gpu = gpu;
    s.free = slots_per_segment_;
    s.search_from = 0;
    std::ranges::fill(s.is_free, std::uint8_t{1});
    gpu_[segment].store(gpu, std::memory_order_relaxed);
    count_free(s, slots_per_segment_);
    per_gpu_[gpu].segments.fetch_add(1);
    segments_.fetch_add(1, std::memory_order_relaxed);
}

std::optional<std::uint32_t> SlotAllocator::unused_segment() const {
    const MutexLock lock(mutex_);
    for (std::uint32_t n = 0; n < table_.size(); ++n)
        if (!table_[n].in_use && !table_[n].leaving) return n;
    return std::nullopt;
}

std::optional<std::uint32_t> SlotAllocator::remove_empty_segment(Which which) {
    const MutexLock lock(mutex_);
    for (auto n = static_cast<std::uint32_t>(table_.size()); n-- > 0;) {
        Segment& s = table_[n];
        if (!s.in_use || s.free != slots_per_segment_ || (which == Which::closed && !s.closed)) continue;
        if (s.closed) set_closed(n, false);
        uncount_free(s, slots_per_segment_);
        s.in_use = false;
        s.leaving = true;
        s.free = 0;
        per_gpu_[s.gpu].segments.fetch_sub(1);
        segments_.fetch_sub(1, std::memory_order_relaxed);
        return n;
    }
    return std::nullopt;
}

void SlotAllocator::keep_number(std::uint32_t segment) {
    const MutexLock lock(mutex_);
    table_[segment].leaving = true;
}

void SlotAllocator::give_number(std::uint32_t segment) {
    const MutexLock lock(mutex_);
    table_[segment].leaving = false;
}

void SlotAllocator::set_weight(std::uint32_t gpu, std::uint32_t weight) {
    const MutexLock lock(mutex_);
    weights_[gpu] = weight;
}

}  // namespace vramswap
