// SPDX-License-Identifier: MIT
// store_load GPU[,GPU...] MODE SECONDS [THREADS]: random reads of 4 KiB from a store of 4 GiB on these GPUs
// (copy, turbo, or auto: as the policy of the first says), with nothing of the kernel before it: eight
// threads with 32 requests each in flight. THREADS: so many read 2 MiB one after the other, with 8 in flight
// each. Prints "full" when the store is filled, "MODE at T" with monotonic seconds at each change of mode,
// and at the end a JSON object: GB/s.
//
// store_load GPU wipe: fills a store and ends it while somebody holds its segments, then looks at them: a
// JSON object with the bytes that were not zero before and after.
#include <poll.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "daemon/bench/load.h"
#include "daemon/bench/noise_memory.h"
#include "daemon/monitor/monitor.h"
#include "daemon/monitor/monitored_store.h"
#include "gpu/drivers.h"
#include "store/page_store.h"

namespace vramswap {
namespace {

constexpr Bytes kSize = gib(4);

/// A thread that does the same again and again until it is ended.
class Repeated {
  public:
    template <typename What>
    Repeated(int pause_ms, What what)
        : thread_([this, pause_ms, what] {
              while (!ended_.load()) {
                  what();
                  ::poll(nullptr, 0, pause_ms);
              }
          }) {}
    ~Repeated() {
        ended_.store(true);
        thread_.join();
    }
    Repeated(const Repeated&) = delete;
    Repeated& operator=(const Repeated&) = delete;

