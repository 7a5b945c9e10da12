// SPDX-License-Identifier: MIT
// The kernel of EngineMode::turbo: copies pages between scattered places, host memory included. Written by
// hand in the oldest PTX that every driver from CUDA 11.0 on takes and that assembles for Maxwell to
// Blackwell: version 4.0, target sm_50 (ptxas 13.0 accepts it for sm_75 to sm_120).
//
// A launch copies up to N pages, one block of 256 threads a page, 16 bytes a thread. The places are in the
// kernel's parameters, which travel with the launch: there is no list that the GPU would have to fetch over
// PCIe first. Two sizes, since the driver copies all parameters whether they are used or not; on sm_50 they
// are at most 4 KiB.
//
// The last block to end tells the CPU: each counts itself when its page is written (atom.inc starts again at
// 0 by itself), and the last one writes the ticket. That saves a call of the driver, which costs as much as
// the launch.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

namespace vramswap::cuda {

/// Addresses valid on the GPU, multiples of 16.
struct PagePair {
    std::uint64_t to = 0;
    std::uint64_t from = 0;
};

/// Who is told of the end of a launch: addresses valid on the GPU. counter 0: nobody.
struct PageKernelEnd {
    std::uint64_t counter = 0;  ///< a 32-bit word of VRAM, 0 before the first launch
    std::uint64_t word = 0;     ///< a 32-bit word that becomes `ticket`
    std::uint32_t ticket = 0;
};

inline constexpr unsigned kPageKernelThreads = 256;
inline constexpr std::size_t kPageKernelSmall = 32;   ///< pages of a launch of kPageKernelSmallName
inline constexpr std::size_t kPageKernelLarge = 240;  ///< pages of a launch of kPageKernelLargeName
inline constexpr const char* kPageKernelSmallName = "vramswap_pages_small";
inline constexpr const char* kPageKernelLargeName = "vramswap_pages_large";

/// The module with both kernels. Parameters: the pairs, then the three members of PageKernelEnd.
[[nodiscard]] std::string page_kernels_ptx();

}  // namespace vramswap::cuda
