// SPDX-License-Identifier: MIT
#include "sys/cgroup.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <exception>
#include <optional>
#include <utility>

#include "base/clock.h"
#include "base/log.h"
#include "sys/process.h"
#include "sys/text.h"

namespace vramswap {
namespace {

using text::next_field;
using text::next_line;
using text::to_number;

constexpr std::uint64_t kNsPerMs = 1'000'000;

// --- finding the hierarchy ---

struct CgroupMount {
    CgroupVersion version = CgroupVersion::v2;
    std::string group;  ///< which group of the hierarchy the mount shows at its top
    std::string point;
};

/// Cuts the next item of a list off `list`; nothing when it is used up.
std::optional<std::string_view> next_item(std::string_view& list, char separator) {
    if (list.empty()) return std::nullopt;
    const auto end = list.find(separator);
    const std::string_view item = list.substr(0, end);
    list.remove_prefix(end == std::string_view::npos ? list.size() : end + 1);
    return item;
}

bool has_item(std::string_view list, char separator, std::string_view wanted) {
    while (const auto item = next_item(list, separator)) {
        if (*item == wanted) return true;
    }
    return false;
}

/// A line of mountinfo (proc(5)): id parent major:minor root point options [optional …] - type source
/// options.
std::optional<CgroupMount> parse_mount_line(std::string_view line) {
    for (int skipped = 0; skipped < 3; ++skipped) (void)next_field(line);
    const std::string_view group = next_field(line);
    const std::string_view point = next_field(line);
    std::string_view field = next_field(line);
    while (!field.empty() && field != "-") field = next_field(line);
    const std::string_view type = next_field(line);
    (void)next_field(line);
    const std::string_view options = next_field(line);

    const bool is_v1 = type == "cgroup" && has_item(options, ',', "memory");
    if (point.empty() || (!is_v1 && type != "cgroup2")) return std::nullopt;
    return CgroupMount{is_v1 ? CgroupVersion::v1 : CgroupVersion::v2, decode_octal(group),
                       decode_octal(point)};
}

std::vector<CgroupMount> parse_mounts(std::string_view text) {
    std::vector<CgroupMount> mounts;
    while (const auto line = next_line(text)) {
        if (auto mount = parse_mount_line(*line)) mounts.push_back(std::move(*mount));
    }
    return mounts;
}

/// The caller's group from /proc/self/cgroup ("4:memory:/a/b", "0::/a/b").
std::optional<std::string> parse_own_group(std::string_view text, CgroupVersion version) {
    while (const auto line = next_line(text)) {
        std::string_view rest = *line;
        const auto id = next_item(rest, ':');
        const auto controllers = next_item(rest, ':');
        if (!id || !controllers || !rest.starts_with('/')) continue;
        const bool wanted = version == CgroupVersion::v1 ? has_item(*controllers, ',', "memory")
                                                         : *id == "0" && controllers->empty();
        if (wanted) return std::string(rest);
    }
    return std::nullopt;
}

/// The directory of `group` under this mount. A group that the mount does not show (a container sees only a
/// part of the tree) gives the mount's own top.
std::string group_directory(const CgroupMount& mount, std::string_view group) {
    const std::string_view top = mount.group;
    std::string_view below = group;
    if (top != "/") {
        if (!below.starts_with(top)) return mount.point;
        below.remove_prefix(top.size());
        if (!below.empty() && below.front() != '/') return mount.point;
    }
    if (below.empty() || below == "/" || below.starts_with("/..")) return mount.point;
    return mount.point + std::string(below);
}

bool is_directory(const std::string& path) {
    struct stat info {};
    return ::stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode);
}

std::optional<MemoryHierarchy> match_mount(const std::vector<CgroupMount>& mounts,
                                           std::string_view own_groups, CgroupVersion version,
                                           const SysRoot& root) {
    const auto group = parse_own_group(own_groups, version);
    if (!group) return std::nullopt;
    for (const CgroupMount& mount : mounts) {
        if (mount.version != version) continue;
        std::string own = group_directory(mount, *group);
        if (is_directory(root.at(own))) return MemoryHierarchy{version, mount.point, std::move(own)};
    }
    return std::nullopt;
}

// --- files of a group ---

bool lists_memory(const std::string& path) {
    const Result<std::string> text = read_small_file(path);
    return text && has_item(text::trim(*text), ' ', "memory");
}

Result<std::uint64_t> read_number(const std::string& path) {
    Result<std::string> text = read_small_file(path);
    if (!text) return std::move(text).error();
    const auto value = to_number<std::uint64_t>(text::trim(*text));
    if (!value) {
        return Error{Errc::failed, 0, fmt::format("{} is '{}', not a number", path, text::trim(*text))};
    }
    return *value;
}

/// The number after `key` in a file of lines "key number"; nothing if there is no such line.
Result<std::optional<std::uint64_t>> read_keyed(const std::string& path, std::string_view key) {
    Result<std::string> text = read_small_file(path);
    if (!text) return std::move(text).error();
    std::string_view rest = *text;
    while (auto line = next_line(rest)) {
        if (next_field(*line) == key) return to_number<std::uint64_t>(next_field(*line));
    }
    return std::optional<std::uint64_t>{};
}

Result<void> check_name(std::string_view name) {
    constexpr std::size_t kNameChars = 200;  // below NAME_MAX
    const bool plain = std::all_of(name.begin(), name.end(), [](char c) {
        return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
               c == '-';
    });
    if (plain && !name.empty() && name.size() <= kNameChars) return {};
    return Error{Errc::usage, 0, fmt::format("'{}' cannot be the name of a control group", name),
                 "Use letters, digits, '-' and '_'"};
}

Result<void> check_limit(Bytes limit) {
    if (limit.n >= kPageBytes) return {};
    return Error{Errc::usage, 0, fmt::format("a memory limit of {} is too small", format_size(limit)),
                 "Give one page (4K) at least"};
}

std::string parent_of(const std::string& directory) {
    return directory.substr(0, directory.rfind('/'));
}

/// The nearest group from `own` up to the mount under which children get the memory controller.
Result<std::string> choose_v2_parent(const MemoryHierarchy& hierarchy, const SysRoot& root) {
    std::optional<Error> refused;
    for (std::string group = hierarchy.own;; group = parent_of(group)) {
        const std::string control = root.at(group + "/cgroup.subtree_control");
        if (lists_memory(control)) return group;
        if (lists_memory(root.at(group + "/cgroup.controllers"))) {
            // EBUSY in a group that holds processes itself, as the caller's does unless it is the root.
            Result<void> enabled = write_file(control, "+memory");
            if (enabled) return group;
            refused = std::move(enabled).error();
        }
        if (group.size() <= hierarchy.mount.size()) break;
    }
    return Error{Errc::unavailable, refused ? refused->sys : 0,
                 fmt::format("no control group from {} up to {} can hand on the memory controller",
                             hierarchy.own, hierarchy.mount),
                 "Run as root outside of a container, or have 'memory' enabled in cgroup.subtree_control"};
}

/// REQUIRES: errno is that of mkdir(2).
Error mkdir_error(const std::string& path) {
    const int sys = errno;
    const bool forbidden = sys == EROFS || sys == EACCES || sys == EPERM;
    return Error{forbidden ? Errc::unavailable : Errc::failed, sys,
                 fmt::format("cannot make the control group {}", path),
                 forbidden ? "Run as root, with the cgroup file system mounted for writing" : ""};
}

Result<void> make_group(const std::string& path) {
    constexpr mode_t kMode = 0755;
    if (::mkdir(path.c_str(), kMode) == 0) return {};
    if (errno != EEXIST) return mkdir_error(path);
    // The kernel removes a group only when nobody is in it and it has no children.
    if (::rmdir(path.c_str()) != 0) {
        return Error{Errc::exists, errno, fmt::format("the control group {} is in use", path),
                     "End what runs in it, or choose another name"};
    }
    if (::mkdir(path.c_str(), kMode) != 0) return mkdir_error(path);
    return {};
}

int left_ms(std::uint64_t deadline_ns) {
    const std::uint64_t now = now_ns();
    return now >= deadline_ns ? 0 : static_cast<int>((deadline_ns - now + kNsPerMs - 1) / kNsPerMs);
}

std::uint64_t deadline_after(int timeout_ms) {
    return now_ns() + static_cast<std::uint64_t>(std::max(timeout_ms, 0)) * kNsPerMs;
}

/// Lets the kernel finish an exit that it has announced already.
void pause_ms(int duration_ms) {
    (void)::poll(nullptr, 0, duration_ms);
}

/// rmdir, again while the kernel still counts a process that has just ended.
Result<void> remove_directory(const std::string& path, std::uint64_t deadline_ns) {
    while (::rmdir(path.c_str()) != 0) {
        if (errno == ENOENT) return {};
        if (errno != EBUSY || left_ms(deadline_ns) == 0) {
            return sys_error(fmt::format("cannot remove the control group {}", path),
                             "See whether it has child groups, then remove it with rmdir");
        }
        pause_ms(1);
    }
    return {};
}

}  // namespace

