// SPDX-License-Identifier: MIT
#include "gpu/cuda/page_kernel.h"

#include <fmt/format.h>

namespace vramswap::cuda {
namespace {

static_assert(sizeof(PagePair) == 16);

/// {0}: name, {1}: bytes of parameters. Registers: %rd4 and %rd5 the page's addresses, %rd7 and %rd8 the
/// thread's.
constexpr const char* kKernel = R"(
.visible .entry {0}(.param .align 8 .b8 pairs[{1}])
{{
    .reg .b32 %r<6>;
    .reg .b64 %rd<9>;
    mov.u32 %r1, %ctaid.x;
    mul.wide.u32 %rd1, %r1, 16;
    mov.b64 %rd2, pairs;
    add.s64 %rd3, %rd2, %rd1;
    ld.param.u64 %rd4, [%rd3];
    ld.param.u64 %rd5, [%rd3+8];
    mov.u32 %r2, %tid.x;
    mul.wide.u32 %rd6, %r2, 16;
    add.s64 %rd7, %rd4, %rd6;
    add.s64 %rd8, %rd5, %rd6;
    ld.global.cs.v4.u32 {{%r2, %r3, %r4, %r5}}, [%rd8];
    st.global.cs.v4.u32 [%rd7], {{%r2, %r3, %r4, %r5}};
    ret;
}}
)";

}  // namespace

std::string page_kernels_ptx() {
    return ".version 4.0\n.target sm_50\n.address_size 64\n" +
           fmt::format(kKernel, kPageKernelSmallName, kPageKernelSmall * sizeof(PagePair)) +
           fmt::format(kKernel, kPageKernelLargeName, kPageKernelLarge * sizeof(PagePair));
}

}  // namespace vramswap::cuda
