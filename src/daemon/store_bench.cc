// SPDX-License-Identifier: MIT
// Measures the store and, in the same run, the GPU's bare copies beside it. Prints JSON. One I/O thread, as
// each queue of a frontend has one; a second thread maintains the store.
#include <fmt/format.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include "base/clock.h"
#include "ctl/messages.h"
#include "daemon/roles.h"
#include "gpu/drivers.h"
#include "store/page_store.h"

namespace vramswap {
namespace {

using Json = nlohmann::ordered_json;

constexpr Bytes kWorkingSet = gib(1);
constexpr std::size_t kBareCopyBytes = 64u << 20;
constexpr std::size_t kLatenciesMax = 4'000'000;

/// Page-aligned memory, touched, filled with noise.
class NoiseBuffer {
  public:
    explicit NoiseBuffer(std::size_t size)
        : size_(size),
          base_(static_cast<std::byte*>(::mmap(nullptr, size, PROT_READ | PROT_WRITE,
                                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0))) {
        if (base_ == MAP_FAILED) std::abort();
        std::mt19937_64 random(1);
        for (std::size_t i = 0; i < size; i += sizeof(std::uint64_t)) {
            const std::uint64_t word = random();
            std::memcpy(base_ + i, &word, sizeof word);
        }
    }
    ~NoiseBuffer() { ::munmap(base_, size_); }
    NoiseBuffer(const NoiseBuffer&) = delete;
    NoiseBuffer& operator=(const NoiseBuffer&) = delete;
    [[nodiscard]] std::span<std::byte> bytes() const { return {base_, size_}; }
    [[nodiscard]] std::byte* data() const { return base_; }

  private:
    std::size_t size_;
    std::byte* base_;
};

double cpu_seconds() {
    rusage u{};
    ::getrusage(RUSAGE_SELF, &u);
    const auto seconds = [](const timeval& t) {
        return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) / 1e6;
    };
    return seconds(u.ru_utime) + seconds(u.ru_stime);
}

double percentile_us(const std::vector<std::uint32_t>& sorted, double share) {
    if (sorted.empty()) return 0;
    return static_cast<double>(
               sorted[static_cast<std::size_t>(share * static_cast<double>(sorted.size() - 1))]) /
           1000;
}

/// Submits and spins until it is complete. Errors: gpu trouble.
Result<void> copy_now(TransferQueue& queue, const Copy& copy) {
    Ticket ticket = 0;
    if (queue.submit({&copy, 1}, ticket) != IoStatus::pending)
        return Error{Errc::failed, 0, "the GPU refused a copy"};
    IoStatus status = IoStatus::pending;
    while (status == IoStatus::pending) status = queue.poll(ticket);
    if (status != IoStatus::ok) return Error{Errc::failed, 0, "a copy failed"};
    return {};
}

struct Ceiling {
    double h2d_gbps = 0, d2h_gbps = 0;
    double read_p50_us = 0, read_p99_us = 0;
};

/// The GPU's own copies, nothing of ours around them.
Result<Ceiling> measure_ceiling(Backend& gpu) {
    const NoiseBuffer host(kBareCopyBytes);
    if (auto r = gpu.register_host(host.bytes()); !r) return std::move(r).error();
    auto segment = gpu.allocate_segment({kBareCopyBytes});
    if (!segment) return std::move(segment).error();
    auto queue = gpu.make_queue();
    if (!queue) return std::move(queue).error();
    Ceiling ceiling;
    for (const auto op : {Copy::Op::to_gpu, Copy::Op::from_gpu}) {
        std::vector<double> rates;
        for (int i = 0; i < 12; ++i) {
            const std::uint64_t begin = now_ns();
            if (auto r = copy_now(**queue, {op, *segment, 0, host.data(), kBareCopyBytes}); !r)
                return std::move(r).error();
            rates.push_back(static_cast<double>(kBareCopyBytes) / static_cast<double>(now_ns() - begin));
        }
        std::nth_element(rates.begin(), rates.begin() + 6, rates.end());
        (op == Copy::Op::to_gpu ? ceiling.h2d_gbps : ceiling.d2h_gbps) = rates[6];
    }
    std::vector<std::uint32_t> latencies;
    std::mt19937_64 random(2);
    for (int i = 0; i < 20'000; ++i) {
        const std::uint64_t page = random() % (kBareCopyBytes / kPageBytes);
        const std::uint64_t begin = now_ns();
        if (auto r =
                copy_now(**queue, {Copy::Op::from_gpu, *segment, page * kPageBytes, host.data(), kPageBytes});
            !r)
            return std::move(r).error();
        latencies.push_back(static_cast<std::uint32_t>(now_ns() - begin));
    }
    std::ranges::sort(latencies);
    ceiling.read_p50_us = percentile_us(latencies, 0.5);
    ceiling.read_p99_us = percentile_us(latencies, 0.99);
    queue->reset();
    (void)gpu.free_segment(*segment);
    (void)gpu.unregister_host(host.bytes());
    return ceiling;
}

struct Job {
    BlockRequest::Op op = BlockRequest::Op::read;
    bool sequential = true;
    std::uint32_t block_bytes = kPageBytes;
    std::uint32_t depth = 1;
};

/// Drives one queue of the store with one kind of request.
class Load {
  public:
    Load(TargetQueue& queue, std::span<std::byte> memory, Bytes span)
        : queue_(queue), memory_(memory), span_(span) {
        latencies_.reserve(kLatenciesMax);
    }

