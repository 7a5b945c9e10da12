// SPDX-License-Identifier: MIT
#include "cli/table.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

namespace vramswap {

std::string format_table(const std::vector<Column>& columns,
                         const std::vector<std::vector<std::string>>& rows) {
    std::vector<std::size_t> widths;
    for (const auto& c : columns) widths.push_back(c.title.size());
    for (const auto& row : rows)
        for (std::size_t i = 0; i < row.size(); ++i) widths.at(i) = std::max(widths.at(i), row[i].size());
    std::string out;
    const auto add_line = [&](const auto& cell) {
        std::string line;
        for (std::size_t i = 0; i < columns.size(); ++i) {
            if (i != 0) line += "  ";
            line += columns[i].align == Align::left ? fmt::format("{:<{}}", cell(i), widths[i])
                                                    : fmt::format("{:>{}}", cell(i), widths[i]);
        }
        line.erase(line.find_last_not_of(' ') + 1);
        out += line + "\n";
    };
    add_line([&](std::size_t i) { return columns[i].title; });
    for (const auto& row : rows)
        add_line([&](std::size_t i) { return i < row.size() ? row[i] : std::string{}; });
    return out;
}

Progress::Progress(std::string_view label) : label_(label), terminal_(::isatty(STDERR_FILENO) == 1) {}

Progress::~Progress() {
    if (terminal_ && last_percent_ >= 0) fmt::print(stderr, "\r\033[K");
}

void Progress::show(double share) {
    constexpr int kWidth = 40;
    const int percent = static_cast<int>(std::clamp(share, 0.0, 1.0) * 100);
    if (!terminal_ || percent == last_percent_) return;
    last_percent_ = percent;
    const int filled = percent * kWidth / 100;
    fmt::print(stderr, "\r{:<22} [{:#<{}}{:<{}}] {:>3}%", label_, "", filled, "", kWidth - filled, percent);
    std::fflush(stderr);
}

}  // namespace vramswap
