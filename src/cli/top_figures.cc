// SPDX-License-Identifier: MIT
#include "cli/top_figures.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>

namespace vramswap {
namespace {

StyledLine field(std::string_view text, TextStyle style = TextStyle::plain) {
    return StyledLine(text, style);
}

/// What a part of a bar is.
StyledLine legend(const BarPart& part, std::string_view what) {
    return StyledLine(part.glyph, part.style)
        .add(" ")
        .add(named(what, format_size({static_cast<std::uint64_t>(part.amount)})));
}

TextStyle style_of(std::string_view state) {
    if (state == "armed" || state == "serving") return TextStyle::good;
    if (state == "starting" || state == "draining") return TextStyle::warning;
    return TextStyle::bad;
}

double as_double(Bytes bytes) {
    return static_cast<double>(bytes.n);
}

}  // namespace

FigureWriter::FigureWriter(const TopDevice& device, std::size_t columns, Charset charset)
    : device_(device), charset_(charset), glyphs_(glyphs_of(charset)), rows_(columns, charset) {}

std::vector<StyledLine> FigureWriter::identity() const {
    const DeviceStatus& s = device_.status;
    const bool gone = device_.presence == TopDevice::Presence::gone;
    const std::string state = gone ? "gone" : safe(s.state);
    std::vector<StyledLine> fields{field(safe(s.name), TextStyle::strong), field(state, style_of(state))};
    if (!device_.has_figures()) return fields;
    fields.push_back(field(s.swap
                               ? fmt::format("{} used of {}", format_size(s.swap_used), format_size(s.size))
                               : format_size(s.size)));
    return fields;
}

StyledLine FigureWriter::header() const {
    const DeviceStatus& s = device_.status;
    std::vector<StyledLine> fields = identity();
    if (device_.has_figures()) {
        fields.push_back(named("on", safe(s.gpu)));
        fields.push_back(field(fmt::format("{} ({})", safe(s.device), safe(s.frontend)), TextStyle::dim));
        if (s.swap) fields.push_back(named("prio", std::to_string(s.priority)));
        if (s.gpu_total.n == 0) fields.push_back(field(safe(s.gpu_name), TextStyle::dim));
    }
    StyledLine line;
    rows_.add_fields(line, fields);
    return line;
}

StyledLine FigureWriter::summary() const {
    std::vector<StyledLine> fields = identity();
    if (const auto& rates = device_.rates; rates) {
        fields.push_back(named("in", format_rate(rates->in.bytes_per_s())));
        fields.push_back(named("out", format_rate(rates->out.bytes_per_s())));
    }
    if (!device_.status.problem.empty())
        fields.push_back(field(safe(device_.status.problem), TextStyle::bad));
    StyledLine line;
    rows_.add_fields(line, fields);
    return line;
}

std::vector<StyledLine> FigureWriter::problems() const {
    const DeviceStatus& s = device_.status;
    std::vector<StyledLine> lines;
    const auto tell = [&](std::string_view label, std::string_view words, TextStyle style) {
        for (auto& line : rows_.wrapped(label, words, style)) lines.push_back(std::move(line));
    };
    if (device_.presence == TopDevice::Presence::gone)
        tell("", "It was taken down, or its directory was removed.", TextStyle::plain);
    else if (!s.problem.empty())
        tell("WRONG", s.problem, TextStyle::bad);
    else if (s.state == "starting")
        tell("", "Its worker is not serving yet.", TextStyle::plain);
    if (!device_.has_figures()) return lines;
    std::string errors;
    const auto count = [&errors](std::uint64_t n, std::string_view what) {
        if (n != 0) errors += fmt::format("{}{} {}", errors.empty() ? "" : ", ", n, what);
    };
    count(s.read_errors, "pages not read");
    count(s.writes_refused, "writes refused");
    count(s.flush_errors, "flushes failed");
    count(s.move_errors, "moves failed");
    if (!errors.empty()) tell("errors", errors, TextStyle::bad);
    if (!s.spill_problem.empty()) tell("spill", s.spill_problem, TextStyle::warning);
    return lines;
}

std::vector<StyledLine> FigureWriter::stored() const {
    const DeviceStatus& s = device_.status;
    const Places places = places_of(s);
    const std::array<BarPart, 4> parts{
        BarPart{as_double(places.vram), glyphs_.vram, TextStyle::vram},
        BarPart{as_double(places.stage), glyphs_.stage, TextStyle::stage},
        BarPart{as_double(places.spill), glyphs_.spill, TextStyle::spill},
        BarPart{as_double(places.free), glyphs_.free, TextStyle::dim},
    };
    const std::string value = fmt::format("{} of {}", format_size(s.stored), format_size(s.size));
    StyledLine bar = rows_.bar_row("stored", value, [&](std::size_t columns) {
        return draw_bar({parts.begin(), parts.end()}, as_double(s.size), columns);
    });
    constexpr std::array kNames{"VRAM", "stage", "spill", "free"};
    std::vector<StyledLine> names;
    for (std::size_t i = 0; i < parts.size(); ++i) names.push_back(legend(parts.at(i), kNames.at(i)));
    names.push_back(named("RAM spent", format_size(s.ram)));
    return {std::move(bar), rows_.row("", names)};
}

StyledLine FigureWriter::flow(std::string_view label, TopFlow TopRates::*flow) const {
    constexpr std::size_t kWithPages = 62;
    const bool wide = rows_.columns() >= kWithPages;
    const std::string gap(wide ? 3 : 2, ' ');
    StyledLine line = rows_.labelled(label);
    const TopFlow* f = device_.rates ? &((*device_.rates).*flow) : nullptr;
    if (wide) line.add(right(f == nullptr ? "-" : format_count(f->pages_per_s) + " pages/s", 13)).add(gap);
    line.add(right(f == nullptr ? "-" : format_rate(f->bytes_per_s()), 9, TextStyle::strong));
    const auto add_latency = [&](std::string_view name, double Percentiles::*value) {
        const bool known = f != nullptr && f->latency;
        line.add(gap).add(name, TextStyle::dim).add(" ");
        line.add(right(known ? format_duration((*f->latency).*value, charset_) : "-", 6));
    };
    add_latency("p50", &Percentiles::p50_ns);
    add_latency("p99", &Percentiles::p99_ns);
    return line;
}

std::vector<StyledLine> FigureWriter::flows() const {
    return {flow("in", &TopRates::in), flow("out", &TopRates::out)};
}

StyledLine FigureWriter::moves() const {
    const DeviceStatus& s = device_.status;
    std::vector<StyledLine> fields;
    if (const auto& r = device_.rates; r) {
        fields = {named("out", format_rate(r->moved_out)), named("back", format_rate(r->moved_back)),
                  named("compacted", format_rate(r->compacted))};
    } else {
        fields.push_back(field("-"));
    }
    if (s.read_errors + s.writes_refused + s.flush_errors + s.move_errors == 0)
        fields.push_back(field("no errors", TextStyle::dim));
    return rows_.row("moves", fields);
}

StyledLine FigureWriter::vram() const {
    const DeviceStatus& s = device_.status;
    const bool targeted = !s.reason.empty();
    const double whole = as_double(std::max({s.size, s.vram, s.vram_target, Bytes{1}}));
    const std::string value =
        targeted ? fmt::format("{}, target {}", format_size(s.vram), format_size(s.vram_target))
                 : fmt::format("{} held", format_size(s.vram));
    return rows_.bar_row("VRAM", value, [&](std::size_t columns) {
        const auto cells = [&](Bytes amount) {
            return static_cast<std::size_t>(
                std::lround(as_double(amount) / whole * static_cast<double>(columns)));
        };
        const std::size_t held = std::max<std::size_t>(s.vram.n == 0 ? 0 : 1, cells(s.vram));
        const std::size_t mark = std::min(cells(s.vram_target), columns - 1);
        StyledLine line;
        for (std::size_t i = 0; i < columns; ++i) {
            if (targeted && i == mark)
                line.add(glyphs_.target, TextStyle::strong);
            else if (i < held)
                line.add(glyphs_.vram, TextStyle::vram);
            else
                line.add(glyphs_.free, TextStyle::dim);
        }
        return line;
    });
}

StyledLine FigureWriter::spill() const {
    const DeviceStatus& s = device_.status;
    return rows_.row(
        "spill",
        {field(fmt::format("{} of {}", format_size(s.spilled), format_size(s.spill_capacity))),
         named("on disk", format_size(s.spill_on_disk)), field(safe(s.spill_place), TextStyle::dim)});
}

std::vector<StyledLine> FigureWriter::reason() const {
    const DeviceStatus& s = device_.status;
    std::vector<StyledLine> lines;
    if (!s.set_by_hand.empty())
        lines = rows_.wrapped("policy", "by hand: " + s.set_by_hand, TextStyle::warning);
    for (auto& line : rows_.wrapped(lines.empty() ? "policy" : "", s.reason, TextStyle::strong))
        lines.push_back(std::move(line));
    return lines;
}

std::vector<StyledLine> FigureWriter::policy() const {
    const DeviceStatus& s = device_.status;
    std::vector<StyledLine> fields;
    if (!s.reason.empty()) {
        constexpr auto kNoLimit = ~std::uint64_t{0};
        fields.push_back(named("reserve", format_size(s.reserve)));
        fields.push_back(s.move_rate_max == kNoLimit ? named("moves", "at full speed")
                         : s.move_rate_max == 0
                             ? named("moves", "none")
                             : named("moves up to", format_rate(static_cast<double>(s.move_rate_max))));
    }
    fields.push_back(named("mode", safe(s.mode)));
    if (!s.power.empty()) fields.push_back(named("power", safe(s.power)));
    return {rows_.row(s.reason.empty() ? "policy" : "", fields)};
}

FigureWriter::GpuLines FigureWriter::gpu(const std::string& label, const GpuPart& gpu) const {
    const std::array<BarPart, 3> parts{
        BarPart{as_double(gpu.vram), glyphs_.vram, TextStyle::vram},
        BarPart{as_double(gpu.others_memory), glyphs_.others, TextStyle::others},
        BarPart{as_double(gpu.free), glyphs_.free, TextStyle::dim},
    };
    const std::string value = fmt::format("{} free of {}", format_size(gpu.free), format_size(gpu.total));
    StyledLine bar = rows_.bar_row(label, value, [&](std::size_t columns) {
        return draw_bar({parts.begin(), parts.end()}, as_double(gpu.total), columns);
    });
    std::vector<StyledLine> fields{legend(parts[0], "ours"), legend(parts[1], "others"),
                                   legend(parts[2], "free")};
    if (gpu.others_sm_percent >= 0)
        fields.push_back(named("others' SM", fmt::format("{}%", gpu.others_sm_percent)));
    StyledLine names = rows_.row("", fields);
    const StyledLine model = field(safe(gpu.name), TextStyle::dim);
    if (names.columns() + 2 + model.columns() <= rows_.columns()) names.add("  ").add(model);
    return {std::move(bar), std::move(names)};
}

std::vector<Section> FigureWriter::sections() const {
    const DeviceStatus& s = device_.status;
    std::vector<Section> all;
    if (auto lines = problems(); !lines.empty()) all.push_back({kProblem, std::move(lines)});
    if (!device_.has_figures()) return all;
    auto where = stored();
    all.push_back({kStored, {std::move(where[0])}});
    all.push_back({kLegends, {std::move(where[1])}});
    all.push_back({kFlows, flows()});
    all.push_back({kMoves, {moves()}});
    all.push_back({kVram, {vram()}});
    if (s.spill_capacity.n != 0) all.push_back({kSpill, {spill()}});
    if (!s.reason.empty()) all.push_back({kReason, reason()});
    all.push_back({kPolicy, policy()});
    for (const GpuPart& part : s.gpus) {
        if (part.total.n == 0) continue;
        GpuLines lines = gpu(s.gpus.size() == 1 ? "GPU" : safe(part.selector), part);
        all.push_back({kGpu, {std::move(lines.bar)}});
        all.push_back({kLegends, {std::move(lines.legend)}});
    }
    return all;
}

std::size_t FigureWriter::process_rows() const {
    return device_.has_figures() ? device_.status.gpu_processes.size() : 0;
}

std::vector<StyledLine> FigureWriter::processes(std::size_t rows) const {
    std::vector<GpuProcess> sorted = device_.status.gpu_processes;
    std::ranges::stable_sort(sorted, std::greater{}, [](const auto& p) { return p.memory.n; });
    const std::size_t named_rows =
        sorted.size() <= rows ? sorted.size() : rows - std::min<std::size_t>(rows, 1);
    std::vector<StyledLine> lines;
    for (std::size_t i = 0; i < named_rows; ++i) {
        StyledLine line = rows_.labelled(i == 0 ? "others" : "");
        line.add(right(format_size(sorted[i].memory), 6)).add("  ").add(safe(sorted[i].name));
        lines.push_back(line.add(fmt::format("  pid {}", sorted[i].pid), TextStyle::dim));
    }
    if (named_rows == sorted.size() || rows == 0) return lines;
    Bytes rest{};
    for (std::size_t i = named_rows; i < sorted.size(); ++i) rest = rest + sorted[i].memory;
    StyledLine line = rows_.labelled(named_rows == 0 ? "others" : "");
    line.add(right(format_size(rest), 6)).add("  ");
    lines.push_back(
        line.add(fmt::format("{} {}processes", sorted.size() - named_rows, named_rows == 0 ? "" : "more "),
                 TextStyle::dim));
    return lines;
}

}  // namespace vramswap
