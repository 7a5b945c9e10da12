// SPDX-License-Identifier: MIT
#include "daemon/monitor/policy_setup.h"

namespace vramswap {

Result<PolicyConfig> policy_config(const DeviceConfig& device, const GpuInfo& gpu) {
    PolicyConfig policy;
    policy.segment = device.segment;
    if (!device.headroom.empty()) {
        const auto headroom = parse_size(device.headroom, "headroom");
        if (!headroom) return headroom.error();
        policy.headroom = *headroom;
    }
    // A simulated GPU is nobody else's.
    if (device.headroom.empty() && gpu.kind == GpuKind::simulated) policy.headroom = SizeSpec{};
    if (!device.vram_max.empty()) {
        const auto vram_max = parse_size(device.vram_max, "most of VRAM");
        if (!vram_max) return vram_max.error();
        policy.target_max = vram_max->of(gpu.total);
    }
    if (device.swap_rate_max.n != 0) policy.swap_rate_beside_others = device.swap_rate_max.n;
    if (device.mode == "copy") policy.mode = ModeChoice::always_copy;
    // A segment is held even if nothing is stored: the first page that is swapped out does not wait for it.
    policy.target_min = device.segment;
    // Without a spill there would be nowhere to go with new pages.
    if (device.spill.empty()) policy.on_battery = OnBattery::ignore;
    return policy;
}

}  // namespace vramswap
