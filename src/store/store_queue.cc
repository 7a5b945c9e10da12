// SPDX-License-Identifier: MIT
#include "store/store_queue.h"

#include <algorithm>
#include <cstring>

#include "base/clock.h"
#include "base/death_point.h"
#include "base/log.h"
#include "store/checksum.h"

namespace vramswap {
namespace {
/// Digest of a page that is all zeros; a checksum has 56 bits and cannot equal it.
constexpr std::uint64_t kZeroPage = ~std::uint64_t{0};
/// Writes from this size on go straight to VRAM: copies of this size run at half of the full speed and more.
constexpr std::uint64_t kDirectBytesMin = 256u << 10;
/// A write is looked at and then copied in pieces that stay in the first-level cache meanwhile.
constexpr std::uint32_t kWritePiecePages = 4;
/// A write that fills a chunk waits for an image so often before it goes straight to VRAM. Each time an image
/// became free and another queue took it: the flusher works, and page by page nobody is faster.
constexpr std::uint32_t kWaitsMax = 16;
/// With fewer free slots in VRAM the mover makes room, if there is a spill.
constexpr std::uint32_t kFreeSlotsLow = 8;
}  // namespace

StoreQueue::StoreQueue(StoreParts& parts, std::vector<std::unique_ptr<TransferQueue>> gpus,
                       std::unique_ptr<SpillQueue> spill, QueueSlot& slot, std::uint32_t depth)
    : TargetQueue(Bytes{parts.state.header().device_bytes}),
      parts_(parts),
      gpus_(std::move(gpus)),
      spill_(std::move(spill)),
      slot_(slot),
      depth_(depth),
      flying_(depth),
      slow_(spill_ != nullptr ? depth : 0),
      copies_scratch_(gpus_.size()) {
    for (auto& copies : copies_scratch_) copies.reserve(2 * kPagesMax);
}

StoreQueue::~StoreQueue() {
    slot_.waiting.store(false);
    slot_.in_use.store(false);
}

IoStatus StoreQueue::do_submit(BlockRequest& request) {
    if (request.op == BlockRequest::Op::write && waits_.offset != request.offset)
        locality_.note(chunk_of(page_at(request.offset)));
    IoStatus status = attempt(request);
    if (status == IoStatus::retry) {
        // Room that appeared between the attempt and the registration would wake nobody: try once more after
        // it. The registration stays even if that goes well: an earlier request may wait by it too, and a
        // wake-up too many does no harm.
        slot_.waiting.store(true);
        status = attempt(request);
    }
    QueueCounters& c = slot_.counters;
    if (request.op == BlockRequest::Op::write) count_wait(request, status);
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
    if (request.op == BlockRequest::Op::write && is_final(status) && status != IoStatus::ok)
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
            return discard(request);
    }
    return IoStatus::io_error;
}

/// How often a request was told to retry. Of the last one only: who submits several in turn waits less often.
void StoreQueue::count_wait(const BlockRequest& request, IoStatus status) {
    if (status != IoStatus::retry) {
        waits_ = {};
    } else {
        waits_.count = waits_.offset == request.offset ? waits_.count + 1 : 1;
        waits_.offset = request.offset;
    }
}

bool StoreQueue::has_waited(const BlockRequest& request) const {
    return waits_.offset == request.offset && waits_.count >= kWaitsMax;
}

/// Under the chunk's lock.
bool StoreQueue::any_writing(const ChunkEntry& entry, const Piece& piece) const {
    if (entry.writing == 0) return false;
    for (std::uint32_t i = 0; i < piece.run.count; ++i)
        if (entry_of(piece, i).state() == PageEntry::State::writing) return true;
    return false;
}

// ---- writes ----

IoStatus StoreQueue::write(BlockRequest& request) {
    Transfer* transfer = nullptr;
    if (!is_full()) {
        transfer = &flying_.push();
        *transfer = Transfer{.request = &request};
    }
    prefetch_page(request.data);
    __builtin_prefetch(&parts_.state.pages()[page_at(request.offset).n], 1);
    IoStatus status = IoStatus::ok;
    for_each_piece(request, kWritePiecePages, [&](const Piece& piece) {
        status = write_piece(request, piece, transfer);
        return status == IoStatus::ok;
    });
    if (status == IoStatus::ok)
        QueueCounters::add(slot_.counters.zero_pages_written,
                           static_cast<std::uint64_t>(std::count(
                               digests_.begin(), digests_.begin() + request.bytes / kPageBytes, kZeroPage)));
    if (transfer == nullptr) return status;
    if (status == IoStatus::ok && transfer->pages.any()) {
        QueueCounters::add(slot_.counters.pages_written_direct, transfer->pages.count());
        transfer->since_ns = now_ns();
        ++collected_;
        return IoStatus::pending;
    }
    if (transfer->pages.any()) undo_direct(*transfer);
    flying_.undo_push();
    return status;
}

