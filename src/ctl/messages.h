// SPDX-License-Identifier: MIT
// What commands, guardian and worker tell each other, as JSON texts: the configuration of a device, its
// status, and the answers of the control socket. Values and pure conversions; control threads only (they
// allocate).
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "base/units.h"

namespace vramswap {

/// Everything a worker needs to bring a device up; resolved by the command (no "auto", no percentages).
struct DeviceConfig {
    std::string name;
    Bytes size{};
    std::string gpu;       ///< "cuda:0", "sim:0"
    std::string frontend;  ///< "loop"
    std::uint32_t threads = 0;
    std::string mode = "copy";  ///< how small copies are made: copy, turbo
    Bytes segment = mib(128);
    Bytes stage = mib(32);
};
[[nodiscard]] std::string to_json(const DeviceConfig& config);
[[nodiscard]] Result<DeviceConfig> parse_device_config(std::string_view text);

/// A device as `status` shows it. `state` is the worker's, or "worker-dead" as the guardian tells it.
struct DeviceStatus {
    std::string name;
    std::string state;    ///< starting, serving, armed, draining, worker-dead, stale
    std::string problem;  ///< what is wrong, in a sentence; empty if nothing is
    std::string device;   ///< "/dev/loop3"; empty before it is up
    std::string frontend;
    std::string gpu;  ///< selector
    std::string gpu_name;
    std::string mode;  ///< of copies: copy, turbo
    pid_t guardian_pid = 0;
    pid_t worker_pid = 0;
    Bytes size{}, stored{}, vram{}, dirty{}, ram{};
    std::uint64_t pages_read = 0, pages_written = 0, pages_discarded = 0, zero_pages_written = 0;
    std::uint64_t pages_read_stage = 0, pages_read_gpu = 0, pages_flushed = 0;
    std::uint64_t reread_pages = 0, read_errors = 0, writes_refused = 0, flush_errors = 0;
    bool swap = false;  ///< filled by the command from /proc/swaps, like the next two
    Bytes swap_used{};
    int priority = 0;
};
[[nodiscard]] std::string to_json(const DeviceStatus& status);
[[nodiscard]] Result<DeviceStatus> parse_device_status(std::string_view text);

/// What this machine has, as the probe process found it.
struct ProbedGpu {
    std::string selector, backend, name, uuid, pci, driver, kind, refusal;
    Bytes total{}, free{};
    bool display_attached = false;
};
struct ProbedPart {
    std::string name;     ///< backend or frontend
    std::string problem;  ///< empty if usable
};
struct Probe {
    std::vector<ProbedGpu> gpus;
    std::vector<ProbedPart> backends;
    std::vector<ProbedPart> frontends;  ///< best first
    std::string selected_gpu;           ///< selector, if one was asked for and found
    std::string selected_frontend;
    Error problem{};  ///< why nothing was selected; message empty if it was
};
[[nodiscard]] std::string to_json(const Probe& probe);
[[nodiscard]] Result<Probe> parse_probe(std::string_view text);

/// What `bench` asks the process that measures.
struct BenchRequest {
    std::string gpu = "auto";
    double seconds = 1.0;           ///< for each measurement
    std::string mode = "both";      ///< copy, turbo, both
    std::string extent = "full";    ///< quick, full
    std::uint32_t threads = 0;      ///< 0 = chosen
    std::int32_t mergers = -1;      ///< threads that complete images; -1 = chosen
    std::vector<std::string> only;  ///< names of measurements; empty = all
};
[[nodiscard]] std::string to_json(const BenchRequest& request);
[[nodiscard]] Result<BenchRequest> parse_bench_request(std::string_view text);

/// An Error as {"error": {...}}; parse_error gives it back, `fallback` if the text is no such object.
[[nodiscard]] std::string error_json(const Error& error);
[[nodiscard]] Error parse_error(std::string_view text, std::string_view fallback);
/// True if the text is an error object.
[[nodiscard]] bool is_error_json(std::string_view text);

}  // namespace vramswap
