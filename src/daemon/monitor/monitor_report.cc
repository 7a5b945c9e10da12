// SPDX-License-Identifier: MIT
#include "daemon/monitor/monitor_report.h"

#include <fmt/format.h>

#include "policy/config.h"

namespace vramswap {
namespace {

/// As long as the policy takes to call itself blind.
constexpr std::uint64_t kSilenceNs = PolicyConfig{}.blind_after_ns;

std::string_view to_string(PowerSource power) {
    switch (power) {
        case PowerSource::mains:
            return "mains";
        case PowerSource::battery:
            return "battery";
        case PowerSource::unknown:
            break;
    }
    return "unknown";
}

std::string text_of(const Yield& yield) {
    std::string text = "yield";
    if (yield.most.n != 0) text += " " + format_size(yield.most);
    if (yield.holder) text += fmt::format(" until process {} ends", yield.holder->pid);
    return text;
}

std::string text_of(const ByHand& by_hand) {
    std::string text;
    if (by_hand.target) text = "resize " + format_size(*by_hand.target);
    if (by_hand.yield) text += (text.empty() ? "" : ", ") + text_of(*by_hand.yield);
    return text;
}

}  // namespace

void tell(const MonitorReport& report, DeviceStatus& status) {
    const Snapshot& seen = report.snapshot;
    status.set_by_hand = text_of(report.by_hand);
    if (report.processes) status.gpu_processes = *report.processes;
    if (report.decided_at_ns == 0) return;
    status.vram_target = report.plan.target;
    status.reason = to_string(report.plan.reason);
    status.reserve = report.plan.reserve;
    status.move_rate_max = report.plan.move_rate;
    status.gpu_total = seen.total;
    status.gpu_free = seen.free;
    status.others_memory = seen.others_memory.value_or(Bytes{});
    if (seen.others_sm_percent) status.others_sm_percent = static_cast<int>(*seen.others_sm_percent);
    status.power = to_string(seen.power);
}

std::string problem(const MonitorReport& report, std::uint64_t now_ns) {
    if (report.decided_at_ns != 0 && now_ns > report.decided_at_ns + kSilenceNs)
        return fmt::format("the GPU's driver has not answered for {} s: VRAM is neither taken nor given back",
                           (now_ns - report.decided_at_ns) / kSecondNs);
    if (report.plan.reason == Reason::blind && !report.gpu_problem.empty()) return report.gpu_problem;
    if (report.plan.reason == Reason::unmovable)
        return fmt::format(
            "{} of VRAM cannot be given back as they should: the spill has no room for what is stored",
            format_size(report.plan.target));
    return {};
}

}  // namespace vramswap
