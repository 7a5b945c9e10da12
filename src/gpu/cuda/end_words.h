// SPDX-License-Identifier: MIT
// EndWords: where the ends of a queue's submissions are told, one word of host memory for each that can be in
// flight. Each is told by itself, so they may end in any order. The GPU writes the low half of the ticket; a
// CPU writes its complement if the submission failed on its way. What a word holds of older tickets is
// neither: tickets that share a word are equal modulo kDepth, and a number and its complement never are.
//
// Threads: look by the queue's thread, fail by whoever failed; both any time. Nothing blocks.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "gpu/backend.h"
#include "gpu/cuda/page_kernel.h"

namespace vramswap::cuda {

class EndWords {
  public:
    static constexpr std::size_t kBytes = TransferQueue::kDepth * sizeof(std::uint32_t);

    /// kBytes of zeros, that outlive this and all submissions.
    explicit EndWords(std::byte* memory) : words_(reinterpret_cast<std::uint32_t*>(memory)) {}

    /// By what address the GPU writes to them; before the first tell().
    void set_address_on_gpu(std::uint64_t address) { on_gpu_ = address; }
    [[nodiscard]] std::uint32_t* memory() const { return words_; }

    /// What the GPU has to write when the submission has ended.
    [[nodiscard]] PageTell tell(Ticket ticket) const {
        return {on_gpu_ + place(ticket) * sizeof(std::uint32_t), value(ticket)};
    }
    void fail(Ticket ticket) const { word(ticket).store(~value(ticket), std::memory_order_release); }
    /// pending, ok or io_error.
    [[nodiscard]] IoStatus look(Ticket ticket) const {
        const std::uint32_t told = word(ticket).load(std::memory_order_acquire);
        if (told == value(ticket)) return IoStatus::ok;
        return told == static_cast<std::uint32_t>(~value(ticket)) ? IoStatus::io_error : IoStatus::pending;
    }
    /// Forgets all. REQUIRES: nothing is in flight.
    void clear() const {
        for (Ticket ticket = 0; ticket < TransferQueue::kDepth; ++ticket)
            word(ticket).store(0, std::memory_order_relaxed);
    }

  private:
    static_assert(TransferQueue::kDepth % 2 == 0 && (std::uint64_t{1} << 32) % TransferQueue::kDepth == 0);
    static std::size_t place(Ticket ticket) { return ticket % TransferQueue::kDepth; }
    static std::uint32_t value(Ticket ticket) { return static_cast<std::uint32_t>(ticket); }
    [[nodiscard]] std::atomic_ref<std::uint32_t> word(Ticket ticket) const {
        return std::atomic_ref<std::uint32_t>(words_[place(ticket)]);
    }

    std::uint32_t* const words_;
    std::uint64_t on_gpu_ = 0;
};

}  // namespace vramswap::cuda
