// SPDX-License-Identifier: MIT
// What `vramswap bench` is made of: the histogram, the order of the blocks, the list of jobs, and that the
// load notices whatever a target does wrong.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <random>
#include <set>
#include <vector>

#include "cli/plot.h"
#include "daemon/bench/histogram.h"
#include "daemon/bench/jobs.h"
#include "daemon/bench/load.h"
#include "daemon/bench/noise_memory.h"
#include "daemon/bench/walk.h"
#include "support/ram_target.h"

namespace vramswap {
namespace {

// ---- histogram ----

TEST(LatencyHistogram, PercentilesAreTwoPercentOffAtMost) {
    std::mt19937_64 random(1);
    std::vector<std::uint64_t> all;
    LatencyHistogram histogram;
    for (int i = 0; i < 100'000; ++i) {
        const std::uint64_t ns = random() >> (24 + random() % 40);  // every scale up to 18 minutes
        all.push_back(ns);
        histogram.add(ns);
    }
    std::ranges::sort(all);
    for (const double share : {0.001, 0.01, 0.1, 0.25, 0.5, 0.9, 0.99, 0.999, 1.0}) {
        const auto rank = static_cast<std::size_t>(std::ceil(share * static_cast<double>(all.size())));
        const auto exact = static_cast<double>(all[rank - 1]);
        EXPECT_NEAR(static_cast<double>(histogram.percentile_ns(share)), exact, exact * 0.02) << share;
    }
    EXPECT_EQ(histogram.max_ns(), all.back());
    EXPECT_EQ(histogram.count(), all.size());
}

TEST(LatencyHistogram, SmallValuesAreExact) {
    for (std::uint64_t ns = 0; ns < 128; ++ns) {
        LatencyHistogram histogram;
        histogram.add(ns);
        EXPECT_EQ(histogram.percentile_ns(0.5), ns);
    }
}

TEST(LatencyHistogram, ExtremesFit) {
    LatencyHistogram histogram;
    EXPECT_EQ(histogram.percentile_ns(0.5), 0u);
    histogram.add(~std::uint64_t{0});
    histogram.add(1);
    EXPECT_EQ(histogram.max_ns(), ~std::uint64_t{0});
    EXPECT_EQ(histogram.percentile_ns(0.0), 1u);
    EXPECT_EQ(histogram.percentile_ns(0.5), 1u);
}

TEST(LatencyHistogram, MergedEqualsOneThatSawAll) {
    LatencyHistogram one, other, all;
    for (std::uint64_t i = 0; i < 10'000; ++i) {
        (i % 3 == 0 ? one : other).add(i * i);
        all.add(i * i);
    }
    one.merge(other);
    EXPECT_EQ(one.count(), all.count());
    EXPECT_EQ(one.max_ns(), all.max_ns());
    for (const double share : {0.1, 0.5, 0.99}) EXPECT_EQ(one.percentile_ns(share), all.percentile_ns(share));
}

// ---- walk ----

constexpr Bytes kSpan = mib(64);

Job job_of(Direction direction, Pattern pattern, std::uint32_t block_bytes, std::uint32_t depth,
           unsigned threads) {
    Job job;
    job.name = "test";
    job.direction = direction;
    job.pattern = pattern;
    job.block_bytes = block_bytes;
    job.depth = depth;
    job.threads = threads;
    return job;
}

TEST(Walk, ThreadsShareTheDeviceAndAskForEachBlockOnce) {
    for (const std::uint32_t block : {4096u, 65536u, 2u << 20}) {
        std::set<std::uint64_t> seen;
        for (unsigned thread = 0; thread < 3; ++thread) {
            Walk walk(job_of(Direction::write, Pattern::sequential, block, 1, 3), kSpan, thread);
            std::uint64_t last = 0;
            for (bool first = true; !walk.wrapped(); first = false) {
                const std::uint64_t offset = walk.next();
                EXPECT_TRUE(first || offset > last);
                EXPECT_EQ(offset / kChunkBytes % 3, thread);
                EXPECT_TRUE(seen.insert(offset).second);
                last = offset;
            }
        }
        EXPECT_EQ(seen.size(), kSpan.n / block);
    }
}

TEST(Walk, HalfFullTakesAboutHalfOfEachClusterScattered) {
    Walk walk(job_of(Direction::write, Pattern::half_full, 4096, 1, 2), kSpan, 1);
    std::vector<std::uint32_t> count(kSpan.n / kChunkBytes);
    std::uint64_t neighbours = 0, last = 0;
    while (!walk.wrapped()) {
        const std::uint64_t offset = walk.next();
        neighbours += offset == last + 4096 ? 1 : 0;
        last = offset;
        ++count[offset / kChunkBytes];
    }
    std::uint64_t all = 0;
    for (std::size_t c = 0; c < count.size(); ++c) {
        if (c % 2 == 0) {
            EXPECT_EQ(count[c], 0u);
            continue;
        }
        EXPECT_GT(count[c], kChunkPages / 4) << c;
        EXPECT_LT(count[c], kChunkPages * 3 / 4) << c;
        all += count[c];
    }
    EXPECT_NEAR(static_cast<double>(neighbours) / static_cast<double>(all), 0.5, 0.05);
}

TEST(Walk, RandomStaysInside) {
    Walk walk(job_of(Direction::read, Pattern::random, 65536, 1, 1), kSpan, 0);
    std::set<std::uint64_t> seen;
    for (int i = 0; i < 20'000; ++i) {
        const std::uint64_t offset = walk.next();
        EXPECT_EQ(offset % 65536, 0u);
        EXPECT_LT(offset, kSpan.n);
        seen.insert(offset);
    }
    EXPECT_EQ(seen.size(), kSpan.n / 65536);
}

// ---- jobs ----

TEST(Jobs, HaveNamesOfTheirOwnAndFitTheThreads) {
    const auto jobs = choose_jobs({}, 8);
    ASSERT_TRUE(jobs);
    std::set<std::string> names;
    for (const Job& job : *jobs) {
        EXPECT_TRUE(names.insert(job.name).second) << job.name;
        EXPECT_LE(std::size_t{job.depth} * job.block_bytes, kThreadBytesMax) << job.name;
        EXPECT_LE(job.depth, kLoadQueueDepth) << job.name;
        EXPECT_LE(job.block_bytes, kChunkBytes) << job.name;
    }
}

TEST(Jobs, AreChosen) {
    const auto names = [](BenchRequest request) {
        std::set<std::string> out;
        const auto jobs = choose_jobs(request, 4);
        for (const Job& job : *jobs) out.insert(job.name);
        return out;
    };
    BenchRequest request;
    const auto full = names(request);
    request.extent = "quick";
    const auto quick = names(request);
    EXPECT_LT(quick.size(), full.size());
    request.mode = "copy";
    EXPECT_FALSE(names(request).contains("read_4k_random_turbo"));
    request.mode = "turbo";
    EXPECT_TRUE(names(request).contains("read_4k_random_turbo"));
    EXPECT_FALSE(names(request).contains("read_4k_random"));
    request.only = {"read_64k_seq", "seq_write_2m"};
    EXPECT_EQ(names(request), (std::set<std::string>{"seq_write_2m", "read_64k_seq"}));
    request.only = {"levitate"};
    const auto refused = choose_jobs(request, 4);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, Errc::usage);
    EXPECT_NE(refused.error().text().find("levitate"), std::string::npos);
    EXPECT_NE(refused.error().text().find("read_4k_staged"), std::string::npos);
}

// ---- picture ----

TEST(Picture, HasEveryRowAndEscapesWhatItIsGiven) {
    Plot plot{"<title> & \"more\"", "below", {"out", "in"}, {}};
    plot.rows.push_back({"first_job", {1, 2}, 3, 0, {1, 2, 3, 4}});
    plot.rows.push_back({"second <job>", {0, 0}, 0, 5, {0, 0, 0, 0}});
    const std::string svg = to_svg(plot);
    for (const char* words : {"&lt;title&gt; &amp; &quot;more&quot;", "first_job", "second &lt;job&gt;",
                              "1.00 / 2.00 (0.33)", "the hardware alone", "p99.9"})
        EXPECT_NE(svg.find(words), std::string::npos) << words;
    EXPECT_EQ(svg.find("nan"), std::string::npos);
    EXPECT_EQ(svg.find("inf"), std::string::npos);
}

TEST(Picture, OfNothingIsAPictureToo) {
    const std::string svg = to_svg({});
    EXPECT_TRUE(svg.starts_with("<svg"));
    EXPECT_TRUE(svg.ends_with("</svg>\n"));
    EXPECT_EQ(svg.find("nan"), std::string::npos);
}

// ---- load ----

constexpr double kShort = 0.02;

class Load : public ::testing::Test {
  protected:
    void SetUp() override {
        auto memory = NoiseMemory::create(kThreads * kThreadBytesMax);
        ASSERT_TRUE(memory) << memory.error().text();
        memory_.emplace(std::move(*memory));
        ASSERT_TRUE(target_.register_memory(memory_->bytes()));
        auto team = LoadTeam::create(target_, memory_->bytes(), kThreads);
        ASSERT_TRUE(team) << team.error().text();
        team_.emplace(std::move(*team));
    }
    void TearDown() override {
        team_.reset();
        EXPECT_EQ(target_.misuse(), "");
        EXPECT_EQ(target_.queues(), 0u);
    }
    void fill() {
        const auto filled =
            team_->run_once(job_of(Direction::write, Pattern::sequential, 1u << 20, 2, kThreads), kSpan);
        ASSERT_TRUE(filled) << filled.error().text();
    }

