// SPDX-License-Identifier: MIT
// What only the loop frontend promises: how its device looks, what it says when something is missing, that a
// start which fails anywhere leaves nothing, and that when its process is killed nothing stays behind, or
// another process goes on with the device.
#include "front/loop/loop_frontend.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <linux/loop.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "base/units.h"
#include "support/block_device.h"
#include "support/loop_guardian.h"
#include "support/ram_target.h"
#include "support/without_sys_admin.h"

namespace vramswap::test {
namespace {

namespace fs = std::filesystem;

constexpr unsigned kWatchdogSeconds = 30;
constexpr Bytes kSize = mib(4);

class LoopFrontendTest : public ::testing::Test {
  protected:
    void SetUp() override {
        ::alarm(kWatchdogSeconds);
        if (const std::string problem = loop_problem(); !problem.empty()) GTEST_SKIP() << problem;
    }
    void TearDown() override { ::alarm(0); }
};

/// A folder in the place of /dev with links to some of its nodes.
class FakeDev {
  public:
    explicit FakeDev(std::initializer_list<const char*> nodes) {
        std::string name = fs::temp_directory_path() / "vramswap-dev-XXXXXX";
        if (::mkdtemp(name.data()) == nullptr) throw std::runtime_error("mkdtemp failed");
        path_ = name;
        for (const char* node : nodes) fs::create_symlink(fs::path("/dev") / node, path_ / node);
    }
    ~FakeDev() {
        std::error_code ignored;
        fs::remove_all(path_, ignored);
    }
    FakeDev(const FakeDev&) = delete;
    FakeDev& operator=(const FakeDev&) = delete;
    [[nodiscard]] std::string path() const { return path_; }

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
        std::getline(std::ifstream("/sys/block" / fs::path(path_).filename() / "loop/backing_file"),
                     backing_);
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
    /// Whether the device still has our file under it.
    [[nodiscard]] bool device_exists() const {
        std::string backing;
        std::getline(std::ifstream("/sys/block" / fs::path(path_).filename() / "loop/backing_file"), backing);
        return !backing.empty() && backing == backing_;
    }

  private:
    [[noreturn]] static void serve(const UniqueFd& out) {
        RamTarget target(kSize);
        auto frontend = make_loop_frontend();
        const auto path = frontend->start(target, {.name = unique_device_name()});
        if (path && ::write(out.get(), path->data(), path->size()) > 0)
            for (;;) ::pause();
        ::_exit(1);
    }

