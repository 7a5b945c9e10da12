// SPDX-License-Identifier: MIT
#include "cli/top_panel.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <iterator>

#include "cli/top_figures.h"
#include "cli/top_graph.h"

namespace vramswap {
namespace {

using Lines = std::vector<StyledLine>;

void append(Lines& lines, Lines more) {
    lines.insert(lines.end(), std::make_move_iterator(more.begin()), std::make_move_iterator(more.end()));
}

// --- graphs ---

struct Graph {
    const char* name;
    double TopPoint::*value;
    TextStyle style;
    std::string now, scale;
    double highest;  ///< of the scale; 0: the peak
};

/// Rates are drawn against their peak, but a trickle shall look like one.
constexpr double kRateScaleMin = 1e6;

std::vector<Graph> graphs_of(const DeviceStatus& s, const TopRates* rates) {
    const auto rate = [](const TopFlow* flow) {
        return flow == nullptr ? std::string("-") : format_rate(flow->bytes_per_s());
    };
    std::vector<Graph> graphs{
        {"in", &TopPoint::in, TextStyle::good, rate(rates ? &rates->in : nullptr), "", 0},
        {"out", &TopPoint::out, TextStyle::warning, rate(rates ? &rates->out : nullptr), "", 0},
        {"VRAM", &TopPoint::vram, TextStyle::vram, format_size(s.vram), "of " + format_size(s.size),
         static_cast<double>(s.size.n)},
    };
    if (s.gpu_total.n != 0)
        graphs.push_back({"others", &TopPoint::others, TextStyle::others, format_size(s.others_memory),
                          "of " + format_size(s.gpu_total), static_cast<double>(s.gpu_total.n)});
    return graphs;
}

std::string span_of(std::uint64_t ns) {
    const std::uint64_t seconds = ns / 1'000'000'000;
    return fmt::format("{}m{:02}s", seconds / 60, seconds % 60);
}

/// A title and `rows` - 1 rows of picture.
Lines draw_titled(const Graph& graph, const TopDevice& device, const PanelLook& look, std::size_t columns,
                  std::size_t rows) {
    const Glyphs& glyphs = glyphs_of(look.charset);
    const std::uint64_t step = step_for(columns);
    const auto values = columns_of_time(device.history, graph.value, look.now_ns, step, columns);
    const double peak = values.empty() ? 0 : std::max(0.0, std::ranges::max(values));
    const std::string scale = graph.scale.empty() ? "peak " + format_rate(peak) : graph.scale;
    const std::string legend = fmt::format(" {}, {}", scale, span_of(step * columns));
    StyledLine title(graph.name, graph.style);
    title.add(" ").add(graph.now, TextStyle::strong).add(" ");
    if (title.columns() + columns_of(legend) <= columns)
        title.fill_to(columns - columns_of(legend), glyphs.rule, TextStyle::dim).add(legend, TextStyle::dim);
    title.cut(columns, glyphs.ellipsis);
    title.fill_to(columns);
    Lines lines{std::move(title)};
    const double highest = graph.highest > 0 ? graph.highest : std::max(peak, kRateScaleMin);
    append(lines, draw_graph(values, {highest, rows - 1, graph.style, look.charset}));
    return lines;
}

/// Puts `right` beside `left`, from `column` on.
Lines beside(Lines left, const Lines& right, std::size_t column) {
    left.resize(std::max(left.size(), right.size()));
    for (std::size_t i = 0; i < right.size(); ++i) left[i].fill_to(column).add(right[i]);
    return left;
}

/// As many of the four as there is room for: two beside each other, or all below each other where they can be
/// four rows high each.
Lines draw_graphs(const TopDevice& device, const PanelLook& look, std::size_t columns, std::size_t rows) {
    constexpr std::size_t kRowsMin = 2, kRowsMax = 12, kRowsForOneBelowTheOther = 16, kColumnsForTwo = 64;
    constexpr std::size_t kGap = 2;
    const std::vector<Graph> graphs = graphs_of(device.status, device.rates ? &*device.rates : nullptr);
    const std::size_t abreast = rows < kRowsForOneBelowTheOther && columns >= kColumnsForTwo ? 2 : 1;
    const std::size_t width = (columns - kGap * (abreast - 1)) / abreast;
    const std::size_t storeys = std::min((graphs.size() + abreast - 1) / abreast, rows / kRowsMin);
    Lines lines;
    for (std::size_t storey = 0; storey < storeys; ++storey) {
        const std::size_t share = rows / storeys + (storey < rows % storeys ? 1 : 0);
        const std::size_t height = std::min(share, kRowsMax);
        const std::size_t first = storey * abreast;
        if (abreast == 1 || first + 1 == graphs.size())
            append(lines, draw_titled(graphs[first], device, look, columns, height));
        else
            append(lines, beside(draw_titled(graphs[first], device, look, width, height),
                                 draw_titled(graphs[first + 1], device, look, width, height), width + kGap));
    }
    return lines;
}

/// Graphs of one row, where there is no room for others.
void add_sparks(Lines& flows, const TopDevice& device, const PanelLook& look, std::size_t columns) {
    constexpr std::size_t kGap = 3, kColumnsMin = 8;
    constexpr std::array<double TopPoint::*, 2> kValues{&TopPoint::in, &TopPoint::out};
    constexpr std::array kStyles{TextStyle::good, TextStyle::warning};
    for (std::size_t i = 0; i < flows.size(); ++i) {
        if (flows[i].columns() + kGap + kColumnsMin > columns) return;
        flows[i].fill_to(flows[i].columns() + kGap);
        const std::size_t width = columns - flows[i].columns();
        const auto values =
            columns_of_time(device.history, kValues.at(i), look.now_ns, step_for(width), width);
        const double peak = std::max(kRateScaleMin, std::ranges::max(values));
        flows[i].add(draw_graph(values, {peak, 1, kStyles.at(i), look.charset}).front());
    }
}

// --- figures ---

/// What goes into `rows`, by rank, in the order of the list.
std::vector<Section> chosen(std::vector<Section> sections, std::size_t rows) {
    std::vector<const Section*> by_rank;
    for (const Section& s : sections) by_rank.push_back(&s);
    std::ranges::stable_sort(by_rank, {}, [](const Section* s) { return s->rank; });
    std::vector<std::size_t> taken(sections.size());
    for (const Section* s : by_rank) {
        const std::size_t size = std::min(rows, s->lines.size());
        // Half of in and out says less than none; of words the beginning is worth its row.
        const bool can_be_cut = s->rank == kProblem || s->rank == kReason;
        if (size == 0 || (size < s->lines.size() && !can_be_cut)) continue;
        taken[static_cast<std::size_t>(s - sections.data())] = size;
        rows -= size;
    }
    std::vector<Section> result;
    for (std::size_t i = 0; i < sections.size(); ++i) {
        if (taken[i] == 0) continue;
        sections[i].lines.resize(taken[i]);
        result.push_back(std::move(sections[i]));
    }
    return result;
}

/// Rows for processes where graphs want some too.
std::size_t rows_for_processes(std::size_t processes, std::size_t rows) {
    constexpr std::size_t kRowsOfSmallGraphs = 4;
    if (rows <= kRowsOfSmallGraphs) return 0;
    return std::min({processes, rows - kRowsOfSmallGraphs, std::max<std::size_t>(2, rows / 4)});
}

StyledLine header_of(const FigureWriter& figures, const PanelLook& look) {
    const Glyphs& glyphs = glyphs_of(look.charset);
    StyledLine line;
    if (look.marker == Marker::selected) line.add(glyphs.selected, TextStyle::strong).add(" ");
    if (look.marker == Marker::other) line.add("  ");
    line.add(look.rows == 1 ? figures.summary() : figures.header());
    if (look.rows > 1 && line.columns() + 2 < look.columns)
        line.add(" ").fill_to(look.columns, glyphs.rule, TextStyle::dim);
    return line;
}

}  // namespace

std::size_t panel_rows_wanted(const TopDevice& device, std::size_t columns, Charset charset) {
    if (device.has_figures()) return kPanelRowsAtMost;
    std::size_t rows = 1;
    for (const Section& s : FigureWriter(device, columns, charset).sections()) rows += s.lines.size();
    return rows;
}

Lines draw_panel(const TopDevice& device, const PanelLook& look) {
    constexpr std::size_t kWideColumns = 120, kGap = 2, kRowsForGraphsBeside = 5;
    const std::size_t margin = look.marker == Marker::none ? 0 : 2;
    const FigureWriter header(device, look.columns - std::min(look.columns, margin), look.charset);
    Lines lines{header_of(header, look)};
    const std::size_t rows = look.rows - 1;
    const bool pictures = look.pictures == Pictures::of_history && device.has_figures();
    const bool wide = pictures && look.columns >= kWideColumns && rows >= kRowsForGraphsBeside;
    const std::size_t columns = wide ? std::clamp<std::size_t>(look.columns / 2, 72, 100) : look.columns;
    const FigureWriter figures(device, columns, look.charset);

    std::vector<Section> sections = chosen(figures.sections(), rows);
    std::size_t left = rows;
    for (const Section& s : sections) left -= std::min(left, s.lines.size());
    const std::size_t for_processes = pictures && !wide ? rows_for_processes(figures.process_rows(), left)
                                                        : std::min(left, figures.process_rows());
    Lines below = figures.processes(for_processes);
    left -= std::min(left, below.size());
    const Lines graphs = wide       ? draw_graphs(device, look, look.columns - columns - kGap, rows)
                         : pictures ? draw_graphs(device, look, columns - 1, left)
                                    : Lines{};
    for (Section& s : sections) {
        if (s.rank == kFlows && pictures && graphs.empty()) add_sparks(s.lines, device, look, columns);
        append(lines, std::move(s.lines));
    }
    append(lines, std::move(below));
    if (wide) {
        Lines body(std::make_move_iterator(lines.begin() + 1), std::make_move_iterator(lines.end()));
        lines.resize(1);
        append(lines, beside(std::move(body), graphs, columns + kGap));
    } else {
        append(lines, beside({}, graphs, 1));
    }
    if (lines.size() > look.rows) lines.resize(look.rows);
    for (StyledLine& line : lines) line.cut(look.columns, glyphs_of(look.charset).ellipsis);
    return lines;
}

}  // namespace vramswap
