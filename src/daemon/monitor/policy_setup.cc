// SPDX-License-Identifier: MIT
#include "daemon/monitor/policy_setup.h"

namespace vramswap {

Result<PolicyConfig> policy_config(const DeviceConfig& device) {
    PolicyConfig policy;
    policy.segment = device.segment;
    if (!device.headroom.empty()) {
        const auto headroom = parse_size(device.headroom, "headroom");
        if (!headroom) return headroom.error();
        policy.headroom = *headroom;
    }
    if (device.vram_max.n != 0) policy.target_max = device.vram_max;
    if (device.swap_rate_max.n != 0) policy.swap_rate_beside_others = device.swap_rate_max.n;
    if (device.mode == "copy") policy.mode = ModeChoice::always_copy;
    return policy;
}

}  // namespace vramswap