    /// `bytes_limit` ends it before the time does; 0 = none.
    Result<Json> run(const Job& job, double seconds, std::uint64_t bytes_limit) {
        job_ = job;
        latencies_.clear();
        next_block_ = bytes_ = 0;
        std::vector<BlockRequest> requests(job.depth);
        std::vector<std::uint64_t> begun(job.depth);
        std::vector<BlockRequest*> done(job.depth);
        const double cpu_before = cpu_seconds();
        const std::uint64_t begin = now_ns();
        const std::uint64_t end = begin + static_cast<std::uint64_t>(seconds * 1e9);
        std::vector<std::uint32_t> idle(job.depth);
        for (std::uint32_t i = 0; i < job.depth; ++i) idle[i] = i;
        bool more = true;
        while (more || queue_.in_flight() != 0) {
            while (more && !idle.empty()) {
                const std::uint32_t i = idle.back();
                begun[i] = now_ns();
                more = begun[i] < end && (bytes_limit == 0 || bytes_ < bytes_limit);
                if (!more) break;
                prepare(requests[i], i);
                const IoStatus status = submit(requests[i]);
                if (status == IoStatus::ok)
                    complete(begun[i]);
                else if (status == IoStatus::pending)
                    idle.pop_back();
                else
                    return Error{Errc::failed, 0, fmt::format("a request failed: {}", to_string(status))};
            }
            const std::size_t n = queue_.poll(done);
            for (std::size_t k = 0; k < n; ++k) {
                if (done[k]->status != IoStatus::ok) return Error{Errc::failed, 0, "a read failed"};
                const auto i = static_cast<std::uint32_t>(done[k] - requests.data());
                complete(begun[i]);
                idle.push_back(i);
            }
        }
        return result(now_ns() - begin, cpu_seconds() - cpu_before);
    }

  private:
    void prepare(BlockRequest& r, std::uint32_t i) {
        const std::uint64_t blocks = span_.n / job_.block_bytes;
        const std::uint64_t block = job_.sequential ? next_block_++ % blocks : random_() % blocks;
        r.op = job_.op;
        r.offset = block * job_.block_bytes;
        r.bytes = job_.block_bytes;
        r.data = memory_.data() + std::size_t{i} * job_.block_bytes;
    }

    IoStatus submit(BlockRequest& r) {
        for (;;) {
            const IoStatus status = queue_.submit(r);
            if (status != IoStatus::retry) return status;
            pollfd p{queue_.event_fd(), POLLIN, 0};
            ::poll(&p, 1, 1000);
            std::uint64_t count = 0;
            [[maybe_unused]] const auto n = ::read(p.fd, &count, sizeof count);
        }
    }

    void complete(std::uint64_t begun) {
        bytes_ += job_.block_bytes;
        if (latencies_.size() < kLatenciesMax)
            latencies_.push_back(static_cast<std::uint32_t>(std::min<std::uint64_t>(now_ns() - begun, ~0u)));
    }

    Json result(std::uint64_t took_ns, double cpu) {
        std::ranges::sort(latencies_);
        const double seconds = static_cast<double>(took_ns) / 1e9;
        const double gb = static_cast<double>(bytes_) / 1e9;
        return Json{{"op", job_.op == BlockRequest::Op::write ? "write" : "read"},
                    {"pattern", job_.sequential ? "sequential" : "random"},
                    {"block_bytes", job_.block_bytes},
                    {"queue_depth", job_.depth},
                    {"threads", 1},
                    {"mode", "copy"},
                    {"iops", static_cast<double>(bytes_ / job_.block_bytes) / seconds},
                    {"gbps", gb / seconds},
                    {"lat_us",
                     {{"p50", percentile_us(latencies_, 0.5)},
                      {"p99", percentile_us(latencies_, 0.99)},
                      {"p999", percentile_us(latencies_, 0.999)},
                      {"max", percentile_us(latencies_, 1.0)}}},
                    {"cpu_s_per_gb", gb > 0 ? cpu / gb : 0.0}};
    }

