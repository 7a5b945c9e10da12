// SPDX-License-Identifier: MIT
// What the pieces of the store share: tables, stage, slots, where segments are, who waits for room, and
// counters. Owned by PageStore; used by its queues and flusher.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "base/io_status.h"
#include "base/mutex.h"
#include "gpu/backend.h"
#include "store/slots.h"
#include "store/stage.h"
#include "store/state.h"

namespace vramswap {

/// Written by one queue, read by anybody.
struct alignas(64) QueueCounters {
    std::atomic<std::uint64_t> pages_read{0};  ///< asked for by the frontend
    std::atomic<std::uint64_t> pages_written{0};
    std::atomic<std::uint64_t> pages_discarded{0};
    std::atomic<std::uint64_t> zero_pages_written{0};
    std::atomic<std::uint64_t> pages_written_direct{
        0};                                          ///< of pages_written, from the request straight to VRAM
    std::atomic<std::uint64_t> pages_read_stage{0};  ///< of pages_read, found in the stage
    std::atomic<std::uint64_t> pages_read_gpu{0};    ///< of pages_read, copied from VRAM
    std::atomic<std::uint64_t> reread_pages{0};    ///< copies from VRAM repeated after an error or a mismatch
    std::atomic<std::uint64_t> read_errors{0};     ///< pages that could not be had
    std::atomic<std::uint64_t> writes_refused{0};  ///< requests answered no_space or io_error
    std::atomic<std::uint64_t> retries{0};         ///< requests answered retry

    static void add(std::atomic<std::uint64_t>& counter, std::uint64_t n) {
        counter.store(counter.load(std::memory_order_relaxed) + n, std::memory_order_relaxed);
    }
};

/// A queue's place in the store: its counters and its event. Reused, never freed, so that notify needs no
/// lock.
struct QueueSlot {
    QueueCounters counters;
    std::atomic<bool> in_use{false};
    std::atomic<bool> waiting{false};
    std::atomic<int> event_fd{-1};
};

class StoreParts {
  public:
    static constexpr std::uint32_t kQueuesMax = 128;

    StoreParts(State state_in, std::unique_ptr<Stage> stage_in);
    ~StoreParts();
    StoreParts(const StoreParts&) = delete;
    StoreParts& operator=(const StoreParts&) = delete;

    State state;
    const std::unique_ptr<Stage> stage;
    SlotAllocator slots;

    struct Place {
        SegmentId segment{};
        std::uint64_t offset = 0;
    };
    /// Where a slot's bytes are on the GPU. Any thread that pins a chunk in that slot.
    [[nodiscard]] Place place(std::uint32_t slot) const;
    void set_segment(std::uint32_t number, SegmentId id) {
        segment_ids_[number].store(id.n, std::memory_order_release);
    }
    [[nodiscard]] SegmentId segment_id(std::uint32_t number) const {
        return {segment_ids_[number].load(std::memory_order_acquire)};
    }

    /// Under the chunk's lock. Forgets a page wherever it is.
    void forget_page(ChunkIndex chunk, std::uint32_t page_in_chunk);
    /// Under the chunk's lock. Gives image and slot back if the chunk is empty and nothing is in flight.
    void release_if_empty(ChunkEntry& entry);
    /// Under the chunk's lock.
    void mark_dirty(ImageHeader& header, std::uint64_t now);
    /// Under the chunk's lock. From now on the bytes of these pages do not change until they were sent; what
    /// VRAM has of them is unknown until then. Returns how many were dirty.
    static std::uint32_t freeze(ImageHeader& header, const PageBits& pages);

    /// Wakes the queues that wait for room, `but` for one (may be null).
    void notify_room(const QueueSlot* but = nullptr);
    /// Asks the control thread for PageStore::maintain (once until it ran).
    void request_maintenance();
    [[nodiscard]] int maintenance_fd() const { return maintenance_fd_.get(); }
    void maintenance_begins();

    std::array<QueueSlot, kQueuesMax> queues;
    std::atomic<std::uint32_t> queues_used{0};  ///< slots below have an event

    /// A write found no slot since the last maintenance. It may need several at once, and undone it leaves
    /// free those that it found: that some are free does not mean that there are enough.
    std::atomic<bool> slot_missing{false};
    /// The last attempt to take VRAM failed: a write without a slot is refused instead of told to retry.
    std::atomic<bool> growth_failed{false};
    /// Copies to VRAM fail again and again: writes are refused, the pages stay in RAM.
    std::atomic<bool> refuse_writes{false};
    /// How queues and flusher let the GPU copy.
    std::atomic<EngineMode> mode{EngineMode::copy};

  private:
    std::vector<std::atomic<std::uint32_t>> segment_ids_;
    UniqueFd maintenance_fd_;
    std::atomic<bool> maintenance_requested_{false};
};

}  // namespace vramswap
