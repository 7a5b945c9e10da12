// SPDX-License-Identifier: MIT
#include "base/result.h"

#include <cerrno>
#include <system_error>

namespace vramswap {

std::string Error::text() const {
    std::string out = message;
    if (sys != 0) out += ": " + std::generic_category().message(sys);
    if (!hint.empty()) out += ". " + hint;
    return out;
}

Error Error::in(std::string_view context) && {
    message = std::string(context) + ": " + message;
    return std::move(*this);
}

Error sys_error(std::string message, std::string hint) {
    const int saved = errno;
    const Errc code = saved == ENOMEM                                           ? Errc::no_memory
                      : saved == EBUSY                                          ? Errc::busy
                      : saved == EEXIST                                         ? Errc::exists
                      : (saved == ENOSYS || saved == ENODEV || saved == ENOENT) ? Errc::unavailable
                                                                                : Errc::failed;
    return Error{code, saved, std::move(message), std::move(hint)};
}

}  // namespace vramswap
