// SPDX-License-Identifier: MIT
#include "support/small_disk.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/loop.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <system_error>

namespace vramswap::test {
namespace {

[[noreturn]] void fail(const std::string& what) {
    throw std::system_error(errno, std::generic_category(), what);
}

UniqueFd open_unnamed(Bytes size) {
    const std::string directory = std::filesystem::temp_directory_path();
    UniqueFd fd(::open(directory.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
    if (!fd || ::ftruncate(fd.get(), static_cast<off_t>(size.n)) != 0)
        fail("a file without a name in " + directory);
    return fd;
}

/// From now on what this thread mounts is seen by nobody else, and gone with the process.
void enter_mount_namespace() {
    thread_local bool entered = false;
    if (entered) return;
    if (::unshare(CLONE_NEWNS) != 0) fail("a mount namespace");
    if (::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) fail("private mounts");
    entered = true;
}

void mount_at(const std::string& what, const std::string& where, const char* type,
              const std::string& options) {
    enter_mount_namespace();
    if (::mount(what.c_str(), where.c_str(), type, 0, options.c_str()) != 0)
        fail(fmt::format("a mount of {}", type));
}

}  // namespace

TemporaryDirectory::TemporaryDirectory()
    : path_(std::filesystem::temp_directory_path() / "vramswap-test-XXXXXX") {
    if (::mkdtemp(path_.data()) == nullptr) fail("a temporary directory");
}

TemporaryDirectory::~TemporaryDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
}

LoopDevice::LoopDevice(Bytes size) : backing_(open_unnamed(size)) {
    const UniqueFd control(::open("/dev/loop-control", O_RDWR | O_CLOEXEC));
    if (!control) fail("/dev/loop-control");
    loop_config config{};
    config.fd = static_cast<__u32>(backing_.get());
    config.info.lo_flags = LO_FLAGS_AUTOCLEAR;
    for (int attempts = 0; attempts < 100; ++attempts) {
        const int number = ::ioctl(control.get(), LOOP_CTL_GET_FREE);
        if (number < 0) fail("a free loop device");
        path_ = fmt::format("/dev/loop{}", number);
        device_.reset(::open(path_.c_str(), O_RDWR | O_CLOEXEC));
        if (!device_) fail(path_);
        if (::ioctl(device_.get(), LOOP_CONFIGURE, &config) == 0) return;
        if (errno != EBUSY) break;  // else another was faster
    }
    fail(path_);
}

SmallTmpfs::SmallTmpfs(Bytes size) {
    mount_at("vramswap-test", directory_.path(), "tmpfs", fmt::format("size={}", size.n));
}
SmallTmpfs::~SmallTmpfs() {
    ::umount2(directory_.path().c_str(), MNT_DETACH);
}

SmallExt4::SmallExt4(Bytes size) : device_(size) {
    make_ext4(device_.path());
    mount_at(device_.path(), directory_.path(), "ext4", "");
}
SmallExt4::~SmallExt4() {
    ::umount2(directory_.path().c_str(), MNT_DETACH);
}

void make_ext4(const std::string& device) {
    errno = ENOENT;
    const std::string command = "PATH=$PATH:/usr/sbin:/sbin mkfs.ext4 -q -m 0 " + device + " >/dev/null 2>&1";
    if (std::system(command.c_str()) != 0) fail("mkfs.ext4 " + device);  // NOLINT(cert-env33-c)
}

}  // namespace vramswap::test
