// SPDX-License-Identifier: MIT
// The store against a std::map of pages: seeded operations and faults, checked both ways. What was
// acknowledged is read back, what was not written is zeros, and a request waits or fails only if something
// explains it. Requests are in flight several at a time; costs of copies differ, so that images are sent in
// every way. Half of the seeds have a spill, and in most the VRAM that may be held changes all the time, so
// that chunks are on the move. What happened over all seeds is counted, and each kind must have. Everything
// runs in one thread under a made-up clock, so a seed does the same each time:
//     VRAMSWAP_SEED_FIRST=42 VRAMSWAP_SEEDS=1 store_model
// At the end of the file, threads do the same at random speed; see there what is checked.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdlib>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "base/log.h"
#include "support/sim_store.h"
#include "support/stepped_disk.h"

namespace vramswap {
namespace {

using test::Content;
using test::content_for;
using test::content_of;
using test::fill_page;
using test::HostMemory;
using test::page_named_by;
using test::Random;
using test::SimGpu;
using test::SteppedSpill;
using test::SteppedStore;
using test::take_event;

// Small, so that everything runs short and collides all the time.
constexpr std::uint64_t kDevicePages = 6 * kChunkPages + 37;
constexpr Bytes kDevice{kDevicePages * kPageBytes};
constexpr Bytes kSegment{2 * kChunkBytes};
constexpr Bytes kStage{3 * kChunkBytes};
constexpr Bytes kVramEnough = kSegment * 4;
constexpr std::uint64_t kRequestPagesMax = BlockRequest::kMaxTransferBytes / kPageBytes;
constexpr std::uint32_t kQueues = 3;
constexpr std::uint32_t kQueueDepth = 4;
/// Places for requests: one more is at hand than can be in flight.
constexpr std::uint32_t kPlaces = kQueueDepth + 1;
/// The store copies a page to or from VRAM this often before it gives up: so many faults explain a failure.
constexpr std::uint64_t kTries = 3;
/// A write is carried out in pieces of so many pages: one that is not larger is done or not done.
constexpr std::uint64_t kPiecePages = 4;
constexpr std::uint64_t kDirectPagesMin = 64;

struct Range {
    std::uint64_t first = 0;
    std::uint64_t pages = 0;
    [[nodiscard]] std::uint64_t end() const { return first + pages; }
    [[nodiscard]] bool in_one_chunk() const { return first / kChunkPages == (end() - 1) / kChunkPages; }
};

// ---- the model ----

/// What a page may hold: one content, or several after a write that may have been done in part or is pending.
struct Expected {
    std::vector<Content> contents{0};
    bool may_be_lost = false;
    std::uint64_t changes = 0;

    [[nodiscard]] bool may_be(Content content) const {
        return std::ranges::find(contents, content) != contents.end();
    }
};

/// The truth. Pages it does not name are zeros.
class Model {
  public:
    [[nodiscard]] Expected at(std::uint64_t page) const {
        const auto found = pages_.find(page);
        return found == pages_.end() ? Expected{} : found->second;
    }
    void becomes(std::uint64_t page, Content content) {
        Expected& expected = pages_[page];
        expected.contents.assign(1, content);
        expected.may_be_lost = false;
        ++expected.changes;
    }
    void may_be_lost(std::uint64_t page) {
        Expected& expected = pages_[page];
        expected.may_be_lost = true;
        ++expected.changes;
    }
    void may_become(std::uint64_t page, Content content) {
        Expected& expected = pages_[page];
        if (!expected.may_be(content)) expected.contents.push_back(content);
        ++expected.changes;
    }
    /// It was read, and nothing changed it meanwhile.
    void is(std::uint64_t page, Content content) {
        if (const auto found = pages_.find(page); found != pages_.end()) {
            found->second.contents.assign(1, content);
            found->second.may_be_lost = false;
        }
    }
    /// How many pages are stored: at least and at most.
    [[nodiscard]] std::pair<std::uint64_t, std::uint64_t> stored() const {
        std::pair<std::uint64_t, std::uint64_t> count{0, 0};
        for (const auto& [page, expected] : pages_) {
            const bool may_be_absent = expected.may_be(0);
            if (!may_be_absent) ++count.first;
            if (!may_be_absent || expected.contents.size() > 1) ++count.second;
        }
        return count;
    }

  private:
    std::map<std::uint64_t, Expected> pages_;
};

/// A read or write at hand or in flight.
struct Place {
    bool active = false;
    Range range{};
    BlockRequest request{};
    std::uint64_t faults_at_submit = 0;
    /// A read: for each page all that it may return, growing while pages change. A write: how often each page
    /// had changed when the write became pending.
    std::vector<Expected> expected;
    std::vector<Content> written;  ///< by a write

    [[nodiscard]] bool is_write() const { return request.op == BlockRequest::Op::write; }
    [[nodiscard]] bool is_pending() const { return active && request.status == IoStatus::pending; }
    [[nodiscard]] bool has(std::uint64_t page) const {
        return active && page >= range.first && page < range.end();
    }
    [[nodiscard]] bool meets(const Range& other) const {
        return active && range.first < other.end() && other.first < range.end();
    }
};

/// What happened, over all seeds. The model is worth nothing for what never happens in it.
struct Coverage {
    std::uint64_t direct_pages = 0, bridged_pages = 0, completed_images = 0, merged_images = 0,
                  merged_between_steps = 0, flush_errors = 0, reread_pages = 0;
    std::uint64_t writes_pending = 0, writes_several_pending = 0, writes_failed_pending = 0,
                  writes_overtaken = 0;
    std::uint64_t large_writes_retried = 0, writes_retried = 0, reads_retried = 0, discards_retried = 0;
    std::uint64_t reads_overtaken = 0, reads_failed = 0, reads_lost = 0, no_space = 0, refused = 0;
    std::uint64_t moved_out = 0, moved_back = 0, moved_within = 0, pages_read_spill = 0,
                  pages_written_spill = 0, move_errors = 0, without_vram = 0;

