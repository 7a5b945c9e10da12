// SPDX-License-Identifier: MIT
#include "gpu/cuda/host_registry.h"

#include <algorithm>
#include <utility>

namespace vramswap::cuda {
namespace {

bool same(std::span<const std::byte> a, std::span<const std::byte> b) {
    return a.data() == b.data() && a.size() == b.size();
}

bool overlap(std::span<const std::byte> a, std::span<const std::byte> b) {
    return a.data() < b.data() + b.size() && b.data() < a.data() + a.size();
}

/// Unregisters every piece that register_pieces made; goes on after an error and returns the first.
CuResult unregister_pieces(const OwnedContext& context, std::span<std::byte> memory) {
    const ContextScope scope(context.api(), context.get());
    if (scope.result() != code::kSuccess) return scope.result();
    CuResult first = code::kSuccess;
    for (std::size_t done = 0; done < memory.size(); done += kRegisterPieceBytes) {
        const CuResult result = context.api().mem_host_unregister(memory.data() + done);
        if (first == code::kSuccess) first = result;
    }
    return first;
}

CuResult register_pieces(const OwnedContext& context, std::span<std::byte> memory) {
    const ContextScope scope(context.api(), context.get());
    if (scope.result() != code::kSuccess) return scope.result();
    for (std::size_t done = 0; done < memory.size(); done += kRegisterPieceBytes) {
        const auto piece = memory.subspan(done, std::min(kRegisterPieceBytes, memory.size() - done));
        const CuResult result = context.api().mem_host_register(
            piece.data(), piece.size(), kHostRegisterPortable | kHostRegisterDeviceMap);
        if (result == code::kSuccess) continue;
        (void)unregister_pieces(context, memory.first(done));
        return result;
    }
    return code::kSuccess;
}

/// Whether another's registration serves this context too; the first use tells a context that is dead.
CuResult check_mapped(const OwnedContext& context, std::span<std::byte> memory) {
    const ContextScope scope(context.api(), context.get());
    if (scope.result() != code::kSuccess) return scope.result();
    CuDevicePtr address = 0;
    return context.api().mem_host_get_device_pointer(&address, memory.data(), 0);
}

}  // namespace

HostRegistry& HostRegistry::of_process() {
    // Never destroyed: who owns backends in static storage destroys them after whatever was made later.
    static auto& registry = *new HostRegistry;
    return registry;
}

CuResult HostRegistry::add(const std::shared_ptr<OwnedContext>& user, std::span<std::byte> memory) {
    const MutexLock lock(mutex_);
    for (Registration& known : registrations_) {
        if (!overlap(known.memory, memory)) continue;
        if (!same(known.memory, memory) || std::ranges::count(known.users, user.get()) != 0)
            return code::kHostMemoryAlreadyRegistered;
        const CuResult result = check_mapped(*user, memory);
        if (result == code::kSuccess) known.users.push_back(user.get());
        return result;
    }
    const CuResult result = register_pieces(*user, memory);
    if (result == code::kSuccess) registrations_.push_back({memory, user, {user.get()}});
    return result;
}

CuResult HostRegistry::remove(const OwnedContext& user, std::span<std::byte> memory) {
    Registration ended;  // its context may go with it, which takes long: after the lock
    const MutexLock lock(mutex_);
    const auto found = std::ranges::find_if(registrations_, [&](const Registration& known) {
        return same(known.memory, memory) && std::ranges::count(known.users, &user) != 0;
    });
    if (found == registrations_.end()) return code::kHostMemoryNotRegistered;
    std::erase(found->users, &user);
    if (!found->users.empty()) return code::kSuccess;
    ended = std::move(*found);
    registrations_.erase(found);
    for (const OwnedContext* context : {ended.context.get(), &user})
        if (!context->is_abandoned()) return unregister_pieces(*context, memory);
    return code::kSuccess;
}

void HostRegistry::remove_all(const OwnedContext& user) {
    while (const auto memory = any_of(user)) (void)remove(user, *memory);
}

std::optional<std::span<std::byte>> HostRegistry::any_of(const OwnedContext& user) {
    const MutexLock lock(mutex_);
    for (const Registration& known : registrations_)
        if (std::ranges::count(known.users, &user) != 0) return known.memory;
    return {};
}

}  // namespace vramswap::cuda
