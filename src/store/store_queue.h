// SPDX-License-Identifier: MIT
// StoreQueue: one frontend thread's way into the store; implements front/target.h. Owned by that thread's
// frontend, made by PageStore::make_queue. Nothing here allocates, blocks or throws once made.
//
// A write ends in the stage and is complete at once. It goes from the request's memory straight to VRAM, and
// is pending until it is there, if it is large (a copy of it is as fast as one from an image), or if the
// stage is short of images and this queue's writes are scattered (an image for each page would only be in the
// way). A queue that fills chunk after chunk rather waits for an image, but not for ever. A read ends in the
// stage, or waits for copies from VRAM. Copies of all requests since the last poll are one submission.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <memory>
#include <vector>

#include "front/target.h"
#include "store/flusher.h"
#include "store/page_memory.h"
#include "store/parts.h"
#include "store/request_pages.h"

namespace vramswap {

class StoreQueue final : public TargetQueue {
  public:
    StoreQueue(StoreParts& parts, Flusher& flusher, std::unique_ptr<TransferQueue> gpu, QueueSlot& slot,
               std::uint32_t depth);
    ~StoreQueue() override;

    void enter_thread() override { warm_up_thread(*gpu_); }
    [[nodiscard]] std::size_t in_flight() const override { return flying_.size(); }
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
        Ticket ticket = 0;  ///< 0: the GPU refused
        std::uint32_t tries = 0;
        std::uint64_t fingerprint = 0;  ///< of the page entries when the copies were submitted
        bool lost = false;              ///< a page read is lost
        RequestPages pages{};           ///< still to be copied
    };

    /// A ring: transfers in the order in which they were submitted, which is that of their completion. The
    /// last `collected_` of them are not submitted yet.
    class Ring {
      public:
        explicit Ring(std::uint32_t depth) : depth_(depth), places_(std::bit_ceil(depth)) {}
        [[nodiscard]] std::size_t size() const { return size_; }
        [[nodiscard]] bool full() const { return size_ == depth_; }
        Transfer& at(std::size_t n) { return places_[(first_ + n) & (places_.size() - 1)]; }
        Transfer& push() { return at(size_++); }
        void undo_push() { --size_; }
        void pop() {
            ++first_;
            --size_;
        }

      private:
        const std::size_t depth_;
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
    IoStatus find_slot(ChunkEntry& entry);
    bool find_image(ChunkEntry& entry, ChunkIndex chunk);
    void stage_pages(ChunkEntry& entry, const Piece& piece);
    void begin_direct(ChunkEntry& entry, const Piece& piece, Transfer& transfer);
    template <typename WordOfPage>
    void leave_writing(const Transfer& transfer, WordOfPage word_of_page);
    void undo_direct(Transfer& transfer);
    IoStatus end_direct(Transfer& transfer, PageEntry::State outcome);

    IoStatus discard(const BlockRequest& request);

    IoStatus read(BlockRequest& request);
    IoStatus look_up(const Piece& piece, RequestPages& from_gpu, std::uint64_t& staged);
    void check_piece(const Piece& piece, Transfer& transfer);
    bool resolve(const ChunkEntry& entry, const Piece& piece, std::uint32_t i, std::uint64_t checksum,
                 bool& lost);
    void unpin(const Transfer& transfer);

    void launch();
    void add_copies(Transfer& transfer);
    [[nodiscard]] std::uint64_t fingerprint(const BlockRequest& request, const RequestPages& wanted) const;
    IoStatus advance(Transfer& transfer);
    IoStatus repeat_or_fail(Transfer& transfer);

    [[nodiscard]] PageEntry& entry_of(const Piece& piece, std::uint32_t i) const {
        return parts_.state.pages()[first_page(piece.chunk).n + piece.run.first + i];
    }
    /// Other CPUs have changed it since, as a rule: it comes from their caches.
    void prefetch_entry(const BlockRequest& request) const {
        prefetch_to_write(&parts_.state.chunks()[chunk_of(page_at(request.offset)).n]);
    }
    [[nodiscard]] bool any_writing(const ChunkEntry& entry, const Piece& piece) const;

    StoreParts& parts_;
    Flusher& flusher_;
    const std::unique_ptr<TransferQueue> gpu_;
    QueueSlot& slot_;

    Ring flying_;
    std::size_t collected_ = 0;
    Locality locality_;
    struct Waits {
        std::uint64_t offset = ~std::uint64_t{0};  ///< of the write that was last told to retry
        std::uint32_t count = 0;
    } waits_;
    std::vector<Copy> copies_scratch_;
    std::array<std::uint64_t, kPagesMax> digests_{};  ///< by page within a request: kZeroPage or its checksum
    std::array<std::uint64_t, kPagesMax>
        old_words_{};  ///< of the pages that the write at hand sends directly
};

}  // namespace vramswap
