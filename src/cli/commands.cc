// SPDX-License-Identifier: MIT
#include "cli/commands.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <csignal>
#include <cstdio>
#include <string_view>

#include "sys/process.h"
#include "sys/swap_area.h"

namespace vramswap {
namespace {

template <typename Options>
void add_json(CLI::App& command, Options& options) {
    command.add_flag_callback(
        "--json", [&options] { options.output = Output::json; }, "Print JSON");
}

/// What `up` is told of giving VRAM back.
void add_elastic(CLI::App& c, UpOptions& o) {
    c.add_option(
        "--headroom", o.headroom,
        "VRAM kept free for others, such as 1.5G or 15% of the GPU's; chosen for the GPU if left out");
    c.add_option(
         "--spill", o.spill,
         "Where pages go when VRAM is given back: auto (a file in /var/lib/vramswap, if the disk can), "
         "none, or a directory or block device with an optional size, PATH[:SIZE]")
        ->capture_default_str();
    c.add_option("--vram-max", o.vram_max, "Never more VRAM of each GPU than this, such as 4G or 50%");
    c.add_option("--segment", o.segment, "VRAM is taken and given back in pieces of this, a multiple of 2M")
        ->capture_default_str();
    c.add_option("--swap-rate-max", o.swap_rate_max,
                 "Bytes a second of swap while others use the GPU, such as 500M; no ceiling if left out");
}

void add_up(CLI::App& app, UpOptions& o, int& exit_status) {
    CLI::App* c = app.add_subcommand("up", "Bring a device up and use it as swap");
    c->add_option("NAME", o.name, "Name of the device")->capture_default_str();
    c->add_option("--size", o.size, "Size, such as 6G, or 80% of the VRAM that is free")
        ->capture_default_str();
    c->add_option(
         "--gpu", o.gpu,
         "auto, cuda, cuda:0, a UUID, a PCI id, or sim; several, with commas, for one device over them")
        ->capture_default_str();
    c->add_option("--frontend", o.frontend, "auto, ublk, nbd, loop")->capture_default_str();
    c->add_option("--priority", o.priority, "Swap priority, 0 to 32767")
        ->check(CLI::Range(0, kSwapPriorityMax))
        ->capture_default_str();
    c->add_option("--threads", o.threads, "I/O threads; 0 = chosen")
        ->check(CLI::Range(0, 64))
        ->capture_default_str();
    c->add_option("--mode", o.mode,
                  "How small copies are made: copy (others on the GPU hardly notice), turbo (many times "
                  "faster, and takes up to a third of others' compute while it runs), or auto: turbo while "
                  "nobody else uses the GPU")
        ->check(CLI::IsMember({"auto", "copy", "turbo"}))
        ->capture_default_str();
    add_elastic(*c, o);
    c->add_flag_callback(
        "--no-swapon", [&o] { o.swapon = UpOptions::Swapon::no; }, "Only the block device");
    c->add_flag_callback(
        "--dry-run", [&o] { o.run = UpOptions::Run::dry; }, "Show what would be done");
    c->callback([&] { exit_status = run_up(o); });
}

void add_down(CLI::App& app, DownOptions& o, int& exit_status) {
    CLI::App* c = app.add_subcommand("down", "Swap a device off and take it down");
    c->add_option("NAME", o.name, "Name of the device; may be left out if there is one");
    c->callback([&] { exit_status = run_down(o); });
}

void add_no_wait(CLI::App& command, Wait& wait, const char* meaning) {
    command.add_flag_callback(
        "--no-wait", [&wait] { wait = Wait::no; }, meaning);
}

void add_resize(CLI::App& app, ResizeOptions& o, int& exit_status) {
    CLI::App* c = app.add_subcommand("resize", "Set by hand how much VRAM a device holds");
    c->add_option("NAME", o.name, "Name of the device")->required();
    c->add_option("SIZE", o.vram,
                  "VRAM to hold, rounded up to segments: 4G, 50% of the device's size, 0; or auto: "
                  "the policy decides again")
        ->required();
    c->add_option("--gpu", o.gpu, "Only on this GPU of a device over several, such as cuda:1");
    add_no_wait(*c, o.wait, "Do not wait until it is done");
    c->callback([&] { exit_status = run_resize(o); });
}

void add_yield(CLI::App& app, YieldOptions& o, int& exit_status) {
    CLI::App* c = app.add_subcommand("yield", "Give a device's VRAM to others, for a while");
    c->add_option("NAME", o.name, "Name of the device")->required();
    CLI::Option* size = c->add_option("SIZE", o.vram, "VRAM that it may keep: 1G, 10% of the device's size")
                            ->capture_default_str();
    CLI::Option* end = c->add_flag_callback(
        "--end", [&o] { o.end = YieldOptions::End::now; }, "It may take VRAM again");
    // What follows is cut off before this is parsed.
    CLI::Option* command = c->add_flag_callback(
        "--for", [] {},
        "COMMAND...: run it, with all that follows as its arguments, and end with it; the exit "
        "status is the command's");
    CLI::Option* gpu =
        c->add_option("--gpu", o.gpu, "Only of this GPU of a device over several, such as cuda:1");
    end->excludes(size)->excludes(command)->excludes(gpu);
    add_no_wait(*c, o.wait, "Do not wait until VRAM is given back; with --for, start the command at once");
    c->callback([&o, command, &exit_status] {
        if (command->count() != 0 && o.command.empty())
            exit_status = report({Errc::usage, 0, "--for has no command",
                                  "Write the command and its arguments after --for, at the end"});
        else
            exit_status = run_yield(o);
    });
}

/// `yield … --for COMMAND...`: what follows is another program's, whatever it looks like.
std::vector<std::string> cut_command(int& argc, char** argv) {
    if (argc < 2 || std::string_view(argv[1]) != "yield") return {};
    char** const end = argv + argc;
    char** const found = std::find(argv + 2, end, std::string_view("--for"));
    if (found == end) return {};
    argc = static_cast<int>(found - argv) + 1;
    return {found + 1, end};
}

void add_status(CLI::App& app, StatusOptions& o, int& exit_status) {
    CLI::App* c = app.add_subcommand("status", "Show the devices");
    c->add_option("NAME", o.name, "Only this device");
    c->add_option("-o,--output", o.columns, "Columns, comma-separated; `-o help` lists them");
    add_json(*c, o);
    c->callback([&] { exit_status = run_status(o); });
}

void add_top(CLI::App& app, TopOptions& o, int& exit_status) {
    CLI::App* c = app.add_subcommand("top", "Watch the devices");
    c->add_option("NAME", o.name, "Only this device");
    c->add_option("--interval", o.interval_s, "Seconds between two looks")
        ->check(CLI::Range(0.1, 60.0))
        ->capture_default_str();
    c->add_flag_callback(
        "--once", [&o] { o.frames = TopOptions::Frames::once; }, "Print one frame as plain text");
    c->callback([&] { exit_status = run_top(o); });
}

void add_doctor(CLI::App& app, DoctorOptions& o, int& exit_status) {
    CLI::App* c = app.add_subcommand("doctor", "Say what this machine can do and what stands in the way");
    add_json(*c, o);
    c->callback([&] { exit_status = run_doctor(o); });
}

void add_bench(CLI::App& app, BenchOptions& o, int& exit_status) {
    CLI::App* c = app.add_subcommand("bench", "Measure the store beside the GPU's own ceiling");
    BenchRequest& r = o.request;
    c->add_option("--gpu", r.gpu, "auto, cuda, cuda:0, a UUID, a PCI id, or sim")->capture_default_str();
    c->add_option("--seconds", r.seconds, "For each measurement")
        ->check(CLI::Range(0.05, 60.0))
        ->capture_default_str();
    c->add_option("--mode", r.mode, "How small copies are made: copy, turbo, both")
        ->check(CLI::IsMember({"copy", "turbo", "both"}))
        ->capture_default_str();
    c->add_option("--threads", r.threads, "Threads of the jobs with many; 0 = one for each CPU, at most 8")
        ->check(CLI::Range(0, 64))
        ->capture_default_str();
    c->add_option("--mergers", r.mergers,
                  "Threads that complete half-full images; 0 = the flusher's own, -1 = as many as `up` takes")
        ->check(CLI::Range(-1, 4))
        ->capture_default_str();
    c->add_option("--only", r.only, "Only these measurements, comma-separated")->delimiter(',');
    c->add_flag_callback(
        "--quick", [&r] { r.extent = "quick"; }, "Without the sweeps over block size and depth");
    CLI::Option* swap = c->add_flag_callback(
        "--swap", [&o] { o.subject = BenchOptions::Subject::swap; },
        "Measure the whole way through the kernel instead, and the same for other swap on this machine");
    for (const char* of_the_store : {"--seconds", "--mode", "--threads", "--mergers", "--only", "--quick"})
        swap->excludes(c->get_option(of_the_store));
    c->add_option("--against", o.swap.against, "With --swap: zram, file, both, comma-separated, or none")
        ->delimiter(',')
        ->check(CLI::IsMember({"zram", "file", "none"}))
        ->needs(swap)
        ->capture_default_str();
    c->add_option("--data", o.swap.data, "With --swap: how much memory is written and read back")
        ->needs(swap)
        ->capture_default_str();
    c->add_option("--frontend", o.swap.frontend, "With --swap: auto, ublk, nbd, loop")
        ->needs(swap)
        ->capture_default_str();
    c->add_option("--file-in", o.swap.file_folder, "With --swap: the folder of the swap file, on a disk")
        ->needs(swap)
        ->capture_default_str();
    c->add_option("--plot", o.plot_file, "Also draw the results into this file (SVG)");
    add_json(*c, o);
    c->callback([&] {
        std::erase(o.swap.against, "none");
        exit_status = o.subject == BenchOptions::Subject::swap ? run_swap_bench(o) : run_bench(o);
    });
}

void add_demo(CLI::App& app, DemoOptions& o, int& exit_status) {
    CLI::App* c =
        app.add_subcommand("demo", "Swap real memory to the GPU and back, check every byte, clean up");
    c->add_option("--gpu", o.gpu, "auto (sim if there is no GPU), cuda:0, sim, ...")->capture_default_str();
    c->add_option("--frontend", o.frontend, "auto, ublk, nbd, loop")->capture_default_str();
    c->add_option("--size", o.size, "Of the device")->capture_default_str();
    c->add_option("--data", o.data, "How much memory is written and read back")->capture_default_str();
    add_json(*c, o);
    c->callback([&] { exit_status = run_demo(o); });
}

}  // namespace

int report(const Error& error) {
    Error without_hint = error;
    without_hint.hint.clear();
    fmt::print(stderr, "vramswap: {}\n", without_hint.text());
    if (!error.hint.empty()) fmt::print(stderr, "  {}\n", error.hint);
    switch (error.code) {
        case Errc::usage:
            return kExitUsage;
        case Errc::unavailable:
            return kExitUnavailable;
        default:
            return kExitFailed;
    }
}

Result<void> require_root(const char* what) {
    if (is_root()) return {};
    return Error{Errc::failed, 0, fmt::format("{} needs root", what), "Run it with sudo"};
}

int run_command(int argc, char** argv) {
    // A process at the other end of a pipe that died is an error to report, not a reason to die without
    // cleaning up.
    ::signal(SIGPIPE, SIG_IGN);
    CLI::App app{"Idle GPU memory as a Linux swap device", "vramswap"};
    app.require_subcommand(1);
    app.set_version_flag("--version", "vramswap " VRAMSWAP_VERSION);
    int exit_status = kExitDone;
    UpOptions up;
    DownOptions down;
    StatusOptions status;
    ResizeOptions resize;
    YieldOptions yield;
    yield.command = cut_command(argc, argv);
    TopOptions top;
    DoctorOptions doctor;
    BenchOptions bench;
    DemoOptions demo;
    add_up(app, up, exit_status);
    add_down(app, down, exit_status);
    add_status(app, status, exit_status);
    add_resize(app, resize, exit_status);
    add_yield(app, yield, exit_status);
    add_top(app, top, exit_status);
    add_doctor(app, doctor, exit_status);
    add_bench(app, bench, exit_status);
    add_demo(app, demo, exit_status);
    try {
        app.parse(argc, argv);
    } catch (const CLI::ParseError& e) {
        return app.exit(e) == 0 ? kExitDone : kExitUsage;
    } catch (const std::exception& e) {
        return report({Errc::failed, 0, e.what()});
    }
    return exit_status;
}

}  // namespace vramswap
