// SPDX-License-Identifier: MIT
#include "daemon/guardian_link.h"

#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <string>

namespace vramswap {
namespace {

template <std::size_t N>
void put(std::array<char, N>& field, std::string_view text) {
    std::copy_n(text.data(), std::min(text.size(), N - 1), field.data());
}

template <std::size_t N>
std::string_view view(const std::array<char, N>& field) {
    return {field.data(), ::strnlen(field.data(), N)};
}

union ControlBuffer {  // aligned as cmsg(3) asks
    cmsghdr header;
    char bytes[CMSG_SPACE(sizeof(int))];
};

}  // namespace

LinkMessage LinkMessage::make(Kind kind, std::string_view key, std::string_view text) {
    LinkMessage m;
    m.kind = kind;
    put(m.key, key);
    put(m.text, text);
    return m;
}

std::string_view LinkMessage::key_view() const {
    return view(key);
}
std::string_view LinkMessage::text_view() const {
    return view(text);
}

Result<LinkEnds> make_link() {
    int ends[2];
    if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0)
        return sys_error("cannot make the socket pair between guardian and worker");
    return LinkEnds{UniqueFd(ends[0]), UniqueFd(ends[1])};
}

Result<void> send_message(int link, const LinkMessage& message, int fd) {
    iovec data{const_cast<LinkMessage*>(&message), sizeof message};  // sendmsg does not write
    msghdr header{};
    header.msg_iov = &data;
    header.msg_iovlen = 1;
    ControlBuffer control{};
    if (fd >= 0) {
        header.msg_control = &control;
        header.msg_controllen = sizeof control;
        cmsghdr* c = CMSG_FIRSTHDR(&header);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof fd);
        std::memcpy(CMSG_DATA(c), &fd, sizeof fd);
    }
    for (;;) {
        if (::sendmsg(link, &header, MSG_NOSIGNAL) >= 0) return {};
        if (errno != EINTR) return sys_error("cannot send over the link between guardian and worker");
    }
}

Result<ReceivedMessage> receive_message(int link) {
    ReceivedMessage received;
    iovec data{&received.message, sizeof received.message};
    ControlBuffer control{};
    msghdr header{};
    header.msg_iov = &data;
    header.msg_iovlen = 1;
    header.msg_control = &control;
    header.msg_controllen = sizeof control;
    ssize_t n = 0;
    do n = ::recvmsg(link, &header, MSG_CMSG_CLOEXEC);
    while (n < 0 && errno == EINTR);
    if (n == 0 || (n < 0 && errno == ECONNRESET)) return Error{Errc::not_found, 0, "the other side is gone"};
    if (n < 0) return sys_error("cannot receive over the link between guardian and worker");
    const cmsghdr* c = CMSG_FIRSTHDR(&header);
    if (c != nullptr && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS) {
        int fd = -1;
        std::memcpy(&fd, CMSG_DATA(c), sizeof fd);
        received.fd.reset(fd);
    }
    if (static_cast<std::size_t>(n) != sizeof received.message)
        return Error{Errc::failed, 0, "a malformed packet between guardian and worker"};
    return received;
}

Result<void> GuardianLink::ask(const LinkMessage& message, int fd) {
    if (auto sent = send_message(link_.get(), message, fd); !sent) return sent;
    auto answer = receive_message(link_.get());
    if (!answer) return std::move(answer).error();
    if (answer->message.kind == LinkMessage::Kind::done) return {};
    return Error{Errc::failed, 0,
                 "the guardian cannot keep or drop '" + std::string(message.key_view()) + "'"};
}

Result<void> GuardianLink::keep(std::string_view key, const UniqueFd& fd) {
    auto kept = ask(LinkMessage::make(LinkMessage::Kind::keep, key, {}), fd.get());
    if (kept && key == kFrontDeviceKey) keeps_frontend_ = true;
    return kept;
}
Result<void> GuardianLink::drop(std::string_view key) {
    if (key == kFrontDeviceKey) keeps_frontend_ = false;
    return ask(LinkMessage::make(LinkMessage::Kind::drop, key, {}), -1);
}
Result<GuardianLink::Handover> GuardianLink::receive_handover() {
    Handover handover;
    for (;;) {
        auto received = receive_message(link_.get());
        if (!received) return std::move(received).error();
        const LinkMessage& m = received->message;
        if (m.kind == LinkMessage::Kind::held) {
            handover.fds.insert_or_assign(std::string(m.key_view()), std::move(received->fd));
            continue;
        }
        if (m.kind != LinkMessage::Kind::go)
            return Error{Errc::failed, 0, "the guardian says what was not asked"};
        const std::string_view text = m.text_view();
        std::from_chars(text.data(), text.data() + text.size(), handover.deaths);
        keeps_frontend_ = handover.fds.contains(kFrontDeviceKey);
        return handover;
    }
}
Result<void> GuardianLink::tell_ready(std::string_view device) {
    return send_message(link_.get(), LinkMessage::make(LinkMessage::Kind::ready, {}, device), -1);
}
Result<void> GuardianLink::tell_failed(std::string_view error) {
    return send_message(link_.get(), LinkMessage::make(LinkMessage::Kind::failed, {}, error), -1);
}

}  // namespace vramswap
