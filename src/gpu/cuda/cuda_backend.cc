// SPDX-License-Identifier: MIT
#include "gpu/cuda/cuda_backend.h"

#include <fcntl.h>
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/clock.h"
#include "base/log.h"
#include "gpu/cuda/cuda_queue.h"
#include "gpu/cuda/gpu_usage.h"
#include "gpu/cuda/host_registry.h"
#include "gpu/cuda/page_launcher.h"

namespace vramswap::cuda {
namespace {

/// Of cuMemAlloc: it gives what it likes from 512 bytes up; large sizes come in pages of 2 MiB.
constexpr Bytes kPlainGranularity = mib(2);

/// NVML's samples of the GPU's use are of up to a second, and come as late.
constexpr std::uint64_t kUseToldNs = 2'000'000'000;

std::uint64_t next_backend_id() {
    static std::atomic<std::uint64_t> last{0};
    return last.fetch_add(1) + 1;
}

/// Memory on the GPU that can be exported as a descriptor.
CuMemAllocationProp exportable(CuDevice device) {
    CuMemAllocationProp prop{};
    prop.type = kAllocationTypePinned;
    prop.requested_handle_types = kHandleTypePosixFd;
    prop.location = {kLocationTypeDevice, device};
    return prop;
}

bool attribute(const CudaApi& api, Attribute attribute, CuDevice device) {
    int value = 0;
    return api.device_get_attribute(&value, attribute, device) == code::kSuccess && value != 0;
}

/// Makes and exports one smallest segment: some containers and kernels refuse although the attributes promise
/// it.
CuResult try_export(const CudaApi& api, CuDevice device, Bytes size) {
    const CuMemAllocationProp prop = exportable(device);
    CuMemHandle handle = 0;
    CuResult result = api.mem_create(&handle, size.n, &prop, 0);
    if (result != code::kSuccess) return result;
    int fd = -1;
    result = api.mem_export_to_shareable_handle(&fd, handle, kHandleTypePosixFd, 0);
    const UniqueFd owned(result == code::kSuccess ? fd : -1);
    (void)api.mem_release(handle);
    return result;
}

/// None where the GPU cannot reach host memory by the CPU's address, or the driver compiles no PTX (its
/// compiler is a package of its own on some distributions): then all is done in mode copy. REQUIRES: the
/// context is current.
PageKernels load_kernels(const CudaApi& api, CuDevice device) {
    if (api.module_load_data == nullptr || api.module_get_function == nullptr ||
        api.launch_kernel == nullptr ||
        !attribute(api, Attribute::can_use_host_pointer_for_registered_mem, device))
        return {};
    CuModule module = nullptr;
    PageKernels kernels;
    CuResult result = api.module_load_data(&module, page_kernels_ptx().c_str());
    if (result == code::kSuccess)
        result = api.module_get_function(&kernels.small, module, kPageKernelSmallName);
    if (result == code::kSuccess)
        result = api.module_get_function(&kernels.large, module, kPageKernelLargeName);
    if (result == code::kSuccess) return kernels;
    log_warning("mode turbo is not available: {}", describe(api, result));
    return {};
}

/// What the GPU can do. REQUIRES: its context is current.
Result<Caps> find_caps(const CudaApi& api, CuDevice device) {
    const Caps plain{kPlainGranularity, false};
    if (!api.has_virtual_memory() ||
        !attribute(api, Attribute::virtual_memory_management_supported, device) ||
        !attribute(api, Attribute::handle_type_posix_file_descriptor_supported, device))
        return plain;
    const CuMemAllocationProp prop = exportable(device);
    std::size_t granularity = 0;
    if (api.mem_get_allocation_granularity(&granularity, &prop, kGranularityMinimum) != code::kSuccess ||
        granularity == 0)
        return plain;
    const CuResult result = try_export(api, device, {granularity});
    if (result == code::kSuccess) return Caps{{granularity}, true};
    // Full is not incapable: deciding for plain memory now would cost exports for ever.
    if (result == code::kOutOfMemory || classify(result) != Damage::none)
        return failure(api, result, fmt::format("allocating {} on the GPU", format_size({granularity})));
    return plain;
}

}  // namespace

Result<std::unique_ptr<Backend>> CudaBackend::create(CudaHandles handles, GpuInfo info) {
    const std::string name = fmt::format("GPU {} ({})", info.selector(), info.name);
    auto context = OwnedContext::create(handles.api, handles.device);
    if (!context) return std::move(context.error()).in(name);
    PageKernels kernels;
    Result<Caps> caps = [&]() -> Result<Caps> {
        const ContextScope scope(*handles.api, (*context)->get());
        if (scope.result() != code::kSuccess)
            return failure(*handles.api, scope.result(), "cuCtxPushCurrent");
        kernels = load_kernels(*handles.api, handles.device);
        return find_caps(*handles.api, handles.device);
    }();
    if (!caps) return std::move(caps.error()).in(name);
    caps->turbo = kernels.small != nullptr;
    return std::unique_ptr<Backend>(std::make_unique<CudaBackend>(std::move(handles), *std::move(context),
                                                                  std::move(info), *caps, kernels));
}

CudaBackend::CudaBackend(CudaHandles handles, std::shared_ptr<OwnedContext> context, GpuInfo info, Caps caps,
                         PageKernels kernels)
    : Backend(std::move(info), caps),
      handles_(std::move(handles)),
      kernels_(kernels),
      context_(std::move(context)),
      id_(next_backend_id()),
      slots_(kSegmentsMax),
      segments_(kSegmentsMax) {}

CudaBackend::~CudaBackend() {
    launcher_.reset();
    HostRegistry::of_process().remove_all(*context_);
    // After a loss the driver frees nothing and its calls may hang for a minute; the end of the process does
    // it all.
    if (health() != Health::good) return;
    std::vector<Segment> segments;
    {
        const MutexLock lock(mutex_);
        segments.swap(segments_);
    }
    const ContextScope scope(api(), context());
    for (const Segment& segment : segments)
        if (segment.size.n != 0) (void)release(segment);
}

CuResult CudaBackend::make_current() const {
    thread_local std::uint64_t current_id = 0;
    if (current_id == id_) return code::kSuccess;
    const CuResult result = api().ctx_set_current(context());
    if (result == code::kSuccess) current_id = id_;
    return result;
}

void CudaBackend::lose(Health health_now) {
    context_->abandon();
    // Two threads may race here; the worst is that the loss of the GPU passes as that of the context until
    // the new process meets it again.
    if (health() != Health::gpu_lost) set_health(health_now);
}

void CudaBackend::report(CuResult result) {
    switch (classify(result)) {
        case Damage::none:
            return;
        case Damage::suspect:
            if (suspects_.fetch_add(1, std::memory_order_relaxed) > 0) lose(Health::context_lost);
            return;
        case Damage::context:
            return lose(Health::context_lost);
        case Damage::gpu:
            return lose(Health::gpu_lost);
    }
}

Error CudaBackend::fail(CuResult result, std::string_view what) {
    report(result);
    return failure(api(), result, what);
}

Error CudaBackend::lost() const {
    return Error{Errc::gpu_lost, 0,
                 fmt::format("GPU {} can no longer be used by this process: {}", info().selector(),
                             health() == Health::gpu_lost ? "the GPU is gone" : "its CUDA context is broken"),
                 "The kernel log (\"Xid\") names the cause"};
}

/// Every control call begins so. After a loss the driver is not asked again: its calls may hang for a minute.
Result<void> CudaBackend::enter(const ContextScope& scope) {
    if (health() != Health::good) return lost();
    if (scope.result() != code::kSuccess) return fail(scope.result(), "cuCtxPushCurrent");
    return {};
}

CudaBackend::Place CudaBackend::place(SegmentId segment) const {
    if (segment.n >= kSegmentsMax) return {};
    const Slot& slot = slots_[segment.n];
    const std::uint64_t bytes = slot.bytes.load(std::memory_order_acquire);
    return {slot.address.load(std::memory_order_relaxed), bytes};
}

bool CudaBackend::do_has_segment(SegmentId segment) const {
    return place(segment).bytes != 0;
}

/// Gives the segment the lowest free number; frees it if there is none left.
Result<SegmentId> CudaBackend::publish(Segment segment) {
    {
        const MutexLock lock(mutex_);
        const auto free = std::ranges::find_if(segments_, [](const Segment& s) { return s.size.n == 0; });
        if (free != segments_.end()) {
            *free = segment;
            const auto n = static_cast<std::uint32_t>(free - segments_.begin());
            slots_[n].address.store(segment.address, std::memory_order_relaxed);
            slots_[n].bytes.store(segment.size.n, std::memory_order_release);
            return SegmentId{n};
        }
    }
    (void)release(segment);
    return Error{Errc::no_memory, 0, fmt::format("all {} GPU segments are in use", kSegmentsMax),
                 "Use larger segments"};
}

/// Unmaps and frees; tries every step and returns the first error. REQUIRES: the context is current.
CuResult CudaBackend::release(const Segment& segment) {
    if (segment.handle == 0) return api().mem_free(segment.address);
    const CuResult results[] = {api().mem_unmap(segment.address, segment.size.n),
                                api().mem_address_free(segment.address, segment.size.n),
                                api().mem_release(segment.handle)};
    const auto* bad = std::ranges::find_if(results, [](CuResult r) { return r != code::kSuccess; });
    return bad == std::end(results) ? code::kSuccess : *bad;
}

/// Makes memory accessible at an address of its own.
Result<CuDevicePtr> CudaBackend::map_handle(CuMemHandle handle, Bytes size) {
    CuDevicePtr address = 0;
    CuResult result = api().mem_address_reserve(&address, size.n, 0, 0, 0);
    if (result != code::kSuccess)
        return fail(result, fmt::format("cuMemAddressReserve of {}", format_size(size)));
    result = api().mem_map(address, size.n, 0, handle, 0);
    if (result != code::kSuccess) {
        (void)api().mem_address_free(address, size.n);
        return fail(result, fmt::format("cuMemMap of {}", format_size(size)));
    }
    const CuMemAccessDesc access{{kLocationTypeDevice, handles_.device}, kAccessReadWrite};
    result = api().mem_set_access(address, size.n, &access, 1);
    if (result != code::kSuccess) {
        (void)api().mem_unmap(address, size.n);
        (void)api().mem_address_free(address, size.n);
        return fail(result, fmt::format("cuMemSetAccess of {}", format_size(size)));
    }
    return address;
}

Result<SegmentId> CudaBackend::do_allocate(Bytes size) {
    const ContextScope scope(api(), context());
    if (auto ok = enter(scope); !ok) return std::move(ok).error();
    if (!caps().exportable_segments) {
        CuDevicePtr address = 0;
        const CuResult result = api().mem_alloc(&address, size.n);
        if (result != code::kSuccess) return fail(result, fmt::format("cuMemAlloc of {}", format_size(size)));
        return publish({address, size, 0});
    }
    const CuMemAllocationProp prop = exportable(handles_.device);
    CuMemHandle handle = 0;
    const CuResult result = api().mem_create(&handle, size.n, &prop, 0);
    if (result != code::kSuccess) return fail(result, fmt::format("cuMemCreate of {}", format_size(size)));
    auto address = map_handle(handle, size);
    if (!address) {
        (void)api().mem_release(handle);
        return std::move(address).error();
    }
    return publish({*address, size, handle});
}

Result<void> CudaBackend::do_free(SegmentId segment) {
    const ContextScope scope(api(), context());
    if (auto ok = enter(scope); !ok) return std::move(ok).error();
    Segment old;
    {
        const MutexLock lock(mutex_);
        slots_[segment.n].bytes.store(0, std::memory_order_release);
        old = std::exchange(segments_[segment.n], Segment{});
    }
    const CuResult result = release(old);
    if (result != code::kSuccess)
        return fail(result, fmt::format("giving back GPU segment {} ({})", segment.n, format_size(old.size)));
    return {};
}

Result<UniqueFd> CudaBackend::do_export(SegmentId segment) {
    const ContextScope scope(api(), context());
    if (auto ok = enter(scope); !ok) return std::move(ok).error();
    CuMemHandle handle = 0;
    {
        const MutexLock lock(mutex_);
        handle = segments_[segment.n].handle;
    }
    int fd = -1;
    const CuResult result = api().mem_export_to_shareable_handle(&fd, handle, kHandleTypePosixFd, 0);
    if (result != code::kSuccess)
        return fail(result, fmt::format("cuMemExportToShareableHandle of GPU segment {}", segment.n));
    UniqueFd owned(fd);
    // A program that we start must not keep VRAM alive by accident.
    if (::fcntl(owned.get(), F_SETFD, FD_CLOEXEC) != 0)
        return sys_error("fcntl(FD_CLOEXEC) of an exported segment");
    return owned;
}

Result<SegmentId> CudaBackend::do_import(int fd, Bytes size) {
    if (!caps().exportable_segments)
        return Error{Errc::unavailable, 0, "this GPU driver cannot import memory", {}};
    const ContextScope scope(api(), context());
    if (auto ok = enter(scope); !ok) return std::move(ok).error();
    CuMemHandle handle = 0;
    // The ABI wants the number of the descriptor in the place of a pointer.
    void* const number = reinterpret_cast<void*>(static_cast<std::intptr_t>(fd));
    const CuResult result = api().mem_import_from_shareable_handle(&handle, number, kHandleTypePosixFd);
    if (result != code::kSuccess) return fail(result, "cuMemImportFromShareableHandle");
    auto address = map_handle(handle, size);
    if (!address) {
        (void)api().mem_release(handle);
        return std::move(address).error();
    }
    return publish({*address, size, handle});
}

Result<void> CudaBackend::do_register(std::span<std::byte> memory) {
    if (health() != Health::good) return lost();
    const CuResult result = HostRegistry::of_process().add(context_, memory);
    if (result == code::kSuccess) return {};
    return fail(result, fmt::format("cuMemHostRegister of {} of host memory", format_size({memory.size()})));
}

Result<void> CudaBackend::do_unregister(std::span<std::byte> memory) {
    const CuResult result = HostRegistry::of_process().remove(*context_, memory);
    if (health() != Health::good) return lost();
    if (result == code::kHostMemoryNotRegistered)
        return Error{Errc::not_found, 0, "host memory to unregister was not registered as such a range"};
    // Not reported: it may be another GPU that is lost.
    if (result != code::kSuccess) return failure(api(), result, "cuMemHostUnregister");
    return {};
}

Result<std::unique_ptr<TransferQueue>> CudaBackend::do_make_queue() {
    // For good, not for the scope: the maker may go on to use the queue, and make_current would believe the
    // scope's.
    if (const CuResult result = make_current(); result != code::kSuccess)
        return fail(result, "cuCtxSetCurrent");
    return CudaQueue::create(*this);
}

Result<PageLauncher*> CudaBackend::launcher() {
    if (launcher_ == nullptr) {
        auto made = PageLauncher::create(*this);
        if (!made) return std::move(made).error();
        launcher_ = *std::move(made);
    }
    return launcher_.get();
}

CuResult CudaBackend::launch_kernel(CuStream stream, const PagePairs& pairs, std::size_t pages,
                                    const PageKernelEnd& end) {
    kernel_ran_ns_.store(now_ns(), std::memory_order_relaxed);
    return kernels_.launch(api(), stream, pairs, pages, end);
}

Result<MemoryInfo> CudaBackend::do_memory_info() {
    // NVML needs no context, but a GPU.
    if (health() == Health::gpu_lost) return lost();
    if (handles_.nvml_device != nullptr) {
        auto memory = handles_.nvml->memory(handles_.nvml_device);
        if (memory) return memory;
        if (memory.error().code == Errc::gpu_lost) {
            lose(Health::gpu_lost);
            return memory;
        }
    }
    const ContextScope scope(api(), context());
    if (auto ok = enter(scope); !ok) return std::move(ok).error();
    std::size_t free = 0;
    std::size_t total = 0;
    const CuResult result = api().mem_get_info(&free, &total);
    if (result != code::kSuccess) return fail(result, "cuMemGetInfo");
    return MemoryInfo{{total}, {free}};
}

Result<GpuUsage> CudaBackend::do_usage(UsageParts parts) {
    if (health() == Health::gpu_lost) return lost();
    if (handles_.nvml_device == nullptr)
        return Error{Errc::unavailable, 0, "without NVML nobody tells who uses the GPU",
                     "Install the driver's libnvidia-ml.so.1"};
    const std::uint64_t ran_ns = kernel_ran_ns_.load(std::memory_order_relaxed);
    const bool ran = ran_ns != 0 && now_ns() - ran_ns < kUseToldNs;
    auto usage =
        read_usage(*handles_.nvml, handles_.nvml_device, parts, ran ? OwnKernels::ran : OwnKernels::none);
    if (!usage && usage.error().code == Errc::gpu_lost) lose(Health::gpu_lost);
    return usage;
}

}  // namespace vramswap::cuda
