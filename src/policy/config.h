// SPDX-License-Identifier: MIT
// PolicyConfig: what a user may set of the policy, and its constants with their reasons. A value.
#pragma once

#include <cstdint>
#include <optional>

#include "base/units.h"
#include "policy/plan.h"

namespace vramswap {

enum class ModeChoice : std::uint8_t { automatic, always_copy };
enum class OnBattery : std::uint8_t { release, ignore };

inline constexpr std::uint64_t kSecondNs = 1'000'000'000;

struct PolicyConfig {
    Bytes segment = mib(128);  ///< targets are multiples of it
    /// Kept free for others; per cent is of the GPU's memory. None: with a display max(1.5 GiB, 15 %), else
    /// max(512 MiB, 5 %).
    std::optional<SizeSpec> headroom{};
    Bytes target_min{};       ///< held even if nothing is stored, as long as others leave it; not on battery
    Bytes target_max{~0ull};  ///< never more
    std::uint64_t period_ns = 50'000'000;  ///< between decisions

    /// Before growing. Model loaders and compilers pause for seconds between allocations.
    std::uint64_t calm_ns = 10 * kSecondNs;
    /// However often it was regretted (five doublings): a GPU that is free for so long is worth the move.
    std::uint64_t calm_ns_max = 320 * kSecondNs;
    /// Bytes/s of growth: as fast as Linux swaps out, which waits for it; 200 MiB between two decisions, so a
    /// wrong guess is seen before it has cost much.
    std::uint64_t grow_rate = 4ull << 30;
    /// Beyond the target, before the next decision: what is swapped out in half a second, should that be
    /// late.
    Bytes grow_unasked = gib(1);
    /// Bytes/s of moves where no measured rate is known: what shrinking to a good disk should reach.
    std::uint64_t move_rate = 2'000'000'000;
    /// Bytes/s of moves that nobody waits for (back from the spill; on battery): a twentieth of a PCIe 4.0
    /// x16 link and less than a good disk, so that faults get by.
    std::uint64_t idle_move_rate = 1ull << 30;
    /// A step of others is expected again for so long: shards of a model come seconds apart.
    std::uint64_t step_memory_ns = 10 * kSecondNs;
    /// But not one of more than this: pools that large are made once, and what we hold need not go to the
    /// disk.
    SizeSpec step_max{SizeSpec::Kind::percent, 2500};
    /// Four steps of a job that allocates twice a second.
    std::uint64_t rate_window_ns = 2 * kSecondNs;

    /// An older reading of free memory is none. Ten periods.
    std::uint64_t free_age_ns_max = kSecondNs / 2;
    /// Without a reading for so long, we are blind.
    std::uint64_t blind_after_ns = 2 * kSecondNs;

    /// Somebody plugs the charger in again, or the next program swaps.
    std::uint64_t battery_after_ns = 10 * kSecondNs;
    std::uint64_t empty_after_ns = 30 * kSecondNs;
    OnBattery on_battery = OnBattery::release;

    ModeChoice mode = ModeChoice::automatic;
    std::uint64_t turbo_idle_ns = 5 * kSecondNs;  ///< nobody else has used the GPU for so long
    /// Queued pages. One launch takes as long as ten copies on an H100, so 64 are sure to gain.
    std::uint32_t turbo_pages = 64;
    std::uint32_t turbo_pages_leave = 16;
    /// Bytes/s of swap in and out while others use the GPU; kNoLimit: no ceiling.
    std::uint64_t swap_rate_beside_others = kNoLimit;
    /// The machine is short of RAM: moves that nobody waits for wait.
    double psi_pressed = 10;
    Bytes ram_pressed = mib(256);
};

}  // namespace vramswap
