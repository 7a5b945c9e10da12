// SPDX-License-Identifier: MIT
#include "cli/trial_area.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cstdlib>
#include <optional>

#include "base/unique_fd.h"
#include "cli/commands.h"
#include "sys/zram.h"

namespace vramswap {
namespace {

constexpr const char* kLabel = "vramswap-bench";

class VramArea final : public TrialArea {
  public:
    explicit VramArea(DevicePlan plan) : plan_(std::move(plan)) {
        detail_ = fmt::format("{}, {}", plan_.config.frontend, plan_.gpu.name);
    }
    ~VramArea() override {
        if (auto down = take_down(); !down) (void)report(down.error());
    }

    Result<void> bring_up(Bytes size) override {
        plan_.config.size = size;
        auto running = launch_device(plan_.config);
        if (!running) return std::move(running).error();
        running_ = std::move(*running);
        path_ = running_->device;
        return start_swapping(*running_, kSwapPriorityMax);
    }
    Result<Bytes> ram() override {
        auto status = device_status(plan_.config.name);
        if (!status) return std::move(status).error();
        return status->ram;
    }
    Result<void> take_down() override {
        if (!running_) return {};
        if (auto off = stop_swapping(running_->device); !off) return off;
        auto removed = remove_device(running_->name);
        running_.reset();
        return removed;
    }

  private:
    DevicePlan plan_;
    std::optional<RunningDevice> running_;
};

class ZramArea final : public TrialArea {
  public:
    ZramArea() = default;
    ~ZramArea() override {
        if (auto down = take_down(); !down) (void)report(down.error());
    }

    Result<void> bring_up(Bytes size) override {
        auto device = ZramDevice::create(size);
        if (!device) return std::move(device).error();
        device_.emplace(std::move(*device));
        path_ = device_->path();
        detail_ = device_->algorithm().value_or("");
        return start_swapping(path_, kLabel, {kSwapPriorityMax, SwapDiscard::both});
    }
    Result<Bytes> ram() override { return device_->ram_used(); }
    Result<void> take_down() override {
        if (!device_) return {};
        if (auto off = stop_swapping(path_); !off) return off;
        auto removed = device_->remove();
        device_.reset();
        return removed;
    }

  private:
    std::optional<ZramDevice> device_;
};

class FileArea final : public TrialArea {
  public:
    explicit FileArea(std::string folder) : folder_(std::move(folder)) {}
    ~FileArea() override {
        if (auto down = take_down(); !down) (void)report(down.error());
    }

    Result<void> bring_up(Bytes size) override {
        const std::unique_ptr<char, decltype(&std::free)> real(::realpath(folder_.c_str(), nullptr),
                                                               &std::free);
        if (!real) return sys_error(fmt::format("cannot use {} for a swap file", folder_));
        const std::string path = fmt::format("{}/vramswap-bench-{}.swap", real.get(), ::getpid());
        const UniqueFd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
        if (!fd) return sys_error(fmt::format("cannot make {}", path));
        path_ = path;
        if (::fallocate(fd.get(), 0, 0, static_cast<off_t>(size.n)) != 0)
            return sys_error(fmt::format("no {} for {}", format_size(size), path_));
        // Without discards: on a disk they would be the trial's largest part.
        return start_swapping(path_, kLabel, {kSwapPriorityMax, SwapDiscard::none});
    }
    Result<Bytes> ram() override { return Bytes{0}; }
    Result<void> take_down() override {
        if (path_.empty()) return {};
        if (auto off = stop_swapping(path_); !off) return off;
        const std::string path = std::exchange(path_, {});
        if (::unlink(path.c_str()) != 0) return sys_error(fmt::format("cannot remove {}", path));
        return {};
    }

  private:
    const std::string folder_;
};

}  // namespace

std::unique_ptr<TrialArea> make_vram_area(DevicePlan plan) {
    return std::make_unique<VramArea>(std::move(plan));
}
std::unique_ptr<TrialArea> make_zram_area() {
    return std::make_unique<ZramArea>();
}
std::unique_ptr<TrialArea> make_file_area(std::string folder) {
    return std::make_unique<FileArea>(std::move(folder));
}

}  // namespace vramswap
