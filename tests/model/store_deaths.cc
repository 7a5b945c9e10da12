// SPDX-License-Identifier: MIT
// A store that dies at every place where it must be whole, and one that takes over: seeded operations in one
// thread, a death at a chosen pass of a death point (base/death_point.h), and then the whole device against a
// map of what was acknowledged. Death is an exception that nobody in the store catches: what is dead is
// touched no more, and its memory is what a killed process leaves.
//     VRAMSWAP_SEED_FIRST=42 VRAMSWAP_SEEDS=1 store_deaths
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "base/death_point.h"
#include "store/spill.h"
#include "support/sim_store.h"
#include "support/stepped_disk.h"

namespace vramswap {
namespace {

struct Died {
    std::string where;
};

/// Where it is to die, and how many passes of that are left; none: for ever.
std::string dies_at;
std::uint64_t passes_left = 0;
std::map<std::string, std::uint64_t> deaths;

}  // namespace

void death_point(const char* name) {
    if (passes_left == 0 || dies_at != name || --passes_left != 0) return;
    ++deaths[name];
    throw Died{name};
}

namespace {

using test::Content;
using test::content_for;
using test::content_of;
using test::fill_page;
using test::HostMemory;
using test::Random;
using test::SimGpu;
using test::SteppedSpill;
using test::SteppedStore;

constexpr std::uint64_t kDevicePages = 5 * kChunkPages + 37;
constexpr std::uint64_t kRequestPagesMax = BlockRequest::kMaxTransferBytes / kPageBytes;
constexpr std::uint32_t kDepth = 4;

/// Everything that is there is known under all names.
const std::set<std::string> kAllPoints{
    "image taken",
    "image given back",
    "page forgotten",
    "page no longer valid",
    "image of an empty chunk given back",
    "slot of an empty chunk forgotten",
    "spill slot of an empty chunk forgotten",
    "pages in flight and dirty",
    "pages in flight",
    "pages have arrived",
    "pages no longer in flight",
    "clean image given back",
    "before the home changes",
    "two homes",
    "the home has changed",
    "the old home is not given back",
    "pages have arrived in the spill",
    "bytes staged",
    "page valid",
    "page dirty",
    "page stored",
    "page being written",
    "page no longer being written",
    "slot taken",
    "slot known",
    "spill slot taken",
    "image known",
    "segment kept",
    "segment in use",
    "before a segment goes",
    "segment no longer in use",
    "segment wiped",
};

class Keeper final : public FdKeeper {
  public:
    Result<void> keep(std::string_view key, const UniqueFd& fd) override {
        held.insert_or_assign(std::string(key), fd.dup());
        return {};
    }
    Result<void> drop(std::string_view key) override {
        held.erase(std::string(key));
        return {};
    }
    HeldFds held;
};

/// One process, as far as it matters.
struct Life {
    std::unique_ptr<SimGpu> gpu;
    std::unique_ptr<Spill> adopted;
    std::unique_ptr<SteppedStore> store;
    std::unique_ptr<TargetQueue> queue;
};

/// What a page may be: one content, or others after writes that were not acknowledged; then it may be lost,
/// too.
struct Truth {
    Content content = 0;
    std::vector<Content> others{};
    [[nodiscard]] bool is_open() const { return !others.empty(); }
    [[nodiscard]] bool may_be(Content found) const {
        return found == content || std::ranges::find(others, found) != others.end();
    }
};

class SeedRun {
  public:
    explicit SeedRun(std::uint64_t seed) : random_(seed) {
        if (random_.one_in(2)) spill_ = std::make_unique<SteppedSpill>(8);
        costs_.small_copy_ns = 1u << random_.below(16);
        costs_.page_ns = 1u << random_.below(16);
        costs_.merge_page_ns = 1u << random_.below(16);
        Life life;
        life.gpu = std::make_unique<SimGpu>(mib(64));
        life.store = std::make_unique<SteppedStore>(*life.gpu, config(life), &keeper_);
        begin(std::move(life));
    }
    /// The dead are buried when all is over: their copies would still arrive.
    ~SeedRun() {
        passes_left = 0;
        life().queue.reset();
        life().store.reset();
        for (Life& dead : lives_) {
            dead.queue.reset();
            dead.store.reset();
        }
    }

    void run(std::uint32_t deaths_wanted) {
        for (std::uint32_t n = 0; n < deaths_wanted && !::testing::Test::HasFatalFailure(); ++n) {
            dies_at =
                *std::next(kAllPoints.begin(), static_cast<std::ptrdiff_t>(random_.below(kAllPoints.size())));
            passes_left = 1 + random_.below(random_.one_in(2) ? 3 : 300);
            where_ = "between two operations";
            try {
                for (int operations = 0; operations < 250; ++operations) operate();
            } catch (const Died& died) {
                where_ = died.where;
            }
            passes_left = 0;
            take_over();
            check_all();
        }
        ASSERT_TRUE(life().store->drain());
        check_all();
    }

