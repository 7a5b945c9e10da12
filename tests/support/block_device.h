// SPDX-License-Identifier: MIT
// What tests of frontends need of a block device: direct I/O with aligned buffers, recognisable data, its
// settings in sysfs, and counts of what a process holds. Any thread; may block, allocate and throw.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "base/unique_fd.h"

namespace vramswap::test {

/// Page-aligned memory for O_DIRECT.
class DirectBuffer {
  public:
    explicit DirectBuffer(std::size_t bytes);
    [[nodiscard]] std::byte* data() { return memory_.get(); }
    [[nodiscard]] std::size_t size() const { return bytes_; }
    [[nodiscard]] std::vector<std::byte> copy() const { return {memory_.get(), memory_.get() + bytes_}; }
    /// Data that tells the device offset it belongs to and the generation, in each 8 bytes.
    DirectBuffer& fill(std::uint64_t device_offset, std::uint64_t generation);
    /// What is wrong with it if it should be as fill made it; empty if nothing.
    [[nodiscard]] std::string mismatch(std::uint64_t device_offset, std::uint64_t generation) const;
    [[nodiscard]] bool is_zero() const;

  private:
    struct Free {
        void operator()(std::byte* p) const { std::free(p); }
    };
    std::size_t bytes_;
    std::unique_ptr<std::byte, Free> memory_;
};

enum class Opening { direct, exclusive, buffered };
/// Opens for reading and writing. Throws std::system_error.
[[nodiscard]] UniqueFd open_device(const std::string& path, Opening how = Opening::direct);

/// All bytes; 0 or the errno.
[[nodiscard]] int write_at(const UniqueFd& device, DirectBuffer& buffer, std::uint64_t offset);
[[nodiscard]] int read_at(const UniqueFd& device, DirectBuffer& buffer, std::uint64_t offset);
/// BLKDISCARD or BLKZEROOUT; 0 or the errno.
[[nodiscard]] int discard_at(const UniqueFd& device, std::uint64_t offset, std::uint64_t bytes);
[[nodiscard]] int zero_at(const UniqueFd& device, std::uint64_t offset, std::uint64_t bytes);

/// A number in /sys/block/DEVICE/queue; -1 if there is none.
[[nodiscard]] std::int64_t queue_setting(const std::string& path, std::string_view setting);

/// Writes a swap header for the whole device and calls swapon(2). False with errno.
[[nodiscard]] bool start_swap(const UniqueFd& device, const std::string& path, std::uint64_t bytes);
/// swapoff(2). False with errno.
[[nodiscard]] bool stop_swap(const std::string& path);

/// A name for a frontend's device that no other process and no earlier call has.
[[nodiscard]] std::string unique_device_name();

/// What this process holds at the moment; of loop devices, those with a name from unique_device_name.
struct Held {
    std::size_t fds = 0, loop_devices = 0;
    std::set<std::string> threads;  ///< their ids
};
[[nodiscard]] Held what_is_held();
/// What is held now and was not `before`; empty if nothing. Waits for it to go as long as a watchdog allows:
/// a joined thread stays in /proc for a moment. (So `before` may name threads that have gone since.)
[[nodiscard]] std::string what_stays(const Held& before);

}  // namespace vramswap::test
