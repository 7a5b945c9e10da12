// SPDX-License-Identifier: MIT
#include "front/nbd/nbd_netlink.h"

#include <fmt/format.h>
#include <netlink/errno.h>
#include <netlink/genl/ctrl.h>
#include <netlink/genl/genl.h>
#include <netlink/netlink.h>

#include <array>
#include <cerrno>
#include <optional>
#include <utility>

#include "front/nbd/nbd_abi.h"

namespace vramswap {
namespace {

/// The kernel's answer to one message. It comes as: data, if there is any, then an acknowledgement or an
/// error.
struct Answer {
    bool complete = false;
    int error = 0;  // positive errno
    std::optional<std::uint32_t> index;
    std::optional<std::uint8_t> connected;
};

using Attributes = std::array<nlattr*, nbd_abi::kAttrMax + 1>;

void read_device_list(nlattr* list, Answer& answer) {
    nlattr* item = nullptr;
    int rest = 0;
    nla_for_each_nested(item, list, rest) {
        std::array<nlattr*, nbd_abi::kDeviceAttrMax + 1> device{};
        if (nla_type(item) != nbd_abi::kDeviceItem ||
            nla_parse_nested(device.data(), nbd_abi::kDeviceAttrMax, item, nullptr) != 0)
            continue;
        if (nlattr* connected = device[nbd_abi::kDeviceConnected];
            connected != nullptr && nla_len(connected) >= 1)
            answer.connected = nla_get_u8(connected);
    }
}

int on_data(nl_msg* message, void* context) {
    auto& answer = *static_cast<Answer*>(context);
    Attributes attributes{};
    if (genlmsg_parse(nlmsg_hdr(message), 0, attributes.data(), nbd_abi::kAttrMax, nullptr) != 0)
        return NL_SKIP;
    if (nlattr* index = attributes[nbd_abi::kAttrIndex]; index != nullptr && nla_len(index) >= 4)
        answer.index = nla_get_u32(index);
    if (nlattr* list = attributes[nbd_abi::kAttrDeviceList]; list != nullptr) read_device_list(list, answer);
    return NL_OK;
}

int on_acknowledgement(nl_msg*, void* context) {
    static_cast<Answer*>(context)->complete = true;
    return NL_STOP;
}

int on_error(sockaddr_nl*, nlmsgerr* error, void* context) {
    auto& answer = *static_cast<Answer*>(context);
    answer.error = -error->error;
    answer.complete = true;
    return NL_STOP;
}

Error no_memory() {
    return Error{Errc::no_memory, ENOMEM, "no memory for a netlink message"};
}

Error kernel_error(int error, const std::string& what) {
    if (error == EPERM || error == EACCES)
        return Error{Errc::unavailable, error, "not allowed to " + what,
                     "Run as root of the host (CAP_SYS_ADMIN in the first user namespace)"};
    const Errc code = error == ENOMEM ? Errc::no_memory : error == EBUSY ? Errc::busy : Errc::failed;
    return Error{code, error, "the kernel refuses to " + what, "The kernel log (dmesg) may say more"};
}

/// A message to the family, built attribute by attribute; remembers whether it ran out of room.
class Message {
  public:
    Message(int family, nbd_abi::NetlinkCommand command) : message_(::nlmsg_alloc()) {
        if (message_ != nullptr && ::genlmsg_put(message_.get(), NL_AUTO_PORT, NL_AUTO_SEQ, family, 0, 0,
                                                 command, nbd_abi::kFamilyVersion) == nullptr)
            message_.reset();
    }
    void u32(int attribute, std::uint32_t value) {
        check(message_ ? ::nla_put_u32(get(), attribute, value) : -1);
    }
    void u64(int attribute, std::uint64_t value) {
        check(message_ ? ::nla_put_u64(get(), attribute, value) : -1);
    }
    void text(int attribute, const std::string& value) {
        check(message_ ? ::nla_put_string(get(), attribute, value.c_str()) : -1);
    }
    template <typename Content>
    void nested(int attribute, Content content) {
        nlattr* begin = message_ ? ::nla_nest_start(get(), attribute) : nullptr;
        if (begin == nullptr) return message_.reset();
        content();
        if (message_) check(::nla_nest_end(get(), begin));
    }
    void sockets(std::span<const int> fds) {
        nested(nbd_abi::kAttrSockets, [&] {
            for (const int fd : fds)
                nested(nbd_abi::kSockItem, [&] { u32(nbd_abi::kSockFd, static_cast<std::uint32_t>(fd)); });
        });
    }
    /// Null if something did not fit.
    [[nodiscard]] nl_msg* get() const { return message_.get(); }

