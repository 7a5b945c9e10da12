// SPDX-License-Identifier: MIT
// StoreQueue: one frontend thread's way into the store; implements front/target.h. Owned by that thread's
// frontend, made by PageStore::make_queue. Nothing here allocates, blocks or throws once made.
//
// A write ends in the stage and is complete at once. It goes from the request's memory straight to VRAM, and
// is pending until it is there, if it is large (a copy of it is as fast as one from an image), or if the
// stage is short of images and this queue's writes are scattered (an image for each page would only be in the
// way). A queue that fills chunk after chunk rather waits for an image, but not for ever. What has its home
// in the spill always goes through the stage. A read ends in the stage, or waits for copies from VRAM. Copies
// of all requests since the last poll are one submission for each GPU.
//
// A read with pages in the spill is slow: it reads them first, in no order with others, and what else it
// needs then like any other (store_queue_spill.cc).
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <memory>
#include <vector>

#include "front/target.h"
#include "store/page_memory.h"
#include "store/parts.h"
#include "store/request_pages.h"

namespace vramswap {

class StoreQueue final : public TargetQueue {
  public:
    /// A TransferQueue for each GPU, in their order; a SpillQueue if there is a spill, which tells its ends
    /// by the slot's event.
    StoreQueue(StoreParts& parts, std::vector<std::unique_ptr<TransferQueue>> gpus,
               std::unique_ptr<SpillQueue> spill, QueueSlot& slot, std::uint32_t depth);
    ~StoreQueue() override;

    void enter_thread() override {
        for (const auto& gpu : gpus_) warm_up_thread(*gpu);
    }
    [[nodiscard]] std::size_t in_flight() const override { return flying_.size() + slow_count_; }
    [[nodiscard]] bool should_spin() const override { return flying_.size() != 0 || slow_ready_; }
    void announce(const BlockRequest& request) override {
        if (request.offset >= parts_.state.header().device_bytes) return;
        prefetch_entry(request);
        if (request.op == BlockRequest::Op::write)  // a read looks at it while the GPU copies
            prefetch_to_write(&parts_.state.pages()[request.offset / kPageBytes]);
    }
    [[nodiscard]] int event_fd() const override { return slot_.event_fd.load(std::memory_order_relaxed); }

  protected:
    IoStatus do_submit(BlockRequest& request) override;
    std::size_t do_poll(std::span<BlockRequest*> done) override;

  private:
    static constexpr std::size_t kPagesMax = RequestPages::kMax;
    /// A fingerprint of pages of which one is just being written.
    static constexpr std::uint64_t kUnstable = 0;

    /// The part of a request that lies in one chunk, or less of it.
    struct Piece {
        ChunkIndex chunk{};
        PageRun run{};
        std::uint32_t at = 0;       ///< first page within the request
        std::byte* data = nullptr;  ///< null for a discard
    };

    /// A request that waits for copies to or from VRAM. A read pins every chunk with a page in `pages` once;
    /// a write pins it for each such page, and each is in the state writing.
    struct Transfer {
        BlockRequest* request = nullptr;
        std::uint64_t since_ns = 0;
        std::array<Ticket, kGpusMax> tickets{};  ///< 0: no copy of this GPU
        bool refused = false;                    ///< by a GPU
        std::uint32_t tries = 0;
        std::uint64_t fingerprint = 0;  ///< of the page entries when the copies were submitted
        bool lost = false;              ///< a page read is lost
        RequestPages pages{};           ///< still to be copied
    };

    /// A read that waits for the spill first.
    struct SlowRead {
        bool active = false;
        bool failed = false;          ///< one of its reads of the spill did
        std::uint32_t in_flight = 0;  ///< reads of the spill
        RequestPages todo{};          ///< to be read from the spill, not submitted yet
        Transfer transfer{};
    };
    struct SpillFlight {
        Ticket ticket = 0;  ///< 0: idle
        std::size_t slow = 0;
    };

    /// A ring: transfers in the order in which they were submitted, which is that of their completion. The
    /// last `collected_` of them are not submitted yet.
    class Ring {
      public:
        explicit Ring(std::uint32_t depth) : places_(std::bit_ceil(depth)) {}
        [[nodiscard]] std::size_t size() const { return size_; }
        Transfer& at(std::size_t n) { return places_[(first_ + n) & (places_.size() - 1)]; }
        Transfer& push() { return at(size_++); }
        void undo_push() { --size_; }
        void pop() {
            ++first_;
            --size_;
        }

      private:
        std::vector<Transfer> places_;
        std::size_t first_ = 0;
        std::size_t size_ = 0;
    };

    /// Whether writes fill one chunk after the other, as the kernel fills its swap clusters, or are
    /// scattered.
    class Locality {
      public:
        void note(ChunkIndex chunk) {
            if (chunk == last_) {
                ++streak_;
                return;
            }
            eighths_ += std::min(streak_, kStreakMax) - eighths_ / 8;
            streak_ = 1;
            last_ = chunk;
        }
        [[nodiscard]] bool clustered() const { return std::max(streak_, eighths_ / 8) >= kClustered; }

      private:
        static constexpr std::uint32_t kClustered = 4;   ///< writes in a row to one chunk
        static constexpr std::uint32_t kStreakMax = 64;  ///< so that some twenty scattered writes show
        ChunkIndex last_{~0u};
        std::uint32_t streak_ = 0;                ///< of last_
        std::uint32_t eighths_ = 8 * kStreakMax;  ///< of the streaks before: a moving average, times 8
    };

    template <typename Visit>
    static void for_each_piece(const BlockRequest& request, std::uint32_t pages_max, Visit visit);
    template <typename Visit>
    static void for_each_wanted_piece(const BlockRequest& request, const RequestPages& wanted, Visit visit);

