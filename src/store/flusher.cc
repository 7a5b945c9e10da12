// SPDX-License-Identifier: MIT
#include "store/flusher.h"

#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>

#include "base/clock.h"
#include "base/log.h"

namespace vramswap {
namespace {
constexpr std::uint32_t kFailuresBeforeRefusing = 5;
constexpr std::uint64_t kPauseMaxNs = 1'000'000'000;
}  // namespace

void warm_up_thread(TransferQueue& queue) {
    constexpr std::uint64_t kPatienceNs = 500'000'000;
    Ticket ticket = 0;
    if (queue.submit({}, ticket) != IoStatus::pending) return;
    const std::uint64_t end = now_ns() + kPatienceNs;
    while (queue.poll(ticket) == IoStatus::pending && now_ns() < end) cpu_relax();
}

Flusher::Flusher(StoreParts& parts, std::unique_ptr<TransferQueue> queue, FlusherConfig config)
    : parts_(parts),
      queue_(std::move(queue)),
      config_(config),
      free_images_low_(std::max(1u, parts.stage->images() / 4)),
      event_fd_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
    copies_scratch_.reserve(kChunkPages);
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
    constexpr std::uint64_t kSpinNs = 200'000;
    std::uint64_t busy_since = 0;
    warm_up_thread(*queue_);
    while (!stopping_.load(std::memory_order_relaxed)) {
        const std::uint64_t now = now_ns();
        const std::uint64_t next = step(now);
        if (next != kNow) {
            busy_since = 0;
            sleep_until(next);
        } else if (busy_since == 0) {
            busy_since = now;
        } else if (now - busy_since < kSpinNs) {
            cpu_relax();
        } else {  // a slow or hung GPU: do not burn the CPU
            constexpr timespec kNap{0, 50'000};
            ::ppoll(nullptr, 0, &kNap, nullptr);
        }
    }
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
    const bool busy = std::ranges::any_of(flights_, [](const Flight& f) { return f.active; });
    // With nothing left to repeat, no flush would ever succeed and end the refusal: the next write is the
    // trial. It is kept in the stage, and one more failure refuses again.
    if (!busy && next == kNever && failures_in_row_ != 0) parts_.refuse_writes.store(false);
    return busy ? kNow : next;
}

bool Flusher::in_flight(std::uint32_t image) const {
    return std::ranges::any_of(flights_, [image](const Flight& f) { return f.active && f.image == image; });
}

Flusher::Flight* Flusher::idle_flight() {
    const auto it = std::ranges::find_if(flights_, [](const Flight& f) { return !f.active; });
    return it == flights_.end() ? nullptr : &*it;
}

/// Starts what is due; returns when the next image will be.
std::uint64_t Flusher::start_flights(std::uint64_t now) {
    std::uint64_t next = kNever;
    const bool all_due =
        draining_.load(std::memory_order_relaxed) || parts_.stage->free_images() < free_images_low_;
    for (std::uint32_t i = 0; i < parts_.stage->images(); ++i) {
        const ImageHeader& h = parts_.stage->header(i);
        const std::uint32_t dirty = h.dirty_pages.load(std::memory_order_relaxed);
        if (dirty == 0 || in_flight(i)) continue;
        std::uint64_t due = now;
        if (!all_due && dirty < kChunkPages)
            due = h.dirty_since_ns.load(std::memory_order_relaxed) + config_.age_ns_max;
        due = std::max(due, not_before_ns_);
        if (due > now) {
            next = std::min(next, due);
            continue;
        }
        Flight* flight = idle_flight();
        if (flight == nullptr) return kNow;
        if (!begin(*flight, i, now)) next = std::min(next, not_before_ns_);
    }
    return next;
}

bool Flusher::begin(Flight& flight, std::uint32_t image, std::uint64_t now) {
    ImageHeader& h = parts_.stage->header(image);
    const std::uint32_t plus_one = h.chunk_plus_one.load(std::memory_order_acquire);
    if (plus_one == 0) return true;  // freed meanwhile
    const ChunkIndex chunk{plus_one - 1};
    ChunkEntry& entry = parts_.state.chunks()[chunk.n];
    copies_scratch_.clear();
    {
        const ChunkLock lock(entry);
        if (!entry.image.has() || entry.image.get() != image || !h.dirty.any()) return true;
        const StoreParts::Place place = parts_.place(entry.slot.get());
        h.dirty.for_each_run([&](PageRun run) {
            copies_scratch_.push_back({Copy::Op::to_gpu, place.segment, place.offset + run.first * kPageBytes,
                                       parts_.stage->page(image, run.first),
                                       static_cast<std::uint32_t>(run.count * kPageBytes)});
        });
        h.in_flight = h.dirty;
        h.dirty.clear_all();
        h.dirty_pages.store(0, std::memory_order_relaxed);
        ++entry.pins;
    }
    flight = {true, image, chunk.n, 0};
    const IoStatus status = queue_->submit(copies_scratch_, flight.ticket);
    if (status == IoStatus::pending) {
        copies_.fetch_add(copies_scratch_.size(), std::memory_order_relaxed);
        return true;
    }
    finish(flight, IoStatus::io_error, now);
    return false;
}

void Flusher::finish_flights(std::uint64_t now) {
    for (Flight& flight : flights_) {
        if (!flight.active) continue;
        const IoStatus status = queue_->poll(flight.ticket);
        if (status != IoStatus::pending) finish(flight, status, now);
    }
}

void Flusher::finish(Flight& flight, IoStatus status, std::uint64_t now) {
    ChunkEntry& entry = parts_.state.chunks()[flight.chunk];
    ImageHeader& h = parts_.stage->header(flight.image);
    {
        const ChunkLock lock(entry);
        if (status == IoStatus::ok) {
            pages_flushed_.fetch_add(h.in_flight.count(), std::memory_order_relaxed);
        } else {
            h.in_flight.for_each_run([&h](PageRun run) {
                for (std::uint32_t p = run.first; p < run.first + run.count; ++p)
                    if (h.valid.test(p)) h.dirty.set(p);  // not what was discarded meanwhile
            });
            parts_.mark_dirty(h, now);
        }
        h.in_flight.clear_all();
        --entry.pins;
        parts_.release_if_empty(entry);
    }
    flight.active = false;
    if (status == IoStatus::ok) {
        if (failures_in_row_ != 0) parts_.refuse_writes.store(false);
        failures_in_row_ = 0;
    } else {
        note_failure(now);
    }
    parts_.notify_room();
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
