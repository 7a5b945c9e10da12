// SPDX-License-Identifier: MIT
// A queue of copies: on a CUDA stream of its own, one after the other, and in mode turbo by launches that it
// shares with the backend's other queues (PageLauncher), beside all others. Made by CudaBackend, owned by the
// caller of make_queue; must be destroyed before the backend.
//
// Threads: one at a time, not necessarily the maker. The first call on a new thread makes the context current
// there, which may allocate: a thread submits an empty list once before it must no longer allocate. After
// that submit and poll neither allocate nor block nor make ioctls; poll costs a load from memory while
// nothing changes. Either may spend some microseconds in launching for other queues, and submit in waiting
// for one who launches, if its last pages still wait for that.
//
// io_error: the driver refused or the context is lost (the backend's health tells which). A refused
// submission has come to rest before submit returns, unless the GPU hangs; that a shared launch was refused
// is told by poll, and none of its copies has run then. A hang is not noticed here: poll stays pending, and
// whoever waits needs a time-out.
#pragma once

#include <array>
#include <bitset>
#include <cstdint>
#include <memory>

#include "gpu/backend.h"
#include "gpu/cuda/cuda_api.h"
#include "gpu/cuda/cuda_backend.h"
#include "gpu/cuda/end_words.h"
#include "gpu/cuda/page_kernel.h"
#include "gpu/cuda/page_launcher.h"
#include "gpu/cuda/pinned_pages.h"

namespace vramswap::cuda {

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
    /// How the end of a submission is seen. write_value: the GPU writes a word of EndWords, seen by a load;
    /// event: one of a ring of events, seen by a call of the driver.
    enum class Marker : std::uint8_t { write_value, event };
    static constexpr std::size_t kBatchMax = 1024;
    /// Copies of more pages go by a copy engine in mode turbo too: they run at full speed there.
    static constexpr std::size_t kTurboPagesMax = 16;

    CudaQueue(CudaBackend& backend, PinnedPages completion);
    void synchronize();
    Result<void> set_up();
    CuResult try_write_value();
    Result<void> make_events();
    Result<void> set_up_turbo();
    Result<void> warm_up();
    Result<void> warm_copies(std::span<std::byte> host, SegmentId segment);
    [[nodiscard]] PagePairs pairs_of(std::span<std::byte> host, SegmentId segment) const;
    Result<void> calibrate(std::span<std::byte> host, SegmentId segment);
    Result<std::uint64_t> time_of(std::span<const Copy> copies, Thresholds thresholds);
    Result<void> run(std::span<const Copy> copies);
    Result<void> fill(std::span<const Copy> copies);
    IoStatus await(Ticket ticket);
    void try_batch(std::span<const Copy> copies);

    [[nodiscard]] bool has_batch() const;
    CuResult copy_each(std::span<const Copy> copies);
    CuResult copy_one(const Copy& copy);
    CuResult copy_batches(std::span<const Copy> copies);
    CuResult copy_turbo(std::span<const Copy> copies, Ticket ticket);
    CuResult launch_pages();
    CuResult launch_last_pages(Ticket ticket);
    [[nodiscard]] bool for_kernel(const Copy& copy) const;
    [[nodiscard]] bool worth_a_kernel(std::span<const Copy> copies) const;
    [[nodiscard]] bool can_share(std::span<const Copy> copies) const;
    CuResult mark(Ticket ticket);
    CuResult mark_by_value(Ticket ticket);
    void quiesce();
    IoStatus poll_event(Ticket ticket);
    IoStatus look_for_loss(Ticket ticket);
    IoStatus judge(CuResult result);
    bool stalled();

    // Constant after create().
    CudaBackend& backend_;
    const CudaApi& api_;
    const PinnedPages completion_;
    EndWords ends_;                     ///< in completion_
    PageLauncher* launcher_ = nullptr;  ///< null: there are no shared launches
    CuStream stream_ = nullptr;
    Marker marker_ = Marker::event;
    bool batch_works_ = true;
    Thresholds thresholds_{};
    CuResult (*write_value_)(CuStream, CuDevicePtr, std::uint32_t, unsigned) = nullptr;
    std::array<CuEvent, kDepth> events_{};

    // Of the one thread that uses the queue.
    std::bitset<kDepth> shared_{};    ///< by ticket modulo kDepth: it goes by a shared launch
    std::uint32_t polls_ = 0;         ///< without progress
    std::uint64_t looked_at_ns_ = 0;  ///< when a stream was last asked
    std::size_t looks_ = 0;           ///< at streams of the launcher
    std::array<CuDevicePtr, kBatchMax> to_{};
    std::array<CuDevicePtr, kBatchMax> from_{};
    std::array<std::size_t, kBatchMax> bytes_{};
    PageKernelEnd end_{};  ///< of launches on the own stream; its counter is owned
    PageBatch batch_{};    ///< also lists the pages of launches that are not shared
};

}  // namespace vramswap::cuda
