// SPDX-License-Identifier: MIT
// The loop frontend: a FUSE file system with one file, never attached to the mount tree, under a direct-I/O
// loop device. The fallback that works on every kernel since 5.8; see docs/frontends.md for when not to use
// it.
#pragma once

#include <memory>
#include <string>

#include "front/frontend.h"

namespace vramswap {

[[nodiscard]] std::unique_ptr<Frontend> make_loop_frontend();

/// Why this machine cannot run it (no /dev/fuse, no loop driver, no permission), with the remedy; empty if it
/// can.
[[nodiscard]] std::string loop_problem();

/// The same two with another folder in the place of /dev: for tests of what happens when device nodes are
/// missing.
[[nodiscard]] std::unique_ptr<Frontend> make_loop_frontend_in(std::string dev_dir);
[[nodiscard]] std::string loop_problem_in(const std::string& dev_dir);

}  // namespace vramswap
