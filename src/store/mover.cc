// SPDX-License-Identifier: MIT
#include "store/mover.h"

#include <poll.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>

#include "base/clock.h"

namespace vramswap {
namespace {

/// So long the thread spins while nothing ends.
constexpr std::uint64_t kSpinNs = 100'000;
/// A look again at what others have pinned, or the disk is at work for; an end of the latter wakes.
constexpr std::uint64_t kLookAgainNs = 500'000;
/// A look again at what could not be begun: no slot was to be had, or all chunks were in use.
constexpr std::uint64_t kBlockedNs = 20'000'000;
/// A page of a spilled chunk is dirty so long at most without need.
constexpr std::uint64_t kImageAgeNs = 2'000'000;
/// Credit that may be saved up, and after which moving begins: eight chunks.
constexpr std::uint64_t kCreditMax = 8 * kChunkBytes;
/// What comes back must leave so many slots more than is kept free, or it would soon have to go again.
constexpr std::uint32_t kMargin = 4;
/// Moves to the disk at once while faults wait for it: one is written while the other is fetched.
constexpr std::uint32_t kBesideFaults = 2;
constexpr std::uint64_t kUnlimited = std::uint64_t{1} << 40;  ///< slots

/// Of so many slots.
std::uint64_t kept_free(std::uint64_t slots) {
    return std::min<std::uint64_t>(Mover::kFreeSlots, slots / 4);
}

}  // namespace

Mover::Mover(StoreParts& parts, std::unique_ptr<Moves> moves)
    : parts_(parts),
      moves_(std::move(moves)),
      coldest_(parts.gpus),
      in_closed_(parts.gpus),
      event_fd_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}

Mover::~Mover() {
    stop();
}

Result<void> Mover::start() {
    if (thread_.is_started()) return {};
    stopping_.store(false);
    return thread_.start(
        "vs-mover", [](void* self) { static_cast<Mover*>(self)->run(); }, this);
}

void Mover::stop() {
    if (!thread_.is_started()) return;
    stopping_.store(true);
    kick(true);
    thread_.join();
}

void Mover::run() {
    moves_->warm_up();
    std::uint64_t busy_since = 0;
    while (!stopping_.load(std::memory_order_relaxed)) {
        kicked_.store(false);
        const std::uint64_t now = now_ns();
        const std::uint64_t next = step(now);
        if (next != kNow) {
            busy_since = 0;
            sleep_until(next);
            continue;
        }
        if (busy_since == 0 || went_on_) busy_since = now;
        if (now - busy_since < kSpinNs)
            cpu_relax();
        else  // a slow or hung GPU: do not burn the CPU
            sleep_until(now + kLookAgainNs);
    }
    // Who starts an operation of the disk stays until it has ended.
    SpillQueue* const spill = moves_->spill();
    while (spill != nullptr && spill->in_flight() != 0) {
        spill->wait(-1);
        static_cast<void>(moves_->advance(now_ns()));
    }
}

