// SPDX-License-Identifier: MIT
#include "front/nbd/nbd_connection.h"

#include <fmt/format.h>
#include <poll.h>
#include <sched.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <utility>

#include "base/clock.h"
#include "base/log.h"

namespace vramswap {
namespace {

using Kind = NbdRequest::Kind;

/// Looks at the target between two looks at the socket: some microseconds, about what a system call costs.
constexpr unsigned kSpins = 64;
/// Rounds of that without any progress before the CPU is offered to others. A GPU copy takes 10 to 100 µs.
constexpr unsigned kRoundsBeforeYield = 64;

/// A second look at a full target even if its event never comes.
constexpr int kRoomTimeoutMs = 1000;
/// When the kernel has no memory for a reply: nothing tells us when it has.
constexpr int kStarvedTimeoutMs = 1;

constexpr std::size_t kCompletionsPerPoll = 32;

/// Gives the calling thread the lowest real-time priority for a scope. Real-time threads may take memory from
/// the kernel's reserve, a quarter (Linux 6.1) or a half of it (6.12): gfp_to_alloc_flags in mm/page_alloc.c.
/// Not for longer than a scope: the lock of a chunk is waited for with sched_yield, which never lets a holder
/// of lower priority go on.
class RealTime {
  public:
    RealTime() : got_(set(SCHED_FIFO, 1)) {}
    ~RealTime() {
        if (got_) set(SCHED_OTHER, 0);
    }
    RealTime(const RealTime&) = delete;
    RealTime& operator=(const RealTime&) = delete;
    [[nodiscard]] bool got() const { return got_; }

