// SPDX-License-Identifier: MIT
#include "store/spill_slots.h"

#include <fmt/format.h>

#include <algorithm>

namespace vramswap {

SpillSlots::SpillSlots(std::uint32_t count, State initial) : count_(count), states_(count, initial) {
    totals_[static_cast<std::size_t>(initial)] = count;
    search_from_.fill(count);
    search_from_[static_cast<std::size_t>(initial)] = 0;
}

std::optional<std::uint32_t> SpillSlots::take() {
    const MutexLock lock(mutex_);
    const std::uint32_t slot = first_in(State::free);
    if (slot == count_) return std::nullopt;
    set(slot, State::used);
    return slot;
}

void SpillSlots::leave(std::uint32_t slot, State to) {
    const MutexLock lock(mutex_);
    if (slot < count_ && states_[slot] == State::used) set(slot, to);
}

Result<void> SpillSlots::adopt(std::span<const std::uint32_t> used) {
    const MutexLock lock(mutex_);
    for (const std::uint32_t slot : used) {
        if (slot >= count_ || states_[slot] == State::used)
            return Error{
                Errc::usage, 0,
                fmt::format("slot {} of {} of the spill does not exist or is named twice", slot, count_)};
        set(slot, State::used);
    }
    return {};
}

SlotRange SpillSlots::claim(State from, std::uint32_t count_max) {
    const MutexLock lock(mutex_);
    SlotRange range{first_in(from), 0};
    while (range.count < count_max && range.first + range.count < count_ &&
           states_[range.first + range.count] == from)
        set(range.first + range.count++, State::claimed);
    return range;
}

void SpillSlots::settle(SlotRange range, State to) {
    const MutexLock lock(mutex_);
    for (std::uint32_t n = 0; n < range.count; ++n) set(range.first + n, to);
}

SpillSlots::Totals SpillSlots::totals() const {
    const MutexLock lock(mutex_);
    Totals totals{};
    for (std::size_t n = 0; n < kStates; ++n) totals[n] = totals_[n].load(std::memory_order_relaxed);
    return totals;
}

void SpillSlots::set(std::uint32_t slot, State to) {
    State& state = states_[slot];
    totals_[static_cast<std::size_t>(to)].fetch_add(1, std::memory_order_relaxed);
    totals_[static_cast<std::size_t>(state)].fetch_sub(1, std::memory_order_relaxed);
    state = to;
    auto& from = search_from_[static_cast<std::size_t>(to)];
    from = std::min(from, slot);
}

std::uint32_t SpillSlots::first_in(State state) {
    auto& from = search_from_[static_cast<std::size_t>(state)];
    if (in(state) == 0) return from = count_;
    while (states_[from] != state) ++from;
    return from;
}

}  // namespace vramswap
