// SPDX-License-Identifier: MIT
// Bars and graphs of characters. Pure; any thread; they allocate, no errors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <string>
#include <vector>

#include "cli/top_model.h"
#include "cli/top_text.h"

namespace vramswap {

struct BarPart {
    double amount = 0;
    const char* glyph = " ";
    TextStyle style = TextStyle::plain;
};
/// Exactly `columns` wide; each part has as many as its share, and one at least unless it is 0. What the
/// parts leave of `whole` stays blank.
[[nodiscard]] StyledLine draw_bar(const std::vector<BarPart>& parts, double whole, std::size_t columns);

/// A history as columns of time, the newest on the right: the most that was in each; -1 where nothing is
/// known. The time of a column does not move while time goes on. At most one column for each `step_ns`.
[[nodiscard]] std::vector<double> columns_of_time(const std::deque<TopPoint>& history,
                                                  double TopPoint::*value, std::uint64_t now_ns,
                                                  std::uint64_t step_ns, std::size_t columns);
/// How much time a column must have for the whole to show three minutes or more, in whole seconds.
[[nodiscard]] std::uint64_t step_for(std::size_t columns);

struct GraphLook {
    double highest = 0;  ///< of the scale; 0: the highest value
    std::size_t rows = 1;
    TextStyle style = TextStyle::plain;
    Charset charset = Charset::ascii;
};
/// Rows of the graph, from the top. What is not 0 can be seen.
[[nodiscard]] std::vector<StyledLine> draw_graph(const std::vector<double>& columns, const GraphLook& look);

}  // namespace vramswap
