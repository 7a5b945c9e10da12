// SPDX-License-Identifier: MIT
// Mover: sees to it that the device holds as much VRAM as it may, that what does not fit there is in the
// spill (the coldest first), and that it comes back when there is room (the hottest first). One for a device,
// with a thread of its own; tests call step instead. It obeys StoreParts::target_segments and a rate; what
// makes segments come and go is the control thread (PageStore::maintain). In the thread nothing allocates,
// and nothing blocks but the wait for work.
//
// What it does, in this order:
//   1. closes as many segments as are too many, so that nothing new goes there, and opens them again;
//   2. writes dirty images of spilled chunks to the spill, or fetches such chunks back if there is room;
//   3. moves chunks from closed segments into free slots of open ones of the same GPU;
//   4. moves the coldest chunks out: as many as do not fit, and a few more, so that new pages find room;
//   5. fetches chunks back from the spill as long as there is room for more than these few.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "base/locked_thread.h"
#include "store/candidates.h"
#include "store/moves.h"

namespace vramswap {

class Mover final : public Carrier {
  public:
    static constexpr std::uint64_t kNoLimit = ~std::uint64_t{0};
    /// Slots kept free in VRAM for new pages when not everything fits: what one CPU swaps out in some
    /// milliseconds, which is what making room for as much takes.
    static constexpr std::uint32_t kFreeSlots = 8;

    Mover(StoreParts& parts, std::unique_ptr<Moves> moves);
    ~Mover() override;

    /// Starts the thread if it does not run, and stops it. Control thread. Errors: failed; then it does not
    /// run.
    Result<void> start();
    void stop();

    /// What to do after a step: go on at once, or sleep until a time or a kick.
    static constexpr std::uint64_t kNow = 0;
    static constexpr std::uint64_t kNever = ~std::uint64_t{0};
    /// One round: completes moves and begins others. For the thread, or for a test that runs no thread.
    std::uint64_t step(std::uint64_t now);

    /// Any thread: something changed that it should look at.
    void kick(bool urgent) noexcept override;
    /// Bytes/s of moves out and back; 0: none; kNoLimit. Any thread.
    void set_rate(std::uint64_t rate) noexcept {
        if (rate_.exchange(rate, std::memory_order_relaxed) != rate) kick(true);
    }

    [[nodiscard]] const MoveCounters& counters() const { return moves_->counters(); }
    /// Some chunks are on their way. Any thread.
    [[nodiscard]] bool is_moving() const { return moves_->in_flight() != 0; }
    /// Nothing is dirty in images of spilled chunks. Any thread.
    [[nodiscard]] bool anything_dirty() const;
    /// While set, images of spilled chunks are written and freed at once. Any thread.
    void set_draining(std::atomic<bool>::value_type on) {
        draining_.store(on);
        kick(true);
    }

  private:
    enum class Going : std::uint8_t {
        on,         ///< one was begun: there may be more
        enough,     ///< there is nothing to do, or nothing more can be on its way at once
        blocked,    ///< there is, but no room for it
        none_left,  ///< there is, but no candidate for it
    };

    void run();
    void sleep_until(std::uint64_t when);
    std::uint64_t next_step(std::uint64_t now) const;
    void earn(std::uint64_t now);
    [[nodiscard]] bool may_spend() const;
    void spend();

    void adjust_segments(std::uint32_t gpu);
    [[nodiscard]] std::uint64_t capacity(std::uint32_t gpu) const;
    [[nodiscard]] std::uint64_t limit(std::uint32_t gpu) const;
    [[nodiscard]] bool is_tight() const;

    void look_at_spill(std::uint64_t now);
    void carry_images(std::uint64_t now);
    void free_clean_images();
    [[nodiscard]] bool has_room(std::uint32_t gpu) const;
    void want_segment();
    [[nodiscard]] std::uint64_t room(std::uint32_t gpu) const;
    struct Room {
        std::optional<std::uint32_t> gpu{};
        bool may_come = false;
    };
    static constexpr std::uint32_t kNoGpu = ~0u;
    [[nodiscard]] Room find_room(std::uint32_t but);
    Going empty_closed(std::uint32_t gpu);
    Going move_out(std::uint32_t gpu);
    Going move_back();
    template <typename KeyOf, typename Begin>
    Going take_next(Candidates& candidates, KeyOf key_of, Begin begin);
    template <typename Begin>
    Going take_of(Candidates& candidates, Begin begin);
    void begin_all();

    StoreParts& parts_;
    const std::unique_ptr<Moves> moves_;

    // The thread's own.
    std::vector<Candidates> coldest_, in_closed_;  ///< by GPU
    Candidates hottest_spilled_;
    std::uint64_t credit_bytes_ = 0;  ///< that may be moved now
    std::uint64_t earned_at_ = 0;
    bool went_on_ = false;  ///< something has ended
    bool blocked_ = false;  ///< by something that nobody will kick for
    bool short_of_credit_ = false;
    std::uint64_t images_due_at_ = kNever;
    std::uint64_t now_ns_ = 0;            ///< of the step
    std::uint64_t spill_failures_ = 0;    ///< in a row, as last seen
    std::uint64_t spill_not_before_ = 0;  ///< no write to the spill is begun

    // Self-synchronised.
    std::atomic<std::uint64_t> rate_{kNoLimit};
    std::atomic<bool> kicked_{false};
    std::atomic<bool> sleeping_{false};
    std::atomic<bool> stopping_{false};
    std::atomic<bool> draining_{false};
    UniqueFd event_fd_;
    LockedThread thread_;
};

}  // namespace vramswap
