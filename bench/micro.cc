// SPDX-License-Identifier: MIT
// Micro-benchmarks of the store's hot functions, one thread, in nanoseconds of CPU a page, beside a bare
// memcpy of the same page from memory that is in no cache. bench/micro.py prints the ratios.
//
// Every benchmark works in rounds of 32 MiB: the pages of a round are timed together, what belongs to others
// (the flusher, caches made cold again) happens between rounds. Source pages come in random order from memory
// many times as large as the caches, the same for all.
#include <benchmark/benchmark.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <numeric>
#include <random>

#include "base/clock.h"
#include "gpu/sim/sim_driver.h"
#include "store/checksum.h"
#include "store/page_store.h"

namespace vramswap {
namespace {

constexpr std::size_t kColdBytes = 512u << 20;
constexpr std::size_t kColdPages = kColdBytes / kPageBytes;
constexpr std::size_t kRoundPages = (32u << 20) / kPageBytes;
constexpr Bytes kDevice = mib(512);

template <typename T>
T must(Result<T> result) {
    if (result) return std::move(*result);
    std::fprintf(stderr, "%s\n", result.error().text().c_str());
    std::exit(1);
}

std::span<std::byte> map_memory(std::size_t size) {
    void* p =
        ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (p == MAP_FAILED) std::exit(1);
    return {static_cast<std::byte*>(p), size};
}

/// Pages of noise in an order without a pattern. One for the whole program.
class ColdPages {
  public:
    static ColdPages& get() {
        static ColdPages pages;
        return pages;
    }
    std::byte* next() {
        at_ = at_ + 1 == order_.size() ? 0 : at_ + 1;
        return memory_.data() + std::size_t{order_[at_]} * kPageBytes;
    }

