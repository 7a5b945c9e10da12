// SPDX-License-Identifier: MIT
// Moves: chunks on their way to another home: from VRAM to the spill and back, within a GPU, from one GPU to
// another; and dirty images of chunks whose home is the spill. Owned by the Mover, whose thread alone calls
// it. Once made nothing here allocates or blocks.
//
// A move copies what is stored (not what the image has newer) to the new home, checks it on the way wherever
// it passes through host memory, and then changes the chunk's home, under its lock and only when nobody else
// has it pinned. Meanwhile reads come from the old home; writes go to the image, which waits. At every
// instant the home that the entry names is whole (docs/lifecycle.md).
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "store/parts.h"
#include "store/spill_queue.h"

namespace vramswap {

/// What was moved since the start; any thread reads.
struct MoveCounters {
    std::atomic<std::uint64_t> bytes_out{0};      ///< VRAM to spill
    std::atomic<std::uint64_t> bytes_back{0};     ///< spill to VRAM
    std::atomic<std::uint64_t> bytes_within{0};   ///< within a GPU
    std::atomic<std::uint64_t> ns_within{0};      ///< during which that went on
    std::atomic<std::uint64_t> bytes_across{0};   ///< from one GPU to another
    std::atomic<std::uint64_t> pages_flushed{0};  ///< from images to the spill
    std::atomic<std::uint64_t> errors{0};         ///< moves and flushes given up
    /// Bytes/s at which chunks went to the spill when last that was measured; 0: not yet.
    std::atomic<std::uint64_t> rate_out{0};
};

class Moves {
  public:
    enum class Kind : std::uint8_t { out, back, within, across, flush };
    static constexpr std::size_t kKinds = 5;
    enum class Begun : std::uint8_t {
        yes,
        not_now,  ///< this chunk cannot be moved at the moment, or need not be any more
        no_room,  ///< there is no slot where it should go, or not yet
        full,     ///< so many are on their way already
    };
    static constexpr std::size_t kMovesMax = 16;
    /// Of these so many may pass through host memory: with four a disk is kept busy while others are checked.
    static constexpr std::uint32_t kScratchChunks = 8;

    /// A queue for each GPU; `spill` may be null. `first_scratch`: of the stage's scratch chunks, the first
    /// of kScratchChunks (if there is a spill, or several GPUs).
    Moves(StoreParts& parts, std::vector<std::unique_ptr<TransferQueue>> gpus,
          std::unique_ptr<SpillQueue> spill, std::uint32_t first_scratch);
    /// Waits for what is in flight.
    ~Moves();
    Moves(const Moves&) = delete;
    Moves& operator=(const Moves&) = delete;

    Begun begin_out(ChunkIndex chunk);
    Begun begin_back(ChunkIndex chunk, std::uint32_t gpu);
    /// To another slot of the same GPU.
    Begun begin_within(ChunkIndex chunk);
    Begun begin_across(ChunkIndex chunk, std::uint32_t gpu);
    /// The dirty pages of an image whose chunk has its home in the spill.
    Begun begin_flush(std::uint32_t image);

    /// Goes on with what is on its way. True if something happened.
    bool advance(std::uint64_t now);

    /// Any thread.
    [[nodiscard]] std::uint32_t in_flight() const { return in_flight_.load(std::memory_order_relaxed); }
    [[nodiscard]] std::uint32_t in_flight(Kind kind) const;
    /// Slots of this GPU that become free when what is on its way has arrived.
    [[nodiscard]] std::uint32_t leaving(std::uint32_t gpu) const;
    /// Something ends within microseconds: it is worth looking again at once.
    [[nodiscard]] bool should_spin() const;
    /// After several moves in a row that were given up: the time to begin the next.
    [[nodiscard]] std::uint64_t not_before() const { return not_before_ns_; }
    /// Moving it was given up not long ago, because of what it has or where it is: others first.
    [[nodiscard]] bool failed_lately(std::uint32_t chunk, std::uint64_t now) const;
    /// The last write to the spill failed: the next should wait a little.
    [[nodiscard]] std::uint64_t spill_failures_in_row() const { return spill_failures_; }
    [[nodiscard]] MoveCounters& counters() { return counters_; }
    [[nodiscard]] SpillQueue* spill() const { return spill_.get(); }
    void warm_up() const;