  private:
    Life& life() { return lives_.back(); }
    PageStore& store() { return **life().store; }

    StoreConfig config(const Life& life) {
        StoreConfig c{{kDevicePages * kPageBytes}, mib(4), mib(6), {.costs = costs_, .mergers = 0}};
        if (spill_ != nullptr) c.spill = life.adopted != nullptr ? life.adopted.get() : spill_->spill.get();
        return c;
    }
    void begin(Life next) {
        next.queue = std::move(*(*next.store)->make_queue(kDepth));
        lives_.push_back(std::move(next));
        slots_ = {};
    }
    void take_over() {
        for (Slot& slot : slots_)
            if (slot.active && slot.is_write) open(slot.first, slot.pages, slot.version);
        Life next;
        next.gpu = std::make_unique<SimGpu>(mib(64));
        keeper_.held.erase("spill-busy");  // of a process that lives
        if (spill_ != nullptr)
            next.adopted = std::move(*Spill::adopt(spill_->config, PageStore::spill_kept(keeper_.held), {}));
        next.store = std::make_unique<SteppedStore>(std::vector<SimGpu*>{next.gpu.get()}, config(next),
                                                    &keeper_, keeper_.held);
        begin(std::move(next));
    }

    // ---- what is done ----

    struct Slot {
        bool active = false;
        bool is_write = false;
        std::uint64_t first = 0, pages = 0;
        std::uint32_t version = 0;
        BlockRequest request{};
    };

    void operate() {
        switch (random_.below(10)) {
            case 0:
            case 1:
            case 2:
                return write(1 + random_.below(24), ++version_);
            case 3:
                return write(64 + random_.below(kRequestPagesMax - 64), ++version_);
            case 4:
                return write(1 + random_.below(300), 0);
            case 5:
                return discard(1 + random_.below(600));
            case 6:
                for (std::uint64_t n = random_.below(20); n > 0; --n) (void)life().store->step();
                return;
            case 7:
                for (std::uint64_t n = random_.below(20); n > 0; --n) (void)life().store->step_mover();
                return;
            case 8:
                if (random_.one_in(2)) store().obey(0, {.vram_max = mib(4) * random_.below(5)});
                return store().maintain();
            default:
                return poll();
        }
    }
    static Content content(std::uint64_t page, std::uint32_t version) {
        return version == 0 ? 0 : content_for({page}, version);
    }
    [[nodiscard]] bool is_busy(std::uint64_t first, std::uint64_t pages) const {
        for (const Slot& s : slots_)
            if (s.active && s.first < first + pages && first < s.first + s.pages) return true;
        return false;
    }
    void open(std::uint64_t first, std::uint64_t pages, std::uint32_t version) {
        for (std::uint64_t p = first; p < first + pages; ++p) truth_[p].others.push_back(content(p, version));
    }
    void settle(std::uint64_t first, std::uint64_t pages, std::uint32_t version) {
        for (std::uint64_t p = first; p < first + pages; ++p) truth_[p] = {content(p, version)};
    }
    /// One that has been begun and did not come to its end when the process died is open.
    template <typename Submit>
    void guarded(std::uint64_t first, std::uint64_t pages, std::uint32_t version, Submit submit) {
        try {
            submit();
        } catch (const Died&) {
            open(first, pages, version);
            throw;
        }
    }
    void write(std::uint64_t pages, std::uint32_t version) {
        const std::uint64_t first = random_.below(kDevicePages);
        pages = std::min(pages, kDevicePages - first);
        const auto number = static_cast<std::size_t>(random_.below(slots_.size()));
        Slot& slot = slots_.at(number);
        if (slot.active || is_busy(first, pages)) return poll();
        HostMemory& memory = *buffers_.at(number);
        for (std::uint64_t p = 0; p < pages; ++p) fill_page(memory.page(p), content(first + p, version));
        slot.request = {BlockRequest::Op::write, first * kPageBytes, pages * kPageBytes,
                        memory.data(),           IoStatus::pending,  nullptr};
        guarded(first, pages, version, [&] {
            const IoStatus status = life().queue->submit(slot.request);
            if (status == IoStatus::ok) settle(first, pages, version);
            if (status == IoStatus::pending) slot = {true, true, first, pages, version, slot.request};
            if (status == IoStatus::retry || (is_final(status) && status != IoStatus::ok))
                open(first, pages, version);  // a part may have been done
        });
    }
    void discard(std::uint64_t pages) {
        const std::uint64_t first = random_.below(kDevicePages);
        pages = std::min(pages, kDevicePages - first);
        if (is_busy(first, pages)) return;
        BlockRequest r{BlockRequest::Op::discard, first * kPageBytes,
                       pages * kPageBytes,        nullptr,
                       IoStatus::pending,         nullptr};
        guarded(first, pages, 0, [&] {
            if (life().queue->submit(r) == IoStatus::ok)
                settle(first, pages, 0);
            else
                open(first, pages, 0);
        });
    }
    void poll() {
        std::array<BlockRequest*, kDepth> done{};
        const std::size_t n = life().queue->poll(done);
        for (std::size_t i = 0; i < n; ++i)
            for (Slot& slot : slots_) {
                if (done.at(i) != &slot.request) continue;
                slot.active = false;
                if (slot.request.status == IoStatus::ok) settle(slot.first, slot.pages, slot.version);
            }
    }

