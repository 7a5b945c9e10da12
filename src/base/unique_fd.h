// SPDX-License-Identifier: MIT
// UniqueFd: owns one file descriptor, move-only. Closing happens on destruction; errors of close(2) are
// ignored on purpose (Linux has released the number by then). No implicit conversion to int.
#pragma once

#include <utility>

namespace vramswap {

class UniqueFd {
  public:
    UniqueFd() = default;
    explicit UniqueFd(int fd) : fd_(fd) {}
    UniqueFd(UniqueFd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
    UniqueFd& operator=(UniqueFd&& other) noexcept {
        if (this != &other) reset(std::exchange(other.fd_, -1));
        return *this;
    }
    UniqueFd(const UniqueFd&) = delete;
    UniqueFd& operator=(const UniqueFd&) = delete;
    ~UniqueFd() { reset(); }

    [[nodiscard]] int get() const { return fd_; }
    [[nodiscard]] bool valid() const { return fd_ >= 0; }
    explicit operator bool() const { return valid(); }
    /// Gives the descriptor away; the caller closes it.
    [[nodiscard]] int release() { return std::exchange(fd_, -1); }
    /// Closes what is held and takes `fd`.
    void reset(int fd = -1);
    /// A duplicate with close-on-exec; invalid if dup failed (errno says why).
    [[nodiscard]] UniqueFd dup() const;

  private:
    int fd_ = -1;
};

}  // namespace vramswap
