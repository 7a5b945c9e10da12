// SPDX-License-Identifier: MIT
#include "gpu/cuda/nvml_api.h"

#include <dlfcn.h>
#include <fmt/format.h>

namespace vramswap::cuda {
namespace {

constexpr unsigned kNvmlMigEnable = 1;  // NVML_DEVICE_MIG_ENABLE
constexpr unsigned kNvmlCcEnabled = 1;  // NVML_CC_SYSTEM_FEATURE_ENABLED

struct Symbol {
    const char* name;
    void (*bind)(NvmlApi& api, void* address);
};

template <typename F>
void assign(F& slot, void* address) {
    slot = reinterpret_cast<F>(address);
}
template <auto Member>
void bind(NvmlApi& api, void* address) {
    assign(api.*Member, address);
}

/// The one table of what is taken from NVML; all optional. Of two for the same place the later one stays.
constexpr Symbol kSymbols[] = {
    {"nvmlInit_v2", bind<&NvmlApi::init>},
    {"nvmlShutdown", bind<&NvmlApi::shutdown>},
    {"nvmlSystemGetDriverVersion", bind<&NvmlApi::system_get_driver_version>},
    {"nvmlSystemGetConfComputeState", bind<&NvmlApi::system_get_conf_compute_state>},
    {"nvmlDeviceGetHandleByPciBusId_v2", bind<&NvmlApi::device_get_handle_by_pci_bus_id>},
    {"nvmlDeviceGetMemoryInfo", bind<&NvmlApi::device_get_memory_info>},
    {"nvmlDeviceGetMemoryInfo_v2", bind<&NvmlApi::device_get_memory_info_v2>},
    {"nvmlDeviceGetDisplayActive", bind<&NvmlApi::device_get_display_active>},
    {"nvmlDeviceGetDisplayMode", bind<&NvmlApi::device_get_display_mode>},
    {"nvmlDeviceGetMigMode", bind<&NvmlApi::device_get_mig_mode>},
    {"nvmlDeviceGetUtilizationRates", bind<&NvmlApi::device_get_utilization>},
    {"nvmlDeviceGetProcessUtilization", bind<&NvmlApi::device_get_process_utilization>},
    {"nvmlDeviceGetComputeRunningProcesses", bind<&NvmlApi::list_compute_v1>},
    {"nvmlDeviceGetComputeRunningProcesses_v2", bind<&NvmlApi::list_compute>},
    {"nvmlDeviceGetComputeRunningProcesses_v3", bind<&NvmlApi::list_compute>},
    {"nvmlDeviceGetGraphicsRunningProcesses", bind<&NvmlApi::list_graphics_v1>},
    {"nvmlDeviceGetGraphicsRunningProcesses_v2", bind<&NvmlApi::list_graphics>},
    {"nvmlDeviceGetGraphicsRunningProcesses_v3", bind<&NvmlApi::list_graphics>},
    {"nvmlDeviceGetMPSComputeRunningProcesses_v2", bind<&NvmlApi::list_mps>},
    {"nvmlDeviceGetMPSComputeRunningProcesses_v3", bind<&NvmlApi::list_mps>},
};

}  // namespace

Error nvml_error(NvmlReturn result, std::string_view what) {
    const bool lost = result == nvml_code::kGpuIsLost || result == nvml_code::kResetRequired;
    return Error{
        lost ? Errc::gpu_lost : Errc::unavailable, 0,
        fmt::format("NVML cannot tell {} (NVML error {})", what, result),
        lost ? "The GPU needs a reset or has fallen off the bus; the kernel log (\"Xid\") names the cause"
             : ""};
}

NvmlApi::~NvmlApi() {
    if (started_ && shutdown != nullptr) (void)shutdown();
}

std::shared_ptr<const NvmlApi> NvmlApi::load(const std::string& library) {
    void* handle = ::dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) return nullptr;
    auto api = std::make_shared<NvmlApi>();
    for (const Symbol& symbol : kSymbols)
        if (void* address = ::dlsym(handle, symbol.name); address != nullptr) symbol.bind(*api, address);
    if (api->init == nullptr || api->init() != nvml_code::kSuccess) return nullptr;
    api->started_ = true;
    return api;
}

std::string NvmlApi::driver_version() const {
    char text[96] = {};  // NVML_SYSTEM_DRIVER_VERSION_BUFFER_SIZE is 80
    if (system_get_driver_version == nullptr ||
        system_get_driver_version(text, sizeof(text) - 1) != nvml_code::kSuccess)
        return {};
    return text;
}

NvmlDevice NvmlApi::device_at(const std::string& pci) const {
    NvmlDevice device = nullptr;
    if (device_get_handle_by_pci_bus_id == nullptr ||
        device_get_handle_by_pci_bus_id(pci.c_str(), &device) != nvml_code::kSuccess)
        return nullptr;
    return device;
}

Result<MemoryInfo> NvmlApi::memory(NvmlDevice device) const {
    constexpr std::string_view kWhat = "the GPU's free memory";
    NvmlReturn result = 0;
    if (device_get_memory_info_v2 != nullptr) {
        NvmlMemoryV2 v2{};
        v2.version = kNvmlMemoryVersion2;
        result = device_get_memory_info_v2(device, &v2);
        // `reserved` belongs to driver and firmware and can never be ours; CUDA's total leaves it out, too.
        if (result == nvml_code::kSuccess)
            return MemoryInfo{{v2.reserved < v2.total ? v2.total - v2.reserved : v2.total}, {v2.free}};
        if (Error error = nvml_error(result, kWhat); error.code == Errc::gpu_lost) return error;
    }
    if (device_get_memory_info != nullptr) {
        NvmlMemory v1{};
        result = device_get_memory_info(device, &v1);
        if (result == nvml_code::kSuccess) return MemoryInfo{{v1.total}, {v1.free}};
    }
    return nvml_error(result, kWhat);
}

Answer NvmlApi::display(NvmlDevice device) const {
    // Active first: it tells of a screen that holds memory. The display mode is a setting, on for an H100
    // too.
    for (auto* question : {device_get_display_active, device_get_display_mode}) {
        int on = 0;
        if (question != nullptr && question(device, &on) == nvml_code::kSuccess)
            return on != 0 ? Answer::yes : Answer::no;
    }
    return Answer::unknown;
}

Answer NvmlApi::mig(NvmlDevice device) const {
    unsigned current = 0;
    unsigned pending = 0;
    if (device_get_mig_mode == nullptr ||
        device_get_mig_mode(device, &current, &pending) != nvml_code::kSuccess)
        return Answer::unknown;
    return current == kNvmlMigEnable ? Answer::yes : Answer::no;
}

Answer NvmlApi::confidential() const {
    NvmlConfComputeState state{};
    if (system_get_conf_compute_state == nullptr ||
        system_get_conf_compute_state(&state) != nvml_code::kSuccess)
        return Answer::unknown;
    return state.cc_feature == kNvmlCcEnabled ? Answer::yes : Answer::no;
}

}  // namespace vramswap::cuda
