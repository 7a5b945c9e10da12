// SPDX-License-Identifier: MIT
// Spill: where chunks go when VRAM is given back: slots of a chunk in a file or on a block device, read and
// written through SpillQueues, which it must outlive. Its owner is the store, whose chunk table knows what is
// in which slot; the Spill holds nothing that a new process could not have from that table and the
// descriptors (adopt).
//
// A slot is taken by a thread that moves chunks, written, and given back when the chunk is gone from it. What
// blocks is the control thread's, in maintain: it wipes what was given back, and reserves room on the disk
// for the slots to come, a little ahead of need. So a slot that is taken has its room, and none of the last
// user's bytes. take, give_back and retire neither block nor allocate; all else may do both and is the
// control thread's alone.
//
// The destructor leaves everything as it is, for a process that takes over; close wipes.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/io_status.h"
#include "base/result.h"
#include "base/unique_fd.h"
#include "base/units.h"
#include "store/spill_file.h"
#include "store/spill_queue.h"
#include "store/spill_slots.h"

namespace vramswap {

/// In slots, but for on_disk.
struct SpillCounts {
    std::uint32_t capacity = 0;  ///< at most; the disk may have less room
    std::uint32_t used = 0;
    std::uint32_t ready = 0;    ///< can be taken at once
    std::uint32_t to_wipe = 0;  ///< given back, not wiped yet
    std::uint32_t bad = 0;      ///< retired
    Bytes on_disk{};
};

class Spill {
  public:
    /// Slots that are reserved ahead of need: at 2 GB/s what 64 ms take, much more than one maintain does.
    static constexpr std::uint32_t kReserveAhead = 64;
    /// Slots wiped by one maintain: where zeros must be written, 64 MiB are a third of a second of a slow
    /// disk.
    static constexpr std::uint32_t kWipesAtOnce = 32;

    /// Errors of SpillFile::open. A disk without room is none: problem tells.
    static Result<std::unique_ptr<Spill>> open(const SpillConfig& config);
    /// Takes over the descriptors of another process's spill, of which `used` are in use; all others are
    /// wiped by and by. REQUIRES: that process has ended. Errors: usage, failed.
    static Result<std::unique_ptr<Spill>> adopt(const SpillConfig& config, std::vector<UniqueFd> fds,
                                                std::span<const std::uint32_t> used);

    /// These are in use, too. REQUIRES: no other thread uses the spill yet. Error usage: they cannot be.
    Result<void> adopt_used(std::span<const std::uint32_t> used) { return slots_.adopt(used); }

    // ---- threads that move chunks ----

    /// ok with `slot` set; retry if maintain can help; no_space if it could not, until it can.
    IoStatus take(std::uint32_t& slot);
    /// Its bytes are no longer needed. REQUIRES: taken, nothing in flight for it.
    void give_back(std::uint32_t slot) { slots_.give_back(slot); }
    /// As give_back, for one that nothing was written to: it can be taken again at once.
    void put_back(std::uint32_t slot) { slots_.put_back(slot); }
    /// As give_back, but it is never taken again: the disk failed there. It is wiped by close.
    void retire(std::uint32_t slot) { slots_.retire(slot); }
    /// maintain has something to do: the caller's reason to wake the control thread.
    [[nodiscard]] bool needs_maintenance() const;
    /// And it should not wait: slots are about to run out. Wiping and reserving hold up all reads and writes
    /// of a file for a moment (ext4 and XFS let them come to an end first).
    [[nodiscard]] bool needs_slots() const;

    // ---- control thread ----

    enum class Duty : std::uint8_t {
        none,   ///< call again when needs_maintenance
        more,   ///< call again soon
        later,  ///< the disk refuses (see problem): call again in a second or so
    };
    /// Wipes and reserves. Who was told to retry may ask again afterwards.
    Duty maintain();

    /// A queue that has read once, by io_uring or by threads (problem tells). Errors: failed, with the reason
    /// that the disk gave.
    /// `event_fd`: who is told that a request has ended (raw_io.h).
    Result<std::unique_ptr<SpillQueue>> make_queue(int event_fd = kOwnEvent);

    [[nodiscard]] SpillCounts counts() const;
    /// Slots in use, and those that it has room for besides, as far as is known now. Any thread.
    [[nodiscard]] std::uint32_t used() const { return slots_.in(SpillSlots::State::used); }
    [[nodiscard]] std::uint32_t room() const;
    /// Slots that can be taken at once. Any thread.
    [[nodiscard]] std::uint32_t ready() const { return slots_.in(SpillSlots::State::free); }
    [[nodiscard]] const SpillCounters& counters() const { return counters_; }
    /// What is wrong, in sentences for users, and what they may not expect; empty if nothing is.
    [[nodiscard]] std::string problem() const;
    /// To be kept for a process that takes over.
    [[nodiscard]] const std::vector<UniqueFd>& fds() const { return file_.fds(); }
    /// The same. A pipe's end, at its end of file when nothing is in flight any more that this process has
    /// begun: requests of a killed process go on for as long as the disk takes, into memory that is another's
    /// by then.
    [[nodiscard]] const UniqueFd& busy_fd() const { return busy_read_; }

    /// Wipes everything and gives a file's room back, even if other descriptors of it are open. On a device
    /// without a quick way to zeros it takes as long as writing what was used. REQUIRES: no queue exists.
    Result<void> close();

  private:
    Spill(const SpillConfig& config, SpillFile file);
    Result<void> make_pipe();

    Result<void> wipe_some();
    Result<void> reserve_some();
    Result<void> wipe(SpillSlots::State state, std::uint32_t count_max);

    // Self-synchronised.
    SpillSlots slots_;
    SpillCounters counters_;
    std::atomic<bool> growth_refused_{false};  ///< by the last maintain
    std::atomic<bool> wipe_failed_{false};

    // The control thread's.
    SpillFile file_;
    UniqueFd busy_read_, busy_write_;
    const decltype(SpillConfig::make_io) make_io_;
    std::string problem_;    ///< of the last maintain
    std::string io_remark_;  ///< of the last make_queue
};

}  // namespace vramswap
