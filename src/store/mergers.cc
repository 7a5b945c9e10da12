// SPDX-License-Identifier: MIT
#include "store/mergers.h"

#include <algorithm>

#include "store/checksum.h"
#include "store/page_memory.h"

namespace vramswap {

std::uint32_t Mergers::threads_for(std::uint32_t images, std::uint32_t cpus) {
    constexpr std::uint32_t kCpusOfAFew = 5;
    constexpr std::uint32_t kCpusOfMany = 9;
    const std::uint32_t wanted = cpus < kCpusOfAFew ? 0 : cpus < kCpusOfMany ? 2 : 3;
    return std::min(wanted, images / 4);  // so many images are on their way when the stage is short
}

Mergers::Mergers(StoreParts& parts, std::uint32_t threads, std::uint32_t first_scratch)
    : parts_(parts), thread_count_(threads) {
    for (std::uint32_t n = 0; n < scratch_chunks(threads); ++n)
        merges_[n].scratch = parts.stage->scratch(first_scratch + n);
}

Mergers::~Mergers() {
    stop();
}

Result<void> Mergers::start() {
    stopping_.store(false);
    for (std::uint32_t n = 0; n < thread_count_; ++n) {
        auto started = threads_[n].start(
            "vs-merger", [](void* self) { static_cast<Mergers*>(self)->run(); }, this);
        if (started) continue;
        stop();
        return started;
    }
    return {};
}

void Mergers::stop() {
    stopping_.store(true);
    for (const LockedThread& thread : threads_)
        if (thread.is_started()) waiting_.release();
    for (LockedThread& thread : threads_) thread.join();
}

void Mergers::run() {
    for (;;) {
        waiting_.acquire();
        // Each thread takes one more than it merges, so that what is left stands for what still waits.
        if (stopping_.load()) return;
        merge_waiting();
    }
}

bool Mergers::merge_one() {
    if (!waiting_.try_acquire()) return false;
    merge_waiting();
    return true;
}

Merge* Mergers::idle() {
    for (std::uint32_t n = 0; n < scratch_chunks(thread_count_); ++n)
        if (merges_[n].state.load(std::memory_order_relaxed) == Merge::State::idle) return &merges_[n];
    return nullptr;
}

void Mergers::hand_over(Merge& merge) {
    if (thread_count_ == 0) return complete(merge);
    merge.state.store(Merge::State::waiting, std::memory_order_release);
    waiting_.release();
}

/// REQUIRES: one was acquired of waiting_, so one that waits is there, though others may be faster to take
/// it.
void Mergers::merge_waiting() {
    for (std::size_t n = 0;; n = (n + 1) % merges_.size()) {
        auto waiting = Merge::State::waiting;
        if (merges_[n].state.compare_exchange_strong(waiting, Merge::State::merging,
                                                     std::memory_order_acquire, std::memory_order_relaxed))
            return complete(merges_[n]);
    }
}

/// Puts what the image lacks into it and freezes all that was fetched, but for pages that came wrong. Sent
/// back, they would overwrite what is perhaps right in VRAM.
void Mergers::complete(Merge& merge) {
    constexpr std::uint32_t kPagesAtOnce = 8;  // a writer of the chunk waits no longer
    ChunkEntry& entry = parts_.state.chunks()[merge.chunk];
    ImageHeader& h = parts_.stage->header(merge.image);
    const PageIndex first_of_chunk = first_page({merge.chunk});
    const std::uint32_t end = merge.fetched.first + merge.fetched.count;
    merge.sent.clear_all();
    merge.dirty = 0;
    for (std::uint32_t first = merge.fetched.first; first < end; first += kPagesAtOnce) {
        PageBits sent;
        const ChunkLock lock(entry);
        for (std::uint32_t p = first; p < std::min(first + kPagesAtOnce, end); ++p) {
            if (p + 1 < end) prefetch_page(merge.scratch + (p + 1) * kPageBytes);
            const PageIndex index{first_of_chunk.n + p};
            const PageEntry& page = parts_.state.pages()[index.n];
            if (!h.valid.test(p) && page.state() != PageEntry::State::absent) {
                const std::byte* fetched = merge.scratch + p * kPageBytes;
                if (!page.holds(page_checksum(fetched, index))) continue;
                stream_page(parts_.stage->page(merge.image, p), fetched);
                h.valid.set(p);
            }
            sent.set(p);
        }
        merge.dirty += StoreParts::freeze(h, sent);
        merge.sent.add(sent);
    }
    merge.state.store(Merge::State::done, std::memory_order_release);
}

}  // namespace vramswap
