// SPDX-License-Identifier: MIT
// What is known of a page from its bytes: whether it is all zeros, and its checksum. Pure; any thread.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/units.h"

namespace vramswap {

/// True if all 4096 bytes are zero. Returns early on the first 64 bytes of most pages that are not.
[[nodiscard]] bool is_zero_page(const std::byte* page);

/// XXH3 of the page's bytes seeded with its number, so that a page from a wrong place does not pass. The low
/// 56 bits are kept in the page table.
[[nodiscard]] std::uint64_t page_checksum(const std::byte* page, PageIndex index);

}  // namespace vramswap
