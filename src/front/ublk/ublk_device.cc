// SPDX-License-Identifier: MIT
#include "front/ublk/ublk_device.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <bit>
#include <cerrno>
#include <ctime>

#include "base/log.h"
#include "base/units.h"
#include "front/block_device.h"
#include "front/ublk/ublk_users.h"

namespace vramswap {
namespace {

/// They make the device wait when its server dies, and go on with another one, which is sent again what the
/// dead one had not answered. As long as no other one comes, that is for ever, and swapoff waits with it:
/// only for devices with an owner who ends that.
constexpr std::uint64_t kRecoveryFlags = kUblkFlagUserRecovery | kUblkFlagUserRecoveryReissue;

/// udev looks at a block device for some milliseconds after its last writer closed it, swapoff included. So
/// an opener that claims nothing is given this long to go away.
constexpr int kStopAttempts = 100;
constexpr timespec kStopPause{0, 10'000'000};

/// A discard keeps a queue's thread for as long as it takes to forget its pages; swap discards 2 MiB at a
/// time.
constexpr Bytes kDiscardMax = mib(256);

constexpr std::uint8_t kPageShift = std::countr_zero(kPageBytes);

UblkParameters parameters_for(Bytes size) {
    UblkParameters p{};
    p.bytes = kUblkParameterBytes;
    p.types = kUblkParametersBasic | kUblkParametersDiscard;
    p.basic.logical_block_shift = kPageShift;
    p.basic.physical_block_shift = kPageShift;
    p.basic.io_opt_shift = kPageShift;
    p.basic.io_min_shift = kPageShift;
    p.basic.sectors_max = kUblkTransferBytes / kSectorBytes;
    p.basic.device_sectors = size.n / kSectorBytes;
    p.discard.granularity = kPageBytes;
    p.discard.sectors_max = static_cast<std::uint32_t>(kDiscardMax.n / kSectorBytes);
    p.discard.write_zeroes_sectors_max = p.discard.sectors_max;
    p.discard.segments_max = 1;  // the driver takes no other
    return p;
}

}  // namespace

Result<std::unique_ptr<UblkDevice>> UblkDevice::create(const UblkHost& host, Target& target,
                                                       std::uint16_t queues, std::optional<pid_t> owner) {
    auto control = UblkControl::open(host);
    if (!control) return std::move(control).error();
    control->remove_abandoned(host);
    std::unique_ptr<UblkDevice> device(new UblkDevice(host, std::move(*control)));
    if (auto added = device->add(queues, owner); !added) return std::move(added).error();
    if (auto configured = device->configure(target.size()); !configured) return std::move(configured).error();
    if (auto started = device->start_queues(target); !started) return std::move(started).error();
    if (auto started = device->control_.start(device->info_->device); !started)
        return std::move(started).error();
    send_requests_at_once("/sys", device->kernel_name_);
    return device;
}

Result<std::unique_ptr<UblkDevice>> UblkDevice::take_over(const UblkHost& host, Target& target,
                                                          std::uint32_t number) {
    auto control = UblkControl::open(host);
    if (!control) return std::move(control).error();
    std::unique_ptr<UblkDevice> device(new UblkDevice(host, std::move(*control)));
    device->is_anothers_ = true;
    if (auto adopted = device->adopt(number, target.size()); !adopted) return std::move(adopted).error();
    if (auto started = device->start_queues(target); !started) return std::move(started).error();
    if (auto ended = device->control_.end_recovery(number); !ended) return std::move(ended).error();
    device->is_anothers_ = false;
    return device;
}

/// Up to where the kernel waits for our threads.
Result<void> UblkDevice::adopt(std::uint32_t number, Bytes size) {
    auto info = control_.look_at(number);
    if (!info) return std::move(info).error();
    info_ = *info;
    kernel_name_ = fmt::format("ublkb{}", number);
    path_ = fmt::format("{}/{}", host_.dev_dir, kernel_name_);
    if (info_->depth > kUblkDepth || info_->io_bytes_max > kUblkTransferBytes)
        return Error{Errc::failed, 0, path_ + " was made for larger requests than we take"};
    if (const auto sectors = block_device_sectors("/sys", kernel_name_); sectors * kSectorBytes != size.n)
        return Error{Errc::failed, 0,
                     fmt::format("{} has {} bytes, not {}", path_, sectors * kSectorBytes, size.n)};
    auto started = retry_while_busy([&] { return control_.start_recovery(number); });
    return started ? open() : started;
}

Result<void> UblkDevice::add(std::uint16_t queues, std::optional<pid_t> owner) {
    UblkDeviceInfo wanted{};
    wanted.queues = queues;
    wanted.depth = kUblkDepth;
    wanted.io_bytes_max = kUblkTransferBytes;
    // Nobody partitions it, and a scan would hold it open when it shall be stopped.
    wanted.flags = kUblkFlagIoctlEncoded | kUblkFlagNoPartitionScan;
    if (owner) wanted.flags |= kRecoveryFlags;
    auto info = control_.add(wanted, owner.value_or(::getpid()));
    if (!info) return std::move(info).error();
    info_ = *info;
    kernel_name_ = fmt::format("ublkb{}", info_->device);
    path_ = fmt::format("{}/{}", host_.dev_dir, kernel_name_);
    return open();
}

std::string UblkDevice::server_path() const {
    return fmt::format("{}/ublkc{}", host_.dev_dir, info_->device);
}

bool UblkDevice::can_be_taken_over() const {
    return (info_->flags & kRecoveryFlags) == kRecoveryFlags;
}

Result<void> UblkDevice::open() {
    const std::string character = server_path();
    device_.reset(::open(character.c_str(), O_RDWR | O_CLOEXEC));
    if (device_) return {};
    if (errno == ENOENT)
        return Error{Errc::unavailable, ENOENT, "no device node " + character,
                     fmt::format("Mount devtmpfs on {}", host_.dev_dir)};
    return sys_error("cannot open " + character);
}

Result<void> UblkDevice::configure(Bytes size) {
    return control_.set_parameters(info_->device, parameters_for(size));
}

Result<void> UblkDevice::start_queues(Target& target) {
    const UblkQueue::Shared shared{target, device_.get(), control_.dialect(), info_->depth};
    // All of them are made before one is started: `queues_` does not change while threads run.
    for (std::uint16_t i = 0; i < info_->queues; ++i) {
        auto queue = UblkQueue::make(shared, i);
        if (!queue) return std::move(queue).error();
        queues_.push_back(std::move(*queue));
    }
    for (auto& queue : queues_)
        if (auto started = queue->start(); !started) return started;
    return {};
}

Result<void> UblkDevice::stop() {
    for (int attempt = 0; attempt < kStopAttempts; ++attempt) {
        auto stopped = stop_once();
        if (stopped) {
            stopped_ = true;
            return {};
        }
        if (stopped.error().code != Errc::busy || !stopped.error().hint.empty()) return stopped;
        ::nanosleep(&kStopPause, nullptr);
    }
    return block_device_busy(path_, "open in another process");
}

/// Error busy without a hint: by somebody who claims nothing, and may go.
Result<void> UblkDevice::stop_once() {
    if (const std::string who = block_device_claimed_by(path_); !who.empty())
        return block_device_busy(path_, who);
    if ((info_->flags & kUblkFlagSafeStop) != 0) return control_.try_stop(info_->device);
    // STOP_DEV does not look at users. The claim keeps swapon and mount away until it is done.
    const UniqueFd claim = claim_block_device(path_);
    if (!claim && errno == EBUSY) return Error{Errc::busy, 0, "claimed"};
    if (is_open_elsewhere(kernel_name_, claim)) return Error{Errc::busy, 0, "open"};
    return control_.stop(info_->device);
}

UblkDevice::~UblkDevice() {
    if (!info_) return;
    if (!stopped_ && !is_anothers_) {
        // A request that waits for room in the target would keep STOP_DEV waiting.
        for (auto& queue : queues_) queue->tell(UblkQueue::Phase::refusing);
        if (auto stopped = control_.stop(info_->device); !stopped) log_warning("{}", stopped.error().text());
    }
    for (auto& queue : queues_) queue->tell(UblkQueue::Phase::leaving);
    for (auto& queue : queues_) queue->join();
    queues_.clear();
    device_.reset();
    if (is_anothers_) return;
    if (auto removed = control_.remove(info_->device); !removed) log_warning("{}", removed.error().text());
}

FrontendCounters UblkDevice::counters() const {
    FrontendCounters sum;
    for (const auto& queue : queues_) queue->add_counters(sum);
    return sum;
}

}  // namespace vramswap
