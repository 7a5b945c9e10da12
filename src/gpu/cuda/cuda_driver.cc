// SPDX-License-Identifier: MIT
#include "gpu/cuda/cuda_driver.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cstring>
#include <fstream>
#include <utility>

#include "gpu/cuda/cuda_api.h"
#include "gpu/cuda/cuda_backend.h"
#include "gpu/cuda/nvml_api.h"

namespace vramswap {
namespace cuda {
namespace {

/// Maxwell: the oldest GPUs that drivers of CUDA 11.0 and later serve.
constexpr int kComputeCapabilityMajorMin = 5;

struct Found {
    GpuInfo info;
    CuDevice device = 0;
    NvmlDevice nvml_device = nullptr;
};

class CudaDriver final : public Driver {
  public:
    explicit CudaDriver(CudaPaths paths) : paths_(std::move(paths)) {}

    Result<std::vector<GpuInfo>> enumerate() override;
    Result<std::unique_ptr<Backend>> open(const GpuInfo& gpu) override;

  private:
    /// Libraries opened, CUDA initialised.
    Result<void> start();
    /// All of a GPU but its free memory if only a context could tell that.
    Found inspect(int ordinal) const;
    std::string refusal(const Found& found, int major, int minor) const;
    std::string sharing_refusal(const Found& found) const;
    std::string driver_text(int major, int minor) const;
    std::string uuid(CuDevice device) const;
    int attribute(Attribute attribute, CuDevice device) const;
    Bytes free_by_context(CuDevice device) const;

