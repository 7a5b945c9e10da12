// SPDX-License-Identifier: MIT
// Swap areas: the header that makes a device one, swapon and swapoff, and whether swapoff can succeed. Owned
// by nobody. Control threads of commands (`up`, `down`, `resize`); everything but the pure functions blocks:
// header calls for one I/O to the device, swap_off for minutes. Nothing here is for the I/O path. Errors say
// what the kernel refused and what to do: busy = in use, no_memory = RAM cannot take the pages, not_found =
// no such area or header, usage = arguments that make no sense, unavailable = this kernel cannot, failed =
// the rest.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "base/units.h"
#include "sys/proc.h"

namespace vramswap {

// --- header ---

/// Layout: union swap_header in include/linux/swap.h, version 1, for pages of 4096 bytes. Numbers are in the
/// machine's byte order; the kernel also takes the other one, vramswap writes and reads only its own.
inline constexpr std::size_t kSwapVersionOffset = 1024;   ///< u32, after the boot bits
inline constexpr std::size_t kSwapLastPageOffset = 1028;  ///< u32, number of the last usable page
inline constexpr std::size_t kSwapBadPagesOffset = 1032;  ///< u32, how many page numbers follow at 1536
inline constexpr std::size_t kSwapUuidOffset = 1036;      ///< 16 bytes
inline constexpr std::size_t kSwapLabelOffset = 1052;     ///< 16 bytes, ended by a zero byte
inline constexpr std::size_t kSwapMagicOffset = 4086;     ///< "SWAPSPACE2", the last 10 bytes of the page
inline constexpr std::string_view kSwapMagic = "SWAPSPACE2";
inline constexpr std::size_t kSwapLabelChars = 15;  ///< without the zero byte
/// mkswap refuses fewer (MIN_GOODPAGES in disk-utils/mkswap.c, util-linux), page 0 not counted.
inline constexpr std::uint64_t kSwapPagesMin = 10;

struct Uuid {
    std::array<std::uint8_t, 16> bytes{};
    bool operator==(const Uuid&) const = default;
};
/// A random UUID (version 4, RFC 4122) from getrandom(2).
[[nodiscard]] Result<Uuid> make_uuid();
/// "01234567-89ab-4cde-8f01-23456789abcd".
[[nodiscard]] std::string to_string(const Uuid& uuid);

struct SwapHeader {
    std::uint32_t version = 1;
    std::uint32_t last_page = 0;
    std::uint32_t bad_pages = 0;
    Uuid uuid{};
    std::string label;

    /// The size of the device that the header was written for, the header's page included.
    [[nodiscard]] Bytes device_size() const { return {(std::uint64_t{last_page} + 1) * kPageBytes}; }
};

/// Writes page 0 of a device or file of `device` bytes as mkswap does, in one aligned write (so `fd` may be
/// open with O_DIRECT), then fdatasync. Pages after a partial last one are not used. Blocks for one write.
/// Errors: usage, for a size below 11 pages or above 2^32 pages, or a label above 15 bytes; failed, with
/// errno.
[[nodiscard]] Result<void> write_swap_header(int fd, Bytes device, std::string_view label, const Uuid& uuid);
/// Reads page 0 in one aligned read. Errors: not_found, if it holds no version 1 header; failed, with errno.
[[nodiscard]] Result<SwapHeader> read_swap_header(int fd);

// --- on and off ---

/// What the kernel tells the device about pages it no longer needs: once = the whole area at swapon, pages =
/// each cluster of 2 MiB when its last page is freed.
enum class SwapDiscard : std::uint8_t { none, once, pages, both };

/// Highest priority that swapon(2) takes (SWAP_FLAG_PRIO_MASK 0x7fff, include/linux/swap.h).
inline constexpr int kSwapPriorityMax = 32767;

struct SwapOnOptions {
    std::optional<int> priority{};  ///< 0 to 32767; none = the kernel chooses one below all that were given
    SwapDiscard discard = SwapDiscard::none;
};

/// The flags of swapon(2) for these options. Errors: usage, for a priority out of range.
[[nodiscard]] Result<int> swap_on_flags(const SwapOnOptions& options);

/// swapon(2). Needs CAP_SYS_ADMIN. Blocks for the read of the header and, with discard once or both, for the
/// discard of the whole device. Errors: busy, usage, no_memory, not_found, failed.
[[nodiscard]] Result<void> swap_on(const std::string& path, const SwapOnOptions& options);

/// swapoff(2): brings every page back to RAM or to other areas. Blocks for as long as that takes (44 to 80
/// MiB/s are on record), partly where no signal ends it. Only in a command's own process, never in one that
/// serves a swap device: the kernel marks the caller as the OOM killer's first victim whatever its
/// oom_score_adj (set_current_oom_origin in mm/swapfile.c, looked at before the score in mm/oom_kill.c), and
/// a server killed here takes every swapped page with it. Errors: not_found = no swap area in use, no_memory
/// = RAM cannot take the pages (the area stays in use), busy = pinned for hibernation, failed with errno
/// EINTR = a signal came (the area stays in use), failed.
[[nodiscard]] Result<void> swap_off(const std::string& path);

// --- before swapoff (pure) ---

/// The area of that path as /proc/swaps writes it (the resolved name), or nullptr. One that still has its
/// name is preferred to a deleted one. The pointer lives as long as `areas` is unchanged.
[[nodiscard]] const SwapArea* find_swap(const std::vector<SwapArea>& areas, std::string_view path);

enum class SwapoffVerdict : std::uint8_t {
    fits,        ///< RAM and the other areas can take the pages
    too_little,  ///< they cannot; `missing` says how much is needed
    not_in_use,  ///< no such swap area
};

struct SwapoffCheck {
    SwapoffVerdict verdict = SwapoffVerdict::not_in_use;
    Bytes needed{};     ///< pages in the area, in bytes
    Bytes ram_room{};   ///< available RAM less the margin
    Bytes swap_room{};  ///< free in the other areas
    Bytes margin{};     ///< RAM that must stay available
    Bytes missing{};    ///< what has to be freed first; 0 if it fits
};

/// RAM that has to stay available during swapoff: max(64 MiB, 2 % of RAM). Why: MemAvailable is an estimate
/// (caches that turn out to be in use, memory that other tasks take meanwhile), swapoff allocates page tables
/// too, and whoever runs it is the OOM killer's first victim. Below 3.2 GiB of RAM the floor counts: reclaim
/// itself works against min_free_kbytes, which is up to 64 MiB on its own.
[[nodiscard]] Bytes swapoff_margin(const MemInfo& mem);

/// Whether swapoff of `path` can succeed now. Other areas help because pages brought back push colder ones
/// there.
[[nodiscard]] SwapoffCheck check_swapoff(const MemInfo& mem, const std::vector<SwapArea>& areas,
                                         std::string_view path);

}  // namespace vramswap
