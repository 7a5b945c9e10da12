// SPDX-License-Identifier: MIT
// `vramswap doctor`: what this machine can do and what stands in the way; each finding with what to do.
#include <fmt/format.h>
#include <sys/resource.h>

#include <cstdio>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/device_plan.h"
#include "cli/launch.h"
#include "sys/cgroup.h"
#include "sys/process.h"

namespace vramswap {
namespace {

enum class Severity : std::uint8_t { ok, note, problem };
constexpr const char* kSeverityNames[] = {"ok", "note", "problem"};

struct Finding {
    Severity severity = Severity::ok;
    std::string topic;
    std::string text;
    std::string remedy{};
};

class Examination {
  public:
    std::vector<Finding> run() {
        privileges();
        kernel();
        machine();
        spill();
        swap_areas();
        swap_settings();
        limits();
        return std::move(findings_);
    }

  private:
    void add(Severity severity, std::string topic, std::string text, std::string remedy = {}) {
        findings_.push_back({severity, std::move(topic), std::move(text), std::move(remedy)});
    }

    void privileges() {
        if (!is_root())
            return add(Severity::problem, "root",
                       "not running as root: devices cannot be made, and some findings are missing",
                       "Run it with sudo");
        add(Severity::ok, "root", "running as root");
        const auto capabilities = read_capabilities();
        if (capabilities && (*capabilities & (std::uint64_t{1} << kCapSysResource)) == 0)
            add(Severity::problem, "capabilities",
                "CAP_SYS_RESOURCE is missing: the worker cannot be marked as an I/O flusher nor exempted "
                "from the OOM "
                "killer, and may deadlock under memory pressure",
                "Give the container or service that capability");
    }

    void kernel() {
        const auto release = read_kernel_release();
        const auto version = read_kernel_version();
        if (!release || !version)
            return add(Severity::problem, "kernel", "the kernel's version cannot be read");
        constexpr KernelVersion kOldest{5, 8, 0};  // LOOP_CONFIGURE; IO_FLUSHER is from 5.6
        if (*version < kOldest)
            add(Severity::problem, "kernel", fmt::format("Linux {} is older than 5.8", *release),
                "Install a newer kernel");
        else
            add(Severity::ok, "kernel", fmt::format("Linux {}", *release));
    }

    void machine() {
        const auto probe = probe_machine("auto", AllowSim::only_by_name, "auto");
        if (!probe) return add(Severity::problem, "GPU", probe.error().text());
        bool usable = false;
        for (const auto& backend : probe->backends)
            if (!backend.problem.empty())
                add(Severity::note, "GPU", fmt::format("{}: {}", backend.name, backend.problem));
        for (const auto& gpu : probe->gpus) {
            if (gpu.backend == "sim") continue;
            usable = usable || gpu.refusal.empty();
            add(gpu.refusal.empty() ? Severity::ok : Severity::problem, "GPU", gpu_text(gpu), gpu.refusal);
        }
        if (!usable)
            add(Severity::problem, "GPU", "no GPU that can be used",
                "Install the driver of an NVIDIA GPU; `--gpu sim` simulates one in RAM, for trying out");
        for (const auto& frontend : probe->frontends)
            add(frontend.problem.empty() ? Severity::ok : Severity::problem, "frontend",
                frontend.problem.empty() ? fmt::format("{} can be used", frontend.name) : frontend.name,
                frontend.problem);
    }

    static std::string gpu_text(const ProbedGpu& gpu) {
        return fmt::format("{} {} ({}): {} free of {}, driver {}{}", gpu.selector, gpu.name, gpu.pci,
                           format_size(gpu.free), format_size(gpu.total), gpu.driver,
                           gpu.display_attached ? ", display attached" : "");
    }

    /// The place that `up` takes unless told otherwise.
    void spill() {
        if (!is_root()) return;  // only root can write there
        const std::string place = default_spill_dir();
        const std::string remedy =
            fmt::format("Name another place with `up --spill PATH`; without a spill {}", kWithoutSpill);
        const auto plan = plan_spill({}, DeviceConfig{}.segment);
        if (!plan) return add(Severity::note, "spill", plan.error().text(), remedy);
        if (!plan->exists()) return add(Severity::note, "spill", plan->why_none, remedy);
        add(Severity::ok, "spill",
            fmt::format("{} has room for {}; a tenth of the disk stays free", place,
                        format_size(plan->capacity())));
    }

