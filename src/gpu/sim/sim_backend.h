// SPDX-License-Identifier: MIT
// The simulated GPU itself; see sim_driver.h. Segments are locked shared memory: VRAM is never swapped, and
// swapping the swap device's own store would deadlock.
#pragma once

#include <array>
#include <atomic>
#include <memory>
#include <vector>

#include "gpu/sim/sim_driver.h"

namespace vramswap {

/// Number of segments a simulated GPU can have; fixed, so that queues look segments up without a lock.
inline constexpr std::size_t kSimSegmentsMax = 4096;

/// A mapped segment; `base` is published last and withdrawn first.
struct SimSegment {
    std::atomic<std::byte*> base{nullptr};
    std::atomic<std::uint64_t> bytes{0};
    UniqueFd fd;
};

struct SimMemory {
    std::array<SimSegment, kSimSegmentsMax> segments;
    std::atomic<std::uint64_t> used{0};
    ~SimMemory();
};

class SimBackend final : public Backend {
  public:
    SimBackend(GpuInfo info, SimConfig config);

  protected:
    Result<SegmentId> do_allocate(Bytes size) override;
    Result<void> do_free(SegmentId segment) override;
    Result<UniqueFd> do_export(SegmentId segment) override;
    Result<SegmentId> do_import(int fd, Bytes size) override;
    Result<void> do_register(std::span<std::byte> memory) override;
    Result<void> do_unregister(std::span<std::byte> memory) override;
    Result<std::unique_ptr<TransferQueue>> do_make_queue() override;
    Result<MemoryInfo> do_memory_info() override;
    Result<GpuUsage> do_usage(UsageParts parts) override;
    [[nodiscard]] bool do_has_segment(SegmentId segment) const override;

  private:
    Result<void> check_alive();
    Result<void> check_readable();
    Result<SegmentId> adopt(UniqueFd fd, Bytes size);

    const SimConfig config_;
    const std::shared_ptr<SimMemory> memory_ = std::make_shared<SimMemory>();
};

}  // namespace vramswap
