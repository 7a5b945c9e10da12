// SPDX-License-Identifier: MIT
// SegmentWiper: writes zeros over segments before their VRAM is given back, for the driver does not promise
// that the next one who gets it finds none of our pages. With copy engines alone, which others' compute does
// not notice: a chunk of zeros goes to the GPU, and is doubled there until it fills the segment. Owned by
// PageStore; control thread. Never blocks, allocates nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "base/io_status.h"
#include "base/units.h"
#include "gpu/backend.h"

namespace vramswap {

class SegmentWiper {
  public:
    /// A queue for each GPU. `zeros`: a chunk of registered memory, which is zeroed, and stays so.
    SegmentWiper(std::vector<std::unique_ptr<TransferQueue>> queues, std::byte* zeros);

    struct Wipe {
        Ticket ticket = 0;      ///< of the last copy; 0: none was begun
        bool complete = false;  ///< all copies were begun; else the GPU refuses, or too many are under way
    };
    /// `size`: whole chunks. The segment must not be freed before the ticket's end.
    Wipe begin(std::uint32_t gpu, SegmentId segment, Bytes size);
    /// pending, ok or io_error (also without a ticket). About a millisecond after begin for 256 MiB on an
    /// H100.
    IoStatus poll(std::uint32_t gpu, Ticket ticket) { return queues_[gpu]->poll(ticket); }

  private:
    const std::vector<std::unique_ptr<TransferQueue>> queues_;
    std::byte* const zeros_;
};

}  // namespace vramswap
