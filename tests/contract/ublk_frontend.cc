// SPDX-License-Identifier: MIT
// What only the ublk frontend promises: how its device looks, that a start which fails anywhere leaves
// nothing, what happens when it is taken down under its users, and what stays behind when its process is
// killed.
#include "front/ublk/ublk_frontend.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>

#include "base/clock.h"
#include "base/units.h"
#include "support/block_device.h"
#include "support/ram_target.h"
#include "support/without_sys_admin.h"

namespace vramswap::test {
namespace {

namespace fs = std::filesystem;

constexpr unsigned kWatchdogSeconds = 60;
constexpr std::uint64_t kPatienceNs = 20'000'000'000;
constexpr Bytes kSize = mib(4);

/// Devices that the driver knows, with a block device or without.
std::size_t count_devices() {
    std::error_code error;
    const auto devices = fs::directory_iterator("/sys/class/ublk-char", error);
    return error ? 0 : static_cast<std::size_t>(std::distance(fs::begin(devices), fs::end(devices)));
}

template <typename Condition>
bool wait_until(Condition condition) {
    const std::uint64_t deadline = now_ns() + kPatienceNs;
    while (!condition() && now_ns() < deadline) std::this_thread::yield();
    return condition();
}

/// What this process and the driver hold, before and after.
class NothingStays {
  public:
    NothingStays() : held_(what_is_held()), devices_(count_devices()) {}
    ~NothingStays() {
        EXPECT_TRUE(wait_until([&] { return count_devices() == devices_; })) << count_devices() << " devices";
        EXPECT_EQ(what_stays(held_), "");
    }
    NothingStays(const NothingStays&) = delete;
    NothingStays& operator=(const NothingStays&) = delete;

  private:
    const Held held_;
    const std::size_t devices_;
};

class UblkFrontendTest : public ::testing::Test {
  protected:
    void SetUp() override {
        ::alarm(kWatchdogSeconds);
        if (const std::string problem = ublk_problem(); !problem.empty()) GTEST_SKIP() << problem;
        devices_ = count_devices();
    }
    void TearDown() override {
        remove_the_rest();
        ::alarm(0);
    }
    /// Starts remove what processes left that were killed, as soon as the kernel has taken its block device
    /// away.
    void remove_the_rest() const {
        EXPECT_TRUE(wait_until([&] {
            if (count_devices() <= devices_) return true;
            RamTarget target(kSize);
            auto frontend = make_ublk_frontend();
            return frontend->start(target, {.name = unique_device_name()}) && frontend->stop() && false;
        })) << "a killed process's device stays";
    }

  private:
    std::size_t devices_ = 0;
};

/// A folder in the place of /dev with the control node alone.
class ControlOnlyDev {
  public:
    ControlOnlyDev() {
        std::string name = fs::temp_directory_path() / "vramswap-dev-XXXXXX";
        if (::mkdtemp(name.data()) == nullptr) throw std::runtime_error("mkdtemp failed");
        path_ = name;
        fs::create_symlink("/dev/ublk-control", path_ / "ublk-control");
    }
    ~ControlOnlyDev() {
        std::error_code ignored;
        fs::remove_all(path_, ignored);
    }
    ControlOnlyDev(const ControlOnlyDev&) = delete;
    ControlOnlyDev& operator=(const ControlOnlyDev&) = delete;
    [[nodiscard]] UblkHost host() const {
        UblkHost host;
        host.dev_dir = path_;
        return host;
    }

  private:
    fs::path path_;
};

/// A served device in a child process that can be killed.
class ServingChild {
  public:
    ServingChild() {
        std::array<int, 2> ends{};
        if (::pipe2(ends.data(), O_CLOEXEC) != 0) throw std::runtime_error("pipe2 failed");
        UniqueFd in(ends[0]);
        UniqueFd out(ends[1]);
        pid_ = ::fork();
        if (pid_ == 0) serve(out);
        out.reset();
        std::array<char, 64> text{};
        const ssize_t n = ::read(in.get(), text.data(), text.size());
        if (n <= 0) throw std::runtime_error("the child did not start");
        path_.assign(text.data(), static_cast<std::size_t>(n));
    }
    ~ServingChild() { kill(); }
    ServingChild(const ServingChild&) = delete;
    ServingChild& operator=(const ServingChild&) = delete;

