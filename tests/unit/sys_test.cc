// SPDX-License-Identifier: MIT
// src/sys: parsers over good, odd and malformed text, readers over a fake tree, the swap header against its
// layout and against mkswap, and calls that change a process in forked children, so that the test process
// stays as it is. Parts that need root or a real memory control group are skipped without.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "sys/cgroup.h"
#include "sys/power.h"
#include "sys/proc.h"
#include "sys/process.h"
#include "sys/swap_area.h"
#include "sys/zram.h"

namespace vramswap {
namespace {

namespace fs = std::filesystem;

// AddressSanitizer replaces mlockall by nothing.
#if defined(__SANITIZE_ADDRESS__)
constexpr bool kLocksMemory = false;
#else
constexpr bool kLocksMemory = true;
#endif

/// A temporary directory that stands for "/".
class FakeTree {
  public:
    FakeTree() {
        std::string name = (fs::temp_directory_path() / "vramswap-sys-XXXXXX").string();
        if (::mkdtemp(name.data()) == nullptr) std::abort();
        path_ = name;
    }
    ~FakeTree() {
        std::error_code ignored;
        fs::remove_all(path_, ignored);
    }
    FakeTree(const FakeTree&) = delete;
    FakeTree& operator=(const FakeTree&) = delete;

    [[nodiscard]] SysRoot root() const { return SysRoot{path_}; }
    [[nodiscard]] std::string at(const std::string& below) const { return path_ + below; }
    void put(const std::string& below, std::string_view content) const {
        fs::create_directories(fs::path(at(below)).parent_path());
        std::ofstream(at(below), std::ios::binary | std::ios::trunc) << content;
    }
    [[nodiscard]] std::string get(const std::string& below) const {
        std::ifstream in(at(below), std::ios::binary);
        return {std::istreambuf_iterator<char>(in), {}};
    }

