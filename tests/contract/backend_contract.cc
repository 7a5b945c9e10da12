// SPDX-License-Identifier: MIT
// What every Backend must do, on the GPU named by $VRAMSWAP_TEST_GPU ("sim", "cuda:0", a UUID: as for --gpu).
// Without that GPU every test is skipped and says why. Takes some 100 MiB of VRAM at most; only a simulated
// GPU is filled up.
#include <fcntl.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "gpu/drivers.h"
#include "support/pages.h"

extern char** environ;

namespace vramswap {
namespace {

using test::HostMemory;
using test::mix;

constexpr Bytes kSegment = mib(16);

std::string wanted_gpu() {
    const char* wanted = std::getenv("VRAMSWAP_TEST_GPU");
    return wanted == nullptr ? "" : wanted;
}

/// Copies are made as $VRAMSWAP_TEST_MODE says.
EngineMode wanted_mode() {
    const char* wanted = std::getenv("VRAMSWAP_TEST_MODE");
    return wanted != nullptr && std::string_view(wanted) == "turbo" ? EngineMode::turbo : EngineMode::copy;
}

/// A variable of the environment for a scope.
class Variable {
  public:
    Variable(const char* name, const char* value) : name_(name) { ::setenv(name, value, 1); }
    ~Variable() { ::unsetenv(name_); }
    Variable(const Variable&) = delete;
    Variable& operator=(const Variable&) = delete;

  private:
    const char* const name_;
};

/// The GPU under test with the drivers that found it, or the reason why there is none.
struct OpenedGpu {
    std::vector<DriverEntry> drivers = all_drivers();
    std::unique_ptr<Backend> backend;
    std::string problem;

    OpenedGpu() {
        if (wanted_gpu().empty()) {
            problem = "VRAMSWAP_TEST_GPU is not set";
            return;
        }
        const auto gpu = select_gpu(survey(drivers), wanted_gpu(), SimFallback::never);
        if (!gpu) {
            problem = gpu.error().text();
            return;
        }
        auto opened = open_gpu(drivers, *gpu);
        if (opened)
            backend = std::move(*opened);
        else
            problem = opened.error().text();
    }
};

/// Opened for all tests together: making a context takes long on a real GPU.
std::unique_ptr<OpenedGpu>& the_gpu() {
    static std::unique_ptr<OpenedGpu> gpu;
    if (!gpu) gpu = std::make_unique<OpenedGpu>();
    return gpu;
}

// ---- contents ----

/// Words that depend on their place and on `seed`, from any byte address.
void fill(std::byte* at, std::size_t bytes, std::uint64_t seed) {
    for (std::size_t i = 0; i < bytes; i += sizeof(std::uint64_t)) {
        const std::uint64_t word = mix(seed * 0x10001 + i);
        std::memcpy(at + i, &word, sizeof word);
    }
}

/// Offset of the first wrong word, or none.
std::optional<std::size_t> first_wrong(const std::byte* at, std::size_t bytes, std::uint64_t seed) {
    for (std::size_t i = 0; i < bytes; i += sizeof(std::uint64_t)) {
        std::uint64_t word = 0;
        std::memcpy(&word, at + i, sizeof word);
        if (word != mix(seed * 0x10001 + i)) return i;
    }
    return std::nullopt;
}

IoStatus wait_for(TransferQueue& queue, Ticket ticket) {
    IoStatus status = IoStatus::pending;
    while (status == IoStatus::pending) status = queue.poll(ticket);
    return status;
}

IoStatus transfer(TransferQueue& queue, std::span<const Copy> copies) {
    Ticket ticket = 0;
    const IoStatus status = queue.submit(copies, ticket);
    return status == IoStatus::pending ? wait_for(queue, ticket) : status;
}

Copy to_gpu(SegmentId segment, std::uint64_t offset, std::byte* host, std::size_t bytes) {
    return {Copy::Op::to_gpu, segment, offset, host, static_cast<std::uint32_t>(bytes)};
}
Copy from_gpu(SegmentId segment, std::uint64_t offset, std::byte* host, std::size_t bytes) {
    return {Copy::Op::from_gpu, segment, offset, host, static_cast<std::uint32_t>(bytes)};
}

// ---- fixture ----

class BackendContract : public ::testing::Test {
  protected:
    void SetUp() override {
        if (!the_gpu()->backend) GTEST_SKIP() << the_gpu()->problem;
        memory_.emplace(kMemory);
        ASSERT_TRUE(gpu().register_host(memory_->all()));
    }
    void TearDown() override {
        if (!the_gpu()->backend) return;
        for (const SegmentId segment : segments_) EXPECT_TRUE(gpu().free_segment(segment));
        if (memory_.has_value()) {
            EXPECT_TRUE(gpu().unregister_host(memory_->all()));
        }
        EXPECT_EQ(gpu().health(), Health::good);
    }

    static Backend& gpu() { return *the_gpu()->backend; }
    static bool simulated() { return gpu().info().kind == GpuKind::simulated; }

    /// A segment that is freed at the end.
    SegmentId segment(Bytes size = kSegment) {
        auto made = gpu().allocate_segment(size);
        if (!made) throw std::runtime_error(made.error().text());
        segments_.push_back(*made);
        return *made;
    }
    static std::unique_ptr<TransferQueue> make_queue() {
        auto queue = gpu().make_queue();
        if (!queue) throw std::runtime_error(queue.error().text());
        (*queue)->set_mode(wanted_mode());
        return std::move(*queue);
    }
    static Bytes free_now() {
        const auto info = gpu().memory_info();
        return info ? info->free : Bytes{0};
    }
    std::byte* host(std::size_t offset) { return memory_->data() + offset; }

