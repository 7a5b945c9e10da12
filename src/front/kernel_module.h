// SPDX-License-Identifier: MIT
// Loads a module of the kernel with modprobe(8). Control thread only; starts a process and waits for it.
#pragma once

#include <string>

#include "base/result.h"

namespace vramswap {

/// Runs `modprobe -q MODULE`; fine if the module is there already. `program` takes the place of modprobe;
/// empty: the one of this system, in PATH, /sbin or /usr/sbin. Errors: unavailable (no modprobe, or it says
/// that it cannot), failed.
Result<void> load_kernel_module(const std::string& module, const std::string& program = {});

}  // namespace vramswap
