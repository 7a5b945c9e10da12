// SPDX-License-Identifier: MIT
// Flusher: moves dirty stage pages to VRAM in runs as long as they come, and keeps some images free for
// writers. One per GPU, with a thread of its own; tests call step() instead. In the thread nothing allocates
// or blocks but the wait for work. After a failed copy the pages are dirty again and the copy is repeated
// with growing pauses.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include "store/parts.h"

namespace vramswap {

struct FlusherConfig {
    std::uint64_t age_ns_max = 2'000'000;  ///< a page is dirty this long at most without need
};

/// Runs one empty submission to its end (or error, or half a second), so that the GPU library's first call on
/// this thread is behind us. May block and allocate.
void warm_up_thread(TransferQueue& queue);

class Flusher {
  public:
    /// `queue` is this flusher's alone.
    Flusher(StoreParts& parts, std::unique_ptr<TransferQueue> queue, FlusherConfig config);
    ~Flusher();
    Flusher(const Flusher&) = delete;
    Flusher& operator=(const Flusher&) = delete;

    /// Starts and stops the thread. Control thread.
    void start();
    void stop();

    /// What to do after a step: go on at once, or sleep until a time or a kick.
    static constexpr std::uint64_t kNow = 0;
    static constexpr std::uint64_t kNever = ~std::uint64_t{0};
    /// One round: completes copies, starts due ones, frees images. Returns kNow while copies are in flight,
    /// else the time of the next duty or kNever. For the thread, or for a test that runs no thread.
    std::uint64_t step(std::uint64_t now);

    /// From I/O threads after making pages dirty. `urgent`: an image is full or the pool is short.
    void kick(bool urgent) noexcept;

    /// While set, everything dirty is due and every clean image is freed.
    void set_draining(std::atomic<bool>::value_type on) {
        draining_.store(on);
        kick(true);
    }
    [[nodiscard]] bool anything_dirty() const;

    [[nodiscard]] std::uint64_t pages_flushed() const {
        return pages_flushed_.load(std::memory_order_relaxed);
    }
    [[nodiscard]] std::uint64_t copies() const { return copies_.load(std::memory_order_relaxed); }
    [[nodiscard]] std::uint64_t errors() const { return errors_.load(std::memory_order_relaxed); }

  private:
    struct Flight {
        bool active = false;
        std::uint32_t image = 0;
        std::uint32_t chunk = 0;
        Ticket ticket = 0;
    };
    static constexpr std::size_t kFlights = 4;

    [[nodiscard]] bool wants_to_drain() const;
    void run();
    void sleep_until(std::uint64_t when);
    void finish_flights(std::uint64_t now);
    void finish(Flight& flight, IoStatus status, std::uint64_t now);
    std::uint64_t start_flights(std::uint64_t now);
    bool begin(Flight& flight, std::uint32_t image, std::uint64_t now);
    void free_clean_images();
    bool free_if_clean(std::uint32_t image);
    [[nodiscard]] bool in_flight(std::uint32_t image) const;
    [[nodiscard]] Flight* idle_flight();
    void note_failure(std::uint64_t now);

    StoreParts& parts_;
    const std::unique_ptr<TransferQueue> queue_;
    const FlusherConfig config_;
    const std::uint32_t free_images_low_;

    // The flusher thread's own.
    std::array<Flight, kFlights> flights_{};
    std::vector<Copy> copies_scratch_;
    std::uint32_t clock_hand_ = 0;
    std::uint32_t failures_in_row_ = 0;
    std::uint64_t not_before_ns_ = 0;

    // Self-synchronised.
    enum Sleep : int { awake, dozing, idle };
    std::atomic<int> sleep_{awake};
    std::atomic<bool> stopping_{false};
    std::atomic<bool> draining_{false};
    UniqueFd event_fd_;
    std::atomic<std::uint64_t> pages_flushed_{0};
    std::atomic<std::uint64_t> copies_{0};
    std::atomic<std::uint64_t> errors_{0};
    std::thread thread_;
};

}  // namespace vramswap
