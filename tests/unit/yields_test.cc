// SPDX-License-Identifier: MIT
// Yields and the end of processes that hold them. No test waits for a time: ends are told by descriptors.
#include "daemon/yields.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <memory>
#include <string>
#include <vector>

#include "daemon/by_hand_orders.h"
#include "sys/process_end.h"

namespace vramswap {
namespace {

/// A process that does nothing until it is killed.
class Idler {
  public:
    Idler() : pid_(::fork()) {
        if (pid_ != 0) return;
        for (;;) ::pause();
    }
    ~Idler() { kill(); }
    Idler(const Idler&) = delete;
    Idler& operator=(const Idler&) = delete;
    [[nodiscard]] pid_t pid() const { return pid_; }
    /// It stays a zombie.
    void end() const {
        ::kill(pid_, SIGKILL);
        siginfo_t info{};
        ::waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOWAIT);
    }
    void kill() {
        if (pid_ <= 0) return;
        ::kill(pid_, SIGKILL);
        ::waitpid(pid_, nullptr, 0);
        pid_ = 0;
    }

  private:
    pid_t pid_;
};

bool readable(int fd, int timeout_ms) {
    pollfd p{fd, POLLIN, 0};
    return ::poll(&p, 1, timeout_ms) == 1;
}
constexpr int kLongMs = 60'000;

TEST(ProcessEnd, IsToldByTheDescriptor) {
    Idler idler;
    const auto end = ProcessEnd::of(idler.pid());
    ASSERT_TRUE(end) << end.error().text();
    if (end->fd() < 0) GTEST_SKIP() << "this kernel has no pidfd";
    EXPECT_FALSE(end->has_ended());
    EXPECT_FALSE(readable(end->fd(), 0));
    idler.end();
    EXPECT_TRUE(readable(end->fd(), kLongMs));
    EXPECT_TRUE(end->has_ended());
    idler.kill();
    EXPECT_TRUE(end->has_ended());
}

TEST(ProcessEnd, IsSeenWithoutADescriptor) {
    Idler idler;
    const auto end = ProcessEnd::by_number(idler.pid());
    ASSERT_TRUE(end);
    EXPECT_EQ(end->fd(), -1);
    EXPECT_FALSE(end->has_ended());
    idler.end();
    EXPECT_TRUE(end->has_ended()) << "a zombie has ended";
    EXPECT_EQ(ProcessEnd::by_number(idler.pid()).error().code, Errc::not_found);
    EXPECT_EQ(ProcessEnd::of(idler.pid()).error().code, Errc::not_found);
    idler.kill();
    EXPECT_TRUE(end->has_ended());
}

TEST(ProcessEnd, OutlivesExec) {
    int ends[2];
    ASSERT_EQ(::pipe(ends), 0);
    const pid_t child = ::fork();
    if (child == 0) {
        ::dup2(ends[0], STDIN_FILENO);
        ::close(ends[1]);
        ::execlp("cat", "cat", nullptr);
        ::_exit(127);
    }
    ::close(ends[0]);
    const auto number = ProcessEnd::by_number(child);
    const auto end = ProcessEnd::of(child);
    ASSERT_TRUE(end);
    ASSERT_TRUE(number);
    // cat echoes nothing to us: that it runs is seen by its name.
    while (read_task_stat(child).value_or(TaskStat{}).name != "cat") ::sched_yield();
    EXPECT_FALSE(end->has_ended());
    EXPECT_FALSE(number->has_ended());
    ::close(ends[1]);
    ::waitpid(child, nullptr, 0);
    EXPECT_TRUE(end->has_ended());
    EXPECT_TRUE(number->has_ended());
}

TEST(Yields, TheLeastCounts) {
    Yields yields;
    EXPECT_EQ(yields.vram_max(), std::nullopt);
    EXPECT_EQ(yields.text(), "");
    Idler a;
    Idler b;
    ASSERT_TRUE(yields.begin(gib(3), 0));
    EXPECT_EQ(yields.text(), "yield 3G");
    ASSERT_TRUE(yields.begin(gib(2), a.pid()));
    ASSERT_TRUE(yields.begin(gib(4), b.pid()));
    EXPECT_EQ(yields.vram_max(), gib(2));
    EXPECT_EQ(yields.text(), "yield 2G for process " + std::to_string(a.pid()));
    ASSERT_TRUE(yields.begin(Bytes{0}, 0)) << "instead of the 3G";
    EXPECT_EQ(yields.text(), "yield");
    yields.end(0);
    yields.end(0);
    EXPECT_EQ(yields.vram_max(), gib(2));
    yields.end(a.pid());
    EXPECT_EQ(yields.vram_max(), gib(4));
    yields.end(b.pid());
    EXPECT_EQ(yields.vram_max(), std::nullopt);
}

TEST(Yields, EndWithTheirProcess) {
    Yields yields;
    Idler stays;
    Idler goes;
    ASSERT_TRUE(yields.begin(gib(2), stays.pid()));
    ASSERT_TRUE(yields.begin(Bytes{0}, goes.pid()));
    ASSERT_TRUE(yields.begin(gib(1), 0));
    EXPECT_FALSE(readable(yields.fd(), 0));
    EXPECT_FALSE(yields.end_of_the_dead());
    goes.kill();
    EXPECT_TRUE(readable(yields.fd(), kLongMs));
    EXPECT_TRUE(yields.end_of_the_dead());
    EXPECT_FALSE(readable(yields.fd(), 0)) << "told once";
    EXPECT_EQ(yields.vram_max(), gib(1)) << "by hand it stays";
    yields.end(0);
    EXPECT_EQ(yields.vram_max(), gib(2));
}

TEST(Yields, NobodyHoldsOneWhoHasEnded) {
    Yields yields;
    Idler gone;
    const pid_t pid = gone.pid();
    gone.kill();
    const auto refused = yields.begin(Bytes{0}, pid);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, Errc::not_found);
    EXPECT_EQ(yields.vram_max(), std::nullopt);
}

