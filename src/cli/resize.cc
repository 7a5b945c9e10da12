// SPDX-License-Identifier: MIT
// `vramswap resize`: how much VRAM a device holds, by hand; the policy decides no more until it is told to.
#include <fmt/format.h>

#include <cstdio>

#include "base/clock.h"
#include "cli/by_hand.h"
#include "cli/commands.h"
#include "cli/launch.h"

namespace vramswap {
namespace {

using Op = ControlRequest::Op;

int resize_by_policy(const ResizeOptions& options) {
    if (auto asked = ask_device(options.name, {Op::resize, {}, 0, options.gpu}); !asked)
        return report(asked.error());
    if (options.gpu.empty())
        fmt::print("{}: the policy decides again how much VRAM it holds\n", options.name);
    else
        fmt::print("{}: nothing is set for {} alone any more\n", options.name, options.gpu);
    return kExitDone;
}

/// Whole segments, and not less than asked for: a device smaller than a segment would get none.
Bytes in_segments(Bytes vram, const DeviceStatus& device) {
    return device.segment.n == 0 ? vram : Bytes{round_up(vram.n, device.segment.n)};
}

}  // namespace

int run_resize(const ResizeOptions& options) {
    if (auto root = require_root("`vramswap resize`"); !root) return report(root.error());
    const Interrupts interrupts;
    const auto before = device_on(options.name, options.gpu);
    if (!before) return report(before.error());
    if (options.vram == "auto") return resize_by_policy(options);
    const auto vram = parse_vram(options.vram, *before);
    if (!vram) return report(vram.error());
    const Bytes wanted = in_segments(*vram, *before);
    MoveWatch watch(MoveWatch::Goal::exactly, wanted, *before, now_ns());
    if (auto asked = ask_device(options.name, {Op::resize, wanted, 0, options.gpu}); !asked)
        return report(asked.error());
    if (options.wait == Wait::no) {
        fmt::print("{} was told to hold {} of VRAM\n", options.name, format_size(wanted));
        return kExitDone;
    }
    if (auto moved = follow_move(options.name, options.gpu, watch, &interrupts); !moved)
        return report(moved.error());
    fmt::print("{} {} and holds {}; up to {} until `vramswap resize {} auto`\n", options.name,
               watch.account(), format_size(watch.vram()), format_size(wanted), options.name);
    return kExitDone;
}

}  // namespace vramswap
