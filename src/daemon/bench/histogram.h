// SPDX-License-Identifier: MIT
// LatencyHistogram: latencies in buckets that grow with the value, so that a percentile is at most 0.8 % off
// at any scale and a measurement of minutes needs 18 KiB. A plain value: each thread fills its own, then they
// are merged. Nanoseconds. Adding never allocates.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>

namespace vramswap {

class LatencyHistogram {
  public:
    void add(std::uint64_t ns) {
        ++buckets_[bucket_of(ns)];
        ++count_;
        max_ns_ = std::max(max_ns_, ns);
    }
    void merge(const LatencyHistogram& other) {
        for (std::size_t i = 0; i < kBuckets; ++i) buckets_[i] += other.buckets_[i];
        count_ += other.count_;
        max_ns_ = std::max(max_ns_, other.max_ns_);
    }

    [[nodiscard]] std::uint64_t count() const { return count_; }
    [[nodiscard]] std::uint64_t max_ns() const { return max_ns_; }  ///< exact
    /// The smallest latency that `share` (0 to 1) of all do not exceed; 0 if there is none.
    [[nodiscard]] std::uint64_t percentile_ns(double share) const {
        const auto rank = static_cast<std::uint64_t>(std::ceil(share * static_cast<double>(count_)));
        std::uint64_t seen = 0;
        for (std::size_t i = 0; i < kBuckets; ++i) {
            seen += buckets_[i];
            if (seen != 0 && seen >= rank) return std::min(middle_of(i), max_ns_);
        }
        return max_ns_;
    }

  private:
    // Below 128 each value has a bucket; above, each power of two has 64.
    static constexpr std::uint32_t kBits = 6;
    static constexpr std::uint64_t kLargest = (std::uint64_t{1} << 40) - 1;  // 18 minutes
    static constexpr std::size_t kBuckets = std::size_t{36} << kBits;

    static std::size_t bucket_of(std::uint64_t ns) {
        const std::uint64_t value = std::min(ns, kLargest);
        const auto width = static_cast<std::uint32_t>(std::bit_width(value));
        const std::uint32_t shift = width > kBits + 1 ? width - (kBits + 1) : 0;
        return (std::size_t{shift} << kBits) + (value >> shift);
    }
    static std::uint64_t middle_of(std::size_t bucket) {
        const std::size_t group = bucket >> kBits;
        if (group < 2) return bucket;
        const std::size_t shift = group - 1;
        return ((bucket - (shift << kBits)) << shift) + (std::uint64_t{1} << shift) / 2;
    }

    std::array<std::uint64_t, kBuckets> buckets_{};
    std::uint64_t count_ = 0;
    std::uint64_t max_ns_ = 0;
};

}  // namespace vramswap
