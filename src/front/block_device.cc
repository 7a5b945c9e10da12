// SPDX-License-Identifier: MIT
#include "front/block_device.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/eventfd.h>

#include <cerrno>
#include <filesystem>
#include <fstream>

#include "base/log.h"

namespace vramswap {
namespace {

std::string queue_setting_path(std::string_view sys_dir, std::string_view kernel_name,
                               std::string_view setting) {
    return fmt::format("{}/block/{}/queue/{}", sys_dir, kernel_name, setting);
}

bool is_swap(std::string_view kernel_name) {
    // Each line begins with the path of the device.
    std::ifstream swaps("/proc/swaps");
    std::string path;
    for (std::string rest; swaps >> path; std::getline(swaps, rest))
        if (path.ends_with(fmt::format("/{}", kernel_name))) return true;
    return false;
}

}  // namespace

std::string kernel_name_of(std::string_view path) {
    return std::string(path.substr(path.rfind('/') + 1));
}

std::string block_device_claimed_by(const std::string& path) {
    if (is_swap(kernel_name_of(path))) return "in use as swap";
    // Read-only, since closing a writer would make udev open the device.
    UniqueFd claim(::open(path.c_str(), O_RDONLY | O_EXCL | O_CLOEXEC));
    return !claim && errno == EBUSY ? "mounted or claimed by another user" : "";
}

Error block_device_busy(const std::string& path, std::string_view who) {
    return Error{
        Errc::busy, 0, fmt::format("{} is {}", path, who),
        fmt::format("Run `swapoff {}` or unmount it; `fuser -v {}` shows who has it open", path, path)};
}

std::uint64_t read_queue_setting(std::string_view sys_dir, std::string_view kernel_name,
                                 std::string_view setting) {
    std::uint64_t value = 0;
    std::ifstream(queue_setting_path(sys_dir, kernel_name, setting)) >> value;
    return value;
}

void write_queue_setting(std::string_view sys_dir, std::string_view kernel_name, std::string_view setting,
                         std::string_view value) {
    const std::string path = queue_setting_path(sys_dir, kernel_name, setting);
    std::ofstream file(path);
    file << value << std::flush;
    if (!file) log_warning("cannot set {} to {}", path, value);
}

void send_requests_at_once(std::string_view sys_dir, std::string_view kernel_name) {
    write_queue_setting(sys_dir, kernel_name, "scheduler", "none");
    if (read_queue_setting(sys_dir, kernel_name, "wbt_lat_usec") != 0)
        write_queue_setting(sys_dir, kernel_name, "wbt_lat_usec", "0");
}

Result<UniqueFd> reserve_fd_number() {
    UniqueFd number(::eventfd(0, EFD_CLOEXEC));
    if (!number) return sys_error("eventfd failed");
    return number;
}

std::uint64_t block_device_sectors(std::string_view sys_dir, std::string_view kernel_name) {
    std::uint64_t sectors = 0;
    std::ifstream(fmt::format("{}/block/{}/size", sys_dir, kernel_name)) >> sectors;
    return sectors;
}

Result<UniqueFd> name_node(const std::string& path) {
    UniqueFd name(::open(path.c_str(), O_PATH | O_CLOEXEC));
    if (!name) return sys_error("cannot name " + path);
    return name;
}

std::string named_node(const UniqueFd& fd) {
    std::error_code ignored;
    return std::filesystem::read_symlink(fmt::format("/proc/self/fd/{}", fd.get()), ignored).filename();
}

}  // namespace vramswap
