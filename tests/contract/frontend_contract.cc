// SPDX-License-Identifier: MIT
// What every frontend must do, tested through the kernel's block device against a Target in plain memory. The
// suite runs once for each name below; what a machine cannot run is skipped with the reason.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "base/units.h"
#include "front/frontend.h"
#include "support/block_device.h"
#include "support/local_keeper.h"
#include "support/ram_target.h"

namespace vramswap::test {
namespace {

using Op = BlockRequest::Op;

/// Kills the test if the kernel and we wait for each other. The devices go with the process.
constexpr unsigned kWatchdogSeconds = 120;
constexpr Bytes kSize = mib(16);

/// A RamTarget behind a frontend. Takes it down whatever the test did.
class ServedDevice {
  public:
    explicit ServedDevice(const std::string& kind, Bytes size = kSize, std::uint32_t threads = 0)
        : target(size) {
        auto made = make_frontend(kind);
        if (!made) throw std::runtime_error(made.error().text());
        frontend = std::move(*made);
        auto started = frontend->start(target, {.name = unique_device_name(), .threads = threads});
        if (!started) throw std::runtime_error(started.error().text());
        path = *started;
    }
    ~ServedDevice() {
        target.release();
        target.give_room();
        const auto stopped = frontend->stop();
        EXPECT_TRUE(stopped) << stopped.error().text();
        frontend.reset();
        EXPECT_EQ(target.misuse(), "");
        EXPECT_EQ(target.queues(), 0u);
        EXPECT_EQ(target.registrations(), 0u);
    }
    ServedDevice(const ServedDevice&) = delete;
    ServedDevice& operator=(const ServedDevice&) = delete;

