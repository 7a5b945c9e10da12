// SPDX-License-Identifier: MIT
// The kernel's generic netlink family "nbd": makes and ends devices. Owned by NbdDevice. Control thread only;
// each call waits for the kernel's answer and allocates, in the kernel too: call it where PR_SET_IO_FLUSHER
// is set. Errors: unavailable (no driver, no permission; with the remedy), no_memory, failed (with the
// kernel's errno).
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "base/result.h"
#include "base/units.h"

struct nl_sock;

namespace vramswap {

/// Of a new device. For the flags see nbd_abi.h.
struct NbdSettings {
    Bytes size{};
    std::uint64_t server_flags = 0;
    std::uint64_t request_timeout_s = 0;
    std::uint64_t dead_connection_timeout_s = 0;
    std::string backend;  ///< what /sys/block/nbdN/backend shows; has to be told again to change the device
};

class NbdNetlink {
  public:
    static Result<NbdNetlink> open(const std::string& family);

    /// Takes a free device, or makes one, and returns its number. `sockets`: the kernel's ends, one for each
    /// hardware queue; it keeps references of its own. Requests may come before this returns.
    Result<std::uint32_t> connect(const NbdSettings& settings, std::span<const int> sockets);
    /// Sets the client flags of a device; all else stays, and must: a change of size waits for requests in
    /// flight.
    Result<void> set_client_flags(std::uint32_t index, const std::string& backend, std::uint64_t flags);
    /// A connection in the place of one that is dead. `socket`: as for connect. Requests may come before this
    /// returns. If none is dead, or known to be yet, the kernel says yes all the same and does not take the
    /// socket: its other end hangs up when `socket` is closed.
    Result<void> reconnect(std::uint32_t index, const std::string& backend, int socket);
    /// Ends a device whoever uses it; what is in flight fails. The device is free again when nobody has it
    /// open. None is connected under this number: fine.
    Result<void> disconnect(std::uint32_t index);
    /// Whether the device is connected or open.
    Result<bool> is_in_use(std::uint32_t index);

  private:
    struct SocketDeleter {
        void operator()(nl_sock* socket) const;
    };
    using Socket = std::unique_ptr<nl_sock, SocketDeleter>;
    NbdNetlink(Socket socket, int family) : socket_(std::move(socket)), family_(family) {}

    Socket socket_;
    int family_;
};

}  // namespace vramswap
