// SPDX-License-Identifier: MIT
// The probe of a place for a spill: tries what the worker would do there, in a process of its own, and leaves
// nothing. Commands know nothing of the store, and a network disk may hang.
#include <fcntl.h>
#include <fmt/format.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>

#include "ctl/messages.h"
#include "daemon/roles.h"
#include "store/spill_file.h"

namespace vramswap {
namespace {

/// A chunk is enough to see whether files without a name, direct I/O and reserved room are to be had.
Result<void> look_at_directory(ProbedSpill& spill) {
    auto file = SpillFile::open({spill.path, {kChunkBytes}});
    if (!file) return std::move(file).error();
    spill.remark = file->remark();
    struct statvfs about {};
    if (::fstatvfs(file->fds().front().get(), &about) != 0)
        return sys_error(fmt::format("cannot ask for the free space of {}", spill.path));
    spill.room = Bytes{kChunkBytes} * slots_above_a_tenth({std::uint64_t{about.f_blocks} * about.f_frsize},
                                                          {std::uint64_t{about.f_bavail} * about.f_frsize});
    const auto reserved = file->reserve({0, 1});
    if (reserved) return {};
    if (reserved.error().sys != ENOSPC && reserved.error().sys != EDQUOT) return reserved.error();
    spill.room = {};
    return {};
}

/// What is on the device is the worker's to look at: it writes its header in the same breath.
Result<void> look_at_device(ProbedSpill& spill) {
    spill.is_device = true;
    const UniqueFd fd(::open(spill.path.c_str(), O_RDONLY | O_EXCL | O_CLOEXEC));
    if (!fd && errno == EBUSY)
        return Error{Errc::busy, EBUSY,
                     fmt::format("{} is mounted, in use as swap or by another", spill.path),
                     fmt::format("See lsblk {} and swapon --show", spill.path)};
    if (!fd) return sys_error(fmt::format("cannot open {}", spill.path));
    std::uint64_t size = 0;
    if (::ioctl(fd.get(), BLKGETSIZE64, &size) != 0)
        return sys_error(fmt::format("cannot ask for the size of {}", spill.path));
    spill.room = {round_down(size - std::min<std::uint64_t>(size, kChunkBytes), kChunkBytes)};
    return {};
}

Result<void> look_at(ProbedSpill& spill) {
    struct stat about {};
    if (::stat(spill.path.c_str(), &about) == 0 && S_ISBLK(about.st_mode)) return look_at_device(spill);
    return look_at_directory(spill);
}

}  // namespace

int run_spill_probe(const std::vector<std::string>& arguments) {
    if (arguments.size() != 1) return 2;
    ProbedSpill spill;
    spill.path = arguments[0];
    if (auto fit = look_at(spill); !fit) spill.problem = fit.error();
    std::puts(to_json(spill).c_str());
    return 0;
}

}  // namespace vramswap
