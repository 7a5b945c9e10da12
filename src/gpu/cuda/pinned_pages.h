// SPDX-License-Identifier: MIT
// PinnedPages: a little host memory of our own that the GPU reaches. Made and destroyed by control threads
// (maps memory and calls the driver); must be destroyed before its backend. Errors: those of mmap and of
// Backend::register_host.
#pragma once

#include <cstddef>
#include <span>
#include <utility>

#include "gpu/cuda/cuda_backend.h"

namespace vramswap::cuda {

/// Host memory that the GPU reaches: mapped, present and registered for as long as it lives.
class PinnedPages {
  public:
    static Result<PinnedPages> create(CudaBackend& backend, std::size_t bytes);
    PinnedPages(PinnedPages&& other) noexcept
        : backend_(other.backend_), memory_(std::exchange(other.memory_, {})) {}
    PinnedPages(const PinnedPages&) = delete;
    PinnedPages& operator=(const PinnedPages&) = delete;
    PinnedPages& operator=(PinnedPages&&) = delete;
    ~PinnedPages();
    [[nodiscard]] std::span<std::byte> memory() const { return memory_; }

  private:
    PinnedPages(CudaBackend& backend, std::span<std::byte> memory) : backend_(backend), memory_(memory) {}
    CudaBackend& backend_;
    std::span<std::byte> memory_;
};

}  // namespace vramswap::cuda
