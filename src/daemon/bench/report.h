// SPDX-License-Identifier: MIT
// The JSON of `vramswap bench`: results beside the ceiling of the same run. Pure.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "daemon/bench/ceiling.h"
#include "daemon/bench/store_session.h"

namespace vramswap {

struct BenchReport {
    GpuInfo gpu;
    unsigned threads = 0;
    std::optional<std::uint32_t> mergers;  ///< as asked for; none: the store chooses
    Bytes working_set{};
    double seconds = 0;
    Ceiling ceiling;
    std::vector<JobResult> results;
    std::string skipped;  ///< why the jobs of a mode did not run; empty if all did
};

[[nodiscard]] std::string to_json(const BenchReport& report);

}  // namespace vramswap
