// SPDX-License-Identifier: MIT
#include "front/io_parts.h"

#include <fmt/format.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "base/log.h"
#include "base/units.h"

namespace vramswap {
namespace {

void add(std::atomic<std::uint64_t>& counter, std::uint64_t n) {
    // One writer, so no locked instruction is needed.
    counter.store(counter.load(std::memory_order_relaxed) + n, std::memory_order_relaxed);
}

}  // namespace

Result<std::unique_ptr<StopSignal>> StopSignal::make() {
    UniqueFd event(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (!event) return sys_error("eventfd failed");
    return std::unique_ptr<StopSignal>(new StopSignal(std::move(event)));
}

void StopSignal::request() {
    requested_.store(true, std::memory_order_release);
    // Cannot fail: the counter is far from its limit.
    const std::uint64_t one = 1;
    if (::write(event_.get(), &one, sizeof one) != sizeof one) log_warning("eventfd write failed");
}

Result<std::unique_ptr<IoMemory>> IoMemory::make(Target& target, std::size_t bytes) {
    void* at =
        ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (at == MAP_FAILED)
        return Error{Errc::no_memory, errno,
                     fmt::format("no memory for {} of I/O buffers", format_size({bytes}))};
    std::unique_ptr<IoMemory> memory(new IoMemory(target, {static_cast<std::byte*>(at), bytes}));
    // A child must not make these pages copy-on-write: the next access would fault and allocate.
    if (::madvise(at, bytes, MADV_DONTFORK) != 0) return sys_error("madvise(MADV_DONTFORK) failed");
    if (::mlock(at, bytes) != 0)
        return Error{Errc::no_memory, errno,
                     fmt::format("cannot lock {} of I/O buffers", format_size({bytes})),
                     "Raise RLIMIT_MEMLOCK (LimitMEMLOCK=infinity) or run as root"};
    if (auto given = target.register_memory(memory->all()); !given) return std::move(given).error();
    memory->registered_ = true;
    return memory;
}

IoMemory::~IoMemory() {
    if (registered_)
        if (auto taken = target_.unregister_memory(memory_); !taken) log_warning("{}", taken.error().text());
    ::munmap(memory_.data(), memory_.size());
}

void IoCounters::count(BlockRequest::Op op, IoStatus status, std::uint64_t bytes) {
    const bool done = status == IoStatus::ok;
    switch (op) {
        case BlockRequest::Op::read:
            add(reads_, 1);
            if (done) add(bytes_read_, bytes);
            break;
        case BlockRequest::Op::write:
            add(writes_, 1);
            if (done) add(bytes_written_, bytes);
            break;
        case BlockRequest::Op::discard:
            add(discards_, 1);
            break;
    }
    if (!done) add(errors_, 1);
}

void IoCounters::add_to(FrontendCounters& sum) const {
    sum.reads += reads_.load(std::memory_order_relaxed);
    sum.writes += writes_.load(std::memory_order_relaxed);
    sum.discards += discards_.load(std::memory_order_relaxed);
    sum.errors += errors_.load(std::memory_order_relaxed);
    sum.bytes_read += bytes_read_.load(std::memory_order_relaxed);
    sum.bytes_written += bytes_written_.load(std::memory_order_relaxed);
}

}  // namespace vramswap