    // ---- what must be true ----

    void check_all() {
        for (std::uint64_t page = 0; page < kDevicePages; ++page) {
            if (is_busy(page, 1)) continue;
            check(page);
            if (::testing::Test::HasFatalFailure()) return;
        }
    }
    void check(std::uint64_t page) {
        BlockRequest r{BlockRequest::Op::read, page * kPageBytes, kPageBytes,
                       reader_.data(),         IoStatus::pending, nullptr};
        IoStatus status = life().queue->submit(r);
        for (int n = 0; n < 10'000 && (status == IoStatus::retry || r.status == IoStatus::pending); ++n) {
            if (status == IoStatus::retry) {
                (void)life().store->step_mover();
                status = life().queue->submit(r);
            } else {
                poll();
            }
        }
        Truth& truth = truth_[page];
        if (r.status == IoStatus::lost) {
            ASSERT_TRUE(truth.is_open()) << "page " << page << " is lost after a death at: " << where_;
            return give(page);
        }
        ASSERT_EQ(r.status, IoStatus::ok) << "page " << page << " after a death at: " << where_;
        const auto found = content_of(reader_.data());
        ASSERT_TRUE(found.has_value()) << "page " << page << " is torn after a death at: " << where_;
        ASSERT_TRUE(truth.may_be(*found)) << "page " << page << " has " << *found << " instead of "
                                          << truth.content << " after a death at: " << where_;
        truth = {*found};
    }
    /// What the kernel does with a write that was not answered: it makes it again.
    void give(std::uint64_t page) {
        fill_page(reader_.data(), 0);
        BlockRequest r{BlockRequest::Op::write, page * kPageBytes, kPageBytes,
                       reader_.data(),          IoStatus::pending, nullptr};
        ASSERT_EQ(life().queue->submit(r), IoStatus::ok);
        truth_[page] = {};
    }

    Random random_;
    CopyCosts costs_{};
    std::unique_ptr<SteppedSpill> spill_;
    Keeper keeper_;
    std::vector<Life> lives_;
    std::array<Slot, kDepth> slots_{};
    std::array<std::unique_ptr<HostMemory>, kDepth> buffers_{
        std::make_unique<HostMemory>(BlockRequest::kMaxTransferBytes),
        std::make_unique<HostMemory>(BlockRequest::kMaxTransferBytes),
        std::make_unique<HostMemory>(BlockRequest::kMaxTransferBytes),
        std::make_unique<HostMemory>(BlockRequest::kMaxTransferBytes)};
    HostMemory reader_{kPageBytes};
    std::map<std::uint64_t, Truth> truth_;
    std::uint32_t version_ = 0;
    std::string where_;
};

std::uint64_t setting(const char* name, std::uint64_t otherwise) {
    const char* text = std::getenv(name);
    return text == nullptr ? otherwise : std::strtoull(text, nullptr, 0);
}

TEST(StoreDeaths, NothingAcknowledgedIsLostWhereverItDies) {
    constexpr std::uint32_t kDeathsOfASeed = 12;
    const std::uint64_t first = setting("VRAMSWAP_SEED_FIRST", 1);
    const std::uint64_t seeds = setting("VRAMSWAP_SEEDS", 100);
    for (std::uint64_t seed = first; seed < first + seeds; ++seed) {
        SCOPED_TRACE("seed " + std::to_string(seed));
        SeedRun(seed).run(kDeathsOfASeed);
        ASSERT_FALSE(HasFatalFailure());
    }
    if (seeds < 100) return;
    for (const std::string& point : kAllPoints) EXPECT_GT(deaths[point], 0u) << "nobody died at: " << point;
    EXPECT_EQ(deaths.size(), kAllPoints.size()) << "a point that the test does not name";
}

}  // namespace
}  // namespace vramswap
