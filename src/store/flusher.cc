// SPDX-License-Identifier: MIT
#include "store/flusher.h"

#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstring>

#include "base/clock.h"
#include "base/death_point.h"
#include "base/log.h"

namespace vramswap {
namespace {
constexpr std::uint32_t kFailuresBeforeRefusing = 5;
constexpr std::uint64_t kPauseMaxNs = 1'000'000'000;
/// So long the thread spins while no flight ends.
constexpr std::uint64_t kSpinNs = 200'000;
/// A look again at an image whose chunk is being moved; the mover kicks when it is done.
constexpr std::uint64_t kMovingNs = 1'000'000;
}  // namespace

Flusher::Flusher(StoreParts& parts, FlusherParts own)
    : parts_(parts),
      gpu_(own.gpu),
      to_gpu_(std::move(own.to_gpu)),
      from_gpu_(std::move(own.from_gpu)),
      age_ns_max_(own.age_ns_max),
      costs_(own.costs),
      free_images_low_(parts.stage->free_images_low()),
      mergers_(parts, own.mergers, own.first_scratch),
      flying_(parts.stage->images(), 0),
      event_fd_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
    due_.reserve(parts.stage->images());
    young_.reserve(parts.stage->images());
    copies_scratch_.reserve(kCopiesEnough + kChunkPages);
}

Flusher::~Flusher() {
    stop();
}

Result<void> Flusher::start() {
    if (auto started = mergers_.start(); !started) return started;
    stopping_.store(false);
    auto started = thread_.start(
        "vs-flusher", [](void* self) { static_cast<Flusher*>(self)->run(); }, this);
    if (!started) mergers_.stop();
    return started;
}

void Flusher::stop() {
    if (!thread_.is_started()) return;
    stopping_.store(true);
    kick(true);
    thread_.join();
    mergers_.stop();
}

