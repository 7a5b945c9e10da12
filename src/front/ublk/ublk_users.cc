// SPDX-License-Identifier: MIT
#include "front/ublk/ublk_users.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <system_error>

namespace vramswap {
namespace {

namespace fs = std::filesystem;

bool is_number(const std::string& text) {
    return !text.empty() &&
           std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
}

/// By the text of its links: stat(2) would follow a descriptor to a file server that may be gone.
bool has_open(const fs::path& process, const std::string& kernel_name, const fs::path& ours) {
    std::error_code error;
    for (fs::directory_iterator fd(process / "fd", error), end; !error && fd != end; fd.increment(error)) {
        std::error_code gone;
        const fs::path file = fs::read_symlink(fd->path(), gone);
        if (!gone && file.filename() == kernel_name && fd->path() != ours) return true;
    }
    return false;
}

bool lies_under_a_loop_device(const std::string& kernel_name) {
    std::error_code error;
    for (fs::directory_iterator block("/sys/block", error), end; !error && block != end;
         block.increment(error)) {
        std::string backing;
        std::getline(std::ifstream(block->path() / "loop/backing_file"), backing);
        if (fs::path(backing).filename() == kernel_name) return true;
    }
    return false;
}

}  // namespace

UniqueFd claim_block_device(const std::string& path) {
    // Read-only, since closing a writer would make udev open the device.
    return UniqueFd(::open(path.c_str(), O_RDONLY | O_EXCL | O_CLOEXEC));
}

bool is_open_elsewhere(const std::string& kernel_name, const UniqueFd& ours) {
    const fs::path our_link = fmt::format("/proc/{}/fd/{}", ::getpid(), ours.get());
    std::error_code error;
    for (fs::directory_iterator process("/proc", error), end; !error && process != end;
         process.increment(error))
        if (is_number(process->path().filename()) && has_open(process->path(), kernel_name, our_link))
            return true;
    return lies_under_a_loop_device(kernel_name);
}

}  // namespace vramswap
