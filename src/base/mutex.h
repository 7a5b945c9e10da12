// SPDX-License-Identifier: MIT
// Mutex with clang's thread-safety annotations (std::mutex carries none), and the annotation macros. The
// macros are empty for GCC; the preset `clang` turns every violation into an error.
#pragma once

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>

#if defined(__clang__)
#define VS_ANNOTATE(x) __attribute__((x))
#else
#define VS_ANNOTATE(x)
#endif
#define VS_CAPABILITY(x) VS_ANNOTATE(capability(x))
#define VS_SCOPED_CAPABILITY VS_ANNOTATE(scoped_lockable)
#define VS_GUARDED_BY(x) VS_ANNOTATE(guarded_by(x))
#define VS_REQUIRES(...) VS_ANNOTATE(requires_capability(__VA_ARGS__))
#define VS_EXCLUDES(...) VS_ANNOTATE(locks_excluded(__VA_ARGS__))
#define VS_ACQUIRE(...) VS_ANNOTATE(acquire_capability(__VA_ARGS__))
#define VS_RELEASE(...) VS_ANNOTATE(release_capability(__VA_ARGS__))
#define VS_NO_ANALYSIS VS_ANNOTATE(no_thread_safety_analysis)

namespace vramswap {

class VS_CAPABILITY("mutex") Mutex {
  public:
    void lock() VS_ACQUIRE() { mutex_.lock(); }
    void unlock() VS_RELEASE() { mutex_.unlock(); }

  private:
    friend class CondVar;
    std::mutex mutex_;
};

/// Holds a Mutex for a scope.
class VS_SCOPED_CAPABILITY MutexLock {
  public:
    explicit MutexLock(Mutex& mutex) VS_ACQUIRE(mutex) : mutex_(mutex) { mutex_.lock(); }
    ~MutexLock() VS_RELEASE() { mutex_.unlock(); }
    MutexLock(const MutexLock&) = delete;
    MutexLock& operator=(const MutexLock&) = delete;

  private:
    Mutex& mutex_;
};

/// Condition variable for Mutex. Blocks; never call on the I/O path.
class CondVar {
  public:
    void wait(Mutex& mutex) VS_REQUIRES(mutex) {
        std::unique_lock<std::mutex> held(mutex.mutex_, std::adopt_lock);
        cond_.wait(held);
        held.release();
    }
    /// For so long at most; returns early for no reason, too.
    void wait_for(Mutex& mutex, std::uint64_t ns) VS_REQUIRES(mutex) {
        std::unique_lock<std::mutex> held(mutex.mutex_, std::adopt_lock);
        // More than a day is as good as for ever, and does not overflow.
        constexpr std::uint64_t kMaxNs = 86'400'000'000'000;
        cond_.wait_for(held, std::chrono::nanoseconds(std::min(ns, kMaxNs)));
        held.release();
    }
    void notify_all() { cond_.notify_all(); }

  private:
    std::condition_variable cond_;
};

}  // namespace vramswap
