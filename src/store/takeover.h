// SPDX-License-Identifier: MIT
// What a process that was killed at any instant left in the state is made whole for the one that takes over.
// Control thread, before any other uses the store; the dead process is gone with all its threads and copies.
//
// What was acknowledged is found: in the stage if it was on its way (copies that had begun are repeated),
// else at its home. What was being written, and was not acknowledged, may be the old, the new, or neither:
// then the page is lost until the frontend has the kernel's request carried out again. It never reads as
// other bytes.
#pragma once

#include <cstdint>

#include "base/result.h"
#include "store/parts.h"
#include "store/state.h"

namespace vramswap {

struct TakeoverReport {
    std::uint64_t pages = 0;            ///< stored, and found
    std::uint64_t pages_unwritten = 0;  ///< were being written
    std::uint64_t pages_lost = 0;       ///< were only in VRAM or a spill that could not be had again
};

/// Frees the images that no chunk has, takes from chunks those that are not theirs. Before Stage::adopt.
void settle_images(const State& state);

/// All the rest. Before this `parts.slots` knows every segment that could be had again; after it, every slot
/// that is taken. Slots of the spill are adopted. Error failed: the tables contradict each other, which no
/// death explains.
Result<TakeoverReport> settle_chunks(StoreParts& parts);

}  // namespace vramswap