  private:
    ColdPages() : memory_(map_memory(kColdBytes)), order_(kColdPages) {
        std::mt19937_64 random(1);
        for (std::size_t i = 0; i < kColdBytes; i += sizeof(std::uint64_t)) {
            const std::uint64_t word = random();
            std::memcpy(memory_.data() + i, &word, sizeof word);
        }
        std::iota(order_.begin(), order_.end(), 0u);
        std::shuffle(order_.begin(), order_.end(), random);
    }
    const std::span<std::byte> memory_;
    std::vector<std::uint32_t> order_;
    std::size_t at_ = 0;
};

/// Of this thread: what others on the machine do does not count, and nothing here waits.
std::uint64_t cpu_ns() {
    timespec ts{};
    ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
    return static_cast<std::uint64_t>(ts.tv_sec) * 1'000'000'000u + static_cast<std::uint64_t>(ts.tv_nsec);
}

/// Times `page(i)` for the pages of a round; calls `between()` after it, untimed.
template <typename Page, typename Between>
void rounds(benchmark::State& state, Page page, Between between) {
    std::uint64_t total_ns = 0;
    std::uint64_t pages = 0;
    for (auto _ : state) {
        const std::uint64_t begin = cpu_ns();
        for (std::size_t i = 0; i < kRoundPages; ++i) page(i);
        const std::uint64_t took = cpu_ns() - begin;
        state.SetIterationTime(static_cast<double>(took) / 1e9);
        total_ns += took;
        pages += kRoundPages;
        between();
    }
    state.counters["ns_per_page"] = static_cast<double>(total_ns) / static_cast<double>(pages);
}

void nothing() {}

// ---- bare copies ----

/// To one page, as a read's data goes to the buffer of a request.
void memcpy_cold_to_one_page(benchmark::State& state) {
    ColdPages& cold = ColdPages::get();
    const auto to = map_memory(kPageBytes);
    rounds(
        state,
        [&](std::size_t) {
            std::memcpy(to.data(), cold.next(), kPageBytes);
            benchmark::ClobberMemory();
        },
        nothing);
    ::munmap(to.data(), to.size());
}

/// To a place as large as a stage, which is then copied on, as a flusher does.
void memcpy_cold_to_stage(benchmark::State& state) {
    ColdPages& cold = ColdPages::get();
    const auto stage = map_memory(kRoundPages * kPageBytes);
    const auto vram = map_memory(stage.size());
    rounds(
        state,
        [&](std::size_t i) {
            std::memcpy(stage.data() + i * kPageBytes, cold.next(), kPageBytes);
            benchmark::ClobberMemory();
        },
        [&] {
            std::memcpy(vram.data(), stage.data(), stage.size());
            benchmark::ClobberMemory();
        });
    ::munmap(stage.data(), stage.size());
    ::munmap(vram.data(), vram.size());
}

// ---- functions of a page ----

void zero_test_of_noise(benchmark::State& state) {
    ColdPages& cold = ColdPages::get();
    rounds(
        state, [&](std::size_t) { benchmark::DoNotOptimize(is_zero_page(cold.next())); }, nothing);
}

void zero_test_of_zeros_cached(benchmark::State& state) {
    const std::array<std::byte, kPageBytes> zeros{};
    rounds(
        state,
        [&](std::size_t) {
            benchmark::DoNotOptimize(is_zero_page(zeros.data()));
            benchmark::ClobberMemory();
        },
        nothing);
}

void checksum_cold(benchmark::State& state) {
    ColdPages& cold = ColdPages::get();
    rounds(
        state, [&](std::size_t i) { benchmark::DoNotOptimize(page_checksum(cold.next(), PageIndex{i})); },
        nothing);
}

void checksum_cached(benchmark::State& state) {
    const std::byte* page = ColdPages::get().next();
    rounds(
        state, [&](std::size_t i) { benchmark::DoNotOptimize(page_checksum(page, PageIndex{i})); }, nothing);
}

// ---- tables ----

State make_state() {
    return must(State::create({gib(16), mib(128), 16}));
}

void page_table_lookup(benchmark::State& state) {
    const State tables = make_state();
    std::mt19937 random(1);
    rounds(
        state,
        [&](std::size_t) {
            benchmark::DoNotOptimize(tables.pages()[random() % tables.pages().size()].state());
        },
        nothing);
}

void chunk_lookup_and_lock(benchmark::State& state) {
    const State tables = make_state();
    std::mt19937 random(1);
    rounds(
        state,
        [&](std::size_t) {
            ChunkEntry& entry = tables.chunks()[random() % tables.chunks().size()];
            const ChunkLock lock(entry);
            benchmark::DoNotOptimize(entry.image.has());
        },
        nothing);
}

// ---- the store ----

/// A store on a simulated GPU without latency, driven by one thread: its flusher is stepped between rounds,
/// so that nobody waits for room.
class Store {
  public:
    explicit Store(Bytes stage)
        : gpu_(open_gpu()),
          store_(must(PageStore::create(*gpu_, config(stage), nullptr))),
          queue_(must(store_->make_queue(1))) {}

    void transfer(BlockRequest::Op op, std::uint64_t page, std::byte* data) {
        BlockRequest r;
        r.op = op;
        r.offset = page * kPageBytes;
        r.bytes = kPageBytes;
        r.data = data;
        IoStatus status = queue_->submit(r);
        std::array<BlockRequest*, 1> done{};
        if (status == IoStatus::pending) {
            while (queue_->poll(done) == 0) (void)store_->flusher().step(now_ns());
            status = r.status;
        }
        if (status == IoStatus::ok) return;
        std::fprintf(stderr, "a page was not transferred: %s\n", std::string(to_string(status)).c_str());
        std::exit(1);
    }
    /// Everything dirty goes to VRAM; images stay as a cache while there is room.
    void flush() {
        store_->maintain();
        while (store_->flusher().anything_dirty() || store_->flusher().step(now_ns()) == Flusher::kNow)
            (void)store_->flusher().step(now_ns() + kLater);
    }
    void empty_stage() {
        store_->flusher().set_draining(true);
        while (store_->stats().staged.n != 0) (void)store_->flusher().step(now_ns());
        store_->flusher().set_draining(false);
        store_->maintain();
    }
    [[nodiscard]] StoreStats stats() const { return store_->stats(); }

