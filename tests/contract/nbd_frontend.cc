// SPDX-License-Identifier: MIT
// What only the NBD frontend promises: how its device looks, that a start which fails anywhere leaves
// nothing, and what stays behind when its process is killed. Needs a kernel with the driver.
#include "front/nbd/nbd_frontend.h"

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
#include "front/nbd/nbd_abi.h"
#include "front/nbd/nbd_netlink.h"
#include "front/nbd/nbd_slots.h"
#include "support/block_device.h"
#include "support/ram_target.h"
#include "support/without_sys_admin.h"

namespace vramswap::test {
namespace {

namespace fs = std::filesystem;
using Op = BlockRequest::Op;

constexpr unsigned kWatchdogSeconds = 60;
constexpr Bytes kSize = mib(4);

/// A file of /sys/block/DEVICE; empty if there is none.
std::string attribute(const fs::path& device, const char* name) {
    std::string text;
    std::getline(std::ifstream("/sys/block" / device.filename() / name), text);
    return text;
}

/// Devices that are connected with a name of this program.
std::size_t count_devices() {
    std::size_t count = 0;
    for (const auto& block : fs::directory_iterator("/sys/block"))
        if (attribute(block.path(), "backend").starts_with("vramswap-test-")) ++count;
    return count;
}

/// Fails if something is held at the end that was not at the beginning.
class NothingStays {
  public:
    NothingStays() : before_(what_is_held()), devices_(count_devices()) {}
    ~NothingStays() {
        EXPECT_EQ(what_stays(before_), "");
        EXPECT_EQ(count_devices(), devices_);
    }
    NothingStays(const NothingStays&) = delete;
    NothingStays& operator=(const NothingStays&) = delete;

  private:
    const Held before_;
    const std::size_t devices_;
};

class NbdFrontendTest : public ::testing::Test {
  protected:
    void SetUp() override {
        ::alarm(kWatchdogSeconds);
        if (const std::string problem = nbd_problem(); !problem.empty()) GTEST_SKIP() << problem;
    }
    void TearDown() override { ::alarm(0); }
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
    [[nodiscard]] bool device_exists() const { return !attribute(path_, "backend").empty(); }

  private:
    [[noreturn]] static void serve(const UniqueFd& out) {
        RamTarget target(kSize);
        auto frontend = make_nbd_frontend();
        const auto path = frontend->start(target, {.name = unique_device_name()});
        if (path && ::write(out.get(), path->data(), path->size()) > 0)
            for (;;) ::pause();
        ::_exit(1);
    }

