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
#include "base/log.h"
#include "store/checksum.h"
#include "store/page_memory.h"

namespace vramswap {
namespace {
constexpr std::uint32_t kFailuresBeforeRefusing = 5;
constexpr std::uint64_t kPauseMaxNs = 1'000'000'000;
/// So long the thread spins while no flight ends.
constexpr std::uint64_t kSpinNs = 200'000;
}  // namespace

void warm_up_thread(TransferQueue& queue) {
    constexpr std::uint64_t kPatienceNs = 500'000'000;
    Ticket ticket = 0;
    if (queue.submit({}, ticket) != IoStatus::pending) return;
    const std::uint64_t end = now_ns() + kPatienceNs;
    while (queue.poll(ticket) == IoStatus::pending && now_ns() < end) cpu_relax();
}

Flusher::Flusher(StoreParts& parts, std::unique_ptr<TransferQueue> to_gpu,
                 std::unique_ptr<TransferQueue> from_gpu, std::uint64_t age_ns_max, const CopyCosts& costs)
    : parts_(parts),
      to_gpu_(std::move(to_gpu)),
      from_gpu_(std::move(from_gpu)),
      age_ns_max_(age_ns_max),
      costs_(costs),
      free_images_low_(std::max(1u, parts.stage->images() / 4)),
      flying_(parts.stage->images(), 0),
      event_fd_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
    due_.reserve(parts.stage->images());
    young_.reserve(parts.stage->images());
    copies_scratch_.reserve(kCopiesEnough + kChunkPages);
}

Flusher::~Flusher() {
    stop();
}

void Flusher::start() {
    stopping_.store(false);
    sigset_t all;
    sigset_t before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);  // signals are the control thread's
    thread_ = std::thread([this] { run(); });
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    pthread_setname_np(thread_.native_handle(), "vs-flusher");
}

void Flusher::stop() {
    if (!thread_.joinable()) return;
    stopping_.store(true);
    kick(true);
    thread_.join();
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
        } else {  // a slow or hung GPU: do not burn the CPU
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
        for (const Flight& flight : flights_) {
            if (flight.phase == Flight::Phase::idle) continue;
            TransferQueue& queue = flight.phase == Flight::Phase::fetching ? *from_gpu_ : *to_gpu_;
            if (queue.poll(flight.ticket) != IoStatus::pending) return true;
        }
        cpu_relax();
    } while (now_ns() - since < kMomentNs);
    return false;
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
        if (parts_.stage->header(i).dirty_pages.load(std::memory_order_seq_cst) != 0) return true;
    return false;
}

bool Flusher::wants_to_drain() const {
    return draining_.load() && parts_.stage->free_images() != parts_.stage->images();
}

std::uint64_t Flusher::step(std::uint64_t now) {
    finish_flights(now);
    free_clean_images();
    const std::uint64_t next = start_flights(now);
    const bool busy =
        std::ranges::any_of(flights_, [](const Flight& f) { return f.phase != Flight::Phase::idle; });
    // With nothing left to repeat, no flush would ever succeed and end the refusal: the next write is the
    // trial. It is kept in the stage, and one more failure refuses again.
    if (!busy && next == kNever && failures_in_row_ != 0) parts_.refuse_writes.store(false);
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
        if (dirty == 0 || in_flight(i)) continue;
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
    const std::uint32_t flying = static_cast<std::uint32_t>(std::ranges::count(flying_, 1));
    const auto dirty = static_cast<std::uint32_t>(due_.size() + young_.size());
    // Free, clean or on their way: they are or will be free without being sent now.
    const std::uint32_t coming = parts_.stage->images() - dirty + static_cast<std::uint32_t>(due_.size());
    if (parts_.stage->free_images() >= free_images_low_ || coming >= free_images_low_ + flying) return;
    const auto since = [this](std::uint32_t i) {
        return parts_.stage->header(i).dirty_since_ns.load(std::memory_order_relaxed);
    };
    std::ranges::sort(young_, [&](std::uint32_t a, std::uint32_t b) { return since(a) < since(b); });
    const std::size_t missing = free_images_low_ + flying - coming;
    for (std::size_t n = 0; n < std::min(missing, young_.size()); ++n) due_.push_back(young_[n]);
}

/// The pages that one set of copies brings to VRAM: the dirty ones, and what lies in narrow gaps between them
/// and may be sent too. Under the chunk's lock.
PageBits Flusher::bridged(const ImageHeader& header, ChunkIndex chunk) const {
    PageBits sent = header.dirty;
    if (parts_.state.chunks()[chunk.n].writing != 0) return sent;  // somebody else writes to this slot
    const EngineMode mode = parts_.mode.load(std::memory_order_relaxed);
    const std::uint32_t gap_max = costs_.small_ns(mode) / costs_.page_ns;
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
    const std::uint64_t there_and_back = std::uint64_t{2} * span.count * costs_.page_ns;
    const std::uint64_t runs_cost = runs * costs_.small_ns(mode);
    if (runs_cost <= there_and_back) return {};
    const PageEntry* pages = &parts_.state.pages()[first_page(chunk).n];
    std::uint64_t missing = 0;
    for (std::uint32_t p = span.first; p < span.first + span.count; ++p)
        if (!header.valid.test(p) && pages[p].state() != PageEntry::State::absent) ++missing;
    return there_and_back + missing * costs_.merge_page_ns < runs_cost ? span : PageRun{};
}

