// SPDX-License-Identifier: MIT
// Simulated GPUs: host memory that behaves like VRAM, with faults on demand. For tests, demos and machines
// without a GPU; it gains nothing for real use (RAM is swapped into RAM). Segments are memfds, so they
// outlive the process as exported VRAM does. Control thread; SimFaults may be changed by any thread at any
// time.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "gpu/backend.h"

namespace vramswap {

/// The fault overlay: memory stays pristine, faults change what passes through. All off by default.
struct SimFaults {
    std::atomic<std::uint64_t> latency_ns{0};        ///< from submit to completion
    std::atomic<std::uint64_t> bytes_per_us{0};      ///< bandwidth of a queue; 0 = unlimited
    std::atomic<std::uint64_t> taken_by_others{0};   ///< bytes that "another process" holds
    std::atomic<pid_t> others_pid{0};                ///< that process; 0: it is not told
    std::atomic<std::uint32_t> others_sm{0};         ///< per cent of the time it computes
    std::atomic<std::uint32_t> fail_allocations{0};  ///< the next n allocations fail
    std::atomic<std::uint32_t> fail_copies{0};       ///< the next n submissions fail, their targets scrambled
    std::atomic<std::uint32_t> corrupt_reads{0};     ///< the next n copies from the GPU have one bit flipped
    std::atomic<std::uint32_t> corrupt_writes{0};    ///< the next n copies to the GPU have one bit flipped
    std::atomic<std::uint32_t> misplace_writes{0};  ///< the next n copies to the GPU land one page further on
    std::atomic<std::uint32_t> fail_readings{0};    ///< the next n calls of memory_info and usage fail
    std::atomic<bool> hang_readings{false};         ///< they do not return until it is cleared and notified
    std::atomic<bool> early{false};                 ///< copies run at submit; completion is told when due
    std::atomic<bool> hang{false};                  ///< nothing completes
    std::atomic<bool> lost{false};                  ///< every call fails, health is gpu_lost
};

struct SimConfig {
    Bytes total = gib(8);    ///< of each GPU
    bool exportable = true;  ///< their segments can outlive the process
    bool turbo = true;       ///< they take mode turbo; their copies are the same in both
    /// Of the first GPU, "sim:0". Shared by all backends opened on it from this driver.
    std::shared_ptr<SimFaults> faults = std::make_shared<SimFaults>();
    /// Of "sim:1" and so on: there are so many more GPUs.
    std::vector<std::shared_ptr<SimFaults>> more_faults{};
};

/// GPUs that $VRAMSWAP_SIM can ask for.
inline constexpr std::uint64_t kSimGpusMax = 8;

/// Reads $VRAMSWAP_SIM,
/// "gpus=2,total=2G,latency_us=10,bandwidth_mbps=2000,taken_mib=100,others_sm=30,fail_allocations=1,turbo=0":
/// the same for every GPU, but each has its own count of what is taken and fails. Unknown keys are ignored
/// with a warning.
[[nodiscard]] SimConfig sim_config_from_env();

[[nodiscard]] std::unique_ptr<Driver> make_sim_driver(SimConfig config = sim_config_from_env());

}  // namespace vramswap
