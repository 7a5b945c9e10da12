// SPDX-License-Identifier: MIT
// What copies to the GPU cost, so that the flusher can choose between many small ones and one that carries
// more than it must. A value; measured once at start by the control thread on the very GPU, since it differs
// by a factor of ten between cards, drivers and PCIe generations.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include "base/result.h"
#include "gpu/backend.h"

namespace vramswap {

/// Nanoseconds of the GPU's or the driver's time, whichever is the bottleneck. The defaults are those of an
/// H100 on PCIe 5.0 x16.
struct CopyCosts {
    std::uint32_t small_copy_ns = 1900;  ///< one of many copies of 4 KiB in one submission, mode copy
    std::uint32_t turbo_copy_ns = 1900;  ///< the same, mode turbo
    std::uint32_t page_ns = 80;          ///< 4 KiB more in a large copy
    std::uint32_t merge_page_ns =
        250;  ///< the CPU checks 4 KiB in one part of the stage and moves it to another

    [[nodiscard]] std::uint32_t small_ns(EngineMode mode) const {
        return mode == EngineMode::turbo ? turbo_copy_ns : small_copy_ns;
    }
    /// Of so many copies with so many pages together. REQUIRES: a page in each.
    [[nodiscard]] std::uint64_t copies_ns(EngineMode mode, std::uint64_t copies, std::uint64_t pages) const {
        return copies * small_ns(mode) + (pages - copies) * page_ns;
    }
    /// As many pages more cost no more than one copy more.
    [[nodiscard]] std::uint32_t gap_pages(EngineMode mode) const {
        return small_ns(mode) / std::max(page_ns, 1u);
    }
};

/// Measures with copies between `host` (registered, at least 4 MiB, its content is lost) and the first 2 MiB
/// of `segment`. Takes a few milliseconds; with a GPU that does not answer, the defaults stay. Blocks.
CopyCosts measure_copy_costs(TransferQueue& queue, const Caps& caps, std::span<std::byte> host,
                             SegmentId segment);

}  // namespace vramswap
