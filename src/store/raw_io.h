// SPDX-License-Identifier: MIT
// RawIo: how the bytes of a SpillQueue get to its files and back: several operations at once, which end in
// any order. By io_uring, or by threads where that may not be used; tests have others. Owned by its
// SpillQueue; one thread at a time, and the one that starts an operation stays until it has ended. Making one
// blocks and allocates, start and reap do neither.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "base/result.h"

namespace vramswap {

class RawIo {
  public:
    enum class Op : std::uint8_t { read, write };
    struct Operation {
        Op op = Op::read;
        std::uint32_t tag = 0;  ///< the caller's, told again when it has ended
        std::uint32_t bytes = 0;
        std::uint32_t file = 0;    ///< which of its files
        std::uint64_t offset = 0;  ///< in the file
        std::byte* memory = nullptr;
    };
    struct Done {
        std::uint32_t tag = 0;
        std::int32_t result = 0;  ///< bytes moved, maybe fewer than asked for; or -errno
    };

    /// REQUIRES: all that was started has been reaped.
    virtual ~RawIo() = default;
    RawIo(const RawIo&) = delete;
    RawIo& operator=(const RawIo&) = delete;

    /// REQUIRES: fewer than the depth it was made with are in flight.
    virtual void start(const Operation& operation) = 0;
    /// What has ended since; how many. Never waits.
    virtual std::size_t reap(std::span<Done> done) = 0;
    /// Readable if something has ended since the last reap, or may have.
    [[nodiscard]] virtual int event_fd() const = 0;

  protected:
    RawIo() = default;
};

/// What RawIo::event_fd is: an eventfd of its own, which reap empties, or another's, which is only written
/// to. A thread that waits for several things has one for all of them, and empties it before it looks at
/// each.
inline constexpr int kOwnEvent = -1;

/// The descriptors `fds` and `event_fd` must live as long. Error unavailable: the kernel has no io_uring or
/// does not allow it (kernel.io_uring_disabled, a seccomp filter of a container). `busy_fd`: held open by the
/// kernel until the last operation has ended, also when this process is long dead; kNotTold: nobody is to
/// know.
inline constexpr int kNotTold = -1;
Result<std::unique_ptr<RawIo>> make_uring_io(std::span<const int> fds, std::uint32_t depth, int event_fd,
                                             int busy_fd);
/// With a few threads that read and write; slower, works everywhere. Error failed: no threads.
Result<std::unique_ptr<RawIo>> make_thread_io(std::span<const int> fds, std::uint32_t depth, int event_fd);

/// Empties an eventfd.
void empty_event(int fd);

}  // namespace vramswap
