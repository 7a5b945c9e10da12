// SPDX-License-Identifier: MIT
// SpillQueue over a file in RAM whose operations end when, as far and as badly as the test says; and over a
// real file by io_uring and by threads.
#include "store/spill_queue.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "support/block_device.h"
#include "support/pages.h"
#include "support/small_disk.h"

namespace vramswap {
namespace {

using Op = RawIo::Op;
using test::DirectBuffer;

constexpr std::uint32_t kSlots = 4;

/// What the test sees of a FakeIo, and outlives it.
struct FakeFile {
    std::vector<std::byte> bytes = std::vector<std::byte>(kSlots * kChunkBytes);
    std::vector<RawIo::Operation> flying;
    /// The result of an operation instead of all its bytes; asked for each.
    std::function<std::int32_t(const RawIo::Operation&)> result = [](const RawIo::Operation& operation) {
        return static_cast<std::int32_t>(operation.bytes);
    };
    bool latest_first = false;
    int fruitless_reaps = 0;  ///< so often nothing has ended yet
    bool destroyed_in_flight = false;
    UniqueFd event{::eventfd(1, EFD_CLOEXEC | EFD_NONBLOCK)};  ///< always readable
};

class FakeIo final : public RawIo {
  public:
    explicit FakeIo(FakeFile& file) : file_(file) {}
    ~FakeIo() override { file_.destroyed_in_flight = !file_.flying.empty(); }
    void start(const Operation& operation) override { file_.flying.push_back(operation); }
    std::size_t reap(std::span<Done> done) override {
        if (file_.fruitless_reaps > 0) {
            --file_.fruitless_reaps;
            return 0;
        }
        std::vector<Operation> ending;
        ending.swap(file_.flying);
        if (file_.latest_first) std::ranges::reverse(ending);
        std::size_t n = 0;
        for (const Operation& operation : ending) {
            const std::int32_t result = file_.result(operation);
            if (result > 0) move(operation, static_cast<std::size_t>(result));
            done[n++] = {operation.tag, result};
        }
        return n;
    }
    [[nodiscard]] int event_fd() const override { return file_.event.get(); }

  private:
    void move(const Operation& operation, std::size_t bytes) {
        std::byte* at = file_.bytes.data() + operation.offset;
        if (operation.op == Op::read)
            std::memcpy(operation.memory, at, bytes);
        else
            std::memcpy(at, operation.memory, bytes);
    }
    FakeFile& file_;
};

class SpillQueueTest : public ::testing::Test {
  protected:
    FakeFile file;
    DirectBuffer chunk{kChunkBytes};
    SpillCounters counters;
    std::unique_ptr<SpillQueue> queue =
        std::make_unique<SpillQueue>(std::make_unique<FakeIo>(file), SlotPlaces{kSlots, 0}, counters);

