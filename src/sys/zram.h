// SPDX-License-Identifier: MIT
// ZramDevice: a compressed block device in RAM, made for a comparison and removed after it. Owned by the
// command that made it, used by one thread; calls block on sysfs. Devices that exist already are never
// touched. Errors: unavailable = this kernel has no zram (or its module is not loaded), failed = the rest.
#pragma once

#include <string>

#include "base/result.h"
#include "base/units.h"
#include "sys/proc.h"

namespace vramswap {

class ZramDevice {
  public:
    /// Adds a device of `size`; it takes RAM as it fills.
    [[nodiscard]] static Result<ZramDevice> create(Bytes size, const SysRoot& root = {});
    ZramDevice(ZramDevice&& other) noexcept;
    ZramDevice& operator=(ZramDevice&&) = delete;
    /// remove(); logs a warning if that fails.
    ~ZramDevice();

    /// "/dev/zram1".
    [[nodiscard]] std::string path() const;
    /// The compressor in use, such as "lzo-rle".
    [[nodiscard]] Result<std::string> algorithm() const;
    /// RAM that it takes now (mem_used_total of mm_stat).
    [[nodiscard]] Result<Bytes> ram_used() const;
    /// REQUIRES: it is no swap area. Repeating it is harmless. Errors: failed.
    [[nodiscard]] Result<void> remove();

  private:
    ZramDevice(int number, SysRoot root) : number_(number), root_(std::move(root)) {}
    [[nodiscard]] std::string file(std::string_view name) const;

    int number_;  ///< -1 after remove
    SysRoot root_;
};

}  // namespace vramswap
