// SPDX-License-Identifier: MIT
// PageRates: pages a second, and requests in flight, from totals since the start. Owned by a Monitor; one
// thread.
#pragma once

#include <cstdint>
#include <deque>

namespace vramswap {

class PageRates {
  public:
    struct Totals {
        std::uint64_t when_ns = 0;
        std::uint64_t in = 0;
        std::uint64_t out = 0;
        std::uint64_t waited_ns = 0;  ///< of all requests together
    };
    void add(const Totals& totals) {
        if (!samples_.empty() && totals.when_ns <= samples_.back().when_ns) return;
        samples_.push_back(totals);
        while (samples_.size() > 2 && totals.when_ns - samples_[1].when_ns >= kWindowNs) samples_.pop_front();
    }

    /// Over the last window, or since the sample before if that is longer ago. 0 with one sample.
    [[nodiscard]] std::uint64_t in_per_s() const { return rate(&Totals::in); }
    [[nodiscard]] std::uint64_t out_per_s() const { return rate(&Totals::out); }

    /// On average (Little's law): an instant's count would miss those that come and end between two looks.
    [[nodiscard]] std::uint32_t in_flight() const {
        return static_cast<std::uint32_t>(rate(&Totals::waited_ns) / 1'000'000'000);
    }

  private:
    /// Four periods: swap-out begins all at once, and room for it must not come a second later.
    static constexpr std::uint64_t kWindowNs = 200'000'000;

    [[nodiscard]] std::uint64_t rate(std::uint64_t Totals::*field) const {
        if (samples_.size() < 2) return 0;
        const Totals& first = samples_.front();
        const Totals& last = samples_.back();
        if (last.*field < first.*field) return 0;
        const auto pages = static_cast<double>(last.*field - first.*field);
        return static_cast<std::uint64_t>(pages * 1e9 / static_cast<double>(last.when_ns - first.when_ns));
    }

    std::deque<Totals> samples_;
};

}  // namespace vramswap
