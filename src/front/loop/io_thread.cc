// SPDX-License-Identifier: MIT
#define FUSE_USE_VERSION 312
#include "front/loop/io_thread.h"

#include <fmt/format.h>
#include <fuse3/fuse_lowlevel.h>
#include <linux/fuse.h>
#include <poll.h>
#include <sched.h>
#include <sys/epoll.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "base/clock.h"
#include "base/log.h"
#include "base/units.h"

namespace vramswap {
namespace {

/// A WRITE request begins with these two structures (linux/fuse.h), then comes its data.
constexpr std::size_t kWriteHeaderBytes = sizeof(fuse_in_header) + sizeof(fuse_write_in);

// One mapping for each thread: requests are received so that the data of a WRITE begins at a page, as copy
// engines and memcpy like it; a page of slack for requests that are longer before their data; then the data
// of READs.
constexpr std::size_t kReceiveOffset = kPageBytes - kWriteHeaderBytes;
constexpr std::size_t kReadOffset = kPageBytes + kFuseTransferBytes + kPageBytes;
constexpr std::size_t kMemoryBytes = kReadOffset + kFuseTransferBytes;
static_assert(kReceiveOffset % alignof(fuse_in_header) == 0);
static_assert(kReadOffset - kReceiveOffset >= kWriteHeaderBytes + kFuseTransferBytes);
static_assert(kReadOffset - kReceiveOffset >= FUSE_MIN_READ_BUFFER);

/// Polls before the CPU is offered to others. A GPU copy takes 10 to 100 µs; a read from the spill may take
/// longer.
constexpr unsigned kSpinsBeforeYield = 4096;

/// A second look at a full target even if its event never comes.
constexpr int kRoomTimeoutMs = 1000;

/// More than libfuse ever holds at a time.
constexpr std::size_t kHeapBytes = 64u << 10;

thread_local IoThread* t_current = nullptr;

/// Makes malloc set up this thread's arena and touch its pages now, and not at the first request for
/// libfuse's small objects.
void warm_up_heap() {
    void* memory = std::malloc(kHeapBytes);
    if (memory == nullptr) return;
    ::explicit_bzero(memory, kHeapBytes);  // unlike memset, cannot be optimised away with the allocation
    std::free(memory);
}

}  // namespace

Result<std::unique_ptr<IoThread>> IoThread::make(const Shared& shared) {
    std::unique_ptr<IoThread> self(new IoThread(shared));
    auto memory = IoMemory::make(shared.target, kMemoryBytes);
    if (!memory) return std::move(memory).error();
    self->memory_ = std::move(*memory);
    auto queue = shared.target.make_queue(1);
    if (!queue) return std::move(queue).error();
    self->queue_ = std::move(*queue);
    self->epoll_.reset(::epoll_create1(EPOLL_CLOEXEC));
    if (!self->epoll_) return sys_error("epoll_create1 failed");
    // EPOLLEXCLUSIVE: a request wakes one sleeping thread, not all of them. The stop signal wakes all.
    if (auto watched = self->watch(shared.fuse_fd, EPOLLIN | EPOLLEXCLUSIVE); !watched)
        return std::move(watched).error();
    if (auto watched = self->watch(shared.stop.fd(), EPOLLIN); !watched) return std::move(watched).error();
    return self;
}

Result<void> IoThread::watch(int fd, std::uint32_t events) {
    epoll_event event{};
    event.events = events;
    if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0) return sys_error("epoll_ctl failed");
    return {};
}

Result<void> IoThread::start(std::uint32_t number) {
    return thread_.start(fmt::format("vs-loop-{}", number), &IoThread::main, this);
}

void IoThread::join() {
    thread_.join();
}

IoThread& IoThread::current() {
    return *t_current;
}

bool IoThread::on_io_thread() {
    return t_current != nullptr;
}

void IoThread::main(void* self) {
    t_current = static_cast<IoThread*>(self);
    warm_up_heap();
    t_current->queue_->enter_thread();
    t_current->serve();
}

