// SPDX-License-Identifier: MIT
#include "daemon/bench/jobs.h"

#include <fmt/format.h>

#include <algorithm>

namespace vramswap {
namespace {

constexpr std::uint32_t kHuge = 2u << 20;
constexpr std::uint32_t kPage = kPageBytes;
/// Slow enough for any flusher to keep the stage empty: 200 MB/s.
constexpr std::uint64_t kEasyPaceNs = 20'000;

using enum Direction;
using enum Pattern;
using enum CeilingKind;

/// What the promises in docs/benchmarks.md are about; also all of --quick.
std::vector<Job> core_jobs(unsigned many) {
    return {
        {"seq_write_2m", write, sequential, kHuge, 8, many},
        {"seq_read_2m", read, sequential, kHuge, 8, many},
        {"seq_write_2m_1t", write, sequential, kHuge, 8, 1},
        {"seq_read_2m_1t", read, sequential, kHuge, 8, 1},
        {"write_4k_clustered", write, sequential, kPage, 1, many},
        {"write_4k_halffull", write, half_full, kPage, 1, many},
        {"write_4k_random", write, random, kPage, 32, many, small_copies},
        {"write_4k_ack", write, sequential, kPage, 1, 1, memcpy_page, Start::in_vram, kEasyPaceNs},
        {"write_4k_ack_unpaced", write, sequential, kPage, 1, 1, memcpy_page},
        {"read_4k_random_qd1", read, random, kPage, 1, 1, one_read},
        {"read_4k_staged", read, random, kPage, 1, 1, memcpy_page, Start::in_stage},
        {"read_4k_random", read, random, kPage, 32, many, small_copies},
        {"read_64k_seq", read, sequential, 64u << 10, 8, 1},
        {"mixed_4k_random", mixed, random, kPage, 32, many, small_copies},
    };
}

/// One knob at a time: block size, then depth.
std::vector<Job> sweeps(unsigned many) {
    std::vector<Job> jobs;
    for (const Direction d : {write, read})
        for (const Pattern p : {sequential, random})
            for (std::uint32_t block = kPage; block <= kHuge; block *= 2)
                jobs.push_back(
                    {fmt::format("sweep_{}_{}_{}", to_string(d), to_string(p), format_size({block})), d, p,
                     block, 8, many, block == kPage ? small_copies : pinned_copy});
    for (const Direction d : {write, read})
        for (std::uint32_t depth = 1; depth <= 128; depth *= 2)
            jobs.push_back({fmt::format("sweep_{}_4k_depth_{}", to_string(d), depth), d, random, kPage, depth,
                            many, small_copies});
    return jobs;
}

/// What gather and scatter kernels are for: many random pages.
std::vector<Job> turbo_jobs(unsigned many) {
    std::vector<Job> jobs{
        {"write_4k_random_turbo", write, random, kPage, 32, many},
        {"read_4k_random_turbo", read, random, kPage, 32, many},
        {"write_4k_halffull_turbo", write, half_full, kPage, 1, many},
        {"read_4k_random_qd1_turbo", read, random, kPage, 1, 1, one_read},
    };
    for (Job& job : jobs) job.mode = EngineMode::turbo;
    return jobs;
}

void append(std::vector<Job>& all, std::vector<Job> more) {
    std::ranges::move(more, std::back_inserter(all));
}

std::vector<Job> every_job(unsigned many) {
    std::vector<Job> all = core_jobs(many);
    append(all, sweeps(many));
    append(all, turbo_jobs(many));
    return all;
}

Result<std::vector<Job>> named_jobs(const std::vector<std::string>& names, unsigned many) {
    std::vector<Job> all = every_job(many);
    const auto has = [](const auto& list, const auto& name) {
        return std::ranges::find(list, name) != list.end();
    };
    std::vector<std::string> known;
    for (const Job& job : all) known.push_back(job.name);
    for (const auto& name : names)
        if (!has(known, name))
            return Error{Errc::usage, 0, fmt::format("no measurement '{}'", name),
                         fmt::format("There are: {}", fmt::join(known, ", "))};
    std::erase_if(all, [&](const Job& job) { return !has(names, job.name); });
    return all;
}

}  // namespace

Result<std::vector<Job>> choose_jobs(const BenchRequest& request, unsigned threads) {
    if (!request.only.empty()) return named_jobs(request.only, threads);
    std::vector<Job> jobs;
    if (request.mode != "turbo") append(jobs, core_jobs(threads));
    if (request.mode != "turbo" && request.extent == "full") append(jobs, sweeps(threads));
    if (request.mode != "copy") append(jobs, turbo_jobs(threads));
    return jobs;
}

std::string_view to_string(Direction direction) {
    switch (direction) {
        case write:
            return "write";
        case read:
            return "read";
        case mixed:
            return "mixed";
    }
    return "?";
}

std::string_view to_string(Pattern pattern) {
    switch (pattern) {
        case sequential:
            return "sequential";
        case half_full:
            return "half-full";
        case random:
            return "random";
    }
    return "?";
}

}  // namespace vramswap
