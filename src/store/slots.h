// SPDX-License-Identifier: MIT
// SlotAllocator: which 2 MiB slots of which segments are free, and of which GPU they are. Rebuilt from the
// chunk table, so it is not kept in the state. take and give are for I/O threads and the mover: a short lock
// that nobody holds over a system call, no allocation. So are close_one and open_one, the mover's. The rest
// is the control thread's.
//
// A segment is open, or closed: then its free slots are not taken, so that it can be emptied and given back.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <optional>
#include <vector>

#include "base/mutex.h"
#include "store/state.h"

namespace vramswap {

class SlotAllocator {
  public:
    /// `segments_max` segments of `slots_per_segment` slots; none exists yet.
    SlotAllocator(std::uint32_t segments_max, std::uint32_t slots_per_segment);

    /// A free slot of an open segment, from the fullest segments' side (the lowest number) so that the others
    /// can be given back; or none. With several GPUs they take turns, in proportion to their weights.
    std::optional<std::uint32_t> take() VS_EXCLUDES(mutex_);
    /// The same of one GPU.
    std::optional<std::uint32_t> take_on(std::uint32_t gpu) VS_EXCLUDES(mutex_);
    void give(std::uint32_t slot) VS_EXCLUDES(mutex_);
    /// Takes this very slot; false if it is not free. Before there are other threads.
    bool adopt(std::uint32_t slot) VS_EXCLUDES(mutex_);

    /// Closes the open segment of the GPU with the most free slots, or opens the closed one with the fewest;
    /// false if there is none.
    bool close_one(std::uint32_t gpu) VS_EXCLUDES(mutex_);
    bool open_one(std::uint32_t gpu) VS_EXCLUDES(mutex_);
    /// May have changed when the caller looks at it.
    [[nodiscard]] bool is_closed(std::uint32_t segment) const {
        return closed_[segment].load(std::memory_order_relaxed);
    }
    /// GPU of a slot. REQUIRES: its segment is in use.
    [[nodiscard]] std::uint32_t gpu_of(std::uint32_t slot) const {
        return gpu_[slot / slots_per_segment_].load(std::memory_order_relaxed);
    }

    /// All slots of the segment become free. REQUIRES: it has none yet.
    void add_segment(std::uint32_t segment, std::uint32_t gpu) VS_EXCLUDES(mutex_);
    /// Number of a segment not in use, or none.
    [[nodiscard]] std::optional<std::uint32_t> unused_segment() const VS_EXCLUDES(mutex_);
    /// Takes an entirely free segment out of use (the highest number), or none. Its number is not used again
    /// before give_number.
    enum class Which : std::uint8_t { any, closed };
    std::optional<std::uint32_t> remove_empty_segment(Which which) VS_EXCLUDES(mutex_);
    /// The same for one that was never in use here.
    void keep_number(std::uint32_t segment) VS_EXCLUDES(mutex_);
    void give_number(std::uint32_t segment) VS_EXCLUDES(mutex_);
    /// There is a closed segment without a used slot.
    [[nodiscard]] bool has_empty_closed() const { return empty_closed_.load() != 0; }
    /// How much of what is new goes to this GPU; 0 for none. All have 1 at first.
    void set_weight(std::uint32_t gpu, std::uint32_t weight) VS_EXCLUDES(mutex_);

    /// In open segments.
    [[nodiscard]] std::uint32_t free_slots() const { return free_total_.load(); }
    [[nodiscard]] std::uint32_t free_slots(std::uint32_t gpu) const { return per_gpu_[gpu].free.load(); }
    /// In use, open or closed.
    [[nodiscard]] std::uint32_t segments() const { return segments_.load(std::memory_order_relaxed); }
    [[nodiscard]] std::uint32_t segments(std::uint32_t gpu) const { return per_gpu_[gpu].segments.load(); }
    [[nodiscard]] std::uint32_t closed(std::uint32_t gpu) const { return per_gpu_[gpu].closed.load(); }
    /// Slots taken, in open and closed segments.
    [[nodiscard]] std::uint32_t used(std::uint32_t gpu) const { return per_gpu_[gpu].used.load(); }
    [[nodiscard]] std::uint32_t slots_per_segment() const { return slots_per_segment_; }

  private:
    struct Segment {
        bool in_use = false;
        bool closed = false;
        bool leaving = false;  ///< out of use, its number is not
        std::uint32_t gpu = 0;
        std::uint32_t free = 0;
        std::uint32_t search_from = 0;      ///< no free slot below
        std::vector<std::uint8_t> is_free;  ///< sized once
    };
    /// Counters for those who look without the lock.
    struct PerGpu {
        std::atomic<std::uint32_t> free{0}, segments{0}, closed{0}, used{0};
    };

    std::optional<std::uint32_t> take_locked(std::uint32_t gpu) VS_REQUIRES(mutex_);
    [[nodiscard]] std::uint32_t next_gpu() VS_REQUIRES(mutex_);
    void count_free(const Segment& segment, std::uint32_t slots) VS_REQUIRES(mutex_);
    void uncount_free(const Segment& segment, std::uint32_t slots) VS_REQUIRES(mutex_);
    void set_closed(std::uint32_t segment, bool closed) VS_REQUIRES(mutex_);

    const std::uint32_t slots_per_segment_;
    std::atomic<std::uint32_t> free_total_{0};
    std::atomic<std::uint32_t> segments_{0};
    std::atomic<std::uint32_t> empty_closed_{0};
    std::array<PerGpu, kGpusMax> per_gpu_{};
    std::vector<std::atomic<bool>> closed_;
    std::vector<std::atomic<std::uint32_t>> gpu_;
    mutable Mutex mutex_;
    std::vector<Segment> table_ VS_GUARDED_BY(mutex_);
    std::array<std::uint32_t, kGpusMax> weights_ VS_GUARDED_BY(mutex_){};
    std::array<std::int64_t, kGpusMax> credits_ VS_GUARDED_BY(mutex_){};
};

}  // namespace vramswap
