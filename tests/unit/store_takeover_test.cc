// SPDX-License-Identifier: MIT
// A process that died and one that takes over: the first store is left as it is at some moment, and a second
// one is made of what the keeper has. tests/model/killed_store.cc does the same with processes that are
// killed.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <memory>

#include "store/spill.h"
#include "store/takeover.h"
#include "support/stepped_disk.h"
#include "support/store_fixture.h"

namespace vramswap {
namespace {

using test::kDevicePages;
using test::page_of;

constexpr std::uint32_t kPages = 20;
constexpr std::uint64_t kLarge = 64;  ///< pages that go straight to VRAM

class TakeoverTest : public test::StoreTest {
  protected:
    /// The fixture's members come first: what the dead have is freed before.
    ~TakeoverTest() override {
        queue_.reset();
        store_.reset();
    }
    StoreConfig same_config() {
        StoreConfig c = config(mib(4), 4);
        c.spill = spill();
        return c;
    }
    virtual Spill* spill() { return nullptr; }

    /// The store there is is touched no more; nothing of it runs, as if all its threads were dead.
    void die() {
        dead_queue_ = std::move(queue_);
        dead_store_ = std::move(store_);
        dead_gpu_ = std::move(gpu_);
    }
    /// Another process's store over the same memory.
    void take_over() {
        gpu_ = std::make_unique<test::SimGpu>(next_gpu_);
        store_ = std::make_unique<test::SteppedStore>(std::vector<test::SimGpu*>{gpu_.get()}, same_config(),
                                                      &keeper_, keeper_.held);
        queue_ = std::move(*store()->make_queue(kDepth));
    }
    void die_and_take_over() {
        die();
        take_over();
    }
    [[nodiscard]] Result<void> try_to_take_over(const StoreConfig& config) {
        test::SimGpu gpu(mib(64));
        auto taken = PageStore::take_over({&gpu.backend()}, config, &keeper_, keeper_.held);
        return taken ? Result<void>() : Result<void>(taken.error());
    }
    /// What the dead have left, to be changed.
    [[nodiscard]] State left() {
        return std::move(
            *State::adopt({{kDevicePages * kPageBytes}, mib(4), 4, 1}, keeper_.held.at("state")));
    }
    std::byte* stage_page(std::uint32_t image, std::uint32_t page) {
        if (stage_ == nullptr) {
            const off_t size = ::lseek(keeper_.held.at("stage").get(), 0, SEEK_END);
            stage_ = static_cast<std::byte*>(::mmap(nullptr, static_cast<std::size_t>(size),
                                                    PROT_READ | PROT_WRITE, MAP_SHARED,
                                                    keeper_.held.at("stage").get(), 0));
        }
        return stage_ + image * kChunkBytes + page * kPageBytes;
    }

