// SPDX-License-Identifier: MIT
// One hardware queue of a ublk device with the thread that serves it: its own io_uring, its own TargetQueue,
// its own buffers. Owned by UblkDevice. Threads: make, start, tell, join and destruction: control thread.
// add_counters: control thread, at any time. All else: the thread itself, which after start allocates,
// throws, opens and logs nothing, and touches locked memory only. It sleeps in the ring when nothing is
// pending, and polls the target and the ring while the target has requests in flight.
//
// Data: each tag has a buffer of its own. The driver copies the data of a WRITE there before it tells us, and
// that of a READ from there when we commit it, so both go through the store with no copy but that one. The
// rule behind it: a READ is copied from the address given in its own commit, and that address then receives
// the next WRITE of the tag; so it must never point to memory that is of use to anybody else, such as the
// store's images. Not UBLK_F_NEED_GET_DATA, which costs a round trip for each write, nor UBLK_F_USER_COPY,
// which costs a system call for each request. The buffers must be locked: if the driver cannot copy all of a
// WRITE, it cuts the request in the descriptor, and Linux 7.3 takes what was not copied for written.
#pragma once

#include <liburing.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <semaphore>
#include <span>
#include <vector>

#include "base/locked_thread.h"
#include "base/result.h"
#include "base/unique_fd.h"
#include "base/units.h"
#include "front/frontend.h"
#include "front/io_parts.h"
#include "front/target.h"
#include "front/ublk/ublk_abi.h"

namespace vramswap {

/// Largest read or write. The kernel would send up to 1280 KiB (6.12) or 4 MiB (7.3), but every tag has to
/// have a buffer of this size: more buys little (copy engines are past half their speed with 256 KiB), and
/// swap writes of a huge page arrive in four pieces.
inline constexpr std::uint32_t kUblkTransferBytes = 512u << 10;

/// From one tag's buffer to the next. A page more than a transfer: else the first pages of all buffers, the
/// only ones that small requests use, would share the same few sets of every cache.
inline constexpr std::size_t kUblkBufferStride = kUblkTransferBytes + kPageBytes;

/// Requests of a queue at a time. 32 of 512 KiB are 16 MiB of locked memory for a queue, 64 MiB for a device
/// of four. A thread finishes a request in some microseconds or, if it waits for the GPU, in some tens: with
/// more requests they would only wait here instead of in the block layer. At most 128: io_uring keeps that
/// many request structures in its caches, and frees and allocates the rest (io_uring/alloc_cache.h,
/// Linux 6.12 and 7.3).
inline constexpr std::uint16_t kUblkDepth = 32;
static_assert(kUblkDepth <= 128);

class UblkQueue {
  public:
    /// What all queues of a device share; outlives them.
    struct Shared {
        Target& target;
        int device_fd;  ///< /dev/ublkcN
        UblkDialect dialect;
        std::uint16_t depth;
    };
    enum class Phase : std::uint8_t {
        serving,
        refusing,  ///< requests that the target has no room for fail, so that the device can be stopped under
                   ///< its users
        leaving,   ///< the thread ends when nothing is in flight; also without, when the kernel has stopped
                   ///< the queue
    };

    static Result<std::unique_ptr<UblkQueue>> make(const Shared& shared, std::uint16_t index);
    /// REQUIRES: joined, or never started.
    ~UblkQueue();
    UblkQueue(const UblkQueue&) = delete;
    UblkQueue& operator=(const UblkQueue&) = delete;

    /// Starts the thread "vs-ublk-INDEX" with all signals blocked; returns when it has asked the kernel for
    /// requests of every tag, or why it could not (then it has ended).
    Result<void> start();
    void tell(Phase phase);
    void join();
    void add_counters(FrontendCounters& sum) const { counters_.add_to(sum); }

  private:
    UblkQueue(const Shared& shared, std::uint16_t index);
    Result<void> allocate();
    Result<void> map_descriptors();

    static void main(void* self);
    Result<void> set_up();
    Result<void> open_ring();
    Result<void> fetch_all();
    void serve();
    [[nodiscard]] bool is_done() const;
    void enter_kernel();
    void sleep();
    unsigned take_events();
    void announce(const io_uring_cqe& event);
    void on_event(const io_uring_cqe& event);
    void on_command(std::uint16_t tag, int result);
    unsigned poll_target();
    void begin(std::uint16_t tag);
    void settle(std::uint16_t tag, IoStatus status);
    void try_parked_again();
    void finish(std::uint16_t tag, IoStatus status);
    void send(UblkCommand command, std::uint16_t tag, std::int32_t result);
    void watch(int fd, std::uint64_t event);
    void drain(int fd);
    [[nodiscard]] io_uring_sqe& next_entry();
    [[nodiscard]] std::span<std::byte> buffer(std::uint16_t tag) const;

    // Constant after make.
    const Shared shared_;
    const std::uint16_t index_;
    std::unique_ptr<IoMemory> buffers_;
    std::unique_ptr<TargetQueue> queue_;
    UniqueFd wake_;  // written to by tell
    const UblkIoDescriptor* descriptors_ = nullptr;
    // The thread's own.
    io_uring ring_{};
    bool ring_is_open_ = false;
    std::vector<BlockRequest> requests_;  // by tag
    std::vector<std::int32_t> results_;   // by tag: what was committed last
    std::vector<std::uint16_t> parked_;   // tags that wait for room in the target; never beyond its capacity
    std::uint16_t live_tags_ = 0;         // those that the kernel has not given up
    bool try_parked_ = false;
    // Control thread.
    LockedThread thread_;
    // Written by the thread before ready_, read by the control thread after it.
    std::optional<Error> setup_error_;
    // Self-synchronised.
    std::binary_semaphore ready_{0};
    std::atomic<Phase> phase_{Phase::serving};
    IoCounters counters_;
};

}  // namespace vramswap
