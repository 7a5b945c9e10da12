// SPDX-License-Identifier: MIT
#include "sys/process.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <csignal>

#include "base/clock.h"
#include "sys/text.h"

namespace vramswap {
namespace {

using text::next_field;
using text::next_line;
using text::to_number;

// include/uapi/linux/prctl.h; older C libraries lack them.
constexpr int kPrSetIoFlusher = 57;
constexpr int kPrSetThpDisable = 41;
// include/linux/sched.h
constexpr std::uint64_t kPfMemallocNoio = 0x00080000;
constexpr std::uint64_t kPfLocalThrottle = 0x00100000;
// include/uapi/linux/mman.h (asm-generic), Linux 4.4
constexpr int kMclOnfault = 4;

constexpr unsigned long kUnused = 0;

constexpr const char* kNeedsSysResource =
    "It needs CAP_SYS_RESOURCE: run as root; in a container or a unit, see which capabilities are left";

/// REQUIRES: errno is that of a call on a process.
Error process_error(std::string message) {
    if (errno == ESRCH) return Error{Errc::not_found, ESRCH, std::move(message), "The process has ended"};
    return sys_error(std::move(message));
}

/// REQUIRES: errno is that of a call on this file.
Error file_error(std::string_view action, const std::string& path) {
    const int sys = errno;
    std::string message = fmt::format("cannot {} {}", action, path);
    // A file of /proc/PID that was open answers ESRCH once the process is gone.
    if (sys == ENOENT || sys == ENOTDIR || sys == ESRCH) {
        return Error{Errc::not_found, sys, std::move(message)};
    }
    if (sys == EACCES || sys == EPERM) {
        return Error{Errc::failed, sys, std::move(message), "Run as root, or see who owns it"};
    }
    if (sys == ELOOP) {
        return Error{Errc::failed, sys, std::move(message), "It is a symbolic link; name the file itself"};
    }
    errno = sys;
    return sys_error(std::move(message));
}

/// Both limits to infinity, else the soft one to the hard one; what is not allowed is left: mlockall decides.
void raise_memlock_limit() {
    const rlimit all{RLIM_INFINITY, RLIM_INFINITY};
    if (::setrlimit(RLIMIT_MEMLOCK, &all) == 0) return;
    rlimit limit{};
    if (::getrlimit(RLIMIT_MEMLOCK, &limit) != 0) return;
    limit.rlim_cur = limit.rlim_max;
    ::setrlimit(RLIMIT_MEMLOCK, &limit);
}

std::string memlock_limit_text() {
    rlimit limit{};
    if (::getrlimit(RLIMIT_MEMLOCK, &limit) != 0) return "unknown";
    return limit.rlim_cur == RLIM_INFINITY ? "infinity" : format_size({limit.rlim_cur});
}

Result<TaskStat> read_stat_file(const std::string& path) {
    Result<std::string> text = read_small_file(path);
    if (!text) return std::move(text).error();
    Result<TaskStat> stat = parse_task_stat(*text);
    if (!stat) return std::move(stat).error().in(path);
    return stat;
}

std::uint64_t ticks_to_ns(std::uint64_t ticks) {
    const long hz = ::sysconf(_SC_CLK_TCK);
    const std::uint64_t per_second = hz > 0 ? static_cast<std::uint64_t>(hz) : 100;
    return ticks / per_second * 1'000'000'000u + ticks % per_second * 1'000'000'000u / per_second;
}

}  // namespace

// --- marks of the calling process ---

Result<void> set_io_flusher() {
    if (::prctl(kPrSetIoFlusher, 1ul, kUnused, kUnused, kUnused) == 0) return {};
    const int sys = errno;
    std::string message = "cannot mark the process as an IO flusher (PR_SET_IO_FLUSHER)";
    if (sys == EINVAL) {
        return Error{Errc::unavailable, sys, std::move(message), "It needs Linux 5.6 or later"};
    }
    return Error{Errc::failed, sys, std::move(message), kNeedsSysResource};
}

Result<bool> has_io_flusher(pid_t pid, pid_t tid, const SysRoot& root) {
    Result<TaskStat> stat = read_task_stat(pid, tid, root);
    if (!stat) return std::move(stat).error();
    constexpr std::uint64_t kMarks = kPfMemallocNoio | kPfLocalThrottle;
    return (stat->flags & kMarks) == kMarks;
}

Result<void> set_oom_score_adj(int score, const SysRoot& root) {
    constexpr int kScoreMax = 1000;
    if (score < kOomScoreExempt || score > kScoreMax) {
        return Error{Errc::usage, 0, fmt::format("oom_score_adj {} is out of range", score),
                     "Give -1000 to 1000"};
    }
    Result<void> written = write_file(root.at("/proc/self/oom_score_adj"), fmt::format("{}\n", score));
    if (written) return {};
    Error error = std::move(written).error();
    if (error.sys == EACCES || error.sys == EPERM) error.hint = kNeedsSysResource;
    return std::move(error).in(fmt::format("oom_score_adj {}", score));
}

Result<void> lock_memory(LockMode mode) {
    raise_memlock_limit();
    const int flags = MCL_CURRENT | MCL_FUTURE | (mode == LockMode::on_fault ? kMclOnfault : 0);
    if (::mlockall(flags) == 0) return {};
    const int sys = errno;
    // The kernel says EPERM for a limit of 0, ENOMEM for one too low, EAGAIN if pages could not be brought
    // in.
    const Errc code = sys == EINVAL ? Errc::unavailable : Errc::no_memory;
    return Error{code, sys,
                 fmt::format("cannot lock memory (limit of locked memory: {})", memlock_limit_text()),
                 "Run as root, or raise RLIMIT_MEMLOCK (LimitMEMLOCK=infinity in a systemd unit)"};
}

Result<void> disable_core_dumps() {
    const rlimit none{0, 0};
    if (::setrlimit(RLIMIT_CORE, &none) != 0) return sys_error("cannot set the limit of core files to 0");
    if (::prctl(PR_SET_DUMPABLE, 0ul, kUnused, kUnused, kUnused) != 0) {
        return sys_error("cannot make the process undumpable (PR_SET_DUMPABLE)");
    }
    return {};
}

Result<void> disable_thp() {
    if (::prctl(kPrSetThpDisable, 1ul, kUnused, kUnused, kUnused) == 0) return {};
    return sys_error("cannot switch off transparent huge pages (PR_SET_THP_DISABLE)");
}

bool is_root() {
    return ::geteuid() == 0;
}

Result<std::uint64_t> raise_nofile(std::uint64_t wanted) {
    rlimit limit{};
    if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return sys_error("cannot read the limit of open files");
    if (limit.rlim_cur >= wanted) return std::uint64_t{limit.rlim_cur};
    const rlimit higher{wanted, std::max<rlim_t>(limit.rlim_max, wanted)};
    if (::setrlimit(RLIMIT_NOFILE, &higher) == 0) return wanted;
    // Not allowed, or above fs.nr_open: as far as the hard limit goes.
    const rlimit allowed{std::min<rlim_t>(limit.rlim_max, wanted), limit.rlim_max};
    if (::setrlimit(RLIMIT_NOFILE, &allowed) == 0) return std::uint64_t{allowed.rlim_cur};
    return sys_error(fmt::format("cannot raise the limit of open files to {}", wanted),
                     "Raise it before starting (LimitNOFILE= in a systemd unit)");
}

Result<void> set_parent_death_signal(int signal, pid_t parent) {
    if (::prctl(PR_SET_PDEATHSIG, static_cast<unsigned long>(signal), kUnused, kUnused, kUnused) != 0) {
        return sys_error(fmt::format("cannot ask for signal {} at the end of the parent", signal));
    }
    // It may have ended before the call above; then this process belongs to another parent already.
    if (::getppid() != parent) {
        return Error{Errc::not_found, 0, fmt::format("the parent process {} has ended", parent)};
    }
    return {};
}

// --- about processes ---

Result<TaskStat> parse_task_stat(std::string_view text) {
    const Error malformed{Errc::failed, 0, "task stat is malformed"};
    // The name stands in brackets and may hold any character, brackets too: the last one closes it.
    const auto open = text.find('(');
    const auto close = text.rfind(')');
    if (open == std::string_view::npos || close == std::string_view::npos || close < open) return malformed;

    TaskStat stat;
    const auto pid = to_number<pid_t>(text::trim(text.substr(0, open)));
    stat.name = text.substr(open + 1, close - open - 1);
    std::string_view rest = text.substr(close + 1);
    const std::string_view state = next_field(rest);
    const auto parent = to_number<pid_t>(next_field(rest));
    if (!pid || state.size() != 1 || !parent) return malformed;
    stat.pid = *pid;
    stat.state = state.front();
    stat.parent = *parent;

    // Fields by their numbers in proc(5); field 4 was read last. Some between are negative: only ours count.
    for (int field = 5; field <= 22; ++field) {
        const std::string_view word = next_field(rest);
        std::uint64_t* target = field == 9    ? &stat.flags
                                : field == 14 ? &stat.user_ticks
                                : field == 15 ? &stat.system_ticks
                                : field == 22 ? &stat.start_ticks
                                              : nullptr;
        if (target == nullptr) continue;
        const auto value = to_number<std::uint64_t>(word);
        if (!value) return malformed;
        *target = *value;
    }
    return stat;
}

Result<TaskStat> read_task_stat(pid_t pid, const SysRoot& root) {
    return read_stat_file(root.at(fmt::format("/proc/{}/stat", pid)));
}

Result<TaskStat> read_task_stat(pid_t pid, pid_t tid, const SysRoot& root) {
    return read_stat_file(root.at(fmt::format("/proc/{}/task/{}/stat", pid, tid)));
}

Result<std::string> read_process_name(pid_t pid, const SysRoot& root) {
    Result<std::string> name = read_small_file(root.at(fmt::format("/proc/{}/comm", pid)));
    if (!name) return name;
    if (name->ends_with('\n')) name->pop_back();
    // Not beyond ASCII: the kernel may have cut a character in two.
    std::ranges::replace_if(
        *name, [](char c) { return c < ' ' || c > '~'; }, '?');
    return name;
}

ProcessMemory parse_process_memory(std::string_view text) {
    ProcessMemory memory;
    while (const auto line = next_line(text)) {
        const auto entry = text::to_kib_line(*line);
        if (!entry) continue;
        if (entry->name == "VmRSS") memory.rss = entry->value;
        if (entry->name == "RssAnon") memory.anonymous = entry->value;
        if (entry->name == "VmLck") memory.locked = entry->value;
        if (entry->name == "VmSwap") memory.swapped = entry->value;
    }
    return memory;
}

Result<ProcessMemory> read_process_memory(pid_t pid, const SysRoot& root) {
    Result<std::string> text = read_small_file(root.at(fmt::format("/proc/{}/status", pid)));
    if (!text) return std::move(text).error();
    return parse_process_memory(*text);
}

Result<std::uint64_t> read_capabilities(const SysRoot& root) {
    Result<std::string> status = read_small_file(root.at("/proc/self/status"));
    if (!status) return std::move(status).error();
    constexpr std::string_view kKey = "CapEff:";
    std::string_view text = *status;
    while (auto line = next_line(text)) {
        if (!line->starts_with(kKey)) continue;
        const std::string_view digits = text::trim(line->substr(kKey.size()));
        std::uint64_t mask = 0;
        const auto [end, ec] = std::from_chars(digits.data(), digits.data() + digits.size(), mask, 16);
        if (ec == std::errc{} && end == digits.data() + digits.size()) return mask;
    }
    return Error{Errc::failed, 0, "/proc/self/status has no CapEff"};
}

Result<CpuTime> read_cpu_time(pid_t pid, const SysRoot& root) {
    Result<TaskStat> stat = read_task_stat(pid, root);
    if (!stat) return std::move(stat).error();
    return CpuTime{ticks_to_ns(stat->user_ticks), ticks_to_ns(stat->system_ticks)};
}

Result<ProcessId> identify_process(pid_t pid, const SysRoot& root) {
    Result<TaskStat> stat = read_task_stat(pid, root);
    if (!stat) return std::move(stat).error();
    return ProcessId{pid, stat->start_ticks};
}

bool process_alive(const ProcessId& process, const SysRoot& root) {
    const Result<TaskStat> stat = read_task_stat(process.pid, root);
    if (!stat || stat->start_ticks != process.start_ticks) return false;
    return stat->state != 'Z' && stat->state != 'X' && stat->state != 'x';
}

bool process_alive(int pidfd) {
    if (pidfd < 0) return false;
    const Result<WaitOutcome> outcome = wait_pidfd(pidfd, 0);
    return outcome && *outcome == WaitOutcome::timed_out;
}

Result<UniqueFd> open_pidfd(pid_t pid) {
    // The descriptor is close-on-exec by itself.
    const long fd = ::syscall(SYS_pidfd_open, pid, 0);
    if (fd >= 0) return UniqueFd(static_cast<int>(fd));
    if (errno == ENOSYS) return sys_error("pidfd_open failed", "It needs Linux 5.3 or later");
    return process_error(fmt::format("cannot open process {}", pid));
}

Result<WaitOutcome> wait_pidfd(int pidfd, int timeout_ms) {
    constexpr std::uint64_t kNsPerMs = 1'000'000;
    const std::uint64_t start_ns = now_ns();
    int left_ms = timeout_ms;
    for (;;) {
        pollfd entry{pidfd, POLLIN, 0};
        const int ready = ::poll(&entry, 1, left_ms);
        if (ready == 0) return WaitOutcome::timed_out;
        if (ready > 0 && (entry.revents & POLLNVAL) == 0) return WaitOutcome::exited;
        if (ready > 0) return Error{Errc::failed, EBADF, fmt::format("{} is no open pidfd", pidfd)};
        if (errno != EINTR) return sys_error("waiting for a process failed");
        if (timeout_ms < 0) continue;
        const std::uint64_t passed_ms = (now_ns() - start_ns) / kNsPerMs;
        const auto budget_ms = static_cast<std::uint64_t>(timeout_ms);
        left_ms = passed_ms >= budget_ms ? 0 : static_cast<int>(budget_ms - passed_ms);
    }
}

Result<void> signal_pidfd(int pidfd, int signal) {
    if (::syscall(SYS_pidfd_send_signal, pidfd, signal, nullptr, 0) == 0) return {};
    return process_error(fmt::format("cannot send signal {} to a process", signal));
}

// --- small files ---

Result<std::string> read_small_file(const std::string& path) {
    const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (!fd) return file_error("open", path);
    std::string content;
    std::array<char, 4096> piece{};
    for (;;) {
        const ssize_t got = ::read(fd.get(), piece.data(), piece.size());
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return file_error("read", path);
        if (got == 0) return content;
        content.append(piece.data(), static_cast<std::size_t>(got));
        if (content.size() > kSmallFileBytes) {
            return Error{Errc::failed, EFBIG, fmt::format("{} is larger than 1 MiB", path)};
        }
    }
}

Result<void> write_file(const std::string& path, std::string_view content, FileCreate create) {
    if (content.size() > kSmallFileBytes) {
        return Error{Errc::usage, 0,
                     fmt::format("{} bytes for {} are more than 1 MiB", content.size(), path)};
    }
    const int flags =
        O_WRONLY | O_TRUNC | O_CLOEXEC | O_NOFOLLOW | (create == FileCreate::if_absent ? O_CREAT : 0);
    const UniqueFd fd(::open(path.c_str(), flags, 0600));
    if (!fd) return file_error("open", path);
    ssize_t written = 0;
    do written = ::write(fd.get(), content.data(), content.size());
    while (written < 0 && errno == EINTR);
    if (written < 0) return file_error("write", path);
    if (static_cast<std::size_t>(written) != content.size()) {
        return Error{Errc::failed, EIO,
                     fmt::format("only {} of {} bytes written to {}", written, content.size(), path)};
    }
    return {};
}

}  // namespace vramswap
