// SPDX-License-Identifier: MIT
// Chunks that move: to the spill and back, within the GPU, while others read, write and discard their pages;
// segments that come and go under them.
#include <gtest/gtest.h>

#include <array>
#include <memory>

#include "support/stepped_disk.h"
#include "support/store_fixture.h"

namespace vramswap {
namespace {

using test::page_of;
using test::SteppedSpill;

constexpr std::uint32_t kChunks = 6;
constexpr std::uint32_t kPages = 20;  ///< of each chunk that are written

class MoverTest : public test::StoreTest {
  protected:
    MoverTest() { make_with_spill(8); }
    /// Segments of two chunks; as many as are needed fit into VRAM.
    void make_with_spill(std::uint32_t slots, Bytes vram = mib(64)) {
        queue_.reset();
        store_.reset();
        spill_ = std::make_unique<SteppedSpill>(slots);
        gpu_ = std::make_unique<test::SimGpu>(vram);
        StoreConfig c = config(mib(4), 4);
        c.spill = spill_->spill.get();
        store_ = std::make_unique<test::SteppedStore>(*gpu_, c, &keeper_);
        queue_ = std::move(*store()->make_queue(kDepth));
    }
    ~MoverTest() override {
        queue_.reset();
        store_.reset();
    }
    void fill_all(std::uint32_t version = 1) {
        for (std::uint32_t c = 0; c < kChunks; ++c) fill_chunk(c, version);
    }
    void fill_chunk(std::uint32_t chunk, std::uint32_t version) {
        IoStatus status = write(page_of(chunk, 3), kPages, version);
        for (int n = 0; n < 100 && status == IoStatus::retry; ++n) {
            store()->maintain();
            status = write(page_of(chunk, 3), kPages, version);
        }
        ASSERT_EQ(status, IoStatus::ok) << "chunk " << chunk;
        ASSERT_TRUE(store().drain());
        store()->maintain();  // the clock of uses goes on
    }
    void expect_all(std::uint32_t version = 1) {
        for (std::uint32_t c = 0; c < kChunks; ++c) expect(page_of(c, 3), kPages, version);
    }
    void order(Bytes vram, std::uint64_t rate = Mover::kNoLimit) {
        store()->obey(0, {.vram_max = vram, .move_rate = rate});
    }
    void shrink_to(Bytes vram) {
        order(vram);
        ASSERT_TRUE(store().settle());
        ASSERT_EQ(stats().vram, vram);
    }
    [[nodiscard]] std::uint64_t spilled() { return stats().spilled.n / kChunkBytes; }
    test::DiskFaults& disk() { return *spill_->faults; }
    /// Until every chunk that is on its way out is being written.
    void begin_moving_out() {
        order({0});
        disk().hang = true;
        for (int n = 0; n < 10; ++n) (void)store().step_mover();
    }