    SimConfig next_gpu_{.total = mib(64)};
    std::unique_ptr<test::SimGpu> dead_gpu_;
    std::unique_ptr<test::SteppedStore> dead_store_;
    std::unique_ptr<TargetQueue> dead_queue_;
    std::byte* stage_ = nullptr;
};

TEST_F(TakeoverTest, PagesAreFoundInVramAndInTheStage) {
    fill_chunks(3, 1);                                         // in VRAM only
    ASSERT_EQ(write(page_of(4, 0), kPages, 2), IoStatus::ok);  // in the stage only
    ASSERT_EQ(write(page_of(1, 1), 1, 3), IoStatus::ok);       // newer in the stage
    discard(page_of(2, 0), 1);
    const StoreStats before = stats();
    die_and_take_over();
    expect(page_of(0, 0), 3, 1);
    expect(page_of(1, 0), 1, 1);
    expect(page_of(1, 1), 1, 3);
    expect(page_of(2, 0), 1, 0);
    expect(page_of(2, 1), 2, 1);
    expect(page_of(4, 0), kPages, 2);
    expect(page_of(5, 0), kPages, 0);
    EXPECT_EQ(stats().stored, before.stored);
    EXPECT_EQ(stats().vram, before.vram);
    EXPECT_EQ(stats().dirty, before.dirty);
    EXPECT_EQ(stats().read_errors, 0u);
}

TEST_F(TakeoverTest, TheStoreGoesOnAndGivesEverythingBack) {
    fill_chunks(3, 1);
    die_and_take_over();
    ASSERT_EQ(write(page_of(5, 0), kPages, 2), IoStatus::ok);
    ASSERT_EQ(write(page_of(0, 0), 3, 2), IoStatus::ok);
    ASSERT_TRUE(store().drain());
    expect(page_of(0, 0), 3, 2);
    expect(page_of(1, 0), 3, 1);
    expect(page_of(5, 0), kPages, 2);
    discard({0}, kDevicePages);
    store()->maintain();
    EXPECT_EQ(stats().stored, Bytes{0});
    EXPECT_EQ(stats().staged, Bytes{0});
    queue_.reset();
    store_.reset();
    EXPECT_TRUE(keeper_.keys().empty());
    EXPECT_EQ(gpu_->free(), mib(64));
}

TEST_F(TakeoverTest, OneThatTookOverCanDieToo) {
    fill_chunks(2, 1);
    die_and_take_over();
    ASSERT_EQ(write(page_of(1, 0), 3, 2), IoStatus::ok);
    test::SimGpu* const first = dead_gpu_.release();  // they stay as they are to the end
    test::SteppedStore* const first_store = dead_store_.release();
    TargetQueue* const first_queue = dead_queue_.release();
    die_and_take_over();
    expect(page_of(0, 0), 3, 1);
    expect(page_of(1, 0), 3, 2);
    delete first_queue;
    delete first_store;
    delete first;
}

TEST_F(TakeoverTest, ACopyThatHadBegunIsMadeAgain) {
    ASSERT_EQ(write(page_of(0, 0), kPages, 1), IoStatus::ok);
    faults().hang = true;
    steps(2);  // under way, and VRAM has nothing of it
    die_and_take_over();
    EXPECT_EQ(stats().dirty, Bytes{kPages * kPageBytes});
    ASSERT_TRUE(store().drain());
    expect(page_of(0, 0), kPages, 1);
    EXPECT_EQ(stats().pages_read_gpu, kPages);
}

TEST_F(TakeoverTest, WhatWasDiscardedUnderwayStaysGone) {
    ASSERT_EQ(write(page_of(0, 0), kPages, 1), IoStatus::ok);
    faults().hang = true;
    steps(2);
    discard(page_of(0, 0), 2);
    die_and_take_over();
    expect(page_of(0, 0), 2, 0);
    expect(page_of(0, 2), kPages - 2, 1);
    EXPECT_EQ(stats().stored, Bytes{(kPages - 2) * kPageBytes});
}

TEST_F(TakeoverTest, AWriteOnItsWayToVramIsLostUntilItComesAgain) {
    ASSERT_EQ(write(page_of(0, 0), kChunkPages, 1), IoStatus::ok);
    ASSERT_TRUE(store().drain());
    BlockRequest r{};
    begin_direct(r, page_of(0, 8), kLarge, 2, other_);
    launch();
    die_and_take_over();
    EXPECT_EQ(read(page_of(0, 8), 1), IoStatus::lost);
    EXPECT_EQ(read(page_of(0, 7 + kLarge), 1), IoStatus::lost);
    expect(page_of(0, 0), 8, 1);
    expect(page_of(0, 8 + kLarge), kChunkPages - 8 - kLarge, 1);
    ASSERT_EQ(write(page_of(0, 8), kLarge, 2), IoStatus::ok);
    expect(page_of(0, 8), kLarge, 2);
}

TEST_F(TakeoverTest, APageTornInTheStageIsWhatVramHasOrLost) {
    fill_chunks(1, 1);
    expect(page_of(0, 0), 3, 1);
    ASSERT_EQ(write(page_of(0, 0), 3, 2), IoStatus::ok);
    const std::uint32_t image = left().chunks()[0].image.get();
    steps(3);  // sent, and clean
    ASSERT_EQ(stats().dirty, Bytes{0});
    ASSERT_EQ(write(page_of(0, 1), 1, 3), IoStatus::ok);  // dirty
    ASSERT_EQ(left().chunks()[0].image.get(), image);
    *stage_page(image, 0) ^= std::byte{1};  // an overwriting that had only begun
    *stage_page(image, 1) ^= std::byte{1};
    die_and_take_over();
    expect(page_of(0, 0), 1, 2);
    EXPECT_EQ(read(page_of(0, 1), 1), IoStatus::lost);
    expect(page_of(0, 2), 1, 2);
}

TEST_F(TakeoverTest, LocksAndPinsOfTheDeadAreNobodys) {
    fill_chunks(2, 1);
    {
        const State state = left();
        state.chunks()[0].locked = 1;
        state.chunks()[0].pins = 7;
        state.chunks()[0].flushing = true;
        state.chunks()[1].moving = ChunkEntry::Moving::leaving;
        state.chunks()[1].stored = 1;  // a count that was being changed
    }
    die_and_take_over();
    expect(page_of(0, 0), 3, 1);
    expect(page_of(1, 0), 3, 1);
    EXPECT_EQ(stats().stored, Bytes{6 * kPageBytes});
    discard({0}, kDevicePages);
    EXPECT_EQ(stats().stored, Bytes{0});
}

TEST_F(TakeoverTest, AnImageBetweenTwoChunksIsOneOnly) {
    fill_chunks(2, 1);
    ASSERT_EQ(write(page_of(0, 0), 1, 2), IoStatus::ok);
    {
        const State state = left();
        const std::uint32_t image = state.chunks()[0].image.get();
        state.chunks()[1].image.set(image);                     // given back, and not forgotten yet
        state.images()[image == 0 ? 1 : 0].chunk_plus_one = 6;  // taken, and not known yet
    }
    die_and_take_over();
    expect(page_of(0, 0), 1, 2);
    expect(page_of(0, 1), 2, 1);
    expect(page_of(1, 0), 3, 1);
    EXPECT_EQ(stats().staged, Bytes{kChunkBytes});
}

TEST_F(TakeoverTest, ASlotTakenForNothingIsFree) {
    fill_chunks(1, 1);
    left().chunks()[3].slot.set(1);  // a write had found it, and nothing more
    die_and_take_over();
    EXPECT_FALSE(left().chunks()[3].has_home());
    fill_chunks(6, 2);
    for (std::uint32_t c = 0; c < 6; ++c) expect(page_of(c, 0), 3, 2);
}

TEST_F(TakeoverTest, ASegmentThatWasNotKeptLosesItsPagesAndNoOthers) {
    fill_chunks(4, 1);  // segments of two chunks
    ASSERT_EQ(write(page_of(0, 1), 1, 2), IoStatus::ok);
    keeper_.held.erase("segment-0");
    next_gpu_.exportable = false;
    die_and_take_over();
    EXPECT_EQ(read(page_of(0, 0), 1), IoStatus::lost);
    expect(page_of(0, 1), 1, 2);
    EXPECT_EQ(read(page_of(0, 2), 1), IoStatus::lost);
    EXPECT_EQ(read(page_of(1, 0), 1), IoStatus::lost);
    expect(page_of(2, 0), 3, 1);
    expect(page_of(3, 0), 3, 1);
    ASSERT_TRUE(store().drain());
    expect(page_of(0, 1), 1, 2);
    ASSERT_EQ(write(page_of(1, 0), 3, 3), IoStatus::ok);
    expect(page_of(1, 0), 3, 3);
}

TEST_F(TakeoverTest, WithoutRoomForThemPagesOfALostSegmentAreLost) {
    make(mib(4), 4, mib(4));
    ASSERT_EQ(write(page_of(0, 0), 3, 1), IoStatus::ok);
    ASSERT_EQ(write(page_of(1, 0), 3, 1), IoStatus::ok);
    keeper_.held.erase("segment-0");
    next_gpu_.exportable = false;
    die_and_take_over();
    EXPECT_EQ(read(page_of(0, 0), 1), IoStatus::lost);
    EXPECT_EQ(read(page_of(1, 2), 1), IoStatus::lost);
    EXPECT_EQ(stats().staged, Bytes{0});
}

TEST_F(TakeoverTest, ASegmentThatWasBeingTakenIsGivenBack) {
    fill_chunks(1, 1);
    const UniqueFd segment(::memfd_create("vramswap-test", MFD_CLOEXEC));
    const std::vector<std::byte> pages(mib(4).n, std::byte{0xAB});
    ASSERT_EQ(::pwrite(segment.get(), pages.data(), pages.size(), 0), static_cast<ssize_t>(pages.size()));
    ASSERT_TRUE(keeper_.keep("segment-3", segment));
    die_and_take_over();
    EXPECT_FALSE(keeper_.held.contains("segment-3"));
    EXPECT_EQ(test::traces_in(segment), 0u) << "it may have been somebody's home before";
    expect(page_of(0, 0), 3, 1);
}

TEST_F(TakeoverTest, WhatDoesNotFitIsRefusedAndKept) {
    fill_chunks(1, 1);
    die();
    StoreConfig larger = same_config();
    larger.size = larger.size + mib(2);
    EXPECT_FALSE(try_to_take_over(larger));
    StoreConfig smaller_segments = same_config();
    smaller_segments.segment = mib(2);
    EXPECT_FALSE(try_to_take_over(smaller_segments));
    StoreConfig more_images = same_config();
    more_images.stage = mib(16);
    EXPECT_FALSE(try_to_take_over(more_images));
    {
        const State state = left();
        const_cast<StateHeader&>(state.header()).version += 1;
        EXPECT_FALSE(try_to_take_over(same_config()));
        const_cast<StateHeader&>(state.header()).version -= 1;
        state.chunks()[0].slot.set(4711);
        EXPECT_FALSE(try_to_take_over(same_config()));
        state.chunks()[0].slot.set(0);
        state.chunks()[1].slot.set(0);
        EXPECT_FALSE(try_to_take_over(same_config())) << "two chunks in one slot";
        state.chunks()[1].slot.reset();
    }
    auto segment = std::move(keeper_.held.at("segment-0"));
    keeper_.held["segment-0"] = keeper_.held.at("state").dup();
    EXPECT_FALSE(try_to_take_over(same_config())) << "not a segment";
    keeper_.held.erase("segment-0");
    EXPECT_FALSE(try_to_take_over(same_config())) << "it could have been kept, so it was";
    keeper_.held["segment-0"] = std::move(segment);
    take_over();
    expect(page_of(0, 0), 3, 1);
}

TEST_F(TakeoverTest, WithoutStateOrStageThereIsNothingToTakeOver) {
    die();
    auto stage = std::move(keeper_.held.at("stage"));
    keeper_.held.erase("stage");
    EXPECT_FALSE(try_to_take_over(same_config()));
    keeper_.held["stage"] = std::move(stage);
    EXPECT_TRUE(try_to_take_over(same_config()));
}

// -- with a spill --

class SpillTakeoverTest : public TakeoverTest {
  protected:
    SpillTakeoverTest() {
        queue_.reset();
        store_.reset();
        spill_ = std::make_unique<test::SteppedSpill>(8);
        gpu_ = std::make_unique<test::SimGpu>(mib(64));
        store_ = std::make_unique<test::SteppedStore>(*gpu_, same_config(), &keeper_);
        queue_ = std::move(*store()->make_queue(kDepth));
    }
    ~SpillTakeoverTest() override {
        queue_.reset();
        store_.reset();
        dead_queue_.reset();
        dead_store_.reset();
    }
    Spill* spill() override { return adopted_ != nullptr ? adopted_.get() : spill_->spill.get(); }
    void die_and_take_over() {
        die();
        adopt_and_take_over();
    }
    void adopt_and_take_over() {
        keeper_.held.erase("spill-busy");  // of a process that lives
        adopted_ = std::move(*Spill::adopt(spill_->config, PageStore::spill_kept(keeper_.held), {}));
        take_over();
    }
    void shrink_to_nothing() {
        store()->obey(0, {.vram_max = {0}});
        ASSERT_TRUE(store().settle());
        ASSERT_EQ(stats().vram, Bytes{0});
    }

