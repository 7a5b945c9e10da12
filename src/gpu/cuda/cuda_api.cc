// SPDX-License-Identifier: MIT
#include "gpu/cuda/cuda_api.h"

#include <dlfcn.h>
#include <fmt/format.h>

#include <cstdlib>
#include <string_view>

namespace vramswap::cuda {
namespace {

enum class Need : std::uint8_t { required, optional };

struct Symbol {
    const char* name;
    Need need;
    void (*bind)(CudaApi& api, void* address);
};

template <typename F>
void assign(F& slot, void* address) {
    slot = reinterpret_cast<F>(address);
}
template <auto Member>
void bind(CudaApi& api, void* address) {
    assign(api.*Member, address);
}

constexpr Need kRequired = Need::required;
constexpr Need kOptional = Need::optional;

/// The one table of what is taken from libcuda. Names: `nm -D` of libcuda.so of CUDA 13.0.
constexpr Symbol kSymbols[] = {
    {"cuInit", kRequired, bind<&CudaApi::init>},
    {"cuDriverGetVersion", kRequired, bind<&CudaApi::driver_get_version>},
    {"cuGetErrorName", kRequired, bind<&CudaApi::get_error_name>},
    {"cuGetErrorString", kRequired, bind<&CudaApi::get_error_string>},
    {"cuDeviceGetCount", kRequired, bind<&CudaApi::device_get_count>},
    {"cuDeviceGet", kRequired, bind<&CudaApi::device_get>},
    {"cuDeviceGetName", kRequired, bind<&CudaApi::device_get_name>},
    {"cuDeviceGetPCIBusId", kRequired, bind<&CudaApi::device_get_pci_bus_id>},
    {"cuDeviceTotalMem_v2", kRequired, bind<&CudaApi::device_total_mem>},
    {"cuDeviceGetAttribute", kRequired, bind<&CudaApi::device_get_attribute>},
    {"cuDeviceGetUuid", kOptional, bind<&CudaApi::device_get_uuid>},
    {"cuDeviceGetUuid_v2", kOptional, bind<&CudaApi::device_get_uuid_v2>},
    {"cuCtxCreate_v2", kRequired, bind<&CudaApi::ctx_create>},
    {"cuCtxDestroy_v2", kRequired, bind<&CudaApi::ctx_destroy>},
    {"cuCtxSetCurrent", kRequired, bind<&CudaApi::ctx_set_current>},
    {"cuCtxPushCurrent_v2", kRequired, bind<&CudaApi::ctx_push_current>},
    {"cuCtxPopCurrent_v2", kRequired, bind<&CudaApi::ctx_pop_current>},
    {"cuMemGetInfo_v2", kRequired, bind<&CudaApi::mem_get_info>},
    {"cuMemAlloc_v2", kRequired, bind<&CudaApi::mem_alloc>},
    {"cuMemFree_v2", kRequired, bind<&CudaApi::mem_free>},
    {"cuMemHostRegister_v2", kRequired, bind<&CudaApi::mem_host_register>},
    {"cuMemHostUnregister", kRequired, bind<&CudaApi::mem_host_unregister>},
    {"cuMemHostGetDevicePointer_v2", kRequired, bind<&CudaApi::mem_host_get_device_pointer>},
    {"cuMemGetAllocationGranularity", kOptional, bind<&CudaApi::mem_get_allocation_granularity>},
    {"cuMemCreate", kOptional, bind<&CudaApi::mem_create>},
    {"cuMemRelease", kOptional, bind<&CudaApi::mem_release>},
    {"cuMemAddressReserve", kOptional, bind<&CudaApi::mem_address_reserve>},
    {"cuMemAddressFree", kOptional, bind<&CudaApi::mem_address_free>},
    {"cuMemMap", kOptional, bind<&CudaApi::mem_map>},
    {"cuMemUnmap", kOptional, bind<&CudaApi::mem_unmap>},
    {"cuMemSetAccess", kOptional, bind<&CudaApi::mem_set_access>},
    {"cuMemExportToShareableHandle", kOptional, bind<&CudaApi::mem_export_to_shareable_handle>},
    {"cuMemImportFromShareableHandle", kOptional, bind<&CudaApi::mem_import_from_shareable_handle>},
    {"cuMemcpyHtoDAsync_v2", kRequired, bind<&CudaApi::memcpy_htod_async>},
    {"cuMemcpyDtoHAsync_v2", kRequired, bind<&CudaApi::memcpy_dtoh_async>},
    {"cuMemcpyDtoDAsync_v2", kRequired, bind<&CudaApi::memcpy_dtod_async>},
    {"cuMemcpyBatchAsync", kOptional, bind<&CudaApi::memcpy_batch_async>},
    {"cuMemcpyBatchAsync_v2", kOptional, bind<&CudaApi::memcpy_batch_async_v2>},
    {"cuModuleLoadData", kOptional, bind<&CudaApi::module_load_data>},
    {"cuModuleGetFunction", kOptional, bind<&CudaApi::module_get_function>},
    {"cuLaunchKernel", kOptional, bind<&CudaApi::launch_kernel>},
    {"cuStreamCreate", kRequired, bind<&CudaApi::stream_create>},
    {"cuStreamDestroy_v2", kRequired, bind<&CudaApi::stream_destroy>},
    {"cuStreamQuery", kRequired, bind<&CudaApi::stream_query>},
    {"cuStreamSynchronize", kRequired, bind<&CudaApi::stream_synchronize>},
    {"cuStreamWriteValue32", kOptional, bind<&CudaApi::stream_write_value32>},
    {"cuStreamWriteValue32_v2", kOptional, bind<&CudaApi::stream_write_value32_v2>},
    {"cuEventCreate", kRequired, bind<&CudaApi::event_create>},
    {"cuEventRecord", kRequired, bind<&CudaApi::event_record>},
    {"cuEventQuery", kRequired, bind<&CudaApi::event_query>},
    {"cuEventDestroy_v2", kRequired, bind<&CudaApi::event_destroy>},
};

Error cannot_open(const std::string& library) {
    const char* why = ::dlerror();
    return Error{Errc::unavailable, 0,
                 fmt::format("CUDA library {} cannot be opened: {}", library,
                             why == nullptr ? "no reason given" : why),
                 "Install the NVIDIA driver with its CUDA library (Debian: libcuda1; Fedora: "
                 "xorg-x11-drv-nvidia-cuda; containers: the NVIDIA container toolkit)"};
}

Error too_old(const CudaApi& api) {
    return Error{Errc::unavailable, 0,
                 fmt::format("{} is too old: it supports CUDA {}.{}, needed is {}.{}", api.library,
                             api.driver_version / 1000, api.driver_version % 1000 / 10,
                             kDriverVersionMin / 1000, kDriverVersionMin % 1000 / 10),
                 "Install NVIDIA driver 450 or newer"};
}

Error no_symbol(const std::string& library, const char* name) {
    return Error{Errc::unavailable, 0, fmt::format("{} lacks the function {}", library, name),
                 "It is no complete NVIDIA driver library; install NVIDIA driver 450 or newer and check "
                 "LD_LIBRARY_PATH"};
}

/// What a user does about an error of cuInit.
std::string_view init_remedy(CuResult result) {
    switch (result) {
        case code::kStubLibrary:
            return "This is the toolkit's stub for linking, not the driver: remove the toolkit's \"stubs\" "
                   "folder from "
                   "LD_LIBRARY_PATH and /etc/ld.so.conf.d";
        case code::kNoDevice:
            return "The driver sees no GPU: check nvidia-smi, CUDA_VISIBLE_DEVICES, and in a container that "
                   "the GPU "
                   "and /dev/nvidia* were passed in";
        case code::kInvalidDevice:
            return "Check CUDA_VISIBLE_DEVICES, and nvidia-smi for a GPU that has fallen off the bus";
        case code::kSystemNotReady:
            return "Start the services this system needs first (NVSwitch systems: nvidia-fabricmanager)";
        case code::kSystemDriverMismatch:
            return "The kernel module and the library are of different driver versions, as after an upgrade: "
                   "reboot, "
                   "or unload and load the nvidia modules";
        case code::kCompatNotSupportedOnDevice:
            return "The forward-compatibility package does not support this GPU: remove cuda-compat from "
                   "LD_LIBRARY_PATH so that the installed driver's own library is found";
        case code::kOperatingSystem:
        case code::kUnknown:
            return "Check that the modules nvidia and nvidia-uvm are loaded (nvidia-modprobe -u -c 0) and "
                   "that "
                   "/dev/nvidia* may be opened; the kernel log names the cause";
        default:
            return "Check that nvidia-smi works; the kernel log names the cause";
    }
}

}  // namespace

bool CudaApi::has_virtual_memory() const {
    return mem_get_allocation_granularity != nullptr && mem_create != nullptr && mem_release != nullptr &&
           mem_address_reserve != nullptr && mem_address_free != nullptr && mem_map != nullptr &&
           mem_unmap != nullptr && mem_set_access != nullptr && mem_export_to_shareable_handle != nullptr &&
           mem_import_from_shareable_handle != nullptr;
}

Result<std::shared_ptr<const CudaApi>> load_cuda(const std::string& library) {
    void* handle = ::dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) return cannot_open(library);
    auto api = std::make_shared<CudaApi>();
    api->library = library;
    const char* missing = nullptr;
    for (const Symbol& symbol : kSymbols) {
        void* address = ::dlsym(handle, symbol.name);
        if (address != nullptr)
            symbol.bind(*api, address);
        else if (symbol.need == Need::required && missing == nullptr)
            missing = symbol.name;
    }
    // The version comes first: an old driver lacks symbols, and its age is the better message.
    const bool known = api->driver_get_version != nullptr &&
                       api->driver_get_version(&api->driver_version) == code::kSuccess &&
                       api->driver_version > 0;
    if (known && api->driver_version < kDriverVersionMin) return too_old(*api);
    if (missing != nullptr) return no_symbol(library, missing);
    return std::shared_ptr<const CudaApi>(std::move(api));
}

