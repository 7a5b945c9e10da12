// SPDX-License-Identifier: MIT
#include "store/page_store.h"

#include <fmt/format.h>
#include <sched.h>
#include <sys/eventfd.h>

#include <algorithm>

#include "base/clock.h"
#include "base/death_point.h"
#include "base/log.h"
#include "store/store_queue.h"

namespace vramswap {
namespace {
/// So long pages of others may stay in slots that nobody uses, while the spill is busy.
constexpr std::uint64_t kWipeLatestNs = 10'000'000'000;
/// The control thread waits so long for a segment to be wiped; more is a GPU that hangs.
constexpr std::uint64_t kWipeWaitNs = 50'000'000;

/// They are woken so often at least, come what may.
constexpr std::uint64_t kNotifyLatestNs = 500'000'000;

/// While it lives a segment is being taken or given back.
class SegmentChange {
  public:
    explicit SegmentChange(std::atomic<std::uint32_t>& count) : count_(count) { count_.fetch_add(1); }
    ~SegmentChange() { count_.fetch_add(1); }
    SegmentChange(const SegmentChange&) = delete;
    SegmentChange& operator=(const SegmentChange&) = delete;

  private:
    std::atomic<std::uint32_t>& count_;
};
}  // namespace

Bytes PageStore::size() const {
    return {parts_->state.header().device_bytes};
}

Result<void> PageStore::start() {
    for (const auto& flusher : flushers_)
        if (auto started = flusher->start(); !started) return started;
    return mover_->start();
}

void PageStore::obey(std::uint32_t gpu, const StoreOrder& order) {
    const std::uint64_t most =
        parts_->lost[gpu].load() ? 0 : order.vram_max.n / parts_->state.header().segment_bytes;
    const auto segments = static_cast<std::uint32_t>(std::min<std::uint64_t>(most, ~std::uint32_t{0}));
    const bool changed = parts_->target_segments[gpu].exchange(segments) != segments;
    {
        const MutexLock lock(orders_mutex_);
        orders_[gpu] = order;
        StoreOrder all = order;
        for (const StoreOrder& one : orders_) {
            if (one.mode == EngineMode::copy) all.mode = EngineMode::copy;
            all.move_rate = std::max(all.move_rate, one.move_rate);
            all.swap_rate = std::min(all.swap_rate, one.swap_rate);
        }
        set_mode(all.mode);
        parts_->pacer.set_rate(all.swap_rate);
        mover_->set_rate(all.move_rate);
    }
    if (changed || awaits_order_.load()) parts_->request_maintenance();
    if (changed) mover_->kick(true);
}

StoreHoldings PageStore::holdings(std::uint32_t gpu) const {
    StoreHoldings h;
    const SlotAllocator& slots = parts_->slots;
    h.segment_changes = parts_->segment_changes.load();
    h.vram =
        Bytes{parts_->state.header().segment_bytes} * (slots.segments(gpu) + leaving_count_.at(gpu).load());
    const Bytes device = Bytes{kChunkBytes} * parts_->state.header().chunks;
    h.wanted = Bytes{kChunkBytes} * slots.used(gpu);
    if (parts_->spill != nullptr) {
        // Of what is in the spill each GPU wants its share back.
        const Bytes spilled = Bytes{kChunkBytes} * (parts_->spill->used() / parts_->gpus);
        h.wanted = h.wanted + spilled;
        h.spill_room = spilled + Bytes{kChunkBytes} * parts_->spill->room();
    }
    h.wanted = std::min(h.wanted, device);  // a chunk on its way has two places
    h.spill_room = h.spill_room + Bytes{kChunkBytes} * slots_elsewhere(gpu);
    h.move_rate = mover_->counters().rate_out.load(std::memory_order_relaxed);
    for (std::uint32_t i = 0; i < parts_->queues_used.load(std::memory_order_acquire); ++i) {
        const QueueSlot& queue = parts_->queues[i];
        h.pages_in += queue.counters.pages_read.load(std::memory_order_relaxed);
        h.pages_out += queue.counters.pages_written.load(std::memory_order_relaxed);
        h.waited_ns += queue.counters.waited_ns.load(std::memory_order_relaxed);
    }
    return h;
}

/// Slots that the other GPUs may give.
std::uint64_t PageStore::slots_elsewhere(std::uint32_t gpu) const {
    const SlotAllocator& slots = parts_->slots;
    std::uint64_t all = 0;
    for (std::uint32_t other = 0; other < parts_->gpus; ++other) {
        if (other == gpu) continue;
        const std::uint64_t held = slots.segments(other);
        const std::uint64_t target = parts_->target_segments[other].load();
        const std::uint64_t most = parts_->growth_failed.load() ? std::min(held, target) : target;
        const std::uint64_t used = slots.used(other);
        all += std::max(most * slots.slots_per_segment(), used) - used;
    }
    return std::min<std::uint64_t>(all, parts_->state.header().chunks);
}

Result<std::unique_ptr<TargetQueue>> PageStore::make_queue(std::uint32_t depth) {
    if (depth == 0 || depth > TransferQueue::kDepth)
        return Error{
            Errc::usage, 0,
            fmt::format("a queue of depth {} is not between 1 and {}", depth, TransferQueue::kDepth)};
    std::vector<std::unique_ptr<TransferQueue>> queues;
    for (Backend* gpu : gpus_) {
        auto queue = gpu->make_queue();
        if (!queue) return std::move(queue).error();
        queues.push_back(std::move(*queue));
    }
    std::uint32_t n = 0;
    const std::uint32_t used = parts_->queues_used.load();
    while (n < used && parts_->queues[n].in_use.load()) ++n;
    if (n == StoreParts::kQueuesMax)
        return Error{Errc::no_memory, 0, "the store has no room for another queue"};
    QueueSlot& slot = parts_->queues[n];
    if (n == used) {
        const int fd = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        if (fd < 0) return sys_error("cannot make an eventfd for a queue");
        slot.event_fd.store(fd);
        parts_->queues_used.store(n + 1, std::memory_order_release);
    }
    std::unique_ptr<SpillQueue> spill;
    if (parts_->spill != nullptr) {
        auto queue = parts_->spill->make_queue(slot.event_fd.load());
        if (!queue) return std::move(queue).error().in("cannot use the spill");
        spill = std::move(*queue);
    }
    slot.in_use.store(true);
    return std::unique_ptr<TargetQueue>(
        new StoreQueue(*parts_, std::move(queues), std::move(spill), slot, depth));
}

Result<void> PageStore::register_memory(std::span<std::byte> memory) {
    for (std::size_t n = 0; n < gpus_.size(); ++n)
        if (auto registered = gpus_[n]->register_host(memory); !registered) {
            while (n-- > 0) (void)gpus_[n]->unregister_host(memory);
            return registered;
        }
    return {};
}
Result<void> PageStore::unregister_memory(std::span<std::byte> memory) {
    Result<void> all;
    for (Backend* gpu : gpus_)
        if (auto one = gpu->unregister_host(memory); !one) all = std::move(one);
    return all;
}

Result<void> PageStore::grow(std::uint32_t gpu) {
    const auto number = parts_->slots.unused_segment();
    if (!number) return Error{Errc::no_memory, 0, "the store has no room for another segment"};
    const SegmentChange change(parts_->segment_changes);
    const Bytes size{parts_->state.header().segment_bytes};
    Backend& backend = *gpus_[gpu];
    auto id = backend.allocate_segment(size);
    if (!id) return std::move(id).error();
    parts_->state.segments()[*number].gpu = gpu;  // before it is kept: who takes over imports it there
    if (keeper_ != nullptr && backend.caps().exportable_segments) {
        auto fd = backend.export_segment(*id);
        auto kept = fd ? keeper_->keep(segment_key(*number), *fd) : Result<void>(fd.error());
        if (!kept) {
            (void)backend.free_segment(*id);
            return kept;
        }
    }
    death_point("segment kept");
    parts_->set_segment(*number, *id);
    parts_->state.segments()[*number].state.store(SegmentEntry::State::in_use);
    death_point("segment in use");
    parts_->slots.add_segment(*number, gpu);
    return {};
}

void PageStore::shrink(SlotAllocator::Which which) {
    const SegmentChange change(parts_->segment_changes);
    const auto number = parts_->slots.remove_empty_segment(which);
    if (!number) return;
    SegmentEntry& segment = parts_->state.segments()[*number];
    death_point("before a segment goes");
    segment.state.store(SegmentEntry::State::none);
    death_point("segment no longer in use");
    give_back_segment(*number);
}

/// Its pages are wiped first. That ends in a moment, as a rule; what has not is looked at again later.
void PageStore::give_back_segment(std::uint32_t number) {
    const std::uint32_t gpu = parts_->state.segments()[number].gpu;
    const Bytes size{parts_->state.header().segment_bytes};
    const SegmentId id = parts_->segment_id(number);
    parts_->slots.keep_number(number);
    leaving_.push_back({number, gpu, id, wiper_->begin(gpu, id, size)});
    leaving_count_.at(gpu).fetch_add(1);
    finish_leaving(kWipeWaitNs);
}

/// Waits so long for those that are being wiped.
void PageStore::finish_leaving(std::uint64_t patience_ns) {
    const std::uint64_t begin = now_ns();
    for (;;) {
        std::erase_if(leaving_, [this](const Leaving& leaving) { return has_left(leaving); });
        if (leaving_.empty() || now_ns() - begin >= patience_ns) return;
        ::sched_yield();
    }
}

/// Wiped, or as far as the GPU does it, and no longer kept by anybody: a descriptor kept would keep the VRAM
/// too.
bool PageStore::has_left(const Leaving& leaving) {
    const IoStatus status =
        leaving.wipe.ticket == 0 ? IoStatus::io_error : wiper_->poll(leaving.gpu, leaving.wipe.ticket);
    if (status == IoStatus::pending) return false;
    Backend& gpu = *gpus_[leaving.gpu];
    if ((status != IoStatus::ok || !leaving.wipe.complete) && gpu.health() == Health::good)
        log_warning("the GPU failed to wipe a segment before it is given back");
    death_point("segment wiped");
    if (auto freed = gpu.free_segment(leaving.id); !freed && gpu.health() == Health::good)
        log_warning("cannot give a segment back: {}", freed.error().text());
    drop(segment_key(leaving.number));
    parts_->slots.give_number(leaving.number);
    leaving_count_.at(leaving.gpu).fetch_sub(1);
    return true;
}

void PageStore::drop(std::string_view key) {
    if (keeper_ == nullptr) return;
    if (auto dropped = keeper_->drop(key); !dropped)
        log_warning("the guardian still holds {}: {}", key, dropped.error().text());
}

void PageStore::maintain() {
    parts_->maintenance_begins();
    parts_->use_clock.fetch_add(1, std::memory_order_relaxed);
    note_losses();
    if (!leaving_.empty()) {
        const SegmentChange change(parts_->segment_changes);
        finish_leaving(0);
    }
    SlotAllocator& slots = parts_->slots;
    const std::uint32_t free_before = slots.free_slots();
    const std::uint32_t segments_before = slots.segments();
    bool missing = parts_->slot_missing.exchange(false);
    if (awaits_order_.exchange(false)) missing = true;
    while (slots.has_empty_closed()) shrink(SlotAllocator::Which::closed);
    grow_as_needed(missing);
    for (std::uint32_t segments = slots.segments();
         !missing && slots.free_slots() >= 2 * slots.slots_per_segment(); segments = slots.segments()) {
        shrink(SlotAllocator::Which::any);
        if (slots.segments() == segments) break;  // free slots, but no segment is entirely free
    }
    maintain_spill();
    if (slots.free_slots() != free_before || slots.segments() != segments_before) mover_->kick(true);
    notify_if_changed(missing);
}

/// A lost GPU holds nothing any more that could be given back, and gets nothing: its segments are closed.
void PageStore::note_losses() {
    for (std::uint32_t gpu = 0; gpu < parts_->gpus; ++gpu) {
        if (gpus_[gpu]->health() == Health::good || parts_->lost[gpu].exchange(true)) continue;
        parts_->target_segments[gpu].store(0);
        mover_->kick(true);
    }
}

/// Wakes who waits for room, if there may be any that there was not: else they would only ask again, and
/// again.
void PageStore::notify_if_changed(bool missing) {
    const Room room{parts_->slots.free_slots(), parts_->spill == nullptr ? 0 : parts_->spill->ready(),
                    parts_->growth_failed.load()};
    const std::uint64_t now = now_ns();
    const bool long_ago = now >= notified_at_ns_ + kNotifyLatestNs;
    if (awaits_order_.load() || (!missing && room == notified_ && !long_ago)) return;
    notified_ = room;
    notified_at_ns_ = now;
    parts_->notify_room();
}

/// Where the next segment comes from: the GPU that may hold more and, for its bandwidth, holds the least.
/// None: none may.
std::optional<std::uint32_t> PageStore::growing_gpu(const std::bitset<kGpusMax>& exhausted) const {
    std::optional<std::uint32_t> best;
    for (std::uint32_t gpu = 0; gpu < parts_->gpus; ++gpu) {
        const std::uint64_t held = parts_->slots.segments(gpu);
        if (exhausted.test(gpu) || held >= parts_->target_segments[gpu].load()) continue;
        if (!best || held * weights_[*best] < parts_->slots.segments(*best) * std::uint64_t{weights_[gpu]})
            best = gpu;
    }
    return best;
}

void PageStore::grow_as_needed(bool missing) {
    SlotAllocator& slots = parts_->slots;
    const std::uint32_t per_segment = slots.slots_per_segment();
    const std::uint32_t chunks = parts_->state.header().chunks + (parts_->gpus - 1) * per_segment;
    std::bitset<kGpusMax> exhausted;
    bool one_at_least = missing;
    bool failed = false;
    const auto wants_more = [&] {
        // Closed ones do not count: what they have needs a place first.
        std::uint32_t open = 0;
        for (std::uint32_t gpu = 0; gpu < parts_->gpus; ++gpu)
            open += slots.segments(gpu) - slots.closed(gpu);
        return (one_at_least || slots.free_slots() < per_segment / 2 + 1) && open * per_segment < chunks &&
               slots.unused_segment();
    };
    while (!failed && wants_more()) {
        const auto gpu = growing_gpu(exhausted);
        if (!gpu) {
            failed = exhausted.count() == parts_->gpus || patience_is_over();
            if (!failed) awaits_order_.store(slots.free_slots() == 0);
            break;
        }
        at_target_since_ns_ = 0;
        const auto grown = grow(*gpu);
        if (grown) {
            one_at_least = false;
            continue;
        }
        exhausted.set(*gpu);
        if (!parts_->growth_failed.load())
            log_warning("no more VRAM to be had on {}{}: {}", gpus_[*gpu]->info().selector(),
                        parts_->spill == nullptr ? ", writes are refused when the segments are full" : "",
                        grown.error().text());
    }
    // There would be slots, but in segments that are to be given back.
    bool all_give_back = true;
    for (std::uint32_t gpu = 0; gpu < parts_->gpus; ++gpu)
        all_give_back = all_give_back && slots.closed(gpu) != 0;
    failed = failed || (missing && slots.free_slots() == 0 && all_give_back);
    parts_->growth_failed.store(failed);
}

bool PageStore::patience_is_over() {
    const std::uint64_t now = now_ns();
    if (at_target_since_ns_ == 0) at_target_since_ns_ = now;
    return now - at_target_since_ns_ >= patience_ns_;
}

/// Wipes and reserves; what the disk refuses is tried again each time, which is once a second as a rule.
void PageStore::maintain_spill() {
    if (parts_->spill == nullptr) return;
    if (!parts_->spill->needs_maintenance() && spill_duty_ != Spill::Duty::later) return;
    // What is only to be wiped waits for a quiet moment, but not for ever.
    const std::uint64_t now = now_ns();
    const bool quiet = parts_->waiting_for_spill.load() == 0 && !mover_->is_moving();
    if (!parts_->spill->needs_slots() && !quiet && now < wiped_at_ns_ + kWipeLatestNs) return;
    wiped_at_ns_ = now;
    spill_duty_ = parts_->spill->maintain();
    if (spill_duty_ == Spill::Duty::more) parts_->request_maintenance();
    mover_->kick(true);
}

StoreStats PageStore::stats() const {
    StoreStats s;
    const StateHeader& h = parts_->state.header();
    s.device = {h.device_bytes};
    for (ChunkEntry& entry : parts_->state.chunks()) {
        const ChunkLock lock(entry);
        s.stored.n += std::uint64_t{entry.stored} * kPageBytes;
    }
    for (std::uint32_t i = 0; i < parts_->stage->images(); ++i)
        s.dirty.n += std::uint64_t{parts_->stage->header(i).dirty_pages.load()} * kPageBytes;
    s.staged = Bytes{kChunkBytes} * (parts_->stage->images() - parts_->stage->free_images());
    s.vram = Bytes{h.segment_bytes} * parts_->slots.segments();
    s.ram = {h.total_bytes + parts_->stage->memory().size()};
    for (std::uint32_t i = 0; i < parts_->queues_used.load(std::memory_order_acquire); ++i) {
        const QueueCounters& c = parts_->queues[i].counters;
        s.pages_read += c.pages_read.load(std::memory_order_relaxed);
        s.pages_written += c.pages_written.load(std::memory_order_relaxed);
        s.pages_discarded += c.pages_discarded.load(std::memory_order_relaxed);
        s.pages_written_direct += c.pages_written_direct.load(std::memory_order_relaxed);
        s.zero_pages_written += c.zero_pages_written.load(std::memory_order_relaxed);
        s.pages_read_stage += c.pages_read_stage.load(std::memory_order_relaxed);
        s.pages_read_gpu += c.pages_read_gpu.load(std::memory_order_relaxed);
        s.pages_read_spill += c.pages_read_spill.load(std::memory_order_relaxed);
        c.read_latency.add_to(s.read_latency);
        c.write_latency.add_to(s.write_latency);
        s.reread_pages += c.reread_pages.load(std::memory_order_relaxed);
        s.read_errors += c.read_errors.load(std::memory_order_relaxed);
        s.writes_refused += c.writes_refused.load(std::memory_order_relaxed);
        s.retries += c.retries.load(std::memory_order_relaxed);
    }
    for (const auto& flusher : flushers_) {
        s.pages_flushed += flusher->pages_flushed();
        s.flush_copies += flusher->copies();
        s.pages_bridged += flusher->pages_bridged();
        s.images_completed += flusher->completed_images();
        s.flush_errors += flusher->errors();
    }
    const MoveCounters& moves = mover_->counters();
    s.moved_out = {moves.bytes_out.load()};
    s.moved_back = {moves.bytes_back.load()};
    s.moved_within = {moves.bytes_within.load()};
    s.moved_within_ns = moves.ns_within.load();
    s.moved_across = {moves.bytes_across.load()};
    s.pages_written_spill = moves.pages_flushed.load();
    s.move_errors = moves.errors.load();
    if (parts_->spill != nullptr) s.spilled = Bytes{kChunkBytes} * parts_->spill->used();
    for (const auto& refused : parts_->refuse_writes)
        s.writes_are_refused = s.writes_are_refused || refused.load();
    s.spill_writes_are_refused = parts_->refuse_spill_writes.load();
    for (const Backend* gpu : gpus_) s.gpu = std::max(s.gpu, gpu->health());
    s.mode = parts_->mode.load(std::memory_order_relaxed);
    return s;
}

}  // namespace vramswap
