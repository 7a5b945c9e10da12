// SPDX-License-Identifier: MIT
#include "front/ublk/ublk_host.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <liburing.h>
#include <linux/capability.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdint>
#include <fstream>

#include "front/kernel_module.h"

namespace vramswap {
namespace {

constexpr const char* kModule = "ublk_drv";

/// The first line of a file without its end; empty if it cannot be read.
std::string first_line(const std::string& path) {
    std::string line;
    std::getline(std::ifstream(path), line);
    return line;
}

std::string setting(const UblkHost& host, const char* name) {
    return first_line(fmt::format("{}/sys/kernel/{}", host.proc_dir, name));
}

/// Whether this kernel's modules have the driver. True if they cannot be looked at.
bool has_module(const UblkHost& host, const std::string& release) {
    const std::string folder = fmt::format("{}/{}", host.modules_dir, release);
    std::ifstream modules(folder + "/modules.dep");
    if (!modules) return true;
    // Each line begins with the path of a module, ended by a colon, and perhaps compressed.
    for (std::string line; std::getline(modules, line);)
        if (line.substr(0, line.find(':')).find(fmt::format("/{}.ko", kModule)) != std::string::npos)
            return true;
    return false;
}

Error no_driver(const UblkHost& host, const std::string& path, int error) {
    const std::string release = setting(host, "osrelease");
    if (load_kernel_module(kModule, host.modprobe))
        return Error{Errc::unavailable, error,
                     fmt::format("module {} is loaded, but there is no {}", kModule, path),
                     fmt::format("Mount devtmpfs on {}", host.dev_dir)};
    if (!has_module(host, release))
        return Error{
            Errc::unavailable, 0, fmt::format("this kernel ({}) has no ublk driver", release),
            "Boot a kernel with CONFIG_BLK_DEV_UBLK (Linux 6.0 and later; Debian 12: kernel 6.12 from "
            "bookworm-backports), or install the package with further modules of this kernel"};
    if (::geteuid() != 0)
        return Error{Errc::unavailable, 0, fmt::format("the ublk driver is not loaded: no {}", path),
                     fmt::format("Run as root, or load it with `modprobe {}`", kModule)};
    return Error{
        Errc::unavailable, 0, fmt::format("no {}, and `modprobe {}` fails", path, kModule),
        fmt::format("Run `modprobe -v {}` and look at the kernel's log. ublk needs Linux 6.0 or later with "
                    "CONFIG_BLK_DEV_UBLK (Debian 12: kernel 6.12 from bookworm-backports)",
                    kModule)};
}

Error io_uring_is_off(const std::string& value) {
    return Error{
        Errc::unavailable, 0, fmt::format("io_uring is switched off by kernel.io_uring_disabled={}", value),
        "Set it to 0 with `sysctl kernel.io_uring_disabled=0`, and in /etc/sysctl.d for the next boot"};
}

}  // namespace

Result<UniqueFd> open_ublk_control(const UblkHost& host) {
    const std::string path = host.dev_dir + "/ublk-control";
    const auto open = [&] { return UniqueFd(::open(path.c_str(), O_RDWR | O_CLOEXEC)); };
    const auto is_missing = [] { return errno == ENOENT || errno == ENXIO || errno == ENODEV; };
    UniqueFd control = open();
    if (!control && is_missing()) {
        static_cast<void>(load_kernel_module(kModule, host.modprobe));
        control = open();
    }
    if (control) return control;
    if (is_missing()) return no_driver(host, path, errno);
    if (errno == EACCES || errno == EPERM)
        return Error{Errc::unavailable, errno, "not allowed to open " + path, "Run as root"};
    return sys_error("cannot open " + path);
}

Result<void> check_io_uring(const UblkHost& host) {
    // Linux 6.6: 1 = only for CAP_SYS_ADMIN and a group, 2 = for nobody (sysctl/kernel.rst).
    const std::string value = setting(host, "io_uring_disabled");
    if (value == "2") return io_uring_is_off(value);
    io_uring ring{};
    const int failure = -::io_uring_queue_init(1, &ring, IORING_SETUP_SQE128);
    if (failure == 0) {
        ::io_uring_queue_exit(&ring);
        return {};
    }
    if (failure == EPERM && value == "1") return io_uring_is_off(value);
    if (failure == EPERM)
        return Error{
            Errc::unavailable, failure, "not allowed to use io_uring",
            "A seccomp filter or security module forbids it: allow io_uring_setup(2), as containers do "
            "not by default"};
    if (failure == ENOSYS)
        return Error{Errc::unavailable, failure, "this kernel has no io_uring",
                     "Use one with CONFIG_IO_URING"};
    return Error{Errc::unavailable, failure, "cannot make an io_uring with large entries",
                 "Linux 6.0 or later is needed"};
}

Result<void> check_ublk_permission() {
    __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
    std::array<__user_cap_data_struct, _LINUX_CAPABILITY_U32S_3> sets{};
    if (::syscall(SYS_capget, &header, sets.data()) != 0) return sys_error("capget failed");
    if ((sets[0].effective & (std::uint32_t{1} << CAP_SYS_ADMIN)) != 0) return {};
    return Error{Errc::unavailable, EPERM, "not allowed to make ublk devices", "Run as root (CAP_SYS_ADMIN)"};
}

}  // namespace vramswap
