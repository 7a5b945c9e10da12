// SPDX-License-Identifier: MIT
// Preloaded into vramswap in the guest: the simulated GPU's memory comes from the huge pages set aside at
// boot, not from the guest's RAM. Otherwise a page swapped out would take as much RAM as it frees, and there
// could be no real pressure.
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <string_view>

extern "C" int memfd_create(const char* name, unsigned flags) noexcept {
    if (std::string_view(name) == "vramswap-sim-vram") flags |= MFD_HUGETLB;
    return static_cast<int>(::syscall(SYS_memfd_create, name, flags));
}
