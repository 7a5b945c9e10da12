// SPDX-License-Identifier: MIT
// The CUDA backend against a fake driver (support/fake_cuda.cc): what it refuses and with what words, how it
// takes, exports and imports memory, copies, and notices a dead context. Needs no GPU and no CUDA.
#include <dlfcn.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <thread>
#include <vector>

#include "gpu/cuda/cuda_api.h"
#include "gpu/cuda/cuda_backend.h"
#include "gpu/cuda/cuda_context.h"
#include "gpu/cuda/cuda_driver.h"
#include "gpu/cuda/end_words.h"

namespace vramswap {
namespace {

using cuda::classify;
using cuda::Damage;

constexpr const char* kNoNvml = "/nonexistent/libnvidia-ml.so.1";

/// A variable of the environment for a scope.
class Setting {
  public:
    Setting(std::string name, const std::string& value) : name_(std::move(name)) {
        ::setenv(name_.c_str(), value.c_str(), 1);
    }
    ~Setting() { ::unsetenv(name_.c_str()); }
    Setting(const Setting&) = delete;
    Setting& operator=(const Setting&) = delete;

  private:
    const std::string name_;
};

/// An empty folder that goes with its owner.
class TempFolder {
  public:
    TempFolder() {
        std::string pattern = (std::filesystem::temp_directory_path() / "cuda_test.XXXXXX").string();
        path_ = ::mkdtemp(pattern.data());
    }
    ~TempFolder() { std::filesystem::remove_all(path_); }
    TempFolder(const TempFolder&) = delete;
    TempFolder& operator=(const TempFolder&) = delete;
    [[nodiscard]] const std::filesystem::path& path() const { return path_; }

  private:
    std::filesystem::path path_;
};

/// A copy of the fake driver that exports a symbol under another name, as if it did not have it.
std::string fake_without(const TempFolder& folder, const std::vector<std::string>& symbols) {
    std::ifstream in(FAKE_CUDA_PATH, std::ios::binary);
    std::string image((std::istreambuf_iterator<char>(in)), {});
    for (const std::string& symbol : symbols) {
        const std::string name = '\0' + symbol + '\0';
        for (auto at = image.find(name); at != std::string::npos; at = image.find(name, at + 1))
            image[at + 1] = 'X';
    }
    const std::string path = folder.path() / "libcuda.so.1";
    std::ofstream(path, std::ios::binary) << image;
    return path;
}

CudaPaths fake() {
    return {FAKE_CUDA_PATH, FAKE_CUDA_PATH, "/nonexistent"};
}
CudaPaths fake_at(const std::string& libcuda) {
    return {libcuda, FAKE_CUDA_PATH, "/nonexistent"};
}

int calls(const char* symbol, const std::string& library = FAKE_CUDA_PATH) {
    void* handle = ::dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
    auto* ask = reinterpret_cast<int (*)(const char*)>(::dlsym(handle, "fake_calls"));
    const int n = ask(symbol);
    ::dlclose(handle);
    return n;
}

/// Calls one of the fake driver's functions that let a launch wait.
void tell_fake(const char* function, const std::string& library = FAKE_CUDA_PATH) {
    void* handle = ::dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
    reinterpret_cast<void (*)()>(::dlsym(handle, function))();
    ::dlclose(handle);
}

GpuInfo only_gpu(const CudaPaths& paths = fake()) {
    auto gpus = make_cuda_driver_for_test(paths)->enumerate();
    EXPECT_TRUE(gpus) << gpus.error().text();
    EXPECT_EQ(gpus->size(), 1u);
    return gpus->at(0);
}

Error enumerate_error(const CudaPaths& paths) {
    auto gpus = make_cuda_driver_for_test(paths)->enumerate();
    EXPECT_FALSE(gpus);
    return gpus ? Error{} : gpus.error();
}

std::unique_ptr<Backend> open_fake(const CudaPaths& paths = fake(), std::size_t gpu = 0) {
    auto driver = make_cuda_driver_for_test(paths);
    auto gpus = driver->enumerate();
    EXPECT_TRUE(gpus) << gpus.error().text();
    auto backend = driver->open(gpus->at(gpu));
    EXPECT_TRUE(backend) << backend.error().text();
    // Those found by measuring would differ each time.
    dynamic_cast<cuda::CudaBackend&>(**backend).set_thresholds({.batch = 8, .turbo = 4});
    return *std::move(backend);
}

bool has(const std::string& text, std::string_view part) {
    return text.find(part) != std::string::npos;
}

/// Page-aligned host memory.
class Pages {
  public:
    explicit Pages(std::size_t bytes) : bytes_(bytes) {
        void* p = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                         -1, 0);
        memory_ = static_cast<std::byte*>(p);
    }
    ~Pages() { ::munmap(memory_, bytes_); }
    Pages(const Pages&) = delete;
    Pages& operator=(const Pages&) = delete;
    [[nodiscard]] std::span<std::byte> span() const { return {memory_, bytes_}; }
    [[nodiscard]] std::byte* page(std::size_t n) const { return memory_ + n * kPageBytes; }

  private:
    std::byte* memory_ = nullptr;
    const std::size_t bytes_;
};

/// The same, registered with a backend.
class HostMemory : public Pages {
  public:
    HostMemory(Backend& backend, std::size_t bytes) : Pages(bytes), backend_(backend) {
        auto ok = backend.register_host(span());
        EXPECT_TRUE(ok) << ok.error().text();
    }
    ~HostMemory() {
        auto ok = backend_.unregister_host(span());
        EXPECT_TRUE(ok || backend_.health() != Health::good);
    }
    HostMemory(const HostMemory&) = delete;
    HostMemory& operator=(const HostMemory&) = delete;