/// ok: the piece is in the stage, or in `transfer` (null: no room in the queue).
IoStatus StoreQueue::write_piece(const BlockRequest& request, const Piece& piece, Transfer* transfer) {
    bool all_zero = true;
    const std::byte* const end = request.data + request.bytes;
    for (std::uint32_t i = 0; i < piece.run.count; ++i) {
        const std::byte* page = piece.data + std::size_t{i} * kPageBytes;
        if (page + kPageBytes < end) prefetch_page(page + kPageBytes);
        const PageIndex index{first_page(piece.chunk).n + piece.run.first + i};
        const bool zero = is_zero_page(page);
        digests_[piece.at + i] = zero ? kZeroPage : page_checksum(page, index);
        all_zero = all_zero && zero;
    }
    bool full = false;
    std::uint32_t carrier = 0;
    ChunkEntry& entry = parts_.state.chunks()[piece.chunk.n];
    {
        const ChunkLock lock(entry);
        if (any_writing(entry, piece)) return IoStatus::retry;
        if (!all_zero && has_to_wait(entry, request, transfer)) {
            parts_.kick_all();
            return IoStatus::retry;
        }
        // Acknowledging a page without a home would promise what may not be kept.
        IoStatus status = all_zero ? IoStatus::ok : find_home(entry);
        if (status == IoStatus::ok && !all_zero && !entry.image.has()) {
            const bool must_stage = transfer == nullptr || !entry.slot.has() ||
                                    entry.moving != ChunkEntry::Moving::no || parts_.pacer.limits();
            const bool stage_it = must_stage || request.bytes < kDirectBytesMin;
            if (!stage_it || !find_image(entry, piece.chunk, must_stage ? Need::must : Need::wish)) {
                const bool wait = stage_it && locality_.clustered() && !has_waited(request);
                if (!must_stage && !wait) {
                    parts_.note_use(entry);
                    begin_direct(entry, piece, *transfer);
                    return IoStatus::ok;
                }
                status = IoStatus::retry;
            }
        }
        // Bytes on their way to VRAM do not change: what arrives there is one version, whole.
        if (status == IoStatus::ok && entry.image.has() && !all_zero &&
            parts_.stage->header(entry.image.get()).in_flight.next_set(piece.run.first) <
                piece.run.first + piece.run.count)
            status = IoStatus::retry;
        if (status == IoStatus::ok) stage_pages(entry, piece);
        if (status == IoStatus::ok && !all_zero) {
            const ImageHeader& h = parts_.stage->header(entry.image.get());
            full = h.dirty_pages.load() == kChunkPages;
            carrier = h.carrier.load(std::memory_order_relaxed);
            parts_.note_use(entry);
        }
        if (status != IoStatus::ok && entry.stored == 0 && entry.pins == 0 && entry.spill.has()) {
            const std::uint32_t for_nothing = entry.spill.get();
            entry.spill.reset();
            parts_.spill->put_back(for_nothing);
        }
        parts_.release_if_empty(entry);  // zeros only, or a slot taken for nothing
        if (status != IoStatus::ok) return status;
    }
    if (!all_zero) parts_.kick(carrier, full);
    return IoStatus::ok;
}

/// Under the chunk's lock. An image is needed, and there is none: to look for a home would only disturb.
bool StoreQueue::has_to_wait(const ChunkEntry& entry, const BlockRequest& request,
                             const Transfer* transfer) const {
    if (entry.image.has() || parts_.stage->free_images() != 0) return false;
    if (transfer == nullptr || entry.spill.has() || parts_.pacer.limits()) return true;
    return request.bytes < kDirectBytesMin && locality_.clustered() && !has_waited(request);
}

