// SPDX-License-Identifier: MIT
#include <fmt/format.h>

#include <cstdio>

#include "cli/commands.h"
#include "cli/launch.h"
#include "ctl/runtime_dir.h"

namespace vramswap {
namespace {

void print_plan(const DevicePlan& plan, const UpOptions& options) {
    fmt::print("device    {}, {}\n", plan.config.name, format_size(plan.config.size));
    fmt::print("GPU       {} ({}), {} free of {}\n", plan.gpu.selector, plan.gpu.name,
               format_size(plan.gpu.free), format_size(plan.gpu.total));
    fmt::print("frontend  {}\n", plan.config.frontend);
    fmt::print("copies    mode {}\n", plan.config.mode);
    if (options.swapon == UpOptions::Swapon::yes)
        fmt::print("swap      priority {}, discard\n", options.priority);
    else
        fmt::print("swap      no: only the block device\n");
    fmt::print("RAM       {} for the stage, {} for tables, and the GPU driver's own\n",
               format_size(plan.config.stage), format_size({plan.config.size.n / kPageBytes * 8}));
}

}  // namespace

int run_up(const UpOptions& options) {
    if (options.run == UpOptions::Run::real)
        if (auto root = require_root("`vramswap up`"); !root) return report(root.error());
    const auto plan = plan_device(
        {options.name, options.size, options.gpu, options.frontend, options.threads, options.mode},
        AllowSim::only_by_name);
    if (!plan) return report(plan.error());
    if (options.run == UpOptions::Run::dry) {
        print_plan(*plan, options);
        return kExitDone;
    }
    const auto running = launch_device(plan->config);
    if (!running) return report(running.error());
    if (options.swapon == UpOptions::Swapon::yes) {
        if (auto swapping = start_swapping(*running, options.priority); !swapping) {
            if (auto removed = remove_device(running->name); !removed) (void)report(removed.error());
            return report(swapping.error());
        }
    }
    fmt::print(
        "{} is up: {}, {} on {} ({}){}\n", running->name, running->device, format_size(plan->config.size),
        plan->gpu.selector, plan->gpu.name,
        options.swapon == UpOptions::Swapon::yes ? fmt::format(", swap priority {}", options.priority) : "");
    return kExitDone;
}

}  // namespace vramswap
