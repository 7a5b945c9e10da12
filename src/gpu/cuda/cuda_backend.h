// SPDX-License-Identifier: MIT
// One opened NVIDIA GPU: a CUDA context, its segments and the host memory registered with it. Made by
// CudaDriver, owned by the caller of Driver::open; must outlive its queues.
//
// Threads: the calls of Backend by any control thread (they block, allocate and make ioctls; the context is
// made current for the call and put back after it). make_current, place, kernels, launch_kernel, report,
// health: also by queue threads; these do not allocate, block or lock.
//
// Errors of the control calls: no_memory = the GPU is full; gpu_lost = health() tells whether a new process
// helps; failed = the call alone failed.
#pragma once

#include <atomic>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "base/mutex.h"
#include "gpu/backend.h"
#include "gpu/cuda/cuda_api.h"
#include "gpu/cuda/cuda_context.h"
#include "gpu/cuda/nvml_api.h"
#include "gpu/cuda/page_kernel.h"

namespace vramswap::cuda {

class PageLauncher;

/// Segments a backend can have; fixed, so that queues look segments up without a lock. 1.9 TiB of 128 MiB
/// each.
inline constexpr std::size_t kSegmentsMax = 16384;

/// The GPU and what it is driven through.
struct CudaHandles {
    std::shared_ptr<const CudaApi> api;
    std::shared_ptr<const NvmlApi> nvml;  ///< may be null
    CuDevice device = 0;
    NvmlDevice nvml_device = nullptr;  ///< may be null
};

/// From so many copies on a way to make them is quicker than one call for each. Found out with the first
/// queue.
struct Thresholds {
    std::size_t batch = 8;
    std::size_t turbo = 8;
};

class CudaBackend final : public Backend {
  public:
    /// Creates the context and finds out what the GPU can do. Errors: busy, no_memory, failed.
    static Result<std::unique_ptr<Backend>> create(CudaHandles handles, GpuInfo info);
    CudaBackend(CudaHandles handles, std::shared_ptr<OwnedContext> context, GpuInfo info, Caps caps,
                PageKernels kernels);
    ~CudaBackend() override;

    /// Where a segment lies; bytes is 0 if there is none.
    struct Place {
        CuDevicePtr address = 0;
        std::uint64_t bytes = 0;
    };
    [[nodiscard]] Place place(SegmentId segment) const;
    [[nodiscard]] const CudaApi& api() const { return *handles_.api; }
    [[nodiscard]] CuDevice device() const { return handles_.device; }
    [[nodiscard]] CuContext context() const { return context_->get(); }
    [[nodiscard]] const PageKernels& kernels() const { return kernels_; }
    /// kernels().launch(), remembered: what the driver tells of the GPU's use has us in it for a while.
    CuResult launch_kernel(CuStream stream, const PagePairs& pairs, std::size_t pages,
                           const PageKernelEnd& end);
    /// Control thread: set by the maker of the first queue, before it is used.
    [[nodiscard]] const std::optional<Thresholds>& thresholds() const { return thresholds_; }
    void set_thresholds(const Thresholds& thresholds) { thresholds_ = thresholds; }
    /// Control thread: through it queues share launches. Made when first asked for, lives as long as the
    /// backend. REQUIRES: Caps::turbo, and the context is current. Errors: no_memory, failed, gpu_lost.
    [[nodiscard]] Result<PageLauncher*> launcher();
    /// Makes the context current on this thread for good; costs a comparison when it is already.
    [[nodiscard]] CuResult make_current() const;
    /// Takes note of a result of the driver: sets the health if it means the loss of context or GPU.
    void report(CuResult result);
    /// report() and failure() in one.
    [[nodiscard]] Error fail(CuResult result, std::string_view what);

  protected:
    Result<SegmentId> do_allocate(Bytes size) override;
    Result<void> do_free(SegmentId segment) override;
    Result<UniqueFd> do_export(SegmentId segment) override;
    Result<SegmentId> do_import(int fd, Bytes size) override;
    Result<void> do_register(std::span<std::byte> memory) override;
    Result<void> do_unregister(std::span<std::byte> memory) override;
    Result<std::unique_ptr<TransferQueue>> do_make_queue() override;
    Result<MemoryInfo> do_memory_info() override;
    Result<GpuUsage> do_usage(UsageParts parts) override;
    [[nodiscard]] bool do_has_segment(SegmentId segment) const override;

  private:
    /// What queue threads read; `bytes` is published last and withdrawn first.
    struct Slot {
        std::atomic<CuDevicePtr> address{0};
        std::atomic<std::uint64_t> bytes{0};
    };
    /// What only control threads need. handle 0: plain memory of cuMemAlloc.
    struct Segment {
        CuDevicePtr address = 0;
        Bytes size{};
        CuMemHandle handle = 0;
    };

    [[nodiscard]] Error lost() const;
    Result<void> enter(const ContextScope& scope);
    Result<CuDevicePtr> map_handle(CuMemHandle handle, Bytes size);
    Result<SegmentId> publish(Segment segment);
    CuResult release(const Segment& segment);
    void lose(Health health);

    // Constant.
    const CudaHandles handles_;
    const PageKernels kernels_;
    const std::shared_ptr<OwnedContext> context_;
    const std::uint64_t id_;  ///< of this backend in this process, never used again (addresses are)

    std::optional<Thresholds> thresholds_;  ///< the control thread's

    // Self-synchronised.
    std::vector<Slot> slots_;
    std::atomic<int> suspects_{0};
    std::atomic<std::uint64_t> kernel_ran_ns_{0};  ///< the last launch; 0: none

    // Guarded by mutex_, which is never held during a call of the driver.
    Mutex mutex_;
    std::vector<Segment> segments_ VS_GUARDED_BY(mutex_);

    std::unique_ptr<PageLauncher> launcher_;  ///< the control thread's; may be null
};

}  // namespace vramswap::cuda
