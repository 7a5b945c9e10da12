// SPDX-License-Identifier: MIT
#include "front/frontend.h"

#include <fmt/format.h>

#include "front/block_device.h"
#include "front/loop/loop_frontend.h"
#include "front/nbd/nbd_frontend.h"
#include "front/ublk/ublk_frontend.h"

namespace vramswap {

Result<std::string> Frontend::start(Target& target, const FrontendOptions& options) {
    if (state_ != State::idle)
        return Error{Errc::exists, 0, fmt::format("frontend {} is already started", kind())};
    auto device = do_start(target, options);
    if (device) state_ = State::serving;
    return device;
}

Result<std::string> Frontend::take_over(Target& target, const FrontendOptions& options, const HeldFds& held) {
    if (state_ != State::idle)
        return Error{Errc::exists, 0, fmt::format("frontend {} is already started", kind())};
    auto device = do_take_over(target, options, held);
    if (device) state_ = State::serving;
    return device;
}

Result<std::string> Frontend::do_take_over(Target&, const FrontendOptions&, const HeldFds&) {
    return Error{Errc::unavailable, 0,
                 fmt::format("a device of frontend {} cannot be taken over from a dead process", kind())};
}

Result<void> Frontend::stop() {
    if (state_ != State::serving) return {};
    if (auto stopped = do_stop(); !stopped) return stopped;
    state_ = State::stopped;
    return {};
}

std::vector<FrontendReport> survey_frontends() {
    return {{"ublk", ublk_problem()}, {"nbd", nbd_problem()}, {"loop", loop_problem()}};
}

Result<void> abandon_device(const std::string& path, const std::string& name,
                            const std::function<void()>& ended) {
    const std::string kernel_name = kernel_name_of(path);
    if (kernel_name.starts_with("ublk")) return abandon_ublk_device(path, ended);
    if (kernel_name.starts_with("nbd"))
        if (auto disconnected = abandon_nbd_device(path, name); !disconnected) return disconnected;
    ended();  // loop devices end with the descriptors that were kept
    return {};
}

Result<std::unique_ptr<Frontend>> make_frontend(std::string_view wanted) {
    std::string problems;
    for (const auto& report : survey_frontends()) {
        if (wanted != "auto" && wanted != report.kind) continue;
        if (!report.problem.empty()) {
            problems += fmt::format("{}{}: {}", problems.empty() ? "" : "; ", report.kind, report.problem);
            continue;
        }
        if (report.kind == "ublk") return make_ublk_frontend();
        if (report.kind == "nbd") return make_nbd_frontend();
        if (report.kind == "loop") return make_loop_frontend();
    }
    if (!problems.empty()) return Error{Errc::unavailable, 0, "frontend cannot be used: " + problems};
    return Error{Errc::usage, 0, fmt::format("no frontend '{}'", wanted), "There are: auto, ublk, nbd, loop"};
}

}  // namespace vramswap