  private:
    Backend& backend_;
};

void fill(std::byte* page, int seed) {
    for (std::size_t i = 0; i < kPageBytes; ++i)
        page[i] = static_cast<std::byte>((static_cast<int>(i) * 7 + seed) & 0xff);
}

/// Polls until it is over; bounded, so that a defect fails instead of hanging.
IoStatus finish(TransferQueue& queue, Ticket ticket) {
    IoStatus status = IoStatus::pending;
    for (int i = 0; i < 1'000'000 && status == IoStatus::pending; ++i) status = queue.poll(ticket);
    return status;
}

IoStatus run(TransferQueue& queue, std::span<const Copy> copies) {
    Ticket ticket = 0;
    const IoStatus status = queue.submit(copies, ticket);
    return status == IoStatus::pending ? finish(queue, ticket) : status;
}

/// Writes `count` pages to a new segment and reads them back to other memory, each as one copy of a
/// submission.
void round_trip(Backend& backend, TransferQueue& queue, std::size_t count) {
    auto segment = backend.allocate_segment(mib(4));
    ASSERT_TRUE(segment) << segment.error().text();
    const HostMemory host(backend, 2 * count * kPageBytes);
    std::vector<Copy> up;
    std::vector<Copy> down;
    for (std::size_t i = 0; i < count; ++i) {
        fill(host.page(i), static_cast<int>(i));
        up.push_back({Copy::Op::to_gpu, *segment, i * 2048 * 2, host.page(i), kPageBytes});
        down.push_back({Copy::Op::from_gpu, *segment, i * 2048 * 2, host.page(count + i), kPageBytes});
    }
    EXPECT_EQ(run(queue, up), IoStatus::ok);
    EXPECT_EQ(run(queue, down), IoStatus::ok);
    EXPECT_EQ(std::memcmp(host.page(0), host.page(count), count * kPageBytes), 0);
    EXPECT_TRUE(backend.free_segment(*segment));
}

// --- finding the driver ---

TEST(CudaDriver, MissingLibraryIsNamedWithRemedy) {
    const Error error = enumerate_error(fake_at("/nonexistent/libcuda.so.1"));
    EXPECT_EQ(error.code, Errc::unavailable);
    EXPECT_TRUE(has(error.message, "/nonexistent/libcuda.so.1")) << error.text();
    EXPECT_TRUE(has(error.hint, "Install the NVIDIA driver")) << error.text();
}

TEST(CudaDriver, TooOldDriverIsRefused) {
    const Setting version("FAKE_CUDA_VERSION", "10020");
    const Error error = enumerate_error(fake());
    EXPECT_EQ(error.code, Errc::unavailable);
    EXPECT_TRUE(has(error.message, "CUDA 10.2, needed is 11.0")) << error.text();
    EXPECT_TRUE(has(error.hint, "450")) << error.text();
}

TEST(CudaDriver, AgeComesBeforeMissingSymbols) {
    const Setting version("FAKE_CUDA_VERSION", "10020");
    const TempFolder folder;
    EXPECT_TRUE(has(enumerate_error(fake_at(fake_without(folder, {"cuMemAlloc_v2"}))).message, "too old"));
}

TEST(CudaDriver, OldestSupportedDriverIsAccepted) {
    const Setting version("FAKE_CUDA_VERSION", "11000");
    EXPECT_EQ(only_gpu().refusal, "");
}

TEST(CudaDriver, MissingRequiredSymbolIsNamed) {
    for (const char* symbol : {"cuInit", "cuDriverGetVersion", "cuMemHostRegister_v2", "cuStreamQuery"}) {
        const TempFolder folder;
        const Error error = enumerate_error(fake_at(fake_without(folder, {symbol})));
        EXPECT_EQ(error.code, Errc::unavailable);
        EXPECT_TRUE(has(error.message, symbol)) << error.text();
        EXPECT_TRUE(has(error.message, "libcuda.so.1")) << error.text();
        EXPECT_FALSE(error.hint.empty());
    }
}

TEST(CudaDriver, InitErrorsComeWithRemedies) {
    const std::pair<const char*, const char*> cases[] = {
        {"34", "stub"},    {"100", "CUDA_VISIBLE_DEVICES"}, {"802", "fabricmanager"},
        {"803", "reboot"}, {"804", "cuda-compat"},          {"999", "nvidia-uvm"},
    };
    for (const auto& [result, remedy] : cases) {
        const Setting fail("FAKE_FAIL_cuInit", result);
        const Error error = enumerate_error(fake());
        EXPECT_EQ(error.code, Errc::unavailable);
        EXPECT_TRUE(has(error.message, std::string("(") + result + ")")) << error.text();
        EXPECT_TRUE(has(error.hint, remedy)) << error.text();
    }
}

TEST(CudaDriver, EnvironmentIsPreparedUnlessTheUserDid) {
    ::unsetenv("CUDA_CACHE_DISABLE");
    const Setting pipe("CUDA_MPS_PIPE_DIRECTORY", "/mine");
    (void)only_gpu();
    EXPECT_STREQ(std::getenv("CUDA_CACHE_DISABLE"), "1");
    EXPECT_STREQ(std::getenv("CUDA_MPS_PIPE_DIRECTORY"), "/mine");
}

// --- what a GPU is told as ---

TEST(CudaEnumerate, TellsWhatIsKnown) {
    const Setting free("FAKE_NVML_FREE", "12345678");
    const Setting name("FAKE_CUDA_NAME", "NVIDIA Test 8G");
    const int contexts = calls("cuCtxCreate_v2");
    const GpuInfo gpu = only_gpu();
    EXPECT_EQ(gpu.selector(), "cuda:0");
    EXPECT_EQ(gpu.name, "NVIDIA Test 8G");
    EXPECT_EQ(gpu.pci, "0000:65:00.0");
    EXPECT_EQ(gpu.uuid, "GPU-00102030-4050-6070-8090-a0b0c0d0e0f0");
    EXPECT_EQ(gpu.driver, "580.159.04, CUDA 13.0, compute capability 9.0");
    EXPECT_EQ(gpu.total, mib(256));
    EXPECT_EQ(gpu.free.n, 12345678u);
    EXPECT_EQ(gpu.kind, GpuKind::discrete);
    EXPECT_FALSE(gpu.display_attached);
    EXPECT_EQ(gpu.refusal, "");
    EXPECT_EQ(calls("cuCtxCreate_v2"), contexts) << "enumerating must not create a context";
}

TEST(CudaEnumerate, SecondGpuHasItsOwnIdentity) {
    const Setting devices("FAKE_CUDA_DEVICES", "2");
    auto gpus = make_cuda_driver_for_test(fake())->enumerate();
    ASSERT_TRUE(gpus);
    ASSERT_EQ(gpus->size(), 2u);
    EXPECT_EQ(gpus->at(1).pci, "0000:b3:00.0");
    EXPECT_EQ(gpus->at(1).selector(), "cuda:1");
    EXPECT_NE(gpus->at(0).uuid, gpus->at(1).uuid);
}

TEST(CudaEnumerate, ADisplayIsOneThatIsInUse) {
    {
        const Setting active("FAKE_NVML_DISPLAY_ACTIVE", "1");
        EXPECT_TRUE(only_gpu().display_attached);
    }
    // A mode: an H100, which has no connector, tells that it is enabled.
    const Setting mode("FAKE_NVML_DISPLAY_MODE", "1");
    EXPECT_FALSE(only_gpu().display_attached);
}

TEST(CudaEnumerate, GoesOnWithoutNvml) {
    const TempFolder root;
    std::filesystem::create_directories(root.path() / "sys/module/nvidia");
    std::ofstream(root.path() / "sys/module/nvidia/version") << "535.54.03\n";
    const GpuInfo gpu = only_gpu({FAKE_CUDA_PATH, kNoNvml, root.path()});
    EXPECT_EQ(gpu.free, mib(256));
    EXPECT_EQ(gpu.driver, "535.54.03, CUDA 13.0, compute capability 9.0");
    EXPECT_EQ(gpu.refusal, "");
}

TEST(CudaEnumerate, RefusalsSayWhyAndWhatToDo) {
    struct Case {
        const char* name;
        const char* value;
        const char* why;
        const char* remedy;
    };
    const Case cases[] = {
        {"FAKE_CUDA_ATTR_18", "1", "swapping RAM into RAM gains nothing", "zram"},
        {"FAKE_CUDA_ATTR_20", "3", "EXCLUSIVE_PROCESS", "nvidia-smi -i 0000:65:00.0 -c DEFAULT"},
        {"FAKE_CUDA_ATTR_20", "2", "PROHIBITED", "nvidia-smi -i 0000:65:00.0 -c DEFAULT"},
        {"FAKE_CUDA_ATTR_75", "3", "compute capability 3.0", "another GPU"},
        {"FAKE_NVML_MIG", "1", "MIG", "-mig 0"},
        {"FAKE_CUDA_NAME", "NVIDIA A100 MIG 1g.5gb", "MIG", "-mig 0"},
        {"FAKE_NVML_CC", "1", "confidential computing", "switch it off"},
    };
    for (const Case& c : cases) {
        const Setting setting(c.name, c.value);
        const GpuInfo gpu = only_gpu();
        EXPECT_TRUE(has(gpu.refusal, c.why)) << c.name << ": " << gpu.refusal;
        EXPECT_TRUE(has(gpu.refusal, c.remedy)) << c.name << ": " << gpu.refusal;
        auto opened = make_cuda_driver_for_test(fake())->open(gpu);
        ASSERT_FALSE(opened) << c.name;
        EXPECT_EQ(opened.error().code, Errc::unavailable);
        EXPECT_TRUE(has(opened.error().message, c.why)) << opened.error().text();
    }
}

TEST(CudaEnumerate, IntegratedIsTold) {
    const Setting integrated("FAKE_CUDA_ATTR_18", "1");
    EXPECT_EQ(only_gpu().kind, GpuKind::integrated);
}

TEST(CudaEnumerate, Wsl2IsRefused) {
    const TempFolder root;
    std::filesystem::create_directories(root.path() / "dev");
    std::ofstream(root.path() / "dev/dxg") << "";
    const GpuInfo gpu = only_gpu({FAKE_CUDA_PATH, FAKE_CUDA_PATH, root.path()});
    EXPECT_TRUE(has(gpu.refusal, "WSL2")) << gpu.refusal;
}

// --- opening ---

TEST(CudaOpen, UnknownGpuIsNotFound) {
    GpuInfo gpu = only_gpu();
    gpu.uuid = "GPU-ffffffff-0000-0000-0000-000000000000";
    auto opened = make_cuda_driver_for_test(fake())->open(gpu);
    ASSERT_FALSE(opened);
    EXPECT_EQ(opened.error().code, Errc::not_found);
}

TEST(CudaOpen, UuidDecidesNotTheNumber) {
    const Setting devices("FAKE_CUDA_DEVICES", "2");
    auto driver = make_cuda_driver_for_test(fake());
    GpuInfo second = driver->enumerate()->at(1);
    second.index = 0;
    auto opened = driver->open(second);
    ASSERT_TRUE(opened) << opened.error().text();
    EXPECT_EQ((*opened)->info().index, 1);
}

TEST(CudaOpen, ErrorsOfTheContext) {
    const std::pair<const char*, Errc> cases[] = {{"46", Errc::busy}, {"2", Errc::no_memory}};
    for (const auto& [result, errc] : cases) {
        const GpuInfo gpu = only_gpu();
        const Setting fail("FAKE_FAIL_cuCtxCreate_v2", result);
        auto opened = make_cuda_driver_for_test(fake())->open(gpu);
        ASSERT_FALSE(opened);
        EXPECT_EQ(opened.error().code, errc) << opened.error().text();
        EXPECT_TRUE(has(opened.error().message, "cuda:0")) << opened.error().text();
    }
}

TEST(CudaOpen, FullGpuIsNoMemoryAndLeavesNothing) {
    const GpuInfo gpu = only_gpu();
    const int created = calls("cuCtxCreate_v2");
    const int destroyed = calls("cuCtxDestroy_v2");
    const Setting full("FAKE_CUDA_MEMORY", "0x100000");
    auto opened = make_cuda_driver_for_test(fake())->open(gpu);
    ASSERT_FALSE(opened);
    EXPECT_EQ(opened.error().code, Errc::no_memory) << opened.error().text();
    EXPECT_EQ(calls("cuCtxCreate_v2") - created, calls("cuCtxDestroy_v2") - destroyed);
}

TEST(CudaOpen, CapsOfVirtualMemory) {
    const auto backend = open_fake();
    EXPECT_TRUE(backend->caps().exportable_segments);
    EXPECT_EQ(backend->caps().granularity, mib(2));
}

/// Everything works with plain memory, but for exports.
void check_plain(const CudaPaths& paths) {
    const auto backend = open_fake(paths);
    EXPECT_FALSE(backend->caps().exportable_segments);
    auto segment = backend->allocate_segment(mib(4));
    ASSERT_TRUE(segment) << segment.error().text();
    auto fd = backend->export_segment(*segment);
    ASSERT_FALSE(fd);
    EXPECT_EQ(fd.error().code, Errc::unavailable);
    const UniqueFd any(::open("/dev/null", O_RDONLY | O_CLOEXEC));
    EXPECT_FALSE(backend->import_segment(any, mib(4)));
    auto queue = backend->make_queue();
    ASSERT_TRUE(queue) << queue.error().text();
    round_trip(*backend, **queue, 20);
}

TEST(CudaOpen, WithoutVirtualMemoryPlainMemoryIsUsed) {
    for (const char* name : {"FAKE_CUDA_ATTR_102", "FAKE_CUDA_ATTR_103"}) {
        const Setting none(name, "0");
        check_plain(fake());
    }
    const Setting refused("FAKE_FAIL_cuMemExportToShareableHandle", "801");
    check_plain(fake());
}

TEST(CudaOpen, WithoutSymbolsOfVirtualMemoryPlainMemoryIsUsed) {
    const TempFolder folder;
    check_plain(fake_at(fake_without(folder, {"cuMemSetAccess"})));
}

// --- segments ---

TEST(CudaSegments, FullGpuIsNoMemory) {
    const auto backend = open_fake();
    auto first = backend->allocate_segment(mib(200));
    ASSERT_TRUE(first);
    auto second = backend->allocate_segment(mib(100));
    ASSERT_FALSE(second);
    EXPECT_EQ(second.error().code, Errc::no_memory);
    EXPECT_TRUE(has(second.error().message, "100M")) << second.error().text();
    EXPECT_TRUE(has(second.error().message, "CUDA_ERROR_OUT_OF_MEMORY")) << second.error().text();
    EXPECT_EQ(backend->health(), Health::good);
    EXPECT_TRUE(backend->free_segment(*first));
    EXPECT_TRUE(backend->allocate_segment(mib(100)));
}

TEST(CudaSegments, FailedMappingGivesTheMemoryBack) {
    const auto backend = open_fake();
    for (const char* symbol :
         {"FAKE_FAIL_cuMemAddressReserve", "FAKE_FAIL_cuMemMap", "FAKE_FAIL_cuMemSetAccess"}) {
        {
            const Setting fail(symbol, "1");
            EXPECT_FALSE(backend->allocate_segment(mib(200)));
        }
        auto segment = backend->allocate_segment(mib(200));
        ASSERT_TRUE(segment) << symbol << ": " << segment.error().text();
        EXPECT_TRUE(backend->free_segment(*segment));
    }
}

TEST(CudaSegments, NumbersAreSmallAndUsedAgain) {
    const auto backend = open_fake();
    const SegmentId first = *backend->allocate_segment(mib(2));
    const SegmentId second = *backend->allocate_segment(mib(2));
    EXPECT_LT(second.n, 2u);
    EXPECT_TRUE(backend->free_segment(first));
    EXPECT_FALSE(backend->free_segment(first));
    EXPECT_EQ(*backend->allocate_segment(mib(2)), first);
}

TEST(CudaSegments, DestructionFreesAll) {
    const auto probe = open_fake();
    const std::uint64_t before = probe->memory_info()->free.n;
    {
        const auto backend = open_fake();
        ASSERT_TRUE(backend->allocate_segment(mib(64)));
        EXPECT_EQ(probe->memory_info()->free.n, before - mib(64).n);
    }
    EXPECT_EQ(probe->memory_info()->free.n, before);
}

TEST(CudaSegments, ContentOutlivesItsBackendByDescriptor) {
    UniqueFd fd;
    {
        const auto backend = open_fake();
        const HostMemory host(*backend, kPageBytes);
        fill(host.page(0), 42);
        const SegmentId segment = *backend->allocate_segment(mib(4));
        auto queue = *backend->make_queue();
        const Copy up[] = {{Copy::Op::to_gpu, segment, mib(3).n, host.page(0), kPageBytes}};
        EXPECT_EQ(run(*queue, up), IoStatus::ok);
        auto exported = backend->export_segment(segment);
        ASSERT_TRUE(exported) << exported.error().text();
        fd = *std::move(exported);
        EXPECT_NE(::fcntl(fd.get(), F_GETFD) & FD_CLOEXEC, 0);
    }
    const auto backend = open_fake();
    auto segment = backend->import_segment(fd, mib(4));
    ASSERT_TRUE(segment) << segment.error().text();
    EXPECT_GE(::fcntl(fd.get(), F_GETFD), 0) << "the descriptor stays the caller's";
    const HostMemory host(*backend, 2 * kPageBytes);
    fill(host.page(0), 42);
    auto queue = *backend->make_queue();
    const Copy down[] = {{Copy::Op::from_gpu, *segment, mib(3).n, host.page(1), kPageBytes}};
    EXPECT_EQ(run(*queue, down), IoStatus::ok);
    EXPECT_EQ(std::memcmp(host.page(0), host.page(1), kPageBytes), 0);
}

TEST(CudaSegments, ImportOfWrongSizeFailsAndLeavesNothing) {
    const auto backend = open_fake();
    const UniqueFd fd = *backend->export_segment(*backend->allocate_segment(mib(4)));
    const std::uint64_t before = backend->memory_info()->free.n;
    EXPECT_FALSE(backend->import_segment(fd, mib(8)));
    EXPECT_EQ(backend->memory_info()->free.n, before);
}

// --- host memory ---

TEST(CudaHostMemory, IsRegisteredInPieces) {
    const auto backend = open_fake();
    const int registered = calls("cuMemHostRegister_v2");
    const int unregistered = calls("cuMemHostUnregister");
    { const HostMemory host(*backend, mib(513).n); }
    EXPECT_EQ(calls("cuMemHostRegister_v2") - registered, 3);
    EXPECT_EQ(calls("cuMemHostUnregister") - unregistered, 3);
}

TEST(CudaHostMemory, ErrorsAreTold) {
    const auto backend = open_fake();
    const HostMemory host(*backend, 2 * kPageBytes);
    EXPECT_EQ(backend->register_host(host.span()).error().code, Errc::exists);
    EXPECT_EQ(backend->unregister_host(host.span().first(kPageBytes)).error().code, Errc::not_found);
    EXPECT_EQ(backend->health(), Health::good);
}

/// Memory that another user of CUDA in this process has registered.
class Foreign {
  public:
    explicit Foreign(std::span<std::byte> memory) : memory_(memory) {
        const cuda::ContextScope scope(*api_, context_->get());
        EXPECT_EQ(api_->mem_host_register(memory.data(), memory.size(),
                                          cuda::kHostRegisterPortable | cuda::kHostRegisterDeviceMap),
                  cuda::code::kSuccess);
    }
    ~Foreign() {
        const cuda::ContextScope scope(*api_, context_->get());
        EXPECT_EQ(api_->mem_host_unregister(memory_.data()), cuda::code::kSuccess);
    }
    Foreign(const Foreign&) = delete;
    Foreign& operator=(const Foreign&) = delete;

