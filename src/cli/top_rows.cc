// SPDX-License-Identifier: MIT
#include "cli/top_rows.h"

#include <algorithm>

namespace vramswap {
namespace {

constexpr std::size_t kWideColumns = 60;

}  // namespace

StyledLine named(std::string_view what, std::string_view value) {
    return StyledLine(what, TextStyle::dim).add(" ").add(value);
}

StyledLine right(std::string_view text, std::size_t columns, TextStyle style) {
    StyledLine line;
    const std::size_t own = columns_of(text);
    return line.fill_to(columns - std::min(own, columns)).add(text, style);
}

RowWriter::RowWriter(std::size_t columns, Charset charset)
    : columns_(columns),
      charset_(charset),
      glyphs_(glyphs_of(charset)),
      label_columns_(columns < kWideColumns ? 7 : 10) {}

StyledLine RowWriter::labelled(std::string_view label) const {
    StyledLine line;
    if (columns_ >= kWideColumns) line.add(" ");
    return line.add(label, TextStyle::dim).fill_to(label_columns_);
}

void RowWriter::add_fields(StyledLine& line, const std::vector<StyledLine>& fields) const {
    const std::size_t start = line.columns();
    for (const StyledLine& f : fields) {
        const std::size_t gap = line.columns() == start ? 0 : 2;
        if (line.columns() + gap + f.columns() > columns_) {
            if (line.columns() + gap < columns_)
                line.fill_to(line.columns() + std::min<std::size_t>(gap, 1))
                    .add(glyphs_.ellipsis, TextStyle::dim);
            return;
        }
        line.fill_to(line.columns() + gap).add(f);
    }
}

StyledLine RowWriter::row(std::string_view label, const std::vector<StyledLine>& fields) const {
    StyledLine line = labelled(label);
    add_fields(line, fields);
    return line;
}

StyledLine RowWriter::bar_row(std::string_view label, std::string_view value,
                              const std::function<StyledLine(std::size_t)>& bar) const {
    constexpr std::size_t kValueColumns = 19;
    constexpr std::size_t kBarColumnsMin = 6;
    StyledLine line = labelled(label);
    const std::size_t taken = line.columns() + 1 + std::max(kValueColumns, columns_of(value));
    if (columns_ < taken + kBarColumnsMin) return line.add(value);
    line.add(bar(columns_ - taken));
    return line.add(right(value, columns_ - line.columns()));
}

std::vector<StyledLine> RowWriter::wrapped(std::string_view label, std::string_view words,
                                           TextStyle style) const {
    std::vector<StyledLine> lines{labelled(label)};
    const std::string safe_words = printable(words, charset_);
    std::string_view rest = safe_words;
    while (!rest.empty()) {
        const std::string_view word = rest.substr(0, rest.find(' '));
        rest.remove_prefix(std::min(rest.size(), word.size() + 1));
        const bool first = lines.back().columns() == label_columns_;
        if (!first && lines.back().columns() + 1 + columns_of(word) > columns_) {
            lines.push_back(labelled(""));
            lines.back().add(word, style);
        } else {
            lines.back().add(first ? "" : " ", style).add(word, style);
        }
    }
    return lines;
}

}  // namespace vramswap