/// Under the chunk's lock. In VRAM as long as there is some to be had.
IoStatus StoreQueue::find_home(ChunkEntry& entry) {
    if (entry.spill.has() && parts_.refuse_spill_writes.load(std::memory_order_relaxed))
        return IoStatus::io_error;
    if (entry.slot.has() && is_refused(entry.slot.get())) return IoStatus::io_error;
    if (entry.has_home()) return IoStatus::ok;
    auto slot = parts_.slots.take();
    if (slot && is_refused(*slot)) {
        parts_.give_slot(*slot);
        slot = take_from_another();
        if (!slot) return parts_.spill == nullptr ? IoStatus::io_error : find_place_in_spill(entry);
    }
    if (!slot) parts_.slot_missing.store(true);
    const std::uint32_t left = parts_.slots.free_slots();
    if (left < parts_.slots.slots_per_segment() / 2 + 1) parts_.request_maintenance();
    if (parts_.spill != nullptr && left < kFreeSlotsLow) parts_.kick(kSpillCarrier, true);
    if (slot) {
        death_point("slot taken");
        entry.slot.set(*slot);
        death_point("slot known");
        return IoStatus::ok;
    }
    return parts_.growth_failed.load() ? find_place_in_spill(entry) : IoStatus::retry;
}

bool StoreQueue::is_refused(std::uint32_t slot) const {
    return parts_.refuse_writes[parts_.slots.gpu_of(slot)].load(std::memory_order_relaxed);
}

/// A slot of a GPU that takes writes.
std::optional<std::uint32_t> StoreQueue::take_from_another() const {
    for (std::uint32_t gpu = 0; gpu < parts_.gpus; ++gpu) {
        if (parts_.refuse_writes[gpu].load(std::memory_order_relaxed)) continue;
        if (const auto slot = parts_.slots.take_on(gpu)) return slot;
    }
    return {};
}

/// Under the chunk's lock.
IoStatus StoreQueue::find_place_in_spill(ChunkEntry& entry) {
    if (parts_.spill == nullptr || parts_.refuse_spill_writes.load(std::memory_order_relaxed))
        return IoStatus::no_space;
    std::uint32_t slot = 0;
    const IoStatus status = parts_.spill->take(slot);
    if (parts_.spill->needs_slots()) parts_.request_maintenance();
    if (status == IoStatus::ok) {
        death_point("spill slot taken");
        entry.spill.set(slot);
    }
    return status;
}

/// Under the chunk's lock. REQUIRES: a home. False if there is none, or none for scattered writes that could
/// do without.
bool StoreQueue::find_image(ChunkEntry& entry, ChunkIndex chunk, Need need) {
    if (need == Need::wish && !locality_.clustered() &&
        parts_.stage->free_images() <= parts_.stage->free_images_low())
        return false;
    const auto image = parts_.stage->take(chunk);
    if (!image) {
        parts_.kick_all();
        return false;
    }
    parts_.stage->header(*image).carrier.store(parts_.carrier_of(entry), std::memory_order_relaxed);
    entry.image.set(*image);
    death_point("image known");
    return true;
}

/// Under the chunk's lock. REQUIRES: an image, unless all pages are zero.
void StoreQueue::stage_pages(ChunkEntry& entry, const Piece& piece) {
    bool dirtied = false;
    for (std::uint32_t i = 0; i < piece.run.count; ++i) {
        const std::uint32_t p = piece.run.first + i;
        const std::uint64_t digest = digests_[piece.at + i];
        if (digest == kZeroPage) {
            parts_.forget_page(piece.chunk, p);
            continue;
        }
        const std::uint32_t image = entry.image.get();
        stream_page(parts_.stage->page(image, p), piece.data + std::size_t{i} * kPageBytes);
        ImageHeader& h = parts_.stage->header(image);
        death_point("bytes staged");
        h.valid.set(p);
        death_point("page valid");
        h.dirty.set(p);
        death_point("page dirty");
        PageEntry& page = entry_of(piece, i);
        if (page.state() == PageEntry::State::absent) ++entry.stored;
        page.store(digest);
        death_point("page stored");
        dirtied = true;
    }
    if (dirtied) parts_.mark_dirty(parts_.stage->header(entry.image.get()), now_ns());
}