Result<void> initialise(const CudaApi& api) {
    // No kernel cache below $HOME: a root daemon shall neither write there nor read what others may have
    // planted.
    ::setenv("CUDA_CACHE_DISABLE", "1", 0);
    // No MPS daemon: a fault of one MPS client kills all others on the GPU. libcuda looks for a daemon's pipe
    // in this folder, which only root could make.
    ::setenv("CUDA_MPS_PIPE_DIRECTORY", "/nonexistent/vramswap-uses-no-mps", 0);
    const CuResult result = api.init(0);
    if (result == code::kSuccess) return {};
    return Error{Errc::unavailable, 0,
                 fmt::format("{}: cuInit failed: {}", api.library, describe(api, result)),
                 std::string(init_remedy(result))};
}

std::string describe(const CudaApi& api, CuResult result) {
    const char* name = nullptr;
    const char* text = nullptr;
    // Stub libraries and newer errors have no text.
    if (api.get_error_name(result, &name) != code::kSuccess || name == nullptr) name = "CUDA error";
    if (api.get_error_string(result, &text) != code::kSuccess || text == nullptr) text = "";
    return fmt::format("{} ({}){}{}", name, result, *text == '\0' ? "" : ": ", text);
}

Error failure(const CudaApi& api, CuResult result, std::string_view what) {
    Errc errc = Errc::failed;
    std::string hint;
    if (result == code::kOutOfMemory) {
        errc = Errc::no_memory;
    } else if (result == code::kDeviceUnavailable) {
        errc = Errc::busy;
        hint = "Another process holds the GPU for itself (compute mode EXCLUSIVE_PROCESS)";
    } else if (result == code::kHostMemoryAlreadyRegistered) {
        errc = Errc::exists;
    } else if (classify(result) == Damage::context || classify(result) == Damage::gpu) {
        errc = Errc::gpu_lost;
        hint = "This process can no longer use the GPU; the kernel log (\"Xid\") names the cause";
    }
    return Error{errc, 0, fmt::format("{} failed: {}", what, describe(api, result)), std::move(hint)};
}

