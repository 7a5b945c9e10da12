// SPDX-License-Identifier: MIT
// The two directions of an NBD socket: NbdReceiver cuts what comes into requests, NbdSender sends replies.
// Owned by NbdConnection and used by its thread alone. The socket is non-blocking for them (MSG_DONTWAIT);
// nothing allocates.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>

#include "front/nbd/nbd_slots.h"
#include "front/nbd/nbd_wire.h"

namespace vramswap {

/// What a call on the socket did.
enum class NbdIo : std::uint8_t {
    moved,    ///< some bytes, or it was interrupted: call again
    drained,  ///< some bytes, and there were no more: wait for the socket
    blocked,  ///< nothing now: wait for the socket
    starved,  ///< the kernel has no memory for it now: call again a little later
    closed,   ///< the other side is gone, or the socket is broken
};

class NbdReceiver {
  public:
    enum class Next : std::uint8_t {
        request,     ///< `slot` holds a whole request, with its data if it is a write
        need_bytes,  ///< call fill
        need_room,   ///< call again after a slot was given back
        disconnect,  ///< the kernel says goodbye
        broken,      ///< the stream is out of step; nothing more can be understood
    };

    /// One read: into the data of the request that is being received, and what comes after it into the inbox.
    /// REQUIRES: next said need_bytes.
    NbdIo fill(int socket);
    /// Throws away what the other side sent before it went. True if the last of it was a goodbye.
    [[nodiscard]] static bool ended_with_goodbye(int socket);
    /// Takes the next request out of what was read.
    Next next(NbdSlots& slots, NbdSlot*& slot);

  private:
    /// A page of data with its header, twice: more is read past the inbox, straight to where it belongs.
    static constexpr std::size_t kInboxBytes = 2 * (nbd_abi::kRequestBytes + 4096);

    [[nodiscard]] std::size_t in_inbox() const { return inbox_end_ - inbox_begin_; }
    bool take_header();
    void take_payload();
    void prepare(NbdSlot& slot) const;
    [[nodiscard]] bool keeps_payload() const;

    std::array<std::byte, kInboxBytes> inbox_{};
    std::size_t inbox_begin_ = 0, inbox_end_ = 0;
    std::optional<NbdRequest> request_;  // its header has been taken out of the inbox
    NbdSlot* slot_ = nullptr;            // of request_
    std::size_t payload_left_ = 0;       // of request_
};

class NbdSender {
  public:
    /// `slot.reply` and `slot.reply_data_bytes` are ready. The slot goes back to its owner when all of it is
    /// sent.
    void push(NbdSlot& slot) { replies_.push(slot); }
    [[nodiscard]] bool empty() const { return replies_.empty(); }
    /// Sends as many replies as go in one call. REQUIRES: not empty.
    NbdIo flush(int socket, NbdSlots& slots);

  private:
    void sent(std::size_t bytes, NbdSlots& slots);

    NbdSlotQueue replies_;
    std::size_t sent_of_first_ = 0;  // bytes of the first reply
};

}  // namespace vramswap
