// SPDX-License-Identifier: MIT
#include "sys/spawn.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/close_range.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <cstring>

#include "base/clock.h"

namespace vramswap {
namespace {

constexpr int kFirstInherited = 3;
constexpr int kAsideFrom = 200;  ///< above every number that is dup'ed to
constexpr std::size_t kOutputMax = 4u << 20;
constexpr std::size_t kTextMax = 1u << 20;

/// Between fork and exec: only async-signal-safe calls.
[[noreturn]] void become(const SpawnRequest& request, char* const* argv) {
    if (request.session == SpawnSession::detached) ::setsid();
    int aside = kAsideFrom;
    for (const int fd : request.inherit)
        if (::dup2(fd, aside++) < 0) ::_exit(127);
    if (request.stdout_fd >= 0 && ::dup2(request.stdout_fd, STDOUT_FILENO) < 0) ::_exit(127);
    int target = kFirstInherited;
    for (std::size_t i = 0; i < request.inherit.size(); ++i)
        if (::dup2(kAsideFrom + static_cast<int>(i), target++) < 0) ::_exit(127);
    ::syscall(SYS_close_range, target, ~0u, 0);
    struct sigaction standard {};
    standard.sa_handler = SIG_DFL;
    for (int s = 1; s < 32; ++s) ::sigaction(s, &standard, nullptr);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, nullptr);
    ::execv("/proc/self/exe", argv);
    ::_exit(127);
}

/// Reads until the writer closes or the time is over.
Result<std::string> collect(int fd, int timeout_ms) {
    const std::uint64_t end = now_ns() + static_cast<std::uint64_t>(timeout_ms) * 1'000'000;
    std::string out;
    std::array<char, 4096> piece{};
    for (;;) {
        const std::uint64_t now = now_ns();
        if (now >= end) return Error{Errc::failed, ETIMEDOUT, "it did not end in time"};
        pollfd p{fd, POLLIN, 0};
        if (::poll(&p, 1, static_cast<int>((end - now) / 1'000'000) + 1) <= 0) continue;
        const ssize_t n = ::read(fd, piece.data(), piece.size());
        if (n == 0) return out;
        if (n < 0) return sys_error("cannot read its output");
        out.append(piece.data(), static_cast<std::size_t>(n));
        if (out.size() > kOutputMax) return Error{Errc::failed, 0, "it writes too much"};
    }
}

}  // namespace

Result<pid_t> spawn_self(const SpawnRequest& request) {
    static char name[] = "vramswap";
    std::vector<std::string> owned = request.arguments;
    std::vector<char*> argv{name};
    for (auto& a : owned) argv.push_back(a.data());
    argv.push_back(nullptr);
    const pid_t pid = ::fork();
    if (pid < 0) return sys_error("cannot start another process");
    if (pid == 0) become(request, argv.data());
    return pid;
}

Result<std::string> run_self(const std::vector<std::string>& arguments, int timeout_ms) {
    int ends[2];
    if (::pipe2(ends, O_CLOEXEC) != 0) return sys_error("cannot make a pipe");
    const UniqueFd read_end(ends[0]);
    UniqueFd write_end(ends[1]);
    auto pid = spawn_self({arguments, {}, SpawnSession::same, write_end.get()});
    if (!pid) return std::move(pid).error();
    write_end.reset();
    auto output = collect(read_end.get(), timeout_ms);
    if (!output) ::kill(*pid, SIGKILL);
    int status = 0;
    while (::waitpid(*pid, &status, 0) < 0 && errno == EINTR) {
    }
    const std::string what = fmt::format("`vramswap {}`", arguments.empty() ? "" : arguments[0]);
    if (!output) return std::move(output).error().in(what);
    if (WIFSIGNALED(status))
        return Error{
            Errc::failed, 0,
            fmt::format("{} died by signal {} ({})", what, WTERMSIG(status), ::strsignal(WTERMSIG(status)))};
    if (output->empty())
        return Error{Errc::failed, 0,
                     fmt::format("{} said nothing, exit status {}", what, WEXITSTATUS(status))};
    return output;
}

Result<std::string> start_self(const std::vector<std::string>& arguments, int timeout_ms) {
    int ends[2];
    if (::pipe2(ends, O_CLOEXEC) != 0) return sys_error("cannot make a pipe");
    const UniqueFd read_end(ends[0]);
    UniqueFd write_end(ends[1]);
    auto pid = spawn_self({arguments, {}, SpawnSession::detached, write_end.get()});
    if (!pid) return std::move(pid).error();
    write_end.reset();
    auto output = collect(read_end.get(), timeout_ms);
    if (!output) ::kill(*pid, SIGKILL);
    return output;
}

Result<UniqueFd> text_in_memfd(const char* name, std::string_view text) {
    UniqueFd fd(::memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING));
    if (!fd || ::write(fd.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size()))
        return sys_error("cannot write to a memfd");
    ::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL);
    return fd;
}

Result<std::string> read_all(int fd) {
    (void)::lseek(fd, 0, SEEK_SET);  // fails for a pipe, which is read from where it is
    std::string out;
    std::array<char, 4096> piece{};
    while (out.size() < kTextMax) {
        const ssize_t n = ::read(fd, piece.data(), piece.size());
        if (n == 0) return out;
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return sys_error("cannot read");
        out.append(piece.data(), static_cast<std::size_t>(n));
    }
    return Error{Errc::failed, 0, "more than 1 MiB to read"};
}

}  // namespace vramswap
