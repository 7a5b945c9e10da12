// SPDX-License-Identifier: MIT
// A libcuda.so.1 and libnvidia-ml.so.1 in one, in host memory: for tests of src/gpu/cuda and for running the
// backend contract without a GPU. Build it as a module that links nothing of ours and tell the test where it
// lies:
//
//   add_library(fake_cuda MODULE support/fake_cuda.cc)
//   target_include_directories(fake_cuda PRIVATE ${PROJECT_SOURCE_DIR}/src)
//   target_compile_definitions(cuda_test PRIVATE FAKE_CUDA_PATH="$<TARGET_FILE:fake_cuda>")
//   add_dependencies(cuda_test fake_cuda)
//
// Device memory is host memory, copies happen at once, exported memory is a memfd. Calls check what the real
// driver checks and tests want to see: a current context, sizes, known handles, registered host memory. The
// environment, read at every call, chooses the behaviour:
//   FAKE_CUDA_VERSION=13000       cuDriverGetVersion
//   FAKE_CUDA_DEVICES=1           number of GPUs (at most 2); a context reaches the memory of its own alone
//   FAKE_CUDA_ATTR_<n>=<value>    a device attribute
//   FAKE_CUDA_NAME=<text>         name of every GPU
//   FAKE_CUDA_MEMORY=<bytes>      VRAM of a GPU, 256 MiB unless told
//   FAKE_CUDA_HOLD=1              what marks completion waits, and its stream is busy, until it is unset
//   FAKE_FAIL_<symbol>=<code>     this call fails
//   FAKE_CUDA_POISON=<path>       the process that finds this file removes it, and all its calls fail from
//   then on FAKE_NVML_MIG, FAKE_NVML_CC, FAKE_NVML_DISPLAY_ACTIVE, FAKE_NVML_DISPLAY_MODE = 1
//   FAKE_NVML_FREE=<bytes>        free memory as NVML tells it
//   FAKE_NVML_SM, FAKE_NVML_MEMORY_USE=<per cent>          of the time, all processes together
//   FAKE_NVML_SAMPLES=<pid>:<sm>:<memory>,...              the same by process
//   FAKE_NVML_COMPUTE, _GRAPHICS, _MPS=<pid>:<bytes>,...   processes on the GPU; -1 bytes: not told. This one
//                                 is in the first list, without being named
//   FAKE_NVML_ALIEN=1             it is not: the numbers are of another namespace
//   FAKE_NVML_ENTRY=32            bytes of an entry, as in early builds of R535
// Host memory is registered for all contexts, until that in which it was done is destroyed.
// fake_calls("cuInit") tells how often a function was called, fake_calls("cuMemHostUnregister elsewhere") how
// often that was in another context than that of the registration. fake_stop_launch() lets the next kernel
// launch wait inside its call until fake_go_on(), whatever the environment says by then; fake_await_launch()
// returns when it is there.

#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <span>
#include <vector>

#include "gpu/cuda/cuda_api.h"
#include "gpu/cuda/nvml_api.h"
#include "gpu/cuda/page_kernel.h"

