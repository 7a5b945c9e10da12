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
    std::string gpu;       ///< "cuda:0", "sim:0,sim:1"
    std::string frontend;  ///< "loop"
    std::uint32_t threads = 0;
    std::string mode = "auto";  ///< how small copies are made: auto, copy, turbo
    Bytes segment = mib(128);
    Bytes stage = mib(32);
    std::string headroom;  ///< kept free for others: "1.5G", "15%"; empty: chosen for this GPU
    std::string vram_max;  ///< never more VRAM of each GPU than this: "4G", "50%"; empty: what it has use for
    std::string spill;     ///< a directory or a block device; empty: none
    Bytes spill_size{};    ///< of the spill, at most
    Bytes swap_rate_max{};  ///< bytes/s of swap while others use the GPU; 0: no ceiling
};
[[nodiscard]] std::string to_json(const DeviceConfig& config);
[[nodiscard]] Result<DeviceConfig> parse_device_config(std::string_view text);

/// A process on the GPU that is not ours.
struct GpuProcess {
    pid_t pid = 0;
    std::string name;
    Bytes memory{};
};

/// What a device has on one GPU, and what its policy sees there.
struct GpuPart {
    std::string selector, name;
    Bytes vram{}, target{}, reserve{};  ///< as the device's
    Bytes total{}, free{}, others_memory{};
    int others_sm_percent = -1;
    std::string reason;
};

/// A device as `status` shows it. `state` is the worker's, or "worker-dead" as the guardian tells it.
struct DeviceStatus {
    std::string name;
    std::string state;    ///< starting, serving, armed, draining, restarting, worker-dead, stale
    std::string problem;  ///< what is wrong, in a sentence; empty if nothing is
    std::string device;   ///< "/dev/loop3"; empty before it is up
    std::string frontend;
    std::string gpu;  ///< selectors
    std::string gpu_name;
    std::vector<GpuPart> gpus;  ///< each; what stands below is of all together
    std::string mode;           ///< of copies: copy, turbo
    pid_t guardian_pid = 0;
    pid_t worker_pid = 0;
    std::uint64_t worker_deaths = 0;  ///< of workers before that one; counters begin with each
    Bytes size{}, stored{}, vram{}, dirty{}, ram{};
    std::uint64_t pages_read = 0, pages_written = 0, pages_discarded = 0, zero_pages_written = 0;
    std::uint64_t pages_read_stage = 0, pages_read_gpu = 0, pages_flushed = 0;
    std::uint64_t reread_pages = 0, read_errors = 0, writes_refused = 0, flush_errors = 0;
    // Where chunks are, and how they move.
    Bytes staged{};                   ///< images of the stage in use
    Bytes vram_target{};              ///< what the policy wants of VRAM
    Bytes segment{};                  ///< VRAM is taken and given back in pieces of this; 0: not told
    Bytes spilled{};                  ///< chunks whose home is the spill
    Bytes spill_capacity{};           ///< 0: there is no spill
    Bytes spill_on_disk{};            ///< taken from the disk now
    std::string spill_place;          ///< directory or block device
    std::string spill_problem;        ///< what is wrong with it, in sentences
    Bytes moved_out{}, moved_back{};  ///< VRAM to spill and back, since the start
    Bytes compacted{};                ///< moved within VRAM
    std::uint64_t compacting_ns = 0;  ///< during which that went on
    std::uint64_t pages_read_spill = 0;
    std::uint64_t pages_written_spill = 0;
    std::uint64_t move_errors = 0;
    // What the policy sees and does.
    std::string reason;               ///< why the target is what it is, a line for people
    std::string set_by_hand;          ///< "resize 4G", "yield", "yield 2G"; empty: the policy decides alone
    Bytes reserve{};                  ///< what it wants to see free on the GPU
    std::uint64_t move_rate_max = 0;  ///< bytes/s it allows for moves; 2^64-1: no limit
    Bytes gpu_total{}, gpu_free{};
    Bytes others_memory{};       ///< of all other processes on the GPU
    int others_sm_percent = -1;  ///< of the time with a kernel running, on the busiest; -1: not known
    std::string power;           ///< mains, battery, unknown
    std::vector<GpuProcess> gpu_processes;
    /// How many requests that had to wait for a copy took so long: entry n counts those of 2^(n/2) to
    /// 2^((n+1)/2) nanoseconds.
    std::vector<std::uint64_t> read_latency, write_latency;
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
    std::vector<ProbedPart> frontends;       ///< best first
    std::vector<std::string> selected_gpus;  ///< selectors, if any were asked for and found
    std::string selected_frontend;
    Error problem{};  ///< why nothing was selected; message empty if it was
};
[[nodiscard]] std::string to_json(const Probe& probe);
[[nodiscard]] Result<Probe> parse_probe(std::string_view text);

/// What a place could do as a spill, as a process of its own found it.
struct ProbedSpill {
    std::string path;
    bool is_device = false;
    Bytes room{};        ///< that a spill could have there now; a tenth of a disk stays free
    std::string remark;  ///< what users should know though it works
    Error problem{};     ///< why it is not fit; message empty if it is
};
[[nodiscard]] std::string to_json(const ProbedSpill& spill);
[[nodiscard]] Result<ProbedSpill> parse_probed_spill(std::string_view text);

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