    static constexpr std::size_t kMemory = 32u << 20;
    std::optional<HostMemory> memory_;
    std::vector<SegmentId> segments_;
};

// ---- the GPU ----

TEST_F(BackendContract, TellsWhatItIs) {
    const GpuInfo& info = gpu().info();
    EXPECT_FALSE(info.backend.empty() || info.name.empty() || info.uuid.empty() || info.driver.empty());
    EXPECT_TRUE(info.refusal.empty()) << info.refusal;
    EXPECT_EQ(info.selector(), fmt::format("{}:{}", info.backend, info.index));
    EXPECT_GT(info.total.n, 0u);
    EXPECT_LE(info.free, info.total);
    EXPECT_EQ(info.pci.empty(), simulated());
    EXPECT_EQ(gpu().health(), Health::good);
    const std::uint64_t granularity = gpu().caps().granularity.n;
    ASSERT_GT(granularity, 0u);
    EXPECT_EQ(kSegment.n % granularity, 0u) << granularity;
    const auto memory = gpu().memory_info();
    ASSERT_TRUE(memory);
    EXPECT_LE(memory->free, memory->total);
    EXPECT_GT(memory->free.n, 0u);
}

/// Not where NVML is missing or does not tell.
TEST_F(BackendContract, TellsWhatOthersDoWithoutItself) {
    const auto all = gpu().usage(UsageParts::activity_and_users);
    if (!all) GTEST_SKIP() << all.error().text();
    EXPECT_LE(all->others_sm_percent.value_or(0), 100u);
    EXPECT_LE(all->others_memory_percent.value_or(0), 100u);
    if (all->users) {
        Bytes more{~0ull};
        for (const GpuUser& user : *all->users) {
            EXPECT_GT(user.pid, 0);
            EXPECT_NE(user.pid, ::getpid());
            EXPECT_LE(user.memory.value_or(Bytes{0}), more) << "most memory first";
            more = user.memory.value_or(Bytes{0});
        }
    }
    EXPECT_LE(all->others_memory.value_or(Bytes{0}), gpu().memory_info()->total);
    const auto activity = gpu().usage(UsageParts::activity);
    if (activity) {
        EXPECT_FALSE(activity->users || activity->others_memory);
    }
}

// ---- segments ----

TEST_F(BackendContract, AllocatesMultiplesOfItsGranularity) {
    const Bytes granularity = gpu().caps().granularity;
    for (const std::uint64_t n : {1u, 2u, 3u, 8u}) {
        const auto made = gpu().allocate_segment(granularity * n);
        ASSERT_TRUE(made) << made.error().text();
        EXPECT_TRUE(gpu().free_segment(*made));
    }
    for (const Bytes bad : {Bytes{0}, Bytes{1}, granularity - Bytes{4096}, granularity + Bytes{4096}}) {
        const auto refused = gpu().allocate_segment(bad);
        ASSERT_FALSE(refused) << bad.n;
        EXPECT_EQ(refused.error().code, Errc::usage);
        EXPECT_FALSE(refused.error().message.empty());
    }
}

TEST_F(BackendContract, GivesEachSegmentItsOwnNumberAndMemory) {
    const auto queue = make_queue();
    constexpr std::size_t kBytes = 64u << 10;
    std::vector<SegmentId> made;
    for (std::uint64_t n = 0; n < 4; ++n) {
        made.push_back(segment());
        for (std::size_t i = 0; i < n; ++i) EXPECT_NE(made[i], made[n]);
        fill(host(0), kBytes, n);
        ASSERT_EQ(transfer(*queue, std::array{to_gpu(made[n], 0, host(0), kBytes)}), IoStatus::ok);
    }
    for (std::uint64_t n = 0; n < 4; ++n) {
        ASSERT_EQ(transfer(*queue, std::array{from_gpu(made[n], 0, host(0), kBytes)}), IoStatus::ok);
        EXPECT_EQ(first_wrong(host(0), kBytes, n), std::nullopt) << "segment " << n;
    }
}

TEST_F(BackendContract, RefusesSegmentsThatDoNotExist) {
    const auto made = gpu().allocate_segment(kSegment);
    ASSERT_TRUE(made);
    ASSERT_TRUE(gpu().free_segment(*made));
    for (const SegmentId gone : {*made, SegmentId{0x7fffffff}, SegmentId{0xffffffff}}) {
        const auto freed = gpu().free_segment(gone);
        ASSERT_FALSE(freed);
        EXPECT_EQ(freed.error().code, Errc::not_found);
        EXPECT_FALSE(gpu().export_segment(gone));
    }
    const auto queue = make_queue();
    EXPECT_EQ(transfer(*queue, std::array{to_gpu(*made, 0, host(0), 4096)}), IoStatus::out_of_range);
    EXPECT_EQ(transfer(*queue, std::array{to_gpu({0xffffffff}, 0, host(0), 4096)}), IoStatus::out_of_range);
}

TEST_F(BackendContract, FreeMemoryFollowsAllocations) {
    constexpr Bytes kLarge = mib(64);
    const Bytes before = free_now();
    const auto made = gpu().allocate_segment(kLarge);
    ASSERT_TRUE(made) << made.error().text();
    const Bytes during = free_now();
    ASSERT_TRUE(gpu().free_segment(*made));
    const Bytes after = free_now();
    // Others may use the GPU too: exact to a quarter.
    EXPECT_LE(during + Bytes{kLarge.n / 4 * 3}, before);
    EXPECT_GE(after, during + Bytes{kLarge.n / 4 * 3});
    if (simulated()) {
        EXPECT_EQ(during + kLarge, before);
        EXPECT_EQ(after, before);
    }
}

TEST_F(BackendContract, ManyCyclesLeakNothing) {
    const Bytes granularity = gpu().caps().granularity;
    const auto cycle = [&] {
        auto made = gpu().allocate_segment(granularity);
        ASSERT_TRUE(made) << made.error().text();
        if (gpu().caps().exportable_segments) {
            ASSERT_TRUE(gpu().export_segment(*made));
        }
        ASSERT_TRUE(gpu().free_segment(*made));
    };
    cycle();
    const Bytes before = free_now();
    const int fd_before = UniqueFd(::open("/dev/null", O_RDONLY | O_CLOEXEC)).get();
    for (int n = 0; n < 200; ++n) ASSERT_NO_FATAL_FAILURE(cycle());
    EXPECT_GE(free_now() + mib(64), before);  // 200 lost would be more
    EXPECT_EQ(UniqueFd(::open("/dev/null", O_RDONLY | O_CLOEXEC)).get(), fd_before);
}

TEST_F(BackendContract, AFullGpuSaysSoAndRecovers) {
    if (!simulated()) GTEST_SKIP() << "only a simulated GPU is filled up";
    const Variable setting("VRAMSWAP_SIM", "total=64M");
    OpenedGpu small;
    ASSERT_TRUE(small.backend) << small.problem;
    std::vector<SegmentId> made;
    for (;;) {
        auto next = small.backend->allocate_segment(kSegment);
        if (!next) {
            EXPECT_EQ(next.error().code, Errc::no_memory);
            break;
        }
        made.push_back(*next);
    }
    EXPECT_EQ(made.size(), 4u);
    EXPECT_EQ(small.backend->memory_info()->free, Bytes{0});
    EXPECT_EQ(small.backend->health(), Health::good);
    for (const SegmentId id : made) EXPECT_TRUE(small.backend->free_segment(id));
    EXPECT_EQ(small.backend->memory_info()->free, mib(64));
    EXPECT_TRUE(small.backend->allocate_segment(mib(64)));
}

TEST_F(BackendContract, SimulatedGpusAreApart) {
    if (!simulated()) GTEST_SKIP() << "it is about the simulation";
    // The number counts for all keys, wherever it stands.
    const Variable setting("VRAMSWAP_SIM", "total=64M,fail_allocations=1,gpus=3,taken_mib=16");
    auto drivers = all_drivers();
    const std::vector<GpuInfo> gpus = survey(drivers).back().gpus;
    ASSERT_EQ(gpus.size(), 3u);
    std::vector<std::unique_ptr<Backend>> opened;
    for (const GpuInfo& gpu : gpus) {
        EXPECT_EQ(gpu.selector(), fmt::format("sim:{}", opened.size()));
        for (const std::string& wanted : {gpu.selector(), gpu.uuid}) {
            const auto found = select_gpu(survey(drivers), wanted, SimFallback::never);
            ASSERT_TRUE(found) << found.error().text();
            EXPECT_EQ(found->index, gpu.index);
        }
        opened.push_back(std::move(*open_gpu(drivers, gpu)));
        EXPECT_EQ(opened.back()->info().selector(), gpu.selector());
    }
    for (const auto& one : opened) {
        EXPECT_FALSE(one->allocate_segment(mib(16))) << "its own fault";
        EXPECT_TRUE(one->allocate_segment(mib(48))) << "its own memory";
        EXPECT_EQ(one->memory_info()->free, Bytes{0});
    }
    GpuInfo beyond = gpus.back();
    beyond.index = 3;
    EXPECT_EQ(open_gpu(drivers, beyond).error().code, Errc::not_found);
}

TEST_F(BackendContract, ThereIsOneSimulatedGpuUnlessToldWell) {
    if (!simulated()) GTEST_SKIP() << "it is about the simulation";
    for (const char* text : {"total=64M", "total=64M,gpus=0", "gpus=9,total=64M", "total=64M,gpus=two"}) {
        const Variable setting("VRAMSWAP_SIM", text);
        auto drivers = all_drivers();
        const auto gpus = survey(drivers).back().gpus;
        ASSERT_EQ(gpus.size(), 1u) << text;
        EXPECT_EQ(gpus[0].total, mib(64)) << text;
    }
}

// ---- host memory ----

TEST_F(BackendContract, RegistersPageAlignedMemoryAgainAndAgain) {
    HostMemory other(1u << 20);
    for (int n = 0; n < 3; ++n) {
        ASSERT_TRUE(gpu().register_host(other.all()));
        ASSERT_TRUE(gpu().unregister_host(other.all()));
    }
    EXPECT_FALSE(gpu().register_host(other.all().subspan(512)));
    EXPECT_FALSE(gpu().register_host(other.all().first(100)));
    EXPECT_FALSE(gpu().register_host({}));
}

TEST_F(BackendContract, RegistersSharedMemory) {
    const UniqueFd fd(::memfd_create("vramswap-contract", MFD_CLOEXEC));
    constexpr std::size_t kBytes = 4u << 20;
    ASSERT_EQ(::ftruncate(fd.get(), kBytes), 0);
    void* base = ::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd.get(), 0);
    ASSERT_NE(base, MAP_FAILED);
    auto* bytes = static_cast<std::byte*>(base);
    ASSERT_TRUE(gpu().register_host({bytes, kBytes}));
    {
        const auto queue = make_queue();
        const SegmentId id = segment();
        fill(bytes, kBytes, 7);
        ASSERT_EQ(transfer(*queue, std::array{to_gpu(id, 0, bytes, kBytes)}), IoStatus::ok);
        std::memset(bytes, 0, kBytes);
        ASSERT_EQ(transfer(*queue, std::array{from_gpu(id, 0, bytes, kBytes)}), IoStatus::ok);
        EXPECT_EQ(first_wrong(bytes, kBytes, 7), std::nullopt);
    }
    EXPECT_TRUE(gpu().unregister_host({bytes, kBytes}));
    ::munmap(base, kBytes);
}

/// Another GPU of that kind if there is one, else the same once more.
std::unique_ptr<Backend> open_beside(const Backend& gpu) {
    GpuInfo beside = gpu.info();
    for (const BackendReport& report : survey(the_gpu()->drivers))
        for (const GpuInfo& other : report.gpus)
            if (other.backend == gpu.info().backend && other.index != gpu.info().index &&
                other.refusal.empty())
                beside = other;
    auto opened = open_gpu(the_gpu()->drivers, beside);
    if (!opened) throw std::runtime_error(opened.error().text());
    return std::move(*opened);
}

/// Sends all pages to that GPU and fetches them, in so many copies that in mode turbo a kernel makes them.
void expect_copies(Backend& gpu, const HostMemory& memory, std::uint64_t seed) {
    auto queue = gpu.make_queue();
    ASSERT_TRUE(queue) << queue.error().text();
    (*queue)->set_mode(wanted_mode());
    const auto id = gpu.allocate_segment(kSegment);
    ASSERT_TRUE(id) << id.error().text();
    const std::size_t bytes = memory.all().size();
    std::vector<Copy> there;
    std::vector<Copy> back;
    for (std::size_t at = 0; at < bytes; at += 4096) {
        there.push_back(to_gpu(*id, 2 * at, memory.data() + at, 4096));
        back.push_back(from_gpu(*id, 2 * at, memory.data() + at, 4096));
    }
    fill(memory.data(), bytes, seed);
    EXPECT_EQ(transfer(**queue, there), IoStatus::ok);
    std::memset(memory.data(), 0, bytes);
    EXPECT_EQ(transfer(**queue, back), IoStatus::ok);
    EXPECT_EQ(first_wrong(memory.data(), bytes, seed), std::nullopt);
    EXPECT_TRUE(gpu.free_segment(*id));
}

TEST_F(BackendContract, SharesHostMemoryWithAnother) {
    auto other = open_beside(gpu());
    const HostMemory shared(4u << 20);
    // Who registered first goes first.
    for (auto [first, second] : {std::pair(&gpu(), other.get()), std::pair(other.get(), &gpu())}) {
        ASSERT_TRUE(first->register_host(shared.all()));
        const auto again = second->register_host(shared.all());
        ASSERT_TRUE(again) << again.error().text();
        expect_copies(*first, shared, 1);
        expect_copies(*second, shared, 2);
        EXPECT_TRUE(first->unregister_host(shared.all()));
        expect_copies(*second, shared, 3);
        EXPECT_TRUE(second->unregister_host(shared.all()));
    }
    ASSERT_TRUE(other->register_host(shared.all()));
    ASSERT_TRUE(gpu().register_host(shared.all()));
    other.reset();
    expect_copies(gpu(), shared, 4);
    EXPECT_TRUE(gpu().unregister_host(shared.all()));
    // Nothing is left of it.
    ASSERT_TRUE(gpu().register_host(shared.all()));
    expect_copies(gpu(), shared, 5);
    EXPECT_TRUE(gpu().unregister_host(shared.all()));
}

// ---- copies ----

TEST_F(BackendContract, CopiesThereAndBack) {
    const auto queue = make_queue();
    const SegmentId id = segment();
    constexpr std::size_t kBack = 16u << 20;
    for (const std::size_t bytes : {4096u, 8192u, 12288u, 65536u, 262144u, 2u << 20, 8u << 20})
        for (const std::uint64_t offset : {std::uint64_t{0}, std::uint64_t{4096}, kSegment.n - bytes})
            for (const std::size_t unaligned : {0u, 8u, 512u, 4095u - 7u}) {
                fill(host(unaligned), bytes, bytes + offset);
                std::memset(host(kBack), 0x5A, bytes + 4096);
                ASSERT_EQ(transfer(*queue, std::array{to_gpu(id, offset, host(unaligned), bytes)}),
                          IoStatus::ok);
                ASSERT_EQ(transfer(*queue, std::array{from_gpu(id, offset, host(kBack + unaligned), bytes)}),
                          IoStatus::ok);
                ASSERT_EQ(first_wrong(host(kBack + unaligned), bytes, bytes + offset), std::nullopt)
                    << bytes << " bytes at " << offset << ", host + " << unaligned;
                ASSERT_EQ(*host(kBack + unaligned + bytes), std::byte{0x5A}) << "wrote too far";
            }
}

TEST_F(BackendContract, ManyCopiesFitOneSubmission) {
    const auto queue = make_queue();
    const SegmentId id = segment();
    constexpr std::size_t kBack = 16u << 20;
    for (const std::uint64_t count : {1u, 7u, 8u, 100u, 512u}) {
        std::vector<Copy> there;
        std::vector<Copy> back;
        for (std::uint64_t n = 0; n < count;
             ++n) {  // every second page of VRAM, in another order of the host's
            const std::size_t at = (n * 37 % count) * 4096;
            fill(host(at), 4096, n + count);
            there.push_back(to_gpu(id, n * 8192, host(at), 4096));
            back.push_back(from_gpu(id, n * 8192, host(kBack + n * 4096), 4096));
        }
        ASSERT_EQ(transfer(*queue, there), IoStatus::ok);
        ASSERT_EQ(transfer(*queue, back), IoStatus::ok);
        for (std::uint64_t n = 0; n < count; ++n)
            ASSERT_EQ(first_wrong(host(kBack + n * 4096), 4096, n + count), std::nullopt)
                << n << " of " << count;
    }
}

TEST_F(BackendContract, OneSubmissionMayGoBothWaysAndToSeveralSegments) {
    const auto queue = make_queue();
    const SegmentId a = segment();
    const SegmentId b = segment();
    fill(host(0), 4096, 1);
    ASSERT_EQ(transfer(*queue, std::array{to_gpu(a, 0, host(0), 4096)}), IoStatus::ok);
    fill(host(4096), 65536, 2);
    ASSERT_EQ(
        transfer(*queue, std::array{from_gpu(a, 0, host(1u << 20), 4096), to_gpu(b, 0, host(4096), 65536),
                                    to_gpu(a, 1u << 20, host(4096), 65536)}),
        IoStatus::ok);
    EXPECT_EQ(first_wrong(host(1u << 20), 4096, 1), std::nullopt);
    for (const auto& [id, offset] : {std::pair{b, 0u}, std::pair{a, 1u << 20}}) {
        std::memset(host(2u << 20), 0, 65536);
        ASSERT_EQ(transfer(*queue, std::array{from_gpu(id, offset, host(2u << 20), 65536)}), IoStatus::ok);
        EXPECT_EQ(first_wrong(host(2u << 20), 65536, 2), std::nullopt);
    }
}

TEST_F(BackendContract, CopiesWithinTheGpu) {
    const auto queue = make_queue();
    const SegmentId a = segment();
    const SegmentId b = segment();
    constexpr std::uint32_t kBytes = 2u << 20;
    fill(host(0), kBytes, 1);
    ASSERT_EQ(transfer(*queue, std::array{to_gpu(a, 4096, host(0), kBytes)}), IoStatus::ok);
    for (const auto& [id, offset] :
         {std::pair{b, std::uint64_t{8192}}, std::pair{a, std::uint64_t{4u << 20}}}) {
        ASSERT_EQ(
            transfer(*queue, std::array{Copy{Copy::Op::within_gpu, a, 4096, nullptr, kBytes, id, offset}}),
            IoStatus::ok);
        std::memset(host(8u << 20), 0, kBytes);
        ASSERT_EQ(transfer(*queue, std::array{from_gpu(id, offset, host(8u << 20), kBytes)}), IoStatus::ok);
        EXPECT_EQ(first_wrong(host(8u << 20), kBytes, 1), std::nullopt);
    }
    for (const auto& [from, to] :
         {std::pair{kSegment.n - 4096, std::uint64_t{0}}, std::pair{std::uint64_t{0}, kSegment.n - 4096}})
        EXPECT_EQ(transfer(*queue, std::array{Copy{Copy::Op::within_gpu, a, from, nullptr, 8192, b, to}}),
                  IoStatus::out_of_range);
}

TEST_F(BackendContract, SubmissionsOfAQueueRunInOrder) {
    const auto queue = make_queue();
    queue->set_mode(EngineMode::copy);  // the other mode promises none
    const SegmentId id = segment();
    constexpr std::size_t kBytes = 1u << 20;
    constexpr std::uint64_t kRounds = 8;
    Ticket last = 0;
    for (std::uint64_t n = 0; n < kRounds; ++n) {  // every version to the same place, read back between
        fill(host(n * kBytes), kBytes, n);
        ASSERT_EQ(queue->submit(std::array{to_gpu(id, 0, host(n * kBytes), kBytes)}, last),
                  IoStatus::pending);
        ASSERT_EQ(queue->submit(std::array{from_gpu(id, 0, host((kRounds + n) * kBytes), kBytes)}, last),
                  IoStatus::pending);
    }
    ASSERT_EQ(wait_for(*queue, last), IoStatus::ok);
    for (std::uint64_t n = 0; n < kRounds; ++n)
        EXPECT_EQ(first_wrong(host((kRounds + n) * kBytes), kBytes, n), std::nullopt) << n;
}

/// `count` copies of a page each: every second page of the segment, from page `first` on.
std::vector<Copy> pages(Copy::Op op, SegmentId id, std::uint64_t first, std::byte* host,
                        std::uint64_t count) {
    std::vector<Copy> copies;
    for (std::uint64_t n = 0; n < count; ++n)
        copies.push_back({op, id, (first + 2 * n) * 4096, host + n * 4096, 4096});
    return copies;
}

TEST_F(BackendContract, AnEndMeansThatAllBeforeHaveEnded) {
    const auto queue = make_queue();
    const SegmentId id = segment();
    constexpr std::uint64_t kRounds = 12;
    constexpr std::size_t kLarge = 512u << 10;
    constexpr std::uint64_t kSmall = 20;
    std::byte* const back = host(16u << 20);
    const std::uint64_t small_at = 12u << 20;  // in the segment and in the host's memory
    for (std::uint64_t n = 0; n < kRounds; ++n) {
        fill(host(n * kLarge), kLarge, n);
        ASSERT_EQ(transfer(*queue, std::array{to_gpu(id, n * kLarge, host(n * kLarge), kLarge)}),
                  IoStatus::ok);
        fill(host(small_at + n * kSmall * 4096), kSmall * 4096, 100 + n);
        ASSERT_EQ(transfer(*queue, pages(Copy::Op::to_gpu, id, small_at / 4096 + n * 2 * kSmall,
                                         host(small_at + n * kSmall * 4096), kSmall)),
                  IoStatus::ok);
    }
    // Large ones, many small ones and both in one submission, in turns; then nothing at all.
    std::vector<Ticket> tickets(kRounds);
    for (std::uint64_t n = 0; n < kRounds; ++n) {
        std::vector<Copy> copies;
        if (n % 3 != 0)
            copies = pages(Copy::Op::from_gpu, id, small_at / 4096 + n * 2 * kSmall,
                           back + small_at + n * kSmall * 4096, kSmall);
        if (n % 3 != 1) copies.push_back(from_gpu(id, n * kLarge, back + n * kLarge, kLarge));
        ASSERT_EQ(queue->submit(copies, tickets[n]), IoStatus::pending);
    }
    Ticket last = 0;
    ASSERT_EQ(queue->submit({}, last), IoStatus::pending);
    ASSERT_EQ(wait_for(*queue, last), IoStatus::ok);
    for (std::uint64_t n = 0; n < kRounds; ++n) {
        EXPECT_EQ(queue->poll(tickets[n]), IoStatus::ok);
        if (n % 3 != 1) {
            EXPECT_EQ(first_wrong(back + n * kLarge, kLarge, n), std::nullopt) << n;
        }
        if (n % 3 != 0) {
            EXPECT_EQ(first_wrong(back + small_at + n * kSmall * 4096, kSmall * 4096, 100 + n), std::nullopt)
                << n;
        }
    }
}

TEST_F(BackendContract, RefusesCopiesBeyondTheSegment) {
    const auto queue = make_queue();
    const SegmentId id = segment();
    for (const auto& [offset, bytes] :
         std::vector<std::pair<std::uint64_t, std::size_t>>{{kSegment.n, 4096},
                                                            {kSegment.n - 4096, 8192},
                                                            {0, 0},
                                                            {~std::uint64_t{4095}, 8192},
                                                            {~0ull, 1}}) {
        EXPECT_EQ(transfer(*queue, std::array{to_gpu(id, offset, host(0), bytes)}), IoStatus::out_of_range);
        EXPECT_EQ(transfer(*queue, std::array{from_gpu(id, offset, host(0), bytes)}), IoStatus::out_of_range);
    }
    // One bad copy refuses them all, and takes no ticket.
    fill(host(0), 4096, 1);
    ASSERT_EQ(transfer(*queue, std::array{to_gpu(id, 0, host(0), 4096)}), IoStatus::ok);
    fill(host(0), 4096, 2);
    Ticket ticket = 99;
    EXPECT_EQ(queue->submit(std::array{to_gpu(id, 0, host(0), 4096), to_gpu(id, kSegment.n, host(0), 4096)},
                            ticket),
              IoStatus::out_of_range);
    EXPECT_EQ(ticket, 99u);
    ASSERT_EQ(transfer(*queue, std::array{from_gpu(id, 0, host(8192), 4096)}), IoStatus::ok);
    EXPECT_EQ(first_wrong(host(8192), 4096, 1), std::nullopt);
}

// ---- tickets ----

TEST_F(BackendContract, TicketsAreKnownUntilManyLaterOnes) {
    const auto queue = make_queue();
    const SegmentId id = segment();
    EXPECT_EQ(queue->poll(0), IoStatus::io_error);
    EXPECT_EQ(queue->poll(1), IoStatus::io_error);
    Ticket first = 0;
    ASSERT_EQ(queue->submit(std::array{to_gpu(id, 0, host(0), 4096)}, first), IoStatus::pending);
    EXPECT_EQ(queue->poll(first + 1), IoStatus::io_error);
    ASSERT_EQ(wait_for(*queue, first), IoStatus::ok);
    EXPECT_EQ(queue->poll(first), IoStatus::ok);
    for (std::uint32_t n = 1; n < TransferQueue::kDepth; ++n)
        ASSERT_EQ(transfer(*queue, std::array{to_gpu(id, 0, host(0), 4096)}), IoStatus::ok);
    EXPECT_EQ(queue->poll(first), IoStatus::ok);
    ASSERT_EQ(transfer(*queue, std::array{to_gpu(id, 0, host(0), 4096)}), IoStatus::ok);
    EXPECT_EQ(queue->poll(first), IoStatus::io_error);
}

TEST_F(BackendContract, ManySubmissionsMayBeInFlight) {
    const auto queue = make_queue();
    const SegmentId id = segment();
    constexpr std::size_t kBytes = 64u << 10;
    constexpr std::uint64_t kPlaces = 128;
    for (std::uint64_t n = 0; n < kPlaces; ++n) fill(host(n * kBytes), kBytes, n);
    Ticket last = 0;
    std::uint64_t retries = 0;
    for (std::uint64_t n = 0; n < 4 * TransferQueue::kDepth; ++n) {
        const Copy copy = to_gpu(id, n % kPlaces * kBytes, host(n % kPlaces * kBytes), kBytes);
        IoStatus status = IoStatus::retry;
        for (; status == IoStatus::retry; ++retries) status = queue->submit(std::array{copy}, last);
        ASSERT_EQ(status, IoStatus::pending);
    }
    ASSERT_EQ(wait_for(*queue, last), IoStatus::ok);
    for (std::uint64_t n = 0; n < kPlaces; ++n) {
        ASSERT_EQ(transfer(*queue, std::array{from_gpu(id, n * kBytes, host(16u << 20), kBytes)}),
                  IoStatus::ok);
        EXPECT_EQ(first_wrong(host(16u << 20), kBytes, n), std::nullopt) << n;
    }
}

TEST_F(BackendContract, AFullQueueSaysRetry) {
    if (!simulated()) GTEST_SKIP() << "only a simulated GPU can be made to be slow enough";
    // An hour: nothing completes while we look.
    const Variable setting("VRAMSWAP_SIM", "total=64M,latency_us=3600000000");
    OpenedGpu slow;
    ASSERT_TRUE(slow.backend) << slow.problem;
    const auto id = slow.backend->allocate_segment(kSegment);
    ASSERT_TRUE(id);
    auto queue = std::move(*slow.backend->make_queue());
    Ticket ticket = 0;
    for (std::uint32_t n = 0; n < TransferQueue::kDepth; ++n)
        ASSERT_EQ(queue->submit(std::array{to_gpu(*id, 0, host(0), 4096)}, ticket), IoStatus::pending) << n;
    EXPECT_EQ(ticket, TransferQueue::kDepth);
    EXPECT_EQ(queue->submit(std::array{to_gpu(*id, 0, host(0), 4096)}, ticket), IoStatus::retry);
    EXPECT_EQ(queue->poll(1), IoStatus::pending);
    EXPECT_EQ(queue->poll(ticket), IoStatus::pending);
}

// ---- threads ----

TEST_F(BackendContract, AQueueMayMoveToAnotherThread) {
    const auto queue = make_queue();
    const SegmentId id = segment();
    fill(host(0), 1u << 20, 5);
    std::thread([&] {
        EXPECT_EQ(transfer(*queue, std::array{to_gpu(id, 0, host(0), 1u << 20)}), IoStatus::ok);
    }).join();
    std::thread([&] {
        EXPECT_EQ(transfer(*queue, std::array{from_gpu(id, 0, host(4u << 20), 1u << 20)}), IoStatus::ok);
    }).join();
    EXPECT_EQ(first_wrong(host(4u << 20), 1u << 20, 5), std::nullopt);
}

/// Writes and reads back its own quarter of the segment, over and over, several submissions deep. In the mode
/// that promises no order it waits for the writes before it reads.
void copy_back_and_forth(TransferQueue& queue, SegmentId id, std::byte* host, std::uint64_t part) {
    constexpr std::size_t kBytes = 256u << 10;
    constexpr std::uint64_t kPieces = 8;
    const std::uint64_t base = part * kPieces * kBytes;
    for (std::uint64_t round = 1; round <= 30; ++round) {
        Ticket last = 0;
        for (std::uint64_t n = 0; n < kPieces; ++n) {
            fill(host + n * kBytes, kBytes, round * 1000 + part * 100 + n);
            std::byte* back = host + (kPieces + n) * kBytes;
            ASSERT_EQ(
                queue.submit(std::array{to_gpu(id, base + n * kBytes, host + n * kBytes, kBytes)}, last),
                IoStatus::pending);
            if (wanted_mode() == EngineMode::turbo) {
                ASSERT_EQ(wait_for(queue, last), IoStatus::ok);
            }
            ASSERT_EQ(queue.submit(std::array{from_gpu(id, base + n * kBytes, back, kBytes)}, last),
                      IoStatus::pending);
        }
        ASSERT_EQ(wait_for(queue, last), IoStatus::ok);
        for (std::uint64_t n = 0; n < kPieces; ++n)
            ASSERT_EQ(first_wrong(host + (kPieces + n) * kBytes, kBytes, round * 1000 + part * 100 + n),
                      std::nullopt)
                << "part " << part << ", round " << round << ", piece " << n;
    }
}

TEST_F(BackendContract, QueuesOfDifferentThreadsDoNotDisturbEachOther) {
    const SegmentId id = segment();
    const auto a = make_queue();
    const auto b = make_queue();
    std::thread first([&] { copy_back_and_forth(*a, id, host(0), 0); });
    std::thread second([&] { copy_back_and_forth(*b, id, host(8u << 20), 1); });
    for (int n = 0; n < 20; ++n) {  // and the control thread takes and gives segments meanwhile
        const auto made = gpu().allocate_segment(kSegment);
        EXPECT_TRUE(made);
        if (made) {
            EXPECT_TRUE(gpu().free_segment(*made));
        }
    }
    first.join();
    second.join();
}

/// The same with scattered pages: several submissions each way, each of another number of pages.
void send_and_fetch_pages(TransferQueue& queue, SegmentId id, std::byte* host, std::uint64_t part) {
    constexpr std::uint64_t kSubmissions = 4;
    constexpr std::uint64_t kPages = 32;  // at most, of each
    const std::uint64_t first = part * kSubmissions * 2 * kPages;
    const auto submit_all = [&](Copy::Op op, std::byte* memory, std::uint64_t count) {
        Ticket last = 0;
        for (std::uint64_t n = 0; n < kSubmissions; ++n)
            ASSERT_EQ(
                queue.submit(pages(op, id, first + n * 2 * kPages, memory + n * kPages * 4096, count), last),
                IoStatus::pending);
        ASSERT_EQ(wait_for(queue, last), IoStatus::ok);
    };
    for (std::uint64_t round = 1; round <= 200; ++round) {
        const std::uint64_t count = 1 + (round * 7 + part) % kPages;
        std::byte* const back = host + kSubmissions * kPages * 4096;
        for (std::uint64_t n = 0; n < kSubmissions; ++n)
            fill(host + n * kPages * 4096, count * 4096, round * 1000 + part * 100 + n);
        ASSERT_NO_FATAL_FAILURE(submit_all(Copy::Op::to_gpu, host, count));
        ASSERT_NO_FATAL_FAILURE(submit_all(Copy::Op::from_gpu, back, count));
        for (std::uint64_t n = 0; n < kSubmissions; ++n)
            ASSERT_EQ(first_wrong(back + n * kPages * 4096, count * 4096, round * 1000 + part * 100 + n),
                      std::nullopt)
                << "part " << part << ", round " << round << ", submission " << n;
    }
}

TEST_F(BackendContract, ManyThreadsSendAndFetchPagesAtOnce) {
    constexpr std::uint64_t kThreads = 8;
    const SegmentId id = segment();
    std::vector<std::unique_ptr<TransferQueue>> queues;
    for (std::uint64_t n = 0; n < kThreads; ++n) queues.push_back(make_queue());
    std::vector<std::thread> threads;
    for (std::uint64_t n = 0; n < kThreads; ++n)
        threads.emplace_back([&, n] { send_and_fetch_pages(*queues[n], id, host(n * (1u << 20)), n); });
    for (std::thread& thread : threads) thread.join();
}

// ---- processes ----
// VRAM outlives the process that took it, as long as a descriptor lives. Both processes are fresh: this
// program started again with $VRAMSWAP_TEST_ROLE, which takes effect before any test and any use of a GPU.

constexpr const char* kRoleVariable = "VRAMSWAP_TEST_ROLE";
constexpr int kRoleFd = 100;
constexpr std::size_t kExportedBytes = 4u << 20;
constexpr std::uint64_t kExportedSeed = 4711;

bool send_fd(int socket, int fd) {
    char byte = 1;
    iovec data{&byte, 1};
    alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
    msghdr message{};
    message.msg_iov = &data;
    message.msg_iovlen = 1;
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(header), &fd, sizeof fd);
    return ::sendmsg(socket, &message, 0) == 1;
}

