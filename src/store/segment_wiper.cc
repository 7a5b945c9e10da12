// SPDX-License-Identifier: MIT
#include "store/segment_wiper.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace vramswap {
namespace {

/// Of one copy, whose length has 32 bits.
constexpr std::uint64_t kCopyBytesMax = gib(2).n;

}  // namespace

SegmentWiper::SegmentWiper(std::vector<std::unique_ptr<TransferQueue>> queues, std::byte* zeros)
    : queues_(std::move(queues)), zeros_(zeros) {
    std::memset(zeros_, 0, kChunkBytes);
}

SegmentWiper::Wipe SegmentWiper::begin(std::uint32_t gpu, SegmentId segment, Bytes size) {
    Wipe wipe;
    const auto submit = [&](const Copy& copy) {
        return queues_[gpu]->submit({&copy, 1}, wipe.ticket) == IoStatus::pending;
    };
    if (!submit({Copy::Op::to_gpu, segment, 0, zeros_, static_cast<std::uint32_t>(kChunkBytes)})) return wipe;
    // Each submission runs after the one before it: see TransferQueue.
    for (std::uint64_t done = kChunkBytes; done < size.n;) {
        const std::uint64_t bytes = std::min({done, size.n - done, kCopyBytesMax});
        if (!submit({Copy::Op::within_gpu, segment, 0, nullptr, static_cast<std::uint32_t>(bytes), segment,
                     done}))
            return wipe;
        done += bytes;
    }
    wipe.complete = true;
    return wipe;
}

}  // namespace vramswap
