// SPDX-License-Identifier: MIT
// HostRegistry: the host memory that is registered with the CUDA driver, and by whom. The driver registers
// for the whole process and refuses the same memory a second time, whichever GPU asks; but what is registered
// is pinned for all contexts, later ones too (CU_MEMHOSTREGISTER_PORTABLE). So the backends of several GPUs
// share a registration: the first makes it, further ones are counted, the last ends it.
//
// To the driver it belongs to the context that it was made in and ends with that, whatever others copy by
// then. It cannot be handed on: it would have to end before another context could make it anew. So it keeps
// its context: that of a backend that is destroyed before the others lives on, with the VRAM a bare one takes
// (100 to 550 MiB), until the last of them is through with the memory.
//
// After a loss nothing is asked of a context, but its user is counted out as any other. The last user ends a
// registration in its own context if that in which it was made is lost. If both are lost it stays to the end
// of the process; the driver then refuses that memory (712), not we.
//
// Threads: any control thread; calls block, allocate and make ioctls. Users are told apart by their contexts,
// and take back or remove_all() what they added while these live.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/mutex.h"
#include "gpu/cuda/cuda_api.h"
#include "gpu/cuda/cuda_context.h"

namespace vramswap::cuda {

/// Host memory is registered in pieces of this size: larger ones make the driver allocate tables of more than
/// 2 MiB, compacting memory while it holds the lock that every GPU client needs.
inline constexpr std::size_t kRegisterPieceBytes = std::size_t{256} << 20;

class HostRegistry {
  public:
    /// The only one, as the driver's own: one for each owner of backends would not know of the others'.
    static HostRegistry& of_process();

    /// All of the memory or nothing. kHostMemoryAlreadyRegistered if this user has it, or anybody has memory
    /// that overlaps it without being the same; otherwise what the driver says, of this user's context.
    [[nodiscard]] CuResult add(const std::shared_ptr<OwnedContext>& user, std::span<std::byte> memory);
    /// REQUIRES: nothing that this user copies touches the memory. kHostMemoryNotRegistered if the user does
    /// not have it as such a range; otherwise what the driver says, perhaps of another user's context. The
    /// user has it no longer in any case.
    CuResult remove(const OwnedContext& user, std::span<std::byte> memory);
    /// remove() of all that the user has.
    void remove_all(const OwnedContext& user);

  private:
    struct Registration {
        std::span<std::byte> memory;
        std::shared_ptr<const OwnedContext> context;  ///< it was made in; perhaps of a user who is gone
        std::vector<const OwnedContext*> users;
    };
    [[nodiscard]] std::optional<std::span<std::byte>> any_of(const OwnedContext& user);

    // Held during calls of the driver, unlike a backend's: whoever comes second must find the registration
    // made, or ended. Copies do not need it.
    Mutex mutex_;
    std::vector<Registration> registrations_ VS_GUARDED_BY(mutex_);
};

}  // namespace vramswap::cuda
