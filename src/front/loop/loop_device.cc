// SPDX-License-Identifier: MIT
#include "front/loop/loop_device.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/fs.h>
#include <linux/loop.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <string_view>
#include <system_error>

#include "base/log.h"
#include "base/units.h"
#include "front/block_device.h"
#include "front/kernel_module.h"
#include "front/loop/io_thread.h"

namespace vramswap {
namespace {

/// Others may take the free number that we were told; on a busy machine several times in a row.
constexpr int kAttachAttempts = 64;

/// udev looks at a block device for some milliseconds after its last writer closed it, swapoff included. So
/// an opener that claims nothing is given this long to go away.
constexpr int kDetachAttempts = 100;
constexpr timespec kDetachPause{0, 10'000'000};

constexpr std::string_view kSysDir = "/sys";

Result<int> take_free_index(int control) {
    const int index = ::ioctl(control, LOOP_CTL_GET_FREE);
    if (index < 0) return sys_error("no free loop device");
    return index;
}

/// Opens `path` in the place of `number`.
Result<void> open_node(const std::string& path, const UniqueFd& number) {
    const UniqueFd device(::open(path.c_str(), O_RDWR | O_CLOEXEC));
    if (device && ::dup3(device.get(), number.get(), O_CLOEXEC) >= 0) return {};
    if (errno == ENOENT)
        return Error{Errc::unavailable, ENOENT, "no device node " + path,
                     "Make it with `mknod`, or mount devtmpfs on /dev"};
    return sys_error("cannot open " + path);
}

loop_config configuration(int file, const std::string& name) {
    loop_config config{};
    config.fd = static_cast<std::uint32_t>(file);
    config.block_size = kPageBytes;
    config.info.lo_flags = LO_FLAGS_DIRECT_IO | LO_FLAGS_AUTOCLEAR;
    std::memcpy(config.info.lo_file_name, name.data(), std::min<std::size_t>(name.size(), LO_NAME_SIZE - 1));
    return config;
}

/// "loop3". From sysfs, like the name below: LOOP_GET_STATUS64 takes a lock whose holder may wait for
/// requests, and asks the file for its attributes.
Result<std::string> read_kernel_name(const UniqueFd& device) {
    struct stat info {};
    if (::fstat(device.get(), &info) != 0) return sys_error("cannot query the kept loop device");
    if (!S_ISBLK(info.st_mode)) return Error{Errc::failed, 0, "what was kept is not a block device"};
    const std::string link =
        fmt::format("{}/dev/block/{}:{}", kSysDir, ::major(info.st_rdev), ::minor(info.st_rdev));
    std::error_code error;
    const auto folder = std::filesystem::read_symlink(link, error);
    if (error) return Error{Errc::failed, error.value(), "cannot read " + link};
    return folder.filename().string();
}

std::string backing_file_of(const std::string& kernel_name) {
    std::ifstream file(fmt::format("{}/block/{}/loop/backing_file", kSysDir, kernel_name));
    std::string path;
    std::getline(file, path);
    return path;
}

}  // namespace

Result<UniqueFd> open_loop_control(const std::string& dev_dir) {
    const std::string path = dev_dir + "/loop-control";
    const auto open = [&] { return UniqueFd(::open(path.c_str(), O_RDWR | O_CLOEXEC)); };
    const auto is_missing = [] { return errno == ENOENT || errno == ENXIO || errno == ENODEV; };
    UniqueFd control = open();
    if (!control && is_missing()) {
        static_cast<void>(load_kernel_module("loop"));
        control = open();
    }
    if (control) return control;
    if (is_missing())
        return Error{Errc::unavailable, errno, "no loop driver at " + path, "Load it with `modprobe loop`"};
    if (errno == EACCES || errno == EPERM)
        return Error{Errc::unavailable, errno, "not allowed to open " + path, "Run as root"};
    return sys_error("cannot open " + path);
}

Result<LoopDevice> LoopDevice::attach(const std::string& dev_dir, int file, const std::string& name,
                                      UniqueFd number) {
    auto control = open_loop_control(dev_dir);
    if (!control) return std::move(control).error();
    const loop_config config = configuration(file, name);
    for (int attempt = 0; attempt < kAttachAttempts; ++attempt) {
        auto index = take_free_index(control->get());
        if (!index) return std::move(index).error();
        const std::string kernel_name = fmt::format("loop{}", *index);
        const std::string path = fmt::format("{}/{}", dev_dir, kernel_name);
        if (auto opened = open_node(path, number); !opened) return std::move(opened).error();
        if (::ioctl(number.get(), LOOP_CONFIGURE, &config) == 0) {
            LoopDevice device(path, kernel_name, std::move(number));
            if (auto checked = device.check_direct_io(); !checked) return std::move(checked).error();
            device.tune_queue();
            return device;
        }
        if (errno != EBUSY) return sys_error("cannot configure " + path);
    }
    return Error{Errc::busy, EBUSY,
                 fmt::format("{} loop devices were taken by others before us", kAttachAttempts)};
}

Result<LoopDevice> LoopDevice::adopt(const std::string& dev_dir, UniqueFd device, const std::string& name,
                                     Bytes size) {
    auto kernel_name = read_kernel_name(device);
    if (!kernel_name) return std::move(kernel_name).error();
    const std::string path = fmt::format("{}/{}", dev_dir, *kernel_name);
    if (const std::string file = backing_file_of(*kernel_name); file != "/" + name)
        return Error{Errc::failed, 0, fmt::format("{} is over '{}', not '/{}'", path, file, name)};
    std::uint64_t bytes = 0;
    if (::ioctl(device.get(), BLKGETSIZE64, &bytes) != 0) return sys_error("cannot query " + path);
    if (bytes != size.n)
        return Error{Errc::failed, 0, fmt::format("{} has {} bytes, not {}", path, bytes, size.n)};
    return LoopDevice(path, *kernel_name, std::move(device));
}

Result<void> LoopDevice::check_direct_io() const {
    // The kernel drops the flag without a word if it does not like the file. Through the page cache, every
    // swapped page would be in RAM twice and wait for writeback: worse than no device.
    loop_info64 info{};
    if (::ioctl(device_.get(), LOOP_GET_STATUS64, &info) != 0) return sys_error("cannot query " + path_);
    if ((info.lo_flags & LO_FLAGS_DIRECT_IO) != 0) return {};
    return Error{Errc::unavailable, 0, fmt::format("the kernel refuses direct I/O on {}", path_),
                 "Use another frontend"};
}

void LoopDevice::tune_queue() const {
    send_requests_at_once(kSysDir, kernel_name_);
    write_queue_setting(kSysDir, kernel_name_, "rotational", "0");
    write_queue_setting(kSysDir, kernel_name_, "add_random", "0");
    // One request of the block layer shall be one of FUSE.
    const std::uint64_t limit_kb = read_queue_setting(kSysDir, kernel_name_, "max_hw_sectors_kb");
    if (limit_kb != 0)
        write_queue_setting(kSysDir, kernel_name_, "max_sectors_kb",
                            fmt::format("{}", std::min<std::uint64_t>(kFuseTransferBytes >> 10, limit_kb)));
    if (read_queue_setting(kSysDir, kernel_name_, "discard_max_bytes") == 0)
        log_warning("{} takes no discards: freed swap pages will keep their VRAM", path_);
}

Result<void> LoopDevice::detach() {
    for (int attempt = 0; attempt < kDetachAttempts; ++attempt) {
        // It says so at once and by name; the safety lies in LOOP_CLR_FD.
        if (const std::string who = block_device_claimed_by(path_); !who.empty())
            return block_device_busy(path_, who);
        if (::fsync(device_.get()) != 0) log_warning("{}", sys_error("cannot write out " + path_).text());
        // ENXIO: somebody else has removed it already.
        if (::ioctl(device_.get(), LOOP_CLR_FD) != 0 && errno != ENXIO)
            return sys_error("cannot remove " + path_);
        if (!is_bound()) return {};
        ::nanosleep(&kDetachPause, nullptr);
    }
    return block_device_busy(path_, "open in another process");
}

/// LOOP_GET_STATUS64 answers ENXIO from the moment at which LOOP_CLR_FD has found us alone.
bool LoopDevice::is_bound() const {
    loop_info64 info{};
    return ::ioctl(device_.get(), LOOP_GET_STATUS64, &info) == 0;
}

}  // namespace vramswap
