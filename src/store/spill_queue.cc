// SPDX-License-Identifier: MIT
#include "store/spill_queue.h"

#include <poll.h>

#include <algorithm>
#include <cerrno>
#include <utility>

namespace vramswap {
namespace {

/// So often in a row the kernel may say "not now" without that a byte moves, before that is an error. It does
/// so for want of memory for a request; by io_uring, which repeats such ones itself, hardly ever.
constexpr std::uint32_t kFruitlessTriesMax = 1000;

/// A second look while the destructor waits, should an operation still have to be submitted.
constexpr int kLookAgain_ms = 10;

bool is_transient(int error) {
    return error == EINTR || error == EAGAIN || error == ENOMEM || error == ECANCELED;
}

/// A ticket is the number of the request, and of its place in flights_.
std::size_t place_of(Ticket ticket) {
    return ticket % SpillQueue::kDepth;
}

void add(std::atomic<std::uint64_t>& counter, std::uint64_t n) {
    counter.fetch_add(n, std::memory_order_relaxed);
}

}  // namespace

SpillQueue::SpillQueue(std::unique_ptr<RawIo> io, SlotPlaces places, SpillCounters& counters)
    : io_(std::move(io)), places_(places), counters_(counters) {}

SpillQueue::~SpillQueue() {
    closing_ = true;  // nothing is begun or repeated any more
    while (in_flight_ > 0) {
        reap();
        if (in_flight_ == 0) break;
        pollfd event{io_->event_fd(), POLLIN, 0};
        ::poll(&event, 1, kLookAgain_ms);
    }
}

IoStatus SpillQueue::submit(const SpillRequest& request, Ticket& ticket) {
    const PageRun pages = request.pages;
    if (request.slot >= places_.count || pages.first >= kChunkPages ||
        pages.count > kChunkPages - pages.first)
        return IoStatus::out_of_range;
    if (pages.count == 0 || reinterpret_cast<std::uintptr_t>(request.memory) % kPageBytes != 0)
        return IoStatus::misaligned;
    const auto idle =
        std::ranges::find_if(flights_, [](const Flight& f) { return f.phase == Flight::Phase::idle; });
    if (idle == flights_.end()) return IoStatus::retry;

    // The next number of that place.
    const auto place = static_cast<std::size_t>(idle - flights_.begin());
    last_ticket_ += 1 + (place + kDepth - place_of(last_ticket_ + 1)) % kDepth;
    *idle = Flight{.phase = Flight::Phase::flying,
                   .ticket = last_ticket_,
                   .rest = {.op = request.op,
                            .tag = static_cast<std::uint32_t>(place),
                            .bytes = static_cast<std::uint32_t>(pages.count * kPageBytes),
                            .file = places_.file_of(request.slot),
                            .offset = places_.offset_of(request.slot) + pages.first * kPageBytes,
                            .memory = request.memory}};
    ++in_flight_;
    io_->start(idle->rest);
    ticket = last_ticket_;
    return IoStatus::pending;
}

IoStatus SpillQueue::poll(Ticket ticket) {
    Flight& flight = flights_[place_of(ticket)];
    if (flight.phase == Flight::Phase::idle || flight.ticket != ticket) return IoStatus::io_error;
    if (flight.phase == Flight::Phase::flying) reap();
    if (flight.phase == Flight::Phase::flying) return IoStatus::pending;
    flight.phase = Flight::Phase::idle;
    --ended_;
    return flight.outcome;
}

bool SpillQueue::has_ended() {
    reap();
    return ended_ > 0;
}

void SpillQueue::wait(int timeout_ms) {
    if (has_ended() || in_flight_ == 0) return;
    pollfd event{io_->event_fd(), POLLIN, 0};
    ::poll(&event, 1, timeout_ms);  // a signal: early
}

void SpillQueue::reap() {
    std::array<RawIo::Done, kDepth> done{};
    const std::size_t n = io_->reap(done);
    for (std::size_t i = 0; i < n; ++i) on_done(flights_[done[i].tag], done[i].result);
}

void SpillQueue::on_done(Flight& flight, std::int32_t result) {
    RawIo::Operation& rest = flight.rest;
    if (result > 0) {
        const auto moved = static_cast<std::uint32_t>(result);
        add(rest.op == RawIo::Op::read ? counters_.bytes_read : counters_.bytes_written, moved);
        if (moved >= rest.bytes) return end(flight, IoStatus::ok);
        rest.bytes -= moved;
        rest.offset += moved;
        rest.memory += moved;
        flight.fruitless_tries = 0;
    } else if (result == 0) {
        return fail(flight, EIO);  // the file ends here: somebody has cut it
    } else if (!is_transient(-result) || ++flight.fruitless_tries > kFruitlessTriesMax) {
        return fail(flight, -result);
    }
    if (closing_) return end(flight, IoStatus::io_error);
    io_->start(rest);
}

void SpillQueue::fail(Flight& flight, int error) {
    const bool writing = flight.rest.op == RawIo::Op::write;
    add(writing ? counters_.failed_writes : counters_.failed_reads, 1);
    counters_.last_errno.store(error, std::memory_order_relaxed);
    const bool full = error == ENOSPC || error == EDQUOT;
    end(flight, writing && full ? IoStatus::no_space : IoStatus::io_error);
}

void SpillQueue::end(Flight& flight, IoStatus outcome) {
    flight.outcome = outcome;
    flight.phase = Flight::Phase::ended;
    --in_flight_;
    ++ended_;
}

}  // namespace vramswap
