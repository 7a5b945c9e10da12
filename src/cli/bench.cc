// SPDX-License-Identifier: MIT
// `vramswap bench`: runs the measurement in a process of its own and shows it beside the ceiling of the same
// run.
#include <fmt/format.h>

#include <cstdio>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/plot.h"
#include "cli/table.h"
#include "sys/spawn.h"

namespace vramswap {
namespace {

using Json = nlohmann::ordered_json;

/// More measurements than there are, and what lies between two of them.
constexpr int kMeasurements = 120;
constexpr int kOverheadMs = 180'000;

int timeout_ms(double seconds) {
    return kOverheadMs + static_cast<int>(seconds * kMeasurements * 1000);
}

/// With as many digits as a reader can use.
std::string figure(double value) {
    return value < 10 ? fmt::format("{:.2f}", value) : fmt::format("{:.1f}", value);
}

void print_ceiling(const Json& j) {
    const auto& c = j.at("ceiling");
    fmt::print("{} ({}), {} of it used, {} s for each measurement\n", j.at("gpu").get<std::string>(),
               j.at("backend").get<std::string>(),
               format_size({j.at("working_set_bytes").get<std::uint64_t>()}), j.at("seconds").get<double>());
    fmt::print("The hardware alone: large copies to the GPU {:.2f} GB/s, from it {:.2f} GB/s\n",
               c.at("h2d_gbps").get<double>(), c.at("d2h_gbps").get<double>());
    for (const auto& [what, key] :
         {std::pair{"4K from the GPU", "read_4k_lat_us"}, std::pair{"4K to the GPU", "write_4k_lat_us"},
          std::pair{"4K memcpy, cold", "memcpy_4k_lat_us"}})
        fmt::print("  {:<16} p50 {:>7} us   p99 {:>7} us\n", what, figure(c.at(key).at("p50").get<double>()),
                   figure(c.at(key).at("p99").get<double>()));
    fmt::print("\n");
}

std::vector<std::string> row_of(const Json& r) {
    const auto& lat = r.at("lat_us");
    const auto us = [&lat](const char* key) { return figure(lat.at(key).get<double>()); };
    std::string ceiling = "-";
    if (r.contains("ceiling_gbps"))
        ceiling = figure(r.at("ceiling_gbps").get<double>()) + " GB/s";
    else if (r.contains("ceiling_us"))
        ceiling = figure(r.at("ceiling_us").get<double>()) + " us";
    return {r.at("name"),
            std::to_string(r.at("threads").get<int>()),
            std::to_string(r.at("queue_depth").get<int>()),
            fmt::format("{:.0f}", r.at("iops").get<double>()),
            figure(r.at("gbps").get<double>()),
            ceiling,
            r.contains("ratio") ? fmt::format("{:.2f}", r.at("ratio").get<double>()) : "-",
            us("p50"),
            us("p99"),
            us("p999"),
            us("max"),
            fmt::format("{:.2f}", r.at("cpu_s_per_gb").get<double>())};
}

void print_results(const Json& j) {
    print_ceiling(j);
    std::vector<std::vector<std::string>> rows;
    for (const auto& r : j.at("results")) rows.push_back(row_of(r));
    const auto right = Align::right;
    fmt::print("{}", format_table({{"NAME"},
                                   {"THR", right},
                                   {"DEPTH", right},
                                   {"IOPS", right},
                                   {"GB/s", right},
                                   {"CEILING", right},
                                   {"RATIO", right},
                                   {"P50us", right},
                                   {"P99us", right},
                                   {"P99.9us", right},
                                   {"MAXus", right},
                                   {"CPUs/GB", right}},
                                  rows));
    if (j.contains("skipped"))
        fmt::print("\nNot measured in the other mode: {}\n", j.at("skipped").get<std::string>());
    fmt::print(
        "\nRATIO is the result over the hardware's own figure beside it, both of this run: a rate over a "
        "rate "
        "(1 is all there is),\nor p50 over p50 where it is in us.\n");
}

Plot plot_of(const Json& j) {
    Plot plot;
    plot.title = fmt::format("vramswap bench: {}", j.at("gpu").get<std::string>());
    plot.subtitle = fmt::format("{} of VRAM used, {} s for each measurement, Linux {}",
                                format_size({j.at("working_set_bytes").get<std::uint64_t>()}),
                                j.at("seconds").get<double>(), j.at("kernel").get<std::string>());
    plot.rates = {"the store"};
    for (const Json& r : j.at("results")) {
        PlotRow row;
        row.name = r.at("name");
        row.gbps = {r.at("gbps")};
        row.ceiling_gbps = r.value("ceiling_gbps", 0.0);
        row.ceiling_us = r.value("ceiling_us", 0.0);
        for (std::size_t i = 0; i < kPlotPercentiles.size(); ++i)
            row.latency_us[i] = r.at("lat_us").at(kPlotPercentiles[i]);
        plot.rows.push_back(std::move(row));
    }
    return plot;
}

}  // namespace

int run_bench(const BenchOptions& options) {
    auto text = run_self({"internal-bench", to_json(options.request)}, timeout_ms(options.request.seconds));
    if (!text) return report(text.error());
    if (is_error_json(*text)) return report(parse_error(*text, "the measurement failed"));
    try {
        const auto results = Json::parse(*text);
        if (options.output == Output::json)
            fmt::print("{}\n", results.dump(2));
        else
            print_results(results);
        if (auto drawn = write_plot(plot_of(results), options.plot_file); !drawn)
            return report(drawn.error());
    } catch (const Json::exception& e) {
        return report({Errc::failed, 0, fmt::format("cannot understand the measurement: {}", e.what())});
    }
    return kExitDone;
}

}  // namespace vramswap
