// SPDX-License-Identifier: MIT
// The list of backends this binary has, and the choice of one GPU by the words a user writes. Control thread;
// enumerating loads vendor libraries and may take a second.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "gpu/backend.h"

namespace vramswap {

struct DriverEntry {
    std::string backend;  ///< "cuda", "sim"
    std::unique_ptr<Driver> driver;
};

/// Every backend of this binary, best first; sim is last.
[[nodiscard]] std::vector<DriverEntry> all_drivers();

/// What one backend found, for doctor.
struct BackendReport {
    std::string backend;
    std::vector<GpuInfo> gpus;
    std::string problem;  ///< why the interface is missing, with the remedy; empty if present
};
[[nodiscard]] std::vector<BackendReport> survey(std::vector<DriverEntry>& drivers);

/// Chooses by "auto", "sim", "cuda", "cuda:0", a UUID or its beginning, or a PCI id. auto takes the usable
/// real GPU with the most free memory and never sim (a simulated GPU is swapping RAM into RAM); auto_or_sim
/// falls back to it, for the demo. Errors: not_found (lists what there is), unavailable (the GPU's refusal).
enum class SimFallback : std::uint8_t { never, allowed };
Result<GpuInfo> select_gpu(const std::vector<BackendReport>& reports, std::string_view wanted,
                           SimFallback sim);

/// The same for several, separated by commas. Errors: also usage, for one that is named twice or not at all.
Result<std::vector<GpuInfo>> select_gpus(const std::vector<BackendReport>& reports, std::string_view wanted,
                                         SimFallback sim);

/// Opens the GPU with the driver that found it.
Result<std::unique_ptr<Backend>> open_gpu(std::vector<DriverEntry>& drivers, const GpuInfo& gpu);

}  // namespace vramswap