  private:
    std::string path_;
};

/// Runs `body` in a forked child; true if it returned true there.
template <typename Body>
bool in_child(Body body) {
    const pid_t child = ::fork();
    if (child == 0) ::_exit(body() ? 0 : 1);
    int status = 0;
    return ::waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

/// A child process that waits on a pipe, allocates what it is told to, and ends at the latest with this
/// object.
class WaitingChild {
  public:
    WaitingChild() {
        std::array<int, 2> to{};
        std::array<int, 2> from{};
        if (::pipe(to.data()) != 0 || ::pipe(from.data()) != 0) std::abort();
        pid_ = ::fork();
        if (pid_ == 0) {
            ::close(to[1]);
            ::close(from[0]);
            serve(to[0], from[1]);
        }
        ::close(to[0]);
        ::close(from[1]);
        orders_.reset(to[1]);
        answers_.reset(from[0]);
    }
    ~WaitingChild() {
        if (pid_ > 0) ::kill(pid_, SIGKILL);
        (void)reap();
    }
    WaitingChild(const WaitingChild&) = delete;
    WaitingChild& operator=(const WaitingChild&) = delete;

    [[nodiscard]] pid_t pid() const { return pid_; }
    /// Lets it end by itself.
    void release() { orders_.reset(); }
    /// The child touches so many MiB and keeps them.
    bool touch_mib(std::uint8_t amount) {
        std::uint8_t answer = 0;
        return ::write(orders_.get(), &amount, 1) == 1 && ::read(answers_.get(), &answer, 1) == 1;
    }
    /// The wait status; the process is gone afterwards.
    int reap() {
        int status = 0;
        if (pid_ > 0) ::waitpid(pid_, &status, 0);
        pid_ = -1;
        return status;
    }

  private:
    [[noreturn]] static void serve(int orders, int answers) {
        std::uint8_t amount = 0;
        while (::read(orders, &amount, 1) == 1) {
            const std::size_t size = std::size_t{amount} << 20;
            volatile char* const memory = static_cast<char*>(std::malloc(size));
            for (std::size_t i = 0; memory != nullptr && i < size; i += kPageBytes) memory[i] = 1;
            if (::write(answers, &amount, 1) != 1) break;
        }
        ::_exit(0);
    }

    pid_t pid_ = -1;
    UniqueFd orders_;
    UniqueFd answers_;
};

// --- SysRoot and escapes ---

TEST(SysRoot, JoinsWithOneSlash) {
    EXPECT_EQ(SysRoot{}.at("/proc/meminfo"), "/proc/meminfo");
    EXPECT_EQ(SysRoot{}.at("proc/meminfo"), "/proc/meminfo");
    EXPECT_EQ(SysRoot{"/tmp/x"}.at("/proc"), "/tmp/x/proc");
    EXPECT_EQ(SysRoot{"/tmp/x//"}.at("proc"), "/tmp/x/proc");
}

TEST(DecodeOctal, DecodesOnlyWholeEscapes) {
    EXPECT_EQ(decode_octal(""), "");
    EXPECT_EQ(decode_octal(R"(a\040b\011c\134d\012)"), "a b\tc\\d\n");
    EXPECT_EQ(decode_octal(R"(end\04)"), R"(end\04)");
    EXPECT_EQ(decode_octal(R"(\)"), R"(\)");
    EXPECT_EQ(decode_octal(R"(\089\x20)"), R"(\089\x20)");
    EXPECT_EQ(decode_octal(R"(\400)"), R"(\400)");
    EXPECT_EQ(decode_octal(R"(\377)"), "\xff");
}

// --- meminfo ---

constexpr std::string_view kMeminfo =
    "MemTotal:       24684084 kB\n"
    "MemFree:        24452136 kB\n"
    "MemAvailable:   24397152 kB\n"
    "SwapCached:            0 kB\n"
    "SwapTotal:       8388604 kB\n"
    "SwapFree:        8000000 kB\n"
    "HugePages_Total:       0\n";

TEST(Meminfo, ReadsTheFieldsAsBytes) {
    const auto info = parse_meminfo(kMeminfo);
    ASSERT_TRUE(info);
    EXPECT_EQ(info->total, kib(24684084));
    EXPECT_EQ(info->free, kib(24452136));
    EXPECT_EQ(info->available, kib(24397152));
    EXPECT_EQ(info->swap_total, kib(8388604));
    EXPECT_EQ(info->swap_free, kib(8000000));
}

TEST(Meminfo, SkipsWhatItCannotRead) {
    const auto info = parse_meminfo(
        "MemTotal: 1000 kB\nMemFree: 600 kB\nMemAvailable: x kB\nSwapTotal: 99999999999999999999 kB\n"
        "SwapFree: 18446744073709551615 kB\nnonsense\n:\n\nMemTotal: -5 kB\nMemTotal: 7 MB\nMemTotal:");
    ASSERT_TRUE(info);
    EXPECT_EQ(info->total, kib(1000));
    EXPECT_EQ(info->available, kib(600)) << "falls back to MemFree";
    EXPECT_EQ(info->swap_total, Bytes{});
    EXPECT_EQ(info->swap_free, Bytes{});
}

TEST(Meminfo, NeedsATotal) {
    EXPECT_FALSE(parse_meminfo(""));
    EXPECT_FALSE(parse_meminfo("MemTotal: 0 kB\n"));
    EXPECT_FALSE(parse_meminfo(std::string_view("\0\0\n", 3)));
}

TEST(Meminfo, ReadsFromTheTree) {
    const FakeTree tree;
    const auto missing = read_meminfo(tree.root());
    ASSERT_FALSE(missing);
    EXPECT_EQ(missing.error().code, Errc::not_found);
    tree.put("/proc/meminfo", kMeminfo);
    const auto info = read_meminfo(tree.root());
    ASSERT_TRUE(info);
    EXPECT_EQ(info->total, kib(24684084));
    tree.put("/proc/meminfo", "");
    const auto empty = read_meminfo(tree.root());
    ASSERT_FALSE(empty);
    EXPECT_NE(empty.error().message.find("/proc/meminfo"), std::string::npos);
}

// --- vmstat ---

TEST(Vmstat, CountsByNameAndMissingIsZero) {
    const VmStat stat = parse_vmstat(
        "nr_free_pages 6113034\npswpin 12\npswpout 34\npgmajfault 56\nswpin_zero 7\nswpout_zero 8\n"
        "bad\nworse x\nminus -1\nhuge 99999999999999999999\ntop 18446744073709551615");
    EXPECT_EQ(stat.pswpin(), 12u);
    EXPECT_EQ(stat.pswpout(), 34u);
    EXPECT_EQ(stat.pgmajfault(), 56u);
    EXPECT_EQ(stat.swpin_zero(), 7u);
    EXPECT_EQ(stat.swpout_zero(), 8u);
    EXPECT_EQ(stat.get("top"), 18446744073709551615u);
    EXPECT_TRUE(stat.has("nr_free_pages"));
    for (const auto* name : {"bad", "worse", "minus", "huge", "", "absent"}) {
        EXPECT_FALSE(stat.has(name)) << name;
        EXPECT_EQ(stat.get(name), 0u) << name;
    }
    EXPECT_TRUE(parse_vmstat("").counters.empty());
    EXPECT_EQ(parse_vmstat("").swpin_zero(), 0u);
}

TEST(Vmstat, ReadsFromTheTree) {
    const FakeTree tree;
    EXPECT_FALSE(read_vmstat(tree.root()));
    tree.put("/proc/vmstat", "pswpin 5\n");
    const auto stat = read_vmstat(tree.root());
    ASSERT_TRUE(stat);
    EXPECT_EQ(stat->pswpin(), 5u);
}

// --- swaps ---

TEST(Swaps, ReadsLinesOfAllKinds) {
    const auto areas = parse_swaps(
        "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
        "/dev/ublkb0                             partition\t6291452\t\t1024\t\t32767\n"
        "/var/swap\\040file                        file\t\t1048572\t\t0\t\t-2\n"
        "/gone\\040(deleted)                       file\t\t4092\t\t4092\t\t-3\n"
        "/odd\\134name                             strange\t8\t0\t0\n");
    ASSERT_EQ(areas.size(), 4u);
    EXPECT_EQ(areas[0].path, "/dev/ublkb0");
    EXPECT_EQ(areas[0].kind, SwapKind::partition);
    EXPECT_EQ(areas[0].size, kib(6291452));
    EXPECT_EQ(areas[0].used, kib(1024));
    EXPECT_EQ(areas[0].priority, 32767);
    EXPECT_FALSE(areas[0].deleted);
    EXPECT_EQ(areas[1].path, "/var/swap file");
    EXPECT_EQ(areas[1].kind, SwapKind::file);
    EXPECT_EQ(areas[1].priority, -2);
    EXPECT_EQ(areas[2].path, "/gone");
    EXPECT_TRUE(areas[2].deleted);
    EXPECT_EQ(areas[3].path, "/odd\\name");
    EXPECT_EQ(areas[3].kind, SwapKind::other);
}

TEST(Swaps, SkipsMalformedLines) {
    EXPECT_TRUE(parse_swaps("").empty());
    EXPECT_TRUE(parse_swaps("Filename Type Size Used Priority\n").empty());
    EXPECT_TRUE(parse_swaps("\n\n \t \n").empty());
    const auto areas = parse_swaps(
        "/a partition\n/b partition 4 x 1\n/c partition 99999999999999999999 0 1\n/d partition -4 0 1\n"
        "/e partition 4 0 99999999999\n/f partition 18446744073709551615 0 1\n/good file 4 0 1");
    ASSERT_EQ(areas.size(), 1u);
    EXPECT_EQ(areas[0].path, "/good");
}

TEST(Swaps, ATreeWithoutTheFileHasNone) {
    const FakeTree tree;
    const auto none = read_swaps(tree.root());
    ASSERT_TRUE(none);
    EXPECT_TRUE(none->empty());
    tree.put("/proc/swaps", "Filename\n/dev/loop0 partition 100 4 5\n");
    const auto one = read_swaps(tree.root());
    ASSERT_TRUE(one);
    EXPECT_EQ(one->size(), 1u);
}

TEST(Swaps, FindPrefersTheOneThatHasItsName) {
    std::vector<SwapArea> areas(3);
    areas[0].path = "/swap";
    areas[0].deleted = true;
    areas[1].path = "/swap";
    areas[2].path = "/gone";
    areas[2].deleted = true;
    EXPECT_EQ(find_swap(areas, "/swap"), &areas[1]);
    EXPECT_EQ(find_swap(areas, "/gone"), &areas[2]);
    EXPECT_EQ(find_swap(areas, "/swa"), nullptr);
    EXPECT_EQ(find_swap({}, "/swap"), nullptr);
}

// --- block stat ---

TEST(BlockStat, ReadsElevenFifteenAndSeventeenFields) {
    const auto old = parse_block_stat("  1 2 3 4 5 6 7 8 9 10 11\n");
    ASSERT_TRUE(old);
    EXPECT_EQ(old->reads, 1u);
    EXPECT_EQ(old->read_bytes(), Bytes{3 * 512});
    EXPECT_EQ(old->writes, 5u);
    EXPECT_EQ(old->write_bytes(), Bytes{7 * 512});
    EXPECT_EQ(old->in_flight, 9u);
    EXPECT_EQ(old->time_in_queue_ms, 11u);
    EXPECT_EQ(old->discards, 0u);

    const auto middle = parse_block_stat("1 2 3 4 5 6 7 8 9 10 11 12 13 14 15");
    ASSERT_TRUE(middle);
    EXPECT_EQ(middle->discards, 12u);
    EXPECT_EQ(middle->discard_bytes(), Bytes{14 * 512});
    EXPECT_EQ(middle->flushes, 0u);

    const auto present = parse_block_stat("1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 what\n");
    ASSERT_TRUE(present);
    EXPECT_EQ(present->flushes, 16u);
    EXPECT_EQ(present->flush_ticks_ms, 17u);
}

TEST(BlockStat, RefusesShortAndMalformedText) {
    EXPECT_FALSE(parse_block_stat(""));
    EXPECT_FALSE(parse_block_stat("1 2 3 4 5 6 7 8 9 10"));
    EXPECT_FALSE(parse_block_stat("1 2 x 4 5 6 7 8 9 10 11"));
    EXPECT_FALSE(parse_block_stat("1 2 99999999999999999999 4 5 6 7 8 9 10 11"));
}

TEST(BlockStat, ReadsFromTheTreeByName) {
    const FakeTree tree;
    tree.put("/sys/block/loop0/stat", "1 2 3 4 5 6 7 8 9 10 11\n");
    EXPECT_TRUE(read_block_stat("loop0", tree.root()));
    const auto missing = read_block_stat("loop1", tree.root());
    ASSERT_FALSE(missing);
    EXPECT_EQ(missing.error().code, Errc::not_found);
    for (const auto* name : {"", ".", "..", "/dev/loop0", "../block/loop0"}) {
        const auto bad = read_block_stat(name, tree.root());
        ASSERT_FALSE(bad) << name;
        EXPECT_EQ(bad.error().code, Errc::usage) << name;
    }
}

// --- pressure ---

TEST(Pressure, ReadsAvg10) {
    const auto both = parse_pressure(
        "some avg10=12.34 avg60=0.00 avg300=0.00 total=1\nfull avg10=5.00 avg60=0.00 avg300=0.00 total=0\n");
    ASSERT_TRUE(both);
    EXPECT_DOUBLE_EQ(both->some_avg10_percent, 12.34);
    EXPECT_DOUBLE_EQ(both->full_avg10_percent, 5.0);
    const auto some = parse_pressure("some avg60=1 avg10=3\nfull avg10=x\n");
    ASSERT_TRUE(some);
    EXPECT_DOUBLE_EQ(some->some_avg10_percent, 3.0);
    EXPECT_DOUBLE_EQ(some->full_avg10_percent, 0.0);
}

TEST(Pressure, RefusesNonsense) {
    for (const auto* text : {"", "some", "some avg10=", "some avg10=nan", "some avg10=inf", "some avg10=-1",
                             "some avg10=101", "full avg10=1.0\n", "some avg10=1.0.0"}) {
        EXPECT_FALSE(parse_pressure(text)) << text;
    }
    const FakeTree tree;
    const auto absent = read_memory_pressure(tree.root());
    ASSERT_FALSE(absent);
    EXPECT_EQ(absent.error().code, Errc::unavailable);
    tree.put("/proc/pressure/memory", "some avg10=1.00\nfull avg10=0.50\n");
    EXPECT_TRUE(read_memory_pressure(tree.root()));
}

// --- power ---

TEST(Power, IsJudged) {
    const PowerSupply ac{.type = "Mains", .scope = "", .online = "1", .status = "", .present = ""};
    PowerSupply no_ac = ac;
    no_ac.online = "0";
    PowerSupply usb = ac;
    usb.type = "USB";
    PowerSupply no_usb = usb;
    no_usb.online = "0";
    const auto battery = [](const char* status) {
        return PowerSupply{.type = "Battery", .scope = "", .online = "", .status = status, .present = "1"};
    };
    PowerSupply mouse = battery("Discharging");
    mouse.scope = "Device";
    PowerSupply bay = battery("Discharging");
    bay.present = "0";
    PowerSupply ups = battery("Discharging");
    ups.type = "UPS";
    struct Case {
        const char* what;
        std::vector<PowerSupply> supplies;
        PowerState state;
    };
    const Case cases[] = {
        {"a desktop", {}, PowerState::mains},
        {"a desktop whose mains is not told", {no_ac}, PowerState::mains},
        {"with a wireless mouse", {mouse}, PowerState::mains},
        {"an empty bay", {no_ac, bay}, PowerState::mains},
        {"a notebook plugged in", {ac, battery("Charging")}, PowerState::mains},
        {"whose charger is weak", {battery("Discharging"), ac}, PowerState::mains},
        {"unplugged", {no_ac, battery("Discharging")}, PowerState::battery},
        {"just now", {no_ac, battery("Full")}, PowerState::battery},
        {"while the battery does not tell", {no_ac, battery("Unknown")}, PowerState::battery},
        {"charged by USB", {no_usb, usb, battery("Charging")}, PowerState::mains},
        {"kept by USB, with mains not there", {no_ac, usb, battery("Not charging")}, PowerState::mains},
        {"feeding a telephone", {usb, battery("Discharging")}, PowerState::battery},
        {"one of two feeds the other", {battery("Charging"), battery("Discharging")}, PowerState::battery},
        {"full, and nothing else is told", {battery("Full")}, PowerState::mains},
        {"nothing is told", {battery("")}, PowerState::unknown},
        {"nor by USB", {no_usb, battery("Unknown")}, PowerState::unknown},
        {"a UPS at work", {ups}, PowerState::battery},
    };
    for (const Case& c : cases) EXPECT_EQ(judge_power(c.supplies), c.state) << c.what;
}

TEST(Power, IsReadFromFiles) {
    const FakeTree tree;
    EXPECT_EQ(read_power(tree.root()), PowerState::mains) << "a kernel without power supplies";
    tree.put("/sys/class/power_supply/BAT0/type", "Battery\n");
    EXPECT_EQ(read_power(tree.root()), PowerState::unknown);
    tree.put("/sys/class/power_supply/BAT0/present", "1\n");
    tree.put("/sys/class/power_supply/BAT0/status", "Not charging\n");
    EXPECT_EQ(read_power(tree.root()), PowerState::mains);
    tree.put("/sys/class/power_supply/BAT0/status", "Discharging\n");
    EXPECT_EQ(read_power(tree.root()), PowerState::battery);
    tree.put("/sys/class/power_supply/AC/type", "Mains\n");
    tree.put("/sys/class/power_supply/AC/online", "1\n");
    EXPECT_EQ(read_power(tree.root()), PowerState::mains);
    tree.put("/sys/class/power_supply/BAT0/scope", "Device\n");
    tree.put("/sys/class/power_supply/AC/online", "0\n");
    EXPECT_EQ(read_power(tree.root()), PowerState::mains);
    const FakeTree odd;
    odd.put("/sys/class/power_supply", "a file");
    EXPECT_EQ(read_power(odd.root()), PowerState::unknown);
}

// --- the kernel itself ---

TEST(KernelVersionTest, ReadsReleases) {
    const auto version = [](std::string_view text) {
        const auto read = parse_kernel_version(text);
        return read ? *read : KernelVersion{99, 99, 99};
    };
    EXPECT_EQ(version("6.1.0-18-amd64"), (KernelVersion{6, 1, 0}));
    EXPECT_EQ(version("6.12-rc3"), (KernelVersion{6, 12, 0}));
    EXPECT_EQ(version("7.3.1\n"), (KernelVersion{7, 3, 1}));
    EXPECT_EQ(version("6.18.44-fc-v669"), (KernelVersion{6, 18, 44}));
    EXPECT_EQ(version("5.15."), (KernelVersion{5, 15, 0}));
    EXPECT_LT((KernelVersion{6, 2, 9}), (KernelVersion{6, 12, 0}));
    for (const auto* text : {"", "6", "6.", "six.one", ".6.1", "-6.1", "99999999999.1"}) {
        EXPECT_FALSE(parse_kernel_version(text)) << text;
    }
}

TEST(KernelVersionTest, ReadsTheTreeAndThisMachine) {
    const FakeTree tree;
    tree.put("/proc/sys/kernel/osrelease", "6.12.3-amd64\n");
    const auto fake = read_kernel_version(tree.root());
    ASSERT_TRUE(fake);
    EXPECT_EQ(*fake, (KernelVersion{6, 12, 3}));
    const auto real = read_kernel_version();
    ASSERT_TRUE(real) << real.error().text();
    EXPECT_GE(real->version, 4u);
}

TEST(Sysctl, ReadsTextAndNumbers) {
    const FakeTree tree;
    tree.put("/proc/sys/vm/page-cluster", "3\n");
    tree.put("/proc/sys/net/ipv4/tcp_mem", "188 251 376\n");
    tree.put("/proc/sys/kernel/name", "text\n");
    const auto cluster = read_sysctl_int("vm.page-cluster", tree.root());
    ASSERT_TRUE(cluster);
    EXPECT_EQ(*cluster, 3);
    const auto list = read_sysctl_int("net.ipv4.tcp_mem", tree.root());
    ASSERT_TRUE(list);
    EXPECT_EQ(*list, 188);
    const auto text = read_sysctl("kernel.name", tree.root());
    ASSERT_TRUE(text);
    EXPECT_EQ(*text, "text");
    EXPECT_FALSE(read_sysctl_int("kernel.name", tree.root()));
    const auto absent = read_sysctl_int("kernel.io_uring_disabled", tree.root());
    ASSERT_FALSE(absent);
    EXPECT_EQ(absent.error().code, Errc::unavailable);
    for (const auto* name : {"", ".", "vm..x", "vm/swappiness", ".vm", "vm.", "vm. x"}) {
        const auto bad = read_sysctl(name, tree.root());
        ASSERT_FALSE(bad) << name;
        EXPECT_EQ(bad.error().code, Errc::usage) << name;
    }
}

TEST(Zswap, IsAbsentOffOrOn) {
    const FakeTree tree;
    const std::string path = "/sys/module/zswap/parameters/enabled";
    EXPECT_EQ(read_zswap(tree.root()).value_or(KernelSwitch::on), KernelSwitch::absent);
    tree.put(path, "N\n");
    EXPECT_EQ(read_zswap(tree.root()).value_or(KernelSwitch::on), KernelSwitch::off);
    tree.put(path, "Y\n");
    EXPECT_EQ(read_zswap(tree.root()).value_or(KernelSwitch::off), KernelSwitch::on);
    tree.put(path, "");
    EXPECT_FALSE(read_zswap(tree.root()));
}

TEST(Thp, ReadsTheChosenMode) {
    EXPECT_EQ(parse_thp("always [madvise] never\n").value_or(ThpMode::absent), ThpMode::madvise);
    EXPECT_EQ(parse_thp("[always] madvise never").value_or(ThpMode::absent), ThpMode::always);
    EXPECT_EQ(parse_thp("always madvise [never]").value_or(ThpMode::absent), ThpMode::never);
    for (const auto* text : {"", "always madvise never", "[]", "[sometimes]"}) {
        EXPECT_FALSE(parse_thp(text)) << text;
    }
    const FakeTree tree;
    EXPECT_EQ(read_thp(tree.root()).value_or(ThpMode::always), ThpMode::absent);
    EXPECT_EQ(to_string(ThpMode::madvise), "madvise");
    EXPECT_EQ(to_string(KernelSwitch::absent), "absent");
    EXPECT_EQ(to_string(SwapKind::partition), "partition");
}

// --- small files ---

TEST(SmallFiles, RoundTripAndBounds) {
    const FakeTree tree;
    const std::string path = tree.at("/value");
    const auto absent = write_file(path, "1");
    ASSERT_FALSE(absent);
    EXPECT_EQ(absent.error().code, Errc::not_found);
    ASSERT_TRUE(write_file(path, "a longer text", FileCreate::if_absent));
    ASSERT_TRUE(write_file(path, "short"));
    EXPECT_EQ(read_small_file(path).value_or(""), "short");
    EXPECT_EQ(fs::status(path).permissions(), fs::perms::owner_read | fs::perms::owner_write);

    tree.put("/largest", std::string(kSmallFileBytes, 'x'));
    EXPECT_EQ(read_small_file(tree.at("/largest")).value_or("").size(), kSmallFileBytes);
    tree.put("/too-large", std::string(kSmallFileBytes + 1, 'x'));
    EXPECT_FALSE(read_small_file(tree.at("/too-large")));
    EXPECT_FALSE(read_small_file(tree.at("")));  // a directory
    const auto refused = write_file(path, std::string(kSmallFileBytes + 1, 'x'));
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, Errc::usage);
    EXPECT_EQ(tree.get("/value"), "short");
}

TEST(SmallFiles, WritesFollowNoLink) {
    const FakeTree tree;
    tree.put("/target", "kept");
    fs::create_symlink(tree.at("/target"), tree.at("/link"));
    const auto refused = write_file(tree.at("/link"), "overwritten", FileCreate::if_absent);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().sys, ELOOP);
    EXPECT_EQ(tree.get("/target"), "kept");
    EXPECT_EQ(read_small_file(tree.at("/link")).value_or(""), "kept");
}

// --- swap header ---

/// A file of `size` bytes; it is sparse.
UniqueFd make_device(const std::string& path, std::uint64_t size, int flags = 0) {
    UniqueFd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | flags, 0600));
    if (fd && ::ftruncate(fd.get(), static_cast<off_t>(size)) != 0) fd.reset();
    return fd;
}

