// SPDX-License-Identifier: MIT
// What a process does to itself before it may serve a swap device (marks, locks, limits), what it can learn
// about another one, and reading and writing small files. Owned by nobody, no state. Control threads only,
// most of it from main before threads exist: calls block on the file system and allocate. Errors: unavailable
// = this kernel cannot, no_memory = locking failed for want of memory or limit, not_found = no such process
// or file, failed = the rest, with errno; EPERM comes with the capability that is missing.
#pragma once

#include <sys/types.h>

#include <compare>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/result.h"
#include "base/unique_fd.h"
#include "base/units.h"
#include "sys/proc.h"

namespace vramswap {

// --- marks of the calling process ---

/// Marks the calling thread as one that swap I/O depends on: its allocations never start swap-out or
/// writeback. prctl(PR_SET_IO_FLUSHER = 57, 1), include/uapi/linux/prctl.h; Linux 5.6; needs
/// CAP_SYS_RESOURCE. Per thread, inherited by clone, fork and exec: call it before any other thread exists.
/// (0 would clear it.)
[[nodiscard]] Result<void> set_io_flusher();
/// True if the task bears both marks of an IO flusher, PF_MEMALLOC_NOIO (0x00080000) and PF_LOCAL_THROTTLE
/// (0x00100000) of include/linux/sched.h, in /proc/PID/task/TID/stat.
[[nodiscard]] Result<bool> has_io_flusher(pid_t pid, pid_t tid, const SysRoot& root = {});

/// The value that exempts from the OOM killer (OOM_SCORE_ADJ_MIN, include/uapi/linux/oom.h).
inline constexpr int kOomScoreExempt = -1000;
/// Writes /proc/self/oom_score_adj, -1000 to 1000. Lowering needs CAP_SYS_RESOURCE. Inherited by children.
[[nodiscard]] Result<void> set_oom_score_adj(int score, const SysRoot& root = {});

enum class LockMode : std::uint8_t {
    populate,  ///< everything mapped now and later is brought in and stays (MCL_CURRENT | MCL_FUTURE)
    on_fault,  ///< stays once touched (and MCL_ONFAULT, Linux 4.4): for processes with huge reservations, as
               ///< GPU drivers make; the caller touches its own memory beforehand
};
/// Raises RLIMIT_MEMLOCK to infinity where allowed, then mlockall(2). Not inherited by fork, dropped by exec.
/// Blocks while pages are brought in. Needs CAP_IPC_LOCK or the limit. Errors: no_memory, failed.
[[nodiscard]] Result<void> lock_memory(LockMode mode);

/// No core file and no ptrace by others of the same user: PR_SET_DUMPABLE 0 and RLIMIT_CORE 0. Keys stay
/// inside. /proc/self then belongs to root; a process with another user id cannot write there any more.
[[nodiscard]] Result<void> disable_core_dumps();
/// prctl(PR_SET_THP_DISABLE = 41, 1): khugepaged does not collapse (and so unmap for a moment) our pages.
/// Inherited by fork, kept over exec.
[[nodiscard]] Result<void> disable_thp();
/// Effective user id 0. Capabilities may still be missing: the calls that need one say so.
[[nodiscard]] bool is_root();
/// The effective capabilities as a bit mask (CapEff of /proc/self/status; numbers of linux/capability.h).
[[nodiscard]] Result<std::uint64_t> read_capabilities(const SysRoot& root = {});
inline constexpr int kCapSysResource = 24;  ///< CAP_SYS_RESOURCE
/// Raises the limit of open files to `wanted`, the hard one too where allowed; never lowers. Returns what
/// holds now (less than `wanted` if more is not allowed).
[[nodiscard]] Result<std::uint64_t> raise_nofile(std::uint64_t wanted);
/// The caller gets `signal` when its parent ends. The kernel means the parent *thread* that forked: fork from
/// one that lives as long as the process. `parent` is the parent's id taken before fork; Errors: not_found,
/// if it has ended already (the signal will never come: exit).
[[nodiscard]] Result<void> set_parent_death_signal(int signal, pid_t parent);

// --- about processes ---

/// Fields of /proc/PID/stat and /proc/PID/task/TID/stat (proc(5)) that vramswap uses.
struct TaskStat {
    pid_t pid = 0;
    std::string name;  ///< may hold blanks and brackets
    char state = '?';  ///< R, S, D, Z, T, X …
    pid_t parent = 0;
    std::uint64_t flags = 0;       ///< PF_* of include/linux/sched.h
    std::uint64_t user_ticks = 0;  ///< in clock ticks, sysconf(_SC_CLK_TCK) a second
    std::uint64_t system_ticks = 0;
    std::uint64_t start_ticks = 0;  ///< since boot; with the id it names a process for ever
};
/// Errors: failed, if a field is missing or no number.
[[nodiscard]] Result<TaskStat> parse_task_stat(std::string_view text);
/// Errors: not_found, if there is no such process.
[[nodiscard]] Result<TaskStat> read_task_stat(pid_t pid, const SysRoot& root = {});
[[nodiscard]] Result<TaskStat> read_task_stat(pid_t pid, pid_t tid, const SysRoot& root = {});

/// As /proc/PID/comm has it: 15 characters at most, what a program or its user chose. What is not
/// printable ASCII is replaced by '?'. Errors: not_found.
[[nodiscard]] Result<std::string> read_process_name(pid_t pid, const SysRoot& root = {});

/// Of /proc/PID/status; a field that the kernel does not print (a zombie has none) is 0.
struct ProcessMemory {
    Bytes rss{};        ///< VmRSS
    Bytes anonymous{};  ///< RssAnon (Linux 4.5): of VmRSS what neither a file nor shared memory is behind
    Bytes locked{};     ///< VmLck
    Bytes swapped{};    ///< VmSwap
};
[[nodiscard]] ProcessMemory parse_process_memory(std::string_view text);
[[nodiscard]] Result<ProcessMemory> read_process_memory(pid_t pid, const SysRoot& root = {});

struct CpuTime {
    std::uint64_t user_ns = 0;
    std::uint64_t system_ns = 0;
    [[nodiscard]] std::uint64_t total_ns() const { return user_ns + system_ns; }
};
/// CPU time of a process with all its threads, in steps of a clock tick (10 ms as a rule).
[[nodiscard]] Result<CpuTime> read_cpu_time(pid_t pid, const SysRoot& root = {});

/// Names a process even after its id went to another one.
struct ProcessId {
    pid_t pid = 0;
    std::uint64_t start_ticks = 0;
    bool operator==(const ProcessId&) const = default;
};
[[nodiscard]] Result<ProcessId> identify_process(pid_t pid, const SysRoot& root = {});
/// False if it has ended: gone, a zombie, or the id belongs to another process by now.
[[nodiscard]] bool process_alive(const ProcessId& process, const SysRoot& root = {});
/// False if the process of a pidfd has ended, or `pidfd` is none. Does not block.
[[nodiscard]] bool process_alive(int pidfd);

/// pidfd_open(2), Linux 5.3, close-on-exec. Errors: not_found, unavailable, failed.
[[nodiscard]] Result<UniqueFd> open_pidfd(pid_t pid);
enum class WaitOutcome : std::uint8_t { exited, timed_out };
/// Waits until the process has ended; it is not reaped. Blocks for up to `timeout_ms`, -1 = for ever; signals
/// do not end it.
[[nodiscard]] Result<WaitOutcome> wait_pidfd(int pidfd, int timeout_ms);
/// pidfd_send_signal(2). Errors: not_found, if it has ended.
[[nodiscard]] Result<void> signal_pidfd(int pidfd, int signal);

// --- small files ---

/// Largest file that read_small_file and write_file take.
inline constexpr std::size_t kSmallFileBytes = 1u << 20;
/// The whole file, whatever size it says it has (files of /proc say 0). Errors: not_found; failed, also above
/// 1 MiB.
[[nodiscard]] Result<std::string> read_small_file(const std::string& path);

enum class FileCreate : std::uint8_t {
    never,      ///< the file must exist: files of /proc, /sys and cgroups
    if_absent,  ///< made with mode 0600 if it does not exist
};
/// Replaces the content in one write(2), as files of the kernel want it. The last part of the path may not be
/// a symbolic link (O_NOFOLLOW). Not atomic and not synced. Errors: not_found, usage (above 1 MiB), failed.
[[nodiscard]] Result<void> write_file(const std::string& path, std::string_view content,
                                      FileCreate create = FileCreate::never);

}  // namespace vramswap
