// SPDX-License-Identifier: MIT
// SlotAllocator: which 2 MiB slots of which segments are free. Rebuilt from the chunk table, so it is not
// kept in the state. take and give are for I/O threads: a short lock that nobody holds over a system call, no
// allocation. The rest is the control thread's.
#pragma once

#include <atomic>
#include <cstdint>
#include <optional>
#include <vector>

#include "base/mutex.h"
#include "base/units.h"

namespace vramswap {

class SlotAllocator {
  public:
    /// `segments_max` segments of `slots_per_segment` slots; none exists yet.
    SlotAllocator(std::uint32_t segments_max, std::uint32_t slots_per_segment);

    /// A free slot, from the fullest segments' side (the lowest number) so that the others can be given back;
    /// or none.
    std::optional<std::uint32_t> take() VS_EXCLUDES(mutex_);
    void give(std::uint32_t slot) VS_EXCLUDES(mutex_);

    /// All slots of the segment become free. REQUIRES: it has none yet.
    void add_segment(std::uint32_t segment) VS_EXCLUDES(mutex_);
    /// Number of a segment not in use, or none.
    [[nodiscard]] std::optional<std::uint32_t> unused_segment() const VS_EXCLUDES(mutex_);
    /// Takes an entirely free segment out of use (the highest number), or none.
    std::optional<std::uint32_t> remove_empty_segment() VS_EXCLUDES(mutex_);

    [[nodiscard]] std::uint32_t free_slots() const { return free_total_.load(); }
    [[nodiscard]] std::uint32_t segments() const { return segments_.load(std::memory_order_relaxed); }
    [[nodiscard]] std::uint32_t slots_per_segment() const { return slots_per_segment_; }

  private:
    struct Segment {
        bool in_use = false;
        std::uint32_t free = 0;
        std::uint32_t search_from = 0;      ///< no free slot below
        std::vector<std::uint8_t> is_free;  ///< sized once
    };

    const std::uint32_t slots_per_segment_;
    std::atomic<std::uint32_t> free_total_{0};
    std::atomic<std::uint32_t> segments_{0};
    mutable Mutex mutex_;
    std::vector<Segment> table_ VS_GUARDED_BY(mutex_);
};

}  // namespace vramswap