std::uint32_t u32_at(const std::string& page, std::size_t offset) {
    std::uint32_t value = 0;
    std::memcpy(&value, page.data() + offset, sizeof value);
    return value;
}

Uuid sample_uuid() {
    Uuid uuid;
    for (std::size_t i = 0; i < 16; ++i) uuid.bytes.at(i) = static_cast<std::uint8_t>(i * 17);
    return uuid;
}

TEST(SwapHeaderTest, RoundTrip) {
    const FakeTree tree;
    const UniqueFd fd = make_device(tree.at("/device"), mib(4).n);
    ASSERT_TRUE(fd);
    ASSERT_TRUE(write_swap_header(fd.get(), mib(4), "vramswap", sample_uuid()));
    const auto header = read_swap_header(fd.get());
    ASSERT_TRUE(header) << header.error().text();
    EXPECT_EQ(header->version, 1u);
    EXPECT_EQ(header->last_page, 1023u);
    EXPECT_EQ(header->bad_pages, 0u);
    EXPECT_EQ(header->uuid, sample_uuid());
    EXPECT_EQ(header->label, "vramswap");
    EXPECT_EQ(header->device_size(), mib(4));
}

TEST(SwapHeaderTest, ByteLayout) {
    const FakeTree tree;
    const UniqueFd fd = make_device(tree.at("/device"), mib(1).n + 100);
    ASSERT_TRUE(fd);
    ASSERT_EQ(::pwrite(fd.get(), std::string(8192, '\xee').data(), 8192, 0), 8192);
    ASSERT_TRUE(write_swap_header(fd.get(), mib(1) + Bytes{100}, "fifteen letters", sample_uuid()));
    const std::string file = tree.get("/device");
    const std::string page = file.substr(0, 4096);
    EXPECT_EQ(page.substr(0, 1024), std::string(1024, '\0')) << "boot bits";
    EXPECT_EQ(u32_at(page, 1024), 1u);
    EXPECT_EQ(u32_at(page, 1028), 255u) << "a partial last page is not used";
    EXPECT_EQ(u32_at(page, 1032), 0u);
    EXPECT_EQ(std::memcmp(page.data() + 1036, sample_uuid().bytes.data(), 16), 0);
    EXPECT_EQ(page.substr(1052, 16), std::string("fifteen letters\0", 16));
    EXPECT_EQ(page.substr(1068, 4086 - 1068), std::string(4086 - 1068, '\0'));
    EXPECT_EQ(page.substr(4086), "SWAPSPACE2");
    EXPECT_EQ(file[4096], '\xee') << "the second page is not touched";
}