    void add(const StoreStats& stats) {
        direct_pages += stats.pages_written_direct;
        bridged_pages += stats.pages_bridged;
        completed_images += stats.images_completed;
        flush_errors += stats.flush_errors;
        reread_pages += stats.reread_pages;
        moved_out += stats.moved_out.n / kPageBytes;
        moved_back += stats.moved_back.n / kPageBytes;
        moved_within += stats.moved_within.n / kChunkBytes;
        pages_read_spill += stats.pages_read_spill;
        pages_written_spill += stats.pages_written_spill;
        move_errors += stats.move_errors;
    }
    /// Each by its name.
    [[nodiscard]] std::vector<std::pair<std::string, std::uint64_t>> all() const {
        return {{"pages written direct", direct_pages},
                {"pages bridged", bridged_pages},
                {"images completed", completed_images},
                {"images completed by mergers", merged_images},
                {"images merged between two steps", merged_between_steps},
                {"flushes failed", flush_errors},
                {"pages read again", reread_pages},
                {"writes pending", writes_pending},
                {"writes pending beside others of their queue", writes_several_pending},
                {"pending writes failed", writes_failed_pending},
                {"pending writes whose pages changed meanwhile", writes_overtaken},
                {"large writes told to retry", large_writes_retried},
                {"writes told to retry", writes_retried},
                {"reads told to retry", reads_retried},
                {"discards told to retry", discards_retried},
                {"reads of changing pages", reads_overtaken},
                {"reads failed", reads_failed},
                {"reads of lost pages", reads_lost},
                {"writes without room", no_space},
                {"writes refused", refused},
                {"pages moved out", moved_out},
                {"pages moved back", moved_back},
                {"chunks moved within the GPU", moved_within},
                {"pages read from the spill", pages_read_spill},
                {"pages flushed to the spill", pages_written_spill},
                {"moves given up", move_errors},
                {"times without any VRAM", without_vram}};
    }
};

/// No gap is ever sent; every gap is.
constexpr CopyCosts kSendRuns{
    .small_copy_ns = 1, .turbo_copy_ns = 1, .page_ns = 1'000'000, .merge_page_ns = 1'000'000};
constexpr CopyCosts kSendWhole{
    .small_copy_ns = 1'000'000, .turbo_copy_ns = 1'000'000, .page_ns = 1, .merge_page_ns = 0};

/// Costs that make the flusher send in runs, join them, complete images, or whatever comes.
CopyCosts random_costs(Random& random) {
    switch (random.below(4)) {
        case 0:
            return {};
        case 1:
            return kSendRuns;
        case 2:
            return kSendWhole;
        default: {
            const auto number = [&random] { return 1u << random.below(16); };
            CopyCosts costs;
            costs.small_copy_ns = costs.turbo_copy_ns = number();
            costs.page_ns = number();
            costs.merge_page_ns = number();
            return costs;
        }
    }
}

/// Half of the seeds have a spill; some of these are too small for everything.
std::unique_ptr<SteppedSpill> random_spill(Random& random) {
    if (random.one_in(2)) return nullptr;
    return std::make_unique<SteppedSpill>(3 + static_cast<std::uint32_t>(random.below(6)));
}

/// Half of the seeds have mergers; without threads here, so that each of their steps is chosen.
std::uint32_t random_mergers(Random& random) {
    return random.one_in(2) ? 0 : 1 + static_cast<std::uint32_t>(random.below(Mergers::kThreadsMax));
}

// ---- faults ----

/// Which faults a seed may meet; later ones include the earlier.
enum class Weather : std::uint64_t {
    calm,     ///< copies take long: nothing may fail
    failing,  ///< copies and allocations fail, reads are corrupted: a read fails only if it is hit three
              ///< times
    corrupt,  ///< VRAM is corrupted: reads may fail at any time, and never return wrong bytes
};

/// Arms the faults of a simulated GPU and counts those that happened.
class FaultBook {
  public:
    /// `disk` may be null.
    FaultBook(SimFaults& faults, test::DiskFaults* disk) : faults_(faults), disk_(disk) {}

    void arm_failures(std::uint32_t n) { arm(faults_.fail_copies, n); }
    void arm_corrupt_reads(std::uint32_t n) { arm(faults_.corrupt_reads, n); }
    void arm_disk_failures(std::uint32_t reads, std::uint32_t writes) {
        if (disk_ == nullptr) return;
        arm(disk_->fail_reads, reads);
        disk_->fail_writes += writes;
    }
    void arm_corrupt_disk_reads(std::uint32_t n) {
        if (disk_ != nullptr) arm(disk_->corrupt_reads, n);
    }
    void arm_corrupt_writes() { faults_.corrupt_writes = 1; }
    void arm_misplaced_writes() { faults_.misplace_writes = 1; }
    void arm_failed_allocation() {
        faults_.fail_allocations = 1;
        vram_may_be_short = true;
    }
    void take_vram(Bytes n) {
        faults_.taken_by_others = n.n;
        vram_may_be_short = true;
    }
    /// Failed or corrupted copies so far.
    [[nodiscard]] std::uint64_t happened() const {
        const std::uint64_t disk = disk_ == nullptr ? 0 : disk_->fail_reads + disk_->corrupt_reads;
        return armed_ - faults_.fail_copies.load() - faults_.corrupt_reads.load() - disk;
    }
    void clear() {
        armed_ = happened();
        for (auto* counter : {&faults_.fail_copies, &faults_.corrupt_reads, &faults_.corrupt_writes,
                              &faults_.misplace_writes, &faults_.fail_allocations})
            *counter = 0;
        faults_.taken_by_others = 0;
        faults_.hang = faults_.early = false;
        if (disk_ == nullptr) return;
        disk_->hang = false;
        disk_->fail_reads = disk_->fail_writes = disk_->corrupt_reads = 0;
    }
    bool vram_may_be_short = false;  ///< at some time since the start

  private:
    void arm(std::atomic<std::uint32_t>& counter, std::uint32_t n) {
        counter += n;
        armed_ += n;
    }
    SimFaults& faults_;
    test::DiskFaults* const disk_;
    std::uint64_t armed_ = 0;
};

// ---- one seed ----

/// Memory of all requests, made once for all seeds.
struct Buffers {
    std::vector<std::unique_ptr<HostMemory>> places;
    Buffers() {
        for (std::uint32_t n = 0; n < kQueues * kPlaces; ++n)
            places.push_back(std::make_unique<HostMemory>(BlockRequest::kMaxTransferBytes));
    }
};

class SeedRun {
  public:
    SeedRun(std::uint64_t seed, Buffers& buffers, Coverage& coverage)
        : random_(seed),
          weather_(static_cast<Weather>(random_.below(3))),
          vram_(weather_ == Weather::calm ? kVramEnough : kSegment * (2 + random_.below(3))),
          buffers_(buffers),
          coverage_(coverage),
          gpu_(vram_),
          spill_(random_spill(random_)),
          moves_(spill_ != nullptr || random_.one_in(2)),
          book_(gpu_.faults(), spill_ == nullptr ? nullptr : spill_->faults.get()),
          store_(gpu_,
                 {kDevice,
                  kSegment,
                  kStage,
                  {.costs = random_costs(random_), .mergers = random_mergers(random_)},
                  EngineMode::copy,
                  spill_ == nullptr ? nullptr : spill_->spill.get()},
                 nullptr) {
        book_.vram_may_be_short = vram_ < kVramEnough;
        for (auto& queue : queues_) queue = std::move(*store_->make_queue(kQueueDepth));
    }

