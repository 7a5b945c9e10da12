// SPDX-License-Identifier: MIT
// GpuWatch: what a Snapshot tells of a GPU, read as often as it is worth and as others' programs can bear.
// Owned by a Monitor; one thread; calls block and may hang in the GPU's driver.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "daemon/monitor/monitored_device.h"
#include "gpu/backend.h"
#include "policy/snapshot.h"

namespace vramswap {

/// Monotonic nanoseconds.
using Clock = std::function<std::uint64_t()>;

class GpuWatch {
  public:
    GpuWatch(Backend& gpu, const MonitoredDevice& device, Clock clock)
        : gpu_(gpu), device_(device), clock_(std::move(clock)) {}

    /// Reads free memory between two samples of the device, until no segment came or went in between; returns
    /// the last sample. If they come and go all the time, or the driver fails, the reading before stands.
    MonitoredDevice::Sample read_memory();

    enum class Users : std::uint8_t { same, read };
    /// Reads what is due of the use of the GPU. `read`: users() is new.
    Users read_usage();

    /// Everything but the device and the machine.
    void tell(Snapshot& snapshot, std::uint64_t now_ns) const;
    /// Nothing while it is not known.
    [[nodiscard]] const std::optional<std::vector<GpuUser>>& users() const { return users_; }
    /// Why free memory could not be read at last; empty if it could.
    [[nodiscard]] const std::string& problem() const { return problem_; }

  private:
    struct Reading {
        MemoryInfo memory;
        Bytes left{};  ///< free and ours together
        std::uint64_t when_ns = 0;
    };
    [[nodiscard]] bool is_due(std::optional<std::uint64_t> last_ns, std::uint64_t period_ns) const {
        return !last_ns || clock_() - *last_ns >= period_ns;
    }
    [[nodiscard]] bool users_are_due() const;

    Backend& gpu_;
    const MonitoredDevice& device_;
    const Clock clock_;

    std::optional<Reading> reading_;
    std::string problem_;
    GpuUsage activity_;
    std::optional<std::uint64_t> activity_read_ns_;
    std::optional<std::vector<GpuUser>> users_;
    std::optional<Bytes> others_memory_;
    std::optional<std::uint64_t> users_read_ns_;
    Bytes left_with_users_{};  ///< when the users were read
};

}  // namespace vramswap
