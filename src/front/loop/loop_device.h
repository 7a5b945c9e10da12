// SPDX-License-Identifier: MIT
// One loop device of the kernel over an open file, with direct I/O and blocks of 4 KiB.
// Owned by LoopFrontend. Control thread only; opens files and may block.
//
// The device is configured with LO_FLAGS_AUTOCLEAR and we hold it open while serving, so that it lives
// exactly as long as somebody has it open:
// - start fails half way, or the worker dies while nobody uses it: closing our descriptor, which the
//   kernel does for a dead process, removes it. Nothing is left to clean up.
// - the worker dies while it is swap or mounted: that use holds it open, so it stays, with the same name
//   and size; its I/O fails, and it goes by itself after swapoff. Without AUTOCLEAR it would stay for ever.
// - the worker dies and somebody keeps duplicates of its descriptors: the device stays, used or not, and its
//   I/O waits for a successor (adopt).
// - normal stop: LOOP_CLR_FD on an autoclear device is the one atomic question "am I the only user? then
//   let nobody in any more": with other users it changes nothing. Without AUTOCLEAR the same call would
//   mark the device for removal behind the back of its users (loop_clr_fd in drivers/block/loop.c).
//
// The price: a dying process that is the last to have the device open writes its dirty page cache out, to
// a file that it serves itself. That makes an unkillable process, unless the kernel closes the FUSE
// descriptor first, so that those writes fail. A dying process closes its descriptors from the highest
// number to the lowest (close_files in fs/file.c goes upwards, but puts the work on a list that
// task_work_run takes from the other end). So the number of this descriptor has to be lower than that of
// FUSE, in every process that may be the last to hold both.
#pragma once

#include <cstdint>
#include <string>
#include <utility>

#include "base/result.h"
#include "base/unique_fd.h"
#include "base/units.h"

namespace vramswap {

/// Opens DEV_DIR/loop-control; loads the module first where it is missing. Errors: unavailable, with the
/// remedy.
Result<UniqueFd> open_loop_control(const std::string& dev_dir);

class LoopDevice {
  public:
    /// Takes a free loop device for `file`; `name` is what losetup shows. Its descriptor takes the place of
    /// `number` (reserve_fd_number). Requests for the file come while this runs. Errors: unavailable (no loop
    /// driver, no device node, no direct I/O), busy (no free device), failed.
    static Result<LoopDevice> attach(const std::string& dev_dir, int file, const std::string& name,
                                     UniqueFd number);
    /// Goes on with the device of a process that has died, whose descriptor `device` duplicates; refuses it
    /// unless it has this name and size. May be called while nobody serves requests: waits for none.
    /// Errors: failed.
    static Result<LoopDevice> adopt(const std::string& dev_dir, UniqueFd device, const std::string& name,
                                    Bytes size);
    LoopDevice(LoopDevice&&) = default;
    LoopDevice& operator=(LoopDevice&&) = default;
    /// Closes our descriptor: the device goes now, or with its last user.
    ~LoopDevice() = default;

    /// Removes the device but for its name, which goes with the last duplicate of our descriptor; or says
    /// busy and changes nothing. What was written through the page cache is written out first.
    Result<void> detach();
    /// False once it is being removed. REQUIRES: requests are served (the answer may wait for one).
    [[nodiscard]] bool is_bound() const;

    /// "/dev/loop3"
    [[nodiscard]] const std::string& path() const { return path_; }
    /// A duplicate of it is no further user of the device.
    [[nodiscard]] const UniqueFd& descriptor() const { return device_; }

  private:
    LoopDevice(std::string path, std::string kernel_name, UniqueFd device)
        : path_(std::move(path)), kernel_name_(std::move(kernel_name)), device_(std::move(device)) {}
    [[nodiscard]] Result<void> check_direct_io() const;
    void tune_queue() const;

    std::string path_;
    std::string kernel_name_;  // "loop3"
    UniqueFd device_;
};

}  // namespace vramswap
