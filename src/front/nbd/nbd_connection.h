// SPDX-License-Identifier: MIT
// One connection of an NBD device: a socket whose other end the kernel holds, and the thread "vs-nbd-N" that
// serves it on a TargetQueue of its own, many requests at a time. Owned by NbdFrontend. Threads: make, start,
// join, socket, add_counters and destruction: control thread; the rest is the thread itself. After start, the
// thread does not allocate, throw, open files, log synchronously or touch unlocked memory. It sleeps in
// poll(2) when nothing is in flight, and polls the target without sleeping when something is.
//
// What cannot be had: the kernel marks its end of the socket as one that memory is reclaimed through, ours
// not, and no program can set that mark. So each reply is sent with socket buffers of ordinary memory, which
// the kernel takes under the rules of an I/O flusher (PR_SET_IO_FLUSHER, inherited from the worker's main
// thread: it may wait for memory, but never for swap) and without its reserves but for the part that
// real-time threads may use. Without that part replies waited for ever under pressure on Linux 6.12: what the
// kernel sends comes out of the reserve, and leaves less than its lower mark. When that part is gone too,
// replies wait: that is where NBD is weaker than ublk. AF_UNIX and not TCP, because TCP drops what the kernel
// sends us out of its reserves. Errors: no_memory, failed, and those of the target.
#pragma once

#include <atomic>
#include <cstdint>
#include <latch>
#include <memory>
#include <optional>

#include "base/locked_thread.h"
#include "base/result.h"
#include "base/unique_fd.h"
#include "front/frontend.h"
#include "front/io_parts.h"
#include "front/nbd/nbd_fence.h"
#include "front/nbd/nbd_slots.h"
#include "front/nbd/nbd_stream.h"
#include "front/target.h"

namespace vramswap {

class NbdConnection {
  public:
    /// What all connections of a device share; outlives them.
    struct Shared {
        Target& target;
        const StopSignal& stop;
        NbdFence& fence;
    };

    /// `socket`: a stream socket; requests come out of it. `number`: of the device's connections, below
    /// NbdFence::kConnectionsMax.
    static Result<std::unique_ptr<NbdConnection>> make(const Shared& shared, std::uint32_t number,
                                                       UniqueFd socket);
    /// REQUIRES: joined, or never started. Closes the socket.
    ~NbdConnection() = default;
    NbdConnection(const NbdConnection&) = delete;
    NbdConnection& operator=(const NbdConnection&) = delete;

    /// Starts the thread "vs-nbd-NUMBER" and waits until it is ready to serve.
    Result<void> start();
    /// Waits for its end, which comes after StopSignal::request or with the end of the connection.
    void join();
    [[nodiscard]] int socket() const { return socket_.get(); }
    /// Nobody holds the other end, or it was shut down. Any thread.
    [[nodiscard]] bool is_hung_up() const;
    /// The kernel has dropped it, or was out of step: nothing is in flight here any more. Control thread.
    [[nodiscard]] bool has_ended() const { return has_ended_.load(std::memory_order_acquire); }
    void add_counters(FrontendCounters& sum) const { counters_.add_to(sum); }

  private:
    /// How the connection stands. Only serving becomes something else.
    enum class State : std::uint8_t { serving, disconnected, lost, broken };

    NbdConnection(const Shared& shared, std::uint32_t number, UniqueFd socket,
                  std::unique_ptr<IoMemory> memory, std::unique_ptr<TargetQueue> queue)
        : shared_(shared),
          number_(number),
          socket_(std::move(socket)),
          memory_(std::move(memory)),
          queue_(std::move(queue)),
          slots_(memory_->all()) {}

    static void main(void* self);
    void serve();
    bool send();
    bool receive();
    bool take_requests();
    void begin(NbdSlot& slot);
    void submit(NbdSlot& slot);
    [[nodiscard]] bool await_others();
    bool complete_finished();
    void submit_waiting();
    void complete(NbdSlot& slot);
    void reply(NbdSlot& slot, std::uint32_t error);
    void wait();
    bool spin();
    void take_room_event();
    void end();

    // Constant after make.
    const Shared shared_;
    const std::uint32_t number_;
    const UniqueFd socket_;
    const std::unique_ptr<IoMemory> memory_;
    const std::unique_ptr<TargetQueue> queue_;
    // Control thread.
    LockedThread thread_;
    // The thread.
    State state_ = State::serving;
    NbdSlots slots_;
    NbdReceiver receiver_;
    NbdSender sender_;
    NbdSlotQueue waiting_;                                         // answered with retry by the target
    NbdReceiver::Next receiving_ = NbdReceiver::Next::need_bytes;  // what the receiver needs to go on
    NbdIo input_ = NbdIo::moved;                                   // what the last read did
    NbdIo output_ = NbdIo::moved;                                  // what the last send did
    unsigned rounds_without_progress_ = 0;
    bool has_new_bytes_ = false;  // of which no change of pages was carried out yet
    // Self-synchronised.
    std::atomic<bool> has_ended_{false};
    std::latch ready_{1};
    IoCounters counters_;
};

}  // namespace vramswap
