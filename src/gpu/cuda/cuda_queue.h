// SPDX-License-Identifier: MIT
// An in-order queue of copies on one CUDA stream. Made by CudaBackend, owned by the caller of make_queue;
// must be destroyed before the backend.
//
// Threads: one at a time, not necessarily the maker. The first call on a new thread makes the context current
// there, which may allocate: a thread submits an empty list once before it must no longer allocate. After
// that submit and poll neither allocate nor block nor make ioctls; poll costs a load from memory while
// nothing changes.
//
// io_error: the driver refused or the context is lost (the backend's health tells which). A refused
// submission has come to rest before submit returns, unless the GPU hangs. A hang is not noticed here: poll
// stays pending, and whoever waits needs a time-out.
#pragma once

#include <array>
#include <cstdint>
#include <memory>

#include "gpu/backend.h"
#include "gpu/cuda/cuda_api.h"
#include "gpu/cuda/cuda_backend.h"
#include "gpu/cuda/page_kernel.h"

namespace vramswap::cuda {

/// Host memory that the GPU reaches: mapped, present and registered for as long as it lives.
class PinnedPages {
  public:
    static Result<PinnedPages> create(CudaBackend& backend, std::size_t bytes);
    PinnedPages(PinnedPages&& other) noexcept
        : backend_(other.backend_), memory_(std::exchange(other.memory_, {})) {}
    PinnedPages(const PinnedPages&) = delete;
    PinnedPages& operator=(const PinnedPages&) = delete;
    PinnedPages& operator=(PinnedPages&&) = delete;
    ~PinnedPages();
    [[nodiscard]] std::span<std::byte> memory() const { return memory_; }

  private:
    PinnedPages(CudaBackend& backend, std::span<std::byte> memory) : backend_(backend), memory_(memory) {}
    CudaBackend& backend_;
    std::span<std::byte> memory_;
};

class CudaQueue final : public TransferQueue {
  public:
    /// Creates and warms up. REQUIRES: the backend's context is current. Errors: no_memory, failed, gpu_lost.
    static Result<std::unique_ptr<TransferQueue>> create(CudaBackend& backend);
    ~CudaQueue() override;

  protected:
    [[nodiscard]] std::uint64_t do_segment_bytes(SegmentId segment) const override;
    IoStatus do_submit(std::span<const Copy> copies, Ticket ticket) override;
    IoStatus do_poll(Ticket ticket) override;

  private:
    /// How the end of a submission is seen. write_value: the GPU writes the ticket into host memory, seen by
    /// a load; event: one of a ring of events, seen by a call of the driver.
    enum class Marker : std::uint8_t { write_value, event };
    static constexpr std::size_t kBatchMax = 1024;
    /// Copies of more pages go by a copy engine in mode turbo too: they run at full speed there.
    static constexpr std::size_t kTurboPagesMax = 16;

    CudaQueue(CudaBackend& backend, PinnedPages completion);
    Result<void> set_up();
    CuResult try_write_value();
    Result<void> make_events();
    Result<void> make_counter();
    Result<void> warm_up();
    Result<void> warm_copies(std::span<std::byte> host, SegmentId segment);
    Result<void> calibrate(std::span<std::byte> host, SegmentId segment);
    Result<std::uint64_t> time_of(std::span<const Copy> copies, Thresholds thresholds);
    Result<void> run(std::span<const Copy> copies);
    void try_batch(std::span<const Copy> copies);

    [[nodiscard]] bool has_batch() const;
    CuResult copy_each(std::span<const Copy> copies);
    CuResult copy_batches(std::span<const Copy> copies);
    CuResult copy_turbo(std::span<const Copy> copies, Ticket ticket);
    CuResult launch_pages(const PageKernelEnd& end);
    [[nodiscard]] bool for_kernel(const Copy& copy) const;
    [[nodiscard]] bool worth_a_kernel(std::span<const Copy> copies) const;
    CuResult mark(Ticket ticket);
    void quiesce();
    IoStatus poll_event(Ticket ticket);
    IoStatus query_stream();
    IoStatus judge(CuResult result);
    bool stalled();

    // Constant after create().
    CudaBackend& backend_;
    const CudaApi& api_;
    const PinnedPages completion_;
    std::uint32_t* const word_;  ///< low 32 bits of the last completed ticket, written by the GPU
    CuDevicePtr word_on_gpu_ = 0;
    CuDevicePtr counter_ = 0;  ///< of PageKernelEnd
    CuStream stream_ = nullptr;
    Marker marker_ = Marker::event;
    bool batch_works_ = true;
    Thresholds thresholds_{};
    CuResult (*write_value_)(CuStream, CuDevicePtr, std::uint32_t, unsigned) = nullptr;
    std::array<CuEvent, kDepth> events_{};

    // Of the one thread that uses the queue.
    std::uint32_t polls_ = 0;         ///< without progress
    std::uint64_t looked_at_ns_ = 0;  ///< when the stream was last asked
    std::array<CuDevicePtr, kBatchMax> to_{};
    std::array<CuDevicePtr, kBatchMax> from_{};
    std::array<std::size_t, kBatchMax> bytes_{};
    std::array<PagePair, kPageKernelLarge> pairs_{};
    std::size_t pair_count_ = 0;
};

}  // namespace vramswap::cuda
