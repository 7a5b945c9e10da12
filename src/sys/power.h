// SPDX-License-Identifier: MIT
// Where the machine's power comes from, as /sys/class/power_supply tells (Documentation/ABI/testing/
// sysfs-class-power). Owned by nobody; any thread that may block: reading it asks the firmware, which can
// take tens of ms on a notebook. Never on the I/O path. Every call takes the root of the tree.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "sys/proc.h"

namespace vramswap {

enum class PowerState : std::uint8_t {
    unknown,  ///< there is a battery, and nothing says whether it is in use
    mains,
    battery,
};
/// "mains", "battery", "unknown".
[[nodiscard]] std::string_view to_string(PowerState state);

/// A directory of /sys/class/power_supply; a file that is missing leaves its field empty.
struct PowerSupply {
    std::string type;     ///< Mains, USB, Wireless, Battery, UPS
    std::string scope;    ///< "Device": of a mouse or a headset, not of the machine
    std::string online;   ///< of what is no battery: 0, 1, 2 (programmable)
    std::string status;   ///< of a battery: Charging, Discharging, Not charging, Full, Unknown
    std::string present;  ///< of a battery: 0 if its bay is empty
};

/// Pure. A machine without a battery of its own is on mains. Else, what comes first of: mains that is there;
/// a battery being emptied; any charger that is there, or a battery that is charged or kept; mains that is
/// not there.
[[nodiscard]] PowerState judge_power(const std::vector<PowerSupply>& supplies);

/// unknown also if the directory cannot be read; mains where this kernel has none.
[[nodiscard]] PowerState read_power(const SysRoot& root = {});

}  // namespace vramswap