  private:
    std::atomic<bool> ended_{false};
    std::thread thread_;
};

Job job_of(unsigned large_threads) {
    if (large_threads > 0)
        return {"read", Direction::read, Pattern::sequential, kChunkBytes, 8, large_threads};
    return {"read", Direction::read, Pattern::random, kPageBytes, 32, 8};
}

Result<void> run(const std::string& selectors, const std::string& mode, double seconds, const Job& job) {
    auto drivers = all_drivers();
    const auto gpus = select_gpus(survey(drivers), selectors, SimFallback::never);
    if (!gpus) return gpus.error();
    std::vector<std::unique_ptr<Backend>> backends;
    std::vector<Backend*> borrowed;
    for (const GpuInfo& gpu : *gpus) {
        auto backend = open_gpu(drivers, gpu);
        if (!backend) return std::move(backend).error();
        borrowed.push_back(backend->get());
        backends.push_back(std::move(*backend));
    }
    auto noise = NoiseMemory::create(job.threads * kThreadBytesMax);
    if (!noise) return std::move(noise).error();
    StoreConfig config;
    config.size = kSize;
    config.mode = mode == "turbo" ? EngineMode::turbo : EngineMode::copy;
    auto store = PageStore::create(borrowed, config, nullptr);
    if (!store) return std::move(store).error();
    PageStore& pages = **store;
    if (auto r = pages.register_memory(noise->bytes()); !r) return r;
    if (auto r = pages.start(); !r) return r;
    const Repeated maintainer(1, [&] { pages.maintain(); });
    auto team = LoadTeam::create(pages, noise->bytes(), job.threads);
    if (!team) return std::move(team).error();
    if (auto r = team->run_once({"fill", Direction::write, Pattern::sequential, kChunkBytes, 4, job.threads},
                                kSize);
        !r)
        return r;
    std::puts("full");
    MonitoredStore monitored(pages, 0, mode == "auto" ? std::nullopt : std::optional(config.mode));
    Monitor monitor(*backends.front(), monitored, {});
    if (auto r = monitor.start(); !r) return r;
    std::optional<EngineMode> last;
    const Repeated teller(2, [&] {
        const EngineMode now = pages.stats().mode;
        if (last == now) return;
        last = now;
        const auto name = to_string(now);
        std::printf("%.*s at %.4f\n", static_cast<int>(name.size()), name.data(),
                    static_cast<double>(now_ns()) / 1e9);
        std::fflush(stdout);
    });
    const auto measured = team->run(job, kSize, seconds);
    if (!measured) return measured.error();
    std::printf("{\"read_gbps\": %.2f}\n", static_cast<double>(measured->bytes) / measured->seconds / 1e9);
    return {};
}

/// Keeps what it is given for ever.
class Holder final : public FdKeeper {
  public:
    Result<void> keep(std::string_view key, const UniqueFd& fd) override {
        if (key.starts_with("segment-")) held.push_back(fd.dup());
        return {};
    }
    Result<void> drop(std::string_view) override { return {}; }
    std::vector<UniqueFd> held;
};

/// Of all that is held.
Result<std::uint64_t> bytes_not_zero(Backend& gpu, const Holder& holder, Bytes segment,
                                     std::span<std::byte> host) {
    auto queue = gpu.make_queue();
    if (!queue) return std::move(queue).error();
    std::uint64_t found = 0;
    for (const UniqueFd& fd : holder.held) {
        auto id = gpu.import_segment(fd, segment);
        if (!id) return std::move(id).error();
        for (std::uint64_t at = 0; at < segment.n; at += kChunkBytes) {
            const Copy copy{Copy::Op::from_gpu, *id, at, host.data(),
                            static_cast<std::uint32_t>(kChunkBytes)};
            Ticket ticket = 0;
            IoStatus status = (*queue)->submit({&copy, 1}, ticket);
            while (status == IoStatus::pending) status = (*queue)->poll(ticket);
            if (status != IoStatus::ok) return Error{Errc::failed, 0, "a segment cannot be read"};
            found += static_cast<std::uint64_t>(std::ranges::count_if(
                host.first(kChunkBytes), [](std::byte b) { return b != std::byte{0}; }));
        }
        if (auto freed = gpu.free_segment(*id); !freed) return std::move(freed).error();
    }
    return found;
}

Result<void> check_wipe(const std::string& selector) {
    auto drivers = all_drivers();
    const auto gpus = select_gpus(survey(drivers), selector, SimFallback::never);
    if (!gpus) return gpus.error();
    auto gpu = open_gpu(drivers, gpus->front());
    if (!gpu) return std::move(gpu).error();
    constexpr unsigned kThreads = 4;
    auto noise = NoiseMemory::create(kThreads * kThreadBytesMax);
    if (!noise) return std::move(noise).error();
    StoreConfig config;
    config.size = kSize;
    Holder holder;
    auto store = PageStore::create(std::vector<Backend*>{gpu->get()}, config, &holder);
    if (!store) return std::move(store).error();
    if (auto r = (*store)->register_memory(noise->bytes()); !r) return r;
    if (auto r = (*store)->start(); !r) return r;
    {
        const Repeated maintainer(1, [&] { (*store)->maintain(); });
        auto team = LoadTeam::create(**store, noise->bytes(), kThreads);
        if (!team) return std::move(team).error();
        if (auto r = team->run_once({"fill", Direction::write, Pattern::sequential, kChunkBytes, 4, kThreads},
                                    kSize);
            !r)
            return r;
    }
    const auto before = bytes_not_zero(**gpu, holder, config.segment, noise->bytes());
    if (!before) return before.error();
    const std::uint64_t begin = now_ns();
    if (auto r = (*store)->unregister_memory(noise->bytes()); !r) return r;
    store->reset();
    const double ended_ms = static_cast<double>(now_ns() - begin) / 1e6;
    if (auto r = (*gpu)->register_host(noise->bytes()); !r) return r;
    const auto after = bytes_not_zero(**gpu, holder, config.segment, noise->bytes());
    if (!after) return after.error();
    std::printf(
        "{\"segments\": %zu, \"not_zero_before\": %llu, \"not_zero_after\": %llu, \"end_ms\": %.1f}\n",
        holder.held.size(), static_cast<unsigned long long>(*before), static_cast<unsigned long long>(*after),
        ended_ms);
    return {};
}

}  // namespace
}  // namespace vramswap

int main(int argc, char** argv) {
    if (argc == 3 && std::string_view(argv[2]) == "wipe") {
        const auto done = vramswap::check_wipe(argv[1]);
        if (!done) std::fprintf(stderr, "%s\n", done.error().text().c_str());
        return done ? 0 : 1;
    }
    const int large_threads = argc == 5 ? std::atoi(argv[4]) : 0;
    if (argc != 4 && large_threads <= 0) return 2;
    const auto done = vramswap::run(argv[1], argv[2], std::atof(argv[3]),
                                    vramswap::job_of(static_cast<unsigned>(large_threads)));
    if (done) return 0;
    std::fprintf(stderr, "%s\n", done.error().text().c_str());
    return 1;
}
