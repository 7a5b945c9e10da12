// SPDX-License-Identifier: MIT
#include "store/copy_costs.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <vector>

#include "base/clock.h"
#include "store/checksum.h"
#include "store/page_memory.h"

namespace vramswap {
namespace {

constexpr std::size_t kRounds = 7;
constexpr std::uint32_t kSmallCopies = 64;
constexpr std::size_t kInFlight = 4;
constexpr std::uint64_t kPatienceNs = 100'000'000;

std::uint32_t median(std::array<std::uint64_t, kRounds>& values) {
    std::nth_element(values.begin(), values.begin() + kRounds / 2, values.end());
    return static_cast<std::uint32_t>(std::max<std::uint64_t>(values[kRounds / 2], 1));
}

/// Nanoseconds until `times` submissions of these copies are complete, all in flight together as in the
/// flusher; none if one fails or takes for ever.
std::optional<std::uint64_t> time_of(TransferQueue& queue, std::span<const Copy> copies, std::size_t times) {
    const std::uint64_t begin = now_ns();
    Ticket ticket = 0;
    for (std::size_t n = 0; n < times; ++n)
        if (queue.submit(copies, ticket) != IoStatus::pending) return {};
    for (std::uint64_t now = begin; now - begin < kPatienceNs; now = now_ns()) {
        const IoStatus status = queue.poll(ticket);
        if (status == IoStatus::ok) return now_ns() - begin;
        if (status != IoStatus::pending) return {};
    }
    return {};
}

/// Of one copy of `copies`, of which there are many.
std::optional<std::uint32_t> median_time(TransferQueue& queue, std::span<const Copy> copies) {
    std::array<std::uint64_t, kRounds> times{};
    for (auto& time : times) {
        const auto together = time_of(queue, copies, kInFlight);
        if (!together) return {};
        time = *together / (kInFlight * copies.size());
    }
    return median(times);
}

/// Of a page that the flusher fetches, checks and moves into an image. What the GPU has just written is in no
/// cache, so each round is preceded by a fetch.
std::optional<std::uint32_t> merge_time(TransferQueue& queue, std::span<std::byte> host, SegmentId segment) {
    std::array<std::uint64_t, kRounds> times{};
    std::uint64_t sum = 0;
    const Copy fetch{Copy::Op::from_gpu, segment, 0, host.data(), static_cast<std::uint32_t>(kChunkBytes)};
    for (auto& time : times) {
        if (!time_of(queue, {&fetch, 1}, 1)) return {};
        const std::uint64_t begin = now_ns();
        for (std::size_t p = 0; p < kChunkPages; p += 2) {
            const std::byte* page = host.data() + p * kPageBytes;
            sum ^= page_checksum(page, PageIndex{p});
            stream_page(host.data() + kChunkBytes + p * kPageBytes, page);
        }
        time = (now_ns() - begin) / (kChunkPages / 2);
    }
    std::memcpy(host.data(), &sum, sizeof sum);  // used, so that it is computed
    return median(times);
}

}  // namespace

CopyCosts measure_copy_costs(TransferQueue& queue, const Caps& caps, std::span<std::byte> host,
                             SegmentId segment) {
    CopyCosts costs;
    // Every second page: neighbours that a driver could join would be no small copies.
    std::vector<Copy> scattered;
    for (std::uint64_t n = 0; n < kSmallCopies; ++n)
        scattered.push_back({Copy::Op::to_gpu, segment, n * 2 * kPageBytes, host.data() + n * 2 * kPageBytes,
                             static_cast<std::uint32_t>(kPageBytes)});
    const Copy chunk{Copy::Op::to_gpu, segment, 0, host.data(), static_cast<std::uint32_t>(kChunkBytes)};
    const auto small = median_time(queue, scattered);
    const auto large = median_time(queue, {&chunk, 1});
    if (!small || !large) return costs;
    costs.small_copy_ns = costs.turbo_copy_ns = *small;
    costs.page_ns = std::max(*large / static_cast<std::uint32_t>(kChunkPages), 1u);
    if (const auto merge = merge_time(queue, host, segment)) costs.merge_page_ns = *merge;
    if (!caps.turbo) return costs;
    queue.set_mode(EngineMode::turbo);
    if (const auto turbo = median_time(queue, scattered)) costs.turbo_copy_ns = *turbo;
    queue.set_mode(EngineMode::copy);
    return costs;
}

}  // namespace vramswap
