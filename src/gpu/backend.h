// SPDX-License-Identifier: MIT
// The GPU seam. A Driver finds GPUs and opens one as a Backend; a Backend owns segments (VRAM allocations)
// and makes TransferQueues, which copy between host memory and segments. Public calls check state, range and
// counts; the protected do_* may rely on that (non-virtual interface).
//
// Threads: Driver and Backend are called by control threads only (they make GPU driver calls that allocate
// and block); memory_info and usage by a monitor thread, too, beside them. A TransferQueue belongs to one
// thread at a time; submit and poll never allocate, never block and make no ioctl once the queue has been
// warmed up by its maker.
#pragma once

#include <sys/types.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/io_status.h"
#include "base/result.h"
#include "base/unique_fd.h"
#include "base/units.h"

namespace vramswap {

enum class GpuKind : std::uint8_t { discrete, integrated, simulated };

/// What is known of a GPU before it is opened.
struct GpuInfo {
    std::string backend;  ///< "cuda" or "sim"
    int index = 0;        ///< number within the backend, as in "cuda:0"
    std::string name;     ///< "NVIDIA H100 80GB HBM3"
    std::string uuid;     ///< "GPU-…"
    std::string pci;      ///< "0000:65:00.0"; empty for sim
    Bytes total{};
    Bytes free{};
    bool display_attached = false;
    GpuKind kind = GpuKind::discrete;
    std::string driver;   ///< "580.159.04, CUDA 13.0, compute capability 9.0"
    std::string refusal;  ///< why it cannot be used here, with the remedy; empty if it can
    [[nodiscard]] std::string selector() const { return backend + ":" + std::to_string(index); }
};

struct MemoryInfo {
    Bytes total{};
    Bytes free{};  ///< of the whole GPU, as all processes see it
};

/// A process on the GPU, but this one.
struct GpuUser {
    pid_t pid = 0;
    std::optional<Bytes> memory{};  ///< none: not told
    bool operator==(const GpuUser&) const = default;
};

/// What others do on a GPU. What could not be found out is absent, never guessed.
struct GpuUsage {
    std::optional<std::vector<GpuUser>> users{};  ///< most memory first; only if asked for
    std::optional<Bytes> others_memory{};         ///< of all users
    /// Of the last sixth of a second to second, with a kernel of others running. Copies are none, whoever
    /// makes them.
    std::optional<std::uint32_t> others_sm_percent{};
    /// Of the same, with others reading or writing VRAM. Known only where the driver tells it by process: our
    /// copies count.
    std::optional<std::uint32_t> others_memory_percent{};
};
enum class UsageParts : std::uint8_t {
    activity,            ///< per cents of the time: some us
    activity_and_users,  ///< and the users: milliseconds in which other programs' allocations wait
};

enum class Health : std::uint8_t {
    good,
    context_lost,  ///< this process can no longer use the GPU; a new process can, and the data is there
    gpu_lost,      ///< the GPU is gone and all data in it
};

/// How small copies are made. Copy engines cost others on the GPU at most 3 %; a kernel that gathers and
/// scatters pages is many times faster where many are queued, and takes 17 to 33 % of others' compute while
/// it runs.
enum class EngineMode : std::uint8_t { copy, turbo };
/// "copy", "turbo": as options and reports name it.
[[nodiscard]] std::string_view to_string(EngineMode mode);

/// What an open Backend can do. Constant.
struct Caps {
    Bytes granularity{};               ///< segment sizes are multiples of it
    bool exportable_segments = false;  ///< export_segment works: data can outlive this process
    bool turbo = false;                ///< it has a kernel for EngineMode::turbo
};

/// Number of a segment within its Backend; small, used again after free.
struct SegmentId {
    std::uint32_t n = 0;
    constexpr auto operator<=>(const SegmentId&) const = default;
};

/// One copy, between host memory and a segment, or within the GPU. `host` must lie in memory given to
/// register_host (other memory makes it slow or fail).
struct Copy {
    enum class Op : std::uint8_t { to_gpu, from_gpu, within_gpu };
    Op op = Op::to_gpu;
    SegmentId segment{};
    std::uint64_t offset = 0;   ///< bytes from the segment's start
    std::byte* host = nullptr;  ///< not for within_gpu
    std::uint32_t bytes = 0;
    SegmentId to_segment{};  ///< within_gpu only: where to; the places do not overlap
    std::uint64_t to_offset = 0;
};

/// Names one submission of a TransferQueue. That they are complete is told in order.
using Ticket = std::uint64_t;

/// A stream of copies. Owner: whoever made it; must be destroyed before its Backend, with nothing in flight
/// (the destructor waits).
///
/// Order: submissions of mode copy run one after the other. One of mode turbo runs at any time between its
/// submit and its end, beside those before and after it: who needs an order polls the first to its end. In
/// both modes a submission is complete for poll only when all before it are.
class TransferQueue {
  public:
    virtual ~TransferQueue() = default;
    TransferQueue(const TransferQueue&) = delete;
    TransferQueue& operator=(const TransferQueue&) = delete;

    /// Starts all copies (an empty list is fine: it completes when everything before has); they run in any
    /// order among themselves. Returns pending with `ticket` set; retry if kDepth submissions are in flight;
    /// out_of_range for a copy beyond its segment; io_error if the GPU refuses (then none, some or all may
    /// have run: the target of each is unknown).
    IoStatus submit(std::span<const Copy> copies, Ticket& ticket);

