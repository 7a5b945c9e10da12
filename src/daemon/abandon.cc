// SPDX-License-Identifier: MIT
#include <fmt/format.h>

#include "ctl/messages.h"
#include "daemon/roles.h"
#include "front/frontend.h"

namespace vramswap {

int run_abandon(const std::vector<std::string>& arguments) {
    const auto ended = arguments.size() == 2
                           ? abandon_device(arguments[0], arguments[1])
                           : Result<void>(Error{Errc::usage, 0, "it takes a path and a name"});
    fmt::print("{}", ended ? "done" : error_json(ended.error()));
    return ended ? 0 : 1;
}

}  // namespace vramswap
