// SPDX-License-Identifier: MIT
// Mergers: alone, over images made by hand; and behind the flusher, where what an image may meet while it
// waits for a merger, or is merged but not sent, is chosen step by step. That images come out right is shown
// by all of CompletedImage (store_flusher_test.cc), which runs with a merger too.
#include <gtest/gtest.h>

#include <array>
#include <memory>

#include "store/checksum.h"
#include "support/store_fixture.h"
#include "support/threads.h"

namespace vramswap {
namespace {

using test::asleep;
using test::content_for;
using test::content_of;
using test::eventually;
using test::fill_page;
using test::page_of;

constexpr const char* kThread = "vs-merger";

TEST(Mergers, AreAsManyAsTheMachineHasRoomFor) {
    constexpr std::uint32_t kImages = 16;
    EXPECT_EQ(Mergers::threads_for(kImages, 1), 0u);
    EXPECT_EQ(Mergers::threads_for(kImages, 4), 0u);
    EXPECT_EQ(Mergers::threads_for(kImages, 5), 2u);
    EXPECT_EQ(Mergers::threads_for(kImages, 8), 2u);
    EXPECT_EQ(Mergers::threads_for(kImages, 9), 3u);
    EXPECT_EQ(Mergers::threads_for(kImages, 128), 3u);
    EXPECT_EQ(Mergers::threads_for(4, 128), 1u);
    EXPECT_EQ(Mergers::threads_for(3, 128), 0u);
}

/// Three chunks with an image each, in which only page 1 is valid and dirty; the scratch memory of a merge
/// has pages 0 to 2 as fetched.
class MergersAlone : public ::testing::Test {
  protected:
    static constexpr std::uint32_t kThreads = 3;
    static constexpr std::uint32_t kChunks = 3;

    MergersAlone() {
        auto state = std::move(*State::create({{kChunks * kChunkBytes}, mib(4), kChunks}));
        auto stage = std::move(*Stage::create(state, Mergers::scratch_chunks(kThreads)));
        parts_ = std::make_unique<StoreParts>(std::move(state), std::move(stage), nullptr, 1);
        mergers_ = std::make_unique<Mergers>(*parts_, kThreads, 0);
    }
    ChunkEntry& entry(std::uint32_t chunk) { return parts_->state.chunks()[chunk]; }
    ImageHeader& header(const Merge& merge) { return parts_->stage->header(merge.image); }

    /// As the flusher does when the GPU has fetched.
    Merge& prepare(std::uint32_t chunk) {
        Merge& merge = *mergers_->idle();
        merge.state.store(Merge::State::fetching);
        merge.chunk = chunk;
        merge.image = *parts_->stage->take(ChunkIndex{chunk});
        entry(chunk).image.set(merge.image);
        merge.fetched = {0, 3};
        for (std::uint32_t p = 0; p < 3; ++p) {
            std::byte* const bytes = merge.scratch + p * kPageBytes;
            fill_page(bytes, content_for(page_of(chunk, p), 1));
            parts_->state.pages()[page_of(chunk, p).n].store(page_checksum(bytes, page_of(chunk, p)));
        }
        fill_page(parts_->stage->page(merge.image, 1), content_for(page_of(chunk, 1), 2));
        header(merge).valid.set(1);
        header(merge).dirty.set(1);
        header(merge).dirty_pages = 1;
        return merge;
    }
    void expect_merged(const Merge& merge) {
        ASSERT_TRUE(merge.is_done());
        EXPECT_EQ(merge.dirty, 1u);
        EXPECT_EQ(merge.sent.count(), 3u);
        for (std::uint32_t p = 0; p < 3; ++p)
            EXPECT_EQ(content_of(parts_->stage->page(merge.image, p)),
                      content_for(page_of(merge.chunk, p), p == 1 ? 2 : 1));
    }
    static bool await(const Merge& merge) {
        return eventually([&merge] { return merge.is_done(); });
    }