void Mover::sleep_until(std::uint64_t when) {
    sleeping_.store(true);
    // What the last look at one move has found out of another is no event any more.
    const bool news = moves_->spill() != nullptr && moves_->spill()->has_ended();
    if (!kicked_.load() && !stopping_.load() && !news) {
        timespec timeout{};
        if (when != kNever) {
            const std::uint64_t now = now_ns();
            const std::uint64_t wait = when > now ? when - now : 0;
            timeout.tv_sec = static_cast<time_t>(wait / 1'000'000'000);
            timeout.tv_nsec = static_cast<long>(wait % 1'000'000'000);
        }
        // An event may come after the end that it tells of was seen: only for those who wait for one.
        SpillQueue* const spill = moves_->spill();
        const bool waits = spill != nullptr && spill->in_flight() != 0;
        std::array<pollfd, 2> events{pollfd{event_fd_.get(), POLLIN, 0},
                                     pollfd{waits ? spill->event_fd() : -1, POLLIN, 0}};
        ::ppoll(events.data(), events.size(), when == kNever ? nullptr : &timeout, nullptr);
    }
    sleeping_.store(false);
    empty_event(event_fd_.get());
}

void Mover::kick(bool) noexcept {
    kicked_.store(true);
    if (!sleeping_.exchange(false)) return;
    constexpr std::uint64_t kOne = 1;
    [[maybe_unused]] const auto n = ::write(event_fd_.get(), &kOne, sizeof kOne);
}

std::uint64_t Mover::step(std::uint64_t now) {
    now_ns_ = now;
    went_on_ = moves_->advance(now);
    earn(now);
    blocked_ = short_of_credit_ = false;
    for (std::uint32_t gpu = 0; gpu < parts_.gpus; ++gpu) adjust_segments(gpu);
    if (parts_.spill != nullptr) {
        look_at_spill(now);
        carry_images(now);
        free_clean_images();
    }
    begin_all();
    return next_step(now);
}

std::uint64_t Mover::next_step(std::uint64_t now) const {
    if (moves_->should_spin()) return kNow;
    std::uint64_t next = images_due_at_;
    if (moves_->in_flight() != 0) next = std::min(next, now + kLookAgainNs);
    if (blocked_) next = std::min(next, now + kBlockedNs);
    if (short_of_credit_) {
        const std::uint64_t rate = rate_.load(std::memory_order_relaxed);
        const std::uint64_t missing = kChunkBytes - std::min<std::uint64_t>(credit_bytes_, kChunkBytes);
        if (rate != 0) next = std::min(next, now + 1 + missing * 1'000'000'000 / rate);
    }
    return next;
}

// ---- rate ----

void Mover::earn(std::uint64_t now) {
    const std::uint64_t rate = rate_.load(std::memory_order_relaxed);
    const std::uint64_t since = std::min<std::uint64_t>(now - std::min(now, earned_at_), 1'000'000'000);
    earned_at_ = now;
    if (rate == kNoLimit) return;
    const double earned = static_cast<double>(rate) * static_cast<double>(since) / 1e9;
    credit_bytes_ = std::min(credit_bytes_ + static_cast<std::uint64_t>(earned), kCreditMax);
}

bool Mover::may_spend() const {
    return rate_.load(std::memory_order_relaxed) == kNoLimit || credit_bytes_ >= kChunkBytes;
}

void Mover::spend() {
    credit_bytes_ -= std::min<std::uint64_t>(credit_bytes_, kChunkBytes);
}

// ---- how much may be held ----

void Mover::adjust_segments(std::uint32_t gpu) {
    const std::uint32_t held = parts_.slots.segments(gpu);
    const std::uint32_t target = parts_.target_segments[gpu].load(std::memory_order_relaxed);
    const std::uint32_t too_many = held > target ? held - target : 0;
    bool opened = false;
    while (parts_.slots.closed(gpu) < too_many && parts_.slots.close_one(gpu)) {
    }
    while (parts_.slots.closed(gpu) > too_many && parts_.slots.open_one(gpu)) opened = true;
    if (parts_.slots.has_empty_closed()) parts_.request_maintenance();
    if (opened) parts_.notify_room();
}

/// Slots that the GPU may come to have, as far as is known.
std::uint64_t Mover::capacity(std::uint32_t gpu) const {
    const std::uint32_t target = parts_.target_segments[gpu].load(std::memory_order_relaxed);
    const std::uint64_t per_segment = parts_.slots.slots_per_segment();
    if (parts_.growth_failed.load()) return std::min(target, parts_.slots.segments(gpu)) * per_segment;
    return target == ~0u ? kUnlimited : target * per_segment;
}

/// Not everything fits into VRAM, or just.
bool Mover::is_tight() const {
    std::uint64_t homes = parts_.spill->used();
    std::uint64_t slots = 0;
    for (std::uint32_t gpu = 0; gpu < parts_.gpus; ++gpu) {
        homes += parts_.slots.used(gpu);
        slots += capacity(gpu);
    }
    return slots < parts_.state.header().chunks && homes + kept_free(slots) > slots;
}

/// Slots that may be used.
std::uint64_t Mover::limit(std::uint32_t gpu) const {
    const std::uint64_t slots = capacity(gpu);
    if (parts_.spill == nullptr || !is_tight()) return slots;
    return slots - kept_free(slots);
}

// ---- images of spilled chunks ----

bool Mover::anything_dirty() const {
    for (std::uint32_t i = 0; i < parts_.stage->images(); ++i) {
        const ImageHeader& h = parts_.stage->header(i);
        if (h.carrier.load(std::memory_order_relaxed) == kSpillCarrier && h.dirty_pages.load() != 0)
            return true;
    }
    return false;
}

/// What is dirty goes to the spill, or its chunk comes back to VRAM, where the flusher sends it.
void Mover::carry_images(std::uint64_t now) {
    images_due_at_ = kNever;
    const bool at_once = draining_.load(std::memory_order_relaxed) ||
                         parts_.stage->free_images() < parts_.stage->free_images_low();
    for (std::uint32_t i = 0; i < parts_.stage->images(); ++i) {
        const ImageHeader& h = parts_.stage->header(i);
        const std::uint32_t dirty = h.dirty_pages.load(std::memory_order_relaxed);
        const std::uint32_t plus_one = h.chunk_plus_one.load(std::memory_order_acquire);
        if (dirty == 0 || plus_one == 0 || h.carrier.load(std::memory_order_relaxed) != kSpillCarrier)
            continue;
        std::uint64_t due = now;
        if (!at_once && dirty < kChunkPages)
            due = h.dirty_since_ns.load(std::memory_order_relaxed) + kImageAgeNs;
        due = std::max(due, spill_not_before_);
        if (due > now) {
            images_due_at_ = std::min(images_due_at_, due);
            continue;
        }
        const Room room = find_room(kNoGpu);
        const bool comes_back = room.gpu && !moves_->failed_lately(plus_one - 1, now);
        const Moves::Begun begun =
            comes_back ? moves_->begin_back({plus_one - 1}, *room.gpu) : moves_->begin_flush(i);
        if (begun != Moves::Begun::yes) images_due_at_ = std::min(images_due_at_, now + kLookAgainNs);
    }
}

/// A disk that fails is asked again after a pause that grows to a second: the next write is the trial, and
/// one more failure refuses again.
void Mover::look_at_spill(std::uint64_t now) {
    constexpr std::uint64_t kPauseNs = 1'000'000;
    const std::uint64_t failures = moves_->spill_failures_in_row();
    if (failures == 0) spill_not_before_ = 0;
    if (failures > spill_failures_)
        spill_not_before_ = now + (kPauseNs << std::min<std::uint64_t>(failures, 10));
    spill_failures_ = failures;
    if (!parts_.refuse_spill_writes.load()) return;
    if (now >= spill_not_before_)
        parts_.refuse_spill_writes.store(false);
    else
        blocked_ = true;
}

void Mover::free_clean_images() {
    const bool all = draining_.load(std::memory_order_relaxed);
    bool freed = false;
    for (std::uint32_t i = 0; i < parts_.stage->images(); ++i) {
        if (!all && parts_.stage->free_images() >= parts_.stage->free_images_low()) break;
        ImageHeader& h = parts_.stage->header(i);
        const std::uint32_t plus_one = h.chunk_plus_one.load(std::memory_order_acquire);
        if (plus_one == 0 || h.dirty_pages.load(std::memory_order_relaxed) != 0 ||
            h.carrier.load(std::memory_order_relaxed) != kSpillCarrier)
            continue;
        ChunkEntry& entry = parts_.state.chunks()[plus_one - 1];
        const ChunkLock lock(entry);
        if (!entry.image.has() || entry.image.get() != i || h.dirty.any() || entry.flushing) continue;
        parts_.stage->give(i);
        entry.image.reset();
        freed = true;
    }
    if (freed) parts_.notify_room();
}

// ---- chunks ----

/// Slots that could be used yet.
std::uint64_t Mover::room(std::uint32_t gpu) const {
    const std::uint64_t most = limit(gpu);
    const std::uint64_t used = parts_.slots.used(gpu);
    return used < most ? most - used : 0;
}

/// For a chunk to come there, and not to have to go again at once.
bool Mover::has_room(std::uint32_t gpu) const {
    const bool tight = parts_.spill != nullptr && is_tight();
    return room(gpu) > (tight ? kMargin : 0);
}

/// If it may be.
void Mover::want_segment() {
    parts_.slot_missing.store(true);
    parts_.request_maintenance();
}

/// Where a chunk can go: the roomiest GPU with a free slot, `but` for one. none: none has room; a segment is
/// asked for if there would be room in it.
Mover::Room Mover::find_room(std::uint32_t but) {
    Room found;
    bool segment_missing = false;
    for (std::uint32_t gpu = 0; gpu < parts_.gpus; ++gpu) {
        if (gpu == but || !has_room(gpu)) continue;
        if (parts_.slots.free_slots(gpu) == 0)
            segment_missing = true;
        else if (!found.gpu || room(gpu) > room(*found.gpu))
            found.gpu = gpu;
    }
    found.may_come = !found.gpu && segment_missing;
    if (found.may_come) want_segment();
    return found;
}

void Mover::begin_all() {
    // What fails again and again is not this chunk or that: the GPU, or the disk.
    if (now_ns_ < moves_->not_before()) {
        blocked_ = true;
        return;
    }
    const auto all_of = [this](auto begin_one) {
        Going going = Going::on;
        while (going == Going::on) going = begin_one();
        blocked_ = blocked_ || going == Going::blocked || going == Going::none_left;
    };
    for (std::uint32_t gpu = 0; gpu < parts_.gpus; ++gpu) {
        if (parts_.lost[gpu].load(std::memory_order_relaxed)) continue;  // what is there is gone
        all_of([&] { return empty_closed(gpu); });
        all_of([&] { return move_out(gpu); });
    }
    if (parts_.spill != nullptr) all_of([&] { return move_back(); });
}

/// Begins with the next candidate that can be moved, after another look if there is none.
template <typename KeyOf, typename Begin>
Mover::Going Mover::take_next(Candidates& candidates, KeyOf key_of, Begin begin) {
    const Going going = take_of(candidates, begin);
    if (going != Going::none_left) return going;
    candidates.look(parts_.state, key_of);
    return take_of(candidates, begin);
}

template <typename Begin>
Mover::Going Mover::take_of(Candidates& candidates, Begin begin) {
    while (const auto chunk = candidates.next()) {
        if (moves_->failed_lately(chunk->n, now_ns_)) continue;
        const Moves::Begun begun = begin(*chunk);
        if (begun == Moves::Begun::yes) return Going::on;
        if (begun == Moves::Begun::not_now) continue;
        candidates.put_back();
        return begun == Moves::Begun::full ? Going::enough : Going::blocked;
    }
    return Going::none_left;
}

Mover::Going Mover::empty_closed(std::uint32_t gpu) {
    if (parts_.slots.closed(gpu) == 0) return Going::enough;
    // As long as not everything fits, some slots stay free for new pages: there is the spill.
    const bool over = parts_.spill != nullptr && parts_.slots.used(gpu) > limit(gpu);
    if (parts_.slots.free_slots(gpu) <= (over ? kFreeSlots : 0)) return Going::enough;
    const auto closed_segment = [&](const ChunkEntry& entry) -> std::optional<std::uint32_t> {
        const auto slot = entry.slot.look();
        if (!slot) return {};
        const std::uint32_t segment = *slot / parts_.slots.slots_per_segment();
        if (parts_.slots.gpu_of(*slot) != gpu || !parts_.slots.is_closed(segment)) return {};
        return segment;  // one segment after the other, so that some are soon empty
    };
    return take_next(in_closed_[gpu], closed_segment, [&](ChunkIndex chunk) {
        return closed_segment(parts_.state.chunks()[chunk.n]) ? moves_->begin_within(chunk)
                                                              : Moves::Begun::not_now;
    });
}

Mover::Going Mover::move_out(std::uint32_t gpu) {
    const std::uint64_t used = parts_.slots.used(gpu) - moves_->leaving(gpu);
    if (used <= limit(gpu)) return Going::enough;
    const Room elsewhere = find_room(gpu);
    if (elsewhere.may_come) return Going::blocked;
    const std::uint32_t to = elsewhere.gpu.value_or(gpu);
    if (to == gpu && (parts_.spill == nullptr || now_ns_ < spill_not_before_)) return Going::blocked;
    // Room for new pages is made at once; what is given back to others, as fast as the policy says.
    const bool given_back = used > capacity(gpu);
    if (given_back && !may_spend()) {
        short_of_credit_ = true;
        return Going::enough;
    }
    // A fault waits behind what the disk has been given already: little, while there are any.
    if (to == gpu && parts_.waiting_for_spill.load(std::memory_order_relaxed) != 0 &&
        moves_->in_flight(Moves::Kind::out) >= kBesideFaults)
        return Going::enough;
    const auto last_use = [&](const ChunkEntry& entry) -> std::optional<std::uint32_t> {
        const auto slot = entry.slot.look();
        if (!slot || parts_.slots.gpu_of(*slot) != gpu) return {};
        return entry.last_use.load(std::memory_order_relaxed);
    };
    const Going going = take_next(coldest_[gpu], last_use, [&](ChunkIndex chunk) {
        if (!last_use(parts_.state.chunks()[chunk.n])) return Moves::Begun::not_now;
        return to == gpu ? moves_->begin_out(chunk) : moves_->begin_across(chunk, to);
    });
    if (going == Going::on && given_back) spend();
    return going;
}

Mover::Going Mover::move_back() {
    if (parts_.spill->used() == 0) return Going::enough;
    if (!may_spend()) {
        short_of_credit_ = true;
        return Going::enough;
    }
    const Room room = find_room(kNoGpu);
    if (!room.gpu) return room.may_come ? Going::blocked : Going::enough;
    const auto newest_use = [](const ChunkEntry& entry) -> std::optional<std::uint32_t> {
        if (!entry.spill.has()) return {};
        return ~entry.last_use.load(std::memory_order_relaxed);
    };
    const Going going = take_next(hottest_spilled_, newest_use,
                                  [&](ChunkIndex chunk) { return moves_->begin_back(chunk, *room.gpu); });
    if (going == Going::on) spend();
    return going;
}

}  // namespace vramswap
