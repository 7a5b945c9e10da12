// SPDX-License-Identifier: MIT
// The control commands of the ublk driver, through /dev/ublk-control. Owned by UblkDevice. Control thread
// only; everything blocks and allocates. Errors: unavailable (no driver or permission, with the remedy),
// failed.
//
// io_uring cannot carry these commands out at once and hands them to worker threads of its own, which stay
// for as long as the thread that submitted. So each command gets a thread and a ring for itself: nothing of
// them remains. It also keeps START_DEV off the I/O threads: while it runs they have to serve the kernel's
// first reads.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"
#include "front/ublk/ublk_abi.h"
#include "front/ublk/ublk_host.h"

namespace vramswap {

class UblkControl {
  public:
    static Result<UblkControl> open(const UblkHost& host);

    /// Makes /dev/ublkcN, marked as ours and its `owner`'s: as long as that process lives, the device is not
    /// abandoned. Of `wanted.flags` those are dropped that the kernel does not know. Returns what the kernel
    /// made of it; from here on dialect() is known.
    Result<UblkDeviceInfo> add(UblkDeviceInfo wanted, pid_t owner);
    /// What the kernel has of a device of ours; from here on dialect() is known. Error not_found: it is not.
    Result<UblkDeviceInfo> look_at(std::uint32_t device);
    Result<void> set_parameters(std::uint32_t device, const UblkParameters& parameters);
    /// Makes /dev/ublkbN. REQUIRES: every tag of every queue is fetched, and its threads serve.
    Result<void> start(std::uint32_t device);
    /// A device whose server has died is to have this process as another one. Error busy: the kernel has not
    /// finished with the dead one.
    Result<void> start_recovery(std::uint32_t device);
    /// Sends the new server what waits, first what the dead one had not answered. REQUIRES: as start.
    Result<void> end_recovery(std::uint32_t device);
    /// Removes /dev/ublkbN if nobody has it open. Errors: busy. REQUIRES: kUblkFlagSafeStop.
    Result<void> try_stop(std::uint32_t device);
    /// Removes /dev/ublkbN whoever uses it, when all requests in flight are complete. Not an error if there
    /// is none.
    Result<void> stop(std::uint32_t device);
    /// Removes /dev/ublkcN. REQUIRES: we have closed it. While others hold its block device open its number
    /// stays in use; then this returns busy after some seconds, and the kernel goes on by itself when they
    /// close it.
    Result<void> remove(std::uint32_t device);
    /// Removes devices that dead processes of ours left: /dev/ublkcN without a block device, or with one that
    /// waits for a server. Failures are logged.
    void remove_abandoned(const UblkHost& host);
    /// The same for one device, whoever its owner is.
    Result<void> remove_without_server(std::uint32_t device);

    [[nodiscard]] UblkDialect dialect() const { return dialect_; }

  private:
    enum class Patience : std::uint8_t { endless, some_seconds };
    explicit UblkControl(UniqueFd fd) : fd_(std::move(fd)) {}
    /// The command's result, or its negative errno.
    [[nodiscard]] int execute(UblkCommand command, const UblkControlCommand& arguments,
                              Patience patience = Patience::endless) const;
    Result<void> expect_success(UblkCommand command, const UblkControlCommand& arguments,
                                const char* what) const;
    void learn_features();
    [[nodiscard]] bool is_abandoned(std::uint32_t device);

    UniqueFd fd_;
    UblkDialect dialect_ = UblkDialect::encoded;
    std::uint64_t features_ = 0;
};

/// The process that a device of ours is marked with.
[[nodiscard]] pid_t owner_of(const UblkDeviceInfo& info);
[[nodiscard]] bool is_alive(pid_t process);

/// Until the kernel has finished with a dead server: longer than the half minute after which 6.12 notices a
/// death if all tags were in flight (the block layer's time-out).
inline constexpr std::uint64_t kUblkDeathTimeoutNs = 60'000'000'000;
/// Again and again as long as it says busy and that time is not over.
Result<void> retry_while_busy(const std::function<Result<void>()>& attempt);

/// The N of "ublkcN" or "ublkbN", as `prefix` says; or nothing.
[[nodiscard]] std::optional<std::uint32_t> ublk_number(std::string_view name, std::string_view prefix);

}  // namespace vramswap