    /// pending until the submission is complete, then ok or io_error (targets unknown). Never blocks.
    IoStatus poll(Ticket ticket);

    /// For the submissions that follow. Without Caps::turbo, turbo is the same as copy.
    void set_mode(EngineMode mode) { mode_ = mode; }

    /// Submissions that may be in flight at once.
    static constexpr std::uint32_t kDepth = 256;

  protected:
    TransferQueue() = default;
    /// Bytes of a segment, 0 if there is none.
    [[nodiscard]] virtual std::uint64_t do_segment_bytes(SegmentId segment) const = 0;
    /// Submits the copies as submission number `ticket` (1, 2, 3…). Returns ok or io_error.
    virtual IoStatus do_submit(std::span<const Copy> copies, Ticket ticket) = 0;
    /// ok, pending or io_error for a submission not yet reported complete.
    virtual IoStatus do_poll(Ticket ticket) = 0;
    [[nodiscard]] EngineMode mode() const { return mode_; }

  private:
    EngineMode mode_ = EngineMode::copy;
    Ticket last_submitted_ = 0;
    Ticket last_completed_ = 0;  ///< everything up to here is complete
    std::array<IoStatus, kDepth> outcome_{};
};

/// One opened GPU.
class Backend {
  public:
    virtual ~Backend() = default;
    Backend(const Backend&) = delete;
    Backend& operator=(const Backend&) = delete;

    [[nodiscard]] const GpuInfo& info() const { return info_; }
    [[nodiscard]] const Caps& caps() const { return caps_; }

    /// Takes VRAM. `size` a positive multiple of the granularity. Content undefined. Errors: no_memory if the
    /// GPU is full, gpu_lost, usage for a bad size.
    Result<SegmentId> allocate_segment(Bytes size);
    /// Gives VRAM back; memory stays allocated as long as an exported descriptor lives. REQUIRES: no copy in
    /// flight touches the segment.
    Result<void> free_segment(SegmentId segment);
    /// A descriptor that keeps the memory alive and can be imported by another process on the same GPU.
    Result<UniqueFd> export_segment(SegmentId segment);
    /// Takes over a segment of `size` that another process exported. The descriptor stays the caller's.
    Result<SegmentId> import_segment(const UniqueFd& fd, Bytes size);

    /// Pins host memory for fast copies; page-aligned, not yet registered with this backend. May take 50 ms
    /// per GiB.
    Result<void> register_host(std::span<std::byte> memory);
    Result<void> unregister_host(std::span<std::byte> memory);

    /// A queue whose every operation has been run once (warmed up), ready for the armed state.
    Result<std::unique_ptr<TransferQueue>> make_queue();

    /// Of the whole GPU, now. Costs some 10 us, at times much more: the driver answers one at a time, and
    /// seconds late, or never, when the GPU fails. 20 times a second harm nobody. Errors: unavailable,
    /// gpu_lost.
    Result<MemoryInfo> memory_info();
    /// What others do on the GPU; activity four times a second at most, users twice a second, and not for
    /// long. May hang as memory_info. Errors: unavailable (nothing of it can be told), gpu_lost.
    Result<GpuUsage> usage(UsageParts parts);
    /// Last known; never blocks, any thread.
    [[nodiscard]] Health health() const { return health_.load(std::memory_order_relaxed); }

  protected:
    Backend(GpuInfo info, Caps caps) : info_(std::move(info)), caps_(caps) {}
    virtual Result<SegmentId> do_allocate(Bytes size) = 0;
    virtual Result<void> do_free(SegmentId segment) = 0;
    virtual Result<UniqueFd> do_export(SegmentId segment) = 0;
    virtual Result<SegmentId> do_import(int fd, Bytes size) = 0;
    virtual Result<void> do_register(std::span<std::byte> memory) = 0;
    virtual Result<void> do_unregister(std::span<std::byte> memory) = 0;
    virtual Result<std::unique_ptr<TransferQueue>> do_make_queue() = 0;
    virtual Result<MemoryInfo> do_memory_info() = 0;
    /// Without others_memory; users in any order.
    virtual Result<GpuUsage> do_usage(UsageParts parts) = 0;
    [[nodiscard]] virtual bool do_has_segment(SegmentId segment) const = 0;
    /// Never back from worse to better. Any thread.
    void set_health(Health health) {
        Health known = health_.load(std::memory_order_relaxed);
        while (known < health && !health_.compare_exchange_weak(known, health, std::memory_order_relaxed)) {
        }
    }

  private:
    const GpuInfo info_;
    const Caps caps_;
    std::atomic<Health> health_{Health::good};
};

/// Finds and opens the GPUs of one vendor interface.
class Driver {
  public:
    virtual ~Driver() = default;
    /// All GPUs, the unusable ones with their refusal. Error `unavailable`: the interface is not on this
    /// machine (the message says what is missing and how to get it).
    virtual Result<std::vector<GpuInfo>> enumerate() = 0;
    /// Opens one. Errors: not_found, unavailable (its refusal), busy, no_memory.
    virtual Result<std::unique_ptr<Backend>> open(const GpuInfo& gpu) = 0;
};

}  // namespace vramswap
