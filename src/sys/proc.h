// SPDX-License-Identifier: MIT
// What the kernel tells in /proc and /sys as values: memory, swap counters, swap areas, block device
// counters, pressure, version, sysctls. Owned by nobody: pure parsers, and readers that open a file and parse
// it. Any control thread; readers block on the file system and allocate, so they are not for the I/O path.
// Parsers take the text of the file and never throw: a line they cannot read is skipped; an Error says that
// nothing of use was found. Errors: unavailable = this kernel has no such file, failed = it cannot be read or
// makes no sense. Every reader takes the root of the tree, so that tests use one of their own.
#pragma once

#include <compare>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "base/units.h"

namespace vramswap {

/// The directory that stands for "/". Tests pass a temporary one.
struct SysRoot {
    std::string path = "/";

    /// The path of `below` ("/proc/meminfo" or "proc/meminfo") in this tree.
    [[nodiscard]] std::string at(std::string_view below) const;
};

/// Decodes the octal escapes ("\040") by which the kernel keeps blanks out of a field; other text stays as it
/// is.
[[nodiscard]] std::string decode_octal(std::string_view text);

// --- memory ---

/// Of /proc/meminfo. A kernel without swap has swap_total and swap_free 0.
struct MemInfo {
    Bytes total{};      ///< MemTotal
    Bytes free{};       ///< MemFree; 0 if missing
    Bytes available{};  ///< MemAvailable: what can be taken without swapping; free if the kernel does not say
    Bytes swap_total{};
    Bytes swap_free{};
};
/// Errors: failed, if MemTotal is missing or 0.
[[nodiscard]] Result<MemInfo> parse_meminfo(std::string_view text);
[[nodiscard]] Result<MemInfo> read_meminfo(const SysRoot& root = {});

// --- counters of the memory manager ---

/// Of /proc/vmstat: events since boot, in the kernel's units (pages for pswpin and pswpout). A counter that
/// this kernel lacks is 0 (swpin_zero and swpout_zero exist from 6.12 on).
struct VmStat {
    std::map<std::string, std::uint64_t, std::less<>> counters;

    /// The counter of that name, or 0.
    [[nodiscard]] std::uint64_t get(std::string_view name) const;
    /// True if the kernel has a counter of that name.
    [[nodiscard]] bool has(std::string_view name) const;

    [[nodiscard]] std::uint64_t pswpin() const { return get("pswpin"); }
    [[nodiscard]] std::uint64_t pswpout() const { return get("pswpout"); }
    [[nodiscard]] std::uint64_t swpin_zero() const { return get("swpin_zero"); }
    [[nodiscard]] std::uint64_t swpout_zero() const { return get("swpout_zero"); }
    [[nodiscard]] std::uint64_t pgmajfault() const { return get("pgmajfault"); }
};
/// Never fails: an empty text gives no counters.
[[nodiscard]] VmStat parse_vmstat(std::string_view text);
[[nodiscard]] Result<VmStat> read_vmstat(const SysRoot& root = {});

// --- swap areas ---

enum class SwapKind : std::uint8_t { partition, file, other };

/// A line of /proc/swaps.
struct SwapArea {
    std::string path;      ///< escapes decoded, without the mark " (deleted)"
    bool deleted = false;  ///< the kernel says that the file has no name any more
    SwapKind kind = SwapKind::other;
    Bytes size{};  ///< without the header page
    Bytes used{};
    int priority = 0;  ///< negative if it was chosen by the kernel
};
/// Never fails: the header line, empty lines and lines without all five fields give no area.
[[nodiscard]] std::vector<SwapArea> parse_swaps(std::string_view text);
/// An empty list also if the kernel was built without swap (no /proc/swaps).
[[nodiscard]] Result<std::vector<SwapArea>> read_swaps(const SysRoot& root = {});

// --- block devices ---

/// Of /sys/block/X/stat (Documentation/block/stat.rst): since the device came up. Sectors are of 512 bytes.
/// Discards need 4.18, flushes 5.5; they are 0 where the kernel does not say.
struct BlockStat {
    std::uint64_t reads = 0;
    std::uint64_t reads_merged = 0;
    std::uint64_t read_sectors = 0;
    std::uint64_t read_ticks_ms = 0;
    std::uint64_t writes = 0;
    std::uint64_t writes_merged = 0;
    std::uint64_t write_sectors = 0;
    std::uint64_t write_ticks_ms = 0;
    std::uint64_t in_flight = 0;
    std::uint64_t io_ticks_ms = 0;
    std::uint64_t time_in_queue_ms = 0;
    std::uint64_t discards = 0;
    std::uint64_t discards_merged = 0;
    std::uint64_t discard_sectors = 0;
    std::uint64_t discard_ticks_ms = 0;
    std::uint64_t flushes = 0;
    std::uint64_t flush_ticks_ms = 0;

