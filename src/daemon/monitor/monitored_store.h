// SPDX-License-Identifier: MIT
// MonitoredStore: what a PageStore has on one GPU, as a MonitoredDevice. Owned by the worker; the store must
// outlive it.
#pragma once

#include <optional>

#include "daemon/monitor/monitored_device.h"
#include "store/page_store.h"

namespace vramswap {

class MonitoredStore final : public MonitoredDevice {
  public:
    /// `gpu`: its number in the store. `mode`: always this one, whatever the plan says.
    MonitoredStore(PageStore& store, std::uint32_t gpu, std::optional<EngineMode> mode)
        : store_(store), gpu_(gpu), mode_(mode) {}

    [[nodiscard]] Sample sample() const override;
    void obey(const Plan& plan) override;

  private:
    PageStore& store_;
    const std::uint32_t gpu_;
    const std::optional<EngineMode> mode_;
};

}  // namespace vramswap
