// SPDX-License-Identifier: MIT
#include "daemon/monitor/monitor.h"

#include <pthread.h>

#include <cstdlib>
#include <system_error>
#include <utility>

#include "base/log.h"

namespace vramswap {

Monitor::Monitor(Backend& gpu, MonitoredDevice& device, MonitorConfig config)
    : device_(device),
      config_(std::move(config)),
      policy_(config_.policy),
      gpu_(gpu, device, config_.clock),
      machine_(config_.root) {
    machine_.read(config_.clock());
}

Monitor::~Monitor() {
    if (stop() == Ended::yes) return;
    log_error("the GPU's driver hangs: this process ends without it");
    std::_Exit(EXIT_FAILURE);
}

Result<void> Monitor::start() {
    try {
        thread_ = std::thread(&Monitor::run, this);
    } catch (const std::system_error& error) {
        return Error{Errc::failed, error.code().value(), "cannot start the monitor's thread"};
    }
    ::pthread_setname_np(thread_.native_handle(), "vs-monitor");
    return {};
}

Monitor::Ended Monitor::stop(std::uint64_t wait_ns) {
    if (!thread_.joinable()) return Ended::yes;
    {
        const MutexLock lock(mutex_);
        stopping_ = true;
        changed_.notify_all();
        const std::uint64_t end_ns = now_ns() + wait_ns;
        for (std::uint64_t now = now_ns(); !ended_ && now < end_ns; now = now_ns())
            changed_.wait_for(mutex_, end_ns - now);
        if (!ended_) return Ended::hangs;
    }
    thread_.join();
    return Ended::yes;
}

void Monitor::run() {
    for (;;) {
        step();
        const MutexLock lock(mutex_);
        // The period counts from here: a driver that is slow is busy with others, and is asked less.
        const std::uint64_t next_ns = now_ns() + config_.policy.period_ns;
        for (std::uint64_t now = now_ns(); !woken_ && !stopping_ && now < next_ns; now = now_ns())
            changed_.wait_for(mutex_, next_ns - now);
        woken_ = false;
        if (!stopping_) continue;
        ended_ = true;
        changed_.notify_all();
        return;
    }
}

void Monitor::set_manual_target(std::optional<Bytes> target) {
    const MutexLock lock(mutex_);
    report_.by_hand.target = target;
    woken_ = true;
    changed_.notify_all();
}

void Monitor::set_yield(std::optional<Yield> yield) {
    const MutexLock lock(mutex_);
    report_.by_hand.yield = yield;
    woken_ = true;
    changed_.notify_all();
}

void Monitor::wake() {
    const MutexLock lock(mutex_);
    woken_ = true;
    changed_.notify_all();
}

MonitorReport Monitor::report() const {
    const MutexLock lock(mutex_);
    return report_;
}

void Monitor::step() {
    const MonitoredDevice::Sample sample = gpu_.read_memory();
    const std::uint64_t now_ns = config_.clock();
    const Snapshot snapshot = look(by_hand(), now_ns, sample);
    const Plan plan = policy_.decide(snapshot, now_ns);
    {
        // Not after stop(), however long the driver took.
        const MutexLock lock(mutex_);
        if (stopping_) return;
        device_.obey(plan);
    }
    publish(snapshot, plan, now_ns);
    log_changes(plan);
    if (gpu_.read_usage() == GpuWatch::Users::read) publish_users();
    machine_.read(config_.clock());
}

/// What the control thread has set, without a yield whose holder has ended.
ByHand Monitor::by_hand() {
    ByHand now;
    {
        const MutexLock lock(mutex_);
        now = report_.by_hand;
    }
    if (!now.yield || !now.yield->holder || process_alive(*now.yield->holder, config_.root)) return now;
    const MutexLock lock(mutex_);
    if (report_.by_hand.yield == now.yield) report_.by_hand.yield.reset();
    return report_.by_hand;
}

Snapshot Monitor::look(const ByHand& by_hand, std::uint64_t now_ns, const MonitoredDevice::Sample& sample) {
    rates_.add({now_ns, sample.pages_in, sample.pages_out, sample.waited_ns});
    Snapshot snapshot;
    gpu_.tell(snapshot, now_ns);
    machine_.tell(snapshot);
    snapshot.ours = sample.ours;
    snapshot.stored = sample.stored;
    snapshot.spill_room = sample.spill_room;
    snapshot.move_rate = sample.move_rate;
    snapshot.queue_pages = rates_.in_flight();
    snapshot.pages_in_per_s = rates_.in_per_s();
    snapshot.pages_out_per_s = rates_.out_per_s();
    snapshot.manual_target = by_hand.target;
    if (by_hand.yield) snapshot.yield_max = by_hand.yield->most;
    return snapshot;
}

void Monitor::publish(const Snapshot& snapshot, const Plan& plan, std::uint64_t now_ns) {
    const MutexLock lock(mutex_);
    report_.snapshot = snapshot;
    report_.plan = plan;
    report_.decided_at_ns = now_ns;
    report_.gpu_problem = gpu_.problem();
}

/// With their names, as far as they have not ended meanwhile.
void Monitor::publish_users() {
    std::optional<std::vector<GpuProcess>> processes;
    if (gpu_.users()) {
        processes.emplace();
        for (const GpuUser& user : *gpu_.users())
            processes->push_back({.pid = user.pid,
                                  .name = read_process_name(user.pid, config_.root).value_or(""),
                                  .memory = user.memory.value_or(Bytes{})});
    }
    const MutexLock lock(mutex_);
    report_.processes = std::move(processes);
}

void Monitor::log_changes(const Plan& plan) {
    const bool readable = gpu_.problem().empty();
    if (readable_ && !readable) log_warning("free memory of the GPU is not known: {}", gpu_.problem());
    if (!readable_ && readable) log_info("free memory of the GPU is known again");
    readable_ = readable;
    const bool movable = plan.reason != Reason::unmovable;
    if (movable_ && !movable)
        log_warning("VRAM cannot be given back: the spill has no room for what is stored");
    movable_ = movable;
}

}  // namespace vramswap