    /// False, with a gtest failure, if the store broke a promise.
    bool run(int operations) {
        if (moves_) operations += operations / 5;  // those of moves come on top
        for (int n = 0; n < operations && good_; ++n) {
            operate();
            if (n % 64 == 0) check_stats();
        }
        if (good_) calm_down();
        if (good_) check_everything();
        if (good_) check_rewriting();
        if (good_) check_emptiness();
        coverage_.add(store_->stats());
        coverage_.merged_images += store_.merged();
        return good_;
    }

  private:
    void operate();
    void write(const Range& range);
    void scatter();
    void discard();
    void read();
    void change_weather();
    void change_disk_weather();
    void order();
    void step();
    void merge();
    IoStatus submit(Place& place, std::uint32_t q);
    IoStatus submit_once(BlockRequest& request, std::uint32_t q);
    bool insist(BlockRequest& request, std::uint32_t q);
    void check_retry(const Place& place, std::uint32_t q);
    void check_refusal(IoStatus status);
    void set_page(std::uint64_t page, Content content, bool certain);
    std::size_t poll(std::uint32_t q, std::size_t most);
    void completed(Place& place);
    void wrote_in_part(const Place& place);
    void write_became_pending(Place& place, std::uint32_t q);
    void finish_write(Place& place);
    void finish_pending_write(Place& place);
    void check_read(Place& read);
    IoStatus read_now(const Range& range);
    void calm_down();
    [[nodiscard]] bool settle();
    void check_everything();
    void check_rewriting();
    void check_emptiness();
    void check_stats();

    Range random_range(std::uint64_t most);
    Content random_content(std::uint64_t page);
    void fail(const std::string& what) {
        if (good_) ADD_FAILURE() << what;
        good_ = false;
    }
    /// There is always one.
    Place& idle_place(std::uint32_t q) {
        const auto first = places_.begin() + q * kPlaces;
        return *std::find_if(first, first + kPlaces, [](const Place& place) { return !place.active; });
    }
    HostMemory& buffer_of(const Place& place) {
        return *buffers_.places[static_cast<std::size_t>(&place - places_.data())];
    }
    /// A new request in an idle place.
    Place& prepare(BlockRequest::Op op, const Range& range, std::uint32_t q) {
        Place& place = idle_place(q);
        place = {};
        place.range = range;
        place.request = {op,
                         range.first * kPageBytes,
                         range.pages * kPageBytes,
                         buffer_of(place).data(),
                         IoStatus::retry,
                         nullptr};
        place.faults_at_submit = book_.happened();
        place.active = true;
        return place;
    }
    /// A write that is pending holds some of these pages.
    [[nodiscard]] bool meets_pending_write(const Range& range) const {
        return std::ranges::any_of(places_, [&](const Place& other) {
            return other.is_write() && other.is_pending() && other.meets(range);
        });
    }

