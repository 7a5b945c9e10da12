// SPDX-License-Identifier: MIT
// How the flusher puts copies together: several images in one flight, gaps that are bridged, images completed
// from VRAM, and all that can happen to their pages meanwhile.
#include <gtest/gtest.h>

#include <array>
#include <memory>
#include <string>
#include <tuple>

#include "support/store_fixture.h"
#include "support/threads.h"

namespace vramswap {
namespace {

using test::content_for;
using test::content_of;
using test::eventually;
using test::page_of;
using test::take_event;

constexpr CopyCosts kSeparate{.small_copy_ns = 1, .turbo_copy_ns = 1, .page_ns = 1000, .merge_page_ns = 1000};
/// Gaps of so many pages are bridged, and nothing is completed.
constexpr std::uint32_t kGapMax = 5;
constexpr CopyCosts kBridging{
    .small_copy_ns = 100 * kGapMax, .turbo_copy_ns = 1, .page_ns = 100, .merge_page_ns = 1'000'000'000};
/// Three runs with pages between them that only VRAM has are worth it.
constexpr CopyCosts kCompleting{
    .small_copy_ns = 1'000'000, .turbo_copy_ns = 1'000'000, .page_ns = 1, .merge_page_ns = 0};

/// The first pages of chunk 0 with the version that each must have.
class FlusherTest : public test::StoreTest {
  protected:
    static constexpr std::uint32_t kPages = 99;

    void make_with(const CopyCosts& costs) { make(mib(16), 8, mib(64), costs); }
    void put(std::uint32_t page, std::uint32_t version) {
        ASSERT_EQ(write(page_of(0, page), 1, version), IoStatus::ok) << "page " << page;
        versions_.at(page) = version;
    }
    void forget(std::uint32_t page) {
        discard(page_of(0, page), 1);
        versions_.at(page) = 0;
    }
    /// All pages in VRAM only.
    void put_all_in_vram(std::uint32_t version) {
        ASSERT_EQ(write(page_of(0, 0), kPages, version), IoStatus::ok);
        ASSERT_TRUE(store().drain());
        versions_.fill(version);
    }
    void expect_now(std::uint32_t first = 0, std::uint32_t count = kPages) {
        ASSERT_EQ(read(page_of(0, first), count), IoStatus::ok);
        for (std::uint32_t i = 0; i < count; ++i) {
            const std::uint32_t version = versions_.at(first + i);
            ASSERT_EQ(content_of(memory_.page(i)),
                      version == 0 ? 0 : content_for(page_of(0, first + i), version))
                << "page " << first + i;
        }
    }
    /// Wherever they are now, and when VRAM alone has them.
    void expect_all() {
        expect_now();
        ASSERT_TRUE(store().drain());
        EXPECT_EQ(stats().staged, Bytes{0});
        expect_now();
        EXPECT_EQ(stats().read_errors, 0u);
    }
    std::array<std::uint32_t, kPages> versions_{};
};

// -- several images in one flight --

TEST_F(FlusherTest, SeveralImagesShareOneFlight) {
    make_with(kSeparate);
    for (std::uint32_t c = 0; c < 6; ++c)
        for (std::uint32_t p = 0; p < 6; p += 2) ASSERT_EQ(write(page_of(c, p), 1, 1), IoStatus::ok);
    constexpr std::uint32_t kManyFaults = 1000;
    faults().fail_copies = kManyFaults;
    steps(2);
    EXPECT_EQ(faults().fail_copies, kManyFaults - 1);
    EXPECT_EQ(stats().flush_copies, 18u);
    EXPECT_EQ(stats().flush_errors, 1u);
    EXPECT_EQ(stats().dirty, Bytes{18 * kPageBytes});
    faults().fail_copies = 0;
    ASSERT_TRUE(store().drain());
    EXPECT_EQ(stats().pages_flushed, 18u);
    for (std::uint32_t c = 0; c < 6; ++c)
        for (std::uint32_t p = 0; p < 6; ++p) expect(page_of(c, p), 1, p % 2 == 0 ? 1 : 0);
}

TEST_F(FlusherTest, LargeImagesFlyAlone) {
    make_with(kSeparate);
    for (std::uint32_t c = 0; c < 3; ++c) write_staged(page_of(c, 0), 300, 1);  // more than a MiB
    constexpr std::uint32_t kManyFaults = 1000;
    faults().fail_copies = kManyFaults;
    faults().hang = true;
    steps(1);
    EXPECT_EQ(stats().flush_copies, 3u);
    faults().hang = false;
    steps(1);
    EXPECT_EQ(faults().fail_copies, kManyFaults - 3);
    faults().fail_copies = 0;
    ASSERT_TRUE(store().drain());
    for (std::uint32_t c = 0; c < 3; ++c) expect(page_of(c, 0), 300, 1);
}

TEST_F(FlusherTest, AnImageOfAFlightMayBeDiscardedOrChangedElsewhere) {
    make_with(kSeparate);
    for (std::uint32_t c = 0; c < 4; ++c) ASSERT_EQ(write(page_of(c, 0), 2, 1), IoStatus::ok);
    faults().fail_copies = 1;
    steps(1);
    discard(page_of(1, 0), kChunkPages);
    ASSERT_EQ(write(page_of(2, 5), 1, 2), IoStatus::ok);
    EXPECT_EQ(write(page_of(2, 1), 1, 2), IoStatus::retry);
    steps(1);
    EXPECT_EQ(stats().dirty, Bytes{7 * kPageBytes});
    ASSERT_TRUE(store().drain());
    expect(page_of(0, 0), 2, 1);
    expect(page_of(1, 0), 2, 0);
    expect(page_of(2, 0), 2, 1);
    expect(page_of(2, 5), 1, 2);
    expect(page_of(3, 0), 2, 1);
}

// -- how many are due --

TEST_F(FlusherTest, WhenImagesRunShortAsManyOfTheOldestAreDueAsAreMissing) {
    make(mib(16), 8);  // two are to be free
    for (std::uint32_t c = 0; c < 6; ++c) ASSERT_EQ(write(page_of(c, 0), 1, 1), IoStatus::ok);
    EXPECT_NE(store().step_early(), Flusher::kNow);
    ASSERT_EQ(write(page_of(6, 0), 1, 1), IoStatus::ok);
    faults().hang = true;
    for (int n = 0; n < 5; ++n) {  // one is on its way, which is enough
        EXPECT_EQ(store().step_early(), Flusher::kNow);
        EXPECT_EQ(stats().dirty, Bytes{6 * kPageBytes});
    }
    EXPECT_EQ(write(page_of(0, 0), 1, 2), IoStatus::retry);  // it is the oldest
    EXPECT_EQ(write(page_of(1, 0), 1, 2), IoStatus::ok);
    faults().hang = false;
    EXPECT_NE(store().step_early(), Flusher::kNow);
    EXPECT_EQ(stats().staged, mib(12));
    EXPECT_EQ(stats().dirty, Bytes{6 * kPageBytes});
}

TEST_F(FlusherTest, APoolOfThreeKeepsOneFree) {
    make(mib(16), 3);
    for (std::uint32_t c = 0; c < 3; ++c) ASSERT_EQ(write(page_of(c, 0), 1, 1), IoStatus::ok);
    faults().hang = true;
    for (int n = 0; n < 5; ++n) {
        EXPECT_EQ(store().step_early(), Flusher::kNow);
        EXPECT_EQ(stats().dirty, Bytes{2 * kPageBytes});
    }
    faults().hang = false;
    EXPECT_NE(store().step_early(), Flusher::kNow);
    EXPECT_EQ(stats().staged, mib(4));
    EXPECT_NE(store().step_early(), Flusher::kNow);
    EXPECT_EQ(stats().dirty, Bytes{2 * kPageBytes});
    ASSERT_EQ(write(page_of(3, 0), 1, 1), IoStatus::ok);
    EXPECT_EQ(stats().pages_written_direct, 0u);
    EXPECT_EQ(store().step_early(), Flusher::kNow);  // and so on
}

// -- bridged gaps --

TEST_F(FlusherTest, NarrowGapsAreSentToo) {
    make_with(kBridging);
    for (const std::uint32_t p : {0u, kGapMax + 1, 2 * kGapMax + 3})
        put(p, 1);  // gaps: as wide as may be, and wider
    steps(2);
    EXPECT_EQ(stats().flush_copies, 2u);
    EXPECT_EQ(stats().pages_flushed, 3u);
    EXPECT_EQ(stats().pages_bridged, kGapMax);
    put(3, 2);  // a gap that was sent holds what is written to it later
    expect_all();
    for (const std::uint32_t p : {20u, 21u, 22u}) put(p, 1);
    steps(2);
    put(20, 2);
    put(22, 2);  // what is between is clean
    const std::uint64_t before = stats().flush_copies;
    steps(2);
    EXPECT_EQ(stats().flush_copies, before + 1);
    EXPECT_EQ(stats().images_completed, 0u);
    expect_all();
}

TEST_F(FlusherTest, AGapThatOnlyVramHasIsNotBridged) {
    make_with(kBridging);
    put_all_in_vram(1);
    put(10, 2);
    put(12, 2);
    steps(2);
    EXPECT_EQ(stats().flush_copies, 2u);
    expect_all();
}

TEST_F(FlusherTest, TheModeCounts) {
    make_with(kBridging);  // in turbo mode a small copy costs next to nothing
    store()->set_mode(EngineMode::turbo);
    put(0, 1);
    put(2, 1);
    steps(2);
    EXPECT_EQ(stats().flush_copies, 2u);
    expect_all();
}

TEST_F(FlusherTest, ABridgedCleanPageSurvivesAFailure) {
    make_with(kBridging);
    for (std::uint32_t p = 0; p < 5; ++p) put(p, 1);
    steps(2);
    ASSERT_EQ(stats().dirty, Bytes{0});
    put(0, 2);
    put(4, 2);
    faults().fail_copies = 1;  // what VRAM has of all five is gone
    steps(2);
    EXPECT_EQ(stats().dirty, Bytes{5 * kPageBytes});
    expect_all();
}

TEST_F(FlusherTest, BridgedPagesDoNotChangeOnTheirWay) {
    make_with(kBridging);
    put(1, 1);
    steps(2);
    put(0, 2);
    put(3, 2);  // page 1 is clean, page 2 is absent
    steps(1);
    ASSERT_EQ(stats().flush_copies, 2u);
    EXPECT_EQ(write(page_of(0, 1), 1, 3), IoStatus::retry);
    EXPECT_EQ(write(page_of(0, 2), 1, 3), IoStatus::retry);
    put(4, 3);
    EXPECT_FALSE(take_event(queue_->event_fd()));
    EXPECT_GT(store().step_early(), 1u);
    EXPECT_TRUE(take_event(queue_->event_fd()));
    put(1, 3);
    put(2, 3);
    expect_all();
}

TEST_F(FlusherTest, BridgedPagesMayBeDiscardedOnTheirWay) {
    for (const std::uint32_t failures : {0u, 1u}) {
        make_with(kBridging);
        versions_.fill(0);
        put(1, 1);
        steps(2);
        put(0, 2);
        put(3, 2);
        steps(1);
        forget(1);
        forget(3);
        faults().fail_copies = failures;
        EXPECT_GT(store().step_early(), 1u);
        EXPECT_EQ(stats().dirty, Bytes{failures * kPageBytes});
        put(1, 4);
        expect_all();
    }
}

// -- completed images --

/// Where the GPU copies: at the beginning or at the end of what follows; and how many mergers there are.
class CompletedImage : public FlusherTest,
                       public ::testing::WithParamInterface<std::tuple<bool, std::uint32_t>> {
  protected:
    CompletedImage() { mergers_ = std::get<1>(GetParam()); }
    [[nodiscard]] static bool early() { return std::get<0>(GetParam()); }
    /// Pages in VRAM only, but for four that were written again: 10, 30, 50, 70.
    void prepare() {
        make_with(kCompleting);
        put_all_in_vram(1);
        for (const std::uint32_t p : {10u, 30u, 50u, 70u}) put(p, 2);
        faults().early = early();
    }
    void begin_fetch() {
        prepare();
        steps(1);
        ASSERT_EQ(stats().flush_copies, 1u);
        ASSERT_EQ(stats().images_completed, 0u);
    }
    void begin_send() {
        begin_fetch();
        steps(1);
        ASSERT_EQ(stats().flush_copies, 2u);
        ASSERT_EQ(stats().images_completed, 1u);
    }
    /// The next step begins a sending that fails, at once if the GPU copies at the beginning. Nobody knows
    /// yet.
    void fail_sending() {
        if (early()) faults().fail_copies = 1;
        steps(1);
        if (!early()) faults().fail_copies = 1;
    }
};

TEST_P(CompletedImage, IsSentInOneCopy) {
    begin_send();
    EXPECT_EQ(stats().dirty, Bytes{0});
    EXPECT_EQ(stats().pages_flushed, 0u);
    steps(1);
    EXPECT_EQ(stats().flush_copies, 2u);
    EXPECT_EQ(stats().pages_flushed, 4u);
    const std::uint64_t from_gpu = stats().pages_read_gpu;
    expect(page_of(0, 10), 1, 2);
    expect(page_of(0, 11), 19, 1);  // what was checked is a cache like the rest
    EXPECT_EQ(stats().pages_read_gpu, from_gpu);
    expect_all();
}

TEST_P(CompletedImage, CanBeReadAllTheWay) {
    begin_fetch();
    expect_now();
    steps(1);
    expect_now();
    steps(1);
    expect_all();
}

TEST_P(CompletedImage, IsChangedWhileItIsFetched) {
    begin_fetch();
    put(10, 3);  // dirty already
    put(40, 3);  // only VRAM has it
    put(5, 3);   // outside of what is fetched
    put(80, 3);
    forget(30);
    forget(45);
    expect_now();
    steps(1);
    EXPECT_EQ(stats().images_completed, 1u);
    EXPECT_EQ(stats().dirty, Bytes{2 * kPageBytes});
    expect_now();
    EXPECT_GT(store().step_early(), 1u);
    expect_all();
}

TEST_P(CompletedImage, IsChangedWhileItIsFetchedAndThenTheSendingFails) {
    begin_fetch();
    put(10, 3);
    put(40, 3);
    put(80, 3);
    forget(30);
    forget(45);
    fail_sending();
    ASSERT_EQ(stats().images_completed, 1u);
    expect_now(10, 61);  // all of it is in the image
    EXPECT_GT(store().step_early(), 1u);
    EXPECT_EQ(faults().fail_copies, 0u);
    EXPECT_EQ(stats().flush_errors, 1u);
    expect_now();
    expect_all();
    EXPECT_EQ(stats().images_completed, 1u);  // after a failure in the plain way
}

TEST_P(CompletedImage, DoesNotChangeWhileItIsSent) {
    begin_send();
    for (const std::uint32_t p : {10u, 11u, 40u, 70u}) EXPECT_EQ(write(page_of(0, p), 1, 3), IoStatus::retry);
    put(71, 3);
    EXPECT_FALSE(take_event(queue_->event_fd()));
    EXPECT_GT(store().step_early(), 1u);
    EXPECT_TRUE(take_event(queue_->event_fd()));
    for (const std::uint32_t p : {10u, 11u, 40u, 70u}) put(p, 3);
    expect_all();
}

TEST_P(CompletedImage, IsDiscardedInPartWhileItIsSent) {
    for (const std::uint32_t failures : {0u, 1u}) {
        versions_.fill(0);
        begin_fetch();
        if (failures == 0)
            steps(1);
        else
            fail_sending();
        ASSERT_EQ(stats().images_completed, 1u);
        forget(10);
        forget(40);
        EXPECT_EQ(write(page_of(0, 40), 1, 3), IoStatus::retry);
        EXPECT_GT(store().step_early(), 1u);
        EXPECT_EQ(stats().flush_errors, failures);
        put(40, 3);
        expect_all();
    }
}

TEST_P(CompletedImage, KeepsItsSlotWhenAllIsDiscarded) {
    for (const bool sending : {false, true}) {
        make(mib(2), 4, mib(2), kCompleting);  // one slot in all
        put_all_in_vram(1);
        for (const std::uint32_t p : {10u, 30u, 50u, 70u}) put(p, 2);
        faults().early = early();
        steps(sending ? 2 : 1);
        discard(page_of(0, 0), kChunkPages);
        versions_.fill(0);
        expect_now();
        EXPECT_NE(write(page_of(1, 0), 1, 1), IoStatus::ok);
        ASSERT_TRUE(store().drain());
        EXPECT_EQ(stats().stored + stats().staged, Bytes{0});
        EXPECT_EQ(write(page_of(1, 0), 1, 1), IoStatus::ok);
        ASSERT_TRUE(store().drain());
        expect(page_of(1, 0), 1, 1);
        expect_now();
    }
}

TEST_P(CompletedImage, AFailedFetchHarmsNothing) {
    prepare();
    faults().fail_copies = 1;
    steps(2);
    EXPECT_EQ(stats().flush_errors, 1u);
    EXPECT_EQ(stats().dirty, Bytes{4 * kPageBytes});
    expect_all();
    EXPECT_EQ(stats().images_completed, 0u);  // after a failure in the plain way
    EXPECT_EQ(stats().flush_copies, 1u + 4u);
}

TEST_P(CompletedImage, AFailedSendingLosesNothing) {
    begin_fetch();
    fail_sending();
    const std::uint64_t from_gpu = stats().pages_read_gpu;
    expect_now(10, 61);
    EXPECT_EQ(stats().pages_read_gpu, from_gpu);
    EXPECT_GT(store().step_early(), 1u);
    EXPECT_EQ(stats().dirty, Bytes{61 * kPageBytes});
    expect_all();
}

TEST_P(CompletedImage, APageFetchedWrongIsNotSentBack) {
    prepare();
    faults().corrupt_reads = 1;
    steps(2);
    ASSERT_EQ(faults().corrupt_reads, 0u);
    EXPECT_EQ(stats().images_completed, 1u);
    EXPECT_EQ(stats().flush_copies, 1u + 2u);  // before and behind it
    expect_now();
    steps(1);
    expect_all();
}

TEST_P(CompletedImage, APageFetchedWrongSurvivesAFailedSending) {
    prepare();
    faults().corrupt_reads = 1;
    steps(1);
    fail_sending();
    steps(1);
    EXPECT_EQ(stats().flush_errors, 1u);
    expect_all();
}

TEST_P(CompletedImage, APageThatIsCorruptInVramStaysAnError) {
    make_with(kCompleting);
    faults().corrupt_writes = 1;
    put_all_in_vram(1);
    constexpr std::uint32_t kBad = kPages / 2;
    ASSERT_EQ(read(page_of(0, kBad), 1), IoStatus::io_error);
    for (const std::uint32_t p : {10u, 30u, 50u, 70u}) put(p, 2);
    faults().early = early();
    steps(3);
    EXPECT_EQ(stats().images_completed, 1u);
    EXPECT_EQ(stats().flush_errors, 0u);
    for (const bool drained : {false, true}) {
        ASSERT_TRUE(!drained || store().drain());
        EXPECT_EQ(read(page_of(0, kBad), 1), IoStatus::io_error);
        expect(page_of(0, 10), 1, 2);
        expect(page_of(0, 11), 19, 1);
        expect(page_of(0, kBad - 1), 1, 1);
        expect(page_of(0, kBad + 2), 19, 1);
    }
}

TEST_P(CompletedImage, ALostPageStaysLost) {
    make_with(kCompleting);
    put_all_in_vram(1);
    BlockRequest r{};
    begin_direct(r, page_of(0, 20), 64, 1, other_);
    faults().fail_copies = 3;
    ASSERT_EQ(finish(r), IoStatus::io_error);
    for (const std::uint32_t p : {10u, 30u, 50u, 70u}) put(p, 2);
    faults().early = early();
    steps(3);
    EXPECT_EQ(read(page_of(0, 20), 1), IoStatus::lost);
    ASSERT_TRUE(store().drain());
    for (std::uint32_t p = 20; p < 84; ++p)
        EXPECT_EQ(read(page_of(0, p), 1), p == 30 || p == 50 || p == 70 ? IoStatus::ok : IoStatus::lost);
    expect(page_of(0, 0), 10, 1);
    expect(page_of(0, 10), 1, 2);
    expect(page_of(0, 30), 1, 2);
}

TEST_P(CompletedImage, AReadInFlightIsNotDisturbed) {
    prepare();
    const auto reader = std::move(*store()->make_queue(1));
    BlockRequest r = request(BlockRequest::Op::read, page_of(0, 11), 19, third_);
    ASSERT_EQ(reader->submit(r), IoStatus::pending);
    for (int n = 0; n < 3; ++n) steps(1);
    ASSERT_EQ(finish(r, *reader), IoStatus::ok);
    expect_content(page_of(0, 11), 19, 1, third_);
    EXPECT_EQ(stats().reread_pages, 0u);
    expect_all();
}

TEST_P(CompletedImage, ManyTakeTurnsWithTheScratchMemory) {
    make_with(kCompleting);
    constexpr std::uint32_t kChunks = 6;
    for (std::uint32_t c = 0; c < kChunks; ++c) ASSERT_EQ(write(page_of(c, 0), 99, c + 1), IoStatus::ok);
    for (std::uint32_t c = 0; c < kChunks; ++c)
        for (std::uint32_t p = 10; p < 90; p += 10) ASSERT_EQ(write(page_of(c, p), 1, 50 + c), IoStatus::ok);
    faults().early = early();
    steps(1);
    EXPECT_EQ(stats().flush_copies, Mergers::scratch_chunks(mergers_));
    EXPECT_EQ(store().step(), Flusher::kNow);
    ASSERT_TRUE(store().drain());
    EXPECT_EQ(stats().images_completed, kChunks);
    EXPECT_EQ(stats().flush_copies, 2 * kChunks);  // nothing was fetched into another's memory
    for (std::uint32_t c = 0; c < kChunks; ++c)
        for (std::uint32_t p = 0; p < 99; ++p)
            expect(page_of(c, p), 1, p % 10 == 0 && p >= 10 && p < 90 ? 50 + c : c + 1);
}

TEST_P(CompletedImage, APlainOneDoesNotWaitForScratchMemory) {
    make_with(kCompleting);
    for (std::uint32_t c = 0; c < 5; ++c) ASSERT_EQ(write(page_of(c, 0), 99, 1), IoStatus::ok);
    for (std::uint32_t c = 0; c < 4; ++c)
        for (std::uint32_t p = 10; p < 90; p += 10) ASSERT_EQ(write(page_of(c, p), 1, 2), IoStatus::ok);
    ASSERT_EQ(write(page_of(4, 10), 1, 2), IoStatus::ok);
    faults().early = early();
    steps(1);
    EXPECT_EQ(stats().flush_copies, Mergers::scratch_chunks(mergers_) + 1);
    ASSERT_TRUE(store().drain());
    EXPECT_EQ(stats().images_completed, 4u);
    expect(page_of(4, 10), 1, 2);
    for (std::uint32_t c = 0; c < 4; ++c) expect(page_of(c, 20), 1, 2);
}

INSTANTIATE_TEST_SUITE_P(GpuCopies, CompletedImage,
                         ::testing::Combine(::testing::Bool(), ::testing::Values(0u, 1u)),
                         [](const auto& at) {
                             return std::string(std::get<0>(at.param) ? "AtSubmit" : "AtCompletion") +
                                    (std::get<1>(at.param) == 0 ? "" : "WithAMerger");
                         });

TEST_F(FlusherTest, AFewRunsAreNotWorthIt) {
    make_with(kCompleting);
    put_all_in_vram(1);
    put(10, 2);
    put(30, 2);  // two copies, like fetching and sending
    steps(2);
    EXPECT_EQ(stats().images_completed, 0u);
    EXPECT_EQ(stats().flush_copies, 2u);
    expect_all();
}

TEST_F(FlusherTest, WhatHasNothingInVramIsNeverFetched) {
    make_with({.small_copy_ns = 1000, .turbo_copy_ns = 1000, .page_ns = 100, .merge_page_ns = 0});
    for (std::uint32_t p = 0; p < kPages; p += 14) put(p, 1);  // gaps too wide to be bridged
    steps(2);
    EXPECT_EQ(stats().images_completed, 0u);
    EXPECT_EQ(stats().flush_copies, 8u);
    expect_all();
}

// -- the thread --

class FlusherThread : public FlusherTest {
  protected:
    static constexpr std::uint64_t kAnHourNs = 3'600'000'000'000;
    /// Nothing is due by its age.
    void make_patient() {
        queue_.reset();
        store_.reset();
        StoreConfig patient = config(mib(16), 8);
        patient.flusher.age_ns_max = kAnHourNs;
        store_ = std::make_unique<test::SteppedStore>(*gpu_, patient, nullptr);
        queue_ = std::move(*store()->make_queue(kDepth));
    }
    static bool sleeps() {
        return eventually([] { return test::asleep("vs-flusher") == 1; });
    }
};

TEST_F(FlusherThread, StartsAgainAfterAStop) {
    make_with(kSeparate);  // no page but those written is ever on its way
    for (std::uint32_t version = 1; version < 4; ++version) {
        ASSERT_TRUE(store()->start());
        put(version, version);
        EXPECT_TRUE(eventually([this] { return stats().dirty.n == 0; }));
        store()->flusher().stop();
        put(10 + version, version);  // waits for the next start; the other may still be on its way
        EXPECT_EQ(stats().dirty, Bytes{kPageBytes});
    }
    store()->flusher().stop();
    expect_all();
}

TEST_F(FlusherThread, DrainingWakesAnIdleOne) {
    make_patient();
    put(0, 1);
    ASSERT_TRUE(store().step() != Flusher::kNever);
    steps(1);
    ASSERT_EQ(stats().dirty, Bytes{0});
    ASSERT_EQ(stats().staged, mib(2));  // clean, and kept
    ASSERT_TRUE(store()->start());
    ASSERT_TRUE(sleeps());
    store()->flusher().set_draining(true);
    EXPECT_TRUE(eventually([this] { return stats().staged.n == 0; }));
    store()->flusher().set_draining(false);
    store()->flusher().stop();
    expect_now();
}

TEST_F(FlusherThread, DrainingWakesOneThatWaitsForAnAge) {
    make_patient();
    ASSERT_TRUE(store()->start());
    put(0, 1);
    ASSERT_TRUE(sleeps());
    EXPECT_EQ(stats().dirty, Bytes{kPageBytes});
    store()->flusher().set_draining(true);
    EXPECT_TRUE(eventually([this] { return stats().dirty.n + stats().staged.n == 0; }));
    store()->flusher().stop();
    expect_now();
}

TEST_F(FlusherThread, AFullImageWakesOneThatWaitsForAnAge) {
    make_patient();
    ASSERT_TRUE(store()->start());
    put(0, 1);
    ASSERT_TRUE(sleeps());
    write_staged(page_of(1, 0), kChunkPages, 1);
    EXPECT_TRUE(eventually([this] { return stats().dirty == Bytes{kPageBytes}; }));
    store()->flusher().stop();
    expect(page_of(1, 0), kChunkPages, 1);
}

TEST_F(FlusherThread, StopsWhileItSleeps) {
    make_patient();
    ASSERT_TRUE(store()->start());
    ASSERT_TRUE(sleeps());
    store()->flusher().stop();
    put(0, 1);
    ASSERT_TRUE(store()->start());
    ASSERT_TRUE(sleeps());  // for an hour
    store()->flusher().stop();
    expect_now();
}

}  // namespace
}  // namespace vramswap
