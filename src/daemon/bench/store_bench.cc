// SPDX-License-Identifier: MIT
// The process behind `vramswap bench`: measures the GPU's own copies, then the store, and prints JSON.
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <thread>

#include "daemon/bench/noise_memory.h"
#include "daemon/bench/report.h"
#include "daemon/roles.h"
#include "gpu/drivers.h"
#include "sys/proc.h"

namespace vramswap {
namespace {

/// Larger than any cache between us and VRAM.
constexpr Bytes kWorkingSetMax = gib(8);
/// Simulated VRAM is RAM.
constexpr Bytes kSimWorkingSetMax = gib(1);
constexpr unsigned kThreadsMax = 8;

Result<Bytes> choose_working_set(Backend& gpu, Bytes segment) {
    auto memory = gpu.memory_info();
    if (!memory) return std::move(memory).error();
    std::uint64_t most = std::min(kWorkingSetMax.n, memory->free.n / 10 * 8);
    if (gpu.info().kind == GpuKind::simulated) {
        auto ram = read_meminfo();
        if (!ram) return std::move(ram).error();
        most = std::min({most, kSimWorkingSetMax.n, ram->available.n / 4});
    }
    const Bytes chosen{round_down(most, segment.n)};
    if (chosen.n == 0)
        return Error{Errc::no_memory, 0,
                     fmt::format("{} of free memory on {} are too little to measure",
                                 format_size(memory->free), gpu.info().selector()),
                     "End what uses the GPU"};
    return chosen;
}

/// A line that says what runs, on a terminal.
void show_progress(std::size_t at, std::size_t count, const std::string& name) {
    if (::isatty(STDERR_FILENO) != 1) return;
    fmt::print(stderr, "\r\033[K");
    if (at < count) fmt::print(stderr, "[{}/{}] {}", at + 1, count, name);
    std::fflush(stderr);
}

Result<Ceiling> bare_ceiling(Backend& gpu, std::span<std::byte> memory, const CeilingRequest& request) {
    show_progress(0, request.jobs.size(), "the GPU's own copies");
    if (auto r = gpu.register_host(memory); !r) return std::move(r).error();
    auto ceiling = measure_ceiling(gpu, memory, request);
    if (auto r = gpu.unregister_host(memory); !r && ceiling) return std::move(r).error();
    return ceiling;
}

/// Runs the jobs, with a new store for each mode. What this GPU cannot do is skipped if something was
/// measured.
Result<void> measure_store(Backend& gpu, std::span<std::byte> memory, const std::vector<Job>& jobs,
                           BenchReport& report) {
    std::unique_ptr<StoreSession> session;
    for (std::size_t i = 0; i < jobs.size(); ++i) {
        show_progress(i, jobs.size(), jobs[i].name);
        if (session == nullptr || jobs[i].mode != jobs[i - 1].mode) {
            session.reset();
            StoreConfig config;
            config.size = report.working_set;
            config.mode = jobs[i].mode;
            config.flusher.mergers = report.mergers;
            auto made = StoreSession::create(gpu, config, memory, report.threads);
            if (!made && made.error().code == Errc::unavailable && !report.results.empty()) {
                report.skipped = made.error().text();
                break;
            }
            if (!made) return std::move(made).error();
            session = std::move(*made);
        }
        auto result = session->run(jobs[i], report.seconds);
        if (!result) return std::move(result).error();
        report.results.push_back(std::move(*result));
    }
    show_progress(jobs.size(), jobs.size(), "");
    return {};
}

Result<BenchReport> measure(const BenchRequest& request) {
    auto drivers = all_drivers();
    auto gpu = select_gpu(survey(drivers), request.gpu, SimFallback::never);
    if (!gpu) return std::move(gpu).error();
    BenchReport report;
    report.gpu = *gpu;
    report.seconds = request.seconds;
    report.threads = request.threads != 0 ? request.threads
                                          : std::clamp(std::thread::hardware_concurrency(), 1u, kThreadsMax);
    if (request.mergers >= 0) report.mergers = static_cast<std::uint32_t>(request.mergers);
    auto jobs = choose_jobs(request, report.threads);
    if (!jobs) return std::move(jobs).error();
    auto backend = open_gpu(drivers, *gpu);
    if (!backend) return std::move(backend).error();
    const Bytes segment = StoreConfig{}.segment;
    auto working_set = choose_working_set(**backend, segment);
    if (!working_set) return std::move(working_set).error();
    report.working_set = *working_set;
    auto memory = NoiseMemory::create(std::max(report.threads * kThreadBytesMax, kLargeCopyBytes));
    if (!memory) return std::move(memory).error();
    auto ceiling = bare_ceiling(**backend, memory->bytes(),
                                {report.working_set, segment, std::min(0.3, request.seconds), *jobs});
    if (!ceiling) return std::move(ceiling).error();
    report.ceiling = std::move(*ceiling);
    if (auto r = measure_store(**backend, memory->bytes(), *jobs, report); !r) return std::move(r).error();
    return report;
}

}  // namespace

int run_store_bench(const std::vector<std::string>& arguments) {
    if (arguments.size() != 1) return 2;
    const auto request = parse_bench_request(arguments[0]);
    const auto report = request ? measure(*request) : Result<BenchReport>(request.error());
    std::puts(report ? to_json(*report).c_str() : error_json(report.error()).c_str());
    return report ? 0 : 1;
}

}  // namespace vramswap
