// SPDX-License-Identifier: MIT
#include "cli/top_text.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace vramswap {
namespace {

struct Range {
    char32_t first, last;
};
// East Asian wide, and pictures (Unicode TR 11): what terminals give two columns.
constexpr std::array kWide{Range{0x1100, 0x115f},   Range{0x2e80, 0x303e},   Range{0x3041, 0x33ff},
                           Range{0x3400, 0x4dbf},   Range{0x4e00, 0x9fff},   Range{0xa000, 0xa4cf},
                           Range{0xac00, 0xd7a3},   Range{0xf900, 0xfaff},   Range{0xfe30, 0xfe6f},
                           Range{0xff00, 0xff60},   Range{0xffe0, 0xffe6},   Range{0x1f300, 0x1f64f},
                           Range{0x1f680, 0x1f6ff}, Range{0x1f900, 0x1f9ff}, Range{0x20000, 0x3fffd}};
constexpr std::array kCombining{Range{0x300, 0x36f},   Range{0x483, 0x489},   Range{0x1ab0, 0x1aff},
                                Range{0x1dc0, 0x1dff}, Range{0x20d0, 0x20ff}, Range{0xfe20, 0xfe2f}};
// They change how the rest of the line looks: not printed. C1 controls, directions, joiners, line ends.
constexpr std::array kUnprintable{Range{0x7f, 0x9f},      Range{0xad, 0xad},     Range{0x200b, 0x200f},
                                  Range{0x2028, 0x202e},  Range{0x2060, 0x206f}, Range{0xd800, 0xdfff},
                                  Range{0xfe00, 0xfe0f},  Range{0xfeff, 0xfeff}, Range{0xfff9, 0xffff},
                                  Range{0xe0000, 0xe0fff}};

template <std::size_t N>
bool is_in(const std::array<Range, N>& ranges, char32_t c) {
    return std::ranges::any_of(ranges, [c](Range r) { return r.first <= c && c <= r.last; });
}

/// The next character; `size` 0 at the end, `ok` false for a byte that begins none.
struct Decoded {
    char32_t c = 0;
    std::size_t size = 0;
    bool ok = false;
};
Decoded decode(std::string_view text) {
    if (text.empty()) return {};
    const auto byte = [text](std::size_t i) { return static_cast<unsigned char>(text[i]); };
    if (byte(0) < 0x80) return {byte(0), 1, true};
    const std::size_t size = byte(0) >= 0xf0 ? 4 : byte(0) >= 0xe0 ? 3 : 2;
    if (byte(0) < 0xc2 || byte(0) > 0xf4 || text.size() < size) return {0, 1, false};
    char32_t c = byte(0) & (0x7fu >> size);
    for (std::size_t i = 1; i < size; ++i) {
        if ((byte(i) & 0xc0u) != 0x80) return {0, 1, false};
        c = c << 6 | (byte(i) & 0x3fu);
    }
    constexpr std::array<char32_t, 5> kFirst{0, 0, 0x80, 0x800, 0x10000};
    if (c < kFirst.at(size) || c > 0x10ffff) return {0, 1, false};
    return {c, size, true};
}

std::size_t columns_of(char32_t c) {
    if (is_in(kCombining, c)) return 0;
    return is_in(kWide, c) ? 2 : 1;
}

/// The longest beginning that fits.
std::string_view beginning_of(std::string_view text, std::size_t columns) {
    std::size_t bytes = 0;
    std::size_t used = 0;
    for (Decoded d = decode(text); d.size != 0; d = decode(text.substr(bytes))) {
        used += columns_of(d.c);
        if (used > columns) break;
        bytes += d.size;
    }
    return text.substr(0, bytes);
}

}  // namespace

std::size_t columns_of(std::string_view utf8) {
    std::size_t columns = 0;
    for (Decoded d = decode(utf8); d.size != 0; d = decode(utf8)) {
        columns += columns_of(d.c);
        utf8.remove_prefix(d.size);
    }
    return columns;
}

std::string printable(std::string_view text, Charset charset) {
    std::string out;
    for (Decoded d = decode(text); d.size != 0; d = decode(text)) {
        const bool shown =
            d.ok && d.c >= 0x20 && !is_in(kUnprintable, d.c) && (charset == Charset::utf8 || d.c < 0x80);
        if (shown)
            out += text.substr(0, d.size);
        else
            out += '?';
        text.remove_prefix(d.size);
    }
    return out;
}

StyledLine& StyledLine::add(std::string_view text, TextStyle style) {
    if (text.empty()) return *this;
    columns_ += columns_of(text);
    if (!spans_.empty() && spans_.back().style == style)
        spans_.back().text += text;
    else
        spans_.push_back({std::string(text), style});
    return *this;
}

StyledLine& StyledLine::add(const StyledLine& other) {
    for (const Span& span : other.spans_) add(span.text, span.style);
    return *this;
}

StyledLine& StyledLine::fill_to(std::size_t column, std::string_view glyph, TextStyle style) {
    std::string filling;
    for (std::size_t i = columns_; i < column; ++i) filling += glyph;
    return add(filling, style);
}

void StyledLine::cut(std::size_t columns, std::string_view mark) {
    if (columns_ <= columns) return;
    const std::size_t kept = columns - std::min(columns, columns_of(mark));
    StyledLine cut;
    TextStyle style = TextStyle::plain;
    for (const Span& span : spans_) {
        style = span.style;
        const std::string_view part = beginning_of(span.text, kept - cut.columns_);
        cut.add(part, span.style);
        if (part.size() < span.text.size()) break;
    }
    if (columns > 0) cut.add(mark, style);
    *this = std::move(cut);
}

std::string StyledLine::text() const {
    std::string text;
    for (const Span& span : spans_) text += span.text;
    return text;
}

const Glyphs& glyphs_of(Charset charset) {
    static constexpr Glyphs kAscii{"#", "=", ":", "%", ".", "|",
                                   "-", "~", ">", "u", "_", {".", ".", ":", ":", "|", "|", "#", "#"}};
    static constexpr Glyphs kUtf8{"█", "▓", "▒", "▚", "░", "┃",
                                  "─", "…", "▶", "µ", "_", {"▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"}};
    return charset == Charset::ascii ? kAscii : kUtf8;
}

std::string format_rate(double bytes_per_s) {
    const double mb = bytes_per_s / 1e6;
    if (mb == 0) return "0 MB/s";
    if (mb < 9.95) return fmt::format("{:.1f} MB/s", std::max(mb, 0.1));
    if (mb < 999.5) return fmt::format("{:.0f} MB/s", mb);
    return fmt::format("{:.{}f} GB/s", mb / 1e3, mb < 99950 ? 1 : 0);
}

std::string format_count(double n) {
    if (n < 999.5) return fmt::format("{:.0f}", n > 0 ? std::max(n, 1.0) : 0.0);
    if (n < 999950) return fmt::format("{:.1f}k", n / 1e3);
    return fmt::format("{:.1f}M", n / 1e6);
}

std::string format_duration(double ns, Charset charset) {
    const std::string us = fmt::format(" {}s", glyphs_of(charset).micro);
    const auto in = [ns](double unit, std::string_view name) {
        const double value = ns / unit;
        return fmt::format("{:.{}f}{}", value, value < 9.95 ? 1 : 0, name);
    };
    if (ns < 999.5e3) return in(1e3, us);
    if (ns < 999.5e6) return in(1e6, " ms");
    return in(1e9, " s");
}

}  // namespace vramswap