    Random random_;
    const Weather weather_;
    const Bytes vram_;
    Buffers& buffers_;
    Coverage& coverage_;
    SimGpu gpu_;
    const std::unique_ptr<SteppedSpill> spill_;
    const bool moves_;  ///< VRAM is taken away and given back
    FaultBook book_;
    SteppedStore store_;
    std::array<std::unique_ptr<TargetQueue>, kQueues> queues_;
    std::array<Place, kQueues * kPlaces> places_{};
    Model model_;
    Content last_content_ = 0;
    bool good_ = true;
};

void SeedRun::operate() {
    const std::uint64_t what = random_.below(moves_ ? 120 : 100);
    if (what >= 118)
        order();
    else if (what >= 116)
        change_disk_weather();
    else if (what >= 100)
        (void)store_.step_mover();
    else if (what < 27)
        write(random_range(kRequestPagesMax));
    else if (what < 32)
        scatter();
    else if (what < 52)
        read();
    else if (what < 60)
        discard();
    else if (what < 71)
        step();
    else if (what < 85)
        merge();
    else if (what < 87)
        store_->maintain();
    else if (what < 94)
        (void)poll(static_cast<std::uint32_t>(random_.below(kQueues)), 1 + random_.below(kQueueDepth));
    else
        change_weather();
}

// -- choosing --

Range SeedRun::random_range(std::uint64_t most) {
    Range range;
    if (random_.one_in(2)) {  // near a border, where others are too
        const std::uint64_t border = std::min((random_.below(8)) * kChunkPages, kDevicePages);
        const std::uint64_t back = random_.below(4);
        range.first = border > back ? border - back : 0;
    } else {
        range.first = random_.below(kDevicePages);
    }
    if (range.first >= kDevicePages) range.first = kDevicePages - 1;
    const std::uint64_t size = random_.below(100);
    range.pages = 1 + random_.below(size < 70 ? 4 : size < 92 ? 40 : size < 99 ? 300 : kRequestPagesMax);
    range.pages = std::min({range.pages, most, kDevicePages - range.first});
    return range;
}

Content SeedRun::random_content(std::uint64_t page) {
    const std::uint64_t kind = random_.below(10);
    if (kind == 0) return 0;
    if (kind == 1 && last_content_ != 0) return last_content_;  // what is elsewhere too
    last_content_ = content_for({page}, static_cast<std::uint32_t>(random_.next()) | 1u);
    return last_content_;
}

void SeedRun::change_weather() {
    SimFaults& faults = gpu_.faults();
    const std::uint64_t kinds = weather_ == Weather::calm ? 3 : weather_ == Weather::failing ? 9 : 11;
    switch (random_.below(kinds)) {
        case 0:
            faults.hang = !faults.hang;
            break;
        case 1:
            faults.early = !faults.early;
            break;
        case 2:
            store_->flusher().set_draining(random_.one_in(2));
            break;
        case 3:
            book_.arm_failures(1);
            break;
        case 4:
            book_.arm_failures(1 + static_cast<std::uint32_t>(random_.below(9)));
            break;
        case 5:
            book_.arm_corrupt_reads(1);
            break;
        case 6:
            book_.arm_corrupt_reads(1 + static_cast<std::uint32_t>(random_.below(5)));
            break;
        case 7:
            book_.arm_failed_allocation();
            break;
        case 8:
            book_.take_vram(kSegment * random_.below(4));
            break;
        case 9:
            book_.arm_corrupt_writes();
            break;
        default:
            book_.arm_misplaced_writes();
            break;
    }
}

void SeedRun::change_disk_weather() {
    if (spill_ == nullptr) return;
    test::DiskFaults& faults = *spill_->faults;
    switch (random_.below(weather_ == Weather::calm ? 1 : 4)) {
        case 0:
            faults.hang = !faults.hang;
            break;
        case 1:
            book_.arm_disk_failures(static_cast<std::uint32_t>(random_.below(4)), 0);
            break;
        case 2:
            book_.arm_disk_failures(0, static_cast<std::uint32_t>(random_.below(9)));
            break;
        default:
            book_.arm_corrupt_disk_reads(1 + static_cast<std::uint32_t>(random_.below(3)));
            break;
    }
}

/// So much VRAM may be held, from now on.
void SeedRun::order() {
    const std::uint64_t segments = random_.below(6);
    StoreOrder order;
    order.vram_max = segments == 5 ? Bytes{~0ull} : kSegment * segments;
    if (random_.one_in(4)) order.move_rate = random_.one_in(2) ? 0 : kChunkBytes;
    book_.vram_may_be_short = true;
    store_->obey(0, order);
    for (std::uint64_t n = random_.below(20); n != 0; --n) (void)store_.step_mover();
    if (store_->stats().vram.n == 0) ++coverage_.without_vram;
}

void SeedRun::step() {
    store_.advance(random_.below(3'000'000));
    if (random_.one_in(4))
        (void)store_.step_early();
    else
        (void)(random_.one_in(6) ? store_.step() : store_.step_flusher());
}

/// What is merged is not sent yet.
void SeedRun::merge() {
    if (store_.merge_one()) ++coverage_.merged_between_steps;
}

// -- operations --

/// `certain`: it is acknowledged. A write that is still pending may come after it.
void SeedRun::set_page(std::uint64_t page, Content content, bool certain) {
    if (certain)
        model_.becomes(page, content);
    else
        model_.may_become(page, content);
    for (const Place& place : places_)
        if (certain && place.is_write() && place.has(page))
            model_.may_become(page, place.written[page - place.range.first]);
    for (Place& place : places_) {
        if (place.is_write() || !place.has(page)) continue;
        Expected& expected = place.expected[page - place.range.first];
        if (!expected.may_be(content)) expected.contents.push_back(content);
    }
}

/// Submits, and insists or loses interest if told to retry. The place is free again if nothing is pending.
IoStatus SeedRun::submit(Place& place, std::uint32_t q) {
    if (submit_once(place.request, q) == IoStatus::retry) {
        check_retry(place, q);
        if (place.is_write()) wrote_in_part(place);
        if (random_.one_in(2) || !insist(place.request, q)) {
            place.active = false;
            return IoStatus::retry;
        }
    }
    if (place.request.status != IoStatus::pending)
        completed(place);
    else if (place.is_write())
        write_became_pending(place, q);
    return place.request.status;
}

IoStatus SeedRun::submit_once(BlockRequest& request, std::uint32_t q) {
    const IoStatus status = queues_[q]->submit(request);
    if (status != request.status) fail("submit and the request disagree");
    return status;
}

void SeedRun::check_retry(const Place& place, std::uint32_t q) {
    ++(place.is_write() ? coverage_.writes_retried : coverage_.reads_retried);
    if (place.is_write() && place.range.pages >= kDirectPagesMin && !place.range.in_one_chunk())
        ++coverage_.large_writes_retried;
    if (place.is_write() || queues_[q]->in_flight() == kQueueDepth || meets_pending_write(place.range))
        return;
    if (moves_) return;  // its chunk may be about to leave
    fail("a read was told to retry without need");
}

/// Waits as a frontend does, for the event or for a completion, and asks again, until there is an answer.
bool SeedRun::insist(BlockRequest& request, std::uint32_t q) {
    constexpr int kRoundsMax = 20'000;
    gpu_.faults().hang = false;
    if (spill_ != nullptr) spill_->faults->hang = false;
    for (int n = 0; n < kRoundsMax && good_; ++n) {
        (void)store_.step();
        if (moves_) (void)store_.step_mover();
        if (take_event(store_->maintenance_fd())) store_->maintain();
        for (std::uint32_t other = 0; other < kQueues; ++other)
            if (other != q) (void)poll(other, kQueueDepth);
        const std::size_t completions = poll(q, kQueueDepth);
        if (!take_event(queues_[q]->event_fd()) && completions == 0) continue;
        if (submit_once(request, q) != IoStatus::retry) return true;
    }
    fail(fmt::format("a request told to retry is never woken, or never done: op {}, {} pages from {}",
                     static_cast<int>(request.op), request.bytes / kPageBytes, request.offset / kPageBytes));
    return false;
}

std::size_t SeedRun::poll(std::uint32_t q, std::size_t most) {
    std::array<BlockRequest*, kQueueDepth> done{};
    const std::size_t n = queues_[q]->poll(std::span(done).first(most));
    for (std::size_t i = 0; i < n && good_; ++i) {
        const auto found = std::ranges::find_if(places_, [&](Place& p) { return &p.request == done[i]; });
        if (found == places_.end() || !found->active) return fail("poll gave back what is not in flight"), n;
        if (found->is_write())
            finish_pending_write(*found);
        else
            completed(*found);
    }
    return n;
}

/// At once, or a read at last.
void SeedRun::completed(Place& place) {
    place.active = false;
    if (place.is_write()) return finish_write(place);
    const IoStatus status = place.request.status;
    if (status == IoStatus::ok) return check_read(place);
    ++(status == IoStatus::lost ? coverage_.reads_lost : coverage_.reads_failed);
    if (std::ranges::any_of(place.expected, [](const Expected& e) { return e.may_be_lost; })) return;
    if (status != IoStatus::io_error) return fail(fmt::format("a read ended with {}", to_string(status)));
    if (weather_ == Weather::corrupt) return;
    if (book_.happened() - place.faults_at_submit < kTries)
        fail(fmt::format("pages {} to {} cannot be read, without need", place.range.first,
                         place.range.end() - 1));
}

// -- writes --

void SeedRun::write(const Range& range) {
    const auto q = static_cast<std::uint32_t>(random_.below(kQueues));
    Place& place = prepare(BlockRequest::Op::write, range, q);
    for (std::uint64_t i = 0; i < place.range.pages; ++i) {
        place.written.push_back(random_content(place.range.first + i));
        fill_page(buffer_of(place).page(i), place.written.back());
    }
    (void)submit(place, q);
}

/// Single pages all over a chunk.
void SeedRun::scatter() {
    const std::uint64_t first = random_.below(kDevicePages / kChunkPages) * kChunkPages;
    for (std::uint64_t n = 3 + random_.below(10); n != 0 && good_; --n)
        write({first + random_.below(kChunkPages), 1});
}

/// Told to retry, or refused: larger ones may have been done in part.
void SeedRun::wrote_in_part(const Place& place) {
    if (place.range.in_one_chunk() && place.range.pages <= kPiecePages) return;
    for (std::uint64_t i = 0; i < place.range.pages; ++i)
        set_page(place.range.first + i, place.written[i], false);
}

void SeedRun::write_became_pending(Place& place, std::uint32_t q) {
    ++coverage_.writes_pending;
    if (queues_[q]->in_flight() > 1) ++coverage_.writes_several_pending;
    for (std::uint64_t i = 0; i < place.range.pages; ++i)
        set_page(place.range.first + i, place.written[i], false);
    for (std::uint64_t i = 0; i < place.range.pages; ++i)
        place.expected.push_back(model_.at(place.range.first + i));
}

void SeedRun::finish_write(Place& place) {
    const IoStatus status = place.request.status;
    if (status != IoStatus::ok) {
        check_refusal(status);
        return wrote_in_part(place);
    }
    for (std::uint64_t i = 0; i < place.range.pages; ++i)
        set_page(place.range.first + i, place.written[i], true);
}

/// Pages that nothing else changed meanwhile are what was written, or lost. Others are what the model says.
void SeedRun::finish_pending_write(Place& place) {
    place.active = false;
    const bool good = place.request.status == IoStatus::ok;
    if (!good) {
        ++coverage_.writes_failed_pending;
        if (place.request.status != IoStatus::io_error || weather_ == Weather::calm ||
            book_.happened() - place.faults_at_submit < kTries)
            fail(fmt::format("a pending write ended with {}", to_string(place.request.status)));
    }
    bool overtaken = false;
    for (std::uint64_t i = 0; i < place.range.pages; ++i) {
        const std::uint64_t page = place.range.first + i;
        const Content content = place.written[i];
        if (model_.at(page).changes == place.expected[i].changes)
            set_page(page, content, true);
        else
            overtaken = true;
        if (good || content == 0) continue;
        model_.may_be_lost(page);
        for (Place& read : places_)
            if (!read.is_write() && read.has(page)) read.expected[page - read.range.first].may_be_lost = true;
    }
    if (overtaken) ++coverage_.writes_overtaken;
}

void SeedRun::check_refusal(IoStatus status) {
    if (status == IoStatus::no_space) ++coverage_.no_space;
    if (status == IoStatus::io_error) ++coverage_.refused;
    if (status == IoStatus::no_space && book_.vram_may_be_short) return;
    if (status == IoStatus::io_error && weather_ != Weather::calm &&
        (store_->stats().writes_are_refused || store_->stats().spill_writes_are_refused))
        return;
    fail(fmt::format("a write was refused without need: {}", to_string(status)));
}

void SeedRun::discard() {
    Range range = random_range(8);
    const std::uint64_t kind = random_.below(10);
    if (kind < 4) range = {range.first / kChunkPages * kChunkPages, kChunkPages};
    if (kind == 0) range.pages *= 1 + random_.below(3);
    range.pages = std::min(range.pages, kDevicePages - range.first);
    BlockRequest request{BlockRequest::Op::discard, range.first * kPageBytes,
                         range.pages * kPageBytes,  nullptr,
                         IoStatus::pending,         nullptr};
    const auto q = static_cast<std::uint32_t>(random_.below(kQueues));
    if (submit_once(request, q) == IoStatus::retry) {
        ++coverage_.discards_retried;
        if (!meets_pending_write(range)) fail("a discard was told to retry without need");
        for (std::uint64_t p = range.first; p < range.end(); ++p) set_page(p, 0, false);
        if (random_.one_in(2) || !insist(request, q)) return;
    }
    if (request.status != IoStatus::ok) fail("a discard failed");
    for (std::uint64_t p = range.first; p < range.end(); ++p) set_page(p, 0, true);
}

// -- reads --

void SeedRun::read() {
    const auto q = static_cast<std::uint32_t>(random_.below(kQueues));
    Place& place = prepare(BlockRequest::Op::read, random_range(kRequestPagesMax), q);
    for (std::uint64_t p = place.range.first; p < place.range.end(); ++p)
        place.expected.push_back(model_.at(p));
    std::memset(buffer_of(place).data(), 0x5A, place.range.pages * kPageBytes);
    (void)submit(place, q);
}

void SeedRun::check_read(Place& read) {
    HostMemory& memory = buffer_of(read);
    bool overtaken = false;
    for (std::uint64_t i = 0; i < read.range.pages && good_; ++i) {
        const std::uint64_t page = read.range.first + i;
        const auto content = content_of(memory.page(i));
        if (!content)
            fail(fmt::format("page {} is torn or corrupt", page));
        else if (!read.expected[i].may_be(*content))
            fail(fmt::format("page {} holds {:#x}, expected {:#x} or {} others", page, *content,
                             read.expected[i].contents.back(), read.expected[i].contents.size() - 1));
        else if (model_.at(page).changes == read.expected[i].changes)
            model_.is(page, *content);
        else
            overtaken = true;
    }
    if (overtaken) ++coverage_.reads_overtaken;
}

// -- checks at rest --

void SeedRun::check_stats() {
    const StoreStats stats = store_->stats();
    const auto [least, most] = model_.stored();
    if (stats.stored < Bytes{least * kPageBytes} || stats.stored > Bytes{most * kPageBytes})
        fail(fmt::format("{} pages are stored, not {} to {}", stats.stored.n / kPageBytes, least, most));
    if (stats.dirty > stats.staged || stats.staged > kStage) fail("the stage holds more than it can");
    if (stats.vram > vram_ || (stats.vram < kSegment && !moves_)) fail("the segments do not fit");
    if (stats.stored > stats.vram + stats.spilled) fail("more is stored than there is room for");
}

void SeedRun::calm_down() {
    book_.clear();
    if (moves_ && random_.one_in(2)) store_->obey(0, {});  // else what is spilled stays there
    if (moves_ && !settle()) return fail("the mover never comes to rest");
    for (int n = 0; n < 100 && good_; ++n)  // a read may wait for a write of another queue
        for (std::uint32_t q = 0; q < kQueues; ++q) (void)poll(q, kQueueDepth);
    for (std::uint32_t q = 0; q < kQueues; ++q)
        if (queues_[q]->in_flight() != 0) fail("a request never completes");
    if (!store_.drain()) fail("dirty pages never reach VRAM");
    const StoreStats stats = store_->stats();
    if (stats.dirty.n != 0 || stats.staged.n != 0) fail("something is left in the stage");
    if (stats.writes_are_refused) fail("writes are refused though the last flush went well");
    check_stats();
}

/// The mover has done what it can: chunks that are pinned by reads, or do not fit, stay where they are.
bool SeedRun::settle() {
    constexpr int kRoundsMax = 20'000;
    for (int n = 0; n < kRoundsMax; ++n) {
        for (std::uint32_t q = 0; q < kQueues; ++q) (void)poll(q, kQueueDepth);
        if (store_.step_mover() == Mover::kNever) return true;
        if (n > 200 && !store_->mover().is_moving()) return true;
    }
    return false;
}

/// A read at rest; completed() looks whether it is right.
IoStatus SeedRun::read_now(const Range& range) {
    Place& place = prepare(BlockRequest::Op::read, range, 0);
    for (std::uint64_t p = range.first; p < range.end(); ++p) place.expected.push_back(model_.at(p));
    if (submit_once(place.request, 0) != IoStatus::pending) completed(place);
    for (int n = 0; n < 100 && place.active && good_; ++n) (void)poll(0, 1);
    if (place.active) fail("a read never completes");
    return place.request.status;
}

void SeedRun::check_everything() {
    constexpr std::uint64_t kStep = 256;
    for (std::uint64_t p = 0; p < kDevicePages && good_; p += kStep) {
        const Range range{p, std::min(kStep, kDevicePages - p)};
        if (read_now(range) == IoStatus::ok) continue;
        for (std::uint64_t page = p; page < range.end() && good_; ++page) (void)read_now({page, 1});
    }
}

/// Whatever happened before, all pages that find room can be written and read.
void SeedRun::check_rewriting() {
    const std::uint64_t chunks_at_once = vram_.n / kChunkBytes;
    if (moves_) store_->obey(0, {});
    BlockRequest all{BlockRequest::Op::discard, 0, kDevice.n, nullptr, IoStatus::pending, nullptr};
    if (submit_once(all, 0) != IoStatus::ok) return fail("a discard failed");
    for (std::uint64_t p = 0; p < kDevicePages; ++p) set_page(p, 0, true);
    for (std::uint64_t p = 0; p < std::min(kDevicePages, chunks_at_once * kChunkPages) && good_; p += 100) {
        Place& place = prepare(BlockRequest::Op::write, {p, 1}, 0);
        place.written.push_back(content_for({p}, 1));
        fill_page(buffer_of(place).data(), place.written[0]);
        store_->maintain();
        if (submit_once(place.request, 0) == IoStatus::retry && !insist(place.request, 0)) return;
        if (place.request.status == IoStatus::pending)
            write_became_pending(place, 0);
        else
            completed(place);
        for (int n = 0; n < 100 && place.active && good_; ++n) (void)poll(0, 1);
        if (place.request.status != IoStatus::ok)
            return fail(fmt::format("page {} is refused at the end: {}", p, to_string(place.request.status)));
    }
    if (!store_.drain()) return fail("dirty pages never reach VRAM");
    for (std::uint64_t p = 0; p < kDevicePages && good_; p += 50)
        if (read_now({p, 1}) != IoStatus::ok) fail(fmt::format("page {} cannot be read at the end", p));
}

/// Nothing stored means nothing held: a slot, an image or a pin left over would show here.
void SeedRun::check_emptiness() {
    BlockRequest all{BlockRequest::Op::discard, 0, kDevice.n, nullptr, IoStatus::pending, nullptr};
    if (submit_once(all, 0) != IoStatus::ok) return fail("a discard failed");
    if (moves_ && !settle()) return fail("the mover never comes to rest");
    store_->maintain();
    const StoreStats stats = store_->stats();
    if (stats.spilled.n != 0) fail("something is left in the spill");
    if (stats.stored.n != 0 || stats.dirty.n != 0 || stats.staged.n != 0)
        fail("something is left of nothing");
    if (stats.vram != kSegment || gpu_.free() != vram_ - kSegment)
        fail(fmt::format("{} of VRAM are left for nothing", format_size(stats.vram)));
}

std::uint64_t number_from_env(const char* name, std::uint64_t otherwise) {
    const char* text = std::getenv(name);
    return text == nullptr ? otherwise : std::strtoull(text, nullptr, 10);
}

TEST(StoreModel, AgreesWithAMapOfPages) {
    constexpr int kOperations = 400;
    constexpr std::uint64_t kSeeds = 1000;
    constexpr std::uint64_t kCounted = 500;  // so many must have met everything, each thing a tenth of them
    log_configure(LogStyle::plain, LogLevel::error, "store_model");
    const std::uint64_t first = number_from_env("VRAMSWAP_SEED_FIRST", 1);
    const std::uint64_t seeds = number_from_env("VRAMSWAP_SEEDS", kSeeds);
    Buffers buffers;
    Coverage coverage;
    for (std::uint64_t seed = first; seed < first + seeds; ++seed) {
        SeedRun run(seed, buffers, coverage);
        ASSERT_TRUE(run.run(kOperations)) << "again with VRAMSWAP_SEED_FIRST=" << seed << " VRAMSWAP_SEEDS=1";
    }
    for (const auto& [name, count] : coverage.all()) {
        fmt::print("{:>10} {}\n", count, name);
        if (seeds >= kCounted) {
            EXPECT_GE(count, seeds / 10) << name;
        }
    }
}

// ---- threads ----
// Three threads with a queue each, the flusher's own thread and its mergers, and one that maintains. A page's
// content names the page. Pages written by one thread only must hold exactly what it wrote last, or what it
// is just writing. Others may hold any version of themselves or zeros, and never half a version or another
// page. Meant for ThreadSanitizer; the number of operations is fixed.

/// Pages that belong together; large ones, so that writes go straight to VRAM, in some chunks.
constexpr std::uint64_t block_pages(std::uint64_t page) {
    const std::uint64_t chunk = page / kChunkPages;
    return chunk == 3 || chunk == 4 ? 2 * kDirectPagesMin : 8;
}
constexpr std::uint64_t kSharedChunk = 5;
constexpr std::uint32_t kEverybody = kQueues;

/// The thread that alone writes the page, or kEverybody.
constexpr std::uint32_t writer_of(std::uint64_t page) {
    if (page / kChunkPages == kSharedChunk) return kEverybody;
    return static_cast<std::uint32_t>(page / block_pages(page) % (kQueues + 1));
}

class StressThread {
  public:
    StressThread(PageStore& store, std::uint32_t number)
        : number_(number), random_(number), queue_(std::move(*store.make_queue(kQueueDepth))) {
        for (auto& memory : memory_) memory = std::make_unique<HostMemory>(kChunkBytes);
    }

