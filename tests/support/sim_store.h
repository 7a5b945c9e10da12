// SPDX-License-Identifier: MIT
// For tests of the store: a simulated GPU with its faults, and a PageStore over it whose flusher runs step by
// step under a made-up clock. One thread, no sleeps; may allocate and throw.
#pragma once

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <utility>
#include <vector>

#include "gpu/sim/sim_driver.h"
#include "store/page_store.h"
#include "support/pages.h"

namespace vramswap::test {

/// A simulated GPU of its own.
class SimGpu {
  public:
    explicit SimGpu(Bytes total) : SimGpu(SimConfig{.total = total}) {}
    explicit SimGpu(SimConfig config) : config_(std::move(config)) {
        driver_ = make_sim_driver(config_);
        backend_ = std::move(*driver_->open(driver_->enumerate()->front()));
    }
    [[nodiscard]] Backend& backend() { return *backend_; }
    [[nodiscard]] SimFaults& faults() { return *config_.faults; }
    [[nodiscard]] Bytes free() { return backend_->memory_info()->free; }

  private:
    SimConfig config_{};
    std::unique_ptr<Driver> driver_;
    std::unique_ptr<Backend> backend_;
};

/// True if the descriptor is readable now; reads it empty.
inline bool take_event(int fd) {
    pollfd event{fd, POLLIN, 0};
    if (::poll(&event, 1, 0) != 1) return false;
    std::uint64_t count = 0;
    return ::read(fd, &count, sizeof count) == sizeof count;
}

/// A store whose flusher's thread is the test.
class SteppedStore {
  public:
    /// `gpu` and `keeper` (may be null) must outlive it.
    SteppedStore(SimGpu& gpu, StoreConfig config, FdKeeper* keeper)
        : SteppedStore(std::vector<SimGpu*>{&gpu}, std::move(config), keeper) {}
    SteppedStore(const std::vector<SimGpu*>& gpus, StoreConfig config, FdKeeper* keeper)
        : SteppedStore(gpus, PageStore::create(backends_of(gpus), stepped(std::move(config)), keeper)) {}
    /// One that takes over what was kept of another.
    SteppedStore(const std::vector<SimGpu*>& gpus, StoreConfig config, FdKeeper* keeper, const HeldFds& held)
        : SteppedStore(gpus,
                       PageStore::take_over(backends_of(gpus), stepped(std::move(config)), keeper, held)) {}
    PageStore& operator*() { return *store_; }
    PageStore* operator->() { return store_.get(); }

    /// One round at a time when everything dirty is due. What waits for a merger then is merged, too.
    std::uint64_t step() {
        const std::uint64_t next = step_flusher();
        return merge_one() ? step_flusher() : next;
    }
    /// The same without a merger: what waits for one goes on waiting.
    std::uint64_t step_flusher() {
        std::uint64_t next = store_->flusher().step(now_);
        for (std::uint32_t gpu = 1; gpu < gpus_; ++gpu)
            next = std::min(next, store_->flusher(gpu).step(now_));
        if (next != Flusher::kNow && next != Flusher::kNever) now_ = std::max(now_, next);
        return next;
    }
    /// One round of the mover, and what it asks of the control thread.
    std::uint64_t step_mover() {
        const std::uint64_t next = store_->mover().step(now_);
        if (next != Mover::kNow && next != Mover::kNever) now_ = std::max(now_, next);
        if (!take_event(store_->maintenance_fd())) return next;
        store_->maintain();
        return Mover::kNow;  // it may have kicked
    }
    /// Steps the mover until it has nothing to do; false if that takes for ever.
    [[nodiscard]] bool settle() {
        for (int n = 0; n < kStepsMax; ++n)
            if (step_mover() == Mover::kNever) return true;
        return false;
    }
    /// One round of a merger, if there are any and an image waits for one.
    bool merge_one() {
        const bool merged = store_->flusher().merge_one();
        if (merged) ++merged_;
        return merged;
    }
    [[nodiscard]] std::uint64_t merged() const { return merged_; }
    /// One round at a time of the flusher when nothing is due by its age alone.
    std::uint64_t step_early() { return store_->flusher().step(1); }
    void advance(std::uint64_t ns) { now_ += ns; }

    /// Steps until nothing is dirty or in flight; every page is in VRAM only then. False if that takes for
    /// ever.
    [[nodiscard]] bool drain() {
        store_->mover().stop();  // from here on the test is its thread
        set_draining(true);
        bool done = false;
        for (int n = 0; n < kStepsMax && !done; ++n) {
            done = step() == Flusher::kNever;
            if (store_->mover().anything_dirty() || store_->mover().is_moving()) {
                (void)step_mover();
                done = false;
            }
        }
        for (std::uint32_t gpu = 0; gpu < gpus_; ++gpu) {  // frees what became clean in the last step
            (void)store_->flusher(gpu).step(now_);
            done = done && !store_->flusher(gpu).anything_dirty();
        }
        (void)store_->mover().step(now_);
        set_draining(false);
        return done;
    }

  private:
    SteppedStore(const std::vector<SimGpu*>& gpus, Result<std::unique_ptr<PageStore>> made)
        : gpus_(static_cast<std::uint32_t>(gpus.size())) {
        if (!made) throw std::runtime_error(made.error().text());
        store_ = std::move(*made);
    }
    static std::vector<Backend*> backends_of(const std::vector<SimGpu*>& gpus) {
        std::vector<Backend*> backends;
        for (SimGpu* gpu : gpus) backends.push_back(&gpu->backend());
        return backends;
    }
    /// Measured costs would differ each time, and so would mergers.
    static StoreConfig stepped(StoreConfig config) {
        if (!config.flusher.costs) config.flusher.costs = CopyCosts{};
        if (!config.flusher.mergers) config.flusher.mergers = 0;
        return config;
    }
    void set_draining(bool on) {
        for (std::uint32_t gpu = 0; gpu < gpus_; ++gpu) store_->flusher(gpu).set_draining(on);
        store_->mover().set_draining(on);
    }
    static constexpr int kStepsMax = 100'000;
    const std::uint32_t gpus_;
    std::uint64_t merged_ = 0;
    std::unique_ptr<PageStore> store_;
    /// Writes stamp pages with the real clock: far beyond it, all are due.
    std::uint64_t now_ = std::uint64_t{1} << 62;
};

}  // namespace vramswap::test
