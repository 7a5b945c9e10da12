// SPDX-License-Identifier: MIT
// A server for a ublk device whose pages are lost: it answers every request with an error, until nobody uses
// the device any more. Without one they would wait for ever; and without the device a swap area on it could
// not be switched off, for swapoff(2) finds it by its node. Control thread; blocks, allocates.
#pragma once

#include <cstdint>
#include <functional>

#include "base/result.h"
#include "front/ublk/ublk_host.h"

namespace vramswap {

/// Takes the device over, calls `serving`, and returns when the device is gone. Errors: as
/// UblkDevice::take_over.
Result<void> serve_errors(const UblkHost& host, std::uint32_t number, const std::function<void()>& serving);

}  // namespace vramswap
