// SPDX-License-Identifier: MIT
#include "gpu/cuda/pinned_pages.h"

#include <fmt/format.h>
#include <sys/mman.h>

namespace vramswap::cuda {

Result<PinnedPages> PinnedPages::create(CudaBackend& backend, std::size_t bytes) {
    void* p =
        ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (p == MAP_FAILED) return sys_error(fmt::format("mmap of {}", format_size({bytes})));
    // A child must not get these pages copy-on-write: the GPU writes to the physical ones.
    (void)::madvise(p, bytes, MADV_DONTFORK);
    const std::span<std::byte> memory(static_cast<std::byte*>(p), bytes);
    if (auto ok = backend.register_host(memory); !ok) {
        ::munmap(p, bytes);
        return std::move(ok).error();
    }
    return PinnedPages(backend, memory);
}

PinnedPages::~PinnedPages() {
    if (memory_.empty()) return;
    // Where that fails, as after a loss, the driver goes on to refuse these addresses: nobody may get them.
    if (backend_.unregister_host(memory_)) ::munmap(memory_.data(), memory_.size());
}

}  // namespace vramswap::cuda
