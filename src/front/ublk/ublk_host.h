// SPDX-License-Identifier: MIT
// What ublk needs of the machine: the driver, io_uring, and the right to use them; and what to tell people if
// something is missing. Control thread only; opens files, starts modprobe, blocks. Errors: unavailable (with
// the remedy), failed.
#pragma once

#include <string>

#include "base/result.h"
#include "base/unique_fd.h"

namespace vramswap {

/// Where things are; tests put other folders in their place.
struct UblkHost {
    std::string dev_dir = "/dev";
    std::string proc_dir = "/proc";
    std::string modules_dir = "/lib/modules";
    std::string modprobe;  ///< a program; empty: the one of this system
};

/// Opens DEV_DIR/ublk-control; loads the module ublk_drv first where it is missing.
Result<UniqueFd> open_ublk_control(const UblkHost& host);

/// Checks that we may make an io_uring.
Result<void> check_io_uring(const UblkHost& host);

/// Checks for CAP_SYS_ADMIN, without which the driver makes only devices that cannot be trusted with swap.
Result<void> check_ublk_permission();

}  // namespace vramswap
