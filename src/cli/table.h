// SPDX-License-Identifier: MIT
// Plain tables as zramctl and swapon print them, and a progress bar. Single-threaded.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace vramswap {

enum class Align : std::uint8_t { left, right };
struct Column {
    std::string title;
    Align align = Align::left;
};

/// Columns as wide as they need, two blanks apart, no blanks at line ends.
[[nodiscard]] std::string format_table(const std::vector<Column>& columns,
                                       const std::vector<std::vector<std::string>>& rows);

/// A line that is drawn again on a terminal and never printed into a pipe. Writes to standard error.
class Progress {
  public:
    explicit Progress(std::string_view label);
    ~Progress();
    Progress(const Progress&) = delete;
    Progress& operator=(const Progress&) = delete;
    /// 0 to 1.
    void show(double share);

  private:
    const std::string label_;
    const bool terminal_;
    int last_percent_ = -1;
};

}  // namespace vramswap
