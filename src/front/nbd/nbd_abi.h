// SPDX-License-Identifier: MIT
// Constants of the kernel's network block device, as in include/uapi/linux/nbd.h and nbd-netlink.h of
// Linux 7.3. Our own copy: the headers of distributions we build on lack the newer ones (Linux 6.1:
// WRITE_ZEROES, ROTATIONAL). The numbers are ABI and never change; "since" is where they came. nbd_test
// compares them with the system's headers.
#pragma once

#include <cstddef>
#include <cstdint>

namespace vramswap::nbd_abi {

// --- linux/nbd.h: what goes over a socket; all numbers big-endian ---

/// struct nbd_request: magic (4), flags (2) and command (2), cookie (8), offset (8), length (4).
inline constexpr std::size_t kRequestBytes = 28;
/// struct nbd_reply ("simple reply"): magic (4), error (4), cookie (8). The data of a READ follows.
inline constexpr std::size_t kReplyBytes = 16;
inline constexpr std::uint32_t kRequestMagic = 0x25609513;  // NBD_REQUEST_MAGIC
inline constexpr std::uint32_t kReplyMagic = 0x67446698;    // NBD_REPLY_MAGIC

enum Command : std::uint16_t {
    kCmdRead = 0,
    kCmdWrite = 1,
    kCmdDisconnect = 2,
    kCmdFlush = 3,
    kCmdTrim = 4,
    kCmdWriteZeroes = 6,  // sent by Linux 6.12, not by 6.1
};

// Flags of a request: the upper half of its type field (NBD_CMD_FLAG_* >> 16).
inline constexpr std::uint16_t kRequestFua = 1u << 0;
inline constexpr std::uint16_t kRequestNoHole = 1u << 1;  // of WRITE_ZEROES: keep the room allocated

// NBD_FLAG_*: what a server can do.
inline constexpr std::uint64_t kServerHasFlags = 1u << 0;
inline constexpr std::uint64_t kServerReadOnly = 1u << 1;
inline constexpr std::uint64_t kServerSendFlush = 1u << 2;
inline constexpr std::uint64_t kServerSendFua = 1u << 3;
inline constexpr std::uint64_t kServerRotational = 1u << 4;  // older kernels: never rotational
inline constexpr std::uint64_t kServerSendTrim = 1u << 5;
inline constexpr std::uint64_t kServerSendWriteZeroes = 1u << 6;  // older kernels: ignored
inline constexpr std::uint64_t kServerCanMultiConn = 1u << 8;

// NBD_CFLAG_*: how the device behaves.
inline constexpr std::uint64_t kClientDestroyOnDisconnect = 1u << 0;
inline constexpr std::uint64_t kClientDisconnectOnClose = 1u << 1;

// --- linux/nbd-netlink.h: generic netlink ---

inline constexpr const char* kFamily = "nbd";  // NBD_GENL_FAMILY_NAME
inline constexpr std::uint8_t kFamilyVersion = 1;

enum NetlinkCommand : std::uint8_t {
    kNetlinkConnect = 1,
    kNetlinkDisconnect = 2,
    kNetlinkReconfigure = 3,
    kNetlinkLinkDead = 4,
    kNetlinkStatus = 5,
};

enum Attribute : int {
    kAttrIndex = 1,            // u32
    kAttrSizeBytes = 2,        // u64
    kAttrBlockSizeBytes = 3,   // u64
    kAttrTimeout = 4,          // u64, seconds
    kAttrServerFlags = 5,      // u64
    kAttrClientFlags = 6,      // u64
    kAttrSockets = 7,          // nested: kSockItem
    kAttrDeadConnTimeout = 8,  // u64, seconds
    kAttrDeviceList = 9,       // nested: kDeviceItem
    kAttrBackend = 10,         // string; 5.14, ignored before
};
inline constexpr int kAttrMax = kAttrBackend;

enum SocketItemAttribute : int { kSockItem = 1 };    // nested: kSockFd
enum SocketAttribute : int { kSockFd = 1 };          // u32
enum DeviceItemAttribute : int { kDeviceItem = 1 };  // nested: kDeviceIndex, kDeviceConnected
enum DeviceAttribute : int { kDeviceIndex = 1, kDeviceConnected = 2 };  // u32, u8
inline constexpr int kDeviceAttrMax = kDeviceConnected;

}  // namespace vramswap::nbd_abi