/// Under the chunk's lock. From here on nobody else reads, writes or discards these pages.
/// REQUIRES: a slot, no image, none of the pages in the state writing.
void StoreQueue::begin_direct(ChunkEntry& entry, const Piece& piece, Transfer& transfer) {
    for (std::uint32_t i = 0; i < piece.run.count; ++i) {
        const std::uint64_t digest = digests_[piece.at + i];
        if (digest == kZeroPage) {
            parts_.forget_page(piece.chunk, piece.run.first + i);
            continue;
        }
        PageEntry& page = entry_of(piece, i);
        old_words_[piece.at + i] = page.load();
        if (page.state() == PageEntry::State::absent) ++entry.stored;
        page.set(PageEntry::word_of(PageEntry::State::writing, digest));
        death_point("page being written");
        ++entry.writing;
        ++entry.pins;
        transfer.pages.set(piece.at + i);
    }
}

/// Ends the state writing of the transfer's pages. `word_of_page(n, entry)`: what the entry of page n of the
/// request becomes.
template <typename WordOfPage>
void StoreQueue::leave_writing(const Transfer& transfer, WordOfPage word_of_page) {
    for_each_wanted_piece(*transfer.request, transfer.pages, [&](const Piece& piece) {
        ChunkEntry& entry = parts_.state.chunks()[piece.chunk.n];
        const ChunkLock lock(entry);
        for (std::uint32_t i = 0; i < piece.run.count; ++i) {
            if (!transfer.pages.test(piece.at + i)) continue;
            PageEntry& page = entry_of(piece, i);
            page.set(word_of_page(piece.at + i, page));
            death_point("page no longer being written");
            if (page.state() == PageEntry::State::absent) --entry.stored;
            --entry.writing;
            --entry.pins;
        }
        parts_.release_if_empty(entry);
    });
}

/// Before anything was submitted: the pages are again what they were.
void StoreQueue::undo_direct(Transfer& transfer) {
    leave_writing(transfer, [this](std::uint32_t n, const PageEntry&) { return old_words_[n]; });
    transfer.pages.reset();
    parts_.notify_room(&slot_);  // nothing changed for this queue: woken, it would only try again and again
}

/// The pages become stored, or lost if what VRAM has of them is unknown.
IoStatus StoreQueue::end_direct(Transfer& transfer, PageEntry::State outcome) {
    leave_writing(transfer, [outcome](std::uint32_t, const PageEntry& page) {
        return PageEntry::word_of(outcome, page.load());
    });
    parts_.notify_room();
    return outcome == PageEntry::State::stored ? IoStatus::ok : IoStatus::io_error;
}

// ---- discards ----

IoStatus StoreQueue::discard(const BlockRequest& request) {
    BlockRequest without_data = request;
    without_data.data = nullptr;
    IoStatus status = IoStatus::ok;
    for_each_piece(without_data, kChunkPages, [&](const Piece& piece) {
        ChunkEntry& entry = parts_.state.chunks()[piece.chunk.n];
        const ChunkLock lock(entry);
        if (any_writing(entry, piece)) {
            status = IoStatus::retry;
            return false;
        }
        if (entry.stored == 0) return true;
        for (std::uint32_t i = 0; i < piece.run.count; ++i)
            parts_.forget_page(piece.chunk, piece.run.first + i);
        parts_.release_if_empty(entry);
        return true;
    });
    return status;
}

// ---- reads ----

IoStatus StoreQueue::read(BlockRequest& request) {
    if (is_full()) return IoStatus::retry;
    Transfer& transfer = flying_.push();
    transfer = Transfer{.request = &request};
    IoStatus status = IoStatus::ok;
    Found found;
    for_each_piece(request, kChunkPages, [&](const Piece& piece) {
        status = worse(status, look_up(piece, transfer.pages, found));
        return true;
    });
    QueueCounters& c = slot_.counters;
    if (status == IoStatus::ok) QueueCounters::add(c.pages_read_stage, found.staged);
    if (status == IoStatus::ok && transfer.pages.any()) {
        QueueCounters::add(c.pages_read_gpu, transfer.pages.count() - found.from_spill);
        transfer.since_ns = now_ns();
        parts_.pacer.charge(transfer.pages.count() * kPageBytes, transfer.since_ns);
        if (found.from_spill == 0) {
            ++collected_;
            return IoStatus::pending;
        }
        QueueCounters::add(c.pages_read_spill, found.from_spill);
        begin_slow(transfer);
        flying_.undo_push();
        return IoStatus::pending;
    }
    unpin(transfer);
    flying_.undo_push();
    return status;
}

