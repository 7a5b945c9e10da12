// SPDX-License-Identifier: MIT
// StoreQueue: one frontend thread's way into the store; implements front/target.h. Owned by that thread's
// frontend, made by PageStore::make_queue. Nothing here allocates, blocks or throws once made.
#pragma once

#include <array>
#include <bitset>
#include <memory>
#include <vector>

#include "front/target.h"
#include "store/flusher.h"
#include "store/parts.h"

namespace vramswap {

class StoreQueue final : public TargetQueue {
  public:
    StoreQueue(StoreParts& parts, Flusher& flusher, std::unique_ptr<TransferQueue> gpu, QueueSlot& slot,
               std::uint32_t depth);
    ~StoreQueue() override;

    void enter_thread() override { warm_up_thread(*gpu_); }
    [[nodiscard]] std::size_t in_flight() const override { return reads_.size() - idle_.size(); }
    [[nodiscard]] int event_fd() const override { return slot_.event_fd.load(std::memory_order_relaxed); }

  protected:
    IoStatus do_submit(BlockRequest& request) override;
    std::size_t do_poll(std::span<BlockRequest*> done) override;

  private:
    static constexpr std::size_t kPagesMax = BlockRequest::kMaxTransferBytes / kPageBytes;
    using RequestPages = std::bitset<kPagesMax>;  ///< by page within the request

    /// The part of a request that lies in one chunk.
    struct Piece {
        ChunkIndex chunk{};
        PageRun run{};
        std::uint32_t at = 0;       ///< first page within the request
        std::byte* data = nullptr;  ///< null for a discard
    };
    /// A read that waits for copies from VRAM. Every chunk with a page in `from_gpu` is pinned once.
    struct Read {
        bool active = false;  ///< else it lies in idle_
        BlockRequest* request = nullptr;
        Ticket ticket = 0;
        std::uint32_t tries = 0;
        RequestPages from_gpu;
    };

    template <typename Visit>
    static void for_each_piece(const BlockRequest& request, Visit visit);

    IoStatus attempt(BlockRequest& request);
    IoStatus write(const BlockRequest& request);
    IoStatus write_piece(const Piece& piece);
    IoStatus find_room(ChunkEntry& entry, ChunkIndex chunk);
    void put_pages(ChunkEntry& entry, const Piece& piece, const std::uint64_t* digests);
    void discard(const BlockRequest& request);
    IoStatus read(BlockRequest& request);
    IoStatus look_up(const Piece& piece, RequestPages& from_gpu);
    IoStatus start_copies(Read& read);
    IoStatus advance(Read& read);
    void check_piece(const Piece& piece, Read& read);
    bool resolve(const ChunkEntry& entry, const Piece& piece, std::uint32_t i, std::uint64_t checksum);
    void unpin(const Read& read);
    [[nodiscard]] PageEntry& entry_of(const Piece& piece, std::uint32_t i) const {
        return parts_.state.pages()[first_page(piece.chunk).n + piece.run.first + i];
    }

    StoreParts& parts_;
    Flusher& flusher_;
    const std::unique_ptr<TransferQueue> gpu_;
    QueueSlot& slot_;

    std::vector<Read> reads_;
    std::vector<Read*> idle_;
    std::size_t next_look_ = 0;
    std::vector<Copy> copies_scratch_;
    std::array<std::uint64_t, kPagesMax> digests_{};
};

}  // namespace vramswap
