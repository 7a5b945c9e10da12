// SPDX-License-Identifier: MIT
#include "store/page_store.h"

#include <fmt/format.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <thread>

#include "base/log.h"
#include "store/store_queue.h"

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

std::string segment_key(std::uint32_t number) {
    return fmt::format("segment-{}", number);
}
}  // namespace

Result<std::unique_ptr<PageStore>> PageStore::create(Backend& gpu, const StoreConfig& config,
                                                     FdKeeper* keeper) {
    const std::uint64_t images = config.stage.n / kChunkBytes;
    if (images < kImagesMin)
        return Error{Errc::usage, 0, fmt::format("a stage of {} is too small", format_size(config.stage)),
                     fmt::format("Give it at least {}", format_size(Bytes{kChunkBytes} * kImagesMin))};
    if (config.segment.n % gpu.caps().granularity.n != 0)
        return Error{Errc::usage, 0,
                     fmt::format("segments of {} do not suit this GPU", format_size(config.segment))};
    if (config.mode == EngineMode::turbo && !gpu.caps().turbo)
        return Error{Errc::unavailable, 0, fmt::format("mode turbo is not available on {}", gpu.info().name),
                     "Use mode copy. Turbo needs CUDA and a GPU from Maxwell on"};
    auto state = State::create({config.size, config.segment, static_cast<std::uint32_t>(images)});
    if (!state) return std::move(state).error();
    StoreConfig chosen = config;
    chosen.flusher.mergers = choose_mergers(config);
    auto stage = Stage::create(*state, Mergers::scratch_chunks(*chosen.flusher.mergers));
    if (!stage) return std::move(stage).error();
    auto parts = std::make_unique<StoreParts>(std::move(*state), std::move(*stage));
    std::unique_ptr<PageStore> store(new PageStore(gpu, keeper, std::move(parts)));
    if (auto started = store->start_up(chosen); !started) return std::move(started).error();
    return store;
}

PageStore::PageStore(Backend& gpu, FdKeeper* keeper, std::unique_ptr<StoreParts> parts)
    : gpu_(gpu), keeper_(keeper), parts_(std::move(parts)) {}

Result<void> PageStore::start_up(const StoreConfig& config) {
    if (auto pinned = gpu_.register_host(parts_->stage->memory()); !pinned)
        return std::move(pinned).error().in("cannot register the stage with the GPU");
    if (keeper_ != nullptr) {
        if (auto kept = keeper_->keep("state", parts_->state.fd()); !kept) return kept;
        if (auto kept = keeper_->keep("stage", parts_->stage->fd()); !kept) return kept;
    }
    if (auto grown = grow(); !grown) return grown;
    auto to_gpu = gpu_.make_queue();
    if (!to_gpu) return std::move(to_gpu).error();
    auto from_gpu = gpu_.make_queue();
    if (!from_gpu) return std::move(from_gpu).error();
    set_mode(config.mode);
    // The stage and the first segment are empty yet.
    const CopyCosts costs =
        config.flusher.costs
            ? *config.flusher.costs
            : measure_copy_costs(**to_gpu, gpu_.caps(), parts_->stage->memory(), parts_->segment_id(0));
    flusher_ =
        std::make_unique<Flusher>(*parts_, std::move(*to_gpu), std::move(*from_gpu),
                                  config.flusher.age_ns_max, costs, config.flusher.mergers.value_or(0));
    return {};
}

PageStore::~PageStore() {
    flusher_.reset();
    (void)gpu_.unregister_host(parts_->stage->memory());
    const auto segments = parts_->state.segments();
    for (std::uint32_t n = 0; n < segments.size(); ++n)
        if (segments[n].state == SegmentEntry::State::in_use) {
            (void)gpu_.free_segment(parts_->segment_id(n));
            drop(segment_key(n));  // a descriptor kept would keep the VRAM too
        }
    drop("stage");
    drop("state");
}