    const CudaPaths paths_;
    std::shared_ptr<const CudaApi> api_;
    std::shared_ptr<const NvmlApi> nvml_;
};

Result<void> CudaDriver::start() {
    if (!api_) {
        auto api = load_cuda(paths_.libcuda);
        if (!api) return std::move(api).error();
        api_ = *api;
    }
    if (auto ok = initialise(*api_); !ok) return ok;
    if (!nvml_) nvml_ = NvmlApi::load(paths_.nvml);
    return {};
}

int CudaDriver::attribute(Attribute attribute, CuDevice device) const {
    int value = 0;
    return api_->device_get_attribute(&value, attribute, device) == code::kSuccess ? value : 0;
}

/// "GPU-" and the 16 bytes as nvidia-smi prints them; empty if the driver does not tell.
std::string CudaDriver::uuid(CuDevice device) const {
    CuUuid id{};
    // _v2 names the MIG instance where there is one.
    auto* get = api_->device_get_uuid_v2 != nullptr ? api_->device_get_uuid_v2 : api_->device_get_uuid;
    if (get == nullptr || get(&id, device) != code::kSuccess) return {};
    std::string out = "GPU-";
    for (std::size_t i = 0; i < sizeof(id.bytes); ++i)
        out += fmt::format("{}{:02x}", i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "", id.bytes[i]);
    return out;
}

std::string CudaDriver::driver_text(int major, int minor) const {
    std::string version = nvml_ ? nvml_->driver_version() : std::string();
    // The module says the same without NVML.
    if (version.empty()) std::ifstream(paths_.root + "/sys/module/nvidia/version") >> version;
    if (!version.empty()) version += ", ";
    return fmt::format("{}CUDA {}.{}, compute capability {}.{}", version, api_->driver_version / 1000,
                       api_->driver_version % 1000 / 10, major, minor);
}

Found CudaDriver::inspect(int ordinal) const {
    Found found;
    GpuInfo& info = found.info;
    info.backend = "cuda";
    info.index = ordinal;
    info.name = "NVIDIA GPU";
    if (const CuResult result = api_->device_get(&found.device, ordinal); result != code::kSuccess) {
        info.refusal = failure(*api_, result, fmt::format("cuDeviceGet of GPU {}", ordinal)).text();
        return found;
    }
    char text[256] = {};
    if (api_->device_get_name(text, sizeof(text) - 1, found.device) == code::kSuccess) info.name = text;
    if (api_->device_get_pci_bus_id(text, sizeof(text) - 1, found.device) == code::kSuccess) info.pci = text;
    std::ranges::transform(info.pci, info.pci.begin(),
                           [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    std::size_t total = 0;
    if (api_->device_total_mem(&total, found.device) == code::kSuccess) info.total = {total};
    info.uuid = uuid(found.device);
    if (attribute(Attribute::integrated, found.device) != 0) info.kind = GpuKind::integrated;
    if (nvml_ && !info.pci.empty()) found.nvml_device = nvml_->device_at(info.pci);
    if (found.nvml_device != nullptr) {
        if (auto memory = nvml_->memory(found.nvml_device)) info.free = memory->free;
        info.display_attached = nvml_->display(found.nvml_device) == Answer::yes;
    }
    const int major = attribute(Attribute::compute_capability_major, found.device);
    const int minor = attribute(Attribute::compute_capability_minor, found.device);
    info.driver = driver_text(major, minor);
    info.refusal = refusal(found, major, minor);
    return found;
}

/// Why the GPU must not be used, with the remedy; empty if it may.
std::string CudaDriver::refusal(const Found& found, int major, int minor) const {
    if (::access((paths_.root + "/dev/dxg").c_str(), F_OK) == 0)
        return "under WSL2 (/dev/dxg exists) Windows owns the GPU's memory and may page it out to RAM "
               "itself. Let "
               "Windows swap: set swap= in .wslconfig";
    if (found.info.kind == GpuKind::integrated)
        return "its memory is the machine's RAM: swapping RAM into RAM gains nothing. Use zram instead";
    if (major < kComputeCapabilityMajorMin)
        return fmt::format("its compute capability {}.{} is below {}.0 (Maxwell). Use another GPU", major,
                           minor, kComputeCapabilityMajorMin);
    return sharing_refusal(found);
}

/// Refusals that an administrator can lift by a setting.
std::string CudaDriver::sharing_refusal(const Found& found) const {
    const std::string& id = found.info.pci;
    const int mode = attribute(Attribute::compute_mode, found.device);
    if (mode == kComputeModeProhibited)
        return fmt::format("its compute mode is PROHIBITED. Allow it with `nvidia-smi -i {} -c DEFAULT`", id);
    if (mode == kComputeModeExclusiveProcess)
        return fmt::format(
            "its compute mode is EXCLUSIVE_PROCESS: while swap is on, no other process could use the "
            "GPU. Set `nvidia-smi -i {} -c DEFAULT`",
            id);
    // Without NVML an instance shows by its name, "NVIDIA A100-SXM4-40GB MIG 1g.5gb".
    const bool mig_name = found.info.name.find(" MIG ") != std::string::npos;
    if (mig_name || (found.nvml_device != nullptr && nvml_->mig(found.nvml_device) == Answer::yes))
        return fmt::format(
            "it is split into MIG instances, which vramswap does not support. Use another GPU, or end "
            "the split with `nvidia-smi -i {} -mig 0`",
            id);
    if (nvml_ && nvml_->confidential() == Answer::yes)
        return "confidential computing is on: copies go through a bounce buffer and host memory cannot be "
               "registered. "
               "Use another GPU, or switch it off in the GPU's firmware settings";
    return {};
}

/// Without NVML only a context can tell the free memory; this one lives for the question.
Bytes CudaDriver::free_by_context(CuDevice device) const {
    CuContext context = nullptr;
    if (api_->ctx_create(&context, kContextSchedBlockingSync, device) != code::kSuccess) return {};
    std::size_t free = 0;
    std::size_t total = 0;
    if (api_->mem_get_info(&free, &total) != code::kSuccess) free = 0;
    (void)api_->ctx_destroy(context);
    return {free};
}

Result<std::vector<GpuInfo>> CudaDriver::enumerate() {
    if (auto ok = start(); !ok) return std::move(ok).error();
    int count = 0;
    if (const CuResult result = api_->device_get_count(&count); result != code::kSuccess)
        return failure(*api_, result, "cuDeviceGetCount");
    std::vector<GpuInfo> gpus;
    for (int ordinal = 0; ordinal < count; ++ordinal) {
        Found found = inspect(ordinal);
        if (found.info.free.n == 0 && found.info.refusal.empty())
            found.info.free = free_by_context(found.device);
        gpus.push_back(std::move(found.info));
    }
    return gpus;
}

Result<std::unique_ptr<Backend>> CudaDriver::open(const GpuInfo& gpu) {
    if (auto ok = start(); !ok) return std::move(ok).error();
    int count = 0;
    if (const CuResult result = api_->device_get_count(&count); result != code::kSuccess)
        return failure(*api_, result, "cuDeviceGetCount");
    for (int ordinal = 0; ordinal < count; ++ordinal) {
        Found found = inspect(ordinal);
        // The UUID decides: numbers change with CUDA_VISIBLE_DEVICES.
        if (gpu.uuid.empty() ? ordinal != gpu.index : found.info.uuid != gpu.uuid) continue;
        if (!found.info.refusal.empty())
            return Error{Errc::unavailable, 0,
                         fmt::format("GPU {} ({}) cannot be used: {}", found.info.selector(), found.info.name,
                                     found.info.refusal)};
        if (found.info.free.n == 0) found.info.free = gpu.free;
        return CudaBackend::create({api_, nvml_, found.device, found.nvml_device}, std::move(found.info));
    }
    return Error{Errc::not_found, 0, fmt::format("GPU {} ({}) is not there", gpu.selector(), gpu.uuid),
                 "It may have been removed, reset, or hidden by CUDA_VISIBLE_DEVICES"};
}

}  // namespace
}  // namespace cuda

std::unique_ptr<Driver> make_cuda_driver() {
    return make_cuda_driver_for_test({});
}

std::unique_ptr<Driver> make_cuda_driver_for_test(CudaPaths paths) {
    return std::make_unique<cuda::CudaDriver>(std::move(paths));
}

}  // namespace vramswap
