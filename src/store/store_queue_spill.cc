// SPDX-License-Identifier: MIT
// The slow reads of a StoreQueue: those with pages in the spill. While a chunk is pinned its home stays, so
// which pages these are does not change until they are read.
#include <algorithm>

#include "base/clock.h"
#include "base/log.h"
#include "store/store_queue.h"

namespace vramswap {

/// REQUIRES: there is a free place, as in_flight() counts.
void StoreQueue::begin_slow(const Transfer& transfer) {
    const auto idle = std::ranges::find_if(slow_, [](const SlowRead& s) { return !s.active; });
    *idle = SlowRead{.active = true, .transfer = transfer};
    ++slow_count_;
    parts_.waiting_for_spill.fetch_add(1, std::memory_order_relaxed);
    want_from_spill(*idle);
    read_spill(static_cast<std::size_t>(idle - slow_.begin()));  // the owner may sleep before it polls
}

/// All that is still to be read from the spill.
void StoreQueue::want_from_spill(SlowRead& slow) {
    const Transfer& t = slow.transfer;
    slow.failed = false;
    slow.todo.reset();
    for_each_piece(*t.request, kChunkPages, [&](const Piece& piece) {
        if (!parts_.state.chunks()[piece.chunk.n].spill.has()) return true;
        for (std::uint32_t i = piece.at; i < piece.at + piece.run.count; ++i)
            if (t.pages.test(i)) slow.todo.set(i);
        return true;
    });
    slow.transfer.fingerprint = fingerprint(*t.request, t.pages);
}

/// Ends reads of the spill, and begins those that there is room for. Returns how many requests are complete.
std::size_t StoreQueue::poll_slow(std::span<BlockRequest*> done) {
    reap_spill();
    slow_ready_ = false;
    std::size_t n = 0;
    for (std::size_t number = 0; number < slow_.size(); ++number) {
        SlowRead& slow = slow_[number];
        const bool ready = slow.active && slow.todo.none() && slow.in_flight == 0;
        slow_ready_ = slow_ready_ || (ready && n == done.size());
        if (ready && n < done.size()) {
            const IoStatus status = advance_slow(slow);
            if (status != IoStatus::retry) {
                slow.active = false;
                --slow_count_;
                parts_.waiting_for_spill.fetch_sub(1, std::memory_order_relaxed);
            }
            if (is_final(status)) {
                complete(slow.transfer, status);
                done[n++] = slow.transfer.request;
            }
        }
        if (slow.active) read_spill(number);
    }
    return n;
}

void StoreQueue::reap_spill() {
    for (SpillFlight& flight : spill_flights_) {
        if (flight.ticket == 0) continue;
        const IoStatus status = spill_->poll(flight.ticket);
        if (status == IoStatus::pending) continue;
        SlowRead& slow = slow_[flight.slow];
        slow.failed = slow.failed || status != IoStatus::ok;
        --slow.in_flight;
        flight.ticket = 0;
    }
}

/// All that was asked of the spill is there, or has failed. pending: what is left is with the GPUs now;
/// retry: the spill has to be read again.
IoStatus StoreQueue::advance_slow(SlowRead& slow) {
    Transfer& t = slow.transfer;
    const RequestPages before = t.pages;
    bool left = false;
    for_each_wanted_piece(*t.request, before, [&](const Piece& piece) {
        // Pinned, and so still there: check_piece unpins only what it is done with.
        if (!parts_.state.chunks()[piece.chunk.n].spill.has()) return;
        if (!slow.failed) check_piece(piece, t);
        for (std::uint32_t i = piece.at; i < piece.at + piece.run.count; ++i) left = left || t.pages.test(i);
    });
    if (left) {
        const std::uint64_t now = fingerprint(*t.request, before);
        const bool changed = !slow.failed && (now == kUnstable || now != t.fingerprint);
        const IoStatus status = changed ? IoStatus::retry : repeat_or_fail(t);
        if (status == IoStatus::retry) want_from_spill(slow);
        return status;
    }
    if (t.pages.none()) return t.lost ? IoStatus::lost : IoStatus::ok;
    flying_.push() = t;
    flying_.at(flying_.size() - 1).tries = 0;  // these were the spill's
    ++collected_;
    return IoStatus::pending;
}

/// Submits a read for each run of pages, as far as the spill takes them now.
void StoreQueue::read_spill(std::size_t number) {
    SlowRead& slow = slow_[number];
    if (slow.todo.none()) return;
    const BlockRequest& request = *slow.transfer.request;
    for_each_piece(request, kChunkPages, [&](const Piece& piece) {
        const std::uint32_t end = piece.at + piece.run.count;
        for (std::uint32_t first = piece.at; first < end; ++first) {
            if (!slow.todo.test(first)) continue;
            std::uint32_t stop = first + 1;
            while (stop < end && slow.todo.test(stop)) ++stop;
            SpillFlight* const flight = idle_spill_flight();
            if (flight == nullptr) return false;
            const std::uint32_t slot = parts_.state.chunks()[piece.chunk.n].spill.get();
            const IoStatus status =
                spill_->submit({.op = RawIo::Op::read,
                                .slot = slot,
                                .pages = {piece.run.first + (first - piece.at), stop - first},
                                .memory = request.data + std::size_t{first} * kPageBytes},
                               flight->ticket);
            if (status == IoStatus::retry) return false;
            for (std::uint32_t i = first; i < stop; ++i) slow.todo.reset(i);
            if (status == IoStatus::pending) {
                flight->slow = number;
                ++slow.in_flight;
            } else {
                flight->ticket = 0;
                slow.failed = true;
                slow_ready_ = true;  // no event will tell
            }
            first = stop;
        }
        return true;
    });
}

StoreQueue::SpillFlight* StoreQueue::idle_spill_flight() {
    const auto idle =
        std::ranges::find_if(spill_flights_, [](const SpillFlight& flight) { return flight.ticket == 0; });
    return idle == spill_flights_.end() ? nullptr : &*idle;
}

}  // namespace vramswap