    void run(std::uint64_t operations) {
        for (std::uint64_t n = 0; n < operations && good_; ++n) {
            const std::uint64_t what = random_.below(16);
            if (what < 5)
                write(random_writable());
            else if (what < 8)
                write_and_read(random_writable());
            else if (what < 15)
                read_some(0);
            else
                discard(random_writable());
            ended_.fetch_add(1);
        }
        at_rest_.store(true);
    }
    /// Operations that have ended. Any thread.
    [[nodiscard]] std::uint64_t ended() const { return ended_.load(); }
    [[nodiscard]] bool has_ended_since(std::uint64_t ended) const {
        return at_rest_.load() || ended_.load() > ended;
    }
    /// All that it alone writes, and a look at the rest.
    void check_everything() {
        for (std::uint64_t p = 0; p < kDevicePages && good_; p += kChunkPages)
            read(0, {p, std::min(kChunkPages, kDevicePages - p)});
    }
    [[nodiscard]] bool good() const { return good_; }

  private:
    /// Often one of a few, so that threads meet.
    std::uint64_t random_page() {
        return random_.one_in(2) ? random_.below(64) : random_.below(kDevicePages);
    }

    /// Pages in one block that this thread may write, or many pages of the shared chunk.
    Range random_writable() {
        if (random_.one_in(16)) {
            const std::uint64_t first = random_.below(kChunkPages);
            return {kSharedChunk * kChunkPages + first, 1 + random_.below(kChunkPages - first)};
        }
        std::uint64_t page = random_page();
        while (writer_of(page) != number_ && writer_of(page) != kEverybody) page = random_page();
        const std::uint64_t block = block_pages(page);
        if (block > kDirectPagesMin && random_.one_in(2)) return {page / block * block, block};
        const std::uint64_t left = std::min(block - page % block, kDevicePages - page);
        return {page, 1 + random_.below(left)};
    }

