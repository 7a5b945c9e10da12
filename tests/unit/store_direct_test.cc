// SPDX-License-Identifier: MIT
// Writes that go from the request straight to VRAM, what meets them on their way, and how the requests of a
// queue share submissions and complete in turn.
#include <gtest/gtest.h>

#include <array>
#include <memory>
#include <vector>

#include "support/store_fixture.h"

namespace vramswap {
namespace {

using test::content_for;
using test::content_of;
using test::fill_page;
using test::HostMemory;
using test::page_of;
using test::take_event;

constexpr std::uint64_t kLarge = 64;  // pages: 256 KiB

class DirectWrite : public test::StoreTest {
  protected:
    static constexpr std::uint32_t kManyFaults = 1000;

    /// A chunk with these pages in VRAM only.
    void put_in_vram(PageIndex first, std::uint64_t pages, std::uint32_t version) {
        ASSERT_EQ(write(first, pages, version), IoStatus::ok);
        ASSERT_TRUE(store().drain());
    }
    IoStatus submit(TargetQueue& queue, BlockRequest::Op op, PageIndex first, std::uint64_t pages) {
        BlockRequest r = request(op, first, pages, other_);
        if (op == BlockRequest::Op::discard) r.data = nullptr;
        return queue.submit(r);
    }
    /// Submissions that ran since faults().fail_copies was set to kManyFaults.
    std::uint32_t submissions() { return kManyFaults - faults().fail_copies; }
};

// -- which way a write goes --

TEST_F(DirectWrite, ALargeOneIsPendingUntilItIsInVram) {
    BlockRequest r{};
    begin_direct(r, page_of(0, 7), kLarge, 1, other_);
    EXPECT_EQ(queue_->in_flight(), 1u);
    EXPECT_EQ(stats().staged, Bytes{0});
    launch();
    EXPECT_EQ(r.status, IoStatus::pending);
    std::array<BlockRequest*, kDepth> done{};
    ASSERT_EQ(queue_->poll(done), 1u);
    EXPECT_EQ(done[0], &r);
    EXPECT_EQ(r.status, IoStatus::ok);
    EXPECT_EQ(queue_->in_flight(), 0u);
    expect(page_of(0, 7), kLarge, 1);
    EXPECT_EQ(stats().pages_written_direct, kLarge);
    EXPECT_EQ(stats().pages_read_gpu, kLarge);
    EXPECT_EQ(stats().stored, Bytes{kLarge * kPageBytes});
    EXPECT_EQ(stats().dirty + stats().staged, Bytes{0});
    ASSERT_TRUE(store().drain());
    EXPECT_EQ(stats().pages_flushed, 0u);
    expect(page_of(0, 7), kLarge, 1);
}

TEST_F(DirectWrite, ASmallerOneIsStaged) {
    write_staged(page_of(0, 0), kLarge - 1, 1);
    BlockRequest r = request(BlockRequest::Op::write, page_of(1, 0), kLarge - 1, memory_);
    EXPECT_EQ(queue_->submit(r), IoStatus::ok);
}

TEST_F(DirectWrite, ALargeOneIntoAChunkWithAnImageIsStaged) {
    ASSERT_EQ(write(page_of(0, 10), 1, 1), IoStatus::ok);
    fill(page_of(0, 0), kLarge, 2, memory_);
    BlockRequest r = request(BlockRequest::Op::write, page_of(0, 0), kLarge, memory_);
    EXPECT_EQ(queue_->submit(r), IoStatus::ok);
    EXPECT_EQ(stats().pages_written_direct, 0u);
    expect(page_of(0, 0), kLarge, 2);
    ASSERT_TRUE(store().drain());
    expect(page_of(0, 0), kLarge, 2);
}

TEST_F(DirectWrite, AnyOneIsWhenTheStageIsFullAndItHasWaited) {
    make(mib(16), 3);
    for (std::uint32_t c = 0; c < 3; ++c) ASSERT_EQ(write(page_of(c, 0), 2, 1), IoStatus::ok);
    constexpr std::uint64_t kWaits = 16;
    for (std::uint64_t n = 1; n <= kWaits; ++n) {
        EXPECT_EQ(write(page_of(3, 0), 2, 1), IoStatus::retry);
        EXPECT_EQ(stats().retries, n);
    }
    BlockRequest r{};
    begin_direct(r, page_of(3, 0), 2, 1, other_);
    EXPECT_EQ(stats().retries, kWaits);
    EXPECT_EQ(finish(r), IoStatus::ok);
    EXPECT_EQ(stats().pages_written_direct, 2u);
    EXPECT_EQ(stats().staged, mib(6));
    for (std::uint32_t c = 0; c < 4; ++c) expect(page_of(c, 0), 2, 1);
    steps(3);
    EXPECT_TRUE(take_event(queue_->event_fd()));
    ASSERT_EQ(write(page_of(3, 1), 2, 2), IoStatus::ok);
    EXPECT_EQ(stats().pages_written_direct, 2u);  // there is room again
    ASSERT_TRUE(store().drain());
    expect(page_of(3, 0), 1, 1);
    expect(page_of(3, 1), 2, 2);
}

TEST_F(DirectWrite, ScatteredOnesLeaveTheLastImagesToThoseWhoFillThem) {
    make(mib(16), 4);
    const auto filler = std::move(*store()->make_queue(4));
    // Never twice in a row to one chunk, for so long that the queue is known for it.
    for (std::uint32_t n = 0; n < 40; ++n) {
        const PageIndex page = page_of(n % 6, n);
        IoStatus status = IoStatus::retry;
        for (int k = 0; k < 100 && status == IoStatus::retry; ++k) status = write(page, 1, 1);
        ASSERT_EQ(status, IoStatus::ok) << n;
    }
    ASSERT_TRUE(store().drain());
    const StoreStats before = stats();
    for (std::uint32_t c = 0; c < 4; ++c) ASSERT_EQ(write(page_of(c, 100), 1, 1), IoStatus::ok);
    EXPECT_EQ(stats().retries, before.retries);
    EXPECT_EQ(stats().pages_written_direct - before.pages_written_direct, 1u);
    EXPECT_EQ(stats().staged, mib(6));
    // Another queue takes the last image, and so would this one when it fills a chunk.
    EXPECT_EQ(write_to(*filler, page_of(4, 100), 1, 1), IoStatus::ok);
    EXPECT_EQ(stats().staged, mib(8));
    ASSERT_TRUE(store().drain());
    for (std::uint32_t p = 0; p < 5; ++p) ASSERT_EQ(write(page_of(5, 100 + p), 1, 1), IoStatus::ok);
    EXPECT_EQ(write(page_of(4, 100), 1, 2), IoStatus::ok);
    EXPECT_EQ(stats().pages_written_direct - before.pages_written_direct, 1u);
}

TEST_F(DirectWrite, ANewOneReplacesTheOldBytes) {
    put_in_vram(page_of(0, 0), 8, 1);
    BlockRequest r{};
    begin_direct(r, page_of(0, 4), kLarge, 2, other_);
    EXPECT_EQ(finish(r), IoStatus::ok);
    expect(page_of(0, 0), 4, 1);
    expect(page_of(0, 4), kLarge, 2);
    EXPECT_EQ(stats().stored, Bytes{(4 + kLarge) * kPageBytes});
}

TEST_F(DirectWrite, ZerosInItAreForgotten) {
    put_in_vram(page_of(0, 0), 20, 1);
    fill(page_of(0, 0), kLarge, 2, other_);
    for (const std::uint64_t zero : {0u, 5u, 6u, 63u}) fill_page(other_.page(zero), 0);
    BlockRequest r = request(BlockRequest::Op::write, page_of(0, 0), kLarge, other_);
    ASSERT_EQ(queue_->submit(r), IoStatus::pending);
    EXPECT_EQ(finish(r), IoStatus::ok);
    EXPECT_EQ(stats().stored, Bytes{(kLarge - 4) * kPageBytes});
    EXPECT_EQ(stats().zero_pages_written, 4u);
    EXPECT_EQ(stats().pages_written_direct, kLarge - 4);
    ASSERT_EQ(read(page_of(0, 0), kLarge), IoStatus::ok);
    for (std::uint32_t i = 0; i < kLarge; ++i)
        ASSERT_EQ(content_of(memory_.page(i)),
                  i == 0 || i == 5 || i == 6 || i == 63 ? 0 : content_for(page_of(0, i), 2));
}

TEST_F(DirectWrite, LargeZerosNeedNoVram) {
    EXPECT_EQ(write(page_of(0, 0), 2 * kLarge, 0), IoStatus::ok);
    EXPECT_EQ(stats().pages_written_direct, 0u);
    EXPECT_EQ(stats().stored, Bytes{0});
}

TEST_F(DirectWrite, OneOfManyChunksIsDone) {
    BlockRequest r{};
    make(mib(16), 3);
    ASSERT_EQ(write(page_of(1, 100), 1, 1), IoStatus::ok);  // the middle one has an image
    fill(page_of(0, 500), 600, 2, memory_);
    r = request(BlockRequest::Op::write, page_of(0, 500), 600, memory_);
    ASSERT_EQ(queue_->submit(r), IoStatus::pending);
    EXPECT_EQ(finish(r), IoStatus::ok);
    EXPECT_EQ(stats().pages_written_direct, 12u + 76u);
    expect(page_of(0, 500), 600, 2);
    ASSERT_TRUE(store().drain());
    expect(page_of(0, 500), 600, 2);
}

// -- what meets it --

TEST_F(DirectWrite, WhoMeetsItsPagesWaits) {
    put_in_vram(page_of(0, 0), 8, 1);
    const auto reader = std::move(*store()->make_queue(2));
    const auto writer = std::move(*store()->make_queue(2));
    const auto discarder = std::move(*store()->make_queue(2));
    BlockRequest r{};
    begin_direct(r, page_of(0, 4), kLarge, 2, third_);
    fill(page_of(0, 4), 1, 3, other_);
    for (const bool launched : {false, true}) {
        if (launched) launch();
        EXPECT_EQ(submit(*reader, BlockRequest::Op::read, page_of(0, 3), 2), IoStatus::retry);
        EXPECT_EQ(submit(*writer, BlockRequest::Op::write, page_of(0, 4), 1), IoStatus::retry);
        EXPECT_EQ(submit(*discarder, BlockRequest::Op::discard, page_of(0, 0), kChunkPages), IoStatus::retry);
        EXPECT_EQ(submit(*queue_, BlockRequest::Op::read, page_of(0, 67), 1), IoStatus::retry);
    }
    EXPECT_EQ(reader->in_flight() + writer->in_flight() + discarder->in_flight(), 0u);
    const std::array queues{reader.get(), writer.get(), discarder.get(), queue_.get()};
    for (const auto* q : queues) EXPECT_FALSE(take_event(q->event_fd()));
    EXPECT_EQ(finish(r), IoStatus::ok);
    for (const auto* q : queues) EXPECT_TRUE(take_event(q->event_fd()));
    expect(page_of(0, 4), kLarge, 2);
    fill(page_of(0, 4), 1, 3, other_);
    EXPECT_EQ(submit(*writer, BlockRequest::Op::write, page_of(0, 4), 1), IoStatus::ok);
    expect(page_of(0, 4), 1, 3);
    EXPECT_EQ(submit(*discarder, BlockRequest::Op::discard, page_of(0, 0), kChunkPages), IoStatus::ok);
    expect(page_of(0, 0), 8 + kLarge, 0);
    EXPECT_EQ(stats().stored, Bytes{0});
}

TEST_F(DirectWrite, OtherPagesOfItsChunkAreFree) {
    put_in_vram(page_of(0, 0), 8, 1);
    BlockRequest r{};
    begin_direct(r, page_of(0, 100), kLarge, 2, other_);
    launch();
    const auto second = std::move(*store()->make_queue(2));
    EXPECT_EQ(write_to(*second, page_of(0, 99), 1, 3), IoStatus::ok);  // it takes an image
    EXPECT_EQ(write_to(*second, page_of(0, 164), 1, 3), IoStatus::ok);
    BlockRequest look = request(BlockRequest::Op::read, page_of(0, 0), 8, third_);
    ASSERT_EQ(second->submit(look), IoStatus::pending);
    ASSERT_EQ(finish(look, *second), IoStatus::ok);
    expect_content(page_of(0, 0), 8, 1, third_);
    BlockRequest gone = request(BlockRequest::Op::discard, page_of(0, 3), 1, third_);
    gone.data = nullptr;
    EXPECT_EQ(second->submit(gone), IoStatus::ok);
    ASSERT_TRUE(store().drain());  // what the flusher sends lies around what is being written
    EXPECT_EQ(stats().images_completed, 0u);
    EXPECT_EQ(finish(r), IoStatus::ok);
    expect(page_of(0, 0), 3, 1);
    expect(page_of(0, 3), 1, 0);
    expect(page_of(0, 99), 1, 3);
    expect(page_of(0, 100), kLarge, 2);
    expect(page_of(0, 164), 1, 3);
}

TEST_F(DirectWrite, AFlightOfItsChunkDoesNotTouchItsPages) {
    make(mib(4), 4, mib(64), {.small_copy_ns = 1'000'000, .page_ns = 1, .merge_page_ns = 0});
    put_in_vram(page_of(0, 0), 1, 1);
    BlockRequest r{};
    begin_direct(r, page_of(0, 100), kLarge, 2, other_);
    // All around it, so that every reason to send more than these pages is there.
    const auto second = std::move(*store()->make_queue(2));
    for (const std::uint32_t p : {2u, 4u, 99u, 164u, 166u})
        ASSERT_EQ(write_to(*second, page_of(0, p), 1, 3), IoStatus::ok);
    steps(1);  // the flight begins; the GPU copies when it ends
    EXPECT_EQ(finish(r), IoStatus::ok);
    ASSERT_TRUE(store().drain());
    EXPECT_EQ(stats().images_completed, 0u);
    expect(page_of(0, 100), kLarge, 2);
    for (const std::uint32_t p : {2u, 4u, 99u, 164u, 166u}) expect(page_of(0, p), 1, 3);
}

TEST_F(DirectWrite, AReadInFlightThatItOvertakesWaitsForItAndCountsNoTry) {
    put_in_vram(page_of(0, 0), 8, 1);
    BlockRequest r{};
    const auto reader = std::move(*store()->make_queue(2));
    for (const bool early : {false, true}) {
        faults().early = early;
        BlockRequest look = request(BlockRequest::Op::read, page_of(0, 0), 8, third_);
        ASSERT_EQ(reader->submit(look), IoStatus::pending);
        std::array<BlockRequest*, 2> done{};
        begin_direct(r, page_of(0, 4), kLarge, early ? 3 : 2, other_);
        for (int n = 0; n < 20; ++n) EXPECT_EQ(reader->poll(done), 0u);
        EXPECT_EQ(finish(r), IoStatus::ok);
        EXPECT_EQ(finish(look, *reader), IoStatus::ok);
        expect_content(page_of(0, 0), 4, 1, third_);
        for (std::uint32_t p = 4; p < 8; ++p)
            EXPECT_EQ(content_of(third_.page(p)), content_for(page_of(0, p), early ? 3 : 2));
    }
    EXPECT_EQ(stats().reread_pages, 0u);
}

TEST_F(DirectWrite, AReadOvertakenAgainAndAgainSucceeds) {
    put_in_vram(page_of(0, 0), 2, 1);
    const auto reader = std::move(*store()->make_queue(2));
    std::array<BlockRequest*, 2> done{};
    faults().early = true;
    BlockRequest look = request(BlockRequest::Op::read, page_of(0, 0), 2, third_);
    ASSERT_EQ(reader->submit(look), IoStatus::pending);
    for (std::uint32_t version = 2; version < 30; ++version) {
        faults().hang = true;
        ASSERT_EQ(reader->poll(done), 0u);  // copied
        faults().hang = false;
        put_in_vram(page_of(0, 0), 2, version);  // and changed
        ASSERT_EQ(reader->poll(done), 0u);
    }
    ASSERT_EQ(finish(look, *reader), IoStatus::ok);
    expect_content(page_of(0, 0), 2, 29, third_);
    EXPECT_EQ(stats().reread_pages, 0u);
    EXPECT_EQ(stats().read_errors, 0u);
}

TEST_F(DirectWrite, ItsSlotStaysWhileAllElseOfTheChunkIsDiscarded) {
    make(mib(2), 4, mib(4));
    fill_chunks(2, 1);
    BlockRequest r{};
    begin_direct(r, page_of(0, 100), kLarge, 2, other_);
    launch();
    discard(page_of(0, 0), 100);
    discard(page_of(0, 164), kChunkPages - 164);
    store()->maintain();
    EXPECT_EQ(write(page_of(2, 0), 1, 1), IoStatus::no_space);
    EXPECT_EQ(finish(r), IoStatus::ok);
    expect(page_of(0, 100), kLarge, 2);
    expect(page_of(0, 0), 3, 0);
    discard(page_of(0, 100), kLarge);
    EXPECT_EQ(write(page_of(2, 0), 1, 1), IoStatus::ok);
}

// -- undone --

class UndoneWrite : public DirectWrite {
  protected:
    /// Of pages 500 to 511 of chunk 0: absent ones, stored ones and (500) a lost one. Page 0 of chunk 1 is on
    /// its way from the stage, so that a large write from 500 on has to wait.
    void prepare() {
        make(mib(4), 4);
        put_in_vram(page_of(0, 502), 4, 1);
        BlockRequest r{};
        begin_direct(r, page_of(0, 400), kLarge, 1, other_);
        faults().fail_copies = 3;
        ASSERT_EQ(finish(r), IoStatus::io_error);
        discard(page_of(0, 400), kLarge);
        make_lost(page_of(0, 500));
        ASSERT_EQ(write(page_of(1, 0), 1, 1), IoStatus::ok);
        steps(1);
        (void)take_event(queue_->event_fd());  // of what waited here
        before_ = stats();
    }
    void make_lost(PageIndex page) {
        for (std::uint32_t c = 2; stats().staged < mib(8); ++c) {
            ASSERT_EQ(write(page_of(c, 0), 1, 1), IoStatus::ok);
            store()->maintain();
        }
        BlockRequest r{};
        begin_direct(r, page, 1, 1, other_);
        faults().fail_copies = 3;
        ASSERT_EQ(finish(r), IoStatus::io_error);
        ASSERT_TRUE(store().drain());
    }
    void expect_undone() {
        EXPECT_EQ(read(page_of(0, 500), 1), IoStatus::lost);
        expect(page_of(0, 501), 1, 0);
        expect(page_of(0, 502), 4, 1);
        expect(page_of(0, 506), 6, 0);
        expect(page_of(1, 0), 1, 1);
        EXPECT_EQ(stats().stored, before_.stored);
        EXPECT_EQ(queue_->in_flight(), 0u);
    }
    StoreStats before_{};
};

TEST_F(UndoneWrite, LeavesEverythingAsItWas) {
    prepare();
    ASSERT_EQ(write(page_of(0, 500), 100, 2), IoStatus::retry);
    EXPECT_EQ(stats().pages_written_direct, before_.pages_written_direct);
    expect_undone();
    // Woken by its own undoing, the queue would try for ever.
    EXPECT_FALSE(take_event(queue_->event_fd()));
    steps(1);
    EXPECT_TRUE(take_event(queue_->event_fd()));
    EXPECT_EQ(write(page_of(0, 500), 100, 2), IoStatus::ok);
    expect(page_of(0, 500), 100, 2);
}

TEST_F(UndoneWrite, GivesTheSlotBack) {
    make(mib(2), 4, mib(4));
    put_in_vram(page_of(1, 0), 1, 1);
    store()->maintain();
    ASSERT_EQ(write(page_of(1, 0), 1, 2), IoStatus::ok);
    steps(1);
    ASSERT_EQ(write(page_of(0, 500), 100, 2), IoStatus::retry);  // chunk 0 had the last slot for a moment
    EXPECT_EQ(write(page_of(3, 0), 1, 1), IoStatus::ok);
    expect(page_of(0, 500), 12, 0);
    ASSERT_TRUE(store().drain());
    expect(page_of(3, 0), 1, 1);
    expect(page_of(1, 0), 1, 2);
}

TEST_F(UndoneWrite, AfterARefusalToo) {
    make(mib(2), 4, mib(4));
    put_in_vram(page_of(0, 500), 4, 1);
    store()->maintain();
    put_in_vram(page_of(3, 0), 1, 1);
    store()->maintain();
    ASSERT_EQ(write(page_of(0, 500), 100, 2), IoStatus::no_space);  // there is no slot for chunk 1
    expect(page_of(0, 500), 4, 1);
    expect(page_of(0, 504), 96, 0);
    EXPECT_EQ(stats().stored, Bytes{5 * kPageBytes});
    EXPECT_EQ(queue_->in_flight(), 0u);
    discard(page_of(0, 0), kChunkPages);
    EXPECT_EQ(write(page_of(1, 0), kLarge, 2), IoStatus::ok);
}

TEST_F(UndoneWrite, FindsAllItsSlotsInTheEnd) {
    make(mib(2), 4);  // a segment for each slot, and one ahead of need
    IoStatus status = write(page_of(0, 500), 600, 1);
    for (int n = 0; n < 3 && status == IoStatus::retry; ++n) {
        EXPECT_TRUE(take_event(store()->maintenance_fd()));
        store()->maintain();
        EXPECT_TRUE(take_event(queue_->event_fd()));
        status = write(page_of(0, 500), 600, 1);
    }
    ASSERT_EQ(status, IoStatus::ok);
    expect(page_of(0, 500), 600, 1);
}

TEST_F(UndoneWrite, IsRefusedWhenThereAreSomeSlotsButNotEnough) {
    make(mib(2), 4, mib(4));
    ASSERT_EQ(write(page_of(0, 500), 600, 1), IoStatus::retry);
    store()->maintain();
    ASSERT_EQ(write(page_of(0, 500), 600, 1), IoStatus::retry);
    store()->maintain();
    EXPECT_EQ(write(page_of(0, 500), 600, 1), IoStatus::no_space);
    EXPECT_EQ(write(page_of(0, 0), 64, 1), IoStatus::ok);
    EXPECT_EQ(write(page_of(1, 0), 64, 1), IoStatus::ok);
}

TEST_F(UndoneWrite, LeavesNoChunkMarkedAsBeingWritten) {
    prepare();
    ASSERT_EQ(write(page_of(0, 500), 100, 2), IoStatus::retry);
    ASSERT_TRUE(store().drain());
    const StoreStats before = stats();
    ASSERT_EQ(write(page_of(0, 0), 1, 1), IoStatus::ok);
    ASSERT_EQ(write(page_of(0, 2), 1, 1), IoStatus::ok);
    ASSERT_TRUE(store().drain());
    EXPECT_EQ(stats().pages_bridged, before.pages_bridged + 1);  // not done in a chunk with direct writes
}

TEST_F(UndoneWrite, OneThatIsPendingStaysSo) {
    prepare();
    BlockRequest pending{};
    begin_direct(pending, page_of(0, 0), kLarge, 2, other_);
    ASSERT_EQ(write(page_of(0, 500), 100, 2), IoStatus::retry);
    EXPECT_EQ(queue_->in_flight(), 1u);
    EXPECT_EQ(finish(pending), IoStatus::ok);
    expect(page_of(0, 0), kLarge, 2);
    expect(page_of(0, 502), 4, 1);
}

// -- failures --

TEST_F(DirectWrite, AFailedOneIsRepeated) {
    put_in_vram(page_of(0, 0), 8, 1);
    for (const std::uint32_t failures : {1u, 2u}) {
        BlockRequest r{};
        begin_direct(r, page_of(0, 4), kLarge, 1 + failures, other_);
        faults().fail_copies = failures;
        EXPECT_EQ(finish(r), IoStatus::ok);
        EXPECT_EQ(faults().fail_copies, 0u);
        expect(page_of(0, 0), 4, 1);
        expect(page_of(0, 4), kLarge, 1 + failures);
    }
    EXPECT_EQ(stats().writes_refused, 0u);
    EXPECT_EQ(stats().reread_pages, 0u);
}

TEST_F(DirectWrite, OneThatFailsThreeTimesLosesItsPagesAndSaysSo) {
    put_in_vram(page_of(0, 0), 8, 1);
    BlockRequest r{};
    begin_direct(r, page_of(0, 4), kLarge, 2, other_);
    const auto reader = std::move(*store()->make_queue(2));
    EXPECT_EQ(submit(*reader, BlockRequest::Op::read, page_of(0, 5), 1), IoStatus::retry);
    fill(page_of(0, 4), kLarge, 2, other_);
    faults().fail_copies = 3;
    EXPECT_EQ(finish(r), IoStatus::io_error);
    EXPECT_TRUE(take_event(reader->event_fd()));
    EXPECT_EQ(stats().writes_refused, 1u);
    expect(page_of(0, 0), 4, 1);
    for (const std::uint32_t p : {4u, 5u, 67u}) EXPECT_EQ(read(page_of(0, p), 1), IoStatus::lost);
    EXPECT_EQ(read(page_of(0, 0), 8), IoStatus::lost);
    EXPECT_EQ(stats().stored, Bytes{(4 + kLarge) * kPageBytes});
    // Each way of writing heals.
    ASSERT_EQ(write(page_of(0, 4), 1, 3), IoStatus::ok);
    expect(page_of(0, 4), 1, 3);
    ASSERT_TRUE(store().drain());
    expect(page_of(0, 4), 1, 3);
    discard(page_of(0, 5), 1);
    expect(page_of(0, 5), 1, 0);
    EXPECT_EQ(write(page_of(0, 6), kLarge - 2, 4), IoStatus::ok);
    expect(page_of(0, 6), kLarge - 2, 4);
    EXPECT_EQ(stats().stored, Bytes{(4 + kLarge - 1) * kPageBytes});
}

TEST_F(DirectWrite, AFailedOneLeavesNothingPinned) {
    make(mib(2), 4, mib(2));
    BlockRequest r{};
    begin_direct(r, page_of(0, 4), kLarge, 2, other_);
    faults().fail_copies = 3;
    EXPECT_EQ(finish(r), IoStatus::io_error);
    discard(page_of(0, 0), kChunkPages);
    EXPECT_EQ(write(page_of(1, 0), 1, 1), IoStatus::ok);
}

TEST_F(DirectWrite, AReadInFlightWhosePageIsLostFails) {
    put_in_vram(page_of(0, 0), 8, 1);
    const auto reader = std::move(*store()->make_queue(2));
    BlockRequest look = request(BlockRequest::Op::read, page_of(0, 0), 8, third_);
    ASSERT_EQ(reader->submit(look), IoStatus::pending);
    BlockRequest r{};
    begin_direct(r, page_of(0, 4), kLarge, 2, other_);
    faults().fail_copies = 3;
    EXPECT_EQ(finish(r), IoStatus::io_error);
    EXPECT_EQ(finish(look, *reader), IoStatus::lost);
    EXPECT_EQ(reader->in_flight(), 0u);
    discard(page_of(0, 0), kChunkPages);
    expect(page_of(0, 0), 8, 0);
}

TEST_F(DirectWrite, CorruptedOnItsWayItIsAnErrorToReadAndNeverWrongBytes) {
    BlockRequest r{};
    begin_direct(r, page_of(0, 0), kLarge, 1, other_);
    faults().corrupt_writes = 1;
    EXPECT_EQ(finish(r), IoStatus::ok);
    EXPECT_EQ(read(page_of(0, 0), kLarge), IoStatus::io_error);
    EXPECT_EQ(stats().read_errors, 1u);
    expect(page_of(0, 0), kLarge / 2, 1);
    expect(page_of(0, kLarge / 2 + 1), kLarge / 2 - 1, 1);
}

TEST_F(DirectWrite, ALostGpuFailsItAndNothingHangs) {
    BlockRequest r{};
    begin_direct(r, page_of(0, 0), kLarge, 1, other_);
    launch();
    faults().lost = true;
    EXPECT_EQ(finish(r), IoStatus::io_error);
    EXPECT_EQ(read(page_of(0, 0), 1), IoStatus::lost);
    EXPECT_EQ(write(page_of(1, 0), kLarge, 1), IoStatus::io_error);
    discard(page_of(0, 0), 2 * kChunkPages);
    expect(page_of(0, 0), kLarge, 0);
}

// -- submissions --

TEST_F(DirectWrite, WhatIsSubmittedBeforeAPollIsOneSubmission) {
    put_in_vram(page_of(0, 0), 8, 1);
    std::array<BlockRequest, 4> requests{};
    for (std::uint32_t i = 0; i < 3; ++i) {
        requests.at(i) = request(BlockRequest::Op::read, page_of(0, i), 1, third_);
        requests.at(i).data = third_.page(i);
        ASSERT_EQ(queue_->submit(requests.at(i)), IoStatus::pending);
    }
    begin_direct(requests[3], page_of(1, 0), kLarge, 1, other_);
    faults().fail_copies = kManyFaults;
    std::array<BlockRequest*, kDepth> done{};
    EXPECT_EQ(queue_->poll(done), 0u);
    EXPECT_EQ(submissions(), 1u);
    // All failed with it; each is repeated alone.
    faults().fail_copies = 0;
    for (const BlockRequest& r : requests) EXPECT_EQ(finish(r), IoStatus::ok);
    expect_content(page_of(0, 0), 3, 1, third_);
    expect(page_of(1, 0), kLarge, 1);
}

TEST_F(DirectWrite, OneBadRequestDoesNotTakeOthersDown) {
    put_in_vram(page_of(0, 0), 8, 1);
    std::array<BlockRequest, 5> requests{};
    begin_direct(requests[0], page_of(1, 0), kLarge, 1, other_);
    for (std::uint32_t i = 1; i < 5; ++i) {
        requests.at(i) = request(BlockRequest::Op::read, page_of(0, i), 1, third_);
        requests.at(i).data = third_.page(i);
        ASSERT_EQ(queue_->submit(requests.at(i)), IoStatus::pending);
    }
    std::array<BlockRequest*, kDepth> done{};
    for (int n = 0; n < 3; ++n) {
        faults().fail_copies = 1;  // what is submitted first: all together, then the write, again and again
        (void)queue_->poll(done);
        EXPECT_EQ(faults().fail_copies, 0u);
    }
    for (std::uint32_t i = 1; i < 5; ++i) EXPECT_EQ(finish(requests.at(i)), IoStatus::ok);
    EXPECT_EQ(finish(requests[0]), IoStatus::io_error);
    for (std::uint32_t i = 1; i < 5; ++i)
        EXPECT_EQ(content_of(third_.page(i)), content_for(page_of(0, i), 1));
}

TEST_F(DirectWrite, RequestsCompleteInTheirOrder) {
    put_in_vram(page_of(0, 0), 8, 1);
    std::array<BlockRequest, kDepth> requests{};
    for (std::uint32_t i = 0; i < kDepth; ++i) {
        if (i % 2 == 0) {
            requests.at(i) = request(BlockRequest::Op::read, page_of(0, i), 1, third_);
            requests.at(i).data = third_.page(i);
            ASSERT_EQ(queue_->submit(requests.at(i)), IoStatus::pending);
        } else {
            begin_direct(requests.at(i), page_of(1, kLarge * (i / 2)), kLarge, 1, other_);
        }
        if (i == 3) launch();  // the rest is another submission
    }
    EXPECT_EQ(queue_->in_flight(), kDepth);
    std::vector<BlockRequest*> order;
    while (queue_->in_flight() != 0) {
        std::array<BlockRequest*, 3> done{};
        const std::size_t n = queue_->poll(done);
        ASSERT_NE(n, 0u);
        order.insert(order.end(), done.begin(), done.begin() + static_cast<std::ptrdiff_t>(n));
    }
    ASSERT_EQ(order.size(), kDepth);
    for (std::uint32_t i = 0; i < kDepth; ++i) EXPECT_EQ(order.at(i), &requests.at(i));
}

TEST_F(DirectWrite, AFullQueueStagesWhatItCan) {
    std::array<BlockRequest, kDepth> requests{};
    HostMemory memory(kDepth * kLarge * kPageBytes);
    for (std::uint32_t i = 0; i < kDepth; ++i) {
        requests.at(i) = request(BlockRequest::Op::write, page_of(0, kLarge * i), kLarge, memory);
        requests.at(i).data = memory.page(i * kLarge);
    }
    fill(page_of(0, 0), kChunkPages, 1, memory);
    for (BlockRequest& r : requests) ASSERT_EQ(queue_->submit(r), IoStatus::pending);
    fill(page_of(1, 0), kLarge, 1, other_);
    BlockRequest next = request(BlockRequest::Op::write, page_of(1, 0), kLarge, other_);
    EXPECT_EQ(queue_->submit(next), IoStatus::ok);  // large, but there is no place to wait
    EXPECT_EQ(stats().pages_written_direct, kChunkPages);
    BlockRequest look = request(BlockRequest::Op::read, page_of(1, 0), 1, third_);
    EXPECT_EQ(queue_->submit(look), IoStatus::retry);
    std::array<BlockRequest*, 1> done{};
    EXPECT_EQ(queue_->poll(done), 1u);
    EXPECT_EQ(done[0], requests.data());
    EXPECT_EQ(queue_->submit(look), IoStatus::ok);
    for (const BlockRequest& r : requests) EXPECT_EQ(finish(r), IoStatus::ok);
    expect(page_of(0, 0), kChunkPages, 1);
    expect(page_of(1, 0), kLarge, 1);
}

TEST_F(DirectWrite, CountsOnlyWhatIsDone) {
    put_in_vram(page_of(0, 1), 1, 1);
    ASSERT_EQ(write(page_of(0, 0), 1, 1), IoStatus::ok);  // staged
    BlockRequest r{};
    begin_direct(r, page_of(1, 0), kLarge, 1, other_);
    const StoreStats before = stats();
    // A read of a staged page and one that is being written; a write of a zero page and such a one.
    BlockRequest look = request(BlockRequest::Op::read, page_of(0, 0), kChunkPages + 1, memory_);
    EXPECT_EQ(queue_->submit(look), IoStatus::retry);
    fill(page_of(0, 511), 2, 2, memory_);
    fill_page(memory_.page(0), 0);
    BlockRequest zero = request(BlockRequest::Op::write, page_of(0, 511), 2, memory_);
    EXPECT_EQ(queue_->submit(zero), IoStatus::retry);
    EXPECT_EQ(stats().pages_read_stage, before.pages_read_stage);
    EXPECT_EQ(stats().pages_read_gpu, before.pages_read_gpu);
    EXPECT_EQ(stats().zero_pages_written, before.zero_pages_written);
    EXPECT_EQ(stats().retries, before.retries + 2);
    EXPECT_EQ(finish(r), IoStatus::ok);
    EXPECT_EQ(queue_->submit(zero), IoStatus::ok);
    EXPECT_EQ(stats().zero_pages_written, before.zero_pages_written + 1);
}

}  // namespace
}  // namespace vramswap
