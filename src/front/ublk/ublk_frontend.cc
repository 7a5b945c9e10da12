// SPDX-License-Identifier: MIT
#include "front/ublk/ublk_frontend.h"

#include <fmt/format.h>

#include <algorithm>
#include <thread>
#include <utility>

#include "base/log.h"
#include "front/ublk/ublk_device.h"

namespace vramswap {
namespace {

constexpr std::uint32_t kQueuesDefaultMax = 4;  // each costs locked memory: see kUblkDepth
constexpr std::uint32_t kQueuesMax = 64;

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
        if (device_) log_error("{} is abandoned: whoever still uses it gets errors", device_->path());
    }

  private:
    Result<std::string> do_start(Target& target, const FrontendOptions& options) override {
        if (target.size().n == 0 || target.size().n % kPageBytes != 0)
            return Error{Errc::usage, 0,
                         fmt::format("{} bytes are not whole pages of 4 KiB", target.size().n)};
        auto device = UblkDevice::create(host_, target, queue_count(options.threads));
        if (!device) return std::move(device).error().in("ublk frontend");
        device_ = std::move(*device);
        return device_->path();
    }

    Result<void> do_stop() override {
        if (auto stopped = device_->stop(); !stopped) return stopped;
        last_ = device_->counters();
        device_.reset();
        return {};
    }

    [[nodiscard]] std::string_view do_kind() const override { return "ublk"; }
    [[nodiscard]] FrontendCounters do_counters() const override {
        return device_ ? device_->counters() : last_;
    }

    const UblkHost host_;
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

std::string ublk_problem_in(const UblkHost& host) {
    // Before the driver is asked for: without io_uring there is no point in loading it.
    if (auto usable = check_io_uring(host); !usable) return usable.error().text();
    if (auto control = open_ublk_control(host); !control) return control.error().text();
    if (auto allowed = check_ublk_permission(); !allowed) return allowed.error().text();
    return "";
}

}  // namespace vramswap
