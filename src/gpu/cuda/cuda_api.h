// SPDX-License-Identifier: MIT
// The part of the CUDA driver API that vramswap uses, with own types, so that building needs no CUDA toolkit.
// Source of every type, value and exported name: cuda.h and cudaTypedefs.h of CUDA 13.0. The exported names
// carry the version of the ABI: plain cuMemAlloc is the one with 32-bit sizes.
//
// Owner: CudaDriver loads it, backends and queues share it. Constant after load_cuda(), so any thread may
// read it. Which of the functions may block or enter the kernel: copies, event records and queries, stream
// queries and write-values do not after a first use of their kind; everything else may, and may allocate.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "base/result.h"
#include "gpu/backend.h"

namespace vramswap::cuda {

using CuResult = int;                         // CUresult
using CuDevice = int;                         // CUdevice
using CuDevicePtr = std::uint64_t;            // CUdeviceptr
using CuMemHandle = std::uint64_t;            // CUmemGenericAllocationHandle
using CuContext = struct CuContextOpaque*;    // CUcontext
using CuStream = struct CuStreamOpaque*;      // CUstream
using CuEvent = struct CuEventOpaque*;        // CUevent
using CuModule = struct CuModuleOpaque*;      // CUmodule
using CuFunction = struct CuFunctionOpaque*;  // CUfunction

/// CUresult values that are treated in their own way (CUDA 13.0, cudaError_enum).
namespace code {
inline constexpr CuResult kSuccess = 0;
inline constexpr CuResult kInvalidValue = 1;
inline constexpr CuResult kOutOfMemory = 2;
inline constexpr CuResult kDeinitialized = 4;
inline constexpr CuResult kStubLibrary = 34;
inline constexpr CuResult kDeviceUnavailable = 46;
inline constexpr CuResult kNoDevice = 100;
inline constexpr CuResult kInvalidDevice = 101;
inline constexpr CuResult kEccUncorrectable = 214;
inline constexpr CuResult kNvlinkUncorrectable = 220;
inline constexpr CuResult kContained = 226;
inline constexpr CuResult kOperatingSystem = 304;
inline constexpr CuResult kNotReady = 600;
inline constexpr CuResult kIllegalAddress = 700;
inline constexpr CuResult kLaunchTimeout = 702;
inline constexpr CuResult kContextIsDestroyed = 709;
inline constexpr CuResult kAssert = 710;
inline constexpr CuResult kHostMemoryAlreadyRegistered = 712;
inline constexpr CuResult kHostMemoryNotRegistered = 713;
inline constexpr CuResult kHardwareStackError = 714;
inline constexpr CuResult kLaunchFailed = 719;
inline constexpr CuResult kTensorMemoryLeak = 721;
inline constexpr CuResult kNotSupported = 801;
inline constexpr CuResult kSystemNotReady = 802;
inline constexpr CuResult kSystemDriverMismatch = 803;
inline constexpr CuResult kCompatNotSupportedOnDevice = 804;
inline constexpr CuResult kMpsClientTerminated = 810;
inline constexpr CuResult kExternalDevice = 911;
inline constexpr CuResult kKeyRotation = 916;
inline constexpr CuResult kUnknown = 999;
}  // namespace code

/// CUdevice_attribute.
enum class Attribute : int {
    integrated = 18,
    compute_mode = 20,
    compute_capability_major = 75,
    compute_capability_minor = 76,
    can_use_host_pointer_for_registered_mem = 91,
    can_use_stream_mem_ops_v1 = 92,
    virtual_memory_management_supported = 102,
    handle_type_posix_file_descriptor_supported = 103,
};

/// CUcomputemode.
inline constexpr int kComputeModeProhibited = 2;
inline constexpr int kComputeModeExclusiveProcess = 3;

inline constexpr unsigned kContextSchedBlockingSync = 0x04;  // CU_CTX_SCHED_BLOCKING_SYNC
inline constexpr unsigned kHostRegisterPortable = 0x01;      // CU_MEMHOSTREGISTER_PORTABLE
inline constexpr unsigned kHostRegisterDeviceMap = 0x02;     // CU_MEMHOSTREGISTER_DEVICEMAP
inline constexpr unsigned kStreamNonBlocking = 0x1;          // CU_STREAM_NON_BLOCKING
inline constexpr unsigned kEventDisableTiming = 0x2;         // CU_EVENT_DISABLE_TIMING
inline constexpr unsigned kWriteValueDefault = 0x0;  // CU_STREAM_WRITE_VALUE_DEFAULT: fences earlier writes
inline constexpr int kAllocationTypePinned = 1;      // CU_MEM_ALLOCATION_TYPE_PINNED
inline constexpr int kHandleTypePosixFd = 1;         // CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
inline constexpr int kLocationTypeDevice = 1;        // CU_MEM_LOCATION_TYPE_DEVICE
inline constexpr int kAccessReadWrite = 3;           // CU_MEM_ACCESS_FLAGS_PROT_READWRITE
inline constexpr int kGranularityMinimum = 0;        // CU_MEM_ALLOC_GRANULARITY_MINIMUM
inline constexpr int kSrcAccessOrderStream = 1;      // CU_MEMCPY_SRC_ACCESS_ORDER_STREAM

struct CuUuid {  // CUuuid
    unsigned char bytes[16];
};

struct CuMemLocation {  // CUmemLocation
    int type;
    int id;
};

struct CuMemAllocationProp {  // CUmemAllocationProp_v1
    int type;
    int requested_handle_types;
    CuMemLocation location;
    void* win32_handle_meta_data;
    unsigned char compression_type;
    unsigned char gpu_direct_rdma_capable;
    unsigned short usage;
    unsigned char reserved[4];
};
static_assert(sizeof(CuMemAllocationProp) == 32 && alignof(CuMemAllocationProp) == 8);
static_assert(offsetof(CuMemAllocationProp, location) == 8 && offsetof(CuMemAllocationProp, usage) == 26);

struct CuMemAccessDesc {  // CUmemAccessDesc_v1
    CuMemLocation location;
    int flags;
};
static_assert(sizeof(CuMemAccessDesc) == 12 && offsetof(CuMemAccessDesc, flags) == 8);

struct CuMemcpyAttributes {  // CUmemcpyAttributes_v1
    int src_access_order;
    CuMemLocation src_location_hint;
    CuMemLocation dst_location_hint;
    unsigned flags;
};
static_assert(sizeof(CuMemcpyAttributes) == 24 && offsetof(CuMemcpyAttributes, flags) == 20);

/// CUDA 11.0: the first driver (R450) with every required symbol.
inline constexpr int kDriverVersionMin = 11000;

/// The entry points. Optional ones are null if the driver is older than they are.
struct CudaApi {
    std::string library;     ///< as it was opened, for messages
    int driver_version = 0;  ///< 13000 = CUDA 13.0

