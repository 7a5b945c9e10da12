// SPDX-License-Identifier: MIT
// The processes of tests in which a server of a loop device is killed: the test program itself, told by its
// environment what to run. One that uses a device never holds a descriptor of its server: whoever waits for a
// request cannot be killed, and would keep alive what its request waits for.
//   serve NAME BYTES HOLD, or take-over NAME BYTES HOLD: over the memory at kMemoryFd; see loop_guardian.h.
//   write|dirty|read PATH OFFSET BYTES GENERATION, discard PATH OFFSET BYTES.
//   load PATH OFFSET BYTES ROUNDS: writes and reads back that range, page by page, again and again.
//   swapon PATH BYTES, swapoff PATH.
// Exit status of the users: 0, the errno, or kWrongData.
#include "support/loop_process.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <iterator>
#include <memory>
#include <span>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "base/units.h"
#include "front/loop/loop_frontend.h"
#include "support/block_device.h"
#include "support/ram_target.h"

namespace vramswap::test {
namespace {

/// A process that the test has forgotten ends all the same, later than the test would.
constexpr unsigned kWatchdogSeconds = 150;

using Arguments = std::span<const std::string>;

std::uint64_t number(const std::string& text) {
    return std::stoull(text);
}

class SocketKeeper final : public FdKeeper {
  public:
    Result<void> keep(std::string_view key, const UniqueFd& fd) override {
        return send_message(kSocketFd, "keep " + std::string(key), &fd);
    }
    Result<void> drop(std::string_view key) override {
        return send_message(kSocketFd, "drop " + std::string(key));
    }
};

void reply(std::string_view text) {
    if (!send_message(kSocketFd, text)) ::_exit(1);
}

/// One command at a time, to the end of the guardian.
int obey(RamTarget& target, Frontend& frontend) {
    for (;;) {
        std::array<char, 64> text{};
        const ssize_t n = ::recv(kSocketFd, text.data(), text.size(), 0);
        if (n <= 0) ::_exit(1);
        const std::string command(text.data(), static_cast<std::size_t>(n));
        if (command == "stop") {
            const auto stopped = frontend.stop();
            reply(stopped ? "stopped" : stopped.error().text());
            if (stopped) return 0;
        } else {
            target.hold();
            reply("holding");
            reply(target.wait_until_held(number(command)) ? "held" : "nothing to hold");
        }
    }
}

int serve(Arguments arguments) {
    RamTarget target(Bytes{number(arguments[2])}, UniqueFd(kMemoryFd));
    SocketKeeper keeper;
    auto frontend = make_loop_frontend();
    const FrontendOptions options{.name = arguments[1], .threads = kServerThreads, .keeper = &keeper};
    const std::uint64_t hold = number(arguments[3]);
    if (hold != 0) target.hold();
    HeldFds held;
    if (arguments[0] == "take-over") {
        held.emplace("front-device", UniqueFd(kDeviceFd));
        held.emplace("front-fuse", UniqueFd(kFuseFd));
    }
    const auto path =
        held.empty() ? frontend->start(target, options) : frontend->take_over(target, options, held);
    if (!path) {
        reply(path.error().text());
        return 1;
    }
    held.clear();
    reply(*path);
    if (hold != 0) reply(target.wait_until_held(hold) ? "held" : "nothing to hold");
    return obey(target, *frontend);
}

int transfer(Arguments arguments) {
    const std::string_view what = arguments[0];
    const UniqueFd device = open_device(arguments[1], what == "dirty" ? Opening::buffered : Opening::direct);
    const std::uint64_t offset = number(arguments[2]);
    DirectBuffer buffer(number(arguments[3]));
    const std::uint64_t generation = number(arguments[4]);
    if (what != "read") return write_at(device, buffer.fill(offset, generation), offset);
    if (const int failure = read_at(device, buffer, offset); failure != 0) return failure;
    return buffer.mismatch(offset, generation).empty() ? 0 : kWrongData;
}

int load(Arguments arguments) {
    const UniqueFd device = open_device(arguments[1]);
    const std::uint64_t begin = number(arguments[2]);
    const std::uint64_t end = begin + number(arguments[3]);
    DirectBuffer page(kPageBytes);
    for (std::uint64_t round = 1; round <= number(arguments[4]); ++round) {
        for (std::uint64_t at = begin; at < end; at += kPageBytes)
            if (const int failure = write_at(device, page.fill(at, round), at); failure != 0) return failure;
        for (std::uint64_t at = begin; at < end; at += kPageBytes) {
            if (const int failure = read_at(device, page, at); failure != 0) return failure;
            if (!page.mismatch(at, round).empty()) return kWrongData;
        }
    }
    return 0;
}

int run(Arguments arguments) {
    const std::string_view what = arguments[0];
    if (what == "serve" || what == "take-over") return serve(arguments);
    if (what == "swapon")
        return start_swap(open_device(arguments[1]), arguments[1], number(arguments[2])) ? 0 : errno;
    if (what == "load") return load(arguments);
    if (what == "swapoff") return stop_swap(arguments[1]) ? 0 : errno;
    if (what == "discard")
        return discard_at(open_device(arguments[1]), number(arguments[2]), number(arguments[3]));
    return transfer(arguments);
}

/// Comes before the first test, in the place of all of them.
class RunInstead final : public ::testing::Environment {
  public:
    void SetUp() override {
        const char* text = std::getenv(kWhatToRun);
        if (text == nullptr) return;
        ::alarm(kWatchdogSeconds);
        std::istringstream words(text);
        const std::vector<std::string> arguments(std::istream_iterator<std::string>(words), {});
        std::exit(run(arguments));
    }
};
[[maybe_unused]] const auto* const g_run_instead = ::testing::AddGlobalTestEnvironment(new RunInstead);

}  // namespace
}  // namespace vramswap::test
