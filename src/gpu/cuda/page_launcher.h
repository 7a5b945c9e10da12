// SPDX-License-Identifier: MIT
// PageLauncher: the queues of a backend share launches of the page kernel. A launch takes 2 us under a lock
// of the driver, where threads with launches of their own wait for each other. Here one thread at a time
// launches; the others publish their pages and go on, and the next launch takes along all that were published
// meanwhile (flat combining).
//
// Made by CudaBackend with its first queue that can use it, destroyed by it after the last queue. Threads:
// create, fill, synchronize and the destructor are the control thread's (they block and allocate), publish,
// help, settle and query any thread's; these neither block nor allocate nor make ioctls. Whoever calls one of
// the first three may launch for others, four times all that is published: 10 us as a rule, 2 us for each
// launch (of at most 16 queues and 224 pages) at worst.
//
// A launch that fails fails every batch in it, and none has copied anything then; the backend knows of it
// before the first queue does.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <memory>

#include "base/mutex.h"
#include "base/result.h"
#include "gpu/cuda/end_words.h"
#include "gpu/cuda/page_kernel.h"

namespace vramswap::cuda {

class CudaBackend;

/// Pages to be copied together, and who is told. Of one queue, that fills it; lent to the launcher from
/// publish() until `published` is false again, which is when they are on their way or have failed.
struct alignas(64) PageBatch {
    std::atomic<bool> published{false};
    std::uint32_t pages = 0;  ///< 1 to kPageKernelLarge
    PageTell tell{};
    const EndWords* ends = nullptr;
    Ticket ticket = 0;
    PageBatch* next = nullptr;  ///< the launcher's
    alignas(64) PagePairs pairs{};
};

/// A 32-bit word of VRAM that is 0, for PageKernelEnd. To be freed by cuMemFree. REQUIRES: the backend's
/// context is current, and nothing runs on the stream. Errors: no_memory, failed, gpu_lost.
Result<CuDevicePtr> make_counter(CudaBackend& backend, CuStream stream);

class PageLauncher {
  public:
    /// Launches that run at once. One takes some 10 us, and one is made every 2 us at most.
    static constexpr std::size_t kStreams = 8;

    /// REQUIRES: the backend has kernels, and its context is current. Errors: no_memory, failed, gpu_lost.
    static Result<std::unique_ptr<PageLauncher>> create(CudaBackend& backend);
    ~PageLauncher();
    PageLauncher(const PageLauncher&) = delete;
    PageLauncher& operator=(const PageLauncher&) = delete;

    /// Before the first use: launches `pages` pages on each stream as often as a queue is deep, one stream
    /// after the other and faster than they run, since the driver's rings and pools grow with what is in
    /// flight. Blocks. Errors: failed, gpu_lost.
    Result<void> fill(const PagePairs& pairs, std::size_t pages);

    /// Has the batch launched: now, by who is launching, or when its queue helps. REQUIRES: it is settled.
    void publish(PageBatch& batch);
    /// To be called while one waits for the batch's end: usually a load, launches it if nobody else does.
    void help(const PageBatch& batch) {
        if (batch.published.load(std::memory_order_relaxed)) launch_published();
    }
    /// Waits until the batch is the queue's again, which takes as long as the launches before it (see above).
    /// False if the backend's health ended it first: then the batch stays lent.
    [[nodiscard]] bool settle(const PageBatch& batch);

    /// Asks stream number `n` (modulo kStreams): the error of a context that died, kSuccess or kNotReady.
    [[nodiscard]] CuResult query(std::size_t n) const;
    /// Waits for the end of all that was launched.
    [[nodiscard]] CuResult synchronize() const;

  private:
    /// Kernels on one stream run one after the other, so they can share a counter.
    struct Lane {
        CuStream stream = nullptr;
        CuDevicePtr counter = 0;
    };

    /// A lock that nobody waits for.
    class VS_CAPABILITY("turn") Turn {
      public:
        [[nodiscard]] bool take() VS_ANNOTATE(try_acquire_capability(true)) {
            return !taken_.load() && !taken_.exchange(true);
        }
        void give() VS_RELEASE() { taken_.store(false); }

      private:
        std::atomic<bool> taken_{false};
    };

    explicit PageLauncher(CudaBackend& backend) : backend_(backend) {}
    Result<void> set_up();
    void launch_published();
    void launch_all(PageBatch* newest) VS_REQUIRES(turn_);
    PageBatch* launch_some(PageBatch* first) VS_REQUIRES(turn_);
    CuResult launch(const PagePairs& pairs, std::size_t pages) VS_REQUIRES(turn_);

    // Constant after create().
    CudaBackend& backend_;
    std::array<Lane, kStreams> lanes_{};
    bool filled_ = false;  // control thread

    // Self-synchronised.
    alignas(64) std::atomic<PageBatch*> newest_{nullptr};  ///< of those that nobody has taken: a stack
    alignas(64) Turn turn_;

    std::size_t next_lane_ VS_GUARDED_BY(turn_) = 0;
    PageKernelEnd end_ VS_GUARDED_BY(turn_){};
    PagePairs pairs_ VS_GUARDED_BY(turn_){};
};

}  // namespace vramswap::cuda
