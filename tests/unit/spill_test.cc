// SPDX-License-Identifier: MIT
// The spill: its slots, and the whole on a directory, small file systems and a block device. How its queues
// treat the disk's answers: spill_queue_test.cc.
#include "store/spill.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <filesystem>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "support/block_device.h"
#include "support/pages.h"
#include "support/small_disk.h"

namespace vramswap {
namespace {

using Op = RawIo::Op;
using State = SpillSlots::State;
using test::DirectBuffer;
using test::LoopDevice;
using test::SmallExt4;
using test::SmallTmpfs;
using test::TemporaryDirectory;

// ---- slots ----

TEST(SpillSlots, TakesTheLowestAndOnlyFreeOnes) {
    SpillSlots slots(4, State::absent);
    EXPECT_EQ(slots.take(), std::nullopt);
    const SlotRange two = slots.claim(State::absent, 2);
    EXPECT_EQ(two, (SlotRange{0, 2}));
    EXPECT_EQ(slots.take(), std::nullopt) << "claimed is not free";
    slots.settle(two, State::free);
    EXPECT_EQ(slots.take(), 0u);
    EXPECT_EQ(slots.take(), 1u);
    EXPECT_EQ(slots.take(), std::nullopt);
    slots.give_back(0);
    EXPECT_EQ(slots.take(), std::nullopt) << "not wiped yet";
    EXPECT_EQ(slots.claim(State::stale, 9), (SlotRange{0, 1}));
    slots.settle({0, 1}, State::free);
    EXPECT_EQ(slots.take(), 0u);
    slots.retire(1);
    EXPECT_EQ(slots.in(State::bad), 1u);
    slots.give_back(1);
    slots.give_back(3);
    slots.give_back(99);
    EXPECT_EQ(slots.in(State::stale), 0u) << "only what is used can be given back";
}

TEST(SpillSlots, AdoptsEachOnce) {
    SpillSlots slots(4, State::stale);
    constexpr std::array<std::uint32_t, 2> kUsed{3, 1};
    EXPECT_TRUE(slots.adopt(kUsed));
    EXPECT_EQ(slots.in(State::used), 2u);
    EXPECT_EQ(slots.claim(State::stale, 9), (SlotRange{0, 1}));
    EXPECT_FALSE(slots.adopt(std::array<std::uint32_t, 1>{3}));
    EXPECT_FALSE(slots.adopt(std::array<std::uint32_t, 1>{4}));
}

TEST(SpillSlots, AgreesWithATable) {
    constexpr std::uint32_t kCount = 50;
    SpillSlots slots(kCount, State::absent);
    std::vector<State> model(kCount, State::absent);
    const auto first = [&model](State state) {
        return static_cast<std::uint32_t>(std::ranges::find(model, state) - model.begin());
    };
    test::Random random(5);
    for (int round = 0; round < 20'000; ++round) {
        const auto slot = static_cast<std::uint32_t>(random.below(kCount));
        switch (random.below(4)) {
            case 0: {
                const auto taken = slots.take();
                const std::uint32_t expected = first(State::free);
                ASSERT_EQ(taken.value_or(kCount), expected);
                if (taken) model[expected] = State::used;
                break;
            }
            case 1:
                slots.give_back(slot);
                if (model[slot] == State::used) model[slot] = State::stale;
                break;
            case 2: {
                const State from = random.one_in(2) ? State::absent : State::stale;
                const auto most = static_cast<std::uint32_t>(random.below(5));
                const SlotRange range = slots.claim(from, most);
                ASSERT_LE(range.count, most);
                if (range.count == 0) break;
                ASSERT_EQ(range.first, first(from));
                const State to = random.one_in(2) ? State::free : from == State::stale ? State::absent : from;
                slots.settle(range, to);
                for (std::uint32_t n = 0; n < range.count; ++n) {
                    ASSERT_EQ(model[range.first + n], from);
                    model[range.first + n] = to;
                }
                break;
            }
            default:
                for (const State state : {State::absent, State::free, State::used, State::stale})
                    ASSERT_EQ(slots.in(state), std::ranges::count(model, state));
        }
    }
}

TEST(SpillFile, LeavesATenthFree) {
    EXPECT_EQ(slots_above_a_tenth(gib(1), gib(1)), (gib(1).n - gib(1).n / 10) / kChunkBytes);
    EXPECT_EQ(slots_above_a_tenth(mib(100), mib(12)), 1u);
    EXPECT_EQ(slots_above_a_tenth(mib(100), Bytes{mib(12).n - 1}), 0u);
    EXPECT_EQ(slots_above_a_tenth(mib(100), mib(3)), 0u);
}

// ---- the whole ----

std::unique_ptr<Spill> must_open(const std::string& path, Bytes size) {
    auto spill = Spill::open({path, size});
    if (!spill) throw std::runtime_error(spill.error().text());
    return std::move(*spill);
}

Error refusal(const SpillConfig& config) {
    auto spill = Spill::open(config);
    return spill ? Error{Errc::failed, 0, "was not refused"} : std::move(spill).error();
}

IoStatus finish(SpillQueue& queue, IoStatus status, Ticket ticket) {
    while (status == IoStatus::pending) {
        queue.wait(-1);
        status = queue.poll(ticket);
    }
    return status;
}

/// A whole chunk with the marks of its slot.
IoStatus write_chunk(SpillQueue& queue, std::uint32_t slot, std::uint64_t generation) {
    DirectBuffer chunk(kChunkBytes);
    chunk.fill(slot * kChunkBytes, generation);
    Ticket ticket = 0;
    const IoStatus status = queue.submit({Op::write, slot, {0, kChunkPages}, chunk.data()}, ticket);
    return finish(queue, status, ticket);
}

/// What is wrong with it; empty if nothing.
std::string check_chunk(SpillQueue& queue, std::uint32_t slot, std::uint64_t generation) {
    DirectBuffer chunk(kChunkBytes);
    Ticket ticket = 0;
    const IoStatus status = queue.submit({Op::read, slot, {0, kChunkPages}, chunk.data()}, ticket);
    if (const IoStatus end = finish(queue, status, ticket); end != IoStatus::ok)
        return std::string(to_string(end));
    return chunk.mismatch(slot * kChunkBytes, generation);
}

/// Bytes that are not zero, of a slot of a file that begins with slots.
std::uint64_t traces_in(const UniqueFd& file, std::uint64_t offset) {
    DirectBuffer chunk(kChunkBytes);
    EXPECT_EQ(test::read_at(file, chunk, offset), 0);
    const auto bytes = chunk.copy();
    return static_cast<std::uint64_t>(
        std::ranges::count_if(bytes, [](std::byte b) { return b != std::byte{0}; }));
}

std::vector<UniqueFd> copies_of(const std::vector<UniqueFd>& fds) {
    std::vector<UniqueFd> copies;
    for (const UniqueFd& fd : fds) copies.push_back(fd.dup());
    return copies;
}

/// All that can be had, with what maintain can do.
std::vector<std::uint32_t> take_all(Spill& spill) {
    std::vector<std::uint32_t> slots;
    for (;;) {
        std::uint32_t slot = 0;
        const IoStatus status = spill.take(slot);
        if (status == IoStatus::ok) slots.push_back(slot);
        if (status == IoStatus::no_space) return slots;
        if (status == IoStatus::retry) static_cast<void>(spill.maintain());
    }
}

TEST(Spill, SaysWhatPlaceIsNotFit) {
    const TemporaryDirectory directory;
    EXPECT_EQ(refusal({directory.path() + "/none", mib(8)}).code, Errc::not_found);
    const std::string file = directory.path() + "/file";
    ASSERT_TRUE(UniqueFd(::open(file.c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0600)));
    EXPECT_EQ(refusal({file, mib(8)}).code, Errc::usage);
    EXPECT_EQ(refusal({"/dev/null", mib(8)}).code, Errc::usage);
    EXPECT_EQ(refusal({directory.path(), Bytes{kChunkBytes - 1}}).code, Errc::usage);
    const Error no_files = refusal({"/proc", mib(8)});
    EXPECT_EQ(no_files.code, Errc::unavailable) << no_files.text();
    struct stat about {};
    ASSERT_EQ(::stat(directory.path().c_str(), &about), 0);
    const Error own = refusal({directory.path(), mib(8), {makedev(1, 2), about.st_dev}});
    EXPECT_EQ(own.code, Errc::usage);
    EXPECT_NE(own.text().find(directory.path()), std::string::npos);
}

TEST(Spill, GrowsAheadOfNeedAndHasNoName) {
    const TemporaryDirectory directory;
    auto spill = must_open(directory.path(), Bytes{mib(400).n + 5});
    EXPECT_EQ(spill->problem(), "");
    EXPECT_TRUE(std::filesystem::is_empty(directory.path()));
    struct stat about {};
    ASSERT_EQ(::fstat(spill->fds().front().get(), &about), 0);
    EXPECT_EQ(about.st_nlink, 0u);
    EXPECT_EQ(about.st_mode & 0777u, 0600u);
    EXPECT_EQ(spill->counts().capacity, 200u);
    EXPECT_EQ(spill->counts().ready, Spill::kReserveAhead);
    EXPECT_GE(spill->counts().on_disk, mib(128));
    EXPECT_LT(spill->counts().on_disk, mib(140));
    EXPECT_FALSE(spill->needs_maintenance());

    std::uint32_t slot = 0;
    for (std::uint32_t n = 0; n < Spill::kReserveAhead; ++n) {
        ASSERT_EQ(spill->take(slot), IoStatus::ok);
        EXPECT_EQ(slot, n);
    }
    EXPECT_TRUE(spill->needs_maintenance());
    EXPECT_EQ(spill->take(slot), IoStatus::retry);
    EXPECT_EQ(spill->maintain(), Spill::Duty::none);
    EXPECT_EQ(spill->counts().ready, Spill::kReserveAhead);
    EXPECT_EQ(take_all(*spill).size(), 200u - Spill::kReserveAhead);
    EXPECT_EQ(spill->counts().used, 200u);
    EXPECT_EQ(spill->problem(), "") << "as large as it was to be";
}

TEST(Spill, WipesWhatIsGivenBack) {
    const TemporaryDirectory directory;
    auto spill = must_open(directory.path(), mib(8));
    auto queue = *spill->make_queue();
    const auto slots = take_all(*spill);
    ASSERT_EQ(slots.size(), 4u);
    for (const std::uint32_t slot : slots) ASSERT_EQ(write_chunk(*queue, slot, 1), IoStatus::ok);
    EXPECT_GT(traces_in(spill->fds().front(), kChunkBytes), kChunkBytes / 2);
    spill->give_back(1);
    spill->give_back(2);
    std::uint32_t slot = 0;
    EXPECT_EQ(spill->take(slot), IoStatus::retry) << "not before it is wiped";
    EXPECT_TRUE(spill->needs_maintenance());
    EXPECT_EQ(spill->counts().to_wipe, 2u);
    EXPECT_EQ(spill->maintain(), Spill::Duty::none);
    EXPECT_EQ(traces_in(spill->fds().front(), kChunkBytes), 0u);
    EXPECT_EQ(traces_in(spill->fds().front(), 2 * kChunkBytes), 0u);
    EXPECT_EQ(check_chunk(*queue, 0, 1), "");
    EXPECT_EQ(check_chunk(*queue, 3, 1), "");
    ASSERT_EQ(spill->take(slot), IoStatus::ok);
    EXPECT_EQ(slot, 1u);
    ASSERT_EQ(write_chunk(*queue, slot, 2), IoStatus::ok);
    EXPECT_EQ(check_chunk(*queue, slot, 2), "");
}

TEST(Spill, WipesManyInPieces) {
    const TemporaryDirectory directory;
    auto spill = must_open(directory.path(), mib(256));
    const auto slots = take_all(*spill);
    for (const std::uint32_t slot : slots) spill->give_back(slot);
    EXPECT_EQ(spill->maintain(), Spill::Duty::more);
    EXPECT_EQ(spill->counts().to_wipe, 128 - Spill::kWipesAtOnce);
    while (spill->maintain() == Spill::Duty::more) {
    }
    EXPECT_EQ(spill->counts().to_wipe, 0u);
    EXPECT_LT(spill->counts().on_disk, mib(140)) << "but for what is kept ahead it is the disk's again";
}

/// A small file system is filled up to the tenth that stays free.
void fills_to_a_tenth(const std::string& path, Bytes total) {
    auto spill = must_open(path, total);
    auto queue = *spill->make_queue();
    const auto slots = take_all(*spill);
    EXPECT_GT(slots.size(), total.n / kChunkBytes / 2);
    EXPECT_LE(slots.size(), total.n / 10 * 9 / kChunkBytes);
    const auto space = std::filesystem::space(path);
    EXPECT_GE(space.available, space.capacity / 10);
    EXPECT_NE(spill->problem().find("tenth"), std::string::npos) << spill->problem();
    EXPECT_EQ(spill->maintain(), Spill::Duty::later);
    for (const std::uint32_t slot : slots) ASSERT_EQ(write_chunk(*queue, slot, 1), IoStatus::ok);
    for (const std::uint32_t slot : slots) ASSERT_EQ(check_chunk(*queue, slot, 1), "");

    std::uint32_t slot = 0;
    EXPECT_EQ(spill->take(slot), IoStatus::no_space);
    spill->give_back(slots.back());
    EXPECT_EQ(spill->take(slot), IoStatus::retry);
    static_cast<void>(spill->maintain());
    ASSERT_EQ(spill->take(slot), IoStatus::ok);
    EXPECT_EQ(slot, slots.back());
}

TEST(Spill, LeavesATenthOfATmpfsFree) {
    try {
        const SmallTmpfs disk(mib(40));
        fills_to_a_tenth(disk.path(), mib(40));
        auto spill = must_open(disk.path(), mib(8));
        EXPECT_NE(spill->problem().find("RAM"), std::string::npos);
    } catch (const std::system_error& error) {
        GTEST_SKIP() << error.what();
    }
}

TEST(Spill, LeavesATenthOfAnExt4Free) {
    try {
        const SmallExt4 disk(mib(64));
        fills_to_a_tenth(disk.path(), mib(64));
    } catch (const std::system_error& error) {
        GTEST_SKIP() << error.what();
    }
}

TEST(Spill, OpensOnAFullDiskAndGrowsWhenThereIsRoom) {
    try {
        const SmallTmpfs disk(mib(40));
        const std::string other = disk.path() + "/other";
        UniqueFd fd(::open(other.c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0600));
        ASSERT_EQ(::fallocate(fd.get(), 0, 0, 38 << 20), 0);
        auto spill = must_open(disk.path(), mib(8));
        EXPECT_NE(spill->problem().find("tenth"), std::string::npos);
        std::uint32_t slot = 0;
        EXPECT_EQ(spill->take(slot), IoStatus::no_space);
        EXPECT_FALSE(spill->needs_maintenance()) << "or it would be called for ever";
        EXPECT_EQ(spill->maintain(), Spill::Duty::later);
        ASSERT_EQ(::ftruncate(fd.get(), 0), 0);
        EXPECT_EQ(spill->take(slot), IoStatus::no_space) << "nobody has looked yet";
        EXPECT_EQ(spill->maintain(), Spill::Duty::none);
        EXPECT_EQ(spill->problem().find("tenth"), std::string::npos);
        EXPECT_EQ(spill->take(slot), IoStatus::ok);
    } catch (const std::system_error& error) {
        GTEST_SKIP() << error.what();
    }
}

TEST(Spill, PassesToAnotherProcessByDescriptor) {
    const TemporaryDirectory directory;
    const SpillConfig config{directory.path(), mib(12)};
    auto spill = must_open(config.path, config.size_max);
    {
        auto queue = *spill->make_queue();
        for (const std::uint32_t slot : take_all(*spill))
            ASSERT_EQ(write_chunk(*queue, slot, 4), IoStatus::ok);
    }
    const std::vector<UniqueFd> kept = copies_of(spill->fds());
    spill.reset();
    constexpr std::array<std::uint32_t, 2> kUsed{4, 1};
    EXPECT_EQ(Spill::adopt(config, copies_of(kept), std::array<std::uint32_t, 1>{6}).error().code,
              Errc::usage);
    spill = *Spill::adopt(config, copies_of(kept), kUsed);
    EXPECT_EQ(spill->counts().used, 2u);
    std::uint32_t slot = 0;
    EXPECT_EQ(spill->take(slot), IoStatus::retry);
    EXPECT_TRUE(spill->needs_maintenance());
    EXPECT_EQ(spill->maintain(), Spill::Duty::none);
    for (const std::uint32_t unused : {0u, 2u, 3u, 5u})
        EXPECT_EQ(traces_in(spill->fds().front(), unused * kChunkBytes), 0u) << unused;
    auto queue = *spill->make_queue();
    for (const std::uint32_t used : kUsed) EXPECT_EQ(check_chunk(*queue, used, 4), "");
    EXPECT_EQ(take_all(*spill), (std::vector<std::uint32_t>{0, 2, 3, 5}));

    EXPECT_GE(spill->counts().on_disk, mib(12));
    queue.reset();
    EXPECT_TRUE(spill->close());
    struct stat about {};
    ASSERT_EQ(::fstat(kept.front().get(), &about), 0);
    EXPECT_EQ(about.st_blocks, 0) << "though another descriptor is open";
}

/// Each slot is a place of its own, whichever file it is in; what is wiped is that and no other's.
TEST(Spill, IsSeveralFilesInRam) {
    try {
        const SmallTmpfs disk(mib(64));
        const SpillConfig config{disk.path(), mib(20)};
        auto spill = must_open(config.path, config.size_max);
        ASSERT_GT(spill->fds().size(), 1u);
        auto queue = *spill->make_queue();
        const auto slots = take_all(*spill);
        ASSERT_EQ(slots.size(), 10u);
        EXPECT_EQ(spill->counts().on_disk, mib(20));
        for (const std::uint32_t slot : slots) ASSERT_EQ(write_chunk(*queue, slot, slot), IoStatus::ok);
        for (const std::uint32_t gone : {2u, 3u, 4u, 7u}) spill->give_back(gone);
        EXPECT_EQ(spill->maintain(), Spill::Duty::none);
        EXPECT_EQ(spill->counts().ready, 4u) << "wiped, and reserved again";
        for (const std::uint32_t gone : {2u, 3u, 4u, 7u})
            EXPECT_EQ(check_chunk(*queue, gone, gone).empty(), false) << gone;

        const std::vector<UniqueFd> kept = copies_of(spill->fds());
        queue.reset();
        spill = *Spill::adopt(config, copies_of(kept), std::array<std::uint32_t, 6>{0, 1, 5, 6, 8, 9});
        EXPECT_EQ(spill->counts().capacity, 10u);
        EXPECT_EQ(spill->maintain(), Spill::Duty::none);
        queue = *spill->make_queue();
        for (const std::uint32_t left : {0u, 1u, 5u, 6u, 8u, 9u})
            EXPECT_EQ(check_chunk(*queue, left, left), "") << left;
        queue.reset();
        EXPECT_TRUE(spill->close());
        EXPECT_EQ(spill->counts().on_disk, Bytes{0}) << "though others have its files open";
    } catch (const std::system_error& error) {
        GTEST_SKIP() << error.what();
    }
}

TEST(Spill, MovesChunksWhileItIsMaintained) {
    const TemporaryDirectory directory;
    auto spill = must_open(directory.path(), mib(16));
    auto queue = *spill->make_queue();
    std::atomic<bool> done{false};
    std::string wrong;
    std::thread mover([&] {
        for (std::uint64_t n = 0; n < 200 && wrong.empty(); ++n) {
            std::uint32_t slot = 0;
            IoStatus status = IoStatus::retry;
            while ((status = spill->take(slot)) == IoStatus::retry) std::this_thread::yield();
            if (status == IoStatus::ok) status = write_chunk(*queue, slot, n);
            wrong = status == IoStatus::ok ? check_chunk(*queue, slot, n) : std::string(to_string(status));
            spill->give_back(slot);
        }
        done = true;
    });
    while (!done) {
        if (spill->needs_maintenance()) static_cast<void>(spill->maintain());
        std::this_thread::yield();
    }
    mover.join();
    EXPECT_EQ(wrong, "");
    EXPECT_EQ(spill->counters().bytes_written.load(), 200 * kChunkBytes);
}

/// Forbids io_uring to this thread, as the profiles of containers do.
void forbid_io_uring() {
    constexpr auto kNumber = static_cast<__u32>(offsetof(seccomp_data, nr));
    std::array<sock_filter, 4> filter{
        sock_filter BPF_STMT(BPF_LD | BPF_W | BPF_ABS, kNumber),
        sock_filter BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
        sock_filter BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        sock_filter BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
    const sock_fprog program{filter.size(), filter.data()};
    ASSERT_EQ(::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
    ASSERT_EQ(::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program), 0);
}

TEST(Spill, DoesWithoutIoUring) {
    std::thread([] {
        forbid_io_uring();
        const TemporaryDirectory directory;
        auto spill = must_open(directory.path(), mib(4));
        auto queue = spill->make_queue();
        ASSERT_TRUE(queue) << queue.error().text();
        EXPECT_NE(spill->problem().find("threads"), std::string::npos);
        EXPECT_NE(spill->problem().find("kernel.io_uring_disabled"), std::string::npos);
        std::uint32_t slot = 0;
        ASSERT_EQ(spill->take(slot), IoStatus::ok);
        EXPECT_EQ(write_chunk(**queue, slot, 1), IoStatus::ok);
        EXPECT_EQ(check_chunk(**queue, slot, 1), "");
    }).join();
}

// ---- block devices ----

class SpillDevice : public ::testing::Test {
  protected:
    void SetUp() override {
        try {
            device = std::make_unique<LoopDevice>(mib(16));
        } catch (const std::system_error& error) {
            GTEST_SKIP() << error.what();
        }
    }
    std::unique_ptr<LoopDevice> device;
};

TEST_F(SpillDevice, HoldsChunksAfterItsHeader) {
    auto spill = must_open(device->path(), gib(1));
    EXPECT_EQ(spill->problem(), "");
    EXPECT_EQ(spill->counts().capacity, 7u);
    EXPECT_FALSE(spill->needs_maintenance());
    auto queue = *spill->make_queue();
    const auto slots = take_all(*spill);
    ASSERT_EQ(slots.size(), 7u);
    for (const std::uint32_t slot : slots) ASSERT_EQ(write_chunk(*queue, slot, 1), IoStatus::ok);
    for (const std::uint32_t slot : slots) ASSERT_EQ(check_chunk(*queue, slot, 1), "");
    spill->give_back(6);
    std::uint32_t slot = 0;
    EXPECT_EQ(spill->take(slot), IoStatus::retry);
    EXPECT_EQ(spill->maintain(), Spill::Duty::none);
    EXPECT_EQ(traces_in(device->backing(), 7 * kChunkBytes), 0u);
    EXPECT_GT(traces_in(device->backing(), 6 * kChunkBytes), 0u);
    EXPECT_EQ(spill->take(slot), IoStatus::ok);

    EXPECT_EQ(refusal({device->path(), gib(1)}).code, Errc::busy);
    queue.reset();
    spill->retire(2);
    spill->give_back(3);
    ASSERT_TRUE(spill->close());
    for (std::uint64_t n = 0; n < 8; ++n) EXPECT_EQ(traces_in(device->backing(), n * kChunkBytes), 0u) << n;
}

TEST_F(SpillDevice, WipesWhatACrashHasLeft) {
    auto spill = must_open(device->path(), gib(1));
    auto queue = *spill->make_queue();
    for (const std::uint32_t slot : take_all(*spill)) ASSERT_EQ(write_chunk(*queue, slot, 1), IoStatus::ok);
    queue.reset();
    spill.reset();  // without close
    spill = must_open(device->path(), gib(1));
    EXPECT_TRUE(spill->needs_maintenance());
    EXPECT_EQ(spill->counts().to_wipe, 7u);
    EXPECT_EQ(spill->maintain(), Spill::Duty::none);
    for (std::uint64_t n = 1; n < 8; ++n) EXPECT_EQ(traces_in(device->backing(), n * kChunkBytes), 0u) << n;
    EXPECT_EQ(take_all(*spill).size(), 7u);
}

TEST_F(SpillDevice, IsNotOverwrittenUnlessItIsEmptyOrASpills) {
    try {
        test::make_ext4(device->path());
    } catch (const std::system_error& error) {
        GTEST_SKIP() << error.what();
    }
    const Error holds = refusal({device->path(), gib(1)});
    EXPECT_EQ(holds.code, Errc::exists);
    EXPECT_NE(holds.hint.find("blkdiscard"), std::string::npos);
    ASSERT_EQ(test::zero_at(test::open_device(device->path()), 0, 1 << 20), 0);
    EXPECT_TRUE(Spill::open({device->path(), gib(1)}));
    EXPECT_TRUE(Spill::open({device->path(), gib(1)})) << "what a crash has left";
    ASSERT_EQ(test::zero_at(test::open_device(device->path()), 0, kPageBytes), 0);
    // The last byte that is looked at.
    DirectBuffer page(kPageBytes);
    std::fill_n(page.data(), kPageBytes, std::byte{0});
    page.data()[kPageBytes - 1] = std::byte{1};
    ASSERT_EQ(test::write_at(test::open_device(device->path()), page, (1 << 20) - kPageBytes), 0);
    EXPECT_EQ(refusal({device->path(), gib(1)}).code, Errc::exists);
}

TEST_F(SpillDevice, IsRefusedWhenClaimedOrOurs) {
    struct stat about {};
    ASSERT_EQ(::stat(device->path().c_str(), &about), 0);
    EXPECT_EQ(refusal({device->path(), gib(1), {about.st_rdev}}).code, Errc::usage);
    const UniqueFd claim = test::open_device(device->path(), test::Opening::exclusive);
    EXPECT_EQ(refusal({device->path(), gib(1)}).code, Errc::busy);
}

TEST_F(SpillDevice, TellsWhenItFails) {
    auto spill = must_open(device->path(), gib(1));
    auto queue = *spill->make_queue();
    const auto slots = take_all(*spill);
    for (const std::uint32_t slot : slots) ASSERT_EQ(write_chunk(*queue, slot, 1), IoStatus::ok);
    // The second half of the device is no longer there.
    ASSERT_EQ(::ftruncate(device->backing().get(), 4 * kChunkBytes), 0);
    EXPECT_EQ(check_chunk(*queue, 2, 1), "");
    EXPECT_NE(check_chunk(*queue, 5, 1), "");
    EXPECT_EQ(spill->counters().failed_reads.load(), 1u);
    EXPECT_NE(spill->problem().find("1 reads and 0 writes"), std::string::npos) << spill->problem();
    spill->retire(5);
    spill->give_back(2);
    EXPECT_EQ(spill->maintain(), Spill::Duty::none);
    EXPECT_EQ(take_all(*spill), std::vector<std::uint32_t>{2}) << "what is retired is not taken again";
    EXPECT_EQ(spill->counts().bad, 1u);
    EXPECT_NE(spill->problem().find("2M"), std::string::npos) << spill->problem();
}

}  // namespace
}  // namespace vramswap
