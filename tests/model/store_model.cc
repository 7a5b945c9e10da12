// SPDX-License-Identifier: MIT
// The store against a std::map of pages: seeded operations and faults, checked both ways. What was
// acknowledged is read back, what was not written is zeros, and a request fails only if a fault explains it.
// Everything runs in one thread under a made-up clock, so a seed does the same each time:
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
/// The store copies a page from VRAM this often before it gives up: so many faults explain a failed read.
constexpr std::uint64_t kTries = 3;

struct Range {
    std::uint64_t first = 0;
    std::uint64_t pages = 0;
    [[nodiscard]] std::uint64_t end() const { return first + pages; }
    [[nodiscard]] bool in_one_chunk() const { return first / kChunkPages == (end() - 1) / kChunkPages; }
};

// ---- the model ----

/// What a page may hold: one content, or several after a write that may have been done in part.
struct Expected {
    std::vector<Content> contents{0};
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
        ++expected.changes;
    }
    void may_become(std::uint64_t page, Content content) {
        Expected& expected = pages_[page];
        if (!expected.may_be(content)) expected.contents.push_back(content);
        ++expected.changes;
    }
    /// It was read, and nothing changed it meanwhile.
    void is(std::uint64_t page, Content content) {
        if (const auto found = pages_.find(page); found != pages_.end())
            found->second.contents.assign(1, content);
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

/// A read in flight: for each page all that it may return, growing while pages change.
struct PendingRead {
    bool active = false;
    Range range{};
    BlockRequest request{};
    std::vector<Expected> expected;
    std::uint64_t changes = 0;  ///< of its pages since it was submitted
    std::uint64_t faults_at_submit = 0;
};

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
    explicit FaultBook(SimFaults& faults) : faults_(faults) {}

    void arm_failures(std::uint32_t n) { arm(faults_.fail_copies, n); }
    void arm_corrupt_reads(std::uint32_t n) { arm(faults_.corrupt_reads, n); }
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
        return armed_ - faults_.fail_copies.load() - faults_.corrupt_reads.load();
    }
    void clear() {
        armed_ = happened();
        for (auto* counter : {&faults_.fail_copies, &faults_.corrupt_reads, &faults_.corrupt_writes,
                              &faults_.misplace_writes, &faults_.fail_allocations})
            *counter = 0;
        faults_.taken_by_others = 0;
        faults_.hang = faults_.early = false;
    }
    bool vram_may_be_short = false;  ///< at some time since the start

  private:
    void arm(std::atomic<std::uint32_t>& counter, std::uint32_t n) {
        counter += n;
        armed_ += n;
    }
    SimFaults& faults_;
    std::uint64_t armed_ = 0;
};

// ---- one seed ----

/// Memory of all requests, made once for all seeds.
struct Buffers {
    HostMemory write{BlockRequest::kMaxTransferBytes};
    std::vector<std::unique_ptr<HostMemory>> reads;
    Buffers() {
        for (std::uint32_t n = 0; n < kQueues * kQueueDepth; ++n)
            reads.push_back(std::make_unique<HostMemory>(BlockRequest::kMaxTransferBytes));
    }
};

class SeedRun {
  public:
    SeedRun(std::uint64_t seed, Buffers& buffers)
        : random_(seed),
          weather_(static_cast<Weather>(random_.below(3))),
          vram_(weather_ == Weather::calm ? kVramEnough : kSegment * (2 + random_.below(3))),
          buffers_(buffers),
          gpu_(vram_),
          book_(gpu_.faults()),
          store_(gpu_, {kDevice, kSegment, kStage, {}}, nullptr) {
        book_.vram_may_be_short = vram_ < kVramEnough;
        for (auto& queue : queues_) queue = std::move(*store_->make_queue(kQueueDepth));
    }

    /// False, with a gtest failure, if the store broke a promise.
    bool run(int operations) {
        for (int n = 0; n < operations && good_; ++n) {
            operate();
            if (n % 64 == 0) check_stats();
        }
        if (good_) calm_down();
        if (good_) check_everything();
        if (good_) check_emptiness();
        return good_;
    }

