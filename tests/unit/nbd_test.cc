// SPDX-License-Identifier: MIT
// The NBD frontend without a kernel that has NBD: the messages, the memory of a connection, a connection over
// a socket pair whose other end plays the kernel, and what is said when something is missing. With a kernel:
// contract/frontend_contract.cc and contract/nbd_frontend.cc.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <linux/nbd-netlink.h>
#include <linux/nbd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "base/units.h"
#include "front/nbd/nbd_abi.h"
#include "front/nbd/nbd_connection.h"
#include "front/nbd/nbd_frontend.h"
#include "front/nbd/nbd_slots.h"
#include "front/nbd/nbd_wire.h"
#include "support/block_device.h"
#include "support/ram_target.h"
#include "support/without_sys_admin.h"

namespace vramswap::test {
namespace {

namespace fs = std::filesystem;
using Kind = NbdRequest::Kind;
using Op = BlockRequest::Op;

constexpr unsigned kWatchdogSeconds = 60;
constexpr Bytes kSize = mib(64);

// --- the kernel's numbers ---

TEST(NbdAbi, IsThatOfTheSystemsHeaders) {
    EXPECT_EQ(nbd_abi::kRequestBytes, sizeof(nbd_request));
    EXPECT_EQ(nbd_abi::kReplyBytes, sizeof(nbd_reply));
    EXPECT_EQ(nbd_abi::kRequestMagic, std::uint32_t{NBD_REQUEST_MAGIC});
    EXPECT_EQ(nbd_abi::kReplyMagic, std::uint32_t{NBD_REPLY_MAGIC});
    EXPECT_EQ(int{nbd_abi::kCmdRead}, int{NBD_CMD_READ});
    EXPECT_EQ(int{nbd_abi::kCmdWrite}, int{NBD_CMD_WRITE});
    EXPECT_EQ(int{nbd_abi::kCmdDisconnect}, int{NBD_CMD_DISC});
    EXPECT_EQ(int{nbd_abi::kCmdFlush}, int{NBD_CMD_FLUSH});
    EXPECT_EQ(int{nbd_abi::kCmdTrim}, int{NBD_CMD_TRIM});
    EXPECT_EQ(int{nbd_abi::kCmdWriteZeroes}, 6);
    EXPECT_EQ(nbd_abi::kRequestFua << 16, NBD_CMD_FLAG_FUA);
    EXPECT_EQ(nbd_abi::kServerHasFlags, std::uint64_t{NBD_FLAG_HAS_FLAGS});
    EXPECT_EQ(nbd_abi::kServerReadOnly, std::uint64_t{NBD_FLAG_READ_ONLY});
    EXPECT_EQ(nbd_abi::kServerSendFlush, std::uint64_t{NBD_FLAG_SEND_FLUSH});
    EXPECT_EQ(nbd_abi::kServerSendFua, std::uint64_t{NBD_FLAG_SEND_FUA});
    EXPECT_EQ(nbd_abi::kServerSendTrim, std::uint64_t{NBD_FLAG_SEND_TRIM});
    EXPECT_EQ(nbd_abi::kServerRotational, 1u << 4);
    EXPECT_EQ(nbd_abi::kServerSendWriteZeroes, 1u << 6);
    EXPECT_EQ(nbd_abi::kServerCanMultiConn, std::uint64_t{NBD_FLAG_CAN_MULTI_CONN});
    EXPECT_EQ(nbd_abi::kClientDestroyOnDisconnect, std::uint64_t{NBD_CFLAG_DESTROY_ON_DISCONNECT});
    EXPECT_EQ(nbd_abi::kClientDisconnectOnClose, std::uint64_t{NBD_CFLAG_DISCONNECT_ON_CLOSE});
}

TEST(NbdAbi, NetlinkIsThatOfTheSystemsHeaders) {
    EXPECT_STREQ(nbd_abi::kFamily, NBD_GENL_FAMILY_NAME);
    EXPECT_EQ(nbd_abi::kFamilyVersion, NBD_GENL_VERSION);
    EXPECT_EQ(int{nbd_abi::kNetlinkConnect}, int{NBD_CMD_CONNECT});
    EXPECT_EQ(int{nbd_abi::kNetlinkDisconnect}, int{NBD_CMD_DISCONNECT});
    EXPECT_EQ(int{nbd_abi::kNetlinkReconfigure}, int{NBD_CMD_RECONFIGURE});
    EXPECT_EQ(int{nbd_abi::kNetlinkLinkDead}, int{NBD_CMD_LINK_DEAD});
    EXPECT_EQ(int{nbd_abi::kNetlinkStatus}, int{NBD_CMD_STATUS});
    EXPECT_EQ(int{nbd_abi::kAttrIndex}, int{NBD_ATTR_INDEX});
    EXPECT_EQ(int{nbd_abi::kAttrSizeBytes}, int{NBD_ATTR_SIZE_BYTES});
    EXPECT_EQ(int{nbd_abi::kAttrBlockSizeBytes}, int{NBD_ATTR_BLOCK_SIZE_BYTES});
    EXPECT_EQ(int{nbd_abi::kAttrTimeout}, int{NBD_ATTR_TIMEOUT});
    EXPECT_EQ(int{nbd_abi::kAttrServerFlags}, int{NBD_ATTR_SERVER_FLAGS});
    EXPECT_EQ(int{nbd_abi::kAttrClientFlags}, int{NBD_ATTR_CLIENT_FLAGS});
    EXPECT_EQ(int{nbd_abi::kAttrSockets}, int{NBD_ATTR_SOCKETS});
    EXPECT_EQ(int{nbd_abi::kAttrDeadConnTimeout}, int{NBD_ATTR_DEAD_CONN_TIMEOUT});
    EXPECT_EQ(int{nbd_abi::kAttrDeviceList}, int{NBD_ATTR_DEVICE_LIST});
    EXPECT_EQ(int{nbd_abi::kAttrBackend}, int{NBD_ATTR_BACKEND_IDENTIFIER});
    EXPECT_EQ(int{nbd_abi::kSockItem}, int{NBD_SOCK_ITEM});
    EXPECT_EQ(int{nbd_abi::kSockFd}, int{NBD_SOCK_FD});
    EXPECT_EQ(int{nbd_abi::kDeviceItem}, int{NBD_DEVICE_ITEM});
    EXPECT_EQ(int{nbd_abi::kDeviceIndex}, int{NBD_DEVICE_INDEX});
    EXPECT_EQ(int{nbd_abi::kDeviceConnected}, int{NBD_DEVICE_CONNECTED});
}

// --- messages ---

using Header = std::array<std::byte, nbd_abi::kRequestBytes>;

/// As the kernel's struct nbd_request lays it out.
Header header(std::uint32_t type, std::uint64_t cookie, std::uint64_t offset, std::uint32_t bytes,
              std::uint32_t magic = NBD_REQUEST_MAGIC) {
    nbd_request request{};
    request.magic = __builtin_bswap32(magic);
    request.type = __builtin_bswap32(type);
    std::memcpy(request.handle, &cookie, sizeof cookie);
    request.from = __builtin_bswap64(offset);
    request.len = __builtin_bswap32(bytes);
    Header out;
    std::memcpy(out.data(), &request, sizeof request);
    return out;
}

constexpr std::uint32_t kRead = NBD_CMD_READ, kWriteZeroes = nbd_abi::kCmdWriteZeroes;
constexpr std::uint32_t kFlagFua = 1u << 16, kFlagNoHole = 1u << 17, kFlagUnknown = 1u << 18;

TEST(NbdWire, ParsesEachCommand) {
    const auto kind = [](std::uint32_t type) { return parse_nbd_request(header(type, 1, 0, 4096))->kind; };
    EXPECT_EQ(kind(NBD_CMD_READ), Kind::read);
    EXPECT_EQ(kind(NBD_CMD_WRITE), Kind::write);
    EXPECT_EQ(kind(NBD_CMD_WRITE | kFlagFua), Kind::write);
    EXPECT_EQ(kind(NBD_CMD_DISC), Kind::disconnect);
    EXPECT_EQ(kind(NBD_CMD_FLUSH), Kind::flush);
    EXPECT_EQ(kind(NBD_CMD_TRIM), Kind::discard);
    EXPECT_EQ(kind(kWriteZeroes), Kind::discard);
    EXPECT_EQ(kind(kWriteZeroes | kFlagNoHole | kFlagFua), Kind::discard);
    for (const std::uint32_t unknown : {5u, 7u, 8u, 255u, 0xffffu}) EXPECT_EQ(kind(unknown), Kind::refused);
    EXPECT_EQ(kind(NBD_CMD_READ | kFlagUnknown), Kind::refused);
    EXPECT_EQ(kind(0xffff'ffff), Kind::refused);
}

TEST(NbdWire, TakesNumbersInBigEndianAndTheCookieAsItIs) {
    const auto request =
        parse_nbd_request(header(NBD_CMD_WRITE, 0x0123'4567'89ab'cdef, 0xfedc'ba98'7654'3000, 0xff00));
    ASSERT_TRUE(request);
    EXPECT_EQ(request->cookie, 0x0123'4567'89ab'cdefu);
    EXPECT_EQ(request->offset, 0xfedc'ba98'7654'3000u);
    EXPECT_EQ(request->bytes, 0xff00u);
    EXPECT_EQ(request->payload_bytes, 0xff00u);
    EXPECT_EQ(parse_nbd_request(header(NBD_CMD_READ, 1, 0, 4096))->payload_bytes, 0u);
    EXPECT_EQ(parse_nbd_request(header(NBD_CMD_WRITE | kFlagUnknown, 1, 0, 0xffff'ffff))->payload_bytes,
              0xffff'ffffu)
        << "the data of a refused write comes all the same";
}

TEST(NbdWire, NoticesAStreamOutOfStep) {
    for (const std::uint32_t magic : {0u, 0x13956025u, 0x25609512u, std::uint32_t{NBD_REPLY_MAGIC}})
        EXPECT_FALSE(parse_nbd_request(header(NBD_CMD_READ, 1, 0, 4096, magic))) << magic;
}

TEST(NbdWire, AnyBytesAreParsedOrRefused) {
    std::mt19937 random(1);
    for (int i = 0; i < 100'000; ++i) {
        Header bytes = header(0, 0, 0, 0);
        for (std::size_t at = i % 2 == 0 ? 0 : 4; at < bytes.size(); ++at)
            bytes[at] = static_cast<std::byte>(random());
        const auto request = parse_nbd_request(bytes);
        EXPECT_TRUE(!request || request->payload_bytes == 0 || request->payload_bytes == request->bytes);
    }
}

TEST(NbdWire, WritesReplies) {
    nbd_reply reply{};
    std::array<std::byte, nbd_abi::kReplyBytes> bytes;
    write_nbd_reply(bytes, 0x0123'4567'89ab'cdef, 28);
    std::memcpy(&reply, bytes.data(), sizeof reply);
    std::uint64_t cookie = 0;
    std::memcpy(&cookie, reply.handle, sizeof cookie);
    EXPECT_EQ(__builtin_bswap32(reply.magic), std::uint32_t{NBD_REPLY_MAGIC});
    EXPECT_EQ(__builtin_bswap32(reply.error), 28u);
    EXPECT_EQ(cookie, 0x0123'4567'89ab'cdefu);
}

TEST(NbdWire, HasErrorNumbersOfItsOwn) {
    EXPECT_EQ(nbd_error(IoStatus::ok), 0u);
    EXPECT_EQ(nbd_error(IoStatus::io_error), 5u);
    EXPECT_EQ(nbd_error(IoStatus::lost), 5u);
    EXPECT_EQ(nbd_error(IoStatus::misaligned), 22u);
    EXPECT_EQ(nbd_error(IoStatus::out_of_range), 22u);
    EXPECT_EQ(nbd_error(IoStatus::no_space), 28u);
}

// --- the memory of a connection ---

class NbdSlotsTest : public ::testing::Test {
  protected:
    std::vector<std::byte> memory_ = std::vector<std::byte>(kNbdPoolBytes);
    NbdSlots slots_{memory_};

    [[nodiscard]] std::size_t unit_of(const NbdSlot& slot) const {
        return static_cast<std::size_t>(slot.data - memory_.data()) / kNbdUnitBytes;
    }
};

TEST_F(NbdSlotsTest, GivesEachRequestMemoryOfItsOwn) {
    std::set<std::byte*> seen;
    for (std::uint32_t i = 0; i < kNbdSlots; ++i) {
        NbdSlot* slot = slots_.take(4096);
        ASSERT_NE(slot, nullptr);
        EXPECT_TRUE(seen.insert(slot->data).second);
    }
    EXPECT_EQ(slots_.take(4096), nullptr);
    EXPECT_EQ(slots_.take(0), nullptr) << "no slot is left either";
}

TEST_F(NbdSlotsTest, TheLargestRequestTakesAll) {
    NbdSlot* all = slots_.take(kNbdPoolBytes);
    ASSERT_NE(all, nullptr);
    EXPECT_EQ(all->data, memory_.data());
    EXPECT_EQ(slots_.take(1), nullptr);
    NbdSlot* none = slots_.take(0);
    ASSERT_NE(none, nullptr) << "a discard needs no memory";
    EXPECT_EQ(none->data, nullptr);
    slots_.give_back(*all);
    EXPECT_NE(slots_.take(kNbdPoolBytes), nullptr);
}

TEST_F(NbdSlotsTest, FindsNeighbouringUnitsAmongHoles) {
    std::vector<NbdSlot*> taken;
    for (int i = 0; i < 8; ++i) taken.push_back(slots_.take(8 * kNbdUnitBytes));
    for (const std::size_t i : {1u, 3u, 4u}) slots_.give_back(*taken[i]);
    EXPECT_EQ(slots_.take(17 * kNbdUnitBytes), nullptr);
    NbdSlot* wide = slots_.take(8 * kNbdUnitBytes + 1);
    ASSERT_NE(wide, nullptr);
    EXPECT_EQ(unit_of(*wide), 24u);
    NbdSlot* narrow = slots_.take(1);
    ASSERT_NE(narrow, nullptr);
    EXPECT_EQ(unit_of(*narrow), 8u);
    EXPECT_EQ(slots_.taken(), 7u);
}

TEST_F(NbdSlotsTest, NothingIsLostInRandomUse) {
    std::mt19937 random(1);
    std::vector<NbdSlot*> taken;
    for (int i = 0; i < 10'000; ++i) {
        if (random() % 2 == 0) {
            if (NbdSlot* slot = slots_.take(random() % (kNbdPoolBytes / 8))) taken.push_back(slot);
        } else if (!taken.empty()) {
            std::swap(taken[random() % taken.size()], taken.back());
            slots_.give_back(*taken.back());
            taken.pop_back();
        }
        std::uint64_t used = 0;
        for (const NbdSlot* slot : taken) {
            ASSERT_EQ(used & slot->units, 0u) << "two requests share memory";
            used |= slot->units;
        }
    }
    for (NbdSlot* slot : taken) slots_.give_back(*slot);
    EXPECT_NE(slots_.take(kNbdPoolBytes), nullptr);
}

// --- a connection ---

std::vector<std::byte> pattern(std::size_t bytes, std::uint64_t seed) {
    std::mt19937_64 random(seed);
    std::vector<std::byte> out(bytes);
    for (std::size_t at = 0; at + 8 <= bytes; at += 8) {
        const std::uint64_t word = random();
        std::memcpy(out.data() + at, &word, sizeof word);
    }
    return out;
}

/// The kernel's end of the socket. Blocking; throws if the other end is gone.
class FakeKernel {
  public:
    struct Reply {
        std::uint64_t cookie;
        std::uint32_t error;
    };

    explicit FakeKernel(UniqueFd socket) : socket_(std::move(socket)) {}

    void send(const void* data, std::size_t bytes) const {
        for (std::size_t at = 0; at < bytes;) {
            const ssize_t n =
                ::send(socket_.get(), static_cast<const std::byte*>(data) + at, bytes - at, MSG_NOSIGNAL);
            if (n <= 0) throw std::runtime_error("the connection takes no more");
            at += static_cast<std::size_t>(n);
        }
    }
    void request(std::uint32_t type, std::uint64_t cookie, std::uint64_t offset, std::uint32_t bytes) const {
        const Header h = header(type, cookie, offset, bytes);
        send(h.data(), h.size());
    }
    void write(std::uint64_t cookie, std::uint64_t offset, const std::vector<std::byte>& data) const {
        request(NBD_CMD_WRITE, cookie, offset, static_cast<std::uint32_t>(data.size()));
        send(data.data(), data.size());
    }
    Reply reply() const {
        nbd_reply raw{};
        receive(&raw, sizeof raw);
        if (__builtin_bswap32(raw.magic) != NBD_REPLY_MAGIC) throw std::runtime_error("reply out of step");
        Reply reply{0, __builtin_bswap32(raw.error)};
        std::memcpy(&reply.cookie, raw.handle, sizeof reply.cookie);
        return reply;
    }
    std::vector<std::byte> data(std::size_t bytes) const {
        std::vector<std::byte> out(bytes);
        receive(out.data(), bytes);
        return out;
    }
    /// Reads until the other end is closed; false if anything came.
    bool ends() const {
        std::byte byte{};
        return ::recv(socket_.get(), &byte, 1, 0) <= 0;
    }
    void shut_down() const { ::shutdown(socket_.get(), SHUT_RDWR); }
    void close() { socket_.reset(); }

  private:
    void receive(void* to, std::size_t bytes) const {
        const ssize_t n = bytes == 0 ? 0 : ::recv(socket_.get(), to, bytes, MSG_WAITALL);
        if (n != static_cast<ssize_t>(bytes)) throw std::runtime_error("the connection has ended");
    }
    UniqueFd socket_;
};

class NbdConnectionTest : public ::testing::Test {
  protected:
    void SetUp() override {
        ::alarm(kWatchdogSeconds);
        stop_ = std::move(*StopSignal::make());
        start();
    }
    void TearDown() override {
        target_.release();
        target_.give_room();
        stop_->request();
        connection_->join();
        connection_.reset();
        EXPECT_EQ(target_.misuse(), "");
        EXPECT_EQ(target_.queues() + target_.registrations(), 0u);
        ::alarm(0);
    }
    void start() {
        std::array<int, 2> ends{};
        ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()), 0);
        auto made = NbdConnection::make({target_, *stop_, fence_}, 0, UniqueFd(ends[0]));
        kernel_ = std::make_unique<FakeKernel>(UniqueFd(ends[1]));
        ASSERT_TRUE(made) << made.error().text();
        connection_ = std::move(*made);
        ASSERT_TRUE(connection_->start());
    }
    void expect_reply(std::uint64_t cookie, std::uint32_t error = 0) {
        const auto reply = kernel_->reply();
        EXPECT_EQ(reply.cookie, cookie);
        EXPECT_EQ(reply.error, error) << "request " << cookie;
    }
    [[nodiscard]] FrontendCounters counters() const {
        FrontendCounters sum;
        connection_->add_counters(sum);
        return sum;
    }

    RamTarget target_{kSize};
    std::unique_ptr<StopSignal> stop_;
    NbdFence fence_;
    std::unique_ptr<NbdConnection> connection_;
    std::unique_ptr<FakeKernel> kernel_;
};

TEST_F(NbdConnectionTest, WritesAndReadsBackEverySize) {
    std::uint64_t cookie = 0;
    for (const std::size_t bytes : {4096u, 8192u, 12288u, 65536u, 69632u, 524288u, 1u << 20, 4u << 20}) {
        SCOPED_TRACE(bytes);
        const auto data = pattern(bytes, ++cookie);
        kernel_->write(cookie, 8192, data);
        expect_reply(cookie);
        EXPECT_TRUE(target_.content(8192, bytes) == data);
        kernel_->request(NBD_CMD_READ, ++cookie, 8192, static_cast<std::uint32_t>(bytes));
        expect_reply(cookie);
        EXPECT_TRUE(kernel_->data(bytes) == data);
    }
    EXPECT_EQ(counters().reads, 8u);
    EXPECT_EQ(counters().writes, 8u);
    EXPECT_EQ(counters().bytes_read, counters().bytes_written);
    EXPECT_EQ(counters().errors, 0u);
}

struct SocketEnds {
    SocketEnds() {
        std::array<int, 2> ends{};
        if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) != 0)
            throw std::runtime_error("socketpair failed");
        ours.reset(ends[0]);
        kernels.reset(ends[1]);
    }
    UniqueFd ours, kernels;
};

TEST(NbdFence, WaitsForOthersThatWereShutDownUntilTheyLeave) {
    NbdFence fence;
    SocketEnds first;
    SocketEnds second;
    fence.enter(0, first.ours.get());
    fence.enter(15, second.ours.get());
    EXPECT_FALSE(fence.must_wait(0));
    EXPECT_FALSE(fence.must_wait(15));
    ::shutdown(first.kernels.get(), SHUT_RDWR);  // as the kernel does
    EXPECT_TRUE(fence.must_wait(15));
    EXPECT_FALSE(fence.must_wait(0)) << "nobody waits for itself";
    fence.leave(0);
    EXPECT_FALSE(fence.must_wait(15));
    second.kernels.reset();
    EXPECT_TRUE(fence.must_wait(0));
}

TEST_F(NbdConnectionTest, AWriteWaitsForTheEndOfConnectionsThatWereShutDown) {
    SocketEnds other;
    fence_.enter(1, other.ours.get());
    const auto data = pattern(4096, 1);
    kernel_->write(1, 0, data);
    expect_reply(1);
    other.kernels.reset();
    const auto newer = pattern(4096, 2);
    kernel_->write(2, 0, newer);
    int unread = 1;
    while (unread != 0) ASSERT_EQ(::ioctl(connection_->socket(), FIONREAD, &unread), 0);
    for (int n = 0; n < 10'000; ++n) std::this_thread::yield();
    EXPECT_TRUE(target_.content(0, 4096) == data) << "the other may still have the old one before it";
    fence_.leave(1);
    expect_reply(2);
    EXPECT_TRUE(target_.content(0, 4096) == newer);
}

TEST_F(NbdConnectionTest, OneThatWasShutDownItselfDoesNotWait) {
    SocketEnds other;
    fence_.enter(1, other.ours.get());
    other.kernels.reset();
    kernel_->write(1, 0, pattern(4096, 1));
    kernel_->shut_down();
    connection_->join();  // both would wait for each other
    EXPECT_TRUE(connection_->has_ended());
    EXPECT_EQ(target_.content(0, 4096), std::vector<std::byte>(4096)) << "it is sent again";
    fence_.leave(1);
    start();
}

TEST_F(NbdConnectionTest, PutsTogetherWhatComesInPieces) {
    const auto data = pattern(4096, 1);
    std::vector<std::byte> stream;
    for (std::uint64_t i = 0; i < 3; ++i) {
        const Header h = header(NBD_CMD_WRITE, i, i * 4096, 4096);
        stream.insert(stream.end(), h.begin(), h.end());
        stream.insert(stream.end(), data.begin(), data.end());
    }
    for (std::size_t at = 0; at < 100; ++at) kernel_->send(&stream[at], 1);
    for (std::size_t at = 100, piece = 1; at < stream.size(); piece = piece * 3 % 1009) {
        const std::size_t bytes = std::min(piece, stream.size() - at);
        kernel_->send(&stream[at], bytes);
        at += bytes;
    }
    for (std::uint64_t i = 0; i < 3; ++i) {
        expect_reply(i);
        EXPECT_TRUE(target_.content(i * 4096, 4096) == data);
    }
}

TEST_F(NbdConnectionTest, TakesManyRequestsInOnePiece) {
    std::vector<std::byte> stream;
    for (std::uint64_t i = 0; i < 128; ++i) {
        const Header h = header(i % 2 == 0 ? NBD_CMD_READ : NBD_CMD_TRIM, i, i * 4096, 4096);
        stream.insert(stream.end(), h.begin(), h.end());
    }
    kernel_->send(stream.data(), stream.size());
    for (std::uint64_t i = 0; i < 128; ++i) {
        expect_reply(i);
        if (i % 2 == 0) kernel_->data(4096);
    }
}

TEST_F(NbdConnectionTest, AnswersInTheOrderOfCompletion) {
    const auto data = pattern(4096, 1);
    target_.complete_after_polls(100'000);
    kernel_->request(NBD_CMD_READ, 1, 0, 4096);
    kernel_->request(NBD_CMD_FLUSH, 9, 0, 0);
    expect_reply(9);  // so the read has been submitted
    target_.complete_after_polls(0);
    kernel_->write(2, 8192, data);
    expect_reply(2);
    expect_reply(1);
    EXPECT_EQ(kernel_->data(4096), std::vector<std::byte>(4096));
}

TEST_F(NbdConnectionTest, ManyRequestsAreUnderWayAtOnce) {
    target_.hold();
    for (std::uint64_t i = 0; i < 100; ++i) kernel_->request(NBD_CMD_READ, i, i * 4096, 4096);
    EXPECT_TRUE(target_.wait_until_held(kNbdSlots));
    target_.release();
    std::set<std::uint64_t> cookies;
    for (std::uint64_t i = 0; i < 100; ++i) {
        cookies.insert(kernel_->reply().cookie);
        kernel_->data(4096);
    }
    EXPECT_EQ(cookies.size(), 100u);
}

TEST_F(NbdConnectionTest, ManyTagsWithoutAReaderFillTheSocketAndNothingIsLost) {
    // 256 replies of 64 KiB: far more than the socket and the pool hold.
    constexpr std::uint64_t kRequests = 256;
    constexpr std::uint32_t kBytes = 64u << 10;
    const auto data = pattern(kBytes, 7);
    target_.complete_after_polls(3);
    for (std::uint64_t i = 0; i < 4; ++i) {
        kernel_->write(i, i * kBytes, data);
        expect_reply(i);
    }
    std::thread sender([&] {
        for (std::uint64_t i = 0; i < kRequests; ++i)
            kernel_->request(NBD_CMD_READ, i, i % 4 * kBytes, kBytes);
    });
    std::set<std::uint64_t> cookies;
    for (std::uint64_t i = 0; i < kRequests; ++i) {
        const auto reply = kernel_->reply();
        EXPECT_EQ(reply.error, 0u);
        cookies.insert(reply.cookie);
        EXPECT_TRUE(kernel_->data(kBytes) == data);
    }
    sender.join();
    EXPECT_EQ(cookies.size(), kRequests);
}

TEST_F(NbdConnectionTest, RandomIoIsCarriedOutExactly) {
    constexpr std::uint64_t kSlices = 48;  // each with one request at a time
    constexpr std::uint64_t kSliceBytes = 1u << 20;
    std::mt19937_64 random(3);
    std::vector<std::vector<std::byte>> model(kSlices, std::vector<std::byte>(kSliceBytes));
    struct Pending {
        Op op;
        std::size_t at, bytes;
    };
    std::map<std::uint64_t, Pending> pending;
    const auto begin = [&](std::uint64_t slice) {
        const std::size_t bytes = (1 + random() % 40) * 4096;
        const std::size_t at = random() % ((kSliceBytes - bytes) / 4096 + 1) * 4096;
        const auto op = static_cast<Op>(random() % 3);
        const std::uint64_t offset = slice * kSliceBytes + at;
        auto to = model[slice].begin() + static_cast<std::ptrdiff_t>(at);
        if (op == Op::write) {
            const auto data = pattern(bytes, random());
            std::copy(data.begin(), data.end(), to);
            kernel_->write(slice, offset, data);
        } else {
            if (op == Op::discard) std::fill_n(to, bytes, std::byte{0});
            kernel_->request(op == Op::read ? kRead : kWriteZeroes, slice, offset,
                             static_cast<std::uint32_t>(bytes));
        }
        pending[slice] = {op, at, bytes};
    };
    const auto finish_one = [&] {
        const auto reply = kernel_->reply();
        ASSERT_EQ(reply.error, 0u);
        const Pending done = pending.at(reply.cookie);
        pending.erase(reply.cookie);
        if (done.op != Op::read) return;
        const auto from = model[reply.cookie].begin() + static_cast<std::ptrdiff_t>(done.at);
        EXPECT_TRUE(std::equal(from, from + static_cast<std::ptrdiff_t>(done.bytes),
                               kernel_->data(done.bytes).begin()));
    };
    for (int i = 0; i < 3000 && !HasFailure(); ++i) {
        target_.complete_after_polls(static_cast<unsigned>(random() % 4));
        const std::uint64_t slice = random() % kSlices;
        // Few enough that a write of ours never waits for the replies that we are to take.
        while (pending.contains(slice) || pending.size() >= 4) ASSERT_NO_FATAL_FAILURE(finish_one());
        if (random() % 16 == 0) target_.refuse_next(static_cast<unsigned>(random() % 3));
        begin(slice);
    }
    while (!pending.empty()) ASSERT_NO_FATAL_FAILURE(finish_one());
    for (std::uint64_t slice = 0; slice < kSlices; ++slice)
        EXPECT_TRUE(target_.content(slice * kSliceBytes, kSliceBytes) == model[slice]) << slice;
}

TEST_F(NbdConnectionTest, TrimAndWriteZeroesLeaveZeros) {
    const auto data = pattern(32768, 1);
    for (const std::uint32_t type : {std::uint32_t{NBD_CMD_TRIM}, kWriteZeroes, kWriteZeroes | kFlagNoHole}) {
        kernel_->write(1, 0, data);
        expect_reply(1);
        kernel_->request(type, 2, 4096, 8192);
        expect_reply(2);
        EXPECT_TRUE(target_.content(0, 4096) == std::vector<std::byte>(data.begin(), data.begin() + 4096));
        EXPECT_TRUE(target_.content(4096, 8192) == std::vector<std::byte>(8192));
    }
    kernel_->request(NBD_CMD_TRIM, 3, 0, static_cast<std::uint32_t>(kSize.n));
    expect_reply(3);
    EXPECT_TRUE(target_.content(0, 32768) == std::vector<std::byte>(32768));
    EXPECT_EQ(counters().discards, 4u);
}

TEST_F(NbdConnectionTest, FlushHasNothingToDo) {
    kernel_->request(NBD_CMD_FLUSH, 5, 0, 0);
    expect_reply(5);
}

TEST_F(NbdConnectionTest, ErrorsOfTheTargetAreToldAndTheStreamGoesOn) {
    const auto data = pattern(8192, 1);
    target_.fail(Op::write, PageIndex{0}, 1, IoStatus::no_space);
    target_.fail(Op::read, PageIndex{1}, 1, IoStatus::lost);
    target_.fail(Op::discard, PageIndex{2}, 1, IoStatus::io_error);
    kernel_->write(1, 0, data);
    expect_reply(1, 28);
    kernel_->request(NBD_CMD_READ, 2, 4096, 4096);
    expect_reply(2, 5);
    kernel_->request(NBD_CMD_TRIM, 3, 8192, 4096);
    expect_reply(3, 5);
    kernel_->request(NBD_CMD_READ, 4, 0, 4096);
    expect_reply(4);
    EXPECT_TRUE(kernel_->data(4096) == std::vector<std::byte>(4096));
    EXPECT_EQ(counters().errors, 3u);
}

TEST_F(NbdConnectionTest, RequestsThatMakeNoSenseAreRefusedOneByOne) {
    const auto odd = pattern(5000, 1);
    std::uint64_t cookie = 0;
    const auto expect_refusal = [&] { expect_reply(cookie, 22); };
    kernel_->write(++cookie, 0, odd);
    expect_refusal();
    kernel_->write(++cookie, 512, pattern(4096, 1));
    expect_refusal();
    kernel_->write(++cookie, 0, {});
    expect_refusal();
    kernel_->write(++cookie, kSize.n, pattern(4096, 1));
    expect_refusal();
    kernel_->request(NBD_CMD_READ, ++cookie, ~std::uint64_t{4095}, 8192);
    expect_refusal();
    kernel_->request(NBD_CMD_READ, ++cookie, 0, 0);
    expect_refusal();
    kernel_->request(NBD_CMD_READ, ++cookie, 0, 0xffff'ffff);
    expect_refusal();
    kernel_->request(NBD_CMD_TRIM, ++cookie, 4096, 0xffff'f000);
    expect_refusal();
    kernel_->request(5, ++cookie, 0, 4096);
    expect_refusal();
    kernel_->request(NBD_CMD_READ | kFlagUnknown, ++cookie, 0, 4096);
    expect_refusal();
    EXPECT_TRUE(target_.content(0, 8192) == std::vector<std::byte>(8192)) << "something was written";
}

TEST_F(NbdConnectionTest, TheDataOfARefusedWriteIsPassedOver) {
    const auto large = pattern(kNbdPoolBytes + 4096, 1);
    kernel_->write(1, 0, large);
    expect_reply(1, 22);
    const Header h = header(NBD_CMD_WRITE | kFlagUnknown, 2, 0, 20'000);
    kernel_->send(h.data(), h.size());
    kernel_->send(large.data(), 20'000);
    expect_reply(2, 22);
    kernel_->write(3, 0, pattern(4096, 3));
    expect_reply(3);
    EXPECT_TRUE(target_.content(0, 4096) == pattern(4096, 3));
    EXPECT_TRUE(target_.content(4096, 4096) == std::vector<std::byte>(4096));
}

TEST_F(NbdConnectionTest, WaitsForRoomInTheTarget) {
    target_.take_room();
    for (std::uint64_t i = 0; i < 4; ++i) kernel_->write(i, i * 4096, pattern(4096, i));
    EXPECT_TRUE(target_.wait_until_refused(4));
    target_.give_room();
    for (std::uint64_t i = 0; i < 4; ++i) kernel_->reply();
    for (std::uint64_t i = 0; i < 4; ++i) EXPECT_TRUE(target_.content(i * 4096, 4096) == pattern(4096, i));
    // And once more, so that the event was reset and still comes.
    target_.take_room();
    kernel_->write(9, 0, pattern(4096, 9));
    EXPECT_TRUE(target_.wait_until_refused(1));
    target_.give_room();
    expect_reply(9);
}

TEST_F(NbdConnectionTest, ARefusalNowAndThenIsNotSeenByTheKernel) {
    for (unsigned i = 0; i < 50; ++i) {
        target_.refuse_next(i % 4);
        target_.complete_after_polls(i % 3);
        kernel_->write(i, i * kPageBytes, pattern(4096, i));
        expect_reply(i);
        EXPECT_TRUE(target_.content(i * kPageBytes, 4096) == pattern(4096, i));
    }
}

TEST_F(NbdConnectionTest, EndsWithTheGoodbye) {
    kernel_->request(NBD_CMD_DISC, 0, 0, 0);
    connection_->join();
    EXPECT_TRUE(kernel_->ends());
}

TEST_F(NbdConnectionTest, EndsWhenTheKernelIsGone) {
    kernel_->close();
    connection_->join();
}

TEST_F(NbdConnectionTest, AnUnfinishedRequestIsDroppedWithTheConnection) {
    const auto data = pattern(4096, 1);
    for (const std::size_t cut :
         {std::size_t{1}, std::size_t{27}, std::size_t{28}, std::size_t{29}, std::size_t{4000}}) {
        std::vector<std::byte> stream(nbd_abi::kRequestBytes);
        const Header h = header(NBD_CMD_WRITE, 1, 0, 4096);
        std::copy(h.begin(), h.end(), stream.begin());
        stream.insert(stream.end(), data.begin(), data.end());
        kernel_->send(stream.data(), cut);
        kernel_->close();
        connection_->join();
        connection_.reset();
        EXPECT_TRUE(target_.content(0, 4096) == std::vector<std::byte>(4096)) << cut;
        ASSERT_NO_FATAL_FAILURE(start());
    }
}

TEST_F(NbdConnectionTest, EndsWhenTheStreamIsOutOfStep) {
    const Header wrong = header(NBD_CMD_WRITE, 1, 0, 4096, 0x12345678);
    kernel_->send(wrong.data(), wrong.size());
    connection_->join();
    EXPECT_TRUE(kernel_->ends());
}

TEST_F(NbdConnectionTest, AWriteThatWaitsForRoomIsNotCarriedOutAfterItsConnectionHasEnded) {
    target_.take_room();
    kernel_->write(1, 0, pattern(4096, 1));
    ASSERT_TRUE(target_.wait_until_refused(1));
    kernel_->shut_down();
    connection_->join();
    target_.give_room();
    EXPECT_TRUE(target_.content(0, 4096) == std::vector<std::byte>(4096));
}

TEST_F(NbdConnectionTest, EndsOnlyAfterTheTargetHasLetItsMemoryGo) {
    target_.hold();
    kernel_->request(NBD_CMD_READ, 1, 0, 4096);
    ASSERT_TRUE(target_.wait_until_held(1));
    stop_->request();
    kernel_->shut_down();
    std::thread release([&] { target_.release(); });
    connection_->join();
    release.join();
}

TEST_F(NbdConnectionTest, StopsWhileItWaitsForRoom) {
    target_.take_room();
    kernel_->request(NBD_CMD_READ, 1, 0, 4096);
    ASSERT_TRUE(target_.wait_until_refused(1));
    stop_->request();
    connection_->join();
    EXPECT_TRUE(kernel_->ends());
}

// --- what is said when something is missing ---

/// Folders in the place of /dev and /sys.
class FakeSystem {
  public:
    FakeSystem() {
        std::string name = fs::temp_directory_path() / "vramswap-nbd-XXXXXX";
        if (::mkdtemp(name.data()) == nullptr) throw std::runtime_error("mkdtemp failed");
        root_ = name;
        fs::create_directories(root_ / "dev");
        fs::create_directories(root_ / "sys/block");
        fs::create_directories(root_ / "sys/module");
        paths.dev_dir = root_ / "dev";
        paths.sys_dir = root_ / "sys";
        paths.modprobe = root_ / "no-modprobe";
    }
    ~FakeSystem() {
        std::error_code ignored;
        fs::remove_all(root_, ignored);
    }
    FakeSystem(const FakeSystem&) = delete;
    FakeSystem& operator=(const FakeSystem&) = delete;

    void add_module() const { fs::create_directories(root_ / "sys/module/nbd"); }
    void add_device() const { fs::create_directories(root_ / "sys/block/nbd0"); }
    void add_node() const { std::ofstream(root_ / "dev/nbd0").put('\n'); }
    void set_modprobe(const std::string& script) {
        paths.modprobe = root_ / "modprobe";
        std::ofstream(paths.modprobe) << "#!/bin/sh\n" << script << "\n";
        ::chmod(paths.modprobe.c_str(), 0755);
    }
    [[nodiscard]] std::string path() const { return root_; }

    NbdSystem paths;

  private:
    fs::path root_;
};

class NbdProblem : public ::testing::Test {
  protected:
    void SetUp() override {
        if (::geteuid() != 0) GTEST_SKIP() << "needs root";
    }
    void expect_problem(std::initializer_list<const char*> said) {
        const std::string problem = nbd_problem_in(system_.paths);
        for (const char* text : said)
            EXPECT_NE(problem.find(text), std::string::npos) << text << " in: " << problem;
        // A start says the same and leaves nothing.
        RamTarget target(mib(2));
        const Held before = what_is_held();
        const auto started = make_nbd_frontend_in(system_.paths)->start(target, {.name = "test"});
        ASSERT_FALSE(started);
        EXPECT_EQ(started.error().code, Errc::unavailable);
        for (const char* text : said) EXPECT_NE(started.error().text().find(text), std::string::npos) << text;
        EXPECT_EQ(target.queues() + target.registrations(), 0u);
        EXPECT_EQ(what_stays(before), "");
    }
    FakeSystem system_;
};

TEST_F(NbdProblem, NoPermission) {
    const WithoutSysAdmin weaker;
    ASSERT_TRUE(weaker.done());
    expect_problem({"not allowed", "root"});
}

TEST_F(NbdProblem, NoDriverAndNoModprobe) {
    expect_problem({"no NBD driver", "cannot run", "another frontend"});
}

TEST_F(NbdProblem, NoDriverAndModprobeFails) {
    system_.set_modprobe("exit 1");
    expect_problem({"no NBD driver", "`modprobe nbd` failed", "CONFIG_BLK_DEV_NBD", "modprobe -v nbd"});
}

TEST_F(NbdProblem, ModprobeMakesNoDriver) {
    system_.set_modprobe("exit 0");
    expect_problem({"no NBD driver"});
}

TEST_F(NbdProblem, LoadsTheDriver) {
    system_.set_modprobe(
        fmt::format("test \"$*\" = '-q nbd' && mkdir {0}/sys/module/nbd {0}/sys/block/nbd0", system_.path()));
    expect_problem({"no device node", "/dev/nbd0", "devtmpfs"});
}

TEST_F(NbdProblem, NoDeviceNode) {
    system_.add_module();
    system_.add_device();
    expect_problem({"no device node", "/dev/nbd0", "devtmpfs"});
}

TEST_F(NbdProblem, NoNetlinkFamily) {
    system_.add_module();
    system_.add_device();
    system_.add_node();
    system_.paths.family = "vramswap-none";
    expect_problem({"netlink family 'vramswap-none'", "modprobe nbd"});
}

TEST(NbdFrontend, RefusesNamesAndSizesThatMakeNoDevice) {
    for (const char* name : {"", "a/b"}) {
        RamTarget target(mib(2));
        const auto started = make_nbd_frontend()->start(target, {.name = name});
        ASSERT_FALSE(started);
        EXPECT_EQ(started.error().code, Errc::usage);
    }
    RamTarget odd(Bytes{5000});
    const auto started = make_nbd_frontend()->start(odd, {.name = "test"});
    ASSERT_FALSE(started);
    EXPECT_EQ(started.error().code, Errc::usage);
}

}  // namespace
}  // namespace vramswap::test