    std::unique_ptr<StoreParts> parts_;
    std::unique_ptr<Mergers> mergers_;
};

TEST_F(MergersAlone, EachMergeIsDoneOnce) {
    std::array<Merge*, kChunks> merges{};
    for (std::uint32_t c = 0; c < kChunks; ++c) merges[c] = &prepare(c);
    EXPECT_FALSE(mergers_->merge_one());
    mergers_->hand_over(*merges[2]);
    mergers_->hand_over(*merges[0]);
    EXPECT_TRUE(mergers_->merge_one());
    EXPECT_TRUE(mergers_->merge_one());
    EXPECT_FALSE(mergers_->merge_one());
    expect_merged(*merges[0]);
    expect_merged(*merges[2]);
    EXPECT_FALSE(merges[1]->is_done());
    EXPECT_EQ(header(*merges[1]).in_flight.count(), 0u);
}

TEST_F(MergersAlone, ScratchMemoryIsOnesOwn) {
    std::array<bool, Mergers::scratch_chunks(kThreads)> used{};
    for (std::size_t n = 0; n < used.size(); ++n) {
        Merge* const merge = mergers_->idle();
        ASSERT_NE(merge, nullptr);
        merge->state = Merge::State::fetching;
        const auto chunk = (merge->scratch - parts_->stage->scratch(0)) / static_cast<long>(kChunkBytes);
        ASSERT_FALSE(used.at(static_cast<std::size_t>(chunk)));
        used.at(static_cast<std::size_t>(chunk)) = true;
    }
    EXPECT_EQ(mergers_->idle(), nullptr);
}

TEST_F(MergersAlone, WorkSideBySide) {
    std::array<Merge*, kChunks> merges{};
    for (std::uint32_t c = 0; c < kChunks; ++c) merges[c] = &prepare(c);
    ASSERT_TRUE(mergers_->start());
    {
        const ChunkLock first(entry(0));
        const ChunkLock second(entry(1));  // two of three cannot go on
        for (Merge* merge : merges) mergers_->hand_over(*merge);
        EXPECT_TRUE(await(*merges[2]));
        EXPECT_FALSE(merges[0]->is_done());
        EXPECT_FALSE(merges[1]->is_done());
    }
    for (Merge* merge : merges) {
        ASSERT_TRUE(await(*merge));
        expect_merged(*merge);
    }
}

TEST_F(MergersAlone, WhatIsHandedOverWaitsForTheNextStart) {
    Merge& first = prepare(0);
    ASSERT_TRUE(mergers_->start());
    mergers_->hand_over(first);
    ASSERT_TRUE(await(first));
    mergers_->stop();
    Merge& second = prepare(1);
    mergers_->hand_over(second);
    EXPECT_FALSE(second.is_done());
    ASSERT_TRUE(mergers_->start());
    ASSERT_TRUE(await(second));
    EXPECT_TRUE(eventually([] { return asleep(kThread) == kThreads; }));
    mergers_->stop();
    mergers_->stop();
    Merge& third = prepare(2);
    mergers_->hand_over(third);
    EXPECT_TRUE(mergers_->merge_one());
    EXPECT_FALSE(mergers_->merge_one());  // stopping left nothing behind
    for (const Merge* merge : {&first, &second, &third}) expect_merged(*merge);
}

// -- behind the flusher --

constexpr CopyCosts kCompleting{
    .small_copy_ns = 1'000'000, .turbo_copy_ns = 1'000'000, .page_ns = 1, .merge_page_ns = 0};

class MergersOfFlusher : public test::StoreTest {
  protected:
    static constexpr std::uint32_t kPages = 99;

