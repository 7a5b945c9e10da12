// SPDX-License-Identifier: MIT
// NoiseMemory: page-aligned memory, touched and filled with noise, so that no page is zero or compressible;
// and the number that each page of a measurement carries in its first 8 bytes. Made by the control thread;
// the bytes belong to whoever is given a part of them.
#pragma once

#include <cstring>
#include <span>

#include "base/result.h"
#include "base/units.h"

namespace vramswap {

class NoiseMemory {
  public:
    /// `size` a multiple of 4 KiB. Errors: failed, if there is no such memory.
    static Result<NoiseMemory> create(std::size_t size);
    NoiseMemory(NoiseMemory&& other) noexcept : bytes_(other.bytes_) { other.bytes_ = {}; }
    NoiseMemory& operator=(NoiseMemory&&) = delete;
    ~NoiseMemory();
    [[nodiscard]] std::span<std::byte> bytes() const { return bytes_; }

  private:
    explicit NoiseMemory(std::span<std::byte> bytes) : bytes_(bytes) {}
    std::span<std::byte> bytes_;
};

/// Makes a page of noise the content of `page`, different for every `version`.
inline void stamp_page(std::byte* data, PageIndex page, std::uint64_t version) {
    std::memcpy(data, &page.n, sizeof page.n);
    std::memcpy(data + sizeof page.n, &version, sizeof version);
}
/// The number of the page whose content this is.
inline PageIndex stamped_page(const std::byte* data) {
    PageIndex page;
    std::memcpy(&page.n, data, sizeof page.n);
    return page;
}

}  // namespace vramswap