// ---- flights ----

Flusher::Flight* Flusher::idle_flight(bool with_scratch) {
    // Those without scratch memory first.
    for (std::size_t n = with_scratch ? Stage::kScratchChunks : kFlights; n-- > 0;)
        if (flights_[n].phase == Flight::Phase::idle) return &flights_[n];
    return nullptr;
}

std::byte* Flusher::scratch_of(const Flight& flight) const {
    const auto n = static_cast<std::uint32_t>(&flight - flights_.data());
    return n < Stage::kScratchChunks ? parts_.stage->scratch(n) : nullptr;
}

/// Starts what is due; returns when the next image will be.
std::uint64_t Flusher::start_flights(std::uint64_t now) {
    const std::uint64_t next = find_due(now);
    if (not_before_ns_ <= now) add_oldest_due();
    const EngineMode mode = parts_.mode.load(std::memory_order_relaxed);
    to_gpu_->set_mode(mode);
    from_gpu_->set_mode(mode);
    for (std::size_t n = 0; n < due_.size();) {
        Flight* flight = idle_flight(false);
        if (flight == nullptr) return kNow;
        n = start_flight(*flight, n, now);
        if (not_before_ns_ > now) return not_before_ns_;
    }
    return next;
}

/// Puts images from number `n` of due_ on into a flight and starts it. Returns the number of the next.
std::size_t Flusher::start_flight(Flight& flight, std::size_t n, std::uint64_t now) {
    copies_scratch_.clear();
    bytes_scratch_ = 0;
    flight.count = 0;
    flight.fetched = {};
    for (; n < due_.size() && flight.count < kLoadsMax; ++n) {
        if (copies_scratch_.size() >= kCopiesEnough || bytes_scratch_ >= kBytesEnough) break;
        const Begun begun = begin(flight, due_[n]);
        if (begun == Begun::yes && flight.fetched.count != 0) {
            ++n;
            break;
        }
        if (begun != Begun::alone) continue;
        if (flight.count != 0) break;
        Flight* other = idle_flight(true);
        if (other != nullptr && other != &flight) return start_flight(*other, n, now);
        // No scratch memory is free: its turn comes with the next step.
    }
    if (flight.count == 0) return n;
    flight.filled.clear_all();
    TransferQueue& queue = flight.fetched.count != 0 ? *from_gpu_ : *to_gpu_;
    flight.phase = flight.fetched.count != 0 ? Flight::Phase::fetching : Flight::Phase::sending;
    if (queue.submit(copies_scratch_, flight.ticket) == IoStatus::pending)
        copies_.fetch_add(copies_scratch_.size(), std::memory_order_relaxed);
    else
        finish(flight, IoStatus::io_error, now);
    return n;
}

/// Takes one image into the flight and lists its copies. `alone`: it needs a flight of its own, with scratch.
Flusher::Begun Flusher::begin(Flight& flight, std::uint32_t image) {
    ImageHeader& h = parts_.stage->header(image);
    const std::uint32_t plus_one = h.chunk_plus_one.load(std::memory_order_acquire);
    if (plus_one == 0) return Begun::no;  // freed meanwhile
    const ChunkIndex chunk{plus_one - 1};
    ChunkEntry& entry = parts_.state.chunks()[chunk.n];
    const ChunkLock lock(entry);
    if (!entry.image.has() || entry.image.get() != image || !h.dirty.any()) return Begun::no;
    PageBits sent = bridged(h, chunk);
    const PageRun span = worth_completing(sent, h, chunk);
    const StoreParts::Place place = parts_.place(entry.slot.get());
    const auto list = [&](Copy::Op op, PageRun run, std::byte* host) {
        copies_scratch_.push_back({op, place.segment, place.offset + run.first * kPageBytes, host,
                                   static_cast<std::uint32_t>(run.count * kPageBytes)});
        bytes_scratch_ += run.count * kPageBytes;
    };
    if (span.count != 0) {
        std::byte* const scratch = scratch_of(flight);
        if (flight.count != 0 || scratch == nullptr) return Begun::alone;
        list(Copy::Op::from_gpu, span, scratch + span.first * kPageBytes);
        flight.fetched = span;
        sent.set_run(span);
    } else {
        sent.for_each_run(
            [&](PageRun run) { list(Copy::Op::to_gpu, run, parts_.stage->page(image, run.first)); });
    }
    // What VRAM has of these pages is unknown until the flight ends.
    h.in_flight = sent;
    h.in_flight.keep_only(h.valid);
    h.dirty.clear_all();
    h.dirty_pages.store(0, std::memory_order_relaxed);
    ++entry.pins;
    flight.loads[flight.count++] = {image, chunk.n};
    flying_[image] = 1;
    return Begun::yes;
}

