// SPDX-License-Identifier: MIT
// RowWriter: the rows that a panel of `vramswap top` is made of, a label and what belongs to it, in so many
// columns. Pure; any thread; allocates, no errors.
#pragma once

#include <cstddef>
#include <functional>
#include <string_view>
#include <vector>

#include "cli/top_graph.h"
#include "cli/top_text.h"

namespace vramswap {

/// "what value", the value to be seen first.
[[nodiscard]] StyledLine named(std::string_view what, std::string_view value);
/// Padded from the left.
[[nodiscard]] StyledLine right(std::string_view text, std::size_t columns,
                               TextStyle style = TextStyle::plain);

class RowWriter {
  public:
    RowWriter(std::size_t columns, Charset charset);

    [[nodiscard]] std::size_t columns() const { return columns_; }
    [[nodiscard]] StyledLine labelled(std::string_view label) const;
    /// Adds what fits as a whole; an ellipsis stands for the rest.
    void add_fields(StyledLine& line, const std::vector<StyledLine>& fields) const;
    [[nodiscard]] StyledLine row(std::string_view label, const std::vector<StyledLine>& fields) const;
    /// A bar with its value on the right; without the bar where there is no room for it. `bar` draws it as
    /// wide as it is told.
    [[nodiscard]] StyledLine bar_row(std::string_view label, std::string_view value,
                                     const std::function<StyledLine(std::size_t)>& bar) const;
    /// As many lines as the words need.
    [[nodiscard]] std::vector<StyledLine> wrapped(std::string_view label, std::string_view words,
                                                  TextStyle style) const;

  private:
    const std::size_t columns_;
    const Charset charset_;
    const Glyphs& glyphs_;
    const std::size_t label_columns_;
};

}  // namespace vramswap
