// SPDX-License-Identifier: MIT
#include "front/nbd/nbd_device.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/fs.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <ctime>
#include <fstream>

#include "base/log.h"
#include "front/block_device.h"
#include "front/nbd/nbd_abi.h"
#include "front/nbd/nbd_slots.h"

namespace vramswap {
namespace {

/// udev looks at a block device for some milliseconds after its last writer closed it, swapoff included. So
/// an opener that claims nothing is given this long to go away.
constexpr int kOthersTimeoutMs = 1000;

/// From the moment at which the sockets are shut down until the kernel has cleaned up: it is doing so
/// already.
constexpr int kReleaseAttempts = 100;
constexpr timespec kReleasePause{0, 10'000'000};

/// Our end hangs up when the kernel shuts its end down. One of them alone may also have failed.
bool are_hung_up(std::span<const int> our_ends, int timeout_ms) {
    return std::all_of(our_ends.begin(), our_ends.end(), [&](int socket) {
        pollfd end{socket, 0, 0};
        while (::poll(&end, 1, timeout_ms) < 0)
            if (errno != EINTR) return false;
        return (end.revents & POLLHUP) != 0;
    });
}

}  // namespace

std::optional<std::uint32_t> nbd_index(std::string_view kernel_name) {
    constexpr std::string_view kPrefix = "nbd";
    if (!kernel_name.starts_with(kPrefix)) return std::nullopt;
    std::uint32_t index = 0;
    const char* const end = kernel_name.data() + kernel_name.size();
    const auto parsed = std::from_chars(kernel_name.data() + kPrefix.size(), end, index);
    if (parsed.ec != std::errc() || parsed.ptr != end) return std::nullopt;
    return index;
}

std::string nbd_backend(const NbdSystem& system, std::string_view kernel_name) {
    std::string backend;
    std::getline(std::ifstream(fmt::format("{}/block/{}/backend", system.sys_dir, kernel_name)), backend);
    return backend;
}

NbdDevice::NbdDevice(NbdSystem system, NbdNetlink netlink, NbdSettings settings, std::uint32_t index,
                     UniqueFd number)
    : system_(std::move(system)),
      netlink_(std::move(netlink)),
      settings_(std::move(settings)),
      index_(index),
      kernel_name_(fmt::format("nbd{}", index)),
      path_(fmt::format("{}/{}", system_.dev_dir, kernel_name_)),
      device_(std::move(number)) {}

Result<NbdDevice> NbdDevice::attach(const NbdSystem& system, const NbdSettings& settings,
                                    std::span<const int> kernel_ends, UniqueFd number) {
    auto netlink = NbdNetlink::open(system.family);
    if (!netlink) return std::move(netlink).error();
    auto index = netlink->connect(settings, kernel_ends);
    if (!index) return std::move(index).error();
    NbdDevice device(system, std::move(*netlink), settings, *index, std::move(number));
    if (auto ready = device.make_ready(); !ready) {
        device.abandon();  // nobody was told of it yet
        if (auto closed = device.close(); !closed) log_error("{}", closed.error().text());
        device.wait_until_released();
        return std::move(ready).error();
    }
    return device;
}

Result<NbdDevice> NbdDevice::adopt(const NbdSystem& system, const NbdSettings& settings, UniqueFd kept) {
    const std::string name = named_node(kept);
    const auto index = nbd_index(name);
    if (!index) return Error{Errc::failed, 0, fmt::format("what was kept is '{}' and no nbd device", name)};
    auto netlink = NbdNetlink::open(system.family);
    if (!netlink) return std::move(netlink).error();
    NbdDevice device(system, std::move(*netlink), settings, *index, std::move(kept));
    if (!device.is_ours()) return Error{Errc::failed, 0, device.path() + " has been disconnected"};
    if (auto checked = device.check_geometry(); !checked) return std::move(checked).error();
    return device;
}

Result<void> NbdDevice::reconnect(int kernel_end) {
    return netlink_.reconnect(index_, settings_.backend, kernel_end);
}

Result<void> NbdDevice::make_ready() {
    if (auto opened = open(); !opened) return opened;
    if (auto checked = check_geometry(); !checked) return checked;
    tune_queue();
    // Not before it is open: somebody else who opens and closes it first would end it.
    return netlink_.set_client_flags(index_, settings_.backend, nbd_abi::kClientDisconnectOnClose);
}

Result<void> NbdDevice::open() {
    // Read-only: a writer would keep others from mounting it (CONFIG_BLK_DEV_WRITE_MOUNTED), and wake udev at
    // its end.
    const UniqueFd device(::open(path_.c_str(), O_RDONLY | O_CLOEXEC));
    if (device && ::dup3(device.get(), device_.get(), O_CLOEXEC) >= 0) return {};
    if (errno == ENOENT || errno == ENXIO)
        return Error{Errc::unavailable, errno, "no device node " + path_,
                     "Mount devtmpfs on " + system_.dev_dir};
    return sys_error("cannot open " + path_);
}

/// Closes the device and keeps the number of its descriptor.
Result<void> NbdDevice::close() {
    auto placeholder = reserve_fd_number();
    if (!placeholder) return std::move(placeholder).error();
    if (::dup3(placeholder->get(), device_.get(), O_CLOEXEC) < 0) return sys_error("cannot close " + path_);
    return {};
}

Result<void> NbdDevice::check_geometry() const {
    std::uint64_t bytes = 0;
    int block_bytes = 0;
    if (::ioctl(device_.get(), BLKGETSIZE64, &bytes) != 0 ||
        ::ioctl(device_.get(), BLKSSZGET, &block_bytes) != 0)
        return sys_error("cannot query " + path_);
    if (bytes == settings_.size.n && block_bytes == static_cast<int>(kPageBytes)) return {};
    return Error{Errc::failed, 0,
                 fmt::format("{} has {} bytes in blocks of {}, not {} in blocks of {}", path_, bytes,
                             block_bytes, settings_.size.n, kPageBytes),
                 "Is it the kernel's node? Mount devtmpfs on " + system_.dev_dir};
}

/// A device keeps settings of those who had it before; Linux 6.12 even ROTATIONAL.
void NbdDevice::tune_queue() const {
    send_requests_at_once(system_.sys_dir, kernel_name_);
    write_queue_setting(system_.sys_dir, kernel_name_, "max_sectors_kb",
                        fmt::format("{}", kNbdTransferBytes >> 10));
    if (read_queue_setting(system_.sys_dir, kernel_name_, "rotational") != 0)
        write_queue_setting(system_.sys_dir, kernel_name_, "rotational", "0");
    if (read_queue_setting(system_.sys_dir, kernel_name_, "add_random") != 0)
        write_queue_setting(system_.sys_dir, kernel_name_, "add_random", "0");
    if (read_queue_setting(system_.sys_dir, kernel_name_, "discard_max_bytes") == 0)
        log_warning("{} takes no discards: freed swap pages will keep their VRAM", path_);
}

Result<void> NbdDevice::detach(std::span<const int> our_ends) {
    if (::fsync(device_.get()) != 0) log_warning("{}", sys_error("cannot write out " + path_).text());
    if (auto closed = close(); !closed) return closed;
    // At once if we were the only user; else as soon as the last one goes.
    if (!are_hung_up(our_ends, kOthersTimeoutMs)) {
        if (auto opened = open(); !opened) log_error("{}", std::move(opened).error().in("at stop").text());
        if (!are_hung_up(our_ends, 0)) return block_device_busy(path_, "open in another process");
        if (auto closed = close(); !closed) return closed;  // the last user went just before we opened it
    }
    wait_until_released();
    return {};
}

void NbdDevice::abandon() {
    if (auto ended = netlink_.disconnect(index_); !ended) log_error("{}", ended.error().text());
}

/// Whether the device is still the one that we have connected. Its number may be somebody else's by now.
bool NbdDevice::is_ours() {
    const auto in_use = netlink_.is_in_use(index_);
    if (in_use && !*in_use) return false;
    return nbd_backend(system_, kernel_name_) == settings_.backend;
}

void NbdDevice::wait_until_released() {
    for (int attempt = 0; is_ours(); ++attempt) {
        if (attempt == kReleaseAttempts) {
            log_warning("{} is disconnected, but somebody still has it open", path_);
            return;
        }
        ::nanosleep(&kReleasePause, nullptr);
    }
}

}  // namespace vramswap
