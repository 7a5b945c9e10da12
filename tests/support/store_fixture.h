// SPDX-License-Identifier: MIT
// The fixture of the store's unit tests: a store over a simulated GPU, a queue, and requests by page and
// version. The flusher is stepped by the test under a made-up clock, so every interleaving is chosen and
// happens each time. One thread.
#pragma once

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "store/page_store.h"
#include "support/sim_store.h"

namespace vramswap::test {

/// Remembers what it keeps by the file behind the descriptor, and fails on demand.
class KeeperFake final : public FdKeeper {
  public:
    Result<void> keep(std::string_view key, const UniqueFd& fd) override {
        if (key == refused) return Error{Errc::failed, 0, "the keeper refuses"};
        struct stat file {};
        if (::fstat(fd.get(), &file) != 0) return sys_error("not a descriptor");
        kept[std::string(key)] = file.st_ino;
        held[std::string(key)] = fd.dup();
        if (remembers) ever_held[std::string(key)] = fd.dup();
        return {};
    }
    Result<void> drop(std::string_view key) override {
        kept.erase(std::string(key));
        held.erase(std::string(key));
        return {};
    }
    [[nodiscard]] std::vector<std::string> keys() const {
        std::vector<std::string> out;
        for (const auto& [key, inode] : kept) out.push_back(key);
        return out;
    }
    std::map<std::string, ino_t> kept;
    HeldFds held;
    std::string refused;
    bool remembers = false;  ///< what it has dropped, too
    HeldFds ever_held;
};

/// Bytes that are not zero in the file behind it.
inline std::uint64_t traces_in(const UniqueFd& fd) {
    const auto size = static_cast<std::size_t>(::lseek(fd.get(), 0, SEEK_END));
    void* const at = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, fd.get(), 0);
    if (at == MAP_FAILED) throw std::runtime_error("cannot map what was kept");
    const std::span bytes(static_cast<const std::byte*>(at), size);
    const auto traces = std::ranges::count_if(bytes, [](std::byte b) { return b != std::byte{0}; });
    ::munmap(at, size);
    return static_cast<std::uint64_t>(traces);
}

constexpr std::uint64_t kDevicePages = 6 * kChunkPages + 37;
constexpr PageIndex page_of(std::uint32_t chunk, std::uint32_t page) {
    return {chunk * kChunkPages + page};
}

class StoreTest : public ::testing::Test {
  protected:
    StoreTest() { make(mib(4), 4); }

    [[nodiscard]] StoreConfig config(Bytes segment, std::uint64_t images, const CopyCosts& costs = {}) const {
        return {{kDevicePages * kPageBytes},
                segment,
                {images * kChunkBytes},
                {.costs = costs, .mergers = mergers_}};
    }
    /// Another store in place of the one there is.
    void make(Bytes segment, std::uint64_t images, Bytes vram = mib(64), const CopyCosts& costs = {}) {
        queue_.reset();
        store_.reset();
        gpu_ = std::make_unique<SimGpu>(vram);
        store_ = std::make_unique<SteppedStore>(*gpu_, config(segment, images, costs), &keeper_);
        queue_ = std::move(*store()->make_queue(kDepth));
    }
    SteppedStore& store() { return *store_; }
    SimFaults& faults() { return gpu_->faults(); }
    StoreStats stats() { return store()->stats(); }

