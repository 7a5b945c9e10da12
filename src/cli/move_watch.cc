// SPDX-License-Identifier: MIT
#include "cli/move_watch.h"

#include <fmt/format.h>

#include <algorithm>

namespace vramswap {
namespace {

constexpr std::uint64_t kSecond = 1'000'000'000;
/// The monitor decides 20 times a second: forty decisions that say the same.
constexpr std::uint64_t kSettledNs = 2 * kSecond;
/// A slow disk writes a chunk in a second; one that rests spins up in some.
constexpr std::uint64_t kStuckNs = 15 * kSecond;
/// Of a worker that does not tell.
constexpr Bytes kUsualSegment = mib(128);

Bytes segment_of(const DeviceStatus& status) {
    return status.segment.n == 0 ? kUsualSegment : status.segment;
}

struct Obstacle {
    std::string what;
    std::string remedy;
};

Obstacle obstacle(const DeviceStatus& status) {
    if (status.spill_capacity.n == 0)
        return {"there is no spill",
                "What is stored there leaves it with its programs, or with `vramswap down`; `vramswap up "
                "--spill` "
                "makes a device that can give it back"};
    const std::string remedy =
        fmt::format("Make room in {}, or end programs whose memory is in swap", status.spill_place);
    if (!status.spill_problem.empty()) return {status.spill_problem, remedy};
    if (status.spilled >= status.spill_capacity)
        return {fmt::format("the spill is full ({})", format_size(status.spill_capacity)), remedy};
    return {status.reason.empty() ? "nothing moves" : status.reason, "`vramswap status` shows more"};
}

}  // namespace

MoveWatch::MoveWatch(Goal goal, Bytes wanted, const DeviceStatus& before, std::uint64_t now_ns)
    : goal_(goal),
      wanted_(wanted),
      vram_before_(before.vram),
      begun_ns_(now_ns),
      vram_(before.vram),
      seen_ns_(now_ns),
      changed_ns_(now_ns) {}

MoveWatch::Verdict MoveWatch::look(const DeviceStatus& status, std::uint64_t now_ns) {
    const std::array<std::uint64_t, 6> now{status.vram.n,      status.vram_target.n, status.spilled.n,
                                           status.moved_out.n, status.moved_back.n,  status.compacted.n};
    if (now != seen_) changed_ns_ = now_ns;
    seen_ = now;
    seen_ns_ = now_ns;
    vram_ = status.vram;
    if (reached(status)) return Verdict::done;
    const std::uint64_t patience = settled(status) ? kSettledNs : kStuckNs;
    return now_ns - changed_ns_ >= patience ? Verdict::stuck : Verdict::moving;
}

/// What is asked for is rounded to segments.
bool MoveWatch::granted(const DeviceStatus& status) const {
    return status.vram_target + segment_of(status) > wanted_;
}

bool MoveWatch::reached(const DeviceStatus& status) const {
    if (gives_back() || goal_ == Goal::at_most) return status.vram <= wanted_;
    return granted(status) && status.vram >= status.vram_target;
}

bool MoveWatch::settled(const DeviceStatus& status) const {
    if (gives_back()) return status.vram_target > wanted_ && status.vram <= status.vram_target;
    const bool has_use = status.spilled.n != 0;  // else VRAM is taken when something is stored
    return granted(status) ? !has_use : status.vram >= status.vram_target;
}

double MoveWatch::share() const {
    const auto of = [](Bytes vram) { return static_cast<double>(vram.n); };
    const double way = of(wanted_) - of(vram_before_);
    return way == 0 ? 1 : std::clamp((of(vram_) - of(vram_before_)) / way, 0.0, 1.0);
}

std::string MoveWatch::account() const {
    const bool less = vram_ < vram_before_;
    const Bytes moved = less ? vram_before_ - vram_ : vram_ - vram_before_;
    if (moved.n == 0) return "had nothing to move";
    const double seconds = static_cast<double>(std::max<std::uint64_t>(seen_ns_ - begun_ns_, 1)) / kSecond;
    const Bytes rate{static_cast<std::uint64_t>(static_cast<double>(moved.n) / seconds)};
    return fmt::format("{} {} of VRAM in {:.1f} s ({}/s)", less ? "gave back" : "took", format_size(moved),
                       seconds, format_size(rate));
}

Result<void> MoveWatch::outcome(const DeviceStatus& status) const {
    if (!gives_back() && granted(status)) return {};
    const Obstacle why = gives_back() ? obstacle(status)
                                      : Obstacle{status.reason.empty() ? "nothing moves" : status.reason,
                                                 "`vramswap status` shows more"};
    return Error{Errc::failed, 0,
                 gives_back() ? fmt::format("{} keeps {} of VRAM, and was to keep {}: {}", status.name,
                                            format_size(status.vram), format_size(wanted_), why.what)
                              : fmt::format("{} may hold {} of VRAM, and was to get {}: {}", status.name,
                                            format_size(status.vram_target), format_size(wanted_), why.what),
                 why.remedy};
}

}  // namespace vramswap
