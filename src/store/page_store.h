// SPDX-License-Identifier: MIT
// PageStore: the device's pages, in the stage, in VRAM of one or several GPUs, and in the spill. Implements
// front/target.h. Made, maintained and destroyed by the control thread; its queues belong to the frontend's
// threads; it owns the threads of the flushers and the mover.
//
// Promises: a read returns the last acknowledged write of the page, zeros if it was never written or was
// discarded, or an error; never other bytes (every page from VRAM or the spill is checked against its
// checksum). A write is acknowledged only with a slot of VRAM or the spill reserved for it. How much VRAM is
// held may be changed at any time, under load.
#pragma once

#include <array>
#include <atomic>
#include <bitset>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/fd_keeper.h"
#include "base/mutex.h"
#include "front/target.h"
#include "gpu/backend.h"
#include "store/flusher.h"
#include "store/mover.h"
#include "store/parts.h"
#include "store/segment_wiper.h"

namespace vramswap {

struct StoreConfig {
    Bytes size{};              ///< of the device; multiple of 4 KiB
    Bytes segment = mib(128);  ///< taken from and given back to the GPU; multiple of 2 MiB
    Bytes stage = mib(32);     ///< pinned RAM; at least three chunks
    FlusherConfig flusher{};
    EngineMode mode = EngineMode::copy;  ///< at first
    Spill* spill = nullptr;              ///< null: none; must outlive the store
    /// Writes that find all VRAM taken that may be held wait so long for an order to hold more, before they
    /// go to the spill or are refused. 0 where nobody gives orders.
    std::uint64_t patience_ns = 0;
    /// So long take_over waits for the end of what the dead process had begun on the spill's disk.
    int quiet_timeout_ms = 60'000;
};

/// What is to be held and how, of one GPU. The policy's word, or a test's. What concerns all of the store is
/// what the most careful order says, but for moves: nobody waits for another GPU's leisure.
struct StoreOrder {
    Bytes vram_max{~0ull};
    EngineMode mode = EngineMode::copy;
    std::uint64_t move_rate = Mover::kNoLimit;  ///< bytes/s of moves to the spill and back
    std::uint64_t swap_rate = Pacer::kNoLimit;  ///< bytes/s of swap
};

/// What a policy needs to know of one GPU, ten to twenty times a second: counters only, no lock.
struct StoreHoldings {
    Bytes vram{};                       ///< segments
    std::uint32_t segment_changes = 0;  ///< odd while one is being taken or given back
    Bytes wanted{};                     ///< what is stored, wherever it is, in whole chunks
    Bytes spill_room{};  ///< of `wanted`, what is in the spill or would find room there or on another GPU
    std::uint64_t move_rate = 0;                ///< bytes/s at which VRAM was emptied lately; 0: not measured
    std::uint64_t pages_in = 0, pages_out = 0;  ///< since the start
    /// For how long requests have waited for copies, all together, since the start: in a second it grows by
    /// as many seconds as requests were in flight on average.
    std::uint64_t waited_ns = 0;
};

/// A sum over everything since start, and the state now. Bytes are as the user counts them.
struct StoreStats {
    Bytes device{}, stored{}, vram{}, dirty{};
    Bytes spilled{};  ///< slots of the spill in use, whole chunks
    Bytes moved_out{}, moved_back{}, moved_within{}, moved_across{};
    std::uint64_t moved_within_ns = 0;  ///< during which that went on
    std::uint64_t pages_read_spill = 0, pages_written_spill = 0, move_errors = 0;
    std::array<std::uint64_t, LatencyCounts::kEntries> read_latency{}, write_latency{};
    Bytes staged{};  ///< images of the stage in use, whole chunks
    Bytes ram{};     ///< tables and stage
    std::uint64_t pages_read = 0, pages_written = 0, pages_discarded = 0, zero_pages_written = 0;
    std::uint64_t pages_written_direct = 0;  ///< from the request straight to VRAM
    std::uint64_t pages_read_stage = 0, pages_read_gpu = 0, pages_flushed = 0, flush_copies = 0;
    std::uint64_t pages_bridged = 0;     ///< flushed though not dirty, so that copies are fewer
    std::uint64_t images_completed = 0;  ///< fetched from VRAM to be flushed in one piece
    std::uint64_t reread_pages = 0, read_errors = 0, writes_refused = 0, retries = 0, flush_errors = 0;
    bool writes_are_refused = false;
    bool spill_writes_are_refused = false;
    Health gpu = Health::good;
    EngineMode mode = EngineMode::copy;
};

class PageStore final : public Target {
  public:
    /// `keeper` may be null; both must outlive the store. Takes the first segment. Errors: no_memory (RAM or
    /// VRAM), usage, gpu_lost, unavailable (mode turbo).
    static Result<std::unique_ptr<PageStore>> create(std::vector<Backend*> gpus, const StoreConfig& config,
                                                     FdKeeper* keeper);
    static Result<std::unique_ptr<PageStore>> create(Backend& gpu, const StoreConfig& config,
                                                     FdKeeper* keeper) {
        return create(std::vector<Backend*>{&gpu}, config, keeper);
    }
    /// Goes on with what a process that has died had stored, whose configuration this was, from what `keeper`
    /// kept of it; `config.spill` is its spill, adopted without slots. VRAM that was not kept, since its GPU
    /// cannot export, has its pages lost. On failure all stays as it is, for another attempt. Errors: as
    /// create, and failed.
    static Result<std::unique_ptr<PageStore>> take_over(std::vector<Backend*> gpus, const StoreConfig& config,
                                                        FdKeeper* keeper, const HeldFds& held);
    /// The spill's descriptors among what was kept, for Spill::adopt; none if there was none.
    static std::vector<UniqueFd> spill_kept(const HeldFds& held);
    /// REQUIRES: all queues destroyed. Stops the threads, gives all VRAM back; what was stored is gone.
    ~PageStore() override;

