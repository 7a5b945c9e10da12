// SPDX-License-Identifier: MIT
// NbdSlots: the requests that one connection has taken from its socket and not answered yet, with the memory
// for their data. Owned by NbdConnection and used by its thread alone. Never blocks; allocates nothing after
// construction.
//
// How much: the kernel has up to 128 requests under way on a connection, and one of them may be as large as
// queue/max_sectors_kb says. A buffer of the largest size for each would be 64 MiB a connection. So the
// memory is one pool of 4 MiB in units of 64 KiB, and a request takes as many neighbouring units as it needs:
// - 64 requests of up to 64 KiB are in flight at once. That is twice the depth at which a GPU's copy engine
//   stops getting faster; the others wait in the socket.
// - kNbdTransferBytes (what we set max_sectors_kb to) fits eight times.
// - The whole pool is the largest request that Linux sends by default (4 MiB with 7.3; 1280 KiB with 6.12;
//   128 KiB with 6.1), so also before max_sectors_kb is set every request has its data in one piece.
// Requests are taken in the order of the socket and the pool becomes empty sooner or later, so a large one is
// never starved by small ones.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "front/nbd/nbd_wire.h"
#include "front/target.h"

namespace vramswap {

/// What the device is told to cut requests to.
inline constexpr std::size_t kNbdTransferBytes = 512u << 10;
inline constexpr std::size_t kNbdUnitBytes = 64u << 10;
inline constexpr std::uint32_t kNbdUnits = 64;
/// Larger requests are refused; the kernel sends them only if somebody raises max_sectors_kb.
inline constexpr std::size_t kNbdPoolBytes = kNbdUnitBytes * kNbdUnits;
static_assert(kNbdPoolBytes == BlockRequest::kMaxTransferBytes);
inline constexpr std::uint32_t kNbdSlots = 64;

struct NbdSlot : BlockRequest {
    NbdRequest::Kind kind = NbdRequest::Kind::refused;
    std::uint64_t cookie = 0;
    std::uint64_t units = 0;  ///< one bit for each unit it has
    std::array<std::byte, nbd_abi::kReplyBytes> reply{};
    std::size_t reply_data_bytes = 0;  ///< of `data`, to send after the header
};

class NbdSlots {
  public:
    /// `memory`: kNbdPoolBytes, registered with the target.
    explicit NbdSlots(std::span<std::byte> memory);
    NbdSlots(const NbdSlots&) = delete;
    NbdSlots& operator=(const NbdSlots&) = delete;

    /// A slot with room for so much data; null if there is none now. REQUIRES: data_bytes <= kNbdPoolBytes.
    [[nodiscard]] NbdSlot* take(std::size_t data_bytes);
    void give_back(NbdSlot& slot);
    [[nodiscard]] std::uint32_t taken() const { return kNbdSlots - idle_count_; }

  private:
    const std::span<std::byte> memory_;
    std::uint64_t free_units_ = ~std::uint64_t{0};
    std::array<NbdSlot, kNbdSlots> slots_{};
    std::array<NbdSlot*, kNbdSlots> idle_{};
    std::uint32_t idle_count_ = kNbdSlots;
};

/// Slots in the order in which they came; room for all there are.
class NbdSlotQueue {
  public:
    [[nodiscard]] bool empty() const { return count_ == 0; }
    [[nodiscard]] std::uint32_t size() const { return count_; }
    [[nodiscard]] NbdSlot& at(std::uint32_t i) const { return *ring_[(first_ + i) % kNbdSlots]; }
    void push(NbdSlot& slot) { ring_[(first_ + count_++) % kNbdSlots] = &slot; }
    NbdSlot& pop() {
        NbdSlot& slot = *ring_[first_];
        first_ = (first_ + 1) % kNbdSlots;
        --count_;
        return slot;
    }

  private:
    std::array<NbdSlot*, kNbdSlots> ring_{};
    std::uint32_t first_ = 0, count_ = 0;
};

}  // namespace vramswap
