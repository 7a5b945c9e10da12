// SPDX-License-Identifier: MIT
#include "base/locked_thread.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include <cerrno>
#include <csignal>
#include <cstdint>

#include "base/log.h"

namespace vramswap {
namespace {

constexpr std::size_t kStackBytes = 256u << 10;

/// mlock makes the pages present also where mlockall was told to wait for their first use (MCL_ONFAULT).
void lock_own_stack() {
    pthread_attr_t attributes;
    if (::pthread_getattr_np(::pthread_self(), &attributes) != 0) return;
    void* lowest = nullptr;
    std::size_t bytes = 0;
    ::pthread_attr_getstack(&attributes, &lowest, &bytes);
    ::pthread_attr_destroy(&attributes);
    if (::mlock(lowest, bytes) != 0)
        log_event(LogLevel::warning, "cannot lock the stack of an I/O thread, errno",
                  static_cast<std::uint64_t>(errno));
}

}  // namespace

Result<void> LockedThread::start(const std::string& name, void (*main)(void*), void* argument) {
    main_ = main;
    argument_ = argument;
    pthread_attr_t attributes;
    ::pthread_attr_init(&attributes);
    ::pthread_attr_setstacksize(&attributes, kStackBytes);
    // The thread inherits the mask, so that there is no moment at which a signal could reach it.
    sigset_t all;
    sigset_t before;
    ::sigfillset(&all);
    ::pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_t thread{};
    const int failure = ::pthread_create(&thread, &attributes, &LockedThread::enter, this);
    ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
    ::pthread_attr_destroy(&attributes);
    if (failure != 0) return Error{Errc::failed, failure, fmt::format("cannot start thread {}", name)};
    ::pthread_setname_np(thread, name.c_str());
    thread_ = thread;
    return {};
}

void* LockedThread::enter(void* self) {
    lock_own_stack();
    const auto& thread = *static_cast<LockedThread*>(self);
    thread.main_(thread.argument_);
    return nullptr;
}

void LockedThread::join() {
    if (!thread_) return;
    ::pthread_join(*thread_, nullptr);
    thread_.reset();
}

}  // namespace vramswap
