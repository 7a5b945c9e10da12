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
#include "store/latency_counts.h"
#include "store/pacer.h"
#include "store/slots.h"
#include "store/spill.h"
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
    std::atomic<std::uint64_t> pages_read_spill{0};  ///< of pages_read, from the spill
    std::atomic<std::uint64_t> reread_pages{0};    ///< copies from VRAM repeated after an error or a mismatch
    std::atomic<std::uint64_t> read_errors{0};     ///< pages that could not be had
    std::atomic<std::uint64_t> writes_refused{0};  ///< requests answered no_space or io_error
    std::atomic<std::uint64_t> retries{0};         ///< requests answered retry
    LatencyCounts read_latency;                    ///< of requests that waited for copies
    LatencyCounts write_latency;
    std::atomic<std::uint64_t> waited_ns{0};  ///< of all of them together, but for those of the spill

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

/// Runs one empty submission to its end (or error, or half a second), so that the GPU library's first call on
/// this thread is behind us. May block and allocate.
void warm_up_thread(TransferQueue& queue);

/// Who sends images home, and sleeps when there are none: a flusher, or the mover.
class Carrier {
  public:
    virtual ~Carrier() = default;
    Carrier(const Carrier&) = delete;
    Carrier& operator=(const Carrier&) = delete;
    /// From I/O threads after making pages dirty. `urgent`: an image is full or the pool is short.
    virtual void kick(bool urgent) noexcept = 0;

  protected:
    Carrier() = default;
};

class StoreParts {
  public:
    static constexpr std::uint32_t kQueuesMax = 128;

    /// `spill_in` may be null; it must outlive this.
    StoreParts(State state_in, std::unique_ptr<Stage> stage_in, Spill* spill_in, std::uint32_t gpus_in);
    ~StoreParts();
    StoreParts(const StoreParts&) = delete;
    StoreParts& operator=(const StoreParts&) = delete;

    State state;
    const std::unique_ptr<Stage> stage;
    SlotAllocator slots;
    Spill* const spill;
    const std::uint32_t gpus;

    struct Place {
        std::uint32_t gpu = 0;
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

    /// Who is to be kicked for an image, by ImageHeader::carrier; set before any queue is made.
    std::array<Carrier*, kGpusMax + 1> carriers{};
    void kick(std::uint32_t carrier, bool urgent) const {
        if (carriers[carrier] != nullptr) carriers[carrier]->kick(urgent);
    }
    void kick_all() const {
        for (Carrier* carrier : carriers)
            if (carrier != nullptr) carrier->kick(true);
    }
    /// Under the chunk's lock. REQUIRES: a home.
    [[nodiscard]] std::uint32_t carrier_of(const ChunkEntry& entry) const {
        return entry.spill.has() ? kSpillCarrier : slots.gpu_of(entry.slot.get());
    }

    /// The time that ChunkEntry::last_use is set to: goes on by one now and then.
    std::atomic<std::uint32_t> use_clock{1};
    void note_use(ChunkEntry& entry) const {
        entry.last_use.store(use_clock.load(std::memory_order_relaxed), std::memory_order_relaxed);
    }

    /// Under the chunk's lock. Forgets a page wherever it is.
    void forget_page(ChunkIndex chunk, std::uint32_t page_in_chunk);
    /// Under the chunk's lock. Gives image and home back if the chunk is empty and nothing is in flight.
    void release_if_empty(ChunkEntry& entry);
    /// Nobody's any more. Wakes the control thread if a segment may be given back.
    void give_slot(std::uint32_t slot);
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
    /// Copies to this GPU fail again and again: what has its home there is not written, the pages stay in
    /// RAM.
    std::array<std::atomic<bool>, kGpusMax> refuse_writes{};
    /// It answers no more, for good: nothing new goes there, and nothing can be moved away.
    std::array<std::atomic<bool>, kGpusMax> lost{};
    /// Set before any queue is made.
    std::array<const Backend*, kGpusMax> backends{};
    /// Another process would take over from this one.
    std::atomic<bool> can_be_followed{false};
    /// This process can no longer use a GPU, but one that follows it can: what fails now is to be left to
    /// that one. PageStore's owner ends this process.
    [[nodiscard]] bool leaves_it_to_the_next() const;
    /// The same of the spill: what has its home there, or would get one, is not written.
    std::atomic<bool> refuse_spill_writes{false};
    /// Counts beginnings and ends of taking or giving back a segment.
    std::atomic<std::uint32_t> segment_changes{0};
    /// Requests that wait for the spill now: moves make way for them.
    std::atomic<std::uint32_t> waiting_for_spill{0};
    /// How much VRAM of each GPU may be held, in segments.
    std::array<std::atomic<std::uint32_t>, kGpusMax> target_segments;
    /// Holds writes back where others compute.
    Pacer pacer;
    /// How queues and flusher let the GPU copy.
    std::atomic<EngineMode> mode{EngineMode::copy};

  private:
    std::vector<std::atomic<std::uint32_t>> segment_ids_;
    UniqueFd maintenance_fd_;
    std::atomic<bool> maintenance_requested_{false};
};

}  // namespace vramswap
