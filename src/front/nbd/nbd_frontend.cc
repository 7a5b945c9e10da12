// SPDX-License-Identifier: MIT
#include "front/nbd/nbd_frontend.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/capability.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <ctime>
#include <filesystem>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/log.h"
#include "front/block_device.h"
#include "front/kernel_module.h"
#include "front/nbd/nbd_abi.h"
#include "front/nbd/nbd_connection.h"

namespace vramswap {
namespace {

namespace fs = std::filesystem;

/// The kernel gives each hardware queue, so each connection, to a share of the CPUs. More than four do not
/// make one device faster.
constexpr std::uint32_t kConnectionsDefaultMax = 4;
constexpr std::uint32_t kConnectionsMax = NbdFence::kConnectionsMax;

/// What happens to I/O when this process dies or stands still.
struct Timeouts {
    /// When the last socket is gone, requests not yet sent wait so long for another, then they fail.
    std::uint64_t dead_connection_s;
    /// Requests that were sent and not answered are found by this timer alone. It ends their connection, also
    /// one to a living process that is too slow, and they are sent over another one; if there is none any
    /// more, they wait for it as above. 0 would not mean "never": with several sockets it is 30 s, and with
    /// one socket they hang until somebody disconnects the device.
    std::uint64_t request_s;
};
/// Nobody takes over: I/O fails at once, or as late as can be below the 120 s after which the kernel warns of
/// hung tasks, since the connections of a slow worker are the device and its data.
constexpr Timeouts kUnfollowed{.dead_connection_s = 0, .request_s = 90};
/// Somebody does, or this process itself connects again. What the dead process had read waits for the timer:
/// that is the pause of whoever asked for it. And a swapoff ends, at the latest, five minutes after the
/// deaths of both processes.
constexpr Timeouts kFollowed{.dead_connection_s = 300, .request_s = 5};

/// Until the kernel has noticed that a dead process's sockets are closed.
constexpr std::uint64_t kReconnectTimeoutNs = 30'000'000'000;
/// When it has noticed the first of them.
constexpr std::uint64_t kOthersTimeoutNs = 2'000'000'000;
constexpr timespec kReconnectPause{0, 2'000'000};

/// No SEND_FLUSH, so no write cache: what is acknowledged is as safe as it will ever be. No ROTATIONAL: swap
/// would use one CPU's cluster for all.
constexpr std::uint64_t kServerFlags = nbd_abi::kServerHasFlags | nbd_abi::kServerSendTrim |
                                       nbd_abi::kServerSendWriteZeroes | nbd_abi::kServerCanMultiConn;

/// Of the socket buffers; the kernel counts about two bytes for each byte of data in pages. Ours is large
/// enough for a whole request, so that replies seldom wait. What is in the kernel's comes out of the reserve
/// that the replies need too: no more than keeps us busy.
constexpr int kOurBufferBytes = 1 << 20;
constexpr int kKernelsBufferBytes = 128 << 10;

/// /sys/block/nbdN/backend shows it: that is how our devices are found.
std::string backend_name(const std::string& name) {
    return "vramswap-" + name;
}

std::uint32_t connection_count(std::uint32_t wanted) {
    if (wanted != 0) return std::min(wanted, kConnectionsMax);
    return std::clamp<std::uint32_t>(std::thread::hardware_concurrency(), 1, kConnectionsDefaultMax);
}

bool may_administer() {
    __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
    std::array<__user_cap_data_struct, _LINUX_CAPABILITY_U32S_3> sets{};
    return ::syscall(SYS_capget, &header, sets.data()) == 0 &&
           (sets[0].effective & CAP_TO_MASK(CAP_SYS_ADMIN)) != 0;
}

Result<void> find_driver(const NbdSystem& system) {
    // It has parameters, so it has this folder also when it is built in.
    const fs::path module = fs::path(system.sys_dir) / "module/nbd";
    std::error_code ignored;
    if (fs::exists(module, ignored)) return {};
    auto loaded = load_kernel_module("nbd", system.modprobe);
    if (fs::exists(module, ignored)) return {};
    const std::string reason = loaded ? "modprobe loaded it, but it is not there" : loaded.error().text();
    return Error{
        Errc::unavailable, 0, fmt::format("this kernel has no NBD driver ({})", reason),
        "Install the package with all of your kernel's modules, or a kernel with CONFIG_BLK_DEV_NBD, or use "
        "another frontend"};
}

/// The driver makes devices when it is loaded; if their nodes are missing, so will be ours.
Result<void> find_nodes(const NbdSystem& system) {
    std::error_code ignored;
    for (const auto& block : fs::directory_iterator(fs::path(system.sys_dir) / "block", ignored)) {
        const std::string name = block.path().filename();
        const fs::path node = fs::path(system.dev_dir) / name;
        if (name.starts_with("nbd") && !fs::exists(node, ignored))
            return Error{Errc::unavailable, 0, "no device node " + node.string(),
                         "Mount devtmpfs on " + system.dev_dir};
    }
    return {};
}

Result<void> check(const NbdSystem& system) {
    if (!may_administer())
        return Error{Errc::unavailable, 0, "not allowed to connect a network block device",
                     "Run as root (CAP_SYS_ADMIN)"};
    if (auto found = find_driver(system); !found) return found;
    if (auto found = find_nodes(system); !found) return found;
    if (auto netlink = NbdNetlink::open(system.family); !netlink) return std::move(netlink).error();
    return {};
}

NbdSettings settings_for(const Target& target, const FrontendOptions& options) {
    const Timeouts& timeouts = options.keeper == nullptr ? kUnfollowed : kFollowed;
    return {.size = target.size(),
            .server_flags = kServerFlags,
            .request_timeout_s = timeouts.request_s,
            .dead_connection_timeout_s = timeouts.dead_connection_s,
            .backend = backend_name(options.name)};
}

struct SocketPair {
    UniqueFd ours, kernels;
};

/// Best effort: with the system's default it is slower, not wrong. FORCE passes over net.core.wmem_max.
void set_buffer(const UniqueFd& socket, int bytes) {
    if (::setsockopt(socket.get(), SOL_SOCKET, SO_SNDBUFFORCE, &bytes, sizeof bytes) != 0)
        ::setsockopt(socket.get(), SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes);
}

/// Our end has a number above `fd_above`; see NbdDevice. On AF_UNIX what is under way counts as the sender's,
/// so both ends have a buffer to send and none to receive.
Result<SocketPair> make_socket_pair(int fd_above) {
    std::array<int, 2> ends{};
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) != 0)
        return sys_error("socketpair failed");
    const UniqueFd end(ends[0]);
    SocketPair pair{UniqueFd(::fcntl(end.get(), F_DUPFD_CLOEXEC, fd_above + 1)), UniqueFd(ends[1])};
    if (!pair.ours) return sys_error("cannot duplicate a socket");
    set_buffer(pair.ours, kOurBufferBytes);
    set_buffer(pair.kernels, kKernelsBufferBytes);
    return pair;
}

