// SPDX-License-Identifier: MIT
#include "store/store_queue.h"

#include <algorithm>
#include <cstring>

#include "base/clock.h"
#include "base/log.h"
#include "store/checksum.h"

namespace vramswap {
namespace {
/// Digest of a page that is all zeros; a checksum has 56 bits and cannot equal it.
constexpr std::uint64_t kZeroPage = ~std::uint64_t{0};
/// A page read from VRAM that fails or does not match is copied again this often before the request fails.
constexpr std::uint32_t kTriesMax = 3;
}  // namespace

StoreQueue::StoreQueue(StoreParts& parts, Flusher& flusher, std::unique_ptr<TransferQueue> gpu,
                       QueueSlot& slot, std::uint32_t depth)
    : TargetQueue(Bytes{parts.state.header().device_bytes}),
      parts_(parts),
      flusher_(flusher),
      gpu_(std::move(gpu)),
      slot_(slot),
      reads_(depth) {
    idle_.reserve(depth);
    for (Read& r : reads_) idle_.push_back(&r);
    copies_scratch_.reserve(kPagesMax);
}

StoreQueue::~StoreQueue() {
    slot_.waiting.store(false);
    slot_.in_use.store(false);
}

template <typename Visit>
void StoreQueue::for_each_piece(const BlockRequest& request, Visit visit) {
    const std::uint64_t pages = request.bytes / kPageBytes;
    for (std::uint64_t at = 0; at < pages;) {
        const PageIndex page{request.offset / kPageBytes + at};
        const std::uint64_t count = std::min<std::uint64_t>(pages - at, kChunkPages - page_in_chunk(page));
        const Piece piece{chunk_of(page),
                          {page_in_chunk(page), static_cast<std::uint32_t>(count)},
                          static_cast<std::uint32_t>(at),
                          request.data == nullptr ? nullptr : request.data + at * kPageBytes};
        if (!visit(piece)) return;
        at += count;
    }
}

IoStatus StoreQueue::do_submit(BlockRequest& request) {
    IoStatus status = attempt(request);
    if (status == IoStatus::retry) {
        // Room that appeared between the attempt and the registration would wake nobody: try once more after
        // it.
        slot_.waiting.store(true);
        status = attempt(request);
        if (status != IoStatus::retry) slot_.waiting.store(false);
    }
    QueueCounters& c = slot_.counters;
    if (status == IoStatus::retry) {
        QueueCounters::add(c.retries, 1);
        return status;
    }
    const std::uint64_t pages = request.bytes / kPageBytes;
    switch (request.op) {
        case BlockRequest::Op::read:
            QueueCounters::add(c.pages_read, pages);
            break;
        case BlockRequest::Op::write:
            QueueCounters::add(c.pages_written, pages);
            break;
        case BlockRequest::Op::discard:
            QueueCounters::add(c.pages_discarded, pages);
            break;
    }
    if (request.op == BlockRequest::Op::write && status != IoStatus::ok)
        QueueCounters::add(c.writes_refused, 1);
    return status;
}

IoStatus StoreQueue::attempt(BlockRequest& request) {
    switch (request.op) {
        case BlockRequest::Op::read:
            return read(request);
        case BlockRequest::Op::write:
            return write(request);
        case BlockRequest::Op::discard:
            discard(request);
            return IoStatus::ok;
    }
    return IoStatus::io_error;
}

// ---- writes ----

IoStatus StoreQueue::write(const BlockRequest& request) {
    if (parts_.refuse_writes.load(std::memory_order_relaxed)) return IoStatus::io_error;
    const PageIndex first = page_at(request.offset);
    for (std::uint64_t i = 0; i < request.bytes / kPageBytes; ++i) {
        const std::byte* page = request.data + i * kPageBytes;
        digests_[i] = is_zero_page(page) ? kZeroPage : page_checksum(page, PageIndex{first.n + i});
    }
    IoStatus status = IoStatus::ok;
    for_each_piece(request, [&](const Piece& piece) {
        status = write_piece(piece);
        return status == IoStatus::ok;  // a request told to retry is written again from its start: harmless
    });
    return status;
}

IoStatus StoreQueue::write_piece(const Piece& piece) {
    ChunkEntry& entry = parts_.state.chunks()[piece.chunk.n];
    const std::uint64_t* digests = &digests_[piece.at];
    const bool all_zero =
        std::all_of(digests, digests + piece.run.count, [](auto d) { return d == kZeroPage; });
    bool full = false;
    {
        const ChunkLock lock(entry);
        if (!all_zero) {
            if (const IoStatus room = find_room(entry, piece.chunk); room != IoStatus::ok) {
                parts_.release_if_empty(entry);  // a slot taken for nothing
                return room;
            }
            // Bytes on their way to VRAM do not change: what arrives there is one version, whole.
            const ImageHeader& h = parts_.stage->header(entry.image.get());
            const std::uint32_t busy = h.in_flight.next_set(piece.run.first);
            if (busy < piece.run.first + piece.run.count) return IoStatus::retry;
        }
        put_pages(entry, piece, digests);
        if (!all_zero) full = parts_.stage->header(entry.image.get()).dirty_pages.load() == kChunkPages;
        parts_.release_if_empty(entry);
    }
    if (!all_zero) flusher_.kick(full);
    return IoStatus::ok;
}

/// Under the chunk's lock: a home in VRAM and an image in the stage. Acknowledging a page without a home
/// would promise what may not be kept.
IoStatus StoreQueue::find_room(ChunkEntry& entry, ChunkIndex chunk) {
    if (!entry.slot.has()) {
        const auto slot = parts_.slots.take();
        if (parts_.slots.free_slots() < parts_.slots.slots_per_segment() / 2 + 1)
            parts_.request_maintenance();
        if (!slot) return parts_.growth_failed.load() ? IoStatus::no_space : IoStatus::retry;
        entry.slot.set(*slot);
    }
    if (!entry.image.has()) {
        const auto image = parts_.stage->take(chunk);
        if (!image) {
            flusher_.kick(true);
            return IoStatus::retry;
        }
        entry.image.set(*image);
    }
    return IoStatus::ok;
}

void StoreQueue::put_pages(ChunkEntry& entry, const Piece& piece, const std::uint64_t* digests) {
    bool dirtied = false;
    for (std::uint32_t i = 0; i < piece.run.count; ++i) {
        const std::uint32_t p = piece.run.first + i;
        if (digests[i] == kZeroPage) {
            parts_.forget_page(piece.chunk, p);
            QueueCounters::add(slot_.counters.zero_pages_written, 1);
            continue;
        }
        const std::uint32_t image = entry.image.get();
        std::memcpy(parts_.stage->page(image, p), piece.data + std::size_t{i} * kPageBytes, kPageBytes);
        ImageHeader& h = parts_.stage->header(image);
        h.valid.set(p);
        h.dirty.set(p);
        PageEntry& page = entry_of(piece, i);
        if (page.state() == PageEntry::State::absent) ++entry.stored;
        page.store(digests[i]);
        dirtied = true;
    }
    if (dirtied) parts_.mark_dirty(parts_.stage->header(entry.image.get()), now_ns());
}

// ---- discards ----

void StoreQueue::discard(const BlockRequest& request) {
    const BlockRequest without_data{request.op, request.offset,    request.bytes,
                                    nullptr,    IoStatus::pending, nullptr};
    for_each_piece(without_data, [&](const Piece& piece) {
        ChunkEntry& entry = parts_.state.chunks()[piece.chunk.n];
        const ChunkLock lock(entry);
        if (entry.stored == 0) return true;
        for (std::uint32_t i = 0; i < piece.run.count; ++i)
            parts_.forget_page(piece.chunk, piece.run.first + i);
        parts_.release_if_empty(entry);
        return true;
    });
}

// ---- reads ----

IoStatus StoreQueue::read(BlockRequest& request) {
    if (idle_.empty()) return IoStatus::retry;
    Read& read = *idle_.back();
    read.request = &request;
    read.tries = 0;
    read.from_gpu.reset();
    IoStatus status = IoStatus::ok;
    for_each_piece(request, [&](const Piece& piece) {
        status = worse(status, look_up(piece, read.from_gpu));
        return true;
    });
    QueueCounters::add(slot_.counters.pages_read_gpu, read.from_gpu.count());
    if (status != IoStatus::ok || read.from_gpu.none()) {
        unpin(read);
        return status;
    }
    status = start_copies(read);
    if (status != IoStatus::pending) return status;
    idle_.pop_back();
    read.active = true;
    request.in_target = &read;
    return status;
}

/// Serves what needs no GPU copy; marks the rest in `from_gpu` and pins the chunk for it. ok or lost.
IoStatus StoreQueue::look_up(const Piece& piece, RequestPages& from_gpu) {
    ChunkEntry& entry = parts_.state.chunks()[piece.chunk.n];
    IoStatus status = IoStatus::ok;
    bool pinned = false;
    const ChunkLock lock(entry);
    for (std::uint32_t i = 0; i < piece.run.count; ++i) {
        std::byte* out = piece.data + std::size_t{i} * kPageBytes;
        const std::uint32_t p = piece.run.first + i;
        switch (entry_of(piece, i).state()) {
            case PageEntry::State::absent:
                std::memset(out, 0, kPageBytes);
                continue;
            case PageEntry::State::lost:
                status = IoStatus::lost;
                continue;
            case PageEntry::State::stored:
                break;
        }
        if (entry.image.has() && parts_.stage->header(entry.image.get()).valid.test(p)) {
            std::memcpy(out, parts_.stage->page(entry.image.get(), p), kPageBytes);
            QueueCounters::add(slot_.counters.pages_read_stage, 1);
            continue;
        }
        from_gpu.set(piece.at + i);
        if (!pinned) ++entry.pins;
        pinned = true;
    }
    return status;
}

namespace {
/// Calls visit(first, count) for each run of set bits in [begin, end).
template <typename Bits, typename Visit>
void for_each_set_run(const Bits& bits, std::uint32_t begin, std::uint32_t end, Visit visit) {
    for (std::uint32_t i = begin; i < end;) {
        if (!bits.test(i)) {
            ++i;
            continue;
        }
        std::uint32_t stop = i + 1;
        while (stop < end && bits.test(stop)) ++stop;
        visit(i, stop - i);
        i = stop;
    }
}
}  // namespace

/// Submits a copy for every run of pages still wanted. pending, or a final status with everything unpinned.
IoStatus StoreQueue::start_copies(Read& read) {
    while (read.tries < kTriesMax) {
        ++read.tries;
        copies_scratch_.clear();
        for_each_piece(*read.request, [&](const Piece& piece) {
            for_each_set_run(
                read.from_gpu, piece.at, piece.at + piece.run.count, [&](auto first, auto count) {
                    const ChunkEntry& entry = parts_.state.chunks()[piece.chunk.n];  // pinned: its slot stays
                    const StoreParts::Place place = parts_.place(entry.slot.get());
                    const std::uint32_t in_chunk = piece.run.first + (first - piece.at);
                    copies_scratch_.push_back({Copy::Op::from_gpu, place.segment,
                                               place.offset + std::uint64_t{in_chunk} * kPageBytes,
                                               read.request->data + std::size_t{first} * kPageBytes,
                                               static_cast<std::uint32_t>(count * kPageBytes)});
                });
            return true;
        });
        if (gpu_->submit(copies_scratch_, read.ticket) == IoStatus::pending) return IoStatus::pending;
        log_event(LogLevel::error, "the GPU refused a copy from VRAM; pages wanted", read.from_gpu.count());
    }
    QueueCounters::add(slot_.counters.read_errors, read.from_gpu.count());
    unpin(read);
    return IoStatus::io_error;
}

std::size_t StoreQueue::do_poll(std::span<BlockRequest*> done) {
    std::size_t n = 0;
    if (in_flight() == 0) return 0;
    // Goes on where the last poll stopped, so that a small `done` starves nobody.
    for (std::size_t looked = 0; looked < reads_.size() && n < done.size(); ++looked) {
        Read& read = reads_[next_look_];
        next_look_ = next_look_ + 1 == reads_.size() ? 0 : next_look_ + 1;
        if (!read.active) continue;
        const IoStatus status = advance(read);
        if (status == IoStatus::pending) continue;
        read.request->status = status;
        read.request->in_target = nullptr;
        done[n++] = read.request;
        read.active = false;
        idle_.push_back(&read);
    }
    return n;
}

/// Looks whether the copies are complete and right; copies again what is not.
IoStatus StoreQueue::advance(Read& read) {
    const IoStatus copied = gpu_->poll(read.ticket);
    if (copied == IoStatus::pending) return copied;
    if (copied == IoStatus::ok)
        for_each_piece(*read.request, [&](const Piece& piece) {
            check_piece(piece, read);
            return true;
        });
    if (read.from_gpu.none()) return IoStatus::ok;
    QueueCounters::add(slot_.counters.reread_pages, read.from_gpu.count());
    log_event(LogLevel::warning, "pages read from VRAM failed or did not match their checksum; pages",
              read.from_gpu.count());
    return start_copies(read);
}

/// Clears from `from_gpu` what is right now; unpins the chunk when nothing of it is left to copy.
void StoreQueue::check_piece(const Piece& piece, Read& read) {
    const std::uint32_t end = piece.at + piece.run.count;
    bool wanted = false;
    for (std::uint32_t i = piece.at; i < end; ++i) {
        if (!read.from_gpu.test(i)) continue;
        wanted = true;
        const PageIndex page{first_page(piece.chunk).n + piece.run.first + (i - piece.at)};
        digests_[i] = page_checksum(read.request->data + std::size_t{i} * kPageBytes, page);
    }
    if (!wanted) return;
    ChunkEntry& entry = parts_.state.chunks()[piece.chunk.n];
    const ChunkLock lock(entry);
    bool left = false;
    for (std::uint32_t i = piece.at; i < end; ++i) {
        if (!read.from_gpu.test(i)) continue;
        if (resolve(entry, piece, i - piece.at, digests_[i]))
            read.from_gpu.reset(i);
        else
            left = true;
    }
    if (left) return;
    --entry.pins;
    parts_.release_if_empty(entry);
}

/// Under the chunk's lock: true if the page's bytes are right, made so from what it became meanwhile if it
/// changed.
bool StoreQueue::resolve(const ChunkEntry& entry, const Piece& piece, std::uint32_t i,
                         std::uint64_t checksum) {
    const PageEntry& page = entry_of(piece, i);
    if (page.holds(checksum)) return true;
    std::byte* out = piece.data + std::size_t{i} * kPageBytes;
    if (page.state() == PageEntry::State::absent) {
        std::memset(out, 0, kPageBytes);
        return true;
    }
    const std::uint32_t p = piece.run.first + i;
    if (!entry.image.has() || !parts_.stage->header(entry.image.get()).valid.test(p)) return false;
    std::memcpy(out, parts_.stage->page(entry.image.get(), p), kPageBytes);
    return true;
}

void StoreQueue::unpin(const Read& read) {
    for_each_piece(*read.request, [&](const Piece& piece) {
        bool pinned = false;
        for (std::uint32_t i = 0; i < piece.run.count; ++i)
            pinned = pinned || read.from_gpu.test(piece.at + i);
        if (!pinned) return true;
        ChunkEntry& entry = parts_.state.chunks()[piece.chunk.n];
        const ChunkLock lock(entry);
        --entry.pins;
        parts_.release_if_empty(entry);
        return true;
    });
}

}  // namespace vramswap
