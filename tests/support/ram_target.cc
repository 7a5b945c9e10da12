// SPDX-License-Identifier: MIT
#include "support/ram_target.h"

#include <fmt/format.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <new>
#include <utility>

#include "base/unique_fd.h"

namespace vramswap::test {
namespace {

/// For waits that a test never expects to take this long.
constexpr std::chrono::seconds kWatchdog{30};

std::byte* map_zeros(std::uint64_t bytes) {
    void* at =
        ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) throw std::bad_alloc();
    return static_cast<std::byte*>(at);
}

std::byte* map_shared(std::uint64_t bytes, const UniqueFd& memory) {
    void* at = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, memory.get(), 0);
    if (at == MAP_FAILED) throw std::bad_alloc();
    return static_cast<std::byte*>(at);
}

}  // namespace

class RamQueue final : public TargetQueue {
  public:
    RamQueue(RamTarget& target, std::uint32_t depth, UniqueFd event)
        : TargetQueue(target.size()), target_(target), depth_(depth), event_(std::move(event)) {}
    ~RamQueue() override { target_.forget(*this); }

    [[nodiscard]] std::size_t in_flight() const override { return waiting_.size(); }
    [[nodiscard]] int event_fd() const override { return event_.get(); }
    void wake() const {
        const std::uint64_t one = 1;
        static_cast<void>(::write(event_.get(), &one, sizeof one) == sizeof one);
    }

  private:
    friend class RamTarget;
    struct Waiting {
        BlockRequest* request;
        unsigned polls_left;
    };
    IoStatus do_submit(BlockRequest& request) override { return target_.submit(*this, request); }
    std::size_t do_poll(std::span<BlockRequest*> done) override { return target_.poll(*this, done); }

    RamTarget& target_;
    const std::uint32_t depth_;
    const UniqueFd event_;
    std::vector<Waiting> waiting_;  // the owner's thread only
};

RamTarget::RamTarget(Bytes size) : size_(size), memory_(map_zeros(size.n)) {}

RamTarget::RamTarget(Bytes size, const UniqueFd& memory)
    : size_(size), memory_(map_shared(size.n, memory)) {}

RamTarget::~RamTarget() {
    ::munmap(memory_, size_.n);
}

