// SPDX-License-Identifier: MIT
#include "gpu/cuda/cuda_queue.h"

#include <fmt/format.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <utility>
#include <vector>

#include "base/clock.h"

namespace vramswap::cuda {
namespace {

/// A stalled poll asks the driver whether the context still lives after so many loads, or after so long.
constexpr std::uint32_t kPollsPerQuery = 1024;
constexpr std::uint64_t kQueryIntervalNs = 1'000'000;
/// The clock is read only so often: it costs more than the load.
constexpr std::uint32_t kPollsPerClock = 16;
/// How long a refused submission may take to come to rest.
constexpr std::uint64_t kQuiesceNsMax = 100'000'000;
/// Large enough for the path of large copies (the inline path ends at 24 to 28 KiB).
constexpr std::size_t kWarmBytes = kChunkBytes;

CuDevicePtr host_address(const void* p) {
    return reinterpret_cast<std::uintptr_t>(p);
}

}  // namespace

Result<std::unique_ptr<TransferQueue>> CudaQueue::create(CudaBackend& backend) {
    auto completion = PinnedPages::create(backend, kPageBytes);
    if (!completion) return std::move(completion).error();
    std::unique_ptr<CudaQueue> queue(new CudaQueue(backend, *std::move(completion)));
    if (auto ok = queue->set_up(); !ok) return std::move(ok).error();
    if (auto ok = queue->warm_up(); !ok) return std::move(ok).error();
    return std::unique_ptr<TransferQueue>(std::move(queue));
}

CudaQueue::CudaQueue(CudaBackend& backend, PinnedPages completion)
    : backend_(backend),
      api_(backend.api()),
      completion_(std::move(completion)),
      ends_(completion_.memory().data()) {
    static_assert(EndWords::kBytes <= kPageBytes);
    batch_.ends = &ends_;
}

CudaQueue::~CudaQueue() {
    // After a loss too, however long the driver keeps who is launching: nobody may know the batch any more.
    while (launcher_ != nullptr && !launcher_->settle(batch_)) ::sched_yield();
    // After a loss nothing runs any more, and the driver's calls may hang.
    if (backend_.health() != Health::good || stream_ == nullptr) return;
    const ContextScope scope(api_, backend_.context());
    synchronize();
    for (CuEvent event : events_)
        if (event != nullptr) (void)api_.event_destroy(event);
    if (end_.counter != 0) (void)api_.mem_free(end_.counter);
    (void)api_.stream_destroy(stream_);
}

/// Waits for the end of all that was submitted. REQUIRES: the context is current.
void CudaQueue::synchronize() {
    if (backend_.health() != Health::good) return;
    backend_.report(api_.stream_synchronize(stream_));
    if (launcher_ != nullptr) backend_.report(launcher_->synchronize());
}

Result<void> CudaQueue::set_up() {
    CuResult result = api_.stream_create(&stream_, kStreamNonBlocking);
    if (result != code::kSuccess) return backend_.fail(result, "cuStreamCreate");
    result = try_write_value();
    if (result == code::kSuccess) {
        marker_ = Marker::write_value;
        return set_up_turbo();
    }
    if (classify(result) != Damage::none) return backend_.fail(result, "cuStreamWriteValue32");
    return make_events();
}

/// Chooses the function and lets it write once: what it promises differs between drivers.
CuResult CudaQueue::try_write_value() {
    int v1_works = 0;
    if (api_.stream_write_value32_v2 != nullptr)
        write_value_ = api_.stream_write_value32_v2;
    else if (api_.device_get_attribute(&v1_works, Attribute::can_use_stream_mem_ops_v1, backend_.device()) ==
                 code::kSuccess &&
             v1_works != 0)
        write_value_ = api_.stream_write_value32;
    if (write_value_ == nullptr) return code::kNotSupported;
    CuDevicePtr words_on_gpu = 0;
    CuResult result = api_.mem_host_get_device_pointer(&words_on_gpu, ends_.memory(), 0);
    if (result != code::kSuccess) return result;
    ends_.set_address_on_gpu(words_on_gpu);
    constexpr Ticket kProbe = 0x5aa5'0001;
    result = mark_by_value(kProbe);
    if (result != code::kSuccess) return result;
    result = api_.stream_synchronize(stream_);
    if (result != code::kSuccess) return result;
    result = ends_.look(kProbe) == IoStatus::ok ? code::kSuccess : code::kNotSupported;
    ends_.clear();
    return result;
}

/// For the kernels that tell of their end by themselves.
Result<void> CudaQueue::set_up_turbo() {
    if (!backend_.caps().turbo) return {};
    auto counter = make_counter(backend_, stream_);
    if (!counter) return std::move(counter).error();
    end_.counter = *counter;
    auto launcher = backend_.launcher();
    if (!launcher) return std::move(launcher).error();
    launcher_ = *launcher;
    return {};
}

Result<void> CudaQueue::make_events() {
    marker_ = Marker::event;
    for (CuEvent& event : events_) {
        const CuResult result = api_.event_create(&event, kEventDisableTiming);
        if (result != code::kSuccess) return backend_.fail(result, "cuEventCreate");
    }
    return {};
}

/// Runs every kind of operation once, so that none meets its first use, with its allocations and ioctls,
/// later.
Result<void> CudaQueue::warm_up() {
    auto host = PinnedPages::create(backend_, kWarmBytes);
    if (!host) return std::move(host).error();
    const Bytes size{round_up(kWarmBytes, backend_.caps().granularity.n)};
    auto segment = backend_.allocate_segment(size);
    if (!segment) return std::move(segment).error();
    Result<void> warmed = warm_copies(host->memory(), *segment);
    if (!warmed) synchronize();  // what flies must not outlive its memory
    if (warmed) warmed = backend_.free_segment(*segment);
    ends_.clear();  // tickets count from 1 again
    polls_ = 0;
    return warmed;
}

Result<void> CudaQueue::warm_copies(std::span<std::byte> host, SegmentId segment) {
    const auto copies_of = [&](Copy::Op op, std::size_t count, std::size_t bytes) {
        std::vector<Copy> copies;
        for (std::size_t i = 0; i < count; ++i)
            copies.push_back(
                {op, segment, i * bytes, host.data() + i * bytes, static_cast<std::uint32_t>(bytes)});
        return copies;
    };
    static_assert(kWarmBytes % kBatchMax == 0);
    try_batch(copies_of(Copy::Op::to_gpu, kBatchMax, kWarmBytes / kBatchMax));
    for (const Copy::Op op : {Copy::Op::to_gpu, Copy::Op::from_gpu}) {
        if (auto ok = run(copies_of(op, 1, kPageBytes)); !ok) return ok;
        if (auto ok = run(copies_of(op, 1, kWarmBytes)); !ok) return ok;
        if (auto ok = run(copies_of(op, kBatchMax, kWarmBytes / kBatchMax)); !ok) return ok;
        if (!backend_.caps().turbo) continue;
        set_mode(EngineMode::turbo);
        thresholds_.turbo = 1;
        // By shared launches, but the last: it is too large for them.
        for (const std::size_t pages :
             {std::size_t{1}, kPageKernelSmall, kPageKernelLarge, kPageKernelLarge + 1})
            if (auto ok = run(copies_of(op, pages, kPageBytes)); !ok) return ok;
        set_mode(EngineMode::copy);
    }
    constexpr std::uint32_t kHalf = kWarmBytes / 2;
    if (auto ok = run(std::array{Copy{Copy::Op::within_gpu, segment, 0, nullptr, kHalf, segment, kHalf}});
        !ok)
        return ok;
    const auto page = copies_of(Copy::Op::to_gpu, 1, kPageBytes);
    if (auto ok = fill(page); !ok) return ok;
    if (backend_.caps().turbo) {
        set_mode(EngineMode::turbo);
        if (auto ok = fill(page); !ok) return ok;
        set_mode(EngineMode::copy);
        if (launcher_ != nullptr)  // with the kernel whose parameters are the larger ones
            if (auto ok = launcher_->fill(pairs_of(host, segment), kPageKernelSmall + 1); !ok) return ok;
    }
    return calibrate(host, segment);
}

/// As many as a launch can take.
PagePairs CudaQueue::pairs_of(std::span<std::byte> host, SegmentId segment) const {
    PagePairs pairs{};
    for (std::size_t n = 0; n < pairs.size(); ++n)
        pairs[n] = {backend_.place(segment).address + n * kPageBytes,
                    host_address(host.data() + n * kPageBytes)};
    return pairs;
}

/// Finds from how many pages on a batch, and a kernel, beat single copies; once for each GPU, since it takes
/// some milliseconds.
Result<void> CudaQueue::calibrate(std::span<std::byte> host, SegmentId segment) {
    if (backend_.thresholds()) {
        thresholds_ = *backend_.thresholds();
        return {};
    }
    constexpr std::size_t kNever = ~std::size_t{0};
    Thresholds found{kNever, kNever};
    std::vector<Copy> copies;
    for (std::size_t n = 2; n <= 64; n *= 2) {
        copies.clear();  // every second page: neighbours that the driver could join are no small copies
        for (std::size_t i = 0; i < n; ++i)
            copies.push_back({Copy::Op::from_gpu, segment, i * 2 * kPageBytes,
                              host.data() + i * 2 * kPageBytes, static_cast<std::uint32_t>(kPageBytes)});
        const auto single = time_of(copies, {kNever, kNever});
        if (!single) return std::move(single).error();
        const auto batch = time_of(copies, {1, kNever});
        if (!batch) return std::move(batch).error();
        if (found.batch == kNever && has_batch() && *batch <= *single) found.batch = n;
        if (!backend_.caps().turbo) continue;
        set_mode(EngineMode::turbo);
        const auto turbo = time_of(copies, {kNever, 1});
        set_mode(EngineMode::copy);
        if (!turbo) return std::move(turbo).error();
        if (found.turbo == kNever && *turbo <= std::min(*single, *batch)) found.turbo = n;
    }
    thresholds_ = found;
    backend_.set_thresholds(found);
    return {};
}

/// Nanoseconds until complete, the median of several.
Result<std::uint64_t> CudaQueue::time_of(std::span<const Copy> copies, Thresholds thresholds) {
    thresholds_ = thresholds;
    std::array<std::uint64_t, 7> times{};
    for (auto& time : times) {
        const std::uint64_t begin = now_ns();
        if (auto ok = run(copies); !ok) return std::move(ok).error();
        time = now_ns() - begin;
    }
    std::ranges::sort(times);
    return times[times.size() / 2];
}

/// Submits and waits. Also the first use of the calls that poll makes.
Result<void> CudaQueue::run(std::span<const Copy> copies) {
    ends_.clear();  // the ticket is the same each time
    IoStatus status = do_submit(copies, kDepth);
    if (status == IoStatus::ok) status = await(kDepth);
    if (status != IoStatus::ok)
        return Error{Errc::failed, 0, fmt::format("the first {} copies of a GPU queue failed", copies.size()),
                     "See the kernel log (\"Xid\")"};
    const CuResult result = api_.stream_query(stream_);
    if (result != code::kSuccess && result != code::kNotReady)
        return backend_.fail(result, "the first use of a GPU queue");
    return {};
}

/// Submits the copies as often as the queue is deep: the driver's rings and pools grow with what is in
/// flight.
Result<void> CudaQueue::fill(std::span<const Copy> copies) {
    ends_.clear();
    IoStatus status = IoStatus::ok;
    for (Ticket ticket = 1; ticket <= kDepth && status == IoStatus::ok; ++ticket)
        status = do_submit(copies, ticket);
    for (Ticket ticket = 1; ticket <= kDepth && status == IoStatus::ok; ++ticket) status = await(ticket);
    if (status == IoStatus::ok) return {};
    return Error{Errc::failed, 0, "filling a GPU queue failed", "See the kernel log (\"Xid\")"};
}

IoStatus CudaQueue::await(Ticket ticket) {
    for (;;) {
        const IoStatus status = do_poll(ticket);
        if (status != IoStatus::pending) return status;
        cpu_relax();
    }
}

/// Does without batches if this driver refuses them.
void CudaQueue::try_batch(std::span<const Copy> copies) {
    if (!has_batch()) return;
    const CuResult result = copy_batches(copies);
    backend_.report(result);
    batch_works_ = result == code::kSuccess;
}

bool CudaQueue::has_batch() const {
    return batch_works_ && (api_.memcpy_batch_async_v2 != nullptr || api_.memcpy_batch_async != nullptr);
}

std::uint64_t CudaQueue::do_segment_bytes(SegmentId segment) const {
    return backend_.place(segment).bytes;
}

IoStatus CudaQueue::do_submit(std::span<const Copy> copies, Ticket ticket) {
    if (backend_.health() != Health::good) return IoStatus::io_error;
    shared_.reset(ticket % kDepth);
    CuResult result = backend_.make_current();
    if (result == code::kSuccess && worth_a_kernel(copies)) {
        result = copy_turbo(copies, ticket);
    } else if (result == code::kSuccess) {
        result = copies.size() >= thresholds_.batch && has_batch() ? copy_batches(copies) : copy_each(copies);
        if (result == code::kSuccess) result = mark(ticket);
    }
    if (result == code::kSuccess) return IoStatus::ok;
    backend_.report(result);
    quiesce();
    return IoStatus::io_error;
}

CuResult CudaQueue::copy_each(std::span<const Copy> copies) {
    for (const Copy& copy : copies)
        if (const CuResult result = copy_one(copy); result != code::kSuccess) return result;
    return code::kSuccess;
}

CuResult CudaQueue::copy_one(const Copy& copy) {
    const CuDevicePtr gpu = backend_.place(copy.segment).address + copy.offset;
    switch (copy.op) {
        case Copy::Op::to_gpu:
            return api_.memcpy_htod_async(gpu, copy.host, copy.bytes, stream_);
        case Copy::Op::from_gpu:
            return api_.memcpy_dtoh_async(copy.host, gpu, copy.bytes, stream_);
        case Copy::Op::within_gpu:
            return api_.memcpy_dtod_async(backend_.place(copy.to_segment).address + copy.to_offset, gpu,
                                          copy.bytes, stream_);
    }
    return code::kInvalidValue;
}

CuResult CudaQueue::copy_batches(std::span<const Copy> copies) {
    CuMemcpyAttributes attributes{};
    attributes.src_access_order = kSrcAccessOrderStream;
    std::size_t attributes_start = 0;
    while (!copies.empty()) {
        const std::size_t count = std::min(copies.size(), kBatchMax);
        for (std::size_t i = 0; i < count; ++i) {
            const Copy& copy = copies[i];
            const CuDevicePtr gpu = backend_.place(copy.segment).address + copy.offset;
            const CuDevicePtr other = copy.op == Copy::Op::within_gpu
                                          ? backend_.place(copy.to_segment).address + copy.to_offset
                                          : host_address(copy.host);
            to_[i] = copy.op == Copy::Op::to_gpu ? gpu : other;
            from_[i] = copy.op == Copy::Op::to_gpu ? other : gpu;
            bytes_[i] = copy.bytes;
        }
        std::size_t fail_index = 0;
        const CuResult result =
            api_.memcpy_batch_async_v2 != nullptr
                ? api_.memcpy_batch_async_v2(to_.data(), from_.data(), bytes_.data(), count, &attributes,
                                             &attributes_start, 1, stream_)
                : api_.memcpy_batch_async(to_.data(), from_.data(), bytes_.data(), count, &attributes,
                                          &attributes_start, 1, &fail_index, stream_);
        if (result != code::kSuccess) return result;
        copies = copies.subspan(count);
    }
    return code::kSuccess;
}

/// Small, and in whole pages at addresses that a kernel can take.
bool CudaQueue::for_kernel(const Copy& copy) const {
    return copy.op != Copy::Op::within_gpu && copy.bytes <= kTurboPagesMax * kPageBytes &&
           copy.bytes % kPageBytes == 0 && copy.offset % kPageBytes == 0 &&
           host_address(copy.host) % kPageBytes == 0;
}

bool CudaQueue::worth_a_kernel(std::span<const Copy> copies) const {
    if (mode() != EngineMode::turbo || backend_.kernels().small == nullptr) return false;
    std::size_t small = 0;
    for (const Copy& copy : copies) {
        if (for_kernel(copy)) ++small;
        if (small >= thresholds_.turbo) return true;
    }
    return false;
}

/// One launch can take all of it.
bool CudaQueue::can_share(std::span<const Copy> copies) const {
    if (launcher_ == nullptr) return false;
    std::size_t pages = 0;
    for (const Copy& copy : copies) {
        if (!for_kernel(copy)) return false;
        pages += copy.bytes / kPageBytes;
    }
    return pages <= kPageKernelLarge;
}

/// Also marks the end. What cannot be shared goes by launches on the own stream, together with the copies
/// that are none for a kernel: their ends are one.
CuResult CudaQueue::copy_turbo(std::span<const Copy> copies, Ticket ticket) {
    if (launcher_ != nullptr && !launcher_->settle(batch_)) return code::kContextIsDestroyed;
    const bool shared = can_share(copies);
    batch_.pages = 0;
    for (const Copy& copy : copies)
        if (!for_kernel(copy))
            if (const CuResult result = copy_each({&copy, 1}); result != code::kSuccess) return result;
    for (const Copy& copy : copies) {
        if (!for_kernel(copy)) continue;
        const CuDevicePtr gpu = backend_.place(copy.segment).address + copy.offset;
        const CuDevicePtr host = host_address(copy.host);
        for (std::uint32_t at = 0; at < copy.bytes; at += kPageBytes) {
            if (batch_.pages == kPageKernelLarge)
                if (const CuResult result = launch_pages(); result != code::kSuccess) return result;
            batch_.pairs[batch_.pages++] =
                copy.op == Copy::Op::to_gpu ? PagePair{gpu + at, host + at} : PagePair{host + at, gpu + at};
        }
    }
    if (!shared) return launch_last_pages(ticket);
    shared_.set(ticket % kDepth);
    batch_.ticket = ticket;
    batch_.tell = ends_.tell(ticket);
    launcher_->publish(batch_);
    return code::kSuccess;
}

/// On the own stream; nobody is told.
CuResult CudaQueue::launch_pages() {
    const std::size_t pages = std::exchange(batch_.pages, 0);
    return backend_.launch_kernel(stream_, batch_.pairs, pages, PageKernelEnd{});
}

/// The last launch tells the end by itself where it can.
CuResult CudaQueue::launch_last_pages(Ticket ticket) {
    if (marker_ == Marker::event) {
        const CuResult result = launch_pages();
        return result == code::kSuccess ? mark(ticket) : result;
    }
    end_.tells[0] = ends_.tell(ticket);
    end_.count = 1;
    return backend_.launch_kernel(stream_, batch_.pairs, batch_.pages, end_);
}

CuResult CudaQueue::mark(Ticket ticket) {
    return marker_ == Marker::write_value ? mark_by_value(ticket)
                                          : api_.event_record(events_[ticket % kDepth], stream_);
}

CuResult CudaQueue::mark_by_value(Ticket ticket) {
    const PageTell tell = ends_.tell(ticket);
    return write_value_(stream_, tell.word, tell.value, kWriteValueDefault);
}

/// After a refusal: lets what was accepted of the submission end, since the caller will use its memory again.
/// Spins, for the errors that leave the context alive are rare and the copies take microseconds.
void CudaQueue::quiesce() {
    if (backend_.health() != Health::good) return;
    const std::uint64_t start = now_ns();
    while (api_.stream_query(stream_) == code::kNotReady && now_ns() - start < kQuiesceNsMax) cpu_relax();
}

IoStatus CudaQueue::do_poll(Ticket ticket) {
    if (marker_ == Marker::event) return poll_event(ticket);
    const IoStatus told = ends_.look(ticket);
    if (told != IoStatus::pending) {
        polls_ = 0;
        return told;
    }
    // What was complete before the loss was seen above; the rest never will be.
    if (backend_.health() != Health::good) return IoStatus::io_error;
    if (launcher_ != nullptr) launcher_->help(batch_);
    return stalled() ? look_for_loss(ticket) : IoStatus::pending;
}

/// True if it is time to ask the driver. The first reading of the clock in a stall only starts the interval.
bool CudaQueue::stalled() {
    ++polls_;
    if (polls_ % kPollsPerClock != 0) return false;
    const std::uint64_t now = now_ns();
    if (polls_ == kPollsPerClock) looked_at_ns_ = now;
    if (polls_ % kPollsPerQuery != 0 && now - looked_at_ns_ < kQueryIntervalNs) return false;
    looked_at_ns_ = now;
    return true;
}

/// A context that died never writes the word: only a call tells. A shared launch may be on any stream; they
/// are asked in turn.
IoStatus CudaQueue::look_for_loss(Ticket ticket) {
    if (shared_.test(ticket % kDepth)) {
        // Whatever one stream says, the batch may be on another, or not launched yet: only its word, or a
        // loss, ends it.
        (void)judge(launcher_->query(looks_++));
        return backend_.health() == Health::good ? IoStatus::pending : IoStatus::io_error;
    }
    CuResult result = backend_.make_current();
    if (result == code::kSuccess) result = api_.stream_query(stream_);
    return judge(result);
}

IoStatus CudaQueue::poll_event(Ticket ticket) {
    if (backend_.health() != Health::good) return IoStatus::io_error;
    CuResult result = backend_.make_current();
    if (result == code::kSuccess) result = api_.event_query(events_[ticket % kDepth]);
    return judge(result);
}

IoStatus CudaQueue::judge(CuResult result) {
    if (result == code::kSuccess) return IoStatus::ok;
    if (result == code::kNotReady) return IoStatus::pending;
    backend_.report(result);
    // An unknown error is asked about again before the copy is given up.
    if (classify(result) == Damage::suspect && backend_.health() == Health::good) return IoStatus::pending;
    return IoStatus::io_error;
}

}  // namespace vramswap::cuda
