// SPDX-License-Identifier: MIT
#include "base/units.h"

#include <array>
#include <cctype>
#include <charconv>
#include <cmath>
#include <cstdio>

namespace vramswap {
namespace {

Error bad_size(std::string_view text, std::string_view what, std::string_view why) {
    return Error{Errc::usage, 0, std::string(what) + " '" + std::string(text) + "' " + std::string(why),
                 "Write a size such as 6G, 512M or 80%"};
}

/// Shift of a suffix, or -1 if unknown.
int suffix_shift(std::string_view suffix) {
    if (suffix.empty() || suffix == "B" || suffix == "b") return 0;
    constexpr std::string_view kLetters = "KMGT";
    const auto letter = kLetters.find(static_cast<char>(std::toupper(static_cast<unsigned char>(suffix[0]))));
    if (letter == std::string_view::npos) return -1;
    const std::string_view rest = suffix.substr(1);
    if (!rest.empty() && rest != "iB" && rest != "B" && rest != "ib" && rest != "b" && rest != "i") return -1;
    return static_cast<int>(letter + 1) * 10;
}

}  // namespace

Bytes SizeSpec::of(Bytes whole) const {
    if (kind == Kind::bytes) return {amount};
    return {static_cast<std::uint64_t>(static_cast<long double>(whole.n) * static_cast<long double>(amount) /
                                       10000.0L)};
}

Result<SizeSpec> parse_size(std::string_view text, std::string_view what) {
    double number = 0;
    const char* end = text.data() + text.size();
    const auto [rest, ec] = std::from_chars(text.data(), end, number, std::chars_format::fixed);
    if (ec != std::errc{} || !std::isfinite(number)) return bad_size(text, what, "is not a size");
    if (number < 0) return bad_size(text, what, "is negative");
    const std::string_view suffix(rest, static_cast<std::size_t>(end - rest));
    if (suffix == "%") {
        if (number > 100) return bad_size(text, what, "is more than 100%");
        const auto hundredths = static_cast<std::uint64_t>(std::llround(number * 100));
        if (hundredths == 0) return bad_size(text, what, "is zero");
        return SizeSpec{SizeSpec::Kind::percent, hundredths};
    }
    const int shift = suffix_shift(suffix);
    if (shift < 0) return bad_size(text, what, "has an unknown suffix");
    const double bytes = number * static_cast<double>(std::uint64_t{1} << shift);
    if (bytes >= 9.2e18) return bad_size(text, what, "is too large");
    if (bytes < 1) return bad_size(text, what, "is zero");
    return SizeSpec{SizeSpec::Kind::bytes, static_cast<std::uint64_t>(bytes)};
}

std::string format_size(Bytes size) {
    constexpr std::array<const char*, 5> kUnits{"B", "K", "M", "G", "T"};
    double value = static_cast<double>(size.n);
    std::size_t unit = 0;
    // What would be printed as 1024 of a unit is 1 of the next.
    while (std::round(value * 10) / 10 >= 1024 && unit + 1 < kUnits.size()) {
        value /= 1024;
        ++unit;
    }
    std::array<char, 32> text{};
    const double tenths = std::round(value * 10) / 10;
    const bool whole = tenths == std::floor(tenths);
    const int n =
        std::snprintf(text.data(), text.size(), whole ? "%.0f%s" : "%.1f%s", tenths, kUnits.at(unit));
    return {text.data(), static_cast<std::size_t>(n)};
}

}  // namespace vramswap
