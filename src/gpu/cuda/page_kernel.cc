// SPDX-License-Identifier: MIT
#include "gpu/cuda/page_kernel.h"

#include <fmt/format.h>

namespace vramswap::cuda {
namespace {

static_assert(sizeof(PagePair) == 16);

/// {0}: name, {1}: bytes of pairs. %rd4 and %rd5 are the page's addresses, %rd7 and %rd8 the thread's. One
/// thread's membar.sys after the barrier covers what the whole block has written.
constexpr const char* kKernel = R"(
.visible .entry {0}(.param .align 8 .b8 pairs[{1}], .param .u64 counter, .param .u64 word, .param .u32 ticket)
{{
    .reg .pred %p;
    .reg .b32 %r<9>;
    .reg .b64 %rd<11>;
    mov.u32 %r1, %ctaid.x;
    mul.wide.u32 %rd1, %r1, 16;
    mov.b64 %rd2, pairs;
    add.s64 %rd3, %rd2, %rd1;
    ld.param.u64 %rd4, [%rd3];
    ld.param.u64 %rd5, [%rd3+8];
    mov.u32 %r8, %tid.x;
    mul.wide.u32 %rd6, %r8, 16;
    add.s64 %rd7, %rd4, %rd6;
    add.s64 %rd8, %rd5, %rd6;
    ld.global.cs.v4.u32 {{%r2, %r3, %r4, %r5}}, [%rd8];
    st.global.cs.v4.u32 [%rd7], {{%r2, %r3, %r4, %r5}};
    ld.param.u64 %rd9, [counter];
    setp.eq.u64 %p, %rd9, 0;
    @%p bra END;
    bar.sync 0;
    setp.ne.u32 %p, %r8, 0;
    @%p bra END;
    membar.sys;
    mov.u32 %r6, %nctaid.x;
    sub.u32 %r6, %r6, 1;
    atom.global.inc.u32 %r7, [%rd9], %r6;
    setp.ne.u32 %p, %r7, %r6;
    @%p bra END;
    membar.sys;
    ld.param.u64 %rd10, [word];
    ld.param.u32 %r7, [ticket];
    st.volatile.global.u32 [%rd10], %r7;
END:
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
