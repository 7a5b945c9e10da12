// SPDX-License-Identifier: MIT
// The copies of a StoreQueue: what was collected goes to the GPUs together, and comes back checked.
#include <algorithm>

#include "base/clock.h"
#include "base/log.h"
#include "store/store_queue.h"

namespace vramswap {
namespace {
/// Copies of a transfer that fail or do not match are repeated until it was tried so often.
constexpr std::uint32_t kTriesMax = 3;
/// A poll reports so many at least if there are so many.
constexpr std::size_t kCompletionsMin = 8;
}  // namespace

/// Adds a copy for every run of pages still wanted.
void StoreQueue::add_copies(Transfer& transfer) {
    const auto op = transfer.request->op == BlockRequest::Op::read ? Copy::Op::from_gpu : Copy::Op::to_gpu;
    for_each_wanted_piece(*transfer.request, transfer.pages, [&](const Piece& piece) {
        const ChunkEntry& entry = parts_.state.chunks()[piece.chunk.n];  // pinned: its slot stays
        const StoreParts::Place place = parts_.place(entry.slot.get());
        const std::uint32_t end = piece.at + piece.run.count;
        for (std::uint32_t first = piece.at; first < end; ++first) {
            if (!transfer.pages.test(first)) continue;
            std::uint32_t stop = first + 1;
            while (stop < end && transfer.pages.test(stop)) ++stop;
            const std::uint64_t in_chunk = piece.run.first + (first - piece.at);
            copies_scratch_[place.gpu].push_back({op, place.segment, place.offset + in_chunk * kPageBytes,
                                                  transfer.request->data + std::size_t{first} * kPageBytes,
                                                  static_cast<std::uint32_t>((stop - first) * kPageBytes)});
            first = stop;
        }
    });
}

/// Tells whether the pages still to be copied change meanwhile.
std::uint64_t StoreQueue::fingerprint(const BlockRequest& request, const RequestPages& wanted) const {
    std::uint64_t sum = 1;
    bool writing = false;
    for_each_wanted_piece(request, wanted, [&](const Piece& piece) {
        for (std::uint32_t i = 0; i < piece.run.count; ++i) {
            if (!wanted.test(piece.at + i)) continue;
            const PageEntry& page = entry_of(piece, i);
            writing = writing || page.state() == PageEntry::State::writing;
            sum = sum * 3 + page.load();
        }
    });
    return writing ? kUnstable : sum | 1;
}

/// Submits what was collected, together as far as there is room to list it.
void StoreQueue::launch() {
    const EngineMode mode = parts_.mode.load(std::memory_order_relaxed);
    const std::size_t end = flying_.size();
    for (std::size_t n = end - collected_; n < end;) {
        const std::size_t first = n;
        for (auto& copies : copies_scratch_) copies.clear();
        // What failed before goes alone, so that one bad copy does not take others down with it.
        bool alone = false;
        const auto there_is_room = [](const std::vector<Copy>& copies) { return copies.size() <= kPagesMax; };
        for (; n < end && !alone && std::ranges::all_of(copies_scratch_, there_is_room); ++n) {
            alone = flying_.at(n).tries != 0;
            if (alone && n != first) break;
            add_copies(flying_.at(n));
        }
        std::array<Ticket, kGpusMax> tickets{};
        bool refused = false;
        for (std::size_t gpu = 0; gpu < gpus_.size(); ++gpu) {
            if (copies_scratch_[gpu].empty()) continue;
            gpus_[gpu]->set_mode(mode);
            if (gpus_[gpu]->submit(copies_scratch_[gpu], tickets[gpu]) == IoStatus::pending) continue;
            log_event(LogLevel::error, "the GPU refused copies, requests", n - first);
            tickets[gpu] = 0;
            refused = true;
        }
        for (std::size_t k = first; k < n; ++k) {
            flying_.at(k).tickets = tickets;
            flying_.at(k).refused = refused;
            // The first look at the page entries: they come from memory while the GPU copies.
            flying_.at(k).fingerprint = fingerprint(*flying_.at(k).request, flying_.at(k).pages);
        }
    }
    collected_ = 0;
}

std::size_t StoreQueue::do_poll(std::span<BlockRequest*> done) {
    std::size_t n = slow_count_ != 0 ? poll_slow(done) : 0;
    if (collected_ != 0) launch();
    // In mode turbo not all that are complete: the caller shall submit new ones, for the GPU to work at while
    // the rest is checked. Copy engines rather have long lists: there the driver is what is waited for.
    const bool halve = parts_.mode.load(std::memory_order_relaxed) == EngineMode::turbo;
    const std::size_t most =
        halve ? std::min(done.size(), std::max(kCompletionsMin, flying_.size() / 2)) : done.size();
    while (n < most && flying_.size() > collected_) {
        Transfer& transfer = flying_.at(0);
        if (flying_.size() > 1) prefetch_entry(*flying_.at(1).request);  // it probably came with this one
        const IoStatus status = advance(transfer);
        if (status == IoStatus::pending) break;
        if (status == IoStatus::retry) {
            const Transfer again = transfer;
            flying_.pop();
            flying_.push() = again;
            ++collected_;
            continue;
        }
        done[n++] = transfer.request;
        complete(transfer, status);
        QueueCounters::add(slot_.counters.waited_ns, now_ns() - transfer.since_ns);
        flying_.pop();
    }
    return n;
}

void StoreQueue::complete(const Transfer& transfer, IoStatus status) {
    const bool is_read = transfer.request->op == BlockRequest::Op::read;
    (is_read ? slot_.counters.read_latency : slot_.counters.write_latency).add(now_ns() - transfer.since_ns);
    transfer.request->status = status;
}

/// How its copies ended; pending until all have.
IoStatus StoreQueue::copied(const Transfer& transfer) {
    IoStatus status = transfer.refused ? IoStatus::io_error : IoStatus::ok;
    for (std::size_t gpu = 0; gpu < gpus_.size(); ++gpu) {
        if (transfer.tickets[gpu] == 0) continue;
        const IoStatus one = gpus_[gpu]->poll(transfer.tickets[gpu]);
        if (one == IoStatus::pending) return one;
        status = worse(status, one);
    }
    return status;
}

/// Looks whether the copies are complete and right. retry: they have to be repeated.
IoStatus StoreQueue::advance(Transfer& transfer) {
    const IoStatus status = copied(transfer);
    if (status == IoStatus::pending) return status;
    if (status != IoStatus::ok && parts_.leaves_it_to_the_next()) {
        parts_.request_maintenance();
        return IoStatus::pending;  // the kernel gives the request to the next process
    }
    if (transfer.request->op == BlockRequest::Op::write)
        return status == IoStatus::ok ? end_direct(transfer, PageEntry::State::stored)
                                      : repeat_or_fail(transfer);
    // A page that was overwritten may have been read while the new one arrived. That is nobody's fault.
    if (status != IoStatus::ok) return repeat_or_fail(transfer);
    const RequestPages before = transfer.pages;
    for_each_wanted_piece(*transfer.request, before,
                          [&](const Piece& piece) { check_piece(piece, transfer); });
    if (transfer.pages.none()) return transfer.lost ? IoStatus::lost : IoStatus::ok;
    const std::uint64_t now = fingerprint(*transfer.request, before);
    if (now == kUnstable || now != transfer.fingerprint) return IoStatus::retry;
    return repeat_or_fail(transfer);
}

IoStatus StoreQueue::repeat_or_fail(Transfer& transfer) {
    const bool is_read = transfer.request->op == BlockRequest::Op::read;
    const std::size_t pages = transfer.pages.count();
    log_event(LogLevel::warning, "copies failed, or read pages that do not match their checksum; pages",
              pages);
    if (++transfer.tries < kTriesMax) {
        if (is_read) QueueCounters::add(slot_.counters.reread_pages, pages);
        return IoStatus::retry;
    }
    if (!is_read) {
        QueueCounters::add(slot_.counters.writes_refused, 1);
        return end_direct(transfer, PageEntry::State::lost);
    }
    QueueCounters::add(slot_.counters.read_errors, pages);
    unpin(transfer);
    return IoStatus::io_error;
}

}  // namespace vramswap
