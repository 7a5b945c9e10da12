// SPDX-License-Identifier: MIT
#include "gpu/sim/sim_backend.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/clock.h"

namespace vramswap {
namespace {

/// Takes one from a counter of faults to come; false if there are none.
bool take_one(std::atomic<std::uint32_t>& counter) {
    std::uint32_t left = counter.load(std::memory_order_relaxed);
    while (left != 0)
        if (counter.compare_exchange_weak(left, left - 1, std::memory_order_relaxed)) return true;
    return false;
}

/// DMA obeys no memory model: a page may be copied while another queue overwrites it, and the store finds
/// that out by its checksum. Bytes of VRAM are atomic here, in words where they can be, so that this is
/// defined.
template <typename Word>
void copy_word_in(const std::byte* host, std::byte* vram) {
    Word word{};
    std::memcpy(&word, host, sizeof word);
    std::atomic_ref<Word>(*reinterpret_cast<Word*>(vram)).store(word, std::memory_order_relaxed);
}

template <typename Word>
void copy_word_out(std::byte* host, std::byte* vram) {
    const Word word = std::atomic_ref<Word>(*reinterpret_cast<Word*>(vram)).load(std::memory_order_relaxed);
    std::memcpy(host, &word, sizeof word);
}

template <typename Word>
void copy_word_over(std::byte* from, std::byte* to) {
    Word word{};
    copy_word_out<Word>(reinterpret_cast<std::byte*>(&word), from);
    copy_word_in<Word>(reinterpret_cast<const std::byte*>(&word), to);
}

/// Eight words a turn, as long as there are so many: a real GPU's copy costs the CPU nothing, so this one
/// shall cost little.
template <typename Word, typename CopyWord>
void for_each_word(std::size_t bytes, CopyWord copy_word) {
    constexpr std::size_t kTurn = 8 * sizeof(Word);
    std::size_t at = 0;
    for (; at + kTurn <= bytes; at += kTurn)
        for (std::size_t i = 0; i < kTurn; i += sizeof(Word)) copy_word(at + i);
    for (; at < bytes; at += sizeof(Word)) copy_word(at);
}

template <typename Word>
void copy_words(const Copy& c, std::byte* vram, std::byte* other) {
    std::byte* host = c.host;
    if (c.op == Copy::Op::within_gpu)
        for_each_word<Word>(c.bytes, [=](std::size_t at) { copy_word_over<Word>(vram + at, other + at); });
    else if (c.op == Copy::Op::to_gpu)
        for_each_word<Word>(c.bytes, [=](std::size_t at) { copy_word_in<Word>(host + at, vram + at); });
    else
        for_each_word<Word>(c.bytes, [=](std::size_t at) { copy_word_out<Word>(host + at, vram + at); });
}

/// `other`: where within_gpu copies to.
void copy_bytes(const Copy& c, std::byte* vram, std::byte* other) {
    const auto address = reinterpret_cast<std::uintptr_t>(vram) | reinterpret_cast<std::uintptr_t>(other);
    if (c.bytes % sizeof(std::uint64_t) == 0 && address % sizeof(std::uint64_t) == 0)
        copy_words<std::uint64_t>(c, vram, other);
    else
        copy_words<std::uint8_t>(c, vram, other);
}

void flip_bit(std::byte* vram) {
    std::atomic_ref<std::uint8_t>(*reinterpret_cast<std::uint8_t*>(vram))
        .fetch_xor(1, std::memory_order_relaxed);
}

/// What a failed copy leaves at its target.
void scramble_bytes(const Copy& c, std::byte* target) {
    constexpr std::uint8_t kJunk = 0xA5;
    if (c.op == Copy::Op::from_gpu) {
        std::memset(target, kJunk, c.bytes);
        return;
    }
    for (std::size_t at = 0; at < c.bytes; ++at)
        std::atomic_ref<std::uint8_t>(*reinterpret_cast<std::uint8_t*>(target + at))
            .store(kJunk, std::memory_order_relaxed);
}

/// A real GPU copies at some moment between submit and completion. Here it is the last one, so that who
/// touches the host memory too early is caught, or the first one on demand (SimFaults::early).
class SimQueue final : public TransferQueue {
  public:
    SimQueue(std::shared_ptr<SimMemory> memory, std::shared_ptr<SimFaults> faults)
        : memory_(std::move(memory)), faults_(std::move(faults)) {
        for (auto& batch : batches_) batch.copies.reserve(kCopiesReserved);
    }
    ~SimQueue() override { run_up_to(last_); }

