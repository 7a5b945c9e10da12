// SPDX-License-Identifier: MIT
// Pacer: a ceiling on swap traffic, while others compute. Everything that is copied is charged; writes wait
// until what was charged is paid off. Reads are charged and never wait: a program stands still for each of
// them, and writes make up for it. Any thread; no lock, no allocation.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace vramswap {

class Pacer {
  public:
    static constexpr std::uint64_t kNoLimit = ~std::uint64_t{0};

    /// Bytes a second, not 0; kNoLimit: none.
    void set_rate(std::uint64_t rate) { rate_.store(rate, std::memory_order_relaxed); }
    [[nodiscard]] bool limits() const { return rate_.load(std::memory_order_relaxed) != kNoLimit; }

    void charge(std::uint64_t bytes, std::uint64_t now_ns) {
        const std::uint64_t rate = rate_.load(std::memory_order_relaxed);
        if (rate == kNoLimit) return;
        const auto ns =
            static_cast<std::uint64_t>(static_cast<double>(bytes) * 1e9 / static_cast<double>(rate));
        std::uint64_t paid = paid_at_.load(std::memory_order_relaxed);
        // A debt is not paid for longer than kDebtMaxNs, or many reads would hold writes up without end.
        const auto later = [&] { return std::min(std::max(paid, now_ns) + ns, now_ns + kDebtMaxNs); };
        while (!paid_at_.compare_exchange_weak(paid, later(), std::memory_order_relaxed)) {
        }
    }
    /// When the next write may begin; 0: now.
    [[nodiscard]] std::uint64_t not_before(std::uint64_t now_ns) const {
        if (!limits()) return 0;
        const std::uint64_t paid = paid_at_.load(std::memory_order_relaxed);
        return paid <= now_ns ? 0 : paid;
    }

  private:
    static constexpr std::uint64_t kDebtMaxNs = 1'000'000'000;
    std::atomic<std::uint64_t> rate_{kNoLimit};
    std::atomic<std::uint64_t> paid_at_{0};
};

}  // namespace vramswap
