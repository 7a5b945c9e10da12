// SPDX-License-Identifier: MIT
#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>

#include "base/unique_fd.h"
#include "ctl/messages.h"
#include "daemon/roles.h"
#include "front/frontend.h"

namespace vramswap {
namespace {

/// Whoever started this process has heard enough.
void close_output() {
    std::fflush(stdout);
    const UniqueFd null(::open("/dev/null", O_WRONLY | O_CLOEXEC));
    ::dup2(null.get(), STDOUT_FILENO);
}

}  // namespace

int run_abandon(const std::vector<std::string>& arguments) {
    if (arguments.size() != 2) return 2;
    const auto done = abandon_device(arguments[0], arguments[1], [] {
        fmt::print("done");
        close_output();
    });
    if (!done) fmt::print("{}", error_json(done.error()));
    return done ? 0 : 1;
}

}  // namespace vramswap
