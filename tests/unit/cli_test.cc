// SPDX-License-Identifier: MIT
// What the commands make of options, and what MoveWatch makes of a device's statuses. Times are made up.
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <string>

#include "cli/by_hand.h"
#include "cli/move_watch.h"
#include "cli/spill_plan.h"

namespace vramswap {
namespace {

using Kind = SpillWish::Kind;
using Goal = MoveWatch::Goal;
using Verdict = MoveWatch::Verdict;

// --- --spill ---

TEST(SpillOption, IsRead) {
    EXPECT_EQ(parse_spill("auto").value().kind, Kind::automatic);
    EXPECT_EQ(parse_spill("none").value().kind, Kind::none);
    const auto place = parse_spill("/srv/swap").value();
    EXPECT_EQ(place.kind, Kind::place);
    EXPECT_EQ(place.path, "/srv/swap");
    EXPECT_EQ(place.size, std::nullopt);
    const auto sized = parse_spill("/dev/nvme0n1p5:1.5G").value();
    EXPECT_EQ(sized.path, "/dev/nvme0n1p5");
    EXPECT_EQ(sized.size, mib(1536));
    EXPECT_EQ(parse_spill("/x:5M").value().size, mib(4)) << "whole chunks";
}

TEST(SpillOption, WhatExistsIsAPath) {
    const std::string name = std::filesystem::temp_directory_path() / "vramswap-cli-test:1";
    std::filesystem::create_directory(name);
    EXPECT_EQ(parse_spill(name).value().path, name);
    EXPECT_EQ(parse_spill(name + ":4M").value().path, name);
    std::filesystem::remove(name);
}

TEST(SpillOption, NonsenseIsTold) {
    for (const char* text :
         {"", "atuo", "relative/path", "/x:", "/x:many", "/x:0", "/x:50%", "/x:1M", "/x:-1G"}) {
        const auto wish = parse_spill(text);
        ASSERT_FALSE(wish) << text;
        EXPECT_EQ(wish.error().code, Errc::usage) << text;
        EXPECT_NE(wish.error().message.find(text), std::string::npos) << wish.error().message;
        EXPECT_FALSE(wish.error().hint.empty()) << text;
    }
}

TEST(SpillPlan, HoldsNoMoreThanTheDiskHasRoomFor) {
    SpillPlan plan;
    EXPECT_FALSE(plan.exists());
    plan.room = gib(10);
    EXPECT_EQ(plan.capacity(), gib(10));
    plan.size = gib(4);
    EXPECT_EQ(plan.capacity(), gib(4));
    plan.room = gib(1);
    EXPECT_EQ(plan.capacity(), gib(1));
}

// --- amounts of VRAM ---

TEST(Vram, IsRead) {
    DeviceStatus device;
    device.name = "t0";
    device.size = gib(8);
    EXPECT_EQ(parse_vram("0", device).value(), Bytes{0});
    EXPECT_EQ(parse_vram("0%", device).value(), Bytes{0});
    EXPECT_EQ(parse_vram("25%", device).value(), gib(2));
    EXPECT_EQ(parse_vram("8G", device).value(), gib(8));
    for (const char* text : {"", "many", "-1", "9G", "101%"}) {
        const auto vram = parse_vram(text, device);
        ASSERT_FALSE(vram) << text;
        EXPECT_EQ(vram.error().code, Errc::usage) << text;
    }
    EXPECT_NE(parse_vram("9G", device).error().message.find("t0 has (8G)"), std::string::npos);
}

// --- moving ---

constexpr std::uint64_t kSecond = 1'000'000'000;

DeviceStatus device_with(Bytes vram, Bytes target, Bytes spilled = {}) {
    DeviceStatus d;
    d.name = "t0";
    d.vram = vram;
    d.vram_target = target;
    d.spilled = spilled;
    d.spill_capacity = gib(8);
    d.spill_place = "/srv/swap";
    d.segment = mib(128);
    return d;
}

TEST(Moving, GivesBackUntilItIsDone) {
    MoveWatch watch(Goal::at_most, gib(1), device_with(gib(5), gib(5)), 0);
    EXPECT_TRUE(watch.gives_back());
    EXPECT_EQ(watch.look(device_with(gib(5), gib(5)), kSecond / 100), Verdict::moving) << "an old target";
    EXPECT_EQ(watch.look(device_with(gib(3), gib(1), gib(2)), kSecond), Verdict::moving);
    EXPECT_DOUBLE_EQ(watch.share(), 0.5);
    EXPECT_EQ(watch.look(device_with(gib(1), gib(1), gib(4)), 2 * kSecond), Verdict::done);
    EXPECT_EQ(watch.account(), "gave back 4G of VRAM in 2.0 s (2G/s)");
}

TEST(Moving, NothingToDoIsDoneAtOnce) {
    MoveWatch watch(Goal::at_most, gib(1), device_with(gib(1), gib(4)), 0);
    EXPECT_FALSE(watch.gives_back());
    EXPECT_EQ(watch.look(device_with(gib(1), gib(4)), 0), Verdict::done);
    EXPECT_EQ(watch.account(), "had nothing to move");
    EXPECT_DOUBLE_EQ(watch.share(), 1);
}

TEST(Moving, ASlowDiskIsNotStuck) {
    MoveWatch watch(Goal::at_most, {}, device_with(gib(5), gib(5)), 0);
    DeviceStatus d = device_with(gib(5), {});
    for (std::uint64_t s = 0; s < 1000; s += 10) {
        d.moved_out = mib(2) * s;
        EXPECT_EQ(watch.look(d, s * kSecond), Verdict::moving);
    }
    EXPECT_EQ(watch.look(d, 1000 * kSecond), Verdict::moving);
    EXPECT_EQ(watch.look(d, 1010 * kSecond), Verdict::stuck);
}

TEST(Moving, WhatThePolicyHasSettledForIsNotWaitedFor) {
    MoveWatch watch(Goal::at_most, {}, device_with(gib(5), gib(5)), 0);
    DeviceStatus d = device_with(gib(5), gib(5));
    d.reason = "cannot";
    EXPECT_EQ(watch.look(d, kSecond), Verdict::moving);
    EXPECT_EQ(watch.look(d, 3 * kSecond), Verdict::stuck);
    const auto outcome = watch.outcome(d);
    ASSERT_FALSE(outcome);
    EXPECT_EQ(outcome.error().code, Errc::failed);
    EXPECT_EQ(outcome.error().message, "t0 keeps 5G of VRAM, and was to keep 0B: cannot");
}

TEST(Moving, ToldWhyNot) {
    const auto why = [](const DeviceStatus& d) {
        MoveWatch watch(Goal::at_most, {}, device_with(gib(5), gib(5)), 0);
        (void)watch.look(d, kSecond);
        const auto outcome = watch.outcome(d);
        return outcome ? std::string{} : outcome.error().text();
    };
    DeviceStatus d = device_with(gib(2), gib(2), gib(8));
    EXPECT_NE(why(d).find("the spill is full (8G). Make room in /srv/swap"), std::string::npos) << why(d);
    d.spill_problem = "the disk has no room left";
    EXPECT_NE(why(d).find("the disk has no room left. Make room"), std::string::npos) << why(d);
    d.spill_problem.clear();
    d.spill_capacity = {};
    EXPECT_NE(why(d).find("there is no spill"), std::string::npos) << why(d);
}

TEST(Moving, TakesWhatIsGranted) {
    MoveWatch watch(Goal::exactly, gib(4), device_with(gib(1), gib(1), gib(2)), 0);
    EXPECT_FALSE(watch.gives_back());
    EXPECT_EQ(watch.look(device_with(gib(1), gib(1), gib(2)), kSecond / 10), Verdict::moving);
    EXPECT_EQ(watch.look(device_with(gib(2), gib(4), gib(1)), kSecond), Verdict::moving)
        << "chunks come back";
    EXPECT_EQ(watch.look(device_with(gib(4), gib(4)), 3 * kSecond), Verdict::done);
    EXPECT_EQ(watch.account(), "took 3G of VRAM in 3.0 s (1G/s)");
}

TEST(Moving, ADeviceWithoutUseForMoreIsNotWaitedFor) {
    MoveWatch watch(Goal::exactly, gib(4), device_with(gib(1), gib(1)), 0);
    const DeviceStatus d = device_with(gib(1), gib(4));
    EXPECT_EQ(watch.look(d, kSecond), Verdict::moving);
    EXPECT_EQ(watch.look(d, 3 * kSecond), Verdict::stuck);
    EXPECT_TRUE(watch.outcome(d));
}

TEST(Moving, ASegmentLessIsRounding) {
    MoveWatch watch(Goal::exactly, gib(1) + mib(1), device_with({}, {}), 0);
    EXPECT_EQ(watch.look(device_with(gib(1), gib(1)), kSecond), Verdict::done);
    MoveWatch more(Goal::exactly, gib(1) + mib(128), device_with({}, {}), 0);
    EXPECT_EQ(more.look(device_with(gib(1), gib(1)), kSecond), Verdict::moving);
}

TEST(Moving, OthersMayLeaveLess) {
    MoveWatch watch(Goal::exactly, gib(4), device_with(gib(1), gib(1)), 0);
    DeviceStatus d = device_with(gib(2), gib(2));
    d.reason = "others use the GPU's memory";
    EXPECT_EQ(watch.look(d, kSecond), Verdict::moving);
    EXPECT_EQ(watch.look(d, 4 * kSecond), Verdict::stuck);
    EXPECT_EQ(watch.outcome(d).error().message,
              "t0 may hold 2G of VRAM, and was to get 4G: others use the GPU's memory");
}

TEST(Moving, TheWayBackMayTakeItsTime) {
    MoveWatch watch(Goal::exactly, gib(4), device_with(gib(1), gib(1), gib(2)), 0);
    const DeviceStatus d = device_with(gib(1), gib(4), gib(2));
    EXPECT_EQ(watch.look(d, kSecond), Verdict::moving);
    EXPECT_EQ(watch.look(d, 100 * kSecond), Verdict::stuck);
    EXPECT_TRUE(watch.outcome(d)) << "granted, though nothing comes back now";
}

}  // namespace
}  // namespace vramswap
