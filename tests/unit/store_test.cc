// SPDX-License-Identifier: MIT
// The parts of the store, and the store at work over a simulated GPU. Writes that go straight to VRAM:
// store_direct_test.cc; how the flusher puts copies together: store_flusher_test.cc.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

// Another compilation of the same function than those that are tested.
#define XXH_INLINE_ALL
#define XXH_VECTOR XXH_SCALAR
#include <xxhash.h>

#include <algorithm>
#include <atomic>
#include <bitset>
#include <map>
#include <numeric>
#include <set>
#include <span>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "store/checksum.h"
#include "store/checksum_kernels.h"
#include "store/page_store.h"
#include "support/store_fixture.h"

namespace vramswap {
namespace {

using test::content_for;
using test::content_of;
using test::fill_page;
using test::HostMemory;
using test::kDevicePages;
using test::KeeperFake;
using test::page_of;
using test::SimGpu;
using test::SteppedStore;
using test::StoreTest;
using test::take_event;
using test::traces_in;

// ---- PageBits ----

std::vector<std::pair<std::uint32_t, std::uint32_t>> runs_of(const PageBits& bits) {
    std::vector<std::pair<std::uint32_t, std::uint32_t>> runs;
    bits.for_each_run([&runs](PageRun run) { runs.emplace_back(run.first, run.count); });
    return runs;
}

TEST(PageBits, StartsEmpty) {
    const PageBits bits;
    EXPECT_FALSE(bits.any());
    EXPECT_EQ(bits.count(), 0u);
    EXPECT_EQ(bits.next_set(0), kChunkPages);
    EXPECT_EQ(bits.next_clear(0), 0u);
    EXPECT_TRUE(runs_of(bits).empty());
}

TEST(PageBits, FindsRunsAcrossWords) {
    PageBits bits;
    for (const std::uint32_t p : {0u, 1u, 62u, 63u, 64u, 65u, 128u, 510u, 511u}) bits.set(p);
    const std::vector<std::pair<std::uint32_t, std::uint32_t>> expected{{0, 2}, {62, 4}, {128, 1}, {510, 2}};
    EXPECT_EQ(runs_of(bits), expected);
    EXPECT_EQ(bits.next_set(2), 62u);
    EXPECT_EQ(bits.next_clear(62), 66u);
    EXPECT_EQ(bits.next_clear(510), kChunkPages);
    bits.clear(63);
    EXPECT_FALSE(bits.test(63));
    EXPECT_EQ(bits.count(), 8u);
    bits.clear_all();
    EXPECT_FALSE(bits.any());
}

TEST(PageBits, IsOneRunWhenFull) {
    PageBits bits;
    for (std::uint32_t p = 0; p < kChunkPages; ++p) bits.set(p);
    EXPECT_EQ(bits.count(), kChunkPages);
    EXPECT_EQ(bits.next_clear(0), kChunkPages);
    EXPECT_EQ(runs_of(bits).size(), 1u);
}

TEST(PageBits, AgreesWithBitset) {
    test::Random random(1);
    PageBits bits;
    PageBits others;
    std::bitset<kChunkPages> model;
    for (int round = 0; round < 5000; ++round) {
        const auto p = static_cast<std::uint32_t>(random.below(kChunkPages));
        if (random.one_in(2)) {
            bits.set(p);
            model.set(p);
        } else {
            bits.clear(p);
            model.reset(p);
        }
        std::uint32_t next = p;
        while (next < kChunkPages && !model.test(next)) ++next;
        ASSERT_EQ(bits.next_set(p), next);
        ASSERT_EQ(bits.test(p), model.test(p));
        ASSERT_EQ(bits.count(), model.count());
        ASSERT_EQ(bits.any(), model.any());
    }
    others.set_run({60, 70});
    bits.keep_only(others);
    for (std::uint32_t p = 0; p < kChunkPages; ++p)
        ASSERT_EQ(bits.test(p), model.test(p) && p >= 60 && p < 130);
}

TEST(PageBits, KnowsItsSpan) {
    PageBits bits;
    EXPECT_EQ(bits.span().count, 0u);
    for (const auto& [first, last] : std::vector<std::pair<std::uint32_t, std::uint32_t>>{
             {0, 0}, {511, 511}, {0, 511}, {63, 64}, {70, 200}}) {
        bits.clear_all();
        bits.set(first);
        bits.set(last);
        EXPECT_EQ(bits.span().first, first);
        EXPECT_EQ(bits.span().count, last - first + 1);
    }
}

// ---- SlotAllocator ----

constexpr auto kAny = SlotAllocator::Which::any;
constexpr auto kClosed = SlotAllocator::Which::closed;

TEST(SlotAllocator, HasNothingWithoutSegments) {
    SlotAllocator slots(3, 4);
    EXPECT_EQ(slots.take(), std::nullopt);
    EXPECT_EQ(slots.remove_empty_segment(kAny), std::nullopt);
    EXPECT_EQ(slots.unused_segment(), 0u);
    EXPECT_EQ(slots.free_slots(), 0u);
    EXPECT_EQ(slots.slots_per_segment(), 4u);
}

TEST(SlotAllocator, TakesTheLowestAndGivesBackTheHighestSegment) {
    SlotAllocator slots(3, 2);
    for (std::uint32_t n = 0; n < 3; ++n) slots.add_segment(n, 0);
    EXPECT_EQ(slots.unused_segment(), std::nullopt);
    EXPECT_EQ(slots.segments(), 3u);
    for (std::uint32_t n = 0; n < 4; ++n) EXPECT_EQ(slots.take(), n);
    EXPECT_EQ(slots.free_slots(), 2u);
    slots.give(1);
    EXPECT_EQ(slots.take(), 1u);
    EXPECT_EQ(slots.remove_empty_segment(kAny), 2u);
    EXPECT_EQ(slots.remove_empty_segment(kAny), std::nullopt);
    EXPECT_EQ(slots.take(), std::nullopt);
    EXPECT_EQ(slots.unused_segment(), std::nullopt) << "it is leaving";
    slots.give_number(2);
    EXPECT_EQ(slots.unused_segment(), 2u);
    slots.give(2);
    slots.give(3);
    EXPECT_EQ(slots.remove_empty_segment(kAny), 1u);
    slots.add_segment(1, 0);
    EXPECT_EQ(slots.take(), 2u);
    EXPECT_EQ(slots.segments(), 2u);
}

TEST(SlotAllocator, TakesNothingFromAClosedSegmentAndGivesItBackWhenItIsEmpty) {
    SlotAllocator slots(3, 2);
    for (std::uint32_t n = 0; n < 3; ++n) slots.add_segment(n, 0);
    for (std::uint32_t n = 0; n < 3; ++n) EXPECT_EQ(slots.take(), n);
    ASSERT_TRUE(slots.close_one(0));  // the emptiest, the last of them
    EXPECT_TRUE(slots.is_closed(2));
    EXPECT_TRUE(slots.has_empty_closed());
    EXPECT_EQ(slots.free_slots(), 1u);
    ASSERT_TRUE(slots.close_one(0));
    EXPECT_TRUE(slots.is_closed(1));
    EXPECT_EQ(slots.take(), std::nullopt);
    EXPECT_EQ(slots.closed(0), 2u);
    EXPECT_EQ(slots.used(0), 3u);
    EXPECT_EQ(slots.remove_empty_segment(kClosed), 2u);
    EXPECT_EQ(slots.remove_empty_segment(kClosed), std::nullopt);
    EXPECT_FALSE(slots.has_empty_closed());
    slots.give(2);
    EXPECT_TRUE(slots.has_empty_closed());
    EXPECT_EQ(slots.free_slots(), 0u);
    ASSERT_TRUE(slots.open_one(0));
    EXPECT_FALSE(slots.has_empty_closed());
    EXPECT_EQ(slots.free_slots(), 2u);
    EXPECT_EQ(slots.take(), 2u);
    EXPECT_FALSE(slots.open_one(0));
}

TEST(SlotAllocator, SeveralGpusTakeTurnsByTheirWeights) {
    SlotAllocator slots(4, 8);
    for (std::uint32_t n = 0; n < 4; ++n) slots.add_segment(n, n % 2);
    slots.set_weight(0, 3);
    std::array<int, 2> taken{};
    for (int n = 0; n < 16; ++n) ++taken.at(slots.gpu_of(*slots.take()));
    EXPECT_EQ(taken[0], 12);
    EXPECT_EQ(taken[1], 4);
    EXPECT_EQ(slots.gpu_of(*slots.take_on(1)), 1u);
    for (int n = 0; n < 4; ++n) ASSERT_TRUE(slots.take_on(0));
    EXPECT_EQ(slots.take_on(0), std::nullopt);
    for (int n = 0; n < 11; ++n) ASSERT_EQ(slots.gpu_of(*slots.take()), 1u);  // whose turn it is or not
    EXPECT_EQ(slots.take(), std::nullopt);
}

TEST(SlotAllocator, GivesASlotToOneThreadOnly) {
    constexpr std::uint32_t kSlots = 16;
    SlotAllocator slots(4, 4);
    for (std::uint32_t n = 0; n < 4; ++n) slots.add_segment(n, 0);
    std::array<std::atomic<int>, kSlots> owners{};
    std::atomic<bool> shared{false};
    std::vector<std::thread> threads;
    for (int t = 0; t < 3; ++t)
        threads.emplace_back([&] {
            for (int n = 0; n < 5000; ++n) {
                const auto slot = slots.take();
                if (!slot) continue;
                if (owners.at(*slot).fetch_add(1) != 0) shared = true;
                owners.at(*slot).fetch_sub(1);
                slots.give(*slot);
            }
        });
    for (auto& thread : threads) thread.join();
    EXPECT_FALSE(shared.load());
    EXPECT_EQ(slots.free_slots(), kSlots);
}

// ---- State and Stage ----

#if defined(__x86_64__)
bool cpu_has_avx2() {
    return __builtin_cpu_supports("avx2") != 0;
}
#else
bool cpu_has_avx2() {
    return false;
}
#endif

constexpr StateShape kShape{{6 * kChunkBytes + 37 * kPageBytes}, {2 * kChunkBytes}, 3};

TEST(State, IsLaidOutInWholePages) {
    const auto state = State::create(kShape);
    ASSERT_TRUE(state) << state.error().text();
    const StateHeader& h = state->header();
    EXPECT_EQ(h.magic, StateHeader::kMagic);
    EXPECT_EQ(h.version, StateHeader::kVersion);
    EXPECT_EQ(h.chunks, 7u);
    EXPECT_EQ(h.segments_max, 5u);
    EXPECT_EQ(h.images, 3u);
    EXPECT_EQ(h.device_bytes, kShape.device.n);
    EXPECT_EQ(state->pages().size(), 7 * kChunkPages);
    EXPECT_EQ(state->chunks().size(), 7u);
    EXPECT_EQ(state->segments().size(), 5u);
    EXPECT_EQ(state->images().size(), 3u);
    const std::vector<std::pair<std::uint64_t, std::uint64_t>> tables{
        {0, sizeof(StateHeader)},
        {h.pages_offset, state->pages().size_bytes()},
        {h.chunks_offset, state->chunks().size_bytes()},
        {h.segments_offset, state->segments().size_bytes()},
        {h.images_offset, state->images().size_bytes()},
        {h.total_bytes, 0}};
    for (std::size_t i = 0; i + 1 < tables.size(); ++i) {
        EXPECT_EQ(tables[i].first % kPageBytes, 0u) << i;
        EXPECT_LE(tables[i].first + tables[i].second, tables[i + 1].first) << i;
    }
    EXPECT_EQ(state->memory().size(), h.total_bytes);
}

TEST(State, IsEmptyWhenFresh) {
    const auto state = State::create(kShape);
    ASSERT_TRUE(state);
    for (const PageEntry& page : state->pages()) ASSERT_EQ(page.state(), PageEntry::State::absent);
    for (const ChunkEntry& chunk : state->chunks()) {
        EXPECT_FALSE(chunk.slot.has() || chunk.image.has());
        EXPECT_EQ(chunk.stored + chunk.pins, 0);
        EXPECT_EQ(chunk.locked.load(), 0u);
    }
    for (const SegmentEntry& segment : state->segments()) EXPECT_EQ(segment.state, SegmentEntry::State::none);
    for (const ImageHeader& image : state->images()) EXPECT_EQ(image.chunk_plus_one.load(), 0u);
}

TEST(State, IsSeenThroughItsDescriptor) {
    const auto state = State::create(kShape);
    ASSERT_TRUE(state);
    state->pages()[5].store(0x1234);
    void* other = ::mmap(nullptr, state->memory().size(), PROT_READ, MAP_SHARED, state->fd().get(), 0);
    ASSERT_NE(other, MAP_FAILED);
    EXPECT_EQ(std::memcmp(other, state->memory().data(), state->memory().size()), 0);
    ::munmap(other, state->memory().size());
}

TEST(State, RefusesImpossibleShapes) {
    for (const StateShape& shape :
         {StateShape{{0}, mib(2), 1}, StateShape{{4097}, mib(2), 1}, StateShape{mib(2), {0}, 1},
          StateShape{mib(2), mib(1), 1}, StateShape{mib(2), mib(2), 0}}) {
        const auto state = State::create(shape);
        ASSERT_FALSE(state);
        EXPECT_EQ(state.error().code, Errc::usage);
    }
}

TEST(PageEntry, KeepsStateAndChecksum) {
    PageEntry page;
    page.store(~std::uint64_t{0});
    EXPECT_EQ(page.state(), PageEntry::State::stored);
    EXPECT_TRUE(page.holds(PageEntry::kChecksumMask));
    EXPECT_FALSE(page.holds(0));
    page.forget();
    EXPECT_EQ(page.state(), PageEntry::State::absent);
    EXPECT_FALSE(page.holds(0));
}

TEST(Checksum, DependsOnTheBytesAndThePageNumber) {
    HostMemory memory(kPageBytes);
    EXPECT_TRUE(is_zero_page(memory.data()));
    std::set<std::uint64_t> seen;
    for (const std::size_t at : {std::size_t{0}, std::size_t{63}, std::size_t{64}, kPageBytes - 1}) {
        memory.data()[at] = std::byte{1};
        EXPECT_FALSE(is_zero_page(memory.data())) << at;
        seen.insert(page_checksum(memory.data(), PageIndex{1}));
        seen.insert(page_checksum(memory.data(), PageIndex{2}));
        memory.data()[at] = std::byte{0};
    }
    EXPECT_EQ(seen.size(), 8u);
}

TEST(Checksum, AllKernelsAgree) {
    std::vector<std::uint64_t (*)(const void*, std::uint64_t)> kernels{checksum_kernels::xxh3_page_baseline};
    if (cpu_has_avx2()) kernels.push_back(checksum_kernels::xxh3_page_avx2);
    HostMemory memory(kPageBytes);
    test::Random random(1);
    for (int round = 0; round < 200; ++round) {
        fill_page(memory.data(), random.next());
        const std::uint64_t seed = random.next() >> random.below(64);
        const std::uint64_t expected = XXH3_64bits_withSeed(memory.data(), kPageBytes, seed);
        for (const auto kernel : kernels) ASSERT_EQ(kernel(memory.data(), seed), expected) << "seed " << seed;
        ASSERT_EQ(page_checksum(memory.data(), PageIndex{seed}), expected & PageEntry::kChecksumMask);
    }
}

constexpr std::uint32_t kScratch = 2;

TEST(Stage, HandsOutEachImageOnce) {
    const auto state = State::create(kShape);
    ASSERT_TRUE(state);
    const auto stage = Stage::create(*state, kScratch);
    ASSERT_TRUE(stage);
    std::set<std::uint32_t> images;
    for (std::uint32_t chunk = 0; chunk < 3; ++chunk) {
        const auto image = (*stage)->take(ChunkIndex{chunk});
        ASSERT_TRUE(image);
        EXPECT_EQ((*stage)->header(*image).chunk_plus_one.load(), chunk + 1);
        images.insert(*image);
    }
    EXPECT_EQ(images.size(), 3u);
    EXPECT_EQ((*stage)->take(ChunkIndex{5}), std::nullopt);
    EXPECT_EQ((*stage)->free_images(), 0u);
    EXPECT_EQ((*stage)->memory().size(), (3 + kScratch) * kChunkBytes);
    EXPECT_EQ((*stage)->page(2, 511) + kPageBytes, (*stage)->scratch(0));
    for (std::uint32_t n = 0; n < kScratch; ++n)
        EXPECT_EQ((*stage)->scratch(n), (*stage)->memory().data() + (3 + n) * kChunkBytes);
}

TEST(Stage, CleansAnImageBeforeItsNextUse) {
    const auto state = State::create(kShape);
    ASSERT_TRUE(state);
    const auto stage = Stage::create(*state, kScratch);
    ASSERT_TRUE(stage);
    const auto image = (*stage)->take(ChunkIndex{0});
    ASSERT_TRUE(image);
    ImageHeader& h = (*stage)->header(*image);
    h.valid.set(1);
    h.dirty.set(2);
    h.in_flight.set(3);
    h.dirty_pages = 1;
    (*stage)->give(*image);
    EXPECT_EQ(h.chunk_plus_one.load(), 0u);
    std::set<std::uint32_t> taken;
    for (std::uint32_t n = 0; n < 3; ++n) taken.insert(*(*stage)->take(ChunkIndex{n}));
    EXPECT_EQ(taken.size(), 3u);
    EXPECT_FALSE(h.valid.any() || h.dirty.any() || h.in_flight.any());
    EXPECT_EQ(h.dirty_pages.load(), 0u);
}

// ---- the store ----

// -- reading and writing --

TEST_F(StoreTest, ReadsBackFromTheStage) {
    ASSERT_EQ(write(page_of(0, 7), 3, 1), IoStatus::ok);
    expect(page_of(0, 7), 3, 1);
    EXPECT_EQ(stats().pages_read_stage, 3u);
    EXPECT_EQ(stats().pages_read_gpu, 0u);
    EXPECT_EQ(stats().stored, Bytes{3 * kPageBytes});
    EXPECT_EQ(stats().dirty, Bytes{3 * kPageBytes});
}

TEST_F(StoreTest, ReadsBackFromVramAfterEviction) {
    ASSERT_EQ(write(page_of(0, 7), 3, 1), IoStatus::ok);
    ASSERT_TRUE(store().drain());
    EXPECT_EQ(stats().dirty + stats().staged, Bytes{0});
    expect(page_of(0, 7), 3, 1);
    EXPECT_EQ(stats().pages_read_gpu, 3u);
    EXPECT_EQ(stats().pages_flushed, 3u);
    EXPECT_EQ(stats().reread_pages, 0u);
}

TEST_F(StoreTest, ReadsZerosWhereNothingWasWritten) {
    expect(page_of(0, 0), 4, 0);
    ASSERT_EQ(write(page_of(0, 1), 1, 1), IoStatus::ok);
    expect(page_of(0, 0), 1, 0);
    expect(page_of(0, 2), 1, 0);
    ASSERT_TRUE(store().drain());
    expect(page_of(0, 0), 1, 0);
    expect(page_of(0, 1), 1, 1);
    expect(page_of(0, 2), 1, 0);
}

TEST_F(StoreTest, MixesStageVramAndZerosInOneRequest) {
    ASSERT_EQ(write(page_of(1, 0), 1, 1), IoStatus::ok);
    ASSERT_EQ(write(page_of(1, 3), 1, 1), IoStatus::ok);
    ASSERT_TRUE(store().drain());
    ASSERT_EQ(write(page_of(1, 1), 1, 2), IoStatus::ok);
    ASSERT_EQ(read(page_of(1, 0), 4), IoStatus::ok);
    EXPECT_EQ(content_of(memory_.page(0)), content_for(page_of(1, 0), 1));
    EXPECT_EQ(content_of(memory_.page(1)), content_for(page_of(1, 1), 2));
    EXPECT_EQ(content_of(memory_.page(2)), 0u);
    EXPECT_EQ(content_of(memory_.page(3)), content_for(page_of(1, 3), 1));
}

TEST_F(StoreTest, TheLastWriteWins) {
    for (std::uint32_t version = 1; version < 10; ++version) {
        ASSERT_EQ(write(page_of(0, 5), 2, version), IoStatus::ok);
        const bool drained = version % 2 != 0 || store().drain();
        ASSERT_TRUE(drained);
        expect(page_of(0, 5), 2, version);
    }
    EXPECT_EQ(stats().stored, Bytes{2 * kPageBytes});
}

TEST_F(StoreTest, AnOverwrittenCleanPageIsFlushedAgain) {
    ASSERT_EQ(write(page_of(0, 0), 8, 1), IoStatus::ok);
    steps(2);
    ASSERT_EQ(stats().dirty, Bytes{0});
    ASSERT_EQ(write(page_of(0, 3), 1, 2), IoStatus::ok);
    EXPECT_EQ(stats().dirty, Bytes{kPageBytes});
    ASSERT_TRUE(store().drain());
    EXPECT_EQ(stats().pages_flushed, 9u);
    expect(page_of(0, 3), 1, 2);
    expect(page_of(0, 2), 1, 1);
}

TEST_F(StoreTest, RequestsSpanChunks) {
    const PageIndex first = page_of(0, 510);
    ASSERT_EQ(write(first, 4, 1), IoStatus::ok);
    expect(first, 4, 1);
    ASSERT_TRUE(store().drain());
    expect(first, 4, 1);
    discard(first, 4);
    expect(first, 4, 0);
    EXPECT_EQ(stats().stored, Bytes{0});
}

TEST_F(StoreTest, TheLargestRequestFitsAFullStageOfThreeImages) {
    make(mib(16), 3);
    fill_chunks(3, 1);
    for (std::uint32_t c = 3; c < 6; ++c) ASSERT_EQ(write(page_of(c, 0), 1, 1), IoStatus::ok);
    const PageIndex first = page_of(0, 100);  // 1024 pages in three chunks
    ASSERT_EQ(write(first, 1024, 2), IoStatus::ok);
    EXPECT_EQ(stats().pages_written_direct, 1024u);
    expect(first, 1024, 2);
    ASSERT_TRUE(store().drain());
    expect(first, 1024, 2);
    expect(page_of(0, 0), 3, 1);
}

TEST_F(StoreTest, TheLastChunkMayBePartial) {
    const PageIndex first = page_of(6, 0);
    ASSERT_EQ(write(first, 37, 1), IoStatus::ok);
    ASSERT_TRUE(store().drain());
    expect(first, 37, 1);
    EXPECT_EQ(write(page_of(6, 36), 2, 1), IoStatus::out_of_range);
    EXPECT_EQ(read(page_of(6, 37), 1), IoStatus::out_of_range);
    discard(page_of(5, 0), kChunkPages + 37);
    expect(first, 37, 0);
    EXPECT_EQ(stats().stored, Bytes{0});
}

TEST_F(StoreTest, RefusesWhatIsNoRequest) {
    const std::uint64_t size = store()->size().n;
    ASSERT_EQ(size, kDevicePages * kPageBytes);
    const auto submit = [this](BlockRequest::Op op, std::uint64_t offset, std::uint64_t bytes) {
        BlockRequest r{op, offset, bytes, memory_.data(), IoStatus::pending, nullptr};
        const IoStatus status = queue_->submit(r);
        EXPECT_EQ(r.status, status);
        return status;
    };
    for (const auto op : {BlockRequest::Op::read, BlockRequest::Op::write, BlockRequest::Op::discard}) {
        EXPECT_EQ(submit(op, 0, 0), IoStatus::misaligned);
        EXPECT_EQ(submit(op, 512, 4096), IoStatus::misaligned);
        EXPECT_EQ(submit(op, 0, 4095), IoStatus::misaligned);
        EXPECT_EQ(submit(op, size, 4096), IoStatus::out_of_range);
        EXPECT_EQ(submit(op, size - 4096, 8192), IoStatus::out_of_range);
        EXPECT_EQ(submit(op, ~std::uint64_t{4095}, 8192), IoStatus::out_of_range);
    }
    EXPECT_EQ(submit(BlockRequest::Op::read, 0, BlockRequest::kMaxTransferBytes + 4096),
              IoStatus::out_of_range);
    EXPECT_EQ(submit(BlockRequest::Op::write, 0, BlockRequest::kMaxTransferBytes + 4096),
              IoStatus::out_of_range);
    EXPECT_EQ(submit(BlockRequest::Op::discard, 0, size), IoStatus::ok);
    EXPECT_EQ(queue_->in_flight(), 0u);
}

// -- zeros and discards --

TEST_F(StoreTest, AZeroPageCostsNothing) {
    ASSERT_EQ(write(page_of(0, 0), 600, 0), IoStatus::ok);
    EXPECT_EQ(stats().zero_pages_written, 600u);
    EXPECT_EQ(stats().stored + stats().dirty, Bytes{0});
    ASSERT_EQ(write(page_of(0, 0), 3, 1), IoStatus::ok);
    ASSERT_TRUE(store().drain());
    ASSERT_EQ(write(page_of(0, 1), 1, 0), IoStatus::ok);
    EXPECT_EQ(stats().stored, Bytes{2 * kPageBytes});
    expect(page_of(0, 1), 1, 0);
    expect(page_of(0, 2), 1, 1);
}

TEST_F(StoreTest, ZerosAmongOtherPagesOfARequestAreForgotten) {
    ASSERT_EQ(write(page_of(0, 0), 3, 1), IoStatus::ok);
    for (std::uint32_t i = 0; i < 3; ++i)
        fill_page(memory_.page(i), i == 1 ? 0 : content_for(page_of(0, i), 2));
    BlockRequest r = request(BlockRequest::Op::write, page_of(0, 0), 3, memory_);
    ASSERT_EQ(queue_->submit(r), IoStatus::ok);
    EXPECT_EQ(stats().stored, Bytes{2 * kPageBytes});
    EXPECT_EQ(stats().dirty, Bytes{2 * kPageBytes});
    ASSERT_TRUE(store().drain());
    expect(page_of(0, 0), 1, 2);
    expect(page_of(0, 1), 1, 0);
    expect(page_of(0, 2), 1, 2);
}

TEST_F(StoreTest, ZerosCanBeWrittenWhenNothingElseCan) {
    make(mib(2), 3, mib(2));
    ASSERT_EQ(write(page_of(0, 0), 1, 1), IoStatus::ok);
    ASSERT_EQ(write(page_of(1, 0), 1, 1), IoStatus::retry);
    EXPECT_EQ(write(page_of(1, 0), 1, 0), IoStatus::ok);
    expect(page_of(1, 0), 1, 0);
}

TEST_F(StoreTest, DiscardForgetsDirtyPages) {
    ASSERT_EQ(write(page_of(0, 0), 4, 1), IoStatus::ok);
    discard(page_of(0, 1), 2);
    EXPECT_EQ(stats().dirty, Bytes{2 * kPageBytes});
    ASSERT_TRUE(store().drain());
    EXPECT_EQ(stats().pages_flushed, 2u);
    expect(page_of(0, 0), 1, 1);
    expect(page_of(0, 1), 2, 0);
    expect(page_of(0, 3), 1, 1);
}

TEST_F(StoreTest, AWholeChunkDiscardedGivesVramBack) {
    make(mib(2), 4);
    const Bytes free_at_first = gpu_->free();
    fill_chunks(5, 1);
    EXPECT_EQ(stats().vram, mib(12));  // a segment ahead of need
    EXPECT_EQ(gpu_->free(), free_at_first - mib(10));
    for (const std::uint32_t c : {1u, 3u}) discard(page_of(c, 0), kChunkPages);
    store()->maintain();
    EXPECT_EQ(stats().vram, mib(8));
    EXPECT_EQ(gpu_->free(), free_at_first - mib(6));
    for (const std::uint32_t c : {0u, 2u, 4u}) expect(page_of(c, 0), 3, 1);
    discard(page_of(0, 0), 5 * kChunkPages);
    store()->maintain();
    EXPECT_EQ(stats().vram, mib(2));
    EXPECT_EQ(gpu_->free(), free_at_first);
    EXPECT_EQ(stats().stored, Bytes{0});
}

TEST_F(StoreTest, DiscardOfADirtyChunkFreesItsImage) {
    make(mib(16), 3);
    ASSERT_EQ(write(page_of(5, 0), 1, 1), IoStatus::ok);
    ASSERT_TRUE(store().drain());
    BlockRequest filler{};
    const auto full = make_full_queue(page_of(5, 0), filler);
    for (int round = 0; round < 5; ++round) {
        for (std::uint32_t c = 0; c < 3; ++c)
            ASSERT_EQ(write(page_of(c, 9), 1, 1), IoStatus::ok) << "round " << round;
        EXPECT_EQ(write_to(*full, page_of(3, 0), 1, 1), IoStatus::retry);
        discard(page_of(0, 0), 3 * kChunkPages);
        EXPECT_TRUE(take_event(full->event_fd()));
        EXPECT_EQ(stats().dirty + stats().staged, Bytes{0});
    }
    EXPECT_EQ(stats().pages_flushed, 1u);
    EXPECT_EQ(stats().pages_written_direct, 0u);
    EXPECT_EQ(finish(filler, *full), IoStatus::ok);
}

TEST_F(StoreTest, DiscardDuringAFlushKeepsTheSlotUntilItEnds) {
    make(mib(2), 3, mib(2));  // one slot in all
    ASSERT_EQ(write(page_of(0, 0), 2, 1), IoStatus::ok);
    faults().hang = true;
    steps(1);
    discard(page_of(0, 0), 2);
    EXPECT_EQ(stats().stored, Bytes{0});
    expect(page_of(0, 0), 2, 0);
    EXPECT_EQ(write(page_of(1, 0), 1, 1), IoStatus::retry);  // its bytes would be mixed with the old ones
    faults().hang = false;
    steps(1);
    EXPECT_EQ(write(page_of(1, 0), 1, 1), IoStatus::ok);
    ASSERT_TRUE(store().drain());
    expect(page_of(1, 0), 1, 1);
    expect(page_of(0, 0), 2, 0);
}

TEST_F(StoreTest, APageDiscardedDuringAFailedFlushStaysForgotten) {
    ASSERT_EQ(write(page_of(0, 0), 3, 1), IoStatus::ok);
    faults().hang = true;
    steps(1);
    discard(page_of(0, 1), 1);
    faults().fail_copies = 1;
    faults().hang = false;
    steps(1);
    EXPECT_EQ(stats().dirty, Bytes{2 * kPageBytes});
    ASSERT_TRUE(store().drain());
    expect(page_of(0, 0), 1, 1);
    expect(page_of(0, 1), 1, 0);
    expect(page_of(0, 2), 1, 1);
}

// -- room --

TEST_F(StoreTest, TakesSegmentsWhenItNeedsThem) {
    EXPECT_EQ(stats().vram, mib(4));
    EXPECT_FALSE(take_event(store()->maintenance_fd()));
    ASSERT_EQ(write(page_of(0, 0), 1, 1), IoStatus::ok);
    EXPECT_TRUE(take_event(store()->maintenance_fd()));
    ASSERT_EQ(write(page_of(1, 0), 1, 1), IoStatus::ok);
    EXPECT_EQ(write(page_of(2, 0), 1, 1), IoStatus::retry);
    EXPECT_FALSE(take_event(queue_->event_fd()));
    store()->maintain();
    EXPECT_EQ(stats().vram, mib(8));
    EXPECT_TRUE(take_event(queue_->event_fd()));
    EXPECT_EQ(write(page_of(2, 0), 1, 1), IoStatus::ok);
    for (std::uint32_t c = 0; c < 3; ++c) expect(page_of(c, 0), 1, 1);
}

TEST_F(StoreTest, HoldsTheWholeDeviceAtOnce) {
    fill_chunks(6, 1);
    ASSERT_EQ(write(page_of(6, 0), 37, 1), IoStatus::ok);
    ASSERT_TRUE(store().drain());
    store()->maintain();
    EXPECT_EQ(stats().vram, mib(16));
    for (std::uint32_t c = 0; c < 6; ++c) expect(page_of(c, 0), 3, 1);
    expect(page_of(6, 0), 37, 1);
}

TEST_F(StoreTest, AFullGpuRefusesNewChunksAndKeepsTheOldOnes) {
    make(mib(4), 6, mib(8));
    for (std::uint32_t c = 0; c < 2; ++c) ASSERT_EQ(write(page_of(c, 0), 3, 1), IoStatus::ok);
    store()->maintain();
    for (std::uint32_t c = 2; c < 4; ++c) ASSERT_EQ(write(page_of(c, 0), 3, 1), IoStatus::ok);
    ASSERT_EQ(write(page_of(4, 0), 1, 1), IoStatus::retry);
    store()->maintain();
    EXPECT_TRUE(take_event(queue_->event_fd()));
    EXPECT_EQ(write(page_of(4, 0), 1, 1), IoStatus::no_space);
    EXPECT_EQ(stats().writes_refused, 1u);
    expect(page_of(4, 0), 1, 0);
    EXPECT_EQ(write(page_of(2, 1), 1, 2), IoStatus::ok);  // what has a slot can be overwritten
    ASSERT_TRUE(store().drain());
    for (std::uint32_t c = 0; c < 4; ++c) expect(page_of(c, 0), 1, 1);
    expect(page_of(2, 1), 1, 2);
    discard(page_of(0, 0), 3);
    EXPECT_EQ(write(page_of(4, 0), 1, 1), IoStatus::ok);
}

TEST_F(StoreTest, GrowsAgainAfterAFailedAllocation) {
    make(mib(2), 4);
    faults().fail_allocations = 1;
    ASSERT_EQ(write(page_of(0, 0), 1, 1), IoStatus::ok);
    store()->maintain();
    EXPECT_EQ(write(page_of(1, 0), 1, 1), IoStatus::no_space);
    EXPECT_TRUE(take_event(store()->maintenance_fd()));
    store()->maintain();
    EXPECT_EQ(write(page_of(1, 0), 1, 1), IoStatus::ok);
    EXPECT_EQ(write(page_of(2, 0), 1, 1), IoStatus::retry);  // told to wait again: the last attempt went well
}

TEST_F(StoreTest, VramTakenByOthersIsNotOurs) {
    make(mib(2), 4, mib(16));
    faults().taken_by_others = mib(14).n;
    ASSERT_EQ(write(page_of(0, 0), 1, 1), IoStatus::ok);
    store()->maintain();
    EXPECT_EQ(stats().vram, mib(2));
    EXPECT_EQ(write(page_of(1, 0), 1, 1), IoStatus::no_space);
    faults().taken_by_others = 0;
    store()->maintain();
    EXPECT_EQ(write(page_of(1, 0), 1, 1), IoStatus::ok);
}

TEST_F(StoreTest, AFullQueueAndAFullStageAskForARetryAndTellWhenThereIsRoom) {
    make(mib(16), 3);
    ASSERT_EQ(write(page_of(5, 0), 1, 1), IoStatus::ok);
    ASSERT_TRUE(store().drain());
    BlockRequest filler{};
    const auto full = make_full_queue(page_of(5, 0), filler);
    for (std::uint32_t c = 0; c < 3; ++c) ASSERT_EQ(write(page_of(c, 0), 2, 1), IoStatus::ok);
    EXPECT_EQ(write_to(*full, page_of(3, 0), 2, 1), IoStatus::retry);
    EXPECT_EQ(stats().retries, 1u);
    EXPECT_FALSE(take_event(full->event_fd()));
    steps(2);
    EXPECT_TRUE(take_event(full->event_fd()));
    EXPECT_EQ(write_to(*full, page_of(3, 0), 2, 1), IoStatus::ok);
    EXPECT_EQ(stats().pages_written_direct, 0u);
    for (std::uint32_t c = 0; c < 4; ++c) expect(page_of(c, 0), 2, 1);
    EXPECT_EQ(finish(filler, *full), IoStatus::ok);
}

TEST_F(StoreTest, ACleanImageMakesRoomBeforeAnyFlightEnds) {
    make(mib(16), 3);
    ASSERT_EQ(write(page_of(5, 0), 1, 1), IoStatus::ok);
    ASSERT_TRUE(store().drain());
    BlockRequest filler{};
    const auto full = make_full_queue(page_of(5, 0), filler);
    for (std::uint32_t c = 0; c < 2; ++c) ASSERT_EQ(write(page_of(c, 0), 2, 1), IoStatus::ok);
    steps(3);
    ASSERT_EQ(stats().dirty, Bytes{0});
    EXPECT_EQ(stats().staged, mib(4));
    ASSERT_EQ(write(page_of(2, 0), 2, 1), IoStatus::ok);
    ASSERT_EQ(write_to(*full, page_of(3, 0), 2, 1), IoStatus::retry);
    faults().hang = true;
    steps(1);
    EXPECT_TRUE(take_event(full->event_fd()));
    EXPECT_EQ(write_to(*full, page_of(3, 0), 2, 1), IoStatus::ok);
    faults().hang = false;
    EXPECT_EQ(finish(filler, *full), IoStatus::ok);
}

TEST_F(StoreTest, ARefusedChunkKeepsNoSlot) {
    make(mib(4), 3, mib(8));
    fill_chunks(1, 1);
    BlockRequest filler{};
    const auto full = make_full_queue(page_of(0, 0), filler);
    for (std::uint32_t c = 0; c < 3; ++c) {
        ASSERT_EQ(write(page_of(c, 0), 1, 1), IoStatus::ok);
        store()->maintain();
    }
    // No image, so the slot it found must be free again.
    ASSERT_EQ(write_to(*full, page_of(3, 0), 1, 1), IoStatus::retry);
    discard(page_of(1, 0), 1);
    EXPECT_EQ(write(page_of(4, 0), 1, 1), IoStatus::ok);
    ASSERT_TRUE(store().drain());
    EXPECT_EQ(write(page_of(5, 0), 1, 1), IoStatus::ok);
    EXPECT_EQ(finish(filler, *full), IoStatus::ok);
}

// -- flushing --

TEST_F(StoreTest, AWrittenPageWaitsForItsAge) {
    ASSERT_EQ(write(page_of(0, 0), 1, 1), IoStatus::ok);
    const std::uint64_t due = store().step_early();
    EXPECT_GT(due, 1u);
    EXPECT_LT(due, Flusher::kNever);
    EXPECT_EQ(store()->flusher().step(due - 1), due);
    EXPECT_EQ(stats().flush_copies, 0u);
    EXPECT_EQ(store()->flusher().step(due), Flusher::kNow);
    EXPECT_EQ(stats().flush_copies, 1u);
    EXPECT_EQ(store()->flusher().step(due), Flusher::kNever);
}

TEST_F(StoreTest, AFullImageIsFlushedAtOnceInOneCopy) {
    write_staged(page_of(0, 0), kChunkPages, 1);
    EXPECT_EQ(store().step_early(), Flusher::kNow);
    EXPECT_EQ(store().step_early(), Flusher::kNever);
    EXPECT_EQ(stats().flush_copies, 1u);
    EXPECT_EQ(stats().pages_flushed, kChunkPages);
    EXPECT_EQ(stats().dirty, Bytes{0});
    expect(page_of(0, 0), kChunkPages, 1);
}

TEST_F(StoreTest, AShortStageIsFlushedAtOnce) {
    make(mib(16), 4);
    for (std::uint32_t c = 0; c < 3; ++c) ASSERT_EQ(write(page_of(c, 0), 1, 1), IoStatus::ok);
    EXPECT_NE(store().step_early(), Flusher::kNow);
    ASSERT_EQ(write(page_of(3, 0), 1, 1), IoStatus::ok);
    EXPECT_EQ(store().step_early(), Flusher::kNow);
}

TEST_F(StoreTest, AFlushCopiesRuns) {
    ASSERT_EQ(write(page_of(0, 0), 10, 1), IoStatus::ok);
    ASSERT_EQ(write(page_of(0, 200), 10, 1), IoStatus::ok);  // too far to be joined
    ASSERT_EQ(write(page_of(0, 10), 2, 1), IoStatus::ok);
    ASSERT_TRUE(store().drain());
    EXPECT_EQ(stats().flush_copies, 2u);
}

TEST_F(StoreTest, AnOverwriteWaitsForTheFlightOfItsPage) {
    ASSERT_EQ(write(page_of(0, 0), 4, 1), IoStatus::ok);
    faults().hang = true;
    steps(1);
    EXPECT_EQ(write(page_of(0, 3), 2, 2), IoStatus::retry);
    EXPECT_EQ(write(page_of(0, 4), 2, 2), IoStatus::ok);  // other pages of the image are free
    expect(page_of(0, 3), 1, 1);
    EXPECT_FALSE(take_event(queue_->event_fd()));
    faults().hang = false;
    EXPECT_GT(store().step_early(), 1u);  // ends the flight and begins none
    EXPECT_TRUE(take_event(queue_->event_fd()));
    EXPECT_EQ(write(page_of(0, 3), 2, 3), IoStatus::ok);
    ASSERT_TRUE(store().drain());
    expect(page_of(0, 0), 3, 1);
    expect(page_of(0, 3), 2, 3);
    expect(page_of(0, 5), 1, 2);
}

TEST_F(StoreTest, PagesWrittenDuringAFlightStayDirty) {
    faults().early = true;  // the flight carries what was there when it began
    ASSERT_EQ(write(page_of(0, 0), 1, 1), IoStatus::ok);
    faults().hang = true;
    steps(1);
    ASSERT_EQ(write(page_of(0, 1), 1, 1), IoStatus::ok);
    ASSERT_EQ(write(page_of(0, 0), 1, 0), IoStatus::ok);
    faults().hang = false;
    EXPECT_GT(store().step_early(), 1u);  // ends the flight and begins none
    EXPECT_EQ(stats().dirty, Bytes{kPageBytes});
    ASSERT_TRUE(store().drain());
    expect(page_of(0, 0), 1, 0);
    expect(page_of(0, 1), 1, 1);
}

TEST_F(StoreTest, ACleanImageIsKeptUntilTheRoomIsNeeded) {
    make(mib(16), 4);
    ASSERT_EQ(write(page_of(0, 0), 1, 1), IoStatus::ok);
    steps(3);
    expect(page_of(0, 0), 1, 1);
    EXPECT_EQ(stats().pages_read_stage, 1u);
    for (std::uint32_t c = 1; c < 4; ++c) ASSERT_EQ(write(page_of(c, 0), 1, 1), IoStatus::ok);
    steps(1);
    expect(page_of(0, 0), 1, 1);
    EXPECT_EQ(stats().pages_read_gpu, 1u);
}

TEST_F(StoreTest, TheFlusherThreadWorksByItself) {
    ASSERT_TRUE(store()->start());
    for (std::uint32_t version = 1; version < 50; ++version) {
        IoStatus status = IoStatus::retry;
        while (status == IoStatus::retry) status = write(page_of(version % 2, version), 2, version);
        ASSERT_EQ(status, IoStatus::ok);
        if (version % 10 == 0)
            while (stats().dirty.n != 0) std::this_thread::yield();
    }
    store()->flusher().stop();
    expect(page_of(1, 49), 2, 49);
}

// -- reads that something overtakes --

class OvertakenRead : public StoreTest, public ::testing::WithParamInterface<bool> {
  protected:
    /// Two pages of version 1, in VRAM only, with a read of them in flight. The GPU reads them at once or at
    /// the end.
    void begin() {
        ASSERT_EQ(write(kFirst, 2, 1), IoStatus::ok);
        ASSERT_TRUE(store().drain());
        faults().early = GetParam();
        read_ = request(BlockRequest::Op::read, kFirst, 2, other_);
        ASSERT_EQ(queue_->submit(read_), IoStatus::pending);
        launch();
        ASSERT_EQ(queue_->in_flight(), 1u);
    }
    void expect_read(std::uint32_t first_version, std::uint32_t second_version) {
        ASSERT_EQ(finish(read_), IoStatus::ok);
        EXPECT_EQ(queue_->in_flight(), 0u);
        expect_content(kFirst, 1, first_version, other_);
        EXPECT_EQ(content_of(other_.page(1)),
                  second_version == 0 ? 0 : content_for({kFirst.n + 1}, second_version));
    }
    static constexpr PageIndex kFirst{3};
    BlockRequest read_{};
};

TEST_P(OvertakenRead, ByNothing) {
    begin();
    expect_read(1, 1);
    EXPECT_EQ(stats().reread_pages, 0u);
}

TEST_P(OvertakenRead, ByAWrite) {
    begin();
    ASSERT_EQ(write(kFirst, 1, 2), IoStatus::ok);
    expect_read(2, 1);
}

TEST_P(OvertakenRead, ByADiscard) {
    begin();
    discard(kFirst, 1);
    expect_read(0, 1);
}

TEST_P(OvertakenRead, ByADiscardOfTheWholeChunk) {
    begin();
    discard(page_of(0, 0), kChunkPages);
    expect_read(0, 0);
    expect(kFirst, 2, 0);
}

TEST_P(OvertakenRead, ByAWriteThatReachesVram) {
    begin();
    ASSERT_EQ(write(kFirst, 1, 2), IoStatus::ok);
    ASSERT_TRUE(store().drain());
    expect_read(2, 1);
}

TEST_P(OvertakenRead, ByADiscardAndAWriteThatReachesVram) {
    begin();
    discard(page_of(0, 0), kChunkPages);
    ASSERT_EQ(write(kFirst, 2, 2), IoStatus::ok);
    ASSERT_TRUE(store().drain());
    expect_read(2, 2);
}

INSTANTIATE_TEST_SUITE_P(GpuReads, OvertakenRead, ::testing::Bool(),
                         [](const auto& at) { return at.param ? "AtSubmit" : "AtCompletion"; });

TEST_F(StoreTest, APendingReadKeepsSlotAndSegment) {
    make(mib(2), 4, mib(4));
    fill_chunks(2, 1);
    BlockRequest r = request(BlockRequest::Op::read, page_of(1, 0), 3, other_);
    ASSERT_EQ(queue_->submit(r), IoStatus::pending);
    launch();
    discard(page_of(0, 0), 2 * kChunkPages);
    store()->maintain();
    EXPECT_EQ(stats().vram, mib(4));
    ASSERT_EQ(write(page_of(2, 0), 1, 1), IoStatus::ok);
    EXPECT_EQ(write(page_of(3, 0), 1, 1), IoStatus::retry);
    store()->maintain();
    EXPECT_EQ(write(page_of(3, 0), 1, 1), IoStatus::no_space);
    ASSERT_EQ(finish(r), IoStatus::ok);
    expect_content(page_of(1, 0), 3, 0, other_);
    EXPECT_EQ(write(page_of(3, 0), 1, 1), IoStatus::ok);
}

TEST_F(StoreTest, ManyReadsShareAQueue) {
    ASSERT_EQ(write(page_of(0, 0), 16, 1), IoStatus::ok);
    ASSERT_TRUE(store().drain());
    std::array<BlockRequest, 9> reads{};
    for (std::uint32_t i = 0; i < 8; ++i) {
        reads[i] = request(BlockRequest::Op::read, page_of(0, i), 1, other_);
        reads[i].data = other_.page(i);
        ASSERT_EQ(queue_->submit(reads[i]), IoStatus::pending);
    }
    reads[8] = request(BlockRequest::Op::read, page_of(0, 8), 1, memory_);
    EXPECT_EQ(queue_->submit(reads[8]), IoStatus::retry);
    EXPECT_EQ(queue_->in_flight(), 8u);
    std::array<BlockRequest*, 3> done{};
    EXPECT_EQ(queue_->poll(done), 3u);
    EXPECT_EQ(queue_->submit(reads[8]), IoStatus::pending);
    for (const BlockRequest& r : reads) EXPECT_EQ(finish(r), IoStatus::ok);
    expect_content(page_of(0, 0), 8, 1, other_);
    EXPECT_EQ(queue_->in_flight(), 0u);
}

TEST_F(StoreTest, NoReadStarvesWhenFewAreAskedFor) {
    ASSERT_EQ(write(page_of(0, 0), 16, 1), IoStatus::ok);
    ASSERT_TRUE(store().drain());
    std::array<BlockRequest, 4> reads{};
    const auto submit = [&](std::uint32_t i) {
        reads[i] = request(BlockRequest::Op::read, page_of(0, i), 1, other_);
        reads[i].data = other_.page(i);
        ASSERT_EQ(queue_->submit(reads[i]), IoStatus::pending);
    };
    for (std::uint32_t i = 0; i < 4; ++i) submit(i);
    std::array<int, 4> completed{};
    for (int n = 0; n < 1000; ++n) {  // whoever completes asks again, one at a time
        std::array<BlockRequest*, 1> done{};
        ASSERT_EQ(queue_->poll(done), 1u);
        ASSERT_EQ(done[0]->status, IoStatus::ok);
        const auto i = static_cast<std::uint32_t>(done[0] - reads.data());
        ++completed[i];
        submit(i);
    }
    for (const BlockRequest& r : reads) EXPECT_EQ(finish(r), IoStatus::ok);
    EXPECT_EQ(*std::min_element(completed.begin(), completed.end()), 250);
    EXPECT_EQ(stats().reread_pages, 0u);
}

// -- faults --

TEST_F(StoreTest, AFailedFlushIsRepeated) {
    ASSERT_EQ(write(page_of(0, 0), 5, 1), IoStatus::ok);
    faults().fail_copies = 2;
    steps(2);
    EXPECT_EQ(stats().flush_errors, 1u);
    EXPECT_EQ(stats().pages_flushed, 0u);
    EXPECT_EQ(stats().dirty, Bytes{5 * kPageBytes});
    expect(page_of(0, 0), 5, 1);
    ASSERT_TRUE(store().drain());
    EXPECT_EQ(stats().flush_errors, 2u);
    expect(page_of(0, 0), 5, 1);
    EXPECT_EQ(stats().pages_read_gpu, 5u);
    EXPECT_FALSE(stats().writes_are_refused);
}

TEST_F(StoreTest, AfterManyFailuresWritesAreRefusedUntilAFlushSucceeds) {
    ASSERT_EQ(write(page_of(0, 0), 5, 1), IoStatus::ok);
    faults().fail_copies = 1000;
    ASSERT_TRUE(fail_flushes(4));
    EXPECT_FALSE(stats().writes_are_refused);
    ASSERT_TRUE(fail_flushes(5));
    EXPECT_TRUE(stats().writes_are_refused);
    EXPECT_EQ(write(page_of(1, 0), 1, 1), IoStatus::io_error);
    EXPECT_EQ(stats().writes_refused, 1u);
    expect(page_of(0, 0), 5, 1);
    faults().fail_copies = 0;
    ASSERT_TRUE(store().drain());
    EXPECT_FALSE(stats().writes_are_refused);
    EXPECT_EQ(write(page_of(1, 0), 1, 1), IoStatus::ok);
    expect(page_of(0, 0), 5, 1);
}

TEST_F(StoreTest, WritesAreTriedAgainWhenNothingIsLeftToFlush) {
    ASSERT_EQ(write(page_of(0, 0), 5, 1), IoStatus::ok);
    faults().fail_copies = 1000;
    ASSERT_TRUE(fail_flushes(5));
    discard(page_of(0, 0), 5);  // nothing dirty: no flush would ever succeed and end the refusal
    steps(2);
    faults().fail_copies = 0;
    EXPECT_EQ(write(page_of(0, 0), 1, 2), IoStatus::ok);
    ASSERT_TRUE(store().drain());
    expect(page_of(0, 0), 1, 2);
}

TEST_F(StoreTest, TheTrialAfterARefusalIsASingleOne) {
    ASSERT_EQ(write(page_of(0, 0), 5, 1), IoStatus::ok);
    faults().fail_copies = 1000;
    ASSERT_TRUE(fail_flushes(5));
    discard(page_of(0, 0), 5);
    steps(2);
    ASSERT_EQ(write(page_of(0, 0), 1, 2), IoStatus::ok);
    ASSERT_TRUE(fail_flushes(6));
    EXPECT_TRUE(stats().writes_are_refused);
    expect(page_of(0, 0), 1, 2);
}

TEST_F(StoreTest, RepeatedFlushesPauseLongerAndLonger) {
    ASSERT_EQ(write(page_of(0, 0), 1, 1), IoStatus::ok);
    faults().fail_copies = 1000;
    std::uint64_t now = std::uint64_t{1} << 62;
    std::uint64_t pause_before = 0;
    for (int n = 0; n < 15; ++n) {
        EXPECT_EQ(store()->flusher().step(now), Flusher::kNow);
        const std::uint64_t next = store()->flusher().step(now);
        ASSERT_GT(next, now);
        EXPECT_GE(next - now, pause_before);
        EXPECT_LE(next - now, 1'000'000'000u);
        pause_before = next - now;
        now = next;
    }
    EXPECT_GE(pause_before, 500'000'000u);
}

TEST_F(StoreTest, AFailedReadIsRepeated) {
    ASSERT_EQ(write(page_of(0, 0), 5, 1), IoStatus::ok);
    ASSERT_TRUE(store().drain());
    faults().fail_copies = 2;
    expect(page_of(0, 0), 5, 1);
    EXPECT_EQ(stats().reread_pages, 10u);
    EXPECT_EQ(stats().read_errors, 0u);
    faults().fail_copies = 3;
    EXPECT_EQ(read(page_of(0, 0), 5), IoStatus::io_error);
    EXPECT_EQ(stats().read_errors, 5u);
    expect(page_of(0, 0), 5, 1);  // the page itself is not lost
}

TEST_F(StoreTest, AFailedReadLeavesNothingPinned) {
    make(mib(2), 4, mib(2));
    ASSERT_EQ(write(page_of(0, 0), 5, 1), IoStatus::ok);
    ASSERT_TRUE(store().drain());
    faults().fail_copies = 3;
    EXPECT_EQ(read(page_of(0, 0), 5), IoStatus::io_error);
    discard(page_of(0, 0), 5);
    EXPECT_EQ(write(page_of(1, 0), 1, 1), IoStatus::ok);
}

TEST_F(StoreTest, ACorruptReadIsRepeated) {
    ASSERT_EQ(write(page_of(0, 0), 5, 1), IoStatus::ok);
    ASSERT_TRUE(store().drain());
    faults().corrupt_reads = 2;
    expect(page_of(0, 0), 5, 1);
    EXPECT_EQ(stats().reread_pages, 2u);  // only what was wrong
    faults().corrupt_reads = 1;
    expect(page_of(0, 4), 1, 1);
}

TEST_F(StoreTest, CorruptVramGivesAnErrorAndNeverWrongBytes) {
    ASSERT_EQ(write(page_of(0, 0), 5, 1), IoStatus::ok);
    faults().corrupt_writes = 1;
    ASSERT_TRUE(store().drain());
    EXPECT_EQ(read(page_of(0, 0), 5), IoStatus::io_error);
    EXPECT_EQ(stats().read_errors, 1u);
    for (const std::uint32_t good : {0u, 1u, 3u, 4u}) expect(page_of(0, good), 1, 1);
    EXPECT_EQ(read(page_of(0, 2), 1), IoStatus::io_error);
    ASSERT_EQ(write(page_of(0, 2), 1, 2), IoStatus::ok);
    ASSERT_TRUE(store().drain());
    expect(page_of(0, 2), 1, 2);
}

TEST_F(StoreTest, AMisplacedPageGivesAnErrorAndNeverWrongBytes) {
    ASSERT_EQ(write(page_of(0, 0), 3, 1), IoStatus::ok);
    ASSERT_TRUE(store().drain());
    ASSERT_EQ(write(page_of(0, 1), 1, 2), IoStatus::ok);
    faults().misplace_writes = 1;
    ASSERT_TRUE(store().drain());
    expect(page_of(0, 0), 1, 1);
    EXPECT_EQ(read(page_of(0, 1), 1), IoStatus::io_error);  // an older version lies there
    EXPECT_EQ(read(page_of(0, 2), 1), IoStatus::io_error);  // page 1 lies there
}

TEST_F(StoreTest, ALostGpuGivesErrorsAndNoHangs) {
    fill_chunks(1, 1);
    ASSERT_EQ(write(page_of(1, 0), 1, 1), IoStatus::ok);
    BlockRequest pending = request(BlockRequest::Op::read, page_of(0, 0), 3, other_);
    ASSERT_EQ(queue_->submit(pending), IoStatus::pending);
    launch();
    faults().lost = true;
    EXPECT_EQ(finish(pending), IoStatus::io_error);
    EXPECT_EQ(read(page_of(0, 0), 3), IoStatus::io_error);
    expect(page_of(1, 0), 1, 1);  // still in the stage
    expect(page_of(2, 0), 1, 0);
    ASSERT_TRUE(fail_flushes(5));
    EXPECT_TRUE(stats().writes_are_refused);
    EXPECT_EQ(write(page_of(1, 1), 1, 1), IoStatus::io_error);
    store()->maintain();
    EXPECT_FALSE(store()->make_queue(1));
    EXPECT_EQ(stats().gpu, Health::gpu_lost);
    discard(page_of(0, 0), 2 * kChunkPages);
    expect(page_of(0, 0), 3, 0);
}

// -- making and ending --

TEST_F(StoreTest, QueuesAreCountedAndTheirPlacesUsedAgain) {
    for (const std::uint32_t depth : {0u, TransferQueue::kDepth + 1}) {
        const auto bad = store()->make_queue(depth);
        ASSERT_FALSE(bad);
        EXPECT_EQ(bad.error().code, Errc::usage);
    }
    std::vector<std::unique_ptr<TargetQueue>> queues;
    for (std::uint32_t n = 1; n < StoreParts::kQueuesMax; ++n) {
        auto queue = store()->make_queue(1);
        ASSERT_TRUE(queue) << n << ": " << queue.error().text();
        queues.push_back(std::move(*queue));
    }
    const auto none = store()->make_queue(1);
    ASSERT_FALSE(none);
    EXPECT_EQ(none.error().code, Errc::no_memory);
    const int event_fd = queues[5]->event_fd();
    queues[5].reset();
    auto again = store()->make_queue(1);
    ASSERT_TRUE(again);
    EXPECT_EQ((*again)->event_fd(), event_fd);
    std::set<int> events{queue_->event_fd(), event_fd};
    for (const auto& queue : queues)
        if (queue) events.insert(queue->event_fd());
    EXPECT_EQ(events.size(), StoreParts::kQueuesMax);
}

TEST_F(StoreTest, CountersSurviveTheirQueue) {
    ASSERT_EQ(write(page_of(0, 0), 3, 1), IoStatus::ok);
    queue_.reset();
    EXPECT_EQ(stats().pages_written, 3u);
    queue_ = std::move(*store()->make_queue(1));
    expect(page_of(0, 0), 3, 1);
    discard(page_of(0, 0), 2);
    EXPECT_EQ(stats().pages_written, 3u);
    EXPECT_EQ(stats().pages_read, 3u);
    EXPECT_EQ(stats().pages_discarded, 2u);
}

TEST_F(StoreTest, EveryWaitingQueueIsWoken) {
    const auto second = std::move(*store()->make_queue(1));
    const auto idle = std::move(*store()->make_queue(1));
    ASSERT_EQ(write(page_of(3, 0), 1, 1), IoStatus::ok);
    steps(1);  // now the page is on its way
    ASSERT_EQ(write(page_of(3, 0), 1, 2), IoStatus::retry);
    ASSERT_EQ(write_to(*second, page_of(3, 0), 1, 2), IoStatus::retry);
    ASSERT_TRUE(store().drain());
    EXPECT_TRUE(take_event(queue_->event_fd()));
    EXPECT_TRUE(take_event(second->event_fd()));
    EXPECT_FALSE(take_event(idle->event_fd()));
}

TEST_F(StoreTest, TellsTheKeeperWhatMustOutliveIt) {
    make(mib(2), 4);
    EXPECT_EQ(keeper_.keys(), (std::vector<std::string>{"segment-0", "stage", "state"}));
    fill_chunks(2, 1);
    EXPECT_EQ(keeper_.keys(),
              (std::vector<std::string>{"segment-0", "segment-1", "segment-2", "stage", "state"}));
    std::set<ino_t> files;
    for (const auto& [key, inode] : keeper_.kept) files.insert(inode);
    EXPECT_EQ(files.size(), 5u);
    discard(page_of(0, 0), 2 * kChunkPages);
    store()->maintain();
    EXPECT_EQ(keeper_.keys(), (std::vector<std::string>{"segment-0", "stage", "state"}));
    queue_.reset();
    store_.reset();
    EXPECT_TRUE(keeper_.keys().empty());  // kept, it would keep the memory too
    EXPECT_EQ(gpu_->free(), mib(64));
}

TEST_F(StoreTest, WhatItGivesBackHasNoTracesOfPages) {
    keeper_.remembers = true;
    make(mib(4), 4);
    fill_chunks(6, 1);
    ASSERT_EQ(write(page_of(5, 0), kChunkPages / 2, 2), IoStatus::ok);
    const auto of = [this](const char* key) -> const UniqueFd& { return keeper_.ever_held.at(key); };
    for (const char* key : {"segment-0", "segment-1", "segment-2", "stage"})
        EXPECT_GT(traces_in(of(key)), 0u) << key;

    discard(page_of(0, 0), 4 * kChunkPages);
    store()->maintain();
    std::size_t left = 0;
    for (const auto& [key, fd] : keeper_.ever_held)
        if (key.starts_with("segment-") && !keeper_.held.contains(key)) {
            EXPECT_EQ(traces_in(fd), 0u) << key << ", which was given back while others are in use";
            ++left;
        }
    EXPECT_GT(left, 0u);

    queue_.reset();
    store_.reset();
    for (const char* key : {"segment-0", "segment-1", "segment-2", "stage"})
        EXPECT_EQ(traces_in(of(key)), 0u) << key << ", after the end";
}

TEST_F(StoreTest, ASegmentIsNotGivenBackBeforeItIsWiped) {
    make(mib(2), 4);
    fill_chunks(2, 1);
    const std::vector<std::string> all = keeper_.keys();
    const Bytes free_before = gpu_->free();
    gpu_->faults().hang = true;
    discard(page_of(0, 0), 2 * kChunkPages);
    store()->maintain();
    EXPECT_EQ(keeper_.keys(), all);
    EXPECT_EQ(gpu_->free(), free_before);
    EXPECT_EQ(store()->holdings(0).vram, mib(6)) << "it is ours yet";
    gpu_->faults().hang = false;
    store()->maintain();
    EXPECT_EQ(keeper_.keys(), (std::vector<std::string>{"segment-0", "stage", "state"}));
    EXPECT_EQ(gpu_->free(), mib(62));
    EXPECT_EQ(store()->holdings(0).vram, mib(2));
}

TEST_F(StoreTest, ASegmentThatIsNotWipedIsGivenBackAllTheSame) {
    make(mib(2), 4);
    fill_chunks(2, 1);
    gpu_->faults().fail_copies = 1;
    discard(page_of(0, 0), 2 * kChunkPages);
    store()->maintain();
    EXPECT_EQ(keeper_.keys(), (std::vector<std::string>{"segment-0", "stage", "state"}));
    EXPECT_EQ(gpu_->free(), mib(62));
}

TEST_F(StoreTest, ASegmentThatCannotBeKeptIsNotUsed) {
    make(mib(2), 4);
    keeper_.refused = "segment-1";
    const Bytes free_before = gpu_->free();
    ASSERT_EQ(write(page_of(0, 0), 1, 1), IoStatus::ok);
    store()->maintain();
    EXPECT_EQ(gpu_->free(), free_before);
    EXPECT_EQ(write(page_of(1, 0), 1, 1), IoStatus::no_space);
    keeper_.refused.clear();
    store()->maintain();
    EXPECT_EQ(write(page_of(1, 0), 1, 1), IoStatus::ok);
}

TEST_F(StoreTest, WorksWithoutAKeeper) {
    SimGpu gpu(mib(16));
    {
        SteppedStore store(gpu, config(mib(4), 3), nullptr);
        store->maintain();
        EXPECT_EQ(store->stats().vram, mib(4));
    }
    EXPECT_EQ(gpu.free(), mib(16));
}

TEST_F(StoreTest, RegistersMemoryForRequests) {
    EXPECT_TRUE(store()->register_memory(memory_.all()));
    EXPECT_TRUE(store()->unregister_memory(memory_.all()));
    EXPECT_FALSE(store()->register_memory(memory_.all().subspan(1)));
}

TEST(StoreCreation, SaysWhatIsWrong) {
    SimGpu gpu(mib(16));
    const auto code_of = [&gpu](const StoreConfig& config, FdKeeper* keeper) {
        const auto store = PageStore::create(gpu.backend(), config, keeper);
        EXPECT_FALSE(store);
        return store ? Errc::exists : store.error().code;
    };
    // The largest request needs three images.
    EXPECT_EQ(code_of({mib(64), mib(4), mib(4), {}}, nullptr), Errc::usage);
    EXPECT_EQ(code_of({mib(64), mib(3), mib(8), {}}, nullptr), Errc::usage);
    EXPECT_EQ(code_of({mib(64), {0}, mib(8), {}}, nullptr), Errc::usage);
    EXPECT_EQ(code_of({{0}, mib(4), mib(8), {}}, nullptr), Errc::usage);
    EXPECT_EQ(code_of({{4097}, mib(4), mib(8), {}}, nullptr), Errc::usage);
    EXPECT_EQ(code_of({mib(64), mib(32), mib(8), {}}, nullptr), Errc::no_memory);
    KeeperFake keeper;
    for (const char* key : {"state", "stage", "segment-0"}) {
        keeper.refused = key;
        EXPECT_EQ(code_of({mib(64), mib(4), mib(8), {}}, &keeper), Errc::failed);
        EXPECT_TRUE(keeper.keys().empty()) << key;
        EXPECT_EQ(gpu.free(), mib(16)) << key;
    }
    gpu.faults().lost = true;
    EXPECT_EQ(code_of({mib(64), mib(4), mib(8), {}}, nullptr), Errc::gpu_lost);
}

}  // namespace
}  // namespace vramswap