  private:
    std::shared_ptr<const cuda::CudaApi> api_ = *cuda::load_cuda(FAKE_CUDA_PATH);
    std::shared_ptr<cuda::OwnedContext> context_ = *cuda::OwnedContext::create(api_, 0);
    const std::span<std::byte> memory_;
};

TEST(CudaHostMemory, FailureInTheMiddleRegistersNothing) {
    const auto backend = open_fake();
    const Pages host(mib(512).n);
    {
        const Foreign second_piece(host.span().last(mib(256).n));
        EXPECT_EQ(backend->register_host(host.span()).error().code, Errc::exists);
        EXPECT_TRUE(backend->register_host(host.span().first(mib(256).n)));
        EXPECT_TRUE(backend->unregister_host(host.span().first(mib(256).n)));
    }
    EXPECT_TRUE(backend->register_host(host.span()));
    EXPECT_TRUE(backend->unregister_host(host.span()));
}

// --- host memory of several GPUs ---

/// How often the driver was asked since the last look.
struct Asked {
    const std::string library = FAKE_CUDA_PATH;
    int registered = calls("cuMemHostRegister_v2", library);
    int unregistered = calls("cuMemHostUnregister", library);
    int elsewhere = calls("cuMemHostUnregister elsewhere", library);
    int destroyed = calls("cuCtxDestroy_v2", library);
    /// Unregistered, in its own context, once.
    void expect_ended() const {
        EXPECT_EQ(calls("cuMemHostUnregister", library) - unregistered, 1);
        EXPECT_EQ(calls("cuMemHostUnregister elsewhere", library), elsewhere);
    }
    void expect_nothing_ended() const { EXPECT_EQ(calls("cuMemHostUnregister", library), unregistered); }
    [[nodiscard]] int contexts_destroyed() const { return calls("cuCtxDestroy_v2", library) - destroyed; }
};

/// An opened GPU of the machine with two, and a way to copy through it.
struct Gpu {
    std::unique_ptr<Backend> backend;
    std::unique_ptr<TransferQueue> queue;
    SegmentId segment;

    Gpu(std::size_t n, const CudaPaths& paths) : backend(open_fake(paths, n)), queue(*backend->make_queue()) {
        segment = *backend->allocate_segment(mib(2));
    }
    /// Sends the first half and fetches it into the second, in both modes.
    void expect_copies(const Pages& host) const {
        const std::size_t half = host.span().size() / kPageBytes / 2;
        static std::atomic<int> seed{0};
        for (const EngineMode mode : {EngineMode::copy, EngineMode::turbo}) {
            queue->set_mode(mode);
            std::vector<Copy> up;
            std::vector<Copy> down;
            for (std::size_t n = 0; n < half; ++n) {
                fill(host.page(n), ++seed);
                up.push_back({Copy::Op::to_gpu, segment, 2 * n * kPageBytes, host.page(n), kPageBytes});
                down.push_back(
                    {Copy::Op::from_gpu, segment, 2 * n * kPageBytes, host.page(half + n), kPageBytes});
            }
            EXPECT_EQ(run(*queue, up), IoStatus::ok);
            EXPECT_EQ(run(*queue, down), IoStatus::ok);
            EXPECT_EQ(std::memcmp(host.page(0), host.page(half), half * kPageBytes), 0);
        }
    }
    void add(const Pages& host) const {
        auto ok = backend->register_host(host.span());
        EXPECT_TRUE(ok) << ok.error().text();
    }
    void remove(const Pages& host) const {
        auto ok = backend->unregister_host(host.span());
        EXPECT_TRUE(ok) << ok.error().text();
    }
    void close() {
        queue.reset();
        backend.reset();
    }
    /// One submission never ends, and the driver says why.
    void lose(const Pages& host) const {
        Ticket ticket = 0;
        const Copy copy{Copy::Op::from_gpu, segment, 0, host.page(0), kPageBytes};
        const Setting hold("FAKE_CUDA_HOLD", "1");
        const Setting dead("FAKE_FAIL_cuStreamQuery", "700");
        EXPECT_EQ(queue->submit({&copy, 1}, ticket), IoStatus::pending);
        EXPECT_EQ(finish(*queue, ticket), IoStatus::io_error);
        EXPECT_EQ(backend->health(), Health::context_lost);
    }
};

struct TwoGpus {
    const Setting devices{"FAKE_CUDA_DEVICES", "2"};
    const Setting kernels;
    const TempFolder folder;  ///< with a driver of their own: what is lost stays
    const std::string library = fake_without(folder, {});
    const Pages host{64 * kPageBytes};
    Gpu first{0, fake_at(library)};
    Gpu second{1, fake_at(library)};

    /// Without kernels unless told: warming them up takes longest.
    explicit TwoGpus(const char* with_kernels = "0") : kernels("FAKE_CUDA_ATTR_91", with_kernels) {}

