// SPDX-License-Identifier: MIT
// Flusher: moves dirty stage pages to VRAM in runs as long as they come, and keeps some images free for
// writers. One per GPU, with a thread of its own and its mergers'; tests call step() and merge_one() instead.
// In the threads nothing allocates or blocks but the wait for work. After a failed copy the pages are dirty
// again and the copy is repeated with growing pauses.
//
// An image with many small runs costs a copy for each. Two things make it fewer: a gap between two runs is
// sent too if what is there may be sent (pages that are absent, or clean in the image); and where many pages
// are in VRAM only, the chunk's span is fetched, the gaps are filled from it (by a merger: store/mergers.h),
// and the image is sent in one piece. CopyCosts decide. Either way the bytes that are being sent do not
// change until the flight ends, and over a page that only VRAM has nothing is sent but that page, checked.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "base/locked_thread.h"
#include "store/copy_costs.h"
#include "store/mergers.h"
#include "store/parts.h"

namespace vramswap {

struct FlusherConfig {
    std::uint64_t age_ns_max = 2'000'000;  ///< a page is dirty this long at most without need
    std::optional<CopyCosts> costs{};      ///< none: measured at start
    /// Threads that complete images, 0: the flusher's own; none: chosen for this machine.
    std::optional<std::uint32_t> mergers{};
};

/// What a flusher works with, beside what the store shares.
struct FlusherParts {
    std::uint32_t gpu = 0;  ///< it sends what has its home there
    std::unique_ptr<TransferQueue> to_gpu{};
    std::unique_ptr<TransferQueue> from_gpu{};
    std::uint64_t age_ns_max = 0;
    CopyCosts costs{};
    std::uint32_t mergers = 0;
    std::uint32_t first_scratch = 0;  ///< of the stage's scratch chunks, the mergers'
};

class Flusher final : public Carrier {
  public:
    Flusher(StoreParts& parts, FlusherParts own);
    ~Flusher() override;

    /// Starts and stops the threads. Control thread. Errors: failed; then none runs.
    Result<void> start();
    void stop();

    /// What to do after a step: go on at once, or sleep until a time or a kick.
    static constexpr std::uint64_t kNow = 0;
    static constexpr std::uint64_t kNever = ~std::uint64_t{0};
    /// One round: completes copies, starts due ones, frees images. Returns kNow while copies are in flight or
    /// with a merger, else the time of the next duty or kNever. For the thread, or for a test that runs no
    /// thread.
    std::uint64_t step(std::uint64_t now);
    /// What a merger does with one image; false if none waits for it. For a test that runs no thread.
    bool merge_one() { return mergers_.merge_one(); }

    /// From I/O threads after making pages dirty. `urgent`: an image is full or the pool is short.
    void kick(bool urgent) noexcept override;

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
    /// Pages that were sent, though not dirty, because they lay between others.
    [[nodiscard]] std::uint64_t pages_bridged() const {
        return pages_bridged_.load(std::memory_order_relaxed);
    }
    /// Images that were completed from VRAM to be sent in one piece.
    [[nodiscard]] std::uint64_t completed_images() const {
        return completed_images_.load(std::memory_order_relaxed);
    }
    [[nodiscard]] std::uint64_t errors() const { return errors_.load(std::memory_order_relaxed); }

  private:
    /// An image on its way; its chunk is pinned.
    struct Load {
        std::uint32_t image = 0;
        std::uint32_t chunk = 0;
        std::uint32_t dirty = 0;  ///< pages that were dirty when they were sent
    };
    static constexpr std::size_t kLoadsMax = 32;
    /// Several images in one submission, or one that is completed: first fetched, then merged, then sent.
    struct Flight {
        enum class Phase : std::uint8_t { idle, fetching, merging, sending };
        Phase phase = Phase::idle;
        Ticket ticket = 0;
        std::uint32_t count = 0;
        std::array<Load, kLoadsMax> loads{};
        Merge* merge = nullptr;  ///< of loads[0], if it is being fetched or merged
    };
    /// Some are left for other images when all scratch memory is in use.
    static constexpr std::size_t kFlights = Mergers::kMergesMax + 3;
    /// A submission of less is joined by the next image.
    static constexpr std::size_t kCopiesEnough = 64;
    static constexpr std::uint64_t kBytesEnough = 1u << 20;

    enum class Begun : std::uint8_t { yes, no, later, alone };

    void run();
    bool await_flight(std::uint64_t since);
    [[nodiscard]] bool has_news(const Flight& flight) const;
    void sleep_until(std::uint64_t when);
    [[nodiscard]] bool wants_to_drain() const;

    std::uint64_t start_flights(std::uint64_t now);
    std::uint64_t find_due(std::uint64_t now);
    void add_oldest_due();
    std::size_t start_flight(Flight& flight, std::size_t n, std::uint64_t now);
    Begun begin(Flight& flight, std::uint32_t image);
    [[nodiscard]] PageBits bridged(const ImageHeader& header, ChunkIndex chunk) const;
    [[nodiscard]] PageRun worth_completing(const PageBits& sent, const ImageHeader& header,
                                           ChunkIndex chunk) const;
    void list_copies(Copy::Op op, const Load& load, const PageBits& pages, std::byte* host);

    void finish_flights(std::uint64_t now);
    IoStatus advance(Flight& flight);
    IoStatus send_completed(Flight& flight);
    static void release_merge(Flight& flight);
    void finish(Flight& flight, IoStatus status, std::uint64_t now);
    void finish_load(const Load& load, IoStatus status, std::uint64_t now);
    void note_failure(std::uint64_t now);

    void free_clean_images();
    bool free_if_clean(std::uint32_t image);
    [[nodiscard]] bool in_flight(std::uint32_t image) const { return flying_[image] != 0; }
    [[nodiscard]] bool is_mine(std::uint32_t image) const {
        return parts_.stage->header(image).carrier.load(std::memory_order_relaxed) == gpu_;
    }
    [[nodiscard]] Flight* idle_flight();
    [[nodiscard]] std::uint32_t images_with_mergers() const;

    StoreParts& parts_;
    const std::uint32_t gpu_;
    const std::unique_ptr<TransferQueue> to_gpu_;
    const std::unique_ptr<TransferQueue> from_gpu_;
    const std::uint64_t age_ns_max_;
    const CopyCosts costs_;
    const std::uint32_t free_images_low_;
    Mergers mergers_;

    // The flusher thread's own.
    std::array<Flight, kFlights> flights_{};
    std::vector<std::uint8_t> flying_;  ///< by image: it is in a flight
    std::vector<std::uint32_t> due_;    ///< images to be sent now, in this order
    std::vector<std::uint32_t> young_;  ///< dirty images not due yet
    std::vector<Copy> copies_scratch_;
    std::uint64_t bytes_scratch_ = 0;  ///< in copies_scratch_
    std::uint32_t clock_hand_ = 0;
    std::uint32_t failures_in_row_ = 0;
    std::uint64_t not_before_ns_ = 0;
    bool moving_met_ = false;  ///< an image was due whose chunk is being moved

    // Self-synchronised.
    enum Sleep : int { awake, dozing, idle };
    std::atomic<int> sleep_{awake};
    std::atomic<bool> stopping_{false};
    std::atomic<bool> draining_{false};
    UniqueFd event_fd_;
    std::atomic<std::uint64_t> pages_flushed_{0};
    std::atomic<std::uint64_t> copies_{0};
    std::atomic<std::uint64_t> pages_bridged_{0};
    std::atomic<std::uint64_t> completed_images_{0};
    std::atomic<std::uint64_t> errors_{0};
    LockedThread thread_;
};

}  // namespace vramswap