    static constexpr unsigned kThreads = 2;
    test::RamTarget target_{kSpan};
    std::optional<NoiseMemory> memory_;
    std::optional<LoadTeam> team_;
};

TEST_F(Load, EveryPageGetsItsNumberAndIsNotZero) {
    fill();
    for (std::uint64_t page = 0; page < kSpan.n / kPageBytes; page += 7) {
        const auto content = target_.content(page * kPageBytes, kPageBytes);
        ASSERT_EQ(stamped_page(content.data()).n, page);
        ASSERT_TRUE(std::ranges::any_of(content, [](std::byte b) { return b != std::byte{0}; }));
    }
}

TEST_F(Load, MeasuresEveryDirectionAndPattern) {
    fill();
    for (const Direction direction : {Direction::write, Direction::read, Direction::mixed})
        for (const Pattern pattern : {Pattern::sequential, Pattern::half_full, Pattern::random}) {
            const Job job = job_of(direction, pattern, kPageBytes, 8, kThreads);
            const auto measured = team_->run(job, kSpan, kShort);
            ASSERT_TRUE(measured) << measured.error().text();
            EXPECT_GE(measured->operations, kThreads);
            EXPECT_EQ(measured->bytes, measured->operations * kPageBytes);
            EXPECT_EQ(measured->latencies.count(), measured->operations);
            EXPECT_GE(measured->seconds, 0.0);
        }
}

TEST_F(Load, CompletesByPollAndAfterRetry) {
    target_.complete_after_polls(3);
    fill();
    for (const Direction direction : {Direction::write, Direction::mixed}) {
        target_.refuse_next(1000);
        const auto measured =
            team_->run(job_of(direction, Pattern::random, kPageBytes, 16, kThreads), kSpan, kShort);
        ASSERT_TRUE(measured) << measured.error().text();
        EXPECT_GE(measured->operations, kThreads);
    }
}

TEST_F(Load, AWrongPageEndsIt) {
    // Never written: every page says that it is page 0.
    for (const std::uint32_t block : {4096u, 65536u}) {
        const auto measured =
            team_->run(job_of(Direction::read, Pattern::random, block, 4, kThreads), kSpan, kShort);
        ASSERT_FALSE(measured);
        EXPECT_NE(measured.error().text().find("content of page 0"), std::string::npos)
            << measured.error().text();
    }
}

TEST_F(Load, AFailedRequestEndsIt) {
    fill();
    target_.fail(BlockRequest::Op::read, PageIndex{0}, kSpan.n / kPageBytes, IoStatus::io_error);
    for (const unsigned polls : {0u, 2u}) {
        target_.complete_after_polls(polls);
        const auto measured =
            team_->run(job_of(Direction::read, Pattern::random, kPageBytes, 4, kThreads), kSpan, kShort);
        ASSERT_FALSE(measured);
        EXPECT_NE(measured.error().text().find("a read of 4096 bytes"), std::string::npos);
    }
}

TEST_F(Load, KeepsThePaceThatIsAsked) {
    Job job = job_of(Direction::write, Pattern::sequential, kPageBytes, 1, 1);
    job.pace_ns = 2'000'000;
    const auto measured = team_->run(job, kSpan, kShort);
    ASSERT_TRUE(measured);
    EXPECT_LE(measured->operations, 2 + static_cast<std::uint64_t>(kShort * 1e9) / job.pace_ns);
}

}  // namespace
}  // namespace vramswap