TEST(SwapHeaderTest, SizesAndLabelsAreChecked) {
    const FakeTree tree;
    const UniqueFd fd = make_device(tree.at("/device"), mib(1).n);
    ASSERT_TRUE(fd);
    const auto code = [&](Bytes size, std::string_view label) {
        const auto written = write_swap_header(fd.get(), size, label, {});
        return written ? std::optional<Errc>{} : std::optional<Errc>{written.error().code};
    };
    EXPECT_EQ(code({11 * kPageBytes - 1}, ""), Errc::usage);
    EXPECT_EQ(code({11 * kPageBytes}, ""), std::nullopt);
    EXPECT_EQ(code({(std::uint64_t{1} << 32) * kPageBytes}, ""), std::nullopt);
    EXPECT_EQ(code({((std::uint64_t{1} << 32) + 1) * kPageBytes}, ""), Errc::usage);
    EXPECT_EQ(code(mib(1), "sixteen letters!"), Errc::usage);
    EXPECT_EQ(code(mib(1), std::string_view("a\0b", 3)), Errc::usage);
    EXPECT_EQ(code({}, ""), Errc::usage);
}

TEST(SwapHeaderTest, ReadRefusesOtherContent) {
    const FakeTree tree;
    const UniqueFd empty = make_device(tree.at("/empty"), 0);
    const UniqueFd zeros = make_device(tree.at("/zeros"), mib(1).n);
    ASSERT_TRUE(empty && zeros);
    for (const int fd : {empty.get(), zeros.get()}) {
        const auto header = read_swap_header(fd);
        ASSERT_FALSE(header);
        EXPECT_EQ(header.error().code, Errc::not_found);
    }
    ASSERT_TRUE(write_swap_header(zeros.get(), mib(1), "", {}));
    const std::uint32_t other_byte_order = 1u << 24;
    ASSERT_EQ(::pwrite(zeros.get(), &other_byte_order, 4, 1024), 4);
    EXPECT_FALSE(read_swap_header(zeros.get()));
    EXPECT_FALSE(read_swap_header(-1));
}

TEST(SwapHeaderTest, WriteErrorsAreTold) {
    EXPECT_FALSE(write_swap_header(-1, mib(1), "", {}));
    const UniqueFd full(::open("/dev/full", O_WRONLY | O_CLOEXEC));
    if (!full) GTEST_SKIP() << "no /dev/full";
    const auto written = write_swap_header(full.get(), mib(1), "", {});
    ASSERT_FALSE(written);
    EXPECT_EQ(written.error().sys, ENOSPC);
}

TEST(SwapHeaderTest, WorksWithDirectIo) {
    const FakeTree tree;
    const UniqueFd fd = make_device(tree.at("/device"), mib(1).n, O_DIRECT);
    if (!fd) GTEST_SKIP() << "the temporary directory has no O_DIRECT";
    const auto written = write_swap_header(fd.get(), mib(1), "direct", {});
    ASSERT_TRUE(written) << written.error().text();
    const auto header = read_swap_header(fd.get());
    ASSERT_TRUE(header) << header.error().text();
    EXPECT_EQ(header->label, "direct");
}

TEST(SwapHeaderTest, EqualsThatOfMkswap) {
    constexpr const char* kMkswap = "/sbin/mkswap";
    if (::access(kMkswap, X_OK) != 0) GTEST_SKIP() << "no " << kMkswap;
    const FakeTree tree;
    const std::string theirs = tree.at("/theirs");
    const UniqueFd their_fd = make_device(theirs, mib(3).n);
    const UniqueFd our_fd = make_device(tree.at("/ours"), mib(3).n);
    ASSERT_TRUE(their_fd && our_fd);
    const std::string uuid = to_string(sample_uuid());
    ASSERT_TRUE(in_child([&] {
        const int null = ::open("/dev/null", O_WRONLY);
        ::dup2(null, STDOUT_FILENO);
        ::dup2(null, STDERR_FILENO);
        ::execl(kMkswap, kMkswap, "-U", uuid.c_str(), "-L", "vramswap", theirs.c_str(), nullptr);
        return false;
    }));
    ASSERT_TRUE(write_swap_header(our_fd.get(), mib(3), "vramswap", sample_uuid()));
    const auto header = read_swap_header(their_fd.get());
    ASSERT_TRUE(header) << header.error().text();
    EXPECT_EQ(header->last_page, 767u);
    EXPECT_EQ(header->label, "vramswap");
    EXPECT_EQ(header->uuid, sample_uuid());
    EXPECT_EQ(tree.get("/ours").substr(0, 4096), tree.get("/theirs").substr(0, 4096));
}

TEST(UuidTest, IsRandomAndOfVersion4) {
    const auto first = make_uuid();
    const auto second = make_uuid();
    ASSERT_TRUE(first && second);
    EXPECT_FALSE(*first == *second);
    const std::string text = to_string(*first);
    ASSERT_EQ(text.size(), 36u);
    EXPECT_EQ(text[14], '4');
    EXPECT_NE(std::string("89ab").find(text[19]), std::string::npos) << text;
    EXPECT_EQ(to_string(sample_uuid()), "00112233-4455-6677-8899-aabbccddeeff");
}

// --- swapon and swapoff ---

TEST(SwapOn, FlagsAreThoseOfTheKernel) {
    const auto flags = [](std::optional<int> priority, SwapDiscard discard) {
        return swap_on_flags({priority, discard}).value_or(-1);
    };
    EXPECT_EQ(flags({}, SwapDiscard::none), 0);
    EXPECT_EQ(flags(0, SwapDiscard::none), 0x8000);
    EXPECT_EQ(flags(32767, SwapDiscard::none), 0xffff);
    EXPECT_EQ(flags({}, SwapDiscard::once), 0x30000);
    EXPECT_EQ(flags({}, SwapDiscard::pages), 0x50000);
    EXPECT_EQ(flags(5, SwapDiscard::both), 0x18005) << "ONCE and PAGES together would mean ONCE";
    for (const int priority : {-1, 32768}) {
        const auto bad = swap_on_flags({priority, SwapDiscard::none});
        ASSERT_FALSE(bad) << priority;
        EXPECT_EQ(bad.error().code, Errc::usage);
    }
    EXPECT_FALSE(swap_on("/nonexistent", {40000, SwapDiscard::none}));
}

TEST(SwapOn, ErrorsNameThePathAndTheRemedy) {
    const FakeTree tree;
    const UniqueFd fd = make_device(tree.at("/no-header"), mib(1).n);
    ASSERT_TRUE(fd);
    for (const auto& path : {tree.at("/no-header"), tree.at("/absent")}) {
        const auto on = swap_on(path, {});
        ASSERT_FALSE(on);
        EXPECT_NE(on.error().message.find(path), std::string::npos);
        EXPECT_FALSE(on.error().hint.empty());
        const auto off = swap_off(path);
        ASSERT_FALSE(off);
        EXPECT_NE(off.error().message.find(path), std::string::npos);
        EXPECT_FALSE(off.error().hint.empty());
        if (on.error().sys == EPERM || on.error().sys == ENOSYS) continue;  // not root, or no swap at all
        EXPECT_EQ(on.error().code, path.ends_with("absent") ? Errc::not_found : Errc::failed);
        EXPECT_EQ(off.error().code, Errc::not_found);
    }
}

