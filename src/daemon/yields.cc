// SPDX-License-Identifier: MIT
#include "daemon/yields.h"

#include <fmt/format.h>
#include <sys/epoll.h>

#include <algorithm>

namespace vramswap {

Yields::Yields() : epoll_(::epoll_create1(EPOLL_CLOEXEC)) {}

Result<void> Yields::begin(Bytes vram, pid_t holder, const std::string& gpu) {
    const auto known = std::ranges::find_if(yields_, [&](const Yield& y) {
        return y.holder == holder && y.gpu == gpu && !(y.process && y.process->has_ended());
    });
    if (known == yields_.end()) return add(vram, holder, gpu);
    known->vram = vram;
    return {};
}

Result<void> Yields::add(Bytes vram, pid_t holder, const std::string& gpu) {
    (void)end_of_the_dead();
    if (yields_.size() >= kHoldersMax)
        return Error{Errc::busy, 0, fmt::format("{} yields are in effect already", yields_.size()),
                     "End some of their commands"};
    Yield yield{vram, holder, gpu};
    if (holder != 0) {
        auto process = ProcessEnd::of(holder);
        if (!process) return std::move(process).error();
        yield.process.emplace(std::move(*process));
        epoll_event event{EPOLLIN, {}};
        // Left out: it is looked at once a second.
        if (yield.process->fd() >= 0)
            (void)::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, yield.process->fd(), &event);
    }
    yields_.push_back(std::move(yield));
    return {};
}

void Yields::end(pid_t holder) {
    // Closing the descriptor takes it out of the epoll set.
    std::erase_if(yields_, [holder](const Yield& y) { return y.holder == holder; });
}

bool Yields::end_of_the_dead() {
    return std::erase_if(yields_, [](const Yield& y) { return y.process && y.process->has_ended(); }) != 0;
}

const Yields::Yield* Yields::least(const std::string& gpu) const {
    const Yield* found = nullptr;
    for (const Yield& yield : yields_)
        if (yield.gpu == gpu && (found == nullptr || yield.vram < found->vram)) found = &yield;
    return found;
}

std::optional<Bytes> Yields::vram_max(const std::string& gpu) const {
    const Yield* yield = least(gpu);
    return yield == nullptr ? std::nullopt : std::optional(yield->vram);
}

std::string Yields::text(const std::string& gpu) const {
    const Yield* yield = least(gpu);
    if (yield == nullptr) return {};
    return fmt::format("yield{}{}{}", yield->vram.n == 0 ? "" : " " + format_size(yield->vram),
                       gpu.empty() ? "" : " of " + gpu,
                       yield->holder == 0 ? "" : fmt::format(" for process {}", yield->holder));
}

}  // namespace vramswap