Result<MemoryHierarchy> find_memory_hierarchy(const SysRoot& root) {
    Result<std::string> mountinfo = read_small_file(root.at("/proc/self/mountinfo"));
    if (!mountinfo) return std::move(mountinfo).error().in("looking for control groups");
    Result<std::string> groups = read_small_file(root.at("/proc/self/cgroup"));
    if (!groups) {
        return Error{Errc::unavailable, groups.error().sys, "this kernel was built without control groups"};
    }
    const std::vector<CgroupMount> mounts = parse_mounts(*mountinfo);
    if (auto v1 = match_mount(mounts, *groups, CgroupVersion::v1, root)) return std::move(*v1);
    auto v2 = match_mount(mounts, *groups, CgroupVersion::v2, root);
    if (!v2) {
        return Error{Errc::unavailable, 0, "no cgroup file system with the memory controller is mounted",
                     "Mount cgroup2 on /sys/fs/cgroup"};
    }
    if (!lists_memory(root.at(v2->mount + "/cgroup.controllers"))) {
        return Error{Errc::unavailable, 0, fmt::format("{} has no memory controller", v2->mount),
                     "Boot without cgroup_disable=memory, or mount the v1 hierarchy that holds it"};
    }
    return std::move(*v2);
}

// --- MemoryCgroup: making and ending ---

