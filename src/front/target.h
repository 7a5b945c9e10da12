// SPDX-License-Identifier: MIT
// What a frontend calls: a block device as a Target with one TargetQueue for each of the frontend's threads.
// The store implements it. Requests are objects of the frontend, kept alive until they complete.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "base/io_status.h"
#include "base/result.h"
#include "base/units.h"

namespace vramswap {

struct BlockRequest {
    /// After a discard the pages read as zeros.
    enum class Op : std::uint8_t { read, write, discard };
    Op op = Op::read;
    std::uint64_t offset = 0;   ///< bytes, multiple of 4 KiB
    std::uint64_t bytes = 0;    ///< positive multiple of 4 KiB; read and write: at most kMaxTransferBytes
    std::byte* data = nullptr;  ///< read, write: in memory given to Target::register_memory
    /// Set when the request completes; pending until then.
    IoStatus status = IoStatus::pending;
    /// The target's own, from submit to completion.
    void* in_target = nullptr;

    static constexpr std::uint64_t kMaxTransferBytes = 4u << 20;
};

/// Serves one thread. submit and poll never block, never allocate, never throw.
class TargetQueue {
  public:
    /// REQUIRES: nothing in flight.
    virtual ~TargetQueue() = default;
    TargetQueue(const TargetQueue&) = delete;
    TargetQueue& operator=(const TargetQueue&) = delete;

    /// Accepts a request. Returns its final status if it is complete already (then poll never reports it),
    /// pending if poll will complete it, or retry: it was done in part or not at all, ask again when event_fd
    /// is readable (the caller is then registered for it) or after a completion of this queue. Checks range,
    /// alignment and size. What is submitted before the next poll goes to the GPU together, so a frontend
    /// submits all that it has and then polls.
    IoStatus submit(BlockRequest& request);

    /// A request that will be submitted soon: what the target has to look at for it may be fetched into the CPU's
    /// caches already. A frontend that has several announces all before it submits the first. Costs nanoseconds.
    virtual void announce(const BlockRequest& request) { static_cast<void>(request); }

    /// Starts what was submitted since the last call, and completes what the GPU has finished: sets status
    /// and stores the requests in `done`. Returns how many.
    std::size_t poll(std::span<BlockRequest*> done);

    /// The thread that will use the queue calls this once, before its first submit and before the device is
    /// in use: vendor libraries set up what they keep per thread on its first call. May block and allocate.
    virtual void enter_thread() {}

    /// Requests that are pending.
    [[nodiscard]] virtual std::size_t in_flight() const = 0;
    /// True while something pending ends within microseconds: the owner polls without sleeping. If nothing
    /// does, but requests are pending, event_fd tells when it is worth polling again.
    [[nodiscard]] virtual bool should_spin() const { return in_flight() != 0; }

    /// Becomes readable when a request answered with retry is worth another try, and when a pending one that
    /// takes long may have ended. Read 8 bytes to reset it, before the next submit or poll.
    [[nodiscard]] virtual int event_fd() const = 0;

  protected:
    explicit TargetQueue(Bytes device_size) : device_size_(device_size) {}
    virtual IoStatus do_submit(BlockRequest& request) = 0;
    virtual std::size_t do_poll(std::span<BlockRequest*> done) = 0;

  private:
    const Bytes device_size_;
};

/// The device. Threads: control thread; the queues are what I/O threads use.
class Target {
  public:
    virtual ~Target() = default;

    [[nodiscard]] virtual Bytes size() const = 0;
    /// A queue for one thread, with room for `depth` requests in flight. Must be destroyed before the target.
    virtual Result<std::unique_ptr<TargetQueue>> make_queue(std::uint32_t depth) = 0;
    /// Makes page-aligned memory usable as request data, until unregister_memory.
    virtual Result<void> register_memory(std::span<std::byte> memory) = 0;
    virtual Result<void> unregister_memory(std::span<std::byte> memory) = 0;
};

}  // namespace vramswap
