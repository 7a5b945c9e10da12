// SPDX-License-Identifier: MIT
#include "front/nbd/nbd_slots.h"

#include <algorithm>
#include <bit>

namespace vramswap {
namespace {

static_assert(kNbdUnits == 64, "one bit of a 64-bit word for each");

constexpr std::uint64_t low_bits(std::uint32_t n) {
    return n == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << n) - 1;
}

/// The lowest `length` neighbouring bits that are set in `bits`, as a mask; 0 if there are none.
/// REQUIRES: 0 < length <= 64.
constexpr std::uint64_t find_run(std::uint64_t bits, std::uint32_t length) {
    // After each step a bit of `starts` says that a run of `known` bits begins there.
    std::uint64_t starts = bits;
    for (std::uint32_t known = 1; known < length && starts != 0;) {
        const std::uint32_t step = std::min(known, length - known);
        starts &= starts >> step;
        known += step;
    }
    return starts == 0 ? 0 : low_bits(length) << std::countr_zero(starts);
}
static_assert(find_run(0b0110'1110, 3) == 0b0000'1110 && find_run(0b0110'1100, 3) == 0);
static_assert(find_run(~std::uint64_t{0}, 64) == ~std::uint64_t{0} && find_run(~std::uint64_t{1}, 64) == 0);

}  // namespace

NbdSlots::NbdSlots(std::span<std::byte> memory) : memory_(memory) {
    for (std::uint32_t i = 0; i < kNbdSlots; ++i) idle_[i] = &slots_[i];
}

NbdSlot* NbdSlots::take(std::size_t data_bytes) {
    if (idle_count_ == 0) return nullptr;
    const auto length = static_cast<std::uint32_t>((data_bytes + kNbdUnitBytes - 1) / kNbdUnitBytes);
    const std::uint64_t units = length == 0 ? 0 : find_run(free_units_, length);
    if (length != 0 && units == 0) return nullptr;
    free_units_ &= ~units;
    NbdSlot& slot = *idle_[--idle_count_];
    slot.units = units;
    slot.data =
        length == 0 ? nullptr : &memory_[static_cast<std::size_t>(std::countr_zero(units)) * kNbdUnitBytes];
    slot.reply_data_bytes = 0;
    return &slot;
}

void NbdSlots::give_back(NbdSlot& slot) {
    free_units_ |= slot.units;
    idle_[idle_count_++] = &slot;
}

}  // namespace vramswap
