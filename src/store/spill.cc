// SPDX-License-Identifier: MIT
#include "store/spill.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <limits>
#include <system_error>
#include <utility>

namespace vramswap {
namespace {

using State = SpillSlots::State;

/// One page, so that the first system calls and allocations of the queue are behind it, and to see that the
/// disk takes direct I/O of a page.
Result<void> read_once(SpillQueue& queue) {
    const std::unique_ptr<void, decltype(&std::free)> page(std::aligned_alloc(kPageBytes, kPageBytes),
                                                           &std::free);
    if (!page) return Error{Errc::no_memory, 0, "no memory for a first read of the spill"};
    Ticket ticket = 0;
    IoStatus status = queue.submit(
        {.op = RawIo::Op::read, .slot = 0, .pages = {0, 1}, .memory = static_cast<std::byte*>(page.get())},
        ticket);
    while (status == IoStatus::pending) {
        queue.wait(-1);
        status = queue.poll(ticket);
    }
    if (status == IoStatus::ok) return {};
    return Error{Errc::failed, 0, fmt::format("a first read of the spill: {}", to_string(status)),
                 "Look for errors of the disk in the kernel's log"};
}

/// Another sentence, if it is one.
void append(std::string& text, const std::string& sentence) {
    if (!text.empty() && !sentence.empty()) text += ". ";
    text += sentence;
}

}  // namespace

Spill::Spill(const SpillConfig& config, SpillFile file)
    : slots_(file.places().count, file.initial_state()), file_(std::move(file)), make_io_(config.make_io) {}

Result<std::unique_ptr<Spill>> Spill::open(const SpillConfig& config) {
    auto file = SpillFile::open(config);
    if (!file) return std::move(file).error();
    std::unique_ptr<Spill> spill(new Spill(config, std::move(*file)));
    if (auto made = spill->make_pipe(); !made) return std::move(made).error();
    // That there is no room passes, and problem tells it; that a file system cannot reserve any does not.
    if (auto reserved = spill->reserve_some(); !reserved) {
        if (reserved.error().code == Errc::unavailable) return std::move(reserved).error();
        spill->problem_ = reserved.error().text();
    }
    return spill;
}

Result<std::unique_ptr<Spill>> Spill::adopt(const SpillConfig& config, std::vector<UniqueFd> fds,
                                            std::span<const std::uint32_t> used) {
    auto file = SpillFile::take_over(config, std::move(fds));
    if (!file) return std::move(file).error();
    std::unique_ptr<Spill> spill(new Spill(config, std::move(*file)));
    if (auto made = spill->make_pipe(); !made) return std::move(made).error();
    if (auto known = spill->slots_.adopt(used); !known) return std::move(known).error();
    return spill;
}

Result<void> Spill::make_pipe() {
    int ends[2];
    if (::pipe2(ends, O_CLOEXEC) != 0) return sys_error("cannot make a pipe for the spill");
    busy_read_.reset(ends[0]);
    busy_write_.reset(ends[1]);
    return {};
}

IoStatus Spill::take(std::uint32_t& slot) {
    if (const auto taken = slots_.take()) {
        slot = *taken;
        return IoStatus::ok;
    }
    const SpillSlots::Totals totals = slots_.totals();
    const auto in = [&totals](State state) { return totals[static_cast<std::size_t>(state)]; };
    const bool soon = in(State::free) > 0 || in(State::claimed) > 0;
    const bool grows = in(State::absent) > 0 && !growth_refused_.load();
    const bool wipes = in(State::stale) > 0 && !wipe_failed_.load();
    return soon || grows || wipes ? IoStatus::retry : IoStatus::no_space;
}

bool Spill::needs_maintenance() const {
    return needs_slots() || (slots_.in(State::stale) > 0 && !wipe_failed_.load());
}

bool Spill::needs_slots() const {
    if (slots_.in(State::free) >= kReserveAhead / 2) return false;
    const bool grows = slots_.in(State::absent) > 0 && !growth_refused_.load();
    return grows || (slots_.in(State::stale) > 0 && !wipe_failed_.load());
}

Spill::Duty Spill::maintain() {
    auto wiped = wipe_some();
    auto reserved = reserve_some();
    problem_.clear();
    if (!wiped) append(problem_, wiped.error().text());
    if (!reserved) append(problem_, reserved.error().text());
    if (!problem_.empty()) return Duty::later;
    return slots_.in(State::stale) > 0 ? Duty::more : Duty::none;
}

Result<void> Spill::wipe_some() {
    auto wiped = wipe(State::stale, kWipesAtOnce);
    wipe_failed_.store(!wiped);
    return wiped;
}

Result<void> Spill::wipe(State state, std::uint32_t count_max) {
    while (count_max > 0) {
        const SlotRange range = slots_.claim(state, count_max);
        if (range.count == 0) break;
        if (auto wiped = file_.wipe(range); !wiped) {
            // A bad place would be in the way of all others; what else there is may pass.
            slots_.settle(range, wiped.error().sys == EIO ? State::bad : state);
            return wiped;
        }
        wipe_failed_.store(false);  // before others can see what came of it
        slots_.settle(range, file_.is_device() ? State::free : State::absent);
        count_max -= range.count;
    }
    return {};
}

Result<void> Spill::reserve_some() {
    Result<void> reserved;
    while (reserved && slots_.in(State::absent) > 0 && slots_.in(State::free) < kReserveAhead) {
        const std::uint32_t wanted = kReserveAhead - slots_.in(State::free);
        const SlotRange range = slots_.claim(State::absent, std::min(wanted, file_.room()));
        if (range.count == 0) {
            reserved = Error{Errc::failed, 0,
                             "the spill cannot grow: its disk has less than a tenth of its space free",
                             "Free some there, or name another place with --spill"};
            break;
        }
        reserved = file_.reserve(range);
        // What it got of a part is given back.
        if (!reserved) static_cast<void>(file_.wipe(range));
        growth_refused_.store(!reserved);  // before others can see what came of it
        slots_.settle(range, reserved ? State::free : State::absent);
    }
    growth_refused_.store(!reserved);
    return reserved;
}

std::uint32_t Spill::room() const {
    using S = SpillSlots::State;
    const std::uint32_t ready = slots_.in(S::free) + slots_.in(S::claimed);
    const std::uint32_t wiped = wipe_failed_.load() ? 0 : slots_.in(S::stale);
    return ready + wiped + (growth_refused_.load() ? 0 : slots_.in(S::absent));
}

Result<std::unique_ptr<SpillQueue>> Spill::make_queue(int event_fd) {
    io_remark_.clear();
    std::vector<int> files;
    for (const UniqueFd& fd : fds()) files.push_back(fd.get());
    auto io = make_io_ ? make_io_(files, SpillQueue::kDepth, event_fd)
                       : make_uring_io(files, SpillQueue::kDepth, event_fd, busy_write_.get());
    if (!io && !make_io_) {
        io_remark_ = io.error().text() + ". The spill does with threads, which are slower";
        io = make_thread_io(files, SpillQueue::kDepth, event_fd);
    }
    if (!io) return std::move(io).error();
    auto queue = std::make_unique<SpillQueue>(std::move(*io), file_.places(), counters_);
    if (auto read = read_once(*queue); !read) return std::move(read).error();
    return queue;
}

SpillCounts Spill::counts() const {
    return {.capacity = slots_.count(),
            .used = slots_.in(State::used),
            .ready = slots_.in(State::free),
            .to_wipe = slots_.in(State::stale),
            .bad = slots_.in(State::bad),
            .on_disk = file_.on_disk()};
}

std::string Spill::problem() const {
    std::string all = problem_;
    const std::uint64_t reads = counters_.failed_reads.load();
    const std::uint64_t writes = counters_.failed_writes.load();
    if (reads + writes > 0)
        append(all, fmt::format("{} reads and {} writes of the spill failed, the last: {}", reads, writes,
                                std::generic_category().message(counters_.last_errno.load())));
    if (const std::uint32_t bad = slots_.in(State::bad); bad > 0)
        append(all, fmt::format("{} of the spill are bad and not used any more",
                                format_size({bad * kChunkBytes})));
    append(all, file_.remark());
    append(all, io_remark_);
    return all;
}

Result<void> Spill::close() {
    Result<void> wiped;
    if (file_.is_device())
        for (const State state : {State::bad, State::used, State::stale})
            if (auto some = wipe(state, std::numeric_limits<std::uint32_t>::max()); !some) wiped = some;
    auto cleared = file_.clear();
    return wiped ? cleared : wiped;
}

}  // namespace vramswap
