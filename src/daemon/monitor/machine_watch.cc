// SPDX-License-Identifier: MIT
#include "daemon/monitor/machine_watch.h"

#include "policy/config.h"
#include "sys/power.h"

namespace vramswap {
namespace {

constexpr std::uint64_t kMemoryPeriodNs = kSecondNs / 4;
/// The policy waits for ten seconds before it believes in a battery.
constexpr std::uint64_t kPowerPeriodNs = 2 * kSecondNs;

/// Moves `last_ns` to now if the period has passed since.
bool take_if_due(std::optional<std::uint64_t>& last_ns, std::uint64_t period_ns, std::uint64_t now_ns) {
    if (last_ns && now_ns - *last_ns < period_ns) return false;
    last_ns = now_ns;
    return true;
}

PowerSource to_source(PowerState state) {
    switch (state) {
        case PowerState::mains:
            return PowerSource::mains;
        case PowerState::battery:
            return PowerSource::battery;
        case PowerState::unknown:
            break;
    }
    return PowerSource::unknown;
}

}  // namespace

void MachineWatch::read(std::uint64_t now_ns) {
    if (take_if_due(memory_read_ns_, kMemoryPeriodNs, now_ns)) {
        if (const auto memory = read_meminfo(root_)) ram_available_ = memory->available;
        const auto pressure = read_memory_pressure(root_);
        if (pressure || pressure.error().code == Errc::unavailable)
            psi_some_avg10_ = pressure ? pressure->some_avg10_percent : 0;
    }
    if (take_if_due(power_read_ns_, kPowerPeriodNs, now_ns)) power_ = to_source(read_power(root_));
}

void MachineWatch::tell(Snapshot& snapshot) const {
    snapshot.power = power_;
    snapshot.ram_available = ram_available_;
    snapshot.ram_psi_some_avg10 = psi_some_avg10_;
}

}  // namespace vramswap
