// SPDX-License-Identifier: MIT
#include "daemon/monitor/monitor_report.h"

#include <fmt/format.h>

#include <algorithm>

#include "policy/config.h"

namespace vramswap {
namespace {

/// As long as the policy takes to call itself blind.
constexpr std::uint64_t kSilenceNs = PolicyConfig{}.blind_after_ns;

std::string_view to_string(PowerSource power) {
    switch (power) {
        case PowerSource::mains:
            return "mains";
        case PowerSource::battery:
            return "battery";
        case PowerSource::unknown:
            break;
    }
    return "unknown";
}

/// On several GPUs a process is listed once.
void add_process(const GpuProcess& process, std::vector<GpuProcess>& all) {
    const auto known = std::ranges::find(all, process.pid, &GpuProcess::pid);
    if (known == all.end())
        all.push_back(process);
    else
        known->memory = known->memory + process.memory;
}

/// One if it is the same everywhere.
std::string reasons_of(const std::vector<GpuPart>& gpus) {
    std::string all;
    bool alike = true;
    for (const GpuPart& gpu : gpus) {
        alike = alike && gpu.reason == gpus.front().reason;
        all += fmt::format("{}{}: {}", all.empty() ? "" : "; ", gpu.selector, gpu.reason);
    }
    return alike ? gpus.front().reason : all;
}

}  // namespace

void tell(const MonitorReport& report, GpuPart gpu, DeviceStatus& status) {
    const Snapshot& seen = report.snapshot;
    if (report.processes)
        for (const GpuProcess& process : *report.processes) add_process(process, status.gpu_processes);
    if (report.decided_at_ns != 0) {
        gpu.target = report.plan.target;
        gpu.reserve = report.plan.reserve;
        gpu.reason = to_string(report.plan.reason);
        gpu.total = seen.total;
        gpu.free = seen.free;
        gpu.others_memory = seen.others_memory.value_or(Bytes{});
        if (seen.others_sm_percent) gpu.others_sm_percent = static_cast<int>(*seen.others_sm_percent);
        status.move_rate_max = std::max(status.move_rate_max, report.plan.move_rate);
        status.power = to_string(seen.power);
    }
    status.vram_target = status.vram_target + gpu.target;
    status.reserve = status.reserve + gpu.reserve;
    status.gpu_total = status.gpu_total + gpu.total;
    status.gpu_free = status.gpu_free + gpu.free;
    status.others_memory = status.others_memory + gpu.others_memory;
    status.others_sm_percent = std::max(status.others_sm_percent, gpu.others_sm_percent);
    status.gpus.push_back(std::move(gpu));
    status.reason = reasons_of(status.gpus);
}

std::string problem(const MonitorReport& report, std::uint64_t now_ns) {
    if (report.decided_at_ns != 0 && now_ns > report.decided_at_ns + kSilenceNs)
        return fmt::format("the GPU's driver has not answered for {} s: VRAM is neither taken nor given back",
                           (now_ns - report.decided_at_ns) / kSecondNs);
    if (report.plan.reason == Reason::blind && !report.gpu_problem.empty()) return report.gpu_problem;
    if (report.plan.reason == Reason::unmovable)
        return fmt::format(
            "{} of VRAM cannot be given back as they should: the spill has no room for what is stored",
            format_size(report.plan.target));
    return {};
}

}  // namespace vramswap
