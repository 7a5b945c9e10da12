// SPDX-License-Identifier: MIT
// MachineWatch: what a Snapshot tells of the machine: power, RAM and the pressure on it. Owned by a Monitor;
// one thread; reads files of /proc and /sys, which may take tens of ms where firmware answers for the
// battery.
#pragma once

#include <cstdint>
#include <optional>

#include "policy/snapshot.h"
#include "sys/proc.h"

namespace vramswap {

class MachineWatch {
  public:
    explicit MachineWatch(SysRoot root) : root_(std::move(root)) {}

    /// Reads what is due. What cannot be read stays as it was; pressure that this kernel does not tell is
    /// none.
    void read(std::uint64_t now_ns);
    void tell(Snapshot& snapshot) const;

  private:
    const SysRoot root_;
    PowerSource power_ = PowerSource::unknown;
    Bytes ram_available_{};
    double psi_some_avg10_ = 0;
    std::optional<std::uint64_t> memory_read_ns_;
    std::optional<std::uint64_t> power_read_ns_;
};

}  // namespace vramswap
