// SPDX-License-Identifier: MIT
#include "front/ublk/ublk_control.h"

#include <fmt/format.h>
#include <liburing.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <optional>
#include <string>
#include <system_error>
#include <thread>

#include "base/clock.h"
#include "base/log.h"

namespace vramswap {
namespace {

constexpr __kernel_timespec kSomeSeconds{5, 0};
constexpr std::uint64_t kTheCommand = 1;
constexpr std::uint64_t kItsCancellation = 2;

/// In server_flags of our devices, above the pid of their owner: "vram".
constexpr std::uint64_t kOurMark = 0x7672616d;

UblkControlCommand about(std::uint32_t device) {
    return {.device = device,
            .queue = kUblkNoQueue,
            .bytes = 0,
            .address = 0,
            .data = 0,
            .path_bytes = 0,
            .padding = 0,
            .reserved = 0};
}

template <typename T>
UblkControlCommand about(std::uint32_t device, T& buffer) {
    UblkControlCommand command = about(device);
    command.bytes = sizeof buffer;
    command.address = reinterpret_cast<std::uintptr_t>(&buffer);
    return command;
}

bool has_no_server(const UblkDeviceInfo& info) {
    return info.state == kUblkStateDead || info.state == kUblkStateQuiesced;
}

/// Waits for the command's completion, after a time with less patience.
int wait_for_result(io_uring& ring, bool gives_up) {
    io_uring_cqe* cqe = nullptr;
    for (;;) {
        __kernel_timespec timeout = kSomeSeconds;
        const int waited =
            gives_up ? ::io_uring_wait_cqe_timeout(&ring, &cqe, &timeout) : ::io_uring_wait_cqe(&ring, &cqe);
        if (waited == -ETIME) {
            // Ends its wait in the kernel, as a signal would.
            gives_up = false;
            io_uring_sqe* sqe = ::io_uring_get_sqe(&ring);
            ::io_uring_prep_cancel64(sqe, kTheCommand, 0);
            ::io_uring_sqe_set_data64(sqe, kItsCancellation);
            ::io_uring_submit(&ring);
            continue;
        }
        if (waited == -EINTR) continue;
        if (waited < 0) return waited;
        const bool is_the_command = cqe->user_data == kTheCommand;
        const int result = cqe->res;
        ::io_uring_cqe_seen(&ring, cqe);
        if (is_the_command) return result;
    }
}

int run_command(int fd, std::uint32_t opcode, const UblkControlCommand& arguments, bool gives_up) {
    constexpr std::size_t kCommandOffset = 48;  // of cmd[] in struct io_uring_sqe
    static_assert(offsetof(io_uring_sqe, cmd) == kCommandOffset);
    io_uring ring{};
    if (const int made = ::io_uring_queue_init(4, &ring, IORING_SETUP_SQE128); made < 0) return made;
    io_uring_sqe* sqe = ::io_uring_get_sqe(&ring);
    ::io_uring_prep_rw(IORING_OP_URING_CMD, sqe, fd, nullptr, 0, 0);
    sqe->cmd_op = opcode;
    ::io_uring_sqe_set_data64(sqe, kTheCommand);
    std::memcpy(reinterpret_cast<std::byte*>(sqe) + kCommandOffset, &arguments, sizeof arguments);
    const int submitted = ::io_uring_submit(&ring);
    const int result = submitted < 0 ? submitted : wait_for_result(ring, gives_up);
    ::io_uring_queue_exit(&ring);
    return result;
}

}  // namespace

pid_t owner_of(const UblkDeviceInfo& info) {
    return static_cast<pid_t>(info.server_flags & 0xffffffff);
}

bool is_alive(pid_t process) {
    return ::kill(process, 0) == 0 || errno != ESRCH;
}

Result<void> retry_while_busy(const std::function<Result<void>()>& attempt) {
    constexpr timespec kPause{0, 5'000'000};
    const std::uint64_t deadline = now_ns() + kUblkDeathTimeoutNs;
    auto done = attempt();
    while (!done && done.error().code == Errc::busy && now_ns() < deadline) {
        ::nanosleep(&kPause, nullptr);
        done = attempt();
    }
    return done;
}

std::optional<std::uint32_t> ublk_number(std::string_view name, std::string_view prefix) {
    if (!name.starts_with(prefix)) return std::nullopt;
    std::uint32_t number = 0;
    const char* const end = name.data() + name.size();
    const auto parsed = std::from_chars(name.data() + prefix.size(), end, number);
    if (parsed.ec != std::errc() || parsed.ptr != end) return std::nullopt;
    return number;
}

Result<UblkControl> UblkControl::open(const UblkHost& host) {
    auto fd = open_ublk_control(host);
    if (!fd) return std::move(fd).error();
    if (auto checked = check_io_uring(host); !checked) return std::move(checked).error();
    if (auto checked = check_ublk_permission(); !checked) return std::move(checked).error();
    UblkControl control(std::move(*fd));
    control.learn_features();
    return control;
}

int UblkControl::execute(UblkCommand command, const UblkControlCommand& arguments, Patience patience) const {
    int result = -EIO;
    const std::uint32_t opcode = ublk_opcode(dialect_, command);
    // The thread inherits the mask: signals of the process are for others.
    sigset_t all;
    sigset_t before;
    ::sigfillset(&all);
    ::pthread_sigmask(SIG_SETMASK, &all, &before);
    try {
        std::thread([&] {
            result = run_command(fd_.get(), opcode, arguments, patience == Patience::some_seconds);
        }).join();
    } catch (const std::system_error& error) {
        result = -error.code().value();
    }
    ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
    return result;
}

Result<void> UblkControl::expect_success(UblkCommand command, const UblkControlCommand& arguments,
                                         const char* what) const {
    const int result = execute(command, arguments);
    if (result >= 0) return {};
    return Error{Errc::failed, -result,
                 fmt::format("the ublk driver cannot {} (device {})", what, arguments.device)};
}

void UblkControl::learn_features() {
    // Before 6.5 nobody knows the command: then add() finds out by what it gets.
    std::uint64_t features = 0;
    if (execute(UblkCommand::get_features, about(kUblkAnyDevice, features)) >= 0) features_ = features;
}

Result<UblkDeviceInfo> UblkControl::add(UblkDeviceInfo wanted, pid_t owner) {
    wanted.flags &=
        features_ | kUblkFlagUserRecovery | kUblkFlagUserRecoveryReissue;  // these: older than GET_FEATURES
    wanted.device = kUblkAnyDevice;
    wanted.server_flags = kOurMark << 32 | static_cast<std::uint32_t>(owner);
    UblkDeviceInfo info = wanted;
    int result = execute(UblkCommand::add_device, about(kUblkAnyDevice, info));
    // What 6.0 to 6.3 answer to an encoded number; ENODEV since they look for the device first.
    if (features_ == 0 && (result == -EINVAL || result == -EOPNOTSUPP || result == -ENODEV)) {
        dialect_ = UblkDialect::legacy;
        info = wanted;
        result = execute(UblkCommand::add_device, about(kUblkAnyDevice, info));
    }
    if (result >= 0) return info;
    Error error{Errc::failed, -result, "the ublk driver makes no device"};
    if (result == -EPERM) error.hint = "Run as root (CAP_SYS_ADMIN)";
    if (result == -EACCES || result == -ENOSPC)
        error.hint = "There are too many: remove some, or raise /sys/module/ublk_drv/parameters/ublks_max";
    return error;
}

Result<UblkDeviceInfo> UblkControl::look_at(std::uint32_t device) {
    UblkDeviceInfo info{};
    int result = execute(UblkCommand::get_device_info, about(device, info));
    if (features_ == 0 && (result == -EINVAL || result == -EOPNOTSUPP)) {  // as in add
        dialect_ = UblkDialect::legacy;
        result = execute(UblkCommand::get_device_info, about(device, info));
    }
    if (result >= 0 && info.server_flags >> 32 == kOurMark) return info;
    return Error{Errc::not_found, -std::min(result, 0), fmt::format("ublk device {} is not ours", device)};
}

Result<void> UblkControl::set_parameters(std::uint32_t device, const UblkParameters& parameters) {
    UblkControlCommand command = about(device, parameters);
    command.bytes = kUblkParameterBytes;
    return expect_success(UblkCommand::set_parameters, command, "take our parameters");
}

Result<void> UblkControl::start(std::uint32_t device) {
    UblkControlCommand command = about(device);
    command.data = static_cast<std::uint64_t>(::getpid());
    return expect_success(UblkCommand::start_device, command, "start");
}

Result<void> UblkControl::start_recovery(std::uint32_t device) {
    const int result = execute(UblkCommand::start_user_recovery, about(device));
    if (result >= 0) return {};
    return Error{result == -EBUSY ? Errc::busy : Errc::failed, -result,
                 fmt::format("the ublk driver does not give us device {} of a dead process", device)};
}

Result<void> UblkControl::end_recovery(std::uint32_t device) {
    UblkControlCommand command = about(device);
    command.data = static_cast<std::uint64_t>(::getpid());
    return expect_success(UblkCommand::end_user_recovery, command, "go on with us");
}

Result<void> UblkControl::try_stop(std::uint32_t device) {
    const int result = execute(UblkCommand::try_stop_device, about(device));
    if (result == -EBUSY) return Error{Errc::busy, EBUSY, fmt::format("ublk device {} is open", device)};
    if (result >= 0 || result == -ENODEV) return {};
    return Error{Errc::failed, -result, fmt::format("the ublk driver cannot stop (device {})", device)};
}

Result<void> UblkControl::stop(std::uint32_t device) {
    const int result = execute(UblkCommand::stop_device, about(device));
    if (result >= 0 || result == -ENODEV) return {};
    return Error{Errc::failed, -result, fmt::format("the ublk driver cannot stop (device {})", device)};
}

Result<void> UblkControl::remove(std::uint32_t device) {
    const int result = execute(UblkCommand::delete_device, about(device), Patience::some_seconds);
    if (result >= 0 || result == -ENODEV) return {};
    if (result == -EINTR || result == -ECANCELED)
        return Error{Errc::busy, 0, fmt::format("ublk device {} is still held open by others", device),
                     "It goes when they close it"};
    return Error{Errc::failed, -result, fmt::format("the ublk driver cannot remove device {}", device)};
}

bool UblkControl::is_abandoned(std::uint32_t device) {
    const auto info = look_at(device);
    if (!info) return false;
    // A living process of ours may be between ADD_DEV and START_DEV, or about to start another server.
    return has_no_server(*info) && !is_alive(owner_of(*info));
}

Result<void> UblkControl::remove_without_server(std::uint32_t device) {
    const auto info = look_at(device);
    if (!info) return info.error();
    if (!has_no_server(*info))
        return Error{Errc::busy, 0, fmt::format("ublk device {} has a server", device)};
    if (auto stopped = stop(device); !stopped) return stopped;
    return remove(device);
}

void UblkControl::remove_abandoned(const UblkHost& host) {
    std::error_code ignored;
    std::vector<std::uint32_t> devices;
    for (const auto& entry : std::filesystem::directory_iterator(host.dev_dir, ignored))
        if (const auto number = ublk_number(entry.path().filename().native(), "ublkc"))
            devices.push_back(*number);
    for (const std::uint32_t device : devices) {
        if (!is_abandoned(device)) continue;
        log_info("removing ublk device {}, left by a process that has died", device);
        if (auto removed = remove_without_server(device); !removed) log_warning("{}", removed.error().text());
    }
}

}  // namespace vramswap
