// SPDX-License-Identifier: MIT
#include "cli/by_hand.h"

#include <fmt/format.h>
#include <poll.h>

#include "base/clock.h"
#include "cli/launch.h"
#include "cli/table.h"

namespace vramswap {
namespace {

/// Between two looks; the worker's monitor has news 20 times a second.
constexpr int kStepMs = 100;

bool interrupted_within(const Interrupts* interrupts, int timeout_ms) {
    pollfd p{interrupts == nullptr ? -1 : interrupts->fd(), POLLIN, 0};
    return ::poll(&p, 1, timeout_ms) == 1;
}

}  // namespace

Result<Bytes> parse_vram(const std::string& text, const DeviceStatus& device) {
    if (text == "0" || text == "0B" || text == "0%") return Bytes{0};
    auto spec = parse_size(text, "the amount of VRAM");
    if (!spec) return std::move(spec).error();
    const Bytes vram = spec->of(device.size);
    if (vram <= device.size) return vram;
    return Error{Errc::usage, 0,
                 fmt::format("{} of VRAM are more than the device {} has ({})", text, device.name,
                             format_size(device.size)),
                 "Choose less; a larger device needs `vramswap down` and `vramswap up --size`"};
}

Result<DeviceStatus> device_on(const std::string& name, const std::string& gpu) {
    auto status = serving_device(name);
    if (!status || gpu.empty()) return status;
    for (const GpuPart& part : status->gpus) {
        if (part.selector != gpu) continue;
        status->vram = part.vram;
        status->vram_target = part.target;
        status->reason = part.reason;
        return status;
    }
    return Error{Errc::usage, 0, fmt::format("device {} is not on GPU '{}'", name, gpu),
                 fmt::format("It is on {}", status->gpu)};
}

Result<void> follow_move(const std::string& name, const std::string& gpu, MoveWatch& watch,
                         const Interrupts* interrupts) {
    Progress progress(watch.gives_back() ? "giving VRAM back" : "taking VRAM");
    for (;;) {
        auto status = device_on(name, gpu);
        if (!status) return std::move(status).error();
        const MoveWatch::Verdict verdict = watch.look(*status, now_ns());
        if (verdict == MoveWatch::Verdict::done) return {};
        if (verdict == MoveWatch::Verdict::stuck) return watch.outcome(*status);
        progress.show(watch.share());
        if (interrupted_within(interrupts, kStepMs))
            return Error{Errc::failed, 0, fmt::format("interrupted: {} goes on with it", name),
                         fmt::format("`vramswap status {}` shows how far it is", name)};
    }
}

}  // namespace vramswap
