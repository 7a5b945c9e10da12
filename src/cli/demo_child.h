// SPDX-License-Identifier: MIT
// The memory-hungry process of `vramswap demo` and `bench --swap`: fills memory with pages that cannot be
// compressed, each unlike any other, reads them back in random order and checks every byte. It talks to its
// parent through shared memory.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>

#include "base/result.h"
#include "base/unique_fd.h"
#include "base/units.h"

namespace vramswap {

/// Written by the child, read by the parent.
struct DemoProgress {
    std::atomic<std::uint64_t> pages_filled{0};
    std::atomic<std::uint64_t> pages_read{0};
    std::atomic<std::uint64_t> pages_wrong{0};
    std::atomic<std::uint64_t> faults{0};  ///< entries of the latency list
    std::atomic<std::uint64_t> fill_ns{0};
    std::atomic<std::uint64_t> read_ns{0};
};

class DemoChild {
  public:
    /// Forks the child; it waits for go(). `data` is what it will fill. Errors: failed.
    static Result<std::unique_ptr<DemoChild>> start(Bytes data);
    /// Kills and reaps it if it still runs.
    ~DemoChild();
    DemoChild(const DemoChild&) = delete;
    DemoChild& operator=(const DemoChild&) = delete;

    [[nodiscard]] pid_t pid() const { return pid_; }
    [[nodiscard]] int pidfd() const { return pidfd_.get(); }
    [[nodiscard]] const DemoProgress& progress() const { return *progress_; }
    [[nodiscard]] std::uint64_t pages() const { return pages_; }
    /// Lets it begin. Call once it is in its control group.
    void go();
    /// Lets it begin reading after the fill is done (it pauses there, so that the parent can look at
    /// counters).
    void go_on() { go(); }
    /// Blocks until it has ended. Errors: failed, if it was killed (by the OOM killer, or by SIGBUS after a
    /// read error).
    Result<void> wait();
    /// Latency of each major fault in nanoseconds, in the order they happened. REQUIRES: it has ended.
    [[nodiscard]] std::span<const std::uint64_t> latencies_ns() const;

  private:
    DemoChild() = default;
    [[noreturn]] void live(int go_fd);
    void fill(std::span<std::byte> memory);
    void read_back(std::span<std::byte> memory);

    std::uint64_t pages_ = 0;
    std::span<std::byte> shared_;  ///< DemoProgress, latencies, order
    DemoProgress* progress_ = nullptr;
    std::uint64_t* latencies_ = nullptr;
    std::uint32_t* order_ = nullptr;
    UniqueFd go_;
    UniqueFd pidfd_;
    pid_t pid_ = 0;
};

}  // namespace vramswap