    [[nodiscard]] Asked asked() const { return Asked{library}; }
    /// The driver knows of no registration any more, nor do we.
    void expect_nothing_left() const {
        const Asked before = asked();
        const Gpu third(1, fake_at(library));
        third.add(host);
        EXPECT_GE(calls("cuMemHostRegister_v2", library), before.registered + 1);
        third.expect_copies(host);
        third.remove(host);
    }
};

TEST(CudaTwoGpus, EachHasItsOwnMemory) {
    const TwoGpus gpus;
    const Bytes free = gpus.second.backend->memory_info()->free;
    ASSERT_TRUE(gpus.first.backend->allocate_segment(mib(200)));
    EXPECT_EQ(gpus.second.backend->memory_info()->free, free);
    EXPECT_TRUE(gpus.second.backend->allocate_segment(mib(200)));
    EXPECT_FALSE(gpus.second.backend->allocate_segment(mib(200)));
}

TEST(CudaTwoGpus, ShareOneRegistration) {
    const TwoGpus gpus("1");
    ASSERT_TRUE(gpus.first.backend->caps().turbo && gpus.second.backend->caps().turbo);
    for (const auto& [one, other] :
         {std::pair(&gpus.first, &gpus.second), std::pair(&gpus.second, &gpus.first)}) {
        const Asked asked = gpus.asked();
        one->add(gpus.host);
        other->add(gpus.host);
        EXPECT_EQ(calls("cuMemHostRegister_v2", gpus.library) - asked.registered, 1);
        one->expect_copies(gpus.host);
        other->expect_copies(gpus.host);
        // The one that registered goes first, then the other way round.
        one->remove(gpus.host);
        asked.expect_nothing_ended();
        other->expect_copies(gpus.host);
        one->add(gpus.host);
        other->remove(gpus.host);
        asked.expect_nothing_ended();
        one->expect_copies(gpus.host);
        one->remove(gpus.host);
        asked.expect_ended();
        EXPECT_EQ(calls("cuMemHostRegister_v2", gpus.library) - asked.registered, 1);
    }
    gpus.expect_nothing_left();
}

TEST(CudaTwoGpus, TheLastEndsARegistrationThatTheOtherMade) {
    const TwoGpus gpus;
    gpus.first.add(gpus.host);
    gpus.second.add(gpus.host);
    gpus.first.remove(gpus.host);
    const Asked asked = gpus.asked();
    gpus.second.remove(gpus.host);
    asked.expect_ended();
    gpus.expect_nothing_left();
}

TEST(CudaTwoGpus, OnlyExactRangesAreShared) {
    const TwoGpus gpus;
    const auto all = gpus.host.span();
    const auto middle = all.subspan(kPageBytes, kPageBytes);
    ASSERT_TRUE(gpus.first.backend->register_host(middle));
    const Asked asked = gpus.asked();
    EXPECT_EQ(gpus.first.backend->register_host(middle).error().code, Errc::exists);
    EXPECT_EQ(gpus.second.backend->unregister_host(middle).error().code, Errc::not_found);
    for (const auto range : {all, all.first(2 * kPageBytes), all.subspan(kPageBytes)})
        EXPECT_EQ(gpus.second.backend->register_host(range).error().code, Errc::exists);
    EXPECT_EQ(gpus.second.backend->unregister_host(all).error().code, Errc::not_found);
    EXPECT_EQ(calls("cuMemHostRegister_v2", gpus.library), asked.registered);
    // Neighbours are none of this.
    ASSERT_TRUE(gpus.second.backend->register_host(all.first(kPageBytes)));
    ASSERT_TRUE(gpus.second.backend->register_host(all.subspan(2 * kPageBytes)));
    ASSERT_TRUE(gpus.second.backend->register_host(middle));
    EXPECT_EQ(gpus.second.backend->register_host(middle).error().code, Errc::exists);
    ASSERT_TRUE(gpus.first.backend->unregister_host(middle));
    EXPECT_EQ(gpus.first.backend->unregister_host(middle).error().code, Errc::not_found);
    gpus.second.expect_copies(gpus.host);
}

TEST(CudaTwoGpus, OneThatDoesNotReachTheMemorySaysSo) {
    const TwoGpus gpus;
    gpus.first.add(gpus.host);
    {
        const Setting not_mapped("FAKE_FAIL_cuMemHostGetDevicePointer_v2", "1");
        EXPECT_FALSE(gpus.second.backend->register_host(gpus.host.span()));
    }
    EXPECT_EQ(gpus.second.backend->unregister_host(gpus.host.span()).error().code, Errc::not_found);
    gpus.second.add(gpus.host);
}

TEST(CudaTwoGpus, TheOneThatRegisteredIsDestroyedFirst) {
    TwoGpus gpus;
    gpus.first.add(gpus.host);
    gpus.second.add(gpus.host);
    gpus.first.queue.reset();
    const Asked asked = gpus.asked();
    gpus.first.close();
    asked.expect_nothing_ended();
    gpus.second.expect_copies(gpus.host);
    {  // a third comes to what the first has left
        const Gpu third(0, fake_at(gpus.library));
        third.add(gpus.host);
        third.expect_copies(gpus.host);
        third.remove(gpus.host);
        gpus.second.expect_copies(gpus.host);
    }
    EXPECT_EQ(asked.contexts_destroyed(), 1) << "the third's: the first's is needed";
    const Asked before_last = gpus.asked();
    gpus.second.remove(gpus.host);
    before_last.expect_ended();
    EXPECT_EQ(before_last.contexts_destroyed(), 1);
    gpus.expect_nothing_left();
}

TEST(CudaTwoGpus, DestructionGivesBackWhatWasNotUnregistered) {
    for (const bool first_goes_first : {true, false}) {
        TwoGpus gpus;
        gpus.first.add(gpus.host);
        gpus.second.add(gpus.host);
        const Asked asked = gpus.asked();
        Gpu& goes = first_goes_first ? gpus.first : gpus.second;
        Gpu& stays = first_goes_first ? gpus.second : gpus.first;
        goes.close();
        stays.expect_copies(gpus.host);
        EXPECT_EQ(asked.contexts_destroyed(), first_goes_first ? 0 : 1);
        stays.close();
        EXPECT_EQ(asked.contexts_destroyed(), 2);
        EXPECT_EQ(calls("cuMemHostUnregister elsewhere", gpus.library), asked.elsewhere);
        gpus.expect_nothing_left();
    }
}

TEST(CudaTwoGpus, TheOneThatRegisteredIsLost) {
    for (const bool destroyed : {false, true}) {
        TwoGpus gpus;
        gpus.first.add(gpus.host);
        gpus.second.add(gpus.host);
        gpus.first.lose(gpus.host);
        const Asked asked = gpus.asked();
        const int pushed = calls("cuCtxPushCurrent_v2", gpus.library);
        if (destroyed)
            gpus.first.close();
        else
            EXPECT_EQ(gpus.first.backend->unregister_host(gpus.host.span()).error().code, Errc::gpu_lost);
        EXPECT_EQ(calls("cuCtxPushCurrent_v2", gpus.library), pushed) << "no more questions";
        gpus.second.expect_copies(gpus.host);
        asked.expect_nothing_ended();
        gpus.second.remove(gpus.host);
        EXPECT_EQ(calls("cuMemHostUnregister elsewhere", gpus.library) - asked.elsewhere, 1);
        EXPECT_EQ(asked.contexts_destroyed(), 0);
        EXPECT_EQ(gpus.second.backend->health(), Health::good);
        gpus.expect_nothing_left();
    }
}

TEST(CudaTwoGpus, TheOtherIsLost) {
    for (const bool destroyed : {false, true}) {
        TwoGpus gpus;
        gpus.first.add(gpus.host);
        gpus.second.add(gpus.host);
        gpus.second.lose(gpus.host);
        gpus.first.remove(gpus.host);
        const Asked asked = gpus.asked();
        if (destroyed)
            gpus.second.close();
        else
            EXPECT_EQ(gpus.second.backend->unregister_host(gpus.host.span()).error().code, Errc::gpu_lost);
        asked.expect_ended();
        gpus.expect_nothing_left();
    }
}

TEST(CudaTwoGpus, AfterTheLossOfBothOnlyTheDriverKnows) {
    TwoGpus gpus;
    gpus.first.add(gpus.host);
    gpus.second.add(gpus.host);
    gpus.first.lose(gpus.host);
    gpus.second.lose(gpus.host);
    const Asked asked = gpus.asked();
    gpus.second.close();
    EXPECT_EQ(gpus.first.backend->unregister_host(gpus.host.span()).error().code, Errc::gpu_lost);
    asked.expect_nothing_ended();
    const Gpu third(0, fake_at(gpus.library));
    const int registered = calls("cuMemHostRegister_v2", gpus.library);
    EXPECT_EQ(third.backend->register_host(gpus.host.span()).error().code, Errc::exists);
    EXPECT_EQ(calls("cuMemHostRegister_v2", gpus.library) - registered, 1) << "it is the driver that refuses";
}

TEST(CudaTwoGpus, ComeAndGoAtOnce) {
    const TwoGpus gpus;
    const auto work = [&](const Gpu& gpu, std::byte* page) {
        const Pages own(8 * kPageBytes);
        const Copy down{Copy::Op::from_gpu, gpu.segment, 0, page, kPageBytes};
        for (int n = 0; n < 300; ++n) {
            gpu.add(gpus.host);
            gpu.add(own);
            EXPECT_EQ(run(*gpu.queue, {&down, 1}), IoStatus::ok);
            gpu.expect_copies(own);
            gpu.remove(gpus.host);
            gpu.remove(own);
        }
    };
    std::thread other([&] { work(gpus.second, gpus.host.page(1)); });
    work(gpus.first, gpus.host.page(0));
    other.join();
    gpus.expect_nothing_left();
}

TEST(CudaMemoryInfo, ByNvmlOrByCuda) {
    const Setting free("FAKE_NVML_FREE", "777777");
    EXPECT_EQ(open_fake()->memory_info()->free.n, 777777u);
    EXPECT_EQ(open_fake()->memory_info()->total, mib(256));
    const TempFolder folder;
    const std::string v1 = fake_without(folder, {"nvmlDeviceGetMemoryInfo_v2"});
    EXPECT_EQ(open_fake({FAKE_CUDA_PATH, v1, "/nonexistent"})->memory_info()->free.n, 777777u);
    EXPECT_EQ(open_fake({FAKE_CUDA_PATH, kNoNvml, "/nonexistent"})->memory_info()->free, mib(256));
}

TEST(CudaMemoryInfo, NvmlKnowsThatTheGpuIsLost) {
    const TempFolder folder;
    const auto backend = open_fake(fake_at(fake_without(folder, {})));
    const Setting lost("FAKE_FAIL_nvmlDeviceGetMemoryInfo_v2", "15");
    EXPECT_EQ(backend->memory_info().error().code, Errc::gpu_lost);
    EXPECT_EQ(backend->health(), Health::gpu_lost);
    EXPECT_EQ(backend->allocate_segment(mib(2)).error().code, Errc::gpu_lost);
}

// --- what others do ---

GpuUsage usage_of(Backend& backend, UsageParts parts = UsageParts::activity_and_users) {
    auto usage = backend.usage(parts);
    EXPECT_TRUE(usage) << usage.error().text();
    return usage ? *std::move(usage) : GpuUsage{};
}

/// A backend whose kernel has just run.
std::unique_ptr<Backend> open_busy_fake() {
    auto backend = open_fake();
    auto queue = *backend->make_queue();
    queue->set_mode(EngineMode::turbo);
    round_trip(*backend, *queue, 64);
    return backend;
}

TEST(CudaUsage, OthersAloneOnTheGpu) {
    const auto backend = open_fake();
    EXPECT_EQ(usage_of(*backend).others_sm_percent, 0u);
    EXPECT_EQ(usage_of(*backend).others_memory_percent, 0u);
    const Setting sm("FAKE_NVML_SM", "37");
    const Setting memory("FAKE_NVML_MEMORY_USE", "12");
    const int asked = calls("nvmlDeviceGetProcessUtilization");
    EXPECT_EQ(usage_of(*backend).others_sm_percent, 37u) << "no kernel of ours ran";
    EXPECT_FALSE(usage_of(*backend).others_memory_percent) << "copies of ours are part of it";
    EXPECT_EQ(calls("nvmlDeviceGetProcessUtilization"), asked);
    const int listed = calls("nvmlDeviceGetComputeRunningProcesses_v3");
    EXPECT_FALSE(usage_of(*backend, UsageParts::activity).users);
    EXPECT_EQ(calls("nvmlDeviceGetComputeRunningProcesses_v3"), listed) << "lists cost milliseconds";
}

TEST(CudaUsage, OurKernelIsToldApartByProcess) {
    const auto backend = open_busy_fake();
    const Setting sm("FAKE_NVML_SM", "60");
    const std::string us = std::to_string(::getpid());
    EXPECT_FALSE(usage_of(*backend).others_sm_percent) << "somebody, but no sample tells who";
    {
        const Setting samples("FAKE_NVML_SAMPLES", us + ":60:5");
        EXPECT_EQ(usage_of(*backend).others_sm_percent, 0u);
        EXPECT_EQ(usage_of(*backend).others_memory_percent, 0u);
    }
    {
        const Setting samples("FAKE_NVML_SAMPLES", us + ":20:5,77:30:3,78:10:4,79:4000000:1");
        EXPECT_EQ(usage_of(*backend).others_sm_percent, 40u) << "without the one that makes no sense";
        EXPECT_EQ(usage_of(*backend).others_memory_percent, 7u);
    }
    {
        const Setting samples("FAKE_NVML_SAMPLES", "77:80:80,78:70:70");
        EXPECT_EQ(usage_of(*backend).others_sm_percent, 100u);
    }
    const Setting fails("FAKE_FAIL_nvmlDeviceGetProcessUtilization", "3");
    const Setting samples("FAKE_NVML_SAMPLES", "77:30:3");
    EXPECT_FALSE(usage_of(*backend).others_sm_percent);
    const Setting idle("FAKE_NVML_SM", "0");
    EXPECT_EQ(usage_of(*backend).others_sm_percent, 0u) << "nobody at all";
}

TEST(CudaUsage, ListsEachProcessOnce) {
    const auto backend = open_fake();
    EXPECT_EQ(usage_of(*backend).users->size(), 0u) << "without ourselves";
    EXPECT_EQ(usage_of(*backend).others_memory, Bytes{0});
    const Setting compute("FAKE_NVML_COMPUTE", "77:1000,78:3000");
    const Setting graphics("FAKE_NVML_GRAPHICS", "79:2000,77:1000");
    const Setting mps("FAKE_NVML_MPS", "80:500");
    const std::vector<GpuUser> expected{
        {78, Bytes{3000}}, {79, Bytes{2000}}, {77, Bytes{1000}}, {80, Bytes{500}}};
    EXPECT_EQ(usage_of(*backend).users, expected);
    EXPECT_EQ(usage_of(*backend).others_memory, Bytes{6500});
}

TEST(CudaUsage, MemoryThatIsNotToldIsNotGuessed) {
    const auto backend = open_fake();
    const Setting compute("FAKE_NVML_COMPUTE", "77:1000,78:-1");
    const GpuUsage usage = usage_of(*backend);
    EXPECT_EQ(usage.users, (std::vector<GpuUser>{{77, Bytes{1000}}, {78, {}}}));
    EXPECT_FALSE(usage.others_memory);
    const Setting graphics("FAKE_NVML_GRAPHICS", "78:50");
    EXPECT_EQ(usage_of(*backend).others_memory, Bytes{1050}) << "another list tells it";
}

TEST(CudaUsage, MoreProcessesThanExpected) {
    const auto backend = open_fake();
    std::string many;
    for (int n = 0; n < 300; ++n) many += std::to_string(1'000'000 + n) + ":1,";
    const Setting compute("FAKE_NVML_COMPUTE", many);
    EXPECT_EQ(usage_of(*backend).users->size(), 300u);
}

TEST(CudaUsage, ListsThatMakeNoSenseAreNone) {
    const auto backend = open_fake();
    const Setting compute("FAKE_NVML_COMPUTE", "77:1000,78:3000");
    {
        const Setting alien("FAKE_NVML_ALIEN", "1");
        EXPECT_FALSE(usage_of(*backend).users) << "we are not in it";
        EXPECT_FALSE(usage_of(*backend).others_memory);
        EXPECT_EQ(usage_of(*backend).others_sm_percent, 0u);
    }
    {
        const Setting entry("FAKE_NVML_ENTRY", "32");
        EXPECT_FALSE(usage_of(*backend).users);
    }
    const Setting fails("FAKE_FAIL_nvmlDeviceGetGraphicsRunningProcesses_v3", "999");
    EXPECT_FALSE(usage_of(*backend).users) << "half of them is not all";
}

TEST(CudaUsage, OldListsHaveShorterEntries) {
    const TempFolder folder;
    const std::string old = fake_without(
        folder, {"nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetComputeRunningProcesses_v2",
                 "nvmlDeviceGetGraphicsRunningProcesses_v3"});
    const auto backend = open_fake({FAKE_CUDA_PATH, old, "/nonexistent"});
    const Setting compute("FAKE_NVML_COMPUTE", "77:1000,78:3000");
    const Setting graphics("FAKE_NVML_GRAPHICS", "79:2000");
    EXPECT_EQ(usage_of(*backend).others_memory, Bytes{6000});
}

TEST(CudaUsage, GoesOnWithWhatNvmlHas) {
    const auto bare = open_fake({FAKE_CUDA_PATH, kNoNvml, "/nonexistent"});
    EXPECT_EQ(bare->usage(UsageParts::activity_and_users).error().code, Errc::unavailable);
    const TempFolder folder;
    const std::string mute = fake_without(folder, {"nvmlDeviceGetUtilizationRates"});
    const auto backend = open_fake({FAKE_CUDA_PATH, mute, "/nonexistent"});
    EXPECT_EQ(backend->usage(UsageParts::activity).error().code, Errc::unavailable);
    EXPECT_TRUE(usage_of(*backend).users);
    EXPECT_FALSE(usage_of(*backend).others_sm_percent);
    EXPECT_EQ(backend->health(), Health::good);
}

TEST(CudaUsage, NvmlKnowsThatTheGpuIsLostAndIsNotAskedAgain) {
    for (const char* call : {"nvmlDeviceGetUtilizationRates", "nvmlDeviceGetComputeRunningProcesses_v3"}) {
        const auto backend = open_fake();
        const Setting lost(std::string("FAKE_FAIL_") + call, "15");
        EXPECT_EQ(backend->usage(UsageParts::activity_and_users).error().code, Errc::gpu_lost) << call;
        EXPECT_EQ(backend->health(), Health::gpu_lost);
        const int asked = calls("nvmlDeviceGetMemoryInfo_v2") + calls(call);
        EXPECT_EQ(backend->memory_info().error().code, Errc::gpu_lost);
        EXPECT_EQ(backend->usage(UsageParts::activity_and_users).error().code, Errc::gpu_lost);
        EXPECT_EQ(calls("nvmlDeviceGetMemoryInfo_v2") + calls(call), asked);
    }
}

// --- copies ---

TEST(CudaQueue, CopiesFewAndMany) {
    const auto backend = open_fake();
    auto queue = *backend->make_queue();
    const int singles = calls("cuMemcpyHtoDAsync_v2");
    const int batches = calls("cuMemcpyBatchAsync_v2");
    round_trip(*backend, *queue, 1);
    round_trip(*backend, *queue, 7);
    EXPECT_EQ(calls("cuMemcpyHtoDAsync_v2") - singles, 8);
    EXPECT_EQ(calls("cuMemcpyBatchAsync_v2"), batches);
    round_trip(*backend, *queue, 8);
    round_trip(*backend, *queue, 1000);
    EXPECT_EQ(calls("cuMemcpyHtoDAsync_v2") - singles, 8);
    EXPECT_EQ(calls("cuMemcpyBatchAsync_v2") - batches, 4);
}

TEST(CudaQueue, LargeSubmissionsAreCutIntoBatches) {
    const auto backend = open_fake();
    auto queue = *backend->make_queue();
    const SegmentId segment = *backend->allocate_segment(mib(16));
    const HostMemory host(*backend, mib(16).n);
    std::vector<Copy> copies;
    for (std::size_t i = 0; i < 2500; ++i)
        copies.push_back({Copy::Op::to_gpu, segment, i * kPageBytes, host.page(i), kPageBytes});
    const int batches = calls("cuMemcpyBatchAsync_v2");
    EXPECT_EQ(run(*queue, copies), IoStatus::ok);
    EXPECT_EQ(calls("cuMemcpyBatchAsync_v2") - batches, 3);
}

TEST(CudaQueue, BatchOfNineArgumentsBeforeCuda13) {
    const TempFolder folder;
    const std::string library = fake_without(folder, {"cuMemcpyBatchAsync_v2"});
    const auto backend = open_fake(fake_at(library));
    auto queue = *backend->make_queue();
    const int before = calls("cuMemcpyBatchAsync", library);
    round_trip(*backend, *queue, 100);
    EXPECT_EQ(calls("cuMemcpyBatchAsync", library) - before, 2);
}

TEST(CudaQueue, WithoutBatchesCopiesGoSingly) {
    const TempFolder folder;
    const std::string library = fake_without(folder, {"cuMemcpyBatchAsync_v2", "cuMemcpyBatchAsync"});
    const auto backend = open_fake(fake_at(library));
    round_trip(*backend, **backend->make_queue(), 100);
}

TEST(CudaQueue, RefusedBatchIsNotTriedAgain) {
    const auto backend = open_fake();
    const Setting refused("FAKE_FAIL_cuMemcpyBatchAsync_v2", "801");
    auto queue = backend->make_queue();
    ASSERT_TRUE(queue) << queue.error().text();
    const int before = calls("cuMemcpyBatchAsync_v2");
    round_trip(*backend, **queue, 100);
    EXPECT_EQ(calls("cuMemcpyBatchAsync_v2"), before);
    EXPECT_EQ(backend->health(), Health::good);
}

TEST(CudaQueue, FindsItsThresholdsOnceForEachGpu) {
    auto driver = make_cuda_driver_for_test(fake());
    const auto backend = std::move(*driver->open(driver->enumerate()->at(0)));
    auto& cuda = dynamic_cast<cuda::CudaBackend&>(*backend);
    EXPECT_FALSE(cuda.thresholds());
    int launches = calls("cuLaunchKernel");
    ASSERT_TRUE(backend->make_queue());
    ASSERT_TRUE(cuda.thresholds());
    EXPECT_GT(calls("cuLaunchKernel") - launches, 2 * 5 + 256 + 8 * 256) << "with the shared streams full";
    launches = calls("cuLaunchKernel");
    ASSERT_TRUE(backend->make_queue());
    EXPECT_EQ(calls("cuLaunchKernel") - launches, 2 * 5 + 256)
        << "both ways 1, 32, 224 and, in two launches, 225; the queue full";
}

TEST(CudaQueue, TurboCopiesManyPagesByKernel) {
    const auto backend = open_fake();
    ASSERT_TRUE(backend->caps().turbo);
    auto queue = *backend->make_queue();
    queue->set_mode(EngineMode::turbo);
    const int singles = calls("cuMemcpyHtoDAsync_v2");
    const int launches = calls("cuLaunchKernel");
    round_trip(*backend, *queue, 3);
    EXPECT_EQ(calls("cuMemcpyHtoDAsync_v2") - singles, 3) << "too few";
    EXPECT_EQ(calls("cuLaunchKernel"), launches);
    for (const std::size_t pages : {4u, 32u, 33u, 224u}) round_trip(*backend, *queue, pages);
    EXPECT_EQ(calls("cuLaunchKernel") - launches, 8);
    round_trip(*backend, *queue, 1000);
    EXPECT_EQ(calls("cuLaunchKernel") - launches, 8 + 10);
    EXPECT_EQ(calls("cuMemcpyHtoDAsync_v2") - singles, 3);
    queue->set_mode(EngineMode::copy);
    round_trip(*backend, *queue, 1000);
    EXPECT_EQ(calls("cuLaunchKernel") - launches, 8 + 10);
}

TEST(CudaQueue, TurboLeavesLargeAndOddCopiesToTheEngine) {
    const auto backend = open_fake();
    auto queue = *backend->make_queue();
    queue->set_mode(EngineMode::turbo);
    const SegmentId segment = *backend->allocate_segment(mib(4));
    const HostMemory up(*backend, mib(4).n);
    const HostMemory down(*backend, mib(4).n);
    for (std::size_t n = 0; n < mib(4).n / kPageBytes; ++n) fill(up.page(n), static_cast<int>(n));
    // Four small ones (one of two pages), a large one, one that is no whole page.
    const auto copies = [&](Copy::Op op, const HostMemory& host) {
        std::vector<Copy> all;
        for (const std::size_t page : {1u, 5u, 9u})
            all.push_back({op, segment, page * kPageBytes, host.page(page), kPageBytes});
        all.push_back({op, segment, 20 * kPageBytes, host.page(20), 2 * kPageBytes});
        all.push_back({op, segment, 100 * kPageBytes, host.page(100), 200 * kPageBytes});
        all.push_back({op, segment, 400 * kPageBytes + 16, host.page(400) + 16, 100});
        return all;
    };
    const int singles = calls("cuMemcpyHtoDAsync_v2");
    const int launches = calls("cuLaunchKernel");
    ASSERT_EQ(run(*queue, copies(Copy::Op::to_gpu, up)), IoStatus::ok);
    EXPECT_EQ(calls("cuMemcpyHtoDAsync_v2") - singles, 2);
    EXPECT_EQ(calls("cuLaunchKernel") - launches, 1);
    ASSERT_EQ(run(*queue, copies(Copy::Op::from_gpu, down)), IoStatus::ok);
    for (const Copy& copy : copies(Copy::Op::from_gpu, down)) {
        const auto at = static_cast<std::size_t>(copy.host - down.page(0));
        EXPECT_EQ(std::memcmp(copy.host, up.page(0) + at, copy.bytes), 0) << at;
    }
}

TEST(CudaQueue, WithoutItsKernelTurboIsCopy) {
    for (const auto& [setting, value] : std::initializer_list<std::pair<const char*, const char*>>{
             {"FAKE_FAIL_cuModuleLoadData", "221"},  // the driver's PTX compiler is missing
             {"FAKE_FAIL_cuModuleGetFunction", "500"},
             {"FAKE_CUDA_ATTR_91", "0"}}) {
        const Setting without(setting, value);
        const auto backend = open_fake();
        EXPECT_FALSE(backend->caps().turbo) << setting;
        auto queue = *backend->make_queue();
        queue->set_mode(EngineMode::turbo);
        const int launches = calls("cuLaunchKernel");
        round_trip(*backend, *queue, 100);
        EXPECT_EQ(calls("cuLaunchKernel"), launches);
        EXPECT_EQ(backend->health(), Health::good);
    }
    const TempFolder folder;
    const auto old = open_fake(fake_at(fake_without(folder, {"cuLaunchKernel"})));
    EXPECT_FALSE(old->caps().turbo);
}

TEST(CudaQueue, AKernelThatFailsIsAnError) {
    const TempFolder folder;  // a driver of its own: what a lost context held stays allocated
    const auto backend = open_fake(fake_at(fake_without(folder, {})));
    auto queue = *backend->make_queue();
    queue->set_mode(EngineMode::turbo);
    const SegmentId segment = *backend->allocate_segment(mib(2));
    const HostMemory host(*backend, mib(2).n);
    std::vector<Copy> copies;
    for (std::size_t n = 0; n < 40; n += 2)
        copies.push_back({Copy::Op::to_gpu, segment, n * kPageBytes, host.page(n), kPageBytes});
    const Setting failing("FAKE_FAIL_cuLaunchKernel", "719");
    EXPECT_EQ(run(*queue, copies), IoStatus::io_error);
    EXPECT_EQ(backend->health(), Health::context_lost);
}

TEST(CudaQueue, PollCostsNoCallOfTheDriver) {
    const auto backend = open_fake();
    auto queue = *backend->make_queue();
    const int before = calls("cuStreamQuery");
    for (int i = 0; i < 100; ++i) round_trip(*backend, *queue, 1);
    EXPECT_EQ(calls("cuStreamQuery"), before);
    EXPECT_EQ(calls("cuEventCreate"), 0);
}

TEST(CudaQueue, OutOfRangeIsRefusedBeforeTheDriver) {
    const auto backend = open_fake();
    auto queue = *backend->make_queue();
    const HostMemory host(*backend, kPageBytes);
    const SegmentId segment = *backend->allocate_segment(mib(2));
    Ticket ticket = 0;
    for (const Copy& bad : {Copy{Copy::Op::to_gpu, segment, mib(2).n, host.page(0), kPageBytes},
                            Copy{Copy::Op::to_gpu, segment, mib(2).n - 1, host.page(0), kPageBytes},
                            Copy{Copy::Op::to_gpu, SegmentId{7}, 0, host.page(0), kPageBytes},
                            Copy{Copy::Op::to_gpu, SegmentId{~0u}, 0, host.page(0), kPageBytes}})
        EXPECT_EQ(queue->submit({&bad, 1}, ticket), IoStatus::out_of_range);
}

TEST(CudaQueue, WorksOnAnotherThreadAndBesideAnotherBackend) {
    const auto one = open_fake();
    const auto two = open_fake();
    auto queue_one = *one->make_queue();
    auto queue_two = *two->make_queue();
    std::thread([&] {
        for (int i = 0; i < 3; ++i) {
            round_trip(*one, *queue_one, 3);
            round_trip(*two, *queue_two, 30);
        }
    }).join();
    round_trip(*one, *queue_one, 3);
    round_trip(*two, *queue_two, 3);
}

TEST(CudaQueue, DepthIsBoundedAndCompletesInOrder) {
    const auto backend = open_fake();
    auto queue = *backend->make_queue();
    const HostMemory host(*backend, kPageBytes);
    const Copy copy{Copy::Op::to_gpu, *backend->allocate_segment(mib(2)), 0, host.page(0), kPageBytes};
    std::vector<Ticket> tickets(TransferQueue::kDepth);
    Ticket more = 0;
    {
        const Setting hold("FAKE_CUDA_HOLD", "1");
        for (Ticket& ticket : tickets) ASSERT_EQ(queue->submit({&copy, 1}, ticket), IoStatus::pending);
        EXPECT_EQ(queue->submit({&copy, 1}, more), IoStatus::retry);
        EXPECT_EQ(queue->poll(tickets.front()), IoStatus::pending);
        EXPECT_EQ(queue->poll(tickets.back()), IoStatus::pending);
    }
    EXPECT_EQ(finish(*queue, tickets.back()), IoStatus::ok);
    EXPECT_EQ(queue->poll(tickets.front()), IoStatus::ok);
    EXPECT_EQ(queue->submit({&copy, 1}, more), IoStatus::pending);
    EXPECT_EQ(finish(*queue, more), IoStatus::ok);
}

/// The ways of marking completion other than the normal one.
void check_events(const CudaPaths& paths) {
    const auto backend = open_fake(paths);
    auto queue = backend->make_queue();
    ASSERT_TRUE(queue) << queue.error().text();
    EXPECT_GE(calls("cuEventCreate", paths.libcuda), static_cast<int>(TransferQueue::kDepth));
    for (int i = 0; i < 300; ++i) round_trip(*backend, **queue, 1);
    const HostMemory host(*backend, kPageBytes);
    const Copy copy{Copy::Op::to_gpu, *backend->allocate_segment(mib(2)), 0, host.page(0), kPageBytes};
    Ticket ticket = 0;
    {
        const Setting hold("FAKE_CUDA_HOLD", "1");
        ASSERT_EQ((*queue)->submit({&copy, 1}, ticket), IoStatus::pending);
        EXPECT_EQ((*queue)->poll(ticket), IoStatus::pending);
    }
    EXPECT_EQ((*queue)->poll(ticket), IoStatus::ok);
    ASSERT_EQ((*queue)->submit({&copy, 1}, ticket), IoStatus::pending);
    const Setting dead("FAKE_FAIL_cuEventQuery", "719");
    EXPECT_EQ((*queue)->poll(ticket), IoStatus::io_error);
    EXPECT_EQ(backend->health(), Health::context_lost);
}

TEST(CudaQueue, EventsWhereNoWriteValueExists) {
    const TempFolder folder;
    check_events(fake_at(fake_without(folder, {"cuStreamWriteValue32", "cuStreamWriteValue32_v2"})));
}

TEST(CudaQueue, EventsWhereWriteValueV1IsSwitchedOff) {
    const TempFolder folder;
    check_events(fake_at(fake_without(folder, {"cuStreamWriteValue32_v2"})));
}

TEST(CudaQueue, EventsWhereWriteValueIsRefused) {
    const TempFolder folder;
    const std::string library = fake_without(folder, {});
    const Setting refused("FAKE_FAIL_cuStreamWriteValue32_v2", "801");
    check_events(fake_at(library));
}

TEST(CudaQueue, WriteValueV1WhereTheAttributeSaysSo) {
    const TempFolder folder;
    const std::string library = fake_without(folder, {"cuStreamWriteValue32_v2"});
    const Setting v1("FAKE_CUDA_ATTR_92", "1");
    const auto backend = open_fake(fake_at(library));
    round_trip(*backend, **backend->make_queue(), 3);
    EXPECT_EQ(calls("cuEventCreate", library), 0);
    EXPECT_GT(calls("cuStreamWriteValue32", library), 0);
}

// --- shared launches ---

TEST(CudaEndWords, AreToldEachByItselfAroundTheWrap) {
    constexpr std::uint64_t kDepth = TransferQueue::kDepth;
    constexpr std::uint64_t kWrap = std::uint64_t{1} << 32;
    alignas(std::uint32_t) std::array<std::byte, cuda::EndWords::kBytes> memory{};
    cuda::EndWords ends(memory.data());
    ends.set_address_on_gpu(0x1000);
    std::vector<Ticket> tickets;
    for (const Ticket first : {Ticket{1}, kWrap / 2 - kDepth, kWrap - 2 * kDepth, 5 * kWrap - 2 * kDepth})
        for (Ticket n = 0; n < 4 * kDepth; ++n) tickets.push_back(first + n);
    Ticket before = tickets.front();
    for (const Ticket ticket : tickets) {
        ASSERT_EQ(ends.look(ticket), IoStatus::pending) << ticket;
        const cuda::PageTell tell = ends.tell(ticket);
        if (ticket % 3 == 0)
            ends.fail(ticket);
        else
            std::memcpy(memory.data() + (tell.word - 0x1000), &tell.value, sizeof tell.value);
        ASSERT_EQ(ends.look(ticket), ticket % 3 == 0 ? IoStatus::io_error : IoStatus::ok) << ticket;
        if (before + 1 == ticket) {
            ASSERT_EQ(ends.look(before), before % 3 == 0 ? IoStatus::io_error : IoStatus::ok) << before;
        }
        before = ticket;
    }
}

/// Queues in mode turbo with pages of their own, on a driver of their own.
struct Party {
    static constexpr std::size_t kPages = 128;  ///< of each
    TempFolder folder;
    std::string library = fake_without(folder, {});
    std::unique_ptr<Backend> backend = open_fake(fake_at(library));
    HostMemory host;
    std::vector<std::unique_ptr<TransferQueue>> queues;
    std::vector<Ticket> tickets;
    SegmentId segment = *backend->allocate_segment(mib(64));