    [[nodiscard]] Bytes size() const override;
    Result<std::unique_ptr<TargetQueue>> make_queue(std::uint32_t depth) override;
    Result<void> register_memory(std::span<std::byte> memory) override;
    Result<void> unregister_memory(std::span<std::byte> memory) override;

    /// For all copies from now on. Any thread.
    void set_mode(EngineMode mode) { parts_->mode.store(mode, std::memory_order_relaxed); }
    /// Obeyed from now on, as fast as it can be. Any thread but those that serve I/O: it may wait a moment
    /// for another's order.
    void obey(std::uint32_t gpu, const StoreOrder& order) VS_EXCLUDES(orders_mutex_);
    /// Any thread.
    [[nodiscard]] StoreHoldings holdings(std::uint32_t gpu) const;

    /// Starts the threads. A test may call flusher().step() and mover().step() instead. Errors: failed.
    Result<void> start();
    [[nodiscard]] Flusher& flusher(std::uint32_t gpu = 0) { return *flushers_[gpu]; }
    [[nodiscard]] Mover& mover() { return *mover_; }

    /// Takes a segment when free slots run short, gives empty ones back, looks after the spill. Call when
    /// maintenance_fd is readable and once a second. Makes GPU and system calls; may take milliseconds.
    void maintain();
    [[nodiscard]] int maintenance_fd() const { return parts_->maintenance_fd(); }

    /// Says that another process would take over from this one: then requests that fail because this process
    /// can no longer use its GPU stay pending, and its owner ends it as soon as must_be_followed. Any thread.
    void will_be_followed() { parts_->can_be_followed.store(true); }
    void will_not_be_followed() { parts_->can_be_followed.store(false); }
    [[nodiscard]] bool must_be_followed() const { return parts_->leaves_it_to_the_next(); }

    [[nodiscard]] StoreStats stats() const;

  private:
    /// A segment that is out of use, and is being wiped.
    struct Leaving {
        std::uint32_t number = 0;
        std::uint32_t gpu = 0;
        SegmentId id{};
        SegmentWiper::Wipe wipe{};
    };
    PageStore(std::vector<Backend*> gpus, FdKeeper* keeper, std::unique_ptr<StoreParts> parts);
    static Result<void> check(const std::vector<Backend*>& gpus, const StoreConfig& config);
    Result<void> start_up(const StoreConfig& config);
    Result<void> go_on(const StoreConfig& config, const HeldFds& held);
    Result<void> import_segments(const HeldFds& held);
    Result<void> keep_spill();
    Result<void> register_stage();
    Result<void> make_threads(const StoreConfig& config);
    Result<void> measure_costs(std::uint32_t gpu);
    Result<void> make_flusher(std::uint32_t gpu, const StoreConfig& config);
    Result<void> make_mover();
    Result<void> make_wiper(const StoreConfig& config);
    Result<std::vector<std::unique_ptr<TransferQueue>>> make_gpu_queues();
    void give_back_segment(std::uint32_t number);
    void finish_leaving(std::uint64_t patience_ns);
    bool has_left(const Leaving& leaving);
    /// Under which the keeper keeps a segment.
    static std::string segment_key(std::uint32_t number);
    Result<void> grow(std::uint32_t gpu);
    [[nodiscard]] std::optional<std::uint32_t> growing_gpu(const std::bitset<kGpusMax>& exhausted) const;
    [[nodiscard]] std::uint64_t slots_elsewhere(std::uint32_t gpu) const;
    void note_losses();
    void grow_as_needed(bool missing);
    [[nodiscard]] bool patience_is_over();
    void shrink(SlotAllocator::Which which);
    void maintain_spill();
    void notify_if_changed(bool missing);
    void drop(std::string_view key);

    const std::vector<Backend*> gpus_;
    FdKeeper* const keeper_;
    const std::unique_ptr<StoreParts> parts_;
    std::vector<std::unique_ptr<Flusher>> flushers_;
    std::unique_ptr<SegmentWiper> wiper_;
    std::vector<Leaving> leaving_;  ///< on their way out; the control thread's
    std::array<std::atomic<std::uint32_t>, kGpusMax> leaving_count_{};  ///< of each GPU; any thread
    std::unique_ptr<Mover> mover_;
    std::array<std::uint32_t, kGpusMax> weights_{};  ///< of new chunks; by bandwidth
    std::uint32_t mergers_ = 0;
    bool keeps_all_ = false;  ///< another attempt to take over shall find what was kept
    Spill::Duty spill_duty_ = Spill::Duty::none;
    std::uint64_t wiped_at_ns_ = 0;
    /// What those who wait for room were last told of.
    struct Room {
        std::uint32_t free_slots = 0;
        std::uint32_t spill_slots = 0;
        bool growth_failed = false;
        bool operator==(const Room&) const = default;
    };
    Room notified_{};
    std::uint64_t notified_at_ns_ = 0;
    std::uint64_t patience_ns_ = 0;
    std::uint64_t at_target_since_ns_ = 0;  ///< 0: there is, or may be, more VRAM
    std::atomic<bool> awaits_order_{false};
    Mutex orders_mutex_;
    std::vector<StoreOrder> orders_ VS_GUARDED_BY(orders_mutex_);  ///< the last to each GPU
};

}  // namespace vramswap
