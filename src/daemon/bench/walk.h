// SPDX-License-Identifier: MIT
// Walk: which block of the device a thread asks for next. A value of one thread; never allocates.
#pragma once

#include <array>
#include <random>

#include "daemon/bench/jobs.h"

namespace vramswap {

class Walk {
  public:
    /// Thread `thread` of `job.threads` over the first `span` bytes, at least one cluster for each thread.
    Walk(const Job& job, Bytes span, unsigned thread)
        : pattern_(job.pattern),
          block_bytes_(job.block_bytes),
          threads_(job.threads),
          clusters_(span.n / kChunkBytes),
          blocks_(span.n / job.block_bytes),
          random_(thread + 3),
          first_(thread),
          cluster_(thread) {
        enter_cluster();
    }

    /// Offset of the next block in bytes.
    std::uint64_t next() {
        if (pattern_ == Pattern::random) return random_() % blocks_ * block_bytes_;
        while (pattern_ == Pattern::half_full && !chosen()) step();
        const std::uint64_t offset = cluster_ * kChunkBytes + at_;
        step();
        return offset;
    }
    /// True once the thread's clusters have all been walked through.
    [[nodiscard]] bool wrapped() const { return wrapped_; }
    std::uint64_t random() { return random_(); }

  private:
    void step() {
        at_ += block_bytes_;
        if (at_ < kChunkBytes) return;
        cluster_ += threads_;
        if (cluster_ >= clusters_) {
            cluster_ = first_;
            wrapped_ = true;
        }
        enter_cluster();
    }
    void enter_cluster() {
        at_ = 0;
        for (auto& word : chosen_) word = random_();
    }
    [[nodiscard]] bool chosen() const {
        const std::uint64_t page = at_ / kPageBytes;
        return ((chosen_[page / 64] >> (page % 64)) & 1) != 0;
    }

    const Pattern pattern_;
    const std::uint64_t block_bytes_;
    const unsigned threads_;
    const std::uint64_t clusters_, blocks_;
    std::mt19937_64 random_;
    const std::uint64_t first_;
    std::uint64_t cluster_;
    std::uint64_t at_ = 0;  ///< within the cluster
    bool wrapped_ = false;
    std::array<std::uint64_t, kChunkPages / 64> chosen_{};
};

}  // namespace vramswap
