// SPDX-License-Identifier: MIT
// MemoryCgroup: a control group with a memory limit, to make a few processes swap while the machine does not
// (`demo`, `bench`, tests). Owned by the command that made it, used by one thread; calls block on the cgroup
// file system, kill_all and remove for up to 5 seconds. Works with the memory controller of v1, of v2, and of
// a hybrid where it is on either side. Errors: unavailable = this machine or container offers no memory
// controller that we may use (the message says what is missing), exists = the name is taken by running
// processes, failed = the rest.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "base/units.h"
#include "sys/proc.h"

namespace vramswap {

enum class CgroupVersion : std::uint8_t { v1, v2 };

/// The hierarchy that has the memory controller. Paths are those of the system, below SysRoot.
struct MemoryHierarchy {
    CgroupVersion version = CgroupVersion::v2;
    std::string mount;  ///< where it is mounted ("/sys/fs/cgroup/memory")
    std::string own;    ///< the directory of the calling process's group; begins with `mount`
};
/// From /proc/self/mountinfo, /proc/self/cgroup and cgroup.controllers. Errors: unavailable.
[[nodiscard]] Result<MemoryHierarchy> find_memory_hierarchy(const SysRoot& root = {});

/// How long kill_all and remove wait for processes to end.
inline constexpr int kCgroupWaitMs = 5000;

class MemoryCgroup {
  public:
    /// Makes a group `name` and limits it. v1: a child of the caller's group. v2: below the nearest group,
    /// from the caller's towards the root, that may hand the controller to children ("no internal processes"
    /// rule of Documentation/admin-guide/cgroup-v2.rst): as a rule a sibling of the caller's. Writes
    /// "+memory" to that parent's cgroup.subtree_control if needed; it stays there, since others may rely on
    /// it by the time of remove(). A group of that name without processes, left by a crash, is replaced. Swap
    /// is unlimited. Errors: usage, for a bad name or a limit below one page; unavailable, exists, failed.
    [[nodiscard]] static Result<MemoryCgroup> create(std::string_view name, Bytes limit,
                                                     const SysRoot& root = {});
    /// Takes over the directory `path` (below `root`) of an existing group, with the duty to remove it.
    /// `home` is the group that the caller goes back to if it is inside; empty = none.
    [[nodiscard]] static MemoryCgroup adopt(CgroupVersion version, std::string path, std::string home,
                                            const SysRoot& root = {});

    MemoryCgroup(MemoryCgroup&& other) noexcept;
    MemoryCgroup& operator=(MemoryCgroup&& other) noexcept;
    MemoryCgroup(const MemoryCgroup&) = delete;
    MemoryCgroup& operator=(const MemoryCgroup&) = delete;
    /// remove(); logs a warning if that fails. Does nothing in a forked copy of the process that made the
    /// object.
    ~MemoryCgroup();

    [[nodiscard]] CgroupVersion version() const { return version_; }
    /// The directory, below SysRoot; empty after remove().
    [[nodiscard]] const std::string& path() const { return path_; }

    /// v1: memory.limit_in_bytes; memsw stays unlimited. v2: memory.high, which lets a process wait while its
    /// pages are on their way to a slow device; at memory.max Linux 6.12 kills it after a second or so, for v2
    /// does not wait for writeback as v1 does. memory.max is twice that, memory.swap.max = max. The kernel
    /// rounds down to pages. Lowering blocks while it reclaims. Errors: usage, below one page; busy (v1), if
    /// the kernel cannot reclaim that much; failed.
    [[nodiscard]] Result<void> set_limit(Bytes limit);
    /// Moves a process with its threads into the group. What it has in RAM stays charged where it was.
    /// Errors: usage, for an id below 1; not_found, if it has ended; failed.
    [[nodiscard]] Result<void> add_pid(pid_t pid);
    /// Processes inside, without those that this pid namespace cannot see.
    [[nodiscard]] Result<std::vector<pid_t>> pids() const;

    /// RAM charged to the group (v1 memory.usage_in_bytes, v2 memory.current).
    [[nodiscard]] Result<Bytes> usage() const;
    /// Swap charged to the group with its children (v1 total_swap of memory.stat, v2 memory.swap.current).
    /// Errors: unavailable, if the kernel does not account for swap (swapaccount=0).
    [[nodiscard]] Result<Bytes> swap_used() const;
    /// Processes of the group that the OOM killer ended (v1 memory.oom_control, Linux 4.13; v2
    /// memory.events). Errors: unavailable, if the kernel does not count them.
    [[nodiscard]] Result<std::uint64_t> oom_kills() const;

    /// Kills every process inside and waits up to `timeout_ms` until they have ended; the caller itself, if
    /// inside, goes home first. v2 uses cgroup.kill (5.14). Errors: failed, if some are left then (asleep in
    /// the kernel, or not ours).
    [[nodiscard]] Result<void> kill_all(int timeout_ms = kCgroupWaitMs);
    /// kill_all, then rmdir. Repeating it is harmless. Errors: as kill_all; busy, if the group has child
    /// groups.
    [[nodiscard]] Result<void> remove(int timeout_ms = kCgroupWaitMs);

  private:
    MemoryCgroup(CgroupVersion version, std::string path, std::string home, SysRoot root);

    [[nodiscard]] std::string file(std::string_view name) const;
    [[nodiscard]] Result<void> go_home();
    [[nodiscard]] Result<void> kill_round(const std::vector<pid_t>& victims, std::uint64_t deadline_ns);
    void remove_or_warn() noexcept;

    CgroupVersion version_;
    std::string path_;
    std::string home_;
    SysRoot root_;
    pid_t owner_;  ///< the process whose object this is
};

}  // namespace vramswap
