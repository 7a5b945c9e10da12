// SPDX-License-Identifier: MIT
#include "daemon/bench/ceiling.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <random>

#include "base/clock.h"
#include "daemon/bench/team.h"

namespace vramswap {
namespace {

constexpr int kLargeCopies = 11;
constexpr int kLargeCopyRounds = 3;

Error refused() {
    return {Errc::failed, 0, "the GPU refused or failed a bare copy"};
}

/// VRAM of the same shape as the store's.
class BareSegments {
  public:
    explicit BareSegments(Backend& gpu) : gpu_(gpu) {}
    ~BareSegments() {
        for (const SegmentId id : ids_) (void)gpu_.free_segment(id);
    }
    BareSegments(const BareSegments&) = delete;
    BareSegments& operator=(const BareSegments&) = delete;

    Result<void> take(Bytes total, Bytes segment) {
        segment_bytes_ = segment.n;
        for (std::uint64_t n = 0; n < total.n; n += segment.n) {
            auto id = gpu_.allocate_segment(segment);
            if (!id) return std::move(id).error();
            ids_.push_back(*id);
        }
        return {};
    }
    [[nodiscard]] Copy random_page(std::mt19937_64& random, Copy::Op op, std::byte* host) const {
        return {op, ids_[random() % ids_.size()], random() % (segment_bytes_ / kPageBytes) * kPageBytes, host,
                kPageBytes};
    }
    [[nodiscard]] Copy large(Copy::Op op, std::byte* host) const {
        const auto bytes = static_cast<std::uint32_t>(std::min(kLargeCopyBytes, segment_bytes_));
        return {op, ids_.front(), 0, host, bytes};
    }

  private:
    Backend& gpu_;
    std::vector<SegmentId> ids_;
    std::uint64_t segment_bytes_ = 0;
};

bool copy_now(TransferQueue& queue, std::span<const Copy> copies) {
    Ticket ticket = 0;
    if (queue.submit(copies, ticket) != IoStatus::pending) return false;
    IoStatus status = IoStatus::pending;
    while (status == IoStatus::pending) status = queue.poll(ticket);
    return status == IoStatus::ok;
}

class BareCopies {
  public:
    BareCopies(Backend& gpu, std::span<std::byte> memory, const CeilingRequest& request)
        : gpu_(gpu), memory_(memory), request_(request), segments_(gpu) {}

    Result<Ceiling> run() {
        if (auto r = segments_.take(request_.working_set, request_.segment); !r) return std::move(r).error();
        auto queue = gpu_.make_queue();
        if (!queue) return std::move(queue).error();
        Ceiling c;
        const bool fine = large_copies(**queue, Copy::Op::to_gpu, c.h2d_gbps) &&
                          large_copies(**queue, Copy::Op::from_gpu, c.d2h_gbps) &&
                          one_at_a_time(**queue, Copy::Op::to_gpu, c.write_4k) &&
                          one_at_a_time(**queue, Copy::Op::from_gpu, c.read_4k);
        if (!fine) return refused();
        page_copies_in_ram(c.memcpy_4k);
        for (const Job& job : request_.jobs) {
            if (job.ceiling != CeilingKind::small_copies || find(c, job) != nullptr) continue;
            auto measured = small_copies(job);
            if (!measured) return std::move(measured).error();
            c.small_copies.push_back(*measured);
        }
        return c;
    }

    static const SmallCopies* find(const Ceiling& c, const Job& job) {
        const auto it = std::ranges::find_if(c.small_copies, [&job](const SmallCopies& s) {
            return s.direction == job.direction && s.threads == job.threads && s.batch == job.depth;
        });
        return it == c.small_copies.end() ? nullptr : &*it;
    }

  private:
    /// The best median of a few rounds.
    bool large_copies(TransferQueue& queue, Copy::Op op, double& best) {
        const Copy copy = segments_.large(op, memory_.data());
        for (int round = 0; round < kLargeCopyRounds; ++round) {
            std::vector<double> rates;
            for (int i = 0; i < kLargeCopies; ++i) {
                const std::uint64_t begin = now_ns();
                if (!copy_now(queue, {&copy, 1})) return false;
                rates.push_back(static_cast<double>(copy.bytes) / static_cast<double>(now_ns() - begin));
            }
            std::ranges::sort(rates);
            best = std::max(best, rates[kLargeCopies / 2]);
        }
        return true;
    }

    bool one_at_a_time(TransferQueue& queue, Copy::Op op, LatencyHistogram& latencies) {
        std::mt19937_64 random(2);
        const std::uint64_t end = now_ns() + duration_ns();
        for (std::uint64_t begin = now_ns(); begin < end || latencies.count() == 0;) {
            const Copy copy = segments_.random_page(random, op, memory_.data());
            begin = now_ns();
            if (!copy_now(queue, {&copy, 1})) return false;
            latencies.add(now_ns() - begin);
        }
        return true;
    }

