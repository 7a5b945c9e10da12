// SPDX-License-Identifier: MIT
// An FdKeeper within the test's own process.
#pragma once

#include <string>
#include <string_view>

#include "base/fd_keeper.h"

namespace vramswap::test {

/// Keeps duplicates in this process. `fails_at`: the n-th keep fails.
class LocalKeeper final : public FdKeeper {
  public:
    explicit LocalKeeper(unsigned fails_at = 0) : fails_at_(fails_at) {}
    Result<void> keep(std::string_view key, const UniqueFd& fd) override {
        if (++keeps_ == fails_at_) return Error{Errc::failed, 0, "injected: nothing is kept"};
        held_[std::string(key)] = fd.dup();
        return {};
    }
    Result<void> drop(std::string_view key) override {
        held_.erase(std::string(key));
        return {};
    }
    [[nodiscard]] const HeldFds& held() const { return held_; }
    [[nodiscard]] unsigned keeps() const { return keeps_; }

  private:
    const unsigned fails_at_;
    unsigned keeps_ = 0;
    HeldFds held_;
};

}  // namespace vramswap::test