class NbdFrontend final : public Frontend {
  public:
    explicit NbdFrontend(NbdSystem system) : system_(std::move(system)) {}
    ~NbdFrontend() override;

  private:
    Result<std::string> do_start(Target& target, const FrontendOptions& options) override;
    Result<std::string> do_take_over(Target& target, const FrontendOptions& options,
                                     const HeldFds& held) override;
    void do_maintain() override;
    Result<void> do_stop() override;
    [[nodiscard]] std::string_view do_kind() const override { return "nbd"; }
    [[nodiscard]] FrontendCounters do_counters() const override;

    Result<void> serve(Target& target, const FrontendOptions& options);
    Result<void> go_on(Target& target, const FrontendOptions& options, UniqueFd kept);
    Result<UniqueFd> make_connection(Target& target, std::uint32_t number, int fd_above);
    Result<bool> connect_again(Target& target, std::uint32_t number, std::uint64_t patience_ns);
    void end_connection(std::uint32_t number);
    Result<void> keep();
    void drop_kept();
    Result<std::vector<UniqueFd>> start_connections(Target& target, std::uint32_t count, int fd_above);
    void end_connections();

    const NbdSystem system_;
    Target* target_ = nullptr;
    FdKeeper* keeper_ = nullptr;  // of the device's descriptor, or null
    FrontendCounters ended_;      // of the connections that are gone
    std::unique_ptr<StopSignal> stop_;
    NbdFence fence_;
    std::vector<std::unique_ptr<NbdConnection>> connections_;
    std::optional<NbdDevice> device_;
};

NbdFrontend::~NbdFrontend() {
    if (!device_) return;
    // Never reached by a daemon that stops as it should. Who still uses the device gets errors from now on.
    if (auto stopped = do_stop(); !stopped) {
        log_error("{}", std::move(stopped).error().in("abandoned").text());
        device_->abandon();
    }
    drop_kept();
    // The sockets go before our descriptor of the device: see NbdDevice.
    end_connections();
}

