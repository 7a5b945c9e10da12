// SPDX-License-Identifier: MIT
// SpillFile: the file or block device under a Spill: whether it is fit for it, room, wiping. Owned by the
// Spill; control thread only, everything blocks. It holds nothing but its descriptors and what can be learnt
// from them again.
//
// A file system in RAM lets one at a time write to a file: there it is several files, each with every so many
// slots.
//
// The file has no name (O_TMPFILE): no crash and no power failure leaves it behind, nobody can open, copy or
// delete it, and its blocks are free when the last descriptor is closed. A block device begins with a header
// of a slot's size, so that a device that holds something else is not overwritten.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"
#include "base/units.h"
#include "store/spill_queue.h"
#include "store/spill_slots.h"

namespace vramswap {

struct SpillConfig {
    std::string path;  ///< a directory for the file, or a block device
    Bytes size_max{};  ///< not more is used, rounded down to whole chunks; as a rule the device's size
    /// Numbers of our own block devices: what is on one of them would be swapped to itself.
    std::vector<dev_t> own_devices{};
    /// Makes the queues' RawIo in place of io_uring or threads; for tests of disks that fail.
    std::function<Result<std::unique_ptr<RawIo>>(std::span<const int> fds, std::uint32_t depth, int event_fd)>
        make_io{};
};

class SpillFile {
  public:
    /// Errors say what of `path` is not fit and what to do: usage, busy (mounted, swap, claimed), exists (a
    /// device that holds something), unavailable (a file system that cannot), not_found, failed.
    static Result<SpillFile> open(const SpillConfig& config);
    /// One that another process opened, all its descriptors in their order; it stays as it is.
    static Result<SpillFile> take_over(const SpillConfig& config, std::vector<UniqueFd> fds);

    /// One, or several files.
    [[nodiscard]] const std::vector<UniqueFd>& fds() const { return fds_; }
    [[nodiscard]] bool is_device() const { return is_device_; }
    [[nodiscard]] const SlotPlaces& places() const { return places_; }
    /// What its slots are when nobody uses any. A device's are stale if another process has left bytes there.
    [[nodiscard]] SpillSlots::State initial_state() const { return initial_state_; }
    /// What users should know though it works; empty if there is nothing.
    [[nodiscard]] const std::string& remark() const { return remark_; }
    /// Taken from the disk now. Of a device: all of it.
    [[nodiscard]] Bytes on_disk() const;

    /// How many slots may still be reserved: a tenth of the file system's space stays free. Of a device: all.
    [[nodiscard]] std::uint32_t room() const;
    /// Slots may be written to afterwards. Error: no room (errno ENOSPC, EDQUOT), or it cannot be done.
    Result<void> reserve(SlotRange slots);
    /// They read as zeros afterwards; of a file they are no longer reserved.
    Result<void> wipe(SlotRange slots);
    /// Gives everything back to the disk, whoever still has a descriptor; a device loses its header.
    Result<void> clear();

  private:
    SpillFile(std::vector<UniqueFd> fds, bool is_device) : fds_(std::move(fds)), is_device_(is_device) {}
    static Result<SpillFile> open_file(const SpillConfig& config, dev_t device);
    static Result<SpillFile> open_device(const SpillConfig& config, dev_t device);
    Result<void> measure(const SpillConfig& config, std::uint64_t size);

    [[nodiscard]] int device() const { return fds_.front().get(); }
    /// Calls `change(descriptor, offset, bytes)` for the part of `slots` in each file, until it fails.
    template <typename Change>
    [[nodiscard]] bool for_each_part(SlotRange slots, Change change) const;

    std::vector<UniqueFd> fds_;
    bool is_device_;
    SpillSlots::State initial_state_ = SpillSlots::State::absent;
    std::string path_;
    SlotPlaces places_;
    std::string remark_;
};

/// The slots that fit into what is free above a tenth of `total` bytes.
[[nodiscard]] std::uint64_t slots_above_a_tenth(Bytes total, Bytes available);

}  // namespace vramswap
