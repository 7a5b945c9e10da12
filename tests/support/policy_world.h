// SPDX-License-Identifier: MIT
// A GPU with other processes on it and a device that obeys a Policy: moves take time and memory gets free a
// segment at a time, as it does in the store. For policy tests; one thread; time is a number.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>

#include "policy/policy.h"

namespace vramswap::test {

inline constexpr std::uint64_t kMs = 1'000'000;

class PolicyWorld {
  public:
    explicit PolicyWorld(const PolicyConfig& config_in) : config(config_in), policy(config_in) {
        seen.total = gib(80);
        seen.free_known = true;
        seen.others_sm_percent = 0;
        seen.power = PowerSource::mains;
        seen.ram_available = gib(8);
    }

    PolicyConfig config;
    Policy policy;
    Snapshot seen;  ///< but for `free` and its age, which follow from what is below
    Plan plan;
    Bytes others{};  ///< what they hold
    std::uint64_t now_ns = 0;
    std::uint64_t mover_rate = 20'000'000'000;  ///< bytes/s
    std::uint64_t sample_late_ns = 0;           ///< each is so old when it comes

    [[nodiscard]] Bytes free() const {
        const std::uint64_t used = others.n + seen.ours.n;
        return {seen.total.n > used ? seen.total.n - used : 0};
    }
    /// What others have taken that is not there: in a real world their allocation has failed.
    [[nodiscard]] Bytes lack() const {
        const std::uint64_t used = others.n + seen.ours.n;
        return {used > seen.total.n ? used - seen.total.n : 0};
    }

    /// What the monitor does once a period.
    const Plan& decide() {
        Snapshot snapshot = seen;
        snapshot.free = free();
        std::swap(snapshot, before_);  // free and ours are of the same time
        if (sample_late_ns == 0) snapshot = before_;
        snapshot.free_age_ns = sample_late_ns;
        plan = policy.decide(snapshot, now_ns);
        return plan;
    }

    /// The device moves towards the target for so long: down at the mover's rate, up at once.
    void run(std::uint64_t ns) {
        now_ns += ns;
        if (seen.ours <= plan.target) {
            moved_ = 0;
            seen.ours.n = std::min(plan.target.n, seen.ours.n + free().n);
            return;
        }
        const std::uint64_t rate = std::min(plan.move_rate, mover_rate);
        moved_ += static_cast<double>(rate) * static_cast<double>(ns) / 1e9;
        const auto segment = static_cast<double>(config.segment.n);
        for (; moved_ >= segment && seen.ours > plan.target; moved_ -= segment)
            seen.ours.n -= std::min(config.segment.n, seen.ours.n);
    }

    /// Decides each period and runs in between.
    void pass(std::uint64_t ns) {
        for (std::uint64_t passed = 0; passed < ns; passed += config.period_ns) {
            decide();
            run(config.period_ns);
        }
    }

  private:
    double moved_ = 0;   ///< bytes of the segment that is being emptied
    Snapshot before_{};  ///< what a late sample tells
};

}  // namespace vramswap::test