FrontendCounters NbdFrontend::do_counters() const {
    FrontendCounters sum = ended_;
    for (const auto& connection : connections_)
        if (connection) connection->add_counters(sum);
    return sum;
}

Result<std::string> NbdFrontend::do_start(Target& target, const FrontendOptions& options) {
    if (options.name.empty() || options.name.find('/') != std::string::npos)
        return Error{Errc::usage, 0, fmt::format("'{}' cannot be the name of a device", options.name)};
    if (target.size().n == 0 || target.size().n % kPageBytes != 0)
        return Error{Errc::usage, 0, fmt::format("{} bytes are not whole pages of 4 KiB", target.size().n)};
    if (auto checked = check(system_); !checked) return std::move(checked).error().in("nbd frontend");
    if (auto serving = serve(target, options); !serving) {
        end_connections();
        return std::move(serving).error().in("nbd frontend");
    }
    return device_->path();
}

Result<void> NbdFrontend::serve(Target& target, const FrontendOptions& options) {
    auto number = reserve_fd_number();
    if (!number) return std::move(number).error();
    // They live until the kernel has its own references; after that our process alone holds the other ends,
    // so that its death is the end of the connections.
    auto kernel_ends = start_connections(target, connection_count(options.threads), number->get());
    if (!kernel_ends) return std::move(kernel_ends).error();
    std::vector<int> sockets;
    for (const auto& end : *kernel_ends) sockets.push_back(end.get());
    auto device = NbdDevice::attach(system_, settings_for(target, options), sockets, std::move(*number));
    if (!device) return std::move(device).error();
    device_.emplace(std::move(*device));
    target_ = &target;
    keeper_ = options.keeper;
    if (keeper_ == nullptr) return {};
    auto kept = keep();
    if (!kept) {
        device_->abandon();
        device_.reset();
    }
    return kept;
}

Result<std::string> NbdFrontend::do_take_over(Target& target, const FrontendOptions& options,
                                              const HeldFds& held) {
    const auto kept = held.find(kFrontDeviceKey);
    if (kept == held.end())
        return Error{Errc::unavailable, 0,
                     fmt::format("nobody kept the descriptor of the nbd device of {}", options.name),
                     "It takes a guardian"};
    auto copy = kept->second.dup();
    if (!copy) return sys_error("cannot duplicate the descriptor of the nbd device");
    if (auto serving = go_on(target, options, std::move(copy)); !serving) {
        end_connections();
        device_.reset();
        return std::move(serving).error().in("nbd frontend");
    }
    return device_->path();
}

Result<void> NbdFrontend::go_on(Target& target, const FrontendOptions& options, UniqueFd kept) {
    auto device = NbdDevice::adopt(system_, settings_for(target, options), std::move(kept));
    if (!device) return std::move(device).error();
    device_.emplace(std::move(*device));
    auto stop = StopSignal::make();
    if (!stop) return std::move(stop).error();
    stop_ = std::move(*stop);
    const std::uint32_t count = connection_count(options.threads);
    for (std::uint32_t n = 0; n < count; ++n) {
        auto connected = connect_again(target, n, n == 0 ? kReconnectTimeoutNs : kOthersTimeoutNs);
        if (!connected) return std::move(connected).error();
        if (*connected) continue;
        if (n == 0)
            return Error{
                Errc::failed, 0,
                fmt::format("the kernel does not give up the dead connections of {}", device_->path())};
        log_warning("{} has {} connections, where {} were expected", device_->path(), n, count);
        end_connection(n);
        connections_.pop_back();
        break;
    }
    target_ = &target;
    keeper_ = options.keeper;
    return {};
}

/// The kernel has given up connections of a process that stood still.
void NbdFrontend::do_maintain() {
    if (keeper_ == nullptr || !device_) return;
    for (std::uint32_t n = 0; n < connections_.size(); ++n) {
        if (connections_[n] && !connections_[n]->has_ended()) continue;
        const auto connected = connect_again(*target_, n, 0);
        if (!connected) log_warning("nbd frontend: {}", connected.error().text());
    }
}

