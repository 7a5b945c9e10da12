// SPDX-License-Identifier: MIT
// `vramswap bench --swap`: the whole way through the kernel, for our device and what else there is to swap to
// on the same machine, one after another.
#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>
#include <nlohmann/json.hpp>
#include <thread>

#include "cli/commands.h"
#include "cli/plot.h"
#include "cli/swap_trial.h"
#include "cli/table.h"
#include "cli/trial_area.h"

namespace vramswap {
namespace {

using Json = nlohmann::ordered_json;

struct Candidate {
    std::string name;
    std::unique_ptr<TrialArea> area;
};

/// Nobody else may take the pages, and the machine must be able to keep them all.
Result<void> check_machine(Bytes data) {
    auto areas = read_swaps();
    if (!areas) return std::move(areas).error();
    for (const SwapArea& area : *areas)
        if (area.priority >= kSwapPriorityMax)
            return Error{
                Errc::busy, 0,
                fmt::format("the swap area {} has priority {}: it would take its turn in the comparison",
                            area.path, area.priority),
                "Switch it off for as long"};
    auto memory = read_meminfo();
    if (!memory) return std::move(memory).error();
    const Bytes needed = data * 2 + mib(256);
    if (memory->available >= needed) return {};
    return Error{Errc::no_memory, 0,
                 fmt::format("{} of RAM are available, and {} of --data need {}",
                             format_size(memory->available), format_size(data), format_size(needed)),
                 "Choose a smaller --data"};
}

class Comparison {
  public:
    explicit Comparison(const SwapBenchOptions& options) : options_(options) {}

    Result<Json> run(const std::string& gpu) {
        auto data = parse_trial_data(options_.data);
        if (!data) return std::move(data).error();
        data_ = *data;
        size_ = {round_up(data_.n + mib(128).n, kChunkBytes)};
        if (auto r = check_machine(data_); !r) return std::move(r).error();
        auto plan = plan_device(
            {fmt::format("bench-{}", ::getpid()), std::to_string(size_.n), gpu, options_.frontend, 0},
            AllowSim::only_by_name);
        if (!plan) return std::move(plan).error();
        Json j = describe(*plan);
        std::vector<Candidate> candidates;
        candidates.push_back({"vramswap", make_vram_area(std::move(*plan))});
        for (const std::string& name : options_.against)
            candidates.push_back(
                {name, name == "zram" ? make_zram_area() : make_file_area(options_.file_folder)});
        bool ok = true;
        for (Candidate& candidate : candidates) {
            auto result = measure(candidate);
            if (!result) return std::move(result).error().in(candidate.name);
            ok = ok && result->value("ok", true);
            j["results"].push_back(std::move(*result));
        }
        j["ok"] = ok;
        return j;
    }

  private:
    [[nodiscard]] Json describe(const DevicePlan& plan) const {
        return {{"gpu", plan.gpu.name},
                {"backend", plan.gpu.backend},
                {"driver", plan.gpu.driver},
                {"frontend", plan.config.frontend},
                {"kernel", read_kernel_release().value_or("")},
                {"cpus", std::thread::hardware_concurrency()},
                {"page_cluster", read_sysctl_int("vm.page-cluster").value_or(-1)},
                {"zswap", to_string(read_zswap().value_or(KernelSwitch::absent))},
                {"data_bytes", data_.n},
                {"ram_limit_bytes", data_.n / 4},
                {"results", Json::array()}};
    }

    /// Of the competitors, one that this machine does not have is told as such; of ours it is an error.
    Result<Json> measure(Candidate& candidate) {
        if (auto r = interrupts_.check(); !r) return std::move(r).error();
        if (::isatty(STDERR_FILENO) == 1) fmt::print(stderr, "{}:\n", candidate.name);
        TrialArea& area = *candidate.area;
        const auto up = area.bring_up(size_);
        if (auto r = interrupts_.check(); !r) return std::move(r).error();
        if (!up && candidate.name == "vramswap") return up.error();
        if (!up) {
            if (auto down = area.take_down(); !down) return std::move(down).error();
            return Json{{"name", candidate.name}, {"unavailable", up.error().text()}};
        }
        auto result = try_area(candidate.name, area);
        if (!result) return result;
        if (auto down = area.take_down(); !down) return std::move(down).error();
        return result;
    }

