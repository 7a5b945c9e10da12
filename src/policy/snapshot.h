// SPDX-License-Identifier: MIT
// Snapshot: what the policy is told, ten to twenty times a second, about a GPU, the device and the machine.
// A value, filled in by a monitor thread. What could not be found out is absent or `unknown`, never guessed.
#pragma once

#include <cstdint>
#include <optional>

#include "base/units.h"

namespace vramswap {

enum class PowerSource : std::uint8_t {
    unknown,  ///< could not be read; a machine without a battery is on mains
    mains,
    battery,
};

struct Snapshot {
    // Memory of the GPU. `free` and `ours` belong together: who reads `free` while segments come or go reads
    // again, or our own segment looks like somebody else's allocation.
    Bytes total{};
    Bytes free{};
    bool free_known = false;        ///< `total` and `free` could be read
    std::uint64_t free_age_ns = 0;  ///< since `free` was read
    /// Our segments as allocated. The context's own memory is none of it: no segment's end gives it back.
    Bytes ours{};

    // Others on the GPU: all processes but ours.
    std::optional<Bytes> others_memory{};
    std::optional<std::uint32_t> others_sm_percent{};      ///< of the time with a kernel running
    std::optional<std::uint32_t> others_memory_percent{};  ///< of the time with VRAM in use
    bool display = false;                                  ///< a display is attached

    // The device.
    Bytes stored{};               ///< chunks that it has to keep, wherever: whole ones, as they take slots
    Bytes spill_room{};           ///< of `stored`, what is in the spill or would fit into it; 0 without one
    std::uint64_t move_rate = 0;  ///< bytes/s at which VRAM was emptied lately; 0: not measured
    std::uint64_t pages_in_per_s = 0;
    std::uint64_t pages_out_per_s = 0;
    std::uint32_t queue_pages = 0;  ///< requests that wait for copies, on average

    // The machine.
    PowerSource power = PowerSource::unknown;
    Bytes ram_available{};          ///< MemAvailable
    double ram_psi_some_avg10 = 0;  ///< per cent of the last 10 s in which something waited for memory

    // By hand.
    std::optional<Bytes> manual_target{};  ///< `resize`
    std::optional<Bytes> yield_max{};      ///< `yield`: no more than this
};

}  // namespace vramswap