TEST(Yields, HoldersAreNotWithoutEnd) {
    Yields yields;
    std::vector<std::unique_ptr<Idler>> idlers;
    for (std::size_t n = 0; n < Yields::kHoldersMax; ++n) {
        idlers.push_back(std::make_unique<Idler>());
        ASSERT_TRUE(yields.begin(gib(n + 1), idlers.back()->pid())) << n;
    }
    Idler late;
    const auto refused = yields.begin(Bytes{0}, late.pid());
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, Errc::busy);
    ASSERT_TRUE(yields.begin(gib(7), idlers[0]->pid())) << "who holds one may change it";
    idlers[0].reset();
    EXPECT_TRUE(yields.begin(Bytes{0}, late.pid())) << "a dead holder makes room";
}

// --- orders by hand ---

ControlRequest resize(std::optional<Bytes> vram, const std::string& gpu = {}) {
    return {ControlRequest::Op::resize, vram, 0, gpu};
}
ControlRequest yield(std::optional<Bytes> vram, const std::string& gpu = {}) {
    return {ControlRequest::Op::yield, vram, 0, gpu};
}

TEST(ByHandOrders, OneGpuGetsWhatIsSaid) {
    ByHandOrders orders({{"cuda:0", gib(8)}}, mib(128));
    EXPECT_EQ(orders.target(0), std::nullopt);
    EXPECT_EQ(orders.vram_max(0), std::nullopt);
    EXPECT_EQ(orders.text(), "");
    ASSERT_TRUE(orders.take(resize(gib(4))));
    ASSERT_TRUE(orders.take(yield(mib(65))));
    EXPECT_EQ(orders.target(0), gib(4));
    EXPECT_EQ(orders.vram_max(0), mib(65)) << "not rounded: that is the policy's";
    EXPECT_EQ(orders.text(), "resize 4G, yield 65M");
    ASSERT_TRUE(orders.take(resize({})));
    ASSERT_TRUE(orders.take(yield({})));
    EXPECT_EQ(orders.text(), "");
}

