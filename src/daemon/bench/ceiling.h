// SPDX-License-Identifier: MIT
// What the GPU and the CPU give with nothing of the store around them: the figures that results are held
// against. Control thread, blocks for seconds; takes VRAM for as long and gives it back. Errors: whatever the
// GPU refused.
#pragma once

#include <vector>

#include "daemon/bench/histogram.h"
#include "daemon/bench/jobs.h"
#include "gpu/backend.h"

namespace vramswap {

/// Random 4 KiB copies of several threads, each with a queue of its own and `batch` copies in flight.
struct SmallCopies {
    Direction direction = Direction::read;
    unsigned threads = 1;
    std::uint32_t batch = 1;
    double iops = 0;                ///< the best of the ways to submit them that were tried
    std::uint32_t submissions = 1;  ///< how many a batch was made in, where that was best
    [[nodiscard]] double gbps() const { return iops * kPageBytes / 1e9; }
};

struct Ceiling {
    double h2d_gbps = 0, d2h_gbps = 0;
    LatencyHistogram read_4k;    ///< from the GPU, one at a time, any page of the working set
    LatencyHistogram write_4k;   ///< to the GPU, likewise
    LatencyHistogram memcpy_4k;  ///< from memory that is in no cache
    std::vector<SmallCopies> small_copies;

    /// In GB/s or, for latencies, in microseconds; 0 if the job has none.
    [[nodiscard]] double of(const Job& job) const;
};

struct CeilingRequest {
    Bytes working_set{};  ///< VRAM that copies go over: as much as the store will use
    Bytes segment{};      ///< in pieces of this size
    double seconds = 0;   ///< for each figure
    std::vector<Job> jobs;
};

/// One copy of this size is what "as fast as it goes" means.
inline constexpr std::size_t kLargeCopyBytes = 64u << 20;

/// `memory` is registered with the GPU, page-aligned: kThreadBytesMax for each thread of any job, and
/// kLargeCopyBytes at least.
Result<Ceiling> measure_ceiling(Backend& gpu, std::span<std::byte> memory, const CeilingRequest& request);

}  // namespace vramswap
