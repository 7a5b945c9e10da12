// SPDX-License-Identifier: MIT
// Styled text for terminals, measured in columns rather than bytes, and the characters that `vramswap top`
// draws with. Values and pure functions: any thread, no errors; they allocate.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace vramswap {

/// What the terminal can show.
enum class Charset : std::uint8_t { ascii, utf8 };

/// What a text is; the screen chooses colours for it.
enum class TextStyle : std::uint8_t {
    plain,
    strong,
    dim,
    bar,
    good,
    warning,
    bad,
    vram,
    stage,
    spill,
    others
};

/// Columns on a terminal. Wide characters of East Asia and pictures count as two, combining ones as none.
[[nodiscard]] std::size_t columns_of(std::string_view utf8);

/// What others have written (names of processes, messages, paths), safe to be printed by root: control
/// characters and what is no UTF-8 become '?', and with `ascii` everything else that is none.
[[nodiscard]] std::string printable(std::string_view text, Charset charset);

struct Span {
    std::string text;
    TextStyle style = TextStyle::plain;
};

/// A line of a screen. Its texts are printable.
class StyledLine {
  public:
    StyledLine() = default;
    explicit StyledLine(std::string_view text, TextStyle style = TextStyle::plain) { add(text, style); }

    StyledLine& add(std::string_view text, TextStyle style = TextStyle::plain);
    StyledLine& add(const StyledLine& other);
    /// Repeats `glyph`, one column wide, up to that column.
    StyledLine& fill_to(std::size_t column, std::string_view glyph = " ", TextStyle style = TextStyle::plain);
    /// Shortens it to so many columns; if something is lost, `mark` ends it.
    void cut(std::size_t columns, std::string_view mark);

    [[nodiscard]] std::size_t columns() const { return columns_; }
    [[nodiscard]] const std::vector<Span>& spans() const { return spans_; }
    [[nodiscard]] std::string text() const;

  private:
    std::vector<Span> spans_;
    std::size_t columns_ = 0;
};

/// Each one column wide. Parts of a bar differ even without colours.
struct Glyphs {
    const char *vram, *stage, *spill, *others, *free, *target;
    const char *rule, *ellipsis, *selected, *micro;
    const char* nothing;                ///< of a graph: measured, and 0
    std::array<const char*, 8> levels;  ///< of a graph: eighths of a row
};
[[nodiscard]] const Glyphs& glyphs_of(Charset charset);

// --- figures, short enough for columns ---

/// "0.4 MB/s", "51 MB/s", "1.2 GB/s": powers of 1000, 9 columns at most.
[[nodiscard]] std::string format_rate(double bytes_per_s);
/// "7", "12.4k", "1.2M": 6 columns at most.
[[nodiscard]] std::string format_count(double n);
/// "4.2 us", "140 us", "1.4 ms", "2.1 s": 6 columns at most up to 1000 s.
[[nodiscard]] std::string format_duration(double ns, Charset charset);

}  // namespace vramswap
