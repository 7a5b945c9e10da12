// SPDX-License-Identifier: MIT
#include "gpu/cuda/cuda_context.h"

#include <utility>

namespace vramswap::cuda {

Result<std::shared_ptr<OwnedContext>> OwnedContext::create(std::shared_ptr<const CudaApi> api,
                                                           CuDevice device) {
    CuContext context = nullptr;
    // Waiting inside the driver must not burn a CPU; the I/O path never waits there.
    const CuResult result = api->ctx_create(&context, kContextSchedBlockingSync, device);
    if (result != code::kSuccess) return failure(*api, result, "cuCtxCreate");
    CuContext popped = nullptr;
    (void)api->ctx_pop_current(&popped);
    return std::make_shared<OwnedContext>(std::move(api), context);
}

OwnedContext::~OwnedContext() {
    if (!is_abandoned()) (void)api_->ctx_destroy(context_);
}

}  // namespace vramswap::cuda
