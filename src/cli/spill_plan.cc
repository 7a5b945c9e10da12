// SPDX-License-Identifier: MIT
#include "cli/spill_plan.h"

#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <filesystem>

#include "sys/spawn.h"

namespace vramswap {
namespace {

/// A disk that spins up takes seconds.
constexpr int kProbeTimeoutMs = 30'000;

/// How full a disk may be and still be of use: less than a segment frees no VRAM.
std::string too_little(const ProbedSpill& spill, Bytes segment) {
    return fmt::format("{} has room for {}, less than a segment ({}){}", spill.path, format_size(spill.room),
                       format_size(segment), spill.is_device ? "" : "; a tenth of the disk stays free");
}

SpillPlan automatic(Bytes segment) {
    SpillPlan plan;
    const auto spill = probe_spill(default_spill_dir());
    if (!spill) {
        plan.why_none = spill.error().text();
    } else if (!spill->remark.empty()) {
        plan.why_none = spill->remark;
    } else if (spill->room < segment) {
        plan.why_none = too_little(*spill, segment);
    } else {
        plan.path = default_spill_dir();
        plan.room = spill->room;
    }
    return plan;
}

Result<SpillPlan> at_place(const SpillWish& wish, Bytes segment) {
    const auto spill = probe_spill(wish.path);
    if (!spill) return spill.error();
    if (spill->room < std::min(segment, wish.size.value_or(segment)))
        return Error{Errc::no_memory, 0, too_little(*spill, segment),
                     "Make room there, name another place, or `--spill none`"};
    if (wish.size && *wish.size > spill->room)
        return Error{Errc::usage, 0,
                     fmt::format("--spill {}:{} is more than there is room for ({}{})", wish.path,
                                 format_size(*wish.size), format_size(spill->room),
                                 spill->is_device ? "" : "; a tenth of the disk stays free"),
                     "Choose a smaller size; without one the spill takes what it needs and finds"};
    return SpillPlan{wish.path, wish.size, spill->room, spill->remark, {}};
}

}  // namespace

std::string default_spill_dir() {
    const char* set = std::getenv("VRAMSWAP_STATE_DIR");
    return set != nullptr && *set != '\0' ? set : "/var/lib/vramswap";
}

Result<SpillWish> parse_spill(const std::string& text) {
    if (text == "auto") return SpillWish{};
    if (text == "none") return SpillWish{SpillWish::Kind::none};
    if (!text.starts_with('/'))
        return Error{Errc::usage, 0, fmt::format("--spill '{}' is not a place", text),
                     "Write auto, none, or the whole path of a directory or block device, such as "
                     "/var/lib/vramswap or /dev/nvme0n1p5:20G"};
    SpillWish wish{SpillWish::Kind::place, text};
    // Names of devices may have colons (/dev/disk/by-path): what exists is a path.
    const auto colon = text.rfind(':');
    std::error_code ignored;
    if (colon == std::string::npos || std::filesystem::exists(text, ignored)) return wish;
    auto size = parse_size(text.substr(colon + 1), fmt::format("--spill {}: the size", text));
    if (!size) return std::move(size).error();
    if (size->kind != SizeSpec::Kind::bytes || size->amount < kChunkBytes)
        return Error{Errc::usage, 0, fmt::format("--spill {}: the size is not an amount of 2M or more", text),
                     "Write a size such as 20G"};
    wish.path = text.substr(0, colon);
    wish.size = Bytes{round_down(size->amount, kChunkBytes)};
    return wish;
}

Result<ProbedSpill> probe_spill(const std::string& path) {
    std::string looked_at = path;
    std::error_code ignored;
    if (path == default_spill_dir() && !std::filesystem::exists(path, ignored))
        looked_at = std::filesystem::path(path).parent_path();
    auto text = run_self({"internal-probe-spill", looked_at}, kProbeTimeoutMs);
    if (!text) return std::move(text).error().in(fmt::format("cannot look at {}", looked_at));
    auto spill = parse_probed_spill(*text);
    if (spill && !spill->problem.message.empty()) return spill->problem;
    return spill;
}

Result<SpillPlan> plan_spill(const SpillWish& wish, Bytes segment) {
    switch (wish.kind) {
        case SpillWish::Kind::none:
            return SpillPlan{};
        case SpillWish::Kind::automatic:
            return automatic(segment);
        case SpillWish::Kind::place:
            break;
    }
    return at_place(wish, segment);
}

SpillDirectory::~SpillDirectory() {
    if (!made_.empty()) ::rmdir(made_.c_str());
}

Result<void> SpillDirectory::make(const std::string& path) {
    if (path != default_spill_dir()) return {};
    if (::mkdir(path.c_str(), 0700) == 0)
        made_ = path;
    else if (errno != EEXIST)
        return sys_error(fmt::format("cannot make the directory {}", path),
                         "Name another place with --spill, or `--spill none`");
    return {};
}

}  // namespace vramswap
