// SPDX-License-Identifier: MIT
// `vramswap yield`: VRAM for somebody else, until told otherwise or for as long as a command runs.
//
// The command takes this process's place (exec), which the worker waits for: so its exit status, its signals
// and its terminal are its own, and whatever way it ends, VRAM may be taken again.
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <optional>

#include "base/clock.h"
#include "cli/by_hand.h"
#include "cli/commands.h"
#include "cli/launch.h"

namespace vramswap {
namespace {

using Op = ControlRequest::Op;

/// As env(1), nice(1) and the shell have it.
constexpr int kExitNotExecutable = 126;
constexpr int kExitNoCommand = 127;

/// As execvp would find it. Errors: not_found, failed.
Result<void> check_command(const std::string& name) {
    const auto executable = [](const std::string& path) { return ::access(path.c_str(), X_OK) == 0; };
    if (name.find('/') != std::string::npos) {
        if (executable(name)) return {};
        Error error = sys_error(fmt::format("cannot run {}", name), "Nothing was yielded");
        error.code = error.sys == ENOENT ? Errc::not_found : Errc::failed;
        return error;
    }
    const char* path = std::getenv("PATH");
    std::string_view rest = path == nullptr ? "/usr/bin:/bin" : path;
    while (!rest.empty()) {
        const auto colon = rest.find(':');
        const std::string folder(rest.substr(0, colon));
        if (executable(fmt::format("{}/{}", folder.empty() ? "." : folder, name))) return {};
        rest = colon == std::string_view::npos ? std::string_view{} : rest.substr(colon + 1);
    }
    return Error{Errc::not_found, 0, fmt::format("there is no command '{}' in $PATH", name),
                 "Nothing was yielded"};
}

int report_command(const Error& error) {
    (void)report(error);
    return error.code == Errc::not_found ? kExitNoCommand : kExitNotExecutable;
}

/// Comes back only if that failed.
int become(std::vector<std::string> command) {
    std::vector<char*> argv;
    for (auto& word : command) argv.push_back(word.data());
    argv.push_back(nullptr);
    std::fflush(nullptr);
    ::signal(SIGPIPE, SIG_DFL);  // ignored by our commands, not by others
    ::execvp(argv[0], argv.data());
    Error error = sys_error(fmt::format("cannot run {}", command[0]), "VRAM may be taken again");
    error.code = error.sys == ENOENT ? Errc::not_found : Errc::failed;
    return report_command(error);
}

int end_by_hand(const std::string& name) {
    if (auto asked = ask_device(name, {Op::yield}); !asked) return report(asked.error());
    fmt::print("{} may take VRAM again\n", name);
    return kExitDone;
}

class Yielding {
  public:
    Yielding(const YieldOptions& options, const DeviceStatus& before) : options_(options), before_(before) {}

    int run() {
        const auto most = parse_vram(options_.vram, before_);
        if (!most) return report(most.error());
        if (for_command())
            if (auto found = check_command(options_.command[0]); !found) return report_command(found.error());
        // With a command an interrupt ends us, and with us the yield. Without one it only ends the waiting.
        if (!for_command()) interrupts_.emplace();
        MoveWatch watch(MoveWatch::Goal::at_most, *most, before_, now_ns());
        if (auto asked = ask_device(options_.name, {Op::yield, *most, holder(), options_.gpu}); !asked)
            return report(asked.error());
        if (auto given = wait(watch); !given) return give_up(given.error());
        tell(watch, *most);
        return for_command() ? become(options_.command) : kExitDone;
    }

  private:
    [[nodiscard]] bool for_command() const { return !options_.command.empty(); }
    [[nodiscard]] pid_t holder() const { return for_command() ? ::getpid() : 0; }

    Result<void> wait(MoveWatch& watch) {
        if (options_.wait == Wait::no) return {};
        return follow_move(options_.name, options_.gpu, watch, interrupts_ ? &*interrupts_ : nullptr);
    }

    int give_up(const Error& error) {
        const int status = report(error);
        if (!for_command()) {
            fmt::print(stderr, "  It stays asked for until `vramswap yield {} --end`\n", options_.name);
            return status;
        }
        (void)ask_device(options_.name, {Op::yield, {}, holder()});  // ends with us anyway
        fmt::print(stderr, "  {} was not started; --no-wait starts it in any case\n", options_.command[0]);
        return status;
    }

    /// Standard output is the command's.
    void tell(const MoveWatch& watch, Bytes most) const {
        std::FILE* const out = for_command() ? stderr : stdout;
        if (options_.wait == Wait::no)
            fmt::print(out, "{} was told to hold no more than {} of VRAM", options_.name, format_size(most));
        else
            fmt::print(out, "{} {} and holds {}", options_.name, watch.account(), format_size(watch.vram()));
        if (for_command())
            fmt::print(out, "\n");
        else
            fmt::print(out, "; no more until `vramswap yield {} --end`\n", options_.name);
    }

    const YieldOptions& options_;
    const DeviceStatus& before_;
    std::optional<Interrupts> interrupts_;
};

}  // namespace

int run_yield(const YieldOptions& options) {
    if (auto root = require_root("`vramswap yield`"); !root) return report(root.error());
    const auto before = device_on(options.name, options.gpu);
    if (!before) return report(before.error());
    if (options.end == YieldOptions::End::now) return end_by_hand(options.name);
    return Yielding(options, *before).run();
}

}  // namespace vramswap