    explicit Party(std::size_t n) : host(*backend, n * kPages * kPageBytes), tickets(n) {
        for (std::size_t i = 0; i < n; ++i) {
            queues.push_back(*backend->make_queue());
            queues.back()->set_mode(EngineMode::turbo);
        }
        for (std::size_t page = 0; page < n * kPages; ++page) fill(host.page(page), static_cast<int>(page));
    }
    /// Scattered pages of queue i.
    [[nodiscard]] std::vector<Copy> pages(std::size_t i, std::size_t count = 10) const {
        std::vector<Copy> copies;
        for (std::size_t n = i * kPages; n < i * kPages + count; ++n)
            copies.push_back({Copy::Op::to_gpu, segment, 2 * n * kPageBytes, host.page(n), kPageBytes});
        return copies;
    }
    [[nodiscard]] IoStatus submit(std::size_t i, const std::vector<Copy>& copies) {
        return queues[i]->submit(copies, tickets[i]);
    }
    [[nodiscard]] IoStatus end(std::size_t i) { return finish(*queues[i], tickets[i]); }
    /// Whether these pages are in VRAM.
    [[nodiscard]] bool arrived(const std::vector<Copy>& copies) {
        auto queue = *backend->make_queue();
        const HostMemory back(*backend, kPageBytes);
        for (const Copy& copy : copies) {
            const Copy down[] = {{Copy::Op::from_gpu, segment, copy.offset, back.page(0), kPageBytes}};
            if (run(*queue, down) != IoStatus::ok) return false;
            if (std::memcmp(back.page(0), copy.host, kPageBytes) != 0) return false;
        }
        return true;
    }
    [[nodiscard]] int launches() const { return calls("cuLaunchKernel", library); }
};

/// Queue 0 of a party is inside the driver with a launch, from now until go_on().
class BusyLauncher {
  public:
    explicit BusyLauncher(Party& party) : party_(party) {
        tell_fake("fake_stop_launch", party_.library);
        thread_ = std::thread([this] { EXPECT_EQ(party_.submit(0, party_.pages(0)), IoStatus::pending); });
        tell_fake("fake_await_launch", party_.library);
    }
    ~BusyLauncher() { go_on(); }
    BusyLauncher(const BusyLauncher&) = delete;
    BusyLauncher& operator=(const BusyLauncher&) = delete;
    /// Returns when it is in its next launch.
    void next() {
        tell_fake("fake_stop_launch", party_.library);
        tell_fake("fake_await_launch", party_.library);
    }
    /// Returns when the thread has left submit.
    void go_on() {
        if (!thread_.joinable()) return;
        tell_fake("fake_go_on", party_.library);
        thread_.join();
    }

