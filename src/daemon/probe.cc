// SPDX-License-Identifier: MIT
// The probe: finds GPUs and frontends in a process of its own, so that commands load no GPU library and
// survive one that crashes or hangs.
#include <fmt/format.h>

#include <cstdio>

#include "ctl/messages.h"
#include "daemon/roles.h"
#include "front/frontend.h"
#include "gpu/drivers.h"

namespace vramswap {
namespace {

std::string_view kind_name(GpuKind kind) {
    switch (kind) {
        case GpuKind::discrete:
            return "discrete";
        case GpuKind::integrated:
            return "integrated";
        case GpuKind::simulated:
            return "simulated";
    }
    return "unknown";
}

ProbedGpu to_message(const GpuInfo& g) {
    ProbedGpu m;
    m.selector = g.selector();
    m.backend = g.backend;
    m.name = g.name;
    m.uuid = g.uuid;
    m.pci = g.pci;
    m.driver = g.driver;
    m.kind = kind_name(g.kind);
    m.refusal = g.refusal;
    m.total = g.total;
    m.free = g.free;
    m.display_attached = g.display_attached;
    return m;
}

/// Whether a GPU has mode turbo is known only when it is open: its driver has to take our kernel.
Result<void> check_turbo(std::vector<DriverEntry>& drivers, const GpuInfo& gpu) {
    const auto backend = open_gpu(drivers, gpu);
    if (!backend) return backend.error();
    if ((*backend)->caps().turbo) return {};
    return Error{Errc::unavailable, 0, fmt::format("mode turbo is not available on {}", gpu.name),
                 "Use mode copy. Turbo needs CUDA and a GPU from Maxwell on"};
}

}  // namespace

int run_probe(const std::vector<std::string>& arguments) {
    if (arguments.size() != 4) return 2;
    const SimFallback sim = arguments[1] == "sim-allowed" ? SimFallback::allowed : SimFallback::never;
    auto drivers = all_drivers();
    const auto reports = survey(drivers);
    Probe probe;
    for (const auto& report : reports) {
        probe.backends.push_back({report.backend, report.problem});
        for (const auto& gpu : report.gpus) probe.gpus.push_back(to_message(gpu));
    }
    for (const auto& report : survey_frontends()) probe.frontends.push_back({report.kind, report.problem});
    const auto gpus = select_gpus(reports, arguments[0], sim);
    auto frontend = make_frontend(arguments[2]);
    if (gpus)
        for (const GpuInfo& gpu : *gpus) probe.selected_gpus.push_back(gpu.selector());
    if (frontend) probe.selected_frontend = (*frontend)->kind();
    if (!gpus)
        probe.problem = gpus.error();
    else if (!frontend)
        probe.problem = frontend.error();
    else if (arguments[3] == "open-gpu")
        for (const GpuInfo& gpu : *gpus)
            if (auto turbo = check_turbo(drivers, gpu); !turbo) probe.problem = turbo.error();
    std::puts(to_json(probe).c_str());
    return 0;
}

}  // namespace vramswap
