// SPDX-License-Identifier: MIT
// What others do on an NVIDIA GPU, as NVML tells it. No state; control threads and the monitor, one call at a
// time enters the driver and may hang there.
#pragma once

#include <cstdint>

#include "base/result.h"
#include "gpu/backend.h"
#include "gpu/cuda/nvml_api.h"

namespace vramswap::cuda {

/// Whether a kernel of this process ran while the driver took its last samples of the use of the GPU.
enum class OwnKernels : std::uint8_t { none, ran };

/// As Backend::usage wants it. Errors: gpu_lost; unavailable, if no part of it can be told.
[[nodiscard]] Result<GpuUsage> read_usage(const NvmlApi& nvml, NvmlDevice device, UsageParts parts,
                                          OwnKernels own);

}  // namespace vramswap::cuda
