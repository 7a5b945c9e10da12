// SPDX-License-Identifier: MIT
// src/front/ublk without the kernel's driver: the interface against what the kernel's header says, requests
// as the driver describes them, and what people are told when something is missing.
#include <gtest/gtest.h>
#include <linux/ublk_cmd.h>
#include <stdlib.h>
#include <sys/stat.h>

#include <array>
#include <cerrno>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>

#include "base/units.h"
#include "front/ublk/ublk_abi.h"
#include "front/ublk/ublk_frontend.h"
#include "front/ublk/ublk_host.h"
#include "front/ublk/ublk_queue.h"
#include "front/ublk/ublk_request.h"
#include "support/ram_target.h"

namespace vramswap::test {
namespace {

namespace fs = std::filesystem;

// The header of the system that compiles this, of whatever version from 6.0 on, for what it knows.
static_assert(sizeof(UblkControlCommand) == sizeof(ublksrv_ctrl_cmd));
static_assert(sizeof(UblkDeviceInfo) == sizeof(ublksrv_ctrl_dev_info));
static_assert(offsetof(UblkDeviceInfo, io_bytes_max) == offsetof(ublksrv_ctrl_dev_info, max_io_buf_bytes));
static_assert(offsetof(UblkDeviceInfo, device) == offsetof(ublksrv_ctrl_dev_info, dev_id));
static_assert(offsetof(UblkDeviceInfo, flags) == offsetof(ublksrv_ctrl_dev_info, flags));
static_assert(offsetof(UblkDeviceInfo, server_flags) == offsetof(ublksrv_ctrl_dev_info, ublksrv_flags));
static_assert(sizeof(UblkIoDescriptor) == sizeof(ublksrv_io_desc));
static_assert(offsetof(UblkIoDescriptor, first_sector) == offsetof(ublksrv_io_desc, start_sector));
static_assert(sizeof(UblkIoCommand) == sizeof(ublksrv_io_cmd));
static_assert(offsetof(UblkIoCommand, result) == offsetof(ublksrv_io_cmd, result));
static_assert(offsetof(UblkIoCommand, address) == offsetof(ublksrv_io_cmd, addr));
static_assert(offsetof(UblkParameters, basic) == offsetof(ublk_params, basic));
static_assert(offsetof(UblkParameters, discard) == offsetof(ublk_params, discard));
static_assert(offsetof(UblkParameters::Basic, sectors_max) == offsetof(ublk_param_basic, max_sectors));
static_assert(offsetof(UblkParameters::Basic, device_sectors) == offsetof(ublk_param_basic, dev_sectors));
static_assert(offsetof(UblkParameters::Discard, segments_max) ==
              offsetof(ublk_param_discard, max_discard_segments));

TEST(UblkAbi, CommandsHaveTheNumbersOfTheKernel) {
    EXPECT_EQ(ublk_opcode(UblkDialect::legacy, UblkCommand::add_device), std::uint32_t{UBLK_CMD_ADD_DEV});
    EXPECT_EQ(ublk_opcode(UblkDialect::legacy, UblkCommand::fetch), std::uint32_t{UBLK_IO_FETCH_REQ});
    // Worked out by hand from include/uapi/linux/ublk_cmd.h and asm-generic/ioctl.h.
    EXPECT_EQ(ublk_opcode(UblkDialect::encoded, UblkCommand::get_device_info), 0x80207502u);
    EXPECT_EQ(ublk_opcode(UblkDialect::encoded, UblkCommand::add_device), 0xc0207504u);
    EXPECT_EQ(ublk_opcode(UblkDialect::encoded, UblkCommand::delete_device), 0xc0207505u);
    EXPECT_EQ(ublk_opcode(UblkDialect::encoded, UblkCommand::get_features), 0x80207513u);
    EXPECT_EQ(ublk_opcode(UblkDialect::encoded, UblkCommand::try_stop_device), 0xc0207517u);
    EXPECT_EQ(ublk_opcode(UblkDialect::encoded, UblkCommand::fetch), 0xc0107520u);
    EXPECT_EQ(ublk_opcode(UblkDialect::encoded, UblkCommand::commit_and_fetch), 0xc0107521u);
}

TEST(UblkAbi, EachQueueHasItsDescriptorsAtThePlaceWhereTheDriverShowsThem) {
    EXPECT_EQ(kUblkDescriptorStride, 98304u);
    EXPECT_EQ(kUblkParameterBytes, 60u);
    EXPECT_EQ(kUblkTransferBytes % kPageBytes, 0u);
    EXPECT_LE(kUblkTransferBytes, BlockRequest::kMaxTransferBytes);
}

class UblkRequest : public ::testing::Test {
  protected:
    /// As the driver describes it, in units of 512 bytes; the flags are those of a swap write.
    static UblkIoDescriptor descriptor(unsigned op, std::uint64_t first_sector, std::uint32_t sectors) {
        constexpr std::uint32_t kSwap = 1u << 16;
        return {.op_flags = op | kSwap, .sectors = sectors, .first_sector = first_sector, .address = 0};
    }
    std::array<std::byte, 16 << 10> buffer_{};
    BlockRequest request_;
};

TEST_F(UblkRequest, ReadsAndWritesUseTheBufferOfTheirTag) {
    EXPECT_EQ(translate(descriptor(UBLK_IO_OP_READ, 8, 16), buffer_, request_), std::nullopt);
    EXPECT_EQ(request_.op, BlockRequest::Op::read);
    EXPECT_EQ(request_.offset, 4096u);
    EXPECT_EQ(request_.bytes, 8192u);
    EXPECT_EQ(request_.data, buffer_.data());
    EXPECT_EQ(ublk_result(request_, IoStatus::ok), 8192);
    EXPECT_EQ(translate(descriptor(UBLK_IO_OP_WRITE, 1ull << 40, 8), buffer_, request_), std::nullopt);
    EXPECT_EQ(request_.op, BlockRequest::Op::write);
    EXPECT_EQ(request_.offset, 1ull << 49);
    EXPECT_EQ(ublk_result(request_, IoStatus::ok), 4096);
}

TEST_F(UblkRequest, DiscardsAndZeroesAreTheSameAndMayBeLong) {
    for (const unsigned op : {unsigned{UBLK_IO_OP_DISCARD}, unsigned{UBLK_IO_OP_WRITE_ZEROES}}) {
        EXPECT_EQ(translate(descriptor(op, 8, 0x7ffff8), buffer_, request_), std::nullopt);
        EXPECT_EQ(request_.op, BlockRequest::Op::discard);
        EXPECT_EQ(request_.bytes, 0x7ffff8ull * 512);
        EXPECT_EQ(request_.data, nullptr);
        EXPECT_EQ(ublk_result(request_, IoStatus::ok), 0);
    }
}

TEST_F(UblkRequest, SomeAreAnsweredWithoutTheTarget) {
    EXPECT_EQ(translate(descriptor(UBLK_IO_OP_FLUSH, 0, 0), buffer_, request_), 0);
    for (const unsigned op : {4u, 6u, 10u, 13u, 18u, 255u})
        EXPECT_EQ(translate(descriptor(op, 0, 8), buffer_, request_), -EOPNOTSUPP) << op;
    EXPECT_EQ(translate(descriptor(UBLK_IO_OP_WRITE, 0, 40), buffer_, request_), -EINVAL);
    EXPECT_EQ(translate(descriptor(UBLK_IO_OP_READ, 0, ~0u), buffer_, request_), -EINVAL);
}

TEST_F(UblkRequest, FailuresAreNegativeErrnosAndNeverAPartOfTheBytes) {
    ASSERT_EQ(translate(descriptor(UBLK_IO_OP_READ, 0, 8), buffer_, request_), std::nullopt);
    EXPECT_EQ(ublk_result(request_, IoStatus::io_error), -EIO);
    EXPECT_EQ(ublk_result(request_, IoStatus::lost), -EIO);
    EXPECT_EQ(ublk_result(request_, IoStatus::no_space), -ENOSPC);
    EXPECT_EQ(ublk_result(request_, IoStatus::misaligned), -EINVAL);
}

/// Folders in the place of /dev, /proc and /lib/modules, with a modprobe of its own.
class UblkProblem : public ::testing::Test {
  protected:
    UblkProblem() {
        std::string name = fs::temp_directory_path() / "vramswap-ublk-XXXXXX";
        if (::mkdtemp(name.data()) == nullptr) throw std::runtime_error("mkdtemp failed");
        root_ = name;
        host_ = {.dev_dir = root_ / "dev",
                 .proc_dir = root_ / "proc",
                 .modules_dir = root_ / "modules",
                 .modprobe = ""};
        write("proc/sys/kernel/osrelease", "6.12.1-test\n");
        fs::create_directories(host_.dev_dir);
        set_modprobe("exit 1");
    }
    ~UblkProblem() override {
        std::error_code ignored;
        fs::remove_all(root_, ignored);
    }
    void write(const std::string& path, const std::string& text) const {
        fs::create_directories((root_ / path).parent_path());
        std::ofstream(root_ / path) << text;
    }
    void set_modprobe(const std::string& body) {
        write("modprobe", "#!/bin/sh\n" + body + "\n");
        host_.modprobe = root_ / "modprobe";
        ::chmod(host_.modprobe.c_str(), 0755);
    }
    void SetUp() override {
        if (const auto usable = check_io_uring({}); !usable) GTEST_SKIP() << usable.error().text();
    }
    void expect(std::initializer_list<const char*> parts) const {
        const std::string problem = ublk_problem_in(host_);
        for (const char* part : parts) EXPECT_NE(problem.find(part), std::string::npos) << problem;
        // And a start says the same.
        RamTarget target(mib(1));
        const auto started = make_ublk_frontend_in(host_)->start(target, {.name = "test"});
        ASSERT_FALSE(started);
        EXPECT_EQ(started.error().code, Errc::unavailable);
        for (const char* part : parts)
            EXPECT_NE(started.error().text().find(part), std::string::npos) << started.error().text();
        EXPECT_EQ(target.queues() + target.registrations(), 0u);
    }