    void write(const Range& range) {
        begin_write(range);
        finish_requests();
        end_write();
    }
    /// The write is in flight, perhaps, and reads meet it.
    void write_and_read(const Range& range) {
        begin_write(range);
        read_some(1);
        end_write();
    }
    void begin_write(const Range& range) {
        writing_ = range;
        new_.clear();
        for (std::uint64_t i = 0; i < range.pages; ++i) {
            new_.push_back(random_.one_in(20) ? 0 : content_for({range.first + i}, ++version_ * 4 + number_));
            fill_page(memory_[0]->page(i), new_.back());
        }
        insist(0, BlockRequest::Op::write, range);
    }
    /// REQUIRES: nothing in flight.
    void end_write() {
        if (requests_[0].status != IoStatus::ok)
            return fail(fmt::format("a write ended with {}", to_string(requests_[0].status)));
        for (std::uint64_t i = 0; i < writing_.pages; ++i) wrote_[writing_.first + i] = new_[i];
        writing_ = {};
    }

    void discard(const Range& range) {
        insist(0, BlockRequest::Op::discard, range);
        if (requests_[0].status != IoStatus::ok)
            return fail(fmt::format("a discard ended with {}", to_string(requests_[0].status)));
        for (std::uint64_t i = 0; i < range.pages; ++i) wrote_[range.first + i] = 0;
    }

