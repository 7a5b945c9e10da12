// SPDX-License-Identifier: MIT
#include "daemon/bench/report.h"

#include <nlohmann/json.hpp>
#include <thread>

#include "sys/proc.h"

namespace vramswap {
namespace {

using Json = nlohmann::ordered_json;

double microseconds(const LatencyHistogram& latencies, double share) {
    return static_cast<double>(latencies.percentile_ns(share)) / 1000;
}

Json latency_json(const LatencyHistogram& latencies) {
    return {{"p50", microseconds(latencies, 0.5)},
            {"p99", microseconds(latencies, 0.99)},
            {"p999", microseconds(latencies, 0.999)},
            {"max", static_cast<double>(latencies.max_ns()) / 1000}};
}

Json ceiling_json(const Ceiling& c) {
    Json small = Json::array();
    for (const SmallCopies& s : c.small_copies)
        small.push_back({{"op", to_string(s.direction)},
                         {"threads", s.threads},
                         {"batch", s.batch},
                         {"submissions", s.submissions},
                         {"iops", s.iops},
                         {"gbps", s.gbps()}});
    return {{"h2d_gbps", c.h2d_gbps},
            {"d2h_gbps", c.d2h_gbps},
            {"read_4k_qd1_us", microseconds(c.read_4k, 0.5)},
            {"read_4k_qd1_p99_us", microseconds(c.read_4k, 0.99)},
            {"read_4k_lat_us", latency_json(c.read_4k)},
            {"write_4k_lat_us", latency_json(c.write_4k)},
            {"memcpy_4k_lat_us", latency_json(c.memcpy_4k)},
            {"small_copies", std::move(small)}};
}

std::string_view name_of(CeilingKind kind) {
    switch (kind) {
        case CeilingKind::none:
            return "none";
        case CeilingKind::pinned_copy:
            return "pinned copy";
        case CeilingKind::small_copies:
            return "bare small copies";
        case CeilingKind::one_read:
            return "bare read";
        case CeilingKind::memcpy_page:
            return "cold memcpy";
    }
    return "?";
}

/// Percentiles beside the p50 of a bare latency, else a rate beside a rate.
void add_ceiling(Json& j, const Job& job, const Ceiling& ceiling, double gbps, const Measured& m) {
    const double top = ceiling.of(job);
    if (job.ceiling == CeilingKind::none || top <= 0) return;
    const bool latency = job.ceiling == CeilingKind::one_read || job.ceiling == CeilingKind::memcpy_page;
    j["ceiling"] = name_of(job.ceiling);
    j[latency ? "ceiling_us" : "ceiling_gbps"] = top;
    j["ratio"] = (latency ? microseconds(m.latencies, 0.5) : gbps) / top;
    if (latency) j["ratio_p99"] = microseconds(m.latencies, 0.99) / top;
}

Json result_json(const JobResult& r, const Ceiling& ceiling) {
    const Job& job = r.job;
    const Measured& m = r.measured;
    const double gb = static_cast<double>(m.bytes) / 1e9;
    const double gbps = gb / m.seconds;
    Json j{{"name", job.name},
           {"op", to_string(job.direction)},
           {"pattern", to_string(job.pattern)},
           {"block_bytes", job.block_bytes},
           {"queue_depth", job.depth},
           {"threads", job.threads},
           {"mode", to_string(job.mode)},
           {"iops", static_cast<double>(m.operations) / m.seconds},
           {"gbps", gbps},
           {"lat_us", latency_json(m.latencies)},
           {"cpu_s_per_gb", m.cpu_seconds / gb},
           {"ram_bytes", r.ram.n}};
    if (job.direction != Direction::write) j["stage_share"] = r.stage_share;
    add_ceiling(j, job, ceiling, gbps, m);
    return j;
}

}  // namespace

std::string to_json(const BenchReport& report) {
    Json results = Json::array();
    for (const JobResult& r : report.results) results.push_back(result_json(r, report.ceiling));
    Json j{{"gpu", report.gpu.name},
           {"backend", report.gpu.backend},
           {"driver", report.gpu.driver},
           {"kernel", read_kernel_release().value_or("")},
           {"cpus", std::thread::hardware_concurrency()},
           {"threads", report.threads},
           {"working_set_bytes", report.working_set.n},
           {"seconds", report.seconds},
           {"ceiling", ceiling_json(report.ceiling)},
           {"results", std::move(results)}};
    if (report.mergers) j["mergers"] = *report.mergers;
    if (!report.skipped.empty()) j["skipped"] = report.skipped;
    return j.dump();
}

}  // namespace vramswap