    pid_t pid_ = -1;
    std::string path_;
    std::string backing_;
};

/// The fifth field of /sys/block/DEVICE/stat (Documentation/block/stat.rst); it counts from the device's
/// creation by the kernel, so a number that was used before does not begin at 0.
std::uint64_t writes_completed(const std::string& path) {
    std::ifstream stat("/sys/block" / fs::path(path).filename() / "stat");
    std::array<std::uint64_t, 5> fields{};
    for (auto& field : fields) stat >> field;
    return fields[4];
}

TEST(LoopProblem, NamesTheMissingNodeAndTheRemedy) {
    const FakeDev nothing({});
    const std::string no_fuse = loop_problem_in(nothing.path());
    EXPECT_NE(no_fuse.find(nothing.path() + "/fuse"), std::string::npos) << no_fuse;
    EXPECT_NE(no_fuse.find("modprobe fuse"), std::string::npos) << no_fuse;
    if (::access("/dev/fuse", R_OK | W_OK) != 0) GTEST_SKIP() << "no access to /dev/fuse";
    const FakeDev only_fuse({"fuse"});
    const std::string no_loop = loop_problem_in(only_fuse.path());
    EXPECT_NE(no_loop.find(only_fuse.path() + "/loop-control"), std::string::npos) << no_loop;
    EXPECT_NE(no_loop.find("modprobe loop"), std::string::npos) << no_loop;
}

TEST_F(LoopFrontendTest, SaysThatItNeedsRoot) {
    const WithoutSysAdmin weaker;
    ASSERT_TRUE(weaker.done());
    const std::string problem = loop_problem();
    EXPECT_NE(problem.find("root"), std::string::npos) << problem;
}

TEST_F(LoopFrontendTest, IsADirectIoLoopDeviceThatNoMountTableShows) {
    RamTarget target(kSize);
    auto frontend = make_loop_frontend();
    const std::string name = unique_device_name();
    const std::size_t before = what_is_held().loop_devices;
    const auto path = frontend->start(target, {.name = name});
    ASSERT_TRUE(path) << path.error().text();
    EXPECT_EQ(what_is_held().loop_devices, before + 1);
    loop_info64 info{};
    ASSERT_EQ(::ioctl(open_device(*path).get(), LOOP_GET_STATUS64, &info), 0);
    EXPECT_EQ(info.lo_flags, unsigned{LO_FLAGS_DIRECT_IO | LO_FLAGS_AUTOCLEAR});
    EXPECT_STREQ(reinterpret_cast<const char*>(info.lo_file_name), ("vramswap-" + name).c_str());
    std::ifstream mountinfo("/proc/self/mountinfo");
    const std::string mounts{std::istreambuf_iterator<char>(mountinfo), {}};
    EXPECT_EQ(mounts.find("vramswap"), std::string::npos) << mounts;
    EXPECT_TRUE(frontend->stop());
    EXPECT_EQ(what_is_held().loop_devices, before);
}

TEST_F(LoopFrontendTest, OneRequestOfTheBlockLayerIsOneOfFuse) {
    RamTarget target(kSize);
    auto frontend = make_loop_frontend();
    const auto path = frontend->start(target, {.name = unique_device_name()});
    ASSERT_TRUE(path) << path.error().text();
    const std::uint64_t before = writes_completed(*path);
    {
        const UniqueFd device = open_device(*path);
        DirectBuffer buffer(kSize.n);
        EXPECT_EQ(write_at(device, buffer, 0), 0);
    }
    // The kernel counts a request a moment after it has told us of its end.
    const std::uint64_t deadline = now_ns() + 10'000'000'000;
    const auto completed = [&] { return writes_completed(*path) - before; };
    while (completed() < frontend->counters().writes && now_ns() < deadline) std::this_thread::yield();
    EXPECT_EQ(completed(), frontend->counters().writes);
    EXPECT_TRUE(frontend->stop());
}

TEST_F(LoopFrontendTest, AStartThatFailsLeavesNothing) {
    const Held before = what_is_held();
    const auto expect_failure = [&](const std::string& dev_dir, const std::string& name, const char* said) {
        RamTarget target(kSize);
        const auto started = make_loop_frontend_in(dev_dir)->start(target, {.name = name});
        ASSERT_FALSE(started);
        EXPECT_NE(started.error().text().find(said), std::string::npos) << started.error().text();
        EXPECT_EQ(target.queues() + target.registrations(), 0u);
    };
    const FakeDev nothing({});
    const FakeDev only_fuse({"fuse"});
    const FakeDev no_devices({"fuse", "loop-control"});
    expect_failure(nothing.path(), unique_device_name(), "modprobe fuse");
    expect_failure(only_fuse.path(), unique_device_name(), "modprobe loop");
    expect_failure(no_devices.path(), unique_device_name(), "no device node");
    expect_failure("/dev", "", "name");
    expect_failure("/dev", "a/b", "name");
    {
        const WithoutSysAdmin weaker;
        ASSERT_TRUE(weaker.done());
        expect_failure("/dev", unique_device_name(), "root");
    }
    EXPECT_EQ(what_stays(before), "");
}

TEST_F(LoopFrontendTest, DestructionWithoutStopRemovesTheDevice) {
    const Held before = what_is_held();
    {
        RamTarget target(kSize);
        auto frontend = make_loop_frontend();
        const auto path = frontend->start(target, {.name = unique_device_name()});
        ASSERT_TRUE(path) << path.error().text();
        frontend.reset();
        EXPECT_EQ(target.queues() + target.registrations(), 0u);
    }
    EXPECT_EQ(what_stays(before), "");
}

TEST_F(LoopFrontendTest, DestructionUnderAUserEndsWithErrorsAndNotInAHang) {
    const Held before = what_is_held();
    {
        RamTarget target(kSize);
        auto frontend = make_loop_frontend();
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
        EXPECT_EQ(read_at(device, page, 0), EIO);
        EXPECT_EQ(target.queues() + target.registrations(), 0u);
    }
    EXPECT_EQ(what_stays(before), "");
}

TEST_F(LoopFrontendTest, AKilledProcessLeavesNoDevice) {
    ServingChild child;
    EXPECT_TRUE(child.device_exists());
    child.kill();
    EXPECT_FALSE(child.device_exists());
}

TEST_F(LoopFrontendTest, AKilledProcessDiesEvenIfThePageCacheOfItsDeviceIsDirty) {
    ServingChild child;
    DirectBuffer page(kPageBytes);
    ASSERT_EQ(write_at(open_device(child.path(), Opening::buffered), page.fill(0, 1), 0), 0);
    child.kill();
    EXPECT_FALSE(child.device_exists());
}

TEST_F(LoopFrontendTest, UsersOfAKilledProcessesDeviceGetErrorsAndTheDeviceGoesWithThem) {
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

TEST_F(LoopFrontendTest, SwapOnAKilledProcessesDeviceCanBeSwitchedOffAndThenTheDeviceGoes) {
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

TEST(LoopTakeOver, NeedsBothDescriptors) {
    const auto expect_unavailable = [](const HeldFds& held) {
        RamTarget target(kSize);
        const auto path = make_loop_frontend()->take_over(target, {.name = unique_device_name()}, held);
        ASSERT_FALSE(path);
        EXPECT_EQ(path.error().code, Errc::unavailable) << path.error().text();
        EXPECT_NE(path.error().text().find("descriptors"), std::string::npos) << path.error().text();
    };
    HeldFds held;
    expect_unavailable(held);
    held.emplace("front-device", UniqueFd(::open("/dev/null", O_RDWR | O_CLOEXEC)));
    expect_unavailable(held);
}

/// A request of a user, and how many of them reach the server at a time.
struct Request {
    const char* kind;
    std::uint32_t at_a_time;
};

constexpr std::size_t kRequestBytes = 64u << 10;
constexpr std::uint64_t kOld = 1;  // generations of data
constexpr std::uint64_t kNew = 2;
/// Some of these start a dozen processes one after the other, which takes a sanitizer on a busy machine a
/// while.
constexpr unsigned kManyProcessesSeconds = 120;

/// A device that has been served, with what a guardian keeps of it.
class LoopTakeOverTest : public ::testing::Test {
  protected:
    void SetUp() override {
        ::alarm(kManyProcessesSeconds);
        if (const std::string problem = loop_problem(); !problem.empty()) GTEST_SKIP() << problem;
        path = guardian.serve();
        ASSERT_TRUE(path.starts_with("/dev/loop")) << path;
        if (guardian.held().empty())
            GTEST_SKIP() << "this kernel's FUSE does not send requests again (it takes Linux 6.9)";
        for (std::uint64_t i = 0; i < kRequests; ++i) guardian.store(offset(i), kRequestBytes, kOld);
    }
    void TearDown() override { ::alarm(0); }

    static constexpr std::uint64_t kRequests = 6;
    /// Apart, so that the block layer does not merge them.
    static std::uint64_t offset(std::uint64_t i) { return i * 4 * kRequestBytes; }

    [[nodiscard]] int use(const std::string& kind, std::uint64_t offset, std::uint64_t generation) const {
        return LoopUser(arguments(kind, offset, generation)).status();
    }
    /// All at once; the users stay.
    void send_requests(const std::string& kind) {
        for (std::uint64_t i = 0; i < kRequests; ++i)
            users.push_back(
                std::make_unique<LoopUser>(arguments(kind, offset(i), kind == "read" ? kOld : kNew)));
    }
    void expect_no_answer() {
        for (auto& user : users) EXPECT_TRUE(user->is_running());
    }
    /// Every user got what it asked for.
    void expect_done(const std::string& kind) {
        for (std::uint64_t i = 0; i < kRequests; ++i) {
            SCOPED_TRACE(i);
            ASSERT_EQ(users[i]->status(), 0);
            if (kind == "discard")
                EXPECT_TRUE(guardian.stores_zeros(offset(i), kRequestBytes));
            else
                EXPECT_TRUE(guardian.stores(offset(i), kRequestBytes, kind == "read" ? kOld : kNew));
        }
    }
    void expect_usable() {
        EXPECT_EQ(use("write", 0, 3), 0);
        EXPECT_EQ(use("read", 0, 3), 0);
        EXPECT_TRUE(guardian.stores(0, kRequestBytes, 3));
    }
    void expect_stop_leaves_nothing() {
        EXPECT_EQ(guardian.stop(), "stopped");
        EXPECT_TRUE(guardian.held().empty());
        guardian.kill();
        EXPECT_EQ(what_stays(before), "");
    }

    // Outlives the guardian: requests that nobody has answered end when it lets go.
    std::vector<std::unique_ptr<LoopUser>> users;
    LoopGuardian guardian{kSize};
    const Held before = what_is_held();
    std::string path;

    [[nodiscard]] std::vector<std::string> arguments(const std::string& kind, std::uint64_t offset,
                                                     std::uint64_t generation) const {
        return {kind, path, fmt::format("{}", offset), fmt::format("{}", kRequestBytes),
                fmt::format("{}", generation)};
    }
};

class LoopTakeOverOf : public LoopTakeOverTest, public ::testing::WithParamInterface<Request> {};

TEST_P(LoopTakeOverOf, RequestsThatTheDeadProcessHadComplete) {
    guardian.hold(GetParam().at_a_time);
    send_requests(GetParam().kind);
    ASSERT_EQ(guardian.wait_answer(), "held");
    guardian.kill();
    expect_no_answer();
    EXPECT_EQ(guardian.serve(), path);
    ASSERT_NO_FATAL_FAILURE(expect_done(GetParam().kind));
    expect_usable();
    expect_stop_leaves_nothing();
}

TEST_P(LoopTakeOverOf, RequestsThatTwoDeadProcessesHadComplete) {
    guardian.hold(GetParam().at_a_time);
    send_requests(GetParam().kind);
    ASSERT_EQ(guardian.wait_answer(), "held");
    EXPECT_EQ(guardian.serve({.hold = GetParam().at_a_time}), path);
    ASSERT_EQ(guardian.wait_answer(), "held");
    guardian.kill();
    expect_no_answer();
    EXPECT_EQ(guardian.serve(), path);
    ASSERT_NO_FATAL_FAILURE(expect_done(GetParam().kind));
    expect_usable();
    expect_stop_leaves_nothing();
}

// Discards hold a lock of the file, so one at a time comes.
INSTANTIATE_TEST_SUITE_P(Kinds, LoopTakeOverOf,
                         ::testing::Values(Request{"write", 2}, Request{"read", 2}, Request{"discard", 1}),
                         [](const auto& kind) { return std::string(kind.param.kind); });

TEST_F(LoopTakeOverTest, DeviceThatNobodyUsesGoesOnAndKeepsItsDirtyPageCache) {
    ASSERT_EQ(use("dirty", 0, kNew), 0);
    guardian.kill();
    EXPECT_EQ(guardian.serve(), path);
    EXPECT_EQ(guardian.stop(), "stopped");
    EXPECT_TRUE(guardian.stores(0, kRequestBytes, kNew));
    guardian.kill();
    EXPECT_EQ(what_stays(before), "");
}

TEST_F(LoopTakeOverTest, DeviceThatNobodyTakesOverGoesWithItsGuardiansDescriptors) {
    guardian.kill();
    guardian.let_go();
    EXPECT_EQ(what_stays(before), "");
}

TEST_F(LoopTakeOverTest, DeviceOfAnotherNameOrSizeIsRefusedAndStaysAsItIs) {
    guardian.hold(2);
    send_requests("write");
    ASSERT_EQ(guardian.wait_answer(), "held");
    guardian.kill();
    const std::string other_name = guardian.serve({.name = "other"});
    EXPECT_NE(other_name.find("not '/vramswap-other'"), std::string::npos) << other_name;
    const std::string other_size = guardian.serve({.size = mib(2)});
    EXPECT_NE(other_size.find(fmt::format("{} bytes, not {}", kSize.n, mib(2).n)), std::string::npos)
        << other_size;
    expect_no_answer();
    EXPECT_EQ(guardian.serve(), path);
    ASSERT_NO_FATAL_FAILURE(expect_done("write"));
    expect_stop_leaves_nothing();
}

TEST_F(LoopTakeOverTest, LosesNothingThoughKilledAgainAndAgainUnderLoad) {
    constexpr std::uint64_t kRounds = 50;
    constexpr unsigned kKills = 15;
    for (std::uint64_t i = 0; i < kRequests; ++i)
        users.push_back(std::make_unique<LoopUser>(arguments("load", offset(i), kRounds)));
    unsigned kills = 0;
    for (; kills < kKills && users.front()->is_running(); ++kills) {
        guardian.kill();
        ASSERT_EQ(guardian.serve(), path);
    }
    EXPECT_GT(kills, 1u);
    for (auto& user : users) EXPECT_EQ(user->status(), 0);
    expect_stop_leaves_nothing();
}

TEST_F(LoopTakeOverTest, DeviceThatIsSwapGoesOn) {
    const int on = LoopUser({"swapon", path, fmt::format("{}", kSize.n)}).status();
    if (on != 0) GTEST_SKIP() << "swapon: " << strerror(on);
    guardian.kill();
    EXPECT_EQ(guardian.serve(), path);
    EXPECT_EQ(guardian.stop().find(path + " is in use as swap"), 0u);
    EXPECT_EQ(LoopUser({"swapoff", path}).status(), 0);
    expect_stop_leaves_nothing();
}

}  // namespace
}  // namespace vramswap::test
