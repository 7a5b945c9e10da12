// SPDX-License-Identifier: MIT
// The guardian: a small process without any GPU library that starts the worker, keeps the descriptors its
// state lives in, notices its death and starts another, which takes over. It listens on nothing.
#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstring>

#include "base/clock.h"
#include "base/log.h"
#include "ctl/messages.h"
#include "ctl/runtime_dir.h"
#include "daemon/guardian_link.h"
#include "daemon/roles.h"
#include "sys/process.h"
#include "sys/spawn.h"

namespace vramswap {
namespace {

constexpr int kLockFd = 3;
constexpr int kReportFd = 4;
constexpr int kConfigFd = 5;

/// kFrontDeviceKey has the lower number and goes last: a loop device without another user writes its cache
/// out to the FUSE file when it is closed, which nobody answers any more. So the FUSE descriptor has to be
/// closed before (loop_device.h).
constexpr int kOthersFrom = 64;

/// Descriptors by key, in a fixed table: state, stage, and a segment each for up to 1 TiB in segments of 128
/// MiB.
class KeptFds {
  public:
    bool keep(std::string_view key, UniqueFd fd) {
        if (fd && key != kFrontDeviceKey) fd.reset(::fcntl(fd.get(), F_DUPFD_CLOEXEC, kOthersFrom));
        Entry* e = find(key);
        if (e == nullptr) e = find({});
        if (e == nullptr || key.empty() || key.size() >= e->key.size() || !fd) return false;
        e->key.fill('\0');
        std::copy_n(key.data(), key.size(), e->key.data());
        e->fd = std::move(fd);
        return true;
    }
    bool drop(std::string_view key) {
        Entry* e = key.empty() ? nullptr : find(key);
        if (e == nullptr) return false;
        e->key.fill('\0');
        e->fd.reset();
        return true;
    }
    void drop_all() {
        for (Entry& e : entries_)
            if (kFrontDeviceKey != e.key.data()) e = Entry{};
        drop(kFrontDeviceKey);
    }
    [[nodiscard]] bool has(std::string_view key) { return find(key) != nullptr; }
    /// visit(key, descriptor) for each, until it says no.
    template <typename Visit>
    void for_each(Visit visit) const {
        for (const Entry& e : entries_)
            if (e.fd.valid() && !visit(std::string_view(e.key.data()), e.fd.get())) return;
    }

  private:
    struct Entry {
        std::array<char, 32> key{};
        UniqueFd fd;
    };
    Entry* find(std::string_view key) {
        const auto it = std::ranges::find_if(entries_, [key](const Entry& e) { return key == e.key.data(); });
        return it == entries_.end() ? nullptr : &*it;
    }
    std::array<Entry, 8448> entries_{};
};

class Guardian {
    /// A worker that has served so long was a good one.
    static constexpr std::uint64_t kLongServiceNs = 100'000'000;
    /// With pauses that double up to 3.2 s between them: about half a minute.
    static constexpr std::uint32_t kDeathsInRowMax = 12;
    static constexpr std::uint64_t kPauseNs = 50'000'000;
    /// So long a killed process may take to end.
    static constexpr std::uint64_t kDyingNs = 1'000'000'000;
    static constexpr int kAbandonTimeoutMs = 70'000;

  public:
    Guardian(DeviceConfig config, DeviceDir dir) : config_(std::move(config)), dir_(std::move(dir)) {}

    int run() {
        if (auto watched = watch_signals(); !watched) return fail(watched.error());
        if (auto started = start_worker(); !started) return fail(started.error());
        write_state("starting", "");
        while (!finished_) wait_for_event();
        kept_.drop_all();
        remove_dir(dir_);
        return exit_status_;
    }

  private:
    Result<void> start_worker() {
        auto ends = make_link();
        if (!ends) return std::move(ends).error();
        auto pid = spawn_self(
            {{kWorkerRole, config_.name}, {ends->worker.get(), kConfigFd, kLockFd}, SpawnSession::same, -1});
        if (!pid) return std::move(pid).error();
        ends->worker.reset();  // or its end would never be seen
        link_ = std::move(ends->guardian);
        worker_ = *pid;
        hand_over();
        return {};
    }

    /// It reads all of it before it does anything else. All or nothing: without a part it would take the rest
    /// for all that there is. Its death is told by SIGCHLD.
    void hand_over() {
        bool complete = true;
        kept_.for_each([&](std::string_view key, int fd) {
            const auto message = LinkMessage::make(LinkMessage::Kind::held, key, {});
            complete = static_cast<bool>(send_message(link_.get(), message, fd));
            return complete;
        });
        const auto go = LinkMessage::make(LinkMessage::Kind::go, {}, fmt::format("{}", deaths_));
        if (!complete || !send_message(link_.get(), go, -1)) ::kill(worker_, SIGKILL);
    }

