// SPDX-License-Identifier: MIT
#include "daemon/monitor/monitored_store.h"

namespace vramswap {

MonitoredDevice::Sample MonitoredStore::sample() const {
    const StoreHoldings h = store_.holdings(gpu_);
    return {.ours = h.vram,
            .segment_changes = h.segment_changes,
            .stored = h.wanted,
            .spill_room = h.spill_room,
            .move_rate = h.move_rate,
            .pages_in = h.pages_in,
            .pages_out = h.pages_out,
            .waited_ns = h.waited_ns};
}

void MonitoredStore::obey(const Plan& plan) {
    static_assert(kNoLimit == Mover::kNoLimit && kNoLimit == Pacer::kNoLimit);
    const EngineMode planned = plan.mode == PlannedMode::turbo ? EngineMode::turbo : EngineMode::copy;
    store_.obey(gpu_, {.vram_max = plan.most,
                       .mode = mode_.value_or(planned),
                       .move_rate = plan.move_rate,
                       .swap_rate = plan.swap_rate_max});
}

}  // namespace vramswap
