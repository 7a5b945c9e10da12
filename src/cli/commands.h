// SPDX-License-Identifier: MIT
// The commands of vramswap(8): what each one is asked for, and the function that does it. Each runs in a
// process of its own, single-threaded, may block and allocate. They print to standard output, errors to
// standard error, and return the exit status: 0 done, 1 failed, 2 wrong usage, 77 cannot run on this machine.
// `yield --for` returns its command's, 126 and 127 if that cannot be run or is not there.
#pragma once

#include <string>
#include <vector>

#include "base/result.h"
#include "ctl/messages.h"

namespace vramswap {

inline constexpr int kExitDone = 0;
inline constexpr int kExitFailed = 1;
inline constexpr int kExitUsage = 2;
inline constexpr int kExitUnavailable = 77;

enum class Output : std::uint8_t { table, json };

struct UpOptions {
    std::string name = "vram0";
    std::string size = "80%";
    std::string gpu = "auto";
    std::string frontend = "auto";
    int priority = 32767;
    std::uint32_t threads = 0;
    std::string mode = "auto";
    std::string headroom;  ///< empty: chosen for the GPU
    std::string spill = "auto";
    std::string vram_max;  ///< empty: no ceiling
    std::string segment = "128M";
    std::string swap_rate_max;  ///< empty: no ceiling
    enum class Swapon : std::uint8_t { yes, no } swapon = Swapon::yes;
    enum class Run : std::uint8_t { real, dry } run = Run::real;
};
struct DownOptions {
    std::string name;  ///< empty: the only one there is
};
struct StatusOptions {
    std::string name;  ///< empty: all
    Output output = Output::table;
    std::string columns;  ///< comma-separated; empty: the usual ones
};
enum class Wait : std::uint8_t { yes, no };
struct ResizeOptions {
    std::string name;
    std::string vram;  ///< an amount, or auto
    std::string gpu;   ///< only there; empty: on all of the device's
    Wait wait = Wait::yes;
};
struct YieldOptions {
    std::string name;
    std::string vram = "0";  ///< that it may keep
    std::string gpu;         ///< only of this one; empty: of all of the device's
    enum class End : std::uint8_t { later, now } end = End::later;
    std::vector<std::string> command;  ///< for as long as it runs; empty: until the end is told
    Wait wait = Wait::yes;
};
struct TopOptions {
    std::string name;       ///< empty: all
    double interval_s = 1;  ///< between two looks
    enum class Frames : std::uint8_t { live, once } frames = Frames::live;
};
struct DoctorOptions {
    Output output = Output::table;
};
/// Of `bench --swap`.
struct SwapBenchOptions {
    std::vector<std::string> against{"zram", "file"};
    std::string data = "512M";
    std::string frontend = "auto";
    std::string file_folder = "/var/tmp";
};
struct BenchOptions {
    enum class Subject : std::uint8_t { store, swap } subject = Subject::store;
    BenchRequest request;
    SwapBenchOptions swap;
    Output output = Output::table;
    std::string plot_file;  ///< empty: no picture
};
struct DemoOptions {
    std::string gpu = "auto";
    std::string frontend = "auto";
    std::string size = "1G";
    std::string data = "512M";
    Output output = Output::table;
};

int run_up(const UpOptions& options);
int run_down(const DownOptions& options);
int run_status(const StatusOptions& options);
int run_resize(const ResizeOptions& options);
int run_yield(const YieldOptions& options);
int run_top(const TopOptions& options);
int run_doctor(const DoctorOptions& options);
int run_bench(const BenchOptions& options);
int run_swap_bench(const BenchOptions& options);
int run_demo(const DemoOptions& options);

/// Reads the command line and runs the command.
int run_command(int argc, char** argv);

/// "vramswap: …" with the hint on a line of its own; returns the exit status that belongs to the error.
int report(const Error& error);
/// Error unless the caller is root.
Result<void> require_root(const char* what);

}  // namespace vramswap
