// SPDX-License-Identifier: MIT
// One file of fixed size in a FUSE file system of its own, whose content is a Target. The file system is
// never attached to the mount tree: the one way to the file is the descriptor that is opened here. Owned by
// LoopFrontend. Control thread only; runs its own I/O threads from serve to destruction. May block and
// allocate. Errors: unavailable (no FUSE, no permission; with the remedy), no_memory, failed.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"
#include "base/units.h"
#include "front/frontend.h"
#include "front/loop/io_thread.h"
#include "front/target.h"

struct fuse_session;

namespace vramswap {

struct FuseFileOptions {
    std::string dev_dir;        ///< "/dev"
    std::string file_name;      ///< of the one file, no '/'
    std::uint32_t threads = 1;  ///< I/O threads
    int fd_above = 2;           ///< the FUSE descriptor gets a higher number than this; see loop_device.h
};

class FuseFile {
  public:
    /// Makes the file system, starts its threads and opens the file. On failure nothing stays behind.
    static Result<std::unique_ptr<FuseFile>> serve(Target& target, const FuseFileOptions& options);
    /// Goes on serving the file system of a process that has died, with a duplicate of its `connection`.
    /// Requests that it has read and not answered come again; handle() is -1. On failure the file system
    /// stays as it is, as long as `connection` does. Errors: unavailable (the kernel cannot), failed.
    static Result<std::unique_ptr<FuseFile>> take_over(Target& target, const FuseFileOptions& options,
                                                       const UniqueFd& connection);
    /// Ends the threads, then the connection, unless somebody else holds a duplicate: who still has the file
    /// open gets errors.
    ~FuseFile();
    FuseFile(const FuseFile&) = delete;
    FuseFile& operator=(const FuseFile&) = delete;

    /// The file, O_RDWR | O_DIRECT; -1 after close_handle.
    [[nodiscard]] int handle() const { return handle_.get(); }
    /// Closes our descriptor of the file. The file system goes when the last other holder, the loop driver,
    /// does.
    void close_handle() { handle_.reset(); }
    /// Whether this kernel lets another process take over. REQUIRES: no request is in flight (it would be
    /// carried out twice).
    [[nodiscard]] bool can_be_taken_over() const;
    /// A duplicate of the FUSE descriptor, with a higher number. While one is open, in whatever process, the
    /// requests of a dead process wait for a successor.
    [[nodiscard]] Result<UniqueFd> duplicate_connection() const;
    [[nodiscard]] FrontendCounters counters() const;

    /// For the handlers of requests: any I/O thread.
    [[nodiscard]] const std::string& name() const { return name_; }
    [[nodiscard]] Bytes size() const { return size_; }

  private:
    struct SessionDeleter {
        void operator()(fuse_session* session) const;
    };

    FuseFile(Target& target, std::string name)
        : target_(target), name_(std::move(name)), size_(target.size()) {}
    static Result<std::unique_ptr<FuseFile>> make(Target& target, const FuseFileOptions& options,
                                                  const UniqueFd& connection);
    Result<void> make_session(UniqueFd connection);
    Result<void> replay_init();
    Result<void> start_threads(std::uint32_t count);
    Result<void> open_handle(int mount);

    // Constant while threads run.
    Target& target_;
    const std::string name_;
    const Bytes size_;
    std::unique_ptr<StopSignal> stop_;
    std::unique_ptr<fuse_session, SessionDeleter> session_;  // owns the FUSE descriptor
    std::vector<std::unique_ptr<IoThread>> threads_;
    // Control thread.
    UniqueFd handle_;
};

}  // namespace vramswap
