// SPDX-License-Identifier: MIT
#include "store/moves.h"

#include <algorithm>
#include <cstring>

#include "base/clock.h"
#include "base/death_point.h"
#include "base/log.h"
#include "store/checksum.h"
#include "store/page_memory.h"

namespace vramswap {
namespace {

constexpr std::uint32_t kTriesMax = 3;
constexpr std::uint32_t kPagesAtOnce = 8;  ///< checked under a lock; a writer of the chunk waits no longer
/// Narrower gaps between pages are read and written along: a disk does 64 KiB about as fast as a page.
constexpr std::uint32_t kGapPages = 16;
/// So many failed writes in a row, and nothing new is put into the spill.
constexpr std::uint64_t kSpillFailuresMax = 5;
constexpr std::uint64_t kRateWindowNs = 50'000'000;
/// So many moves given up in a row are a pause, which doubles with each more, to about a second.
constexpr std::uint32_t kGivenUpMany = 4;
constexpr std::uint64_t kPauseNs = 20'000'000;

/// These pages, and those in narrow gaps between them.
PageBits bridged(const PageBits& pages) {
    PageBits all = pages;
    std::uint32_t end = kChunkPages;
    pages.for_each_run([&](PageRun run) {
        if (end < run.first && run.first - end < kGapPages) all.set_run({end, run.first - end});
        end = run.first + run.count;
    });
    return all;
}

}  // namespace

Moves::Moves(StoreParts& parts, std::vector<std::unique_ptr<TransferQueue>> gpus,
             std::unique_ptr<SpillQueue> spill, std::uint32_t first_scratch)
    : parts_(parts),
      gpus_(std::move(gpus)),
      spill_(std::move(spill)),
      first_scratch_(first_scratch),
      scratch_chunks_(spill_ != nullptr || gpus_.size() > 1 ? kScratchChunks : 0) {}

Moves::~Moves() = default;  // the queues wait for what is in flight

void Moves::warm_up() const {
    for (const auto& gpu : gpus_) warm_up_thread(*gpu);
}

std::uint32_t Moves::in_flight(Kind kind) const {
    return static_cast<std::uint32_t>(std::ranges::count_if(
        moves_, [&](const Move& m) { return m.phase != Move::Phase::idle && m.kind == kind; }));
}

std::uint32_t Moves::leaving(std::uint32_t gpu) const {
    return static_cast<std::uint32_t>(std::ranges::count_if(moves_, [&](const Move& m) {
        const bool from_vram = m.kind != Kind::back && m.kind != Kind::flush;
        return m.phase != Move::Phase::idle && from_vram && parts_.slots.gpu_of(m.from) == gpu;
    }));
}

bool Moves::should_spin() const {
    return std::ranges::any_of(
        moves_, [this](const Move& m) { return m.phase != Move::Phase::idle && !uses_spill_now(m); });
}

// ---- beginning ----

Moves::Move* Moves::idle_move() {
    for (Move& move : moves_)
        if (move.phase == Move::Phase::idle) {
            move = Move{};
            return &move;
        }
    return nullptr;
}

bool Moves::take_scratch(Move& move) {
    for (std::uint32_t n = 0; n < scratch_chunks_; ++n) {
        if (scratch_taken_[n]) continue;
        scratch_taken_[n] = true;
        move.scratch = static_cast<std::int32_t>(n);
        move.memory = parts_.stage->scratch(first_scratch_ + n);
        return true;
    }
    return false;
}

/// Before it has begun: nothing but scratch memory was taken.
Moves::Begun Moves::refuse(Move& move, Begun why) {
    if (move.scratch >= 0) scratch_taken_[static_cast<std::size_t>(move.scratch)] = false;
    move = Move{};
    return why;
}

Moves::Begun Moves::begin_out(ChunkIndex chunk) {
    Move* const move = idle_move();
    if (move == nullptr || !take_scratch(*move)) return Begun::full;
    move->kind = Kind::out;
    move->chunk = chunk.n;
    if (!take_chunk(*move)) return refuse(*move, Begun::not_now);
    const IoStatus taken = parts_.spill->take(move->to);
    if (parts_.spill->needs_slots()) parts_.request_maintenance();
    if (taken != IoStatus::ok) {
        release_chunk(*move);
        end(*move);
        return Begun::no_room;
    }
    set_off(*move);
    return Begun::yes;
}

Moves::Begun Moves::begin_back(ChunkIndex chunk, std::uint32_t gpu) {
    Move* const move = idle_move();
    if (move == nullptr || !take_scratch(*move)) return Begun::full;
    move->kind = Kind::back;
    move->chunk = chunk.n;
    if (!take_chunk(*move)) return refuse(*move, Begun::not_now);
    return begin_to_gpu(*move, gpu);
}

Moves::Begun Moves::begin_across(ChunkIndex chunk, std::uint32_t gpu) {
    Move* const move = idle_move();
    if (move == nullptr || !take_scratch(*move)) return Begun::full;
    move->kind = Kind::across;
    move->chunk = chunk.n;
    if (!take_chunk(*move)) return refuse(*move, Begun::not_now);
    return begin_to_gpu(*move, gpu);
}

Moves::Begun Moves::begin_within(ChunkIndex chunk) {
    Move* const move = idle_move();
    if (move == nullptr) return Begun::full;
    move->kind = Kind::within;
    move->chunk = chunk.n;
    if (!take_chunk(*move)) return refuse(*move, Begun::not_now);
    return begin_to_gpu(*move, parts_.slots.gpu_of(move->from));
}

/// The chunk is taken: finds it a slot there.
Moves::Begun Moves::begin_to_gpu(Move& move, std::uint32_t gpu) {
    const auto slot = parts_.slots.take_on(gpu);
    if (!slot) {
        release_chunk(move);
        end(move);
        return Begun::no_room;
    }
    move.to = *slot;
    set_off(move);
    return Begun::yes;
}

/// Pins the chunk for the move, if its home is where the kind needs it and nobody writes there.
bool Moves::take_chunk(Move& move) {
    ChunkEntry& entry = parts_.state.chunks()[move.chunk];
    const ChunkLock lock(entry);
    const OptionalIndex& home = move.kind == Kind::back ? entry.spill : entry.slot;
    if (!home.has() || entry.moving != ChunkEntry::Moving::no || entry.flushing || entry.writing != 0 ||
        entry.stored == 0)
        return false;
    move.from = home.get();
    if (move.kind != Kind::within) move.pages = movable(entry, {move.chunk});  // within a GPU all is copied
    entry.moving = ChunkEntry::Moving::copying;
    ++entry.pins;
    move.phase = Move::Phase::fetching;
    ++in_flight_;
    return true;
}

/// Under the chunk's lock: what its home has and the image has no newer.
PageBits Moves::movable(const ChunkEntry& entry, ChunkIndex chunk) const {
    PageBits pages;
    const PageEntry* entries = &parts_.state.pages()[first_page(chunk).n];
    for (std::uint32_t p = 0; p < kChunkPages; ++p)
        if (entries[p].state() == PageEntry::State::stored) pages.set(p);
    if (entry.image.has()) pages.remove(parts_.stage->header(entry.image.get()).dirty);
    return pages;
}

Moves::Begun Moves::begin_flush(std::uint32_t image) {
    ImageHeader& h = parts_.stage->header(image);
    const std::uint32_t plus_one = h.chunk_plus_one.load(std::memory_order_acquire);
    if (plus_one == 0) return Begun::not_now;
    Move* const move = idle_move();
    if (move == nullptr) return Begun::full;
    {
        ChunkEntry& entry = parts_.state.chunks()[plus_one - 1];
        const ChunkLock lock(entry);
        if (!entry.image.has() || entry.image.get() != image || !h.dirty.any() || !entry.spill.has() ||
            entry.moving != ChunkEntry::Moving::no || entry.flushing)
            return Begun::not_now;
        move->to = entry.spill.get();
        move->pages = move->todo = h.dirty;
        static_cast<void>(StoreParts::freeze(h, move->pages));
        entry.flushing = true;
        ++entry.pins;
    }
    move->kind = Kind::flush;
    move->phase = Move::Phase::storing;
    move->chunk = plus_one - 1;
    move->image = image;
    move->memory = parts_.stage->page(image, 0);
    ++in_flight_;
    submit_spill(*move, RawIo::Op::write);
    return Begun::yes;
}

// ---- on the way ----

bool Moves::uses_spill_now(const Move& move) const {
    if (move.kind == Kind::flush) return true;  // it has but one phase
    return (move.kind == Kind::out && move.phase == Move::Phase::storing) ||
           (move.kind == Kind::back && move.phase == Move::Phase::fetching);
}

/// Between a slot of VRAM and the move's memory; from its first page to its last in one copy, since bytes
/// between them harm nobody.
Copy Moves::copy_of(Copy::Op op, const Move& move, std::uint32_t slot) const {
    const StoreParts::Place place = parts_.place(slot);
    const PageRun span = move.pages.span();
    const std::uint64_t at = span.first * kPageBytes;
    return {op, place.segment, place.offset + at, move.memory + at,
            static_cast<std::uint32_t>(span.count * kPageBytes)};
}

void Moves::submit_gpu(Move& move, std::uint32_t gpu, const Copy& copy) {
    move.gpu = gpu;
    move.failed = gpus_[gpu]->submit({&copy, 1}, move.ticket) != IoStatus::pending;
}

/// As many as the spill takes now.
void Moves::submit_spill(Move& move, RawIo::Op op) {
    while (move.todo.any() && move.spill_count < kRunsMax) {
        const std::uint32_t first = move.todo.next_set(0);
        const PageRun run{first, move.todo.next_clear(first) - first};
        const std::uint32_t slot = op == RawIo::Op::read ? move.from : move.to;
        Ticket& ticket = move.spill_tickets[move.spill_count];
        const IoStatus status = spill_->submit({op, slot, run, move.memory + run.first * kPageBytes}, ticket);
        if (status == IoStatus::retry) return;
        PageBits submitted;
        submitted.set_run(run);
        move.todo.remove(submitted);
        if (status == IoStatus::pending)
            ++move.spill_count;
        else
            move.failed = true;
    }
}

/// Nothing to copy is no reason not to move: the home changes all the same.
void Moves::set_off(Move& move) {
    move.failed = false;
    if (move.kind != Kind::within && !move.pages.any()) {
        move.phase = Move::Phase::leaving;
        return;
    }
    fetch(move);
}

void Moves::fetch(Move& move) {
    move.phase = Move::Phase::fetching;
    if (move.kind == Kind::back) {
        move.todo = bridged(move.pages);
        return submit_spill(move, RawIo::Op::read);
    }
    const StoreParts::Place from = parts_.place(move.from);
    if (move.kind != Kind::within)
        return submit_gpu(move, from.gpu, copy_of(Copy::Op::from_gpu, move, move.from));
    const StoreParts::Place to = parts_.place(move.to);
    move.phase = Move::Phase::storing;
    submit_gpu(
        move, from.gpu,
        {Copy::Op::within_gpu, from.segment, from.offset, nullptr, kChunkBytes, to.segment, to.offset});
}

/// What was fetched is right: to the new home with it.
void Moves::store(Move& move) {
    move.phase = Move::Phase::storing;
    move.failed = false;
    if (!move.pages.any()) {
        move.phase = Move::Phase::leaving;
    } else if (move.kind == Kind::out) {
        move.todo = bridged(move.pages);
        PageBits gaps = move.todo;
        gaps.remove(move.pages);
        gaps.for_each_run([&](PageRun run) {  // somebody else's pages, from an earlier move
            std::memset(move.memory + run.first * kPageBytes, 0, run.count * kPageBytes);
        });
        submit_spill(move, RawIo::Op::write);
    } else {
        submit_gpu(move, parts_.slots.gpu_of(move.to), copy_of(Copy::Op::to_gpu, move, move.to));
    }
}

/// pending, or how the copies of this phase ended.
IoStatus Moves::copied(Move& move) {
    if (!uses_spill_now(move)) return move.failed ? IoStatus::io_error : gpus_[move.gpu]->poll(move.ticket);
    IoStatus worst = IoStatus::ok;
    for (std::uint32_t n = 0; n < move.spill_count;) {
        const IoStatus status = spill_->poll(move.spill_tickets[n]);
        if (status == IoStatus::pending) {
            ++n;
            continue;
        }
        worst = worse(worst, status);
        move.spill_tickets[n] = move.spill_tickets[--move.spill_count];
    }
    if (worst != IoStatus::ok) move.failed = true;
    if (move.failed) move.todo.clear_all();
    const bool writing = move.phase == Move::Phase::storing;
    submit_spill(move, writing ? RawIo::Op::write : RawIo::Op::read);
    if (move.spill_count != 0 || move.todo.any()) return IoStatus::pending;
    const IoStatus status = move.failed ? IoStatus::io_error : IoStatus::ok;
    if (writing) note_spill_write(status);
    return status;
}

bool Moves::failed_lately(std::uint32_t chunk, std::uint64_t now) const {
    return std::ranges::any_of(failed_,
                               [&](const Failed& f) { return f.chunk == chunk && now < f.until_ns; });
}

bool Moves::advance(std::uint64_t now) {
    if (in_flight(Kind::within) != 0) counters_.ns_within.fetch_add(now - now_ns_, std::memory_order_relaxed);
    now_ns_ = now;
    bool happened = false;
    for (Move& move : moves_)
        if (move.phase != Move::Phase::idle) happened = advance(move) || happened;
    measure_rate(now);
    return happened;
}

bool Moves::advance(Move& move) {
    if (move.phase == Move::Phase::leaving) return change_home(move);
    const IoStatus status = copied(move);
    if (status == IoStatus::pending) return false;
    if (move.kind == Kind::flush) {
        finish_flush(move, status);
    } else if (status != IoStatus::ok) {
        fail(move);
    } else if (move.phase == Move::Phase::storing) {
        move.phase = Move::Phase::leaving;
        static_cast<void>(change_home(move));
    } else if (check(move)) {
        store(move);
    } else {
        fail(move);
    }
    return true;
}

/// Compares what was fetched with its checksums, and leaves out what has changed meanwhile: that is in the
/// image, or gone. False if a page that has not changed is wrong.
bool Moves::check(Move& move) {
    ChunkEntry& entry = parts_.state.chunks()[move.chunk];
    const PageIndex first_of_chunk = first_page({move.chunk});
    PageBits all = move.pages;
    bool right = true;
    std::uint32_t p = all.next_set(0);
    while (p < kChunkPages) {
        const ChunkLock lock(entry);
        for (std::uint32_t n = 0; n < kPagesAtOnce && p < kChunkPages; ++n, p = all.next_set(p + 1)) {
            const PageIndex index{first_of_chunk.n + p};
            const PageEntry& page = parts_.state.pages()[index.n];
            const std::byte* fetched = move.memory + p * kPageBytes;
            const bool stale = page.state() != PageEntry::State::stored ||
                               (entry.image.has() && parts_.stage->header(entry.image.get()).dirty.test(p));
            if (stale)
                move.pages.clear(p);
            else
                right = page.holds(page_checksum(fetched, index)) && right;
        }
    }
    return right;
}

// ---- endings ----

/// Again from the start, or given up: the chunk stays where it is.
void Moves::fail(Move& move) {
    log_event(LogLevel::warning, "moving a chunk failed, or its pages did not match their checksums; chunk",
              move.chunk);
    const bool spill_write = move.kind == Kind::out && move.phase == Move::Phase::storing;
    if (spill_write || ++move.tries >= kTriesMax) return give_up(move);
    {
        ChunkEntry& entry = parts_.state.chunks()[move.chunk];
        const ChunkLock lock(entry);
        move.pages = movable(entry, {move.chunk});
    }
    set_off(move);
}

void Moves::give_up(Move& move) {
    counters_.errors.fetch_add(1, std::memory_order_relaxed);
    failed_[next_failed_++ % failed_.size()] = {move.chunk, now_ns_ + kFailedLatelyNs};
    if (++given_up_in_row_ >= kGivenUpMany)
        not_before_ns_ = now_ns_ + (kPauseNs << std::min(given_up_in_row_ - kGivenUpMany, 6u));
    // The first failure may be that place's, those that follow at once are the disk's.
    const bool bad_slot =
        move.kind == Kind::out && move.phase == Move::Phase::storing && spill_failures_ == 1;
    release_chunk(move);
    if (move.kind != Kind::out)
        parts_.give_slot(move.to);
    else if (bad_slot)
        parts_.spill->retire(move.to);
    else if (move.phase == Move::Phase::fetching)
        parts_.spill->put_back(move.to);
    else
        parts_.spill->give_back(move.to);
    end(move);
}

/// It stays where it is. Wakes who has met it on the way.
void Moves::release_chunk(Move& move) {
    std::optional<std::uint32_t> carrier;
    {
        ChunkEntry& entry = parts_.state.chunks()[move.chunk];
        const ChunkLock lock(entry);
        carrier = let_go(entry);
    }
    if (carrier) parts_.kick(*carrier, true);
    parts_.notify_room();
}

/// Under the chunk's lock: the move is through with it. Who is to be told: the carrier of its image, if it
/// has one; for chunks without nobody waits but requests.
std::optional<std::uint32_t> Moves::let_go(ChunkEntry& entry) {
    std::optional<std::uint32_t> carrier;
    if (entry.image.has()) carrier = parts_.carrier_of(entry);
    entry.moving = ChunkEntry::Moving::no;
    --entry.pins;
    parts_.release_if_empty(entry);
    return carrier;
}

/// False while others have the chunk pinned; from then on it gets no new pins, so that they come to an end.
bool Moves::change_home(Move& move) {
    ChunkEntry& entry = parts_.state.chunks()[move.chunk];
    std::optional<std::uint32_t> carrier;
    {
        const ChunkLock lock(entry);
        entry.moving = ChunkEntry::Moving::leaving;
        if (entry.pins != 1) return false;
        // First the new one: whoever takes over finds a home at every instant, and both are whole.
        death_point("before the home changes");
        (move.kind == Kind::out ? entry.spill : entry.slot).set(move.to);
        death_point("two homes");
        if (move.kind == Kind::out) entry.slot.reset();
        if (move.kind == Kind::back) entry.spill.reset();
        death_point("the home has changed");
        if (entry.image.has())
            parts_.stage->header(entry.image.get())
                .carrier.store(parts_.carrier_of(entry), std::memory_order_relaxed);
        carrier = let_go(entry);
    }
    death_point("the old home is not given back");
    count(move);
    if (move.kind == Kind::back) {
        parts_.spill->give_back(move.from);
        if (parts_.spill->needs_slots()) parts_.request_maintenance();
    } else {
        parts_.give_slot(move.from);
    }
    end(move);
    if (carrier) parts_.kick(*carrier, true);
    parts_.notify_room();
    return true;
}

void Moves::finish_flush(Move& move, IoStatus status) {
    {
        ChunkEntry& entry = parts_.state.chunks()[move.chunk];
        ImageHeader& h = parts_.stage->header(move.image);
        const ChunkLock lock(entry);
        if (status == IoStatus::ok) {
            counters_.pages_flushed.fetch_add(move.pages.count(), std::memory_order_relaxed);
        } else {
            counters_.errors.fetch_add(1, std::memory_order_relaxed);
            PageBits again = h.in_flight;
            again.keep_only(h.valid);  // not what was discarded meanwhile
            h.dirty.add(again);
            parts_.mark_dirty(h, now_ns());
        }
        keep_order();
        death_point("pages have arrived in the spill");
        h.in_flight.clear_all();
        entry.flushing = false;
        --entry.pins;
        parts_.release_if_empty(entry);
    }
    end(move);
    parts_.notify_room();
}

void Moves::end(Move& move) {
    if (move.scratch >= 0) scratch_taken_[static_cast<std::size_t>(move.scratch)] = false;
    move = Move{};
    --in_flight_;
}

void Moves::note_spill_write(IoStatus status) {
    if (status == IoStatus::ok) {
        spill_failures_ = 0;
        parts_.refuse_spill_writes.store(false);
        return;
    }
    if (++spill_failures_ == kSpillFailuresMax)
        log_event(LogLevel::error, "writes to the spill fail: nothing new is put there. Failures in a row",
                  spill_failures_);
    if (spill_failures_ >= kSpillFailuresMax) parts_.refuse_spill_writes.store(true);
}

void Moves::count(const Move& move) {
    given_up_in_row_ = 0;
    const std::uint64_t bytes =
        move.kind == Kind::within ? kChunkBytes : std::uint64_t{move.pages.count()} * kPageBytes;
    switch (move.kind) {
        case Kind::out:
            counters_.bytes_out.fetch_add(bytes, std::memory_order_relaxed);
            window_bytes_ += kChunkBytes;  // what VRAM gets free by it
            break;
        case Kind::back:
            counters_.bytes_back.fetch_add(bytes, std::memory_order_relaxed);
            break;
        case Kind::within:
            counters_.bytes_within.fetch_add(bytes, std::memory_order_relaxed);
            break;
        case Kind::across:
            counters_.bytes_across.fetch_add(bytes, std::memory_order_relaxed);
            break;
        case Kind::flush:
            break;
    }
}

/// Over stretches of time in which chunks are always on their way out.
void Moves::measure_rate(std::uint64_t now) {
    if (in_flight(Kind::out) == 0) {
        window_began_ns_ = window_bytes_ = 0;
        return;
    }
    if (window_began_ns_ == 0) window_began_ns_ = now;
    if (now < window_began_ns_ + kRateWindowNs) return;
    const double seconds = static_cast<double>(now - window_began_ns_) / 1e9;
    counters_.rate_out.store(static_cast<std::uint64_t>(static_cast<double>(window_bytes_) / seconds),
                             std::memory_order_relaxed);
    window_began_ns_ = now;
    window_bytes_ = 0;
}

}  // namespace vramswap
