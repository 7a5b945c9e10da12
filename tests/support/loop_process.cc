// SPDX-License-Identifier: MIT
// loop_process: the processes of tests in which a server of a loop device is killed. One that uses a device
// never holds a descriptor of its server: whoever waits for a request cannot be killed, and would keep alive
// what its request waits for.
//   serve NAME BYTES HOLD, or take-over NAME BYTES HOLD: over the memory at kMemoryFd; see loop_guardian.h.
//   write|dirty|read PATH OFFSET BYTES GENERATION, discard PATH OFFSET BYTES, swapon PATH BYTES, swapoff
//   PATH.
// Exit status of the users: 0, the errno, or kWrongData.
#include "support/loop_process.h"

#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "front/loop/loop_frontend.h"
#include "support/block_device.h"
#include "support/ram_target.h"

namespace vramswap::test {
namespace {

/// A process that the test has forgotten ends all the same.
constexpr unsigned kWatchdogSeconds = 60;

using Arguments = std::span<char* const>;

std::uint64_t number(const char* text) {
    return std::strtoull(text, nullptr, 10);
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
        const std::string_view command(text.data(), static_cast<std::size_t>(n));
        if (command == "stop") {
            const auto stopped = frontend.stop();
            reply(stopped ? "stopped" : stopped.error().text());
            if (stopped) return 0;
        } else {
            target.hold();
            reply("holding");
            reply(target.wait_until_held(number(text.data())) ? "held" : "nothing to hold");
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
    if (arguments[0] == std::string_view("take-over")) {
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

int run(Arguments arguments) {
    const std::string_view what = arguments[0];
    if (what == "serve" || what == "take-over") return serve(arguments);
    if (what == "swapon")
        return start_swap(open_device(arguments[1]), arguments[1], number(arguments[2])) ? 0 : errno;
    if (what == "swapoff") return stop_swap(arguments[1]) ? 0 : errno;
    if (what == "discard")
        return discard_at(open_device(arguments[1]), number(arguments[2]), number(arguments[3]));
    return transfer(arguments);
}

}  // namespace
}  // namespace vramswap::test

int main(int argc, char** argv) {
    ::alarm(vramswap::test::kWatchdogSeconds);
    return vramswap::test::run({argv + 1, static_cast<std::size_t>(argc - 1)});
}
