// SPDX-License-Identifier: MIT
// SwapTrial: real swapping, measured. A child of ours, alone in a control group with a quarter of the RAM
// that it needs, fills memory, reads it back in random order and checks every byte. Which swap area takes the
// pages is the caller's business: the one with the highest priority does. `demo` and `bench --swap` share it.
// Single-threaded, blocking; an interrupt ends it with an error.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "base/result.h"
#include "base/unique_fd.h"
#include "base/units.h"
#include "cli/demo_child.h"
#include "sys/cgroup.h"

namespace vramswap {

/// SIGINT and friends as a descriptor, so that everything is taken down in order. Blocks them for the
/// process.
class Interrupts {
  public:
    Interrupts();
    [[nodiscard]] int fd() const { return fd_.get(); }
    /// Errors: failed, after an interrupt.
    [[nodiscard]] Result<void> check() const;

  private:
    UniqueFd fd_;
};

struct SwapFigures {
    std::uint64_t pages = 0, pages_wrong = 0;
    std::uint64_t pswpout = 0, pswpin = 0;  ///< of the whole machine, in the time of the trial
    Bytes limit{};                          ///< RAM that the child may have
    double swap_out_gbps = 0, swap_in_gbps = 0;
    /// Of the faults that waited for a page from swap.
    std::uint64_t faults = 0;
    double p50_us = 0, p90_us = 0, p99_us = 0, p999_us = 0, max_us = 0;
    /// All bytes right, and most of them came from swap.
    [[nodiscard]] bool ok() const { return pages_wrong == 0 && pswpin >= pages / 2; }
};

/// Of memory to swap, as a user writes it. Errors: usage, for less than 16 MiB or a percentage.
[[nodiscard]] Result<Bytes> parse_trial_data(const std::string& text);

class SwapTrial {
  public:
    /// `group` names the control group. Both references must outlive it.
    SwapTrial(const Interrupts& interrupts, std::string group, Bytes data);
    /// Errors on the way are logged; remove() tells them.
    ~SwapTrial();
    SwapTrial(const SwapTrial&) = delete;
    SwapTrial& operator=(const SwapTrial&) = delete;

    /// Makes the child and its group. Errors: unavailable (no memory controller), failed.
    Result<void> prepare();
    /// Lets the child fill its memory. Errors: failed, if it was killed or we were interrupted.
    Result<void> write();
    /// Lets it read back and check everything, then evaluates. Errors as above.
    Result<void> read_back();
    /// REQUIRES: read_back succeeded.
    [[nodiscard]] const SwapFigures& figures() const { return figures_; }
    /// Ends the child and removes the group. Repeating it is harmless.
    Result<void> remove();

  private:
    Result<void> watch(const char* label, const std::atomic<std::uint64_t>& done,
                       const std::atomic<std::uint64_t>& duration);
    void evaluate_faults();

    const Interrupts& interrupts_;
    const std::string group_name_;
    const Bytes data_;
    SwapFigures figures_;
    std::optional<MemoryCgroup> group_;
    std::unique_ptr<DemoChild> child_;
};

}  // namespace vramswap
