// SPDX-License-Identifier: MIT
#include <fmt/format.h>

#include <cstdio>

#include "cli/commands.h"
#include "cli/launch.h"
#include "ctl/messages.h"
#include "ctl/runtime_dir.h"
#include "sys/spawn.h"

namespace vramswap {
namespace {

Result<std::string> the_only_one() {
    const auto names = list_names();
    if (names.size() == 1) return names[0];
    if (names.empty()) return Error{Errc::not_found, 0, "there is no device to take down"};
    return Error{Errc::usage, 0, fmt::format("there are several devices: {}", fmt::join(names, ", ")),
                 "Name the one to take down"};
}

/// With guardian and worker dead its I/O may wait for ever, and swapoff with it.
Result<void> abandon(const DeviceStatus& status) {
    constexpr int kTimeoutMs = 70'000;
    auto said = start_self({"internal-abandon", status.device, status.name}, kTimeoutMs);
    if (!said) return std::move(said).error();
    if (*said == "done") return {};
    return parse_error(*said, "the device is not ended");
}

}  // namespace

int run_down(const DownOptions& options) {
    if (auto root = require_root("`vramswap down`"); !root) return report(root.error());
    const auto name = options.name.empty() ? the_only_one() : Result<std::string>(options.name);
    if (!name) return report(name.error());
    if (auto fine = check_name(*name); !fine) return report(fine.error());
    const auto status = device_status(*name);
    if (!status) return report(status.error());
    if (status->state == "stale" && !status->device.empty())
        if (auto ended = abandon(*status); !ended) return report(ended.error());
    if (!status->device.empty())
        if (auto off = stop_swapping(status->device); !off) return report(off.error());
    if (auto removed = remove_device(*name); !removed) return report(removed.error());
    fmt::print("{} is down\n", *name);
    return kExitDone;
}

}  // namespace vramswap