    Result<void> watch_signals() {
        sigset_t set;
        sigemptyset(&set);
        for (const int s : {SIGCHLD, SIGTERM, SIGINT, SIGHUP}) sigaddset(&set, s);
        if (sigprocmask(SIG_BLOCK, &set, nullptr) != 0) return sys_error("cannot block signals");
        signals_.reset(::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
        if (!signals_) return sys_error("cannot make a signalfd");
        return {};
    }

    void wait_for_event() {
        std::array<pollfd, 2> events{pollfd{signals_.get(), POLLIN, 0}, pollfd{link_.get(), POLLIN, 0}};
        const nfds_t watched = link_.valid() ? 2 : 1;
        if (::poll(events.data(), watched, ms_to_restart()) < 0) return;
        if (restart_at_ns_ != 0 && now_ns() >= restart_at_ns_) restart_worker();
        if (watched == 2 && events[1].revents != 0) serve_worker();
        if (events[0].revents != 0) take_signal();
    }

    void take_signal() {
        signalfd_siginfo info{};
        while (::read(signals_.get(), &info, sizeof info) == static_cast<ssize_t>(sizeof info)) {
            reap_worker();  // also before another signal: it may have died just before
            if (info.ssi_signo != SIGCHLD) end_worker();
        }
    }

    /// The worker decides: it refuses while its device is in use. One that is taking over will be asked.
    void end_worker() {
        if (serving_since_ns_ != 0 || (worker_ > 0 && device_.empty()))
            ask_to_end();
        else if (worker_ > 0 || restart_at_ns_ != 0)
            stop_wanted_ = true;
        else
            finished_ = true;
    }

    void ask_to_end() {
        asked_to_end_at_ns_ = now_ns();
        ::kill(worker_, SIGTERM);
    }

    void serve_worker() {
        auto received = receive_message(link_.get());
        if (!received) {
            link_.reset();  // its death is told by SIGCHLD
            return;
        }
        const LinkMessage& m = received->message;
        switch (m.kind) {
            case LinkMessage::Kind::keep:
                return answer(kept_.keep(m.key_view(), std::move(received->fd)));
            case LinkMessage::Kind::drop:
                return answer(kept_.drop(m.key_view()));
            case LinkMessage::Kind::ready:
                device_ = m.text_view();
                serving_since_ns_ = now_ns();
                write_state("serving", "");
                if (deaths_ != 0) log_warning("worker {} of device {} has taken over", worker_, config_.name);
                if (std::exchange(stop_wanted_, false)) ask_to_end();
                return report(m.text_view());
            case LinkMessage::Kind::failed:
                failure_ = parse_error(m.text_view(), "it cannot start").text();
                return report(m.text_view());
            case LinkMessage::Kind::held:
            case LinkMessage::Kind::go:
            case LinkMessage::Kind::done:
            case LinkMessage::Kind::refused:
                break;
        }
    }

    void answer(bool fine) {
        const auto kind = fine ? LinkMessage::Kind::done : LinkMessage::Kind::refused;
        (void)send_message(link_.get(), LinkMessage::make(kind, {}, {}), -1);
    }

    void reap_worker() {
        int status = 0;
        while (worker_ <= 0 && ::waitpid(-1, nullptr, WNOHANG) > 0) {  // of abandon_device
        }
        if (worker_ <= 0 || ::waitpid(worker_, &status, WNOHANG) != worker_) return;
        while (link_.valid()) {  // what it said before it ended
            pollfd p{link_.get(), POLLIN, 0};
            if (::poll(&p, 1, 0) <= 0) break;
            serve_worker();
        }
        link_.reset();
        const pid_t dead = std::exchange(worker_, 0);
        const std::uint64_t served_since = std::exchange(serving_since_ns_, 0);
        if (WIFEXITED(status) && WEXITSTATUS(status) == 0) {
            finished_ = true;
            return;
        }
        const std::string how =
            WIFSIGNALED(status)
                ? fmt::format("was killed by signal {} ({})", WTERMSIG(status), ::strsignal(WTERMSIG(status)))
                : fmt::format("ended with status {}", WEXITSTATUS(status));
        if (device_.empty()) {  // never came up: `up` is waiting for a word
            exit_status_ = 1;
            finished_ = true;
            report(
                error_json({Errc::failed, 0, fmt::format("the worker {}", how), "Look at the system log"}));
            return;
        }
        survive(dead, served_since, failure_.empty() ? how : how + ": " + std::exchange(failure_, {}));
    }

    /// Another worker takes over, at once or, if they die one after the other, after a while; or nobody does.
    void survive(pid_t dead, std::uint64_t served_since, const std::string& how) {
        ++deaths_;
        const std::uint64_t now = now_ns();
        // One that was dying could not do what it was asked for.
        if (asked_to_end_at_ns_ != 0 && now - asked_to_end_at_ns_ < kDyingNs) stop_wanted_ = true;
        const bool served = served_since != 0 && now - served_since > kLongServiceNs;
        deaths_in_row_ = served ? 1 : deaths_in_row_ + 1;
        if (kept_.has(kFrontDeviceKey) && deaths_in_row_ <= kDeathsInRowMax) {
            const std::uint64_t pause = deaths_in_row_ == 1 ? 0 : kPauseNs << std::min(deaths_in_row_, 6u);
            log_error("worker {} of device {} {}: another takes over{}", dead, config_.name, how,
                      pause == 0 ? "" : fmt::format(" in {} ms", pause / 1'000'000));
            write_state("restarting", fmt::format("the worker {}; another is taking over", how));
            restart_at_ns_ = now + pause;
            return;
        }
        log_error("worker {} of device {} {}: its I/O fails from now on", dead, config_.name, how);
        abandon_device();
        kept_.drop_all();
        if (stop_wanted_) finished_ = true;
        write_state("worker-dead",
                    fmt::format("the worker {}; pages that were on the GPU cannot be read. Run `vramswap "
                                "down {}`",
                                how, config_.name));
    }

    /// Its I/O would wait for ever for a worker.
    void abandon_device() {
        if (!kept_.has(kFrontDeviceKey)) return;
        const auto said = start_self({kAbandonRole, device_, config_.name}, kAbandonTimeoutMs);
        if (said && *said == "done") return;
        log_error("{}", said ? parse_error(*said, "its device is not ended").text() : said.error().text());
    }

    void restart_worker() {
        restart_at_ns_ = 0;
        if (auto started = start_worker(); !started) survive(0, 0, started.error().text());
    }

    [[nodiscard]] int ms_to_restart() const {
        if (restart_at_ns_ == 0) return -1;
        const std::uint64_t now = now_ns();
        if (restart_at_ns_ <= now) return 0;
        return static_cast<int>((restart_at_ns_ - now) / 1'000'000) + 1;
    }

    /// One line to whoever waits in `up`; nobody may be there any more.
    void report(std::string_view text) {
        if (reported_) return;
        reported_ = true;
        (void)::write(kReportFd, text.data(), text.size());
        ::close(kReportFd);
    }

    int fail(const Error& error) {
        report(error_json(error));
        remove_dir(dir_);
        return 1;
    }

    void write_state(std::string_view state, std::string_view problem) {
        DeviceStatus s;
        s.name = config_.name;
        s.state = state;
        s.problem = problem;
        s.device = device_;
        s.frontend = config_.frontend;
        s.gpu = config_.gpu;
        s.mode = config_.mode;
        s.guardian_pid = ::getpid();
        s.worker_pid = worker_;
        s.size = config_.size;
        const std::string draft = dir_.state() + ".new";
        if (auto written = write_file(draft, to_json(s), FileCreate::if_absent); !written)
            log_error("{}", written.error().text());
        else if (::rename(draft.c_str(), dir_.state().c_str()) != 0)
            log_error("{}", sys_error("cannot rename " + draft).text());
    }

    const DeviceConfig config_;
    const DeviceDir dir_;
    std::string device_;
    std::string failure_;  ///< what the last worker said before it ended
    UniqueFd link_;
    UniqueFd signals_;
    pid_t worker_ = 0;
    KeptFds kept_;
    std::uint32_t deaths_ = 0;
    std::uint32_t deaths_in_row_ = 0;
    std::uint64_t serving_since_ns_ = 0;  ///< 0: not yet, or no more
    std::uint64_t restart_at_ns_ = 0;     ///< 0: no restart is to come
    bool stop_wanted_ = false;            ///< by a signal, while no worker served
    std::uint64_t asked_to_end_at_ns_ = 0;
    bool reported_ = false;
    bool finished_ = false;
    int exit_status_ = 0;
};

/// Own log file unless the journal reads us: the terminal of `up` is not ours to write to.
void redirect_output(const DeviceDir& dir) {
    const UniqueFd null(::open("/dev/null", O_RDWR | O_CLOEXEC));
    if (null) {
        ::dup2(null.get(), STDIN_FILENO);
        ::dup2(null.get(), STDOUT_FILENO);
    }
    if (std::getenv("JOURNAL_STREAM") != nullptr) return;
    const UniqueFd log(
        ::open(dir.log().c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600));
    if (log) ::dup2(log.get(), STDERR_FILENO);
}

/// The marks of a process that swap I/O depends on; the worker inherits the first two.
void mark_process() {
    const auto warn = [](const Result<void>& result) {
        if (!result) log_warning("{}", result.error().text());
    };
    warn(set_io_flusher());
    warn(set_oom_score_adj(kOomScoreExempt));
    warn(disable_thp());
    warn(disable_core_dumps());
    warn(lock_memory(LockMode::populate));
    if (auto files = raise_nofile(16384); !files) log_warning("{}", files.error().text());
}

}  // namespace

int run_guardian() {
    auto text = read_all(kConfigFd);
    auto config = text ? parse_device_config(*text) : Result<DeviceConfig>(text.error());
    if (!config) return 1;
    const DeviceDir dir = device_dir(config->name);
    redirect_output(dir);
    (void)::chdir("/");
    mark_process();
    auto guardian = std::make_unique<Guardian>(std::move(*config), dir);
    return guardian->run();
}

}  // namespace vramswap
