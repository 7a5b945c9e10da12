// SPDX-License-Identifier: MIT
// Starts this very program again in another role (guardian, worker, probe). Control threads; forks, so keep
// it away from processes that use a GPU library (CUDA does not survive fork, and must not be used in the
// child before exec).
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"

namespace vramswap {

enum class SpawnSession : std::uint8_t {
    same,      ///< child of the terminal's job
    detached,  ///< own session, so that Ctrl-C and logout do not reach it
};

struct SpawnRequest {
    std::vector<std::string> arguments;  ///< after the program's name
    std::vector<int> inherit;  ///< become descriptors 3, 4, 5… of the child; all others but 0-2 are closed
    SpawnSession session = SpawnSession::same;
    int stdout_fd = -1;  ///< becomes the child's standard output; -1 = the caller's
};

/// Forks and executes /proc/self/exe. Signals are unblocked and default in the child. Errors: failed.
Result<pid_t> spawn_self(const SpawnRequest& request);

/// Runs this program with the arguments and returns what it wrote to standard output. Errors: failed, if it
/// could not be started, wrote more than 4 MiB, ran longer than timeout_ms (it is killed then) or died by a
/// signal; exit statuses other than 0 are no error if there is output.
Result<std::string> run_self(const std::vector<std::string>& arguments, int timeout_ms);

/// Starts this program with the arguments, in a session of its own, and returns what it writes to standard
/// output until it closes that. It is not waited for. Errors: failed, as run_self.
Result<std::string> start_self(const std::vector<std::string>& arguments, int timeout_ms);

/// A sealed memfd with the text at its start, to inherit. Errors: failed.
Result<UniqueFd> text_in_memfd(const char* name, std::string_view text);
/// All that a memfd or pipe holds, at most 1 MiB.
Result<std::string> read_all(int fd);

}  // namespace vramswap
