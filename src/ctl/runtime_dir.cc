// SPDX-License-Identifier: MIT
#include "ctl/runtime_dir.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstdlib>
#include <filesystem>

#include "base/clock.h"

namespace vramswap {
namespace {

Result<void> make_dir(const std::string& path) {
    if (::mkdir(path.c_str(), 0700) != 0 && errno != EEXIST)
        return sys_error(fmt::format("cannot make the directory {}", path));
    struct stat info {};
    if (::lstat(path.c_str(), &info) != 0 || !S_ISDIR(info.st_mode) || info.st_uid != ::geteuid())
        return Error{Errc::failed, 0, fmt::format("{} is not a directory of ours", path),
                     "Remove it and try again"};
    return {};
}

void clear_dir(const DeviceDir& dir) {
    for (const auto& file : {dir.socket(), dir.state(), dir.state() + ".new", dir.log()})
        ::unlink(file.c_str());
}

UniqueFd open_lock(const DeviceDir& dir, int flags) {
    return UniqueFd(::open(dir.lock().c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW | flags, 0600));
}

}  // namespace

std::string runtime_root() {
    const char* set = std::getenv("VRAMSWAP_RUNTIME_DIR");
    return set != nullptr && *set != '\0' ? set : "/run/vramswap";
}

Result<void> check_name(std::string_view name) {
    const auto good = [](unsigned char c) { return std::isalnum(c) != 0 || c == '_' || c == '-'; };
    const bool fine = !name.empty() && name.size() <= 32 && std::ranges::all_of(name, good) &&
                      std::isalnum(static_cast<unsigned char>(name[0])) != 0;
    if (fine) return {};
    return Error{Errc::usage, 0, fmt::format("'{}' is not a device name", name),
                 "Use 1 to 32 letters, digits, '_' and '-', beginning with a letter or digit"};
}

DeviceDir device_dir(std::string_view name) {
    return {fmt::format("{}/{}", runtime_root(), name)};
}

Result<UniqueFd> claim(const DeviceDir& dir) {
    for (const auto& path : {runtime_root(), dir.path})
        if (auto made = make_dir(path); !made) return std::move(made).error();
    for (;;) {
        UniqueFd lock = open_lock(dir, O_CREAT);
        if (!lock) return sys_error(fmt::format("cannot open {}", dir.lock()));
        if (::flock(lock.get(), LOCK_EX | LOCK_NB) != 0) {
            if (errno == EWOULDBLOCK)
                return Error{Errc::exists, 0,
                             fmt::format("a device '{}' is up already",
                                         std::filesystem::path(dir.path).filename().string()),
                             "See `vramswap status`, or give another name"};
            return sys_error(fmt::format("cannot lock {}", dir.lock()));
        }
        // A guardian that just ended may have removed the file between open and flock.
        struct stat ours {};
        struct stat named {};
        if (::fstat(lock.get(), &ours) == 0 && ::stat(dir.lock().c_str(), &named) == 0 &&
            ours.st_ino == named.st_ino) {
            clear_dir(dir);
            return lock;
        }
        if (auto made = make_dir(dir.path); !made) return std::move(made).error();
    }
}

bool is_held(const DeviceDir& dir) {
    const UniqueFd lock = open_lock(dir, 0);
    if (!lock) return false;
    return ::flock(lock.get(), LOCK_SH | LOCK_NB) != 0 && errno == EWOULDBLOCK;
}

Result<void> wait_until_free(const DeviceDir& dir, int timeout_ms) {
    constexpr int kStepMs = 10;  // flock has no timeout
    const std::uint64_t end = now_ns() + static_cast<std::uint64_t>(timeout_ms) * 1'000'000;
    while (is_held(dir)) {
        if (now_ns() > end)
            return Error{Errc::failed, 0, fmt::format("{} is still in use after {} ms", dir.path, timeout_ms),
                         fmt::format("Look at {}", dir.log())};
        ::poll(nullptr, 0, kStepMs);
    }
    return {};
}

std::vector<std::string> list_names() {
    std::vector<std::string> names;
    std::error_code ignored;
    for (const auto& entry : std::filesystem::directory_iterator(runtime_root(), ignored)) {
        std::string name = entry.path().filename().string();
        if (check_name(name)) names.push_back(std::move(name));
    }
    std::ranges::sort(names);
    return names;
}

void remove_dir(const DeviceDir& dir) {
    clear_dir(dir);
    ::unlink(dir.lock().c_str());
    ::rmdir(dir.path.c_str());
    ::rmdir(runtime_root().c_str());  // only if this was the last
}

}  // namespace vramswap
