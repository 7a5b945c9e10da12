// SPDX-License-Identifier: MIT
// NbdFence: keeps the connections of a device from overtaking each other. When the kernel gives a request up,
// it shuts that connection's socket down and then sends the request again over another one, and maybe a newer
// write of the same page after it. The first connection may still have the old request before it, since its
// thread stood still at any point: carried out late, it would overwrite the newer one. So who takes a write
// off its socket first looks at all others: if one has been shut down, it waits until that has come to an
// end. Any thread; no allocation.
#pragma once

#include <poll.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

namespace vramswap {

class NbdFence {
  public:
    static constexpr std::size_t kConnectionsMax = 16;

    NbdFence() {
        for (auto& socket : sockets_) socket.store(kNone);
    }
    /// Before its first byte is read.
    void enter(std::uint32_t number, int socket) { sockets_.at(number).store(socket); }
    /// Nothing of it is carried out any more, and its socket is still open.
    void leave(std::uint32_t number) { sockets_.at(number).store(kNone); }
    /// Whether another connection than `number` has been shut down and has not left.
    [[nodiscard]] bool must_wait(std::uint32_t number) const {
        std::array<pollfd, kConnectionsMax> others{};
        for (std::uint32_t n = 0; n < kConnectionsMax; ++n)
            others.at(n) = {n == number ? kNone : sockets_.at(n).load(), 0, 0};  // poll passes kNone over
        if (::poll(others.data(), others.size(), 0) <= 0) return false;
        for (std::uint32_t n = 0; n < kConnectionsMax; ++n)
            if (others.at(n).revents != 0 && sockets_.at(n).load() == others.at(n).fd) return true;
        return false;
    }

  private:
    static constexpr int kNone = -1;
    std::array<std::atomic<int>, kConnectionsMax> sockets_{};
};

}  // namespace vramswap
