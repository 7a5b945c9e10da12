// SPDX-License-Identifier: MIT
// How a PageStore comes to be, made anew or taken over, and how it ends.
#include <fmt/format.h>
#include <poll.h>

#include <algorithm>
#include <thread>

#include "base/log.h"
#include "store/page_store.h"
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

/// The last of the scratch chunks: SegmentWiper's zeros.
constexpr std::uint32_t kWiperChunks = 1;

/// At the end. What is not wiped then is freed with the process: the GPU hangs.
constexpr std::uint64_t kLastWipesNs = 5'000'000'000;

constexpr std::string_view kSpillBusyKey = "spill-busy";

std::string spill_key(std::size_t file) {
    return fmt::format("spill-{}", file);
}

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
    return gpus * Mergers::scratch_chunks(mergers) + (moves_through_host ? Moves::kScratchChunks : 0) +
           kWiperChunks;
}

}  // namespace

std::vector<UniqueFd> PageStore::spill_kept(const HeldFds& held) {
    std::vector<UniqueFd> files;
    for (auto kept = held.find(spill_key(0)); kept != held.end(); kept = held.find(spill_key(files.size())))
        files.push_back(kept->second.dup());
    return files;
}

std::string PageStore::segment_key(std::uint32_t number) {
    return fmt::format("segment-{}", number);
}

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
    if (auto made = make_wiper(config); !made) return made;
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
    if (auto made = make_wiper(config); !made) return made;
    if (auto kept = keep_spill(); !kept) return kept;
    if (auto imported = import_segments(held); !imported) return imported;
    const auto settled = settle_chunks(*parts_);
    if (!settled) return settled.error();
    log_info("taken over: {} pages; {} were being written", settled->pages, settled->pages_unwritten);
    if (settled->pages_lost != 0)
        log_error("{} pages were in memory that could not be had again: they are lost", settled->pages_lost);
    return make_threads(config);
}

/// A segment between two states is given back: it is nobody's home. One that could not be kept is lost;
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
        if (kept == held.end() || gpu >= gpus_.size()) {
            if (kept != held.end()) drop(segment_key(n));
            segments[n].state.store(SegmentEntry::State::none);
            continue;
        }
        auto id = gpus_[gpu]->import_segment(kept->second, Bytes{parts_->state.header().segment_bytes});
        if (!id && is_used) return std::move(id).error().in(fmt::format("cannot have segment {} again", n));
        if (!id) {  // nobody misses it
            log_warning("{}", std::move(id).error().in(fmt::format("cannot wipe segment {}", n)).text());
            drop(segment_key(n));
            continue;
        }
        parts_->set_segment(n, *id);
        if (is_used)
            parts_->slots.add_segment(n, gpu);
        else
            give_back_segment(n);
    }
    return {};
}

Result<void> PageStore::keep_spill() {
    if (parts_->spill == nullptr || keeper_ == nullptr) return {};
    const auto& files = parts_->spill->fds();
    for (std::size_t n = 0; n < files.size(); ++n)
        if (auto kept = keeper_->keep(spill_key(n), files[n]); !kept) return kept;
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

Result<std::vector<std::unique_ptr<TransferQueue>>> PageStore::make_gpu_queues() {
    std::vector<std::unique_ptr<TransferQueue>> queues;
    for (Backend* gpu : gpus_) {
        auto queue = gpu->make_queue();
        if (!queue) return std::move(queue).error();
        queues.push_back(std::move(*queue));
    }
    return queues;
}

Result<void> PageStore::make_wiper(const StoreConfig& config) {
    auto queues = make_gpu_queues();
    if (!queues) return std::move(queues).error();
    const auto scratch =
        scratch_chunks(config, static_cast<std::uint32_t>(gpus_.size()), parts_->state.header().mergers);
    wiper_ =
        std::make_unique<SegmentWiper>(std::move(*queues), parts_->stage->scratch(scratch - kWiperChunks));
    return {};
}

Result<void> PageStore::make_mover() {
    auto queues = make_gpu_queues();
    if (!queues) return std::move(queues).error();
    std::unique_ptr<SpillQueue> spill;
    if (parts_->spill != nullptr) {
        auto queue = parts_->spill->make_queue();
        if (!queue) return std::move(queue).error().in("cannot use the spill");
        spill = std::move(*queue);
    }
    const auto scratch = static_cast<std::uint32_t>(gpus_.size()) * Mergers::scratch_chunks(mergers_);
    mover_ = std::make_unique<Mover>(
        *parts_, std::make_unique<Moves>(*parts_, std::move(*queues), std::move(spill), scratch));
    parts_->carriers[kSpillCarrier] = mover_.get();
    return {};
}

PageStore::~PageStore() {
    mover_.reset();
    flushers_.clear();
    const auto segments = parts_->state.segments();
    for (std::uint32_t n = 0; n < segments.size() && !keeps_all_; ++n)
        if (segments[n].state == SegmentEntry::State::in_use) give_back_segment(n);
    if (!keeps_all_) finish_leaving(kLastWipesNs);
    wiper_.reset();
    for (Backend* gpu : gpus_) (void)gpu->unregister_host(parts_->stage->memory());
    if (keeps_all_) return;
    parts_->stage->wipe();
    if (parts_->spill != nullptr) {
        drop(kSpillBusyKey);
        for (std::size_t n = 0; n < parts_->spill->fds().size(); ++n) drop(spill_key(n));
    }
    drop("stage");
    drop("state");
}

}  // namespace vramswap
