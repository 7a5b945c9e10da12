// SPDX-License-Identifier: MIT
#include "front/ublk/ublk_last_stand.h"

#include <fmt/format.h>
#include <sys/eventfd.h>

#include <ctime>
#include <memory>
#include <span>

#include "base/unique_fd.h"
#include "base/units.h"
#include "front/block_device.h"
#include "front/target.h"
#include "front/ublk/ublk_device.h"

namespace vramswap {
namespace {

constexpr timespec kPause{0, 200'000'000};

class LostQueue final : public TargetQueue {
  public:
    LostQueue(Bytes size, UniqueFd event) : TargetQueue(size), event_(std::move(event)) {}
    [[nodiscard]] std::size_t in_flight() const override { return 0; }
    [[nodiscard]] int event_fd() const override { return event_.get(); }

  private:
    IoStatus do_submit(BlockRequest&) override { return IoStatus::io_error; }
    std::size_t do_poll(std::span<BlockRequest*>) override { return 0; }

    const UniqueFd event_;
};

/// All of it is lost.
class LostTarget final : public Target {
  public:
    explicit LostTarget(Bytes size) : size_(size) {}
    [[nodiscard]] Bytes size() const override { return size_; }
    Result<std::unique_ptr<TargetQueue>> make_queue(std::uint32_t) override {
        UniqueFd event(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
        if (!event) return sys_error("eventfd failed");
        return std::unique_ptr<TargetQueue>(new LostQueue(size_, std::move(event)));
    }
    Result<void> register_memory(std::span<std::byte>) override { return {}; }
    Result<void> unregister_memory(std::span<std::byte>) override { return {}; }

  private:
    const Bytes size_;
};

}  // namespace

Result<void> serve_errors(const UblkHost& host, std::uint32_t number, const std::function<void()>& serving) {
    LostTarget lost({block_device_sectors("/sys", fmt::format("ublkb{}", number)) * kSectorBytes});
    auto device = UblkDevice::take_over(host, lost, number);
    if (!device) return std::move(device).error();
    serving();
    for (;;) {
        auto stopped = (*device)->stop();
        if (stopped || stopped.error().code != Errc::busy) return stopped;
        ::nanosleep(&kPause, nullptr);
    }
}

}  // namespace vramswap
