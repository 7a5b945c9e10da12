// SPDX-License-Identifier: MIT
#include "daemon/bench/store_session.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <array>
#include <thread>

#include "base/clock.h"

namespace vramswap {
namespace {

/// Of a job that reads from the stage: small enough to stay there beside what the flusher keeps free.
constexpr Bytes kStagedSpan = mib(8);
constexpr std::uint64_t kPatienceNs = 30'000'000'000;

/// Looks every millisecond until `done`. Errors: failed, after half a minute.
template <typename Done>
Result<void> wait_until(const char* what, Done done) {
    const std::uint64_t end = now_ns() + kPatienceNs;
    while (!done()) {
        if (now_ns() > end) return Error{Errc::failed, 0, std::string("waited in vain until ") + what};
        ::poll(nullptr, 0, 1);
    }
    return {};
}

}  // namespace

class Maintainer {
  public:
    explicit Maintainer(PageStore& store)
        : store_(store), stop_(::eventfd(0, EFD_CLOEXEC)), thread_([this] { run(); }) {}
    ~Maintainer() {
        constexpr std::uint64_t kOne = 1;
        [[maybe_unused]] const auto n = ::write(stop_.get(), &kOne, sizeof kOne);
        thread_.join();
    }
    Maintainer(const Maintainer&) = delete;
    Maintainer& operator=(const Maintainer&) = delete;

  private:
    void run() {
        std::array<pollfd, 2> events{pollfd{stop_.get(), POLLIN, 0},
                                     pollfd{store_.maintenance_fd(), POLLIN, 0}};
        while (events[0].revents == 0) {
            ::poll(events.data(), events.size(), 1000);
            if (events[0].revents == 0) store_.maintain();
        }
    }
    PageStore& store_;
    const UniqueFd stop_;
    std::thread thread_;
};

Result<std::unique_ptr<StoreSession>> StoreSession::create(Backend& gpu, const StoreConfig& config,
                                                           std::span<std::byte> memory, unsigned threads) {
    auto store = PageStore::create(gpu, config, nullptr);
    if (!store) return std::move(store).error();
    std::unique_ptr<StoreSession> session(new StoreSession(std::move(*store), memory));
    if (auto started = session->start(threads); !started) return std::move(started).error();
    return session;
}

StoreSession::StoreSession(std::unique_ptr<PageStore> store, std::span<std::byte> memory)
    : store_(std::move(store)), memory_(memory) {}

StoreSession::~StoreSession() {
    team_.reset();
    maintainer_.reset();
    if (registered_) (void)store_->unregister_memory(memory_);
}

Result<void> StoreSession::start(unsigned threads) {
    if (auto r = store_->register_memory(memory_); !r) return r;
    registered_ = true;
    if (auto r = store_->start(); !r) return r;
    maintainer_ = std::make_unique<Maintainer>(*store_);
    auto team = LoadTeam::create(*store_, memory_, threads);
    if (!team) return std::move(team).error();
    team_ = std::make_unique<LoadTeam>(std::move(*team));
    return team_->run_once(
        {"filling the device", Direction::write, Pattern::sequential, kChunkBytes, 4, team_->threads()},
        store_->size());
}

Result<JobResult> StoreSession::run(const Job& job, double seconds) {
    const bool in_stage = job.start == Start::in_stage;
    if (auto r = empty_stage(); !r) return std::move(r).error();
    if (in_stage)
        if (auto r = fill_stage(); !r) return std::move(r).error();
    const StoreStats before = store_->stats();
    auto measured = team_->run(job, in_stage ? kStagedSpan : store_->size(), seconds);
    if (!measured) return std::move(measured).error();
    const StoreStats after = store_->stats();
    JobResult result{job, std::move(*measured), after.ram};
    const std::uint64_t read = after.pages_read - before.pages_read;
    if (read != 0)
        result.stage_share =
            static_cast<double>(after.pages_read_stage - before.pages_read_stage) / static_cast<double>(read);
    return result;
}

/// Until everything is in VRAM and nothing in the stage.
Result<void> StoreSession::empty_stage() {
    Flusher& flusher = store_->flusher();
    flusher.set_draining(true);
    auto emptied = wait_until("the stage is empty", [&] {
        flusher.kick(true);
        return store_->stats().staged.n == 0;
    });
    flusher.set_draining(false);
    return emptied;
}

/// Writes the first pages one by one, as a kernel does, and waits until they are clean: a cache.
Result<void> StoreSession::fill_stage() {
    const Job job{"filling the stage", Direction::write, Pattern::sequential};
    if (auto filled = team_->run_once(job, kStagedSpan); !filled) return filled;
    return wait_until("the stage is clean", [&] { return store_->stats().dirty.n == 0; });
}

}  // namespace vramswap
