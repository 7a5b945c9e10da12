// SPDX-License-Identifier: MIT
// A picture of a measurement, as SVG without any library: for each row the rates as bars, with the ceiling
// behind them, and the percentiles of the latency on a logarithmic scale. Pure; single-threaded.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"

namespace vramswap {

inline constexpr std::array kPlotPercentiles{"p50", "p99", "p999", "max"};

struct PlotRow {
    std::string name;
    std::vector<double> gbps;  ///< one for each of Plot::rates
    double ceiling_gbps = 0;   ///< 0 = none
    double ceiling_us = 0;     ///< 0 = none
    std::array<double, kPlotPercentiles.size()> latency_us{};
};

struct Plot {
    std::string title, subtitle;
    std::vector<std::string> rates;  ///< what the bars of a row are, such as "out" and "in"
    std::vector<PlotRow> rows;
};

[[nodiscard]] std::string to_svg(const Plot& plot);

/// Writes the picture, unless `path` is empty. Errors: failed.
Result<void> write_plot(const Plot& plot, const std::string& path);

}  // namespace vramswap
