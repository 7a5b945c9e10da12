// SPDX-License-Identifier: MIT
// The few calls of NVML (libnvidia-ml.so.1) that vramswap uses. All of it is optional: without NVML, or
// without a symbol, the caller gets nothing and goes on with what CUDA knows. Source of types and values:
// nvml.h of CUDA 13.0.
//
// Owner: CudaDriver loads it, backends share it. Any control thread; NVML is thread-safe. Every call enters
// the kernel under the driver's global lock (some 10 us; tens of seconds on a failing GPU): never on the I/O
// path.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "base/result.h"
#include "gpu/backend.h"

namespace vramswap::cuda {

using NvmlReturn = int;                       // nvmlReturn_t
using NvmlDevice = struct NvmlDeviceOpaque*;  // nvmlDevice_t

struct NvmlMemory {  // nvmlMemory_t
    unsigned long long total;
    unsigned long long free;
    unsigned long long used;
};
static_assert(sizeof(NvmlMemory) == 24);

struct NvmlMemoryV2 {  // nvmlMemory_v2_t
    unsigned version;  ///< kNvmlMemoryVersion2
    unsigned long long total;
    unsigned long long reserved;
    unsigned long long free;
    unsigned long long used;
};
static_assert(sizeof(NvmlMemoryV2) == 40 && alignof(NvmlMemoryV2) == 8);
inline constexpr unsigned kNvmlMemoryVersion2 =
    sizeof(NvmlMemoryV2) | (2u << 24);  // NVML_STRUCT_VERSION(Memory, 2)

struct NvmlConfComputeState {  // nvmlConfComputeSystemState_t
    unsigned environment;
    unsigned cc_feature;  ///< 1 = on (NVML_CC_SYSTEM_FEATURE_ENABLED)
    unsigned dev_tools_mode;
};
static_assert(sizeof(NvmlConfComputeState) == 12);

struct NvmlUtilization {  // nvmlUtilization_t: per cent of the last sample period
    unsigned gpu;         ///< with a kernel running
    unsigned memory;      ///< with VRAM read or written
};
static_assert(sizeof(NvmlUtilization) == 8);

struct NvmlProcess {  // nvmlProcessInfo_v2_t, which _v3 of the calls has too
    unsigned pid;
    unsigned long long memory;  ///< kNvmlNotAvailable: not told
    unsigned gpu_instance;
    unsigned compute_instance;
};
static_assert(sizeof(NvmlProcess) == 24);

struct NvmlProcessV1 {  // nvmlProcessInfo_v1_t
    unsigned pid;
    unsigned long long memory;
};
static_assert(sizeof(NvmlProcessV1) == 16);
inline constexpr unsigned long long kNvmlNotAvailable = ~0ull;  // NVML_VALUE_NOT_AVAILABLE

struct NvmlProcessSample {  // nvmlProcessUtilizationSample_t
    unsigned pid;
    unsigned long long time_us;  ///< since 1970
    unsigned sm;                 ///< per cents, as in NvmlUtilization
    unsigned memory;
    unsigned encoder;
    unsigned decoder;
};
static_assert(sizeof(NvmlProcessSample) == 32);

namespace nvml_code {  // nvmlReturn_t
inline constexpr NvmlReturn kSuccess = 0;
inline constexpr NvmlReturn kNotFound = 6;
inline constexpr NvmlReturn kInsufficientSize = 7;
inline constexpr NvmlReturn kGpuIsLost = 15;
inline constexpr NvmlReturn kResetRequired = 16;
}  // namespace nvml_code

/// What NVML did not tell; the code is gpu_lost if the result says so, else unavailable.
[[nodiscard]] Error nvml_error(NvmlReturn result, std::string_view what);

enum class Answer : std::uint8_t { unknown, no, yes };

class NvmlApi {
  public:
    NvmlApi() = default;
    ~NvmlApi();
    NvmlApi(const NvmlApi&) = delete;
    NvmlApi& operator=(const NvmlApi&) = delete;

    /// Opens and initialises the library; null if it is missing or does not start. Never closed, but shut
    /// down.
    [[nodiscard]] static std::shared_ptr<const NvmlApi> load(const std::string& library);

    /// "580.159.04"; empty if unknown.
    [[nodiscard]] std::string driver_version() const;
    /// The same GPU; NVML counts in another order than CUDA. Null if unknown.
    [[nodiscard]] NvmlDevice device_at(const std::string& pci) const;
    /// Of the whole GPU. Errors: unavailable (use CUDA's figure), gpu_lost.
    [[nodiscard]] Result<MemoryInfo> memory(NvmlDevice device) const;
    /// A display is connected to it or drawn by it.
    [[nodiscard]] Answer display(NvmlDevice device) const;
    /// It is split into MIG instances.
    [[nodiscard]] Answer mig(NvmlDevice device) const;
    /// Confidential computing is on (a property of the whole system).
    [[nodiscard]] Answer confidential() const;

    // Bound by load(); any may be null.
    NvmlReturn (*init)() = nullptr;
    NvmlReturn (*shutdown)() = nullptr;
    NvmlReturn (*system_get_driver_version)(char* text, unsigned length) = nullptr;
    NvmlReturn (*system_get_conf_compute_state)(NvmlConfComputeState*) = nullptr;  // since 12.2
    NvmlReturn (*device_get_handle_by_pci_bus_id)(const char* id, NvmlDevice*) = nullptr;
    NvmlReturn (*device_get_memory_info)(NvmlDevice, NvmlMemory*) = nullptr;
    NvmlReturn (*device_get_memory_info_v2)(NvmlDevice, NvmlMemoryV2*) = nullptr;  // since 11.6
    NvmlReturn (*device_get_display_active)(NvmlDevice, int* active) = nullptr;
    NvmlReturn (*device_get_display_mode)(NvmlDevice, int* connected) = nullptr;
    NvmlReturn (*device_get_mig_mode)(NvmlDevice, unsigned* current, unsigned* pending) = nullptr;
    NvmlReturn (*device_get_utilization)(NvmlDevice, NvmlUtilization*) = nullptr;
    /// One sample of each process since a time; kNotFound if there is none. `count`: in what fits, out what
    /// is there.
    NvmlReturn (*device_get_process_utilization)(NvmlDevice, NvmlProcessSample*, unsigned* count,
                                                 unsigned long long since_us) = nullptr;
    // `count` as above.
    using ListProcesses = NvmlReturn (*)(NvmlDevice, unsigned* count, NvmlProcess*);
    using ListProcessesV1 = NvmlReturn (*)(NvmlDevice, unsigned* count, NvmlProcessV1*);
    ListProcesses list_compute = nullptr;       // since 11.1
    ListProcesses list_graphics = nullptr;      // the same
    ListProcesses list_mps = nullptr;           // the same
    ListProcessesV1 list_compute_v1 = nullptr;  // what 11.0 has
    ListProcessesV1 list_graphics_v1 = nullptr;

  private:
    bool started_ = false;
};

}  // namespace vramswap::cuda
