// SPDX-License-Identifier: MIT
#include "front/ublk/ublk_frontend.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <optional>
#include <string_view>
#include <thread>
#include <utility>

#include "base/log.h"
#include "front/block_device.h"
#include "front/ublk/ublk_device.h"
#include "front/ublk/ublk_last_stand.h"

namespace vramswap {
namespace {

constexpr std::uint32_t kQueuesDefaultMax = 4;  // each costs locked memory: see kUblkDepth
constexpr std::uint32_t kQueuesMax = 64;
constexpr std::string_view kBlockPrefix = "ublkb";
constexpr std::string_view kServerPrefix = "ublkc";

/// The kernel makes no more than it has CPUs.
std::uint16_t queue_count(std::uint32_t wanted) {
    if (wanted != 0) return static_cast<std::uint16_t>(std::min(wanted, kQueuesMax));
    return static_cast<std::uint16_t>(
        std::clamp<std::uint32_t>(std::thread::hardware_concurrency(), 1, kQueuesDefaultMax));
}

class UblkFrontend final : public Frontend {
  public:
    explicit UblkFrontend(UblkHost host) : host_(std::move(host)) {}
    ~UblkFrontend() override {
        // Never reached by a daemon that stops as it should.
        if (!device_) return;
        log_error("{} is abandoned: whoever still uses it gets errors", device_->path());
        device_.reset();
        drop_kept();
    }

  private:
    Result<std::string> do_start(Target& target, const FrontendOptions& options) override {
        if (target.size().n == 0 || target.size().n % kPageBytes != 0)
            return Error{Errc::usage, 0,
                         fmt::format("{} bytes are not whole pages of 4 KiB", target.size().n)};
        // Its owner is who started this process, and starts the next.
        const auto owner = options.keeper == nullptr ? std::nullopt : std::optional<pid_t>(::getppid());
        auto device = UblkDevice::create(host_, target, queue_count(options.threads), owner);
        if (!device) return std::move(device).error().in("ublk frontend");
        if (options.keeper != nullptr)
            if (auto kept = keep(*options.keeper, **device, options.name); !kept)
                return std::move(kept).error().in("ublk frontend");
        device_ = std::move(*device);
        return device_->path();
    }

    Result<std::string> do_take_over(Target& target, const FrontendOptions& options,
                                     const HeldFds& held) override {
        const auto kept = held.find(kFrontDeviceKey);
        const auto number =
            kept == held.end() ? std::nullopt : ublk_number(named_node(kept->second), kServerPrefix);
        if (!number)
            return Error{Errc::unavailable, 0,
                         fmt::format("nobody kept the name of the ublk device of {}", options.name),
                         "It takes a guardian and Linux 6.1 or later"};
        auto device = UblkDevice::take_over(host_, target, *number);
        if (!device) return std::move(device).error().in("ublk frontend");
        device_ = std::move(*device);
        keeper_ = options.keeper;
        return device_->path();
    }

    /// Its name is enough: what else belongs to it the kernel keeps. Not that of its block device, whose
    /// users are looked for by it (ublk_users.h).
    Result<void> keep(FdKeeper& keeper, const UblkDevice& device, const std::string& name) {
        if (!device.can_be_taken_over()) {
            log_warning(
                "no process can take over {} if this one dies: under the ublk frontend it needs "
                "Linux 6.1",
                name);
            return {};
        }
        auto named = name_node(device.server_path());
        if (!named) return std::move(named).error();
        keeper_ = &keeper;
        return keeper.keep(kFrontDeviceKey, *named);
    }

    Result<void> do_stop() override {
        if (auto stopped = device_->stop(); !stopped) return stopped;
        drop_kept();
        last_ = device_->counters();
        device_.reset();
        return {};
    }

    [[nodiscard]] std::string_view do_kind() const override { return "ublk"; }
    [[nodiscard]] FrontendCounters do_counters() const override {
        return device_ ? device_->counters() : last_;
    }

    void drop_kept() {
        if (keeper_ == nullptr) return;
        if (auto dropped = keeper_->drop(kFrontDeviceKey); !dropped)
            log_warning("{}", std::move(dropped).error().in("ublk frontend").text());
        keeper_ = nullptr;
    }

    const UblkHost host_;
    FdKeeper* keeper_ = nullptr;  // of the device's name, or null
    FrontendCounters last_;
    std::unique_ptr<UblkDevice> device_;
};

}  // namespace

std::unique_ptr<Frontend> make_ublk_frontend() {
    return make_ublk_frontend_in({});
}

std::string ublk_problem() {
    return ublk_problem_in({});
}

std::unique_ptr<Frontend> make_ublk_frontend_in(UblkHost host) {
    return std::make_unique<UblkFrontend>(std::move(host));
}

Result<void> abandon_ublk_device(const std::string& path, const std::function<void()>& ended) {
    const auto number = ublk_number(kernel_name_of(path), kBlockPrefix);
    if (!number) return Error{Errc::usage, 0, path + " is no ublk device"};
    auto control = UblkControl::open({});
    if (!control) return std::move(control).error();
    const auto info = control->look_at(*number);
    const auto owner = info ? owner_of(*info) : 0;
    if (!info || (owner != ::getppid() && is_alive(owner))) {
        ended();  // it is another's by now, or nobody's
        return {};
    }
    return serve_errors({}, *number, ended);
}

std::string ublk_problem_in(const UblkHost& host) {
    // Before the driver is asked for: without io_uring there is no point in loading it.
    if (auto usable = check_io_uring(host); !usable) return usable.error().text();
    if (auto control = open_ublk_control(host); !control) return control.error().text();
    if (auto allowed = check_ublk_permission(); !allowed) return allowed.error().text();
    return "";
}

}  // namespace vramswap
