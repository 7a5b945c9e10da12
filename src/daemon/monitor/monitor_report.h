// SPDX-License-Identifier: MIT
// What a monitor last saw, decided and was told, as a value, and as `status` and `top` show it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "ctl/messages.h"
#include "policy/plan.h"
#include "policy/snapshot.h"
#include "sys/process.h"

namespace vramswap {

/// `yield`: no more than `most` of VRAM, for good or as long as a process lives.
struct Yield {
    Bytes most{};
    std::optional<ProcessId> holder{};
    bool operator==(const Yield&) const = default;
};

struct ByHand {
    std::optional<Bytes> target{};  ///< `resize`
    std::optional<Yield> yield{};
};

struct MonitorReport {
    Snapshot snapshot{};
    Plan plan{};
    std::uint64_t decided_at_ns = 0;                     ///< when; 0: not yet
    std::optional<std::vector<GpuProcess>> processes{};  ///< on the GPU but for ours; memory 0: not told
    ByHand by_hand{};
    std::string gpu_problem{};  ///< why its free memory cannot be read
};

/// Adds what a DeviceStatus has of a GPU, the machine and the policy. `gpu` has its names and our VRAM
/// already.
void tell(const MonitorReport& report, GpuPart gpu, DeviceStatus& status);
/// What is wrong, in a sentence: the driver does not answer, or the spill is full; empty if nothing is.
[[nodiscard]] std::string problem(const MonitorReport& report, std::uint64_t now_ns);

}  // namespace vramswap