    fs::path root_;
    UblkHost host_;
};

TEST_F(UblkProblem, AKernelWithoutTheDriver) {
    write("modules/6.12.1-test/modules.dep", "kernel/drivers/block/loop.ko.xz:\n");
    expect({"6.12.1-test", "no ublk driver", "CONFIG_BLK_DEV_UBLK", "bookworm-backports"});
}

TEST_F(UblkProblem, ADriverThatCannotBeLoaded) {
    write("modules/6.12.1-test/modules.dep", "kernel/drivers/block/ublk_drv.ko.xz: kernel/x.ko\n");
    expect({"ublk-control", "modprobe", "ublk_drv"});
}

TEST_F(UblkProblem, ADriverThatIsNotLoadedIsLoaded) {
    if (!check_ublk_permission()) GTEST_SKIP() << "needs CAP_SYS_ADMIN";
    // A node that opens, whatever is behind it, is what the module's load would bring.
    set_modprobe("echo \"$@\" > " + (root_ / "loaded").string() + "; : > " +
                 (root_ / "dev/ublk-control").string());
    EXPECT_EQ(ublk_problem_in(host_), "");
    std::string arguments;
    std::getline(std::ifstream(root_ / "loaded"), arguments);
    EXPECT_EQ(arguments, "-q ublk_drv");
    // Behind it is no driver, so a start fails, and leaves nothing.
    RamTarget target(mib(1));
    EXPECT_FALSE(make_ublk_frontend_in(host_)->start(target, {.name = "test"}));
    EXPECT_EQ(target.queues() + target.registrations(), 0u);
}

TEST_F(UblkProblem, ALoadedDriverWithoutANode) {
    set_modprobe("exit 0");
    expect({"is loaded", "ublk-control", "devtmpfs"});
}

TEST_F(UblkProblem, IoUringSwitchedOff) {
    write("proc/sys/kernel/io_uring_disabled", "2\n");
    write("dev/ublk-control", "");
    expect({"io_uring", "kernel.io_uring_disabled=2", "sysctl kernel.io_uring_disabled=0"});
}

TEST_F(UblkProblem, NoNodeThatMayBeOpened) {
    fs::create_symlink("ublk-control", root_ / "dev/ublk-control");  // to itself: ELOOP, for root too
    const std::string problem = ublk_problem_in(host_);
    EXPECT_NE(problem.find("cannot open " + host_.dev_dir + "/ublk-control"), std::string::npos) << problem;
}

}  // namespace
}  // namespace vramswap::test