    pid_t pid_ = -1;
    std::string path_;
};

TEST_F(NbdFrontendTest, TheDeviceIsMadeForSwap) {
    const NothingStays nothing_stays;
    RamTarget target(kSize);
    auto frontend = make_nbd_frontend();
    const std::string name = unique_device_name();
    const auto path = frontend->start(target, {.name = name, .threads = 2});
    ASSERT_TRUE(path) << path.error().text();
    EXPECT_EQ(attribute(*path, "backend"), "vramswap-" + name);
    EXPECT_NE(attribute(*path, "queue/scheduler").find("none"), std::string::npos);
    EXPECT_EQ(attribute(*path, "queue/write_cache"), "write through");
    EXPECT_EQ(queue_setting(*path, "max_sectors_kb"), 512);
    EXPECT_EQ(queue_setting(*path, "rotational"), 0);
    EXPECT_TRUE(frontend->stop());
}

TEST_F(NbdFrontendTest, LargeRequestsComeWhole) {
    const NothingStays nothing_stays;
    RamTarget target(kSize);
    auto frontend = make_nbd_frontend();
    const auto path = frontend->start(target, {.name = unique_device_name()});
    ASSERT_TRUE(path) << path.error().text();
    // Somebody may raise the limit that we set.
    std::ofstream("/sys/block" / fs::path(*path).filename() / "queue/max_sectors_kb")
        << kSize.n / 1024 << std::flush;
    EXPECT_EQ(queue_setting(*path, "max_sectors_kb"), static_cast<std::int64_t>(kSize.n / 1024));
    {
        const UniqueFd device = open_device(*path);
        DirectBuffer out(kSize.n);
        EXPECT_EQ(write_at(device, out.fill(0, 1), 0), 0);
        DirectBuffer in(kSize.n);
        EXPECT_EQ(read_at(device, in, 0), 0);
        EXPECT_EQ(in.mismatch(0, 1), "");
    }
    EXPECT_GT(target.bytes_max(), kNbdTransferBytes);
    EXPECT_TRUE(frontend->stop());
}

TEST_F(NbdFrontendTest, ManyConnectionsAreServedAndLeaveNothing) {
    const NothingStays nothing_stays;
    for (const std::uint32_t connections : {1u, 3u, 16u}) {
        RamTarget target(kSize);
        auto frontend = make_nbd_frontend();
        const auto path = frontend->start(target, {.name = unique_device_name(), .threads = connections});
        ASSERT_TRUE(path) << path.error().text();
        EXPECT_EQ(target.queues(), connections);
        {
            const UniqueFd device = open_device(*path);
            DirectBuffer page(kPageBytes);
            EXPECT_EQ(write_at(device, page.fill(0, connections), 0), 0);
        }
        EXPECT_TRUE(frontend->stop());
    }
}

TEST_F(NbdFrontendTest, AStartThatFailsAfterTheConnectionLeavesNothing) {
    const NothingStays nothing_stays;
    std::string no_devices = fs::temp_directory_path() / "vramswap-dev-XXXXXX";
    ASSERT_NE(::mkdtemp(no_devices.data()), nullptr);
    for (const auto& block : fs::directory_iterator("/sys/block"))  // nodes that are not the kernel's
        std::ofstream(fs::path(no_devices) / block.path().filename()).put('\n');
    RamTarget target(kSize);
    const auto started =
        make_nbd_frontend_in({.dev_dir = no_devices})->start(target, {.name = unique_device_name()});
    fs::remove_all(no_devices);
    ASSERT_FALSE(started);
    EXPECT_NE(started.error().text().find(no_devices), std::string::npos) << started.error().text();
    EXPECT_EQ(target.queues() + target.registrations(), 0u);
}

TEST_F(NbdFrontendTest, WhatTheKernelRefusesByNetlinkIsToldAndLeavesNothing) {
    const NothingStays nothing_stays;
    auto netlink = NbdNetlink::open("nbd");
    ASSERT_TRUE(netlink);
    std::array<int, 2> ends{};
    ASSERT_EQ(::pipe2(ends.data(), O_CLOEXEC), 0);
    const UniqueFd no_socket(ends[0]);
    const UniqueFd other_end(ends[1]);
    const NbdSettings settings{
        .size = kSize, .server_flags = nbd_abi::kServerHasFlags, .backend = "vramswap-test-x"};
    const auto refused = netlink->connect(settings, std::array{no_socket.get()});
    ASSERT_FALSE(refused);
    EXPECT_NE(refused.error().text().find("the kernel refuses to connect"), std::string::npos)
        << refused.error().text();
    const WithoutSysAdmin weaker;
    ASSERT_TRUE(weaker.done());
    const auto forbidden = netlink->connect(settings, std::array{no_socket.get()});
    ASSERT_FALSE(forbidden);
    EXPECT_EQ(forbidden.error().code, Errc::unavailable);
    EXPECT_NE(forbidden.error().text().find("Run as root"), std::string::npos) << forbidden.error().text();
}

TEST_F(NbdFrontendTest, DestructionWithoutStopRemovesTheDevice) {
    const NothingStays nothing_stays;
    RamTarget target(kSize);
    auto frontend = make_nbd_frontend();
    ASSERT_TRUE(frontend->start(target, {.name = unique_device_name()}));
    frontend.reset();
    EXPECT_EQ(target.queues() + target.registrations(), 0u);
}

TEST_F(NbdFrontendTest, DestructionUnderAUserEndsWithErrorsAndNotInAHang) {
    const NothingStays nothing_stays;
    RamTarget target(kSize);
    auto frontend = make_nbd_frontend();
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
    EXPECT_EQ(target.queues() + target.registrations(), 0u);
}

TEST_F(NbdFrontendTest, StopIsFineAfterSomebodyElseHasDisconnectedTheDevice) {
    const NothingStays nothing_stays;
    RamTarget target(kSize);
    auto frontend = make_nbd_frontend();
    const auto path = frontend->start(target, {.name = unique_device_name()});
    ASSERT_TRUE(path) << path.error().text();
    auto netlink = NbdNetlink::open("nbd");
    ASSERT_TRUE(netlink);
    ASSERT_TRUE(
        netlink->disconnect(static_cast<std::uint32_t>(std::stoul(path->substr(path->find("nbd") + 3)))));
    const auto stopped = frontend->stop();
    EXPECT_TRUE(stopped) << stopped.error().text();
}

TEST_F(NbdFrontendTest, AKilledProcessLeavesNoDevice) {
    ServingChild child;
    EXPECT_TRUE(child.device_exists());
    child.kill();
    EXPECT_FALSE(child.device_exists());
}

TEST_F(NbdFrontendTest, AKilledProcessDiesAtOnceEvenIfThePageCacheOfItsDeviceIsDirty) {
    ServingChild child;
    DirectBuffer page(kPageBytes);
    ASSERT_EQ(write_at(open_device(child.path(), Opening::buffered), page.fill(0, 1), 0), 0);
    const std::uint64_t begin = now_ns();
    child.kill();
    EXPECT_LT(now_ns() - begin, 20'000'000'000u) << "it waited for the request timeout";
    EXPECT_FALSE(child.device_exists());
}

TEST_F(NbdFrontendTest, UsersOfAKilledProcessesDeviceGetErrorsAndTheDeviceGoesWithThem) {
    ServingChild child;
    {
        const UniqueFd device = open_device(child.path());
        child.kill();
        EXPECT_TRUE(child.device_exists());
        DirectBuffer page(kPageBytes);
        EXPECT_EQ(read_at(device, page, 0), EIO);
        EXPECT_EQ(write_at(device, page, 0), EIO);
    }
    EXPECT_FALSE(child.device_exists());
}

TEST_F(NbdFrontendTest, SwapOnAKilledProcessesDeviceCanBeSwitchedOffAndThenTheDeviceGoes) {
    ServingChild child;
    {
        const UniqueFd device = open_device(child.path());
        if (!start_swap(device, child.path(), kSize.n)) GTEST_SKIP() << "swapon: " << strerror(errno);
    }
    child.kill();
    EXPECT_TRUE(child.device_exists());
    EXPECT_TRUE(stop_swap(child.path())) << strerror(errno);
    EXPECT_FALSE(child.device_exists());
}

}  // namespace
}  // namespace vramswap::test
