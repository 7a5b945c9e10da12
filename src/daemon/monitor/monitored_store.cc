// SPDX-License-Identifier: MIT
#include "daemon/monitor/monitored_store.h"

namespace vramswap {

MonitoredDevice::Sample MonitoredStore::sample() const {
    const StoreStats s = store_.stats();
    Sample sample;
    sample.ours = s.vram;
    sample.stored = s.stored;
    sample.pages_in = s.pages_read;
    sample.pages_out = s.pages_written;
    return sample;
}

void MonitoredStore::obey(const Plan& plan) {
    store_.set_mode(mode_.value_or(plan.mode == PlannedMode::turbo ? EngineMode::turbo : EngineMode::copy));
}

}  // namespace vramswap
