// SPDX-License-Identifier: MIT
// The checksum of a page, compiled for each vector width worth having. Pure; any thread. A function may be
// called only on a CPU that has what its name says; page_checksum chooses.
//
// The sources of these functions include nothing that has inline functions of ours or the standard library's:
// the linker might keep copies that were compiled for the wider width for the whole program.
#pragma once

#include <cstdint>

namespace vramswap::checksum_kernels {

std::uint64_t xxh3_page_baseline(const void* page, std::uint64_t seed);
std::uint64_t xxh3_page_avx2(const void* page, std::uint64_t seed);

}  // namespace vramswap::checksum_kernels