MemoryCgroup::MemoryCgroup(CgroupVersion version, std::string path, std::string home, SysRoot root)
    : version_(version),
      path_(std::move(path)),
      home_(std::move(home)),
      root_(std::move(root)),
      owner_(::getpid()) {}

Result<MemoryCgroup> MemoryCgroup::create(std::string_view name, Bytes limit, const SysRoot& root) {
    if (Result<void> checked = check_name(name); !checked) return std::move(checked).error();
    if (Result<void> checked = check_limit(limit); !checked) return std::move(checked).error();
    Result<MemoryHierarchy> hierarchy = find_memory_hierarchy(root);
    if (!hierarchy) return std::move(hierarchy).error();

    Result<std::string> parent = hierarchy->version == CgroupVersion::v1 ? Result<std::string>(hierarchy->own)
                                                                         : choose_v2_parent(*hierarchy, root);
    if (!parent) return std::move(parent).error();
    std::string path = fmt::format("{}/{}", *parent, name);
    if (Result<void> made = make_group(root.at(path)); !made) return std::move(made).error();

    MemoryCgroup group = adopt(hierarchy->version, std::move(path), hierarchy->own, root);
    if (Result<void> limited = group.set_limit(limit); !limited) return std::move(limited).error();
    return group;
}

MemoryCgroup MemoryCgroup::adopt(CgroupVersion version, std::string path, std::string home,
                                 const SysRoot& root) {
    return MemoryCgroup(version, std::move(path), std::move(home), root);
}