Bytes PageStore::size() const {
    return {parts_->state.header().device_bytes};
}

Result<void> PageStore::start() {
    return flusher_->start();
}

Result<std::unique_ptr<TargetQueue>> PageStore::make_queue(std::uint32_t depth) {
    if (depth == 0 || depth > TransferQueue::kDepth)
        return Error{
            Errc::usage, 0,
            fmt::format("a queue of depth {} is not between 1 and {}", depth, TransferQueue::kDepth)};
    auto gpu = gpu_.make_queue();
    if (!gpu) return std::move(gpu).error();
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
    slot.in_use.store(true);
    return std::unique_ptr<TargetQueue>(new StoreQueue(*parts_, *flusher_, std::move(*gpu), slot, depth));
}

Result<void> PageStore::register_memory(std::span<std::byte> memory) {
    return gpu_.register_host(memory);
}
Result<void> PageStore::unregister_memory(std::span<std::byte> memory) {
    return gpu_.unregister_host(memory);
}

Result<void> PageStore::grow() {
    const auto number = parts_->slots.unused_segment();
    if (!number) return {};
    const Bytes size{parts_->state.header().segment_bytes};
    auto id = gpu_.allocate_segment(size);
    if (!id) return std::move(id).error();
    if (keeper_ != nullptr && gpu_.caps().exportable_segments) {
        auto fd = gpu_.export_segment(*id);
        auto kept = fd ? keeper_->keep(segment_key(*number), *fd) : Result<void>(fd.error());
        if (!kept) {
            (void)gpu_.free_segment(*id);
            return kept;
        }
    }
    parts_->set_segment(*number, *id);
    parts_->state.segments()[*number] = {SegmentEntry::State::in_use, 0, size.n};
    parts_->slots.add_segment(*number);
    return {};
}

void PageStore::shrink() {
    const auto number = parts_->slots.remove_empty_segment();
    if (!number) return;
    parts_->state.segments()[*number].state = SegmentEntry::State::none;
    if (auto freed = gpu_.free_segment(parts_->segment_id(*number)); !freed)
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
    SlotAllocator& slots = parts_->slots;
    const std::uint32_t per_segment = slots.slots_per_segment();
    const bool missing = parts_->slot_missing.exchange(false);
    bool failed = false;
    const auto wants_more = [&](bool one_at_least) {
        return (one_at_least || slots.free_slots() < per_segment / 2 + 1) &&
               slots.segments() * per_segment < parts_->state.header().chunks;
    };
    for (bool one_at_least = missing; !failed && wants_more(one_at_least); one_at_least = false) {
        const auto grown = grow();
        failed = !grown.has_value();
        if (failed && !parts_->growth_failed.load())
            log_warning("no more VRAM to be had, writes are refused when the segments are full: {}",
                        grown.error().text());
    }
    parts_->growth_failed.store(failed);
    for (std::uint32_t segments = slots.segments(); !missing && slots.free_slots() >= 2 * per_segment;
         segments = slots.segments()) {
        shrink();
        if (slots.segments() == segments) break;  // free slots, but no segment is entirely free
    }
    parts_->notify_room();
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
        s.reread_pages += c.reread_pages.load(std::memory_order_relaxed);
        s.read_errors += c.read_errors.load(std::memory_order_relaxed);
        s.writes_refused += c.writes_refused.load(std::memory_order_relaxed);
        s.retries += c.retries.load(std::memory_order_relaxed);
    }
    s.pages_flushed = flusher_->pages_flushed();
    s.flush_copies = flusher_->copies();
    s.pages_bridged = flusher_->pages_bridged();
    s.images_completed = flusher_->completed_images();
    s.flush_errors = flusher_->errors();
    s.writes_are_refused = parts_->refuse_writes.load();
    s.gpu = gpu_.health();
    s.mode = parts_->mode.load(std::memory_order_relaxed);
    return s;
}

}  // namespace vramswap
