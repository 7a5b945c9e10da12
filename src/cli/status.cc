// SPDX-License-Identifier: MIT
#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/launch.h"
#include "cli/spill_plan.h"
#include "cli/table.h"
#include "ctl/runtime_dir.h"

namespace vramswap {
namespace {

struct StatusColumn {
    const char* title;
    const char* meaning;
    Align align;
    std::function<std::string(const DeviceStatus&)> cell;
};

const std::vector<StatusColumn>& all_columns() {
    using S = const DeviceStatus&;
    static const std::vector<StatusColumn> columns{
        {"NAME", "name of the device", Align::left, [](S s) { return s.name; }},
        {"STATE",
         "starting, serving, armed (in use as swap), draining, restarting, worker-dead, silent, stale",
         Align::left, [](S s) { return s.state; }},
        {"SIZE", "size of the device", Align::right, [](S s) { return format_size(s.size); }},
        {"USED", "swap in use on it, as the kernel counts", Align::right,
         [](S s) { return s.swap ? format_size(s.swap_used) : std::string("-"); }},
        {"STORED", "pages that the store holds", Align::right, [](S s) { return format_size(s.stored); }},
        {"VRAM", "taken from the GPU now", Align::right, [](S s) { return format_size(s.vram); }},
        {"TARGET", "VRAM that it is to hold", Align::right, [](S s) { return format_size(s.vram_target); }},
        {"SPILL", "on disk instead; - without a spill", Align::right,
         [](S s) { return s.spill_capacity.n == 0 ? std::string("-") : format_size(s.spilled); }},
        {"RAM", "spent in all: tables, stage, buffers, GPU driver", Align::right,
         [](S s) { return format_size(s.ram); }},
        {"PRIO", "swap priority", Align::right,
         [](S s) { return s.swap ? std::to_string(s.priority) : std::string("-"); }},
        {"FRONTEND", "how the kernel reaches it", Align::left, [](S s) { return s.frontend; }},
        {"DEVICE", "block device", Align::left, [](S s) { return s.device; }},
        {"GPU", "GPU", Align::left, [](S s) { return s.gpu; }},
        {"MODE", "how small copies are made: copy, turbo", Align::left, [](S s) { return s.mode; }},
        {"WHY", "why it is to hold so much VRAM", Align::left, [](S s) { return s.reason; }},
        {"READ", "read by the kernel", Align::right,
         [](S s) { return format_size({s.pages_read * kPageBytes}); }},
        {"WRITTEN", "written by the kernel", Align::right,
         [](S s) { return format_size({s.pages_written * kPageBytes}); }},
        {"ERRORS", "pages that could not be read, and writes refused", Align::right,
         [](S s) { return fmt::format("{}/{}", s.read_errors, s.writes_refused); }},
        {"PID", "worker", Align::right, [](S s) { return std::to_string(s.worker_pid); }},
    };
    return columns;
}

constexpr const char* kUsualColumns = "NAME,STATE,SIZE,USED,VRAM,SPILL,RAM,PRIO,FRONTEND,DEVICE,GPU";

Result<std::vector<const StatusColumn*>> choose_columns(const std::string& wanted) {
    std::vector<const StatusColumn*> chosen;
    std::string rest = wanted.empty() ? kUsualColumns : wanted;
    while (!rest.empty()) {
        const auto comma = rest.find(',');
        std::string name = rest.substr(0, comma);
        rest = comma == std::string::npos ? "" : rest.substr(comma + 1);
        std::ranges::transform(name, name.begin(), [](unsigned char c) { return std::toupper(c); });
        const auto it =
            std::ranges::find_if(all_columns(), [&name](const auto& c) { return name == c.title; });
        if (it == all_columns().end())
            return Error{Errc::usage, 0, fmt::format("there is no column '{}'", name),
                         "`-o help` lists them"};
        chosen.push_back(&*it);
    }
    return chosen;
}

int print_column_help() {
    for (const auto& c : all_columns()) fmt::print("{:<10} {}\n", c.title, c.meaning);
    return kExitDone;
}

void print_table(const std::vector<DeviceStatus>& devices, const std::vector<const StatusColumn*>& chosen) {
    std::vector<Column> columns;
    for (const auto* c : chosen) columns.push_back({c->title, c->align});
    std::vector<std::vector<std::string>> rows;
    for (const auto& d : devices) {
        std::vector<std::string> row;
        for (const auto* c : chosen) row.push_back(c->cell(d));
        rows.push_back(std::move(row));
    }
    if (!rows.empty()) fmt::print("{}", format_table(columns, rows));
}

/// What the figures do not show. That there is no spill is no news to who asks for certain columns.
void print_problems(const std::vector<DeviceStatus>& devices, const StatusOptions& options) {
    for (const auto& d : devices) {
        for (const std::string& problem : {d.problem, d.spill_problem})
            if (!problem.empty()) fmt::print(stderr, "{}: {}\n", d.name, problem);
        const bool serves = d.state == "serving" || d.state == "armed";
        if (options.columns.empty() && serves && d.spill_capacity.n == 0 && d.spill_problem.empty())
            fmt::print(stderr, "{}: no spill: {}\n", d.name, kWithoutSpill);
    }
}

}  // namespace

int run_status(const StatusOptions& options) {
    if (options.columns == "help") return print_column_help();
    const auto columns = choose_columns(options.columns);
    if (!columns) return report(columns.error());
    if (auto root = require_root("`vramswap status`"); !root) return report(root.error());
    std::vector<DeviceStatus> devices;
    for (const auto& name : options.name.empty() ? list_names() : std::vector<std::string>{options.name}) {
        auto status = device_status(name);
        if (status)
            devices.push_back(std::move(*status));
        else if (!options.name.empty())
            return report(status.error());
    }
    if (options.output == Output::table) {
        print_table(devices, *columns);
        print_problems(devices, options);
        return kExitDone;
    }
    auto list = nlohmann::json::array();
    for (const auto& d : devices) list.push_back(nlohmann::json::parse(to_json(d)));
    fmt::print("{}\n", nlohmann::json{{"devices", list}}.dump(2));
    return kExitDone;
}

}  // namespace vramswap