    /// Request number n, submitted until there is room: sleeps on the queue's event as a frontend does, or
    /// polls while requests are in flight. The limit is a watchdog: a lost wake-up would last for ever.
    void insist(std::uint64_t n, BlockRequest::Op op, const Range& range) {
        constexpr int kWatchdogMs = 100'000;
        requests_[n] = {op,
                        range.first * kPageBytes,
                        range.pages * kPageBytes,
                        op == BlockRequest::Op::discard ? nullptr : memory_[n]->data(),
                        IoStatus::pending,
                        nullptr};
        while (good_ && queue_->submit(requests_[n]) == IoStatus::retry)
            for (bool worth_it = false; good_ && !worth_it;) {
                std::array<BlockRequest*, kQueueDepth> done{};
                const bool busy = queue_->in_flight() != 0;
                if (busy) worth_it = queue_->poll(done) != 0;
                pollfd event{queue_->event_fd(), POLLIN, 0};
                const int ready = ::poll(&event, 1, busy ? 0 : kWatchdogMs);
                if (ready == 0 && !busy) fail("a request was never woken");
                worth_it = (ready == 1 && take_event(queue_->event_fd())) || worth_it;
            }
    }

    /// Reads with the requests from number `first` on, and ends them and all before.
    void read_some(std::uint64_t first) {
        const std::uint64_t end = first + 1 + random_.below(kQueueDepth - first);
        std::array<Range, kQueueDepth> ranges{};
        for (std::uint64_t n = first; n < end; ++n) {
            const std::uint64_t page = random_page();
            const std::uint64_t most = random_.one_in(20) ? kChunkPages : 32;
            ranges[n] = {page, 1 + random_.below(std::min(most, kDevicePages - page))};
            begin_read(n, ranges[n]);
        }
        finish_requests();
        for (std::uint64_t n = first; n < end && good_; ++n) check(n, ranges[n]);
    }
    void read(std::uint64_t n, const Range& range) {
        begin_read(n, range);
        finish_requests();
        check(n, range);
    }
    void begin_read(std::uint64_t n, const Range& range) {
        std::memset(memory_[n]->data(), 0x5A, range.pages * kPageBytes);
        insist(n, BlockRequest::Op::read, range);
    }
    void finish_requests() {
        std::array<BlockRequest*, kQueueDepth> done{};
        while (queue_->in_flight() != 0)
            (void)queue_->poll(std::span(done).first(1 + random_.below(kQueueDepth)));
    }
    /// What this thread wrote to the page, or is just writing.
    [[nodiscard]] bool may_hold(std::uint64_t page, Content content) const {
        const bool writes = page >= writing_.first && page < writing_.end();
        return content == wrote_[page] || (writes && content == new_[page - writing_.first]);
    }
    void check(std::uint64_t n, const Range& range) {
        if (requests_[n].status != IoStatus::ok)
            return fail(fmt::format("a read ended with {}", to_string(requests_[n].status)));
        for (std::uint64_t i = 0; i < range.pages && good_; ++i) {
            const std::uint64_t page = range.first + i;
            const auto content = content_of(memory_[n]->page(i));
            if (!content)
                fail(fmt::format("page {} is torn or corrupt", page));
            else if (*content != 0 && page_named_by(*content) != PageIndex{page})
                fail(fmt::format("page {} holds page {}", page, page_named_by(*content).n));
            else if (writer_of(page) == number_ && !may_hold(page, *content))
                fail(fmt::format("page {} holds {:#x}, not {:#x}", page, *content, wrote_[page]));
        }
    }
    void fail(const std::string& what) {
        if (good_) ADD_FAILURE() << "thread " << number_ << ": " << what;
        good_ = false;
    }

