// SPDX-License-Identifier: MIT
// The monitor over a simulated GPU, a device that is only told about, a made-up clock and a tree of files,
// step by step; and with its thread.
#include "daemon/monitor/monitor.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include "daemon/monitor/monitored_store.h"
#include "daemon/monitor/policy_setup.h"
#include "gpu/sim/sim_driver.h"
#include "support/sim_store.h"

namespace vramswap {
namespace {

constexpr std::uint64_t kMs = 1'000'000;
constexpr std::uint64_t kPeriodNs = PolicyConfig{}.period_ns;

/// What the monitor sees is what the test sets; what it orders is kept.
class FakeDevice final : public MonitoredDevice {
  public:
    [[nodiscard]] Sample sample() const override {
        std::function<void()> act;
        {
            const MutexLock lock(mutex_);
            act = on_sample_;
        }
        if (act) act();
        const MutexLock lock(mutex_);
        return sample_;
    }
    void obey(const Plan& plan) override {
        const MutexLock lock(mutex_);
        plans_.push_back(plan);
        obeyed_.notify_all();
    }

    template <typename Change>
    void change(Change change) {
        const MutexLock lock(mutex_);
        change(sample_);
    }
    /// Called before each sample.
    void on_sample(std::function<void()> act) {
        const MutexLock lock(mutex_);
        on_sample_ = std::move(act);
    }
    [[nodiscard]] std::size_t plans() const {
        const MutexLock lock(mutex_);
        return plans_.size();
    }
    /// Waits until a plan is as wanted; false after a minute.
    bool await(const std::function<bool(const Plan&)>& wanted) {
        const std::uint64_t end_ns = now_ns() + 60 * kSecondNs;
        const MutexLock lock(mutex_);
        while (plans_.empty() || !wanted(plans_.back())) {
            if (now_ns() > end_ns) return false;
            obeyed_.wait_for(mutex_, kSecondNs);
        }
        return true;
    }

  private:
    mutable Mutex mutex_;
    CondVar obeyed_;
    Sample sample_ VS_GUARDED_BY(mutex_);
    std::function<void()> on_sample_ VS_GUARDED_BY(mutex_);
    std::vector<Plan> plans_ VS_GUARDED_BY(mutex_);
};

class MonitorTest : public ::testing::Test {
  protected:
    MonitorTest() : gpu_(gib(8)) {
        std::string name = (std::filesystem::temp_directory_path() / "vramswap-monitor-XXXXXX").string();
        if (::mkdtemp(name.data()) == nullptr) std::abort();
        root_ = name;
        put("/proc/meminfo", "MemTotal: 16000000 kB\nMemAvailable: 8388608 kB\n");
        put("/proc/pressure/memory", "some avg10=1.50\nfull avg10=0.00\n");
    }
    ~MonitorTest() override { std::filesystem::remove_all(root_); }

    void put(const std::string& below, const std::string& content) {
        const std::filesystem::path path = root_ + below;
        std::filesystem::create_directories(path.parent_path());
        std::ofstream(path) << content;
    }
    /// Made when first used, so that a test may prepare what it sees.
    Monitor& monitor() {
        if (!monitor_) {
            MonitorConfig config{policy_, SysRoot{root_}, [this] { return now_; }};
            if (real_clock_) config.clock = now_ns;
            monitor_ = std::make_unique<Monitor>(gpu_.backend(), device_, std::move(config));
        }
        return *monitor_;
    }
    /// A step a period.
    MonitorReport pass(std::uint64_t ns) {
        for (std::uint64_t passed = 0; passed < ns; passed += kPeriodNs) {
            now_ += kPeriodNs;
            monitor().step();
        }
        return monitor().report();
    }
    MonitorReport step() { return pass(kPeriodNs); }

