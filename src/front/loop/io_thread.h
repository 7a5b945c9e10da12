// SPDX-License-Identifier: MIT
// One I/O thread of the loop frontend: reads requests from the FUSE descriptor into its own locked buffer,
// has libfuse decode them, and carries them out one at a time on its own TargetQueue. Owned by FuseFile.
// Threads: make, start, join and destruction: control thread. read, write, discard, read_buffer: the thread
// itself, from libfuse's handlers, through current(). add_counters: control thread, at any time.
// Our code on the thread does not allocate, throw, log or touch unlocked memory. libfuse callocs and frees
// one small object for each request, which its interface does not let us avoid; each thread prepares its
// heap for that before it serves.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include "base/locked_thread.h"
#include "base/result.h"
#include "base/unique_fd.h"
#include "front/frontend.h"
#include "front/io_parts.h"
#include "front/target.h"

struct fuse_session;

namespace vramswap {

/// Largest read or write. 256 pages is what FUSE could carry at most before 6.13 (FUSE_MAX_MAX_PAGES in
/// fs/fuse/fuse_i.h), and the default of fs.fuse.max_pages_limit since.
inline constexpr std::size_t kFuseTransferBytes = 1u << 20;

class IoThread {
  public:
    /// What all threads of a file share; outlives them.
    struct Shared {
        Target& target;
        fuse_session* session;
        int fuse_fd;  ///< non-blocking, and bound to a superblock: epoll(7) never wakes for an unbound one
        const StopSignal& stop;
    };

    static Result<std::unique_ptr<IoThread>> make(const Shared& shared);
    /// REQUIRES: joined, or never started.
    ~IoThread() = default;
    IoThread(const IoThread&) = delete;
    IoThread& operator=(const IoThread&) = delete;

    /// Starts the thread "vs-loop-NUMBER" with all signals blocked.
    Result<void> start(std::uint32_t number);
    /// Waits for its end, which comes after StopSignal::request or with the end of the connection.
    void join();
    void add_counters(FrontendCounters& sum) const { counters_.add_to(sum); }

    /// The IoThread that runs the caller. REQUIRES: called on an I/O thread.
    [[nodiscard]] static IoThread& current();
    /// False on any thread that is not an IoThread.
    [[nodiscard]] static bool on_io_thread();

    /// Where read() puts data: kFuseTransferBytes, page-aligned.
    [[nodiscard]] std::span<std::byte> read_buffer() const;
    /// The final status, or retry if the target had no room until the thread was told to stop: the frontend
    /// is torn down under a device in use. Such a request is not to be answered: it is a successor's, or
    /// fails with the end of the connection.
    [[nodiscard]] IoStatus read(std::uint64_t offset, std::size_t bytes);
    /// The same. REQUIRES: `data` lies in the request that this thread is processing.
    [[nodiscard]] IoStatus write(std::uint64_t offset, std::span<std::byte> data);
    [[nodiscard]] IoStatus discard(std::uint64_t offset, std::uint64_t bytes);

  private:
    enum class Received : std::uint8_t { request, nothing, again, disconnected };

    explicit IoThread(const Shared& shared) : shared_(shared) {}
    Result<void> watch(int fd, std::uint32_t events);
    static void main(void* self);
    void serve();
    [[nodiscard]] std::span<std::byte> receive_buffer() const;
    Received receive(std::size_t& size);
    void sleep_until_request();
    IoStatus carry_out(BlockRequest& request);
    void finish(BlockRequest& request);
    void wait_for_target();

    // Constant after make.
    const Shared shared_;
    std::unique_ptr<IoMemory> memory_;
    std::unique_ptr<TargetQueue> queue_;
    UniqueFd epoll_;
    // Control thread.
    LockedThread thread_;
    // Self-synchronised.
    IoCounters counters_;
};

}  // namespace vramswap
