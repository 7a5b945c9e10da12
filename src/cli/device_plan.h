// SPDX-License-Identifier: MIT
// From what a user wishes of a device to its configuration: every "auto" and every per cent is resolved by
// what this machine has now. Nothing is changed yet. Commands only, single-threaded; looking at GPUs and
// disks runs processes of its own and blocks.
#pragma once

#include <string>

#include "base/result.h"
#include "cli/spill_plan.h"
#include "ctl/messages.h"

namespace vramswap {

enum class AllowSim : std::uint8_t { only_by_name, as_fallback };
/// Opening a GPU takes a second and some of its memory; what only an open one tells is said at start.
enum class GpuLook : std::uint8_t { closed, open };

/// Asks a process of its own what GPUs and frontends there are, and which fit the wishes. Errors: failed;
/// that nothing fits is told in the Probe.
Result<Probe> probe_machine(const std::string& gpu, AllowSim sim, const std::string& frontend,
                            GpuLook look = GpuLook::closed);

/// As users write it: the options of `up`.
struct DeviceWish {
    std::string name, size, gpu, frontend;
    std::uint32_t threads = 0;
    std::string mode = "copy";
    std::string spill = "none";
    std::string headroom{};  ///< empty: chosen for the GPU
    std::string vram_max{};  ///< empty: as much as the device has use for
    std::string segment = "128M";
    std::string swap_rate_max{};  ///< empty: no ceiling
};

struct DevicePlan {
    DeviceConfig config;
    ProbedGpu gpu;  ///< several as if they were one: their selectors, names and sums
    SpillPlan spill;
};
/// Errors: usage (an option that makes no sense, or more than GPU and spill can hold), unavailable, no_memory
/// (larger than what is free now), and those of plan_spill. With GpuLook::open also that the GPU cannot do
/// mode turbo.
Result<DevicePlan> plan_device(const DeviceWish& wish, AllowSim sim, GpuLook look = GpuLook::closed);

}  // namespace vramswap