MemoryCgroup::MemoryCgroup(MemoryCgroup&& other) noexcept
    : version_(other.version_),
      path_(std::exchange(other.path_, {})),
      home_(std::move(other.home_)),
      root_(std::move(other.root_)),
      owner_(other.owner_) {}

MemoryCgroup& MemoryCgroup::operator=(MemoryCgroup&& other) noexcept {
    if (this == &other) return *this;
    remove_or_warn();
    version_ = other.version_;
    path_ = std::exchange(other.path_, {});
    home_ = std::move(other.home_);
    root_ = std::move(other.root_);
    owner_ = other.owner_;
    return *this;
}

MemoryCgroup::~MemoryCgroup() {
    remove_or_warn();
}

void MemoryCgroup::remove_or_warn() noexcept {
    if (path_.empty() || owner_ != ::getpid()) return;
    // Only memory can run out below; a destructor may not pass that on.
    try {
        if (Result<void> removed = remove(); !removed) log_message(LogLevel::warning, removed.error().text());
    } catch (const std::exception& e) {
        log_message(LogLevel::warning, e.what());
    }
}

Result<void> MemoryCgroup::remove(int timeout_ms) {
    if (path_.empty()) return {};
    const std::uint64_t deadline_ns = deadline_after(timeout_ms);
    if (is_directory(root_.at(path_))) {
        if (Result<void> killed = kill_all(timeout_ms); !killed) return killed;
        if (Result<void> removed = remove_directory(root_.at(path_), deadline_ns); !removed) return removed;
    }
    path_.clear();
    return {};
}

// --- MemoryCgroup: limit and contents ---

std::string MemoryCgroup::file(std::string_view name) const {
    return root_.at(fmt::format("{}/{}", path_, name));
}

Result<void> MemoryCgroup::set_limit(Bytes limit) {
    if (Result<void> checked = check_limit(limit); !checked) return checked;
    const std::string number = fmt::format("{}", limit.n);
    if (version_ == CgroupVersion::v1) return write_file(file("memory.limit_in_bytes"), number);
    if (Result<void> written = write_file(file("memory.high"), number); !written) return written;
    const std::string last = fmt::format("{}", 2 * limit.n);
    if (Result<void> written = write_file(file("memory.max"), last); !written) return written;
    Result<void> unlimited = write_file(file("memory.swap.max"), "max");
    // Without swap accounting the file is missing and nothing limits swap.
    if (!unlimited && unlimited.error().code != Errc::not_found) return unlimited;
    return {};
}

Result<void> MemoryCgroup::add_pid(pid_t pid) {
    if (pid < 1) return Error{Errc::usage, 0, fmt::format("{} is not the id of a process", pid)};
    Result<void> written = write_file(file("cgroup.procs"), fmt::format("{}", pid));
    if (!written) return std::move(written).error().in(fmt::format("process {}", pid));
    return {};
}

Result<std::vector<pid_t>> MemoryCgroup::pids() const {
    Result<std::string> text = read_small_file(file("cgroup.procs"));
    if (!text) return std::move(text).error();
    std::vector<pid_t> found;
    std::string_view rest = *text;
    while (const auto line = next_line(rest)) {
        const auto pid = to_number<pid_t>(text::trim(*line));
        // 0 stands for a process of another pid namespace; kill(0) would mean our own process group.
        if (pid && *pid > 0) found.push_back(*pid);
    }
    return found;
}

Result<Bytes> MemoryCgroup::usage() const {
    const bool is_v1 = version_ == CgroupVersion::v1;
    Result<std::uint64_t> value = read_number(file(is_v1 ? "memory.usage_in_bytes" : "memory.current"));
    if (!value) return std::move(value).error();
    return Bytes{*value};
}

