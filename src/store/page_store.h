// SPDX-License-Identifier: MIT
// PageStore: the device's pages, in the stage and in VRAM. Implements front/target.h. Made, maintained and
// destroyed by the control thread; its queues belong to the frontend's threads; it owns the flusher thread.
//
// Promises: a read returns the last acknowledged write of the page, zeros if it was never written or was
// discarded, or an error; never other bytes (every page from VRAM is checked against its checksum). A write
// is acknowledged only with a slot of VRAM reserved for it.
#pragma once

#include <memory>

#include "base/fd_keeper.h"
#include "front/target.h"
#include "gpu/backend.h"
#include "store/flusher.h"
#include "store/parts.h"

namespace vramswap {

struct StoreConfig {
    Bytes size{};              ///< of the device; multiple of 4 KiB
    Bytes segment = mib(128);  ///< taken from and given back to the GPU; multiple of 2 MiB
    Bytes stage = mib(32);     ///< pinned RAM; at least three chunks
    FlusherConfig flusher{};
    EngineMode mode = EngineMode::copy;  ///< at first
};

/// A sum over everything since start, and the state now. Bytes are as the user counts them.
struct StoreStats {
    Bytes device{}, stored{}, vram{}, dirty{};
    Bytes staged{};  ///< images of the stage in use, whole chunks
    Bytes ram{};     ///< tables and stage
    std::uint64_t pages_read = 0, pages_written = 0, pages_discarded = 0, zero_pages_written = 0;
    std::uint64_t pages_written_direct = 0;  ///< from the request straight to VRAM
    std::uint64_t pages_read_stage = 0, pages_read_gpu = 0, pages_flushed = 0, flush_copies = 0;
    std::uint64_t pages_bridged = 0;     ///< flushed though not dirty, so that copies are fewer
    std::uint64_t images_completed = 0;  ///< fetched from VRAM to be flushed in one piece
    std::uint64_t reread_pages = 0, read_errors = 0, writes_refused = 0, retries = 0, flush_errors = 0;
    bool writes_are_refused = false;
    Health gpu = Health::good;
    EngineMode mode = EngineMode::copy;
};

class PageStore final : public Target {
  public:
    /// `keeper` may be null; both must outlive the store. Takes the first segment. Errors: no_memory (RAM or
    /// VRAM), usage, gpu_lost, unavailable (mode turbo).
    static Result<std::unique_ptr<PageStore>> create(Backend& gpu, const StoreConfig& config,
                                                     FdKeeper* keeper);
    /// REQUIRES: all queues destroyed. Stops the flusher, gives all VRAM back; what was stored is gone.
    ~PageStore() override;

    [[nodiscard]] Bytes size() const override;
    Result<std::unique_ptr<TargetQueue>> make_queue(std::uint32_t depth) override;
    Result<void> register_memory(std::span<std::byte> memory) override;
    Result<void> unregister_memory(std::span<std::byte> memory) override;

    /// For all copies from now on. Any thread.
    void set_mode(EngineMode mode) { parts_->mode.store(mode, std::memory_order_relaxed); }

    /// Starts the flusher's threads. A test may call flusher().step() instead. Errors: failed.
    Result<void> start();
    [[nodiscard]] Flusher& flusher() { return *flusher_; }

    /// Takes a segment when free slots run short, gives empty ones back. Call when maintenance_fd is readable
    /// and once a second. Makes GPU calls; may take milliseconds.
    void maintain();
    [[nodiscard]] int maintenance_fd() const { return parts_->maintenance_fd(); }

    [[nodiscard]] StoreStats stats() const;

  private:
    PageStore(Backend& gpu, FdKeeper* keeper, std::unique_ptr<StoreParts> parts);
    Result<void> start_up(const StoreConfig& config);
    Result<void> grow();
    void shrink();
    void drop(std::string_view key);

    Backend& gpu_;
    FdKeeper* const keeper_;
    const std::unique_ptr<StoreParts> parts_;
    std::unique_ptr<Flusher> flusher_;
};

}  // namespace vramswap
