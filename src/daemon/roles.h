// SPDX-License-Identifier: MIT
// The roles that this program plays besides its commands: each is the main function of a process of its own,
// started by sys/spawn.h with the descriptors named here. They return the exit status.
#pragma once

#include <string>
#include <vector>

namespace vramswap {

/// Names as first argument. Not for people; not in --help.
inline constexpr const char* kGuardianRole = "internal-guardian";
inline constexpr const char* kWorkerRole = "internal-worker";
inline constexpr const char* kProbeRole = "internal-probe";
inline constexpr const char* kSpillProbeRole = "internal-probe-spill";
inline constexpr const char* kBenchRole = "internal-bench";
inline constexpr const char* kAbandonRole = "internal-abandon";

/// Descriptors: 3 the held lock of the runtime directory, 4 a pipe for one line about success or failure, 5
/// the configuration (JSON in a memfd).
int run_guardian();
/// Descriptors: 3 the link to the guardian, 4 the configuration, 5 the lock, held as long as one of both
/// lives.
int run_worker();
/// Prints a Probe as JSON. Arguments: GPU wanted, "sim-allowed" or "sim-never", frontend wanted; "open-gpu"
/// to see whether it has mode turbo, or "leave-gpu".
int run_probe(const std::vector<std::string>& arguments);
/// Prints a ProbedSpill as JSON. Argument: a directory or block device.
int run_spill_probe(const std::vector<std::string>& arguments);
/// For a device that waits for a worker which will not come (abandon_device). Prints "done" or an error as
/// JSON, closes its output, and goes on for as long as the device needs it. Arguments: its path and its name.
int run_abandon(const std::vector<std::string>& arguments);
/// Prints bench results as JSON. Argument: a BenchRequest as JSON.
int run_store_bench(const std::vector<std::string>& arguments);

}  // namespace vramswap