  private:
    static constexpr std::size_t kRunsMax = SpillQueue::kDepth;
    static constexpr std::uint64_t kFailedLatelyNs = 10'000'000'000;
    struct Failed {
        std::uint32_t chunk = 0;
        std::uint64_t until_ns = 0;
    };
    struct Move {
        enum class Phase : std::uint8_t { idle, fetching, storing, leaving };
        Phase phase = Phase::idle;
        Kind kind = Kind::out;
        bool failed = false;  ///< a read or write of the spill
        std::uint32_t tries = 0;
        std::uint32_t chunk = 0;
        std::uint32_t image = 0;  ///< of a flush
        std::uint32_t from = 0;   ///< slots: of VRAM or the spill, as the kind says
        std::uint32_t to = 0;
        std::uint32_t gpu = 0;  ///< whose queue the ticket is of
        Ticket ticket = 0;
        PageBits pages{};  ///< what is copied
        PageBits todo{};   ///< of the spill, not submitted yet
        std::array<Ticket, kRunsMax> spill_tickets{};
        std::uint32_t spill_count = 0;
        std::byte* memory = nullptr;  ///< scratch, or the image
        std::int32_t scratch = -1;
    };

    Move* idle_move();
    [[nodiscard]] bool take_scratch(Move& move);
    Begun begin_to_gpu(Move& move, std::uint32_t gpu);
    Begun refuse(Move& move, Begun why);
    [[nodiscard]] bool take_chunk(Move& move);
    void release_chunk(Move& move);
    [[nodiscard]] std::optional<std::uint32_t> let_go(ChunkEntry& entry);
    [[nodiscard]] PageBits movable(const ChunkEntry& entry, ChunkIndex chunk) const;
    void set_off(Move& move);
    void fetch(Move& move);
    void store(Move& move);
    bool advance(Move& move);
    [[nodiscard]] IoStatus copied(Move& move);
    [[nodiscard]] bool check(Move& move);
    void submit_gpu(Move& move, std::uint32_t gpu, const Copy& copy);
    void submit_spill(Move& move, RawIo::Op op);
    [[nodiscard]] bool uses_spill_now(const Move& move) const;
    void fail(Move& move);
    void give_up(Move& move);
    [[nodiscard]] bool change_home(Move& move);
    void finish_flush(Move& move, IoStatus status);
    void end(Move& move);
    void note_spill_write(IoStatus status);
    void count(const Move& move);
    void measure_rate(std::uint64_t now);
    [[nodiscard]] Copy copy_of(Copy::Op op, const Move& move, std::uint32_t slot) const;

    StoreParts& parts_;
    const std::vector<std::unique_ptr<TransferQueue>> gpus_;
    const std::unique_ptr<SpillQueue> spill_;
    const std::uint32_t first_scratch_;
    const std::uint32_t scratch_chunks_;
    std::array<Move, kMovesMax> moves_{};
    std::array<bool, kScratchChunks> scratch_taken_{};
    std::atomic<std::uint32_t> in_flight_{0};
    std::uint64_t spill_failures_ = 0;
    std::array<Failed, 32> failed_{};  ///< a ring: with more, the oldest are tried again earlier
    std::size_t next_failed_ = 0;
    std::uint64_t now_ns_ = 0;  ///< of the last advance
    std::uint32_t given_up_in_row_ = 0;
    std::uint64_t not_before_ns_ = 0;
    std::uint64_t window_began_ns_ = 0, window_bytes_ = 0;  ///< of rate_out
    MoveCounters counters_;
};

}  // namespace vramswap