    IoStatus run(Op op, std::uint32_t slot, PageRun pages) {
        Ticket ticket = 0;
        IoStatus status = queue->submit({op, slot, pages, chunk.data()}, ticket);
        while (status == IoStatus::pending) status = queue->poll(ticket);
        return status;
    }
};

constexpr PageRun kWhole{0, kChunkPages};

TEST_F(SpillQueueTest, RefusesWhatMakesNoSense) {
    Ticket ticket = 0;
    EXPECT_EQ(queue->submit({Op::read, kSlots, kWhole, chunk.data()}, ticket), IoStatus::out_of_range);
    EXPECT_EQ(queue->submit({Op::read, 0, {1, kChunkPages}, chunk.data()}, ticket), IoStatus::out_of_range);
    EXPECT_EQ(queue->submit({Op::read, 0, {kChunkPages, 1}, chunk.data()}, ticket), IoStatus::out_of_range);
    EXPECT_EQ(queue->submit({Op::read, 0, {~0u, 2}, chunk.data()}, ticket), IoStatus::out_of_range);
    EXPECT_EQ(queue->submit({Op::read, 0, {0, 0}, chunk.data()}, ticket), IoStatus::misaligned);
    EXPECT_EQ(queue->submit({Op::write, 0, {0, 1}, chunk.data() + 512}, ticket), IoStatus::misaligned);
    EXPECT_TRUE(file.flying.empty());
    EXPECT_EQ(queue->in_flight(), 0u);
}

TEST_F(SpillQueueTest, GoesOnAfterShortAndInterruptedOperations) {
    constexpr std::array<std::int32_t, 8> kResults{-EINTR, 4096,    -EAGAIN, -EAGAIN,
                                                   512,    -ENOMEM, 1 << 20, 8192};
    std::size_t next = 0;
    file.result = [&](const RawIo::Operation& operation) {
        const auto all = static_cast<std::int32_t>(operation.bytes);
        return next < kResults.size() ? std::min(kResults[next++], all) : all;
    };
    chunk.fill(7, 1);
    EXPECT_EQ(run(Op::write, 2, kWhole), IoStatus::ok);
    EXPECT_EQ(next, kResults.size());
    EXPECT_EQ(std::memcmp(file.bytes.data() + 2 * kChunkBytes, chunk.data(), kChunkBytes), 0);
    std::memset(chunk.data(), 0, kChunkBytes);
    next = 0;
    EXPECT_EQ(run(Op::read, 2, kWhole), IoStatus::ok);
    EXPECT_EQ(chunk.mismatch(7, 1), "");
    EXPECT_EQ(counters.bytes_written.load(), kChunkBytes);
    EXPECT_EQ(counters.bytes_read.load(), kChunkBytes);
    EXPECT_EQ(counters.failed_reads.load() + counters.failed_writes.load(), 0u);
}

TEST_F(SpillQueueTest, TellsErrorsByTheirKind) {
    int error = 0;
    file.result = [&](const RawIo::Operation&) { return -error; };
    for (const int full : {ENOSPC, EDQUOT}) {
        error = full;
        EXPECT_EQ(run(Op::write, 0, {3, 1}), IoStatus::no_space);
        EXPECT_EQ(run(Op::read, 0, {3, 1}), IoStatus::io_error);
    }
    for (const int bad : {EIO, EINVAL, ENODEV, ENXIO, EFBIG, EBADF}) {
        error = bad;
        EXPECT_EQ(run(Op::write, 0, {3, 1}), IoStatus::io_error);
        EXPECT_EQ(run(Op::read, 0, {3, 1}), IoStatus::io_error);
        EXPECT_EQ(counters.last_errno.load(), bad);
    }
    EXPECT_EQ(counters.failed_reads.load(), 8u);
    EXPECT_EQ(counters.failed_writes.load(), 8u);
}

TEST_F(SpillQueueTest, TheEndOfTheFileIsAnError) {
    file.result = [](const RawIo::Operation& operation) { return operation.bytes > 4096 ? 4096 : 0; };
    EXPECT_EQ(run(Op::read, 0, {0, 2}), IoStatus::io_error);
    EXPECT_EQ(counters.last_errno.load(), EIO);
}

TEST_F(SpillQueueTest, GivesUpWhenNothingMovesForLong) {
    file.result = [](const RawIo::Operation&) { return -EAGAIN; };
    EXPECT_EQ(run(Op::write, 0, {0, 1}), IoStatus::io_error);
}

TEST_F(SpillQueueTest, TellsEndsInAnyOrderAndOnce) {
    file.latest_first = true;
    Ticket first = 0;
    Ticket second = 0;
    file.result = [](const RawIo::Operation& operation) {
        return operation.offset == 0 ? -EIO : static_cast<std::int32_t>(operation.bytes);
    };
    ASSERT_EQ(queue->submit({Op::write, 0, {0, 1}, chunk.data()}, first), IoStatus::pending);
    ASSERT_EQ(queue->submit({Op::write, 1, {0, 1}, chunk.data()}, second), IoStatus::pending);
    EXPECT_NE(first, second);
    EXPECT_EQ(queue->poll(second), IoStatus::ok);
    EXPECT_TRUE(queue->has_ended());
    queue->wait(-1);  // at once: the first has ended
    EXPECT_EQ(queue->poll(first), IoStatus::io_error);
    EXPECT_FALSE(queue->has_ended());
    queue->wait(-1);  // at once: nothing is in flight
    const std::uint64_t failed = counters.failed_writes.load();
    EXPECT_EQ(queue->poll(second), IoStatus::io_error) << "told twice";
    EXPECT_EQ(queue->poll(0), IoStatus::io_error);
    EXPECT_EQ(queue->poll(first + SpillQueue::kDepth), IoStatus::io_error) << "not submitted yet";
    EXPECT_EQ(counters.failed_writes.load(), failed);
}

TEST_F(SpillQueueTest, IsFullUntilAnEndIsTold) {
    std::vector<Ticket> tickets(SpillQueue::kDepth);
    for (Ticket& ticket : tickets)
        ASSERT_EQ(queue->submit({Op::write, 0, {0, 1}, chunk.data()}, ticket), IoStatus::pending);
    Ticket more = 0;
    EXPECT_EQ(queue->submit({Op::write, 0, {0, 1}, chunk.data()}, more), IoStatus::retry);
    EXPECT_TRUE(queue->has_ended());
    EXPECT_EQ(queue->submit({Op::write, 0, {0, 1}, chunk.data()}, more), IoStatus::retry);
    EXPECT_EQ(queue->poll(tickets[5]), IoStatus::ok);
    EXPECT_EQ(queue->submit({Op::write, 0, {0, 1}, chunk.data()}, more), IoStatus::pending);
    EXPECT_GT(more, tickets.back());
    EXPECT_EQ(queue->poll(tickets[5]), IoStatus::io_error) << "the ticket of another request in its place";
}

TEST_F(SpillQueueTest, DestructionWaitsForWhatIsInFlight) {
    Ticket ticket = 0;
    ASSERT_EQ(queue->submit({Op::write, 0, kWhole, chunk.data()}, ticket), IoStatus::pending);
    ASSERT_EQ(queue->submit({Op::read, 1, {0, 9}, chunk.data()}, ticket), IoStatus::pending);
    file.fruitless_reaps = 3;
    // Never complete: what is short is not continued.
    file.result = [](const RawIo::Operation&) { return 512; };
    queue.reset();
    EXPECT_FALSE(file.destroyed_in_flight);
    EXPECT_EQ(file.fruitless_reaps, 0);
}

// ---- real files ----

struct Engine {
    const char* name;
    Result<std::unique_ptr<RawIo>> (*make)(std::span<const int> fds, std::uint32_t depth, int event_fd);
};

class SpillEngines : public ::testing::TestWithParam<Engine> {
  protected:
    void SetUp() override {
        fd.reset(::open(directory.path().c_str(), O_TMPFILE | O_RDWR | O_DIRECT | O_CLOEXEC, 0600));
        if (!fd) GTEST_SKIP() << "no O_DIRECT in the folder of temporary files";
        ASSERT_EQ(::ftruncate(fd.get(), kSlots * kChunkBytes), 0);
        auto io = GetParam().make(std::array{fd.get()}, SpillQueue::kDepth, kOwnEvent);
        if (!io && io.error().code == Errc::unavailable) GTEST_SKIP() << io.error().text();
        ASSERT_TRUE(io) << io.error().text();
        queue = std::make_unique<SpillQueue>(std::move(*io), SlotPlaces{kSlots, 0}, counters);
    }
    IoStatus finish(Ticket ticket) {
        IoStatus status = queue->poll(ticket);
        while (status == IoStatus::pending) {
            queue->wait(-1);
            status = queue->poll(ticket);
        }
        return status;
    }
    test::TemporaryDirectory directory;
    UniqueFd fd;
    SpillCounters counters;
    std::unique_ptr<SpillQueue> queue;
};

/// Runs of pages at random places, as many as go in flight, each checked against what was written last.
TEST_P(SpillEngines, KeepWhatIsWrittenWithManyInFlight) {
    struct Write {
        PageRun pages;
        std::uint64_t offset;
        std::uint64_t generation;
        std::unique_ptr<DirectBuffer> buffer;
    };
    test::Random random(11);
    std::map<std::uint64_t, std::uint64_t> generation_of;  // by page of the file
    std::uint64_t generation = 0;
    for (int round = 0; round < 12; ++round) {
        std::map<Ticket, Write> flying;
        // Each has pages of its own: there is no order between requests.
        constexpr std::uint32_t kPagesEach = kSlots * kChunkPages / SpillQueue::kDepth;
        for (std::uint32_t n = 0; n < SpillQueue::kDepth; ++n) {
            const std::uint64_t first = n * kPagesEach + random.below(kPagesEach);
            const auto count = static_cast<std::uint32_t>(1 + random.below((n + 1) * kPagesEach - first));
            Write write{{static_cast<std::uint32_t>(first % kChunkPages), count},
                        first * kPageBytes,
                        ++generation,
                        std::make_unique<DirectBuffer>(count * kPageBytes)};
            write.buffer->fill(write.offset, generation);
            for (std::uint64_t page = first; page < first + count; ++page) generation_of[page] = generation;
            Ticket ticket = 0;
            ASSERT_EQ(queue->submit({Op::write, static_cast<std::uint32_t>(first / kChunkPages), write.pages,
                                     write.buffer->data()},
                                    ticket),
                      IoStatus::pending);
            flying.emplace(ticket, std::move(write));
        }
        for (auto& [ticket, write] : flying) ASSERT_EQ(finish(ticket), IoStatus::ok);
        for (const auto& [page, written] : generation_of) {
            if (!random.one_in(16)) continue;
            DirectBuffer read(kPageBytes);
            Ticket ticket = 0;
            ASSERT_EQ(queue->submit({Op::read,
                                     static_cast<std::uint32_t>(page / kChunkPages),
                                     {static_cast<std::uint32_t>(page % kChunkPages), 1},
                                     read.data()},
                                    ticket),
                      IoStatus::pending);
            ASSERT_EQ(finish(ticket), IoStatus::ok);
            ASSERT_EQ(read.mismatch(page * kPageBytes, written), "");
        }
    }
}

TEST_P(SpillEngines, ReadWhatOthersWroteAndFailAtTheEnd) {
    DirectBuffer chunk(kChunkBytes);
    chunk.fill(kChunkBytes, 3);
    ASSERT_EQ(test::write_at(fd, chunk, kChunkBytes), 0);
    DirectBuffer read(kChunkBytes);
    Ticket ticket = 0;
    ASSERT_EQ(queue->submit({Op::read, 1, {0, kChunkPages}, read.data()}, ticket), IoStatus::pending);
    ASSERT_EQ(finish(ticket), IoStatus::ok);
    EXPECT_EQ(read.mismatch(kChunkBytes, 3), "");
    ASSERT_EQ(::ftruncate(fd.get(), kChunkBytes + 4 * kPageBytes), 0);
    ASSERT_EQ(queue->submit({Op::read, 1, {0, kChunkPages}, read.data()}, ticket), IoStatus::pending);
    EXPECT_EQ(finish(ticket), IoStatus::io_error);
}

TEST_P(SpillEngines, TellAnEventOfSomebodyElseAndLeaveItToThem) {
    const UniqueFd event(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    queue = std::make_unique<SpillQueue>(
        std::move(*GetParam().make(std::array{fd.get()}, SpillQueue::kDepth, event.get())),
        SlotPlaces{kSlots, 0}, counters);
    EXPECT_EQ(queue->event_fd(), event.get());
    DirectBuffer buffer{kPageBytes};
    Ticket ticket = 0;
    ASSERT_EQ(queue->submit({RawIo::Op::read, 0, {0, 1}, buffer.data()}, ticket), IoStatus::pending);
    pollfd told{event.get(), POLLIN, 0};
    ASSERT_EQ(::poll(&told, 1, -1), 1);
    EXPECT_EQ(finish(ticket), IoStatus::ok);
    EXPECT_EQ(::poll(&told, 1, 0), 1) << "it was emptied, and with it what others told";
    queue.reset();  // the event must live longer
}

TEST_P(SpillEngines, MayBeDestroyedWithRequestsInFlight) {
    std::vector<std::unique_ptr<DirectBuffer>> buffers;
    for (std::uint32_t n = 0; n < SpillQueue::kDepth; ++n) {
        buffers.push_back(std::make_unique<DirectBuffer>(kChunkBytes / 8));
        buffers.back()->fill(n, 0);
        Ticket ticket = 0;
        ASSERT_EQ(
            queue->submit(
                {n % 2 == 0 ? Op::write : Op::read, n % kSlots, {0, kChunkPages / 8}, buffers.back()->data()},
                ticket),
            IoStatus::pending);
    }
    queue.reset();
    buffers.clear();  // the address sanitizer and the kernel's own writes would tell
}

INSTANTIATE_TEST_SUITE_P(Spill, SpillEngines,
                         ::testing::Values(Engine{"uring",
                                                  [](std::span<const int> fds, std::uint32_t depth,
                                                     int event_fd) {
                                                      return make_uring_io(fds, depth, event_fd, kNotTold);
                                                  }},
                                           Engine{"threads", make_thread_io}),
                         [](const auto& engine) { return engine.param.name; });

TEST(UringIo, HoldsWhatTellsThatItIsBusyUntilItIsGone) {
    std::array<int, 2> ends{};
    ASSERT_EQ(::pipe2(ends.data(), O_CLOEXEC), 0);
    const UniqueFd told(ends[0]);
    UniqueFd busy(ends[1]);
    const UniqueFd file(::memfd_create("vramswap-test", MFD_CLOEXEC));
    auto io = make_uring_io(std::array{file.get()}, 4, kOwnEvent, busy.get());
    if (!io) GTEST_SKIP() << "SKIPPED: " << io.error().text();
    busy.reset();
    pollfd event{told.get(), 0, 0};
    EXPECT_EQ(::poll(&event, 1, 0), 0) << "the ring holds it";
    io->reset();
    constexpr int kLimitMs = 30'000;
    EXPECT_EQ(::poll(&event, 1, kLimitMs), 1);
    EXPECT_EQ(event.revents, POLLHUP);
}

}  // namespace
}  // namespace vramswap