    /// The source is in no cache, as a page that is to be swapped.
    void page_copies_in_ram(LatencyHistogram& latencies) {
        constexpr int kCopies = 10'000;
        constexpr std::size_t kLine = 64;
        const std::uint64_t pages = memory_.size() / kPageBytes;
        std::byte* const to = memory_.data() + (pages - 1) * kPageBytes;
        std::mt19937_64 random(4);
        for (int i = 0; i < kCopies; ++i) {
            const std::byte* from = memory_.data() + random() % (pages - 1) * kPageBytes;
            for (std::size_t at = 0; at < kPageBytes; at += kLine) __builtin_ia32_clflush(from + at);
            __builtin_ia32_mfence();
            const std::uint64_t begin = now_ns();
            std::memcpy(to, from, kPageBytes);
            latencies.add(now_ns() - begin);
        }
    }

    /// The job's copies without the store: in one submission, or in two that overlap, whichever is faster.
    Result<SmallCopies> small_copies(const Job& job) {
        SmallCopies best{job.direction, job.threads, job.depth};
        for (const std::uint32_t submissions : {1u, 2u}) {
            if (job.depth < submissions) continue;
            auto iops = small_copies(job, submissions);
            if (!iops) return std::move(iops).error();
            if (*iops <= best.iops) continue;
            best.iops = *iops;
            best.submissions = submissions;
        }
        return best;
    }

    Result<double> small_copies(const Job& job, std::uint32_t submissions) {
        std::vector<std::unique_ptr<TransferQueue>> queues;
        for (unsigned i = 0; i < job.threads; ++i) {
            auto queue = gpu_.make_queue();
            if (!queue) return std::move(queue).error();
            queues.push_back(std::move(*queue));
        }
        std::atomic<std::uint64_t> copies{0};
        std::atomic<std::uint64_t> last_ns{0};
        std::atomic<bool> failed{false};
        std::uint64_t begin = 0;
        const auto prepare = [&](unsigned i) { (void)copy_now(*queues[i], {}); };
        const auto go = [&] { begin = now_ns(); };
        const auto work = [&](unsigned i) {
            const std::uint64_t done = copy_batches(*queues[i], job, i, submissions, begin + duration_ns());
            if (done == 0) failed = true;
            copies += done;
            for (std::uint64_t now = now_ns(), last = last_ns;
                 last < now && !last_ns.compare_exchange_weak(last, now);) {
            }
        };
        run_together(job.threads, prepare, go, work, [] {});
        if (failed) return refused();
        return static_cast<double>(copies) * 1e9 / static_cast<double>(last_ns - begin);
    }

    /// Keeps job.depth copies in flight until `end`. Returns how many there were, 0 after a failure.
    std::uint64_t copy_batches(TransferQueue& queue, const Job& job, unsigned thread,
                               std::uint32_t submissions, std::uint64_t end) {
        std::mt19937_64 random(thread);
        const std::uint32_t each = job.depth / submissions;
        std::vector<std::vector<Copy>> batches(submissions, std::vector<Copy>(each));
        std::vector<Ticket> tickets(submissions, 0);
        std::uint64_t copies = 0;
        bool more = true;
        for (std::uint32_t turn = 0; more || tickets[turn] != 0; turn = (turn + 1) % submissions) {
            IoStatus status = tickets[turn] == 0 ? IoStatus::ok : IoStatus::pending;
            while (status == IoStatus::pending) status = queue.poll(tickets[turn]);
            if (status != IoStatus::ok) return 0;
            tickets[turn] = 0;
            more = now_ns() < end || copies == 0;
            if (!more) continue;
            std::byte* host =
                memory_.data() + thread * kThreadBytesMax + std::size_t{turn} * each * kPageBytes;
            for (Copy& copy : batches[turn]) {
                copy = segments_.random_page(random, direction_of(job, random), host);
                host += kPageBytes;
            }
            if (queue.submit(batches[turn], tickets[turn]) != IoStatus::pending) return 0;
            copies += each;
        }
        return copies;
    }

    static Copy::Op direction_of(const Job& job, std::mt19937_64& random) {
        const bool read = job.direction == Direction::read ||
                          (job.direction == Direction::mixed && random() % 100 < kMixedReadPercent);
        return read ? Copy::Op::from_gpu : Copy::Op::to_gpu;
    }
    [[nodiscard]] std::uint64_t duration_ns() const {
        return static_cast<std::uint64_t>(request_.seconds * 1e9);
    }

    Backend& gpu_;
    const std::span<std::byte> memory_;
    const CeilingRequest& request_;
    BareSegments segments_;
};

double p50_us(const LatencyHistogram& latencies) {
    return static_cast<double>(latencies.percentile_ns(0.5)) / 1000;
}

}  // namespace

Result<Ceiling> measure_ceiling(Backend& gpu, std::span<std::byte> memory, const CeilingRequest& request) {
    return BareCopies(gpu, memory, request).run();
}

double Ceiling::of(const Job& job) const {
    switch (job.ceiling) {
        case CeilingKind::none:
            return 0;
        case CeilingKind::pinned_copy:
            return job.direction == Direction::read ? d2h_gbps : h2d_gbps;
        case CeilingKind::small_copies: {
            const SmallCopies* found = BareCopies::find(*this, job);
            return found == nullptr ? 0 : found->gbps();
        }
        case CeilingKind::one_read:
            return p50_us(read_4k);
        case CeilingKind::memcpy_page:
            return p50_us(memcpy_4k);
    }
    return 0;
}

}  // namespace vramswap
