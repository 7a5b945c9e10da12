// SPDX-License-Identifier: MIT
#include "front/kernel_module.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <vector>

namespace vramswap {
namespace {

/// With sudo and in services PATH may lack the folders of root's programs.
constexpr std::array kPrograms{"modprobe", "/sbin/modprobe", "/usr/sbin/modprobe"};

/// How a process is started: silent, with no signal blocked, since ours may block some.
class SpawnSettings {
  public:
    SpawnSettings() {
        ::posix_spawn_file_actions_init(&actions_);
        for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO})
            ::posix_spawn_file_actions_addopen(&actions_, fd, "/dev/null", O_RDWR, 0);
        ::posix_spawnattr_init(&attributes_);
        sigset_t none;
        ::sigemptyset(&none);
        ::posix_spawnattr_setsigmask(&attributes_, &none);
        ::posix_spawnattr_setflags(&attributes_, POSIX_SPAWN_SETSIGMASK);
    }
    ~SpawnSettings() {
        ::posix_spawnattr_destroy(&attributes_);
        ::posix_spawn_file_actions_destroy(&actions_);
    }
    SpawnSettings(const SpawnSettings&) = delete;
    SpawnSettings& operator=(const SpawnSettings&) = delete;

    [[nodiscard]] const posix_spawn_file_actions_t* actions() const { return &actions_; }
    [[nodiscard]] const posix_spawnattr_t* attributes() const { return &attributes_; }

  private:
    posix_spawn_file_actions_t actions_{};
    posix_spawnattr_t attributes_{};
};

/// 0 or the errno. A program that is not there is noticed here, not by its exit status.
int spawn(pid_t& child, std::string program, std::string module) {
    std::string quiet = "-q";
    std::array<char*, 4> arguments{program.data(), quiet.data(), module.data(), nullptr};
    const SpawnSettings settings;
    return ::posix_spawnp(&child, program.c_str(), settings.actions(), settings.attributes(),
                          arguments.data(), environ);
}

}  // namespace

Result<void> load_kernel_module(const std::string& module, const std::string& program) {
    std::vector<std::string> programs(kPrograms.begin(), kPrograms.end());
    if (!program.empty()) programs = {program};
    pid_t child = -1;
    int failure = ENOENT;
    for (const auto& candidate : programs)
        if (failure = spawn(child, candidate, module); failure == 0) break;
    if (failure != 0)
        return Error{Errc::unavailable, failure, "cannot run " + programs.front(),
                     fmt::format("Load the module {} by other means", module)};
    int status = 0;
    while (::waitpid(child, &status, 0) < 0)
        if (errno != EINTR) return sys_error("cannot wait for " + programs.front());
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return {};
    return Error{Errc::unavailable, 0, fmt::format("`modprobe {}` failed", module),
                 fmt::format("Run `modprobe -v {}` as root to see why", module)};
}

}  // namespace vramswap