  private:
    struct Deleter {
        void operator()(nl_msg* message) const { ::nlmsg_free(message); }
    };
    void check(int outcome) {
        if (outcome < 0) message_.reset();
    }
    std::unique_ptr<nl_msg, Deleter> message_;
};

struct CallbackDeleter {
    void operator()(nl_cb* callbacks) const { ::nl_cb_put(callbacks); }
};

/// Sends and waits for the whole answer. Errors: only that the exchange itself failed.
Result<Answer> exchange(nl_sock* socket, const Message& message) {
    const std::unique_ptr<nl_cb, CallbackDeleter> callbacks(::nl_cb_alloc(NL_CB_DEFAULT));
    if (message.get() == nullptr || !callbacks) return no_memory();
    Answer answer;
    ::nl_cb_set(callbacks.get(), NL_CB_VALID, NL_CB_CUSTOM, &on_data, &answer);
    ::nl_cb_set(callbacks.get(), NL_CB_ACK, NL_CB_CUSTOM, &on_acknowledgement, &answer);
    ::nl_cb_err(callbacks.get(), NL_CB_CUSTOM, &on_error, &answer);
    int outcome = ::nl_send_auto(socket, message.get());
    while (outcome >= 0 && !answer.complete) outcome = ::nl_recvmsgs(socket, callbacks.get());
    if (!answer.complete)
        return Error{Errc::failed, 0,
                     fmt::format("no answer from the kernel by netlink: {}", ::nl_geterror(outcome))};
    return answer;
}

/// As exchange, and what the kernel refuses is an error too.
Result<Answer> request(nl_sock* socket, const Message& message, const std::string& what) {
    auto answer = exchange(socket, message);
    if (answer && answer->error != 0) return kernel_error(answer->error, what);
    return answer;
}

}  // namespace

void NbdNetlink::SocketDeleter::operator()(nl_sock* socket) const {
    ::nl_socket_free(socket);
}

Result<NbdNetlink> NbdNetlink::open(const std::string& family) {
    Socket socket(::nl_socket_alloc());
    if (!socket) return no_memory();
    if (const int failure = ::genl_connect(socket.get()); failure < 0)
        return Error{Errc::unavailable, 0, fmt::format("no generic netlink: {}", ::nl_geterror(failure)),
                     "Allow sockets of the family AF_NETLINK"};
    const int number = ::genl_ctrl_resolve(socket.get(), family.c_str());
    if (number < 0)
        return Error{
            Errc::unavailable, 0,
            fmt::format("the kernel shows no netlink family '{}': {}", family, ::nl_geterror(number)),
            "Load the driver with `modprobe nbd`. Older kernels show it in the host's network namespace "
            "only"};
    return NbdNetlink(std::move(socket), number);
}

Result<std::uint32_t> NbdNetlink::connect(const NbdSettings& settings, std::span<const int> sockets) {
    Message message(family_, nbd_abi::kNetlinkConnect);
    message.u64(nbd_abi::kAttrSizeBytes, settings.size.n);
    message.u64(nbd_abi::kAttrBlockSizeBytes, kPageBytes);
    message.u64(nbd_abi::kAttrTimeout, settings.request_timeout_s);
    message.u64(nbd_abi::kAttrDeadConnTimeout, settings.dead_connection_timeout_s);
    message.u64(nbd_abi::kAttrServerFlags, settings.server_flags);
    message.u64(nbd_abi::kAttrClientFlags, 0);
    message.text(nbd_abi::kAttrBackend, settings.backend);
    message.sockets(sockets);
    auto answer = request(socket_.get(), message, "connect a network block device");
    if (!answer) return std::move(answer).error();
    if (!answer->index)
        return Error{Errc::failed, 0, "the kernel does not say which device it has connected"};
    return *answer->index;
}

Result<void> NbdNetlink::set_client_flags(std::uint32_t index, const std::string& backend,
                                          std::uint64_t flags) {
    Message message(family_, nbd_abi::kNetlinkReconfigure);
    message.u32(nbd_abi::kAttrIndex, index);
    message.text(nbd_abi::kAttrBackend, backend);
    message.u64(nbd_abi::kAttrClientFlags, flags);
    auto answer = request(socket_.get(), message, fmt::format("change nbd{}", index));
    if (!answer) return std::move(answer).error();
    return {};
}

Result<void> NbdNetlink::reconnect(std::uint32_t index, const std::string& backend, int socket) {
    Message message(family_, nbd_abi::kNetlinkReconfigure);
    message.u32(nbd_abi::kAttrIndex, index);
    message.text(nbd_abi::kAttrBackend, backend);
    message.sockets(std::array{socket});
    auto answer = request(socket_.get(), message, fmt::format("take another connection of nbd{}", index));
    if (!answer) return std::move(answer).error();
    return {};
}

Result<void> NbdNetlink::disconnect(std::uint32_t index) {
    Message message(family_, nbd_abi::kNetlinkDisconnect);
    message.u32(nbd_abi::kAttrIndex, index);
    auto answer = request(socket_.get(), message, fmt::format("disconnect nbd{}", index));
    if (!answer) return std::move(answer).error();
    return {};
}

Result<bool> NbdNetlink::is_in_use(std::uint32_t index) {
    Message message(family_, nbd_abi::kNetlinkStatus);
    message.u32(nbd_abi::kAttrIndex, index);
    auto answer = request(socket_.get(), message, fmt::format("tell the state of nbd{}", index));
    if (!answer) return std::move(answer).error();
    return answer->connected.value_or(0) != 0;
}

}  // namespace vramswap
