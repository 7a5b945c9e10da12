// SPDX-License-Identifier: MIT
// A spill for tests of the store: a file in memory whose reads and writes end when they are looked for, in
// the thread that looks, and fail on demand. One thread at a time for each queue; faults may be changed by
// any.
#pragma once

#include <sys/eventfd.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <memory>
#include <vector>

#include "store/spill.h"

namespace vramswap::test {

struct DiskFaults {
    std::atomic<bool> hang{false};                ///< nothing ends
    std::atomic<std::uint32_t> fail_reads{0};     ///< the next n reads fail
    std::atomic<std::uint32_t> fail_writes{0};    ///< the next n writes fail
    std::atomic<std::uint32_t> corrupt_reads{0};  ///< the next n reads have a bit flipped
};

class SteppedIo final : public RawIo {
  public:
    SteppedIo(std::span<const int> fds, std::shared_ptr<DiskFaults> faults, int event_fd)
        : fds_(fds.begin(), fds.end()), faults_(std::move(faults)), told_fd_(event_fd) {
        own_event_.reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
        if (told_fd_ == kOwnEvent) told_fd_ = own_event_.get();
        waiting_.reserve(SpillQueue::kDepth);
    }

    void start(const Operation& operation) override {
        waiting_.push_back(operation);
        const std::uint64_t one = 1;  // it may have ended
        static_cast<void>(!::write(told_fd_, &one, sizeof one));
    }
    std::size_t reap(std::span<Done> done) override {
        if (faults_->hang) return 0;
        if (told_fd_ == own_event_.get()) empty_event(told_fd_);
        std::size_t n = 0;
        for (; n < done.size() && n < waiting_.size(); ++n)
            done[n] = {waiting_[n].tag, carry_out(waiting_[n])};
        waiting_.erase(waiting_.begin(), waiting_.begin() + static_cast<std::ptrdiff_t>(n));
        return n;
    }
    [[nodiscard]] int event_fd() const override { return told_fd_; }

  private:
    static bool take_one(std::atomic<std::uint32_t>& counter) {
        std::uint32_t left = counter.load();
        while (left != 0)
            if (counter.compare_exchange_weak(left, left - 1)) return true;
        return false;
    }
    std::int32_t carry_out(const Operation& o) {
        const auto at = static_cast<off_t>(o.offset);
        if (o.op == Op::write) {
            if (take_one(faults_->fail_writes)) return -EIO;
            return static_cast<std::int32_t>(::pwrite(fds_[o.file], o.memory, o.bytes, at));
        }
        if (take_one(faults_->fail_reads)) {
            std::memset(o.memory, 0xA5, o.bytes);
            return -EIO;
        }
        const auto n = static_cast<std::int32_t>(::pread(fds_[o.file], o.memory, o.bytes, at));
        if (take_one(faults_->corrupt_reads)) o.memory[o.bytes / 2] ^= std::byte{1};
        return n;
    }

    const std::vector<int> fds_;
    const std::shared_ptr<DiskFaults> faults_;
    UniqueFd own_event_;
    int told_fd_;
    std::vector<Operation> waiting_;
};

/// A spill on it, of so many slots, and its faults.
struct SteppedSpill {
    explicit SteppedSpill(std::uint32_t slots) {
        config.path = ::access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";
        config.size_max = {std::uint64_t{slots} * kChunkBytes};
        config.make_io = [faults = faults](std::span<const int> fds, std::uint32_t, int event_fd) {
            return Result<std::unique_ptr<RawIo>>(std::make_unique<SteppedIo>(fds, faults, event_fd));
        };
        auto opened = Spill::open(config);
        if (!opened) throw std::runtime_error(opened.error().text());
        spill = std::move(*opened);
    }
    std::shared_ptr<DiskFaults> faults = std::make_shared<DiskFaults>();
    SpillConfig config;
    std::unique_ptr<Spill> spill;
};

}  // namespace vramswap::test