Result<Bytes> MemoryCgroup::swap_used() const {
    const Error missing{Errc::unavailable, 0, "the kernel does not account for swap by control group",
                        "Boot without swapaccount=0"};
    if (version_ == CgroupVersion::v2) {
        Result<std::uint64_t> value = read_number(file("memory.swap.current"));
        if (value) return Bytes{*value};
        return value.error().code == Errc::not_found ? missing : std::move(value).error();
    }
    for (const std::string_view key : {"total_swap", "swap"}) {
        Result<std::optional<std::uint64_t>> value = read_keyed(file("memory.stat"), key);
        if (!value) return std::move(value).error();
        if (*value) return Bytes{**value};
    }
    return missing;
}

Result<std::uint64_t> MemoryCgroup::oom_kills() const {
    const std::string path = file(version_ == CgroupVersion::v1 ? "memory.oom_control" : "memory.events");
    Result<std::optional<std::uint64_t>> value = read_keyed(path, "oom_kill");
    if (!value) return std::move(value).error();
    if (*value) return **value;
    return Error{Errc::unavailable, 0, fmt::format("{} does not count oom_kill", path),
                 "It needs Linux 4.13 or later"};
}

// --- MemoryCgroup: killing ---

Result<void> MemoryCgroup::go_home() {
    if (home_.empty()) {
        return Error{Errc::failed, 0, fmt::format("this process is in {} and has no group to go to", path_)};
    }
    return write_file(root_.at(home_ + "/cgroup.procs"), fmt::format("{}", ::getpid()));
}

Result<void> MemoryCgroup::kill_round(const std::vector<pid_t>& victims, std::uint64_t deadline_ns) {
    std::vector<std::pair<pid_t, UniqueFd>> open;
    for (const pid_t pid : victims) {
        Result<UniqueFd> fd = open_pidfd(pid);
        if (fd)
            open.emplace_back(pid, std::move(*fd));
        else if (fd.error().code != Errc::not_found)
            return std::move(fd).error();
    }
    // An id may have gone to another process before its pidfd was opened: only those still inside are meant.
    Result<std::vector<pid_t>> inside = pids();
    if (!inside) return std::move(inside).error();
    std::erase_if(open, [&](const auto& victim) {
        return std::find(inside->begin(), inside->end(), victim.first) == inside->end();
    });
    Result<void> killed = version_ == CgroupVersion::v2 ? write_file(file("cgroup.kill"), "1")
                                                        : Error{Errc::not_found, 0, "no cgroup.kill in v1"};
    if (!killed && killed.error().code != Errc::not_found) return killed;
    if (!killed) {
        for (const auto& [pid, fd] : open) {
            Result<void> sent = signal_pidfd(fd.get(), SIGKILL);
            if (!sent && sent.error().code != Errc::not_found) return sent;
        }
    }
    for (const auto& [pid, fd] : open) {
        Result<WaitOutcome> outcome = wait_pidfd(fd.get(), left_ms(deadline_ns));
        if (!outcome) return std::move(outcome).error();
    }
    return {};
}

Result<void> MemoryCgroup::kill_all(int timeout_ms) {
    const std::uint64_t deadline_ns = deadline_after(timeout_ms);
    for (;;) {
        Result<std::vector<pid_t>> victims = pids();
        if (!victims && victims.error().code == Errc::not_found) return {};  // somebody removed the group
        if (!victims) return std::move(victims).error();
        if (victims->empty()) return {};
        const auto self = std::find(victims->begin(), victims->end(), ::getpid());
        if (self != victims->end()) {
            if (Result<void> gone = go_home(); !gone) return gone;
            victims->erase(self);
        }
        if (Result<void> killed = kill_round(*victims, deadline_ns); !killed) return killed;
        if (left_ms(deadline_ns) == 0) break;
        pause_ms(1);
    }
    Result<std::vector<pid_t>> rest = pids();
    if (rest && rest->empty()) return {};
    return Error{
        Errc::failed, ETIMEDOUT,
        fmt::format("{} processes in the control group {} did not end", rest ? rest->size() : 0, path_),
        "They may wait in the kernel for swap or a disk; see ps -o pid,stat,wchan"};
}

}  // namespace vramswap
