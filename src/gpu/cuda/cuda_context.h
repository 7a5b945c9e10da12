// SPDX-License-Identifier: MIT
// A CUDA context of our own, and making it current for a scope. Owner: its backend, and the HostRegistry for
// as long as memory is registered in it. Control threads (creating and destroying block and allocate);
// ContextScope, get, abandon, is_abandoned: any thread. Errors of create: busy, no_memory, failed.
#pragma once

#include <atomic>
#include <memory>

#include "base/result.h"
#include "gpu/cuda/cuda_api.h"

namespace vramswap::cuda {

/// Makes a context current on this thread for a scope and puts the former one back.
class ContextScope {
  public:
    ContextScope(const CudaApi& api, CuContext context) : api_(api), result_(api.ctx_push_current(context)) {}
    ~ContextScope() {
        CuContext popped = nullptr;
        if (result_ == code::kSuccess) (void)api_.ctx_pop_current(&popped);
    }
    ContextScope(const ContextScope&) = delete;
    ContextScope& operator=(const ContextScope&) = delete;
    [[nodiscard]] CuResult result() const { return result_; }

  private:
    const CudaApi& api_;
    const CuResult result_;
};

/// An own context, destroyed with its last owner. Own rather than the primary one: its flags are ours, and
/// destroying it frees what it holds whoever else uses CUDA in the process. Not current after create().
class OwnedContext {
  public:
    static Result<std::shared_ptr<OwnedContext>> create(std::shared_ptr<const CudaApi> api, CuDevice device);
    OwnedContext(std::shared_ptr<const CudaApi> api, CuContext context)
        : api_(std::move(api)), context_(context) {}
    OwnedContext(const OwnedContext&) = delete;
    OwnedContext& operator=(const OwnedContext&) = delete;
    ~OwnedContext();

    [[nodiscard]] const CudaApi& api() const { return *api_; }
    [[nodiscard]] CuContext get() const { return context_; }
    /// After a loss: leaves it to the end of the process. Nothing may be asked of it any more.
    void abandon() { abandoned_.store(true, std::memory_order_relaxed); }
    [[nodiscard]] bool is_abandoned() const { return abandoned_.load(std::memory_order_relaxed); }

  private:
    const std::shared_ptr<const CudaApi> api_;
    const CuContext context_;
    std::atomic<bool> abandoned_{false};
};

}  // namespace vramswap::cuda
