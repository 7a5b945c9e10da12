// SPDX-License-Identifier: MIT
#include "store/stage.h"

#include <sys/mman.h>

#include <cstring>

#include "base/death_point.h"

namespace vramswap {

Result<std::unique_ptr<Stage>> Stage::create(const State& state, std::uint32_t scratch_chunks) {
    auto memory = make_shared_memory("vramswap-stage", bytes_for(state, scratch_chunks));
    if (!memory) return std::move(memory).error();
    return std::unique_ptr<Stage>(new Stage(state.images(), std::move(*memory)));
}

Result<std::unique_ptr<Stage>> Stage::adopt(const State& state, std::uint32_t scratch_chunks,
                                            const UniqueFd& fd) {
    auto memory = adopt_shared_memory("the stage", fd, bytes_for(state, scratch_chunks));
    if (!memory) return std::move(memory).error();
    std::unique_ptr<Stage> stage(new Stage(state.images(), std::move(*memory)));
    const MutexLock lock(stage->mutex_);
    stage->images_used_ = stage->images();  // by whomever
    return stage;
}

Stage::Stage(std::span<ImageHeader> headers, SharedMemory memory)
    : headers_(headers), memory_(std::move(memory)) {
    const MutexLock lock(mutex_);
    free_.reserve(headers_.size());
    for (auto n = static_cast<std::uint32_t>(headers_.size()); n-- > 0;)
        if (headers_[n].chunk_plus_one.load() == 0) free_.push_back(n);
    free_count_ = static_cast<std::uint32_t>(free_.size());
}

Stage::~Stage() {
    ::munmap(memory_.bytes.data(), memory_.bytes.size());
}

void Stage::wipe() {
    const MutexLock lock(mutex_);
    const std::size_t used = images_used_ * kChunkBytes;
    const std::span<std::byte> scratch = memory_.bytes.subspan(headers_.size() * kChunkBytes);
    ::explicit_bzero(memory_.bytes.data(), used);
    ::explicit_bzero(scratch.data(), scratch.size());
}

std::optional<std::uint32_t> Stage::take(ChunkIndex chunk) {
    if (free_images() == 0) return std::nullopt;
    std::uint32_t image = 0;
    {
        const MutexLock lock(mutex_);
        if (free_.empty()) return std::nullopt;
        image = free_.back();
        free_.pop_back();
        images_used_ = std::max(images_used_, image + 1);
        free_count_.fetch_sub(1);
    }
    ImageHeader& h = headers_[image];
    h.valid.clear_all();
    h.dirty.clear_all();
    h.in_flight.clear_all();
    h.dirty_pages.store(0, std::memory_order_relaxed);
    h.chunk_plus_one.store(chunk.n + 1, std::memory_order_release);
    death_point("image taken");
    return image;
}

void Stage::give(std::uint32_t image) {
    headers_[image].chunk_plus_one.store(0, std::memory_order_release);
    death_point("image given back");
    const MutexLock lock(mutex_);
    free_.push_back(image);
    free_count_.fetch_add(1);
}

}  // namespace vramswap