    IoStatus attempt(BlockRequest& request);
    void count_wait(const BlockRequest& request, IoStatus status);
    [[nodiscard]] bool has_waited(const BlockRequest& request) const;

    IoStatus write(BlockRequest& request);
    IoStatus write_piece(const BlockRequest& request, const Piece& piece, Transfer* transfer);
    [[nodiscard]] bool has_to_wait(const ChunkEntry& entry, const BlockRequest& request,
                                   const Transfer* transfer) const;
    IoStatus find_home(ChunkEntry& entry);
    [[nodiscard]] bool is_refused(std::uint32_t slot) const;
    [[nodiscard]] std::optional<std::uint32_t> take_from_another() const;
    IoStatus find_place_in_spill(ChunkEntry& entry);
    enum class Need : std::uint8_t { wish, must };
    bool find_image(ChunkEntry& entry, ChunkIndex chunk, Need need);
    void stage_pages(ChunkEntry& entry, const Piece& piece);
    void begin_direct(ChunkEntry& entry, const Piece& piece, Transfer& transfer);
    template <typename WordOfPage>
    void leave_writing(const Transfer& transfer, WordOfPage word_of_page);
    void undo_direct(Transfer& transfer);
    IoStatus end_direct(Transfer& transfer, PageEntry::State outcome);

    IoStatus discard(const BlockRequest& request);

    /// What look_up found of a read.
    struct Found {
        std::uint64_t staged = 0;
        std::uint32_t from_spill = 0;
    };
    IoStatus read(BlockRequest& request);
    IoStatus look_up(const Piece& piece, RequestPages& from_home, Found& found);
    void check_piece(const Piece& piece, Transfer& transfer);
    bool resolve(const ChunkEntry& entry, const Piece& piece, std::uint32_t i, std::uint64_t checksum,
                 bool& lost);
    void unpin(const Transfer& transfer);

    void launch();
    void add_copies(Transfer& transfer);
    [[nodiscard]] std::uint64_t fingerprint(const BlockRequest& request, const RequestPages& wanted) const;
    [[nodiscard]] IoStatus copied(const Transfer& transfer);
    IoStatus advance(Transfer& transfer);
    IoStatus repeat_or_fail(Transfer& transfer);
    void complete(const Transfer& transfer, IoStatus status);
    [[nodiscard]] bool is_full() const { return in_flight() == depth_; }

    void begin_slow(const Transfer& transfer);
    std::size_t poll_slow(std::span<BlockRequest*> done);
    void reap_spill();
    void want_from_spill(SlowRead& slow);
    IoStatus advance_slow(SlowRead& slow);
    void read_spill(std::size_t number);
    [[nodiscard]] SpillFlight* idle_spill_flight();

    [[nodiscard]] PageEntry& entry_of(const Piece& piece, std::uint32_t i) const {
        return parts_.state.pages()[first_page(piece.chunk).n + piece.run.first + i];
    }
    /// Other CPUs have changed it since, as a rule: it comes from their caches.
    void prefetch_entry(const BlockRequest& request) const {
        prefetch_to_write(&parts_.state.chunks()[chunk_of(page_at(request.offset)).n]);
    }
    [[nodiscard]] bool any_writing(const ChunkEntry& entry, const Piece& piece) const;

    StoreParts& parts_;
    const std::vector<std::unique_ptr<TransferQueue>> gpus_;
    const std::unique_ptr<SpillQueue> spill_;
    QueueSlot& slot_;
    const std::size_t depth_;

    Ring flying_;
    std::size_t collected_ = 0;
    std::vector<SlowRead> slow_;  ///< sized once
    std::size_t slow_count_ = 0;  ///< active ones
    bool slow_ready_ = false;     ///< one of them is complete, and the last poll had no room to say so
    std::array<SpillFlight, SpillQueue::kDepth> spill_flights_{};
    Locality locality_;
    struct Waits {
        std::uint64_t offset = ~std::uint64_t{0};  ///< of the write that was last told to retry
        std::uint32_t count = 0;
    } waits_;
    std::vector<std::vector<Copy>> copies_scratch_;   ///< by GPU
    std::array<std::uint64_t, kPagesMax> digests_{};  ///< by page within a request: kZeroPage or its checksum
    std::array<std::uint64_t, kPagesMax>
        old_words_{};  ///< of the pages that the write at hand sends directly
};

template <typename Visit>
void StoreQueue::for_each_piece(const BlockRequest& request, std::uint32_t pages_max, Visit visit) {
    const std::uint64_t pages = request.bytes / kPageBytes;
    for (std::uint64_t at = 0; at < pages;) {
        const PageIndex page{request.offset / kPageBytes + at};
        const std::uint64_t count =
            std::min<std::uint64_t>({pages - at, kChunkPages - page_in_chunk(page), pages_max});
        const Piece piece{chunk_of(page),
                          {page_in_chunk(page), static_cast<std::uint32_t>(count)},
                          static_cast<std::uint32_t>(at),
                          request.data == nullptr ? nullptr : request.data + at * kPageBytes};
        if (!visit(piece)) return;
        at += count;
    }
}

/// Visits the pieces, one a chunk, that have a page which is still to be copied.
template <typename Visit>
void StoreQueue::for_each_wanted_piece(const BlockRequest& request, const RequestPages& wanted, Visit visit) {
    for_each_piece(request, kChunkPages, [&](const Piece& piece) {
        for (std::uint32_t i = 0; i < piece.run.count; ++i)
            if (wanted.test(piece.at + i)) {
                visit(piece);
                break;
            }
        return true;
    });
}

}  // namespace vramswap