    std::unique_ptr<test::SteppedSpill> spill_;
    std::unique_ptr<Spill> adopted_;
};

TEST_F(SpillTakeoverTest, PagesInTheSpillAreFound) {
    fill_chunks(3, 1);
    shrink_to_nothing();
    die_and_take_over();
    EXPECT_EQ(stats().spilled, Bytes{3 * kChunkBytes});
    for (std::uint32_t c = 0; c < 3; ++c) expect(page_of(c, 0), 3, 1);
    store()->obey(0, {.vram_max = mib(64)});
    ASSERT_TRUE(store().settle());
    EXPECT_EQ(stats().spilled, Bytes{0});
    for (std::uint32_t c = 0; c < 3; ++c) expect(page_of(c, 0), 3, 1);
}

TEST_F(SpillTakeoverTest, AChunkWithTwoHomesKeepsOne) {
    fill_chunks(2, 1);
    shrink_to_nothing();
    store()->obey(0, {.vram_max = mib(64)});
    ASSERT_TRUE(store().settle());
    left().chunks()[0].spill.set(0);  // on its way out: the new home is set, the old one not given back
    die_and_take_over();
    EXPECT_EQ(stats().spilled, Bytes{0});
    expect(page_of(0, 0), 3, 1);
    expect(page_of(1, 0), 3, 1);
}

TEST_F(SpillTakeoverTest, WaitsForTheDiskToEndWhatTheDeadHaveBegun) {
    fill_chunks(1, 1);
    die();
    std::array<int, 2> ends{};
    ASSERT_EQ(::pipe2(ends.data(), O_CLOEXEC), 0);
    keeper_.held["spill-busy"] = UniqueFd(ends[0]);
    UniqueFd in_flight(ends[1]);
    adopted_ = std::move(*Spill::adopt(spill_->config, PageStore::spill_kept(keeper_.held), {}));
    StoreConfig impatient = same_config();
    impatient.quiet_timeout_ms = 0;
    const auto busy = try_to_take_over(impatient);
    ASSERT_FALSE(busy);
    EXPECT_EQ(busy.error().code, Errc::busy);
    in_flight.reset();
    take_over();
    expect(page_of(0, 0), 3, 1);
}

TEST_F(SpillTakeoverTest, AMoveThatHadBegunHasNotHappened) {
    fill_chunks(2, 1);
    spill_->faults->hang = true;
    store()->obey(0, {.vram_max = {0}});
    for (int n = 0; n < 10; ++n) (void)store().step_mover();
    die();
    spill_->faults->hang = false;  // what the dead have begun does not happen here
    adopt_and_take_over();
    EXPECT_EQ(stats().spilled, Bytes{0});
    expect(page_of(0, 0), 3, 1);
    expect(page_of(1, 0), 3, 1);
}

TEST_F(SpillTakeoverTest, PagesOfALostSegmentThatAreStagedMayGoToTheSpill) {
    ASSERT_EQ(write(page_of(0, 0), 3, 1), IoStatus::ok);
    shrink_to_nothing();
    store()->obey(0, {.vram_max = mib(64)});
    ASSERT_TRUE(store().settle());
    ASSERT_EQ(write(page_of(0, 0), 3, 2), IoStatus::ok);
    for (auto it = keeper_.held.begin(); it != keeper_.held.end();)
        it = it->first.starts_with("segment-") ? keeper_.held.erase(it) : std::next(it);
    next_gpu_.exportable = false;
    die_and_take_over();
    expect(page_of(0, 0), 3, 2);
    ASSERT_TRUE(store().drain());
    expect(page_of(0, 0), 3, 2);
}

}  // namespace
}  // namespace vramswap
