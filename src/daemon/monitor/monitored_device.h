// SPDX-License-Identifier: MIT
// MonitoredDevice: the device as its monitor sees and commands it. Owned by who makes the monitor; must
// outlive it.
#pragma once

#include <cstdint>

#include "base/units.h"
#include "policy/plan.h"

namespace vramswap {

class MonitoredDevice {
  public:
    virtual ~MonitoredDevice() = default;
    MonitoredDevice(const MonitoredDevice&) = delete;
    MonitoredDevice& operator=(const MonitoredDevice&) = delete;

    /// As Snapshot has it, where nothing else is said.
    struct Sample {
        Bytes ours{};  ///< segments as allocated
        /// Counts beginnings and ends of taking or giving back segments: odd while one is under way. `free`
        /// read meanwhile belongs to neither the old nor the new `ours`. 0 for ever: not told.
        std::uint32_t segment_changes = 0;
        Bytes stored{};
        Bytes spill_room{};
        std::uint64_t move_rate = 0;
        std::uint64_t pages_in = 0, pages_out = 0;  ///< read and written since the start
        std::uint64_t waited_ns =
            0;  ///< for which requests have waited for copies, all together, since the start
    };
    /// Some us; never waits. Any thread.
    [[nodiscard]] virtual Sample sample() const = 0;
    /// From now on. Never waits. The monitor's thread.
    virtual void obey(const Plan& plan) = 0;

  protected:
    MonitoredDevice() = default;
};

}  // namespace vramswap
