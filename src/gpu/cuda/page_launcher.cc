// SPDX-License-Identifier: MIT
#include "gpu/cuda/page_launcher.h"

#include <sched.h>

#include <algorithm>
#include <utility>

#include "base/clock.h"
#include "gpu/cuda/cuda_backend.h"
#include "gpu/cuda/pinned_pages.h"

namespace vramswap::cuda {
namespace {
/// After so many rounds a thread lets others launch, who publish all the time.
constexpr int kRoundsMax = 4;
}  // namespace

Result<CuDevicePtr> make_counter(CudaBackend& backend, CuStream stream) {
    auto zeros = PinnedPages::create(backend, kPageBytes);
    if (!zeros) return std::move(zeros).error();
    CuDevicePtr counter = 0;
    CuResult result = backend.api().mem_alloc(&counter, sizeof(std::uint32_t));
    if (result != code::kSuccess) return backend.fail(result, "cuMemAlloc of a counter");
    result = backend.api().memcpy_htod_async(counter, zeros->memory().data(), sizeof(std::uint32_t), stream);
    if (result == code::kSuccess) result = backend.api().stream_synchronize(stream);
    if (result == code::kSuccess) return counter;
    (void)backend.api().mem_free(counter);
    return backend.fail(result, "clearing a counter");
}

Result<std::unique_ptr<PageLauncher>> PageLauncher::create(CudaBackend& backend) {
    std::unique_ptr<PageLauncher> launcher(new PageLauncher(backend));
    if (auto ok = launcher->set_up(); !ok) return std::move(ok).error();
    return launcher;
}

Result<void> PageLauncher::set_up() {
    for (Lane& lane : lanes_) {
        const CuResult result = backend_.api().stream_create(&lane.stream, kStreamNonBlocking);
        if (result != code::kSuccess) return backend_.fail(result, "cuStreamCreate");
        auto counter = make_counter(backend_, lane.stream);
        if (!counter) return std::move(counter).error();
        lane.counter = *counter;
    }
    return {};
}

PageLauncher::~PageLauncher() {
    // After a loss nothing runs any more, and the driver's calls may hang.
    if (backend_.health() != Health::good) return;
    const ContextScope scope(backend_.api(), backend_.context());
    for (const Lane& lane : lanes_) {
        if (lane.counter != 0) (void)backend_.api().mem_free(lane.counter);
        if (lane.stream != nullptr) (void)backend_.api().stream_destroy(lane.stream);
    }
}

Result<void> PageLauncher::fill(const PagePairs& pairs, std::size_t pages) {
    if (std::exchange(filled_, true)) return {};
    for (const Lane& lane : lanes_) {
        CuResult result = code::kSuccess;
        for (std::size_t n = 0; n < TransferQueue::kDepth && result == code::kSuccess; ++n)
            result = backend_.launch_kernel(lane.stream, pairs, pages, PageKernelEnd{});
        if (result == code::kSuccess) result = backend_.api().stream_synchronize(lane.stream);
        if (result != code::kSuccess) return backend_.fail(result, "filling a stream");
    }
    return {};
}

void PageLauncher::publish(PageBatch& batch) {
    batch.published.store(true, std::memory_order_relaxed);
    batch.next = newest_.load(std::memory_order_relaxed);
    while (!newest_.compare_exchange_weak(batch.next, &batch)) continue;
    launch_published();
}

/// Nobody's batch is forgotten: who publishes it finds the turn free, or who has the turn looks again after
/// giving it back and finds the batch. (The order of newest_ and the turn is one for all threads.) That ends
/// after some rounds; then those who publish all the time also help all the time.
void PageLauncher::launch_published() {
    for (int round = 0; round < kRoundsMax && newest_.load() != nullptr; ++round) {
        if (!turn_.take()) return;
        launch_all(newest_.exchange(nullptr));
        turn_.give();
    }
}

/// Oldest first.
void PageLauncher::launch_all(PageBatch* newest) {
    PageBatch* oldest = nullptr;
    while (newest != nullptr) {
        PageBatch* const older = newest->next;
        newest->next = oldest;
        oldest = newest;
        newest = older;
    }
    while (oldest != nullptr) oldest = launch_some(oldest);
}

/// Makes one launch of as many batches from `first` on as it can take; returns the next batch.
PageBatch* PageLauncher::launch_some(PageBatch* first) {
    const bool alone = first->next == nullptr;  // its list can be launched as it is
    std::size_t pages = 0;
    end_.count = 0;
    PageBatch* rest = first;
    for (; rest != nullptr; rest = rest->next) {
        if (end_.count == kPageKernelTells || pages + rest->pages > kPageKernelLarge) break;
        end_.tells[end_.count++] = rest->tell;
        if (!alone)
            std::copy_n(rest->pairs.begin(), rest->pages,
                        pairs_.begin() + static_cast<std::ptrdiff_t>(pages));
        pages += rest->pages;
    }
    const CuResult result = launch(alone ? first->pairs : pairs_, pages);
    backend_.report(result);
    for (PageBatch* batch = first; batch != rest;) {
        PageBatch* const next = batch->next;
        if (result != code::kSuccess) batch->ends->fail(batch->ticket);
        batch->published.store(false, std::memory_order_release);  // from here on it may be gone
        batch = next;
    }
    return rest;
}

CuResult PageLauncher::launch(const PagePairs& pairs, std::size_t pages) {
    // After a loss the driver is not asked again: its calls may hang for a minute.
    if (backend_.health() != Health::good) return code::kContextIsDestroyed;
    if (const CuResult result = backend_.make_current(); result != code::kSuccess) return result;
    const Lane& lane = lanes_[next_lane_];
    next_lane_ = (next_lane_ + 1) % kStreams;
    end_.counter = lane.counter;
    return backend_.launch_kernel(lane.stream, pairs, pages, end_);
}

bool PageLauncher::settle(const PageBatch& batch) {
    constexpr int kSpinsBeforeYield = 1000;  // some 40 us
    for (int spins = 0; batch.published.load(std::memory_order_acquire); ++spins) {
        launch_published();
        if (spins < kSpinsBeforeYield) {
            cpu_relax();
            continue;
        }
        if (backend_.health() != Health::good) return !batch.published.load(std::memory_order_acquire);
        ::sched_yield();  // who launches has lost its CPU, or the driver hangs
    }
    return true;
}

CuResult PageLauncher::query(std::size_t n) const {
    if (const CuResult result = backend_.make_current(); result != code::kSuccess) return result;
    return backend_.api().stream_query(lanes_[n % kStreams].stream);
}

CuResult PageLauncher::synchronize() const {
    for (const Lane& lane : lanes_)
        if (const CuResult result = backend_.api().stream_synchronize(lane.stream); result != code::kSuccess)
            return result;
    return code::kSuccess;
}

}  // namespace vramswap::cuda