/// Invalid if the other end closed first.
UniqueFd receive_fd(int socket) {
    char byte = 0;
    iovec data{&byte, 1};
    alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
    msghdr message{};
    message.msg_iov = &data;
    message.msg_iovlen = 1;
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    if (::recvmsg(socket, &message, MSG_CMSG_CLOEXEC) != 1) return {};
    const cmsghdr* header = CMSG_FIRSTHDR(&message);
    if (header == nullptr || header->cmsg_type != SCM_RIGHTS) return {};
    int fd = -1;
    std::memcpy(&fd, CMSG_DATA(header), sizeof fd);
    return UniqueFd(fd);
}

/// Takes VRAM, fills it, sends its descriptor and waits to be killed. Returns what went wrong.
std::string act_as_exporter() {
    OpenedGpu opened;
    if (!opened.backend) return opened.problem;
    HostMemory memory(kExportedBytes);
    if (auto done = opened.backend->register_host(memory.all()); !done) return done.error().text();
    auto id = opened.backend->allocate_segment(kSegment);
    if (!id) return id.error().text();
    auto queue = opened.backend->make_queue();
    if (!queue) return queue.error().text();
    fill(memory.data(), kExportedBytes, kExportedSeed);
    const std::uint64_t offset = kSegment.n - kExportedBytes;
    if (transfer(**queue, std::array{to_gpu(*id, offset, memory.data(), kExportedBytes)}) != IoStatus::ok)
        return "the copy to the GPU failed";
    auto fd = opened.backend->export_segment(*id);
    if (!fd) return fd.error().text();
    if (!send_fd(kRoleFd, fd->get())) return "the descriptor could not be sent";
    char byte = 0;
    (void)::recv(kRoleFd, &byte, 1, 0);  // until killed; ends by itself if the test is gone
    return "the test ended first";
}

