// SPDX-License-Identifier: MIT
// SpillQueue: reads and writes runs of pages in slots of the spill, several at once; for a disk what a
// TransferQueue is for a GPU. Made by Spill::make_queue, which it must not outlive.
//
// Threads: one at a time, and it is handed over with nothing in flight. Once made nothing allocates, and only
// wait and the destructor (which waits for what is in flight: the disk writes into the callers' memory)
// block. Requests run in any order, also those for the same slot: who needs an order polls the first to its
// end.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "base/io_status.h"
#include "base/units.h"
#include "gpu/backend.h"
#include "store/page_bits.h"
#include "store/raw_io.h"

namespace vramswap {

/// What the queues of a spill did; any thread reads.
struct SpillCounters {
    std::atomic<std::uint64_t> bytes_read{0};
    std::atomic<std::uint64_t> bytes_written{0};
    std::atomic<std::uint64_t> failed_reads{0};
    std::atomic<std::uint64_t> failed_writes{0};
    std::atomic<int> last_errno{0};  ///< of a failed one
};

/// Where the slots are: constant. Of several files each has every `files`th.
struct SlotPlaces {
    std::uint32_t count = 0;
    std::uint64_t offset = 0;  ///< of the first, bytes
    std::uint32_t files = 1;
    [[nodiscard]] std::uint32_t file_of(std::uint32_t slot) const { return slot % files; }
    /// In that file.
    [[nodiscard]] std::uint64_t offset_of(std::uint32_t slot) const {
        return offset + std::uint64_t{slot / files} * kChunkBytes;
    }
};

struct SpillRequest {
    RawIo::Op op = RawIo::Op::read;
    std::uint32_t slot = 0;
    PageRun pages{};              ///< within the slot
    std::byte* memory = nullptr;  ///< of the first page; page-aligned; stays until the request has ended
};

class SpillQueue {
  public:
    /// Requests that may be in flight at once. With whole chunks 64 MiB: more than any disk needs to be busy.
    static constexpr std::uint32_t kDepth = 32;

    /// `io` has at least that depth. `counters` must live as long.
    SpillQueue(std::unique_ptr<RawIo> io, SlotPlaces places, SpillCounters& counters);
    ~SpillQueue();
    SpillQueue(const SpillQueue&) = delete;
    SpillQueue& operator=(const SpillQueue&) = delete;

    /// Returns pending with `ticket` set; retry if kDepth tickets are not yet polled to their end;
    /// out_of_range, misaligned (also for an empty run) if the request makes no sense.
    IoStatus submit(const SpillRequest& request, Ticket& ticket);

    /// pending; or how it ended, told once, which forgets the ticket: ok; no_space (a write the disk has no
    /// room for: not after Spill::take on a file system that keeps its promises); io_error (also for a ticket
    /// that is unknown). After an error of a write the slot's pages of it are unknown, of a read the
    /// memory's. Never blocks.
    IoStatus poll(Ticket ticket);

    /// Sleeps until a request may have ended that poll has not told of yet, `timeout_ms` at most (-1: no
    /// limit). Returns at once if there is such a one, or nothing in flight. May return early.
    void wait(int timeout_ms);
    /// For a thread that waits for other things too: readable if a request may have ended since the last poll
    /// or wait. Look with has_ended before sleeping.
    [[nodiscard]] int event_fd() const { return io_->event_fd(); }
    /// There is a request that has ended and of which poll has not told yet.
    [[nodiscard]] bool has_ended();

    [[nodiscard]] std::uint32_t in_flight() const { return in_flight_; }

  private:
    /// A request, from submit to the poll that tells its end.
    struct Flight {
        enum class Phase : std::uint8_t { idle, flying, ended };
        Phase phase = Phase::idle;
        IoStatus outcome = IoStatus::ok;
        Ticket ticket = 0;
        RawIo::Operation rest{};            ///< what is still to be moved
        std::uint32_t fruitless_tries = 0;  ///< in a row
    };

    void reap();
    void on_done(Flight& flight, std::int32_t result);
    void end(Flight& flight, IoStatus outcome);
    void fail(Flight& flight, int error);

    const std::unique_ptr<RawIo> io_;
    const SlotPlaces places_;
    SpillCounters& counters_;

    // The queue's thread's own.
    std::array<Flight, kDepth> flights_{};
    Ticket last_ticket_ = 0;
    std::uint32_t in_flight_ = 0;  ///< flights that are flying
    std::uint32_t ended_ = 0;      ///< flights that have ended and were not polled yet
    bool closing_ = false;
};

}  // namespace vramswap