  private:
    void operate();
    void write();
    void discard();
    void read();
    void change_weather();
    void step();
    bool insist(BlockRequest& request, std::uint32_t q);
    IoStatus submit(BlockRequest& request, std::uint32_t q);
    void wrote(const Range& range, const std::vector<Content>& contents, IoStatus status);
    void check_refusal(IoStatus status);
    void set_page(std::uint64_t page, Content content, bool certain);
    std::size_t poll(std::uint32_t q, std::size_t most);
    void completed(PendingRead& read);
    void check_read(PendingRead& read);
    void calm_down();
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
    PendingRead* idle_read(std::uint32_t q);
    HostMemory& buffer_of(const PendingRead& read) {
        return *buffers_.reads[static_cast<std::size_t>(&read - reads_.data())];
    }

    Random random_;
    const Weather weather_;
    const Bytes vram_;
    Buffers& buffers_;
    SimGpu gpu_;
    FaultBook book_;
    SteppedStore store_;
    std::array<std::unique_ptr<TargetQueue>, kQueues> queues_;
    std::array<PendingRead, kQueues * kQueueDepth> reads_{};
    Model model_;
    Content last_content_ = 0;
    bool good_ = true;
};

void SeedRun::operate() {
    const std::uint64_t what = random_.below(100);
    if (what < 32)
        write();
    else if (what < 52)
        read();
    else if (what < 60)
        discard();
    else if (what < 78)
        step();
    else if (what < 82)
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

void SeedRun::step() {
    store_.advance(random_.below(3'000'000));
    (void)(random_.one_in(4) ? store_.step_early() : store_.step());
}

// -- operations --

void SeedRun::set_page(std::uint64_t page, Content content, bool certain) {
    if (certain)
        model_.becomes(page, content);
    else
        model_.may_become(page, content);
    for (PendingRead& read : reads_) {
        if (!read.active || page < read.range.first || page >= read.range.end()) continue;
        Expected& expected = read.expected[page - read.range.first];
        if (!expected.may_be(content)) expected.contents.push_back(content);
        ++read.changes;
    }
}

void SeedRun::write() {
    const auto q = static_cast<std::uint32_t>(random_.below(kQueues));
    const Range range = random_range(kRequestPagesMax);
    std::vector<Content> contents;
    for (std::uint64_t i = 0; i < range.pages; ++i) {
        contents.push_back(random_content(range.first + i));
        fill_page(buffers_.write.page(i), contents.back());
    }
    BlockRequest request{BlockRequest::Op::write, range.first * kPageBytes, range.pages * kPageBytes,
                         buffers_.write.data(),   IoStatus::pending,        nullptr};
    IoStatus status = submit(request, q);
    if (status == IoStatus::retry) {
        wrote(range, contents, status);
        if (random_.one_in(2) || !insist(request, q)) return;  // the caller may lose interest
        status = request.status;
    }
    wrote(range, contents, status);
}

void SeedRun::wrote(const Range& range, const std::vector<Content>& contents, IoStatus status) {
    if (status != IoStatus::ok) {
        if (status == IoStatus::pending) return fail("a write is pending");
        if (status != IoStatus::retry) check_refusal(status);
        if (range.in_one_chunk()) return;  // all or nothing
    }
    for (std::uint64_t i = 0; i < range.pages; ++i)
        set_page(range.first + i, contents[i], status == IoStatus::ok);
}

void SeedRun::check_refusal(IoStatus status) {
    if (status == IoStatus::no_space && book_.vram_may_be_short) return;
    if (status == IoStatus::io_error && weather_ != Weather::calm && store_->stats().writes_are_refused)
        return;
    fail(fmt::format("a write was refused without need: {}", to_string(status)));
}

IoStatus SeedRun::submit(BlockRequest& request, std::uint32_t q) {
    const IoStatus status = queues_[q]->submit(request);
    if (status != request.status) fail("submit and the request disagree");
    return status;
}

/// Waits as a frontend does, for the event or for a completion, and asks again, until there is an answer.
bool SeedRun::insist(BlockRequest& request, std::uint32_t q) {
    constexpr int kRoundsMax = 20'000;
    gpu_.faults().hang = false;
    for (int n = 0; n < kRoundsMax && good_; ++n) {
        (void)store_.step();
        if (take_event(store_->maintenance_fd())) store_->maintain();
        const std::size_t completions = poll(q, kQueueDepth);
        if (!take_event(queues_[q]->event_fd()) && completions == 0) continue;
        if (submit(request, q) != IoStatus::retry) return true;
    }
    fail("a request told to retry is never woken, or never done");
    return false;
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
    if (submit(request, static_cast<std::uint32_t>(random_.below(kQueues))) != IoStatus::ok)
        fail("a discard failed");
    for (std::uint64_t p = range.first; p < range.end(); ++p) set_page(p, 0, true);
}

// -- reads --

PendingRead* SeedRun::idle_read(std::uint32_t q) {
    for (std::uint32_t n = 0; n < kQueueDepth; ++n)
        if (PendingRead& read = reads_[q * kQueueDepth + n]; !read.active) return &read;
    return nullptr;
}

void SeedRun::read() {
    const auto q = static_cast<std::uint32_t>(random_.below(kQueues));
    PendingRead* read = idle_read(q);
    if (read == nullptr) return (void)poll(q, 1);
    read->range = random_range(kRequestPagesMax);
    read->expected.clear();
    for (std::uint64_t p = read->range.first; p < read->range.end(); ++p)
        read->expected.push_back(model_.at(p));
    read->changes = 0;
    read->faults_at_submit = book_.happened();
    HostMemory& memory = buffer_of(*read);
    std::memset(memory.data(), 0x5A, read->range.pages * kPageBytes);
    read->request = {BlockRequest::Op::read,
                     read->range.first * kPageBytes,
                     read->range.pages * kPageBytes,
                     memory.data(),
                     IoStatus::pending,
                     nullptr};
    const IoStatus status = submit(read->request, q);
    if (status == IoStatus::retry) return fail("a read was told to retry though its queue has room");
    read->active = true;
    if (status != IoStatus::pending) completed(*read);
}

std::size_t SeedRun::poll(std::uint32_t q, std::size_t most) {
    std::array<BlockRequest*, kQueueDepth> done{};
    const std::size_t n = queues_[q]->poll(std::span(done).first(most));
    for (std::size_t i = 0; i < n && good_; ++i) {
        const auto found =
            std::ranges::find_if(reads_, [&](PendingRead& r) { return &r.request == done[i]; });
        if (found == reads_.end() || !found->active) return fail("poll gave back what is not in flight"), n;
        completed(*found);
    }
    return n;
}

void SeedRun::completed(PendingRead& read) {
    read.active = false;
    const IoStatus status = read.request.status;
    if (status == IoStatus::ok) return check_read(read);
    if (status != IoStatus::io_error) return fail(fmt::format("a read ended with {}", to_string(status)));
    if (weather_ == Weather::corrupt) return;
    // An overtaken copy is repeated like a failed one.
    if (book_.happened() - read.faults_at_submit + read.changes < kTries)
        fail(fmt::format("pages {} to {} cannot be read, without need", read.range.first,
                         read.range.end() - 1));
}

void SeedRun::check_read(PendingRead& read) {
    HostMemory& memory = buffer_of(read);
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
    }
}

