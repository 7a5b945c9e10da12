// SPDX-License-Identifier: MIT
// Policy: decides how much VRAM the device may hold, how it copies and how fast it moves. One per GPU, owned
// by the monitor thread, which calls decide() with every sample (10 to 20 Hz) and obeys. Pure: no clock, no
// I/O, no lock, no allocation; the same snapshots give the same plans. It cannot fail.
//
// Others cannot be told that memory is there if only they waited: an allocation fails at once. So enough is
// free before they ask. What others leave is left = free + ours; of it we may hold
//     limit = left - reserve,   reserve = max(headroom, largest recent step) + fall rate x reaction,
// a step counting for at most a quarter of the GPU (config.h says why).
//
// The reaction: others take memory from just after a sample on. The next sample is a period later, its plan
// as much later as reading took (its age), and memory gets free a segment at a time at the move rate, while
// others go on. What they have taken by then, B, is
//     B = rate x (period + age + (B + segment) / move rate)
//       = rate x (period + age + segment / move rate) / (1 - rate / move rate).
// Who takes memory faster than we move it cannot be outrun; the divisor is at least 0.1, which is enough for
// the moves not to pause. And B is at most what they have taken lately (2 s): a fall is not expected to go on
// for longer than it has.
//
// Shrinking is immediate (and given up as soon as there is no need for what is left of it). Growing waits:
// for `calm`, in which there was always room for another segment, and it leaves a segment's margin, or the
// smallest change would undo it. A growth that others undo within twice the calm is regretted: the calm
// doubles. One that lasts so long halves it again.
#pragma once

#include <cstdint>
#include <optional>

#include "policy/config.h"
#include "policy/left_history.h"
#include "policy/plan.h"
#include "policy/snapshot.h"

namespace vramswap {

class Policy {
  public:
    explicit Policy(const PolicyConfig& config);

    /// `now_ns`: monotonic; an earlier time than before counts as the same.
    [[nodiscard]] Plan decide(const Snapshot& snapshot, std::uint64_t now_ns);

  private:
    /// What the device should hold if it were alone.
    struct Wish {
        std::uint64_t bytes = 0;        ///< in the long run
        std::uint64_t most = kNoLimit;  ///< and at no time more
        Reason reason = Reason::enough;
    };
    /// True since a time.
    class Since {
      public:
        void update(bool holds, std::uint64_t now_ns) {
            if (!holds) since_.reset();
            if (holds && !since_) since_ = now_ns;
        }
        [[nodiscard]] bool for_long(std::uint64_t duration_ns, std::uint64_t now_ns) const {
            return since_ && now_ns - *since_ >= duration_ns;
        }

      private:
        std::optional<std::uint64_t> since_;
    };
    enum class Sight : std::uint8_t { clear, late, blind };

    void begin(const Snapshot& snapshot, std::uint64_t now_ns);
    void observe(const Snapshot& snapshot);
    [[nodiscard]] bool reading_is_good(const Snapshot& snapshot) const;
    [[nodiscard]] Sight sight(const Snapshot& snapshot) const;
    [[nodiscard]] std::uint64_t headroom(const Snapshot& snapshot) const;
    [[nodiscard]] std::uint64_t reserve(const Snapshot& snapshot) const;
    [[nodiscard]] Wish wish(const Snapshot& snapshot) const;
    Reason follow(const Wish& wish, std::uint64_t limit);
    Reason grow(const Wish& wish, std::uint64_t limit);
    void judge_growth(std::uint64_t limit);
    [[nodiscard]] bool calm() const { return !cramped_at_ || now_ - *cramped_at_ >= calm_ns_; }
    [[nodiscard]] std::uint64_t most(const Snapshot& snapshot, const Wish& wish, std::uint64_t limit,
                                     Reason reason) const;
    [[nodiscard]] PlannedMode choose_mode(const Snapshot& snapshot) const;
    [[nodiscard]] std::uint64_t choose_move_rate(const Snapshot& snapshot, Reason wished,
                                                 std::uint64_t limit) const;
    [[nodiscard]] bool others_idle() const;
    [[nodiscard]] std::uint64_t whole_segments(std::uint64_t bytes) const;
    [[nodiscard]] std::uint64_t segments_for(std::uint64_t bytes) const;

    const PolicyConfig config_;
    LeftHistory left_;
    std::uint64_t now_ = 0;
    std::uint64_t passed_ns_ = 0;  ///< since the decision before
    bool started_ = false;

    std::uint64_t target_ = 0;
    PlannedMode mode_ = PlannedMode::copy;
    std::uint64_t calm_ns_;
    /// When there was no room for another segment; none: never. At start the user has just asked for the
    /// device, and writes that are refused cost more than memory that nobody has.
    std::optional<std::uint64_t> cramped_at_;
    std::optional<std::uint64_t> grown_at_;  ///< and not judged yet
    std::uint64_t grow_credit_ = 0;          ///< bytes that may be grown now

    Bytes total_{};                     ///< of the GPU, as last read
    std::uint64_t seen_at_ = 0;         ///< time of the last good reading, or of the start
    std::uint64_t others_used_at_ = 0;  ///< others used the GPU, or it was not known
    std::optional<Bytes> others_memory_;
    Since needs_less_;
    Since on_battery_;
    Since empty_;
};

}  // namespace vramswap
