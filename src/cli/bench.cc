// SPDX-License-Identifier: MIT
// `vramswap bench`: runs the measurement in a process of its own and shows it beside the ceiling of the same
// run.
#include <fmt/format.h>

#include <cstdio>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/launch.h"
#include "cli/table.h"
#include "sys/spawn.h"

namespace vramswap {
namespace {

constexpr int kBenchTimeoutMs = 590'000;

void print_results(const nlohmann::json& j) {
    const auto& ceiling = j.at("ceiling");
    fmt::print("{} ({})\n", j.at("gpu").get<std::string>(), j.at("backend").get<std::string>());
    fmt::print(
        "ceiling of bare copies: to GPU {:.2f} GB/s, from GPU {:.2f} GB/s, one page from GPU {:.1f} us\n\n",
        ceiling.at("h2d_gbps").get<double>(), ceiling.at("d2h_gbps").get<double>(),
        ceiling.at("read_4k_qd1_us").get<double>());
    std::vector<std::vector<std::string>> rows;
    for (const auto& r : j.at("results")) {
        const auto& lat = r.at("lat_us");
        const double gbps = r.at("gbps");
        const double top = ceiling.at(r.at("op") == "write" ? "h2d_gbps" : "d2h_gbps");
        rows.push_back({r.at("op"), r.at("pattern"), format_size({r.at("block_bytes").get<std::uint64_t>()}),
                        std::to_string(r.at("queue_depth").get<int>()),
                        fmt::format("{:.0f}", r.at("iops").get<double>()), fmt::format("{:.2f}", gbps),
                        top > 0 ? fmt::format("{:.2f}", gbps / top) : "-",
                        fmt::format("{:.1f}", lat.at("p50").get<double>()),
                        fmt::format("{:.1f}", lat.at("p99").get<double>()),
                        fmt::format("{:.1f}", lat.at("max").get<double>()),
                        fmt::format("{:.2f}", r.at("cpu_s_per_gb").get<double>())});
    }
    const auto right = Align::right;
    fmt::print("{}", format_table({{"OP"},
                                   {"PATTERN"},
                                   {"BLOCK", right},
                                   {"DEPTH", right},
                                   {"IOPS", right},
                                   {"GB/s", right},
                                   {"RATIO", right},
                                   {"P50us", right},
                                   {"P99us", right},
                                   {"MAXus", right},
                                   {"CPUs/GB", right}},
                                  rows));
}

}  // namespace

int run_bench(const BenchOptions& options) {
    auto text =
        run_self({"internal-bench", options.gpu, fmt::format("{}", options.seconds)}, kBenchTimeoutMs);
    if (!text) return report(text.error());
    if (is_error_json(*text)) return report(parse_error(*text, "the measurement failed"));
    try {
        const auto results = nlohmann::json::parse(*text);
        if (options.output == Output::json)
            fmt::print("{}\n", results.dump(2));
        else
            print_results(results);
    } catch (const nlohmann::json::exception& e) {
        return report({Errc::failed, 0, fmt::format("cannot understand the measurement: {}", e.what())});
    }
    return kExitDone;
}

}  // namespace vramswap
