// SPDX-License-Identifier: MIT
// The CUDA backend: NVIDIA GPUs through libcuda.so.1 and libnvidia-ml.so.1, opened at run time. Building
// needs no CUDA toolkit. See gpu/backend.h for thread rules.
//
// Error `unavailable` of enumerate() and open(): no driver, a driver older than CUDA 11.0, or one that does
// not start; the message says what to do. A GPU that is there but must not be used is listed with its
// refusal.
#pragma once

#include <memory>
#include <string>

#include "gpu/backend.h"

namespace vramswap {

/// Loads nothing yet: the libraries are opened by enumerate(). The process must not fork without exec
/// afterwards: CUDA does not survive it.
[[nodiscard]] std::unique_ptr<Driver> make_cuda_driver();

/// Where the driver finds the machine.
struct CudaPaths {
    std::string libcuda = "libcuda.so.1";
    std::string nvml = "libnvidia-ml.so.1";
    std::string root{};  ///< stands before /dev and /sys
};
/// The same with other libraries and another root, for tests.
[[nodiscard]] std::unique_ptr<Driver> make_cuda_driver_for_test(CudaPaths paths);

}  // namespace vramswap
