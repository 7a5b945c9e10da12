// SPDX-License-Identifier: MIT
#include <fmt/format.h>
#include <langinfo.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <clocale>
#include <csignal>
#include <cstdlib>
#include <string_view>

#include "base/clock.h"
#include "base/unique_fd.h"
#include "cli/commands.h"
#include "cli/launch.h"
#include "cli/top_model.h"
#include "cli/top_screen.h"
#include "cli/top_view.h"
#include "ctl/runtime_dir.h"
#include "sys/process.h"

namespace vramswap {
namespace {

/// Longer than a worker that is only busy needs; keys wait for so long behind one that hangs.
constexpr int kAnswerMs = 1000;

/// What ends the view, and changes of the window's size, as a descriptor: nothing passes the place where the
/// terminal is put back.
UniqueFd block_signals() {
    sigset_t set;
    sigemptyset(&set);
    for (const int s : {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGWINCH}) sigaddset(&set, s);
    sigprocmask(SIG_BLOCK, &set, nullptr);
    return UniqueFd(::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
}

enum class Event : std::uint8_t { none, window, end };

Event next_signal(const UniqueFd& signals) {
    signalfd_siginfo info{};
    if (::read(signals.get(), &info, sizeof info) != static_cast<ssize_t>(sizeof info)) return Event::none;
    return info.ssi_signo == SIGWINCH ? Event::window : Event::end;
}

int ms_until(std::uint64_t when_ns) {
    const std::uint64_t now = now_ns();
    return now >= when_ns ? 0 : static_cast<int>((when_ns - now) / 1'000'000 + 1);
}

std::uint64_t as_ns(double seconds) {
    return static_cast<std::uint64_t>(seconds * 1e9);
}

Charset charset_of_locale() {
    return std::string_view(::nl_langinfo(CODESET)) == "UTF-8" ? Charset::utf8 : Charset::ascii;
}

/// https://no-color.org
Colours wanted_colours() {
    const char* no = std::getenv("NO_COLOR");
    return no != nullptr && *no != '\0' ? Colours::none : Colours::if_any;
}

/// Of a terminal, else as $COLUMNS says.
std::size_t plain_columns() {
    constexpr std::size_t kColumns = 80, kColumnsMin = 20;
    winsize window{};
    if (::ioctl(STDOUT_FILENO, TIOCGWINSZ, &window) == 0 && window.ws_col > 0)
        return std::max<std::size_t>(kColumnsMin, window.ws_col);
    const char* text = std::getenv("COLUMNS");
    std::size_t columns = kColumns;
    if (text != nullptr) {
        const std::string_view digits(text);
        std::from_chars(digits.data(), digits.data() + digits.size(), columns);
    }
    return std::clamp<std::size_t>(columns, kColumnsMin, 1000);
}

class Top {
  public:
    explicit Top(const TopOptions& options) : name_(options.name), signals_(block_signals()) {
        state_.interval_s = options.interval_s;
    }

    /// Errors: not_found, if the device that was named is not there; the first time only, from then on it is
    /// shown as gone.
    Result<void> sample() {
        std::vector<DeviceStatus> devices;
        for (const auto& name : name_.empty() ? list_names() : std::vector<std::string>{name_}) {
            auto status = device_status(name, kAnswerMs);
            if (status)
                devices.push_back(std::move(*status));
            else if (!name_.empty() && !sampled_)
                return std::move(status).error();
        }
        sampled_ = true;
        model_.add(now_ns(), std::move(devices));
        return {};
    }

    /// REQUIRES, as watch: a sample. One frame, with the rates of one interval.
    int print_once() {
        if (!model_.devices().empty()) {
            if (!wait_out_interval()) return kExitFailed;
            (void)sample();
        }
        for (const StyledLine& line : draw_plain(model_, plain_columns(), charset_)) {
            std::string text = line.text();
            text.erase(text.find_last_not_of(' ') + 1);
            fmt::print("{}\n", text);
        }
        return kExitDone;
    }

    int watch(TopScreen& screen) {
        std::uint64_t next_ns = now_ns() + as_ns(state_.interval_s);
        while (state_.run != TopState::Run::ended) {
            screen.show(draw_screen(model_, state_, screen.size(), charset_));
            if (!wait_for_events(state_.run == TopState::Run::paused ? -1 : ms_until(next_ns))) break;
            const double interval_s = state_.interval_s;
            const TopState::Run run = state_.run;
            for (TopKey key = screen.key(); key != TopKey::none; key = screen.key())
                state_ = pressed(state_, key, model_);
            if (state_.interval_s != interval_s || state_.run != run) next_ns = now_ns();
            if (state_.run != TopState::Run::live || now_ns() < next_ns) continue;
            (void)sample();
            next_ns = std::max(next_ns + as_ns(state_.interval_s), now_ns());
        }
        return kExitDone;
    }

  private:
    /// False at the end: a signal, or the terminal is gone.
    bool wait_for_events(int timeout_ms) {
        std::array<pollfd, 2> events{pollfd{STDIN_FILENO, POLLIN, 0}, pollfd{signals_.get(), POLLIN, 0}};
        ::poll(events.data(), events.size(), timeout_ms);
        for (Event event = next_signal(signals_); event != Event::none; event = next_signal(signals_))
            if (event == Event::end) return false;
        return (events[0].revents & (POLLHUP | POLLERR | POLLNVAL)) == 0;
    }

    /// False if a signal came.
    bool wait_out_interval() {
        const std::uint64_t end_ns = now_ns() + as_ns(state_.interval_s);
        while (now_ns() < end_ns) {
            pollfd event{signals_.get(), POLLIN, 0};
            ::poll(&event, 1, ms_until(end_ns));
            if (next_signal(signals_) == Event::end) return false;
        }
        return true;
    }

    const std::string name_;
    const UniqueFd signals_;
    const Charset charset_ = charset_of_locale();
    bool sampled_ = false;
    TopModel model_;
    TopState state_;
};

}  // namespace

int run_top(const TopOptions& options) {
    if (!is_root())
        return report({Errc::failed, 0, "`vramswap top` needs root: the devices' control sockets are root's",
                       "Run it with sudo"});
    if (!options.name.empty())
        if (auto fine = check_name(options.name); !fine) return report(fine.error());
    ::setlocale(LC_CTYPE, "");
    Top top(options);
    if (auto sampled = top.sample(); !sampled) return report(sampled.error());
    const bool terminal = ::isatty(STDIN_FILENO) == 1 && ::isatty(STDOUT_FILENO) == 1;
    if (options.frames == TopOptions::Frames::once || !terminal) return top.print_once();
    auto screen = TopScreen::open(wanted_colours());
    if (screen) return top.watch(**screen);
    report(screen.error());
    fmt::print(stderr, "  One frame, as --once prints it:\n\n");
    return top.print_once();
}

}  // namespace vramswap
