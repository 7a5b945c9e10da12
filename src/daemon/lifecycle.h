// SPDX-License-Identifier: MIT
// The states of a worker and the transitions between them. A value; owned by the worker's control thread.
#pragma once

#include <cstdint>
#include <string_view>

namespace vramswap {

enum class WorkerState : std::uint8_t {
    configured,  ///< knows what it shall be; nothing taken yet
    locked,      ///< GPU open, pools touched and registered, memory locked
    serving,     ///< the block device exists
    armed,       ///< it is a swap area: the armed rule holds
    draining,    ///< asked to stop; no longer a swap area
    stopped,
};

[[nodiscard]] constexpr std::string_view to_string(WorkerState s) {
    switch (s) {
        case WorkerState::configured:
            return "configured";
        case WorkerState::locked:
            return "locked";
        case WorkerState::serving:
            return "serving";
        case WorkerState::armed:
            return "armed";
        case WorkerState::draining:
            return "draining";
        case WorkerState::stopped:
            return "stopped";
    }
    return "unknown";
}

/// Whether a worker may go from one state to another. serving and armed alternate with swapon and swapoff;
/// draining goes back to serving when the device turns out to be in use.
[[nodiscard]] constexpr bool may_become(WorkerState from, WorkerState to) {
    using S = WorkerState;
    switch (from) {
        case S::configured:
            return to == S::locked || to == S::stopped;
        case S::locked:
            return to == S::serving || to == S::stopped;
        case S::serving:
            return to == S::armed || to == S::draining;
        case S::armed:
            return to == S::serving;
        case S::draining:
            return to == S::serving || to == S::stopped;
        case S::stopped:
            return false;
    }
    return false;
}

}  // namespace vramswap
