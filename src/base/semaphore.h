// SPDX-License-Identifier: MIT
// Semaphore: a number that threads wait for to be positive. A release wakes one that waits; unless somebody
// waits, neither call enters the kernel. Nothing allocates. REQUIRES: nobody waits when it is destroyed.
#pragma once

#include <semaphore.h>

namespace vramswap {

class Semaphore {
  public:
    Semaphore() { ::sem_init(&sem_, 0, 0); }
    ~Semaphore() { ::sem_destroy(&sem_); }
    Semaphore(const Semaphore&) = delete;
    Semaphore& operator=(const Semaphore&) = delete;

    void release() noexcept { ::sem_post(&sem_); }
    /// Blocks until it can take one.
    void acquire() noexcept {
        while (::sem_wait(&sem_) != 0) {  // interrupted by a signal
        }
    }
    /// False if there is none.
    [[nodiscard]] bool try_acquire() noexcept { return ::sem_trywait(&sem_) == 0; }

  private:
    sem_t sem_{};
};

}  // namespace vramswap
