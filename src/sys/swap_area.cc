// SPDX-License-Identifier: MIT
#include "sys/swap_area.h"

#include <fmt/format.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>

namespace vramswap {
namespace {

// swapon(2) flags: include/linux/swap.h. The C library's header of the calls has the same name as ours and
// cannot be included here, so the calls are made by number.
constexpr int kSwapFlagPrefer = 0x8000;
constexpr int kSwapFlagPriorityMask = 0x7fff;
constexpr int kSwapFlagDiscard = 0x10000;
constexpr int kSwapFlagDiscardOnce = 0x20000;
constexpr int kSwapFlagDiscardPages = 0x40000;
static_assert(kSwapPriorityMax == kSwapFlagPriorityMask);
static_assert(kSwapMagicOffset + kSwapMagic.size() == kPageBytes);
static_assert(kSwapLabelOffset == kSwapUuidOffset + 16);

struct FreeDeleter {
    void operator()(std::byte* memory) const { std::free(memory); }
};
using HeaderPage = std::unique_ptr<std::byte, FreeDeleter>;

/// A zeroed page at a page's address, as O_DIRECT wants it.
Result<HeaderPage> make_header_page() {
    void* memory = std::aligned_alloc(kPageBytes, kPageBytes);
    if (memory == nullptr)
        return Error{Errc::no_memory, ENOMEM, "cannot allocate a page for the swap header"};
    std::memset(memory, 0, kPageBytes);
    return HeaderPage(static_cast<std::byte*>(memory));
}

void put_u32(std::byte* page, std::size_t offset, std::uint32_t value) {
    std::memcpy(page + offset, &value, sizeof value);
}

std::uint32_t get_u32(const std::byte* page, std::size_t offset) {
    std::uint32_t value = 0;
    std::memcpy(&value, page + offset, sizeof value);
    return value;
}

Result<std::uint32_t> last_page_of(Bytes device) {
    const std::uint64_t pages = device.n / kPageBytes;
    if (pages < kSwapPagesMin + 1) {
        return Error{Errc::usage, 0, fmt::format("a swap device of {} is too small", format_size(device)),
                     fmt::format("It needs {} at least", format_size({(kSwapPagesMin + 1) * kPageBytes}))};
    }
    if (pages - 1 > std::numeric_limits<std::uint32_t>::max()) {
        return Error{Errc::usage, 0, fmt::format("a swap device of {} is too large", format_size(device)),
                     "A swap header can describe 16T at most"};
    }
    return static_cast<std::uint32_t>(pages - 1);
}

/// REQUIRES: errno is that of swapon(2).
Error swap_on_error(const std::string& path) {
    const int sys = errno;
    const auto make = [&](Errc code, std::string hint) {
        return Error{code, sys, fmt::format("swapon {} failed", path), std::move(hint)};
    };
    switch (sys) {
        case EBUSY:
            return make(Errc::busy, "It is in use already, as swap or mounted; see swapon --show and lsblk");
        case EPERM:
            return make(Errc::failed,
                        "Run as root (CAP_SYS_ADMIN); if you are, the kernel already has as many "
                        "swap areas as it can take (about 28): switch one off");
        case EINVAL:
            return make(Errc::failed,
                        "The kernel finds no valid swap header, a device shorter than the header "
                        "says, or a file with holes; see the last lines of dmesg");
        case ENOMEM:
            return make(Errc::no_memory,
                        "The kernel has no memory for the map of the area; free some RAM or "
                        "choose a smaller --size");
        case ENOENT:
        case ENODEV:
        case ENXIO:
            return make(Errc::not_found, "There is no such device");
        case EIO:
            return make(Errc::failed, "The header could not be read from the device; see the daemon's log");
        case ENOSYS:
            return make(Errc::unavailable, "This kernel was built without swap (CONFIG_SWAP)");
        default:
            return make(Errc::failed, "See the last lines of dmesg");
    }
}

/// REQUIRES: errno is that of swapoff(2).
Error swap_off_error(const std::string& path) {
    const int sys = errno;
    const auto make = [&](Errc code, std::string hint) {
        return Error{code, sys, fmt::format("swapoff {} failed", path), std::move(hint)};
    };
    switch (sys) {
        case ENOMEM:
            return make(Errc::no_memory,
                        "RAM and other swap cannot take its pages; it stays in use. End some "
                        "programs or add other swap, then try again");
        case EINTR:
            return make(Errc::failed, "A signal ended it; the area stays in use. Try again");
        case EINVAL:
        case ENOENT:
            return make(Errc::not_found, "It is no swap area in use; see swapon --show");
        case EBUSY:
            return make(Errc::busy, "The kernel holds it for hibernation; try again afterwards");
        case EPERM:
            return make(Errc::failed, "Run as root (CAP_SYS_ADMIN)");
        case ENOSYS:
            return make(Errc::unavailable, "This kernel was built without swap (CONFIG_SWAP)");
        default:
            return make(Errc::failed, "See the last lines of dmesg");
    }
}

Bytes minus_or_zero(Bytes a, Bytes b) {
    return a > b ? a - b : Bytes{};
}

Bytes plus_or_max(Bytes a, Bytes b) {
    std::uint64_t sum = 0;
    if (__builtin_add_overflow(a.n, b.n, &sum)) return {std::numeric_limits<std::uint64_t>::max()};
    return {sum};
}

}  // namespace

// --- header ---

Result<Uuid> make_uuid() {
    Uuid uuid;
    // At most 256 bytes are never cut short by a signal (getrandom(2)).
    if (::getrandom(uuid.bytes.data(), uuid.bytes.size(), 0) != static_cast<ssize_t>(uuid.bytes.size())) {
        return sys_error("cannot get random bytes for a UUID");
    }
    uuid.bytes[6] = static_cast<std::uint8_t>((uuid.bytes[6] & 0x0fu) | 0x40u);  // version 4
    uuid.bytes[8] = static_cast<std::uint8_t>((uuid.bytes[8] & 0x3fu) | 0x80u);  // variant of RFC 4122
    return uuid;
}

std::string to_string(const Uuid& uuid) {
    std::string out;
    for (std::size_t i = 0; i < uuid.bytes.size(); ++i) {
        if (i == 4 || i == 6 || i == 8 || i == 10) out += '-';
        out += fmt::format("{:02x}", uuid.bytes.at(i));
    }
    return out;
}

Result<void> write_swap_header(int fd, Bytes device, std::string_view label, const Uuid& uuid) {
    if (label.size() > kSwapLabelChars || label.find('\0') != std::string_view::npos) {
        return Error{Errc::usage, 0, fmt::format("swap label '{}' is not usable", label),
                     fmt::format("Give at most {} bytes", kSwapLabelChars)};
    }
    Result<std::uint32_t> last_page = last_page_of(device);
    if (!last_page) return std::move(last_page).error();
    Result<HeaderPage> page = make_header_page();
    if (!page) return std::move(page).error();

    std::byte* const bytes = page->get();
    put_u32(bytes, kSwapVersionOffset, 1);
    put_u32(bytes, kSwapLastPageOffset, *last_page);
    put_u32(bytes, kSwapBadPagesOffset, 0);
    std::memcpy(bytes + kSwapUuidOffset, uuid.bytes.data(), uuid.bytes.size());
    std::copy(label.begin(), label.end(), reinterpret_cast<char*>(bytes + kSwapLabelOffset));
    std::copy(kSwapMagic.begin(), kSwapMagic.end(), reinterpret_cast<char*>(bytes + kSwapMagicOffset));

    ssize_t written = 0;
    do written = ::pwrite(fd, bytes, kPageBytes, 0);
    while (written < 0 && errno == EINTR);
    if (written < 0) return sys_error("cannot write the swap header");
    if (written != static_cast<ssize_t>(kPageBytes)) {
        return Error{Errc::failed, EIO,
                     fmt::format("only {} of 4096 bytes of the swap header written", written)};
    }
    // A device that lost the write tells it here, before swapon trusts it.
    if (::fdatasync(fd) != 0) return sys_error("cannot flush the swap header to the device");
    return {};
}

Result<SwapHeader> read_swap_header(int fd) {
    Result<HeaderPage> page = make_header_page();
    if (!page) return std::move(page).error();
    std::byte* const bytes = page->get();
    ssize_t got = 0;
    do got = ::pread(fd, bytes, kPageBytes, 0);
    while (got < 0 && errno == EINTR);
    if (got < 0) return sys_error("cannot read the swap header");

    const char* const chars = reinterpret_cast<const char*>(bytes);
    const std::string_view magic(chars + kSwapMagicOffset, kSwapMagic.size());
    if (got != static_cast<ssize_t>(kPageBytes) || magic != kSwapMagic) {
        return Error{Errc::not_found, 0, "there is no swap header in the first page",
                     "Write one with mkswap"};
    }
    SwapHeader header;
    header.version = get_u32(bytes, kSwapVersionOffset);
    header.last_page = get_u32(bytes, kSwapLastPageOffset);
    header.bad_pages = get_u32(bytes, kSwapBadPagesOffset);
    if (header.version != 1) {
        return Error{Errc::not_found, 0, fmt::format("swap header has version {}, not 1", header.version),
                     "It was made for another kind of machine; write a new one with mkswap"};
    }
    std::memcpy(header.uuid.bytes.data(), bytes + kSwapUuidOffset, header.uuid.bytes.size());
    header.label.assign(chars + kSwapLabelOffset, ::strnlen(chars + kSwapLabelOffset, 16));
    return header;
}

// --- on and off ---

Result<int> swap_on_flags(const SwapOnOptions& options) {
    int flags = 0;
    if (options.priority) {
        if (*options.priority < 0 || *options.priority > kSwapPriorityMax) {
            return Error{Errc::usage, 0, fmt::format("priority {} is out of range", *options.priority),
                         fmt::format("Give 0 to {}", kSwapPriorityMax)};
        }
        flags |= kSwapFlagPrefer | (*options.priority & kSwapFlagPriorityMask);
    }
    // DISCARD alone means both. With ONCE and PAGES both set the kernel would take ONCE alone
    // (mm/swapfile.c).
    switch (options.discard) {
        case SwapDiscard::none:
            break;
        case SwapDiscard::once:
            flags |= kSwapFlagDiscard | kSwapFlagDiscardOnce;
            break;
        case SwapDiscard::pages:
            flags |= kSwapFlagDiscard | kSwapFlagDiscardPages;
            break;
        case SwapDiscard::both:
            flags |= kSwapFlagDiscard;
            break;
    }
    return flags;
}

Result<void> swap_on(const std::string& path, const SwapOnOptions& options) {
    Result<int> flags = swap_on_flags(options);
    if (!flags) return std::move(flags).error();
    if (::syscall(SYS_swapon, path.c_str(), *flags) != 0) return swap_on_error(path);
    return {};
}

Result<void> swap_off(const std::string& path) {
    if (::syscall(SYS_swapoff, path.c_str()) != 0) return swap_off_error(path);
    return {};
}

// --- before swapoff ---

const SwapArea* find_swap(const std::vector<SwapArea>& areas, std::string_view path) {
    const SwapArea* found = nullptr;
    for (const SwapArea& area : areas) {
        if (area.path != path) continue;
        if (!area.deleted) return &area;
        if (found == nullptr) found = &area;
    }
    return found;
}

Bytes swapoff_margin(const MemInfo& mem) {
    return std::max(mib(64), Bytes{mem.total.n / 50});
}

SwapoffCheck check_swapoff(const MemInfo& mem, const std::vector<SwapArea>& areas, std::string_view path) {
    SwapoffCheck check;
    check.margin = swapoff_margin(mem);
    check.ram_room = minus_or_zero(mem.available, check.margin);
    const SwapArea* const leaving = find_swap(areas, path);
    for (const SwapArea& area : areas) {
        if (&area == leaving) continue;
        check.swap_room = plus_or_max(check.swap_room, minus_or_zero(area.size, area.used));
    }
    if (leaving == nullptr) return check;
    check.needed = leaving->used;
    check.missing = minus_or_zero(check.needed, plus_or_max(check.ram_room, check.swap_room));
    check.verdict = check.missing.n == 0 ? SwapoffVerdict::fits : SwapoffVerdict::too_little;
    return check;
}

}  // namespace vramswap
