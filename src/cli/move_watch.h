// SPDX-License-Identifier: MIT
// MoveWatch: follows a device from status to status while VRAM is given back or taken, after `resize` or
// `yield`: how far it is, whether it is done, and whether it will never be. Pure: statuses and times in,
// nothing blocks. Owned by a command, one thread. The policy decides and the store moves; what is known of
// both is what the status tells.
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "ctl/messages.h"

namespace vramswap {

class MoveWatch {
  public:
    enum class Goal : std::uint8_t {
        at_most,  ///< less is as good
        exactly,  ///< but for a segment, and for what the device has no use for
    };
    enum class Verdict : std::uint8_t { moving, done, stuck };

    /// `before`: the status when it was asked for.
    MoveWatch(Goal goal, Bytes wanted, const DeviceStatus& before, std::uint64_t now_ns);

    /// `stuck`: nothing has moved for long, or for a while if the policy has settled for what there is.
    Verdict look(const DeviceStatus& status, std::uint64_t now_ns);

    [[nodiscard]] bool gives_back() const { return vram_before_ > wanted_; }
    /// 0 to 1.
    [[nodiscard]] double share() const;
    [[nodiscard]] Bytes vram() const { return vram_; }
    /// "gave back 3.2G of VRAM in 1.6 s (2G/s)", "took …", "had nothing to move".
    [[nodiscard]] std::string account() const;
    /// After `stuck`: an error with how much stays and why. ok if what was asked for is granted, and the
    /// device has no use for more or is slow on the way back from the spill.
    [[nodiscard]] Result<void> outcome(const DeviceStatus& status) const;

  private:
    [[nodiscard]] bool granted(const DeviceStatus& status) const;
    [[nodiscard]] bool reached(const DeviceStatus& status) const;
    /// Nothing more will come, unless this status is older than the request.
    [[nodiscard]] bool settled(const DeviceStatus& status) const;

    const Goal goal_;
    const Bytes wanted_;
    const Bytes vram_before_;
    const std::uint64_t begun_ns_;
    Bytes vram_;
    std::uint64_t seen_ns_;     ///< the last look
    std::uint64_t changed_ns_;  ///< the last look that saw something else than the one before
    std::array<std::uint64_t, 6> seen_{};
};

}  // namespace vramswap
