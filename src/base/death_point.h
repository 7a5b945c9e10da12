// SPDX-License-Identifier: MIT
// Named places where a test lets the process die: before and after what others must find whole. In the
// product they are nothing. Built with VRAMSWAP_DEATH_POINTS, a test's function of this name decides
// (tests/model/store_deaths.cc).
#pragma once

namespace vramswap {

#ifdef VRAMSWAP_DEATH_POINTS
void death_point(const char* name);
#else
constexpr void death_point(const char*) {}
#endif

}  // namespace vramswap
