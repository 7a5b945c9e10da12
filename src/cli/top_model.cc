// SPDX-License-Identifier: MIT
#include "cli/top_model.h"

#include <algorithm>
#include <array>
#include <cmath>

namespace vramswap {
namespace {

/// The `nth` smallest value, counted from 0, spread evenly over its entry.
double value_at(const std::vector<std::uint64_t>& counts, std::uint64_t nth) {
    std::uint64_t before = 0;
    for (std::size_t entry = 0; entry < counts.size(); ++entry) {
        const std::uint64_t count = counts[entry];
        if (nth < before + count) {
            const double share = (static_cast<double>(nth - before) + 0.5) / static_cast<double>(count);
            return std::exp2((static_cast<double>(entry) + share) / 2);
        }
        before += count;
    }
    return 0;
}

bool any_counter_fell(const DeviceStatus& before, const DeviceStatus& now) {
    using Counter = std::uint64_t DeviceStatus::*;
    constexpr std::array<Counter, 2> kPages{&DeviceStatus::pages_read, &DeviceStatus::pages_written};
    using Amount = Bytes DeviceStatus::*;
    constexpr std::array<Amount, 3> kMoved{&DeviceStatus::moved_out, &DeviceStatus::moved_back,
                                           &DeviceStatus::compacted};
    return std::ranges::any_of(kPages, [&](Counter c) { return now.*c < before.*c; }) ||
           std::ranges::any_of(kMoved, [&](Amount a) { return now.*a < before.*a; });
}

TopRates rates_between(const DeviceStatus& before, const DeviceStatus& now, double seconds) {
    const auto rate = [seconds](std::uint64_t from, std::uint64_t to) {
        return static_cast<double>(to - from) / seconds;
    };
    return {
        .in = {rate(before.pages_read, now.pages_read),
               percentiles_between(before.read_latency, now.read_latency)},
        .out = {rate(before.pages_written, now.pages_written),
                percentiles_between(before.write_latency, now.write_latency)},
        .moved_out = rate(before.moved_out.n, now.moved_out.n),
        .moved_back = rate(before.moved_back.n, now.moved_back.n),
        .compacted = rate(before.compacted.n, now.compacted.n),
    };
}

}  // namespace

std::optional<Percentiles> percentiles_between(const std::vector<std::uint64_t>& before,
                                               const std::vector<std::uint64_t>& after) {
    std::vector<std::uint64_t> came = after;
    std::uint64_t total = 0;
    for (std::size_t i = 0; i < came.size(); ++i) {
        const std::uint64_t old = i < before.size() ? before[i] : 0;
        if (came[i] < old) return std::nullopt;
        came[i] -= old;
        total += came[i];
    }
    if (total == 0) return std::nullopt;
    return Percentiles{value_at(came, (total - 1) / 2), value_at(came, (total - 1) * 99 / 100)};
}

Places places_of(const DeviceStatus& status) {
    Bytes left = std::min(status.stored, status.size);
    const auto take = [&left](Bytes most) {
        const Bytes part = std::min(most, left);
        left = left - part;
        return part;
    };
    Places places;
    places.free = status.size - left;
    places.stage = take(status.staged);
    places.spill = take(status.spilled);
    places.vram = left;
    return places;
}

bool TopDevice::has_figures() const {
    return presence == Presence::here && status.worker_pid != 0 && status.size.n != 0 &&
           status.state != "worker-dead" && status.state != "restarting" && status.state != "silent" &&
           status.state != "stale";
}

void TopModel::add(std::uint64_t when_ns, std::vector<DeviceStatus> devices) {
    now_ns_ = when_ns;
    for (TopDevice& known : devices_) {
        if (std::ranges::any_of(devices, [&](const auto& d) { return d.name == known.status.name; }))
            continue;
        known.presence = TopDevice::Presence::gone;
        known.rates.reset();
    }
    for (DeviceStatus& status : devices) {
        const auto place =
            std::ranges::lower_bound(devices_, status.name, {}, [](const auto& d) { return d.status.name; });
        if (place != devices_.end() && place->status.name == status.name) {
            update(*place, std::move(status));
        } else {
            const auto added = devices_.emplace(place);
            added->seen_ns = when_ns;
            added->status = std::move(status);
        }
    }
    std::erase_if(devices_, [when_ns](const auto& d) {
        return d.presence == TopDevice::Presence::gone && when_ns - d.seen_ns > kGoneStaysNs;
    });
}

void TopModel::update(TopDevice& device, DeviceStatus status) const {
    const DeviceStatus before = std::exchange(device.status, std::move(status));
    const std::uint64_t before_ns = std::exchange(device.seen_ns, now_ns_);
    const bool was_here =
        std::exchange(device.presence, TopDevice::Presence::here) == TopDevice::Presence::here;
    device.rates.reset();
    if (!was_here || !device.has_figures() || before_ns >= now_ns_ ||
        device.status.worker_pid != before.worker_pid || any_counter_fell(before, device.status))
        return;
    device.rates = rates_between(before, device.status, static_cast<double>(now_ns_ - before_ns) * 1e-9);
    device.history.push_back({.from_ns = before_ns,
                              .until_ns = now_ns_,
                              .vram = static_cast<double>(device.status.vram.n),
                              .others = static_cast<double>(device.status.others_memory.n),
                              .in = device.rates->in.bytes_per_s(),
                              .out = device.rates->out.bytes_per_s()});
    if (device.history.size() > kHistoryPoints) device.history.pop_front();
}

}  // namespace vramswap