    /// SIGKILL, and waits for the end of the process.
    void kill() {
        if (pid_ <= 0) return;
        ::kill(pid_, SIGKILL);
        ::waitpid(pid_, nullptr, 0);
        pid_ = -1;
    }
    [[nodiscard]] const std::string& path() const { return path_; }
    [[nodiscard]] bool has_block_device() const {
        return fs::exists("/sys/block" / fs::path(path_).filename());
    }

  private:
    [[noreturn]] static void serve(const UniqueFd& out) {
        RamTarget target(kSize);
        auto frontend = make_ublk_frontend();
        const auto path = frontend->start(target, {.name = unique_device_name()});
        if (path && ::write(out.get(), path->data(), path->size()) > 0)
            for (;;) ::pause();
        ::_exit(1);
    }

    pid_t pid_ = -1;
    std::string path_;
};

std::string text_setting(const std::string& path, const char* setting) {
    std::string text;
    std::getline(std::ifstream("/sys/block" / fs::path(path).filename() / "queue" / setting), text);
    return text;
}

TEST_F(UblkFrontendTest, HasNoSchedulerNoWriteCacheAndLargeDiscards) {
    const NothingStays nothing;
    RamTarget target(kSize);
    auto frontend = make_ublk_frontend();
    for (const std::uint32_t threads : {1u, 2u}) {
        frontend = make_ublk_frontend();
        const auto path = frontend->start(target, {.name = unique_device_name(), .threads = threads});
        ASSERT_TRUE(path) << path.error().text();
        EXPECT_NE(text_setting(*path, "scheduler").find("[none]"), std::string::npos)
            << text_setting(*path, "scheduler");
        EXPECT_EQ(text_setting(*path, "write_cache"), "write through");
        EXPECT_EQ(queue_setting(*path, "fua"), 0);
        EXPECT_GE(queue_setting(*path, "discard_max_bytes"), static_cast<std::int64_t>(mib(2).n));
        EXPECT_GE(queue_setting(*path, "write_zeroes_max_bytes"), static_cast<std::int64_t>(mib(2).n));
        EXPECT_EQ(queue_setting(*path, "minimum_io_size"), 4096);
        EXPECT_TRUE(frontend->stop());
    }
}

TEST_F(UblkFrontendTest, AStartThatFailsLeavesNothing) {
    const NothingStays nothing;
    const auto expect_failure = [&](const UblkHost& host, const char* said) {
        RamTarget target(kSize);
        const auto started = make_ublk_frontend_in(host)->start(target, {.name = unique_device_name()});
        ASSERT_FALSE(started);
        EXPECT_NE(started.error().text().find(said), std::string::npos) << started.error().text();
        EXPECT_EQ(target.queues() + target.registrations(), 0u);
    };
    const ControlOnlyDev no_nodes;
    expect_failure(no_nodes.host(), "no device node");
    const WithoutSysAdmin weaker;
    ASSERT_TRUE(weaker.done());
    expect_failure({}, "root");
}

TEST_F(UblkFrontendTest, SaysThatItNeedsRoot) {
    const WithoutSysAdmin weaker;
    ASSERT_TRUE(weaker.done());
    const std::string problem = ublk_problem();
    EXPECT_NE(problem.find("root"), std::string::npos) << problem;
}

TEST_F(UblkFrontendTest, DestructionWithoutStopRemovesTheDevice) {
    const NothingStays nothing;
    RamTarget target(kSize);
    auto frontend = make_ublk_frontend();
    const auto path = frontend->start(target, {.name = unique_device_name()});
    ASSERT_TRUE(path) << path.error().text();
    frontend.reset();
    EXPECT_FALSE(fs::exists(*path));
    EXPECT_EQ(target.queues() + target.registrations(), 0u);
}

TEST_F(UblkFrontendTest, DestructionUnderAUserEndsWithErrorsAndNotInAHang) {
    const NothingStays nothing;
    RamTarget target(kSize);
    auto frontend = make_ublk_frontend();
    const auto path = frontend->start(target, {.name = unique_device_name()});
    ASSERT_TRUE(path) << path.error().text();
    const UniqueFd device = open_device(*path);
    // One request waits for room in the target, and has to give up.
    target.take_room();
    DirectBuffer page(kPageBytes);
    int outcome = -1;
    std::thread writer([&] { outcome = write_at(device, page, 0); });
    const bool refused = target.wait_until_refused(1);
    frontend.reset();
    writer.join();
    EXPECT_TRUE(refused);
    EXPECT_EQ(outcome, EIO);
    EXPECT_NE(read_at(device, page, 0), 0);
    EXPECT_EQ(target.queues() + target.registrations(), 0u);
}

TEST_F(UblkFrontendTest, AKilledProcessLeavesNoBlockDeviceAndLaterStartsRemoveTheRest) {
    const NothingStays nothing;
    ServingChild child;
    EXPECT_TRUE(child.has_block_device());
    child.kill();
    EXPECT_TRUE(wait_until([&] { return !child.has_block_device(); }));
    remove_the_rest();
}

TEST_F(UblkFrontendTest, ALivingProcessIsNotDisturbedByTheNextStart) {
    ServingChild child;
    RamTarget target(kSize);
    auto frontend = make_ublk_frontend();
    const auto path = frontend->start(target, {.name = unique_device_name()});
    ASSERT_TRUE(path) << path.error().text();
    EXPECT_NE(*path, child.path());
    DirectBuffer page(kPageBytes);
    EXPECT_EQ(write_at(open_device(child.path()), page.fill(0, 1), 0), 0);
    EXPECT_TRUE(frontend->stop());
    EXPECT_EQ(read_at(open_device(child.path()), page, 0), 0);
    EXPECT_EQ(page.mismatch(0, 1), "");
    child.kill();
    EXPECT_TRUE(wait_until([&] { return !child.has_block_device(); }));
}

TEST_F(UblkFrontendTest, UsersOfAKilledProcessesDeviceGetErrorsAndNotAHang) {
    ServingChild child;
    {
        const UniqueFd device = open_device(child.path());
        child.kill();
        DirectBuffer page(kPageBytes);
        EXPECT_NE(read_at(device, page, 0), 0);
        EXPECT_NE(write_at(device, page, 0), 0);
    }
    EXPECT_TRUE(wait_until([&] { return !child.has_block_device(); }));
}

TEST_F(UblkFrontendTest, SwapOnAKilledProcessesDeviceCanBeSwitchedOff) {
    ServingChild child;
    {
        const UniqueFd device = open_device(child.path());
        if (!start_swap(device, child.path(), kSize.n)) GTEST_SKIP() << "swapon: " << strerror(errno);
    }
    child.kill();
    // The node may be gone already; /proc/swaps has the path with an octal mark for that (mm/swapfile.c,
    // d_path).
    const bool off = stop_swap(child.path()) || stop_swap(child.path() + " (deleted)");
    EXPECT_TRUE(off) << strerror(errno);
    EXPECT_TRUE(wait_until([&] { return !child.has_block_device(); }));
}

TEST_F(UblkFrontendTest, AnIdleDeviceUsesNoCpu) {
    RamTarget target(kSize);
    auto frontend = make_ublk_frontend();
    const auto path = frontend->start(target, {.name = unique_device_name(), .threads = 1});
    ASSERT_TRUE(path) << path.error().text();
    {
        DirectBuffer page(kPageBytes);
        ASSERT_EQ(write_at(open_device(*path), page.fill(0, 1), 0), 0);
    }
    // Times that the I/O threads were switched to: what wakes and sleeps again would be seen here.
    const auto switches = [] {
        std::uint64_t sum = 0;
        for (const auto& task : fs::directory_iterator("/proc/self/task")) {
            std::string name;
            std::getline(std::ifstream(task.path() / "comm"), name);
            std::uint64_t on_cpu = 0, waited = 0, times = 0;
            if (name.starts_with("vs-ublk-") &&
                std::ifstream(task.path() / "schedstat") >> on_cpu >> waited >> times)
                sum += times;
        }
        return sum;
    };
    // Until udev and the kernel have seen enough of it: the same number for two seconds, within the patience.
    constexpr std::uint64_t kQuietNs = 2'000'000'000;
    std::uint64_t last = switches();
    std::uint64_t since = now_ns();
    EXPECT_TRUE(wait_until([&] {
        if (const std::uint64_t now = switches(); now != last) {
            last = now;
            since = now_ns();
        }
        return now_ns() - since > kQuietNs;
    }));
    EXPECT_GT(last, 0u) << "no schedstat in this kernel";
    EXPECT_TRUE(frontend->stop());
}

}  // namespace
}  // namespace vramswap::test
