// SPDX-License-Identifier: MIT
#include "front/loop/loop_frontend.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <optional>
#include <thread>
#include <utility>

#include "base/log.h"
#include "front/block_device.h"
#include "front/loop/fuse_file.h"
#include "front/loop/fuse_mount.h"
#include "front/loop/loop_device.h"

namespace vramswap {
namespace {

constexpr std::uint32_t kThreadsMin = 2;  // a discard that takes long must not stop everything
constexpr std::uint32_t kThreadsDefaultMax = 4;
constexpr std::uint32_t kThreadsMax = 64;

std::uint32_t thread_count(std::uint32_t wanted) {
    if (wanted != 0) return std::min(wanted, kThreadsMax);
    return std::clamp<std::uint32_t>(std::thread::hardware_concurrency(), kThreadsMin, kThreadsDefaultMax);
}

class LoopFrontend final : public Frontend {
  public:
    explicit LoopFrontend(std::string dev_dir) : dev_dir_(std::move(dev_dir)) {}
    ~LoopFrontend() override;

  private:
    Result<std::string> do_start(Target& target, const FrontendOptions& options) override;
    Result<void> do_stop() override;
    [[nodiscard]] std::string_view do_kind() const override { return "loop"; }
    [[nodiscard]] FrontendCounters do_counters() const override { return file_ ? file_->counters() : last_; }

    const std::string dev_dir_;
    FrontendCounters last_;
    // In this order: the device goes first, while the file still serves what the kernel has left to say.
    std::unique_ptr<FuseFile> file_;
    std::optional<LoopDevice> device_;
};

LoopFrontend::~LoopFrontend() {
    if (!device_) return;
    // Never reached by a daemon that stops as it should. Who still uses the device gets errors from now on.
    if (auto stopped = do_stop(); !stopped)
        log_error("{}", std::move(stopped).error().in("abandoned").text());
}

Result<std::string> LoopFrontend::do_start(Target& target, const FrontendOptions& options) {
    if (options.name.empty() || options.name.find('/') != std::string::npos)
        return Error{Errc::usage, 0, fmt::format("'{}' cannot be the name of a device", options.name)};
    if (target.size().n == 0 || target.size().n % kPageBytes != 0)
        return Error{Errc::usage, 0, fmt::format("{} bytes are not whole pages of 4 KiB", target.size().n)};
    // losetup and /sys/block/loopN/loop/backing_file show "/vramswap-NAME": that is how our devices are
    // found.
    const std::string name = "vramswap-" + options.name;
    auto number = reserve_fd_number();
    if (!number) return std::move(number).error();
    auto file = FuseFile::serve(target, {.dev_dir = dev_dir_,
                                         .file_name = name,
                                         .threads = thread_count(options.threads),
                                         .fd_above = number->get()});
    if (!file) return std::move(file).error().in("loop frontend");
    auto device = LoopDevice::attach(dev_dir_, (*file)->handle(), name, std::move(*number));
    if (!device) return std::move(device).error().in("loop frontend");
    // The loop driver holds the file now, and the file system with it: both go when the device goes.
    (*file)->close_handle();
    file_ = std::move(*file);
    device_.emplace(std::move(*device));
    return device_->path();
}

Result<void> LoopFrontend::do_stop() {
    if (auto detached = device_->detach(); !detached) return detached;
    last_ = file_->counters();
    device_.reset();
    file_.reset();
    return {};
}

}  // namespace

std::unique_ptr<Frontend> make_loop_frontend() {
    return make_loop_frontend_in("/dev");
}

std::string loop_problem() {
    return loop_problem_in("/dev");
}

std::unique_ptr<Frontend> make_loop_frontend_in(std::string dev_dir) {
    return std::make_unique<LoopFrontend>(std::move(dev_dir));
}

std::string loop_problem_in(const std::string& dev_dir) {
    if (auto device = open_fuse_device(dev_dir); !device) return device.error().text();
    if (auto control = open_loop_control(dev_dir); !control) return control.error().text();
    if (auto known = check_fuse_filesystem(); !known) return known.error().text();
    return "";
}

}  // namespace vramswap
