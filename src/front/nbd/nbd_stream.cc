// SPDX-License-Identifier: MIT
#include "front/nbd/nbd_stream.h"

#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <span>
#include <utility>

namespace vramswap {
namespace {

/// Header and data of so many replies go in one system call.
constexpr std::size_t kRepliesPerCall = 16;

NbdIo failure() {
    switch (errno) {
        case EINTR:
            return NbdIo::moved;
        case EAGAIN:
            return NbdIo::blocked;
        case ENOMEM:
        case ENOBUFS:
            return NbdIo::starved;
        default:
            return NbdIo::closed;
    }
}

bool has_data(NbdRequest::Kind kind) {
    return kind == NbdRequest::Kind::read || kind == NbdRequest::Kind::write;
}

BlockRequest::Op op_of(NbdRequest::Kind kind) {
    if (kind == NbdRequest::Kind::read) return BlockRequest::Op::read;
    return kind == NbdRequest::Kind::write ? BlockRequest::Op::write : BlockRequest::Op::discard;
}

std::size_t reply_bytes(const NbdSlot& slot) {
    return slot.reply.size() + slot.reply_data_bytes;
}

}  // namespace

NbdIo NbdReceiver::fill(int socket) {
    // What is left in the inbox is the beginning of a header.
    std::memmove(inbox_.data(), inbox_.data() + inbox_begin_, in_inbox());
    inbox_end_ = in_inbox();
    inbox_begin_ = 0;
    const std::size_t direct = keeps_payload() ? payload_left_ : 0;
    std::byte* const direct_at = direct != 0 ? slot_->data + (slot_->bytes - payload_left_) : nullptr;
    std::array<iovec, 2> parts{
        {{direct_at, direct}, {inbox_.data() + inbox_end_, inbox_.size() - inbox_end_}}};
    msghdr message{};
    message.msg_iov = parts.data();
    message.msg_iovlen = parts.size();
    const ssize_t n = ::recvmsg(socket, &message, MSG_DONTWAIT);
    if (n < 0) return failure();
    if (n == 0) return NbdIo::closed;
    const auto bytes = static_cast<std::size_t>(n);
    payload_left_ -= std::min(bytes, direct);
    inbox_end_ += bytes - std::min(bytes, direct);
    return bytes < parts[0].iov_len + parts[1].iov_len ? NbdIo::drained : NbdIo::moved;
}

bool NbdReceiver::ended_with_goodbye(int socket) {
    std::array<std::byte, 4096> buffer;
    std::size_t kept = 0;
    // The end of what came is moved to the front: it may be cut between two reads.
    for (ssize_t n = 0; (n = ::recv(socket, &buffer[kept], buffer.size() - kept, MSG_DONTWAIT)) > 0;) {
        const std::size_t end = kept + static_cast<std::size_t>(n);
        kept = std::min(end, nbd_abi::kRequestBytes);
        std::memmove(buffer.data(), &buffer[end - kept], kept);
    }
    if (kept < nbd_abi::kRequestBytes) return false;
    const auto last = parse_nbd_request(
        std::span<const std::byte, nbd_abi::kRequestBytes>(buffer.data(), nbd_abi::kRequestBytes));
    return last && last->kind == NbdRequest::Kind::disconnect;
}

NbdReceiver::Next NbdReceiver::next(NbdSlots& slots, NbdSlot*& slot) {
    if (!request_) {
        if (in_inbox() < nbd_abi::kRequestBytes) return Next::need_bytes;
        if (!take_header()) return Next::broken;
    }
    if (request_->kind == NbdRequest::Kind::disconnect) return Next::disconnect;
    if (slot_ == nullptr) {
        slot_ = slots.take(has_data(request_->kind) ? request_->bytes : 0);
        if (slot_ == nullptr) return Next::need_room;
        prepare(*slot_);
    }
    take_payload();
    if (payload_left_ != 0) return Next::need_bytes;
    slot = std::exchange(slot_, nullptr);
    request_.reset();
    return Next::request;
}

bool NbdReceiver::take_header() {
    request_ = parse_nbd_request(std::span<const std::byte, nbd_abi::kRequestBytes>(
        inbox_.data() + inbox_begin_, nbd_abi::kRequestBytes));
    if (!request_) return false;
    inbox_begin_ += nbd_abi::kRequestBytes;
    payload_left_ = request_->payload_bytes;
    if (has_data(request_->kind) && request_->bytes > kNbdPoolBytes)
        request_->kind = NbdRequest::Kind::refused;
    return true;
}

void NbdReceiver::prepare(NbdSlot& slot) const {
    slot.kind = request_->kind;
    slot.cookie = request_->cookie;
    slot.op = op_of(request_->kind);
    slot.offset = request_->offset;
    slot.bytes = request_->bytes;
}

/// The data of a refused write is read and dropped: the next header comes after it.
bool NbdReceiver::keeps_payload() const {
    return slot_ != nullptr && slot_->kind == NbdRequest::Kind::write;
}

void NbdReceiver::take_payload() {
    const std::size_t bytes = std::min(payload_left_, in_inbox());
    if (keeps_payload() && bytes != 0)
        std::memcpy(slot_->data + (slot_->bytes - payload_left_), inbox_.data() + inbox_begin_, bytes);
    inbox_begin_ += bytes;
    payload_left_ -= bytes;
}

NbdIo NbdSender::flush(int socket, NbdSlots& slots) {
    std::array<iovec, 2 * kRepliesPerCall> parts{};
    std::size_t count = 0;
    std::size_t skip = sent_of_first_;
    const auto add = [&](std::byte* at, std::size_t bytes) {
        const std::size_t skipped = std::min(skip, bytes);
        skip -= skipped;
        if (bytes != skipped) parts[count++] = {at + skipped, bytes - skipped};
    };
    for (std::uint32_t i = 0; i < replies_.size() && i < kRepliesPerCall; ++i) {
        NbdSlot& slot = replies_.at(i);
        add(slot.reply.data(), slot.reply.size());
        add(slot.data, slot.reply_data_bytes);
    }
    msghdr message{};
    message.msg_iov = parts.data();
    message.msg_iovlen = count;
    const ssize_t n = ::sendmsg(socket, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n < 0) return failure();
    sent(static_cast<std::size_t>(n), slots);
    return NbdIo::moved;
}

void NbdSender::sent(std::size_t bytes, NbdSlots& slots) {
    sent_of_first_ += bytes;
    while (!replies_.empty() && sent_of_first_ >= reply_bytes(replies_.at(0))) {
        sent_of_first_ -= reply_bytes(replies_.at(0));
        slots.give_back(replies_.pop());
    }
}

}  // namespace vramswap
