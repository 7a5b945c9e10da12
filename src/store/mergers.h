// SPDX-License-Identifier: MIT
// Mergers: threads that complete stage images with what the flusher has fetched from VRAM. That costs a core
// hundreds of microseconds for each, and the flusher's own thread hardly anything else: so it keeps the
// copies and all decisions, and hands over this. Owned by the Flusher, which starts and stops them. With no
// thread it merges at once in whoever hands over.
//
// A Merge stands for a chunk of scratch memory. It passes from the flusher (idle, fetching) to a merger
// (waiting, merging) and back (done); whoever has it may use its other members. Once made nothing allocates,
// and the threads block only while they wait for work: the chunk's lock is held for a few pages at a time.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "base/locked_thread.h"
#include "base/semaphore.h"
#include "store/parts.h"

namespace vramswap {

/// An image that is completed: it stays in its chunk, which is pinned, to the end.
struct Merge {
    enum class State : std::uint8_t { idle, fetching, waiting, merging, done };
    std::atomic<State> state{State::idle};
    std::byte* scratch = nullptr;  ///< constant
    std::uint32_t image = 0;
    std::uint32_t chunk = 0;
    PageRun fetched{};  ///< pages of the chunk that the scratch memory has
    // When it is done (apart from the state, which the flusher watches):
    alignas(64) PageBits sent;  ///< what is to be sent, frozen
    std::uint32_t dirty = 0;    ///< how many of these were dirty

    [[nodiscard]] bool is_done() const { return state.load(std::memory_order_acquire) == State::done; }
};

class Mergers {
  public:
    static constexpr std::uint32_t kThreadsMax = 4;
    static constexpr std::uint32_t kFetchedAhead = 2;
    static constexpr std::uint32_t kMergesMax = kThreadsMax + kFetchedAhead;
    /// So many chunks of scratch memory must the stage have: one for each thread, the flusher's if there is
    /// no other, and those that are being fetched meanwhile.
    [[nodiscard]] static constexpr std::uint32_t scratch_chunks(std::uint32_t threads) {
        return (threads == 0 ? 1 : threads) + kFetchedAhead;
    }
    /// For a stage of so many images on a machine with so many CPUs: none where they would only take the CPU
    /// from those who write.
    [[nodiscard]] static std::uint32_t threads_for(std::uint32_t images, std::uint32_t cpus);

    /// `first_scratch`: of the stage's scratch chunks, the first of scratch_chunks(threads).
    /// REQUIRES: threads <= kThreadsMax.
    Mergers(StoreParts& parts, std::uint32_t threads, std::uint32_t first_scratch);
    ~Mergers();
    Mergers(const Mergers&) = delete;
    Mergers& operator=(const Mergers&) = delete;

    /// Control thread. Between stop and start what was handed over waits, unless merge_one is called. Errors:
    /// failed; then none runs.
    Result<void> start();
    void stop();

    [[nodiscard]] std::uint32_t threads() const { return thread_count_; }

    /// For the flusher: one that is idle, null if none is.
    [[nodiscard]] Merge* idle();
    /// From the flusher, when all that was to be fetched is there.
    void hand_over(Merge& merge);

    /// Does what a thread does with one that waits; false if none does. For a test that runs no threads.
    bool merge_one();

  private:
    void run();
    void merge_waiting();
    void complete(Merge& merge);

    StoreParts& parts_;
    const std::uint32_t thread_count_;
    std::array<Merge, kMergesMax> merges_{};
    /// How many are in the state waiting and not promised to a thread yet; and one for each thread that is to
    /// stop.
    Semaphore waiting_;
    std::atomic<bool> stopping_{false};
    std::array<LockedThread, kThreadsMax> threads_;
};

}  // namespace vramswap
