// SPDX-License-Identifier: MIT
// What the I/O threads of every frontend are made of: a signal to stop, locked memory for data, and counters.
// Owned by the frontend. Control thread, except where a comment says otherwise; making
// things may block and allocate. Errors: no_memory (with the limit to raise), failed.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "base/result.h"
#include "base/unique_fd.h"
#include "front/frontend.h"
#include "front/target.h"

namespace vramswap {

/// Tells threads to end, whether they work, sleep, or wait for room in the target.
class StopSignal {
  public:
    static Result<std::unique_ptr<StopSignal>> make();
    void request();
    /// Any thread.
    [[nodiscard]] bool requested() const { return requested_.load(std::memory_order_acquire); }
    /// Readable for ever after request().
    [[nodiscard]] int fd() const { return event_.get(); }

  private:
    explicit StopSignal(UniqueFd event) : event_(std::move(event)) {}
    const UniqueFd event_;
    std::atomic<bool> requested_{false};
};

/// Anonymous page-aligned memory: present, locked, not shared with children, and registered with a target.
class IoMemory {
  public:
    /// Errors: no_memory (with the limit to raise), and those of Target::register_memory.
    static Result<std::unique_ptr<IoMemory>> make(Target& target, std::size_t bytes);
    ~IoMemory();
    IoMemory(const IoMemory&) = delete;
    IoMemory& operator=(const IoMemory&) = delete;
    [[nodiscard]] std::span<std::byte> all() const { return memory_; }

  private:
    IoMemory(Target& target, std::span<std::byte> memory) : target_(target), memory_(memory) {}
    Target& target_;
    const std::span<std::byte> memory_;
    bool registered_ = false;
};

/// What one I/O thread has served. Written by that thread, read by others: alone in its cache line.
class alignas(64) IoCounters {
  public:
    /// The thread itself: one request that ended with `status`. `bytes` count if it succeeded.
    void count(BlockRequest::Op op, IoStatus status, std::uint64_t bytes);
    /// Any thread.
    void add_to(FrontendCounters& sum) const;

  private:
    std::atomic<std::uint64_t> reads_{0}, writes_{0}, discards_{0}, errors_{0}, bytes_read_{0},
        bytes_written_{0};
};

}  // namespace vramswap
