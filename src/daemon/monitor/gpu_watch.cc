// SPDX-License-Identifier: MIT
#include "daemon/monitor/gpu_watch.h"

#include <utility>

#include "policy/config.h"

namespace vramswap {
namespace {

/// Taking a segment lasts a few ms, a reading some 10 us: who meets one twice meets it every time.
constexpr int kReadingsMax = 3;

/// The driver averages over a sixth of a second at least; asking costs some us.
constexpr std::uint64_t kActivityPeriodNs = kSecondNs / 4;
/// A list costs 4.5 ms on a notebook's RTX 4090, in which no program gets memory.
constexpr std::uint64_t kUsersPeriodNs = 2 * kSecondNs;
/// When others' memory has changed: a game that loads for ten seconds is listed twenty times.
constexpr std::uint64_t kUsersPeriodMinNs = kSecondNs / 2;
/// Less than a context takes.
constexpr std::uint64_t kUsersChangeBytes = mib(64).n;

bool same_segments(const MonitoredDevice::Sample& before, const MonitoredDevice::Sample& after) {
    return before.ours == after.ours && before.segment_changes == after.segment_changes &&
           after.segment_changes % 2 == 0;
}

}  // namespace

MonitoredDevice::Sample GpuWatch::read_memory() {
    MonitoredDevice::Sample before = device_.sample();
    for (int n = 0; n < kReadingsMax; ++n) {
        // Before the call: it tells of a moment between then and now, and the policy wants the worst.
        const std::uint64_t when_ns = clock_();
        auto memory = gpu_.memory_info();
        const MonitoredDevice::Sample after = device_.sample();
        if (!memory) {
            problem_ = memory.error().text();
            return after;
        }
        problem_.clear();
        if (same_segments(before, after)) {
            reading_ = Reading{*memory, memory->free + after.ours, when_ns};
            return after;
        }
        before = after;
    }
    return before;
}

bool GpuWatch::users_are_due() const {
    if (is_due(users_read_ns_, kUsersPeriodNs)) return true;
    if (!reading_ || !is_due(users_read_ns_, kUsersPeriodMinNs)) return false;
    const auto [less, more] = std::minmax(reading_->left.n, left_with_users_.n);
    return more - less >= kUsersChangeBytes;
}

GpuWatch::Users GpuWatch::read_usage() {
    const bool users_due = users_are_due();
    if (!users_due && !is_due(activity_read_ns_, kActivityPeriodNs)) return Users::same;
    auto usage = gpu_.usage(users_due ? UsageParts::activity_and_users : UsageParts::activity);
    activity_read_ns_ = clock_();  // after the call: a driver that is slow is asked less
    activity_ = usage ? *usage : GpuUsage{};
    if (!users_due) return Users::same;
    users_ = activity_.users;
    others_memory_ = activity_.others_memory;
    users_read_ns_ = activity_read_ns_;
    if (reading_) left_with_users_ = reading_->left;
    return Users::read;
}

void GpuWatch::tell(Snapshot& snapshot, std::uint64_t now_ns) const {
    if (reading_) {
        snapshot.total = reading_->memory.total;
        snapshot.free = reading_->memory.free;
        snapshot.free_age_ns = now_ns > reading_->when_ns ? now_ns - reading_->when_ns : 0;
    }
    snapshot.free_known = reading_.has_value() && problem_.empty();
    snapshot.others_memory = others_memory_;
    snapshot.others_sm_percent = activity_.others_sm_percent;
    snapshot.others_memory_percent = activity_.others_memory_percent;
    // The driver counts copies as use, ours too, and does not always tell whose: where nobody else is, nobody
    // computes. Who comes is listed within two seconds; that memory goes for a context is seen at once.
    if (users_ && users_->empty()) snapshot.others_sm_percent = snapshot.others_memory_percent = 0;
    snapshot.display = gpu_.info().display_attached;
}

}  // namespace vramswap