    TargetQueue& queue_;
    const std::span<std::byte> memory_;
    const Bytes span_;
    Job job_;
    std::uint64_t next_block_ = 0;
    std::uint64_t bytes_ = 0;
    std::mt19937_64 random_{3};
    std::vector<std::uint32_t> latencies_;
};

/// Calls maintain while the measurement runs.
class Maintainer {
  public:
    explicit Maintainer(PageStore& store) : store_(store), thread_([this] { run(); }) {}
    ~Maintainer() {
        stop_ = true;
        thread_.join();
    }
    Maintainer(const Maintainer&) = delete;
    Maintainer& operator=(const Maintainer&) = delete;

  private:
    void run() {
        while (!stop_) {
            pollfd p{store_.maintenance_fd(), POLLIN, 0};
            if (::poll(&p, 1, 20) == 1) store_.maintain();
        }
    }
    PageStore& store_;
    std::atomic<bool> stop_{false};
    std::thread thread_;
};

/// Until everything is in VRAM and nothing in the stage, so that reads are the GPU's.
void evict_stage(PageStore& store) {
    Flusher& flusher = store.flusher();
    flusher.set_draining(true);
    while (store.stats().staged.n != 0) {
        flusher.kick(true);
        ::poll(nullptr, 0, 1);
    }
    flusher.set_draining(false);
}

Result<Json> measure_store(Backend& gpu, double seconds) {
    StoreConfig config;
    config.size = kWorkingSet;
    auto store = PageStore::create(gpu, config, nullptr);
    if (!store) return std::move(store).error();
    (*store)->start();
    const Maintainer maintainer(**store);
    const NoiseBuffer memory(64u << 20);
    if (auto r = (*store)->register_memory(memory.bytes()); !r) return std::move(r).error();
    Json results = Json::array();
    {
        auto queue = (*store)->make_queue(128);
        if (!queue) return std::move(queue).error();
        Load load(**queue, memory.bytes(), kWorkingSet);
        using Op = BlockRequest::Op;
        // The first one fills the device; the stage is emptied before reads.
        for (const Job& job : {Job{Op::write, true, 2u << 20, 1}, Job{Op::write, true, kPageBytes, 1},
                               Job{Op::write, false, kPageBytes, 1}, Job{Op::read, true, 2u << 20, 8},
                               Job{Op::read, true, 64u << 10, 8}, Job{Op::read, false, kPageBytes, 1},
                               Job{Op::read, false, kPageBytes, 32}}) {
            const bool filling = results.empty();
            if (job.op == Op::read) evict_stage(**store);
            auto one = load.run(job, filling ? 60 : seconds, filling ? kWorkingSet.n : 0);
            if (!one) return std::move(one).error();
            results.push_back(std::move(*one));
        }
    }
    (void)(*store)->unregister_memory(memory.bytes());
    return results;
}

Result<Json> measure(const std::string& wanted, double seconds) {
    auto drivers = all_drivers();
    auto gpu = select_gpu(survey(drivers), wanted, SimFallback::never);
    if (!gpu) return std::move(gpu).error();
    auto backend = open_gpu(drivers, *gpu);
    if (!backend) return std::move(backend).error();
    auto ceiling = measure_ceiling(**backend);
    if (!ceiling) return std::move(ceiling).error();
    auto results = measure_store(**backend, seconds);
    if (!results) return std::move(results).error();
    return Json{{"gpu", gpu->name},
                {"backend", gpu->backend},
                {"driver", gpu->driver},
                {"ceiling",
                 {{"h2d_gbps", ceiling->h2d_gbps},
                  {"d2h_gbps", ceiling->d2h_gbps},
                  {"read_4k_qd1_us", ceiling->read_p50_us},
                  {"read_4k_qd1_p99_us", ceiling->read_p99_us}}},
                {"results", std::move(*results)}};
}

}  // namespace

int run_store_bench(const std::vector<std::string>& arguments) {
    if (arguments.size() != 2) return 2;
    const auto result = measure(arguments[0], std::strtod(arguments[1].c_str(), nullptr));
    std::puts(result ? result->dump().c_str() : error_json(result.error()).c_str());
    return result ? 0 : 1;
}

}  // namespace vramswap