    Result<Json> try_area(const std::string& name, TrialArea& area) {
        SwapTrial trial(interrupts_, fmt::format("vramswap-bench-{}", ::getpid()), data_);
        if (auto r = trial.prepare(); !r) return std::move(r).error();
        if (auto r = trial.write(); !r) return std::move(r).error();
        auto areas = read_swaps();
        if (!areas) return std::move(areas).error();
        const SwapArea* own = find_swap(*areas, area.path());
        const Bytes used = own == nullptr ? Bytes{} : own->used;
        auto ram = area.ram();
        if (!ram) return std::move(ram).error();
        if (auto r = trial.read_back(); !r) return std::move(r).error();
        if (auto r = trial.remove(); !r) return std::move(r).error();
        const SwapFigures& f = trial.figures();
        return Json{{"name", name},
                    {"ok", f.ok() && used.n >= data_.n / 2},
                    {"device", area.path()},
                    {"detail", area.detail()},
                    {"pages", f.pages},
                    {"pages_wrong", f.pages_wrong},
                    {"pswpout", f.pswpout},
                    {"pswpin", f.pswpin},
                    {"used_bytes", used.n},
                    {"swap_out_gbps", f.swap_out_gbps},
                    {"swap_in_gbps", f.swap_in_gbps},
                    {"faults", f.faults},
                    {"fault_us",
                     {{"p50", f.p50_us},
                      {"p90", f.p90_us},
                      {"p99", f.p99_us},
                      {"p999", f.p999_us},
                      {"max", f.max_us}}},
                    {"ram_bytes", ram->n}};
    }

    const SwapBenchOptions& options_;
    const Interrupts interrupts_;
    Bytes data_{};
    Bytes size_{};
};

void print_table(const Json& j) {
    fmt::print("{} of memory, {} of RAM allowed, Linux {}\n\n",
               format_size({j.at("data_bytes").get<std::uint64_t>()}),
               format_size({j.at("ram_limit_bytes").get<std::uint64_t>()}),
               j.at("kernel").get<std::string>());
    std::vector<std::vector<std::string>> rows;
    std::string notes;
    for (const Json& r : j.at("results")) {
        const std::string name = r.at("name");
        if (r.contains("unavailable")) {
            notes += fmt::format("{} is not here: {}\n", name, r.at("unavailable").get<std::string>());
            continue;
        }
        std::vector<std::string> row{name, r.at("device")};
        for (const char* key : {"swap_out_gbps", "swap_in_gbps"})
            row.push_back(fmt::format("{:.2f}", r.at(key).get<double>()));
        for (const char* key : {"p50", "p90", "p99", "p999", "max"})
            row.push_back(fmt::format("{:.1f}", r.at("fault_us").at(key).get<double>()));
        row.push_back(format_size({r.at("ram_bytes").get<std::uint64_t>()}));
        row.push_back(r.at("ok").get<bool>() ? "yes" : "NO");
        rows.push_back(std::move(row));
        if (const std::string detail = r.at("detail"); !detail.empty())
            notes += fmt::format("{}: {}\n", name, detail);
    }
    const auto right = Align::right;
    fmt::print("{}\n{}",
               format_table({{"SWAP"},
                             {"DEVICE"},
                             {"OUT GB/s", right},
                             {"IN GB/s", right},
                             {"P50us", right},
                             {"P90us", right},
                             {"P99us", right},
                             {"P99.9us", right},
                             {"MAXus", right},
                             {"RAM", right},
                             {"OK"}},
                            rows),
               notes);
    if (j.at("backend") == "sim")
        fmt::print("The GPU is simulated in RAM: the way is real, its figures are not a GPU's.\n");
    if (j.at("zswap") == "on")
        fmt::print("zswap is on: the kernel compresses pages in RAM before they reach any area.\n");
    fmt::print(
        "Latencies are of page faults that waited for swap, in random order; the data cannot be "
        "compressed.\n");
}

Plot plot_of(const Json& j) {
    Plot plot;
    plot.title = fmt::format("vramswap bench --swap: {}", j.at("gpu").get<std::string>());
    plot.subtitle = fmt::format("{} of memory, {} of RAM allowed, {}, Linux {}; latency of page faults",
                                format_size({j.at("data_bytes").get<std::uint64_t>()}),
                                format_size({j.at("ram_limit_bytes").get<std::uint64_t>()}),
                                j.at("frontend").get<std::string>(), j.at("kernel").get<std::string>());
    plot.rates = {"swap out", "swap in"};
    for (const Json& r : j.at("results")) {
        if (r.contains("unavailable")) continue;
        PlotRow row;
        row.name = r.at("name");
        row.gbps = {r.at("swap_out_gbps"), r.at("swap_in_gbps")};
        for (std::size_t i = 0; i < kPlotPercentiles.size(); ++i)
            row.latency_us[i] = r.at("fault_us").at(kPlotPercentiles[i]);
        plot.rows.push_back(std::move(row));
    }
    return plot;
}

}  // namespace

int run_swap_bench(const BenchOptions& options) {
    if (auto root = require_root("`vramswap bench --swap`"); !root) return report(root.error());
    Comparison comparison(options.swap);
    const auto result = comparison.run(options.request.gpu);
    if (!result) return report(result.error());
    if (options.output == Output::json)
        fmt::print("{}\n", result->dump(2));
    else
        print_table(*result);
    if (auto drawn = write_plot(plot_of(*result), options.plot_file); !drawn) return report(drawn.error());
    return result->at("ok").get<bool>() ? kExitDone : kExitFailed;
}

}  // namespace vramswap