/// Takes the segment over and looks what is in it. Returns what went wrong.
std::string act_as_importer() {
    OpenedGpu opened;
    if (!opened.backend) return opened.problem;
    const UniqueFd fd(kRoleFd);
    if (opened.backend->import_segment(UniqueFd(), kSegment)) return "nothing was imported";
    auto id = opened.backend->import_segment(fd, kSegment);
    if (!id) return id.error().text();
    HostMemory memory(kExportedBytes);
    if (auto done = opened.backend->register_host(memory.all()); !done) return done.error().text();
    auto queue = opened.backend->make_queue();
    if (!queue) return queue.error().text();
    const std::uint64_t offset = kSegment.n - kExportedBytes;
    if (transfer(**queue, std::array{from_gpu(*id, offset, memory.data(), kExportedBytes)}) != IoStatus::ok)
        return "the copy from the GPU failed";
    if (const auto wrong = first_wrong(memory.data(), kExportedBytes, kExportedSeed))
        return fmt::format("the data is wrong at byte {}", *wrong);
    if (transfer(**queue, std::array{to_gpu(*id, 0, memory.data(), kExportedBytes)}) != IoStatus::ok)
        return "an imported segment cannot be written";
    if (auto freed = opened.backend->free_segment(*id); !freed) return freed.error().text();
    return {};
}

