// SPDX-License-Identifier: MIT
#include <pthread.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

#include "base/mutex.h"
#include "base/semaphore.h"
#include "base/unique_fd.h"
#include "store/raw_io.h"

namespace vramswap {
namespace {

/// Operations at the disk at once. With chunks of 2 MiB four keep it busy while one is being prepared.
constexpr std::size_t kThreads = 4;

class ThreadIo final : public RawIo {
  public:
    ThreadIo(std::span<const int> fds, std::uint32_t depth) : fds_(fds.begin(), fds.end()), waiting_(depth) {
        done_.reserve(depth);
    }

    ~ThreadIo() override {
        {
            const MutexLock lock(mutex_);
            stopping_ = true;
        }
        for (std::size_t n = 0; n < threads_.size(); ++n) work_.release();
        for (std::thread& thread : threads_) thread.join();
    }

    Result<void> open(int event_fd) {
        event_fd_ = event_fd;
        if (event_fd == kOwnEvent) {
            own_event_.reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
            if (!own_event_) return sys_error("eventfd failed");
            event_fd_ = own_event_.get();
        }
        sigset_t all;
        sigset_t before;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);  // signals are the control thread's
        const auto started = start_threads();
        pthread_sigmask(SIG_SETMASK, &before, nullptr);
        return started;
    }

    void start(const Operation& operation) override {
        {
            const MutexLock lock(mutex_);
            waiting_[(first_waiting_ + waiting_count_++) % waiting_.size()] = operation;
        }
        work_.release();
    }

    std::size_t reap(std::span<Done> done) override {
        // Emptied first: what ends after that makes it readable again.
        if (own_event_) empty_event(event_fd_);
        const MutexLock lock(mutex_);
        std::size_t n = 0;
        for (; n < done.size() && !done_.empty(); ++n) {
            done[n] = done_.back();
            done_.pop_back();
        }
        return n;
    }

    [[nodiscard]] int event_fd() const override { return event_fd_; }

  private:
    Result<void> start_threads() {
        try {
            while (threads_.size() < kThreads) {
                threads_.emplace_back([this] { run(); });
                pthread_setname_np(threads_.back().native_handle(), "vs-spill");
            }
        } catch (const std::system_error& error) {
            return Error{Errc::failed, error.code().value(), "cannot start the spill's threads"};
        }
        return {};
    }

    void run() {
        Operation operation;
        while (next(operation)) {
            const auto offset = static_cast<off_t>(operation.offset);
            const int fd = fds_[operation.file];
            const ssize_t moved = operation.op == Op::read
                                      ? ::pread(fd, operation.memory, operation.bytes, offset)
                                      : ::pwrite(fd, operation.memory, operation.bytes, offset);
            finish({operation.tag, static_cast<std::int32_t>(moved < 0 ? -errno : moved)});
        }
    }

    bool next(Operation& operation) {
        work_.acquire();
        const MutexLock lock(mutex_);
        if (stopping_) return false;
        operation = waiting_[first_waiting_];
        first_waiting_ = (first_waiting_ + 1) % waiting_.size();
        --waiting_count_;
        return true;
    }

    void finish(const Done& done) {
        {
            const MutexLock lock(mutex_);
            done_.push_back(done);
        }
        const std::uint64_t one = 1;
        static_cast<void>(!::write(event_fd_, &one, sizeof one));  // far from its limit
    }

    const std::vector<int> fds_;
    UniqueFd own_event_;
    int event_fd_ = -1;
    Semaphore work_;  ///< one for each operation that waits; and one for each thread that is to stop
    Mutex mutex_;
    bool stopping_ VS_GUARDED_BY(mutex_) = false;
    std::vector<Operation> waiting_ VS_GUARDED_BY(mutex_);  ///< a ring, sized once
    std::size_t first_waiting_ VS_GUARDED_BY(mutex_) = 0;
    std::size_t waiting_count_ VS_GUARDED_BY(mutex_) = 0;
    std::vector<Done> done_ VS_GUARDED_BY(mutex_);  ///< never more than the depth, reserved once
    std::vector<std::thread> threads_;
};

}  // namespace

Result<std::unique_ptr<RawIo>> make_thread_io(std::span<const int> fds, std::uint32_t depth, int event_fd) {
    auto io = std::make_unique<ThreadIo>(fds, depth);
    if (auto opened = io->open(event_fd); !opened) return std::move(opened).error();
    return std::unique_ptr<RawIo>(std::move(io));
}

}  // namespace vramswap
