// SPDX-License-Identifier: MIT
// TopModel: what `vramswap top` knows of the devices it watches. From one status after the other it makes
// rates, percentiles of the last interval, and a history. Owned by the command; one thread; pure (time comes
// from outside), allocates, no errors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <vector>

#include "ctl/messages.h"

namespace vramswap {

struct Percentiles {
    double p50_ns = 0;
    double p99_ns = 0;
};
/// Of what came into a histogram of DeviceStatus between two looks at it. Entries are half powers of two: a
/// value is right within 20 %. None, if nothing came or `before` is of another worker.
[[nodiscard]] std::optional<Percentiles> percentiles_between(const std::vector<std::uint64_t>& before,
                                                             const std::vector<std::uint64_t>& after);

/// Where what is stored lies. The four add up to the device's size. What has an image in the stage counts as
/// there, wherever else it is, since reads take it from there.
struct Places {
    Bytes vram{}, stage{}, spill{}, free{};
};
[[nodiscard]] Places places_of(const DeviceStatus& status);

/// Of one direction, in the last interval.
struct TopFlow {
    double pages_per_s = 0;
    std::optional<Percentiles> latency;  ///< of requests that waited for a copy
    [[nodiscard]] double bytes_per_s() const { return pages_per_s * static_cast<double>(kPageBytes); }
};
struct TopRates {
    TopFlow in, out;                                      ///< as the kernel swaps: in is read from the device
    double moved_out = 0, moved_back = 0, compacted = 0;  ///< bytes/s
};

/// Of the time between two samples.
struct TopPoint {
    std::uint64_t from_ns = 0, until_ns = 0;
    double vram = 0, others = 0;  ///< bytes
    double in = 0, out = 0;       ///< bytes/s
};

struct TopDevice {
    enum class Presence : std::uint8_t { here, gone };
    Presence presence = Presence::here;
    std::uint64_t seen_ns = 0;      ///< when it was here last
    DeviceStatus status;            ///< of then
    std::optional<TopRates> rates;  ///< none of the first sample, or if the worker is silent or another one
    std::deque<TopPoint> history;   ///< oldest first

    /// False if the status is a guardian's, or of a device that is gone: no figures in it.
    [[nodiscard]] bool has_figures() const;
};

class TopModel {
  public:
    /// All devices that there are at that time. REQUIRES: later than the last one; names differ.
    void add(std::uint64_t when_ns, std::vector<DeviceStatus> devices);

    /// By name. Those that are gone stay for kGoneStaysNs.
    [[nodiscard]] const std::vector<TopDevice>& devices() const { return devices_; }
    [[nodiscard]] std::uint64_t now_ns() const { return now_ns_; }

    /// Long enough to be read by somebody who looked elsewhere.
    static constexpr std::uint64_t kGoneStaysNs = 60'000'000'000;
    /// More than three minutes at the shortest interval.
    static constexpr std::size_t kHistoryPoints = 2048;

  private:
    void update(TopDevice& device, DeviceStatus status) const;

    std::vector<TopDevice> devices_;
    std::uint64_t now_ns_ = 0;
};

}  // namespace vramswap