  private:
    static constexpr std::uint64_t kLater = 1'000'000'000;  // everything dirty is old by then

    static std::unique_ptr<Backend> open_gpu() {
        const auto driver = make_sim_driver({gib(1)});
        return must(driver->open(must(driver->enumerate()).front()));
    }
    static StoreConfig config(Bytes stage) {
        StoreConfig c;
        c.size = kDevice;
        c.stage = stage;
        return c;
    }
    const std::unique_ptr<Backend> gpu_;
    const std::unique_ptr<PageStore> store_;
    const std::unique_ptr<TargetQueue> queue_;
};

/// Zero test, checksum, copy into the stage and the tables, for a page that was in no cache. Clusters are
/// filled in order, as the kernel does.
void store_write(benchmark::State& state) {
    Store store(mib(64));
    ColdPages& cold = ColdPages::get();
    std::uint64_t next = 0;
    const auto write = [&](std::size_t) {
        store.transfer(BlockRequest::Op::write, next, cold.next());
        next = (next + 1) % (kDevice.n / kPageBytes);
    };
    do {
        for (std::size_t i = 0; i < kRoundPages; ++i) write(i);
        store.empty_stage();
    } while (next != 0);
    rounds(state, write, [&] { store.empty_stage(); });
}

/// Pages in random order from a stage many times as large as the caches.
void store_read_staged(benchmark::State& state) {
    constexpr std::uint64_t kStagedPages = mib(256).n / kPageBytes;
    Store store(mib(512));
    ColdPages& cold = ColdPages::get();
    for (std::uint64_t page = 0; page < kStagedPages; ++page) {
        store.transfer(BlockRequest::Op::write, page, cold.next());
        if (page % kChunkPages == 0) store.flush();
    }
    store.flush();
    std::vector<std::uint32_t> order(kStagedPages);
    std::iota(order.begin(), order.end(), 0u);
    std::shuffle(order.begin(), order.end(), std::mt19937_64(1));
    const auto to = map_memory(kPageBytes);
    std::size_t at = 0;
    const StoreStats before = store.stats();
    rounds(
        state,
        [&](std::size_t) {
            store.transfer(BlockRequest::Op::read, order[at], to.data());
            at = at + 1 == order.size() ? 0 : at + 1;
        },
        nothing);
    const StoreStats after = store.stats();
    if (after.pages_read_gpu != before.pages_read_gpu) state.SkipWithError("pages were read from VRAM");
    ::munmap(to.data(), to.size());
}

// In an order in which the machine's moods fall on all alike; see micro.py.
BENCHMARK(memcpy_cold_to_one_page)->UseManualTime()->Unit(benchmark::kMillisecond);
BENCHMARK(memcpy_cold_to_stage)->UseManualTime()->Unit(benchmark::kMillisecond);
BENCHMARK(store_write)->UseManualTime()->Unit(benchmark::kMillisecond);
BENCHMARK(store_read_staged)->UseManualTime()->Unit(benchmark::kMillisecond);
BENCHMARK(zero_test_of_noise)->UseManualTime()->Unit(benchmark::kMillisecond);
BENCHMARK(zero_test_of_zeros_cached)->UseManualTime()->Unit(benchmark::kMillisecond);
BENCHMARK(checksum_cold)->UseManualTime()->Unit(benchmark::kMillisecond);
BENCHMARK(checksum_cached)->UseManualTime()->Unit(benchmark::kMillisecond);
BENCHMARK(page_table_lookup)->UseManualTime()->Unit(benchmark::kMillisecond);
BENCHMARK(chunk_lookup_and_lock)->UseManualTime()->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace vramswap

BENCHMARK_MAIN();
