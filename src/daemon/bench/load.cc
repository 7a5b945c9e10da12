// SPDX-License-Identifier: MIT
#include "daemon/bench/load.h"

#include <fmt/format.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <limits>
#include <optional>

#include "base/clock.h"
#include "daemon/bench/noise_memory.h"
#include "daemon/bench/team.h"
#include "daemon/bench/walk.h"

namespace vramswap {
namespace {

constexpr std::uint64_t kForever = std::numeric_limits<std::uint64_t>::max();
constexpr std::uint64_t kPatienceNs = 60'000'000'000;

struct Request : BlockRequest {
    std::uint64_t begun_ns = 0;
};

/// Requests begun in it count; at `until` no more are begun.
struct Window {
    std::uint64_t from_ns = 0;
    std::uint64_t until_ns = kForever;
};

}  // namespace

/// One thread's part of a job.
class LoadThread {
  public:
    enum class Extent : std::uint8_t { until_time, one_round };

    LoadThread(TargetQueue& queue, std::span<std::byte> memory, const Job& job, Bytes span, unsigned number)
        : queue_(queue), job_(job), walk_(job, span, number), requests_(job.depth), done_(job.depth) {
        for (std::uint32_t i = 0; i < job.depth; ++i) {
            requests_[i].data = memory.data() + std::size_t{i} * job.block_bytes;
            requests_[i].bytes = job.block_bytes;
            idle_.push_back(&requests_[i]);
        }
        waiting_.reserve(job.depth);
        trying_again_.reserve(job.depth);
        fresh_.reserve(job.depth);
    }

    void run(const Window& window, Extent extent) {
        window_ = window;
        extent_ = extent;
        next_start_ns_ = now_ns();
        while ((!error_ && submit_all()) || queue_.in_flight() != 0) complete_some();
    }

    [[nodiscard]] const LatencyHistogram& latencies() const { return latencies_; }
    [[nodiscard]] std::uint64_t last_ns() const { return last_ns_; }
    [[nodiscard]] const std::optional<Error>& error() const { return error_; }

  private:
    /// Each request that is idle, or that was told to retry and may find room now, is submitted once, as the
    /// frontends do it. False if there is nothing to submit any more.
    bool submit_all() {
        if (!waiting_.empty() && may_have_room()) {
            completed_since_retry_ = false;
            trying_again_.swap(waiting_);
            for (Request* r : trying_again_) submit(*r);
            trying_again_.clear();
        }
        bool over = false;
        for (std::size_t n = idle_.size(); n != 0 && !over && !error_; --n) {
            const std::uint64_t now = now_ns();
            over = is_over(now);
            if (!over) fresh_.push_back(&prepare(now));
        }
        for (const Request* r : fresh_) queue_.announce(*r);
        for (Request* r : fresh_) {
            if (r != fresh_.front()) r->begun_ns = now_ns();  // not while others were made or submitted
            submit(*r);
        }
        fresh_.clear();
        return !over || !waiting_.empty();
    }

    void submit(Request& r) {
        const IoStatus status = queue_.submit(r);
        if (status == IoStatus::retry)
            waiting_.push_back(&r);
        else if (status != IoStatus::pending)
            complete(r, status, now_ns());
    }

    /// After a retry: whether it makes sense to ask again. Sleeps if nothing of ours is in flight.
    bool may_have_room() {
        if (completed_since_retry_) return true;
        if (now_ns() - waiting_.front()->begun_ns > kPatienceNs) fail("a request found no room for a minute");
        const bool can_complete = queue_.in_flight() != 0;
        pollfd event{queue_.event_fd(), POLLIN, 0};
        if (::poll(&event, 1, can_complete ? 0 : 1000) != 1) return !can_complete;
        std::uint64_t count = 0;
        [[maybe_unused]] const auto n = ::read(event.fd, &count, sizeof count);
        return true;
    }

    [[nodiscard]] bool is_over(std::uint64_t now) const {
        if (extent_ == Extent::one_round) return walk_.wrapped();
        return now >= window_.until_ns && latencies_.count() != 0;
    }

    /// Takes an idle request. Its time begins before its data is made: a reading of the clock costs as much.
    Request& prepare(std::uint64_t now) {
        Request& r = *idle_.back();
        idle_.pop_back();
        const bool read = job_.direction == Direction::read ||
                          (job_.direction == Direction::mixed && walk_.random() % 100 < kMixedReadPercent);
        r.op = read ? BlockRequest::Op::read : BlockRequest::Op::write;
        r.offset = walk_.next();
        if (!read) {
            ++version_;
            for (std::uint64_t at = 0; at < r.bytes; at += kPageBytes)
                stamp_page(r.data + at, page_at(r.offset + at), version_);
        }
        r.begun_ns = now;
        if (job_.pace_ns != 0) keep_pace(r);
        return r;
    }

    void keep_pace(Request& r) {
        while (r.begun_ns < next_start_ns_) {
            cpu_relax();
            r.begun_ns = now_ns();
        }
        next_start_ns_ = r.begun_ns + job_.pace_ns;
    }

