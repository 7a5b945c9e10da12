// SPDX-License-Identifier: MIT
#include "store/takeover.h"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "base/clock.h"
#include "store/checksum.h"

namespace vramswap {
namespace {

Error contradiction(std::uint32_t chunk, const char* what) {
    return Error{Errc::failed, 0,
                 fmt::format("the state that was kept is damaged: chunk {} {}", chunk, what)};
}

/// One chunk after the other; knows nothing of the next.
class ChunkSettler {
  public:
    explicit ChunkSettler(StoreParts& parts) : parts_(parts) {}

    Result<void> settle(ChunkIndex chunk);
    /// Gives those a home that have lost theirs and have pages in the stage. After all are settled.
    void house_the_homeless();
    [[nodiscard]] const std::vector<std::uint32_t>& spill_slots() const { return spill_slots_; }
    [[nodiscard]] const TakeoverReport& report() const { return report_; }

  private:
    Result<void> settle_home(ChunkEntry& entry, std::uint32_t chunk);
    void settle_staged(ChunkEntry& entry, ChunkIndex chunk);
    void settle_stored(ChunkEntry& entry, ChunkIndex chunk);
    void release(ChunkEntry& entry);
    void lose(ImageHeader& header, ChunkIndex chunk);

    StoreParts& parts_;
    std::vector<std::uint32_t> spill_slots_;
    std::vector<ChunkIndex> homeless_;
    TakeoverReport report_;
};

Result<void> ChunkSettler::settle(ChunkIndex chunk) {
    ChunkEntry& entry = parts_.state.chunks()[chunk.n];
    entry.locked.store(0);
    entry.pins = 0;
    entry.writing = 0;
    entry.moving = ChunkEntry::Moving::no;
    entry.flushing = false;
    if (auto settled = settle_home(entry, chunk.n); !settled) return settled;
    if (entry.image.has()) settle_staged(entry, chunk);
    settle_stored(entry, chunk);
    if (entry.stored == 0) {
        release(entry);
    } else if (entry.image.has()) {
        ImageHeader& header = parts_.stage->header(entry.image.get());
        header.dirty_pages.store(header.dirty.count());
        header.dirty_since_ns.store(std::min(header.dirty_since_ns.load(), now_ns()));
        if (entry.has_home())
            header.carrier.store(parts_.carrier_of(entry));
        else
            homeless_.push_back(chunk);
    }
    if (entry.spill.has()) spill_slots_.push_back(entry.spill.get());
    return {};
}

/// A change of home sets the new one first, and both are whole until the old one is given back: one is
/// enough.
Result<void> ChunkSettler::settle_home(ChunkEntry& entry, std::uint32_t chunk) {
    if (entry.slot.has()) {
        const std::uint32_t segment = entry.slot.get() / parts_.slots.slots_per_segment();
        if (segment >= parts_.state.segments().size())
            return contradiction(chunk, "has a slot that cannot be");
        if (parts_.state.segments()[segment].state.load() == SegmentEntry::State::none)
            entry.slot.reset();  // could not be had again
        else if (!parts_.slots.adopt(entry.slot.get()))
            return contradiction(chunk, "has another's slot");
    }
    if (entry.spill.has() && (entry.slot.has() || parts_.spill == nullptr)) entry.spill.reset();
    return {};
}

/// Copies on their way may have ended or not: they are made again. What was being copied into the image does
/// not match its checksum: the page is what its home has, or lost if that has not the last of it.
void ChunkSettler::settle_staged(ChunkEntry& entry, ChunkIndex chunk) {
    const std::uint32_t image = entry.image.get();
    ImageHeader& header = parts_.stage->header(image);
    header.in_flight.keep_only(header.valid);
    header.dirty.add(header.in_flight);
    keep_order();  // this process may be killed, too
    header.in_flight.clear_all();
    const PageIndex first = first_page(chunk);
    for (std::uint32_t p = 0; p < kChunkPages; ++p) {
        PageEntry& page = parts_.state.pages()[first.n + p];
        const bool is_staged = header.valid.test(p);
        if (is_staged && page.holds(page_checksum(parts_.stage->page(image, p), {first.n + p}))) continue;
        if (is_staged && header.dirty.test(p) && page.state() == PageEntry::State::stored) {
            page.set(PageEntry::word_of(PageEntry::State::lost, 0));
            ++report_.pages_unwritten;
        }
        header.valid.clear(p);
        header.dirty.clear(p);
    }
}

/// Counts the pages; those on their way from a request straight to VRAM, and those without a place, are lost.
void ChunkSettler::settle_stored(ChunkEntry& entry, ChunkIndex chunk) {
    std::uint16_t stored = 0;
    const PageIndex first = first_page(chunk);
    for (std::uint32_t p = 0; p < kChunkPages; ++p) {
        PageEntry& page = parts_.state.pages()[first.n + p];
        const bool is_staged = entry.image.has() && parts_.stage->header(entry.image.get()).valid.test(p);
        switch (page.state()) {
            case PageEntry::State::absent:
                continue;
            case PageEntry::State::lost:
                break;
            case PageEntry::State::writing:
                page.set(PageEntry::word_of(PageEntry::State::lost, 0));
                ++report_.pages_unwritten;
                break;
            case PageEntry::State::stored:
                ++report_.pages;
                if (entry.has_home()) break;
                if (is_staged) {
                    parts_.stage->header(entry.image.get()).dirty.set(p);  // nowhere else
                    break;
                }
                page.set(PageEntry::word_of(PageEntry::State::lost, 0));
                --report_.pages;
                ++report_.pages_lost;
                break;
        }
        ++stored;
    }
    entry.stored = stored;
}

void ChunkSettler::release(ChunkEntry& entry) {
    if (entry.image.has()) parts_.stage->give(entry.image.get());
    entry.image.reset();
    if (entry.slot.has()) parts_.slots.give(entry.slot.get());
    entry.slot.reset();
    entry.spill.reset();
}

void ChunkSettler::house_the_homeless() {
    if (!homeless_.empty() && parts_.spill != nullptr) static_cast<void>(parts_.spill->maintain());  // room
    for (const ChunkIndex chunk : homeless_) {
        ChunkEntry& entry = parts_.state.chunks()[chunk.n];
        ImageHeader& header = parts_.stage->header(entry.image.get());
        std::uint32_t spilled = 0;
        if (const auto slot = parts_.slots.take()) {
            entry.slot.set(*slot);
        } else if (parts_.spill != nullptr && parts_.spill->take(spilled) == IoStatus::ok) {
            entry.spill.set(spilled);
        } else {
            lose(header, chunk);
            parts_.stage->give(entry.image.get());
            entry.image.reset();
            continue;
        }
        header.carrier.store(parts_.carrier_of(entry));
    }
}

/// What it has is nowhere else, and there is no room for it.
void ChunkSettler::lose(ImageHeader& header, ChunkIndex chunk) {
    header.dirty.for_each_run([&](PageRun run) {
        for (std::uint32_t p = run.first; p < run.first + run.count; ++p) {
            PageEntry& page = parts_.state.pages()[first_page(chunk).n + p];
            if (page.state() != PageEntry::State::stored) continue;
            page.set(PageEntry::word_of(PageEntry::State::lost, 0));
            --report_.pages;
            ++report_.pages_lost;
        }
    });
    header.dirty.clear_all();
    header.valid.clear_all();
    header.dirty_pages.store(0);
}

}  // namespace

void settle_images(const State& state) {
    const auto images = state.images();
    const auto chunks = state.chunks();
    // An image is given back before its chunk forgets it, and may be another's by then: the header is right.
    for (std::uint32_t chunk = 0; chunk < chunks.size(); ++chunk) {
        OptionalIndex& image = chunks[chunk].image;
        if (!image.has()) continue;
        if (image.get() >= images.size() || images[image.get()].chunk_plus_one.load() != chunk + 1)
            image.reset();
    }
    // And it is taken before its chunk knows it.
    for (std::uint32_t n = 0; n < images.size(); ++n) {
        const std::uint32_t plus_one = images[n].chunk_plus_one.load();
        if (plus_one == 0) continue;
        const bool known = plus_one <= chunks.size() && chunks[plus_one - 1].image.look() == n;
        if (!known) images[n].chunk_plus_one.store(0);
        if (!known) images[n].dirty_pages.store(0);
    }
}

Result<TakeoverReport> settle_chunks(StoreParts& parts) {
    ChunkSettler settler(parts);
    const auto chunks = parts.state.chunks();
    std::uint32_t newest = 0;
    for (std::uint32_t chunk = 0; chunk < chunks.size(); ++chunk) {
        if (auto settled = settler.settle({chunk}); !settled) return std::move(settled).error();
        newest = std::max(newest, chunks[chunk].last_use.load());
    }
    parts.use_clock.store(newest + 1);
    if (parts.spill != nullptr)
        if (auto known = parts.spill->adopt_used(settler.spill_slots()); !known)
            return std::move(known).error().in("the state that was kept is damaged");
    settler.house_the_homeless();
    return settler.report();
}

}  // namespace vramswap
