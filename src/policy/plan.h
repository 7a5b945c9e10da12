// SPDX-License-Identifier: MIT
// Plan: what the policy decided, and why. A value.
#pragma once

#include <cstdint>
#include <string_view>

#include "base/units.h"

namespace vramswap {

/// How to copy: by copy engines, or by a kernel that takes from others' compute (17 to 33 % on an H100).
enum class PlannedMode : std::uint8_t { copy, turbo };
inline constexpr std::uint64_t kNoLimit = ~std::uint64_t{0};  ///< of a rate

/// Why the target is what it is.
enum class Reason : std::uint8_t {
    enough,     ///< all that the device needs
    growing,    ///< on the way there
    calming,    ///< there is room, but for too short a time
    at_max,     ///< the configured maximum
    others,     ///< what others leave, less the headroom
    falling,    ///< the same, and more: others take memory in large steps or fast
    unmovable,  ///< it should be less, but the spill cannot take what is stored
    late,       ///< free memory could not be read in time: nothing changes
    blind,      ///< for long
    battery,    ///< everything given back, as far as it can be
    empty,      ///< nothing is stored
    by_hand,    ///< `resize`
    yielded,    ///< `yield`
};
/// A line for users.
[[nodiscard]] std::string_view to_string(Reason reason);
/// "copy", "turbo".
[[nodiscard]] std::string_view to_string(PlannedMode mode);

struct Plan {
    Bytes target{};  ///< for our segments, a multiple of a segment
    /// Not less than the target: up to here the device may grow by itself, as pages come, before the next
    /// plan.
    Bytes most{};
    PlannedMode mode = PlannedMode::copy;
    std::uint64_t move_rate = 0;             ///< bytes/s of background moves; 0: none; or kNoLimit
    std::uint64_t swap_rate_max = kNoLimit;  ///< bytes/s of swap in and out
    Reason reason = Reason::enough;
    Bytes reserve{};  ///< what we want to see free; to be shown
    bool operator==(const Plan&) const = default;
};

}  // namespace vramswap
