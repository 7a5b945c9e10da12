// SPDX-License-Identifier: MIT
// run_together: threads that begin at the same moment, and the CPU time that the process spends meanwhile.
// Control thread; blocks until all have ended.
#pragma once

#include <sys/resource.h>

#include <latch>
#include <thread>
#include <vector>

namespace vramswap {

/// Calls prepare(i) and then, when every thread is prepared, work(i), on threads i = 0 … count - 1. Calls
/// go() in the calling thread just before all begin, and meanwhile() just after.
template <typename Prepare, typename Go, typename Work, typename Meanwhile>
void run_together(unsigned count, Prepare prepare, Go go, Work work, Meanwhile meanwhile) {
    std::latch ready(count);
    std::latch begin(1);
    std::vector<std::thread> threads;
    threads.reserve(count);
    for (unsigned i = 0; i < count; ++i)
        threads.emplace_back([&, i] {
            prepare(i);
            ready.count_down();
            begin.wait();
            work(i);
        });
    ready.wait();
    go();
    begin.count_down();
    meanwhile();
    for (auto& t : threads) t.join();
}

/// User and system time of all threads of this process so far.
inline double cpu_seconds() {
    rusage usage{};
    ::getrusage(RUSAGE_SELF, &usage);
    const auto seconds = [](const timeval& t) {
        return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) / 1e6;
    };
    return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

}  // namespace vramswap