namespace {

using namespace vramswap::cuda;  // types of the ABI only

constexpr std::size_t kGranularity = std::size_t{2} << 20;
constexpr int kDevicesMax = 2;
constexpr std::uint32_t kAlive = 0xc0'01'c7'8e;

std::uint64_t setting(const char* name, std::uint64_t otherwise) {
    const char* text = std::getenv(name);
    return text == nullptr ? otherwise : std::strtoull(text, nullptr, 0);
}

// --- how often what was called ---
struct Counter {
    const char* name = nullptr;
    int calls = 0;
};
std::mutex counters_mutex;
std::array<Counter, 128> counters;

Counter& counter(const char* name) {
    for (Counter& c : counters) {
        if (c.name == nullptr) c.name = ::strdup(name);
        if (std::strcmp(c.name, name) == 0) return c;
    }
    std::abort();
}

/// Counts the call; the code with which it is told to fail.
int enter(const char* symbol) {
    {
        const std::lock_guard lock(counters_mutex);
        ++counter(symbol).calls;
    }
    static std::atomic<bool> poisoned{false};
    const char* poison = std::getenv("FAKE_CUDA_POISON");
    if (poison != nullptr && ::unlink(poison) == 0) poisoned = true;
    if (poisoned) return 700;  // CUDA_ERROR_ILLEGAL_ADDRESS
    char name[96];
    std::snprintf(name, sizeof(name), "FAKE_FAIL_%s", symbol);
    return static_cast<int>(setting(name, 0));
}

/// "1:2:3,4:5:6" as rows of numbers; empty if the variable is not set.
using Row = std::array<std::uint64_t, 3>;
std::vector<Row> rows(const char* name) {
    std::vector<Row> found;
    const char* at = std::getenv(name);
    while (at != nullptr && *at != '\0') {
        Row& row = found.emplace_back();
        for (std::uint64_t& number : row) {
            char* end = nullptr;
            number = static_cast<std::uint64_t>(std::strtoll(at, &end, 0));
            at = end;
            if (*at != ':') break;
            ++at;
        }
        if (*at == ',') ++at;
    }
    return found;
}

/// A list of NVML's: counts what is there, writes what fits.
template <typename Write>
int tell_list(const std::vector<Row>& list, unsigned* count, Write write) {
    const unsigned room = *count;
    *count = static_cast<unsigned>(list.size());
    if (room < list.size()) return 7;  // NVML_ERROR_INSUFFICIENT_SIZE
    for (std::size_t n = 0; n < list.size(); ++n) write(n, list[n]);
    return 0;
}

int tell_processes(std::vector<Row> list, unsigned* count, NvmlProcess* to) {
    const std::size_t stride = setting("FAKE_NVML_ENTRY", sizeof(NvmlProcess));
    return tell_list(list, count, [&](std::size_t n, const Row& row) {
        const NvmlProcess process{static_cast<unsigned>(row[0]), row[1], ~0u, ~0u};
        std::memcpy(reinterpret_cast<std::byte*>(to) + n * stride, &process, sizeof(process));
    });
}
int tell_processes(std::vector<Row> list, unsigned* count, NvmlProcessV1* to) {
    return tell_list(list, count, [&](std::size_t n, const Row& row) {
        to[n] = {static_cast<unsigned>(row[0]), row[1]};
    });
}
/// And this process with its context.
std::vector<Row> compute_rows() {
    std::vector<Row> list = rows("FAKE_NVML_COMPUTE");
    if (setting("FAKE_NVML_ALIEN", 0) == 0)
        list.insert(list.begin(), {static_cast<std::uint64_t>(::getpid()), std::uint64_t{100} << 20, 0});
    return list;
}

/// Contexts, streams and events are never freed: use after destruction is seen, and what a backend abandons
/// after a loss is no leak.
struct Kept {
    const void* thing;
    Kept* next;
};
std::atomic<Kept*> kept{nullptr};

template <typename T>
T* keep(T* thing) {
    auto* node = new Kept{thing, kept.load()};
    while (!kept.compare_exchange_weak(node->next, node)) continue;
    return thing;
}

// --- contexts ---
struct Context {
    std::uint32_t magic = kAlive;
    CuDevice device = 0;
};
thread_local std::array<Context*, 16> stack;
thread_local std::size_t depth = 0;

Context* current() {
    return depth == 0 ? nullptr : stack.at(depth - 1);
}
Context* as_context(CuContext context) {
    return reinterpret_cast<Context*>(context);
}

/// Counts, then fails as told or for want of a living current context.
int enter_context(const char* symbol) {
    if (const int told = enter(symbol); told != 0) return told;
    if (current() == nullptr) return 201;  // INVALID_CONTEXT
    return current()->magic == kAlive ? 0 : code::kContextIsDestroyed;
}

// --- memory ---
enum class Use : std::uint8_t { none, plain, handle, reserved, mapped, host };
struct Range {
    Use use = Use::none;
    std::uint64_t key = 0;  ///< address, or number of a handle
    std::size_t bytes = 0;
    int fd = -1;
    bool accessible = false;
    CuDevice device = 0;            ///< whose memory it is
    const void* made_in = nullptr;  ///< the context that registered it
    CuStream counts_for = nullptr;  ///< the stream whose kernels count here
};
std::mutex ranges_mutex;
std::array<Range, 8192> all_ranges;
std::span<Range> ranges(all_ranges.data(), 0);  ///< as far as they were ever used
std::uint64_t last_handle = 0;
std::array<std::atomic<std::size_t>, kDevicesMax> all_used{};
std::atomic<std::size_t>& used(CuDevice device) {
    return all_used.at(static_cast<std::size_t>(device));
}

Range* find(Use use, std::uint64_t key) {
    for (Range& r : ranges)
        if (r.use == use && r.key == key) return &r;
    return nullptr;
}
Range* add(const Range& range) {
    for (Range& r : ranges)
        if (r.use == Use::none) return &(r = range);
    if (ranges.size() == all_ranges.size()) std::abort();
    ranges = {all_ranges.data(), ranges.size() + 1};
    return &(ranges.back() = range);
}
bool inside(const Range& r, std::uint64_t address, std::size_t bytes) {
    return address >= r.key && address - r.key <= r.bytes && bytes <= r.bytes - (address - r.key);
}
bool is_device(std::uint64_t address, std::size_t bytes) {
    const std::lock_guard lock(ranges_mutex);
    for (const Range& r : ranges)
        if ((r.use == Use::plain || (r.use == Use::mapped && r.accessible)) && inside(r, address, bytes))
            return r.device == current()->device;
    return false;
}
bool is_pinned(std::uint64_t address, std::size_t bytes) {
    const std::lock_guard lock(ranges_mutex);
    for (const Range& r : ranges)
        if (r.use == Use::host && inside(r, address, bytes)) return true;
    return false;
}
std::size_t capacity() {
    return setting("FAKE_CUDA_MEMORY", std::size_t{256} << 20);
}
int take(CuDevice device, std::size_t bytes) {
    if (used(device).load() + bytes > capacity()) return code::kOutOfMemory;
    used(device) += bytes;
    return 0;
}
void give(const Range& range) {
    used(range.device) -= range.bytes;
}
void* pointer(std::uint64_t address) {
    return reinterpret_cast<void*>(address);
}
std::uint64_t address_of(const void* p) {
    return reinterpret_cast<std::uintptr_t>(p);
}

int copy(std::uint64_t to, std::uint64_t from, std::size_t bytes) {
    const bool up = is_device(to, bytes) && is_pinned(from, bytes);
    const bool down = is_device(from, bytes) && is_pinned(to, bytes);
    const bool within = is_device(from, bytes) && is_device(to, bytes);
    if (!up && !down && !within) return code::kInvalidValue;
    std::memcpy(pointer(to), pointer(from), bytes);
    return 0;
}

// --- streams and events ---
bool holding() {
    return setting("FAKE_CUDA_HOLD", 0) != 0;
}

struct Write {
    std::uint64_t address = 0;
    std::uint32_t value = 0;
};
struct Stream {
    std::mutex mutex;
    std::array<Write, 512> held;
    std::size_t count = 0;
    void write(const Write& write) {
        {
            const std::lock_guard lock(mutex);
            held.at(count++) = write;
        }
        if (!holding()) let_go();
    }
    bool busy() {
        const std::lock_guard lock(mutex);
        return count != 0 && holding();
    }
    void let_go() {
        const std::lock_guard lock(mutex);
        for (std::size_t i = 0; i < count; ++i)
            std::atomic_ref<std::uint32_t>(*static_cast<std::uint32_t*>(pointer(held.at(i).address)))
                .store(held.at(i).value, std::memory_order_release);
        count = 0;
    }
};
Stream* as_stream(CuStream stream) {
    return reinterpret_cast<Stream*>(stream);
}

struct Event {
    bool recorded = false;
};

int write_value(CuStream stream, CuDevicePtr address, std::uint32_t value) {
    if (!is_pinned(address, sizeof(value))) return code::kInvalidValue;
    as_stream(stream)->write({address, value});
    return 0;
}

int batch(CuDevicePtr* to, CuDevicePtr* from, std::size_t* bytes, std::size_t count,
          CuMemcpyAttributes* attributes, std::size_t* starts, std::size_t attribute_count) {
    if (attribute_count != 1 || starts[0] != 0 || attributes->src_access_order != kSrcAccessOrderStream ||
        attributes->flags > 1 || count == 0)
        return code::kInvalidValue;
    for (std::size_t i = 0; i < count; ++i)
        if (const int result = copy(to[i], from[i], bytes[i]); result != 0) return result;
    return 0;
}

// --- a launch that is stopped ---
enum class Stop : std::uint8_t { none, wanted, reached };
std::mutex stop_mutex;
std::condition_variable stop_changed;
Stop stop = Stop::none;

void stop_if_wanted() {
    std::unique_lock lock(stop_mutex);
    if (stop != Stop::wanted) return;
    stop = Stop::reached;
    stop_changed.notify_all();
    stop_changed.wait(lock, [] { return stop != Stop::reached; });
}

/// Kernels of different streams may run at once and need counters of their own.
bool is_counter_of(CuStream stream, std::uint64_t counter) {
    const std::lock_guard lock(ranges_mutex);
    Range* range = find(Use::plain, counter);
    if (range == nullptr || (range->counts_for != nullptr && range->counts_for != stream)) return false;
    range->counts_for = stream;
    return true;
}

/// A kernel is known by how many pages it can take.
int copy_pages(std::size_t pages_max, unsigned pages, const PagePair* pairs) {
    if (pages == 0 || pages > pages_max) return code::kInvalidValue;
    for (unsigned i = 0; i < pages; ++i)
        if (copy(pairs[i].to, pairs[i].from, 4096) != 0) return code::kIllegalAddress;
    return 0;
}

/// A descriptor tells the GPU of its memory by its name, "/memfd:fake-vram-1 (deleted)".
constexpr const char* kVramName = "fake-vram-";
CuDevice device_of(int fd) {
    char link[32];
    char name[64] = {};
    std::snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    if (::readlink(link, name, sizeof(name) - 1) < 0) return -1;
    const char* at = std::strstr(name, kVramName);
    return at == nullptr ? -1 : std::atoi(at + std::strlen(kVramName));
}

bool good_prop(const CuMemAllocationProp* prop) {
    return prop->type == kAllocationTypePinned && prop->location.type == kLocationTypeDevice &&
           prop->location.id >= 0 && prop->location.id < kDevicesMax;
}

int fake_attribute(int attribute) {
    char name[32];
    std::snprintf(name, sizeof(name), "FAKE_CUDA_ATTR_%d", attribute);
    switch (attribute) {
        case 75:
            return static_cast<int>(setting(name, 9));
        case 91:
        case 102:
        case 103:
            return static_cast<int>(setting(name, 1));
        default:
            return static_cast<int>(setting(name, 0));
    }
}

constexpr const char* kPci[kDevicesMax] = {"0000:65:00.0", "0000:B3:00.0"};

/// NVML counts the GPUs backwards.
NvmlDevice nvml_device(CuDevice device) {
    return reinterpret_cast<NvmlDevice>(static_cast<std::intptr_t>(kDevicesMax - device));
}
std::uint64_t nvml_free(NvmlDevice nvml) {
    const auto device = static_cast<CuDevice>(kDevicesMax - reinterpret_cast<std::intptr_t>(nvml));
    return setting("FAKE_NVML_FREE", capacity() - used(device).load());
}

}  // namespace

