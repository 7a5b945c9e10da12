// SPDX-License-Identifier: MIT
// Takes CAP_SYS_ADMIN away from the calling thread for a scope: for tests of what is said without it.
#pragma once

#include <linux/capability.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cstdint>

namespace vramswap::test {

class WithoutSysAdmin {
  public:
    WithoutSysAdmin() : done_(get() && set(sets_[0].effective & ~CAP_TO_MASK(CAP_SYS_ADMIN))) {}
    ~WithoutSysAdmin() {
        if (done_) set(before_);
    }
    WithoutSysAdmin(const WithoutSysAdmin&) = delete;
    WithoutSysAdmin& operator=(const WithoutSysAdmin&) = delete;
    [[nodiscard]] bool done() const { return done_; }

  private:
    bool get() {
        const bool got = ::syscall(SYS_capget, &header_, sets_.data()) == 0;
        before_ = sets_[0].effective;
        return got;
    }
    bool set(std::uint32_t effective) {
        sets_[0].effective = effective;
        return ::syscall(SYS_capset, &header_, sets_.data()) == 0;
    }
    __user_cap_header_struct header_{_LINUX_CAPABILITY_VERSION_3, 0};
    std::array<__user_cap_data_struct, _LINUX_CAPABILITY_U32S_3> sets_{};
    std::uint32_t before_ = 0;
    bool done_;
};

}  // namespace vramswap::test
