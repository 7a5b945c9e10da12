// SPDX-License-Identifier: MIT
// Stage: the pool of chunk images in pinned host memory where writes are acknowledged. An image belongs to
// one chunk; its header lives in the state, its bytes in a memfd of their own, and both are guarded by that
// chunk's lock. The pool's free list has a short lock of its own, taken inside a chunk lock. Any I/O thread;
// nothing allocates.
//
// An image is free -> filling (dirty pages) -> in flight -> clean (a cache) -> free. Only the flusher makes
// clean images free, so writers never need another chunk's lock.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/mutex.h"
#include "base/result.h"
#include "store/state.h"

namespace vramswap {

class Stage {
  public:
    /// Takes the headers from `state` (which must outlive it) and makes the memory for them, all images free,
    /// and for so many chunks of scratch memory.
    static Result<std::unique_ptr<Stage>> create(const State& state, std::uint32_t scratch_chunks);
    /// The same with another process's memory: images whose header names a chunk are that chunk's. Errors:
    /// no_memory, failed.
    static Result<std::unique_ptr<Stage>> adopt(const State& state, std::uint32_t scratch_chunks,
                                                const UniqueFd& fd);
    ~Stage();
    Stage(const Stage&) = delete;
    Stage& operator=(const Stage&) = delete;

    /// A free image, now `chunk`'s, without valid pages; none if all are taken. Call under the chunk's lock.
    std::optional<std::uint32_t> take(ChunkIndex chunk) VS_EXCLUDES(mutex_);
    /// Call under the lock of its chunk. REQUIRES: nothing dirty or in flight.
    void give(std::uint32_t image) VS_EXCLUDES(mutex_);

    [[nodiscard]] ImageHeader& header(std::uint32_t image) const { return headers_[image]; }
    [[nodiscard]] std::byte* page(std::uint32_t image, std::uint32_t page_in_chunk) const {
        return memory_.bytes.data() + std::size_t{image} * kChunkBytes +
               std::size_t{page_in_chunk} * kPageBytes;
    }
    /// A chunk of memory beside the images, for the flusher and its mergers to work in.
    [[nodiscard]] std::byte* scratch(std::uint32_t n) const { return page(images() + n, 0); }
    [[nodiscard]] std::uint32_t images() const { return static_cast<std::uint32_t>(headers_.size()); }
    /// Sequentially consistent: a queue that registers for room and then sees 0 is woken by the next give.
    [[nodiscard]] std::uint32_t free_images() const { return free_count_.load(); }
    /// With fewer free ones the stage is short: the flusher makes more, and only those who fill images take
    /// one.
    [[nodiscard]] std::uint32_t free_images_low() const { return std::max(1u, images() / 4); }
    [[nodiscard]] std::span<std::byte> memory() const { return memory_.bytes; }
    /// Zeros in place of everything, for whoever has the memory, or its descriptor, afterwards. REQUIRES:
    /// nobody uses it.
    void wipe() VS_EXCLUDES(mutex_);
    [[nodiscard]] const UniqueFd& fd() const { return memory_.fd; }

  private:
    Stage(std::span<ImageHeader> headers, SharedMemory memory);
    static std::size_t bytes_for(const State& state, std::uint32_t scratch_chunks) {
        return (std::size_t{state.header().images} + scratch_chunks) * kChunkBytes;
    }

    const std::span<ImageHeader> headers_;
    const SharedMemory memory_;
    std::atomic<std::uint32_t> free_count_{0};
    Mutex mutex_;
    std::uint32_t images_used_ VS_GUARDED_BY(mutex_) = 0;    ///< these and no others were ever taken
    std::vector<std::uint32_t> free_ VS_GUARDED_BY(mutex_);  ///< a stack of fixed capacity
};

}  // namespace vramswap