void Flusher::finish_flights(std::uint64_t now) {
    for (Flight& flight : flights_) {
        if (flight.phase == Flight::Phase::idle) continue;
        const bool fetching = flight.phase == Flight::Phase::fetching;
        const IoStatus status = (fetching ? from_gpu_ : to_gpu_)->poll(flight.ticket);
        if (status == IoStatus::pending) continue;
        if (fetching && status == IoStatus::ok && send_completed(flight)) continue;
        finish(flight, fetching ? IoStatus::io_error : status, now);
    }
}

/// The chunk was fetched: puts what the image lacks into it and sends it whole. False if the GPU refuses.
bool Flusher::send_completed(Flight& flight) {
    fill_gaps(flight);
    const Load& load = flight.loads[0];
    const StoreParts::Place place = parts_.place(parts_.state.chunks()[load.chunk].slot.get());  // pinned
    const Copy copy{Copy::Op::to_gpu, place.segment, place.offset + flight.fetched.first * kPageBytes,
                    parts_.stage->page(load.image, flight.fetched.first),
                    static_cast<std::uint32_t>(flight.fetched.count * kPageBytes)};
    if (to_gpu_->submit({&copy, 1}, flight.ticket) != IoStatus::pending) return false;
    copies_.fetch_add(1, std::memory_order_relaxed);
    completed_images_.fetch_add(1, std::memory_order_relaxed);
    flight.phase = Flight::Phase::sending;
    return true;
}

/// These pages do not become valid: they were not checked, and whoever reads them reads VRAM, where they stay
/// what they are.
void Flusher::fill_gaps(Flight& flight) {
    constexpr std::uint32_t kPagesAtOnce = 8;  // a writer of the chunk waits no longer
    const Load& load = flight.loads[0];
    ChunkEntry& entry = parts_.state.chunks()[load.chunk];
    const ImageHeader& h = parts_.stage->header(load.image);
    const PageEntry* pages = &parts_.state.pages()[first_page({load.chunk}).n];
    const std::byte* scratch = scratch_of(flight);
    const std::uint32_t end = flight.fetched.first + flight.fetched.count;
    for (std::uint32_t first = flight.fetched.first; first < end; first += kPagesAtOnce) {
        const ChunkLock lock(entry);
        for (std::uint32_t p = first; p < std::min(first + kPagesAtOnce, end); ++p) {
            if (p + 1 < end) prefetch_page(scratch + (p + 1) * kPageBytes);
            if (h.valid.test(p) || pages[p].state() != PageEntry::State::stored) continue;
            stream_page(parts_.stage->page(load.image, p), scratch + p * kPageBytes);
            flight.filled.set(p);
        }
    }
}

void Flusher::finish(Flight& flight, IoStatus status, std::uint64_t now) {
    for (std::uint32_t n = 0; n < flight.count; ++n) {
        finish_load(flight.loads[n], status, flight.filled, now);
        flying_[flight.loads[n].image] = 0;
    }
    flight.phase = Flight::Phase::idle;
    if (status == IoStatus::ok) {
        if (failures_in_row_ != 0) parts_.refuse_writes.store(false);
        failures_in_row_ = 0;
    } else {
        note_failure(now);
    }
    parts_.notify_room();
}

/// `filled`: of the only load of a flight that was completed.
void Flusher::finish_load(const Load& load, IoStatus status, const PageBits& filled, std::uint64_t now) {
    ChunkEntry& entry = parts_.state.chunks()[load.chunk];
    ImageHeader& h = parts_.stage->header(load.image);
    const ChunkLock lock(entry);
    if (status == IoStatus::ok) {
        pages_flushed_.fetch_add(h.in_flight.count(), std::memory_order_relaxed);
    } else {
        h.in_flight.for_each_run([&h](PageRun run) {
            for (std::uint32_t p = run.first; p < run.first + run.count; ++p)
                if (h.valid.test(p)) h.dirty.set(p);  // not what was discarded meanwhile
        });
        // The failed copy may have damaged them in VRAM; the image has what was there.
        filled.for_each_run([&](PageRun run) {
            for (std::uint32_t p = run.first; p < run.first + run.count; ++p) {
                const PageIndex page{first_page({load.chunk}).n + p};
                if (h.valid.test(p) || !parts_.state.pages()[page.n].holds(
                                           page_checksum(parts_.stage->page(load.image, p), page)))
                    continue;
                h.valid.set(p);
                h.dirty.set(p);
            }
        });
        parts_.mark_dirty(h, now);
    }
    h.in_flight.clear_all();
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
    if (failures_in_row_ >= kFailuresBeforeRefusing) parts_.refuse_writes.store(true);
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
    if (plus_one == 0 || h.dirty_pages.load(std::memory_order_relaxed) != 0 || in_flight(image)) return false;
    ChunkEntry& entry = parts_.state.chunks()[plus_one - 1];
    const ChunkLock lock(entry);
    if (!entry.image.has() || entry.image.get() != image || h.dirty.any() || h.in_flight.any()) return false;
    parts_.stage->give(image);
    entry.image.reset();
    return true;
}

}  // namespace vramswap