    /// Bytes moved; a sector is 512 bytes whatever the device's block size.
    [[nodiscard]] Bytes read_bytes() const { return {read_sectors * 512}; }
    [[nodiscard]] Bytes write_bytes() const { return {write_sectors * 512}; }
    [[nodiscard]] Bytes discard_bytes() const { return {discard_sectors * 512}; }
};
/// Errors: failed, if fewer than the 11 fields of all kernels are there or one is no number.
[[nodiscard]] Result<BlockStat> parse_block_stat(std::string_view text);
/// `device` is a name in /sys/block ("ublkb0", "loop0"), not a path. Errors: usage, not_found.
[[nodiscard]] Result<BlockStat> read_block_stat(std::string_view device, const SysRoot& root = {});

// --- pressure ---

/// Of /proc/pressure/memory (Documentation/accounting/psi.rst): share of the last 10 s, in percent, in which
/// some, or all, runnable tasks waited for memory.
struct MemoryPressure {
    double some_avg10_percent = 0;
    double full_avg10_percent = 0;
};
/// Errors: failed, if the line "some" is missing or without a number from 0 to 100.
[[nodiscard]] Result<MemoryPressure> parse_pressure(std::string_view text);
/// Errors: unavailable, if the kernel was built or booted without PSI: callers go on without.
[[nodiscard]] Result<MemoryPressure> read_memory_pressure(const SysRoot& root = {});

// --- the kernel itself ---

/// The three numbers of a release, named as in the kernel's Makefile; ordered.
struct KernelVersion {
    std::uint32_t version = 0;
    std::uint32_t patchlevel = 0;
    std::uint32_t sublevel = 0;
    constexpr auto operator<=>(const KernelVersion&) const = default;
};
/// Reads "6.1.0-18-amd64", "6.12-rc3", "7.3.1". Errors: failed, if it does not begin with two numbers.
[[nodiscard]] Result<KernelVersion> parse_kernel_version(std::string_view release);
/// The release text, as `uname -r` prints it (/proc/sys/kernel/osrelease).
[[nodiscard]] Result<std::string> read_kernel_release(const SysRoot& root = {});
[[nodiscard]] Result<KernelVersion> read_kernel_version(const SysRoot& root = {});

/// A sysctl as text without the newline; `name` is dotted ("vm.page-cluster", "kernel.io_uring_disabled").
/// Errors: unavailable, if this kernel has none of that name; usage, for a name that is no sysctl's.
[[nodiscard]] Result<std::string> read_sysctl(std::string_view name, const SysRoot& root = {});
/// The first number of a sysctl. Errors: as read_sysctl; failed, if there is no number.
[[nodiscard]] Result<std::int64_t> read_sysctl_int(std::string_view name, const SysRoot& root = {});

/// A switch of the kernel that may not be built in.
enum class KernelSwitch : std::uint8_t { absent, off, on };
/// Whether zswap takes pages before they reach a swap device (/sys/module/zswap/parameters/enabled).
[[nodiscard]] Result<KernelSwitch> read_zswap(const SysRoot& root = {});

/// Transparent huge pages (/sys/kernel/mm/transparent_hugepage/enabled).
enum class ThpMode : std::uint8_t { absent, never, madvise, always };
/// Reads "always [madvise] never". Errors: failed, if no known word is in brackets.
[[nodiscard]] Result<ThpMode> parse_thp(std::string_view text);
[[nodiscard]] Result<ThpMode> read_thp(const SysRoot& root = {});

[[nodiscard]] std::string_view to_string(SwapKind kind);
[[nodiscard]] std::string_view to_string(KernelSwitch value);
[[nodiscard]] std::string_view to_string(ThpMode mode);

}  // namespace vramswap
