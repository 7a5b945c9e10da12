// SPDX-License-Identifier: MIT
#include "cli/demo_child.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <cstring>
#include <new>
#include <numeric>
#include <random>

#include "base/clock.h"
#include "sys/process.h"

namespace vramswap {
namespace {

/// Fills a page with the output of a xorshift64* generator seeded by its number: unique and incompressible.
void make_page(std::uint64_t number, std::uint64_t* words) {
    std::uint64_t x = (number + 1) * 0x9E3779B97F4A7C15u;
    for (std::size_t i = 0; i < kPageBytes / sizeof *words; ++i) {
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        words[i] = x * 0x2545F4914F6CDD1Du;
    }
}

std::uint64_t major_faults() {
    rusage usage{};
    ::getrusage(RUSAGE_SELF, &usage);
    return static_cast<std::uint64_t>(usage.ru_majflt);
}

void wait_for_go(int fd) {
    char byte = 0;
    if (::read(fd, &byte, 1) != 1) ::_exit(3);  // the parent is gone
}

}  // namespace

Result<std::unique_ptr<DemoChild>> DemoChild::start(Bytes data) {
    std::unique_ptr<DemoChild> c(new DemoChild);
    c->pages_ = data.n / kPageBytes;
    const std::size_t latencies_at = round_up(sizeof(DemoProgress), 64);
    const std::size_t order_at = latencies_at + c->pages_ * sizeof(std::uint64_t);
    const std::size_t size = round_up(order_at + c->pages_ * sizeof(std::uint32_t), kPageBytes);
    // Touched here, in the parent: charged to the parent's control group, not to the child's small one.
    void* shared =
        ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (shared == MAP_FAILED) return sys_error("cannot get memory for the figures");
    c->shared_ = {static_cast<std::byte*>(shared), size};
    c->progress_ = new (shared) DemoProgress;
    c->latencies_ = reinterpret_cast<std::uint64_t*>(c->shared_.data() + latencies_at);
    c->order_ = reinterpret_cast<std::uint32_t*>(c->shared_.data() + order_at);
    std::iota(c->order_, c->order_ + c->pages_, 0u);
    std::shuffle(c->order_, c->order_ + c->pages_, std::mt19937_64(now_ns()));
    int ends[2];
    if (::pipe2(ends, O_CLOEXEC) != 0) return sys_error("cannot make a pipe");
    const UniqueFd go_read(ends[0]);
    c->go_.reset(ends[1]);
    const pid_t parent = ::getpid();
    c->pid_ = ::fork();
    if (c->pid_ < 0) return sys_error("cannot start the process that swaps");
    if (c->pid_ == 0) {
        c->go_.reset();
        if (!set_parent_death_signal(SIGKILL, parent)) ::_exit(3);
        c->live(go_read.get());
    }
    auto pidfd = open_pidfd(c->pid_);
    if (!pidfd) return std::move(pidfd).error();
    c->pidfd_ = std::move(*pidfd);
    return c;
}

DemoChild::~DemoChild() {
    if (pid_ > 0) {
        ::kill(pid_, SIGKILL);
        ::waitpid(pid_, nullptr, 0);
    }
    if (!shared_.empty()) ::munmap(shared_.data(), shared_.size());
}

void DemoChild::go() {
    constexpr char kByte = 1;
    [[maybe_unused]] const auto n = ::write(go_.get(), &kByte, 1);
}

void DemoChild::live(int go_fd) {
    wait_for_go(go_fd);
    const std::size_t bytes = pages_ * kPageBytes;
    void* memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) ::_exit(4);
    ::madvise(memory, bytes, MADV_NOHUGEPAGE);  // one fault is to be one page
    const std::span<std::byte> all(static_cast<std::byte*>(memory), bytes);
    fill(all);
    wait_for_go(go_fd);
    read_back(all);
    ::_exit(0);
}

void DemoChild::fill(std::span<std::byte> memory) {
    const std::uint64_t begin = now_ns();
    for (std::uint64_t p = 0; p < pages_; ++p) {
        make_page(p, reinterpret_cast<std::uint64_t*>(memory.data() + p * kPageBytes));
        progress_->pages_filled.store(p + 1, std::memory_order_relaxed);
    }
    progress_->fill_ns.store(now_ns() - begin, std::memory_order_release);
}

void DemoChild::read_back(std::span<std::byte> memory) {
    std::array<std::uint64_t, kPageBytes / sizeof(std::uint64_t)> expected{};
    const std::uint64_t begin = now_ns();
    std::uint64_t faults_before = major_faults();
    for (std::uint64_t i = 0; i < pages_; ++i) {
        const std::uint64_t p = order_[i];
        const std::byte* page = memory.data() + p * kPageBytes;
        const std::uint64_t touch = now_ns();
        [[maybe_unused]] const auto first = *static_cast<const volatile std::byte*>(page);
        const std::uint64_t took = now_ns() - touch;
        const std::uint64_t faults_now = major_faults();
        if (faults_now != faults_before)
            latencies_[progress_->faults.fetch_add(1, std::memory_order_relaxed)] = took;
        faults_before = faults_now;
        make_page(p, expected.data());
        if (std::memcmp(page, expected.data(), kPageBytes) != 0) progress_->pages_wrong.fetch_add(1);
        progress_->pages_read.store(i + 1, std::memory_order_relaxed);
    }
    progress_->read_ns.store(now_ns() - begin, std::memory_order_release);
}

Result<void> DemoChild::wait() {
    int status = 0;
    if (::waitpid(pid_, &status, 0) != pid_) return sys_error("cannot wait for the process that swaps");
    pid_ = 0;
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return {};
    if (WIFSIGNALED(status))
        return Error{Errc::failed, 0,
                     fmt::format("the process that swaps was killed by signal {} ({})", WTERMSIG(status),
                                 ::strsignal(WTERMSIG(status))),
                     WTERMSIG(status) == SIGBUS ? "A page could not be read back from the device" : ""};
    return Error{Errc::failed, 0,
                 fmt::format("the process that swaps ended with status {}", WEXITSTATUS(status))};
}

std::span<const std::uint64_t> DemoChild::latencies_ns() const {
    return {latencies_, progress_->faults.load(std::memory_order_acquire)};
}

}  // namespace vramswap
