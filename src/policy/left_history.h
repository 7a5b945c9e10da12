// SPDX-License-Identifier: MIT
// LeftHistory: what others left of the GPU's memory (free + ours, which no move of ours changes) during the
// last seconds; how large their steps are and how fast it falls. Owned by a Policy; one thread; fixed size.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace vramswap {

class LeftHistory {
  public:
    LeftHistory(std::uint64_t step_memory_ns, std::uint64_t rate_window_ns)
        : step_memory_ns_(step_memory_ns), rate_window_ns_(rate_window_ns) {}

    struct Sample {
        std::uint64_t when_ns = 0;
        std::uint64_t left = 0;  ///< bytes
    };

    /// One that is not newer than the newest is the same again, and ignored.
    void add(Sample sample);

    [[nodiscard]] bool empty() const { return count_ == 0; }
    /// REQUIRES: !empty().
    [[nodiscard]] const Sample& newest() const { return ago(0); }

    /// Bytes that left between the last two samples.
    [[nodiscard]] std::uint64_t last_step() const;
    /// The most that left between two samples within `step_memory_ns`.
    [[nodiscard]] std::uint64_t largest_step() const;
    /// How others have been taking memory.
    struct Fall {
        std::uint64_t bytes = 0;  ///< since the peak of `rate_window_ns`, but for the largest step
        double rate = 0;          ///< that a second: bytes/s
    };
    /// One step alone is no fall, nor is taking and giving back. Steps of 1 GiB each half second count as 1.5
    /// to 2 GiB/s, an even fall at 20 samples a second as 0.97 of what it is.
    [[nodiscard]] Fall fall() const;

  private:
    /// Nearly 13 s at 20 Hz. Fed more often, it forgets sooner.
    static constexpr std::size_t kSamples = 256;

    [[nodiscard]] const Sample& ago(std::size_t n) const {
        return samples_[(next_ + kSamples - 1 - n) % kSamples];
    }
    /// Of the samples `n` + 1 and `n` ago.
    [[nodiscard]] std::uint64_t step(std::size_t n) const;
    [[nodiscard]] std::uint64_t age_ns(std::size_t n) const { return newest().when_ns - ago(n).when_ns; }

    const std::uint64_t step_memory_ns_;
    const std::uint64_t rate_window_ns_;
    std::array<Sample, kSamples> samples_{};
    std::size_t next_ = 0;
    std::size_t count_ = 0;
};

}  // namespace vramswap
