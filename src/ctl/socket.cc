// SPDX-License-Identifier: MIT
#include "ctl/socket.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/log.h"
#include "ctl/messages.h"

namespace vramswap {
namespace {

constexpr int kServerPatienceMs = 1000;

Result<sockaddr_un> address_of(const std::string& path) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (path.size() >= sizeof address.sun_path)
        return Error{Errc::usage, 0, fmt::format("the socket path '{}' is too long", path)};
    std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
    return address;
}

UniqueFd make_socket() {
    return UniqueFd(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
}

const sockaddr* generic(const sockaddr_un& address) {
    return reinterpret_cast<const sockaddr*>(&address);  // the cast that socket(7) prescribes
}

bool readable_within(int fd, int timeout_ms) {
    pollfd p{fd, POLLIN, 0};
    return ::poll(&p, 1, timeout_ms) == 1;
}

Error no_answer() {
    return {Errc::failed, ETIMEDOUT, "no answer on the control socket"};
}

Result<std::string> receive(int fd, int timeout_ms) {
    if (!readable_within(fd, timeout_ms)) return no_answer();
    std::string text(kControlMessageBytes, '\0');
    const ssize_t n = ::recv(fd, text.data(), text.size(), MSG_DONTWAIT);
    if (n < 0) return sys_error("cannot read from the control socket");
    if (n == 0) return Error{Errc::failed, 0, "the other side of the control socket went away"};
    text.resize(static_cast<std::size_t>(n));
    return text;
}

bool peer_is_root(int fd) {
    ucred peer{};
    socklen_t size = sizeof peer;
    return ::getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 && peer.uid == 0;
}

}  // namespace

Result<ControlServer> ControlServer::listen(const std::string& path) {
    auto address = address_of(path);
    if (!address) return std::move(address).error();
    UniqueFd fd = make_socket();
    if (!fd) return sys_error("cannot make the control socket");
    ::unlink(path.c_str());
    const mode_t before = ::umask(0177);
    const int bound = ::bind(fd.get(), generic(*address), sizeof *address);
    ::umask(before);
    if (bound != 0 || ::listen(fd.get(), 16) != 0) return sys_error(fmt::format("cannot listen on {}", path));
    return ControlServer(std::move(fd));
}

void ControlServer::serve_one(const std::function<std::string(std::string_view)>& handle) {
    const UniqueFd client(::accept4(fd_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    if (!client) return;
    std::string answer;
    if (!peer_is_root(client.get())) {
        answer = error_json({Errc::failed, EPERM, "the control socket is root's"});
    } else if (auto request = receive(client.get(), kServerPatienceMs); request) {
        answer = handle(*request);
    } else {
        answer = error_json(request.error());
    }
    (void)::send(client.get(), answer.data(), answer.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
}

Result<std::string> control_call(const std::string& path, std::string_view request, int timeout_ms) {
    auto address = address_of(path);
    if (!address) return std::move(address).error();
    const UniqueFd fd = make_socket();
    if (!fd) return sys_error("cannot make a socket");
    // A worker that hangs leaves clients waiting in the queue of its socket: when that is full, connect
    // waits.
    const timeval patience{timeout_ms / 1000, timeout_ms % 1000 * 1000};
    ::setsockopt(fd.get(), SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    if (::connect(fd.get(), generic(*address), sizeof *address) != 0) {
        if (errno == EAGAIN) return no_answer();
        Error error = sys_error(fmt::format("cannot reach the worker at {}", path));
        error.code = Errc::not_found;
        return error;
    }
    if (::send(fd.get(), request.data(), request.size(), MSG_NOSIGNAL) < 0)
        return sys_error(fmt::format("cannot send to {}", path));
    auto answer = receive(fd.get(), timeout_ms);
    if (!answer) return answer;
    if (is_error_json(*answer)) return parse_error(*answer, "the worker failed");
    return answer;
}

}  // namespace vramswap