    CuResult (*init)(unsigned flags) = nullptr;
    CuResult (*driver_get_version)(int* version) = nullptr;
    CuResult (*get_error_name)(CuResult, const char** text) = nullptr;
    CuResult (*get_error_string)(CuResult, const char** text) = nullptr;

    CuResult (*device_get_count)(int* count) = nullptr;
    CuResult (*device_get)(CuDevice*, int ordinal) = nullptr;
    CuResult (*device_get_name)(char* name, int length, CuDevice) = nullptr;
    CuResult (*device_get_pci_bus_id)(char* id, int length, CuDevice) = nullptr;
    CuResult (*device_total_mem)(std::size_t* bytes, CuDevice) = nullptr;
    CuResult (*device_get_attribute)(int* value, Attribute, CuDevice) = nullptr;
    CuResult (*device_get_uuid)(CuUuid*, CuDevice) = nullptr;     // optional: 9.2
    CuResult (*device_get_uuid_v2)(CuUuid*, CuDevice) = nullptr;  // optional: 11.4

    CuResult (*ctx_create)(CuContext*, unsigned flags, CuDevice) = nullptr;
    CuResult (*ctx_destroy)(CuContext) = nullptr;
    CuResult (*ctx_set_current)(CuContext) = nullptr;
    CuResult (*ctx_push_current)(CuContext) = nullptr;
    CuResult (*ctx_pop_current)(CuContext*) = nullptr;

    CuResult (*mem_get_info)(std::size_t* free, std::size_t* total) = nullptr;
    CuResult (*mem_alloc)(CuDevicePtr*, std::size_t bytes) = nullptr;
    CuResult (*mem_free)(CuDevicePtr) = nullptr;
    CuResult (*mem_host_register)(void*, std::size_t bytes, unsigned flags) = nullptr;
    CuResult (*mem_host_unregister)(void*) = nullptr;
    CuResult (*mem_host_get_device_pointer)(CuDevicePtr*, void* host, unsigned flags) = nullptr;