/// Runs before all tests: in a process started for a role it plays that and ends the process. And after all
/// tests it closes the GPU, before the libraries of its driver are torn down.
class Roles : public ::testing::Environment {
  public:
    void SetUp() override {
        const char* role = std::getenv(kRoleVariable);
        if (role == nullptr) return;
        const std::string problem =
            std::string_view(role) == "exporter" ? act_as_exporter() : act_as_importer();
        if (!problem.empty()) (void)std::fprintf(stderr, "%s: %s\n", role, problem.c_str());
        ::_exit(problem.empty() ? 0 : 1);
    }
    void TearDown() override { the_gpu().reset(); }
};
const auto* const roles = ::testing::AddGlobalTestEnvironment(new Roles);

/// This program again, in that role, with `fd` as kRoleFd.
pid_t start_in_role(const char* role, int fd) {
    const std::string setting = fmt::format("{}={}", kRoleVariable, role);
    std::vector<std::string> variables{setting};
    for (char** v = environ; *v != nullptr; ++v) variables.emplace_back(*v);
    std::vector<char*> environment;
    for (std::string& v : variables) environment.push_back(v.data());
    environment.push_back(nullptr);
    std::string program = "/proc/self/exe";
    std::array<char*, 2> arguments{program.data(), nullptr};
    posix_spawn_file_actions_t actions;
    ::posix_spawn_file_actions_init(&actions);
    ::posix_spawn_file_actions_adddup2(&actions, fd, kRoleFd);
    pid_t child = -1;
    const int problem =
        ::posix_spawn(&child, program.c_str(), &actions, nullptr, arguments.data(), environment.data());
    ::posix_spawn_file_actions_destroy(&actions);
    return problem == 0 ? child : -1;
}