SwapArea area_of(std::string path, Bytes size, Bytes used) {
    SwapArea area;
    area.path = std::move(path);
    area.size = size;
    area.used = used;
    return area;
}

MemInfo memory_of(Bytes total, Bytes available) {
    MemInfo mem;
    mem.total = total;
    mem.available = available;
    return mem;
}

TEST(CheckSwapoff, MarginIsTwoPercentOrMore) {
    EXPECT_EQ(swapoff_margin(memory_of(gib(1), {})), mib(64));
    EXPECT_EQ(swapoff_margin(memory_of(gib(100), {})), gib(2));
    EXPECT_EQ(swapoff_margin({}), mib(64));
}

TEST(CheckSwapoff, FitsIntoRamToTheByte) {
    const std::vector<SwapArea> areas{area_of("/dev/ublkb0", gib(4), mib(100))};
    const auto exact = check_swapoff(memory_of(gib(2), mib(164)), areas, "/dev/ublkb0");
    EXPECT_EQ(exact.verdict, SwapoffVerdict::fits);
    EXPECT_EQ(exact.needed, mib(100));
    EXPECT_EQ(exact.ram_room, mib(100));
    EXPECT_EQ(exact.missing, Bytes{});
    const auto short_by_one = check_swapoff(memory_of(gib(2), mib(164) - Bytes{1}), areas, "/dev/ublkb0");
    EXPECT_EQ(short_by_one.verdict, SwapoffVerdict::too_little);
    EXPECT_EQ(short_by_one.missing, Bytes{1});
}

TEST(CheckSwapoff, OtherAreasHelpButNotItsOwnRoom) {
    const std::vector<SwapArea> areas{area_of("/dev/ublkb0", gib(4), gib(1)),
                                      area_of("/dev/sda2", gib(2), gib(2) - mib(512)),
                                      area_of("/broken", mib(1), mib(2))};
    const auto check = check_swapoff(memory_of(gib(2), mib(64)), areas, "/dev/ublkb0");
    EXPECT_EQ(check.ram_room, Bytes{});
    EXPECT_EQ(check.swap_room, mib(512));
    EXPECT_EQ(check.verdict, SwapoffVerdict::too_little);
    EXPECT_EQ(check.missing, mib(512));
    const auto other = check_swapoff(memory_of(gib(2), {}), areas, "/dev/sda2");
    EXPECT_EQ(other.swap_room, gib(3));
    EXPECT_EQ(other.verdict, SwapoffVerdict::fits);
}

TEST(CheckSwapoff, EmptyAreaFitsAndUnknownIsSaid) {
    const std::vector<SwapArea> areas{area_of("/dev/ublkb0", gib(4), {})};
    EXPECT_EQ(check_swapoff(memory_of(gib(2), {}), areas, "/dev/ublkb0").verdict, SwapoffVerdict::fits);
    const auto unknown = check_swapoff(memory_of(gib(2), gib(1)), areas, "/dev/ublkb1");
    EXPECT_EQ(unknown.verdict, SwapoffVerdict::not_in_use);
    EXPECT_EQ(unknown.needed, Bytes{});
    EXPECT_EQ(unknown.missing, Bytes{});
}

TEST(CheckSwapoff, HugeNumbersDoNotWrap) {
    const Bytes most{~std::uint64_t{0}};
    const std::vector<SwapArea> areas{area_of("/a", most, most), area_of("/b", most, {}),
                                      area_of("/c", most, {})};
    EXPECT_EQ(check_swapoff(memory_of(most, most), areas, "/a").verdict, SwapoffVerdict::fits);
}

// --- task stat and process status ---

constexpr std::string_view kStat =
    "5908 (cat) R 5891 5891 4947 0 -1 4194304 100 0 0 0 7 8 0 0 20 0 1 0 262765 3133440 387 "
    "18446744073709551615";

TEST(TaskStatTest, ReadsTheFields) {
    const auto stat = parse_task_stat(kStat);
    ASSERT_TRUE(stat);
    EXPECT_EQ(stat->pid, 5908);
    EXPECT_EQ(stat->name, "cat");
    EXPECT_EQ(stat->state, 'R');
    EXPECT_EQ(stat->parent, 5891);
    EXPECT_EQ(stat->flags, 4194304u);
    EXPECT_EQ(stat->user_ticks, 7u);
    EXPECT_EQ(stat->system_ticks, 8u);
    EXPECT_EQ(stat->start_ticks, 262765u);
}

TEST(TaskStatTest, NamesMayHoldAnything) {
    const auto stat = parse_task_stat("1 (a) Z 9 (b c) S 2 1 1 0 -1 256 0 0 0 0 3 4 0 0 20 0 1 0 99\n");
    ASSERT_TRUE(stat);
    EXPECT_EQ(stat->name, "a) Z 9 (b c");
    EXPECT_EQ(stat->state, 'S');
    EXPECT_EQ(stat->start_ticks, 99u);
    const auto unnamed = parse_task_stat("1 () S 2 1 1 0 -1 256 0 0 0 0 3 4 0 0 20 0 1 0 99");
    ASSERT_TRUE(unnamed);
    EXPECT_EQ(unnamed->name, "");
}

TEST(TaskStatTest, RefusesEveryTruncation) {
    const auto whole = std::string(kStat.substr(0, kStat.find(" 3133440")));
    ASSERT_TRUE(parse_task_stat(whole));
    for (std::size_t size = 0; size < whole.size() - 6; ++size) {
        EXPECT_FALSE(parse_task_stat(whole.substr(0, size))) << size;
    }
    for (const auto* text : {") (", "x (a) R 1", "1 (a) RR 1 1 1 0 -1 256 0 0 0 0 3 4 0 0 20 0 1 0 99",
                             "1 (a) R 1 1 1 0 -1 x 0 0 0 0 3 4 0 0 20 0 1 0 99"}) {
        EXPECT_FALSE(parse_task_stat(text)) << text;
    }
}

TEST(ProcessNameTest, IsPrintable) {
    const FakeTree tree;
    tree.put("/proc/7/comm", "a b) \x1b[2J\xc3\n\n");
    EXPECT_EQ(*read_process_name(7, tree.root()), "a b) ?[2J??");
    const auto gone = read_process_name(8, tree.root());
    ASSERT_FALSE(gone);
    EXPECT_EQ(gone.error().code, Errc::not_found);
    EXPECT_FALSE(read_process_name(::getpid())->empty());
}

TEST(ProcessMemoryTest, ReadsStatus) {
    const auto memory = parse_process_memory(
        "Name:\tcat\nVmLck:\t      12 kB\nVmRSS:\t    1668 kB\nRssAnon:\t 84 kB\nVmSwap:\t  4 kB\nVmRSS: x "
        "kB\nThreads:\t1\n");
    EXPECT_EQ(memory.locked, kib(12));
    EXPECT_EQ(memory.rss, kib(1668));
    EXPECT_EQ(memory.anonymous, kib(84));
    EXPECT_EQ(memory.swapped, kib(4));
    EXPECT_EQ(parse_process_memory("").rss, Bytes{});
    const auto self = read_process_memory(::getpid());
    ASSERT_TRUE(self);
    EXPECT_GT(self->rss, Bytes{});
    const FakeTree tree;
    EXPECT_FALSE(read_process_memory(1, tree.root()));
}

TEST(CpuTimeTest, ConvertsTicks) {
    const FakeTree tree;
    tree.put("/proc/5908/stat", kStat);
    const auto time = read_cpu_time(5908, tree.root());
    ASSERT_TRUE(time);
    const auto tick_ns = 1'000'000'000u / static_cast<std::uint64_t>(::sysconf(_SC_CLK_TCK));
    EXPECT_EQ(time->user_ns, 7 * tick_ns);
    EXPECT_EQ(time->system_ns, 8 * tick_ns);
    EXPECT_EQ(time->total_ns(), 15 * tick_ns);
    const auto gone = read_cpu_time(5909, tree.root());
    ASSERT_FALSE(gone);
    EXPECT_EQ(gone.error().code, Errc::not_found);
}

TEST(IoFlusher, BothFlagsAreNeeded) {
    const FakeTree tree;
    const auto with_flags = [&](std::uint64_t flags) {
        tree.put("/proc/7/task/8/stat",
                 "8 (q) S 1 1 1 0 -1 " + std::to_string(flags) + " 0 0 0 0 0 0 0 0 20 0 1 0 5\n");
        const auto marked = has_io_flusher(7, 8, tree.root());
        return marked && *marked;
    };
    EXPECT_TRUE(with_flags(0x00180000));
    EXPECT_TRUE(with_flags(0x00580040));
    EXPECT_FALSE(with_flags(0x00080000));
    EXPECT_FALSE(with_flags(0x00100000));
    EXPECT_FALSE(with_flags(0));
    EXPECT_FALSE(has_io_flusher(7, 9, tree.root()));
}

