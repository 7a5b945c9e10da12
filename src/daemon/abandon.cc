// SPDX-License-Identifier: MIT
#include <fmt/format.h>

#include "ctl/messages.h"
#include "daemon/roles.h"
#include "front/frontend.h"

namespace vramswap {

int run_abandon(const std::vector<std::string>& arguments) {
    const auto ended = arguments.size() == 1 ? abandon_device(arguments[0])
                                             : Result<void>(Error{Errc::usage, 0, "it takes a path"});
    fmt::print("{}", ended ? "done" : error_json(ended.error()));
    return ended ? 0 : 1;
}

}  // namespace vramswap
