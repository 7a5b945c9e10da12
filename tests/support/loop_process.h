// SPDX-License-Identifier: MIT
// What LoopGuardian and the processes that it starts (loop_process.cc) have agreed on: descriptors by number,
// and messages on a SOCK_SEQPACKET socket. From the server: "keep KEY" with a descriptor, "drop KEY", and
// answers; to the server: "stop", or the number of requests to hold. Any thread; may block.
#pragma once

#include <sys/socket.h>
#include <sys/uio.h>

#include <cstdint>
#include <cstring>
#include <string_view>

#include "base/result.h"
#include "base/unique_fd.h"

namespace vramswap::test {

inline constexpr const char* kWhatToRun = "VRAMSWAP_LOOP_PROCESS";  ///< arguments with spaces between them

inline constexpr int kSocketFd = 3;
inline constexpr int kMemoryFd = 4;  ///< what the device stores
inline constexpr int kDeviceFd =
    5;  ///< take-over: what was kept; in the order in which they have to be closed
inline constexpr int kFuseFd = 6;

inline constexpr std::uint32_t kServerThreads = 2;  ///< as many requests can be held
inline constexpr int kWrongData = 255;

/// Sends a text, with a descriptor if there is one.
inline Result<void> send_message(int socket, std::string_view text, const UniqueFd* fd = nullptr) {
    iovec part{const_cast<char*>(text.data()), text.size()};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    if (fd != nullptr) {
        message.msg_control = control;
        message.msg_controllen = sizeof control;
        cmsghdr* header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(sizeof(int));
        const int number = fd->get();
        std::memcpy(CMSG_DATA(header), &number, sizeof number);
    }
    if (::sendmsg(socket, &message, MSG_NOSIGNAL) < 0) return sys_error("sendmsg failed");
    return {};
}

}  // namespace vramswap::test
