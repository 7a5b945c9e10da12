// SPDX-License-Identifier: MIT
// Traces for the policy: what happens on a GPU, as text, and the plans that come of it. The format is told in
// tests/golden/policy/README.md.
#pragma once

#include <filesystem>
#include <string>

#include "base/result.h"

namespace vramswap::test {

/// Replays a trace; the plans as text, a line whenever the plan changes. Errors: file and line.
[[nodiscard]] Result<std::string> replay(const std::filesystem::path& trace);

}  // namespace vramswap::test
