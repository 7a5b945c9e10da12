// SPDX-License-Identifier: MIT
// A frontend presents a Target to the kernel as a block device. Control thread only; each frontend runs its
// own I/O threads from start to stop. States: idle -> serving -> stopped; other orders are refused.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/fd_keeper.h"
#include "base/result.h"
#include "front/target.h"

namespace vramswap {

struct FrontendOptions {
    std::string name;           ///< of the device, as the user says; [A-Za-z0-9_-]{1,32}
    std::uint32_t threads = 0;  ///< I/O threads; 0 = chosen by the frontend
    /// Keeps what take_over needs, under keys that begin with "front-". Null: nobody takes over. Must outlive
    /// the frontend.
    FdKeeper* keeper = nullptr;
};

/// Sum over all I/O threads since start.
struct FrontendCounters {
    std::uint64_t reads = 0, writes = 0, discards = 0, errors = 0;
    std::uint64_t bytes_read = 0, bytes_written = 0;
};

class Frontend {
  public:
    virtual ~Frontend() = default;
    Frontend(const Frontend&) = delete;
    Frontend& operator=(const Frontend&) = delete;

    /// Creates the block device and serves it; returns its path ("/dev/loop3"). On failure nothing stays
    /// behind. The target must outlive stop(). Errors: unavailable (kernel or module missing, with the
    /// remedy), busy, failed.
    Result<std::string> start(Target& target, const FrontendOptions& options);
    /// Goes on with the device of a process that has died and whose options these were, with what was kept of
    /// it; returns its path. Requests that it has not answered are carried out again. On failure the device
    /// stays as it is. Errors: unavailable (this frontend or kernel cannot), failed.
    Result<std::string> take_over(Target& target, const FrontendOptions& options, const HeldFds& held);
    /// To be called every second or so while it serves.
    void maintain() {
        if (state_ == State::serving) do_maintain();
    }
    /// Removes the device after every request has completed. REQUIRES: no longer swap, not mounted; else busy
    /// and the device goes on serving. Idempotent after success.
    Result<void> stop();
    [[nodiscard]] std::string_view kind() const { return do_kind(); }
    [[nodiscard]] FrontendCounters counters() const { return do_counters(); }

  protected:
    Frontend() = default;
    virtual Result<std::string> do_start(Target& target, const FrontendOptions& options) = 0;
    virtual Result<std::string> do_take_over(Target& target, const FrontendOptions& options,
                                             const HeldFds& held);
    virtual void do_maintain() {}
    virtual Result<void> do_stop() = 0;
    [[nodiscard]] virtual std::string_view do_kind() const = 0;
    [[nodiscard]] virtual FrontendCounters do_counters() const = 0;

  private:
    enum class State : std::uint8_t { idle, serving, stopped };
    State state_ = State::idle;
};

/// Whether this machine can run a frontend, for `auto` and doctor.
struct FrontendReport {
    std::string kind;     ///< "loop"
    std::string problem;  ///< why not, with the remedy; empty if it can
};

/// All frontends of this binary, best first.
[[nodiscard]] std::vector<FrontendReport> survey_frontends();

/// The device at `path` that was the device `name`, whose process has died and which would wait for another:
/// its I/O fails from now on. Calls `ended` when that is so, or when there is nothing to do; returns when the
/// device needs nobody any more, which for ublk is when its last user has gone. Errors: failed; then `ended`
/// was not called.
Result<void> abandon_device(const std::string& path, const std::string& name,
                            const std::function<void()>& ended);

/// Makes the named one; "auto" takes the best that survey_frontends finds usable. Errors: usage (no such
/// name), unavailable (its problem).
Result<std::unique_ptr<Frontend>> make_frontend(std::string_view kind);

}  // namespace vramswap
