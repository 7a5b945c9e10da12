// SPDX-License-Identifier: MIT
// Drives a Target as a frontend does: N threads, each with its own queue and its own memory for each request
// in flight. Every page written carries its number; every request read is checked for it, and a wrong page
// ends the measurement with an error. Control thread; blocks while it runs.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "daemon/bench/histogram.h"
#include "daemon/bench/jobs.h"
#include "front/target.h"

namespace vramswap {

struct Measured {
    LatencyHistogram
        latencies;  ///< from the first submit of a request to its completion, waits for room included
    std::uint64_t operations = 0;
    std::uint64_t bytes = 0;
    double seconds = 0;
    double cpu_seconds = 0;  ///< of all threads of this process
};

/// Room for the deepest job; what a frontend's queue has as well.
inline constexpr std::uint32_t kLoadQueueDepth = 128;

class LoadThread;

/// The queues and memory of the threads; serves one job after another.
class LoadTeam {
  public:
    /// `memory` holds kThreadBytesMax for each thread, is noise and registered with the target. Both must
    /// outlive the team. Errors: whatever make_queue meets.
    static Result<LoadTeam> create(Target& target, std::span<std::byte> memory, unsigned threads);

    /// Runs the job over the first `span` bytes of the device for `seconds`, after a start that is not
    /// counted. Errors: failed, for a request that failed or came back with another page's content.
    Result<Measured> run(const Job& job, Bytes span, double seconds);
    /// Runs the job, a sequential one, until every block of the span was asked for once.
    Result<void> run_once(const Job& job, Bytes span);
    [[nodiscard]] unsigned threads() const { return static_cast<unsigned>(queues_.size()); }

  private:
    LoadTeam() = default;
    std::vector<std::unique_ptr<LoadThread>> make_threads(const Job& job, Bytes span);

    std::vector<std::unique_ptr<TargetQueue>> queues_;
    std::span<std::byte> memory_;
};

}  // namespace vramswap
