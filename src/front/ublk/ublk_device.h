// SPDX-License-Identifier: MIT
// One ublk device of the kernel with the threads that serve it. Owned by UblkFrontend. Control thread only;
// may block and allocate. Errors: unavailable (with the remedy), no_memory, busy, failed.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"
#include "front/frontend.h"
#include "front/target.h"
#include "front/ublk/ublk_control.h"
#include "front/ublk/ublk_host.h"
#include "front/ublk/ublk_queue.h"

namespace vramswap {

class UblkDevice {
  public:
    /// Makes the device with at most `queues` queues and serves it. On failure nothing stays behind.
    static Result<std::unique_ptr<UblkDevice>> create(const UblkHost& host, Target& target,
                                                      std::uint16_t queues);
    /// Removes the device whoever uses it, who gets errors from now on.
    ~UblkDevice();
    UblkDevice(const UblkDevice&) = delete;
    UblkDevice& operator=(const UblkDevice&) = delete;

    /// Removes the block device, or says busy and goes on serving it. Waits a while for users who claim
    /// nothing.
    Result<void> stop();

    /// "/dev/ublkb3"
    [[nodiscard]] const std::string& path() const { return path_; }
    [[nodiscard]] FrontendCounters counters() const;

  private:
    UblkDevice(UblkHost host, UblkControl control) : host_(std::move(host)), control_(std::move(control)) {}
    Result<void> add(std::uint16_t queues);
    Result<void> configure(Bytes size);
    Result<void> start_queues(Target& target);
    Result<void> stop_once();

    const UblkHost host_;
    UblkControl control_;
    std::optional<UblkDeviceInfo> info_;  // set when there is a /dev/ublkcN of ours
    std::string kernel_name_;             // "ublkb3"
    std::string path_;
    UniqueFd device_;  // /dev/ublkcN
    std::vector<std::unique_ptr<UblkQueue>> queues_;
    bool stopped_ = false;
};

}  // namespace vramswap
