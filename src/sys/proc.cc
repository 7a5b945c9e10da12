// SPDX-License-Identifier: MIT
#include "sys/proc.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cerrno>

#include "sys/process.h"
#include "sys/text.h"

namespace vramswap {
namespace {

using text::next_field;
using text::next_line;
using text::to_number;

constexpr std::string_view kDeletedMark = " (deleted)";

/// A file whose absence means that the kernel lacks what it is about.
Result<std::string> read_feature_file(const std::string& path, std::string_view feature) {
    Result<std::string> content = read_small_file(path);
    if (content) return content;
    // Files of features that are built in but switched off at boot refuse to open.
    const int sys = content.error().sys;
    if (content.error().code != Errc::not_found && sys != EOPNOTSUPP && sys != ENODEV) return content;
    return Error{Errc::unavailable, sys, fmt::format("this kernel has no {} ({})", feature, path)};
}

bool is_octal(char c) {
    return c >= '0' && c <= '7';
}

SwapKind to_swap_kind(std::string_view word) {
    if (word == "partition") return SwapKind::partition;
    if (word == "file") return SwapKind::file;
    return SwapKind::other;
}

std::optional<SwapArea> parse_swap_line(std::string_view line) {
    const std::string_view path = next_field(line);
    const std::string_view kind = next_field(line);
    const auto size = text::to_kib(next_field(line));
    const auto used = text::to_kib(next_field(line));
    const auto priority = to_number<int>(next_field(line));
    if (path.empty() || !size || !used || !priority) return std::nullopt;

    SwapArea area;
    area.path = decode_octal(path);
    // seq_file_path escapes the blank of the mark too, so it is part of this field. A living file whose name
    // ends like that cannot be told apart.
    if (area.path.size() > kDeletedMark.size() && area.path.ends_with(kDeletedMark)) {
        area.path.resize(area.path.size() - kDeletedMark.size());
        area.deleted = true;
    }
    area.kind = to_swap_kind(kind);
    area.size = *size;
    area.used = *used;
    area.priority = *priority;
    return area;
}

/// "some avg10=0.12 avg60=…": the number after avg10=.
std::optional<double> avg10_of(std::string_view line) {
    constexpr std::string_view kKey = "avg10=";
    for (auto field = next_field(line); !field.empty(); field = next_field(line)) {
        if (!field.starts_with(kKey)) continue;
        const auto value = to_number<double>(field.substr(kKey.size()));
        // Written so that a NaN is refused too.
        if (value && *value >= 0 && *value <= 100) return value;
        return std::nullopt;
    }
    return std::nullopt;
}

bool is_sysctl_name(std::string_view name) {
    if (name.empty() || name.front() == '.' || name.back() == '.') return false;
    if (name.find("..") != std::string_view::npos) return false;
    return std::all_of(name.begin(), name.end(), [](char c) {
        return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' ||
               c == '_' || c == '-';
    });
}

}  // namespace

std::string SysRoot::at(std::string_view below) const {
    std::string out = path;
    while (!out.empty() && out.back() == '/') out.pop_back();
    if (!below.starts_with('/')) out += '/';
    out += below;
    return out;
}

std::string decode_octal(std::string_view text) {
    std::string out;
    out.reserve(text.size());
    for (std::size_t i = 0; i < text.size(); ++i) {
        const std::string_view escape = text.substr(i, 4);
        // "\400" and above would not fit a byte, and the kernel never writes it.
        if (escape.size() == 4 && escape[0] == '\\' && escape[1] <= '3' && is_octal(escape[1]) &&
            is_octal(escape[2]) && is_octal(escape[3])) {
            const int code = (escape[1] - '0') * 64 + (escape[2] - '0') * 8 + (escape[3] - '0');
            out += static_cast<char>(code);
            i += 3;
        } else {
            out += text[i];
        }
    }
    return out;
}

// --- memory ---

Result<MemInfo> parse_meminfo(std::string_view text) {
    MemInfo info;
    bool has_available = false;
    while (const auto line = next_line(text)) {
        const auto entry = text::to_kib_line(*line);
        if (!entry) continue;
        if (entry->name == "MemTotal") info.total = entry->value;
        if (entry->name == "MemFree") info.free = entry->value;
        if (entry->name == "SwapTotal") info.swap_total = entry->value;
        if (entry->name == "SwapFree") info.swap_free = entry->value;
        if (entry->name == "MemAvailable") {
            info.available = entry->value;
            has_available = true;
        }
    }
    if (info.total.n == 0)
        return Error{Errc::failed, 0, "meminfo does not say MemTotal", "Is /proc mounted?"};
    if (!has_available) info.available = info.free;
    return info;
}

Result<MemInfo> read_meminfo(const SysRoot& root) {
    const std::string path = root.at("/proc/meminfo");
    Result<std::string> text = read_small_file(path);
    if (!text) return std::move(text).error();
    Result<MemInfo> info = parse_meminfo(*text);
    if (!info) return std::move(info).error().in(path);
    return info;
}

// --- counters ---

std::uint64_t VmStat::get(std::string_view name) const {
    const auto found = counters.find(name);
    return found == counters.end() ? 0 : found->second;
}

bool VmStat::has(std::string_view name) const {
    return counters.find(name) != counters.end();
}

VmStat parse_vmstat(std::string_view text) {
    VmStat stat;
    while (auto line = next_line(text)) {
        const std::string_view name = next_field(*line);
        const auto value = to_number<std::uint64_t>(next_field(*line));
        if (value) stat.counters.insert_or_assign(std::string(name), *value);
    }
    return stat;
}

Result<VmStat> read_vmstat(const SysRoot& root) {
    Result<std::string> text = read_small_file(root.at("/proc/vmstat"));
    if (!text) return std::move(text).error();
    return parse_vmstat(*text);
}

// --- swap areas ---

std::vector<SwapArea> parse_swaps(std::string_view text) {
    std::vector<SwapArea> areas;
    while (const auto line = next_line(text)) {
        // The header line has words where numbers belong, so it gives no area by itself.
        if (auto area = parse_swap_line(*line)) areas.push_back(std::move(*area));
    }
    return areas;
}

Result<std::vector<SwapArea>> read_swaps(const SysRoot& root) {
    Result<std::string> text = read_small_file(root.at("/proc/swaps"));
    if (text) return parse_swaps(*text);
    if (text.error().code == Errc::not_found) return std::vector<SwapArea>{};
    return std::move(text).error();
}

// --- block devices ---

Result<BlockStat> parse_block_stat(std::string_view text) {
    constexpr std::size_t kFieldsMin = 11;  // before discards came with 4.18
    std::array<std::uint64_t, 17> n{};
    std::size_t fields = 0;
    while (fields < n.size()) {
        const std::string_view field = next_field(text);
        if (field.empty()) break;
        const auto value = to_number<std::uint64_t>(field);
        if (!value) return Error{Errc::failed, 0, fmt::format("block stat field '{}' is no number", field)};
        n.at(fields++) = *value;
    }
    if (fields < kFieldsMin) {
        return Error{Errc::failed, 0, fmt::format("block stat has {} fields, not {}", fields, kFieldsMin)};
    }
    return BlockStat{n[0], n[1],  n[2],  n[3],  n[4],  n[5],  n[6],  n[7], n[8],
                     n[9], n[10], n[11], n[12], n[13], n[14], n[15], n[16]};
}

Result<BlockStat> read_block_stat(std::string_view device, const SysRoot& root) {
    if (device.empty() || device == "." || device == ".." || device.find('/') != std::string_view::npos) {
        return Error{Errc::usage, 0, fmt::format("'{}' is not the name of a block device", device),
                     "Give a name as in /sys/block, such as loop0"};
    }
    const std::string path = root.at(fmt::format("/sys/block/{}/stat", device));
    Result<std::string> text = read_small_file(path);
    if (!text) return std::move(text).error();
    Result<BlockStat> stat = parse_block_stat(*text);
    if (!stat) return std::move(stat).error().in(path);
    return stat;
}

// --- pressure ---

Result<MemoryPressure> parse_pressure(std::string_view text) {
    MemoryPressure pressure;
    bool has_some = false;
    while (auto line = next_line(text)) {
        const std::string_view kind = next_field(*line);
        const auto value = avg10_of(*line);
        if (!value) continue;
        if (kind == "full") pressure.full_avg10_percent = *value;
        if (kind == "some") {
            pressure.some_avg10_percent = *value;
            has_some = true;
        }
    }
    if (!has_some) return Error{Errc::failed, 0, "memory pressure without 'some avg10='"};
    return pressure;
}

Result<MemoryPressure> read_memory_pressure(const SysRoot& root) {
    const std::string path = root.at("/proc/pressure/memory");
    Result<std::string> text = read_feature_file(path, "pressure stall information");
    if (!text) return std::move(text).error();
    Result<MemoryPressure> pressure = parse_pressure(*text);
    if (!pressure) return std::move(pressure).error().in(path);
    return pressure;
}

// --- the kernel itself ---

Result<KernelVersion> parse_kernel_version(std::string_view release) {
    std::array<std::uint32_t, 3> n{};
    std::size_t count = 0;
    const char* at = release.data();
    const char* const end = at + release.size();
    while (count < n.size()) {
        const auto [rest, ec] = std::from_chars(at, end, n.at(count));
        if (ec != std::errc{}) break;
        ++count;
        if (rest == end || *rest != '.') break;
        at = rest + 1;
    }
    if (count < 2) {
        return Error{Errc::failed, 0, fmt::format("'{}' is not a kernel release", text::trim(release))};
    }
    return KernelVersion{n[0], n[1], n[2]};
}

Result<std::string> read_kernel_release(const SysRoot& root) {
    return read_sysctl("kernel.osrelease", root);
}

Result<KernelVersion> read_kernel_version(const SysRoot& root) {
    Result<std::string> release = read_kernel_release(root);
    if (!release) return std::move(release).error();
    return parse_kernel_version(*release);
}

Result<std::string> read_sysctl(std::string_view name, const SysRoot& root) {
    if (!is_sysctl_name(name)) {
        return Error{Errc::usage, 0, fmt::format("'{}' is not the name of a sysctl", name),
                     "Write it with dots, as in vm.swappiness"};
    }
    std::string below = "/proc/sys/";
    for (const char c : name) below += c == '.' ? '/' : c;
    Result<std::string> text = read_feature_file(root.at(below), fmt::format("sysctl {}", name));
    if (!text) return text;
    return std::string(text::trim(*text));
}

Result<std::int64_t> read_sysctl_int(std::string_view name, const SysRoot& root) {
    Result<std::string> text = read_sysctl(name, root);
    if (!text) return std::move(text).error();
    std::string_view rest = *text;
    const auto value = to_number<std::int64_t>(next_field(rest));
    if (!value) return Error{Errc::failed, 0, fmt::format("sysctl {} is '{}', not a number", name, *text)};
    return *value;
}

Result<KernelSwitch> read_zswap(const SysRoot& root) {
    const std::string path = root.at("/sys/module/zswap/parameters/enabled");
    Result<std::string> text = read_small_file(path);
    if (!text && text.error().code == Errc::not_found) return KernelSwitch::absent;
    if (!text) return std::move(text).error();
    const std::string_view value = text::trim(*text);
    if (value == "Y" || value == "1") return KernelSwitch::on;
    if (value == "N" || value == "0") return KernelSwitch::off;
    return Error{Errc::failed, 0, fmt::format("{} is '{}', neither Y nor N", path, value)};
}

Result<ThpMode> parse_thp(std::string_view text) {
    std::string_view rest = text;
    for (auto word = next_field(rest); !word.empty(); word = next_field(rest)) {
        if (word == "[always]") return ThpMode::always;
        if (word == "[madvise]") return ThpMode::madvise;
        if (word == "[never]") return ThpMode::never;
    }
    return Error{Errc::failed, 0,
                 fmt::format("no mode of transparent huge pages is chosen in '{}'", text::trim(text))};
}

Result<ThpMode> read_thp(const SysRoot& root) {
    const std::string path = root.at("/sys/kernel/mm/transparent_hugepage/enabled");
    Result<std::string> text = read_small_file(path);
    if (!text && text.error().code == Errc::not_found) return ThpMode::absent;
    if (!text) return std::move(text).error();
    Result<ThpMode> mode = parse_thp(*text);
    if (!mode) return std::move(mode).error().in(path);
    return mode;
}

std::string_view to_string(SwapKind kind) {
    switch (kind) {
        case SwapKind::partition:
            return "partition";
        case SwapKind::file:
            return "file";
        case SwapKind::other:
            break;
    }
    return "other";
}

std::string_view to_string(KernelSwitch value) {
    switch (value) {
        case KernelSwitch::on:
            return "on";
        case KernelSwitch::off:
            return "off";
        case KernelSwitch::absent:
            break;
    }
    return "absent";
}

std::string_view to_string(ThpMode mode) {
    switch (mode) {
        case ThpMode::never:
            return "never";
        case ThpMode::madvise:
            return "madvise";
        case ThpMode::always:
            return "always";
        case ThpMode::absent:
            break;
    }
    return "absent";
}

}  // namespace vramswap
