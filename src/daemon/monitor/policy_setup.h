// SPDX-License-Identifier: MIT
// The policy's configuration as that of a device says it. Pure; control threads (it allocates).
#pragma once

#include "base/result.h"
#include "ctl/messages.h"
#include "gpu/backend.h"
#include "policy/config.h"

namespace vramswap {

/// On this GPU of the device. Errors: usage, for a headroom or a limit that is none.
[[nodiscard]] Result<PolicyConfig> policy_config(const DeviceConfig& device, const GpuInfo& gpu);

}  // namespace vramswap
