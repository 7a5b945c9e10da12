// SPDX-License-Identifier: MIT
// vramswap: idle GPU memory as a Linux swap device. A command for people, or one of the roles of
// daemon/roles.h.
#include <string>
#include <string_view>
#include <vector>

#include "base/log.h"
#include "cli/commands.h"
#include "daemon/roles.h"

int main(int argc, char** argv) {
    using namespace vramswap;
    log_configure(LogStyle::automatic, LogLevel::info, "vramswap");
    const std::vector<std::string> arguments(argv + 1, argv + argc);
    const std::string_view role = arguments.empty() ? std::string_view{} : std::string_view{arguments[0]};
    const auto rest = [&arguments] {
        return std::vector<std::string>(arguments.begin() + 1, arguments.end());
    };
    if (role == kGuardianRole) return run_guardian();
    if (role == kWorkerRole) return run_worker();
    if (role == kProbeRole) return run_probe(rest());
    if (role == kSpillProbeRole) return run_spill_probe(rest());
    if (role == kAbandonRole) return run_abandon(rest());
    if (role == kBenchRole) return run_store_bench(rest());
    return run_command(argc, argv);
}
