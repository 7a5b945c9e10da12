// SPDX-License-Identifier: MIT
#include "front/loop/fuse_mount.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/mount.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <string_view>

#include "front/kernel_module.h"

namespace vramswap {
namespace {

// The system calls directly, since glibc has wrappers from 2.36 only and the binary shall run on older ones.
// fsopen, fsconfig, fsmount: Linux 5.2.
int sys_fsopen(const char* type, unsigned flags) {
    return static_cast<int>(::syscall(SYS_fsopen, type, flags));
}
int sys_fsconfig(int fd, unsigned command, const char* key, const char* value, int aux) {
    return static_cast<int>(::syscall(SYS_fsconfig, fd, command, key, value, aux));
}
int sys_fsmount(int fd, unsigned flags, unsigned attributes) {
    return static_cast<int>(::syscall(SYS_fsmount, fd, flags, attributes));
}

Error fsopen_error() {
    switch (errno) {
        case ENODEV:
            return Error{Errc::unavailable, ENODEV, "this kernel has no FUSE file system",
                         "Load it with `modprobe fuse`, or use a kernel built with CONFIG_FUSE_FS"};
        case ENOSYS:
            return Error{Errc::unavailable, ENOSYS, "this kernel has no fsopen(2)",
                         "Linux 5.8 or later is needed"};
        case EPERM:
            return Error{Errc::unavailable, EPERM, "not allowed to make a FUSE file system",
                         "Run as root (CAP_SYS_ADMIN)"};
        default:
            return sys_error("fsopen of fuse failed");
    }
}

Result<UniqueFd> open_context() {
    UniqueFd context(sys_fsopen("fuse", FSOPEN_CLOEXEC));
    if (!context) return fsopen_error();
    return context;
}

/// errno with what the kernel wrote about it into the context (fsopen(2): messages are read from it).
Error context_error(int context, std::string_view what) {
    const int saved = errno;
    std::array<char, 256> text{};
    const ssize_t n = ::read(context, text.data(), text.size());
    std::string_view said(text.data(), n > 0 ? static_cast<std::size_t>(n) : 0);
    while (!said.empty() && said.back() == '\n') said.remove_suffix(1);
    errno = saved;
    return sys_error(said.empty() ? std::string(what) : fmt::format("{} ({})", what, said));
}

Result<void> set_string(int context, const char* key, const std::string& value) {
    if (sys_fsconfig(context, FSCONFIG_SET_STRING, key, value.c_str(), 0) == 0) return {};
    return context_error(context, fmt::format("FUSE refuses {}={}", key, value));
}

Result<void> set_options(int context, int fuse_fd) {
    const std::array<std::pair<const char*, std::string>, 5> options{{
        {"source", "vramswap"},
        {"fd", fmt::format("{}", fuse_fd)},
        {"rootmode", "40000"},  // octal S_IFDIR
        {"user_id", "0"},
        {"group_id", "0"},
    }};
    for (const auto& [key, value] : options)
        if (auto set = set_string(context, key, value); !set) return set;
    if (sys_fsconfig(context, FSCONFIG_SET_FLAG, "default_permissions", nullptr, 0) != 0)
        return context_error(context, "FUSE refuses default_permissions");
    return {};
}

}  // namespace

Result<UniqueFd> open_fuse_device(const std::string& dev_dir) {
    const std::string path = dev_dir + "/fuse";
    // O_NONBLOCK: an I/O thread waits in epoll, where it can also be told to stop, and never in read.
    const auto open = [&] { return UniqueFd(::open(path.c_str(), O_RDWR | O_CLOEXEC | O_NONBLOCK)); };
    const auto is_missing = [] { return errno == ENOENT || errno == ENXIO || errno == ENODEV; };
    UniqueFd fd = open();
    if (!fd && is_missing()) {
        static_cast<void>(load_kernel_module("fuse"));
        fd = open();
    }
    if (fd) return fd;
    if (is_missing())
        return Error{Errc::unavailable, errno, "no FUSE device " + path,
                     "Load the driver with `modprobe fuse`"};
    if (errno == EACCES || errno == EPERM)
        return Error{Errc::unavailable, errno, "not allowed to open " + path, "Run as root"};
    return sys_error("cannot open " + path);
}

Result<void> check_fuse_filesystem() {
    if (auto context = open_context(); !context) return std::move(context).error();
    return {};
}

Result<UniqueFd> mount_fuse_detached(int fuse_fd) {
    auto context = open_context();
    if (!context) return context;
    if (auto set = set_options(context->get(), fuse_fd); !set) return std::move(set).error();
    if (sys_fsconfig(context->get(), FSCONFIG_CMD_CREATE, nullptr, nullptr, 0) != 0)
        return context_error(context->get(), "the kernel does not make the FUSE file system");
    UniqueFd mount(
        sys_fsmount(context->get(), FSMOUNT_CLOEXEC,
                    MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC | MOUNT_ATTR_NOATIME));
    if (!mount) return context_error(context->get(), "fsmount of fuse failed");
    return mount;
}

}  // namespace vramswap
