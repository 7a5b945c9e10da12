// SPDX-License-Identifier: MIT
// Monitor: watches a GPU, the device on it and the machine, asks the policy and has the device obey, once a
// period. One per GPU, owned by the control thread; backend and device must outlive it.
//
// Threads: its own runs step() (a test without one calls step() itself). All else: the control thread, and
// report() any; these wait for a short mutex only, never for the driver. The thread allocates, logs and
// blocks in the GPU's driver; it is none of the I/O path and shares no lock with it.
//
// A call of the driver may take seconds, and for ever when the GPU fails. Meanwhile nothing is decided: the
// device keeps its last plan. No segment could come or go anyway, since that is the same driver's work, and
// the reading that comes late is told as old as it is. report() says when the last decision was.
#pragma once

#include <cstdint>
#include <optional>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "base/mutex.h"
#include "base/result.h"
#include "daemon/monitor/gpu_watch.h"
#include "daemon/monitor/machine_watch.h"
#include "daemon/monitor/monitor_report.h"
#include "daemon/monitor/monitored_device.h"
#include "daemon/monitor/page_rates.h"
#include "gpu/backend.h"
#include "policy/policy.h"

namespace vramswap {

struct MonitorConfig {
    PolicyConfig policy{};
    SysRoot root{};
    Clock clock = now_ns;
};

class Monitor {
  public:
    /// Reads the machine's files once.
    Monitor(Backend& gpu, MonitoredDevice& device, MonitorConfig config);
    /// Stops. If the driver hangs even then, ends the process at once (status 1): the thread may still touch
    /// what would be destroyed next.
    ~Monitor();
    Monitor(const Monitor&) = delete;
    Monitor& operator=(const Monitor&) = delete;

    /// Starts the thread. It inherits the caller's signal mask and its mark of an IO flusher: what the driver
    /// allocates for it must not wait for swap. REQUIRES: not started. Errors: failed.
    Result<void> start();
    enum class Ended : std::uint8_t {
        yes,
        hangs,  ///< in the driver. Call again, or end the process without destroying backend and device
    };
    /// After `yes` the device gets no more plans. Waits for so long at most.
    [[nodiscard]] Ended stop(std::uint64_t wait_ns = kStopWaitNs);

    /// These count from the next decision on, which is made at once. None: the policy decides alone.
    void set_manual_target(std::optional<Bytes> target);
    void set_yield(std::optional<Yield> yield);
    /// Decide now: something has changed.
    void wake();

    [[nodiscard]] MonitorReport report() const;

    /// One reading, decision and order; then what the next decision can use and this one need not wait for.
    void step();

    /// Longer than a driver that is only busy takes.
    static constexpr std::uint64_t kStopWaitNs = 3 * kSecondNs;

  private:
    void run();
    [[nodiscard]] ByHand by_hand();
    [[nodiscard]] Snapshot look(const ByHand& by_hand, std::uint64_t now_ns,
                                const MonitoredDevice::Sample& sample);
    void publish(const Snapshot& snapshot, const Plan& plan, std::uint64_t now_ns);
    void publish_users();
    void log_changes(const Plan& plan);

    // Constant.
    MonitoredDevice& device_;
    const MonitorConfig config_;

    // The thread's.
    Policy policy_;
    GpuWatch gpu_;
    MachineWatch machine_;
    PageRates rates_;
    bool readable_ = true;  ///< as last logged
    bool movable_ = true;

    mutable Mutex mutex_;
    CondVar changed_;
    MonitorReport report_ VS_GUARDED_BY(mutex_);
    bool woken_ VS_GUARDED_BY(mutex_) = false;
    bool stopping_ VS_GUARDED_BY(mutex_) = false;
    bool ended_ VS_GUARDED_BY(mutex_) = false;

    std::thread thread_;  ///< the control thread's
};

}  // namespace vramswap
