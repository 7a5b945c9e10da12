// SPDX-License-Identifier: MIT
#include "store/parts.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/death_point.h"

namespace vramswap {
namespace {

/// Wakes whoever polls the eventfd. It cannot block: the counter never gets near its limit.
void signal_event(int fd) {
    constexpr std::uint64_t kOne = 1;
    [[maybe_unused]] const auto n = ::write(fd, &kOne, sizeof kOne);
}

}  // namespace

void warm_up_thread(TransferQueue& queue) {
    constexpr std::uint64_t kPatienceNs = 500'000'000;
    Ticket ticket = 0;
    if (queue.submit({}, ticket) != IoStatus::pending) return;
    const std::uint64_t end = now_ns() + kPatienceNs;
    while (queue.poll(ticket) == IoStatus::pending && now_ns() < end) cpu_relax();
}

StoreParts::StoreParts(State state_in, std::unique_ptr<Stage> stage_in, Spill* spill_in,
                       std::uint32_t gpus_in)
    : state(std::move(state_in)),
      stage(std::move(stage_in)),
      slots(state.header().segments_max,
            static_cast<std::uint32_t>(state.header().segment_bytes / kChunkBytes)),
      spill(spill_in),
      gpus(gpus_in),
      segment_ids_(state.header().segments_max),
      maintenance_fd_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
    for (auto& target : target_segments) target.store(~0u);
}

StoreParts::~StoreParts() {
    for (std::uint32_t i = 0; i < queues_used.load(); ++i) ::close(queues[i].event_fd.load());
}

bool StoreParts::leaves_it_to_the_next() const {
    if (!can_be_followed.load(std::memory_order_relaxed)) return false;
    for (std::uint32_t gpu = 0; gpu < gpus; ++gpu)
        if (backends[gpu] != nullptr && backends[gpu]->health() == Health::context_lost) return true;
    return false;
}

StoreParts::Place StoreParts::place(std::uint32_t slot) const {
    const std::uint32_t per_segment = slots.slots_per_segment();
    return {slots.gpu_of(slot), segment_id(slot / per_segment),
            std::uint64_t{slot % per_segment} * kChunkBytes};
}

void StoreParts::forget_page(ChunkIndex chunk, std::uint32_t page_in_chunk) {
    PageEntry& page = state.pages()[first_page(chunk).n + page_in_chunk];
    if (page.state() == PageEntry::State::absent) return;
    ChunkEntry& entry = state.chunks()[chunk.n];
    page.forget();
    death_point("page forgotten");
    --entry.stored;
    if (!entry.image.has()) return;
    ImageHeader& h = stage->header(entry.image.get());
    h.valid.clear(page_in_chunk);
    death_point("page no longer valid");
    if (h.dirty.test(page_in_chunk)) {
        h.dirty.clear(page_in_chunk);
        h.dirty_pages.fetch_sub(1, std::memory_order_relaxed);
    }
}

void StoreParts::release_if_empty(ChunkEntry& entry) {
    if (entry.stored != 0 || entry.pins != 0) return;
    if (entry.image.has()) {
        stage->give(entry.image.get());
        death_point("image of an empty chunk given back");
        entry.image.reset();
        notify_room();
    }
    if (entry.slot.has()) {
        const std::uint32_t slot = entry.slot.get();
        entry.slot.reset();
        death_point("slot of an empty chunk forgotten");
        give_slot(slot);
    }
    if (entry.spill.has()) {
        const std::uint32_t slot = entry.spill.get();
        entry.spill.reset();
        death_point("spill slot of an empty chunk forgotten");
        spill->give_back(slot);
        if (spill->needs_slots()) request_maintenance();
    }
}

void StoreParts::give_slot(std::uint32_t slot) {
    slots.give(slot);
    if (slots.has_empty_closed() || slots.free_slots() >= 2 * slots.slots_per_segment())
        request_maintenance();
}

void StoreParts::mark_dirty(ImageHeader& header, std::uint64_t now) {
    const std::uint32_t count = header.dirty.count();
    if (header.dirty_pages.load(std::memory_order_relaxed) == 0)
        header.dirty_since_ns.store(now, std::memory_order_relaxed);
    header.dirty_pages.store(count, std::memory_order_seq_cst);  // before Flusher::kick looks who sleeps
}

std::uint32_t StoreParts::freeze(ImageHeader& header, const PageBits& pages) {
    const std::uint32_t dirty = header.dirty.count();
    header.in_flight.add(pages);
    keep_order();  // a page is dirty or in flight at every instant
    death_point("pages in flight and dirty");
    header.dirty.remove(pages);
    death_point("pages in flight");
    const std::uint32_t left = header.dirty.count();
    header.dirty_pages.store(left, std::memory_order_relaxed);
    return dirty - left;
}

void StoreParts::notify_room(const QueueSlot* but) {
    const std::uint32_t used = queues_used.load(std::memory_order_acquire);
    for (std::uint32_t i = 0; i < used; ++i)
        if (&queues[i] != but && queues[i].waiting.load(std::memory_order_seq_cst) &&
            queues[i].waiting.exchange(false))
            signal_event(queues[i].event_fd.load(std::memory_order_relaxed));
}

void StoreParts::request_maintenance() {
    if (!maintenance_requested_.exchange(true)) signal_event(maintenance_fd_.get());
}

void StoreParts::maintenance_begins() {
    std::uint64_t count = 0;
    [[maybe_unused]] const auto n = ::read(maintenance_fd_.get(), &count, sizeof count);
    maintenance_requested_.store(false);
}

}  // namespace vramswap