void IoThread::serve() {
    fuse_buf request{};
    request.mem = receive_buffer().data();
    while (!shared_.stop.requested()) {
        switch (receive(request.size)) {
            case Received::request:
                fuse_session_process_buf(shared_.session, &request);
                break;
            case Received::nothing:
                sleep_until_request();
                break;
            case Received::again:
                break;
            case Received::disconnected:
                return;
        }
    }
}

/// read(2) here and not fuse_session_receive_buf, which prints to standard error, knows no buffer size but
/// its own, and would take the end of the connection for the end of the session.
IoThread::Received IoThread::receive(std::size_t& size) {
    const auto buffer = receive_buffer();
    const ssize_t n = ::read(shared_.fuse_fd, buffer.data(), buffer.size());
    if (n >= 0) {
        size = static_cast<std::size_t>(n);
        return Received::request;
    }
    switch (errno) {
        case EAGAIN:
            return Received::nothing;
        case EINTR:
        case ENOENT:
            return Received::again;  // ENOENT: the request was taken back before we had it (fuse_dev_read)
        case ENODEV:
            return Received::disconnected;  // the superblock is gone: the normal end
        case ECONNABORTED:                  // somebody wrote to /sys/fs/fuse/connections/N/abort
            log_event(LogLevel::error, "the FUSE connection was aborted by the administrator", 0);
            return Received::disconnected;
        default:
            log_event(LogLevel::error, "read of the FUSE device failed, errno",
                      static_cast<std::uint64_t>(errno));
            return Received::again;
    }
}

void IoThread::sleep_until_request() {
    epoll_event event{};
    // What woke us does not matter: serve looks at both. EINTR neither.
    ::epoll_wait(epoll_.get(), &event, 1, -1);
}

std::span<std::byte> IoThread::receive_buffer() const {
    return memory_->all().subspan(kReceiveOffset, kReadOffset - kReceiveOffset);
}

std::span<std::byte> IoThread::read_buffer() const {
    return memory_->all().subspan(kReadOffset);
}

IoStatus IoThread::read(std::uint64_t offset, std::size_t bytes) {
    BlockRequest request{
        .op = BlockRequest::Op::read, .offset = offset, .bytes = bytes, .data = read_buffer().data()};
    return carry_out(request);
}

IoStatus IoThread::write(std::uint64_t offset, std::span<std::byte> data) {
    BlockRequest request{
        .op = BlockRequest::Op::write, .offset = offset, .bytes = data.size(), .data = data.data()};
    return carry_out(request);
}

IoStatus IoThread::discard(std::uint64_t offset, std::uint64_t bytes) {
    BlockRequest request{.op = BlockRequest::Op::discard, .offset = offset, .bytes = bytes};
    return carry_out(request);
}

IoStatus IoThread::carry_out(BlockRequest& request) {
    IoStatus status = queue_->submit(request);
    while (status == IoStatus::retry) {
        wait_for_target();
        if (shared_.stop.requested()) return IoStatus::retry;
        status = queue_->submit(request);
    }
    if (status == IoStatus::pending) {
        finish(request);
        status = request.status;
    }
    counters_.count(request.op, status, request.bytes);
    return status;
}

/// Until then the GPU may write to our buffer, so there is no way out but completion.
void IoThread::finish(BlockRequest& request) {
    std::array<BlockRequest*, 1> done{};
    for (unsigned spins = 0; request.status == IoStatus::pending; ++spins) {
        if (queue_->poll(done) != 0) continue;
        if (!queue_->should_spin()) {
            wait_for_target();
            continue;
        }
        cpu_relax();
        if (spins > kSpinsBeforeYield) ::sched_yield();
    }
}

void IoThread::wait_for_target() {
    std::array<pollfd, 2> fds{{{queue_->event_fd(), POLLIN, 0}, {shared_.stop.fd(), POLLIN, 0}}};
    if (::poll(fds.data(), fds.size(), kRoomTimeoutMs) <= 0) return;
    std::uint64_t count = 0;
    if ((fds[0].revents & POLLIN) != 0 && ::read(fds[0].fd, &count, sizeof count) < 0 && errno != EAGAIN)
        log_event(LogLevel::error, "read of the target's event failed, errno",
                  static_cast<std::uint64_t>(errno));
}

}  // namespace vramswap
