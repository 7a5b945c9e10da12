// SPDX-License-Identifier: MIT
#include <fmt/format.h>

#include <cstdio>

#include "cli/commands.h"
#include "cli/device_plan.h"
#include "cli/launch.h"
#include "ctl/runtime_dir.h"

namespace vramswap {
namespace {

std::string mode_text(const std::string& mode) {
    return mode == "auto" ? "auto: turbo while nobody else uses the GPU and many pages wait, else copy"
                          : mode;
}

std::string spill_text(const DevicePlan& plan) {
    const SpillPlan& spill = plan.spill;
    if (!spill.exists())
        return fmt::format("none{}: {}", spill.why_none.empty() ? "" : fmt::format(" ({})", spill.why_none),
                           kWithoutSpill);
    return fmt::format("{}, up to {}, room for {} now{}", spill.path, format_size(plan.config.spill_size),
                       format_size(spill.room), spill.remark.empty() ? "" : "; " + spill.remark);
}

void print_plan(const DevicePlan& plan, const UpOptions& options) {
    const DeviceConfig& c = plan.config;
    fmt::print("device    {}, {}\n", c.name, format_size(c.size));
    fmt::print("GPU       {} ({}), {} free of {}\n", plan.gpu.selector, plan.gpu.name,
               format_size(plan.gpu.free), format_size(plan.gpu.total));
    fmt::print("VRAM      in segments of {}, {}; kept free for others: {}\n", format_size(c.segment),
               c.vram_max.empty() ? "as much as it has use for" : "at most " + c.vram_max + " of each GPU",
               c.headroom.empty() ? "what suits the GPU" : c.headroom);
    fmt::print("spill     {}\n", spill_text(plan));
    fmt::print("frontend  {}\n", c.frontend);
    fmt::print("copies    mode {}\n", mode_text(c.mode));
    const std::string ceiling =
        c.swap_rate_max.n == 0 ? ""
                               : fmt::format(", {}/s while others use the GPU", format_size(c.swap_rate_max));
    if (options.swapon == UpOptions::Swapon::yes)
        fmt::print("swap      priority {}, discard{}\n", options.priority, ceiling);
    else
        fmt::print("swap      no: only the block device{}\n", ceiling);
    fmt::print("RAM       {} for the stage, {} for tables, and the GPU driver's own\n", format_size(c.stage),
               format_size({c.size.n / kPageBytes * 8}));
}

Result<DevicePlan> plan_for(const UpOptions& o) {
    const bool open_gpu = o.run == UpOptions::Run::dry && o.mode == "turbo";
    return plan_device({o.name, o.size, o.gpu, o.frontend, o.threads, o.mode, o.spill, o.headroom, o.vram_max,
                        o.segment, o.swap_rate_max},
                       AllowSim::only_by_name, open_gpu ? GpuLook::open : GpuLook::closed);
}

/// On failure nothing stays behind.
Result<RunningDevice> bring_up(const DevicePlan& plan, const UpOptions& options) {
    SpillDirectory directory;
    if (auto made = directory.make(plan.config.spill); !made) return std::move(made).error();
    auto running = launch_device(plan.config);
    if (!running) return running;
    if (options.swapon == UpOptions::Swapon::yes) {
        if (auto swapping = start_swapping(*running, options.priority); !swapping) {
            if (auto removed = remove_device(running->name); !removed) (void)report(removed.error());
            return std::move(swapping).error();
        }
    }
    directory.keep();
    return running;
}

void print_done(const RunningDevice& running, const DevicePlan& plan, const UpOptions& options) {
    const bool swapping = options.swapon == UpOptions::Swapon::yes;
    fmt::print("{} is up: {}, {} on {} ({}){}{}\n", running.name, running.device,
               format_size(plan.config.size), plan.gpu.selector, plan.gpu.name,
               swapping ? fmt::format(", swap priority {}", options.priority) : "",
               plan.spill.exists() ? fmt::format(", spill in {}", plan.spill.path) : "");
    if (!plan.spill.exists())
        fmt::print(stderr, "{}: no spill{}. {}\n", running.name,
                   plan.spill.why_none.empty() ? "" : ": " + plan.spill.why_none, kWithoutSpill);
    else if (!plan.spill.remark.empty())
        fmt::print(stderr, "{}: {}\n", running.name, plan.spill.remark);
    else if (plan.spill.room < plan.config.spill_size)
        fmt::print(stderr, "{}: {} has room for {} of {}. More {}\n", running.name, plan.spill.path,
                   format_size(plan.spill.room), format_size(plan.config.spill_size), kWithoutSpill);
}

}  // namespace

int run_up(const UpOptions& options) {
    if (options.run == UpOptions::Run::real)
        if (auto root = require_root("`vramswap up`"); !root) return report(root.error());
    const auto plan = plan_for(options);
    if (!plan) return report(plan.error());
    if (options.run == UpOptions::Run::dry) {
        print_plan(*plan, options);
        return kExitDone;
    }
    const auto running = bring_up(*plan, options);
    if (!running) return report(running.error());
    print_done(*running, *plan, options);
    return kExitDone;
}

}  // namespace vramswap