    RamTarget target;
    std::unique_ptr<Frontend> frontend;
    std::string path;
};

class FrontendContract : public ::testing::TestWithParam<const char*> {
  protected:
    void SetUp() override {
        ::alarm(kWatchdogSeconds);
        for (const auto& report : survey_frontends())
            if (report.kind == GetParam() && !report.problem.empty()) GTEST_SKIP() << report.problem;
    }
    void TearDown() override { ::alarm(0); }
};

/// Writes, reads back through the device, and compares with what the target stores.
void expect_round_trip(ServedDevice& served, const UniqueFd& device, std::uint64_t offset, std::size_t bytes,
                       std::uint64_t generation) {
    SCOPED_TRACE(testing::Message() << bytes << " bytes at " << offset);
    DirectBuffer out(bytes);
    ASSERT_EQ(write_at(device, out.fill(offset, generation), offset), 0);
    DirectBuffer in(bytes);
    ASSERT_EQ(read_at(device, in, offset), 0);
    EXPECT_EQ(in.mismatch(offset, generation), "");
    EXPECT_TRUE(served.target.content(offset, bytes) == out.copy()) << "the target stores something else";
}

TEST_P(FrontendContract, HasTheGeometryThatSwapNeeds) {
    ServedDevice served(GetParam());
    const UniqueFd device = open_device(served.path);
    std::uint64_t bytes = 0;
    int logical = 0;
    unsigned physical = 0;
    ASSERT_EQ(::ioctl(device.get(), BLKGETSIZE64, &bytes), 0);
    ASSERT_EQ(::ioctl(device.get(), BLKSSZGET, &logical), 0);
    ASSERT_EQ(::ioctl(device.get(), BLKPBSZGET, &physical), 0);
    EXPECT_EQ(bytes, kSize.n);
    EXPECT_EQ(logical, 4096);
    EXPECT_EQ(physical, 4096u);
    EXPECT_EQ(queue_setting(served.path, "rotational"), 0);
    EXPECT_EQ(queue_setting(served.path, "add_random"), 0);
    EXPECT_GT(queue_setting(served.path, "discard_max_bytes"), 0);
    EXPECT_EQ(queue_setting(served.path, "discard_granularity"), 4096);
    EXPECT_GE(queue_setting(served.path, "max_sectors_kb"), 512);
    EXPECT_LE(queue_setting(served.path, "wbt_lat_usec"), 0)
        << "not throttled; kernels without it have no such setting";
}

TEST_P(FrontendContract, WritesAndReadsBackTransfersOfEverySize) {
    ServedDevice served(GetParam());
    const UniqueFd device = open_device(served.path);
    std::uint64_t generation = 0;
    for (const std::size_t bytes : {4u << 10, 8u << 10, 12u << 10, 64u << 10, 252u << 10, 256u << 10,
                                    1020u << 10, 1u << 20, (1u << 20) + 4096, 3u << 20, 8u << 20})
        for (const std::uint64_t offset : {std::uint64_t{0}, std::uint64_t{4096}, mib(2).n - 4096})
            expect_round_trip(served, device, offset, bytes, ++generation);
    EXPECT_GE(served.target.bytes_max(), 512u << 10) << "transfers are cut into small pieces";
}

TEST_P(FrontendContract, KeepsPagesApartUnderConcurrentRandomIo) {
    constexpr unsigned kThreads = 4;
    constexpr int kOperations = 400;
    constexpr std::uint64_t kPagesEach = kSize.n / kPageBytes / kThreads;
    ServedDevice served(GetParam());
    served.target.complete_after_polls(2);
    std::array<std::string, kThreads> wrong;
    const auto work = [&](unsigned number) {
        std::mt19937_64 random(number + 1);
        const UniqueFd device = open_device(served.path);
        std::vector<std::uint64_t> generations(kPagesEach, 0);  // 0: zeros
        for (int operation = 1; operation <= kOperations && wrong[number].empty(); ++operation) {
            const std::uint64_t pages = 1 + random() % 32;
            const std::uint64_t first = random() % (kPagesEach - pages);
            const std::uint64_t offset = (number * kPagesEach + first) * kPageBytes;
            DirectBuffer buffer(pages * kPageBytes);
            const auto generation = static_cast<std::uint64_t>(operation);
            if (random() % 2 == 0) {
                if (write_at(device, buffer.fill(offset, generation), offset) != 0)
                    wrong[number] = "write failed";
                std::fill_n(generations.begin() + static_cast<std::ptrdiff_t>(first), pages, generation);
                continue;
            }
            if (read_at(device, buffer, offset) != 0) wrong[number] = "read failed";
            for (std::uint64_t page = 0; page < pages && wrong[number].empty(); ++page) {
                DirectBuffer one(kPageBytes);
                std::memcpy(one.data(), buffer.data() + page * kPageBytes, kPageBytes);
                const std::uint64_t expected = generations[first + page];
                if (expected != 0) wrong[number] = one.mismatch(offset + page * kPageBytes, expected);
                if (expected == 0 && !one.is_zero()) wrong[number] = "unwritten page is not zero";
            }
        }
    };
    std::vector<std::thread> threads;
    for (unsigned i = 0; i < kThreads; ++i) threads.emplace_back(work, i);
    for (auto& thread : threads) thread.join();
    for (const auto& text : wrong) EXPECT_EQ(text, "");
}

TEST_P(FrontendContract, DiscardedRangesReadAsZeros) {
    ServedDevice served(GetParam());
    const UniqueFd device = open_device(served.path);
    DirectBuffer all(mib(4).n);
    ASSERT_EQ(write_at(device, all.fill(0, 1), 0), 0);
    ASSERT_EQ(discard_at(device, kib(64).n, kib(128).n), 0);
    ASSERT_EQ(zero_at(device, mib(2).n, kib(4).n), 0);
    const auto expect_zero = [&](std::uint64_t offset, std::size_t bytes) {
        DirectBuffer in(bytes);
        ASSERT_EQ(read_at(device, in, offset), 0);
        EXPECT_TRUE(in.is_zero()) << bytes << " bytes at " << offset;
    };
    const auto expect_kept = [&](std::uint64_t offset, std::size_t bytes) {
        DirectBuffer in(bytes);
        ASSERT_EQ(read_at(device, in, offset), 0);
        EXPECT_EQ(in.mismatch(offset, 1), "");
    };
    expect_kept(0, kib(64).n);
    expect_zero(kib(64).n, kib(128).n);
    expect_kept(kib(192).n, mib(2).n - kib(192).n);
    expect_zero(mib(2).n, kib(4).n);
    expect_kept(mib(2).n + kib(4).n, kib(64).n);
    ASSERT_EQ(discard_at(device, 0, kSize.n), 0);
    expect_zero(0, kSize.n);
    EXPECT_GE(served.frontend->counters().discards, 2u);
}

TEST_P(FrontendContract, ServesTheLastPageOfAnOddSize) {
    constexpr Bytes kOdd = mib(5) + kib(12);
    ServedDevice served(GetParam(), kOdd);
    const UniqueFd device = open_device(served.path);
    expect_round_trip(served, device, kOdd.n - 4096, 4096, 1);
    expect_round_trip(served, device, kOdd.n - mib(1).n, mib(1).n, 2);
    ASSERT_EQ(discard_at(device, kOdd.n - 4096, 4096), 0);
    DirectBuffer page(kPageBytes);
    ASSERT_EQ(read_at(device, page, kOdd.n - 4096), 0);
    EXPECT_TRUE(page.is_zero());
    EXPECT_EQ(read_at(device, page, kOdd.n), ENODATA) << "reading behind the end";
    EXPECT_EQ(write_at(device, page, kOdd.n), ENOSPC) << "writing behind the end";
}

TEST_P(FrontendContract, RefusesTransfersThatAreNotWholePages) {
    ServedDevice served(GetParam());
    const UniqueFd device = open_device(served.path);
    DirectBuffer sector(512);
    EXPECT_EQ(read_at(device, sector, 0), EINVAL);
    EXPECT_EQ(write_at(device, sector, 0), EINVAL);
    DirectBuffer page(kPageBytes);
    EXPECT_EQ(read_at(device, page, 512), EINVAL);
    EXPECT_EQ(discard_at(device, 512, 4096), EINVAL);
}

TEST_P(FrontendContract, AFailedReadIsAnErrorForItsPagesOnly) {
    for (const IoStatus status : {IoStatus::io_error, IoStatus::lost}) {
        ServedDevice served(GetParam());
        const UniqueFd device = open_device(served.path);
        expect_round_trip(served, device, 0, mib(1).n, 1);
        served.target.fail(Op::read, PageIndex{3}, 2, status);
        DirectBuffer page(kPageBytes);
        EXPECT_EQ(read_at(device, page, 3 * kPageBytes), EIO);
        EXPECT_EQ(read_at(device, page, 4 * kPageBytes), EIO);
        for (const std::uint64_t other : {0u, 2u, 5u}) {
            EXPECT_EQ(read_at(device, page, other * kPageBytes), 0);
            EXPECT_EQ(page.mismatch(other * kPageBytes, 1), "");
        }
        EXPECT_GE(served.frontend->counters().errors, 2u);
        served.target.heal();
        EXPECT_EQ(read_at(device, page, 3 * kPageBytes), 0);
        EXPECT_EQ(page.mismatch(3 * kPageBytes, 1), "");
    }
}

TEST_P(FrontendContract, ARefusedWriteIsReportedAndChangesNothing) {
    ServedDevice served(GetParam());
    const UniqueFd device = open_device(served.path);
    for (const IoStatus status : {IoStatus::no_space, IoStatus::io_error}) {
        served.target.heal();
        expect_round_trip(served, device, 0, kib(64).n, 1);
        served.target.fail(Op::write, PageIndex{2}, 1, status);
        DirectBuffer page(kPageBytes);
        const int failure = write_at(device, page.fill(2 * kPageBytes, 2), 2 * kPageBytes);
        EXPECT_TRUE(failure == EIO || failure == ENOSPC) << strerror(failure);
        ASSERT_EQ(read_at(device, page, 2 * kPageBytes), 0);
        EXPECT_EQ(page.mismatch(2 * kPageBytes, 1), "");
        expect_round_trip(served, device, 3 * kPageBytes, kib(8).n, 3);
    }
}

TEST_P(FrontendContract, AsksAgainWhenTheTargetHadNoRoom) {
    ServedDevice served(GetParam());
    const UniqueFd device = open_device(served.path);
    served.target.refuse_next(5);
    expect_round_trip(served, device, 0, kib(64).n, 1);
    // And when room comes late: the request waits, it does not fail.
    served.target.take_room();
    int outcome = -1;
    DirectBuffer page(kPageBytes);
    std::thread writer([&] { outcome = write_at(device, page.fill(kPageBytes, 2), kPageBytes); });
    const bool refused = served.target.wait_until_refused(1);
    served.target.give_room();
    writer.join();
    EXPECT_TRUE(refused);
    EXPECT_EQ(outcome, 0);
    ASSERT_EQ(read_at(device, page, kPageBytes), 0);
    EXPECT_EQ(page.mismatch(kPageBytes, 2), "");
}

TEST_P(FrontendContract, ServesOthersWhileOneRequestIsPending) {
    ServedDevice served(GetParam(), kSize, 2);
    const UniqueFd device = open_device(served.path);
    std::array<DirectBuffer, 2> pages{DirectBuffer(kPageBytes), DirectBuffer(kPageBytes)};
    constexpr std::uint64_t kGeneration = 1;
    for (const Op op : {Op::write, Op::read}) {
        std::array<int, 2> outcomes{-1, -1};
        const auto transfer = [&](std::size_t i) {
            const std::uint64_t offset = i * kPageBytes;
            if (op == Op::write) outcomes[i] = write_at(device, pages[i].fill(offset, kGeneration), offset);
            if (op == Op::read) outcomes[i] = read_at(device, pages[i], offset);
        };
        served.target.hold();
        std::thread first(transfer, 0);
        const bool one = served.target.wait_until_held(1);
        std::thread second(transfer, 1);
        const bool both = served.target.wait_until_held(2);
        served.target.release();
        first.join();
        second.join();
        EXPECT_TRUE(one);
        EXPECT_TRUE(both) << "requests go one at a time";
        EXPECT_EQ(outcomes, (std::array<int, 2>{0, 0}));
        for (std::size_t i = 0; i < 2; ++i) EXPECT_EQ(pages[i].mismatch(i * kPageBytes, kGeneration), "");
    }
}

TEST_P(FrontendContract, CountsWhatItServes) {
    ServedDevice served(GetParam());
    const UniqueFd device = open_device(served.path);
    const FrontendCounters before = served.frontend->counters();
    expect_round_trip(served, device, 0, kib(256).n, 1);
    const FrontendCounters after = served.frontend->counters();
    EXPECT_EQ(after.bytes_written - before.bytes_written, kib(256).n);
    EXPECT_GE(after.bytes_read - before.bytes_read, kib(256).n);  // udev may read too
    EXPECT_GE(after.writes, before.writes + 1);
    EXPECT_GE(after.reads, before.reads + 1);
    EXPECT_EQ(after.errors, 0u);
}

TEST_P(FrontendContract, DoesNotStopWhileTheDeviceIsOpen) {
    ServedDevice served(GetParam());
    for (const Opening how : {Opening::direct, Opening::exclusive}) {
        const UniqueFd device = open_device(served.path, how);
        const auto stopped = served.frontend->stop();
        ASSERT_FALSE(stopped);
        EXPECT_EQ(stopped.error().code, Errc::busy) << stopped.error().text();
        EXPECT_NE(stopped.error().message.find(served.path), std::string::npos) << stopped.error().text();
        expect_round_trip(served, device, 0, mib(1).n, 7);
    }
    // Others may still come, and after all have gone it stops.
    { expect_round_trip(served, open_device(served.path), 0, kib(4).n, 8); }
    const auto stopped = served.frontend->stop();
    EXPECT_TRUE(stopped) << stopped.error().text();
    EXPECT_TRUE(served.frontend->stop()) << "stop is idempotent";
    EXPECT_GT(served.frontend->counters().bytes_written, 0u) << "counters outlive the device";
}

TEST_P(FrontendContract, DoesNotStopWhileTheDeviceIsSwap) {
    ServedDevice served(GetParam());
    {
        const UniqueFd device = open_device(served.path);
        if (!start_swap(device, served.path, kSize.n)) GTEST_SKIP() << "swapon: " << strerror(errno);
    }
    const auto stopped = served.frontend->stop();
    ASSERT_TRUE(stop_swap(served.path)) << strerror(errno);
    ASSERT_FALSE(stopped);
    EXPECT_EQ(stopped.error().code, Errc::busy);
    EXPECT_NE(stopped.error().message.find("swap"), std::string::npos) << stopped.error().text();
}

TEST_P(FrontendContract, StopsAfterItsLastReaderWithIoInFlightHasGone) {
    ServedDevice served(GetParam());
    served.target.hold();
    int outcome = -1;
    DirectBuffer page(kPageBytes);
    std::thread reader([&] {
        const UniqueFd device = open_device(served.path);
        outcome = read_at(device, page, 0);
    });
    const bool held = served.target.wait_until_held(1);
    const auto refused = served.frontend->stop();
    served.target.release();
    reader.join();
    EXPECT_TRUE(held);
    EXPECT_FALSE(refused);
    EXPECT_EQ(outcome, 0);
    const auto stopped = served.frontend->stop();
    EXPECT_TRUE(stopped) << stopped.error().text();
}

TEST_P(FrontendContract, WritesOutThePageCacheBeforeItStops) {
    ServedDevice served(GetParam());
    DirectBuffer page(kPageBytes);
    {
        const UniqueFd device = open_device(served.path, Opening::buffered);
        ASSERT_EQ(write_at(device, page.fill(0, 5), 0), 0);
    }
    ASSERT_TRUE(served.frontend->stop());
    EXPECT_TRUE(served.target.content(0, kPageBytes) == page.copy());
}

TEST_P(FrontendContract, StartsOnce) {
    ServedDevice served(GetParam());
    const auto again = served.frontend->start(served.target, {.name = unique_device_name()});
    ASSERT_FALSE(again);
    EXPECT_EQ(again.error().code, Errc::exists);
    ASSERT_TRUE(served.frontend->stop());
    EXPECT_FALSE(served.frontend->start(served.target, {.name = unique_device_name()}));
}

TEST_P(FrontendContract, LeavesNothingAfterManyStartsAndStops) {
    { ServedDevice warm_up(GetParam()); }
    const Held before = what_is_held();
    for (std::uint64_t cycle = 0; cycle < 50; ++cycle) {
        ServedDevice served(GetParam(), mib(2));
        expect_round_trip(served, open_device(served.path), 0, kib(64).n, cycle);
        if (HasFailure()) break;
    }
    EXPECT_EQ(what_stays(before), "");
}

TEST_P(FrontendContract, LeavesNothingWhenTheTargetFailsDuringStart) {
    { ServedDevice warm_up(GetParam()); }
    const Held before = what_is_held();
    bool reached_the_end = false;
    for (unsigned call = 1; call < 100 && !reached_the_end; ++call) {
        RamTarget target(mib(2));
        target.fail_setup_at(call);
        auto frontend = make_frontend(GetParam());
        ASSERT_TRUE(frontend);
        const auto started = (*frontend)->start(target, {.name = unique_device_name(), .threads = 3});
        reached_the_end = started.has_value();
        EXPECT_TRUE((*frontend)->stop());
        EXPECT_EQ(target.queues(), 0u) << call;
        EXPECT_EQ(target.registrations(), 0u) << call;
    }
    EXPECT_TRUE(reached_the_end);
    EXPECT_EQ(what_stays(before), "");
}

// ---- a process that takes over ----

/// A device whose frontend has a keeper.
class KeptDevice : public FrontendContract {
  protected:
    /// False if this kernel cannot.
    [[nodiscard]] bool start(LocalKeeper& keeper) {
        frontend_ = std::move(*make_frontend(GetParam()));
        started_ = frontend_->start(target_, {.name = unique_device_name(), .keeper = &keeper});
        return keeper.keeps() != 0;
    }
    static constexpr const char* kCannot = "on this kernel no process can take over from another";

