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
    /// Makes the device with at most `queues` queues and serves it. On failure nothing stays behind. With an
    /// `owner` it waits for another server when this process dies, until that process abandons it, or has
    /// died too; where the kernel can (Linux 6.1).
    static Result<std::unique_ptr<UblkDevice>> create(const UblkHost& host, Target& target,
                                                      std::uint16_t queues, std::optional<pid_t> owner);
    /// Goes on with /dev/ublkbN of a server that has died, as soon as the kernel has finished with that: in
    /// the worst case, on 6.12, after half a minute. On failure it stays as it is.
    static Result<std::unique_ptr<UblkDevice>> take_over(const UblkHost& host, Target& target,
                                                         std::uint32_t number);
    /// Removes the device whoever uses it, who gets errors from now on; but not one whose takeover failed.
    ~UblkDevice();
    UblkDevice(const UblkDevice&) = delete;
    UblkDevice& operator=(const UblkDevice&) = delete;

    /// Removes the block device, or says busy and goes on serving it. Waits a while for users who claim
    /// nothing.
    Result<void> stop();

    /// "/dev/ublkb3"
    [[nodiscard]] const std::string& path() const { return path_; }
    /// "/dev/ublkc3"
    [[nodiscard]] std::string server_path() const;
    [[nodiscard]] FrontendCounters counters() const;
    [[nodiscard]] bool can_be_taken_over() const;

  private:
    UblkDevice(UblkHost host, UblkControl control) : host_(std::move(host)), control_(std::move(control)) {}
    Result<void> add(std::uint16_t queues, std::optional<pid_t> owner);
    Result<void> configure(Bytes size);
    Result<void> adopt(std::uint32_t number, Bytes size);
    Result<void> open();
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
    bool is_anothers_ = false;  ///< its takeover is not complete
};

}  // namespace vramswap