    const std::uint32_t number_;
    Random random_;
    std::unique_ptr<TargetQueue> queue_;
    std::array<std::unique_ptr<HostMemory>, kQueueDepth> memory_;
    std::array<BlockRequest, kQueueDepth> requests_{};
    Range writing_{};           ///< request 0 writes it
    std::vector<Content> new_;  ///< its pages
    std::vector<Content> wrote_ = std::vector<Content>(kDevicePages, 0);
    std::uint32_t version_ = 0;
    bool good_ = true;
    std::atomic<std::uint64_t> ended_{0};
    std::atomic<bool> at_rest_{false};
};

/// Stirs in one fault after the other, and the next only when each client has ended what it was doing when
/// the one before struck, and the flusher has had a success: nothing is hit three times, however slow a
/// thread is.
class FaultSource {
  public:
    FaultSource(PageStore& store, SimFaults& faults,
                const std::vector<std::unique_ptr<StressThread>>& clients)
        : store_(store), faults_(faults), clients_(clients), ended_(clients.size()) {}

    void stir() {
        if (faults_.corrupt_reads != 0 || faults_.fail_copies != 0) return;  // none has struck yet
        const StoreStats stats = store_.stats();
        if (!struck_) {
            struck_ = true;
            flush_failed_ = stats.flush_errors != flush_errors_;
            flush_errors_ = stats.flush_errors;
            pages_flushed_ = stats.pages_flushed;
            for (std::size_t n = 0; n < clients_.size(); ++n) ended_[n] = clients_[n]->ended();
        }
        for (std::size_t n = 0; n < clients_.size(); ++n)
            if (!clients_[n]->has_ended_since(ended_[n])) return;
        if (flush_failed_ && stats.pages_flushed == pages_flushed_) return;
        struck_ = false;
        (++count_ % 2 == 0 ? faults_.corrupt_reads : faults_.fail_copies) = 1;
    }

  private:
    PageStore& store_;
    SimFaults& faults_;
    const std::vector<std::unique_ptr<StressThread>>& clients_;
    std::vector<std::uint64_t> ended_;
    std::uint64_t flush_errors_ = 0, pages_flushed_ = 0, count_ = 0;
    bool struck_ = false;
    bool flush_failed_ = false;  ///< since the fault before
};

/// Maintains, looks at the counters, changes the GPU's ways and stirs in faults.
void maintain_until(const std::atomic<bool>& stop, PageStore& store, SimFaults& faults,
                    FaultSource& fault_source, bool orders) {
    for (std::uint64_t round = 1; !stop.load(); ++round) {
        pollfd event{store.maintenance_fd(), POLLIN, 0};
        (void)::poll(&event, 1, 1);
        store.maintain();
        EXPECT_LE(store.stats().stored, kDevice);
        faults.early = round % 2 == 0;
        faults.latency_ns = round % 4 < 2 ? 3'000 : 100'000;
        fault_source.stir();
        if (orders && round % 8 == 0) store.obey(0, {.vram_max = kSegment * (round / 8 % 5)});
    }
}

struct StressShape {
    FlusherConfig flusher{};
    bool spill = false;  ///< and less and more VRAM all the time
};
class StoreStress : public ::testing::TestWithParam<StressShape> {};

TEST_P(StoreStress, ThreadsNeverSeeForeignOrTornPages) {
    const std::uint64_t operations = number_from_env("VRAMSWAP_STRESS_OPERATIONS", 4000);
    log_configure(LogStyle::plain, LogLevel::error, "store_model");
    SimGpu gpu(kVramEnough);
    std::unique_ptr<Spill> spill;
    if (GetParam().spill) {
        SpillConfig config;
        config.path = "/dev/shm";
        config.size_max = {kDevice.n + kChunkBytes};
        spill = std::move(*Spill::open(config));
    }
    SteppedStore store(gpu, {kDevice, kSegment, kStage, GetParam().flusher, EngineMode::copy, spill.get()},
                       nullptr);
    std::vector<std::unique_ptr<StressThread>> clients;
    for (std::uint32_t n = 0; n < kQueues; ++n) clients.push_back(std::make_unique<StressThread>(*store, n));
    ASSERT_TRUE(store->start());
    std::atomic<bool> stop{false};
    FaultSource fault_source(*store, gpu.faults(), clients);
    std::thread maintainer(
        [&] { maintain_until(stop, *store, gpu.faults(), fault_source, GetParam().spill); });
    std::vector<std::thread> threads;
    for (auto& client : clients) threads.emplace_back([&client, operations] { client->run(operations); });
    for (auto& thread : threads) thread.join();
    stop = true;
    maintainer.join();
    store->flusher().stop();
    store->mover().stop();
    if (GetParam().flusher.mergers != 0u) {
        EXPECT_GT(store->stats().images_completed, 0u);
    }
    if (GetParam().spill) {
        EXPECT_GT(store->stats().moved_out.n, 0u);
        EXPECT_GT(store->stats().moved_back.n, 0u);
    }
    store->obey(0, {});

    gpu.faults().corrupt_reads = gpu.faults().fail_copies = 0;
    ASSERT_TRUE(store.drain());
    for (auto& client : clients) client->check_everything();
    for (const auto& client : clients) ASSERT_TRUE(client->good());
    clients.clear();
    auto queue = std::move(*store->make_queue(1));
    BlockRequest all{BlockRequest::Op::discard, 0, kDevice.n, nullptr, IoStatus::pending, nullptr};
    ASSERT_EQ(queue->submit(all), IoStatus::ok);
    EXPECT_TRUE(store.settle());
    store->maintain();
    EXPECT_EQ(store->stats().stored + store->stats().staged + store->stats().spilled, Bytes{0});
    EXPECT_EQ(store->stats().vram, kSegment);
}

constexpr std::uint64_t kStressAgeNs = 50'000;

std::string stress_name(const ::testing::TestParamInfo<StressShape>& at) {
    constexpr std::array kNames{"InRuns", "Whole", "WholeByMergers", "WhileChunksMove"};
    return kNames.at(at.index);
}

INSTANTIATE_TEST_SUITE_P(FlushesAreSent, StoreStress,
                         ::testing::Values(StressShape{{kStressAgeNs, kSendRuns, 0}},
                                           StressShape{{kStressAgeNs, kSendWhole, 0}},
                                           StressShape{{kStressAgeNs, kSendWhole, 3}},
                                           StressShape{{kStressAgeNs, kSendRuns, 0}, true}),
                         stress_name);

}  // namespace
}  // namespace vramswap
