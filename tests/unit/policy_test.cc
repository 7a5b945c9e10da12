// SPDX-License-Identifier: MIT
// The policy's rules one by one, its edges, and jobs that allocate step by step beside a device that obeys
// it.
#include "policy/policy.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "policy/left_history.h"
#include "support/policy_world.h"

namespace vramswap {
namespace {

using test::kMs;
using test::PolicyWorld;

/// A device that stores `stored`, all of it movable, and holds a segment more.
PolicyWorld world_with(Bytes stored, const PolicyConfig& config = {}) {
    PolicyWorld world(config);
    world.seen.stored = world.seen.spill_room = stored;
    world.seen.ours = stored + config.segment;
    return world;
}

TEST(LeftHistory, NeedsTwoSamplesForAStep) {
    LeftHistory left(10 * kSecondNs, 2 * kSecondNs);
    EXPECT_TRUE(left.empty());
    left.add({0, 100});
    EXPECT_EQ(left.last_step(), 0u);
    EXPECT_EQ(left.largest_step(), 0u);
    EXPECT_EQ(left.fall().rate, 0);
}

TEST(LeftHistory, OneStepIsNoRate) {
    LeftHistory left(10 * kSecondNs, 2 * kSecondNs);
    for (std::uint64_t n = 0; n < 20; ++n) left.add({n * 50 * kMs, n < 10 ? gib(8).n : gib(5).n});
    EXPECT_EQ(left.largest_step(), gib(3).n);
    EXPECT_EQ(left.fall().rate, 0);
}

TEST(LeftHistory, TakingAndGivingBackIsNoRate) {
    LeftHistory left(10 * kSecondNs, 2 * kSecondNs);
    for (std::uint64_t n = 0; n < 41; ++n) left.add({n * 50 * kMs, n % 2 == 0 ? gib(8).n : gib(5).n});
    EXPECT_EQ(left.fall().rate, 0);
    EXPECT_EQ(left.largest_step(), gib(3).n);
}

TEST(LeftHistory, AnEvenFallIsItsRate) {
    LeftHistory left(10 * kSecondNs, 2 * kSecondNs);
    for (std::uint64_t n = 0; n < 60; ++n) left.add({n * 50 * kMs, gib(80).n - n * mib(100).n});
    const double rate = static_cast<double>(mib(2000).n);
    EXPECT_GT(left.fall().rate, rate * 0.95);
    EXPECT_LE(left.fall().rate, rate);
}

TEST(LeftHistory, TwoStepsASecondCountAsOneAndAHalfToTwo) {
    LeftHistory left(10 * kSecondNs, 2 * kSecondNs);
    for (std::uint64_t n = 0; n < 200; ++n) {
        left.add({n * 50 * kMs, gib(200).n - n / 10 * gib(1).n});
        if (n < 60) continue;
        EXPECT_GE(left.fall().rate, 1.45 * static_cast<double>(gib(1).n));
        EXPECT_LE(left.fall().rate, 2.05 * static_cast<double>(gib(1).n));
    }
}

TEST(LeftHistory, ForgetsStepsAfterTheirTime) {
    LeftHistory left(kSecondNs, kSecondNs);
    left.add({0, gib(8).n});
    left.add({50 * kMs, gib(5).n});
    left.add({1050 * kMs, gib(5).n});
    EXPECT_EQ(left.largest_step(), gib(3).n);
    left.add({1100 * kMs, gib(5).n});
    EXPECT_EQ(left.largest_step(), 0u);
}

TEST(LeftHistory, TheSameSampleAgainIsIgnored) {
    LeftHistory left(kSecondNs, kSecondNs);
    left.add({100, 8});
    left.add({100, 5});
    left.add({50, 4});
    EXPECT_EQ(left.newest().left, 8u);
}

TEST(LeftHistory, KeepsTheNewestWhenFedTooOften) {
    LeftHistory left(10 * kSecondNs, 10 * kSecondNs);
    for (std::uint64_t n = 0; n < 2000; ++n) left.add({n * kMs, 5000 - n});
    EXPECT_EQ(left.newest().left, 3001u);
    EXPECT_EQ(left.largest_step(), 1u);
    EXPECT_NEAR(left.fall().rate, 1000, 10);
}

struct Room {
    const char* what;
    std::uint64_t total;
    bool display;
    std::optional<SizeSpec> configured;
    std::uint64_t headroom;
};

TEST(Policy, HeadroomIsAsTheDesignSays) {
    const std::vector<Room> rooms = {
        {"headless, large", gib(80).n, false, {}, gib(4).n},
        {"headless, small", gib(8).n, false, {}, mib(512).n},
        {"display, large", gib(80).n, true, {}, gib(12).n},
        {"display, small", gib(8).n, true, {}, mib(1536).n},
        {"in bytes", gib(80).n, true, SizeSpec{SizeSpec::Kind::bytes, gib(3).n}, gib(3).n},
        {"in per cent", gib(80).n, true, SizeSpec{SizeSpec::Kind::percent, 1000}, gib(8).n},
    };
    for (const Room& room : rooms) {
        PolicyConfig config;
        config.headroom = room.configured;
        PolicyWorld world = world_with(gib(100), config);
        world.seen.total = {room.total};
        world.seen.display = room.display;
        world.seen.ours = {0};
        world.pass(60 * kSecondNs);
        EXPECT_NEAR(static_cast<double>(world.plan.reserve.n), static_cast<double>(room.headroom), 16)
            << room.what;
        EXPECT_GE(world.free().n, world.plan.reserve.n) << room.what;
        // A segment of margin and one of rounding.
        EXPECT_LT(world.free().n, world.plan.reserve.n + 2 * config.segment.n) << room.what;
    }
}

TEST(Policy, TheFirstDecisionMayGrow) {
    PolicyWorld world = world_with(gib(1));
    world.seen.ours = {0};
    EXPECT_EQ(world.decide().target, mib(128));
    EXPECT_EQ(world.plan.reason, Reason::growing);
}

TEST(Policy, AFirstReadingThatComesLateIsNoReasonToWait) {
    PolicyWorld world = world_with(gib(4));
    world.seen.ours = mib(128);
    world.seen.free_known = false;
    EXPECT_EQ(world.decide().target, mib(128));
    world.seen.free_known = true;
    world.pass(100 * kMs);
    EXPECT_GT(world.plan.target, mib(128));
}

TEST(Policy, ShrinksWithTheNextDecision) {
    PolicyWorld world = world_with(gib(60));
    world.pass(kSecondNs);
    world.others = gib(17);
    EXPECT_LE(world.decide().target, gib(80 - 17 - 17));
    EXPECT_EQ(world.plan.move_rate, kNoLimit);
    EXPECT_EQ(world.plan.reason, Reason::falling);
}

TEST(Policy, KeepsTheLargestRecentStepFree) {
    PolicyWorld world = world_with(gib(60));
    world.pass(kSecondNs);
    world.others = gib(8);
    EXPECT_EQ(world.decide().reserve, gib(8));
    world.pass(world.config.step_memory_ns + kSecondNs);
    EXPECT_EQ(world.plan.reserve, gib(4));
}

TEST(Policy, AQuarterOfTheGpuIsTheLargestStepToComeAgain) {
    PolicyWorld world = world_with(gib(40));
    world.pass(kSecondNs);
    world.others = gib(35);
    EXPECT_EQ(world.decide().reserve, gib(20));
}

TEST(Policy, WhatWasNotMovedYetMayStay) {
    PolicyConfig config;
    config.step_memory_ns = kSecondNs;
    PolicyWorld world = world_with(gib(60), config);
    world.mover_rate = gib(1).n;
    world.pass(kSecondNs);
    world.others = gib(16);
    world.pass(2 * kSecondNs);
    EXPECT_LT(world.plan.target, gib(60));
    EXPECT_GT(world.plan.target, gib(57)) << "not all that the step called for at first";
    EXPECT_EQ(world.plan.target, world.seen.ours);
}

TEST(Policy, GrowsAfterCalmAndNoFasterThanConfigured) {
    PolicyConfig config;
    config.grow_rate = gib(1).n;
    PolicyWorld world = world_with(gib(30), config);
    world.others = gib(70);
    world.seen.ours = gib(4);
    world.pass(5 * kSecondNs);
    world.others = {0};
    world.pass(config.calm_ns - 100 * kMs);
    EXPECT_LE(world.plan.target, gib(6));
    EXPECT_EQ(world.plan.reason, Reason::calming);
    const Bytes before = world.plan.target;
    world.pass(5 * kSecondNs);
    EXPECT_GT(world.plan.target.n, before.n + gib(4).n);
    EXPECT_LE(world.plan.target.n, before.n + gib(5).n + mib(256).n);
    world.pass(60 * kSecondNs);
    EXPECT_EQ(world.plan.target, gib(30) + mib(128));
    EXPECT_EQ(world.plan.reason, Reason::enough);
}

TEST(Policy, SwapOutMakesRoomAhead) {
    PolicyWorld world = world_with(gib(1));
    world.seen.pages_out_per_s = 1'000'000;  // 4 GB/s: 410 MB in two periods
    world.pass(kSecondNs);
    EXPECT_GE(world.plan.target.n, gib(1).n + mib(128).n + 400'000'000);
}

TEST(Policy, StaysWithinTheConfiguredBounds) {
    PolicyConfig config;
    config.target_min = gib(2);
    config.target_max = gib(5);
    PolicyWorld world = world_with({0}, config);
    world.pass(60 * kSecondNs);
    EXPECT_EQ(world.plan.target, gib(2));
    world.seen.stored = world.seen.spill_room = gib(20);
    world.pass(60 * kSecondNs);
    EXPECT_EQ(world.plan.target, gib(5));
    EXPECT_EQ(world.plan.reason, Reason::at_max);
}

TEST(Policy, YieldsAtOnceEvenWhatIsNotNeeded) {
    PolicyWorld world = world_with(gib(10));
    world.pass(kSecondNs);
    world.seen.stored = world.seen.spill_room = gib(1);
    world.pass(kSecondNs);
    EXPECT_EQ(world.plan.target, gib(10) + mib(128)) << "freed clusters are used again, as a rule";
    world.seen.yield_max = gib(6);
    EXPECT_EQ(world.decide().target, gib(6));
    world.pass(2 * world.config.calm_ns);
    EXPECT_EQ(world.plan.target, gib(1) + mib(128));
}

TEST(Policy, NeverBelowWhatCannotBeMoved) {
    PolicyWorld world = world_with(gib(20));
    world.seen.spill_room = gib(2);
    world.others = gib(59);
    world.pass(kSecondNs);
    EXPECT_EQ(world.plan.target, gib(18));
    EXPECT_EQ(world.plan.reason, Reason::unmovable);
    world.seen.manual_target = Bytes{0};
    world.pass(kSecondNs);
    EXPECT_EQ(world.plan.target, gib(18));
    world.seen.yield_max = Bytes{0};
    world.seen.power = PowerSource::battery;
    world.pass(60 * kSecondNs);
    EXPECT_EQ(world.plan.target, gib(18));
}

TEST(Policy, CountsWhatIsStoredInChunks) {
    // One page in each of 100 chunks takes 100 slots: two segments of 64, and a third as room.
    const Bytes chunks = Bytes{kChunkBytes} * 100;
    PolicyWorld world = world_with(chunks);
    world.seen.ours = {0};
    world.pass(kSecondNs);
    EXPECT_EQ(world.plan.target, mib(128) * 3);
    // 65 of them have no place but VRAM: one more than a segment's worth.
    world.seen.spill_room = Bytes{kChunkBytes} * 35;
    world.seen.manual_target = Bytes{0};
    world.pass(kSecondNs);
    EXPECT_EQ(world.plan.target, mib(128) * 2);
    EXPECT_EQ(world.plan.reason, Reason::unmovable);
    world.seen.spill_room = Bytes{kChunkBytes} * 36;
    world.pass(kSecondNs);
    EXPECT_EQ(world.plan.target, mib(128));
    world.seen.spill_room = chunks;
    world.pass(kSecondNs);
    EXPECT_EQ(world.plan.target, Bytes{0});
}

TEST(Policy, AFailedSpillIsNoReasonToTakeMore) {
    PolicyWorld world = world_with(gib(20));
    world.seen.ours = gib(4);
    world.others = gib(75);
    world.seen.spill_room = {0};
    world.pass(kSecondNs);
    EXPECT_LE(world.plan.target, gib(4));
}

TEST(Policy, CalmDoublesAfterEachRegret) {
    PolicyWorld world = world_with(gib(30));
    int moves_back = 0;
    for (int round = 0; round < 40; ++round) {
        world.others = gib(48);
        world.pass(5 * kSecondNs);
        const Bytes small = world.plan.target;
        world.others = {0};
        world.pass(30 * kSecondNs);
        moves_back += world.plan.target > small;
    }
    // 20 s with the memory of the step and the calm; then 30; then it is not worth it.
    EXPECT_GE(moves_back, 1);
    EXPECT_LE(moves_back, 2);
    world.pass(400 * kSecondNs);
    EXPECT_EQ(world.plan.target, gib(30) + mib(128)) << "calm is bounded";
}

TEST(Policy, CalmShortensAfterAGrowthThatLasted) {
    PolicyWorld world = world_with(gib(30));
    const auto seconds_until_grown = [&] {
        world.others = gib(48);
        world.pass(5 * kSecondNs);
        world.others = {0};
        for (int s = 0; s < 1000; ++s) {
            world.pass(kSecondNs);
            if (world.plan.target > gib(30)) return s;
        }
        return 1000;
    };
    world.pass(kSecondNs);
    const int first = seconds_until_grown();
    const int regretted = seconds_until_grown();
    EXPECT_GT(regretted, first + 8);
    world.pass(100 * kSecondNs);
    EXPECT_NEAR(seconds_until_grown(), first, 2);
}

TEST(Policy, ChangesOfHalfASegmentMoveNothing) {
    PolicyWorld world = world_with(gib(100));
    world.seen.ours = {0};
    world.pass(40 * kSecondNs);
    const Bytes settled = world.plan.target;
    std::mt19937 random(1);
    for (int n = 0; n < 2000; ++n) {
        world.others = mib(random() % 64);
        world.pass(world.config.period_ns);
        ASSERT_EQ(world.plan.target, settled);
    }
}

TEST(Policy, TurboEndsWithTheNextDecision) {
    PolicyWorld world = world_with(gib(4));
    world.seen.queue_pages = 1000;
    const auto until_turbo = [&] {
        world.seen.others_sm_percent = 0;
        world.pass(6 * kSecondNs);
        return world.plan.mode;
    };
    ASSERT_EQ(until_turbo(), PlannedMode::turbo);
    world.seen.others_sm_percent = 1;
    EXPECT_EQ(world.decide().mode, PlannedMode::copy);
    ASSERT_EQ(until_turbo(), PlannedMode::turbo);
    world.seen.others_sm_percent.reset();
    EXPECT_EQ(world.decide().mode, PlannedMode::copy);
    ASSERT_EQ(until_turbo(), PlannedMode::turbo);
    world.now_ns += world.config.period_ns;
    world.others = mib(300);
    EXPECT_EQ(world.decide().mode, PlannedMode::copy) << "a context";
    world.seen.others_memory = mib(300);
    ASSERT_EQ(until_turbo(), PlannedMode::turbo);
    world.seen.others_memory = mib(301);
    EXPECT_EQ(world.decide().mode, PlannedMode::copy) << "a process takes more";
    ASSERT_EQ(until_turbo(), PlannedMode::turbo);
    world.seen.power = PowerSource::battery;
    EXPECT_EQ(world.decide().mode, PlannedMode::copy);
}

TEST(Policy, AlwaysCopyIsAlwaysCopy) {
    PolicyConfig config;
    config.mode = ModeChoice::always_copy;
    PolicyWorld world = world_with(gib(4), config);
    world.seen.queue_pages = 1000;
    world.pass(10 * kSecondNs);
    EXPECT_EQ(world.plan.mode, PlannedMode::copy);
}

TEST(Policy, BlindItCopiesAndHolds) {
    PolicyWorld world = world_with(gib(4));
    world.seen.queue_pages = 1000;
    world.pass(10 * kSecondNs);
    const Bytes held = world.plan.target;
    world.seen.free_known = false;
    world.seen.stored = world.seen.spill_room = gib(8);
    world.pass(kSecondNs);
    EXPECT_EQ(world.plan.mode, PlannedMode::turbo);
    EXPECT_EQ(world.plan.reason, Reason::late);
    world.pass(2 * kSecondNs);
    EXPECT_EQ(world.plan.mode, PlannedMode::copy);
    EXPECT_EQ(world.plan.reason, Reason::blind);
    world.pass(100 * kSecondNs);
    EXPECT_EQ(world.plan.target, held);
    world.seen.free_known = true;
    world.pass(world.config.calm_ns - 100 * kMs);
    EXPECT_EQ(world.plan.target, held) << "calm counts from the first reading on";
    world.pass(5 * kSecondNs);
    EXPECT_GT(world.plan.target, held);
}

TEST(Policy, AFallGoesOnForAWhileUnseen) {
    PolicyWorld world = world_with(gib(60));
    for (int n = 0; n < 40; ++n) {
        world.others.n += mib(512).n;
        world.pass(world.config.period_ns);
    }
    const Bytes seen = world.plan.target;
    world.seen.free_known = false;
    world.pass(kSecondNs);
    EXPECT_LT(world.plan.target.n, seen.n - gib(5).n);
    world.pass(2 * kSecondNs);
    const Bytes blind = world.plan.target;
    world.pass(60 * kSecondNs);
    EXPECT_EQ(world.plan.target, blind);
}

TEST(Policy, MovesThatNobodyWaitsForWait) {
    PolicyWorld world = world_with(gib(4));
    world.pass(kSecondNs);
    EXPECT_EQ(world.plan.move_rate, world.config.idle_move_rate);
    world.seen.ram_psi_some_avg10 = 40;
    EXPECT_EQ(world.decide().move_rate, 0u);
    world.seen.ram_psi_some_avg10 = 0;
    world.seen.ram_available = mib(100);
    EXPECT_EQ(world.decide().move_rate, 0u);
    world.seen.ram_available = gib(8);
    world.seen.pages_in_per_s = 500'000;
    EXPECT_EQ(world.decide().move_rate, 0u);
    world.others = gib(78);
    world.now_ns += world.config.period_ns;
    EXPECT_EQ(world.decide().move_rate, kNoLimit) << "others wait for memory";
}

TEST(Policy, SwapHasACeilingBesideOthersOnly) {
    PolicyConfig config;
    config.swap_rate_beside_others = gib(1).n;
    PolicyWorld world = world_with(gib(4), config);
    world.seen.others_sm_percent = 50;
    EXPECT_EQ(world.decide().swap_rate_max, gib(1).n);
    world.seen.others_sm_percent = 0;
    world.pass(6 * kSecondNs);
    EXPECT_EQ(world.plan.swap_rate_max, kNoLimit);
}

TEST(Policy, GivesAllBackOnBatteryUnlessToldNotTo) {
    PolicyConfig config;
    PolicyWorld obeying = world_with(gib(4), config);
    config.on_battery = OnBattery::ignore;
    PolicyWorld ignoring = world_with(gib(4), config);
    for (PolicyWorld* world : {&obeying, &ignoring}) {
        world->seen.power = PowerSource::battery;
        world->pass(60 * kSecondNs);
    }
    EXPECT_EQ(obeying.seen.ours, Bytes{0});
    EXPECT_EQ(obeying.plan.reason, Reason::battery);
    EXPECT_EQ(ignoring.plan.target, gib(4) + mib(128));
}

TEST(PolicyEdges, ClockThatGoesBackALittle) {
    PolicyWorld world = world_with(gib(4));
    world.now_ns = 100 * kSecondNs;
    world.pass(kSecondNs);
    const Plan before = world.plan;
    world.now_ns -= 500 * kMs;
    EXPECT_EQ(world.decide(), before);
    world.now_ns = 0;
    EXPECT_EQ(world.decide(), before);
}

TEST(PolicyEdges, ClockThatGoesBackMakesNobodyIdle) {
    PolicyWorld world = world_with(gib(4));
    world.seen.queue_pages = 1000;
    world.now_ns = 100 * kSecondNs;
    world.seen.others_sm_percent = 50;
    world.decide();
    world.seen.others_sm_percent = 0;
    world.now_ns -= 500 * kMs;
    EXPECT_EQ(world.decide().mode, PlannedMode::copy);
}

TEST(PolicyEdges, AHugeNeedIsNoSmallOne) {
    PolicyWorld world = world_with({~0ull});
    world.seen.ours = {0};
    world.seen.pages_out_per_s = ~0ull;
    world.pass(60 * kSecondNs);
    EXPECT_GE(world.plan.target, gib(75));
    world.seen.total = {~0ull};
    world.seen.others_sm_percent.reset();
    EXPECT_GE(world.decide().target, gib(75));
}

TEST(PolicyEdges, NothingKnownAtAll) {
    Policy policy({});
    const Plan plan = policy.decide({}, 0);
    EXPECT_EQ(plan.target, Bytes{0});
    EXPECT_EQ(plan.mode, PlannedMode::copy);
    EXPECT_EQ(plan.reason, Reason::late);
}

TEST(PolicyEdges, AWorkerThatTakesOverKeepsWhatItFinds) {
    PolicyWorld world = world_with(gib(6));
    world.seen.free_known = false;
    EXPECT_EQ(world.decide().target, gib(6) + mib(128));
}

TEST(PolicyEdges, OursMayExceedTheTotal) {
    PolicyWorld world = world_with(gib(100));
    EXPECT_LE(world.decide().target, gib(76));
}

/// Any numbers: the target is a multiple of a segment, at most what is left, or what cannot be moved.
TEST(PolicyEdges, NoSnapshotBreaksTheBounds) {
    std::mt19937_64 random(7);
    const auto any = [&]() -> std::uint64_t {
        switch (random() % 5) {
            case 0:
                return 0;
            case 1:
                return ~0ull - random() % 3;
            case 2:
                return random();
            default:
                return random() % gib(100).n;
        }
    };
    for (int round = 0; round < 300; ++round) {
        PolicyConfig config;
        config.segment = {random() % 4 == 0 ? any() >> (random() % 40) : mib(128).n};
        config.target_min = {random() % 2 == 0 ? 0 : any()};
        config.target_max = {any()};
        config.grow_rate = any();
        config.move_rate = any();
        Policy policy(config);
        const std::uint64_t segment = std::max<std::uint64_t>(config.segment.n, kChunkBytes);
        std::uint64_t now = 0;
        for (int n = 0; n < 50; ++n) {
            Snapshot s;
            s.total = {any()};
            s.free = {any()};
            s.ours = {any()};
            s.free_known = random() % 4 != 0;
            s.free_age_ns = random() % 2 == 0 ? 0 : config.free_age_ns_max + 1;
            s.stored = {any()};
            s.spill_room = {any()};
            s.move_rate = any();
            s.pages_in_per_s = any();
            s.pages_out_per_s = any();
            if (random() % 4 == 0) s.manual_target = Bytes{any()};
            if (random() % 4 == 0) s.yield_max = Bytes{any()};
            now += 1 + (random() % 2 == 0 ? any() >> 8 : 50 * kMs);
            const Plan plan = policy.decide(s, now);
            ASSERT_EQ(plan.target.n % segment, 0u);
            const bool seen = s.free_known && s.total.n > 0 && s.free_age_ns <= config.free_age_ns_max;
            if (plan.reason == Reason::unmovable) continue;
            ASSERT_LE(plan.target, seen ? s.total : Bytes{kNoLimit});
            ASSERT_LE(plan.target, s.yield_max.value_or(Bytes{kNoLimit}));
        }
    }
}

struct Job {
    Bytes step{};
    std::uint64_t every_ns = 0;
    std::uint64_t phase_ns = 0;  ///< of its steps against our samples
};

/// The job takes 60 GiB, a step each time, from a GPU of which the device holds 64 GiB. What it lacked at the
/// worst step.
Bytes worst_lack(PolicyWorld world, const Job& job) {
    world.pass(kSecondNs);
    const std::uint64_t start = world.now_ns;
    std::uint64_t lack = 0;
    std::uint64_t next_step = start + job.phase_ns;
    while (world.others < gib(60)) {
        if ((world.now_ns - start) % world.config.period_ns == 0) world.decide();
        if (world.now_ns >= next_step) {
            if (world.free() < job.step) lack = std::max(lack, job.step.n - world.free().n);
            world.others = world.others + job.step;
            next_step += job.every_ns;
        }
        world.run(kMs);
    }
    return {lack};
}

PolicyWorld world_of_jobs(std::optional<SizeSpec> headroom) {
    PolicyConfig config;
    config.headroom = headroom;
    PolicyWorld world = world_with(gib(64) - config.segment, config);
    world.seen.move_rate = world.mover_rate;
    return world;
}

SizeSpec of_bytes(Bytes size) {
    return {SizeSpec::Kind::bytes, size.n};
}

TEST(PolicyJob, OfAGibTwiceASecondNeverMeetsAFullGpu) {
    for (std::uint64_t phase = 0; phase < 50; phase += 7)
        EXPECT_EQ(worst_lack(world_of_jobs({}), {gib(1), 500 * kMs, phase * kMs}), Bytes{0}) << phase;
}

TEST(PolicyJob, NorWithLateSamples) {
    PolicyWorld world = world_of_jobs({});
    world.sample_late_ns = 50 * kMs;
    for (std::uint64_t phase = 0; phase < 50; phase += 7)
        EXPECT_EQ(worst_lack(world, {gib(1), 500 * kMs, phase * kMs}), Bytes{0}) << phase;
}

/// Where the headroom is smaller than a step, steps that were seen make up for it.
TEST(PolicyJob, NorWithAHeadroomSmallerThanItsSteps) {
    for (std::uint64_t phase = 0; phase < 50; phase += 7)
        EXPECT_EQ(worst_lack(world_of_jobs(of_bytes(mib(512))), {gib(1), 500 * kMs, phase * kMs}), Bytes{0})
            << phase;
}

/// Where the headroom is less than what is taken before the first moves end, the fall rate makes up for it.
TEST(PolicyJob, NorIfItTakesSmallStepsFastAndMovesAreHardlyFaster) {
    PolicyWorld world = world_of_jobs(of_bytes(mib(128)));
    world.mover_rate = world.seen.move_rate = 3'000'000'000;
    for (std::uint64_t phase = 0; phase < 8; ++phase)
        EXPECT_EQ(worst_lack(world, {mib(16), 8 * kMs, phase * kMs}), Bytes{0}) << phase;
}

/// Moves at 2 GB/s, as to a good disk, are slower than the job: what is freed ahead lasts until it has all.
TEST(PolicyJob, NorIfMovesAreALittleSlower) {
    PolicyWorld world = world_of_jobs({});
    world.mover_rate = 2'000'000'000;
    world.seen.move_rate = 0;
    for (std::uint64_t phase = 0; phase < 50; phase += 7)
        EXPECT_EQ(worst_lack(world, {gib(1), 500 * kMs, phase * kMs}), Bytes{0}) << phase;
}

TEST(Policy, EveryReasonHasALine) {
    for (auto n = static_cast<int>(Reason::enough); n <= static_cast<int>(Reason::yielded); ++n)
        EXPECT_NE(to_string(static_cast<Reason>(n)), "unknown") << n;
}

}  // namespace
}  // namespace vramswap
