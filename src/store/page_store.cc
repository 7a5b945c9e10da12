// SPDX-License-Identifier: MIT
#include "store/page_store.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <thread>

#include "base/clock.h"
#include "base/death_point.h"
#include "base/log.h"
#include "store/store_queue.h"
#include "store/takeover.h"

namespace vramswap {
namespace {
/// A request of the largest size touches so many chunks, and needs an image of each at once.
constexpr std::uint64_t kImagesMin = BlockRequest::kMaxTransferBytes / kChunkBytes + 1;

/// Threads that complete images: as asked for, or as many as suit this machine.
std::uint32_t choose_mergers(const StoreConfig& config) {
    if (config.flusher.mergers) return std::min(*config.flusher.mergers, Mergers::kThreadsMax);
    return Mergers::threads_for(static_cast<std::uint32_t>(config.stage.n / kChunkBytes),
                                std::thread::hardware_concurrency());
}

/// So long pages of others may stay in slots that nobody uses, while the spill is busy.
constexpr std::uint64_t kWipeLatestNs = 10'000'000'000;

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

std::string segment_key(std::uint32_t number) {
    return fmt::format("segment-{}", number);
}

constexpr std::string_view kSpillBusyKey = "spill-busy";

/// Until the disk has done what the dead process had asked it for: reads would still arrive in the stage,
/// writes in the spill.
Result<void> await_quiet(const HeldFds& held, int timeout_ms) {
    const auto busy = held.find(kSpillBusyKey);
    if (busy == held.end()) return {};
    pollfd end{busy->second.get(), 0, 0};
    if (::poll(&end, 1, timeout_ms) > 0) return {};
    return Error{Errc::busy, 0, "the spill's disk is still at work for the dead worker"};
}

StateShape shape_of(const StoreConfig& config, std::uint32_t gpus) {
    return {config.size, config.segment, static_cast<std::uint32_t>(config.stage.n / kChunkBytes), gpus};
}

std::uint32_t scratch_chunks(const StoreConfig& config, std::uint32_t gpus, std::uint32_t mergers) {
    const bool moves_through_host = config.spill != nullptr || gpus > 1;
    return gpus * Mergers::scratch_chunks(mergers) + (moves_through_host ? Moves::kScratchChunks : 0);
}
}  // namespace

Result<void> PageStore::check(const std::vector<Backend*>& gpus, const StoreConfig& config) {
    if (gpus.empty() || gpus.size() > kGpusMax)
        return Error{Errc::usage, 0, fmt::format("a store over {} GPUs is impossible", gpus.size()),
                     fmt::format("It takes 1 to {}", kGpusMax)};
    if (config.stage.n / kChunkBytes < kImagesMin)
        return Error{Errc::usage, 0, fmt::format("a stage of {} is too small", format_size(config.stage)),
                     fmt::format("Give it at least {}", format_size(Bytes{kChunkBytes} * kImagesMin))};
    for (const Backend* gpu : gpus) {
        if (config.segment.n % gpu->caps().granularity.n != 0)
            return Error{
                Errc::usage, 0,
                fmt::format("segments of {} do not suit {}", format_size(config.segment), gpu->info().name)};
        if (config.mode == EngineMode::turbo && !gpu->caps().turbo)
            return Error{Errc::unavailable, 0,
                         fmt::format("mode turbo is not available on {}", gpu->info().name),
                         "Use mode copy. Turbo needs CUDA and a GPU from Maxwell on"};
    }
    return {};
}

Result<std::unique_ptr<PageStore>> PageStore::create(std::vector<Backend*> gpus, const StoreConfig& config,
                                                     FdKeeper* keeper) {
    if (auto possible = check(gpus, config); !possible) return std::move(possible).error();
    const auto gpu_count = static_cast<std::uint32_t>(gpus.size());
    auto state = State::create(shape_of(config, gpu_count));
    if (!state) return std::move(state).error();
    state->set_mergers(choose_mergers(config));
    auto stage = Stage::create(*state, scratch_chunks(config, gpu_count, state->header().mergers));
    if (!stage) return std::move(stage).error();
    auto parts = std::make_unique<StoreParts>(std::move(*state), std::move(*stage), config.spill, gpu_count);
    std::unique_ptr<PageStore> store(new PageStore(std::move(gpus), keeper, std::move(parts)));
    if (auto started = store->start_up(config); !started) return std::move(started).error();
    return store;
}

Result<std::unique_ptr<PageStore>> PageStore::take_over(std::vector<Backend*> gpus, const StoreConfig& config,
                                                        FdKeeper* keeper, const HeldFds& held) {
    if (auto possible = check(gpus, config); !possible) return std::move(possible).error();
    const auto state_fd = held.find("state");
    const auto stage_fd = held.find("stage");
    if (state_fd == held.end() || stage_fd == held.end())
        return Error{Errc::failed, 0, "state and stage of the dead worker were not kept"};
    if (auto quiet = await_quiet(held, config.quiet_timeout_ms); !quiet) return std::move(quiet).error();
    const auto gpu_count = static_cast<std::uint32_t>(gpus.size());
    auto state = State::adopt(shape_of(config, gpu_count), state_fd->second);
    if (!state) return std::move(state).error();
    settle_images(*state);
    if (state->header().mergers > Mergers::kThreadsMax)
        return Error{Errc::failed, 0, "the state that was kept is damaged: it has too many mergers"};
    auto stage =
        Stage::adopt(*state, scratch_chunks(config, gpu_count, state->header().mergers), stage_fd->second);
    if (!stage) return std::move(stage).error();
    auto parts = std::make_unique<StoreParts>(std::move(*state), std::move(*stage), config.spill, gpu_count);
    std::unique_ptr<PageStore> store(new PageStore(std::move(gpus), keeper, std::move(parts)));
    store->keeps_all_ = true;
    if (auto taken = store->go_on(config, held); !taken) return std::move(taken).error();
    store->keeps_all_ = false;
    return store;
}

PageStore::PageStore(std::vector<Backend*> gpus, FdKeeper* keeper, std::unique_ptr<StoreParts> parts)
    : gpus_(std::move(gpus)), keeper_(keeper), parts_(std::move(parts)), orders_(gpus_.size()) {
    std::ranges::copy(gpus_, parts_->backends.begin());
}

Result<void> PageStore::start_up(const StoreConfig& config) {
    if (auto registered = register_stage(); !registered) return registered;
    if (keeper_ != nullptr) {
        if (auto kept = keeper_->keep("state", parts_->state.fd()); !kept) return kept;
        if (auto kept = keeper_->keep("stage", parts_->stage->fd()); !kept) return kept;
    }
    if (auto kept = keep_spill(); !kept) return kept;
    for (std::uint32_t gpu = 0; gpu < gpus_.size(); ++gpu) {
        if (auto grown = grow(gpu); !grown) return grown;
        // The stage and this GPU's first segment, which has its number, are empty yet.
        if (config.flusher.costs)
            parts_->state.set_costs(gpu, *config.flusher.costs);
        else if (auto measured = measure_costs(gpu); !measured)
            return measured;
    }
    return make_threads(config);
}

/// Instead of start_up, after another process's death.
Result<void> PageStore::go_on(const StoreConfig& config, const HeldFds& held) {
    if (auto registered = register_stage(); !registered) return registered;
    if (auto kept = keep_spill(); !kept) return kept;
    if (auto imported = import_segments(held); !imported) return imported;
    const auto settled = settle_chunks(*parts_);
    if (!settled) return settled.error();
    log_info("taken over: {} pages; {} were being written", settled->pages, settled->pages_unwritten);
    if (settled->pages_lost != 0)
        log_error("{} pages were in memory that could not be had again: they are lost", settled->pages_lost);
    return make_threads(config);
}

/// A segment between two states is given back: there is nothing in it. One that could not be kept is lost;
/// that one that can be is not here is no death's doing.
Result<void> PageStore::import_segments(const HeldFds& held) {
    const auto segments = parts_->state.segments();
    for (std::uint32_t n = 0; n < segments.size(); ++n) {
        const auto kept = held.find(segment_key(n));
        const std::uint32_t gpu = segments[n].gpu;
        const bool is_used = segments[n].state.load() == SegmentEntry::State::in_use;
        if (is_used && gpu >= gpus_.size())
            return Error{Errc::failed, 0, fmt::format("segment {} is of a GPU that the device has not", n)};
        if (is_used && kept == held.end() && gpus_[gpu]->caps().exportable_segments)
            return Error{Errc::failed, 0, fmt::format("segment {} was not kept", n)};
        if (!is_used || kept == held.end()) {
            segments[n].state.store(SegmentEntry::State::none);
            if (kept != held.end()) drop(segment_key(n));
            continue;
        }
        auto id = gpus_[gpu]->import_segment(kept->second, Bytes{parts_->state.header().segment_bytes});
        if (!id) return std::move(id).error().in(fmt::format("cannot have segment {} again", n));
        parts_->set_segment(n, *id);
        parts_->slots.add_segment(n, gpu);
    }
    return {};
}

Result<void> PageStore::keep_spill() {
    if (parts_->spill == nullptr || keeper_ == nullptr) return {};
    if (auto kept = keeper_->keep("spill", parts_->spill->fd()); !kept) return kept;
    return keeper_->keep(kSpillBusyKey, parts_->spill->busy_fd());
}

Result<void> PageStore::register_stage() {
    for (Backend* gpu : gpus_)
        if (auto pinned = gpu->register_host(parts_->stage->memory()); !pinned)
            return std::move(pinned).error().in("cannot register the stage with the GPU");
    return {};
}

Result<void> PageStore::make_threads(const StoreConfig& config) {
    mergers_ = parts_->state.header().mergers;
    patience_ns_ = config.patience_ns;
    set_mode(config.mode);
    {
        const MutexLock lock(orders_mutex_);
        for (StoreOrder& order : orders_) order.mode = config.mode;
    }
    for (std::uint32_t gpu = 0; gpu < gpus_.size(); ++gpu)
        if (auto made = make_flusher(gpu, config); !made) return made;
    return make_mover();
}

Result<void> PageStore::measure_costs(std::uint32_t gpu) {
    auto queue = gpus_[gpu]->make_queue();
    if (!queue) return std::move(queue).error();
    parts_->state.set_costs(gpu, measure_copy_costs(**queue, gpus_[gpu]->caps(), parts_->stage->memory(),
                                                    parts_->segment_id(gpu)));
    return {};
}

Result<void> PageStore::make_flusher(std::uint32_t gpu, const StoreConfig& config) {
    FlusherParts own;
    own.gpu = gpu;
    own.age_ns_max = config.flusher.age_ns_max;
    own.mergers = mergers_;
    own.first_scratch = gpu * Mergers::scratch_chunks(mergers_);
    for (auto* queue : {&own.to_gpu, &own.from_gpu}) {
        auto made = gpus_[gpu]->make_queue();
        if (!made) return std::move(made).error();
        *queue = std::move(*made);
    }
    own.costs = parts_->state.header().costs.at(gpu);
    weights_[gpu] = std::max(1'000'000 / std::max(own.costs.page_ns, 1u), 1u);
    parts_->slots.set_weight(gpu, weights_[gpu]);
    flushers_.push_back(std::make_unique<Flusher>(*parts_, std::move(own)));
    parts_->carriers[gpu] = flushers_.back().get();
    return {};
}

Result<void> PageStore::make_mover() {
    std::vector<std::unique_ptr<TransferQueue>> queues;
    for (Backend* gpu : gpus_) {
        auto queue = gpu->make_queue();
        if (!queue) return std::move(queue).error();
        queues.push_back(std::move(*queue));
    }
    std::unique_ptr<SpillQueue> spill;
    if (parts_->spill != nullptr) {
        auto queue = parts_->spill->make_queue();
        if (!queue) return std::move(queue).error().in("cannot use the spill");
        spill = std::move(*queue);
    }
    const auto scratch = static_cast<std::uint32_t>(gpus_.size()) * Mergers::scratch_chunks(mergers_);
    mover_ = std::make_unique<Mover>(
        *parts_, std::make_unique<Moves>(*parts_, std::move(queues), std::move(spill), scratch));
    parts_->carriers[kSpillCarrier] = mover_.get();
    return {};
}

PageStore::~PageStore() {
    mover_.reset();
    flushers_.clear();
    for (Backend* gpu : gpus_) (void)gpu->unregister_host(parts_->stage->memory());
    if (keeps_all_) return;
    const auto segments = parts_->state.segments();
    for (std::uint32_t n = 0; n < segments.size(); ++n)
        if (segments[n].state == SegmentEntry::State::in_use) {
            (void)gpus_[segments[n].gpu]->free_segment(parts_->segment_id(n));
            drop(segment_key(n));  // a descriptor kept would keep the VRAM too
        }
    if (parts_->spill != nullptr) drop(kSpillBusyKey);
    if (parts_->spill != nullptr) drop("spill");
    drop("stage");
    drop("state");
}

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
    h.vram = Bytes{parts_->state.header().segment_bytes} * slots.segments(gpu);
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
    parts_->state.segments()[*number].gpu = gpu;
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
    if (auto freed = gpus_[segment.gpu]->free_segment(parts_->segment_id(*number));
        !freed && !parts_->lost[segment.gpu].load())
        log_warning("cannot give a segment back: {}", freed.error().text());
    drop(segment_key(*number));
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