int wait_status(pid_t child) {
    int status = -1;
    while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
    return status;
}

TEST_F(BackendContract, ExportedMemoryOutlivesItsProcess) {
    if (!gpu().caps().exportable_segments) GTEST_SKIP() << "this GPU driver cannot export memory";
    std::array<int, 2> ends{};
    ASSERT_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends.data()), 0);
    const UniqueFd ours(ends[0]);
    UniqueFd theirs(ends[1]);
    const pid_t exporter = start_in_role("exporter", theirs.get());
    ASSERT_GT(exporter, 0);
    theirs.reset();
    const UniqueFd segment_fd = receive_fd(ours.get());
    ::kill(exporter, SIGKILL);
    const int exporter_status = wait_status(exporter);
    ASSERT_TRUE(segment_fd.valid()) << "the exporter ended with wait status " << exporter_status;
    EXPECT_TRUE(WIFSIGNALED(exporter_status) && WTERMSIG(exporter_status) == SIGKILL);

    const pid_t importer = start_in_role("importer", segment_fd.get());
    ASSERT_GT(importer, 0);
    EXPECT_EQ(wait_status(importer), 0);
}

TEST_F(BackendContract, AnExportIsTheSegmentItself) {
    if (!gpu().caps().exportable_segments) GTEST_SKIP() << "this GPU driver cannot export memory";
    const auto queue = make_queue();
    const SegmentId original = segment();
    const auto fd = gpu().export_segment(original);
    ASSERT_TRUE(fd) << fd.error().text();
    EXPECT_NE(::fcntl(fd->get(), F_GETFD) & FD_CLOEXEC, 0);
    const auto imported = gpu().import_segment(*fd, kSegment);
    ASSERT_TRUE(imported) << imported.error().text();
    segments_.push_back(*imported);
    EXPECT_NE(*imported, original);
    fill(host(0), 65536, 3);
    ASSERT_EQ(transfer(*queue, std::array{to_gpu(original, 4096, host(0), 65536)}), IoStatus::ok);
    ASSERT_EQ(transfer(*queue, std::array{from_gpu(*imported, 4096, host(1u << 20), 65536)}), IoStatus::ok);
    EXPECT_EQ(first_wrong(host(1u << 20), 65536, 3), std::nullopt);
}

TEST_F(BackendContract, RefusesToImportWhatIsNoSegment) {
    EXPECT_FALSE(gpu().import_segment(UniqueFd(), kSegment));
    const UniqueFd null(::open("/dev/null", O_RDWR | O_CLOEXEC));
    EXPECT_FALSE(gpu().import_segment(null, Bytes{0}));
    EXPECT_FALSE(gpu().import_segment(null, Bytes{4097}));
    EXPECT_FALSE(gpu().import_segment(null, kSegment));
    EXPECT_EQ(gpu().health(), Health::good);
}

}  // namespace
}  // namespace vramswap
