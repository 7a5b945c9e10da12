// SPDX-License-Identifier: MIT
#include "front/ublk/ublk_queue.h"

#include <fmt/format.h>
#include <poll.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/clock.h"
#include "base/log.h"
#include "base/units.h"
#include "front/ublk/ublk_request.h"

namespace vramswap {
namespace {

/// user_data of the two watches; that of a command is its tag.
constexpr std::uint64_t kWakeEvent = std::uint64_t{1} << 32;
constexpr std::uint64_t kTargetEvent = kWakeEvent + 1;

/// In the ring's table of files, where commands find it without counting references.
constexpr int kDeviceFile = 0;

/// Fruitless polls before the CPU is offered to others. A GPU copy takes 10 to 100 µs; a read from the spill
/// may take longer.
constexpr unsigned kPollsBeforeYield = 4096;

/// A second look at a full target even if its event never comes.
constexpr __kernel_timespec kRoomTimeout{1, 0};

std::size_t descriptor_bytes(std::uint16_t depth) {
    return round_up(depth * sizeof(UblkIoDescriptor), kPageBytes);
}

}  // namespace

UblkQueue::UblkQueue(const Shared& shared, std::uint16_t index)
    : shared_(shared), index_(index), requests_(shared.depth), results_(shared.depth) {
    parked_.reserve(shared.depth);
}

Result<std::unique_ptr<UblkQueue>> UblkQueue::make(const Shared& shared, std::uint16_t index) {
    std::unique_ptr<UblkQueue> self(new UblkQueue(shared, index));
    if (auto allocated = self->allocate(); !allocated) return std::move(allocated).error();
    if (auto mapped = self->map_descriptors(); !mapped) return std::move(mapped).error();
    return self;
}

Result<void> UblkQueue::allocate() {
    auto buffers = IoMemory::make(shared_.target, shared_.depth * kUblkBufferStride);
    if (!buffers) return std::move(buffers).error();
    buffers_ = std::move(*buffers);
    auto queue = shared_.target.make_queue(shared_.depth);
    if (!queue) return std::move(queue).error();
    queue_ = std::move(*queue);
    wake_.reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (!wake_) return sys_error("eventfd failed");
    return {};
}

Result<void> UblkQueue::map_descriptors() {
    // Read-only, and of exactly this length, or the driver refuses (ublk_ch_mmap).
    void* at = ::mmap(nullptr, descriptor_bytes(shared_.depth), PROT_READ, MAP_SHARED | MAP_POPULATE,
                      shared_.device_fd, static_cast<off_t>(index_ * kUblkDescriptorStride));
    if (at == MAP_FAILED) return sys_error(fmt::format("cannot map the requests of ublk queue {}", index_));
    descriptors_ = static_cast<const UblkIoDescriptor*>(at);
    return {};
}

UblkQueue::~UblkQueue() {
    if (descriptors_ != nullptr)
        ::munmap(const_cast<UblkIoDescriptor*>(descriptors_), descriptor_bytes(shared_.depth));
}

Result<void> UblkQueue::start() {
    if (auto started = thread_.start(fmt::format("vs-ublk-{}", index_), &UblkQueue::main, this); !started)
        return started;
    ready_.acquire();
    if (!setup_error_) return {};
    join();
    return *setup_error_;
}

void UblkQueue::tell(Phase phase) {
    phase_.store(phase, std::memory_order_release);
    // Cannot fail: the counter is far from its limit.
    const std::uint64_t one = 1;
    if (::write(wake_.get(), &one, sizeof one) != sizeof one) log_warning("eventfd write failed");
}

void UblkQueue::join() {
    thread_.join();
}

// ---- the thread, until it serves ----

void UblkQueue::main(void* self) {
    auto& queue = *static_cast<UblkQueue*>(self);
    auto ready = queue.set_up();
    const bool serves = ready.has_value();
    if (!serves) queue.setup_error_ = std::move(ready).error();
    queue.ready_.release();
    if (serves) queue.serve();
    if (queue.ring_is_open_) ::io_uring_queue_exit(&queue.ring_);
}

Result<void> UblkQueue::set_up() {
    queue_->enter_thread();
    if (auto opened = open_ring(); !opened) return opened;
    watch(wake_.get(), kWakeEvent);
    watch(queue_->event_fd(), kTargetEvent);
    return fetch_all();
}

Result<void> UblkQueue::open_ring() {
    // A command of every tag and both watches fit in at once, and their completions twice.
    const unsigned entries = shared_.depth * 2u;
    // Work of the ring is done when this thread enters the kernel, and not by interrupting it: DEFER_TASKRUN
    // from Linux 6.1. TASKRUN_FLAG shows without a system call that there is some. Other kernels get what
    // they take.
    constexpr unsigned kCommon = IORING_SETUP_CQSIZE | IORING_SETUP_SUBMIT_ALL;
    constexpr std::array<unsigned, 3> kChoices{
        kCommon | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_COOP_TASKRUN | IORING_SETUP_DEFER_TASKRUN |
            IORING_SETUP_TASKRUN_FLAG,
        kCommon | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
        kCommon};
    int made = -EINVAL;
    for (const unsigned flags : kChoices) {
        io_uring_params parameters{};
        parameters.flags = flags;
        parameters.cq_entries = entries * 2;
        made = ::io_uring_queue_init_params(entries, &ring_, &parameters);
        if (made != -EINVAL) break;
    }
    if (made < 0) return Error{Errc::failed, -made, fmt::format("no io_uring for ublk queue {}", index_)};
    ring_is_open_ = true;
    if (const int taken = ::io_uring_register_files(&ring_, &shared_.device_fd, 1); taken < 0)
        return Error{Errc::failed, -taken, "io_uring does not take the ublk device"};
    // It spares each system call a look-up of the ring. Without it all works.
    static_cast<void>(::io_uring_register_ring_fd(&ring_));
    return {};
}

Result<void> UblkQueue::fetch_all() {
    for (std::uint16_t tag = 0; tag < shared_.depth; ++tag) send(UblkCommand::fetch, tag, 0);
    if (const int submitted = ::io_uring_submit(&ring_); submitted < 0)
        return Error{Errc::failed, -submitted, fmt::format("cannot submit to ublk queue {}", index_)};
    // A refusal comes at once, and stays in the ring: we fail anyway.
    unsigned head = 0;
    io_uring_cqe* event = nullptr;
    io_uring_for_each_cqe(&ring_, head, event) {
        if (event->user_data < shared_.depth && event->res < 0)
            return Error{Errc::failed, -event->res,
                         fmt::format("ublk refuses to send requests of queue {}", index_)};
    }
    live_tags_ = shared_.depth;
    return {};
}

// ---- the thread, serving: the armed rule holds from here on ----

void UblkQueue::serve() {
    unsigned fruitless = 0;
    while (!is_done()) {
        const bool busy = queue_->should_spin();
        enter_kernel();
        unsigned events = take_events();  // first: it empties the target's event
        events += poll_target();
        if (try_parked_) try_parked_again();
        if (!busy || events > 0) {
            fruitless = 0;
            continue;
        }
        cpu_relax();
        if (++fruitless > kPollsBeforeYield) ::sched_yield();
    }
}

bool UblkQueue::is_done() const {
    if (queue_->in_flight() > 0) return false;
    return live_tags_ == 0 || phase_.load(std::memory_order_acquire) == Phase::leaving;
}

void UblkQueue::enter_kernel() {
    // What fails to be submitted stays in the ring for the next time.
    if (!queue_->should_spin())
        sleep();
    else if (::io_uring_sq_ready(&ring_) > 0)
        static_cast<void>(::io_uring_submit(&ring_));
}

/// Until there is an event; what is to be submitted goes with the same system call.
void UblkQueue::sleep() {
    if (parked_.empty() && queue_->in_flight() == 0) {
        static_cast<void>(::io_uring_submit_and_wait(&ring_, 1));
        return;
    }
    __kernel_timespec timeout = kRoomTimeout;
    io_uring_cqe* event = nullptr;
    if (::io_uring_submit_and_wait_timeout(&ring_, &event, 1, &timeout, nullptr) == -ETIME)
        try_parked_ = true;
}

unsigned UblkQueue::take_events() {
    std::array<io_uring_cqe*, kUblkDepth> events{};
    unsigned taken = 0;
    // Enters the kernel too, if that has work to do for the ring.
    while (const unsigned n = ::io_uring_peek_batch_cqe(&ring_, events.data(), events.size())) {
        if (n > 1)
            for (unsigned i = 0; i < n; ++i) announce(*events[i]);
        for (unsigned i = 0; i < n; ++i) on_event(*events[i]);
        ::io_uring_cq_advance(&ring_, n);
        taken += n;
        if (n < events.size()) break;
    }
    return taken;
}

void UblkQueue::announce(const io_uring_cqe& event) {
    if (event.user_data >= shared_.depth || event.res != 0) return;
    BlockRequest request;
    const auto tag = static_cast<std::uint16_t>(event.user_data);
    if (!translate(descriptors_[tag], buffer(tag), request)) queue_->announce(request);
}

void UblkQueue::on_event(const io_uring_cqe& event) {
    if (event.user_data < shared_.depth) {
        on_command(static_cast<std::uint16_t>(event.user_data), event.res);
        return;
    }
    const int fd = event.user_data == kWakeEvent ? wake_.get() : queue_->event_fd();
    drain(fd);
    watch(fd, event.user_data);
    try_parked_ = true;
}

void UblkQueue::on_command(std::uint16_t tag, int result) {
    switch (result) {
        case 0:  // UBLK_IO_RES_OK: a request
            begin(tag);
            return;
        case -ENODEV:  // UBLK_IO_RES_ABORT: the device was stopped
            --live_tags_;
            return;
        case -ENOMEM:  // io_uring had no memory for the command, so that the driver has not seen it
        case -EAGAIN:
            send(UblkCommand::commit_and_fetch, tag, results_[tag]);
            return;
        default:
            log_event(LogLevel::error, "the ublk driver refused a command, errno",
                      static_cast<std::uint64_t>(-result));
            --live_tags_;
    }
}

unsigned UblkQueue::poll_target() {
    if (queue_->in_flight() == 0) return 0;
    std::array<BlockRequest*, kUblkDepth> done{};
    const std::size_t n = queue_->poll(done);
    for (std::size_t i = 0; i < n; ++i)
        finish(static_cast<std::uint16_t>(done[i] - requests_.data()), done[i]->status);
    if (n > 0 && !parked_.empty()) try_parked_ = true;
    return static_cast<unsigned>(n);
}

void UblkQueue::begin(std::uint16_t tag) {
    const UblkIoDescriptor descriptor = descriptors_[tag];
    const auto result = translate(descriptor, buffer(tag), requests_[tag]);
    if (result) {
        if (*result < 0)
            log_event(LogLevel::error, "the ublk driver sent a request that is not served, op and flags",
                      descriptor.op_flags);
        send(UblkCommand::commit_and_fetch, tag, *result);
        return;
    }
    const IoStatus status = queue_->submit(requests_[tag]);
    if (status == IoStatus::retry && phase_.load(std::memory_order_relaxed) == Phase::serving)
        parked_.push_back(tag);
    else
        settle(tag, status);
}

void UblkQueue::settle(std::uint16_t tag, IoStatus status) {
    if (status == IoStatus::retry)
        finish(tag, IoStatus::io_error);  // the device is being stopped under its users
    else if (status != IoStatus::pending)
        finish(tag, status);
}

void UblkQueue::try_parked_again() {
    try_parked_ = false;
    const bool may_wait = phase_.load(std::memory_order_acquire) == Phase::serving;
    std::size_t kept = 0;
    for (const std::uint16_t tag : parked_) {
        const IoStatus status = queue_->submit(requests_[tag]);
        if (status == IoStatus::retry && may_wait)
            parked_[kept++] = tag;
        else
            settle(tag, status);
    }
    parked_.resize(kept);
}

void UblkQueue::finish(std::uint16_t tag, IoStatus status) {
    const BlockRequest& request = requests_[tag];
    counters_.count(request.op, status, request.bytes);
    send(UblkCommand::commit_and_fetch, tag, ublk_result(request, status));
}

// ---- entries of the ring ----

io_uring_sqe& UblkQueue::next_entry() {
    // Never null: see open_ring.
    return *::io_uring_get_sqe(&ring_);
}

void UblkQueue::send(UblkCommand command, std::uint16_t tag, std::int32_t result) {
    constexpr std::size_t kCommandOffset =
        48;  // of cmd[] in struct io_uring_sqe, which has room for 16 bytes
    static_assert(offsetof(io_uring_sqe, cmd) == kCommandOffset &&
                  sizeof(io_uring_sqe) == kCommandOffset + sizeof(UblkIoCommand));
    results_[tag] = result;
    const UblkIoCommand body{.queue = index_,
                             .tag = tag,
                             .result = result,
                             .address = reinterpret_cast<std::uintptr_t>(buffer(tag).data())};
    io_uring_sqe& entry = next_entry();
    ::io_uring_prep_rw(IORING_OP_URING_CMD, &entry, kDeviceFile, nullptr, 0, 0);
    entry.flags = IOSQE_FIXED_FILE;
    entry.cmd_op = ublk_opcode(shared_.dialect, command);
    entry.user_data = tag;
    std::memcpy(reinterpret_cast<std::byte*>(&entry) + kCommandOffset, &body, sizeof body);
}

void UblkQueue::watch(int fd, std::uint64_t event) {
    io_uring_sqe& entry = next_entry();
    ::io_uring_prep_poll_add(&entry, fd, POLLIN);
    entry.user_data = event;
}

void UblkQueue::drain(int fd) {
    std::uint64_t count = 0;
    if (::read(fd, &count, sizeof count) < 0 && errno != EAGAIN)
        log_event(LogLevel::error, "read of an event failed, errno", static_cast<std::uint64_t>(errno));
}

std::span<std::byte> UblkQueue::buffer(std::uint16_t tag) const {
    return buffers_->all().subspan(tag * kUblkBufferStride, kUblkTransferBytes);
}

}  // namespace vramswap
