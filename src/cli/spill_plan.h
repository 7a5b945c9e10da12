// SPDX-License-Identifier: MIT
// The spill as a user asks for it (`up --spill`), and what comes of it on this machine. Values and functions
// without state; commands only, single-threaded. Looking at a place runs a process of its own and blocks; it
// leaves nothing.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>

#include "base/result.h"
#include "base/units.h"
#include "ctl/messages.h"

namespace vramswap {

/// What it means to have none; for a sentence's end.
inline constexpr const char* kWithoutSpill = "VRAM that holds pages cannot be given back";

/// Where the spill is unless the user says otherwise: $VRAMSWAP_STATE_DIR for tests, else /var/lib/vramswap.
[[nodiscard]] std::string default_spill_dir();

struct SpillWish {
    enum class Kind : std::uint8_t { automatic, none, place };
    Kind kind = Kind::automatic;
    std::string path{};  ///< of a place: a directory or block device
    std::optional<Bytes> size{};
};
/// Reads "auto", "none", "/path", "/path:20G". Errors: usage.
[[nodiscard]] Result<SpillWish> parse_spill(const std::string& text);

struct SpillPlan {
    std::string path{};           ///< empty: none
    std::optional<Bytes> size{};  ///< as the user set it
    Bytes room{};                 ///< on the disk now
    std::string remark{};         ///< what users should know though it works
    std::string why_none{};       ///< empty if none was asked for

    [[nodiscard]] bool exists() const { return !path.empty(); }
    /// What it can hold with the room that there is now.
    [[nodiscard]] Bytes capacity() const { return size ? std::min(*size, room) : room; }
};

/// Tries what the worker would do there. Errors: those of the place, which tell what is not fit and what to
/// do; never not_found for the default one, whose directory `up` makes.
[[nodiscard]] Result<ProbedSpill> probe_spill(const std::string& path);

/// What `automatic` cannot have is none, with the reason; what a user named and cannot be had is an error:
/// usage, not_found, busy, unavailable, no_memory (no room for a segment, or for the size asked for), failed.
[[nodiscard]] Result<SpillPlan> plan_spill(const SpillWish& wish, Bytes segment);

/// The default directory, while a device comes up: made if it is missing, and removed again with this object
/// unless keep() was called.
class SpillDirectory {
  public:
    SpillDirectory() = default;
    ~SpillDirectory();
    SpillDirectory(const SpillDirectory&) = delete;
    SpillDirectory& operator=(const SpillDirectory&) = delete;
    /// Nothing to do for another path. Errors: failed.
    Result<void> make(const std::string& path);
    void keep() { made_.clear(); }

  private:
    std::string made_;
};

}  // namespace vramswap
