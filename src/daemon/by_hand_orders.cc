// SPDX-License-Identifier: MIT
#include "daemon/by_hand_orders.h"

#include <fmt/format.h>

#include <algorithm>

namespace vramswap {

ByHandOrders::ByHandOrders(std::vector<Gpu> gpus, Bytes segment)
    : gpus_(std::move(gpus)), segment_(segment), targets_(gpus_.size()) {}

Result<void> ByHandOrders::take(const ControlRequest& request) {
    if (!request.gpu.empty() && std::ranges::find(gpus_, request.gpu, &Gpu::selector) == gpus_.end()) {
        std::string all;
        for (const Gpu& gpu : gpus_) all += (all.empty() ? "" : ", ") + gpu.selector;
        return Error{Errc::not_found, 0, fmt::format("the device is not on GPU '{}'", request.gpu),
                     "It is on " + all};
    }
    if (request.op == ControlRequest::Op::resize)
        resize(request);
    else if (request.vram)
        return yields_.begin(*request.vram, request.holder, request.gpu);
    else
        yields_.end(request.holder);
    return {};
}

void ByHandOrders::resize(const ControlRequest& request) {
    if (request.gpu.empty()) {
        target_ = request.vram;
        std::ranges::fill(targets_, std::nullopt);
        return;
    }
    for (std::size_t n = 0; n < gpus_.size(); ++n)
        if (gpus_[n].selector == request.gpu) targets_[n] = request.vram;
}

/// What does not come out even goes to the first ones.
Bytes ByHandOrders::share(Bytes all, std::size_t gpu) const {
    if (gpus_.size() == 1) return all;
    unsigned __int128 before = 0, sum = 0;
    for (std::size_t n = 0; n < gpus_.size(); ++n) {
        if (n < gpu) before += gpus_[n].total.n;
        sum += gpus_[n].total.n;
    }
    // Borders between the shares, rounded up: the shares' sum is the whole.
    const unsigned __int128 segments = all.n / segment_.n;
    const auto border = [&](unsigned __int128 memory) { return (segments * memory + sum - 1) / sum; };
    const auto mine = border(before + gpus_[gpu].total.n) - border(before);
    return segment_ * static_cast<std::uint64_t>(mine);
}

std::optional<Bytes> ByHandOrders::target(std::size_t gpu) const {
    if (targets_[gpu]) return targets_[gpu];
    return target_ ? std::optional(share(*target_, gpu)) : std::nullopt;
}

std::optional<Bytes> ByHandOrders::vram_max(std::size_t gpu) const {
    const auto of_all = yields_.vram_max();
    const auto own = yields_.vram_max(gpus_[gpu].selector);
    if (!of_all) return own;
    const Bytes shared = share(*of_all, gpu);
    return own ? std::min(*own, shared) : shared;
}

std::vector<ControlRequest> ByHandOrders::requests() const {
    using Op = ControlRequest::Op;
    std::vector<ControlRequest> all;
    if (target_) all.push_back({.op = Op::resize, .vram = target_});
    for (std::size_t n = 0; n < gpus_.size(); ++n)
        if (targets_[n]) all.push_back({.op = Op::resize, .vram = targets_[n], .gpu = gpus_[n].selector});
    yields_.for_each([&](Bytes vram, pid_t holder, const std::string& gpu) {
        all.push_back({.op = Op::yield, .vram = vram, .holder = holder, .gpu = gpu});
    });
    return all;
}

std::string ByHandOrders::text() const {
    std::vector<std::string> orders;
    if (target_) orders.push_back("resize " + format_size(*target_));
    orders.push_back(yields_.text());
    for (std::size_t n = 0; n < gpus_.size(); ++n) {
        const std::string& gpu = gpus_[n].selector;
        if (targets_[n]) orders.push_back(fmt::format("resize {} of {}", format_size(*targets_[n]), gpu));
        orders.push_back(yields_.text(gpu));
    }
    std::erase(orders, "");
    return fmt::format("{}", fmt::join(orders, ", "));
}

}  // namespace vramswap
