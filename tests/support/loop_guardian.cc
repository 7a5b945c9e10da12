// SPDX-License-Identifier: MIT
#include "support/loop_guardian.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <string_view>
#include <utility>

#include "support/block_device.h"
#include "support/loop_process.h"

namespace vramswap::test {
namespace {

/// Above the numbers that a child gets them under, so that none of them is overwritten before it is copied.
constexpr int kAboveChildFds = 64;

/// Less than the alarm of a test, which then tells what did not come, and lets go of the device.
constexpr int kAnswerTimeoutMs = 10'000;

struct Inherited {
    const UniqueFd& fd;
    int number;  ///< in the child
};

/// A new process, since threads may have run in this one: a fork alone would not let it start any (TSan).
pid_t start_process(const std::vector<std::string>& arguments, const std::vector<Inherited>& inherited) {
    std::string what = fmt::format("{}={}", kWhatToRun, fmt::join(arguments, " "));
    std::vector<char*> environment{what.data()};
    for (char** variable = environ; *variable != nullptr; ++variable) environment.push_back(*variable);
    environment.push_back(nullptr);
    std::string program = "/proc/self/exe";
    std::string filter = "--gtest_filter=*";
    const std::array<char*, 3> argv{program.data(), filter.data(), nullptr};
    posix_spawn_file_actions_t actions;
    ::posix_spawn_file_actions_init(&actions);
    // What GoogleTest prints before it comes to our part.
    ::posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
    std::vector<UniqueFd> copies;
    for (const auto& [fd, number] : inherited) {
        copies.emplace_back(::fcntl(fd.get(), F_DUPFD_CLOEXEC, kAboveChildFds));
        ::posix_spawn_file_actions_adddup2(&actions, copies.back().get(), number);
    }
    pid_t pid = -1;
    const int failure =
        ::posix_spawn(&pid, program.c_str(), &actions, nullptr, argv.data(), environment.data());
    ::posix_spawn_file_actions_destroy(&actions);
    if (failure != 0) throw std::runtime_error("cannot start a process of the test");
    return pid;
}

UniqueFd make_memory(Bytes size) {
    UniqueFd memory(::memfd_create("test-device", MFD_CLOEXEC));
    if (!memory || ::ftruncate(memory.get(), static_cast<off_t>(size.n)) != 0)
        throw std::runtime_error("memfd_create failed");
    return memory;
}

int wait_for_exit(pid_t pid) {
    int status = 0;
    ::waitpid(pid, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

bool is_ready(const UniqueFd& fd) {
    pollfd answer{fd.get(), POLLIN, 0};
    return ::poll(&answer, 1, kAnswerTimeoutMs) > 0;
}

struct Message {
    std::string text;  ///< empty: the other end has gone
    UniqueFd fd;
};

Message receive_message(const UniqueFd& socket) {
    std::array<char, 512> text{};
    alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
    iovec part{text.data(), text.size()};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    const ssize_t n = ::recvmsg(socket.get(), &message, MSG_CMSG_CLOEXEC);
    Message received{{text.data(), n > 0 ? static_cast<std::size_t>(n) : 0}, {}};
    if (const cmsghdr* header = n > 0 ? CMSG_FIRSTHDR(&message) : nullptr; header != nullptr) {
        int fd = -1;
        std::memcpy(&fd, CMSG_DATA(header), sizeof fd);
        received.fd.reset(fd);
    }
    return received;
}

}  // namespace

LoopUser::LoopUser(const std::vector<std::string>& arguments) : pid_(start_process(arguments, {})) {}

bool LoopUser::is_running() {
    siginfo_t info{};
    return ::waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOHANG | WNOWAIT) == 0 &&
           info.si_pid == 0;
}

LoopUser::~LoopUser() {
    if (pid_ > 0) ::waitpid(pid_, nullptr, 0);
}

int LoopUser::status() {
    const UniqueFd process(static_cast<int>(::syscall(SYS_pidfd_open, pid_, 0)));
    return is_ready(process) ? wait_for_exit(std::exchange(pid_, -1)) : kNoAnswer;
}

LoopGuardian::LoopGuardian(Bytes size)
    : size_(size), name_(unique_device_name()), memory_(make_memory(size)) {}

LoopGuardian::~LoopGuardian() {
    kill();
    let_go();
}

std::string LoopGuardian::serve(const Options& options) {
    kill();
    std::array<int, 2> ends{};
    if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends.data()) != 0)
        throw std::runtime_error("socketpair failed");
    socket_.reset(ends[0]);
    const UniqueFd theirs(ends[1]);
    std::vector<Inherited> inherited{{theirs, kSocketFd}, {memory_, kMemoryFd}};
    if (!held_.empty()) {
        inherited.push_back({held_.at("front-device"), kDeviceFd});
        inherited.push_back({held_.at("front-fuse"), kFuseFd});
    }
    server_ = start_process(
        {held_.empty() ? "serve" : "take-over", options.name.empty() ? name_ : options.name,
         fmt::format("{}", options.size.n == 0 ? size_.n : options.size.n), fmt::format("{}", options.hold)},
        inherited);
    return wait_answer();
}

void LoopGuardian::hold(std::uint32_t requests) {
    static_cast<void>(send_message(socket_.get(), fmt::format("{}", requests)));
    if (const std::string answer = wait_answer(); answer != "holding") throw std::runtime_error(answer);
}

std::string LoopGuardian::wait_answer() {
    constexpr std::string_view kKeep = "keep ";
    constexpr std::string_view kDrop = "drop ";
    for (;;) {
        if (!is_ready(socket_)) return "no answer";
        Message message = receive_message(socket_);
        if (message.text.starts_with(kKeep))
            held_[message.text.substr(kKeep.size())] = std::move(message.fd);
        else if (message.text.starts_with(kDrop))
            held_.erase(message.text.substr(kDrop.size()));
        else
            return message.text.empty() ? "the server has ended" : message.text;
    }
}

void LoopGuardian::kill() {
    if (server_ > 0) {
        ::kill(server_, SIGKILL);
        ::waitpid(std::exchange(server_, -1), nullptr, 0);
    }
    socket_.reset();
}

void LoopGuardian::let_go() {
    // FUSE first: with it open, closing the device could wait for ever.
    held_.erase("front-fuse");
    held_.clear();
}

std::string LoopGuardian::stop() {
    static_cast<void>(send_message(socket_.get(), "stop"));
    std::string answer = wait_answer();
    if (answer != "stopped") return answer;
    // By itself, and with what sanitizers have found.
    const int status = wait_for_exit(std::exchange(server_, -1));
    return status == 0 ? answer : fmt::format("stopped, but ended with {}", status);
}

void LoopGuardian::store(std::uint64_t offset, std::size_t bytes, std::uint64_t generation) {
    DirectBuffer buffer(bytes);
    if (write_at(memory_, buffer.fill(offset, generation), offset) != 0)
        throw std::runtime_error("memfd: write");
}

bool LoopGuardian::stores(std::uint64_t offset, std::size_t bytes, std::uint64_t generation) const {
    DirectBuffer buffer(bytes);
    return read_at(memory_, buffer, offset) == 0 && buffer.mismatch(offset, generation).empty();
}

bool LoopGuardian::stores_zeros(std::uint64_t offset, std::size_t bytes) const {
    DirectBuffer buffer(bytes);
    return read_at(memory_, buffer, offset) == 0 && buffer.is_zero();
}

}  // namespace vramswap::test
