// SPDX-License-Identifier: MIT
#include "store/state.h"

#include <fmt/format.h>
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

#include <utility>

namespace vramswap {

ChunkLock::ChunkLock(ChunkEntry& entry) : entry_(entry) {
    constexpr int kSpinsBeforeYield = 200;
    for (int spins = 0; entry_.locked.exchange(1, std::memory_order_acquire) != 0; ++spins) {
        if (spins < kSpinsBeforeYield)
            cpu_relax();
        else
            ::sched_yield();  // the holder may have lost its CPU
    }
}

namespace {
Result<SharedMemory> map_shared_memory(const char* name, UniqueFd fd, std::size_t size) {
    void* base = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd.get(), 0);
    if (base == MAP_FAILED) return sys_error(fmt::format("cannot map {} for {}", format_size({size}), name));
    (void)::mlock(base, size);  // the daemon locks everything later and fails then if it may not
    return SharedMemory{std::move(fd), {static_cast<std::byte*>(base), size}};
}
}  // namespace

Result<SharedMemory> make_shared_memory(const char* name, std::size_t size) {
    UniqueFd fd(::memfd_create(name, MFD_CLOEXEC));
    if (!fd || ::ftruncate(fd.get(), static_cast<off_t>(size)) != 0)
        return sys_error(fmt::format("cannot create {} of shared memory for {}", format_size({size}), name));
    return map_shared_memory(name, std::move(fd), size);
}

Result<SharedMemory> adopt_shared_memory(const char* name, const UniqueFd& fd, std::size_t size) {
    UniqueFd own = fd.dup();
    if (!own) return sys_error(fmt::format("cannot duplicate the descriptor of {}", name));
    if (::lseek(own.get(), 0, SEEK_END) != static_cast<off_t>(size))
        return Error{Errc::failed, 0,
                     fmt::format("what was kept as {} has not {}", name, format_size({size}))};
    return map_shared_memory(name, std::move(own), size);
}

namespace {

StateLayout lay_out(const StateShape& shape) {
    StateLayout h;
    h.magic = StateHeader::kMagic;
    h.version = StateHeader::kVersion;
    h.device_bytes = shape.device.n;
    h.segment_bytes = shape.segment.n;
    h.chunks = static_cast<std::uint32_t>(round_up(shape.device.n, kChunkBytes) / kChunkBytes);
    // Each GPU may come to hold all of the device, and a segment more: chunks move between segments while one
    // is given back, and those of one that gives way still are there when the others take their segments.
    const std::uint64_t per_gpu = round_up(shape.device.n, shape.segment.n) / shape.segment.n + 1;
    h.segments_max = static_cast<std::uint32_t>(per_gpu * shape.gpus);
    h.images = shape.images;
    std::uint64_t at = round_up(sizeof(StateHeader), kPageBytes);
    const auto place = [&at](std::uint64_t bytes) {
        const std::uint64_t here = at;
        at = round_up(at + bytes, kPageBytes);
        return here;
    };
    h.pages_offset = place(std::uint64_t{h.chunks} * kChunkPages * sizeof(PageEntry));
    h.chunks_offset = place(std::uint64_t{h.chunks} * sizeof(ChunkEntry));
    h.segments_offset = place(std::uint64_t{h.segments_max} * sizeof(SegmentEntry));
    h.images_offset = place(std::uint64_t{h.images} * sizeof(ImageHeader));
    h.total_bytes = at;
    return h;
}

Result<void> check(const StateShape& shape) {
    if (shape.device.n == 0 || shape.device.n % kPageBytes != 0 || shape.segment.n == 0 ||
        shape.segment.n % kChunkBytes != 0 || shape.images == 0)
        return Error{Errc::usage, 0,
                     fmt::format("a store of {} bytes in segments of {} with {} images is impossible",
                                 shape.device.n, shape.segment.n, shape.images)};
    return {};
}

}  // namespace

Result<State> State::create(const StateShape& shape) {
    if (auto possible = check(shape); !possible) return std::move(possible).error();
    const StateLayout layout = lay_out(shape);
    auto memory = make_shared_memory("vramswap-state", layout.total_bytes);
    if (!memory) return std::move(memory).error();
    *reinterpret_cast<StateHeader*>(memory->bytes.data()) = StateHeader{layout, {}};
    return State(std::move(memory->fd), memory->bytes.data(), memory->bytes.size());
}

Result<State> State::adopt(const StateShape& shape, const UniqueFd& fd) {
    if (auto possible = check(shape); !possible) return std::move(possible).error();
    const StateLayout layout = lay_out(shape);
    auto memory = adopt_shared_memory("the state", fd, layout.total_bytes);
    if (!memory) return std::move(memory).error();
    State state(std::move(memory->fd), memory->bytes.data(), memory->bytes.size());
    if (static_cast<const StateLayout&>(state.header()) == layout) return state;
    return Error{Errc::failed, 0, "what was kept as the state is of another version or another device"};
}

State::State(State&& other) noexcept
    : fd_(std::move(other.fd_)),
      base_(std::exchange(other.base_, nullptr)),
      size_(std::exchange(other.size_, 0)) {}

State::~State() {
    if (base_ != nullptr) ::munmap(base_, size_);
}

std::span<PageEntry> State::pages() const {
    return {at<PageEntry>(header().pages_offset), std::size_t{header().chunks} * kChunkPages};
}
std::span<ChunkEntry> State::chunks() const {
    return {at<ChunkEntry>(header().chunks_offset), header().chunks};
}
std::span<SegmentEntry> State::segments() const {
    return {at<SegmentEntry>(header().segments_offset), header().segments_max};
}
std::span<ImageHeader> State::images() const {
    return {at<ImageHeader>(header().images_offset), header().images};
}

}  // namespace vramswap
