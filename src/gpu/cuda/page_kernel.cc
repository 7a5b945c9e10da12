// SPDX-License-Identifier: MIT
#include "gpu/cuda/page_kernel.h"

#include <fmt/format.h>

namespace vramswap::cuda {
namespace {

/// What a kernel for sm_50 can take (CUDA C++ Programming Guide, "Function parameters").
constexpr std::size_t kParameterBytesMax = 4096;

static_assert(sizeof(PagePair) == 16);
static_assert(sizeof(PageTell) == 16 && offsetof(PageTell, value) == 8);
static_assert(sizeof(PagePairs) + sizeof(PageKernelEnd) <= kParameterBytesMax);

/// {0}: name, {1}: bytes of pairs, {2}: bytes of tells. %rd4 and %rd5 are the page's addresses, %rd7 and %rd8
/// the thread's. One thread's membar.sys after the barrier covers what the whole block has written; the one
/// after the count covers what all blocks have written, for all words. %rd2 and %r6 walk through the tells.
constexpr const char* kKernel = R"(
.visible .entry {0}(.param .align 8 .b8 pairs[{1}], .param .align 8 .b8 tells[{2}], .param .u64 counter, .param .u32 count)
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
    ld.param.u32 %r6, [count];
    mov.b64 %rd2, tells;
TELL:
    ld.param.u64 %rd10, [%rd2];
    ld.param.u32 %r7, [%rd2+8];
    st.volatile.global.u32 [%rd10], %r7;
    add.s64 %rd2, %rd2, 16;
    sub.u32 %r6, %r6, 1;
    setp.ne.u32 %p, %r6, 0;
    @%p bra TELL;
END:
    ret;
}}
)";

std::string kernel(const char* name, std::size_t pages) {
    return fmt::format(kKernel, name, pages * sizeof(PagePair), kPageKernelTells * sizeof(PageTell));
}

}  // namespace

std::string page_kernels_ptx() {
    return ".version 4.0\n.target sm_50\n.address_size 64\n" +
           kernel(kPageKernelSmallName, kPageKernelSmall) + kernel(kPageKernelLargeName, kPageKernelLarge);
}

CuResult PageKernels::launch(const CudaApi& api, CuStream stream, const PagePairs& pairs, std::size_t pages,
                             const PageKernelEnd& end) const {
    // The driver's argument is an array of pointers to what it only reads.
    const void* parameters[] = {pairs.data(), end.tells.data(), &end.counter, &end.count};
    return api.launch_kernel(pages <= kPageKernelSmall ? small : large, static_cast<unsigned>(pages), 1, 1,
                             kPageKernelThreads, 1, 1, 0, stream, const_cast<void**>(parameters), nullptr);
}

}  // namespace vramswap::cuda