TEST(ByHandOrders, SeveralGpusShareInProportionToTheirMemory) {
    ByHandOrders orders({{"cuda:0", gib(24)}, {"cuda:1", gib(8)}, {"cuda:2", gib(16)}}, mib(128));
    ASSERT_TRUE(orders.take(resize(gib(12))));
    EXPECT_EQ(orders.target(0), gib(6));
    EXPECT_EQ(orders.target(1), gib(2));
    EXPECT_EQ(orders.target(2), gib(4));
    for (const std::uint64_t segments : {0u, 1u, 2u, 3u, 5u, 7u, 100u, 12345u}) {
        const Bytes all = mib(128) * segments;
        ASSERT_TRUE(orders.take(resize(all)));
        EXPECT_EQ(*orders.target(0) + *orders.target(1) + *orders.target(2), all) << segments;
    }
    ASSERT_TRUE(orders.take(yield(mib(200))));
    EXPECT_LE((*orders.vram_max(0) + *orders.vram_max(1) + *orders.vram_max(2)).n, mib(200).n);
}

TEST(ByHandOrders, AnotherMakesTheSameOfItsRequests) {
    const std::vector<ByHandOrders::Gpu> gpus{{"cuda:0", gib(8)}, {"cuda:1", gib(8)}};
    ByHandOrders orders(gpus, mib(128));
    EXPECT_TRUE(orders.requests().empty());
    ControlRequest held = yield(gib(1));
    held.holder = ::getpid();
    for (const auto& request :
         {resize(gib(4)), resize(gib(1), "cuda:1"), yield(gib(3)), yield(Bytes{0}, "cuda:0"), held})
        ASSERT_TRUE(orders.take(request));
    ByHandOrders again(gpus, mib(128));
    for (const ControlRequest& request : orders.requests()) {
        const auto parsed = parse_control_request(to_json(request));
        ASSERT_TRUE(parsed && *parsed == request);
        ASSERT_TRUE(again.take(*parsed));
    }
    EXPECT_EQ(again.text(), orders.text());
    for (const std::size_t gpu : {0u, 1u}) {
        EXPECT_EQ(again.target(gpu), orders.target(gpu));
        EXPECT_EQ(again.vram_max(gpu), orders.vram_max(gpu));
    }
    ControlRequest no_more = yield({});
    no_more.holder = held.holder;
    ASSERT_TRUE(orders.take(no_more));
    ASSERT_TRUE(again.take(no_more));
    EXPECT_EQ(again.text(), orders.text()) << "each is its holder's still";
}

TEST(ByHandOrders, OneOfSeveralGpusCanBeMeant) {
    ByHandOrders orders({{"cuda:0", gib(8)}, {"cuda:1", gib(8)}}, mib(128));
    ASSERT_TRUE(orders.take(resize(gib(4))));
    ASSERT_TRUE(orders.take(resize(gib(1), "cuda:1")));
    ASSERT_TRUE(orders.take(yield(Bytes{0}, "cuda:0")));
    EXPECT_EQ(orders.target(0), gib(2));
    EXPECT_EQ(orders.target(1), gib(1));
    EXPECT_EQ(orders.vram_max(0), Bytes{0});
    EXPECT_EQ(orders.vram_max(1), std::nullopt);
    EXPECT_EQ(orders.text(), "resize 4G, yield of cuda:0, resize 1G of cuda:1");
    ASSERT_TRUE(orders.take(yield(gib(6))));
    EXPECT_EQ(orders.vram_max(0), Bytes{0}) << "the least counts";
    EXPECT_EQ(orders.vram_max(1), gib(3));
    ASSERT_TRUE(orders.take(resize({}, "cuda:1")));
    EXPECT_EQ(orders.target(1), gib(2)) << "as the others again";
    ASSERT_TRUE(orders.take(resize(gib(1), "cuda:1")));
    ASSERT_TRUE(orders.take(resize({})));
    EXPECT_EQ(orders.target(1), std::nullopt) << "auto is for all";
    ASSERT_TRUE(orders.take(yield({})));
    EXPECT_EQ(orders.text(), "");
    const auto unknown = orders.take(resize(gib(1), "cuda:2"));
    ASSERT_FALSE(unknown);
    EXPECT_EQ(unknown.error().code, Errc::not_found);
    EXPECT_NE(unknown.error().hint.find("cuda:0, cuda:1"), std::string::npos);
}

}  // namespace
}  // namespace vramswap