// -- checks at rest --

void SeedRun::check_stats() {
    const StoreStats stats = store_->stats();
    const auto [least, most] = model_.stored();
    if (stats.stored < Bytes{least * kPageBytes} || stats.stored > Bytes{most * kPageBytes})
        fail(fmt::format("{} pages are stored, not {} to {}", stats.stored.n / kPageBytes, least, most));
    if (stats.dirty > stats.staged || stats.staged > kStage) fail("the stage holds more than it can");
    if (stats.vram > vram_ || stats.vram < kSegment) fail("the segments do not fit");
    if (stats.stored > stats.vram) fail("more is stored than there is room for");
}

void SeedRun::calm_down() {
    book_.clear();
    for (std::uint32_t q = 0; q < kQueues; ++q)
        for (int n = 0; n < 100 && queues_[q]->in_flight() != 0 && good_; ++n) (void)poll(q, kQueueDepth);
    for (std::uint32_t q = 0; q < kQueues; ++q)
        if (queues_[q]->in_flight() != 0) fail("a read never completes");
    if (!store_.drain()) fail("dirty pages never reach VRAM");
    const StoreStats stats = store_->stats();
    if (stats.dirty.n != 0 || stats.staged.n != 0) fail("something is left in the stage");
    if (stats.writes_are_refused) fail("writes are refused though the last flush went well");
    check_stats();
}

