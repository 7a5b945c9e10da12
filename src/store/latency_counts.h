// SPDX-License-Identifier: MIT
// LatencyCounts: how long requests took, counted in steps of a factor of the square root of two, which is as
// exact as a percentile of latencies needs to be. Written by one thread, read by any; no lock, no allocation.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>

namespace vramswap {

class LatencyCounts {
  public:
    /// Entry n counts what took 2^(n/2) to 2^((n+1)/2) ns; the last one all that took longer (3 s).
    static constexpr std::size_t kEntries = 64;

    void add(std::uint64_t ns) {
        std::atomic<std::uint64_t>& count = counts_[entry_of(ns)];
        count.store(count.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
    }
    void add_to(std::array<std::uint64_t, kEntries>& sums) const {
        for (std::size_t n = 0; n < kEntries; ++n) sums[n] += counts_[n].load(std::memory_order_relaxed);
    }
    [[nodiscard]] static std::size_t entry_of(std::uint64_t ns) {
        if (ns == 0) return 0;
        const auto octave = static_cast<std::size_t>(std::bit_width(ns) - 1);
        // Upper half of the octave: ns >= 2^octave * sqrt(2), in integers 181/128.
        const bool upper = (static_cast<unsigned __int128>(ns) << 7) >= (std::uint64_t{181} << octave);
        return std::min(2 * octave + (upper ? 1 : 0), kEntries - 1);
    }

  private:
    std::array<std::atomic<std::uint64_t>, kEntries> counts_{};
};

}  // namespace vramswap