#define FAKE_ENTER()                                                  \
    do {                                                              \
        if (const int told = enter(__func__); told != 0) return told; \
    } while (false)
#define FAKE_ENTER_CONTEXT()                                                  \
    do {                                                                      \
        if (const int told = enter_context(__func__); told != 0) return told; \
    } while (false)

extern "C" {
// The functions have no declarations before: the callers know them by name alone.

int fake_calls(const char* symbol) {
    const std::lock_guard lock(counters_mutex);
    return counter(symbol).calls;
}

void fake_stop_launch() {
    const std::lock_guard lock(stop_mutex);
    stop = Stop::wanted;
    stop_changed.notify_all();  // one that is stopped goes on
}
void fake_await_launch() {
    std::unique_lock lock(stop_mutex);
    stop_changed.wait(lock, [] { return stop == Stop::reached; });
}
void fake_go_on() {
    const std::lock_guard lock(stop_mutex);
    stop = Stop::none;
    stop_changed.notify_all();
}

// --- libcuda: start and devices ---
int cuInit(unsigned flags) {
    FAKE_ENTER();
    return flags == 0 ? 0 : code::kInvalidValue;
}
int cuDriverGetVersion(int* version) {
    FAKE_ENTER();
    *version = static_cast<int>(setting("FAKE_CUDA_VERSION", 13000));
    return 0;
}
int cuGetErrorName(int result, const char** text) {
    *text = result == 2     ? "CUDA_ERROR_OUT_OF_MEMORY"
            : result == 46  ? "CUDA_ERROR_DEVICE_UNAVAILABLE"
            : result == 700 ? "CUDA_ERROR_ILLEGAL_ADDRESS"
            : result == 803 ? "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"
                            : "CUDA_ERROR_FAKE";
    return 0;
}
int cuGetErrorString(int result, const char** text) {
    *text = result == 2 ? "out of memory" : "an error";
    return 0;
}
int cuDeviceGetCount(int* count) {
    FAKE_ENTER();
    *count = static_cast<int>(setting("FAKE_CUDA_DEVICES", 1));
    return 0;
}
int cuDeviceGet(CuDevice* device, int ordinal) {
    FAKE_ENTER();
    if (ordinal < 0 || ordinal >= kDevicesMax) return code::kInvalidDevice;
    *device = ordinal;
    return 0;
}
int cuDeviceGetName(char* name, int length, CuDevice) {
    FAKE_ENTER();
    const char* told = std::getenv("FAKE_CUDA_NAME");
    std::snprintf(name, static_cast<std::size_t>(length), "%s", told == nullptr ? "Fake GPU" : told);
    return 0;
}
int cuDeviceGetPCIBusId(char* id, int length, CuDevice device) {
    FAKE_ENTER();
    std::snprintf(id, static_cast<std::size_t>(length), "%s", kPci[device]);
    return 0;
}
int cuDeviceTotalMem_v2(std::size_t* bytes, CuDevice) {
    FAKE_ENTER();
    *bytes = capacity();
    return 0;
}
int cuDeviceGetAttribute(int* value, int attribute, CuDevice) {
    FAKE_ENTER();
    *value = fake_attribute(attribute);
    return 0;
}
int cuDeviceGetUuid_v2(CuUuid* uuid, CuDevice device) {
    FAKE_ENTER();
    for (unsigned char i = 0; i < 16; ++i) uuid->bytes[i] = static_cast<unsigned char>(i * 16 + device);
    return 0;
}

// --- libcuda: contexts ---
int cuCtxCreate_v2(CuContext* context, unsigned, CuDevice device) {
    FAKE_ENTER();
    auto* made = keep(new Context{kAlive, device});
    stack.at(depth++) = made;
    *context = reinterpret_cast<CuContext>(made);
    return 0;
}
int cuCtxDestroy_v2(CuContext context) {
    FAKE_ENTER();
    Context* c = as_context(context);
    if (c->magic != kAlive) return code::kContextIsDestroyed;
    c->magic = 0;
    if (current() == c) --depth;
    const std::lock_guard lock(ranges_mutex);
    for (Range& r : ranges)
        if (r.use == Use::host && r.made_in == c) r = {};
    return 0;
}
int cuCtxSetCurrent(CuContext context) {
    FAKE_ENTER();
    if (depth > 0) --depth;
    if (context != nullptr) stack.at(depth++) = as_context(context);
    return 0;
}
int cuCtxPushCurrent_v2(CuContext context) {
    FAKE_ENTER();
    if (as_context(context)->magic != kAlive) return code::kContextIsDestroyed;
    stack.at(depth++) = as_context(context);
    return 0;
}
int cuCtxPopCurrent_v2(CuContext* context) {
    FAKE_ENTER();
    if (depth == 0) return 201;  // INVALID_CONTEXT
    *context = reinterpret_cast<CuContext>(stack.at(--depth));
    return 0;
}

// --- libcuda: plain device memory and host memory ---
int cuMemGetInfo_v2(std::size_t* free, std::size_t* total) {
    FAKE_ENTER_CONTEXT();
    *total = capacity();
    *free = *total - used(current()->device).load();
    return 0;
}
int cuMemAlloc_v2(CuDevicePtr* address, std::size_t bytes) {
    FAKE_ENTER_CONTEXT();
    if (const int full = take(current()->device, bytes); full != 0) return full;
    const std::lock_guard lock(ranges_mutex);
    *address = address_of(std::malloc(bytes));
    add({Use::plain, *address, bytes, -1, true, current()->device});
    return 0;
}
int cuMemFree_v2(CuDevicePtr address) {
    FAKE_ENTER_CONTEXT();
    const std::lock_guard lock(ranges_mutex);
    Range* range = find(Use::plain, address);
    if (range == nullptr) return code::kInvalidValue;
    give(*range);
    std::free(pointer(address));
    *range = {};
    return 0;
}
int cuMemHostRegister_v2(void* memory, std::size_t bytes, unsigned flags) {
    FAKE_ENTER_CONTEXT();
    if (bytes == 0 || flags != (kHostRegisterPortable | kHostRegisterDeviceMap)) return code::kInvalidValue;
    if (bytes > std::size_t{256} << 20)
        return code::kInvalidValue;  // the rule of the backend, not of the driver
    if (is_pinned(address_of(memory), 1)) return code::kHostMemoryAlreadyRegistered;
    const std::lock_guard lock(ranges_mutex);
    add({Use::host, address_of(memory), bytes, -1, true, -1, current()});
    return 0;
}
int cuMemHostUnregister(void* memory) {
    FAKE_ENTER_CONTEXT();
    const std::lock_guard lock(ranges_mutex);
    Range* range = find(Use::host, address_of(memory));
    if (range == nullptr) return code::kHostMemoryNotRegistered;
    if (range->made_in != current()) (void)enter("cuMemHostUnregister elsewhere");
    *range = {};
    return 0;
}
int cuMemHostGetDevicePointer_v2(CuDevicePtr* address, void* host, unsigned) {
    FAKE_ENTER_CONTEXT();
    *address = address_of(host);
    return is_pinned(*address, 1) ? 0 : code::kInvalidValue;
}

// --- libcuda: virtual memory management ---
int cuMemGetAllocationGranularity(std::size_t* bytes, const CuMemAllocationProp* prop, int) {
    FAKE_ENTER();
    *bytes = kGranularity;
    return good_prop(prop) ? 0 : code::kInvalidValue;
}
int cuMemCreate(CuMemHandle* handle, std::size_t bytes, const CuMemAllocationProp* prop, unsigned long long) {
    FAKE_ENTER();
    if (bytes % kGranularity != 0 || !good_prop(prop)) return code::kInvalidValue;
    const CuDevice device = prop->location.id;
    if (const int full = take(device, bytes); full != 0) return full;
    char name[32];
    std::snprintf(name, sizeof(name), "%s%d", kVramName, device);
    const int fd = ::memfd_create(name, MFD_CLOEXEC);
    if (fd < 0 || ::ftruncate(fd, static_cast<off_t>(bytes)) != 0) return code::kOperatingSystem;
    const std::lock_guard lock(ranges_mutex);
    *handle = ++last_handle;
    add({Use::handle, *handle, bytes, fd, false, device});
    return 0;
}
int cuMemRelease(CuMemHandle handle) {
    FAKE_ENTER();
    const std::lock_guard lock(ranges_mutex);
    Range* range = find(Use::handle, handle);
    if (range == nullptr) return code::kInvalidValue;
    ::close(range->fd);
    give(*range);
    *range = {};
    return 0;
}
int cuMemAddressReserve(CuDevicePtr* address, std::size_t bytes, std::size_t, CuDevicePtr,
                        unsigned long long) {
    FAKE_ENTER_CONTEXT();
    void* p = ::mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) return code::kOutOfMemory;
    const std::lock_guard lock(ranges_mutex);
    *address = address_of(p);
    add({Use::reserved, *address, bytes, -1, false});
    return 0;
}
int cuMemAddressFree(CuDevicePtr address, std::size_t bytes) {
    FAKE_ENTER_CONTEXT();
    const std::lock_guard lock(ranges_mutex);
    Range* range = find(Use::reserved, address);
    if (range == nullptr || range->bytes != bytes || find(Use::mapped, address) != nullptr)
        return code::kInvalidValue;
    ::munmap(pointer(address), bytes);
    *range = {};
    return 0;
}
int cuMemMap(CuDevicePtr address, std::size_t bytes, std::size_t offset, CuMemHandle handle,
             unsigned long long) {
    FAKE_ENTER_CONTEXT();
    const std::lock_guard lock(ranges_mutex);
    const Range* memory = find(Use::handle, handle);
    const Range* room = find(Use::reserved, address);
    if (memory == nullptr || room == nullptr || offset != 0 || memory->bytes != bytes || room->bytes != bytes)
        return code::kInvalidValue;
    void* p = ::mmap(pointer(address), bytes, PROT_NONE, MAP_SHARED | MAP_FIXED, memory->fd, 0);
    if (p == MAP_FAILED) return code::kOperatingSystem;
    add({Use::mapped, address, bytes, -1, false, memory->device});
    return 0;
}
int cuMemUnmap(CuDevicePtr address, std::size_t bytes) {
    FAKE_ENTER_CONTEXT();
    const std::lock_guard lock(ranges_mutex);
    Range* range = find(Use::mapped, address);
    if (range == nullptr || range->bytes != bytes) return code::kInvalidValue;
    void* p = ::mmap(pointer(address), bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    *range = {};
    return p == MAP_FAILED ? code::kOperatingSystem : 0;
}
int cuMemSetAccess(CuDevicePtr address, std::size_t bytes, const CuMemAccessDesc* access, std::size_t count) {
    FAKE_ENTER_CONTEXT();
    const std::lock_guard lock(ranges_mutex);
    Range* range = find(Use::mapped, address);
    if (range == nullptr || range->bytes != bytes || count != 1 || access->flags != kAccessReadWrite ||
        access->location.type != kLocationTypeDevice || access->location.id != range->device)
        return code::kInvalidValue;
    if (::mprotect(pointer(address), bytes, PROT_READ | PROT_WRITE) != 0) return code::kOperatingSystem;
    range->accessible = true;
    return 0;
}
int cuMemExportToShareableHandle(void* out, CuMemHandle handle, int type, unsigned long long) {
    FAKE_ENTER();
    const std::lock_guard lock(ranges_mutex);
    const Range* range = find(Use::handle, handle);
    if (range == nullptr || type != kHandleTypePosixFd) return code::kInvalidValue;
    const int fd = ::dup(range->fd);
    std::memcpy(out, &fd, sizeof(fd));
    return 0;
}
int cuMemImportFromShareableHandle(CuMemHandle* handle, void* number, int type) {
    FAKE_ENTER();
    struct stat info {};
    const int fd = static_cast<int>(reinterpret_cast<std::intptr_t>(number));
    const CuDevice device = device_of(fd);
    if (type != kHandleTypePosixFd || ::fstat(fd, &info) != 0 || info.st_size == 0 || device < 0)
        return code::kInvalidValue;
    const std::lock_guard lock(ranges_mutex);
    *handle = ++last_handle;
    used(device) += static_cast<std::size_t>(info.st_size);
    add({Use::handle, *handle, static_cast<std::size_t>(info.st_size), ::dup(fd), false, device});
    return 0;
}

// --- libcuda: copies, streams, events ---
int cuMemcpyHtoDAsync_v2(CuDevicePtr to, const void* from, std::size_t bytes, CuStream) {
    FAKE_ENTER_CONTEXT();
    return is_device(to, bytes) ? copy(to, address_of(from), bytes) : code::kInvalidValue;
}
int cuMemcpyDtoHAsync_v2(void* to, CuDevicePtr from, std::size_t bytes, CuStream) {
    FAKE_ENTER_CONTEXT();
    return is_device(from, bytes) ? copy(address_of(to), from, bytes) : code::kInvalidValue;
}
int cuMemcpyDtoDAsync_v2(CuDevicePtr to, CuDevicePtr from, std::size_t bytes, CuStream) {
    FAKE_ENTER_CONTEXT();
    return is_device(from, bytes) && is_device(to, bytes) ? copy(to, from, bytes) : code::kInvalidValue;
}
int cuModuleLoadData(CuModule* module, const void* ptx) {
    FAKE_ENTER_CONTEXT();
    if (std::strstr(static_cast<const char*>(ptx), ".version 4.0") == nullptr) return 218;  // INVALID_PTX
    *module = reinterpret_cast<CuModule>(keep(new std::uint32_t{kAlive}));
    return 0;
}
int cuModuleGetFunction(CuFunction* function, CuModule, const char* name) {
    FAKE_ENTER_CONTEXT();
    const bool small = std::strcmp(name, kPageKernelSmallName) == 0;
    if (!small && std::strcmp(name, kPageKernelLargeName) != 0) return 500;  // NOT_FOUND
    *function =
        reinterpret_cast<CuFunction>(keep(new std::size_t{small ? kPageKernelSmall : kPageKernelLarge}));
    return 0;
}
int cuLaunchKernel(CuFunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                   unsigned block_y, unsigned block_z, unsigned shared_bytes, CuStream stream,
                   void** parameters, void** extra) {
    FAKE_ENTER_CONTEXT();
    if (grid_y * grid_z * block_y * block_z != 1 || block_x != kPageKernelThreads || shared_bytes != 0 ||
        extra != nullptr)
        return code::kInvalidValue;
    stop_if_wanted();
    const int copied = copy_pages(*reinterpret_cast<std::size_t*>(function), grid_x,
                                  static_cast<const PagePair*>(parameters[0]));
    const auto* tells = static_cast<const PageTell*>(parameters[1]);
    const auto counter = *static_cast<const std::uint64_t*>(parameters[2]);
    const auto count = *static_cast<const std::uint32_t*>(parameters[3]);
    if (copied != 0 || counter == 0) return copied;
    if (!is_counter_of(stream, counter) || count == 0 || count > kPageKernelTells)
        return code::kIllegalAddress;
    for (std::uint32_t i = 0; i < count; ++i)
        if (const int told = write_value(stream, tells[i].word, tells[i].value); told != 0) return told;
    return 0;
}
int cuMemcpyBatchAsync(CuDevicePtr* to, CuDevicePtr* from, std::size_t* bytes, std::size_t count,
                       CuMemcpyAttributes* attributes, std::size_t* starts, std::size_t attribute_count,
                       std::size_t* fail_index, CuStream stream) {
    FAKE_ENTER_CONTEXT();
    *fail_index = count;
    return stream == nullptr ? code::kInvalidValue
                             : batch(to, from, bytes, count, attributes, starts, attribute_count);
}
int cuMemcpyBatchAsync_v2(CuDevicePtr* to, CuDevicePtr* from, std::size_t* bytes, std::size_t count,
                          CuMemcpyAttributes* attributes, std::size_t* starts, std::size_t attribute_count,
                          CuStream stream) {
    FAKE_ENTER_CONTEXT();
    return stream == nullptr ? code::kInvalidValue
                             : batch(to, from, bytes, count, attributes, starts, attribute_count);
}
int cuStreamCreate(CuStream* stream, unsigned flags) {
    FAKE_ENTER_CONTEXT();
    *stream = reinterpret_cast<CuStream>(keep(new Stream));
    return flags == kStreamNonBlocking ? 0 : code::kInvalidValue;
}
int cuStreamDestroy_v2(CuStream stream) {
    FAKE_ENTER_CONTEXT();
    return as_stream(stream)->count == 0 ? 0 : code::kInvalidValue;
}
int cuStreamQuery(CuStream stream) {
    FAKE_ENTER_CONTEXT();
    if (as_stream(stream)->busy()) return code::kNotReady;
    as_stream(stream)->let_go();
    return 0;
}
int cuStreamSynchronize(CuStream stream) {
    FAKE_ENTER_CONTEXT();
    as_stream(stream)->let_go();
    return 0;
}
int cuStreamWriteValue32(CuStream stream, CuDevicePtr address, std::uint32_t value, unsigned) {
    FAKE_ENTER_CONTEXT();
    return fake_attribute(92) != 0 ? write_value(stream, address, value) : code::kNotSupported;
}
int cuStreamWriteValue32_v2(CuStream stream, CuDevicePtr address, std::uint32_t value, unsigned) {
    FAKE_ENTER_CONTEXT();
    return write_value(stream, address, value);
}
int cuEventCreate(CuEvent* event, unsigned flags) {
    FAKE_ENTER_CONTEXT();
    *event = reinterpret_cast<CuEvent>(keep(new Event));
    return flags == kEventDisableTiming ? 0 : code::kInvalidValue;
}
int cuEventRecord(CuEvent event, CuStream) {
    FAKE_ENTER_CONTEXT();
    reinterpret_cast<Event*>(event)->recorded = true;
    return 0;
}
int cuEventQuery(CuEvent event) {
    FAKE_ENTER_CONTEXT();
    return reinterpret_cast<Event*>(event)->recorded && holding() ? code::kNotReady : 0;
}
int cuEventDestroy_v2(CuEvent event) {
    FAKE_ENTER_CONTEXT();
    return event == nullptr ? code::kInvalidValue : 0;
}

// --- NVML ---
int nvmlInit_v2() {
    FAKE_ENTER();
    return 0;
}
int nvmlShutdown() {
    FAKE_ENTER();
    return 0;
}
int nvmlSystemGetDriverVersion(char* text, unsigned length) {
    FAKE_ENTER();
    std::snprintf(text, length, "580.159.04");
    return 0;
}
int nvmlSystemGetConfComputeState(NvmlConfComputeState* state) {
    FAKE_ENTER();
    state->cc_feature = static_cast<unsigned>(setting("FAKE_NVML_CC", 0));
    return 0;
}
int nvmlDeviceGetHandleByPciBusId_v2(const char* id, NvmlDevice* device) {
    FAKE_ENTER();
    for (int i = 0; i < kDevicesMax; ++i)
        if (::strcasecmp(id, kPci[i]) == 0) {
            *device = nvml_device(i);
            return 0;
        }
    return 6;  // NVML_ERROR_NOT_FOUND
}
int nvmlDeviceGetMemoryInfo(NvmlDevice device, NvmlMemory* memory) {
    FAKE_ENTER();
    *memory = {capacity(), nvml_free(device), 0};
    return 0;
}
int nvmlDeviceGetMemoryInfo_v2(NvmlDevice device, NvmlMemoryV2* memory) {
    FAKE_ENTER();
    if (memory->version != 0x0200'0028) return 25;  // NVML_ERROR_ARGUMENT_VERSION_MISMATCH
    memory->reserved = std::uint64_t{8} << 20;
    memory->total = capacity() + memory->reserved;
    memory->free = nvml_free(device);
    memory->used = capacity() - memory->free;
    return 0;
}
int nvmlDeviceGetDisplayActive(NvmlDevice, int* active) {
    FAKE_ENTER();
    *active = static_cast<int>(setting("FAKE_NVML_DISPLAY_ACTIVE", 0));
    return 0;
}
int nvmlDeviceGetDisplayMode(NvmlDevice, int* connected) {
    FAKE_ENTER();
    *connected = static_cast<int>(setting("FAKE_NVML_DISPLAY_MODE", 0));
    return 0;
}
int nvmlDeviceGetMigMode(NvmlDevice, unsigned* now, unsigned* pending) {
    FAKE_ENTER();
    *now = static_cast<unsigned>(setting("FAKE_NVML_MIG", 0));
    *pending = *now;
    return 0;
}
int nvmlDeviceGetUtilizationRates(NvmlDevice, NvmlUtilization* use) {
    FAKE_ENTER();
    *use = {static_cast<unsigned>(setting("FAKE_NVML_SM", 0)),
            static_cast<unsigned>(setting("FAKE_NVML_MEMORY_USE", 0))};
    return 0;
}
int nvmlDeviceGetProcessUtilization(NvmlDevice, NvmlProcessSample* samples, unsigned* count,
                                    unsigned long long since_us) {
    FAKE_ENTER();
    const auto list = rows("FAKE_NVML_SAMPLES");
    if (list.empty()) return 6;  // NVML_ERROR_NOT_FOUND
    return tell_list(list, count, [&](std::size_t n, const Row& row) {
        samples[n] = {static_cast<unsigned>(row[0]),
                      since_us + 1,
                      static_cast<unsigned>(row[1]),
                      static_cast<unsigned>(row[2]),
                      0,
                      0};
    });
}
int nvmlDeviceGetComputeRunningProcesses(NvmlDevice, unsigned* count, NvmlProcessV1* to) {
    FAKE_ENTER();
    return tell_processes(compute_rows(), count, to);
}
int nvmlDeviceGetComputeRunningProcesses_v2(NvmlDevice, unsigned* count, NvmlProcess* to) {
    FAKE_ENTER();
    return tell_processes(compute_rows(), count, to);
}
int nvmlDeviceGetComputeRunningProcesses_v3(NvmlDevice, unsigned* count, NvmlProcess* to) {
    FAKE_ENTER();
    return tell_processes(compute_rows(), count, to);
}
int nvmlDeviceGetGraphicsRunningProcesses(NvmlDevice, unsigned* count, NvmlProcessV1* to) {
    FAKE_ENTER();
    return tell_processes(rows("FAKE_NVML_GRAPHICS"), count, to);
}
int nvmlDeviceGetGraphicsRunningProcesses_v3(NvmlDevice, unsigned* count, NvmlProcess* to) {
    FAKE_ENTER();
    return tell_processes(rows("FAKE_NVML_GRAPHICS"), count, to);
}
int nvmlDeviceGetMPSComputeRunningProcesses_v3(NvmlDevice, unsigned* count, NvmlProcess* to) {
    FAKE_ENTER();
    return tell_processes(rows("FAKE_NVML_MPS"), count, to);
}

}  // extern "C"