/// Serves what needs no copy and counts what the stage had; marks the rest in `from_home` and pins the chunk
/// for it. ok, lost, or retry if a page is just being written, or the chunk's home is about to change.
IoStatus StoreQueue::look_up(const Piece& piece, RequestPages& from_home, Found& found) {
    ChunkEntry& entry = parts_.state.chunks()[piece.chunk.n];
    IoStatus status = IoStatus::ok;
    bool pinned = false;
    const ChunkLock lock(entry);
    const bool leaving = entry.moving == ChunkEntry::Moving::leaving;
    const std::uint32_t spilled = entry.spill.has() ? 1 : 0;
    parts_.note_use(entry);
    // The chunk entry alone tells that all is at home: the page entries are far away in memory, and are
    // looked at while the GPU copies.
    if (entry.stored == kChunkPages && entry.writing == 0 && entry.has_home() && !entry.image.has() &&
        !leaving) {
        for (std::uint32_t i = 0; i < piece.run.count; ++i) from_home.set(piece.at + i);
        found.from_spill += spilled * piece.run.count;
        ++entry.pins;
        return status;
    }
    for (std::uint32_t i = 0; i < piece.run.count; ++i) {
        std::byte* out = piece.data + std::size_t{i} * kPageBytes;
        const std::uint32_t p = piece.run.first + i;
        switch (entry_of(piece, i).state()) {
            case PageEntry::State::absent:
                std::memset(out, 0, kPageBytes);
                continue;
            case PageEntry::State::lost:
                status = worse(status, IoStatus::lost);
                continue;
            case PageEntry::State::writing:
                status = worse(status, IoStatus::retry);
                continue;
            case PageEntry::State::stored:
                break;
        }
        if (entry.image.has() && parts_.stage->header(entry.image.get()).valid.test(p)) {
            std::memcpy(out, parts_.stage->page(entry.image.get(), p), kPageBytes);
            ++found.staged;
            continue;
        }
        if (leaving) {
            status = worse(status, IoStatus::retry);
            continue;
        }
        from_home.set(piece.at + i);
        found.from_spill += spilled;
        if (!pinned) ++entry.pins;
        pinned = true;
    }
    return status;
}

/// Clears from the read's pages what is right now; unpins the chunk when nothing of it is left to copy.
void StoreQueue::check_piece(const Piece& piece, Transfer& transfer) {
    const std::uint32_t end = piece.at + piece.run.count;
    for (std::uint32_t i = piece.at; i < end; ++i) {
        if (!transfer.pages.test(i)) continue;
        const PageIndex page{first_page(piece.chunk).n + piece.run.first + (i - piece.at)};
        digests_[i] = page_checksum(transfer.request->data + std::size_t{i} * kPageBytes, page);
    }
    ChunkEntry& entry = parts_.state.chunks()[piece.chunk.n];
    const ChunkLock lock(entry);
    bool left = false;
    for (std::uint32_t i = piece.at; i < end; ++i) {
        if (!transfer.pages.test(i)) continue;
        if (resolve(entry, piece, i - piece.at, digests_[i], transfer.lost))
            transfer.pages.reset(i);
        else
            left = true;
    }
    if (left) return;
    --entry.pins;
    parts_.release_if_empty(entry);
}

/// Under the chunk's lock: true if the page's bytes are right, made so from what it became meanwhile if it
/// changed, or if there is nothing to be had.
bool StoreQueue::resolve(const ChunkEntry& entry, const Piece& piece, std::uint32_t i, std::uint64_t checksum,
                         bool& lost) {
    const PageEntry& page = entry_of(piece, i);
    if (page.holds(checksum)) return true;
    if (page.state() == PageEntry::State::lost) return lost = true;
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

void StoreQueue::unpin(const Transfer& transfer) {
    for_each_wanted_piece(*transfer.request, transfer.pages, [&](const Piece& piece) {
        ChunkEntry& entry = parts_.state.chunks()[piece.chunk.n];
        const ChunkLock lock(entry);
        --entry.pins;
        parts_.release_if_empty(entry);
    });
}

}  // namespace vramswap
