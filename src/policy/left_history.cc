// SPDX-License-Identifier: MIT
#include "policy/left_history.h"

#include <algorithm>

namespace vramswap {

void LeftHistory::add(Sample sample) {
    if (!empty() && sample.when_ns <= newest().when_ns) return;
    samples_[next_] = sample;
    next_ = (next_ + 1) % kSamples;
    count_ = std::min(count_ + 1, kSamples);
}

std::uint64_t LeftHistory::step(std::size_t n) const {
    const std::uint64_t before = ago(n + 1).left;
    const std::uint64_t after = ago(n).left;
    return before > after ? before - after : 0;
}

std::uint64_t LeftHistory::last_step() const {
    return count_ < 2 ? 0 : step(0);
}

std::uint64_t LeftHistory::largest_step() const {
    std::uint64_t largest = 0;
    for (std::size_t n = 0; n + 1 < count_ && age_ns(n) <= step_memory_ns_; ++n)
        largest = std::max(largest, step(n));
    return largest;
}

LeftHistory::Fall LeftHistory::fall() const {
    std::size_t peak = 0;
    for (std::size_t n = 1; n < count_ && age_ns(n) <= rate_window_ns_; ++n)
        if (ago(n).left > ago(peak).left) peak = n;
    if (peak == 0) return {};
    std::uint64_t largest = 0;
    for (std::size_t n = 0; n < peak; ++n) largest = std::max(largest, step(n));
    // The step may be larger than the fall, if something was given back after it.
    const std::uint64_t since_peak = ago(peak).left - newest().left;
    if (since_peak <= largest) return {};
    const std::uint64_t bytes = since_peak - largest;
    return {bytes, static_cast<double>(bytes) * 1e9 / static_cast<double>(age_ns(peak))};
}

}  // namespace vramswap
