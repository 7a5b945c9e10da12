// SPDX-License-Identifier: MIT
// One network block device of the kernel over our sockets, with blocks of 4 KiB. Owned by NbdFrontend.
// Control thread only; opens files, asks the kernel by netlink, and may block.
//
// The kernel's DISCONNECT does not look at users: it fails the I/O of whoever has the device open. So while
// serving we hold the device open, and it is set to disconnect when its last opener closes it
// (DISCONNECT_ON_CLOSE; decided under the disk's open_mutex: nbd_release in drivers/block/nbd.c). It lives
// exactly as long as somebody has it open:
// - normal stop: closing our descriptor is the one atomic question "am I the only user? then end it". With
//   other users it changes nothing, and we open the device again.
// - the worker dies while nobody uses the device: the kernel closes our descriptor, and the device is free.
// - the worker dies while it is swap or mounted: its I/O fails (see the timeouts in nbd_frontend.cc), and it
//   goes after swapoff or unmounting. Without the flag it would stay connected to nothing until somebody
//   runs `nbd-client -d`.
//
// Where somebody keeps a copy of our descriptor for a process that takes over, the device lives until that is
// closed too: when it is taken over, or abandoned first, or when its keeper dies.
//
// The price: a dying process that is the last to have the device open writes its dirty page cache out, to
// sockets that it serves itself. If the kernel closes the sockets first, those writes fail at once; else they
// wait for the request timeout. A dying process closes its descriptors from the highest number to the lowest
// (see LoopDevice), so the number of this descriptor has to be lower than those of the sockets.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "base/result.h"
#include "base/unique_fd.h"
#include "front/nbd/nbd_netlink.h"

namespace vramswap {

/// Where the system is; other places for tests.
struct NbdSystem {
    std::string dev_dir = "/dev";
    std::string sys_dir = "/sys";
    std::string modprobe{};  ///< program in the place of modprobe; empty: modprobe
    std::string family = "nbd";
};

/// The number of "nbd3"; none if that is no name of such a device.
[[nodiscard]] std::optional<std::uint32_t> nbd_index(std::string_view kernel_name);
/// What /sys/block/nbdN/backend shows of the device of that name; empty if it is not connected.
[[nodiscard]] std::string nbd_backend(const NbdSystem& system, std::string_view kernel_name);

class NbdDevice {
  public:
    /// Connects a free device to the sockets (the kernel's ends), opens it in the place of `number`
    /// (reserve_fd_number), checks it and tunes its queue. Requests come while this runs. On failure the
    /// device is disconnected. Errors: unavailable (no driver, no permission, no device node), failed.
    static Result<NbdDevice> attach(const NbdSystem& system, const NbdSettings& settings,
                                    std::span<const int> kernel_ends, UniqueFd number);
    /// Goes on with the device of a process that has died; `kept` is a copy of its descriptor. All its
    /// connections are dead or will be in a moment: see reconnect. On failure nothing changes. Errors:
    /// failed.
    static Result<NbdDevice> adopt(const NbdSystem& system, const NbdSettings& settings, UniqueFd kept);
    NbdDevice(NbdDevice&&) = default;
    NbdDevice& operator=(NbdDevice&&) = default;
    /// Closes our descriptor: the device goes now, or with its last user.
    ~NbdDevice() = default;

    /// Ends the device, or says busy and changes nothing. What was written through the page cache is written
    /// out first. `our_ends`: of the sockets; they tell that the device is gone. REQUIRES: nobody has a copy
    /// of descriptor().
    Result<void> detach(std::span<const int> our_ends);

    /// As NbdNetlink::reconnect.
    Result<void> reconnect(int kernel_end);

    /// Ends the device whoever uses it: what they have in flight fails now, and not when the request timeout
    /// expires.
    void abandon();

    /// While a copy of it exists, the device does not end.
    [[nodiscard]] const UniqueFd& descriptor() const { return device_; }
    /// "/dev/nbd3"
    [[nodiscard]] const std::string& path() const { return path_; }

  private:
    NbdDevice(NbdSystem system, NbdNetlink netlink, NbdSettings settings, std::uint32_t index,
              UniqueFd number);
    Result<void> make_ready();
    Result<void> open();
    Result<void> close();
    Result<void> check_geometry() const;
    void tune_queue() const;
    [[nodiscard]] bool is_ours();
    void wait_until_released();

    NbdSystem system_;
    NbdNetlink netlink_;
    NbdSettings settings_;
    std::uint32_t index_;
    std::string kernel_name_;  // "nbd3"
    std::string path_;
    UniqueFd device_;  // or, while it is closed, something else that keeps its number
};

}  // namespace vramswap