    RamTarget target_{mib(2)};
    std::unique_ptr<Frontend> frontend_;
    Result<std::string> started_ = Error{};
};

TEST_P(KeptDevice, IsTheKeepersFromStartToStopAndNotBeyond) {
    const Held before = what_is_held();
    {
        LocalKeeper keeper;
        if (!start(keeper)) GTEST_SKIP() << kCannot;
        ASSERT_TRUE(started_) << started_.error().text();
        EXPECT_TRUE(keeper.held().contains(kFrontDeviceKey));
        const std::size_t kept = keeper.held().size();
        {
            const UniqueFd device = open_device(*started_);
            EXPECT_FALSE(frontend_->stop());
            EXPECT_EQ(keeper.held().size(), kept) << "a device that goes on being served can be taken over";
        }
        const auto stopped = frontend_->stop();
        EXPECT_TRUE(stopped) << stopped.error().text();
        EXPECT_TRUE(keeper.held().empty());
        frontend_.reset();
    }
    EXPECT_EQ(what_stays(before), "");
}

TEST_P(KeptDevice, AStartWhoseKeeperFailsLeavesNothing) {
    const Held before = what_is_held();
    for (const unsigned fails_at : {1u, 2u}) {
        LocalKeeper keeper(fails_at);
        if (!start(keeper)) GTEST_SKIP() << kCannot;
        if (keeper.keeps() < fails_at) {  // it keeps but one
            EXPECT_TRUE(frontend_->stop());
        } else {
            EXPECT_FALSE(started_);
            EXPECT_TRUE(keeper.held().empty());
        }
        frontend_.reset();
    }
    EXPECT_EQ(what_stays(before), "");
}

TEST_P(KeptDevice, DestructionUnderAUserEndsWithErrorsAndIsNotTheKeepersAnyMore) {
    const Held before = what_is_held();
    {
        LocalKeeper keeper;
        if (!start(keeper)) GTEST_SKIP() << kCannot;
        ASSERT_TRUE(started_) << started_.error().text();
        const UniqueFd device = open_device(*started_);
        frontend_.reset();
        EXPECT_TRUE(keeper.held().empty());
        DirectBuffer page(kPageBytes);
        EXPECT_NE(read_at(device, page, 0), 0);
    }
    EXPECT_EQ(what_stays(before), "");
}

TEST_P(KeptDevice, CannotBeTakenOverIfNothingWasKept) {
    RamTarget target(mib(2));
    const auto taken =
        (*make_frontend(GetParam()))->take_over(target, {.name = unique_device_name()}, HeldFds{});
    ASSERT_FALSE(taken);
    EXPECT_EQ(taken.error().code, Errc::unavailable) << taken.error().text();
}

INSTANTIATE_TEST_SUITE_P(Kernel, FrontendContract, ::testing::Values("ublk", "nbd", "loop"),
                         [](const auto& instance) { return std::string(instance.param); });
INSTANTIATE_TEST_SUITE_P(Kernel, KeptDevice, ::testing::Values("ublk", "nbd", "loop"),
                         [](const auto& instance) { return std::string(instance.param); });

}  // namespace
}  // namespace vramswap::test
