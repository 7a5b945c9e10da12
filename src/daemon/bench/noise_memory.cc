// SPDX-License-Identifier: MIT
#include "daemon/bench/noise_memory.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include <random>

namespace vramswap {

Result<NoiseMemory> NoiseMemory::create(std::size_t size) {
    void* base =
        ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (base == MAP_FAILED) return sys_error(fmt::format("cannot get {} of memory", format_size({size})));
    NoiseMemory memory({static_cast<std::byte*>(base), size});
    std::mt19937_64 random(1);
    for (std::size_t at = 0; at < size; at += sizeof(std::uint64_t)) {
        const std::uint64_t word = random();
        std::memcpy(memory.bytes_.data() + at, &word, sizeof word);
    }
    return memory;
}

NoiseMemory::~NoiseMemory() {
    if (!bytes_.empty()) ::munmap(bytes_.data(), bytes_.size());
}

}  // namespace vramswap
