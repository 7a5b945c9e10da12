// SPDX-License-Identifier: MIT
#include "cli/swap_trial.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/signalfd.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <vector>

#include "base/log.h"
#include "cli/table.h"
#include "sys/proc.h"

namespace vramswap {

Interrupts::Interrupts() {
    sigset_t set;
    sigemptyset(&set);
    for (const int s : {SIGINT, SIGTERM, SIGHUP}) sigaddset(&set, s);
    sigprocmask(SIG_BLOCK, &set, nullptr);
    fd_.reset(::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
}

Result<void> Interrupts::check() const {
    pollfd p{fd_.get(), POLLIN, 0};
    if (::poll(&p, 1, 0) != 1) return {};
    return Error{Errc::failed, 0, "interrupted", "Everything was taken down"};
}

Result<Bytes> parse_trial_data(const std::string& text) {
    auto data = parse_size(text, "--data");
    if (!data) return std::move(data).error();
    if (data->kind != SizeSpec::Kind::bytes || data->amount < mib(16).n)
        return Error{Errc::usage, 0, fmt::format("--data {} is not an amount of 16M or more", text)};
    return Bytes{round_down(data->amount, kPageBytes)};
}

SwapTrial::SwapTrial(const Interrupts& interrupts, std::string group, Bytes data)
    : interrupts_(interrupts), group_name_(std::move(group)), data_(data) {
    figures_.limit = {round_down(data_.n / 4, kPageBytes)};
}

SwapTrial::~SwapTrial() {
    if (auto removed = remove(); !removed) log_warning("{}", removed.error().text());
}

Result<void> SwapTrial::prepare() {
    auto group = MemoryCgroup::create(group_name_, figures_.limit);
    if (!group) return std::move(group).error();
    group_.emplace(std::move(*group));
    auto child = DemoChild::start(data_);
    if (!child) return std::move(child).error();
    child_ = std::move(*child);
    figures_.pages = child_->pages();
    return group_->add_pid(child_->pid());
}

namespace {
double gbps(std::uint64_t pages, std::uint64_t ns) {
    return ns == 0 ? 0.0 : static_cast<double>(pages * kPageBytes) / static_cast<double>(ns);
}
}  // namespace

Result<void> SwapTrial::write() {
    const auto before = read_vmstat();
    if (!before) return before.error();
    const DemoProgress& p = child_->progress();
    child_->go();
    if (auto r = watch("writing", p.pages_filled, p.fill_ns); !r) return r;
    const auto after = read_vmstat();
    if (!after) return after.error();
    const std::uint64_t out = after->pswpout() - before->pswpout();
    figures_.pswpout += out;
    figures_.pswpin += after->pswpin() - before->pswpin();
    figures_.swap_out_gbps = gbps(out, p.fill_ns.load());
    return {};
}

Result<void> SwapTrial::read_back() {
    const auto before = read_vmstat();
    if (!before) return before.error();
    const DemoProgress& p = child_->progress();
    child_->go_on();
    if (auto r = watch("reading and checking", p.pages_read, p.read_ns); !r) return r;
    if (auto r = child_->wait(); !r) return r;
    const auto after = read_vmstat();
    if (!after) return after.error();
    const std::uint64_t in = after->pswpin() - before->pswpin();
    figures_.pswpin += in;
    figures_.pswpout += after->pswpout() - before->pswpout();
    figures_.swap_in_gbps = gbps(in, p.read_ns.load());
    figures_.pages_wrong = p.pages_wrong.load();
    evaluate_faults();
    return {};
}

void SwapTrial::evaluate_faults() {
    std::vector<std::uint64_t> sorted(child_->latencies_ns().begin(), child_->latencies_ns().end());
    std::ranges::sort(sorted);
    const auto percentile = [&sorted](double share) {
        if (sorted.empty()) return 0.0;
        const auto at = static_cast<std::size_t>(share * static_cast<double>(sorted.size() - 1));
        return static_cast<double>(sorted[at]) / 1000.0;
    };
    figures_.faults = sorted.size();
    figures_.p50_us = percentile(0.50);
    figures_.p90_us = percentile(0.90);
    figures_.p99_us = percentile(0.99);
    figures_.p999_us = percentile(0.999);
    figures_.max_us = percentile(1.0);
}

/// Until the child has finished a phase (its duration is set), died, or we are interrupted.
Result<void> SwapTrial::watch(const char* label, const std::atomic<std::uint64_t>& done,
                              const std::atomic<std::uint64_t>& duration) {
    constexpr int kLookMs = 20;
    Progress bar(label);
    while (duration.load(std::memory_order_acquire) == 0) {
        std::array<pollfd, 2> events{pollfd{interrupts_.fd(), POLLIN, 0}, pollfd{child_->pidfd(), POLLIN, 0}};
        ::poll(events.data(), events.size(), kLookMs);
        if (auto r = interrupts_.check(); !r) return r;
        if (events[1].revents != 0 && duration.load(std::memory_order_acquire) == 0) return child_->wait();
        bar.show(static_cast<double>(done.load()) / static_cast<double>(child_->pages()));
    }
    return {};
}

Result<void> SwapTrial::remove() {
    child_.reset();
    if (!group_) return {};
    auto removed = group_->remove();
    group_.reset();
    return removed;
}

}  // namespace vramswap