    void swap_areas() {
        const auto areas = read_swaps();
        if (!areas) return add(Severity::problem, "swap", areas.error().text());
        if (areas->empty()) add(Severity::note, "swap", "no other swap area is in use");
        for (const auto& area : *areas) {
            add(Severity::ok, "swap",
                fmt::format("{}: {} of {} used, priority {}", area.path, format_size(area.used),
                            format_size(area.size), area.priority));
            if (area.priority == kSwapPriorityMax)
                add(Severity::note, "swap", fmt::format("{} has the highest priority there is", area.path),
                    "Areas of equal priority are used in turn: give one of them a lower one");
            if (area.deleted)
                add(Severity::problem, "swap", fmt::format("{} was deleted while in use", area.path),
                    "swapoff it as soon as RAM allows");
        }
    }

    void swap_settings() {
        if (const auto zswap = read_zswap(); zswap && *zswap == KernelSwitch::on)
            add(Severity::note, "zswap",
                "zswap is on: it keeps compressed pages in RAM before any swap device sees them",
                "echo N > /sys/module/zswap/parameters/enabled, if VRAM is to be filled first");
        if (const auto cluster = read_sysctl_int("vm.page-cluster"); cluster && *cluster > 0)
            add(Severity::note, "page-cluster",
                fmt::format("vm.page-cluster is {}: each swap-in reads up to {} pages", *cluster,
                            1 << *cluster),
                "sysctl vm.page-cluster=0 gives the lowest latency for one fault");
        if (const auto swappiness = read_sysctl_int("vm.swappiness"); swappiness && *swappiness == 0)
            add(Severity::problem, "swappiness", "vm.swappiness is 0: the kernel swaps only in distress",
                "sysctl vm.swappiness=100 suits fast swap");
        if (const auto thp = read_thp(); thp)
            add(Severity::ok, "THP", fmt::format("transparent huge pages: {}", to_string(*thp)));
    }

    void limits() {
        rlimit lock{};
        if (::getrlimit(RLIMIT_MEMLOCK, &lock) == 0 && lock.rlim_max != RLIM_INFINITY && !is_root())
            add(Severity::note, "limits",
                fmt::format("locked memory is limited to {}", format_size({lock.rlim_max})));
        const auto hierarchy = find_memory_hierarchy();
        if (hierarchy)
            add(Severity::ok, "cgroup",
                fmt::format("memory controller: cgroup {}",
                            hierarchy->version == CgroupVersion::v2 ? "v2" : "v1"));
        else
            add(Severity::note, "cgroup", hierarchy.error().text(), "Only `vramswap demo` needs it");
        if (const auto memory = read_meminfo(); memory)
            add(Severity::ok, "RAM",
                fmt::format("{} available of {}", format_size(memory->available),
                            format_size(memory->total)));
    }

    std::vector<Finding> findings_;
};

void print_findings(const std::vector<Finding>& findings) {
    for (const auto& f : findings) {
        fmt::print("{:<8} {:<13} {}\n", kSeverityNames[static_cast<int>(f.severity)], f.topic, f.text);
        if (!f.remedy.empty()) fmt::print("{:<22} -> {}\n", "", f.remedy);
    }
}

void print_json(const std::vector<Finding>& findings) {
    auto list = nlohmann::ordered_json::array();
    for (const auto& f : findings)
        list.push_back({{"severity", kSeverityNames[static_cast<int>(f.severity)]},
                        {"topic", f.topic},
                        {"text", f.text},
                        {"remedy", f.remedy}});
    fmt::print("{}\n", nlohmann::ordered_json{{"findings", list}}.dump(2));
}

}  // namespace

int run_doctor(const DoctorOptions& options) {
    const auto findings = Examination().run();
    if (options.output == Output::json)
        print_json(findings);
    else
        print_findings(findings);
    return kExitDone;
}

}  // namespace vramswap
