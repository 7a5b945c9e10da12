// SPDX-License-Identifier: MIT
// The interface of the kernel's ublk driver, as far as this folder uses it. Our own copy, since distributions
// compile with headers older than the kernels they run: Debian 12's knows Linux 6.1. Values and layouts are
// those of include/uapi/linux/ublk_cmd.h of Linux 7.3 unless a line says otherwise; what was there in 6.0 has
// not changed since. No functions; any thread.
#pragma once

#include <sys/ioctl.h>

#include <cstddef>
#include <cstdint>

namespace vramswap {

/// struct ublksrv_ctrl_cmd: in the SQE of a control command. Linux 6.0 has data[2] where later there are
/// data[1] and the fields behind it.
struct UblkControlCommand {
    std::uint32_t device;  ///< number N of /dev/ublkbN, or kUblkAnyDevice
    std::uint16_t queue;   ///< kUblkNoQueue
    std::uint16_t bytes;   ///< of what `address` points to
    std::uint64_t address;
    std::uint64_t data;
    std::uint16_t path_bytes;  ///< for unprivileged devices: 0
    std::uint16_t padding;
    std::uint32_t reserved;
};
static_assert(sizeof(UblkControlCommand) == 32);
inline constexpr std::uint32_t kUblkAnyDevice = ~std::uint32_t{0};
inline constexpr std::uint16_t kUblkNoQueue = 0xffff;

/// struct ublksrv_ctrl_dev_info.
struct UblkDeviceInfo {
    std::uint16_t queues;
    std::uint16_t depth;
    std::uint16_t state;  ///< kUblkStateDead and others
    std::uint16_t descriptor_bytes;
    std::uint32_t io_bytes_max;
    std::uint32_t device;
    std::int32_t server_pid;
    std::uint32_t padding;
    std::uint64_t flags;         ///< kUblkFlag...: wanted, and on return negotiated
    std::uint64_t server_flags;  ///< ours: the driver only keeps it
    std::uint32_t owner_uid;
    std::uint32_t owner_gid;
    std::uint64_t reserved1;
    std::uint64_t reserved2;
};
static_assert(sizeof(UblkDeviceInfo) == 64);
inline constexpr std::uint16_t kUblkStateDead = 0;      // UBLK_S_DEV_DEAD: no block device
inline constexpr std::uint16_t kUblkStateQuiesced = 2;  // UBLK_S_DEV_QUIESCED: it waits for another server

// UBLK_F_*
inline constexpr std::uint64_t kUblkFlagUserRecovery = 1u << 3;         // Linux 6.1
inline constexpr std::uint64_t kUblkFlagUserRecoveryReissue = 1u << 4;  // Linux 6.1
inline constexpr std::uint64_t kUblkFlagIoctlEncoded = 1u << 6;         // Linux 6.4: UBLK_F_CMD_IOCTL_ENCODE
inline constexpr std::uint64_t kUblkFlagSafeStop = 1u << 17;            // Linux 7.0: TRY_STOP_DEV exists
inline constexpr std::uint64_t kUblkFlagNoPartitionScan = 1u << 18;     // Linux 7.0: UBLK_F_NO_AUTO_PART_SCAN

/// struct ublk_params as far as Linux 6.0 has it; the driver takes any length.
struct UblkParameters {
    std::uint32_t bytes;  ///< kUblkParameterBytes
    std::uint32_t types;  ///< kUblkParametersBasic | kUblkParametersDiscard
    struct Basic {
        std::uint32_t attributes;  ///< 0: not rotational, no volatile cache, no FUA, not read-only
        std::uint8_t logical_block_shift;
        std::uint8_t physical_block_shift;
        std::uint8_t io_opt_shift;
        std::uint8_t io_min_shift;
        std::uint32_t sectors_max;
        std::uint32_t chunk_sectors;
        std::uint64_t device_sectors;
        std::uint64_t virtual_boundary_mask;
    } basic;
    struct Discard {
        std::uint32_t alignment;
        std::uint32_t granularity;
        std::uint32_t sectors_max;
        std::uint32_t write_zeroes_sectors_max;
        std::uint16_t segments_max;
        std::uint16_t reserved;
    } discard;
};
static_assert(sizeof(UblkParameters::Basic) == 32);
static_assert(sizeof(UblkParameters::Discard) == 20);
static_assert(offsetof(UblkParameters, basic) == 8 && offsetof(UblkParameters, discard) == 40);
inline constexpr std::uint32_t kUblkParameterBytes =
    offsetof(UblkParameters, discard) + sizeof(UblkParameters::Discard);
inline constexpr std::uint32_t kUblkParametersBasic = 1u << 0;    // UBLK_PARAM_TYPE_BASIC
inline constexpr std::uint32_t kUblkParametersDiscard = 1u << 1;  // UBLK_PARAM_TYPE_DISCARD

/// struct ublksrv_io_desc: a request, in the array that the driver shows read-only, by tag.
struct UblkIoDescriptor {
    std::uint32_t op_flags;  ///< UblkOp in the lowest 8 bits
    std::uint32_t sectors;
    std::uint64_t first_sector;
    std::uint64_t address;
};
static_assert(sizeof(UblkIoDescriptor) == 24);

/// UBLK_IO_OP_*
enum class UblkOp : std::uint8_t { read = 0, write = 1, flush = 2, discard = 3, write_zeroes = 5 };

/// struct ublksrv_io_cmd: in the SQE of an I/O command.
struct UblkIoCommand {
    std::uint16_t queue;
    std::uint16_t tag;
    std::int32_t result;    ///< of the request that is committed
    std::uint64_t address;  ///< see ublk_queue.h
};
static_assert(sizeof(UblkIoCommand) == 16);

/// Where queue q's descriptors lie in /dev/ublkcN: q times this, which is UBLK_MAX_QUEUE_DEPTH of them
/// (ublk_max_cmd_buf_size in drivers/block/ublk_drv.c).
inline constexpr std::uint64_t kUblkDescriptorStride = 4096 * sizeof(UblkIoDescriptor);
static_assert(kUblkDescriptorStride % 4096 == 0);

/// The unit of all sectors, whatever the block size (SECTOR_SHIFT).
inline constexpr std::uint32_t kSectorBytes = 512;

/// Numbers of the commands, UBLK_CMD_* and UBLK_IO_*.
enum class UblkCommand : std::uint8_t {
    get_device_info = 0x02,
    add_device = 0x04,
    delete_device = 0x05,
    start_device = 0x06,
    stop_device = 0x07,
    set_parameters = 0x08,
    start_user_recovery = 0x10,  // Linux 6.1
    end_user_recovery = 0x11,    // Linux 6.1
    get_features = 0x13,         // Linux 6.5; encoded form only
    try_stop_device = 0x17,      // Linux 7.0; encoded form only
    fetch = 0x20,
    commit_and_fetch = 0x21,
};

/// How a kernel wants its commands: as encoded by <linux/ioctl.h> (UBLK_U_*, from Linux 6.4), or as plain
/// numbers (6.0 to 6.3; later only with CONFIG_BLKDEV_UBLK_LEGACY_OPCODES).
enum class UblkDialect : std::uint8_t { encoded, legacy };

/// The value of sqe->cmd_op.
constexpr std::uint32_t ublk_opcode(UblkDialect dialect, UblkCommand command) {
    const auto number = static_cast<std::uint32_t>(command);
    if (dialect == UblkDialect::legacy) return number;
    switch (command) {
        case UblkCommand::get_device_info:
        case UblkCommand::get_features:
            return static_cast<std::uint32_t>(_IOR('u', number, UblkControlCommand));
        case UblkCommand::fetch:
        case UblkCommand::commit_and_fetch:
            return static_cast<std::uint32_t>(_IOWR('u', number, UblkIoCommand));
        default:
            return static_cast<std::uint32_t>(_IOWR('u', number, UblkControlCommand));
    }
}

}  // namespace vramswap
