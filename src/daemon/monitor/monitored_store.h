// SPDX-License-Identifier: MIT
// MonitoredStore: a PageStore as a MonitoredDevice. Owned by the worker; the store must outlive it.
#pragma once

#include <optional>

#include "daemon/monitor/monitored_device.h"
#include "store/page_store.h"

namespace vramswap {

class MonitoredStore final : public MonitoredDevice {
  public:
    /// `mode`: always this one, whatever the plan says.
    explicit MonitoredStore(PageStore& store, std::optional<EngineMode> mode = {})
        : store_(store), mode_(mode) {}

    [[nodiscard]] Sample sample() const override;
    void obey(const Plan& plan) override;

  private:
    PageStore& store_;
    const std::optional<EngineMode> mode_;
};

}  // namespace vramswap
