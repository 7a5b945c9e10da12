// SPDX-License-Identifier: MIT
// Yields: who wants how much VRAM given back, by `vramswap yield`. One yield by hand, which lasts until it is
// ended, and one for each process that holds one, which ends with that process: a command that was killed
// leaves no VRAM yielded. The least counts. Owned by the worker, control thread only; nothing blocks.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"
#include "base/units.h"
#include "sys/process_end.h"

namespace vramswap {

class Yields {
  public:
    /// Each takes a descriptor.
    static constexpr std::size_t kHoldersMax = 64;

    Yields();

    /// No more than `vram`, of one GPU (its selector) or of all, instead of what the same holder wanted of it
    /// before. Holder 0: by hand. Errors: not_found (the process has ended), busy (too many), failed.
    Result<void> begin(Bytes vram, pid_t holder, const std::string& gpu = {});
    /// All of this holder. Nothing happens if there is none.
    void end(pid_t holder);
    /// Ends those whose process has ended. Call it when fd() is readable, and once a second for processes
    /// that cannot be polled. True if some were.
    bool end_of_the_dead();

    /// Readable when a holder has ended; for poll(2). -1: call end_of_the_dead now and then.
    [[nodiscard]] int fd() const { return epoll_.get(); }
    /// Of all GPUs, or of what is wanted of this one alone. None: nobody wants anything.
    [[nodiscard]] std::optional<Bytes> vram_max(const std::string& gpu = {}) const;
    /// visit(vram, holder, gpu) for each, as begin takes them.
    template <typename Visit>
    void for_each(Visit visit) const {
        for (const Yield& one : yields_) visit(one.vram, one.holder, one.gpu);
    }
    /// "yield", "yield 2G of cuda:1", "yield for process 4711": the one that counts, of all GPUs or of this
    /// one alone; empty if there is none.
    [[nodiscard]] std::string text(const std::string& gpu = {}) const;

  private:
    struct Yield {
        Bytes vram{};
        pid_t holder = 0;
        std::string gpu;
        std::optional<ProcessEnd> process{};  ///< of the holder; none by hand
    };
    [[nodiscard]] const Yield* least(const std::string& gpu) const;
    Result<void> add(Bytes vram, pid_t holder, const std::string& gpu);

    UniqueFd epoll_;
    std::vector<Yield> yields_;
};

}  // namespace vramswap
