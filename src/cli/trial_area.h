// SPDX-License-Identifier: MIT
// The swap areas that `bench --swap` compares: our device, zram, a file on disk. Each is made for the
// comparison, used with the highest priority and gone afterwards; areas that exist already are never touched.
// Owned by the command, single-threaded, blocking.
#pragma once

#include <memory>
#include <string>

#include "base/result.h"
#include "cli/device_plan.h"
#include "cli/launch.h"
#include "sys/swap_area.h"

namespace vramswap {

class TrialArea {
  public:
    /// Implementations take down what is still up, and report errors.
    virtual ~TrialArea() = default;
    TrialArea(const TrialArea&) = delete;
    TrialArea& operator=(const TrialArea&) = delete;

    /// Makes the area, of `size`, and switches it on. After an error take_down cleans up what there is.
    virtual Result<void> bring_up(Bytes size) = 0;
    /// RAM that it takes now.
    virtual Result<Bytes> ram() = 0;
    /// Switches it off and removes it. Repeating it is harmless.
    virtual Result<void> take_down() = 0;

    /// As /proc/swaps names it; set by bring_up.
    [[nodiscard]] const std::string& path() const { return path_; }
    /// What a reader of the figures wants to know besides.
    [[nodiscard]] const std::string& detail() const { return detail_; }

  protected:
    TrialArea() = default;
    std::string path_, detail_;
};

/// `plan` tells everything but the size.
[[nodiscard]] std::unique_ptr<TrialArea> make_vram_area(DevicePlan plan);
[[nodiscard]] std::unique_ptr<TrialArea> make_zram_area();
/// A file in `folder`, which must be on a disk.
[[nodiscard]] std::unique_ptr<TrialArea> make_file_area(std::string folder);

}  // namespace vramswap
