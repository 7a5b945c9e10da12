// SPDX-License-Identifier: MIT
#include "front/loop/loop_frontend.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <optional>
#include <string_view>
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

constexpr std::string_view kFuseKey = "front-fuse";

/// losetup and /sys/block/loopN/loop/backing_file show "/vramswap-NAME": that is how our devices are found.
std::string file_name(const FrontendOptions& options) {
    return "vramswap-" + options.name;
}

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
    Result<std::string> do_take_over(Target& target, const FrontendOptions& options,
                                     const HeldFds& held) override;
    Result<void> do_stop() override;
    [[nodiscard]] std::string_view do_kind() const override { return "loop"; }
    [[nodiscard]] FrontendCounters do_counters() const override { return file_ ? file_->counters() : last_; }

    Result<void> keep(FdKeeper& keeper, const FuseFile& file, const LoopDevice& device);
    void drop_kept();

    const std::string dev_dir_;
    FdKeeper* keeper_ = nullptr;  // of both descriptors, or null
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
    drop_kept();
}

Result<std::string> LoopFrontend::do_start(Target& target, const FrontendOptions& options) {
    if (options.name.empty() || options.name.find('/') != std::string::npos)
        return Error{Errc::usage, 0, fmt::format("'{}' cannot be the name of a device", options.name)};
    if (target.size().n == 0 || target.size().n % kPageBytes != 0)
        return Error{Errc::usage, 0, fmt::format("{} bytes are not whole pages of 4 KiB", target.size().n)};
    const std::string name = file_name(options);
    auto number = reserve_fd_number();
    if (!number) return std::move(number).error();
    auto file = FuseFile::serve(target, {.dev_dir = dev_dir_,
                                         .file_name = name,
                                         .threads = thread_count(options.threads),
                                         .fd_above = number->get()});
    if (!file) return std::move(file).error().in("loop frontend");
    // On a kernel that cannot, kept descriptors would make the I/O of a dead process's device hang, where
    // without them it fails. Asked here, since nothing is in flight before there is a device.
    const bool keeps = options.keeper != nullptr && (*file)->can_be_taken_over();
    if (options.keeper != nullptr && !keeps)
        log_warning(
            "no process can take over {} if this one dies: under the loop frontend it needs Linux 6.9",
            options.name);
    auto device = LoopDevice::attach(dev_dir_, (*file)->handle(), name, std::move(*number));
    if (!device) return std::move(device).error().in("loop frontend");
    if (keeps)
        if (auto kept = keep(*options.keeper, **file, *device); !kept)
            return std::move(kept).error().in("loop frontend");
    // The loop driver holds the file now, and the file system with it: both go when the device goes.
    (*file)->close_handle();
    file_ = std::move(*file);
    device_.emplace(std::move(*device));
    return device_->path();
}

Result<std::string> LoopFrontend::do_take_over(Target& target, const FrontendOptions& options,
                                               const HeldFds& held) {
    const auto kept_device = held.find(kFrontDeviceKey);
    const auto kept_fuse = held.find(kFuseKey);
    if (kept_device == held.end() || kept_fuse == held.end())
        return Error{Errc::unavailable, 0,
                     fmt::format("nobody kept the descriptors of the loop device of {}", options.name),
                     "It takes a guardian and Linux 6.9 or later"};
    const std::string name = file_name(options);
    // The numbers in the order of do_start.
    UniqueFd own = kept_device->second.dup();
    if (!own) return sys_error("cannot duplicate the descriptor of the loop device");
    // Looked at before a request is read, so that none goes to the wrong target.
    auto device = LoopDevice::adopt(dev_dir_, std::move(own), name, target.size());
    if (!device) return std::move(device).error().in("loop frontend");
    auto file = FuseFile::take_over(target,
                                    {.dev_dir = dev_dir_,
                                     .file_name = name,
                                     .threads = thread_count(options.threads),
                                     .fd_above = device->descriptor().get()},
                                    kept_fuse->second);
    if (!file) return std::move(file).error().in("loop frontend");
    if (!device->is_bound())
        return Error{Errc::failed, 0, fmt::format("{} was being removed", device->path())};
    file_ = std::move(*file);
    device_.emplace(std::move(*device));
    keeper_ = options.keeper;
    return device_->path();
}

Result<void> LoopFrontend::do_stop() {
    if (auto detached = device_->detach(); !detached) return detached;
    // While we serve and hold the device, so that it is we who close it last, and not the keeper.
    drop_kept();
    device_.reset();
    last_ = file_->counters();
    file_.reset();
    return {};
}

/// The device first: a keeper that had only the FUSE descriptor would keep it from failing what a dying
/// process writes to its own device (see loop_device.h).
Result<void> LoopFrontend::keep(FdKeeper& keeper, const FuseFile& file, const LoopDevice& device) {
    auto connection = file.duplicate_connection();
    if (!connection) return std::move(connection).error();
    keeper_ = &keeper;
    auto kept = keeper.keep(kFrontDeviceKey, device.descriptor());
    if (kept) kept = keeper.keep(kFuseKey, *connection);
    if (!kept) drop_kept();
    return kept;
}

/// In the reverse order, for the same reason.
void LoopFrontend::drop_kept() {
    if (keeper_ == nullptr) return;
    for (const auto key : {kFuseKey, kFrontDeviceKey})
        if (auto dropped = keeper_->drop(key); !dropped)
            log_warning("{}", std::move(dropped).error().in("loop frontend").text());
    keeper_ = nullptr;
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