// --- marks of a process, each in a child ---

TEST(IoFlusher, IsInheritedByThreads) {
    // Root is not enough: containers and units may have dropped CAP_SYS_RESOURCE.
    if (in_child([] {
            const auto set = set_io_flusher();
            return !set && (set.error().sys == EPERM || set.error().code == Errc::unavailable);
        })) {
        GTEST_SKIP() << "needs CAP_SYS_RESOURCE and Linux 5.6";
    }
    const auto marked = [](pid_t tid) {
        const auto result = has_io_flusher(::getpid(), tid);
        return result && *result;
    };
    EXPECT_TRUE(in_child([&] {
        if (!set_io_flusher() || !marked(::gettid())) return false;
        bool thread_marked = false;
        std::thread([&] { thread_marked = marked(::gettid()); }).join();
        return thread_marked;
    }));
    EXPECT_FALSE(marked(::gettid())) << "the test process itself stays as it was";
}

TEST(IoFlusher, AnOrdinaryTaskIsNone) {
    const auto marked = has_io_flusher(::getpid(), ::gettid());
    ASSERT_TRUE(marked) << marked.error().text();
    EXPECT_FALSE(*marked);
}

TEST(OomScore, IsWrittenAndChecked) {
    EXPECT_TRUE(in_child([] {
        return set_oom_score_adj(900).has_value() &&
               read_small_file("/proc/self/oom_score_adj").value_or("") == "900\n";
    }));
    for (const int score : {-1001, 1001}) {
        const auto bad = set_oom_score_adj(score);
        ASSERT_FALSE(bad);
        EXPECT_EQ(bad.error().code, Errc::usage);
    }
    const FakeTree tree;
    tree.put("/proc/self/oom_score_adj", "0\n");
    ASSERT_TRUE(set_oom_score_adj(kOomScoreExempt, tree.root()));
    EXPECT_EQ(tree.get("/proc/self/oom_score_adj"), "-1000\n");
}

TEST(LockMemory, LocksInBothModes) {
    if (!is_root() || !kLocksMemory) GTEST_SKIP() << "needs root (CAP_IPC_LOCK) and no AddressSanitizer";
    for (const LockMode mode : {LockMode::populate, LockMode::on_fault}) {
        EXPECT_TRUE(in_child([&] {
            if (!lock_memory(mode)) return false;
            const auto memory = read_process_memory(::getpid());
            return memory && memory->locked > Bytes{};
        })) << static_cast<int>(mode);
    }
}

TEST(LockMemory, RefusalNamesTheLimit) {
    if (!is_root() || !kLocksMemory) GTEST_SKIP() << "needs root (to drop it) and no AddressSanitizer";
    EXPECT_TRUE(in_child([] {
        const rlimit none{0, 0};
        if (::setrlimit(RLIMIT_MEMLOCK, &none) != 0 || ::setresuid(65534, 65534, 65534) != 0) return false;
        const auto locked = lock_memory(LockMode::populate);
        return !locked && locked.error().code == Errc::no_memory &&
               locked.error().message.find("0B") != std::string::npos && !is_root();
    }));
}

TEST(ProcessMarks, CoreDumpsAndHugePagesAreOff) {
    EXPECT_TRUE(in_child([] {
        rlimit limit{1, 1};
        return disable_core_dumps() && ::prctl(PR_GET_DUMPABLE) == 0 &&
               ::getrlimit(RLIMIT_CORE, &limit) == 0 && limit.rlim_max == 0;
    }));
    constexpr int kPrGetThpDisable = 42;
    EXPECT_TRUE(in_child([] { return disable_thp() && ::prctl(kPrGetThpDisable, 0, 0, 0, 0) == 1; }));
}

TEST(RaiseNofile, NeverLowersAndTellsWhatHolds) {
    EXPECT_TRUE(in_child([] {
        rlimit limit{};
        if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return false;
        limit.rlim_cur = 64;
        if (::setrlimit(RLIMIT_NOFILE, &limit) != 0) return false;
        return raise_nofile(32).value_or(0) == 64 && raise_nofile(128).value_or(0) == 128;
    }));
    EXPECT_TRUE(in_child([] {
        const rlimit limit{64, 96};
        if (::setrlimit(RLIMIT_NOFILE, &limit) != 0) return false;
        if (is_root() && ::setresuid(65534, 65534, 65534) != 0) return false;
        return raise_nofile(1000).value_or(0) == 96;
    }));
}

TEST(ParentDeath, KnowsAParentThatIsGone) {
    const pid_t parent = ::getpid();
    EXPECT_TRUE(in_child([&] {
        int signal = 0;
        return set_parent_death_signal(SIGTERM, parent) && ::prctl(PR_GET_PDEATHSIG, &signal) == 0 &&
               signal == SIGTERM;
    }));
    EXPECT_TRUE(in_child([&] {
        const auto late = set_parent_death_signal(SIGTERM, parent + 1);
        return !late && late.error().code == Errc::not_found;
    }));
}

// --- pidfd and identity ---

TEST(Pidfd, WaitsForTheEnd) {
    WaitingChild child;
    const auto fd = open_pidfd(child.pid());
    if (!fd && fd.error().code == Errc::unavailable) GTEST_SKIP() << fd.error().text();
    ASSERT_TRUE(fd) << fd.error().text();
    const auto id = identify_process(child.pid());
    ASSERT_TRUE(id);
    EXPECT_TRUE(process_alive(fd->get()));
    EXPECT_TRUE(process_alive(*id));
    EXPECT_FALSE(process_alive(ProcessId{id->pid, id->start_ticks + 1})) << "another process of that id";
    EXPECT_EQ(wait_pidfd(fd->get(), 0).value_or(WaitOutcome::exited), WaitOutcome::timed_out);
    EXPECT_EQ(wait_pidfd(fd->get(), 1).value_or(WaitOutcome::exited), WaitOutcome::timed_out);

    child.release();
    EXPECT_EQ(wait_pidfd(fd->get(), -1).value_or(WaitOutcome::timed_out), WaitOutcome::exited);
    EXPECT_FALSE(process_alive(fd->get()));
    EXPECT_FALSE(process_alive(*id)) << "a zombie has ended";
    child.reap();
    EXPECT_FALSE(process_alive(*id));
    EXPECT_EQ(wait_pidfd(fd->get(), 0).value_or(WaitOutcome::timed_out), WaitOutcome::exited);
    const auto late = signal_pidfd(fd->get(), SIGTERM);
    ASSERT_FALSE(late);
    EXPECT_EQ(late.error().code, Errc::not_found);
}

TEST(Pidfd, SignalsAndErrors) {
    WaitingChild child;
    const auto fd = open_pidfd(child.pid());
    if (!fd) GTEST_SKIP() << fd.error().text();
    ASSERT_TRUE(signal_pidfd(fd->get(), SIGKILL));
    const int status = child.reap();
    EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    EXPECT_FALSE(process_alive(-1));
    EXPECT_FALSE(open_pidfd(-1));
    UniqueFd closed = fd->dup();
    const int number = closed.get();
    closed.reset();
    EXPECT_FALSE(wait_pidfd(number, 0));
}

// --- control groups, fake ---

constexpr std::string_view kV2Mount =
    "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 master:3 - cgroup2 cgroup2 rw,nsdelegate\n";
constexpr std::string_view kV1Mounts =
    "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n"
    "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n"
    "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
    "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";

TEST(CgroupFind, V2) {
    const FakeTree tree;
    tree.put("/proc/self/mountinfo", kV2Mount);
    tree.put("/proc/self/cgroup", "0::/user.slice/a:b.scope\n");
    tree.put("/sys/fs/cgroup/cgroup.controllers", "cpuset cpu io memory pids\n");
    tree.put("/sys/fs/cgroup/user.slice/a:b.scope/cgroup.procs", "");
    const auto found = find_memory_hierarchy(tree.root());
    ASSERT_TRUE(found) << found.error().text();
    EXPECT_EQ(found->version, CgroupVersion::v2);
    EXPECT_EQ(found->mount, "/sys/fs/cgroup");
    EXPECT_EQ(found->own, "/sys/fs/cgroup/user.slice/a:b.scope");

    tree.put("/proc/self/cgroup", "0::/../outside\n");
    const auto outside = find_memory_hierarchy(tree.root());
    ASSERT_TRUE(outside);
    EXPECT_EQ(outside->own, "/sys/fs/cgroup") << "outside of the cgroup namespace";
}

TEST(CgroupFind, HybridTakesTheSideThatHasMemory) {
    const FakeTree tree;
    tree.put("/proc/self/mountinfo", kV1Mounts);
    tree.put("/proc/self/cgroup", "9:name=systemd:/\n4:memory:/group/one\n1:cpu:/\n0::/\n");
    tree.put("/sys/fs/cgroup/unified/cgroup.controllers", "\n");
    tree.put("/sys/fs/cgroup/memory/group/one/cgroup.procs", "");
    const auto found = find_memory_hierarchy(tree.root());
    ASSERT_TRUE(found) << found.error().text();
    EXPECT_EQ(found->version, CgroupVersion::v1);
    EXPECT_EQ(found->own, "/sys/fs/cgroup/memory/group/one");
}