void Flusher::run() {
    std::uint64_t busy_since = 0;
    warm_up_thread(*to_gpu_);
    warm_up_thread(*from_gpu_);
    while (!stopping_.load(std::memory_order_relaxed)) {
        const std::uint64_t now = now_ns();
        const std::uint64_t next = step(now);
        if (next != kNow) {
            busy_since = 0;
            sleep_until(next);
            continue;
        }
        if (busy_since == 0) busy_since = now;
        if (now - busy_since < kSpinNs) {
            if (await_flight(now)) busy_since = 0;
        } else {  // a slow or hung GPU, or a slow merger: do not burn the CPU
            constexpr timespec kNap{0, 50'000};
            ::ppoll(nullptr, 0, &kNap, nullptr);
        }
    }
}

/// Looks for the end of a flight for a moment, and at nothing else: looking at the images takes their lines
/// from those who write to them. False if none ended.
bool Flusher::await_flight(std::uint64_t since) {
    constexpr std::uint64_t kMomentNs = 10'000;
    do {
        if (std::ranges::any_of(flights_, [this](const Flight& f) { return has_news(f); })) return true;
        cpu_relax();
    } while (now_ns() - since < kMomentNs);
    return false;
}

/// Its copies have ended, or its merger has.
bool Flusher::has_news(const Flight& flight) const {
    switch (flight.phase) {
        case Flight::Phase::idle:
            return false;
        case Flight::Phase::fetching:
            return from_gpu_->poll(flight.ticket) != IoStatus::pending;
        case Flight::Phase::merging:
            return flight.merge->is_done();
        case Flight::Phase::sending:
            return to_gpu_->poll(flight.ticket) != IoStatus::pending;
    }
    return true;
}

void Flusher::sleep_until(std::uint64_t when) {
    sleep_.store(when == kNever ? idle : dozing, std::memory_order_seq_cst);
    // What happened before the store above was visible would go unnoticed: look again.
    if (stopping_.load() || (when == kNever && (anything_dirty() || wants_to_drain()))) {
        sleep_.store(awake, std::memory_order_seq_cst);
        return;
    }
    timespec timeout{};
    if (when != kNever) {
        const std::uint64_t now = now_ns();
        const std::uint64_t wait = when > now ? when - now : 0;
        timeout.tv_sec = static_cast<time_t>(wait / 1'000'000'000);
        timeout.tv_nsec = static_cast<long>(wait % 1'000'000'000);
    }
    pollfd event{event_fd_.get(), POLLIN, 0};
    ::ppoll(&event, 1, when == kNever ? nullptr : &timeout, nullptr);
    std::uint64_t count = 0;
    [[maybe_unused]] const auto n = ::read(event_fd_.get(), &count, sizeof count);
    sleep_.store(awake, std::memory_order_seq_cst);
}

void Flusher::kick(bool urgent) noexcept {
    const int state = sleep_.load(std::memory_order_seq_cst);
    if (state == awake || (state == dozing && !urgent)) return;
    if (sleep_.exchange(awake, std::memory_order_seq_cst) == awake) return;
    constexpr std::uint64_t kOne = 1;
    [[maybe_unused]] const auto n = ::write(event_fd_.get(), &kOne, sizeof kOne);
}

bool Flusher::anything_dirty() const {
    for (std::uint32_t i = 0; i < parts_.stage->images(); ++i)
        if (is_mine(i) && parts_.stage->header(i).dirty_pages.load(std::memory_order_seq_cst) != 0)
            return true;
    return false;
}

bool Flusher::wants_to_drain() const {
    if (!draining_.load()) return false;
    for (std::uint32_t i = 0; i < parts_.stage->images(); ++i)
        if (is_mine(i) && parts_.stage->header(i).chunk_plus_one.load(std::memory_order_relaxed) != 0)
            return true;
    return false;
}

std::uint64_t Flusher::step(std::uint64_t now) {
    finish_flights(now);
    free_clean_images();
    const std::uint64_t next = start_flights(now);
    const bool busy =
        std::ranges::any_of(flights_, [](const Flight& f) { return f.phase != Flight::Phase::idle; });
    // With nothing left to repeat, no flush would ever succeed and end the refusal: the next write is the
    // trial. It is kept in the stage, and one more failure refuses again.
    if (!busy && next == kNever && failures_in_row_ != 0) parts_.refuse_writes[gpu_].store(false);
    return busy ? kNow : next;
}

// ---- what is to be sent ----

/// Fills due_ and young_ with dirty images that are in no flight. Returns when the next of the young is due.
std::uint64_t Flusher::find_due(std::uint64_t now) {
    due_.clear();
    young_.clear();
    const bool draining = draining_.load(std::memory_order_relaxed);
    std::uint64_t next = kNever;
    for (std::uint32_t i = 0; i < parts_.stage->images(); ++i) {
        const ImageHeader& h = parts_.stage->header(i);
        const std::uint32_t dirty = h.dirty_pages.load(std::memory_order_relaxed);
        if (dirty == 0 || in_flight(i) || !is_mine(i)) continue;
        std::uint64_t due = now;
        if (!draining && dirty < kChunkPages)
            due = h.dirty_since_ns.load(std::memory_order_relaxed) + age_ns_max_;
        due = std::max(due, not_before_ns_);
        (due > now ? young_ : due_).push_back(i);
        if (due > now) next = std::min(next, due);
    }
    return next;
}

/// When images run short, the oldest of the young are due too: as many as are missing, so that others fill up
/// meanwhile.
void Flusher::add_oldest_due() {
    // Free, clean, on their way or due: they are free or will be soon. Not so those that are completed: as
    // many more are sent, or there would never be one for each merger.
    const std::uint32_t coming = parts_.stage->images() - static_cast<std::uint32_t>(young_.size()) -
                                 std::min(images_with_mergers(), mergers_.threads());
    if (coming >= free_images_low_) return;
    const auto since = [this](std::uint32_t i) {
        return parts_.stage->header(i).dirty_since_ns.load(std::memory_order_relaxed);
    };
    std::ranges::sort(young_, [&](std::uint32_t a, std::uint32_t b) { return since(a) < since(b); });
    const std::size_t missing = std::min<std::size_t>(free_images_low_ - coming, young_.size());
    due_.insert(due_.end(), young_.begin(), young_.begin() + static_cast<std::ptrdiff_t>(missing));
}

/// The pages that one set of copies brings to VRAM: the dirty ones, and what lies in narrow gaps between them
/// and may be sent too. Under the chunk's lock.
PageBits Flusher::bridged(const ImageHeader& header, ChunkIndex chunk) const {
    PageBits sent = header.dirty;
    if (parts_.state.chunks()[chunk.n].writing != 0) return sent;  // somebody else writes to this slot
    const std::uint32_t gap_max = costs_.gap_pages(parts_.mode.load(std::memory_order_relaxed));
    const PageEntry* pages = &parts_.state.pages()[first_page(chunk).n];
    std::uint32_t end = kChunkPages;  // of the run before
    header.dirty.for_each_run([&](PageRun run) {
        bool harmless = end < run.first && run.first - end <= gap_max;
        for (std::uint32_t p = end; harmless && p < run.first; ++p)
            harmless = header.valid.test(p) || pages[p].state() == PageEntry::State::absent;
        if (harmless) sent.set_run({end, run.first - end});
        end = run.first + run.count;
    });
    return sent;
}

/// The span to be fetched and sent in one piece if that is cheaper than a copy for each run; else count 0.
/// Under the chunk's lock.
PageRun Flusher::worth_completing(const PageBits& sent, const ImageHeader& header, ChunkIndex chunk) const {
    // After a failure the plain way: it needs less to go well.
    if (failures_in_row_ != 0 || parts_.state.chunks()[chunk.n].writing != 0) return {};
    std::uint64_t runs = 0;
    sent.for_each_run([&runs](PageRun) { ++runs; });
    const PageRun span = sent.span();
    const EngineMode mode = parts_.mode.load(std::memory_order_relaxed);
    const std::uint64_t in_runs = costs_.copies_ns(mode, runs, sent.count());
    const std::uint64_t there_and_back = 2 * costs_.copies_ns(mode, 1, span.count);
    if (in_runs <= there_and_back) return {};
    const PageEntry* pages = &parts_.state.pages()[first_page(chunk).n];
    std::uint64_t missing = 0;
    for (std::uint32_t p = span.first; p < span.first + span.count; ++p)
        if (!header.valid.test(p) && pages[p].state() != PageEntry::State::absent) ++missing;
    const std::uint64_t merging = missing * costs_.merge_page_ns;
    // Mergers work side by side, and while other images are being copied.
    const std::uint64_t completed = mergers_.threads() == 0
                                        ? there_and_back + merging
                                        : std::max(there_and_back, merging / mergers_.threads());
    return completed < in_runs ? span : PageRun{};
}

// ---- flights ----

/// Images that are being fetched or merged.
std::uint32_t Flusher::images_with_mergers() const {
    return static_cast<std::uint32_t>(
        std::ranges::count_if(flights_, [](const Flight& f) { return f.merge != nullptr; }));
}

Flusher::Flight* Flusher::idle_flight() {
    for (Flight& flight : flights_)
        if (flight.phase == Flight::Phase::idle) return &flight;
    return nullptr;
}

/// Starts what is due; returns when the next image will be.
std::uint64_t Flusher::start_flights(std::uint64_t now) {
    std::uint64_t next = find_due(now);
    if (not_before_ns_ <= now) add_oldest_due();
    if (const std::uint64_t paced = parts_.pacer.not_before(now); paced != 0 && !due_.empty()) return paced;
    moving_met_ = false;
    const EngineMode mode = parts_.mode.load(std::memory_order_relaxed);
    to_gpu_->set_mode(mode);
    from_gpu_->set_mode(mode);
    for (std::size_t n = 0; n < due_.size();) {
        Flight* flight = idle_flight();
        if (flight == nullptr) return kNow;
        n = start_flight(*flight, n, now);
        if (not_before_ns_ > now) return not_before_ns_;
    }
    if (moving_met_) next = std::min(next, now + kMovingNs);
    return next;
}

/// Puts images from number `n` of due_ on into a flight and starts it. Returns the number of the next.
std::size_t Flusher::start_flight(Flight& flight, std::size_t n, std::uint64_t now) {
    copies_scratch_.clear();
    bytes_scratch_ = 0;
    flight.count = 0;
    flight.merge = nullptr;
    for (; n < due_.size() && flight.count < kLoadsMax; ++n) {
        if (copies_scratch_.size() >= kCopiesEnough || bytes_scratch_ >= kBytesEnough) break;
        const Begun begun = begin(flight, due_[n]);
        moving_met_ = moving_met_ || begun == Begun::later;
        if (begun == Begun::alone) break;
        if (flight.merge != nullptr) {
            ++n;
            break;
        }
    }
    if (flight.count == 0) return n;
    parts_.pacer.charge(bytes_scratch_, now);
    TransferQueue& queue = flight.merge != nullptr ? *from_gpu_ : *to_gpu_;
    flight.phase = flight.merge != nullptr ? Flight::Phase::fetching : Flight::Phase::sending;
    if (queue.submit(copies_scratch_, flight.ticket) == IoStatus::pending)
        copies_.fetch_add(copies_scratch_.size(), std::memory_order_relaxed);
    else
        finish(flight, IoStatus::io_error, now);
    return n;
}

/// Takes one image into the flight and lists its copies. `alone`: it needs a flight of its own.
Flusher::Begun Flusher::begin(Flight& flight, std::uint32_t image) {
    ImageHeader& h = parts_.stage->header(image);
    const std::uint32_t plus_one = h.chunk_plus_one.load(std::memory_order_acquire);
    if (plus_one == 0) return Begun::no;  // freed meanwhile
    const ChunkIndex chunk{plus_one - 1};
    ChunkEntry& entry = parts_.state.chunks()[chunk.n];
    const ChunkLock lock(entry);
    if (!entry.image.has() || entry.image.get() != image || !h.dirty.any() || !is_mine(image))
        return Begun::no;
    if (entry.moving != ChunkEntry::Moving::no) return Begun::later;
    const PageBits sent = bridged(h, chunk);
    const PageRun span = worth_completing(sent, h, chunk);
    Merge* const merge = span.count != 0 ? mergers_.idle() : nullptr;
    if (span.count != 0 && merge == nullptr) return Begun::no;  // its turn comes with a later step
    if (span.count != 0 && flight.count != 0) return Begun::alone;
    Load& load = flight.loads[flight.count++];
    load = {image, chunk.n, 0};
    if (merge != nullptr) {
        PageBits all;
        all.set_run(span);
        list_copies(Copy::Op::from_gpu, load, all, merge->scratch);
        merge->image = image;
        merge->chunk = chunk.n;
        merge->fetched = span;
        merge->state.store(Merge::State::fetching, std::memory_order_relaxed);
        flight.merge = merge;
    } else {
        pages_bridged_.fetch_add(sent.count() - h.dirty.count(), std::memory_order_relaxed);
        load.dirty = StoreParts::freeze(h, sent);
        list_copies(Copy::Op::to_gpu, load, sent, parts_.stage->page(image, 0));
    }
    ++entry.pins;
    entry.flushing = true;
    flying_[image] = 1;
    return Begun::yes;
}

/// Adds a copy for each run of these pages between the chunk in VRAM and its `host` memory. REQUIRES: a slot
/// that stays.
void Flusher::list_copies(Copy::Op op, const Load& load, const PageBits& pages, std::byte* host) {
    const StoreParts::Place place = parts_.place(parts_.state.chunks()[load.chunk].slot.get());
    pages.for_each_run([&](PageRun run) {
        const std::uint64_t at = run.first * kPageBytes;
        const std::uint64_t bytes = run.count * kPageBytes;
        copies_scratch_.push_back(
            {op, place.segment, place.offset + at, host + at, static_cast<std::uint32_t>(bytes)});
        bytes_scratch_ += bytes;
    });
}

void Flusher::finish_flights(std::uint64_t now) {
    for (Flight& flight : flights_) {
        if (flight.phase == Flight::Phase::idle) continue;
        const IoStatus status = advance(flight);
        if (status != IoStatus::pending) finish(flight, status, now);
    }
}

/// Goes from fetching to merging to sending as far as it is. pending, or how the flight ended.
IoStatus Flusher::advance(Flight& flight) {
    if (flight.phase == Flight::Phase::sending) return to_gpu_->poll(flight.ticket);
    if (flight.phase == Flight::Phase::fetching) {
        const IoStatus fetched = from_gpu_->poll(flight.ticket);
        if (fetched != IoStatus::ok) return fetched;
        mergers_.hand_over(*flight.merge);
        flight.phase = Flight::Phase::merging;
    }
    return flight.merge->is_done() ? send_completed(flight) : IoStatus::pending;
}

/// Its gaps are filled: sends it whole.
IoStatus Flusher::send_completed(Flight& flight) {
    Load& load = flight.loads[0];
    load.dirty = flight.merge->dirty;
    copies_scratch_.clear();
    list_copies(Copy::Op::to_gpu, load, flight.merge->sent, parts_.stage->page(load.image, 0));
    release_merge(flight);
    if (to_gpu_->submit(copies_scratch_, flight.ticket) != IoStatus::pending) return IoStatus::io_error;
    copies_.fetch_add(copies_scratch_.size(), std::memory_order_relaxed);
    completed_images_.fetch_add(1, std::memory_order_relaxed);
    flight.phase = Flight::Phase::sending;
    return IoStatus::pending;
}

void Flusher::release_merge(Flight& flight) {
    if (flight.merge == nullptr) return;
    flight.merge->state.store(Merge::State::idle, std::memory_order_relaxed);
    flight.merge = nullptr;
}

void Flusher::finish(Flight& flight, IoStatus status, std::uint64_t now) {
    for (std::uint32_t n = 0; n < flight.count; ++n) {
        finish_load(flight.loads[n], status, now);
        flying_[flight.loads[n].image] = 0;
    }
    release_merge(flight);
    flight.phase = Flight::Phase::idle;
    if (status == IoStatus::ok) {
        if (failures_in_row_ != 0) parts_.refuse_writes[gpu_].store(false);
        failures_in_row_ = 0;
    } else {
        note_failure(now);
    }
    parts_.notify_room();
}

void Flusher::finish_load(const Load& load, IoStatus status, std::uint64_t now) {
    ChunkEntry& entry = parts_.state.chunks()[load.chunk];
    ImageHeader& h = parts_.stage->header(load.image);
    const ChunkLock lock(entry);
    if (status == IoStatus::ok) {
        pages_flushed_.fetch_add(load.dirty, std::memory_order_relaxed);
    } else {
        PageBits again = h.in_flight;
        again.keep_only(h.valid);  // not what was discarded meanwhile
        h.dirty.add(again);
        parts_.mark_dirty(h, now);
    }
    keep_order();
    death_point("pages have arrived");
    h.in_flight.clear_all();
    death_point("pages no longer in flight");
    entry.flushing = false;
    --entry.pins;
    parts_.release_if_empty(entry);
}

void Flusher::note_failure(std::uint64_t now) {
    errors_.fetch_add(1, std::memory_order_relaxed);
    ++failures_in_row_;
    log_event(LogLevel::error, "a copy to VRAM failed; it will be repeated. Failures in a row",
              failures_in_row_);
    const std::uint64_t pause = std::uint64_t{1'000'000} << std::min(failures_in_row_, 10u);
    not_before_ns_ = now + std::min(pause, kPauseMaxNs);
    if (failures_in_row_ >= kFailuresBeforeRefusing) parts_.refuse_writes[gpu_].store(true);
}

/// Keeps free_images_low_ images free, taking the clean ones in turn; all of them while draining.
void Flusher::free_clean_images() {
    const bool all = draining_.load(std::memory_order_relaxed);
    const std::uint32_t images = parts_.stage->images();
    bool freed = false;
    for (std::uint32_t looked = 0; looked < images; ++looked) {
        if (!all && parts_.stage->free_images() >= free_images_low_) break;
        clock_hand_ = (clock_hand_ + 1) % images;
        freed = free_if_clean(clock_hand_) || freed;
    }
    if (freed) parts_.notify_room();
}

bool Flusher::free_if_clean(std::uint32_t image) {
    ImageHeader& h = parts_.stage->header(image);
    const std::uint32_t plus_one = h.chunk_plus_one.load(std::memory_order_acquire);
    if (plus_one == 0 || h.dirty_pages.load(std::memory_order_relaxed) != 0 || in_flight(image) ||
        !is_mine(image))
        return false;
    ChunkEntry& entry = parts_.state.chunks()[plus_one - 1];
    const ChunkLock lock(entry);
    if (!entry.image.has() || entry.image.get() != image || h.dirty.any() || h.in_flight.any() ||
        entry.flushing)
        return false;
    parts_.stage->give(image);
    death_point("clean image given back");
    entry.image.reset();
    return true;
}

}  // namespace vramswap
