// SPDX-License-Identifier: MIT
// ByHandOrders: what users have ordered of a device's VRAM, by `resize` and `yield`, of all its GPUs together
// or of one of them, and what that means for each. Owned by the worker, control thread only; nothing blocks.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/units.h"
#include "ctl/control_request.h"
#include "daemon/yields.h"

namespace vramswap {

class ByHandOrders {
  public:
    struct Gpu {
        std::string selector;
        Bytes total{};  ///< its memory
    };
    /// What is ordered of all is shared out in pieces of `segment`, in proportion to the GPUs' memory.
    ByHandOrders(std::vector<Gpu> gpus, Bytes segment);

    /// A request to resize or to yield. Errors: not_found (no such GPU in this device), those of Yields.
    Result<void> take(const ControlRequest& request);
    /// A yield whose process has ended ends; see Yields::fd and end_of_the_dead.
    [[nodiscard]] int fd() const { return yields_.fd(); }
    bool end_of_the_dead() { return yields_.end_of_the_dead(); }

    /// Taken one after the other by one without orders, they make the same of it.
    [[nodiscard]] std::vector<ControlRequest> requests() const;

    /// For the GPU with this number. None: nothing is ordered.
    [[nodiscard]] std::optional<Bytes> target(std::size_t gpu) const;
    [[nodiscard]] std::optional<Bytes> vram_max(std::size_t gpu) const;
    /// "resize 4G, yield 2G of cuda:1"; empty if nothing is ordered.
    [[nodiscard]] std::string text() const;

  private:
    void resize(const ControlRequest& request);
    [[nodiscard]] Bytes share(Bytes all, std::size_t gpu) const;

    const std::vector<Gpu> gpus_;
    const Bytes segment_;
    std::optional<Bytes> target_{};              ///< of all
    std::vector<std::optional<Bytes>> targets_;  ///< of each, instead
    Yields yields_;
};

}  // namespace vramswap
