// SPDX-License-Identifier: MIT
// The list of measurements of `vramswap bench`: what each one asks of the store, and which of the hardware's
// own figures it is held against. Pure values. The names are stable: people and scripts quote them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "base/units.h"
#include "ctl/messages.h"
#include "gpu/backend.h"

namespace vramswap {

enum class Direction : std::uint8_t { write, read, mixed };

/// How the blocks of a thread follow each other. Threads never share a cluster of 2 MiB but in `random`.
enum class Pattern : std::uint8_t {
    sequential,  ///< each thread fills clusters of its own from front to back, as the kernel does
    half_full,   ///< the same, but a random half of each cluster's pages
    random,      ///< uniform over the working set
};

/// Where the pages are when a measurement begins.
enum class Start : std::uint8_t {
    in_vram,   ///< all of them, the stage is empty
    in_stage,  ///< those that the job reads
};

/// The hardware's figure beside a result.
enum class CeilingKind : std::uint8_t {
    none,
    pinned_copy,   ///< large copies in the job's direction
    small_copies,  ///< bare 4 KiB copies of as many threads, as many in flight
    one_read,      ///< one bare 4 KiB copy from the GPU at a time; a latency
    memcpy_page,   ///< one memcpy of a page that is in no cache; a latency
};

struct Job {
    std::string name;
    Direction direction = Direction::read;
    Pattern pattern = Pattern::random;
    std::uint32_t block_bytes = kPageBytes;
    std::uint32_t depth = 1;  ///< requests of each thread in flight
    unsigned threads = 1;
    CeilingKind ceiling = CeilingKind::pinned_copy;
    Start start = Start::in_vram;
    std::uint64_t pace_ns = 0;  ///< a thread starts a request this often at most; 0 = at once
    EngineMode mode = EngineMode::copy;
};

/// Of mixed jobs.
inline constexpr std::uint32_t kMixedReadPercent = 70;
/// Bytes of requests that a thread has in flight at most, in any job.
inline constexpr std::size_t kThreadBytesMax = 16u << 20;

/// The jobs asked for, in the order in which they run: all of mode copy, then all of mode turbo. `threads` is
/// what "many" means. Errors: usage, for a name that does not exist.
[[nodiscard]] Result<std::vector<Job>> choose_jobs(const BenchRequest& request, unsigned threads);

[[nodiscard]] std::string_view to_string(Direction direction);
[[nodiscard]] std::string_view to_string(Pattern pattern);

}  // namespace vramswap