  private:
    static bool set(int policy, int priority) {
        const sched_param parameters{priority};
        return ::sched_setscheduler(0, policy, &parameters) == 0;
    }
    const bool got_;
};

}  // namespace

Result<std::unique_ptr<NbdConnection>> NbdConnection::make(const Shared& shared, std::uint32_t number,
                                                           UniqueFd socket) {
    auto memory = IoMemory::make(shared.target, kNbdPoolBytes);
    if (!memory) return std::move(memory).error();
    auto queue = shared.target.make_queue(kNbdSlots);
    if (!queue) return std::move(queue).error();
    return std::unique_ptr<NbdConnection>(
        new NbdConnection(shared, number, std::move(socket), std::move(*memory), std::move(*queue)));
}

Result<void> NbdConnection::start() {
    if (auto started = thread_.start(fmt::format("vs-nbd-{}", number_), &NbdConnection::main, this); !started)
        return started;
    ready_.wait();
    return {};
}

void NbdConnection::join() {
    thread_.join();
}

void NbdConnection::main(void* self) {
    auto& connection = *static_cast<NbdConnection*>(self);
    connection.queue_->enter_thread();
    if (!RealTime().got())
        log_event(LogLevel::warning, "no real-time priority for replies: they may wait for memory, errno",
                  static_cast<std::uint64_t>(errno));
    connection.ready_.count_down();
    connection.shared_.fence.enter(connection.number_, connection.socket_.get());
    connection.serve();
    connection.end();
    connection.has_ended_.store(true, std::memory_order_release);
}

void NbdConnection::serve() {
    while (state_ == State::serving && !shared_.stop.requested()) {
        // All three each time, so that no side waits for another.
        const bool sent = send();
        const bool received = receive();
        const bool finished = complete_finished();
        if (!sent && !received && !finished) wait();
    }
}

bool NbdConnection::send() {
    if (sender_.empty() || output_ == NbdIo::blocked) return false;
    {
        const RealTime real_time;
        output_ = sender_.flush(socket_.get(), slots_);
    }
    if (output_ == NbdIo::closed) state_ = State::lost;
    return output_ == NbdIo::moved;
}

bool NbdConnection::receive() {
    if (receiving_ != NbdReceiver::Next::need_bytes) return take_requests();
    if (input_ == NbdIo::blocked || input_ == NbdIo::drained) return false;
    input_ = receiver_.fill(socket_.get());
    if (input_ == NbdIo::closed) state_ = State::lost;
    if (input_ != NbdIo::moved && input_ != NbdIo::drained) return false;
    has_new_bytes_ = true;
    take_requests();
    return true;
}

/// False if there was none.
bool NbdConnection::take_requests() {
    for (bool any = false;; any = true) {
        NbdSlot* slot = nullptr;
        receiving_ = receiver_.next(slots_, slot);
        switch (receiving_) {
            case NbdReceiver::Next::request:
                begin(*slot);
                break;
            case NbdReceiver::Next::need_bytes:
            case NbdReceiver::Next::need_room:
                return any;
            case NbdReceiver::Next::disconnect:
                state_ = State::disconnected;
                return any;
            case NbdReceiver::Next::broken:
                state_ = State::broken;
                return any;
        }
    }
}

void NbdConnection::begin(NbdSlot& slot) {
    if (state_ != State::serving) return;
    switch (slot.kind) {
        case Kind::write:
        case Kind::discard:
            if (await_others()) submit(slot);
            break;
        case Kind::read:
            submit(slot);
            break;
        case Kind::flush:
        case Kind::disconnect:
            reply(slot, nbd_error(IoStatus::ok));
            break;
        case Kind::refused:
            log_event(LogLevel::warning, "refused an NBD request that is unknown or too large, bytes",
                      slot.bytes);
            reply(slot, nbd_error(IoStatus::out_of_range));
            break;
    }
}

void NbdConnection::submit(NbdSlot& slot) {
    const IoStatus status = queue_->submit(slot);
    if (status == IoStatus::retry) waiting_.push(slot);
    if (is_final(status)) complete(slot);
}

/// See NbdFence. Those that were shut down see that soon, and end when what they have begun has ended. False
/// if this one was shut down, too: what came over it is sent again.
bool NbdConnection::await_others() {
    if (!std::exchange(has_new_bytes_, false)) return true;
    while (shared_.fence.must_wait(number_) && !shared_.stop.requested()) {
        if (is_hung_up()) {
            state_ = State::lost;
            return false;
        }
        ::sched_yield();
    }
    return true;
}

bool NbdConnection::is_hung_up() const {
    pollfd end{socket_.get(), 0, 0};
    return ::poll(&end, 1, 0) > 0;
}

bool NbdConnection::complete_finished() {
    if (queue_->in_flight() == 0) return false;
    std::array<BlockRequest*, kCompletionsPerPoll> done{};
    const std::size_t count = queue_->poll(done);
    for (std::size_t i = 0; i < count; ++i) complete(static_cast<NbdSlot&>(*done[i]));
    if (count == 0) return false;
    rounds_without_progress_ = 0;
    submit_waiting();
    return true;
}

/// Each of them once: those with no room yet go to the end of the same queue.
void NbdConnection::submit_waiting() {
    for (std::uint32_t n = waiting_.size(); n != 0; --n) submit(waiting_.pop());
}

void NbdConnection::complete(NbdSlot& slot) {
    counters_.count(slot.op, slot.status, slot.bytes);
    if (slot.op == BlockRequest::Op::read && slot.status == IoStatus::ok) slot.reply_data_bytes = slot.bytes;
    reply(slot, nbd_error(slot.status));
}

void NbdConnection::reply(NbdSlot& slot, std::uint32_t error) {
    write_nbd_reply(slot.reply, slot.cookie, error);
    sender_.push(slot);
}

/// Until something can go on: the socket, the target, or the stop signal.
void NbdConnection::wait() {
    const bool busy = queue_->should_spin();
    if (busy && spin()) return;
    short events = 0;
    if (receiving_ == NbdReceiver::Next::need_bytes) events |= POLLIN;
    if (output_ == NbdIo::blocked) events |= POLLOUT;
    const bool starved = output_ == NbdIo::starved || input_ == NbdIo::starved;
    // A negative descriptor is passed over: the target's event counts only for those who wait for it.
    const bool awaits_target = !waiting_.empty() || queue_->in_flight() != 0;
    const int timeout_ms = busy ? 0 : starved ? kStarvedTimeoutMs : awaits_target ? kRoomTimeoutMs : -1;
    std::array<pollfd, 3> fds{{{socket_.get(), events, 0},
                               {awaits_target ? queue_->event_fd() : -1, POLLIN, 0},
                               {shared_.stop.fd(), POLLIN, 0}}};
    const int ready = ::poll(fds.data(), fds.size(), timeout_ms);
    if (ready < 0) return;
    // The kernel has shut its end down: it takes no replies any more and may have sent what is waiting here
    // to another connection, which waits for our end (NbdFence).
    if ((fds[0].revents & (POLLHUP | POLLERR)) != 0) {
        state_ = State::lost;
        return;
    }
    if ((fds[0].revents & POLLIN) != 0) input_ = NbdIo::moved;
    if ((fds[0].revents & POLLOUT) != 0) output_ = NbdIo::moved;
    if ((fds[1].revents & POLLIN) != 0) take_room_event();
    if (!waiting_.empty() && (fds[1].revents != 0 || (ready == 0 && !busy))) submit_waiting();
}

/// Looks for completions for a moment. True if there was one.
bool NbdConnection::spin() {
    for (unsigned spins = 0; spins < kSpins; ++spins) {
        if (complete_finished()) return true;
        cpu_relax();
    }
    if (++rounds_without_progress_ > kRoundsBeforeYield) ::sched_yield();
    return false;
}

void NbdConnection::take_room_event() {
    std::uint64_t count = 0;
    if (::read(queue_->event_fd(), &count, sizeof count) < 0 && errno != EAGAIN)
        log_event(LogLevel::error, "read of the target's event failed, errno",
                  static_cast<std::uint64_t>(errno));
}

void NbdConnection::end() {
    // What the target had no room for is lost with the connection; the kernel gives it up, or sends it again.
    while (!waiting_.empty()) waiting_.pop();
    // Until they complete, the GPU may write to our buffers. And the kernel must not send them over another
    // connection while they are still carried out here: so first this, then the news that the connection is
    // gone.
    while (queue_->in_flight() != 0) spin();
    if (state_ == State::lost && !NbdReceiver::ended_with_goodbye(socket_.get()))
        log_event(LogLevel::error, "the kernel dropped an NBD connection, requests in it", slots_.taken());
    if (state_ == State::broken)
        log_event(LogLevel::error, "an NBD connection is out of step and is closed, requests in it",
                  slots_.taken());
    shared_.fence.leave(number_);
    ::shutdown(socket_.get(), SHUT_RDWR);
}

}  // namespace vramswap
