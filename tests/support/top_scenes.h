// SPDX-License-Identifier: MIT
// Devices to look at with `vramswap top`, as if they had been watched for some minutes; the same each time.
// For unit tests; they allocate.
#pragma once

#include <string>
#include <vector>

#include "cli/top_model.h"

namespace vramswap::test {

/// A device of 8G on a busy GPU of 80G: swapped in and out, partly spilled, giving VRAM back.
[[nodiscard]] DeviceStatus busy_device(std::string name);

/// Names of the scenes.
[[nodiscard]] const std::vector<std::string>& top_scenes();
/// The model after so much time. REQUIRES: `name` is one of top_scenes().
[[nodiscard]] TopModel top_scene(const std::string& name);

}  // namespace vramswap::test