    void complete_some() {
        if (queue_.in_flight() == 0) return;
        const std::size_t n = queue_.poll(done_);
        const std::uint64_t now = n == 0 ? 0 : now_ns();  // all of them are known from here on
        for (std::size_t i = 0; i < n; ++i) {
            auto& r = static_cast<Request&>(*done_[i]);
            complete(r, r.status, now);
        }
        completed_since_retry_ = completed_since_retry_ || n != 0;
        if (n == 0) cpu_relax();
    }

    void complete(Request& r, IoStatus status, std::uint64_t now) {
        idle_.push_back(&r);
        if (status != IoStatus::ok) {
            fail(fmt::format("{} of {} bytes at {} failed: {}",
                             r.op == BlockRequest::Op::read ? "a read" : "a write", r.bytes, r.offset,
                             to_string(status)));
            return;
        }
        if (r.begun_ns >= window_.from_ns) {
            latencies_.add(now - r.begun_ns);
            last_ns_ = now;
        }
        if (r.op != BlockRequest::Op::read) return;
        check_page(r, 0);
        if (r.bytes > kPageBytes) check_page(r, walk_.random() % (r.bytes / kPageBytes) * kPageBytes);
    }

    void check_page(const Request& r, std::uint64_t at) {
        const PageIndex wanted = page_at(r.offset + at);
        const PageIndex found = stamped_page(r.data + at);
        if (found != wanted)
            fail(fmt::format("page {} was read with the content of page {}", wanted.n, found.n));
    }

    void fail(std::string what) {
        if (!error_) error_ = Error{Errc::failed, 0, fmt::format("{}: {}", job_.name, what)};
    }

    TargetQueue& queue_;
    const Job& job_;
    Walk walk_;
    std::vector<Request> requests_;
    std::vector<Request*> idle_;
    std::vector<BlockRequest*> done_;
    std::vector<Request*> waiting_;  ///< were told to retry; the oldest is the first
    std::vector<Request*> trying_again_;
    std::vector<Request*> fresh_;  ///< made, and not submitted yet
    bool completed_since_retry_ = false;
    Window window_;
    Extent extent_ = Extent::until_time;
    std::uint64_t next_start_ns_ = 0;
    std::uint64_t version_ = 0;
    std::uint64_t last_ns_ = 0;
    LatencyHistogram latencies_;
    std::optional<Error> error_;
};

Result<LoadTeam> LoadTeam::create(Target& target, std::span<std::byte> memory, unsigned threads) {
    LoadTeam team;
    team.memory_ = memory;
    for (unsigned i = 0; i < threads; ++i) {
        auto queue = target.make_queue(kLoadQueueDepth);
        if (!queue) return std::move(queue).error();
        team.queues_.push_back(std::move(*queue));
    }
    return team;
}

std::vector<std::unique_ptr<LoadThread>> LoadTeam::make_threads(const Job& job, Bytes span) {
    std::vector<std::unique_ptr<LoadThread>> threads;
    for (unsigned i = 0; i < job.threads; ++i)
        threads.push_back(std::make_unique<LoadThread>(
            *queues_[i], memory_.subspan(i * kThreadBytesMax, kThreadBytesMax), job, span, i));
    return threads;
}

Result<Measured> LoadTeam::run(const Job& job, Bytes span, double seconds) {
    // The stage fills and everything gets warm before anything counts.
    const auto warm_up_ns = static_cast<std::uint64_t>(std::min(0.2, seconds / 4) * 1e9);
    auto threads = make_threads(job, span);
    Window window;
    double cpu_before = 0;
    const auto prepare = [&](unsigned i) { queues_[i]->enter_thread(); };
    const auto go = [&] {
        window.from_ns = now_ns() + warm_up_ns;
        window.until_ns = window.from_ns + static_cast<std::uint64_t>(seconds * 1e9);
    };
    const auto work = [&](unsigned i) { threads[i]->run(window, LoadThread::Extent::until_time); };
    const auto meanwhile = [&] {
        std::this_thread::sleep_for(std::chrono::nanoseconds(warm_up_ns));
        cpu_before = cpu_seconds();
    };
    run_together(job.threads, prepare, go, work, meanwhile);
    Measured m;
    m.cpu_seconds = cpu_seconds() - cpu_before;
    std::uint64_t last_ns = 0;
    for (const auto& thread : threads) {
        if (thread->error()) return *thread->error();
        m.latencies.merge(thread->latencies());
        last_ns = std::max(last_ns, thread->last_ns());
    }
    m.operations = m.latencies.count();
    m.bytes = m.operations * job.block_bytes;
    m.seconds = static_cast<double>(last_ns - window.from_ns) / 1e9;
    return m;
}

Result<void> LoadTeam::run_once(const Job& job, Bytes span) {
    auto threads = make_threads(job, span);
    run_together(
        job.threads, [&](unsigned i) { queues_[i]->enter_thread(); }, [] {},
        [&](unsigned i) { threads[i]->run({}, LoadThread::Extent::one_round); }, [] {});
    for (const auto& thread : threads)
        if (thread->error()) return *thread->error();
    return {};
}

}  // namespace vramswap