    // Virtual memory management: optional as a group, since 10.2. The last argument `flags` is always 0.
    CuResult (*mem_get_allocation_granularity)(std::size_t*, const CuMemAllocationProp*,
                                               int option) = nullptr;
    CuResult (*mem_create)(CuMemHandle*, std::size_t bytes, const CuMemAllocationProp*,
                           unsigned long long flags) = nullptr;
    CuResult (*mem_release)(CuMemHandle) = nullptr;
    CuResult (*mem_address_reserve)(CuDevicePtr*, std::size_t bytes, std::size_t alignment, CuDevicePtr hint,
                                    unsigned long long flags) = nullptr;
    CuResult (*mem_address_free)(CuDevicePtr, std::size_t bytes) = nullptr;
    CuResult (*mem_map)(CuDevicePtr, std::size_t bytes, std::size_t offset, CuMemHandle,
                        unsigned long long flags) = nullptr;
    CuResult (*mem_unmap)(CuDevicePtr, std::size_t bytes) = nullptr;
    CuResult (*mem_set_access)(CuDevicePtr, std::size_t bytes, const CuMemAccessDesc*,
                               std::size_t count) = nullptr;
    CuResult (*mem_export_to_shareable_handle)(void* out, CuMemHandle, int type,
                                               unsigned long long flags) = nullptr;
    /// The descriptor is passed cast to a pointer; the caller keeps it.
    CuResult (*mem_import_from_shareable_handle)(CuMemHandle*, void* fd, int type) = nullptr;

    CuResult (*memcpy_htod_async)(CuDevicePtr to, const void* from, std::size_t bytes, CuStream) = nullptr;
    CuResult (*memcpy_dtoh_async)(void* to, CuDevicePtr from, std::size_t bytes, CuStream) = nullptr;
    CuResult (*memcpy_dtod_async)(CuDevicePtr to, CuDevicePtr from, std::size_t bytes, CuStream) = nullptr;
    /// optional: 12.8. The plain name has nine arguments; it keeps that ABI in 13.0.
    CuResult (*memcpy_batch_async)(CuDevicePtr* to, CuDevicePtr* from, std::size_t* bytes, std::size_t count,
                                   CuMemcpyAttributes*, std::size_t* attribute_starts, std::size_t attributes,
                                   std::size_t* fail_index, CuStream) = nullptr;
    /// optional: 13.0.
    CuResult (*memcpy_batch_async_v2)(CuDevicePtr* to, CuDevicePtr* from, std::size_t* bytes,
                                      std::size_t count, CuMemcpyAttributes*, std::size_t* attribute_starts,
                                      std::size_t attributes, CuStream) = nullptr;

    CuResult (*stream_create)(CuStream*, unsigned flags) = nullptr;
    CuResult (*stream_destroy)(CuStream) = nullptr;
    CuResult (*stream_query)(CuStream) = nullptr;
    CuResult (*stream_synchronize)(CuStream) = nullptr;
    /// optional: 8.0; works only if attribute 92 says so (nvidia.ko has it off by default).
    CuResult (*stream_write_value32)(CuStream, CuDevicePtr, std::uint32_t value, unsigned flags) = nullptr;
    /// optional: 11.7; needs no attribute.
    CuResult (*stream_write_value32_v2)(CuStream, CuDevicePtr, std::uint32_t value, unsigned flags) = nullptr;

    CuResult (*event_create)(CuEvent*, unsigned flags) = nullptr;
    CuResult (*event_record)(CuEvent, CuStream) = nullptr;
    CuResult (*event_query)(CuEvent) = nullptr;
    CuResult (*event_destroy)(CuEvent) = nullptr;

    // For EngineMode::turbo: optional as a group. PTX is a text that ends with 0.
    CuResult (*module_load_data)(CuModule*, const void* ptx) = nullptr;
    CuResult (*module_get_function)(CuFunction*, CuModule, const char* name) = nullptr;
    CuResult (*launch_kernel)(CuFunction, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                              unsigned block_y, unsigned block_z, unsigned shared_bytes, CuStream,
                              void** parameters, void** extra) = nullptr;

    /// Every symbol of virtual memory management and of sharing by descriptor is there.
    [[nodiscard]] bool has_virtual_memory() const;
};

/// Opens the library and resolves the table; it is never closed, since libcuda keeps threads and exit
/// handlers. Does not initialise the driver. Errors: unavailable, naming library or symbol, with the remedy.
Result<std::shared_ptr<const CudaApi>> load_cuda(const std::string& library);

/// cuInit, with a message per known cause. May be called again. Prepares the environment that libcuda reads
/// then.
Result<void> initialise(const CudaApi& api);

/// "CUDA_ERROR_OUT_OF_MEMORY (2): out of memory".
[[nodiscard]] std::string describe(const CudaApi& api, CuResult result);

/// "`what` failed: " with the description. Codes: no_memory, busy, exists, gpu_lost (see classify), else
/// failed.
[[nodiscard]] Error failure(const CudaApi& api, CuResult result, std::string_view what);

/// What an error of a started driver means for this process.
enum class Damage : std::uint8_t {
    none,     ///< the call failed, the context is well
    suspect,  ///< CUDA_ERROR_UNKNOWN: harmless once, a lost context when repeated
    context,  ///< this process can no longer use the GPU; a new one can
    gpu,      ///< the GPU is gone
};
[[nodiscard]] Damage classify(CuResult result);

}  // namespace vramswap::cuda