TEST(CgroupFind, ContainerMountShowsPartOfTheTree) {
    const FakeTree tree;
    tree.put("/proc/self/mountinfo",
             "35 31 0:32 /docker/x /cg\\040roup/memory rw - cgroup cgroup rw,cpu,memory\n");
    tree.put("/proc/self/cgroup", "4:cpu,memory:/docker/x/child\n");
    tree.put("/cg roup/memory/child/cgroup.procs", "");
    const auto inside = find_memory_hierarchy(tree.root());
    ASSERT_TRUE(inside) << inside.error().text();
    EXPECT_EQ(inside->own, "/cg roup/memory/child");
    tree.put("/proc/self/cgroup", "4:cpu,memory:/docker/xyz\n");
    const auto other = find_memory_hierarchy(tree.root());
    ASSERT_TRUE(other);
    EXPECT_EQ(other->own, "/cg roup/memory");
}

TEST(CgroupFind, SaysWhatIsMissing) {
    const FakeTree tree;
    const auto code = [&] {
        const auto found = find_memory_hierarchy(tree.root());
        return found ? std::optional<Errc>{} : std::optional<Errc>{found.error().code};
    };
    tree.put("/proc/self/mountinfo", "garbage\n\n1 2 3\n1 2 0:1 / /x rw - cgroup\n");
    EXPECT_EQ(code(), Errc::unavailable) << "no /proc/self/cgroup";
    tree.put("/proc/self/cgroup", "nonsense\n::\n0:\n4:memory\n");
    EXPECT_EQ(code(), Errc::unavailable);
    tree.put("/proc/self/mountinfo", kV2Mount);
    tree.put("/proc/self/cgroup", "0::/\n");
    EXPECT_EQ(code(), Errc::unavailable) << "the mount is not there";
    tree.put("/sys/fs/cgroup/cgroup.controllers", "cpu memory_like\n");
    const auto found = find_memory_hierarchy(tree.root());
    ASSERT_FALSE(found);
    EXPECT_EQ(found.error().code, Errc::unavailable);
    EXPECT_NE(found.error().message.find("/sys/fs/cgroup has no memory controller"), std::string::npos);
}

/// A v2 tree in which the caller sits in /user.slice/session.scope and only user.slice has the controller.
void put_v2_tree(const FakeTree& tree) {
    tree.put("/proc/self/mountinfo", kV2Mount);
    tree.put("/proc/self/cgroup", "0::/user.slice/session.scope\n");
    tree.put("/sys/fs/cgroup/cgroup.controllers", "cpu memory\n");
    tree.put("/sys/fs/cgroup/cgroup.subtree_control", "cpu memory\n");
    tree.put("/sys/fs/cgroup/user.slice/cgroup.controllers", "cpu memory\n");
    tree.put("/sys/fs/cgroup/user.slice/cgroup.subtree_control", "cpu\n");
    tree.put("/sys/fs/cgroup/user.slice/session.scope/cgroup.controllers", "cpu\n");
    tree.put("/sys/fs/cgroup/user.slice/session.scope/cgroup.subtree_control", "");
}

TEST(CgroupCreate, EnablesTheControllerInTheParent) {
    const FakeTree tree;
    put_v2_tree(tree);
    // Plain directories get no control files, so setting the limit fails and the group must go away again.
    const auto group = MemoryCgroup::create("test", mib(64), tree.root());
    ASSERT_FALSE(group);
    EXPECT_NE(group.error().message.find("user.slice/test/memory.high"), std::string::npos)
        << group.error().message;
    EXPECT_EQ(tree.get("/sys/fs/cgroup/user.slice/cgroup.subtree_control"), "+memory");
    EXPECT_EQ(tree.get("/sys/fs/cgroup/cgroup.subtree_control"), "cpu memory\n");
    EXPECT_FALSE(fs::exists(tree.at("/sys/fs/cgroup/user.slice/test")));
}

TEST(CgroupCreate, DoesNotEnableItTwice) {
    const FakeTree tree;
    put_v2_tree(tree);
    tree.put("/sys/fs/cgroup/user.slice/cgroup.subtree_control", "memory pids\n");
    EXPECT_FALSE(MemoryCgroup::create("test", mib(64), tree.root()));
    EXPECT_EQ(tree.get("/sys/fs/cgroup/user.slice/cgroup.subtree_control"), "memory pids\n");
}

TEST(CgroupCreate, RefusesWhatCannotBe) {
    const FakeTree tree;
    put_v2_tree(tree);
    for (const auto* name : {"", "a/b", "..", "cgroup.procs", "white space"}) {
        const auto bad = MemoryCgroup::create(name, mib(64), tree.root());
        ASSERT_FALSE(bad) << name;
        EXPECT_EQ(bad.error().code, Errc::usage) << name;
    }
    const auto small = MemoryCgroup::create("test", Bytes{4095}, tree.root());
    ASSERT_FALSE(small);
    EXPECT_EQ(small.error().code, Errc::usage);

    tree.put("/sys/fs/cgroup/user.slice/test/cgroup.procs", "17\n");
    const auto taken = MemoryCgroup::create("test", mib(64), tree.root());
    ASSERT_FALSE(taken);
    EXPECT_EQ(taken.error().code, Errc::exists);
    EXPECT_EQ(tree.get("/sys/fs/cgroup/user.slice/test/cgroup.procs"), "17\n");
}

TEST(CgroupFiles, V2) {
    const FakeTree tree;
    const std::string path = "/sys/fs/cgroup/test";
    for (const auto* name : {"memory.high", "memory.max", "memory.swap.max", "cgroup.procs", "cgroup.kill"}) {
        tree.put(path + "/" + name, "");
    }
    tree.put(path + "/memory.current", "123456\n");
    tree.put(path + "/memory.swap.current", "18446744073709551615\n");
    tree.put(path + "/memory.events", "low 0\nhigh 0\nmax 7\noom 3\noom_kill 2\noom_group_kill 1\n");
    {
        MemoryCgroup group = MemoryCgroup::adopt(CgroupVersion::v2, path, "", tree.root());
        ASSERT_TRUE(group.set_limit(mib(64)));
        EXPECT_EQ(tree.get(path + "/memory.high"), "67108864");
        EXPECT_EQ(tree.get(path + "/memory.max"), "134217728");
        EXPECT_EQ(tree.get(path + "/memory.swap.max"), "max");
        EXPECT_EQ(group.usage().value_or({}), Bytes{123456});
        EXPECT_EQ(group.swap_used().value_or({}), Bytes{~std::uint64_t{0}});
        EXPECT_EQ(group.oom_kills().value_or(0), 2u);
        ASSERT_TRUE(group.add_pid(4711));
        EXPECT_EQ(tree.get(path + "/cgroup.procs"), "4711");
        EXPECT_FALSE(group.add_pid(0));
        tree.put(path + "/cgroup.procs", "0\n4711\nx\n-5\n\n12\n");
        EXPECT_EQ(group.pids().value_or({}), (std::vector<pid_t>{4711, 12}));
        tree.put(path + "/cgroup.procs", "");

        tree.put(path + "/memory.current", "max\n");
        EXPECT_FALSE(group.usage());
        tree.put(path + "/memory.events", "oom 3\n");
        EXPECT_EQ(group.oom_kills().error().code, Errc::unavailable);
        fs::remove(tree.at(path + "/memory.swap.current"));
        EXPECT_EQ(group.swap_used().error().code, Errc::unavailable);
        fs::remove(tree.at(path + "/memory.swap.max"));
        EXPECT_TRUE(group.set_limit(mib(32))) << "a kernel without swap accounting";

        EXPECT_FALSE(group.remove()) << "plain files keep a plain directory";
        EXPECT_FALSE(group.path().empty());
        for (const auto& entry : fs::directory_iterator(tree.at(path))) fs::remove(entry.path());
    }
    EXPECT_FALSE(fs::exists(tree.at(path))) << "removed by the destructor";
}

TEST(CgroupFiles, V2KillWritesOneFile) {
    const FakeTree tree;
    const std::string path = "/sys/fs/cgroup/test";
    WaitingChild child;
    tree.put(path + "/cgroup.kill", "");
    tree.put(path + "/cgroup.procs", std::to_string(child.pid()) + "\n");
    MemoryCgroup group = MemoryCgroup::adopt(CgroupVersion::v2, path, "", tree.root());
    const auto killed = group.kill_all(0);
    ASSERT_FALSE(killed) << "a plain file kills nobody";
    EXPECT_EQ(killed.error().sys, ETIMEDOUT);
    EXPECT_EQ(tree.get(path + "/cgroup.kill"), "1");
    fs::remove(tree.at(path + "/cgroup.kill"));
    EXPECT_FALSE(group.kill_all(0)) << "the file of processes stays as it is";
    const int status = child.reap();
    EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL)
        << "killed one by one without cgroup.kill";
    fs::remove_all(tree.at(path));
    EXPECT_TRUE(group.remove());
}