    /// The device holds `ours`, others `others`. The simulated GPU does not know whose it is.
    void hold(Bytes ours, Bytes others = {}) {
        device_.change([&](auto& s) { s.ours = ours; });
        gpu_.faults().taken_by_others = (ours + others).n;
    }
    /// A device that stores 6 GiB, all of which the spill would take.
    void hold_six_gib() {
        device_.change([](auto& s) { s.stored = s.spill_room = gib(6) - mib(128); });
        hold(gib(6));
    }

    test::SimGpu gpu_;
    FakeDevice device_;
    std::string root_;
    std::uint64_t now_ = 1000 * kSecondNs;
    bool real_clock_ = false;
    PolicyConfig policy_{};
    std::unique_ptr<Monitor> monitor_;
};

// --- what it sees ---

TEST_F(MonitorTest, SeesGpuDeviceAndMachine) {
    put("/sys/class/power_supply/BAT0/type", "Battery");
    put("/sys/class/power_supply/BAT0/status", "Discharging");
    gpu_.faults().others_sm = 42;
    gpu_.faults().others_pid = 4711;
    hold(gib(1), gib(2));
    device_.change([](auto& s) {
        s.stored = mib(900);
        s.spill_room = mib(800);
        s.move_rate = 12345;
    });
    const Snapshot first = step().snapshot;
    EXPECT_EQ(first.total, gib(8));
    EXPECT_EQ(first.free, gib(5));
    EXPECT_TRUE(first.free_known);
    EXPECT_EQ(first.free_age_ns, 0u);
    EXPECT_EQ(first.ours, gib(1));
    EXPECT_EQ(first.stored, mib(900));
    EXPECT_EQ(first.spill_room, mib(800));
    EXPECT_EQ(first.move_rate, 12345u);
    EXPECT_EQ(first.queue_pages, 0u);
    EXPECT_EQ(first.power, PowerSource::battery);
    EXPECT_EQ(first.ram_available, gib(8));
    EXPECT_DOUBLE_EQ(first.ram_psi_some_avg10, 1.5);
    EXPECT_FALSE(first.others_sm_percent) << "the first decision did not wait for it";
    EXPECT_EQ(step().snapshot.others_sm_percent, 42u);
}

TEST_F(MonitorTest, ReadsTheMachineAgain) {
    ASSERT_EQ(step().snapshot.power, PowerSource::mains);
    put("/proc/meminfo", "MemTotal: 16000000 kB\nMemAvailable: 1024 kB\n");
    put("/proc/pressure/memory", "some avg10=33.00\nfull avg10=0.00\n");
    put("/sys/class/power_supply/BAT0/type", "Battery");
    put("/sys/class/power_supply/BAT0/status", "Discharging");
    const Snapshot soon = pass(kSecondNs / 2).snapshot;
    EXPECT_EQ(soon.ram_available, mib(1));
    EXPECT_DOUBLE_EQ(soon.ram_psi_some_avg10, 33);
    EXPECT_EQ(pass(2 * kSecondNs).snapshot.power, PowerSource::battery);
    std::filesystem::remove(root_ + "/proc/meminfo");
    std::filesystem::remove(root_ + "/proc/pressure/memory");
    const Snapshot later = pass(kSecondNs).snapshot;
    EXPECT_EQ(later.ram_available, mib(1)) << "stays as it was";
    EXPECT_DOUBLE_EQ(later.ram_psi_some_avg10, 0) << "a kernel without PSI";
}

TEST_F(MonitorTest, PageRatesAreThoseOfTheLastMoments) {
    const auto move = [this](std::uint64_t in, std::uint64_t out) {
        device_.change([&](auto& s) {
            s.pages_in += in;
            s.pages_out += out;
        });
        return step().snapshot;
    };
    EXPECT_EQ(move(1000, 1000).pages_in_per_s, 0u) << "totals since the start are no rate";
    EXPECT_EQ(move(50, 500).pages_in_per_s, 1000u);
    for (int n = 0; n < 10; ++n) {
        const Snapshot steady = move(50, 500);
        EXPECT_EQ(steady.pages_in_per_s, 1000u);
        EXPECT_EQ(steady.pages_out_per_s, 10'000u);
    }
    for (int n = 0; n < 3; ++n) EXPECT_GT(move(0, 0).pages_out_per_s, 0u);
    EXPECT_EQ(move(0, 0).pages_out_per_s, 0u) << "after four periods";
    now_ += 10 * kSecondNs;
    EXPECT_EQ(move(0, 20'100).pages_out_per_s, 2000u) << "a driver was slow for ten seconds";
}

TEST_F(MonitorTest, NobodyComputesWhereNobodyElseIs) {
    gpu_.faults().others_sm = 30;  // our own copies, as drivers tell them
    hold(Bytes{0});
    (void)step();  // who is there is read after the first decision
    EXPECT_EQ(step().snapshot.others_sm_percent, 0u);
    gpu_.faults().others_pid = 4711;
    hold(Bytes{0}, mib(300));
    (void)pass(kSecondNs);
    EXPECT_EQ(step().snapshot.others_sm_percent, 30u);
}

TEST_F(MonitorTest, RequestsInFlightAreThoseThatWaitedOnAverage) {
    const auto waited = [this](std::uint64_t ns) {
        device_.change([&](auto& s) { s.waited_ns += ns; });
        return step().snapshot.queue_pages;
    };
    EXPECT_EQ(waited(kSecondNs), 0u);
    const std::uint64_t period = policy_.period_ns;
    EXPECT_EQ(waited(64 * period), 64u) << "none need be there at the instant";
    EXPECT_EQ(waited(64 * period), 64u);
    for (int n = 0; n < 3; ++n) EXPECT_GT(waited(0), 0u);
    EXPECT_EQ(waited(0), 0u);
}

// --- free memory and ours belong together ---

TEST_F(MonitorTest, ReadsFreeMemoryAgainIfASegmentWentMeanwhile) {
    hold_six_gib();
    step();
    int samples = 0;
    device_.on_sample([&] {
        if (++samples == 2) hold(gib(5));  // after free memory was read, before ours is read again
    });
    const Snapshot seen = step().snapshot;
    EXPECT_EQ(samples, 3);
    EXPECT_EQ(seen.ours, gib(5));
    EXPECT_EQ(seen.free + seen.ours, gib(8)) << "nobody else has taken anything";
    EXPECT_EQ(seen.free_age_ns, 0u);
}

TEST_F(MonitorTest, AReadingWhileASegmentComesIsNone) {
    hold_six_gib();
    step();
    // The driver has given it, and the device does not count it yet.
    device_.change([](auto& s) { s.segment_changes = 1; });
    gpu_.faults().taken_by_others = (gib(6) + mib(128)).n;
    const Snapshot during = step().snapshot;
    EXPECT_EQ(during.free, gib(2)) << "the reading before";
    EXPECT_TRUE(during.free_known);
    EXPECT_EQ(during.free_age_ns, kPeriodNs);
    device_.change([](auto& s) {
        s.segment_changes = 2;
        s.ours = gib(6) + mib(128);
    });
    const Snapshot after = step().snapshot;
    EXPECT_EQ(after.free, gib(2) - mib(128));
    EXPECT_EQ(after.free_age_ns, 0u);
}

TEST_F(MonitorTest, SegmentsThatComeAndGoAllTheTimeMakeTheReadingOld) {
    hold_six_gib();
    step();
    bool more = false;
    device_.on_sample([&] {
        more = !more;
        hold(more ? gib(6) + mib(128) : gib(6));
    });
    const MonitorReport report = pass(kSecondNs);
    EXPECT_EQ(report.snapshot.free_age_ns, kSecondNs);
    EXPECT_EQ(report.plan.reason, Reason::late);
    device_.on_sample({});
    EXPECT_EQ(step().snapshot.free_age_ns, 0u);
}

// --- others ---

TEST_F(MonitorTest, GivesBackWhenAGameStarts) {
    hold_six_gib();
    gpu_.faults().others_sm = 0;
    MonitorReport report = pass(kSecondNs);
    EXPECT_EQ(report.plan.target, gib(6));
    EXPECT_EQ(report.plan.reason, Reason::enough);
    hold(gib(6), mib(1536));
    report = step();
    EXPECT_LE(report.plan.target, gib(5)) << "as much again as it took at once";
    EXPECT_EQ(report.plan.move_rate, kNoLimit);
    EXPECT_EQ(report.plan.reason, Reason::falling);
    EXPECT_EQ(report.plan.reserve, mib(1536));
    // The device obeys, the game goes on.
    hold(gib(5), gib(3));
    EXPECT_LE(step().plan.target, mib(3584));
    hold(gib(3), gib(3));
    report = pass(25 * kSecondNs);
    EXPECT_GT(report.plan.target, gib(3)) << "it loads no more";
    EXPECT_LE(report.plan.target, gib(8) - gib(3) - mib(512));
}

TEST_F(MonitorTest, TellsWhoIsOnTheGpu) {
    put("/proc/4711/comm", "game.x86_64\n");
    hold(gib(1));
    EXPECT_FALSE(step().processes) << "memory is taken, and it is not told by whom";
    gpu_.faults().others_pid = 4711;
    hold(gib(1), gib(2));
    const MonitorReport report = pass(kSecondNs);
    ASSERT_TRUE(report.processes);
    ASSERT_EQ(report.processes->size(), 1u);
    EXPECT_EQ(report.processes->at(0).pid, 4711);
    EXPECT_EQ(report.processes->at(0).name, "game.x86_64");
    EXPECT_EQ(report.processes->at(0).memory, gib(3));
    EXPECT_EQ(report.snapshot.others_memory, gib(3));
    gpu_.faults().others_pid = 4712;
    EXPECT_EQ(pass(2 * kSecondNs).processes->at(0).name, "") << "gone, or of another namespace";
}

TEST_F(MonitorTest, ListsAreReadOftenOnlyWhenMemoryChanges) {
    hold(gib(1));
    gpu_.faults().others_pid = 1;
    step();
    gpu_.faults().others_pid = 2;
    EXPECT_EQ(pass(19 * kSecondNs / 10).processes->at(0).pid, 1);
    EXPECT_EQ(pass(kSecondNs / 10).processes->at(0).pid, 2) << "after two seconds";
    gpu_.faults().others_pid = 3;
    hold(gib(1), mib(63));
    EXPECT_EQ(pass(kSecondNs).processes->at(0).pid, 2);
    hold(gib(1), mib(64));
    EXPECT_EQ(step().processes->at(0).pid, 3) << "a context's worth of memory";
    gpu_.faults().others_pid = 4;
    hold(gib(1), mib(200));
    EXPECT_EQ(pass(kSecondNs * 4 / 10).processes->at(0).pid, 3);
    EXPECT_EQ(pass(kSecondNs / 10).processes->at(0).pid, 4) << "but twice a second at most";
    gpu_.faults().others_pid = 5;
    hold(gib(2), mib(200));
    EXPECT_EQ(pass(kSecondNs).processes->at(0).pid, 4) << "ours came, not others'";
}

TEST_F(MonitorTest, WhatCannotBeToldOfOthersIsAbsent) {
    gpu_.faults().others_sm = 30;
    gpu_.faults().others_pid = 4711;
    hold(gib(1), gib(1));
    EXPECT_TRUE(pass(kSecondNs).processes);
    // When free memory has been read: what fails next is the use of the GPU.
    now_ += 2 * kSecondNs;
    int samples = 0;
    device_.on_sample([&] {
        if (++samples == 2) gpu_.faults().fail_readings = 1;
    });
    EXPECT_FALSE(step().processes);
    device_.on_sample({});
    const Snapshot seen = step().snapshot;
    EXPECT_TRUE(seen.free_known);
    EXPECT_FALSE(seen.others_sm_percent);
    EXPECT_FALSE(seen.others_memory);
    EXPECT_TRUE(pass(2 * kSecondNs).processes);
}

// --- a driver in trouble ---

TEST_F(MonitorTest, HoldsWhileFreeMemoryCannotBeRead) {
    hold_six_gib();
    EXPECT_EQ(pass(kSecondNs).gpu_problem, "");
    gpu_.faults().fail_readings = 1'000'000;
    MonitorReport report = step();
    EXPECT_FALSE(report.snapshot.free_known);
    EXPECT_EQ(report.plan.reason, Reason::late);
    EXPECT_EQ(report.plan.target, gib(6));
    EXPECT_NE(report.gpu_problem, "");
    EXPECT_EQ(problem(report, now_), "");
    report = pass(2 * kSecondNs);
    EXPECT_EQ(report.plan.reason, Reason::blind);
    EXPECT_EQ(report.plan.target, gib(6));
    EXPECT_EQ(problem(report, now_), report.gpu_problem);
    gpu_.faults().fail_readings = 0;
    report = step();
    EXPECT_TRUE(report.snapshot.free_known);
    EXPECT_EQ(report.plan.reason, Reason::enough);
    EXPECT_EQ(report.gpu_problem, "");
}

TEST_F(MonitorTest, AReadingThatTookLongIsAsOld) {
    hold_six_gib();
    pass(kSecondNs);
    int samples = 0;
    device_.on_sample([&] {
        if (++samples == 2) now_ += 800 * kMs;  // in the driver
    });
    const MonitorReport report = step();
    EXPECT_EQ(report.snapshot.free_age_ns, 800 * kMs);
    EXPECT_EQ(report.plan.reason, Reason::late);
    EXPECT_EQ(report.plan.target, gib(6));
    EXPECT_EQ(step().plan.reason, Reason::enough);
}

TEST_F(MonitorTest, NothingIsKnownOfALostGpu) {
    gpu_.faults().lost = true;
    const MonitorReport report = pass(3 * kSecondNs);
    EXPECT_FALSE(report.snapshot.free_known);
    EXPECT_EQ(report.plan.reason, Reason::blind);
    EXPECT_FALSE(report.processes);
}

TEST_F(MonitorTest, SaysSinceWhenTheDriverIsSilent) {
    const MonitorReport report = step();
    EXPECT_EQ(problem(report, now_ + kSecondNs), "");
    EXPECT_NE(problem(report, now_ + 12 * kSecondNs).find("12 s"), std::string::npos);
}

// --- by hand ---

TEST_F(MonitorTest, ResizeCountsUntilItIsTakenBack) {
    hold_six_gib();
    pass(kSecondNs);
    monitor().set_manual_target(gib(2));
    MonitorReport report = step();
    EXPECT_EQ(report.plan.target, gib(2));
    EXPECT_EQ(report.plan.reason, Reason::by_hand);
    EXPECT_EQ(report.by_hand.target, gib(2));
    hold(gib(2));
    monitor().set_manual_target({});
    report = pass(15 * kSecondNs);
    EXPECT_EQ(report.plan.target, gib(6));
    EXPECT_FALSE(report.by_hand.target);
}

TEST_F(MonitorTest, YieldEndsWithItsHolder) {
    std::string stat = "4711 (game) S ";
    for (int field = 4; field < 22; ++field) stat += "0 ";
    stat += "777 0 0 0\n";
    put("/proc/4711/stat", stat);
    const auto holder = identify_process(4711, SysRoot{root_});
    ASSERT_TRUE(holder) << holder.error().text();
    hold_six_gib();
    pass(kSecondNs);
    monitor().set_yield(Yield{gib(1), *holder});
    MonitorReport report = pass(kSecondNs);
    EXPECT_EQ(report.plan.target, gib(1));
    EXPECT_EQ(report.plan.reason, Reason::yielded);
    ASSERT_TRUE(report.by_hand.yield);
    std::filesystem::remove_all(root_ + "/proc/4711");
    hold(gib(1));
    report = pass(15 * kSecondNs);
    EXPECT_FALSE(report.by_hand.yield);
    EXPECT_EQ(report.plan.target, gib(6));
    monitor().set_yield(Yield{Bytes{0}, {}});
    EXPECT_EQ(step().plan.target, Bytes{0});
}

// --- as users see it ---

TEST_F(MonitorTest, TellsAStatus) {
    DeviceStatus early;
    tell(monitor().report(), {}, early);
    EXPECT_EQ(early.reason, "");
    EXPECT_EQ(early.others_sm_percent, -1);
    gpu_.faults().others_sm = 30;
    gpu_.faults().others_pid = 4711;
    put("/proc/4711/comm", "game\n");
    hold(gib(1), gib(2));
    monitor().set_manual_target(gib(4));
    monitor().set_yield(Yield{gib(2), ProcessId{::getpid(), 0}});
    monitor().set_yield(Yield{Bytes{0}, {}});
    DeviceStatus status;
    tell(pass(kSecondNs), {}, status);
    EXPECT_EQ(status.vram_target, Bytes{0});
    EXPECT_EQ(status.reason, to_string(Reason::yielded));
    EXPECT_EQ(status.reserve, mib(512));
    EXPECT_EQ(status.move_rate_max, kNoLimit);
    EXPECT_EQ(status.gpu_total, gib(8));
    EXPECT_EQ(status.gpu_free, gib(5));
    EXPECT_EQ(status.others_memory, gib(3));
    EXPECT_EQ(status.others_sm_percent, 30);
    EXPECT_EQ(status.power, "mains");
    ASSERT_EQ(status.gpu_processes.size(), 1u);
    EXPECT_EQ(status.gpu_processes[0].name, "game");
}

TEST_F(MonitorTest, SaysThatTheSpillIsFull) {
    hold_six_gib();
    device_.change([](auto& s) { s.spill_room = gib(1); });
    pass(kSecondNs);
    hold(gib(6), gib(2));
    const MonitorReport report = step();
    EXPECT_EQ(report.plan.reason, Reason::unmovable);
    EXPECT_NE(problem(report, now_).find("4.9G of VRAM"), std::string::npos) << problem(report, now_);
}

TEST(PolicySetup, IsWhatTheDeviceSays) {
    DeviceConfig device;
    GpuInfo gpu;
    gpu.total = gib(10);
    const auto plain = policy_config(device, gpu);
    ASSERT_TRUE(plain);
    EXPECT_FALSE(plain->headroom);
    EXPECT_EQ(plain->target_max, PolicyConfig{}.target_max);
    EXPECT_EQ(plain->swap_rate_beside_others, kNoLimit);
    EXPECT_EQ(plain->mode, ModeChoice::automatic);
    device.segment = mib(64);
    device.headroom = "15%";
    device.vram_max = "30%";
    device.swap_rate_max = gib(1);
    device.mode = "copy";
    const auto set = policy_config(device, gpu);
    ASSERT_TRUE(set);
    EXPECT_EQ(set->segment, mib(64));
    EXPECT_EQ(set->headroom->of(gib(100)), gib(15));
    EXPECT_EQ(set->target_max, gib(3));
    EXPECT_EQ(set->swap_rate_beside_others, gib(1).n);
    EXPECT_EQ(set->mode, ModeChoice::always_copy);
    device.headroom = "much";
    EXPECT_EQ(policy_config(device, gpu).error().code, Errc::usage);
}

TEST(MonitoredStoreTest, TellsAndObeys) {
    test::SimGpu gpu(mib(64));
    StoreConfig config;
    config.size = mib(64);
    config.segment = mib(4);
    config.stage = mib(8);
    test::SteppedStore store(gpu, config, nullptr);
    MonitoredStore device(*store, 0, {});
    EXPECT_EQ(device.sample().ours, mib(4));
    EXPECT_EQ(device.sample().segment_changes, 2u) << "one was taken";
    EXPECT_EQ(device.sample().stored, Bytes{0});
    Plan plan;
    plan.mode = PlannedMode::turbo;
    device.obey(plan);  // its target is nothing
    EXPECT_EQ(store->stats().mode, EngineMode::turbo);
    ASSERT_TRUE(store.settle());
    EXPECT_EQ(device.sample().ours, Bytes{0});
    EXPECT_EQ(device.sample().segment_changes, 4u);
    MonitoredStore(*store, 0, EngineMode::copy).obey(plan);
    EXPECT_EQ(store->stats().mode, EngineMode::copy);
}

// --- with its thread ---

TEST_F(MonitorTest, ItsThreadDecidesByItself) {
    real_clock_ = true;
    policy_.period_ns = kMs;
    hold_six_gib();
    ASSERT_TRUE(monitor().start());
    ASSERT_TRUE(device_.await([](const Plan& plan) { return plan.target == gib(6); }));
    hold(gib(6), gib(2));
    EXPECT_TRUE(device_.await([](const Plan& plan) { return plan.target <= gib(4); }));
    EXPECT_EQ(monitor().stop(), Monitor::Ended::yes);
    const std::size_t plans = device_.plans();
    EXPECT_EQ(monitor().stop(), Monitor::Ended::yes);
    EXPECT_EQ(device_.plans(), plans);
}

TEST_F(MonitorTest, DecidesAtOnceWhenToldByHand) {
    real_clock_ = true;
    policy_.period_ns = 3600 * kSecondNs;
    hold_six_gib();
    ASSERT_TRUE(monitor().start());
    ASSERT_TRUE(device_.await([](const Plan&) { return true; }));
    monitor().set_manual_target(gib(3));
    EXPECT_TRUE(device_.await([](const Plan& plan) { return plan.target == gib(3); }));
    monitor().set_yield(Yield{gib(1), {}});
    EXPECT_TRUE(device_.await([](const Plan& plan) { return plan.target == gib(1); }));
    device_.change([](auto& s) { s.spill_room = gib(1); });
    monitor().wake();
    EXPECT_TRUE(device_.await([](const Plan& plan) { return plan.reason == Reason::unmovable; }));
}

TEST_F(MonitorTest, AHangingDriverKeepsNobodyWaiting) {
    real_clock_ = true;
    gpu_.faults().hang_readings = true;
    ASSERT_TRUE(monitor().start());
    EXPECT_EQ(monitor().stop(kMs), Monitor::Ended::hangs);
    monitor().set_manual_target(gib(1));
    EXPECT_EQ(monitor().report().by_hand.target, gib(1));
    EXPECT_EQ(monitor().stop(0), Monitor::Ended::hangs);
    gpu_.faults().hang_readings = false;
    gpu_.faults().hang_readings.notify_all();
    EXPECT_EQ(monitor().stop(60 * kSecondNs), Monitor::Ended::yes);
    EXPECT_EQ(device_.plans(), 0u) << "no plan after stop()";
}

TEST(MonitorDeathTest, DestroyedInAHangingDriverItEndsTheProcess) {
    const auto hang = [] {
        test::SimGpu gpu(mib(64));
        FakeDevice device;
        gpu.faults().hang_readings = true;
        Monitor monitor(gpu.backend(), device, {});
        (void)monitor.start();
    };
    EXPECT_EXIT(hang(), ::testing::ExitedWithCode(EXIT_FAILURE), "driver hangs");
}

}  // namespace
}  // namespace vramswap