    void make_with(std::uint32_t mergers, const CopyCosts& costs = kCompleting) {
        mergers_ = mergers;
        make(mib(16), 8, mib(64), costs);
    }
    /// These chunks have their pages in VRAM, and every tenth again in an image.
    void half_fill(std::uint32_t chunks) {
        for (std::uint32_t c = 0; c < chunks; ++c) ASSERT_EQ(write(page_of(c, 0), kPages, 1), IoStatus::ok);
        ASSERT_TRUE(store().drain());
        for (std::uint32_t c = 0; c < chunks; ++c)
            for (std::uint32_t p = 0; p < kPages; p += 10)
                ASSERT_EQ(write(page_of(c, p), 1, 2), IoStatus::ok);
    }
    void expect_half_filled(std::uint32_t chunks) {
        for (std::uint32_t c = 0; c < chunks; ++c)
            for (std::uint32_t p = 0; p < kPages; ++p) expect(page_of(c, p), 1, p % 10 == 0 ? 2 : 1);
    }
    /// The flusher alone.
    void flusher_steps(int n) {
        for (int i = 0; i < n; ++i) EXPECT_EQ(store()->flusher().step(kLate), Flusher::kNow);
    }
    static constexpr std::uint64_t kLate = std::uint64_t{1} << 62;
};

TEST_F(MergersOfFlusher, AnImageThatWaitsMayChangeAndOneThatIsMergedMayNot) {
    make_with(2);
    half_fill(1);
    flusher_steps(3);  // fetched, and waits
    EXPECT_EQ(stats().flush_copies, 1u);
    ASSERT_EQ(write(page_of(0, 10), 1, 3), IoStatus::ok);
    ASSERT_EQ(write(page_of(0, 11), 1, 3), IoStatus::ok);  // VRAM alone had it
    discard(page_of(0, 20), 2);
    ASSERT_TRUE(store().merge_one());
    EXPECT_EQ(stats().images_completed, 0u);
    EXPECT_EQ(stats().dirty, Bytes{0});
    for (const std::uint32_t p : {10u, 11u, 12u}) EXPECT_EQ(write(page_of(0, p), 1, 4), IoStatus::retry);
    discard(page_of(0, 30), 2);
    for (int sent = 0; sent < 2; ++sent) {
        expect(page_of(0, 10), 2, 3);
        expect(page_of(0, 20), 2, 0);
        expect(page_of(0, 30), 2, 0);
        expect(page_of(0, 40), 1, 2);
        expect(page_of(0, 41), 1, 1);
        ASSERT_TRUE(store().drain());
        EXPECT_EQ(stats().images_completed, 1u);
    }
}

TEST_F(MergersOfFlusher, AnImageWithAMergerIsNotFreed) {
    make_with(2);
    half_fill(1);
    flusher_steps(2);
    discard(page_of(0, 0), kChunkPages);  // nothing of it is dirty any more
    EXPECT_EQ(stats().staged, mib(2));
    store()->flusher().set_draining(true);
    flusher_steps(2);
    EXPECT_EQ(stats().staged, mib(2));
    ASSERT_TRUE(store().drain());
    EXPECT_EQ(stats().staged + stats().stored, Bytes{0});
    expect(page_of(0, 0), kPages, 0);
}

TEST_F(MergersOfFlusher, OthersAreSentWhileImagesWaitForAMerger) {
    make_with(1);
    half_fill(5);
    ASSERT_EQ(write(page_of(5, 0), 1, 1), IoStatus::ok);
    flusher_steps(5);
    EXPECT_EQ(stats().flush_copies, Mergers::scratch_chunks(1) + 1);
    EXPECT_EQ(stats().pages_flushed, 1u);
    ASSERT_TRUE(store().drain());
    EXPECT_EQ(stats().images_completed, 5u);
    expect_half_filled(5);
}

TEST_F(MergersOfFlusher, WhenImagesRunShortThereIsOneForEachMerger) {
    for (const std::uint32_t mergers : {0u, 1u, 2u}) {
        make_with(mergers);  // two of eight images are to be free
        half_fill(6);
        ASSERT_EQ(write(page_of(6, 0), 1, 1), IoStatus::ok);
        faults().hang = true;
        for (int n = 0; n < 6; ++n) EXPECT_EQ(store().step_early(), Flusher::kNow);
        EXPECT_EQ(stats().flush_copies, 1 + mergers);
        faults().hang = false;
        ASSERT_TRUE(store().drain());
        expect_half_filled(6);
    }
}

TEST_F(MergersOfFlusher, ItCountsThatTheyWorkSideBySide) {
    // Ten copies cost 10000 ns; fetching and sending the whole 3800, merging 16200.
    constexpr CopyCosts kCosts{
        .small_copy_ns = 1000, .turbo_copy_ns = 1000, .page_ns = 10, .merge_page_ns = 200};
    for (const std::uint32_t mergers : {0u, 1u, 2u}) {
        make_with(mergers, kCosts);
        half_fill(1);
        ASSERT_TRUE(store().drain());
        EXPECT_EQ(stats().images_completed, mergers == 2 ? 1u : 0u) << mergers;
        expect_half_filled(1);
    }
}

TEST_F(MergersOfFlusher, TheirMemoryIsCounted) {
    make_with(0);
    const Bytes without = stats().ram;
    for (const std::uint32_t mergers : {1u, 2u, 3u}) {
        make_with(mergers);
        EXPECT_EQ(stats().ram, without + Bytes{kChunkBytes} * (mergers - 1));
    }
}

// -- with threads --

TEST_F(MergersOfFlusher, CompleteImagesAndSleep) {
    constexpr std::uint32_t kChunks = 6;
    make_with(3);
    for (int round = 0; round < 3; ++round) {
        half_fill(kChunks);
        const std::uint64_t before = stats().images_completed;
        ASSERT_TRUE(store()->start());
        EXPECT_TRUE(eventually([&] { return stats().images_completed == before + kChunks; }));
        EXPECT_TRUE(eventually([this] { return stats().dirty.n == 0; }));
        EXPECT_TRUE(eventually([] { return asleep(kThread) == 3 && asleep("vs-flusher") == 1; }));
        store()->flusher().stop();
        EXPECT_EQ(asleep(kThread), 0u);
        expect_half_filled(kChunks);
    }
}

TEST_F(MergersOfFlusher, SleepOnWhileAPageIsFlushed) {
    make_with(3);
    ASSERT_TRUE(store()->start());
    ASSERT_TRUE(eventually([] { return asleep(kThread) == 3; }));
    const std::uint64_t before = test::sleeps(kThread);
    ASSERT_EQ(write(page_of(0, 0), 1, 1), IoStatus::ok);
    ASSERT_TRUE(eventually([this] { return stats().pages_flushed == 1; }));
    EXPECT_EQ(test::sleeps(kThread), before);
    store()->flusher().stop();
    expect(page_of(0, 0), 1, 1);
}

TEST_F(MergersOfFlusher, ServeDraining) {
    constexpr std::uint32_t kChunks = 6;
    make_with(3);
    half_fill(kChunks);
    ASSERT_TRUE(store()->start());
    store()->flusher().set_draining(true);
    EXPECT_TRUE(eventually([this] { return stats().dirty.n + stats().staged.n == 0; }));
    store()->flusher().stop();
    store()->flusher().set_draining(false);
    EXPECT_EQ(stats().images_completed, kChunks);
    expect_half_filled(kChunks);
}

}  // namespace
}  // namespace vramswap