TEST(CgroupFiles, V1) {
    const FakeTree tree;
    const std::string path = "/sys/fs/cgroup/memory/test";
    tree.put(path + "/memory.limit_in_bytes", "9223372036854771712\n");
    tree.put(path + "/memory.usage_in_bytes", "4096\n");
    tree.put(path + "/memory.stat", "cache 1\nswap 8192\ntotal_cache 2\ntotal_swap 12288\n");
    tree.put(path + "/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 5\n");
    MemoryCgroup first = MemoryCgroup::adopt(CgroupVersion::v1, path, "", tree.root());
    MemoryCgroup group = std::move(first);
    EXPECT_EQ(group.path(), path);
    ASSERT_TRUE(group.set_limit(mib(1)));
    EXPECT_EQ(tree.get(path + "/memory.limit_in_bytes"), "1048576");
    EXPECT_EQ(group.usage().value_or({}), Bytes{4096});
    EXPECT_EQ(group.swap_used().value_or({}), Bytes{12288});
    EXPECT_EQ(group.oom_kills().value_or(0), 5u);
    tree.put(path + "/memory.stat", "swap 8192\n");
    EXPECT_EQ(group.swap_used().value_or({}), Bytes{8192});
    tree.put(path + "/memory.stat", "cache 1\n");
    EXPECT_EQ(group.swap_used().error().code, Errc::unavailable);
    fs::remove_all(tree.at(path));
    EXPECT_TRUE(group.remove()) << "gone already";
    EXPECT_TRUE(group.remove()) << "twice is harmless";
}

// --- any bytes at all ---

TEST(Parsers, TakeAnyBytes) {
    constexpr std::uint32_t kSeed = 20240229;
    constexpr int kRounds = 4000;
    SCOPED_TRACE(kSeed);
    std::mt19937 random(kSeed);
    const std::vector<std::string> seeds{
        std::string(kMeminfo),        std::string(kStat),
        std::string(kV1Mounts),       "some avg10=1.00 total=4\nfull avg10=0\n",
        "/dev/a\\040b file 4 0 -2\n", "1 2 3 4 5 6 7 8 9 10 11 12\n",
        "6.1.0-18-amd64\n",           "always [madvise] never\n",
        "4:memory:/a\n0::/b\n"};
    const FakeTree tree;
    for (int round = 0; round < kRounds; ++round) {
        std::string text = seeds[random() % seeds.size()];
        for (auto left = 1 + random() % 6; left > 0; --left) {
            const std::size_t at = random() % text.size();
            if (random() % 4 == 0)
                text.resize(at + 1);
            else
                text[at] = random() % 2 == 0 ? static_cast<char>(random()) : "()[] \n:/-\\9"[random() % 11];
        }
        (void)parse_meminfo(text).has_value();
        (void)parse_vmstat(text);
        (void)parse_swaps(text);
        (void)parse_block_stat(text).has_value();
        (void)parse_pressure(text).has_value();
        (void)parse_kernel_version(text).has_value();
        (void)parse_thp(text).has_value();
        (void)parse_task_stat(text).has_value();
        (void)parse_process_memory(text);
        if (round % 20 != 0) continue;  // these two go through files
        tree.put("/proc/self/mountinfo", text);
        tree.put("/proc/self/cgroup", text);
        (void)find_memory_hierarchy(tree.root()).has_value();
    }
}

// --- control groups, real ---

/// A group of this machine, or the reason why there can be none.
Result<MemoryCgroup> real_group(std::string_view purpose) {
    if (!is_root()) return Error{Errc::unavailable, 0, "needs root"};
    return MemoryCgroup::create("vramswap-test-" + std::to_string(::getpid()) + "-" + std::string(purpose),
                                mib(64));
}

TEST(CgroupReal, LimitsCountsKillsAndLeavesNothing) {
    Result<MemoryCgroup> made = real_group("life");
    if (!made) GTEST_SKIP() << made.error().text();
    MemoryCgroup group = std::move(*made);
    const std::string path = group.path();
    const bool is_v1 = group.version() == CgroupVersion::v1;
    EXPECT_EQ(read_small_file(path + (is_v1 ? "/memory.limit_in_bytes" : "/memory.high")).value_or(""),
              "67108864\n");
    EXPECT_TRUE(group.pids().value_or({1}).empty());
    EXPECT_EQ(group.oom_kills().value_or(9), 0u);

    WaitingChild child;
    ASSERT_TRUE(group.add_pid(child.pid()));
    EXPECT_EQ(group.pids().value_or({}), std::vector<pid_t>{child.pid()});
    ASSERT_TRUE(child.touch_mib(8));
    const auto usage = group.usage();
    ASSERT_TRUE(usage) << usage.error().text();
    EXPECT_GE(*usage, mib(8));
    EXPECT_LE(*usage, mib(64));
    const auto swapped = group.swap_used();
    EXPECT_TRUE(swapped || swapped.error().code == Errc::unavailable);
    const auto taken = real_group("life");
    ASSERT_FALSE(taken);
    EXPECT_EQ(taken.error().code, Errc::exists);

    const auto removed = group.remove();
    ASSERT_TRUE(removed) << removed.error().text();
    const int status = child.reap();
    EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    EXPECT_FALSE(fs::exists(path));
    EXPECT_TRUE(group.path().empty());
}

TEST(CgroupReal, TheCallerGoesHomeAndLives) {
    if (Result<MemoryCgroup> probe = real_group("probe"); !probe) GTEST_SKIP() << probe.error().text();
    EXPECT_TRUE(in_child([] {
        const std::string before = read_small_file("/proc/self/cgroup").value_or("?");
        Result<MemoryCgroup> group = real_group("home");
        if (!group || !group->add_pid(::getpid())) return false;
        if (read_small_file("/proc/self/cgroup").value_or("?") == before) return false;
        const std::string path = group->path();
        return group->remove() && !fs::exists(path) &&
               read_small_file("/proc/self/cgroup").value_or("") == before;
    }));
}

TEST(CgroupReal, OnlyTheOwnerRemovesAndAnEmptyRestIsReplaced) {
    std::string path;
    {
        Result<MemoryCgroup> group = real_group("owner");
        if (!group) GTEST_SKIP() << group.error().text();
        path = group->path();
        EXPECT_TRUE(in_child([&] {
            { const MemoryCgroup copy = std::move(*group); }
            return fs::exists(path);
        }));
        EXPECT_TRUE(fs::exists(path));
    }
    EXPECT_FALSE(fs::exists(path)) << "removed by the destructor";
    ASSERT_TRUE(fs::create_directory(path));
    Result<MemoryCgroup> again = real_group("owner");
    ASSERT_TRUE(again) << again.error().text();
    EXPECT_TRUE(again->remove());
    EXPECT_FALSE(fs::exists(path));
}

// --- zram ---

TEST(Zram, IsMadeReadAndRemoved) {
    const FakeTree tree;
    tree.put("/sys/class/zram-control/hot_add", "3\n");
    tree.put("/sys/class/zram-control/hot_remove", "");
    tree.put("/sys/block/zram3/disksize", "0\n");
    tree.put("/sys/block/zram3/comp_algorithm", "lzo [lzo-rle] lz4\n");
    tree.put("/sys/block/zram3/mm_stat",
             "  4096  74  12288        0    12288        1        0        0        0\n");
    {
        auto zram = ZramDevice::create(mib(640), tree.root());
        ASSERT_TRUE(zram) << zram.error().text();
        EXPECT_EQ(zram->path(), "/dev/zram3");
        EXPECT_EQ(tree.get("/sys/block/zram3/disksize"), "671088640");
        EXPECT_EQ(zram->algorithm().value(), "lzo-rle");
        EXPECT_EQ(zram->ram_used().value(), Bytes{12288});
        EXPECT_EQ(tree.get("/sys/class/zram-control/hot_remove"), "");
        const ZramDevice moved = std::move(*zram);
    }
    EXPECT_EQ(tree.get("/sys/class/zram-control/hot_remove"), "3");
}

TEST(Zram, TroubleIsTold) {
    const FakeTree tree;
    auto missing = ZramDevice::create(mib(64), tree.root());
    ASSERT_FALSE(missing);
    EXPECT_EQ(missing.error().code, Errc::unavailable);
    tree.put("/sys/class/zram-control/hot_add", "many\n");
    EXPECT_FALSE(ZramDevice::create(mib(64), tree.root()));
    tree.put("/sys/class/zram-control/hot_add", "0\n");
    tree.put("/sys/class/zram-control/hot_remove", "");
    EXPECT_FALSE(ZramDevice::create(mib(64), tree.root())) << "no disksize to write";
    EXPECT_EQ(tree.get("/sys/class/zram-control/hot_remove"), "0") << "what was added is removed";
    tree.put("/sys/block/zram0/disksize", "0\n");
    tree.put("/sys/block/zram0/comp_algorithm", "lz4\n");
    tree.put("/sys/block/zram0/mm_stat", "nothing\n");
    auto zram = ZramDevice::create(mib(64), tree.root());
    ASSERT_TRUE(zram);
    EXPECT_FALSE(zram->algorithm());
    EXPECT_FALSE(zram->ram_used());
}

}  // namespace
}  // namespace vramswap