  protected:
    std::uint64_t do_segment_bytes(SegmentId segment) const override {
        return segment.n < kSimSegmentsMax
                   ? memory_->segments[segment.n].bytes.load(std::memory_order_acquire)
                   : 0;
    }

    IoStatus do_submit(std::span<const Copy> copies, Ticket ticket) override {
        if (faults_->lost.load(std::memory_order_relaxed)) return IoStatus::io_error;
        Batch& b = batch(ticket);
        b.copies.assign(copies.begin(), copies.end());
        std::uint64_t bytes = 0;
        for (const Copy& c : copies) bytes += c.bytes;
        const std::uint64_t speed = faults_->bytes_per_us.load(std::memory_order_relaxed);
        const std::uint64_t latency = faults_->latency_ns.load(std::memory_order_relaxed);
        b.due_ns = 0;
        if (latency != 0 || speed != 0) {
            const std::uint64_t now = now_ns();
            busy_until_ns_ = std::max(now, busy_until_ns_) + (speed != 0 ? bytes * 1000 / speed : 0);
            b.due_ns = busy_until_ns_ + latency;
        }
        last_ = ticket;
        if (faults_->early.load(std::memory_order_relaxed)) run_up_to(ticket);
        return IoStatus::ok;
    }

    IoStatus do_poll(Ticket ticket) override {
        if (faults_->lost.load(std::memory_order_relaxed)) {
            next_to_run_ = std::max(next_to_run_, ticket + 1);
            return IoStatus::io_error;
        }
        if (faults_->hang.load(std::memory_order_relaxed)) return IoStatus::pending;
        const Batch& b = batch(ticket);
        if (b.due_ns != 0 && now_ns() < b.due_ns) return IoStatus::pending;
        run_up_to(ticket);
        return b.outcome;
    }

  private:
    static constexpr std::size_t kCopiesReserved = kChunkPages;
    struct Batch {
        std::vector<Copy> copies;
        std::uint64_t due_ns = 0;
        IoStatus outcome = IoStatus::pending;
    };
    Batch& batch(Ticket ticket) { return batches_[ticket % kDepth]; }

    /// In order, each once.
    void run_up_to(Ticket ticket) {
        for (; next_to_run_ <= ticket; ++next_to_run_) {
            Batch& b = batch(next_to_run_);
            const bool fail = take_one(faults_->fail_copies);
            for (const Copy& c : b.copies) copy(c, fail);
            b.outcome = fail ? IoStatus::io_error : IoStatus::ok;
        }
    }

    void copy(const Copy& c, bool scramble) {
        std::byte* base = base_of(c.segment);
        if (base == nullptr) return;
        std::byte* vram = base + c.offset;
        if (c.op == Copy::Op::within_gpu) {
            std::byte* to = base_of(c.to_segment);
            if (to == nullptr) return;
            copy_bytes(c, vram, to + c.to_offset);
            if (scramble) scramble_bytes(c, to + c.to_offset);
            return;
        }
        const bool writes = c.op == Copy::Op::to_gpu;
        if (writes && take_one(faults_->misplace_writes) &&
            c.offset + c.bytes + kPageBytes <= do_segment_bytes(c.segment))
            vram += kPageBytes;
        copy_bytes(c, vram, nullptr);
        if (writes && take_one(faults_->corrupt_writes)) flip_bit(vram + c.bytes / 2);
        if (!writes && take_one(faults_->corrupt_reads)) c.host[c.bytes / 2] ^= std::byte{1};
        if (scramble) scramble_bytes(c, writes ? vram : c.host);
    }
    std::byte* base_of(SegmentId segment) const {
        return memory_->segments[segment.n].base.load(std::memory_order_acquire);
    }