void SeedRun::check_everything() {
    constexpr std::uint64_t kStep = 256;
    for (std::uint64_t p = 0; p < kDevicePages && good_; p += kStep) {
        PendingRead& read = reads_[0];
        read.range = {p, std::min(kStep, kDevicePages - p)};
        read.expected.clear();
        for (std::uint64_t i = p; i < read.range.end(); ++i) read.expected.push_back(model_.at(i));
        read.changes = 0;
        read.faults_at_submit = book_.happened();
        read.request = {BlockRequest::Op::read, p * kPageBytes,    read.range.pages * kPageBytes,
                        buffer_of(read).data(), IoStatus::pending, nullptr};
        read.active = true;
        if (submit(read.request, 0) != IoStatus::pending) completed(read);
        for (int n = 0; n < 100 && read.active && good_; ++n) (void)poll(0, 1);
        if (read.active) fail("a read never completes");
    }
    if (good_) check_rewriting();
}

/// Whatever happened before, all pages that find room can be written and read.
void SeedRun::check_rewriting() {
    const std::uint64_t chunks_at_once = vram_.n / kChunkBytes;
    BlockRequest all{BlockRequest::Op::discard, 0, kDevice.n, nullptr, IoStatus::pending, nullptr};
    if (submit(all, 0) != IoStatus::ok) return fail("a discard failed");
    for (std::uint64_t p = 0; p < kDevicePages; ++p) set_page(p, 0, true);
    for (std::uint64_t p = 0; p < std::min(kDevicePages, chunks_at_once * kChunkPages) && good_; p += 100) {
        fill_page(buffers_.write.data(), content_for({p}, 1));
        BlockRequest request{BlockRequest::Op::write, p * kPageBytes,    kPageBytes,
                             buffers_.write.data(),   IoStatus::pending, nullptr};
        store_->maintain();
        if (submit(request, 0) == IoStatus::retry && !insist(request, 0)) return;
        if (request.status != IoStatus::ok)
            return fail(fmt::format("page {} is refused at the end: {}", p, to_string(request.status)));
        set_page(p, content_for({p}, 1), true);
    }
    if (!store_.drain()) return fail("dirty pages never reach VRAM");
    for (std::uint64_t p = 0; p < kDevicePages && good_; p += 50) {
        BlockRequest request{BlockRequest::Op::read, p * kPageBytes,    kPageBytes,
                             buffers_.write.data(),  IoStatus::pending, nullptr};
        std::array<BlockRequest*, 1> done{};
        (void)submit(request, 0);
        for (int n = 0; n < 100 && request.status == IoStatus::pending; ++n) (void)queues_[0]->poll(done);
        if (request.status != IoStatus::ok) fail(fmt::format("page {} cannot be read at the end", p));
        if (content_of(buffers_.write.data()) != model_.at(p).contents.at(0))
            fail(fmt::format("page {} is wrong at the end", p));
    }
}

/// Nothing stored means nothing held: a slot, an image or a pin left over would show here.
void SeedRun::check_emptiness() {
    BlockRequest all{BlockRequest::Op::discard, 0, kDevice.n, nullptr, IoStatus::pending, nullptr};
    if (submit(all, 0) != IoStatus::ok) return fail("a discard failed");
    store_->maintain();
    const StoreStats stats = store_->stats();
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
    log_configure(LogStyle::plain, LogLevel::error, "store_model");
    const std::uint64_t first = number_from_env("VRAMSWAP_SEED_FIRST", 1);
    const std::uint64_t seeds = number_from_env("VRAMSWAP_SEEDS", 1000);
    Buffers buffers;
    for (std::uint64_t seed = first; seed < first + seeds; ++seed) {
        SeedRun run(seed, buffers);
        ASSERT_TRUE(run.run(kOperations)) << "again with VRAMSWAP_SEED_FIRST=" << seed << " VRAMSWAP_SEEDS=1";
    }
}

