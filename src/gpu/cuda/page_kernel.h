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
// 0 by itself), and the last one writes a value to a word of each queue that had pages in the launch. That
// saves a call of the driver, which costs as much as the launch.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "gpu/cuda/cuda_api.h"

namespace vramswap::cuda {

/// Addresses valid on the GPU, multiples of 16.
struct PagePair {
    std::uint64_t to = 0;
    std::uint64_t from = 0;
};

/// A word that gets a value when a launch has ended.
struct PageTell {
    std::uint64_t word = 0;  ///< address of 32 bits, valid on the GPU
    std::uint32_t value = 0;
    std::uint32_t unused = 0;  ///< of the layout that the kernel reads
};

inline constexpr unsigned kPageKernelThreads = 256;
inline constexpr std::size_t kPageKernelTells = 16;   ///< words that a launch can write
inline constexpr std::size_t kPageKernelSmall = 32;   ///< pages of a launch of kPageKernelSmallName
inline constexpr std::size_t kPageKernelLarge = 224;  ///< pages of a launch of kPageKernelLargeName
inline constexpr const char* kPageKernelSmallName = "vramswap_pages_small";
inline constexpr const char* kPageKernelLargeName = "vramswap_pages_large";

/// As long as the larger kernel's parameter: the driver copies all of it.
using PagePairs = std::array<PagePair, kPageKernelLarge>;

/// Who is told of the end of a launch.
struct PageKernelEnd {
    std::array<PageTell, kPageKernelTells> tells{};
    std::uint64_t counter = 0;  ///< address of a 32-bit word of VRAM, 0 before the first launch; 0: nobody is
                                ///< told. Launches that may run at once need different ones.
    std::uint32_t count = 0;    ///< of tells; at least 1 with a counter
};

/// The module with both kernels. Parameters: the pairs, then the three members of PageKernelEnd.
[[nodiscard]] std::string page_kernels_ptx();

/// Both kernels, loaded; null if there are none. They live as long as the context.
struct PageKernels {
    CuFunction small = nullptr;
    CuFunction large = nullptr;

    /// Launches the smaller one that takes the first `pages` of `pairs`, at least one. The driver has copied
    /// all arguments when this returns. REQUIRES: the context is current.
    CuResult launch(const CudaApi& api, CuStream stream, const PagePairs& pairs, std::size_t pages,
                    const PageKernelEnd& end) const;
};

}  // namespace vramswap::cuda