    const std::shared_ptr<SimMemory> memory_;
    const std::shared_ptr<SimFaults> faults_;
    std::array<Batch, kDepth> batches_;
    std::uint64_t busy_until_ns_ = 0;
    Ticket last_ = 0;
    Ticket next_to_run_ = 1;
};

}  // namespace

SimMemory::~SimMemory() {
    for (auto& s : segments)
        if (std::byte* base = s.base.load()) ::munmap(base, s.bytes.load());
}

SimBackend::SimBackend(GpuInfo info, SimConfig config)
    : Backend(std::move(info), Caps{{kChunkBytes}, config.exportable, config.turbo}),
      config_(std::move(config)) {}

Result<void> SimBackend::check_alive() {
    if (!config_.faults->lost.load()) return {};
    set_health(Health::gpu_lost);
    return Error{Errc::gpu_lost, 0, "the simulated GPU is lost"};
}

Result<SegmentId> SimBackend::do_allocate(Bytes size) {
    if (auto alive = check_alive(); !alive) return std::move(alive).error();
    const std::uint64_t taken = memory_->used.load() + config_.faults->taken_by_others.load();
    if (take_one(config_.faults->fail_allocations) || taken + size.n > config_.total.n)
        return Error{Errc::no_memory, 0,
                     fmt::format("the simulated GPU has no {} free ({} of {} taken)", format_size(size),
                                 format_size({taken}), format_size(config_.total))};
    UniqueFd fd(::memfd_create("vramswap-sim-vram", MFD_CLOEXEC));
    if (!fd || ::ftruncate(fd.get(), static_cast<off_t>(size.n)) != 0)
        return sys_error("cannot create memory for a simulated segment");
    return adopt(std::move(fd), size);
}

Result<SegmentId> SimBackend::adopt(UniqueFd fd, Bytes size) {
    void* base = ::mmap(nullptr, size.n, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd.get(), 0);
    if (base == MAP_FAILED) return sys_error("cannot map a simulated segment");
    (void)::mlock(base, size.n);  // without the right to lock (tests as a user) it is still a working store
    for (std::uint32_t i = 0; i < kSimSegmentsMax; ++i) {
        SimSegment& s = memory_->segments[i];
        if (s.base.load() != nullptr) continue;
        s.fd = std::move(fd);
        s.base.store(static_cast<std::byte*>(base));
        s.bytes.store(size.n, std::memory_order_release);
        memory_->used.fetch_add(size.n);
        return SegmentId{i};
    }
    ::munmap(base, size.n);
    return Error{Errc::no_memory, 0, "the simulated GPU has no free segment number"};
}

Result<void> SimBackend::do_free(SegmentId segment) {
    SimSegment& s = memory_->segments.at(segment.n);
    const std::uint64_t bytes = s.bytes.exchange(0);
    ::munmap(s.base.exchange(nullptr), bytes);
    s.fd.reset();
    memory_->used.fetch_sub(bytes);
    return {};
}

Result<UniqueFd> SimBackend::do_export(SegmentId segment) {
    UniqueFd fd = memory_->segments.at(segment.n).fd.dup();
    if (!fd) return sys_error("cannot duplicate a simulated segment's descriptor");
    return fd;
}

Result<SegmentId> SimBackend::do_import(int fd, Bytes size) {
    if (auto alive = check_alive(); !alive) return std::move(alive).error();
    UniqueFd own(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
    if (!own) return sys_error("cannot duplicate the descriptor of a simulated segment");
    if (::lseek(own.get(), 0, SEEK_END) != static_cast<off_t>(size.n))
        return Error{Errc::failed, 0, "the descriptor is not a simulated segment of that size"};
    return adopt(std::move(own), size);
}

Result<void> SimBackend::do_register(std::span<std::byte>) {
    return {};
}
Result<void> SimBackend::do_unregister(std::span<std::byte>) {
    return {};
}

Result<std::unique_ptr<TransferQueue>> SimBackend::do_make_queue() {
    if (auto alive = check_alive(); !alive) return std::move(alive).error();
    return std::unique_ptr<TransferQueue>(new SimQueue(memory_, config_.faults));
}

Result<void> SimBackend::check_readable() {
    config_.faults->hang_readings.wait(true);
    if (auto alive = check_alive(); !alive) return alive;
    if (take_one(config_.faults->fail_readings))
        return Error{Errc::unavailable, 0, "the simulated GPU does not tell"};
    return {};
}

Result<MemoryInfo> SimBackend::do_memory_info() {
    if (auto readable = check_readable(); !readable) return std::move(readable).error();
    const std::uint64_t taken = memory_->used.load() + config_.faults->taken_by_others.load();
    return MemoryInfo{config_.total, taken < config_.total.n ? config_.total - Bytes{taken} : Bytes{0}};
}

Result<GpuUsage> SimBackend::do_usage(UsageParts parts) {
    if (auto readable = check_readable(); !readable) return std::move(readable).error();
    const SimFaults& faults = *config_.faults;
    GpuUsage usage;
    usage.others_sm_percent = faults.others_sm.load();
    if (parts == UsageParts::activity) return usage;
    const pid_t pid = faults.others_pid.load();
    const Bytes taken{faults.taken_by_others.load()};
    if (pid != 0)
        usage.users = std::vector<GpuUser>{{pid, taken}};
    else if (taken.n == 0)
        usage.users.emplace();
    return usage;
}

bool SimBackend::do_has_segment(SegmentId segment) const {
    return segment.n < kSimSegmentsMax && memory_->segments[segment.n].base.load() != nullptr;
}

}  // namespace vramswap
