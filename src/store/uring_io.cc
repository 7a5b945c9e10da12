// SPDX-License-Identifier: MIT
#include <fcntl.h>
#include <liburing.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <vector>

#include "base/unique_fd.h"
#include "store/raw_io.h"

namespace vramswap {
namespace {

class UringIo final : public RawIo {
  public:
    ~UringIo() override {
        if (!ring_is_open_) return;
        // The kernel takes a ring apart some time later, and a device would be in use until then.
        static_cast<void>(::io_uring_unregister_files(&ring_));
        ::io_uring_queue_exit(&ring_);
    }

    Result<void> open(std::span<const int> fds, std::uint32_t depth, int event_fd, int busy_fd) {
        event_fd_ = event_fd;
        if (event_fd == kOwnEvent) {
            own_event_.reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
            if (!own_event_) return sys_error("eventfd failed");
            event_fd_ = own_event_.get();
        }
        // No flags: an end interrupts the thread, if it does not sleep, and makes the event readable. At a
        // few thousand a second that costs nothing, and it works on every kernel.
        if (const int made = ::io_uring_queue_init(depth, &ring_, 0); made < 0) return no_ring(-made);
        ring_is_open_ = true;
        // In the ring's table operations find them without counting references. It closes them when it is
        // taken apart, which is when nothing is in flight any more.
        std::vector<int> files(fds.begin(), fds.end());
        if (busy_fd != kNotTold) files.push_back(busy_fd);
        const auto count = static_cast<unsigned>(files.size());
        if (const int taken = ::io_uring_register_files(&ring_, files.data(), count); taken < 0)
            return no_ring(-taken);
        if (const int taken = ::io_uring_register_eventfd(&ring_, event_fd_); taken < 0)
            return no_ring(-taken);
        return {};
    }

    void start(const Operation& operation) override {
        // Never null: the ring has as many entries as operations may be in flight.
        io_uring_sqe& entry = *::io_uring_get_sqe(&ring_);
        ::io_uring_prep_rw(operation.op == Op::read ? IORING_OP_READ : IORING_OP_WRITE, &entry,
                           static_cast<int>(operation.file), operation.memory, operation.bytes,
                           operation.offset);
        entry.flags = IOSQE_FIXED_FILE;
        entry.user_data = operation.tag;
        submit();
    }

    std::size_t reap(std::span<Done> done) override {
        submit();
        // Emptied first: what ends after that makes it readable again.
        if (own_event_) empty_event(event_fd_);
        std::size_t n = 0;
        io_uring_cqe* event = nullptr;
        while (n < done.size() && ::io_uring_peek_cqe(&ring_, &event) == 0) {
            done[n++] = {static_cast<std::uint32_t>(event->user_data), event->res};
            ::io_uring_cqe_seen(&ring_, event);
        }
        return n;
    }

    [[nodiscard]] int event_fd() const override { return event_fd_; }

  private:
    static Error no_ring(int sys) {
        return Error{Errc::unavailable, sys, "io_uring cannot be used",
                     sys == EPERM ? "Allow it with sysctl kernel.io_uring_disabled=0, or in the container's "
                                    "seccomp profile"
                                  : ""};
    }

    /// What the kernel does not take now (no memory) stays in the ring for the next time.
    void submit() {
        if (::io_uring_sq_ready(&ring_) > 0) static_cast<void>(::io_uring_submit(&ring_));
    }

    io_uring ring_{};
    bool ring_is_open_ = false;
    UniqueFd own_event_;
    int event_fd_ = -1;
};

}  // namespace

void empty_event(int fd) {
    std::uint64_t ends = 0;
    static_cast<void>(!::read(fd, &ends, sizeof ends));
}

Result<std::unique_ptr<RawIo>> make_uring_io(std::span<const int> fds, std::uint32_t depth, int event_fd,
                                             int busy_fd) {
    auto io = std::make_unique<UringIo>();
    if (auto opened = io->open(fds, depth, event_fd, busy_fd); !opened) return std::move(opened).error();
    return std::unique_ptr<RawIo>(std::move(io));
}

}  // namespace vramswap
