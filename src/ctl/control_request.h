// SPDX-License-Identifier: MIT
// ControlRequest: what a command asks of a device's worker over the control socket, one JSON text each. A
// value and pure conversions; any thread that may allocate. The worker answers with its status, or with an
// error (messages.h).
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/result.h"
#include "base/units.h"

namespace vramswap {

struct ControlRequest {
    enum class Op : std::uint8_t {
        status,
        stop,
        resize,  ///< hold `vram`; none: the policy decides again
        yield,   ///< hold no more than `vram`; none: the holder's yield ends
    };
    Op op = Op::status;
    std::optional<Bytes> vram{};
    /// Of a yield: it ends with this process, if not before. 0: it lasts until somebody ends it.
    pid_t holder = 0;
    std::string gpu{};  ///< its selector: only of this one; empty: of all
    bool operator==(const ControlRequest&) const = default;
};

/// More than any GPU has for a long time: sums of some such sizes cannot overflow.
inline constexpr Bytes kRequestVramMax = gib(1u << 20);
/// The kernel's PID_MAX_LIMIT: no process has a larger number.
inline constexpr pid_t kPidMax = 1 << 22;

/// {"op":"status"}, {"op":"stop"}, {"op":"resize","bytes":N|null,"gpu":S},
/// {"op":"yield","bytes":N|null,"gpu":S,"pid":P}; pid may be left out if it is 0, gpu if it is empty.
[[nodiscard]] std::string to_json(const ControlRequest& request);
/// Errors: usage, for everything else, also for a field that the operation does not have: a command newer
/// than its worker must not be obeyed by half.
[[nodiscard]] Result<ControlRequest> parse_control_request(std::string_view text);

}  // namespace vramswap
