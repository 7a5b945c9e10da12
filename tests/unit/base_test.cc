// SPDX-License-Identifier: MIT
// The base library: results, descriptors, sizes, page arithmetic and the log ring.
#include <fcntl.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <memory>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "base/io_status.h"
#include "base/log.h"
#include "base/result.h"
#include "base/unique_fd.h"
#include "base/units.h"

namespace vramswap {

// Every member compiles, whether a test calls it or not: members of templates are instantiated on use only.
template class Result<int>;
template class Result<std::unique_ptr<int>>;

namespace {

// ---- Result ----

Error some_error() {
    return {Errc::busy, EBUSY, "cannot open 'x'", "Close it"};
}

TEST(Result, HoldsAValue) {
    Result<std::string> r = std::string("abc");
    ASSERT_TRUE(r.has_value());
    EXPECT_TRUE(static_cast<bool>(r));
    EXPECT_EQ(*r, "abc");
    EXPECT_EQ(r->size(), 3u);
    r.value() += "d";
    const auto& constant = r;
    EXPECT_EQ(constant.value(), "abcd");
    EXPECT_EQ(*constant, "abcd");
    EXPECT_EQ(std::move(r).value_or("other"), "abcd");
}

TEST(Result, HoldsAnError) {
    Result<std::string> r = some_error();
    ASSERT_FALSE(r.has_value());
    EXPECT_FALSE(static_cast<bool>(r));
    EXPECT_EQ(r.error().code, Errc::busy);
    r.error().message = "changed";
    const auto& constant = r;
    EXPECT_EQ(constant.error().message, "changed");
    const Error taken = std::move(r).error();
    EXPECT_EQ(taken.sys, EBUSY);
    EXPECT_EQ(Result<std::string>(some_error()).value_or("other"), "other");
}

TEST(Result, MovesWhatCannotBeCopied) {
    Result<std::unique_ptr<int>> r = std::make_unique<int>(7);
    const std::unique_ptr<int> taken = *std::move(r);
    EXPECT_EQ(*taken, 7);
    EXPECT_EQ(*Result<std::unique_ptr<int>>(std::make_unique<int>(8)).value(), 8);
    EXPECT_EQ(Result<std::unique_ptr<int>>(some_error()).value_or(nullptr), nullptr);
}

TEST(Result, ThrowsOnTheWrongAlternative) {
    Result<int> r = some_error();
    EXPECT_THROW(static_cast<void>(r.value()), std::bad_variant_access);
    Result<int> good = 1;
    EXPECT_THROW(static_cast<void>(good.error()), std::bad_variant_access);
}

TEST(Result, OfNothing) {
    const Result<void> good;
    EXPECT_TRUE(good.has_value());
    EXPECT_TRUE(static_cast<bool>(good));
    Result<void> bad = some_error();
    EXPECT_FALSE(bad.has_value());
    bad.error().message = "changed";
    const auto& constant = bad;
    EXPECT_EQ(constant.error().message, "changed");
    EXPECT_EQ(std::move(bad).error().hint, "Close it");
}

TEST(Error, SaysWhatFailedWhyAndWhatToDo) {
    EXPECT_EQ(some_error().text(), "cannot open 'x': Device or resource busy. Close it");
    EXPECT_EQ((Error{Errc::failed, 0, "it failed"}).text(), "it failed");
    EXPECT_EQ(some_error().in("zone 1").text(), "zone 1: cannot open 'x': Device or resource busy. Close it");
}

TEST(Error, TakesTheKindFromErrno) {
    const auto code_of = [](int number) {
        errno = number;
        const Error error = sys_error("it failed", "hint");
        EXPECT_EQ(error.sys, number);
        EXPECT_EQ(error.hint, "hint");
        return error.code;
    };
    EXPECT_EQ(code_of(ENOMEM), Errc::no_memory);
    EXPECT_EQ(code_of(EBUSY), Errc::busy);
    EXPECT_EQ(code_of(EEXIST), Errc::exists);
    EXPECT_EQ(code_of(ENOENT), Errc::unavailable);
    EXPECT_EQ(code_of(ENODEV), Errc::unavailable);
    EXPECT_EQ(code_of(EPERM), Errc::failed);
}

// ---- IoStatus ----

constexpr std::array kStatuses{IoStatus::ok,       IoStatus::pending,      IoStatus::retry,
                               IoStatus::no_space, IoStatus::out_of_range, IoStatus::misaligned,
                               IoStatus::io_error, IoStatus::lost};

TEST(IoStatus, BecomesAnErrno) {
    EXPECT_EQ(to_errno(IoStatus::ok), 0);
    EXPECT_EQ(to_errno(IoStatus::no_space), ENOSPC);
    EXPECT_EQ(to_errno(IoStatus::out_of_range), EINVAL);
    EXPECT_EQ(to_errno(IoStatus::misaligned), EINVAL);
    EXPECT_EQ(to_errno(IoStatus::io_error), EIO);
    EXPECT_EQ(to_errno(IoStatus::lost), EIO);
}

TEST(IoStatus, OnlyPendingAndRetryGoOn) {
    for (const IoStatus s : kStatuses) EXPECT_EQ(is_final(s), s != IoStatus::pending && s != IoStatus::retry);
}

TEST(IoStatus, HasANameEach) {
    for (const IoStatus a : kStatuses) {
        EXPECT_NE(to_string(a), "unknown");
        for (const IoStatus b : kStatuses) EXPECT_EQ(to_string(a) == to_string(b), a == b);
    }
}

TEST(IoStatus, WorseIsSymmetricAndKeepsErrors) {
    EXPECT_EQ(worse(IoStatus::ok, IoStatus::ok), IoStatus::ok);
    for (const IoStatus s : kStatuses) {
        EXPECT_EQ(worse(IoStatus::ok, s), s);
        EXPECT_EQ(worse(s, IoStatus::ok), s);
        EXPECT_EQ(worse(IoStatus::lost, s), IoStatus::lost);
    }
}

// ---- UniqueFd ----

bool is_open(int fd) {
    return ::fcntl(fd, F_GETFD) >= 0;
}
UniqueFd open_null() {
    return UniqueFd(::open("/dev/null", O_RDONLY | O_CLOEXEC));
}

TEST(UniqueFd, IsInvalidByDefault) {
    const UniqueFd fd;
    EXPECT_FALSE(fd.valid());
    EXPECT_FALSE(static_cast<bool>(fd));
    EXPECT_EQ(fd.get(), -1);
}

TEST(UniqueFd, ClosesAtTheEndOfItsScope) {
    int number = -1;
    {
        const UniqueFd fd = open_null();
        number = fd.get();
        EXPECT_TRUE(is_open(number));
    }
    EXPECT_FALSE(is_open(number));
}

TEST(UniqueFd, MovingLeavesNothingBehind) {
    UniqueFd a = open_null();
    const int number = a.get();
    const UniqueFd b = std::move(a);
    EXPECT_FALSE(a.valid());  // NOLINT(bugprone-use-after-move): that is the question
    EXPECT_EQ(b.get(), number);
    EXPECT_TRUE(is_open(number));
}

TEST(UniqueFd, MovingOntoAnOpenOneClosesIt) {
    UniqueFd a = open_null();
    UniqueFd b = open_null();
    const int old = a.get();
    const int number = b.get();
    a = std::move(b);
    EXPECT_FALSE(is_open(old));
    EXPECT_EQ(a.get(), number);
    EXPECT_TRUE(is_open(number));
}

TEST(UniqueFd, SurvivesBeingMovedOntoItself) {
    UniqueFd a = open_null();
    UniqueFd& same = a;
    a = std::move(same);
    EXPECT_TRUE(is_open(a.get()));
}

TEST(UniqueFd, ReleaseGivesAwayAndResetReplaces) {
    UniqueFd a = open_null();
    UniqueFd owner(a.release());
    EXPECT_FALSE(a.valid());
    EXPECT_TRUE(is_open(owner.get()));
    const int old = owner.get();
    owner.reset(open_null().release());
    EXPECT_NE(owner.get(), old);
    EXPECT_FALSE(is_open(old));
    owner.reset();
    EXPECT_FALSE(owner.valid());
}

TEST(UniqueFd, DupIsAnotherNumberForTheSameFile) {
    UniqueFd a = open_null();
    const UniqueFd b = a.dup();
    ASSERT_TRUE(b.valid());
    EXPECT_NE(a.get(), b.get());
    EXPECT_NE(::fcntl(b.get(), F_GETFD) & FD_CLOEXEC, 0);
    struct stat of_a {};
    struct stat of_b {};
    ASSERT_EQ(::fstat(a.get(), &of_a), 0);
    ASSERT_EQ(::fstat(b.get(), &of_b), 0);
    EXPECT_EQ(of_a.st_rdev, of_b.st_rdev);
    a.reset();
    EXPECT_TRUE(is_open(b.get()));
    errno = 0;
    EXPECT_FALSE(UniqueFd().dup().valid());
    EXPECT_EQ(errno, EBADF);
}

// ---- sizes ----

SizeSpec bytes(std::uint64_t n) {
    return {SizeSpec::Kind::bytes, n};
}
SizeSpec percent(std::uint64_t hundredths) {
    return {SizeSpec::Kind::percent, hundredths};
}

TEST(ParseSize, ReadsWhatPeopleWrite) {
    const std::vector<std::pair<std::string_view, SizeSpec>> cases{
        {"6G", bytes(gib(6).n)},
        {"1.5GiB", bytes(gib(3).n / 2)},
        {"512M", bytes(mib(512).n)},
        {"4096", bytes(4096)},
        {"80%", percent(8000)},
        {"4k", bytes(4096)},
        {"4KiB", bytes(4096)},
        {"4kb", bytes(4096)},
        {"7B", bytes(7)},
        {"2t", bytes(gib(2048).n)},
        {"0.5K", bytes(512)},
        {"12.34%", percent(1234)},
        {"100%", percent(10000)},
        {"0.01%", percent(1)},
        {"3Gi", bytes(gib(3).n)},
        {"1000T", bytes(gib(1024).n * 1000)},
    };
    for (const auto& [text, expected] : cases) {
        const auto size = parse_size(text, "--size");
        ASSERT_TRUE(size) << text << ": " << size.error().text();
        EXPECT_EQ(size->kind, expected.kind) << text;
        EXPECT_EQ(size->amount, expected.amount) << text;
    }
}

TEST(ParseSize, RefusesTheRestAndSaysWhy) {
    const std::vector<std::pair<std::string_view, std::string_view>> cases{
        {"150%", "more than 100%"}, {"0", "is zero"},           {"-1", "is negative"},
        {"", "is not a size"},      {"abc", "is not a size"},   {"1X", "unknown suffix"},
        {"99999999T", "too large"}, {"0%", "is zero"},          {"0.001%", "is zero"},
        {"0.4", "is zero"},         {"-0", "is zero"},          {"-5%", "is negative"},
        {"inf", "is not a size"},   {"nan", "is not a size"},   {"6 G", "unknown suffix"},
        {"1e3", "unknown suffix"},  {"1GG", "unknown suffix"},  {"G", "is not a size"},
        {" 6G", "is not a size"},   {"80%%", "unknown suffix"}, {"1e999", "unknown suffix"},
        {"16777216T", "too large"}, {"+6G", "is not a size"},   {"0x10", "unknown suffix"},
    };
    for (const auto& [text, why] : cases) {
        const auto size = parse_size(text, "--size");
        ASSERT_FALSE(size) << text;
        EXPECT_EQ(size.error().code, Errc::usage) << text;
        EXPECT_NE(size.error().message.find(why), std::string::npos) << size.error().text();
        EXPECT_NE(size.error().message.find(fmt::format("--size '{}'", text)), std::string::npos);
        EXPECT_FALSE(size.error().hint.empty());
    }
}

TEST(ParseSize, ReadsOnlyTheGivenCharacters) {
    constexpr std::string_view kText = "12345";
    EXPECT_EQ(parse_size(kText.substr(0, 2), "x")->amount, 12u);
}

TEST(SizeSpec, TakesItsShareOfTheWhole) {
    EXPECT_EQ(bytes(4096).of(gib(1)), Bytes{4096});
    EXPECT_EQ(percent(5000).of(gib(1)), mib(512));
    EXPECT_EQ(percent(10000).of({gib(80).n + 1}), Bytes{gib(80).n + 1});
    EXPECT_EQ(percent(1).of({10000}), Bytes{1});
}

TEST(FormatSize, HasOneDecimalAtMost) {
    const std::vector<std::pair<std::uint64_t, std::string_view>> cases{
        {0, "0B"},
        {1, "1B"},
        {1023, "1023B"},
        {1024, "1K"},
        {1536, "1.5K"},
        {(1u << 20) - 1, "1M"},
        {4096, "4K"},
        {512u << 20, "512M"},
        {3u << 29, "1.5G"},
        {gib(80).n, "80G"},
        {gib(1536).n, "1.5T"},
        {gib(1u << 20).n, "1024T"},
    };
    for (const auto& [n, text] : cases) EXPECT_EQ(format_size({n}), text);
}

// ---- pages and chunks ----

TEST(Pages, AreNumberedWithinTheirChunk) {
    EXPECT_EQ(kChunkPages, 512u);
    EXPECT_EQ(page_at(0), PageIndex{0});
    EXPECT_EQ(page_at(4095), PageIndex{0});
    EXPECT_EQ(page_at(4096), PageIndex{1});
    EXPECT_EQ(chunk_of(PageIndex{511}), ChunkIndex{0});
    EXPECT_EQ(chunk_of(PageIndex{512}), ChunkIndex{1});
    EXPECT_EQ(page_in_chunk(PageIndex{513}), 1u);
    EXPECT_EQ(first_page(ChunkIndex{3}), PageIndex{1536});
    for (const std::uint64_t n : {0u, 1u, 511u, 512u, 1023u, 99999u}) {
        const PageIndex page{n};
        EXPECT_EQ(first_page(chunk_of(page)).n + page_in_chunk(page), n);
    }
}

TEST(Rounding, GoesToTheNextStep) {
    EXPECT_EQ(round_up(0, 4096), 0u);
    EXPECT_EQ(round_up(1, 4096), 4096u);
    EXPECT_EQ(round_up(4096, 4096), 4096u);
    EXPECT_EQ(round_down(4095, 4096), 0u);
    EXPECT_EQ(round_down(8191, 4096), 4096u);
}

// ---- log ----

constexpr std::size_t kRingSlots = 256;

/// What log_drain writes to standard error.
std::string drained() {
    ::testing::internal::CaptureStderr();
    log_drain();
    return ::testing::internal::GetCapturedStderr();
}

std::size_t lines_in(const std::string& text) {
    return static_cast<std::size_t>(std::count(text.begin(), text.end(), '\n'));
}

TEST(LogRing, PrintsEventsInOrder) {
    log_configure(LogStyle::plain, LogLevel::info, "vramswap");
    log_event(LogLevel::info, "first", 1);
    log_event(LogLevel::error, "second", 2);
    log_event(LogLevel::debug, "too verbose", 3);
    EXPECT_EQ(drained(), "vramswap: first (1)\nvramswap: second (2)\n");
    EXPECT_EQ(drained(), "");
}

TEST(LogRing, PutsThePriorityFirstForSystemd) {
    log_configure(LogStyle::prefixed, LogLevel::debug, "vramswap");
    log_event(LogLevel::debug, "detail", 7);
    EXPECT_EQ(drained(), "<7>detail (7)\n");
    log_configure(LogStyle::plain, LogLevel::info, "vramswap");
}

TEST(LogRing, GoesRoundManyTimes) {
    for (std::uint64_t n = 0; n < 10 * kRingSlots + 3; ++n) {
        log_event(LogLevel::info, "event", n);
        if (n % 7 == 0 || n == 10 * kRingSlots + 2) {
            const std::string text = drained();
            EXPECT_EQ(lines_in(text), n % 7 == 0 ? (n == 0 ? 1u : 7u) : n % 7);
            EXPECT_NE(text.find(fmt::format("event ({})\n", n)), std::string::npos);
        }
    }
}

TEST(LogRing, CountsWhatDoesNotFit) {
    for (std::uint64_t n = 0; n < kRingSlots + 5; ++n) log_event(LogLevel::info, "event", n);
    const std::string text = drained();
    EXPECT_EQ(lines_in(text), kRingSlots + 1);
    EXPECT_NE(text.find("5 log events dropped"), std::string::npos);
    EXPECT_EQ(text.find(fmt::format("({})", kRingSlots)), std::string::npos);
    log_event(LogLevel::info, "again", 1);
    EXPECT_EQ(drained(), "vramswap: again (1)\n");
}

TEST(LogRing, TakesEventsFromManyThreads) {
    constexpr std::uint64_t kThreads = 4;
    constexpr std::uint64_t kEvents = 500;
    ::testing::internal::CaptureStderr();
    std::atomic<std::uint64_t> running{kThreads};
    std::vector<std::thread> threads;
    for (std::uint64_t t = 0; t < kThreads; ++t)
        threads.emplace_back([t, &running] {
            for (std::uint64_t n = 0; n < kEvents; ++n) log_event(LogLevel::info, "event", t * 1000 + n);
            running.fetch_sub(1);
        });
    while (running.load() != 0) log_drain();
    for (auto& thread : threads) thread.join();
    log_drain();
    // Every event was printed whole and once, or counted; those of one thread are in order.
    std::uint64_t printed = 0;
    std::uint64_t dropped = 0;
    std::array<std::uint64_t, kThreads> next{};
    std::istringstream lines(::testing::internal::GetCapturedStderr());
    for (std::string line; std::getline(lines, line);) {
        unsigned long value = 0;
        if (std::sscanf(line.c_str(), "vramswap: event (%lu)", &value) == 1) {
            const std::uint64_t thread = value / 1000;
            ASSERT_LT(thread, kThreads) << line;
            EXPECT_GE(value % 1000, next.at(thread)) << line;
            next.at(thread) = value % 1000 + 1;
            ++printed;
        } else {
            ASSERT_EQ(std::sscanf(line.c_str(), "vramswap: %lu log events dropped", &value), 1) << line;
            dropped += value;
        }
    }
    EXPECT_EQ(printed + dropped, kThreads * kEvents);
}

}  // namespace
}  // namespace vramswap
