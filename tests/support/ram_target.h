// SPDX-License-Identifier: MIT
// A Target in plain memory, for tests of frontends: correct and slow. It checks how it is used, and on demand
// it answers retry, completes late, or fails for chosen pages. Owned by the test; must outlive the frontend.
// Any thread; everything is under one mutex. Unlike a real target it may block and allocate.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "base/unique_fd.h"
#include "front/target.h"

namespace vramswap::test {

class RamQueue;

class RamTarget final : public Target {
  public:
    /// All zeros.
    explicit RamTarget(Bytes size);
    /// What is stored is what `memory`, a memfd of at least that size, contains: other processes see it.
    RamTarget(Bytes size, const UniqueFd& memory);
    ~RamTarget() override;
    RamTarget(const RamTarget&) = delete;
    RamTarget& operator=(const RamTarget&) = delete;

    [[nodiscard]] Bytes size() const override { return size_; }
    Result<std::unique_ptr<TargetQueue>> make_queue(std::uint32_t depth) override;
    Result<void> register_memory(std::span<std::byte> memory) override;
    Result<void> unregister_memory(std::span<std::byte> memory) override;

    /// Requests of this kind that touch these pages end with `status` and do nothing.
    void fail(BlockRequest::Op op, PageIndex first, std::uint64_t pages, IoStatus status);
    void heal();

    /// Requests complete at their n-th poll; 0, the default: at submit.
    void complete_after_polls(unsigned polls);

    /// From hold to release, requests are accepted and do not complete.
    void hold();
    void release();
    /// Waits until n requests are held. False if that takes longer than the watchdog allows.
    [[nodiscard]] bool wait_until_held(std::size_t n);

    /// From take_room to give_room every submit is answered with retry.
    void take_room();
    void give_room();
    /// Waits until n submits were answered with retry since take_room. False as above.
    [[nodiscard]] bool wait_until_refused(std::size_t n);
    /// The next n submits are answered with retry, and may be tried again at once.
    void refuse_next(unsigned n);

    /// make_queue and register_memory fail from the n-th call on (counted together, from 1); 0: never.
    void fail_setup_at(unsigned call);

    /// What is stored.
    [[nodiscard]] std::vector<std::byte> content(std::uint64_t offset, std::size_t bytes) const;
    /// What a frontend did wrong; empty if nothing.
    [[nodiscard]] std::string misuse() const;
    /// Queues and registrations that exist now.
    [[nodiscard]] std::size_t queues() const;
    [[nodiscard]] std::size_t registrations() const;
    /// Largest read or write seen.
    [[nodiscard]] std::uint64_t bytes_max() const;

  private:
    friend class RamQueue;
    struct Fault {
        BlockRequest::Op op;
        std::uint64_t begin, end;
        IoStatus status;
    };
    using Lock = std::unique_lock<std::mutex>;

    IoStatus submit(RamQueue& queue, BlockRequest& request);
    std::size_t poll(RamQueue& queue, std::span<BlockRequest*> done);
    void forget(RamQueue& queue);
    IoStatus execute(const BlockRequest& request);  // holds mutex_
    void check(const BlockRequest& request);        // holds mutex_
    bool setup_fails();                             // holds mutex_

    const Bytes size_;
    std::byte* const memory_;
    mutable std::mutex mutex_;
    std::condition_variable changed_;
    // Guarded by mutex_.
    std::vector<Fault> faults_;
    std::map<std::byte*, std::size_t> registered_;
    std::set<RamQueue*> queues_;
    std::string misuse_;
    unsigned polls_ = 0;
    unsigned refusals_left_ = 0;
    unsigned setup_calls_ = 0, setup_fails_at_ = 0;
    bool held_ = false, full_ = false;
    std::size_t held_count_ = 0, refused_count_ = 0;
    std::uint64_t bytes_max_ = 0;
};

}  // namespace vramswap::test
