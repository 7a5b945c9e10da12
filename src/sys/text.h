// SPDX-License-Identifier: MIT
// Cutting the kernel's text files into lines, fields and numbers. Private to src/sys; pure, any thread, no
// allocation, no exceptions. Views point into the caller's text.
#pragma once

#include <charconv>
#include <cstdint>
#include <limits>
#include <optional>
#include <string_view>

#include "base/units.h"

namespace vramswap::text {

inline constexpr std::string_view kBlanks = " \t\r\n";

/// Cuts the next line off `text`, without its newline; nothing when the text is used up.
[[nodiscard]] inline std::optional<std::string_view> next_line(std::string_view& text) {
    if (text.empty()) return std::nullopt;
    const auto end = text.find('\n');
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
    return line;
}

/// Cuts the next field between blanks off `line`; empty when there is none.
[[nodiscard]] inline std::string_view next_field(std::string_view& line) {
    const auto begin = line.find_first_not_of(kBlanks);
    if (begin == std::string_view::npos) {
        line = {};
        return {};
    }
    line.remove_prefix(begin);
    const auto end = line.find_first_of(kBlanks);
    const std::string_view field = line.substr(0, end);
    line.remove_prefix(field.size());
    return field;
}

[[nodiscard]] inline std::string_view trim(std::string_view text) {
    const auto begin = text.find_first_not_of(kBlanks);
    if (begin == std::string_view::npos) return {};
    return text.substr(begin, text.find_last_not_of(kBlanks) - begin + 1);
}

/// The whole of `field` as a decimal number; nothing if it is none or does not fit.
template <typename Number>
[[nodiscard]] std::optional<Number> to_number(std::string_view field) {
    Number value{};
    const char* const end = field.data() + field.size();
    const auto [rest, ec] = std::from_chars(field.data(), end, value);
    if (ec != std::errc{} || rest != end) return std::nullopt;
    return value;
}

/// A number of KiB as bytes; nothing if it is none or does not fit.
[[nodiscard]] inline std::optional<Bytes> to_kib(std::string_view field) {
    const auto value = to_number<std::uint64_t>(field);
    if (!value || *value > (std::numeric_limits<std::uint64_t>::max() >> 10)) return std::nullopt;
    return kib(*value);
}

/// Reads "Name:   123 kB"; nothing if the line is not of that form.
struct KibLine {
    std::string_view name;
    Bytes value{};
};
[[nodiscard]] inline std::optional<KibLine> to_kib_line(std::string_view line) {
    const std::string_view name = next_field(line);
    if (name.size() < 2 || name.back() != ':') return std::nullopt;
    const auto value = to_kib(next_field(line));
    if (!value || next_field(line) != "kB") return std::nullopt;
    return KibLine{name.substr(0, name.size() - 1), *value};
}

}  // namespace vramswap::text