/// In the place of one that has ended. False if the kernel knows of no dead one, for so long.
Result<bool> NbdFrontend::connect_again(Target& target, std::uint32_t number, std::uint64_t patience_ns) {
    const std::uint64_t begin = now_ns();
    for (;;) {
        end_connection(number);  // first, for its memory: there may be no other
        auto kernel_end = make_connection(target, number, device_->descriptor().get());
        if (!kernel_end) return std::move(kernel_end).error();
        if (auto told = device_->reconnect(kernel_end->get()); !told) return std::move(told).error();
        kernel_end->reset();
        if (!connections_[number]->is_hung_up()) return true;
        if (now_ns() - begin >= patience_ns) return false;
        ::nanosleep(&kReconnectPause, nullptr);
    }
}

void NbdFrontend::end_connection(std::uint32_t number) {
    if (number >= connections_.size() || !connections_[number]) return;
    connections_[number]->join();
    connections_[number]->add_counters(ended_);
    connections_[number].reset();
}

/// For a process that takes over. The same open file: as long as the keeper has it, the device does not end.
Result<void> NbdFrontend::keep() {
    return keeper_->keep(kFrontDeviceKey, device_->descriptor());
}

void NbdFrontend::drop_kept() {
    if (keeper_ == nullptr) return;
    if (auto dropped = keeper_->drop(kFrontDeviceKey); !dropped)
        log_warning("{}", std::move(dropped).error().in("nbd frontend").text());
}

/// Returns the kernel's ends.
Result<std::vector<UniqueFd>> NbdFrontend::start_connections(Target& target, std::uint32_t count,
                                                             int fd_above) {
    auto stop = StopSignal::make();
    if (!stop) return std::move(stop).error();
    stop_ = std::move(*stop);
    std::vector<UniqueFd> kernel_ends;
    for (std::uint32_t i = 0; i < count; ++i) {
        auto kernel_end = make_connection(target, i, fd_above);
        if (!kernel_end) return std::move(kernel_end).error();
        kernel_ends.push_back(std::move(*kernel_end));
    }
    return kernel_ends;
}

/// A new one, or in the place of one that has ended. Returns the kernel's end.
Result<UniqueFd> NbdFrontend::make_connection(Target& target, std::uint32_t number, int fd_above) {
    auto pair = make_socket_pair(fd_above);
    if (!pair) return std::move(pair).error();
    auto connection = NbdConnection::make({target, *stop_, fence_}, number, std::move(pair->ours));
    if (!connection) return std::move(connection).error();
    if (auto started = (*connection)->start(); !started) return std::move(started).error();
    if (number == connections_.size())
        connections_.push_back(std::move(*connection));
    else
        connections_[number] = std::move(*connection);
    return std::move(pair->kernels);
}

Result<void> NbdFrontend::do_stop() {
    // It says so at once and by name; the safety lies in DISCONNECT_ON_CLOSE.
    if (const std::string who = block_device_claimed_by(device_->path()); !who.empty())
        return block_device_busy(device_->path(), who);
    std::vector<int> sockets;
    for (const auto& connection : connections_)
        if (connection) sockets.push_back(connection->socket());
    drop_kept();
    if (auto detached = device_->detach(sockets); !detached) {
        if (keeper_ != nullptr)
            if (auto kept = keep(); !kept) log_warning("{}", kept.error().text());
        return detached;
    }
    keeper_ = nullptr;
    end_connections();
    device_.reset();
    return {};
}

void NbdFrontend::end_connections() {
    if (stop_) stop_->request();
    for (std::uint32_t n = 0; n < connections_.size(); ++n) end_connection(n);
    connections_.clear();
    stop_.reset();
}

}  // namespace

std::unique_ptr<Frontend> make_nbd_frontend() {
    return make_nbd_frontend_in({});
}

std::string nbd_problem() {
    return nbd_problem_in({});
}

std::unique_ptr<Frontend> make_nbd_frontend_in(NbdSystem system) {
    return std::make_unique<NbdFrontend>(std::move(system));
}

Result<void> abandon_nbd_device(const std::string& path, const std::string& name) {
    const NbdSystem system;
    const std::string kernel_name = kernel_name_of(path);
    const auto index = nbd_index(kernel_name);
    if (!index || nbd_backend(system, kernel_name) != backend_name(name)) return {};
    auto netlink = NbdNetlink::open(system.family);
    if (!netlink) return std::move(netlink).error();
    return netlink->disconnect(*index);
}

std::string nbd_problem_in(const NbdSystem& system) {
    auto checked = check(system);
    return checked ? "" : checked.error().text();
}

}  // namespace vramswap
