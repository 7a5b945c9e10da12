// SPDX-License-Identifier: MIT
// What a test may want to know about the threads of its process, from /proc. Any thread.
#pragma once

#include <dirent.h>

#include <cstdint>
#include <fstream>
#include <string>
#include <thread>

#include "base/clock.h"

namespace vramswap::test {

/// Calls visit(folder in /proc) for each thread of this name.
template <typename Visit>
void for_each_thread(const std::string& name, Visit visit) {
    DIR* tasks = ::opendir("/proc/self/task");
    while (const dirent* task = tasks == nullptr ? nullptr : ::readdir(tasks)) {
        const std::string folder = std::string("/proc/self/task/") + task->d_name;
        std::string line;
        std::ifstream file(folder + "/comm");
        std::getline(file, line);
        if (line == name) visit(folder);
    }
    if (tasks != nullptr) ::closedir(tasks);
}

/// How many threads of this name sleep in the kernel.
inline std::uint32_t asleep(const std::string& name) {
    std::uint32_t count = 0;
    for_each_thread(name, [&](const std::string& folder) {
        std::string line;
        std::ifstream file(folder + "/stat");
        std::getline(file, line);
        if (line.find("(" + name + ") S") != std::string::npos) ++count;
    });
    return count;
}

/// How often the threads of this name have gone to sleep, together.
inline std::uint64_t sleeps(const std::string& name) {
    std::uint64_t count = 0;
    for_each_thread(name, [&](const std::string& folder) {
        const std::string key = "voluntary_ctxt_switches:";
        std::ifstream file(folder + "/status");
        for (std::string line; std::getline(file, line);)
            if (line.starts_with(key)) count += std::stoull(line.substr(key.size()));
    });
    return count;
}

/// Waits for what must happen at some time; the limit is a watchdog for what never will.
template <typename Condition>
bool eventually(Condition condition) {
    constexpr std::uint64_t kWatchdogNs = 100'000'000'000;
    const std::uint64_t end = now_ns() + kWatchdogNs;
    while (!condition())
        if (now_ns() > end)
            return false;
        else
            std::this_thread::yield();
    return true;
}

}  // namespace vramswap::test