// ---- threads ----
// Three threads with a queue each, the flusher's own thread, and one that maintains. A page's content names
// the page. Pages written by one thread only must hold exactly what it wrote last. Others may hold any
// version of themselves or zeros, and never half a version or another page. Meant for ThreadSanitizer; the
// number of operations is fixed.

constexpr std::uint64_t kBlockPages = 8;
constexpr std::uint64_t kSharedChunk = 5;
constexpr std::uint32_t kEverybody = kQueues;

/// The thread that alone writes the page, or kEverybody.
constexpr std::uint32_t writer_of(std::uint64_t page) {
    if (page / kChunkPages == kSharedChunk) return kEverybody;
    return static_cast<std::uint32_t>(page / kBlockPages % (kQueues + 1));
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
            if (what < 7)
                write(random_writable());
            else if (what < 15)
                read_some();
            else
                discard(random_writable());
        }
    }
    /// All that it alone writes, and a look at the rest.
    void check_everything() {
        for (std::uint64_t p = 0; p < kDevicePages && good_; p += kChunkPages)
            read(0, {p, std::min(kChunkPages, kDevicePages - p)});
    }
    [[nodiscard]] bool good() const { return good_; }

  private:
    /// Often one of a few, so that threads meet.
    std::uint64_t random_page() { return random_.below(random_.one_in(2) ? 8 * kBlockPages : kDevicePages); }

    /// Pages in one block that this thread may write, or many pages of the shared chunk.
    Range random_writable() {
        if (random_.one_in(16)) {
            const std::uint64_t first = random_.below(kChunkPages);
            return {kSharedChunk * kChunkPages + first, 1 + random_.below(kChunkPages - first)};
        }
        std::uint64_t page = random_page();
        while (writer_of(page) != number_ && writer_of(page) != kEverybody) page = random_page();
        const std::uint64_t left = std::min(kBlockPages - page % kBlockPages, kDevicePages - page);
        return {page, 1 + random_.below(left)};
    }

    void write(const Range& range) {
        std::vector<Content> contents;
        for (std::uint64_t i = 0; i < range.pages; ++i) {
            contents.push_back(random_.one_in(20) ? 0
                                                  : content_for({range.first + i}, ++version_ * 4 + number_));
            fill_page(memory_[0]->page(i), contents.back());
        }
        const IoStatus status = insist(BlockRequest::Op::write, range);
        if (status != IoStatus::ok) return fail(fmt::format("a write ended with {}", to_string(status)));
        for (std::uint64_t i = 0; i < range.pages; ++i) wrote_[range.first + i] = contents[i];
    }

    void discard(const Range& range) {
        const IoStatus status = insist(BlockRequest::Op::discard, range);
        if (status != IoStatus::ok) return fail(fmt::format("a discard ended with {}", to_string(status)));
        for (std::uint64_t i = 0; i < range.pages; ++i) wrote_[range.first + i] = 0;
    }

    /// Sleeps on the queue's event as a frontend does. The limit is a watchdog: a lost wake-up would last for
    /// ever.
    IoStatus insist(BlockRequest::Op op, const Range& range) {
        constexpr int kWatchdogMs = 100'000;
        BlockRequest request{
            op,     range.first * kPageBytes, range.pages * kPageBytes, memory_[0]->data(), IoStatus::pending,
            nullptr};
        while (queue_->submit(request) == IoStatus::retry) {
            pollfd event{queue_->event_fd(), POLLIN, 0};
            if (::poll(&event, 1, kWatchdogMs) != 1) return fail("a write was never woken"), IoStatus::retry;
            (void)take_event(queue_->event_fd());
        }
        return request.status;
    }

    void read_some() {
        const std::uint64_t reads = 1 + random_.below(kQueueDepth);
        std::array<Range, kQueueDepth> ranges{};
        for (std::uint64_t n = 0; n < reads; ++n) {
            const std::uint64_t first = random_page();
            const std::uint64_t most = random_.one_in(20) ? kChunkPages : 32;
            ranges[n] = {first, 1 + random_.below(std::min(most, kDevicePages - first))};
            submit_read(n, ranges[n]);
        }
        finish_reads();
        for (std::uint64_t n = 0; n < reads && good_; ++n) check(n, ranges[n]);
    }
    void read(std::uint64_t n, const Range& range) {
        submit_read(n, range);
        finish_reads();
        check(n, range);
    }
    void submit_read(std::uint64_t n, const Range& range) {
        std::memset(memory_[n]->data(), 0x5A, range.pages * kPageBytes);
        reads_[n] = {BlockRequest::Op::read, range.first * kPageBytes, range.pages * kPageBytes,
                     memory_[n]->data(),     IoStatus::pending,        nullptr};
        if (queue_->submit(reads_[n]) == IoStatus::retry)
            fail("a read was told to retry though its queue has room");
    }
    void finish_reads() {
        std::array<BlockRequest*, kQueueDepth> done{};
        while (queue_->in_flight() != 0)
            (void)queue_->poll(std::span(done).first(1 + random_.below(kQueueDepth)));
    }
    void check(std::uint64_t n, const Range& range) {
        if (reads_[n].status != IoStatus::ok)
            return fail(fmt::format("a read ended with {}", to_string(reads_[n].status)));
        for (std::uint64_t i = 0; i < range.pages && good_; ++i) {
            const std::uint64_t page = range.first + i;
            const auto content = content_of(memory_[n]->page(i));
            if (!content)
                fail(fmt::format("page {} is torn or corrupt", page));
            else if (*content != 0 && page_named_by(*content) != PageIndex{page})
                fail(fmt::format("page {} holds page {}", page, page_named_by(*content).n));
            else if (writer_of(page) == number_ && *content != wrote_[page])
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
    std::array<BlockRequest, kQueueDepth> reads_{};
    std::vector<Content> wrote_ = std::vector<Content>(kDevicePages, 0);
    std::uint32_t version_ = 0;
    bool good_ = true;
};

/// Maintains, looks at the counters and stirs in faults, few enough that no read is hit three times.
void maintain_until(const std::atomic<bool>& stop, PageStore& store, SimFaults& faults) {
    for (std::uint64_t round = 1; !stop.load(); ++round) {
        pollfd event{store.maintenance_fd(), POLLIN, 0};
        (void)::poll(&event, 1, 1);
        store.maintain();
        EXPECT_LE(store.stats().stored, kDevice);
        faults.early = round % 2 == 0;
        faults.latency_ns = round % 4 < 2 ? 3'000 : 100'000;
        if (round % 64 == 1) faults.corrupt_reads = 1;
        if (round % 64 == 33) faults.fail_copies = 1;
    }
}

TEST(StoreStress, ThreadsNeverSeeForeignOrTornPages) {
    const std::uint64_t operations = number_from_env("VRAMSWAP_STRESS_OPERATIONS", 4000);
    log_configure(LogStyle::plain, LogLevel::error, "store_model");
    SimGpu gpu(kVramEnough);
    SteppedStore store(gpu, {kDevice, kSegment, kStage, {50'000}}, nullptr);
    std::vector<std::unique_ptr<StressThread>> clients;
    for (std::uint32_t n = 0; n < kQueues; ++n) clients.push_back(std::make_unique<StressThread>(*store, n));
    store->start();
    std::atomic<bool> stop{false};
    std::thread maintainer([&] { maintain_until(stop, *store, gpu.faults()); });
    std::vector<std::thread> threads;
    for (auto& client : clients) threads.emplace_back([&client, operations] { client->run(operations); });
    for (auto& thread : threads) thread.join();
    stop = true;
    maintainer.join();
    store->flusher().stop();

    gpu.faults().corrupt_reads = gpu.faults().fail_copies = 0;
    ASSERT_TRUE(store.drain());
    for (auto& client : clients) client->check_everything();
    for (const auto& client : clients) ASSERT_TRUE(client->good());
    clients.clear();
    auto queue = std::move(*store->make_queue(1));
    BlockRequest all{BlockRequest::Op::discard, 0, kDevice.n, nullptr, IoStatus::pending, nullptr};
    ASSERT_EQ(queue->submit(all), IoStatus::ok);
    store->maintain();
    EXPECT_EQ(store->stats().stored + store->stats().staged, Bytes{0});
    EXPECT_EQ(store->stats().vram, kSegment);
}

}  // namespace
}  // namespace vramswap
