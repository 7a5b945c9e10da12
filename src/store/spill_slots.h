// SPDX-License-Identifier: MIT
// SpillSlots: in which state each slot of the spill is. No I/O: the Spill does that between claim and settle.
// Rebuilt from the chunk table, so it is not kept in the state. take, give_back and retire are for I/O
// threads: a short lock that nobody holds over a system call, no allocation. The rest is the control
// thread's.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "base/mutex.h"
#include "base/result.h"

namespace vramswap {

/// Slots next to each other.
struct SlotRange {
    std::uint32_t first = 0;
    std::uint32_t count = 0;
    bool operator==(const SlotRange&) const = default;
};

class SpillSlots {
  public:
    enum class State : std::uint8_t {
        absent,   ///< no room on the disk is reserved for it
        free,     ///< reserved, wiped or never ours
        used,     ///< taken
        stale,    ///< given back, not wiped yet
        claimed,  ///< the control thread is reserving or wiping it
        bad,      ///< retired
    };
    static constexpr std::size_t kStates = 6;
    using Totals = std::array<std::uint32_t, kStates>;

    /// All are in the state `initial`.
    SpillSlots(std::uint32_t count, State initial);

    /// The lowest free one, which is used now; or none.
    std::optional<std::uint32_t> take() VS_EXCLUDES(mutex_);
    /// A used one becomes stale or bad; others stay what they are.
    void give_back(std::uint32_t slot) VS_EXCLUDES(mutex_) { leave(slot, State::stale); }
    void retire(std::uint32_t slot) VS_EXCLUDES(mutex_) { leave(slot, State::bad); }
    /// A used one becomes free again: nothing was written there.
    void put_back(std::uint32_t slot) VS_EXCLUDES(mutex_) { leave(slot, State::free); }

    /// These are used. Error usage: beyond the end, or named twice.
    Result<void> adopt(std::span<const std::uint32_t> used) VS_EXCLUDES(mutex_);
    /// The first slots of that state, `count_max` at most; none if the count is 0. They are claimed until
    /// settled.
    SlotRange claim(State from, std::uint32_t count_max) VS_EXCLUDES(mutex_);
    void settle(SlotRange range, State to) VS_EXCLUDES(mutex_);

    [[nodiscard]] std::uint32_t count() const { return count_; }
    /// All of one moment. Any thread, as take.
    [[nodiscard]] Totals totals() const VS_EXCLUDES(mutex_);
    /// Any thread; a slot that changes may be in two states.
    [[nodiscard]] std::uint32_t in(State state) const {
        return totals_[static_cast<std::size_t>(state)].load(std::memory_order_relaxed);
    }

  private:
    void leave(std::uint32_t slot, State to) VS_EXCLUDES(mutex_);
    void set(std::uint32_t slot, State to) VS_REQUIRES(mutex_);
    [[nodiscard]] std::uint32_t first_in(State state) VS_REQUIRES(mutex_);

    const std::uint32_t count_;
    std::array<std::atomic<std::uint32_t>, kStates> totals_{};
    mutable Mutex mutex_;
    std::vector<State> states_ VS_GUARDED_BY(mutex_);  ///< sized once
    /// By state: none of it is below.
    std::array<std::uint32_t, kStates> search_from_ VS_GUARDED_BY(mutex_){};
};

}  // namespace vramswap