    static BlockRequest request(BlockRequest::Op op, PageIndex first, std::uint64_t pages,
                                HostMemory& memory) {
        return {op, first.n * kPageBytes, pages * kPageBytes, memory.data(), IoStatus::pending, nullptr};
    }
    static void fill(PageIndex first, std::uint64_t pages, std::uint32_t version, HostMemory& memory) {
        for (std::uint64_t i = 0; i < pages; ++i)
            fill_page(memory.page(i), version == 0 ? 0 : content_for({first.n + i}, version));
    }
    /// Writes `pages` pages of this version, to the end; version 0 is zeros.
    IoStatus write(PageIndex first, std::uint64_t pages, std::uint32_t version) {
        return write_to(*queue_, first, pages, version);
    }
    /// The same through the stage: in requests too small to go straight to VRAM.
    void write_staged(PageIndex first, std::uint64_t pages, std::uint32_t version) {
        constexpr std::uint64_t kSmall = 32;
        const std::uint64_t direct_before = stats().pages_written_direct;
        for (std::uint64_t at = 0; at < pages; at += kSmall)
            ASSERT_EQ(write({first.n + at}, std::min(kSmall, pages - at), version), IoStatus::ok);
        ASSERT_EQ(stats().pages_written_direct, direct_before);
    }
    /// A write that stays pending, for the GPU has not even been told of it.
    void begin_direct(BlockRequest& r, PageIndex first, std::uint64_t pages, std::uint32_t version,
                      HostMemory& memory) {
        fill(first, pages, version, memory);
        r = request(BlockRequest::Op::write, first, pages, memory);
        // A queue that fills chunks waits for an image some times.
        IoStatus status = IoStatus::retry;
        for (int n = 0; n < 100 && status == IoStatus::retry; ++n) status = queue_->submit(r);
        ASSERT_EQ(status, IoStatus::pending);
    }
    /// Tells the GPU of what was submitted; nothing completes.
    void launch() {
        faults().hang = true;
        std::array<BlockRequest*, kDepth> done{};
        EXPECT_EQ(queue_->poll(done), 0u);
        faults().hang = false;
    }
    void discard(PageIndex first, std::uint64_t pages) {
        BlockRequest r = request(BlockRequest::Op::discard, first, pages, memory_);
        r.data = nullptr;
        EXPECT_EQ(queue_->submit(r), IoStatus::ok);
    }
    /// Polls until the request is complete.
    IoStatus finish(const BlockRequest& r) { return finish(r, *queue_); }
    static IoStatus finish(const BlockRequest& r, TargetQueue& queue) {
        std::array<BlockRequest*, kDepth> done{};
        for (int n = 0; n < 1000 && r.status == IoStatus::pending; ++n) (void)queue.poll(done);
        return r.status;
    }
    /// A queue without room for a pending write, which needs the stage then: its only place is taken by `r`,
    /// a read of a page that has to be in VRAM only.
    std::unique_ptr<TargetQueue> make_full_queue(PageIndex page, BlockRequest& r) {
        auto queue = std::move(*store()->make_queue(1));
        r = request(BlockRequest::Op::read, page, 1, third_);
        EXPECT_EQ(queue->submit(r), IoStatus::pending);
        return queue;
    }
    IoStatus write_to(TargetQueue& queue, PageIndex first, std::uint64_t pages, std::uint32_t version) {
        fill(first, pages, version, memory_);
        BlockRequest r = request(BlockRequest::Op::write, first, pages, memory_);
        (void)queue.submit(r);
        return finish(r, queue);
    }
    IoStatus read(PageIndex first, std::uint64_t pages) {
        std::memset(memory_.data(), 0x5A, pages * kPageBytes);
        BlockRequest r = request(BlockRequest::Op::read, first, pages, memory_);
        (void)queue_->submit(r);
        return finish(r);
    }
    /// Expects these pages to be of this version, 0 being zeros, in the memory read into.
    static void expect_content(PageIndex first, std::uint64_t pages, std::uint32_t version,
                               const HostMemory& memory) {
        for (std::uint64_t i = 0; i < pages; ++i)
            ASSERT_EQ(content_of(memory.page(i)), version == 0 ? 0 : content_for({first.n + i}, version))
                << "page " << first.n + i;
    }
    void expect(PageIndex first, std::uint64_t pages, std::uint32_t version) {
        ASSERT_EQ(read(first, pages), IoStatus::ok) << "page " << first.n;
        expect_content(first, pages, version, memory_);
    }
    void steps(int n) {
        for (int i = 0; i < n; ++i) (void)store().step();
    }
    /// Steps until so many flushes have failed since the start; false if they do not.
    bool fail_flushes(std::uint64_t errors) {
        for (int n = 0; n < 1000 && stats().flush_errors < errors; ++n) steps(1);
        return stats().flush_errors == errors;
    }
    void fill_chunks(std::uint32_t chunks, std::uint32_t version) {
        for (std::uint32_t c = 0; c < chunks; ++c) {
            ASSERT_EQ(write(page_of(c, 0), 3, version), IoStatus::ok) << "chunk " << c;
            store()->maintain();
            ASSERT_TRUE(store().drain());
        }
    }

    static constexpr std::uint32_t kDepth = 8;
    std::uint32_t mergers_ = 0;  ///< of the stores that are made
    HostMemory memory_{BlockRequest::kMaxTransferBytes + kChunkBytes};
    HostMemory other_{kChunkBytes};
    HostMemory third_{kChunkBytes};
    KeeperFake keeper_;
    std::unique_ptr<SimGpu> gpu_;
    std::unique_ptr<SteppedStore> store_;
    std::unique_ptr<TargetQueue> queue_;
};

}  // namespace vramswap::test
