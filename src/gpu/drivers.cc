// SPDX-License-Identifier: MIT
#include "gpu/drivers.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>

#include "gpu/cuda/cuda_driver.h"
#include "gpu/sim/sim_driver.h"

namespace vramswap {
namespace {

std::string lower(std::string_view text) {
    std::string out(text);
    std::ranges::transform(out, out.begin(),
                           [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    return out;
}

bool names(const GpuInfo& gpu, std::string_view wanted) {
    const std::string w = lower(wanted);
    if (w == gpu.backend || w == gpu.selector()) return true;
    if (!gpu.pci.empty() && (w == lower(gpu.pci) || "0000:" + w == lower(gpu.pci))) return true;
    const std::string uuid = lower(gpu.uuid);
    return w.size() >= 8 && (uuid.starts_with(w) || uuid.starts_with("gpu-" + w));
}

std::string inventory(const std::vector<BackendReport>& reports) {
    std::string out;
    for (const auto& report : reports) {
        if (!report.problem.empty())
            out += fmt::format("{}{}: {}", out.empty() ? "" : "; ", report.backend, report.problem);
        for (const auto& gpu : report.gpus)
            out += fmt::format("{}{} ({}){}", out.empty() ? "" : "; ", gpu.selector(), gpu.name,
                               gpu.refusal.empty() ? "" : ": " + gpu.refusal);
    }
    return out;
}

}  // namespace

std::vector<DriverEntry> all_drivers() {
    std::vector<DriverEntry> drivers;
    drivers.push_back({"cuda", make_cuda_driver()});
    drivers.push_back({"sim", make_sim_driver()});
    return drivers;
}

std::vector<BackendReport> survey(std::vector<DriverEntry>& drivers) {
    std::vector<BackendReport> reports;
    for (auto& entry : drivers) {
        BackendReport report{entry.backend, {}, {}};
        if (auto gpus = entry.driver->enumerate())
            report.gpus = std::move(*gpus);
        else
            report.problem = gpus.error().text();
        reports.push_back(std::move(report));
    }
    return reports;
}

Result<GpuInfo> select_gpu(const std::vector<BackendReport>& reports, std::string_view wanted,
                           SimFallback sim) {
    const bool automatic = wanted == "auto" || wanted.empty();
    const GpuInfo* best = nullptr;
    const GpuInfo* refused = nullptr;
    for (const auto& report : reports)
        for (const auto& gpu : report.gpus) {
            if (automatic ? gpu.kind == GpuKind::simulated : !names(gpu, wanted)) continue;
            if (!gpu.refusal.empty())
                refused = &gpu;
            else if (best == nullptr || gpu.free > best->free)
                best = &gpu;
        }
    if (best != nullptr) return *best;
    if (automatic && sim == SimFallback::allowed) return select_gpu(reports, "sim", SimFallback::never);
    if (refused != nullptr && !automatic)
        return Error{Errc::unavailable, 0,
                     fmt::format("GPU {} ({}) cannot be used: {}", refused->selector(), refused->name,
                                 refused->refusal)};
    for (const auto& report : reports)
        if (!report.problem.empty() && (wanted == report.backend || wanted.starts_with(report.backend + ":")))
            return Error{Errc::unavailable, 0,
                         fmt::format("GPU '{}' cannot be used: {}", wanted, report.problem)};
    const std::string hint = "Found: " + inventory(reports);
    if (automatic)
        return Error{Errc::unavailable, 0, "no usable GPU on this machine",
                     hint + ". `--gpu sim` simulates one in RAM, for trying out"};
    return Error{Errc::not_found, 0, fmt::format("no GPU '{}'", wanted), hint};
}

Result<std::vector<GpuInfo>> select_gpus(const std::vector<BackendReport>& reports, std::string_view wanted,
                                         SimFallback sim) {
    std::vector<GpuInfo> selected;
    for (std::size_t begin = 0; begin <= wanted.size();) {
        const std::size_t end = std::min(wanted.find(',', begin), wanted.size());
        const std::string_view one = wanted.substr(begin, end - begin);
        if (one.size() != wanted.size() && (one.empty() || one == "auto"))
            return Error{Errc::usage, 0, fmt::format("'{}' is no list of GPUs", wanted),
                         "Name each of several"};
        auto gpu = select_gpu(reports, one, sim);
        if (!gpu) return std::move(gpu).error();
        for (const GpuInfo& other : selected)
            if (other.selector() == gpu->selector())
                return Error{Errc::usage, 0,
                             fmt::format("GPU {} is named twice in '{}'", gpu->selector(), wanted),
                             "Name each once"};
        selected.push_back(std::move(*gpu));
        begin = end + 1;
    }
    return selected;
}

Result<std::unique_ptr<Backend>> open_gpu(std::vector<DriverEntry>& drivers, const GpuInfo& gpu) {
    for (auto& entry : drivers)
        if (entry.backend == gpu.backend) return entry.driver->open(gpu);
    return Error{Errc::not_found, 0, fmt::format("no backend '{}' in this binary", gpu.backend)};
}

}  // namespace vramswap