Damage classify(CuResult result) {
    switch (result) {
        // cuda.h: "the process must be terminated and relaunched" (710: all allocations of the context are
        // invalid).
        case code::kContained:
        case code::kIllegalAddress:
        case code::kLaunchTimeout:
        case code::kAssert:
        case code::kHardwareStackError:
        case code::kHardwareStackError + 1:  // 715 ILLEGAL_INSTRUCTION
        case code::kHardwareStackError + 2:  // 716 MISALIGNED_ADDRESS
        case code::kHardwareStackError + 3:  // 717 INVALID_ADDRESS_SPACE
        case code::kHardwareStackError + 4:  // 718 INVALID_PC
        case code::kLaunchFailed:
        case code::kTensorMemoryLeak:
        case code::kMpsClientTerminated:
        case code::kExternalDevice:
        // Not said there, but nothing works after them either. An ECC error may have hit a few pages only:
        // checksums find them, so it must not count as the loss of all.
        case code::kDeinitialized:
        case code::kDeviceUnavailable:
        case code::kEccUncorrectable:
        case code::kNvlinkUncorrectable:
        case code::kOperatingSystem:
        case code::kContextIsDestroyed:
        case code::kKeyRotation:
            return Damage::context;
        // The device was there at the start.
        case code::kNoDevice:
        case code::kInvalidDevice:
            return Damage::gpu;
        case code::kUnknown:
            return Damage::suspect;
        default:
            return Damage::none;
    }
}

}  // namespace vramswap::cuda