    std::unique_ptr<SteppedSpill> spill_;
};

TEST_F(MoverTest, EverythingGoesToTheSpillAndComesBack) {
    fill_all();
    EXPECT_EQ(stats().vram, mib(16)) << "three segments, and one for what comes next";
    shrink_to({0});
    EXPECT_EQ(gpu_->free(), mib(64));
    EXPECT_EQ(spilled(), kChunks);
    EXPECT_EQ(stats().moved_out, Bytes{kChunks * kPages * kPageBytes});
    expect_all();
    EXPECT_EQ(stats().pages_read_spill, kChunks * kPages);
    order(mib(64));
    ASSERT_TRUE(store().settle());
    EXPECT_EQ(spilled(), 0u);
    EXPECT_EQ(stats().moved_back, stats().moved_out);
    expect_all();
    EXPECT_EQ(stats().pages_read_spill, kChunks * kPages) << "read from VRAM again";
    EXPECT_EQ(stats().move_errors, 0u);
}

TEST_F(MoverTest, TheColdestGoFirstAndTheHottestComeBackFirst) {
    fill_all();
    expect(page_of(0, 3), 1, 1);  // used again
    shrink_to(mib(8));            // four slots, of which some stay free for new pages
    const std::uint64_t out = spilled();
    ASSERT_GT(out, 0u);
    ASSERT_LT(out, kChunks);
    const std::uint64_t read_before = stats().pages_read_spill;
    expect(page_of(0, 3), kPages, 1);
    EXPECT_EQ(stats().pages_read_spill, read_before) << "the hottest has stayed";
    expect(page_of(1, 3), kPages, 1);
    EXPECT_EQ(stats().pages_read_spill, read_before + kPages) << "the coldest has gone";
    expect_all();
}

TEST_F(MoverTest, ChunksMoveTogetherWithinTheGpuWhenSegmentsAreHalfEmpty) {
    fill_all();
    for (const std::uint32_t c : {0u, 2u, 4u}) discard(page_of(c, 0), kChunkPages);
    EXPECT_EQ(stats().vram, mib(16)) << "each segment has a chunk left";
    order(mib(8));
    ASSERT_TRUE(store().settle());
    EXPECT_EQ(stats().vram, mib(8));
    EXPECT_EQ(stats().moved_within, Bytes{kChunkBytes});
    EXPECT_EQ(spilled(), 0u);
    for (const std::uint32_t c : {1u, 3u, 5u}) expect(page_of(c, 3), kPages, 1);
}

TEST_F(MoverTest, ReadsGoOnWhileChunksMove) {
    fill_all();
    begin_moving_out();
    EXPECT_EQ(stats().vram, mib(12)) << "nothing has gone yet";
    expect_all();
    EXPECT_EQ(stats().pages_read_spill, 0u);
    disk().hang = false;
    ASSERT_TRUE(store().settle());
    EXPECT_EQ(spilled(), kChunks);
    expect_all();
}

TEST_F(MoverTest, WhatIsWrittenMeanwhileIsTheNewer) {
    fill_all();
    begin_moving_out();
    write_staged(page_of(2, 5), 4, 2);
    write_staged(page_of(3, 100), 4, 3);  // beside the pages that move
    expect(page_of(2, 5), 4, 2);
    steps(3);
    EXPECT_GT(stats().dirty.n, 0u) << "the flusher must not write to a home that is being left";
    disk().hang = false;
    ASSERT_TRUE(store().settle());
    ASSERT_TRUE(store().drain());
    EXPECT_EQ(stats().pages_written_spill, 8u);
    expect(page_of(2, 5), 4, 2);
    expect(page_of(2, 3), 2, 1);
    expect(page_of(2, 9), kPages - 6, 1);
    expect(page_of(3, 100), 4, 3);
    expect(page_of(3, 3), kPages, 1);
}

TEST_F(MoverTest, WhatIsDiscardedMeanwhileIsGone) {
    fill_all();
    begin_moving_out();
    discard(page_of(1, 0), kChunkPages);
    discard(page_of(2, 3), 5);
    disk().hang = false;
    ASSERT_TRUE(store().settle());
    EXPECT_EQ(spilled(), kChunks - 1);
    expect(page_of(1, 3), kPages, 0);
    expect(page_of(2, 3), 5, 0);
    expect(page_of(2, 8), kPages - 5, 1);
    EXPECT_EQ(gpu_->free(), mib(64));
}

TEST_F(MoverTest, AHomeIsLeftOnlyWhenNobodyReadsThereAnyMore) {
    fill_all();
    BlockRequest r = request(BlockRequest::Op::read, page_of(0, 3), kPages, other_);
    ASSERT_EQ(queue_->submit(r), IoStatus::pending);
    launch();
    order({0});
    for (int n = 0; n < 100; ++n) (void)store().step_mover();
    EXPECT_EQ(spilled(), kChunks) << "it has its place there";
    EXPECT_EQ(stats().vram, mib(4)) << "but the reader's segment is still held";
    // Who comes now waits, so that the move comes to an end.
    BlockRequest late = request(BlockRequest::Op::read, page_of(0, 3), 1, third_);
    EXPECT_EQ(queue_->submit(late), IoStatus::retry);
    ASSERT_EQ(finish(r), IoStatus::ok);
    expect_content(page_of(0, 3), kPages, 1, other_);
    ASSERT_TRUE(store().settle());
    EXPECT_EQ(stats().vram, Bytes{0});
    EXPECT_TRUE(test::take_event(queue_->event_fd())) << "and is woken";
    expect(page_of(0, 3), 1, 1);
}

TEST_F(MoverTest, NewPagesFindRoomThoughAllOfTheVramIsTaken) {
    make_with_spill(8, mib(8));  // four chunks fit
    fill_all();
    expect_all();
    ASSERT_TRUE(store().settle());
    EXPECT_GT(spilled(), kChunks - 4) << "some slots are kept free";
    EXPECT_EQ(stats().writes_refused, 0u);
    expect_all();
    fill_all(2);
    expect_all(2);
}

TEST_F(MoverTest, WithoutVramAllIsWrittenToTheSpill) {
    shrink_to({0});
    fill_all();
    EXPECT_EQ(stats().vram, Bytes{0});
    EXPECT_EQ(spilled(), kChunks);
    EXPECT_EQ(stats().pages_written_spill, kChunks * kPages);
    expect_all();
    discard(page_of(0, 0), 6 * kChunkPages);
    EXPECT_EQ(spilled(), 0u);
}

TEST_F(MoverTest, ALargeWriteToASpilledChunkGoesThroughTheStage) {
    fill_all();
    shrink_to({0});
    const std::uint64_t direct = stats().pages_written_direct;
    for (int n = 0; n < 100; ++n) {
        if (write(page_of(1, 0), 200, 7) == IoStatus::ok) break;
        ASSERT_TRUE(store().drain());
    }
    EXPECT_EQ(stats().pages_written_direct, direct);
    ASSERT_TRUE(store().drain());
    expect(page_of(1, 0), 200, 7);
}

TEST_F(MoverTest, AFullSpillStopsTheShrinkingAndLosesNothing) {
    make_with_spill(2);
    fill_all();
    order({0});
    for (int n = 0; n < 1000; ++n) (void)store().step_mover();
    EXPECT_EQ(spilled(), 2u);
    EXPECT_EQ(stats().vram, mib(8)) << "four chunks have to stay";
    expect_all();
    order(mib(64));
    ASSERT_TRUE(store().settle());
    expect_all();
    EXPECT_EQ(spilled(), 0u);
}

TEST_F(MoverTest, AFailingSpillStopsTheShrinkingAndLosesNothing) {
    fill_all();
    disk().fail_writes = 1'000'000;
    order({0});
    for (int n = 0; n < 1000 && !stats().spill_writes_are_refused; ++n) (void)store().step_mover();
    EXPECT_TRUE(stats().spill_writes_are_refused);
    EXPECT_EQ(stats().vram, mib(12));
    EXPECT_GT(stats().move_errors, 0u);
    expect_all();
    // New pages have no home: refused, not lost.
    EXPECT_EQ(write({6 * kChunkPages}, 3, 1), IoStatus::no_space);
    // It is tried again, as long as that fails; and when it works again, all is as before.
    disk().fail_writes = 0;
    store().advance(20'000'000'000);  // chunks that failed are tried again, too
    for (int n = 0; n < 1000 && stats().vram.n != 0; ++n) (void)store().step_mover();
    EXPECT_FALSE(stats().spill_writes_are_refused);
    EXPECT_EQ(stats().vram, Bytes{0});
    expect_all();
}

TEST_F(MoverTest, WhatTheDiskFlipsIsReadAgainAndNeverPassedOn) {
    fill_all();
    shrink_to({0});
    disk().corrupt_reads = 2;
    expect_all();
    EXPECT_GT(stats().reread_pages, 0u);
    disk().corrupt_reads = 2;
    order(mib(64));
    ASSERT_TRUE(store().settle());
    expect_all();
    disk().corrupt_reads = 0;
    shrink_to({0});
    disk().corrupt_reads = 100;
    EXPECT_EQ(read(page_of(0, 3), 1), IoStatus::io_error);
    disk().corrupt_reads = 0;
    expect_all();
}

TEST_F(MoverTest, APageThatIsWrongInVramIsNotMoved) {
    faults().corrupt_writes = 1;
    fill_all();
    order({0});
    for (int n = 0; n < 100; ++n) (void)store().step_mover();
    EXPECT_EQ(spilled(), kChunks - 1);
    EXPECT_EQ(stats().move_errors, 1u) << "it is not tried again and again";
    EXPECT_EQ(stats().vram, mib(4)) << "its chunk stays where it is";
    for (std::uint32_t c = 1; c < kChunks; ++c) expect(page_of(c, 3), kPages, 1);
}

TEST_F(MoverTest, CopiesThatFailAreRepeated) {
    fill_all();
    faults().fail_copies = 2;
    shrink_to({0});
    expect_all();
    faults().fail_copies = 2;
    order(mib(64));
    ASSERT_TRUE(store().settle());
    expect_all();
    EXPECT_EQ(stats().move_errors, 0u);
}

TEST_F(MoverTest, TheRateIsKept) {
    fill_all();
    order({0}, kChunkBytes);  // a chunk a second
    const auto out_after = [&](int steps) {
        for (int n = 0; n < steps; ++n) (void)store().step_mover();
        return spilled();
    };
    (void)out_after(3);
    order({0}, 0);
    const std::uint64_t before = out_after(20);
    EXPECT_EQ(out_after(100), before) << "rate 0: none";
    order({0}, Mover::kNoLimit);
    ASSERT_TRUE(store().settle());
    EXPECT_EQ(spilled(), kChunks);
}

TEST_F(MoverTest, ASpilledChunkThatIsWrittenComesBackIfThereIsRoom) {
    fill_all();
    shrink_to({0});
    order(mib(64), 0);  // nothing comes back by itself
    (void)store().step_mover();
    write_staged(page_of(1, 5), 2, 9);
    store()->maintain();
    ASSERT_TRUE(store().drain());
    expect(page_of(1, 5), 2, 9);
    expect(page_of(1, 3), 2, 1);
}

TEST_F(MoverTest, ReadsOfTheSpillAndOfVramMayBeOneRequest) {
    fill_all();
    ASSERT_EQ(write(page_of(1, 0), kChunkPages, 4), IoStatus::ok);
    ASSERT_EQ(write(page_of(2, 0), kChunkPages, 4), IoStatus::ok);
    ASSERT_TRUE(store().drain());
    store()->maintain();
    for (const std::uint32_t c : {3u, 4u, 5u}) expect(page_of(c, 3), 1, 1);
    store()->maintain();
    expect(page_of(2, 0), 1, 4);  // the hottest
    order(mib(8));
    ASSERT_TRUE(store().settle());
    const auto before = stats();
    expect(page_of(1, 400), kChunkPages, 4);
    EXPECT_EQ(stats().pages_read_spill, before.pages_read_spill + 112);
    EXPECT_EQ(stats().pages_read_gpu, before.pages_read_gpu + 400);
    EXPECT_EQ(queue_->in_flight(), 0u);
}

TEST_F(MoverTest, ASlowDiskHoldsUpNobodyElse) {
    fill_all();
    expect(page_of(5, 3), 1, 1);
    order(mib(8));
    ASSERT_TRUE(store().settle());
    disk().hang = true;
    BlockRequest slow = request(BlockRequest::Op::read, page_of(0, 3), kPages, other_);
    ASSERT_EQ(queue_->submit(slow), IoStatus::pending);
    EXPECT_FALSE(queue_->should_spin());
    expect(page_of(5, 3), kPages, 1);
    EXPECT_EQ(slow.status, IoStatus::pending);
    disk().hang = false;
    EXPECT_EQ(finish(slow), IoStatus::ok);
    expect_content(page_of(0, 3), kPages, 1, other_);
}

TEST_F(MoverTest, LatenciesAreCounted) {
    fill_all();
    const auto count = [&] {
        std::uint64_t sum = 0;
        for (const std::uint64_t n : stats().read_latency) sum += n;
        return sum;
    };
    expect_all();
    EXPECT_EQ(count(), kChunks);
    EXPECT_EQ(LatencyCounts::entry_of(1), 0u);
    EXPECT_EQ(LatencyCounts::entry_of(1'000'000), 39u);  // 2^19.93
    EXPECT_EQ(LatencyCounts::entry_of(~0ull), LatencyCounts::kEntries - 1);
}

TEST(Pacer, WritesPayForReadsButNotForEver) {
    constexpr std::uint64_t kSecond = 1'000'000'000;
    Pacer pacer;
    pacer.charge(gib(100).n, kSecond);
    EXPECT_EQ(pacer.not_before(kSecond), 0u) << "no ceiling";
    pacer.set_rate(mib(100).n);
    pacer.charge(mib(50).n, kSecond);
    EXPECT_EQ(pacer.not_before(kSecond), kSecond + kSecond / 2);
    EXPECT_EQ(pacer.not_before(kSecond + kSecond / 2), 0u);
    for (int n = 0; n < 100; ++n) pacer.charge(mib(50).n, 2 * kSecond);
    EXPECT_EQ(pacer.not_before(2 * kSecond), 3 * kSecond);
    EXPECT_EQ(pacer.not_before(3 * kSecond), 0u);
}

TEST_F(MoverTest, APageThatCannotBeReadDoesNotKeepItsChunksNewPagesInTheStage) {
    fill_all();
    shrink_to({0});
    order(mib(64), 0);
    (void)store().step_mover();
    disk().corrupt_reads = 1'000'000;
    write_staged(page_of(1, 100), 2, 9);
    store()->maintain();
    ASSERT_TRUE(store().drain());
    disk().corrupt_reads = 0;
    expect(page_of(1, 100), 2, 9);
    expect(page_of(1, 3), kPages, 1);
}

// ---- several GPUs ----

class TwoGpus : public MoverTest {
  protected:
    TwoGpus() {
        queue_.reset();
        store_.reset();
        spill_ = std::make_unique<SteppedSpill>(8);
        StoreConfig c = config(mib(4), 4);
        c.size = mib(32);
        c.spill = spill_->spill.get();
        other_gpu_ = std::make_unique<test::SimGpu>(mib(64));
        store_ = std::make_unique<test::SteppedStore>(
            std::vector<test::SimGpu*>{gpu_.get(), other_gpu_.get()}, c, &keeper_);
        queue_ = std::move(*store()->make_queue(kDepth));
    }
    ~TwoGpus() override {
        queue_.reset();
        store_.reset();
    }
    [[nodiscard]] std::uint64_t chunks_on(std::uint32_t gpu) {
        return store()->holdings(gpu).wanted.n / kChunkBytes;
    }
    [[nodiscard]] Bytes held(std::uint32_t gpu) { return store()->holdings(gpu).vram; }
    std::unique_ptr<test::SimGpu> other_gpu_;
};

TEST_F(TwoGpus, ChunksAreSpreadOverBoth) {
    fill_all();
    expect_all();
    EXPECT_GE(chunks_on(0), 2u);
    EXPECT_GE(chunks_on(1), 2u);
    EXPECT_EQ(chunks_on(0) + chunks_on(1), kChunks);
    EXPECT_LT(gpu_->free(), mib(64));
    EXPECT_LT(other_gpu_->free(), mib(64));
    // One request over chunks of both.
    ASSERT_EQ(write(page_of(1, 0), 2 * kChunkPages, 3), IoStatus::ok);
    ASSERT_TRUE(store().drain());
    expect(page_of(1, 0), 2 * kChunkPages, 3);
}

TEST_F(TwoGpus, OneYieldsToTheOther) {
    fill_all();
    const std::uint64_t on_first = chunks_on(0);
    store()->obey(0, {.vram_max = {0}});
    ASSERT_TRUE(store().settle());
    EXPECT_EQ(held(0), Bytes{0});
    EXPECT_EQ(gpu_->free(), mib(64));
    EXPECT_EQ(spilled(), 0u) << "the other one has room";
    EXPECT_EQ(stats().moved_across, Bytes{on_first * kPages * kPageBytes});
    expect_all();
    store()->obey(1, {.vram_max = {0}});
    ASSERT_TRUE(store().settle());
    EXPECT_EQ(spilled(), kChunks);
    expect_all();
    store()->obey(0, {.vram_max = mib(64)});
    ASSERT_TRUE(store().settle());
    EXPECT_EQ(spilled(), 0u);
    EXPECT_EQ(held(1), Bytes{0});
    expect_all();
}

TEST_F(TwoGpus, WhatConcernsBothIsTheMoreCarefulWord) {
    store()->obey(0, {.mode = EngineMode::turbo, .move_rate = 0});
    EXPECT_EQ(stats().mode, EngineMode::copy) << "nothing was said for the other one";
    store()->obey(1, {.mode = EngineMode::turbo, .move_rate = 0});
    EXPECT_EQ(stats().mode, EngineMode::turbo);
    store()->obey(0, {.mode = EngineMode::copy, .move_rate = 0});
    EXPECT_EQ(stats().mode, EngineMode::copy);
    store()->obey(1, {.mode = EngineMode::turbo, .move_rate = 0});
    EXPECT_EQ(stats().mode, EngineMode::copy) << "the first one's word still counts";
    // Moves: who is in a hurry is not held up.
    fill_all();
    store()->obey(0, {.vram_max = {0}});
    store()->obey(1, {.vram_max = {0}, .move_rate = 0});
    ASSERT_TRUE(store().settle());
    EXPECT_EQ(held(0), Bytes{0});
    EXPECT_EQ(held(1), Bytes{0});
    expect_all();
}

TEST_F(TwoGpus, WhatOneHoldsMayGoToTheOtherWithoutASpill) {
    queue_.reset();
    store_.reset();
    store_ = std::make_unique<test::SteppedStore>(std::vector<test::SimGpu*>{gpu_.get(), other_gpu_.get()},
                                                  config(mib(4), 4), &keeper_);
    queue_ = std::move(*store()->make_queue(kDepth));
    fill_all();
    store()->obey(1, {.vram_max = mib(64)});
    EXPECT_GE(store()->holdings(0).spill_room, Bytes{kChunkBytes} * chunks_on(0));
    store()->obey(0, {.vram_max = {0}});
    ASSERT_TRUE(store().settle());
    EXPECT_EQ(held(0), Bytes{0});
    EXPECT_EQ(store()->holdings(1).spill_room, Bytes{0}) << "the first one may take nothing";
    expect_all();
}

TEST_F(TwoGpus, TheOtherTakesSegmentsBeforeThoseOfTheFirstAreEmpty) {
    constexpr std::uint32_t kMany = 12;  // all of the device: three segments on each GPU
    queue_.reset();
    store_.reset();
    StoreConfig whole = config(mib(4), 4);
    whole.size = Bytes{kChunkBytes} * kMany;
    whole.spill = spill_->spill.get();
    store_ = std::make_unique<test::SteppedStore>(std::vector<test::SimGpu*>{gpu_.get(), other_gpu_.get()},
                                                  whole, &keeper_);
    queue_ = std::move(*store()->make_queue(kDepth));
    for (std::uint32_t c = 0; c < kMany; ++c) fill_chunk(c, 1);
    for (std::uint32_t c = 0; c < kMany; c += 4)  // in each segment a cold chunk and a hot one
        for (const std::uint32_t hot : {c, c + 1}) expect(page_of(hot, 3), kPages, 1);
    ASSERT_EQ(chunks_on(1), kMany / 2);
    store()->obey(1, {.vram_max = {0}});
    ASSERT_TRUE(store().settle());
    EXPECT_EQ(held(1), Bytes{0});
    EXPECT_EQ(stats().moved_out, Bytes{0}) << "nothing had to go to the disk";
    for (std::uint32_t c = 0; c < kMany; ++c) expect(page_of(c, 3), kPages, 1);
}

TEST_F(TwoGpus, OneThatFailsTakesNothingOfTheOtherWithIt) {
    fill_all();
    faults().lost = true;
    std::uint32_t read_well = 0;
    for (std::uint32_t c = 0; c < kChunks; ++c)
        if (read(page_of(c, 3), kPages) == IoStatus::ok) {
            expect_content(page_of(c, 3), kPages, 1, memory_);
            ++read_well;
        }
    EXPECT_EQ(read_well, chunks_on(1));
    EXPECT_FALSE(gpu_->backend().memory_info());  // looks, and so knows
    EXPECT_EQ(stats().gpu, Health::gpu_lost);
    // What is new goes to the other one, what it has may go to the spill, and nobody waits for the lost one.
    for (std::uint32_t c = kChunks; c < kChunks + 4; ++c) fill_chunk(c, 1);
    EXPECT_FALSE(stats().writes_are_refused);
    const std::uint64_t on_second = chunks_on(1);
    EXPECT_EQ(on_second, read_well + 4);
    EXPECT_EQ(store()->holdings(1).spill_room, Bytes{kChunkBytes} * spill_->spill->room());
    store()->obey(1, {.vram_max = {0}});
    for (int n = 0; n < 100 && held(1) != Bytes{0}; ++n) ASSERT_TRUE(store().settle());
    EXPECT_EQ(held(1), Bytes{0});
    EXPECT_EQ(spilled(), on_second);
    for (std::uint32_t c = kChunks; c < kChunks + 4; ++c) expect(page_of(c, 3), kPages, 1);
}

TEST_F(TwoGpus, WritesGoOnWhileCopiesToOneFail) {
    store()->obey(0, {.vram_max = mib(64)});
    store()->obey(1, {.vram_max = mib(64)});
    faults().fail_copies = 1'000'000;
    std::uint32_t chunks = 0;
    const auto write_one = [&](std::uint32_t chunk) {
        store()->maintain();
        (void)store().step();
        return write(page_of(chunk, 3), kPages, 1);
    };
    for (; chunks_on(0) == 0; ++chunks) ASSERT_EQ(write_one(chunks), IoStatus::ok);
    for (int n = 0; n < 200 && !stats().writes_are_refused; ++n) (void)store().step();
    ASSERT_TRUE(stats().writes_are_refused) << "those of what is on the first one";
    EXPECT_EQ(write_one(chunks - 1), IoStatus::io_error);
    const std::uint32_t begin = chunks;
    for (; chunks < begin + 4; ++chunks) EXPECT_EQ(write_one(chunks), IoStatus::ok) << "elsewhere";
    faults().fail_copies = 0;
    ASSERT_TRUE(store().drain());
    EXPECT_FALSE(stats().writes_are_refused);
    for (std::uint32_t c = 0; c < chunks; ++c) expect(page_of(c, 3), kPages, 1);
}

}  // namespace
}  // namespace vramswap
