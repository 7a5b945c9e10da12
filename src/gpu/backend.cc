// SPDX-License-Identifier: MIT
#include "gpu/backend.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>

namespace vramswap {

std::string_view to_string(EngineMode mode) {
    return mode == EngineMode::turbo ? "turbo" : "copy";
}

IoStatus TransferQueue::submit(std::span<const Copy> copies, Ticket& ticket) {
    if (last_submitted_ - last_completed_ >= kDepth) {
        (void)poll(last_completed_ + 1);
        if (last_submitted_ - last_completed_ >= kDepth) return IoStatus::retry;
    }
    const auto fits = [this](SegmentId segment, std::uint64_t offset, std::uint32_t bytes) {
        const std::uint64_t size = do_segment_bytes(segment);
        return bytes != 0 && offset <= size && bytes <= size - offset;
    };
    for (const Copy& c : copies) {
        if (!fits(c.segment, c.offset, c.bytes)) return IoStatus::out_of_range;
        if (c.op == Copy::Op::within_gpu && !fits(c.to_segment, c.to_offset, c.bytes))
            return IoStatus::out_of_range;
    }
    const Ticket next = last_submitted_ + 1;
    const IoStatus status = do_submit(copies, next);
    if (status != IoStatus::ok) return status;
    last_submitted_ = next;
    ticket = next;
    return IoStatus::pending;
}

IoStatus TransferQueue::poll(Ticket ticket) {
    if (ticket == 0 || ticket > last_submitted_ || last_submitted_ - ticket >= kDepth)
        return IoStatus::io_error;
    while (last_completed_ < ticket) {
        const Ticket next = last_completed_ + 1;
        const IoStatus status = do_poll(next);
        if (status == IoStatus::pending) return status;
        outcome_.at(next % kDepth) = status;
        last_completed_ = next;
    }
    return outcome_.at(ticket % kDepth);
}

namespace {
Error no_such_segment(SegmentId segment) {
    return Error{Errc::not_found, 0, fmt::format("GPU segment {} does not exist", segment.n)};
}
}  // namespace

Result<SegmentId> Backend::allocate_segment(Bytes size) {
    if (size.n == 0 || size.n % caps_.granularity.n != 0)
        return Error{
            Errc::usage, 0,
            fmt::format("segment size {} is not a positive multiple of {}", size.n, caps_.granularity.n)};
    return do_allocate(size);
}

Result<void> Backend::free_segment(SegmentId segment) {
    if (!do_has_segment(segment)) return no_such_segment(segment);
    return do_free(segment);
}

Result<UniqueFd> Backend::export_segment(SegmentId segment) {
    if (!do_has_segment(segment)) return no_such_segment(segment);
    if (!caps_.exportable_segments)
        return Error{Errc::unavailable, 0, "this GPU driver cannot export memory",
                     "Data in VRAM will not survive the death of the worker"};
    return do_export(segment);
}

Result<SegmentId> Backend::import_segment(const UniqueFd& fd, Bytes size) {
    if (!fd.valid()) return Error{Errc::usage, 0, "no descriptor to import a segment from"};
    if (size.n == 0 || size.n % caps_.granularity.n != 0)
        return Error{Errc::usage, 0,
                     fmt::format("segment size {} is not a multiple of the granularity", size.n)};
    return do_import(fd.get(), size);
}

Result<void> Backend::register_host(std::span<std::byte> memory) {
    const auto page = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
    if (memory.empty() || reinterpret_cast<std::uintptr_t>(memory.data()) % page != 0 ||
        memory.size() % page != 0)
        return Error{Errc::usage, 0, "host memory to register is empty or not page-aligned"};
    return do_register(memory);
}

Result<void> Backend::unregister_host(std::span<std::byte> memory) {
    return do_unregister(memory);
}

Result<std::unique_ptr<TransferQueue>> Backend::make_queue() {
    return do_make_queue();
}

Result<MemoryInfo> Backend::memory_info() {
    return do_memory_info();
}

namespace {
/// Of all; none if one of them is not told.
std::optional<Bytes> memory_of(const std::vector<GpuUser>& users) {
    Bytes sum{};
    for (const GpuUser& user : users) {
        if (!user.memory) return {};
        sum = sum + *user.memory;
    }
    return sum;
}
}  // namespace

Result<GpuUsage> Backend::usage(UsageParts parts) {
    constexpr std::uint32_t kAll = 100;
    Result<GpuUsage> usage = do_usage(parts);
    if (!usage) return usage;
    for (auto* percent : {&usage->others_sm_percent, &usage->others_memory_percent})
        if (*percent) *percent = std::min(**percent, kAll);
    if (!usage->users) return usage;
    std::ranges::sort(*usage->users, [](const GpuUser& a, const GpuUser& b) {
        return a.memory != b.memory ? a.memory > b.memory : a.pid < b.pid;
    });
    usage->others_memory = memory_of(*usage->users);
    return usage;
}

}  // namespace vramswap
