// SPDX-License-Identifier: MIT
#include "gpu/cuda/gpu_usage.h"

#include <unistd.h>

#include <algorithm>
#include <ctime>
#include <vector>

namespace vramswap::cuda {
namespace {

constexpr unsigned kPidMax = 1u << 22;  // PID_MAX_LIMIT of include/linux/threads.h
constexpr unsigned kEntriesAtFirst = 32;
constexpr int kAttempts = 3;  // as long as processes come faster than they are listed
constexpr unsigned kPercentMax = 100;
constexpr unsigned long long kSamplePeriodMaxUs = 1'000'000;

/// Calls `read(entries, count)` with enough room. Some builds of R535 write entries of 32 bytes where 24 are
/// asked for: there is memory for them, and what is read then makes no sense and is refused by the caller.
template <typename Entry, typename Read>
NvmlReturn read_list(std::vector<Entry>& entries, Read read) {
    NvmlReturn result = nvml_code::kInsufficientSize;
    unsigned room = kEntriesAtFirst;
    for (int n = 0; n < kAttempts && result == nvml_code::kInsufficientSize; ++n) {
        entries.assign(std::size_t{room} * 2, Entry{});
        unsigned count = room;
        result = read(entries.data(), &count);
        if (result == nvml_code::kSuccess) entries.resize(std::min(count, room));
        room = std::max(count, room) + kEntriesAtFirst;
    }
    return result;
}

/// A process of several lists has all its memory in each.
void add_user(std::vector<GpuUser>& users, const GpuUser& user) {
    const auto known = std::ranges::find(users, user.pid, &GpuUser::pid);
    if (known == users.end())
        users.push_back(user);
    else
        known->memory = std::max(known->memory, user.memory);
}

template <typename Entry>
Result<void> add_list(NvmlReturn (*list)(NvmlDevice, unsigned*, Entry*), NvmlDevice device,
                      std::vector<GpuUser>& users) {
    if (list == nullptr) return {};
    std::vector<Entry> entries;
    const NvmlReturn result =
        read_list(entries, [&](Entry* data, unsigned* count) { return list(device, count, data); });
    if (result != nvml_code::kSuccess) return nvml_error(result, "the processes on the GPU");
    for (const Entry& entry : entries) {
        if (entry.pid == 0 || entry.pid > kPidMax)
            return Error{Errc::unavailable, 0, "NVML's list of processes on the GPU makes no sense"};
        GpuUser user{static_cast<pid_t>(entry.pid), {}};
        if (entry.memory != kNvmlNotAvailable) user.memory = Bytes{entry.memory};
        add_user(users, user);
    }
    return {};
}

/// All processes but this one. We have a context: a list without us numbers processes as another namespace
/// does, or hides some, and tells nothing.
Result<std::vector<GpuUser>> read_users(const NvmlApi& nvml, NvmlDevice device) {
    std::vector<GpuUser> users;
    const auto all = {nvml.list_compute != nullptr ? add_list(nvml.list_compute, device, users)
                                                   : add_list(nvml.list_compute_v1, device, users),
                      nvml.list_graphics != nullptr ? add_list(nvml.list_graphics, device, users)
                                                    : add_list(nvml.list_graphics_v1, device, users),
                      add_list(nvml.list_mps, device, users)};
    for (const Result<void>& one : all)
        if (!one) return one.error();
    if (std::erase_if(users, [](const GpuUser& user) { return user.pid == ::getpid(); }) == 0)
        return Error{Errc::unavailable, 0, "NVML does not see this process on the GPU"};
    return users;
}

unsigned long long unix_time_us() {
    timespec now{};
    ::clock_gettime(CLOCK_REALTIME, &now);
    return static_cast<unsigned long long>(now.tv_sec) * 1'000'000 +
           static_cast<unsigned long long>(now.tv_nsec) / 1'000;
}

/// By process: others' part of the activity. Nothing of it if there is no sample of anybody at work.
Result<void> tell_apart(const NvmlApi& nvml, NvmlDevice device, GpuUsage& usage) {
    if (nvml.device_get_process_utilization == nullptr) return {};
    std::vector<NvmlProcessSample> samples;
    const NvmlReturn result = read_list(samples, [&](NvmlProcessSample* data, unsigned* count) {
        return nvml.device_get_process_utilization(device, data, count, unix_time_us() - kSamplePeriodMaxUs);
    });
    if (result != nvml_code::kSuccess) return nvml_error(result, "who uses the GPU");
    std::uint32_t sm = 0;
    std::uint32_t memory = 0;
    bool ours_seen = false;
    for (const NvmlProcessSample& sample : samples) {
        if (sample.sm > kPercentMax || sample.memory > kPercentMax)
            continue;  // seen with drivers of all ages
        const bool ours = sample.pid == static_cast<unsigned>(::getpid());
        ours_seen |= ours && sample.sm > 0;
        if (ours) continue;
        sm += sample.sm;
        memory += sample.memory;
    }
    if (sm == 0 && !ours_seen) return {};  // older than what it should explain, or of another namespace
    usage.others_sm_percent = sm;
    usage.others_memory_percent = memory;
    return {};
}

Result<void> read_activity(const NvmlApi& nvml, NvmlDevice device, OwnKernels own, GpuUsage& usage) {
    if (nvml.device_get_utilization == nullptr)
        return Error{Errc::unavailable, 0, "NVML has no call for the use of the GPU"};
    NvmlUtilization all{};
    const NvmlReturn result = nvml.device_get_utilization(device, &all);
    if (result != nvml_code::kSuccess) return nvml_error(result, "how much the GPU is used");
    // Nobody at all, or nobody but others: no need to ask by process. (Of memory's use our copies are part.)
    if (all.gpu == 0 || own == OwnKernels::none) usage.others_sm_percent = all.gpu;
    if (all.memory == 0) usage.others_memory_percent = 0;
    if (all.gpu == 0 || own == OwnKernels::none) return {};
    auto apart = tell_apart(nvml, device, usage);
    if (!apart && apart.error().code == Errc::gpu_lost) return apart;
    return {};
}

}  // namespace

Result<GpuUsage> read_usage(const NvmlApi& nvml, NvmlDevice device, UsageParts parts, OwnKernels own) {
    GpuUsage usage;
    auto activity = read_activity(nvml, device, own, usage);
    if (!activity && activity.error().code == Errc::gpu_lost) return std::move(activity).error();
    if (parts == UsageParts::activity) {
        if (!activity) return std::move(activity).error();
        return usage;
    }
    auto users = read_users(nvml, device);
    if (!users && (!activity || users.error().code == Errc::gpu_lost)) return std::move(users).error();
    if (users) usage.users = *std::move(users);
    return usage;
}

}  // namespace vramswap::cuda
