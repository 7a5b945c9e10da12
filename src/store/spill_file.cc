// SPDX-License-Identifier: MIT
#include "store/spill_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <limits>
#include <memory>
#include <string_view>

#include "base/log.h"

namespace vramswap {
namespace {

/// The first bytes of a device that is a spill's, or was when its user died.
constexpr std::string_view kHeader = "vramswap spill: worthless without the process that wrote it\n";
/// What holds something has some of it here: file systems, LVM, LUKS, RAID (metadata 1.1, 1.2), partition
/// tables, swap; btrfs has its first super block at 64 KiB.
constexpr std::size_t kLookedAtBytes = 1u << 20;

/// Of <linux/magic.h> and the file systems' own headers (fs/*/ in Linux, lustre_user.h).
struct Unfit {
    std::uint32_t magic;
    const char* name;
};
constexpr std::array kNetwork{Unfit{NFS_SUPER_MAGIC, "NFS"},
                              Unfit{SMB_SUPER_MAGIC, "SMB"},
                              Unfit{CIFS_SUPER_MAGIC, "CIFS"},
                              Unfit{SMB2_SUPER_MAGIC, "SMB"},
                              Unfit{CEPH_SUPER_MAGIC, "Ceph"},
                              Unfit{AFS_SUPER_MAGIC, "AFS"},
                              Unfit{V9FS_MAGIC, "9P"},
                              Unfit{CODA_SUPER_MAGIC, "Coda"},
                              Unfit{OCFS2_SUPER_MAGIC, "OCFS2"},
                              Unfit{0x01161970 /* gfs2 */, "GFS2"},
                              Unfit{0x0BD00BD0 /* lustre */, "Lustre"}};

/// Of a spill in RAM: as many as write at once (kThreads of thread_io.cc). Measured on 16 cores: one file
/// takes 2.8 GB/s of new pages and 5 of old ones, whoever writes; four take 17.
constexpr std::uint32_t kFilesInRam = 4;

using Memory = std::unique_ptr<std::byte, decltype(&std::free)>;

/// Page-aligned for direct I/O, zeroed. REQUIRES: a multiple of a page.
Memory make_memory(std::size_t bytes) {
    Memory memory(static_cast<std::byte*>(std::aligned_alloc(kPageBytes, bytes)), &std::free);
    if (memory) std::memset(memory.get(), 0, bytes);
    return memory;
}

Result<std::uint32_t> file_system_of(int fd, const std::string& path) {
    struct statfs about {};
    if (::fstatfs(fd, &about) != 0) return sys_error(fmt::format("cannot ask the file system of {}", path));
    return static_cast<std::uint32_t>(about.f_type);
}

bool is_in_ram(std::uint32_t magic) {
    return magic == TMPFS_MAGIC || magic == RAMFS_MAGIC;
}

Result<void> check_file_system(std::uint32_t magic, const std::string& path) {
    constexpr const char* kHint = "Choose a directory on a local disk";
    for (const Unfit& unfit : kNetwork)
        if (unfit.magic == magic)
            return Error{Errc::unavailable, 0,
                         fmt::format("{} is on a network file system ({}), which needs memory to write", path,
                                     unfit.name),
                         kHint};
    // Of ntfs-3g, sshfs and the like: a process, which itself may wait for memory.
    if (magic == FUSE_SUPER_MAGIC)
        return Error{Errc::unavailable, 0,
                     fmt::format("{} is on a FUSE file system, whose process may wait for swap", path),
                     kHint};
    return {};
}

Result<void> check_not_own(const SpillConfig& config, dev_t device) {
    if (std::ranges::find(config.own_devices, device) == config.own_devices.end()) return {};
    return Error{Errc::usage, 0,
                 fmt::format("{} is on the device that it is to be the spill of", config.path),
                 "Choose a place on another disk"};
}

/// Where a write allocates again each time, room cannot be reserved; btrfs can be told not to, while the file
/// is empty. Best effort: writes may say no_space then.
void stop_copy_on_write(int fd) {
    int flags = 0;
    if (::ioctl(fd, FS_IOC_GETFLAGS, &flags) != 0) return;
    flags |= FS_NOCOW_FL;
    if (::ioctl(fd, FS_IOC_SETFLAGS, &flags) != 0)
        log_warning("the spill's file cannot be exempted from copy-on-write");
}

Result<UniqueFd> make_unnamed(const std::string& path, std::uint32_t magic) {
    constexpr int kFlags = O_TMPFILE | O_EXCL | O_RDWR | O_CLOEXEC;  // O_EXCL: it never gets a name
    constexpr mode_t kOwnerOnly = 0600;
    UniqueFd fd(::open(path.c_str(), kFlags | O_DIRECT, kOwnerOnly));
    // A tmpfs takes O_DIRECT from Linux 6.6 on. Before, buffered is the same: its page cache is the storage.
    if (!fd && errno == EINVAL && is_in_ram(magic)) fd.reset(::open(path.c_str(), kFlags, kOwnerOnly));
    if (fd) return fd;
    if (errno == EINVAL)
        return Error{Errc::unavailable, errno,
                     fmt::format("the file system of {} has no direct I/O (O_DIRECT)", path),
                     "Choose a directory on ext4, XFS or btrfs, or a block device"};
    if (errno == EOPNOTSUPP || errno == EISDIR)
        return Error{Errc::unavailable, errno,
                     fmt::format("the file system of {} has no files without a name (O_TMPFILE)", path),
                     "Choose a directory on ext4, XFS or btrfs, or a block device"};
    return sys_error(fmt::format("cannot make the spill's file in {}", path));
}

/// Refuses a device that holds something, and writes the header. Returns the state of its slots.
Result<SpillSlots::State> claim_device(int fd, const std::string& path) {
    const Memory memory = make_memory(kLookedAtBytes);
    if (!memory) return Error{Errc::no_memory, 0, "no memory to look at the spill's device"};
    if (::pread(fd, memory.get(), kLookedAtBytes, 0) != static_cast<ssize_t>(kLookedAtBytes))
        return sys_error(fmt::format("cannot read {}", path));
    const std::string_view text(reinterpret_cast<const char*>(memory.get()), kLookedAtBytes);
    const bool left_over = text.starts_with(kHeader);
    if (!left_over && text.find_first_not_of('\0') != std::string_view::npos)
        return Error{Errc::exists, 0, fmt::format("{} holds something", path),
                     fmt::format("If it is to be overwritten: blkdiscard --zeroout --length 1MiB {}", path)};
    std::memset(memory.get(), 0, kPageBytes);
    std::memcpy(memory.get(), kHeader.data(), kHeader.size());
    if (::pwrite(fd, memory.get(), kPageBytes, 0) != static_cast<ssize_t>(kPageBytes))
        return sys_error(fmt::format("cannot write to {}", path));
    return left_over ? SpillSlots::State::stale : SpillSlots::State::free;
}

}  // namespace

std::uint64_t slots_above_a_tenth(Bytes total, Bytes available) {
    const std::uint64_t kept = total.n / 10;
    return available.n <= kept ? 0 : (available.n - kept) / kChunkBytes;
}

Result<SpillFile> SpillFile::open(const SpillConfig& config) {
    struct stat about {};
    if (::stat(config.path.c_str(), &about) != 0)
        return Error{Errc::not_found, errno, fmt::format("there is no place for a spill at {}", config.path),
                     "Make the directory, or name a block device"};
    if (S_ISDIR(about.st_mode)) return open_file(config, about.st_dev);
    if (S_ISBLK(about.st_mode)) return open_device(config, about.st_rdev);
    return Error{Errc::usage, 0, fmt::format("{} is neither a directory nor a block device", config.path),
                 "Name the directory: the spill's file has no name there"};
}

Result<SpillFile> SpillFile::open_file(const SpillConfig& config, dev_t device) {
    if (auto other = check_not_own(config, device); !other) return std::move(other).error();
    const UniqueFd directory(::open(config.path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!directory) return sys_error(fmt::format("cannot open {}", config.path));
    const auto magic = file_system_of(directory.get(), config.path);
    if (!magic) return magic.error();
    if (auto fit = check_file_system(*magic, config.path); !fit) return std::move(fit).error();
    const std::uint64_t slots = config.size_max.n / kChunkBytes;
    const std::uint32_t files = is_in_ram(*magic) ? kFilesInRam : 1;
    std::vector<UniqueFd> fds;
    for (std::uint32_t n = 0; n < files; ++n) {
        auto fd = make_unnamed(config.path, *magic);
        if (!fd) return std::move(fd).error();
        if (*magic == BTRFS_SUPER_MAGIC) stop_copy_on_write(fd->get());
        // Its size never changes: writes beyond the end would wait for each other.
        const std::uint64_t own_slots = (slots + files - 1 - n) / files;
        if (::ftruncate(fd->get(), static_cast<off_t>(own_slots * kChunkBytes)) != 0)
            return sys_error(fmt::format("a file in {} cannot be as large as {}", config.path,
                                         format_size(config.size_max)));
        fds.push_back(std::move(*fd));
    }
    SpillFile file(std::move(fds), false);
    if (auto measured = file.measure(config, config.size_max.n); !measured)
        return std::move(measured).error();
    return file;
}

Result<SpillFile> SpillFile::open_device(const SpillConfig& config, dev_t device) {
    if (auto other = check_not_own(config, device); !other) return std::move(other).error();
    UniqueFd fd(::open(config.path.c_str(), O_RDWR | O_EXCL | O_DIRECT | O_CLOEXEC));
    if (!fd && errno == EBUSY)
        return Error{Errc::busy, EBUSY,
                     fmt::format("{} is mounted, in use as swap or by another", config.path),
                     fmt::format("See lsblk {} and swapon --show", config.path)};
    if (!fd) return sys_error(fmt::format("cannot open {}", config.path));
    std::vector<UniqueFd> fds;
    fds.push_back(std::move(fd));
    SpillFile file(std::move(fds), true);
    std::uint64_t size = 0;
    if (::ioctl(file.device(), BLKGETSIZE64, &size) != 0)
        return sys_error(fmt::format("cannot ask for the size of {}", config.path));
    if (auto measured = file.measure(config, size); !measured) return std::move(measured).error();
    const auto claimed = claim_device(file.device(), config.path);
    if (!claimed) return claimed.error();
    file.initial_state_ = *claimed;
    return file;
}

Result<SpillFile> SpillFile::take_over(const SpillConfig& config, std::vector<UniqueFd> fds) {
    if (fds.empty()) return Error{Errc::failed, 0, "the spill was not kept"};
    bool is_device = false;
    std::uint64_t size = 0;
    for (const UniqueFd& fd : fds) {
        struct stat about {};
        if (::fstat(fd.get(), &about) != 0) return sys_error("the spill that was handed over is not open");
        is_device = is_device || S_ISBLK(about.st_mode);
        size += static_cast<std::uint64_t>(about.st_size);
    }
    SpillFile file(std::move(fds), is_device);
    file.initial_state_ = SpillSlots::State::stale;
    if (file.is_device_ && ::ioctl(file.device(), BLKGETSIZE64, &size) != 0)
        return sys_error(fmt::format("cannot ask for the size of {}", config.path));
    if (auto measured = file.measure(config, size); !measured) return std::move(measured).error();
    return file;
}

/// What follows from the descriptors and `size`, that of all the files or of the device.
Result<void> SpillFile::measure(const SpillConfig& config, std::uint64_t size) {
    path_ = config.path;
    places_.offset = is_device_ ? kChunkBytes : 0;  // the header
    places_.files = static_cast<std::uint32_t>(fds_.size());
    const std::uint64_t usable = std::min(config.size_max.n, size - std::min(size, places_.offset));
    // Slots are counted in 32 bits: 8 PiB.
    places_.count = static_cast<std::uint32_t>(
        std::min<std::uint64_t>(usable / kChunkBytes, std::numeric_limits<std::uint32_t>::max()));
    if (places_.count == 0)
        return Error{Errc::usage, 0,
                     fmt::format("a spill of {} in {} has no room for a chunk", format_size({usable}), path_),
                     "It needs 2 MiB, on a block device 4 MiB"};
    int sector = 0;
    if (is_device_ && ::ioctl(device(), BLKSSZGET, &sector) == 0 && sector > static_cast<int>(kPageBytes))
        return Error{Errc::unavailable, 0,
                     fmt::format("{} has sectors of {} bytes, larger than a page", path_, sector)};
    const auto magic = file_system_of(fds_.front().get(), path_);
    if (!magic) return magic.error();
    if (!is_device_ && is_in_ram(*magic))
        remark_ = fmt::format("the spill in {} is in RAM: it frees no memory", path_);
    return {};
}

Bytes SpillFile::on_disk() const {
    if (is_device_) return {places_.offset_of(places_.count)};
    constexpr std::uint64_t kBlockBytes = 512;  // of st_blocks, whatever the file system's are
    std::uint64_t blocks = 0;
    for (const UniqueFd& fd : fds_) {
        struct stat about {};
        if (::fstat(fd.get(), &about) == 0) blocks += static_cast<std::uint64_t>(about.st_blocks);
    }
    return {blocks * kBlockBytes};
}

std::uint32_t SpillFile::room() const {
    if (is_device_) return places_.count;
    struct statvfs about {};
    if (::fstatvfs(fds_.front().get(), &about) != 0) return 0;
    const std::uint64_t slots = slots_above_a_tenth({std::uint64_t{about.f_blocks} * about.f_frsize},
                                                    {std::uint64_t{about.f_bavail} * about.f_frsize});
    return static_cast<std::uint32_t>(std::min<std::uint64_t>(slots, places_.count));
}

template <typename Change>
bool SpillFile::for_each_part(SlotRange slots, Change change) const {
    const std::uint32_t end = slots.first + slots.count;
    for (std::uint32_t first = slots.first; first < std::min(end, slots.first + places_.files); ++first) {
        const std::uint64_t count = (end - first + places_.files - 1) / places_.files;
        int done = 0;
        do {
            done = change(fds_[places_.file_of(first)].get(), static_cast<off_t>(places_.offset_of(first)),
                          static_cast<off_t>(count * kChunkBytes));
        } while (done != 0 && errno == EINTR);
        if (done != 0) return false;
    }
    return true;
}

Result<void> SpillFile::reserve(SlotRange slots) {
    if (is_device_) return {};
    if (for_each_part(slots,
                      [](int fd, off_t offset, off_t bytes) { return ::fallocate(fd, 0, offset, bytes); }))
        return {};
    if (errno == EOPNOTSUPP)
        return Error{Errc::unavailable, errno,
                     fmt::format("the file system of {} cannot reserve room (fallocate)", path_),
                     "Choose a directory on ext4, XFS or btrfs, or a block device"};
    return sys_error(fmt::format("cannot reserve {} in {}", format_size({slots.count * kChunkBytes}), path_));
}

Result<void> SpillFile::wipe(SlotRange slots) {
    const auto punch = [](int fd, off_t offset, off_t bytes) {
        return ::fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, bytes);
    };
    if (for_each_part(slots, punch)) return {};
    // A device that cannot give zeros for nothing: they are written.
    const std::uint64_t bytes = slots.count * kChunkBytes;
    const std::array<std::uint64_t, 2> range{places_.offset_of(slots.first), bytes};
    if (is_device_ && errno == EOPNOTSUPP && ::ioctl(device(), BLKZEROOUT, range.data()) == 0) return {};
    return sys_error(fmt::format("cannot wipe {} of the spill {}", format_size({bytes}), path_));
}

Result<void> SpillFile::clear() {
    if (!is_device_) {
        Result<void> emptied;
        for (const UniqueFd& fd : fds_)
            if (::ftruncate(fd.get(), 0) != 0)
                emptied = sys_error(fmt::format("cannot empty the spill {}", path_));
        return emptied;
    }
    const std::array<std::uint64_t, 2> header{0, kPageBytes};
    if (::ioctl(device(), BLKZEROOUT, header.data()) != 0)
        return sys_error(fmt::format("cannot wipe the header of {}", path_));
    return {};
}

}  // namespace vramswap
