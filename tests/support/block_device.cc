// SPDX-License-Identifier: MIT
#include "support/block_device.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <new>
#include <system_error>
#include <thread>

#include "base/clock.h"
#include "base/units.h"

namespace vramswap::test {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t kWatchdogNs = 20'000'000'000;

std::uint64_t word_for(std::uint64_t byte_offset, std::uint64_t generation) {
    std::uint64_t x = (byte_offset + 1) * 0x9e3779b97f4a7c15u ^ (generation + 1) * 0xbf58476d1ce4e5b9u;
    x ^= x >> 29;
    return x * 0x94d049bb133111ebu;
}

template <typename Transfer>
int transfer_all(DirectBuffer& buffer, std::uint64_t offset, Transfer transfer) {
    for (std::size_t done = 0; done < buffer.size();) {
        const ssize_t n =
            transfer(buffer.data() + done, buffer.size() - done, static_cast<off_t>(offset + done));
        if (n < 0) return errno;
        if (n == 0) return ENODATA;
        done += static_cast<std::size_t>(n);
    }
    return 0;
}

int range_ioctl(const UniqueFd& device, unsigned long request, std::uint64_t offset, std::uint64_t bytes) {
    std::array<std::uint64_t, 2> range{offset, bytes};
    return ::ioctl(device.get(), request, range.data()) == 0 ? 0 : errno;
}

std::size_t count_entries(const fs::path& folder) {
    std::error_code error;
    const auto entries = fs::directory_iterator(folder, error);
    return error ? 0 : static_cast<std::size_t>(std::distance(fs::begin(entries), fs::end(entries)));
}

std::string device_name_prefix() {
    return fmt::format("test-{}-", ::getpid());
}

std::size_t count_loop_devices() {
    std::size_t count = 0;
    for (const auto& block : fs::directory_iterator("/sys/block")) {
        std::string backing;
        std::getline(std::ifstream(block.path() / "loop/backing_file"), backing);
        if (backing.starts_with("/vramswap-" + device_name_prefix())) ++count;
    }
    return count;
}

}  // namespace

DirectBuffer::DirectBuffer(std::size_t bytes)
    : bytes_(bytes),
      memory_(static_cast<std::byte*>(std::aligned_alloc(kPageBytes, round_up(bytes, kPageBytes)))) {
    if (!memory_) throw std::bad_alloc();
    std::memset(memory_.get(), 0xee, bytes);
}

DirectBuffer& DirectBuffer::fill(std::uint64_t device_offset, std::uint64_t generation) {
    for (std::size_t at = 0; at + 8 <= bytes_; at += 8) {
        const std::uint64_t word = word_for(device_offset + at, generation);
        std::memcpy(memory_.get() + at, &word, sizeof word);
    }
    return *this;
}

std::string DirectBuffer::mismatch(std::uint64_t device_offset, std::uint64_t generation) const {
    for (std::size_t at = 0; at + 8 <= bytes_; at += 8) {
        std::uint64_t word = 0;
        std::memcpy(&word, memory_.get() + at, sizeof word);
        if (word != word_for(device_offset + at, generation))
            return fmt::format("byte {} of the device is not of generation {}", device_offset + at,
                               generation);
    }
    return "";
}

bool DirectBuffer::is_zero() const {
    return std::all_of(memory_.get(), memory_.get() + bytes_, [](std::byte b) { return b == std::byte{0}; });
}

UniqueFd open_device(const std::string& path, Opening how) {
    const int flags = how == Opening::direct ? O_DIRECT : how == Opening::exclusive ? O_DIRECT | O_EXCL : 0;
    UniqueFd device(::open(path.c_str(), O_RDWR | O_CLOEXEC | flags));
    if (!device) throw std::system_error(errno, std::generic_category(), path);
    return device;
}

int write_at(const UniqueFd& device, DirectBuffer& buffer, std::uint64_t offset) {
    return transfer_all(buffer, offset, [&](std::byte* data, std::size_t bytes, off_t at) {
        return ::pwrite(device.get(), data, bytes, at);
    });
}

int read_at(const UniqueFd& device, DirectBuffer& buffer, std::uint64_t offset) {
    return transfer_all(buffer, offset, [&](std::byte* data, std::size_t bytes, off_t at) {
        return ::pread(device.get(), data, bytes, at);
    });
}

int discard_at(const UniqueFd& device, std::uint64_t offset, std::uint64_t bytes) {
    return range_ioctl(device, BLKDISCARD, offset, bytes);
}

int zero_at(const UniqueFd& device, std::uint64_t offset, std::uint64_t bytes) {
    return range_ioctl(device, BLKZEROOUT, offset, bytes);
}

std::int64_t queue_setting(const std::string& path, std::string_view setting) {
    std::int64_t value = -1;
    std::ifstream(fs::path("/sys/block") / fs::path(path).filename() / "queue" / setting) >> value;
    return value;
}

bool start_swap(const UniqueFd& device, const std::string& path, std::uint64_t bytes) {
    // union swap_header of include/linux/swap.h: version and last_page at 1024, the magic at the page's end.
    DirectBuffer header(kPageBytes);
    std::memset(header.data(), 0, header.size());
    const std::array<std::uint32_t, 2> info{1, static_cast<std::uint32_t>(bytes / kPageBytes - 1)};
    std::memcpy(header.data() + 1024, info.data(), sizeof info);
    constexpr std::string_view kMagic = "SWAPSPACE2";
    std::memcpy(header.data() + kPageBytes - kMagic.size(), kMagic.data(), kMagic.size());
    if (const int failure = write_at(device, header, 0); failure != 0) {
        errno = failure;
        return false;
    }
    // As system calls: the folder src/sys has a swap.h too, and comes before <sys/swap.h> on the include
    // path.
    return ::syscall(SYS_swapon, path.c_str(), 0) == 0;
}

bool stop_swap(const std::string& path) {
    return ::syscall(SYS_swapoff, path.c_str()) == 0;
}

std::string unique_device_name() {
    static std::atomic<unsigned> calls{0};
    return fmt::format("{}{}", device_name_prefix(), calls.fetch_add(1));
}

Held what_is_held() {
    Held held{.fds = count_entries("/proc/self/fd"), .loop_devices = count_loop_devices(), .threads = {}};
    for (const auto& task : fs::directory_iterator("/proc/self/task")) held.threads.insert(task.path().filename());
    return held;
}

std::string what_stays(const Held& before) {
    const std::uint64_t deadline = now_ns() + kWatchdogNs;
    for (;;) {
        const Held now = what_is_held();
        std::vector<std::string> threads;
        std::ranges::set_difference(now.threads, before.threads, std::back_inserter(threads));
        if (now.fds <= before.fds && now.loop_devices <= before.loop_devices && threads.empty()) return "";
        if (now_ns() >= deadline)
            return fmt::format("{} fds, {} before; {} loop devices, {} before; {} new threads", now.fds, before.fds,
                               now.loop_devices, before.loop_devices, threads.size());
        std::this_thread::yield();
    }
}

}  // namespace vramswap::test
