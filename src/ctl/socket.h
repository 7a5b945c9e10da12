// SPDX-License-Identifier: MIT
// The control socket: AF_UNIX, SOCK_SEQPACKET, one JSON text a packet, request then answer. The server is the
// worker's control thread, the client a command. Mode 0600; the peer's user id is checked on every
// connection.
#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "base/result.h"
#include "base/unique_fd.h"

namespace vramswap {

/// Largest packet either side takes.
inline constexpr std::size_t kControlMessageBytes = 64 * 1024;

class ControlServer {
  public:
    /// Binds and listens; replaces a socket file that a dead process left. Errors: failed.
    static Result<ControlServer> listen(const std::string& path);

    /// Readable when a client waits.
    [[nodiscard]] int fd() const { return fd_.get(); }
    /// Takes one client: reads its request (waits at most a second for it), answers what `handle` returns. A
    /// client that is not root is refused. Never blocks longer, never throws.
    void serve_one(const std::function<std::string(std::string_view request)>& handle);

  private:
    explicit ControlServer(UniqueFd fd) : fd_(std::move(fd)) {}
    UniqueFd fd_;
};

/// Sends a request and returns the answer. Errors: not_found (nobody listens), failed (no answer within
/// timeout_ms), or the error that the server answered.
Result<std::string> control_call(const std::string& path, std::string_view request, int timeout_ms);

}  // namespace vramswap