  private:
    Party& party_;
    std::thread thread_;
};

TEST(CudaSharedLaunch, TakesWhatWasPublishedMeanwhile) {
    Party party(5);
    const int before = party.launches();
    BusyLauncher busy(party);
    for (std::size_t i = 1; i < 5; ++i) {
        EXPECT_EQ(party.submit(i, party.pages(i, 10 + i)), IoStatus::pending);
        EXPECT_EQ(party.queues[i]->poll(party.tickets[i]), IoStatus::pending);
    }
    EXPECT_EQ(party.launches() - before, 1);
    busy.go_on();
    EXPECT_EQ(party.launches() - before, 2);
    for (std::size_t i = 0; i < 5; ++i) {
        EXPECT_EQ(party.queues[i]->poll(party.tickets[i]), IoStatus::ok) << i;
        EXPECT_TRUE(party.arrived(party.pages(i))) << i;
    }
}

TEST(CudaSharedLaunch, IsCutWhereItsKernelEnds) {
    Party party(41);
    int before = party.launches();
    {
        BusyLauncher busy(party);
        for (std::size_t i = 1; i < 41; ++i) ASSERT_EQ(party.submit(i, party.pages(i, 4)), IoStatus::pending);
    }
    EXPECT_EQ(party.launches() - before, 1 + 3) << "16, 16 and 8 queues";
    for (std::size_t i = 0; i < 41; ++i) EXPECT_EQ(party.end(i), IoStatus::ok);
    before = party.launches();
    {
        BusyLauncher busy(party);
        for (std::size_t i = 1; i < 5; ++i)
            ASSERT_EQ(party.submit(i, party.pages(i, 100)), IoStatus::pending);
    }
    EXPECT_EQ(party.launches() - before, 1 + 2) << "200 and 200 pages";
    for (std::size_t i = 0; i < 5; ++i) {
        EXPECT_EQ(party.end(i), IoStatus::ok);
        EXPECT_TRUE(party.arrived(party.pages(i, i == 0 ? 10 : 100))) << i;
    }
}

TEST(CudaSharedLaunch, FailsWhatIsInItAndNothingElse) {
    Party party(4);
    const int before = party.launches();
    BusyLauncher busy(party);
    for (const std::size_t i : {1u, 2u}) ASSERT_EQ(party.submit(i, party.pages(i)), IoStatus::pending);
    {
        const Setting refuse("FAKE_FAIL_cuLaunchKernel", "1");
        busy.go_on();
    }
    EXPECT_EQ(party.launches() - before, 2);
    EXPECT_EQ(party.end(0), IoStatus::ok);
    EXPECT_EQ(party.end(1), IoStatus::io_error);
    EXPECT_EQ(party.end(2), IoStatus::io_error);
    EXPECT_EQ(party.backend->health(), Health::good);
    for (const std::size_t i : {1u, 2u, 3u}) {
        ASSERT_EQ(party.submit(i, party.pages(i)), IoStatus::pending);
        EXPECT_EQ(party.end(i), IoStatus::ok);
        EXPECT_TRUE(party.arrived(party.pages(i)));
    }
}

TEST(CudaSharedLaunch, ThatLosesTheContextEndsAll) {
    Party party(4);
    BusyLauncher busy(party);
    for (const std::size_t i : {1u, 2u}) ASSERT_EQ(party.submit(i, party.pages(i)), IoStatus::pending);
    {
        const Setting dies("FAKE_FAIL_cuLaunchKernel", "719");
        busy.go_on();
    }
    EXPECT_EQ(party.end(0), IoStatus::ok) << "it had ended before";
    EXPECT_EQ(party.end(1), IoStatus::io_error);
    EXPECT_EQ(party.end(2), IoStatus::io_error);
    EXPECT_EQ(party.backend->health(), Health::context_lost);
    EXPECT_EQ(party.submit(3, party.pages(3)), IoStatus::io_error);
}

TEST(CudaSharedLaunch, AsksNoDriverAfterALoss) {
    Party party(3);
    BusyLauncher busy(party);
    ASSERT_EQ(party.submit(1, party.pages(1)), IoStatus::pending);
    ASSERT_EQ(party.submit(2, party.pages(2)), IoStatus::pending);
    {
        const Setting lost("FAKE_FAIL_nvmlDeviceGetMemoryInfo_v2", "15");
        EXPECT_FALSE(party.backend->memory_info());
    }
    ASSERT_EQ(party.backend->health(), Health::gpu_lost);
    const int before = party.launches();
    EXPECT_EQ(party.end(1), IoStatus::io_error) << "while another thread hangs in the driver";
    busy.go_on();
    EXPECT_EQ(party.launches(), before);
    EXPECT_EQ(party.end(2), IoStatus::io_error);
}

TEST(CudaSharedLaunch, ASubmissionBehindAThreadThatHangsEndsWithALoss) {
    Party party(2);
    std::atomic<bool> ended{false};
    std::thread submitter;
    {
        BusyLauncher busy(party);
        ASSERT_EQ(party.submit(1, party.pages(1)), IoStatus::pending);
        submitter = std::thread([&] {  // the batch before is not launched: this one has to wait
            EXPECT_EQ(party.submit(1, party.pages(1)), IoStatus::io_error);
            ended.store(true);
        });
        for (int i = 0; i < 1'000 && !ended.load(); ++i) std::this_thread::yield();
        EXPECT_FALSE(ended.load());
        const Setting lost("FAKE_FAIL_nvmlDeviceGetMemoryInfo_v2", "15");
        EXPECT_FALSE(party.backend->memory_info());
        for (int i = 0; i < 10'000'000 && !ended.load(); ++i) std::this_thread::yield();
        EXPECT_TRUE(ended.load()) << "while the other hangs in the driver";
        busy.go_on();
    }
    submitter.join();
}

TEST(CudaSharedLaunch, KeepsAQueueUntilItsPagesAreOnTheirWay) {
    Party party(2);
    const std::vector<Copy> pages = party.pages(1);
    std::atomic<bool> destroyed{false};
    std::thread destroyer;
    {
        BusyLauncher busy(party);
        ASSERT_EQ(party.submit(1, pages), IoStatus::pending);
        destroyer = std::thread([&] {
            party.queues[1].reset();
            destroyed.store(true);
        });
        for (int i = 0; i < 100'000 && !destroyed.load(); ++i) std::this_thread::yield();
        EXPECT_FALSE(destroyed.load());
    }
    destroyer.join();
    EXPECT_TRUE(party.arrived(pages));
    EXPECT_EQ(party.end(0), IoStatus::ok);
}

TEST(CudaSharedLaunch, IsWaitedForByTheNextSubmissionOfItsQueue) {
    Party party(3);
    const std::vector<Copy> all = party.pages(1, 20);
    const std::vector<Copy> first(all.begin(), all.begin() + 10);
    const std::vector<Copy> second(all.begin() + 10, all.end());
    std::thread again;
    {
        BusyLauncher busy(party);
        ASSERT_EQ(party.submit(1, first), IoStatus::pending);
        again = std::thread([&] { EXPECT_EQ(party.submit(1, second), IoStatus::pending); });
    }
    again.join();
    EXPECT_EQ(party.end(1), IoStatus::ok);
    EXPECT_TRUE(party.arrived(all));
}

TEST(CudaSharedLaunch, LeavesTheRestToOthersAfterSomeRounds) {
    Party party(5);
    const int before = party.launches();
    {
        BusyLauncher busy(party);
        for (std::size_t i = 1; i < 5; ++i) {
            ASSERT_EQ(party.submit(i, party.pages(i)), IoStatus::pending);
            if (i != 4) busy.next();
        }
    }
    EXPECT_EQ(party.launches() - before, 4);
    EXPECT_EQ(party.end(3), IoStatus::ok);
    EXPECT_EQ(party.end(4), IoStatus::ok) << "its queue launches it itself";
    EXPECT_EQ(party.launches() - before, 5);
    EXPECT_TRUE(party.arrived(party.pages(4)));
}

TEST(CudaSharedLaunch, EndsBeforeItsQueueIsDestroyed) {
    Party party(2);
    {
        const Setting hold("FAKE_CUDA_HOLD", "1");
        ASSERT_EQ(party.submit(1, party.pages(1)), IoStatus::pending);
        party.queues[1].reset();  // with the memory where its end is told
    }
    for (int n = 0; n < 16; ++n) {  // on all streams
        ASSERT_EQ(party.submit(0, party.pages(0)), IoStatus::pending);
        EXPECT_EQ(party.end(0), IoStatus::ok);
    }
}

TEST(CudaSharedLaunch, MixedSubmissionsGoTheirOwnWay) {
    Party party(2);
    std::vector<Copy> mixed = party.pages(1);
    mixed.push_back({Copy::Op::to_gpu, party.segment, mib(16).n, party.host.page(0), mib(1).n});
    const int before = party.launches();
    BusyLauncher busy(party);
    ASSERT_EQ(party.submit(1, mixed), IoStatus::pending);
    EXPECT_EQ(party.launches() - before, 2);
    EXPECT_EQ(party.end(1), IoStatus::ok) << "nobody else had to launch it";
    busy.go_on();
    EXPECT_EQ(party.launches() - before, 2);
    EXPECT_TRUE(party.arrived(party.pages(1)));
    {
        const Setting hold("FAKE_CUDA_HOLD", "1");
        ASSERT_EQ(party.submit(1, mixed), IoStatus::pending);
        for (int i = 0; i < 5000; ++i) ASSERT_EQ(party.queues[1]->poll(party.tickets[1]), IoStatus::pending);
    }
    EXPECT_EQ(party.end(1), IoStatus::ok);
}

TEST(CudaSharedLaunch, MayEndAfterWhatWasSubmittedLater) {
    Party party(1);
    TransferQueue& queue = *party.queues[0];
    const Copy large{Copy::Op::to_gpu, party.segment, mib(16).n, party.host.page(0), 100 * kPageBytes};
    Ticket first = 0;
    Ticket second = 0;
    {
        const Setting hold("FAKE_CUDA_HOLD", "1");
        ASSERT_EQ(queue.submit(party.pages(0), first), IoStatus::pending);
    }
    ASSERT_EQ(queue.submit({&large, 1}, second), IoStatus::pending);
    EXPECT_EQ(queue.poll(first), IoStatus::pending) << "the second's end is not the first's";
    EXPECT_EQ(queue.poll(second), IoStatus::pending) << "ends are told in order";
    EXPECT_EQ(finish(queue, second), IoStatus::ok);
    EXPECT_EQ(queue.poll(first), IoStatus::ok);
}

TEST(CudaSharedLaunch, ThatStallsIsAskedAfter) {
    Party party(1);
    const Setting hold("FAKE_CUDA_HOLD", "1");
    ASSERT_EQ(party.submit(0, party.pages(0)), IoStatus::pending);
    const int asked = calls("cuStreamQuery", party.library);
    for (int i = 0; i < 20'000; ++i) ASSERT_EQ(party.queues[0]->poll(party.tickets[0]), IoStatus::pending);
    EXPECT_GE(calls("cuStreamQuery", party.library) - asked, 9) << "idle streams do not mean that it ended";
    const Setting dead("FAKE_FAIL_cuStreamQuery", "700");
    EXPECT_EQ(party.end(0), IoStatus::io_error);
    EXPECT_EQ(party.backend->health(), Health::context_lost);
}

/// As run(), where others have to be given time to launch.
IoStatus run_beside_others(TransferQueue& queue, std::span<const Copy> copies) {
    Ticket ticket = 0;
    IoStatus status = queue.submit(copies, ticket);
    for (int i = 0; i < 1'000'000 && status == IoStatus::pending; ++i) {
        status = queue.poll(ticket);
        if (status == IoStatus::pending) std::this_thread::yield();
    }
    return status;
}

/// Sends its pages and fetches them, again and again.
void send_and_fetch(Party& party, std::size_t i, int rounds) {
    TransferQueue& queue = *party.queues[i];
    const std::size_t first = i * Party::kPages;
    for (int round = 0; round < rounds; ++round) {
        const std::size_t count = 4 + static_cast<std::size_t>(round) % 28;
        std::vector<Copy> up = party.pages(i, count);
        std::vector<Copy> down = up;
        for (std::size_t n = 0; n < count; ++n) {
            fill(party.host.page(first + n), round * 31 + static_cast<int>(n + i));
            down[n].op = Copy::Op::from_gpu;
            down[n].host = party.host.page(first + 64 + n);
        }
        ASSERT_EQ(run_beside_others(queue, up), IoStatus::ok);
        ASSERT_EQ(run_beside_others(queue, down), IoStatus::ok);
        ASSERT_EQ(std::memcmp(party.host.page(first), party.host.page(first + 64), count * kPageBytes), 0);
    }
}

TEST(CudaSharedLaunch, ServesManyThreadsWhileQueuesComeAndGo) {
    Party party(6);
    std::vector<std::thread> threads;
    for (std::size_t i = 0; i < 5; ++i) threads.emplace_back([&party, i] { send_and_fetch(party, i, 300); });
    for (int n = 0; n < 5; ++n) {  // each leaves in the middle of something
        auto queue = *party.backend->make_queue();
        queue->set_mode(EngineMode::turbo);
        Ticket ticket = 0;
        EXPECT_EQ(queue->submit(party.pages(5), ticket), IoStatus::pending);
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(party.backend->health(), Health::good);
}

// --- losses ---

/// One submission that never completes by itself. With a driver of its own: what a lost backend held stays
/// taken.
struct Stuck {
    TempFolder folder;
    std::string library = fake_without(folder, {});
    std::unique_ptr<Backend> backend = open_fake(fake_at(library));
    HostMemory host{*backend, kPageBytes};
    std::unique_ptr<TransferQueue> queue = *backend->make_queue();
    Setting hold{"FAKE_CUDA_HOLD", "1"};
    Copy copy{Copy::Op::from_gpu, *backend->allocate_segment(mib(2)), 0, host.page(0), kPageBytes};
    Ticket ticket = 0;
    Stuck() { EXPECT_EQ(queue->submit({&copy, 1}, ticket), IoStatus::pending); }
};

TEST(CudaLoss, DeadContextIsNoticedByPolling) {
    Stuck stuck;
    const Setting dead("FAKE_FAIL_cuStreamQuery", "700");
    EXPECT_EQ(finish(*stuck.queue, stuck.ticket), IoStatus::io_error);
    EXPECT_EQ(stuck.backend->health(), Health::context_lost);
    // No more questions to a driver that may hang.
    const int asked = calls("cuMemCreate", stuck.library);
    auto refused = stuck.backend->allocate_segment(mib(2));
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, Errc::gpu_lost);
    EXPECT_EQ(calls("cuMemCreate", stuck.library), asked);
    EXPECT_EQ(stuck.queue->submit({&stuck.copy, 1}, stuck.ticket), IoStatus::io_error);
}

TEST(CudaLoss, FallenOffTheBusIsTheLossOfTheGpu) {
    Stuck stuck;
    const Setting dead("FAKE_FAIL_cuStreamQuery", "101");
    EXPECT_EQ(finish(*stuck.queue, stuck.ticket), IoStatus::io_error);
    EXPECT_EQ(stuck.backend->health(), Health::gpu_lost);
}

TEST(CudaLoss, UnknownErrorCountsWhenRepeated) {
    Stuck stuck;
    const Setting unknown("FAKE_FAIL_cuStreamQuery", "999");
    const int asked = calls("cuStreamQuery", stuck.library);
    EXPECT_EQ(finish(*stuck.queue, stuck.ticket), IoStatus::io_error);
    EXPECT_EQ(calls("cuStreamQuery", stuck.library) - asked, 2);
    EXPECT_EQ(stuck.backend->health(), Health::context_lost);
}

TEST(CudaLoss, StalledPollAsksSeldom) {
    Stuck stuck;
    const int asked = calls("cuStreamQuery", stuck.library);
    for (int i = 0; i < 10; ++i) EXPECT_EQ(stuck.queue->poll(stuck.ticket), IoStatus::pending);
    EXPECT_EQ(calls("cuStreamQuery", stuck.library), asked);
    for (int i = 0; i < 2048; ++i) EXPECT_EQ(stuck.queue->poll(stuck.ticket), IoStatus::pending);
    EXPECT_GE(calls("cuStreamQuery", stuck.library), asked + 2);
}

TEST(CudaLoss, RefusedCopyFailsItsSubmissionAlone) {
    const auto backend = open_fake();
    auto queue = *backend->make_queue();
    const HostMemory host(*backend, kPageBytes);
    const Copy copy{Copy::Op::to_gpu, *backend->allocate_segment(mib(2)), 0, host.page(0), kPageBytes};
    Ticket ticket = 0;
    {
        const Setting refuse("FAKE_FAIL_cuMemcpyHtoDAsync_v2", "1");
        EXPECT_EQ(queue->submit({&copy, 1}, ticket), IoStatus::io_error);
    }
    EXPECT_EQ(backend->health(), Health::good);
    EXPECT_EQ(run(*queue, {&copy, 1}), IoStatus::ok);
}

TEST(CudaLoss, MakingAQueueOnABrokenContextFails) {
    const TempFolder folder;
    const auto backend = open_fake(fake_at(fake_without(folder, {})));
    const Setting dead("FAKE_FAIL_cuMemcpyDtoHAsync_v2", "719");
    auto queue = backend->make_queue();
    ASSERT_FALSE(queue);
    EXPECT_EQ(backend->health(), Health::context_lost);
}

TEST(CudaLoss, ClassesOfErrors) {
    for (const int result : {0, 1, 2, 600, 712, 713, 800, 801})
        EXPECT_EQ(classify(result), Damage::none) << result;
    for (const int result :
         {4, 46, 214, 220, 226, 304, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 721, 810, 911, 916})
        EXPECT_EQ(classify(result), Damage::context) << result;
    for (const int result : {100, 101}) EXPECT_EQ(classify(result), Damage::gpu) << result;
    EXPECT_EQ(classify(999), Damage::suspect);
}

}  // namespace
}  // namespace vramswap
