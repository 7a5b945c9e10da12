// SPDX-License-Identifier: MIT
#include "cli/top_view.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <iterator>

#include "cli/top_panel.h"

namespace vramswap {
namespace {

using Lines = std::vector<StyledLine>;

constexpr std::array kIntervalsS{kTopIntervalMinS, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, kTopIntervalMaxS};

std::size_t selected_index(const TopModel& model, const std::string& name) {
    const auto& devices = model.devices();
    const auto it = std::ranges::find(devices, name, [](const auto& d) { return d.status.name; });
    return it == devices.end() ? 0 : static_cast<std::size_t>(it - devices.begin());
}

void select_neighbour(TopState& state, const TopModel& model, TopKey key) {
    if (model.devices().empty()) return;
    std::size_t index = selected_index(model, state.selected);
    if (key == TopKey::up && index > 0) --index;
    if (key == TopKey::down && index + 1 < model.devices().size()) ++index;
    state.selected = model.devices()[index].status.name;
}

double next_interval(double now, TopKey key) {
    if (key == TopKey::slower) {
        const auto it = std::ranges::upper_bound(kIntervalsS, now);
        return it == kIntervalsS.end() ? now : *it;
    }
    const auto it = std::ranges::lower_bound(kIntervalsS, now);
    return it == kIntervalsS.begin() ? now : *std::prev(it);
}

StyledLine title(const TopModel& model, const TopState& state, std::size_t columns) {
    const std::size_t n = model.devices().size();
    StyledLine line(" vramswap top", TextStyle::bar);
    line.add(fmt::format("   {} {}   every {:g} s", n, n == 1 ? "device" : "devices", state.interval_s),
             TextStyle::bar);
    if (state.run == TopState::Run::paused) line.add("   PAUSED", TextStyle::bar);
    return line.fill_to(columns, " ", TextStyle::bar);
}

StyledLine footer(const TopModel& model, std::size_t columns) {
    StyledLine line(" ");
    const auto key = [&line](std::string_view keys, std::string_view meaning) {
        line.add(keys, TextStyle::strong).add(" ").add(meaning, TextStyle::dim).add("  ");
    };
    key("q", "quit");
    key("p", "pause");
    key("h", "help");
    key("+/-", "interval");
    if (model.devices().size() > 1) key("up/down", "select");
    if (line.columns() > columns) line = StyledLine(" q quit  h help", TextStyle::dim);
    return line;
}

Lines help_page() {
    const auto key = [](std::string_view keys, std::string_view meaning) {
        return StyledLine("  ").add(keys, TextStyle::strong).fill_to(12).add(meaning);
    };
    const auto word = [](std::string_view name, std::string_view meaning) {
        return StyledLine("  ").add(name, TextStyle::dim).fill_to(12).add(meaning);
    };
    return {
        key("q", "quit"),
        key("p, blank", "pause, go on"),
        key("up, down", "select a device: it has the most room"),
        key("+, -", "longer and shorter intervals"),
        key("h", "this page, and back"),
        StyledLine(),
        word("used", "swap in use, as the kernel counts"),
        word("stored", "what the device holds, and where: VRAM, stage (RAM), spill (disk)"),
        word("in, out", "swapped in and out in the last interval; half of the requests that"),
        word("", "waited for a copy took less than p50, 99 of 100 less than p99"),
        word("moves", "out: from VRAM to the spill; back: to VRAM; compacted: within VRAM"),
        word("VRAM", "taken from the GPU, and what the policy wants of it (the mark)"),
        word("policy", "why it wants that; reserve: what is to stay free for others"),
        word("GPU", "its memory: ours, that of other processes, free; what neither"),
        word("", "has is the driver's. SM: time in which others computed on it"),
        word("graphs", "the most of each moment; the newest is on the right"),
    };
}

/// How a screen's rows are shared out: everybody gets a line, the selected device what it usually needs,
/// then the others, then all what is left.
struct Shares {
    std::size_t first = 0;          ///< device that is shown at the top
    std::vector<std::size_t> rows;  ///< of it and those after it
};
Shares share_out(std::size_t rows, const std::vector<std::size_t>& wanted, std::size_t selected) {
    Shares shares;
    const std::size_t shown = std::min(wanted.size(), rows);
    shares.first = selected < shown ? 0 : selected + 1 - shown;
    shares.rows.assign(shown, 1);
    std::size_t left = rows - shown;
    const std::size_t mine = selected - shares.first;
    const auto raise = [&](std::size_t device, std::size_t level) {
        const std::size_t to = std::min(level, wanted[shares.first + device]);
        std::size_t& own = shares.rows[device];
        const std::size_t more = std::min(left, to - std::min(to, own));
        own += more;
        left -= more;
    };
    raise(mine, kPanelRowsUsual);
    for (const std::size_t level : {kPanelRowsBrief, kPanelRowsUsual})
        for (std::size_t i = 0; i < shown; ++i) raise(i, level);
    for (std::size_t level = kPanelRowsUsual + 1; left > 0 && level <= kPanelRowsAtMost; ++level) {
        raise(mine, level);
        for (std::size_t i = 0; i < shown; ++i) raise(i, level);
    }
    return shares;
}

Lines panels(const TopModel& model, const TopState& state, ScreenSize size, Charset charset) {
    const auto& devices = model.devices();
    if (devices.empty())
        return {StyledLine(), StyledLine(" No device is up."), StyledLine(" `vramswap up` brings one up.")};
    const std::size_t selected = selected_index(model, state.selected);
    std::vector<std::size_t> wanted;
    for (const TopDevice& device : devices)
        wanted.push_back(panel_rows_wanted(device, size.columns, charset));
    const Shares shares = share_out(size.rows, wanted, selected);
    Lines lines;
    for (std::size_t i = 0; i < shares.rows.size(); ++i) {
        const std::size_t index = shares.first + i;
        const Marker marker = devices.size() == 1 ? Marker::none
                              : index == selected ? Marker::selected
                                                  : Marker::other;
        for (auto& line : draw_panel(devices[index], {.columns = size.columns,
                                                     .rows = shares.rows[i],
                                                     .charset = charset,
                                                     .marker = marker,
                                                     .now_ns = model.now_ns()}))
            lines.push_back(std::move(line));
    }
    return lines;
}

}  // namespace

TopState pressed(TopState state, TopKey key, const TopModel& model) {
    using Run = TopState::Run;
    using Page = TopState::Page;
    switch (key) {
        case TopKey::none:
            break;
        case TopKey::up:
        case TopKey::down:
            select_neighbour(state, model, key);
            break;
        case TopKey::quit:
            state.run = Run::ended;
            break;
        case TopKey::pause:
            state.run = state.run == Run::paused ? Run::live : Run::paused;
            break;
        case TopKey::help:
            state.page = state.page == Page::help ? Page::devices : Page::help;
            break;
        case TopKey::slower:
        case TopKey::faster:
            state.interval_s = next_interval(state.interval_s, key);
            break;
    }
    return state;
}

Lines draw_screen(const TopModel& model, const TopState& state, ScreenSize size, Charset charset) {
    constexpr std::size_t kRowsForTitle = 4, kRowsForFooter = 6;
    const bool has_title = size.rows >= kRowsForTitle;
    const bool has_footer = size.rows >= kRowsForFooter;
    const std::size_t body_rows = size.rows - (has_title ? 1 : 0) - (has_footer ? 1 : 0);
    Lines lines;
    if (has_title) lines.push_back(title(model, state, size.columns));
    Lines body = state.page == TopState::Page::help
                     ? help_page()
                     : panels(model, state, {size.columns, body_rows}, charset);
    body.resize(body_rows);
    std::ranges::move(body, std::back_inserter(lines));
    if (has_footer) lines.push_back(footer(model, size.columns));
    for (StyledLine& line : lines) line.cut(size.columns, glyphs_of(charset).ellipsis);
    return lines;
}

Lines draw_plain(const TopModel& model, std::size_t columns, Charset charset) {
    if (model.devices().empty()) return {StyledLine("No device is up. `vramswap up` brings one up.")};
    Lines lines;
    for (const TopDevice& device : model.devices()) {
        if (!lines.empty()) lines.emplace_back();
        for (auto& line : draw_panel(device, {.columns = columns,
                                             .rows = 1000,
                                             .charset = charset,
                                             .pictures = Pictures::none,
                                             .now_ns = model.now_ns()}))
            lines.push_back(std::move(line));
    }
    return lines;
}

}  // namespace vramswap