Result<std::unique_ptr<TargetQueue>> RamTarget::make_queue(std::uint32_t depth) {
    const Lock lock(mutex_);
    if (setup_fails()) return Error{Errc::no_memory, 0, "injected: no queue"};
    UniqueFd event(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (!event) return sys_error("eventfd failed");
    auto queue = std::make_unique<RamQueue>(*this, depth, std::move(event));
    queues_.insert(queue.get());
    return std::unique_ptr<TargetQueue>(std::move(queue));
}

Result<void> RamTarget::register_memory(std::span<std::byte> memory) {
    const Lock lock(mutex_);
    if (setup_fails()) return Error{Errc::no_memory, 0, "injected: no registration"};
    if (reinterpret_cast<std::uintptr_t>(memory.data()) % kPageBytes != 0 || memory.empty())
        return Error{Errc::usage, 0, "memory to register is not page-aligned"};
    registered_.emplace(memory.data(), memory.size());
    return {};
}

Result<void> RamTarget::unregister_memory(std::span<std::byte> memory) {
    const Lock lock(mutex_);
    const auto found = registered_.find(memory.data());
    if (found == registered_.end() || found->second != memory.size())
        return Error{Errc::usage, 0, "memory to unregister is not registered"};
    registered_.erase(found);
    return {};
}

void RamTarget::fail(BlockRequest::Op op, PageIndex first, std::uint64_t pages, IoStatus status) {
    const Lock lock(mutex_);
    faults_.push_back({op, first.n * kPageBytes, (first.n + pages) * kPageBytes, status});
}

void RamTarget::heal() {
    const Lock lock(mutex_);
    faults_.clear();
}

void RamTarget::complete_after_polls(unsigned polls) {
    const Lock lock(mutex_);
    polls_ = polls;
}

void RamTarget::hold() {
    const Lock lock(mutex_);
    held_ = true;
    held_count_ = 0;
}

void RamTarget::release() {
    const Lock lock(mutex_);
    held_ = false;
}

bool RamTarget::wait_until_held(std::size_t n) {
    Lock lock(mutex_);
    return changed_.wait_for(lock, kWatchdog, [&] { return held_count_ >= n; });
}

void RamTarget::take_room() {
    const Lock lock(mutex_);
    full_ = true;
    refused_count_ = 0;
}

void RamTarget::give_room() {
    const Lock lock(mutex_);
    full_ = false;
    for (const RamQueue* queue : queues_) queue->wake();
}

bool RamTarget::wait_until_refused(std::size_t n) {
    Lock lock(mutex_);
    return changed_.wait_for(lock, kWatchdog, [&] { return refused_count_ >= n; });
}

void RamTarget::refuse_next(unsigned n) {
    const Lock lock(mutex_);
    refusals_left_ = n;
}

void RamTarget::fail_setup_at(unsigned call) {
    const Lock lock(mutex_);
    setup_calls_ = 0;
    setup_fails_at_ = call;
}

std::vector<std::byte> RamTarget::content(std::uint64_t offset, std::size_t bytes) const {
    const Lock lock(mutex_);
    return {memory_ + offset, memory_ + offset + bytes};
}

std::string RamTarget::misuse() const {
    const Lock lock(mutex_);
    return misuse_;
}

std::size_t RamTarget::queues() const {
    const Lock lock(mutex_);
    return queues_.size();
}

std::size_t RamTarget::registrations() const {
    const Lock lock(mutex_);
    return registered_.size();
}

std::uint64_t RamTarget::bytes_max() const {
    const Lock lock(mutex_);
    return bytes_max_;
}

IoStatus RamTarget::submit(RamQueue& queue, BlockRequest& request) {
    const Lock lock(mutex_);
    if (full_ || refusals_left_ > 0) {
        ++refused_count_;
        changed_.notify_all();
        if (!full_) {
            --refusals_left_;
            queue.wake();
        }
        return IoStatus::retry;
    }
    if (queue.waiting_.size() >= queue.depth_) return IoStatus::retry;
    check(request);
    if (!held_ && polls_ == 0) return execute(request);
    queue.waiting_.push_back({&request, polls_});
    if (held_) {
        ++held_count_;
        changed_.notify_all();
    }
    return IoStatus::pending;
}

std::size_t RamTarget::poll(RamQueue& queue, std::span<BlockRequest*> done) {
    const Lock lock(mutex_);
    if (held_) return 0;
    std::size_t completed = 0;
    auto& waiting = queue.waiting_;
    for (std::size_t i = 0; i < waiting.size() && completed < done.size();) {
        if (waiting[i].polls_left > 1) {
            --waiting[i++].polls_left;
            continue;
        }
        // Only now, so that data which changes between submit and completion is noticed.
        waiting[i].request->status = execute(*waiting[i].request);
        done[completed++] = waiting[i].request;
        waiting.erase(waiting.begin() + static_cast<std::ptrdiff_t>(i));
    }
    return completed;
}

void RamTarget::forget(RamQueue& queue) {
    const Lock lock(mutex_);
    if (!queue.waiting_.empty()) misuse_ += "queue destroyed with requests in flight; ";
    queues_.erase(&queue);
}

IoStatus RamTarget::execute(const BlockRequest& r) {
    for (const Fault& fault : faults_)
        if (fault.op == r.op && r.offset < fault.end && fault.begin < r.offset + r.bytes) return fault.status;
    switch (r.op) {
        case BlockRequest::Op::read:
            std::memcpy(r.data, memory_ + r.offset, r.bytes);
            break;
        case BlockRequest::Op::write:
            std::memcpy(memory_ + r.offset, r.data, r.bytes);
            break;
        case BlockRequest::Op::discard:
            std::memset(memory_ + r.offset, 0, r.bytes);
            break;
    }
    return IoStatus::ok;
}

void RamTarget::check(const BlockRequest& r) {
    if (r.op == BlockRequest::Op::discard) return;
    bytes_max_ = std::max(bytes_max_, r.bytes);
    const auto after = registered_.upper_bound(r.data);
    const auto* const end =
        after == registered_.begin() ? nullptr : std::prev(after)->first + std::prev(after)->second;
    if (end == nullptr || r.data + r.bytes > end)
        misuse_ += fmt::format("data of a request at {} is not in registered memory; ", r.offset);
}

bool RamTarget::setup_fails() {
    return setup_fails_at_ != 0 && ++setup_calls_ >= setup_fails_at_;
}

}  // namespace vramswap::test
