// SPDX-License-Identifier: MIT
// The part of the guardian in tests of the loop frontend: it starts servers of one device (loop_process.cc),
// keeps what they give it, kills them and starts the next. What the device stores outlives them. Owned by the
// test; one thread, which waits seconds for an answer, and for the end of a process as long as the test's
// alarm(2) allows. It never uses the device itself (see loop_process.cc). Throws std::runtime_error if a
// process does not start.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "base/fd_keeper.h"
#include "base/unique_fd.h"
#include "base/units.h"

namespace vramswap::test {

/// A process of its own that uses a device: one request, or swapon and swapoff.
class LoopUser {
  public:
    /// The arguments as in loop_process.cc.
    explicit LoopUser(const std::vector<std::string>& arguments);
    /// Waits for its end, however long it takes.
    ~LoopUser();
    LoopUser(const LoopUser&) = delete;
    LoopUser& operator=(const LoopUser&) = delete;
    [[nodiscard]] bool is_running();
    /// Waits for its end: 0, its errno, kWrongData, minus the signal, or kNoAnswer after seconds.
    [[nodiscard]] int status();

    static constexpr int kNoAnswer = 1000;

  private:
    pid_t pid_;
};

class LoopGuardian {
  public:
    explicit LoopGuardian(Bytes size);
    /// Kills the server and lets go of the device: who still uses it gets errors.
    ~LoopGuardian();
    LoopGuardian(const LoopGuardian&) = delete;
    LoopGuardian& operator=(const LoopGuardian&) = delete;

    struct Options {
        std::string name{};  ///< empty: the guardian's own
        Bytes size{};        ///< 0: the guardian's own
        std::uint32_t hold =
            0;  ///< from the beginning, requests are held; the answer "held" tells of so many
    };
    /// Starts a server; it takes over what is kept, if anything is. Returns the path, or what it says.
    std::string serve(const Options& options);
    std::string serve() { return serve({}); }
    /// From here on the server accepts requests and does not complete them; wait_answer gives "held" when it
    /// has so many.
    void hold(std::uint32_t requests);
    /// The server's next answer.
    [[nodiscard]] std::string wait_answer();
    /// SIGKILL, and waits for the end of the process.
    void kill();
    /// Closes what is kept. REQUIRES: killed.
    void let_go();
    /// The answer of Frontend::stop: "stopped", and the server has ended; or the error.
    [[nodiscard]] std::string stop();

    /// What is kept.
    [[nodiscard]] const HeldFds& held() const { return held_; }
    /// What the device stores, past the device.
    void store(std::uint64_t offset, std::size_t bytes, std::uint64_t generation);
    [[nodiscard]] bool stores(std::uint64_t offset, std::size_t bytes, std::uint64_t generation) const;
    [[nodiscard]] bool stores_zeros(std::uint64_t offset, std::size_t bytes) const;

  private:
    const Bytes size_;
    const std::string name_;
    const UniqueFd memory_;
    HeldFds held_;
    UniqueFd socket_;
    pid_t server_ = -1;
};

}  // namespace vramswap::test
