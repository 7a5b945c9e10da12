// SPDX-License-Identifier: MIT
// Monotonic time in nanoseconds. Any thread; a vDSO call, never blocks.
#pragma once

#include <cstdint>
#include <ctime>

namespace vramswap {

/// Nanoseconds of CLOCK_MONOTONIC: not changed by settings of the wall clock, stands still in suspend.
[[nodiscard]] inline std::uint64_t now_ns() {
    timespec ts{};
    ::clock_gettime(CLOCK_MONOTONIC, &ts);
    return static_cast<std::uint64_t>(ts.tv_sec) * 1'000'000'000u + static_cast<std::uint64_t>(ts.tv_nsec);
}

/// Tells the CPU that this is a spin loop.
inline void cpu_relax() {
    __builtin_ia32_pause();
}

}  // namespace vramswap
