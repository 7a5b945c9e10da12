// SPDX-License-Identifier: MIT
#include "cli/top_graph.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace vramswap {

StyledLine draw_bar(const std::vector<BarPart>& parts, double whole, std::size_t columns) {
    std::vector<std::size_t> cells;
    for (const BarPart& part : parts) {
        const double share = whole > 0 ? std::clamp(part.amount / whole, 0.0, 1.0) : 0;
        const auto rounded = static_cast<std::size_t>(std::lround(share * static_cast<double>(columns)));
        cells.push_back(share > 0 ? std::max<std::size_t>(1, rounded) : 0);
    }
    // The largest part can spare what rounding up took; in a bar of few columns others must, too.
    for (std::size_t sum = std::reduce(cells.begin(), cells.end()); sum > columns; --sum)
        --*std::ranges::max_element(cells);
    StyledLine line;
    for (std::size_t i = 0; i < parts.size(); ++i)
        line.fill_to(line.columns() + cells[i], parts[i].glyph, parts[i].style);
    return line.fill_to(columns);
}

std::vector<double> columns_of_time(const std::deque<TopPoint>& history, double TopPoint::*value,
                                    std::uint64_t now_ns, std::uint64_t step_ns, std::size_t columns) {
    std::vector<double> highest(columns, -1.0);
    const std::uint64_t newest = now_ns / step_ns;
    for (const TopPoint& point : history) {
        const std::uint64_t last = (std::max(point.until_ns, std::uint64_t{1}) - 1) / step_ns;
        for (std::uint64_t bin = point.from_ns / step_ns; bin <= last && bin <= newest; ++bin) {
            const std::uint64_t age = newest - bin;
            if (age >= columns) continue;
            double& column = highest[columns - 1 - static_cast<std::size_t>(age)];
            column = std::max(column, point.*value);
        }
    }
    return highest;
}

std::uint64_t step_for(std::size_t columns) {
    constexpr std::uint64_t kShownS = 180;
    const std::uint64_t n = std::max<std::uint64_t>(1, columns);
    return (kShownS + n - 1) / n * 1'000'000'000;
}

std::vector<StyledLine> draw_graph(const std::vector<double>& columns, const GraphLook& look) {
    const Glyphs& glyphs = glyphs_of(look.charset);
    const std::size_t eighths_of_all = look.rows * glyphs.levels.size();
    double highest = look.highest;
    if (highest <= 0 && !columns.empty()) highest = std::ranges::max(columns);
    const auto eighths_of = [&](double value) -> std::size_t {
        if (value <= 0 || highest <= 0) return 0;
        const double share = std::min(1.0, value / highest);
        return std::max<std::size_t>(
            1, static_cast<std::size_t>(std::lround(share * static_cast<double>(eighths_of_all))));
    };
    std::vector<StyledLine> lines(look.rows);
    for (const double value : columns) {
        const std::size_t eighths = eighths_of(value);
        for (std::size_t row = 0; row < look.rows; ++row) {
            const std::size_t below = (look.rows - 1 - row) * glyphs.levels.size();
            if (eighths > below)
                lines[row].add(glyphs.levels.at(std::min(eighths - below, glyphs.levels.size()) - 1),
                               look.style);
            else if (below == 0 && value >= 0)
                lines[row].add(glyphs.nothing, TextStyle::dim);
            else
                lines[row].add(" ");
        }
    }
    return lines;
}

}  // namespace vramswap
