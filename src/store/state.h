// SPDX-License-Identifier: MIT
// The store's state in one memfd: page table, chunk table, segment table, stage headers. The layout is
// versioned and holds no pointers, so that another process can take it over. Made by the control thread; the
// tables are then used by I/O threads under the chunk lock (see ChunkEntry).
//
// Order of every update: data first, then the entry that publishes it (docs/lifecycle.md).
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "base/clock.h"
#include "base/result.h"
#include "base/unique_fd.h"
#include "base/units.h"
#include "store/copy_costs.h"
#include "store/page_bits.h"

namespace vramswap {

/// A page table entry: state in the two highest bits, 56 bits of checksum below.
struct PageEntry {
    enum class State : std::uint8_t {
        absent = 0,
        stored = 1,
        lost = 2,
        writing = 3,  ///< on its way from a request straight to VRAM: neither the old nor the new content yet
    };
    static constexpr int kStateShift = 62;
    static constexpr std::uint64_t kChecksumMask = (std::uint64_t{1} << 56) - 1;

    std::atomic<std::uint64_t> word{0};

    [[nodiscard]] std::uint64_t load() const { return word.load(std::memory_order_relaxed); }
    [[nodiscard]] State state() const { return static_cast<State>(load() >> kStateShift); }
    [[nodiscard]] bool holds(std::uint64_t checksum) const {
        return load() == word_of(State::stored, checksum);
    }
    void store(std::uint64_t checksum) { set(word_of(State::stored, checksum)); }
    void set(std::uint64_t new_word) { word.store(new_word, std::memory_order_release); }
    void forget() { set(0); }

    static constexpr std::uint64_t word_of(State state, std::uint64_t checksum) {
        return (static_cast<std::uint64_t>(state) << kStateShift) | (checksum & kChecksumMask);
    }
};

/// 0 = none; else a number + 1, so that a fresh memfd is an empty store. Atomic for those who look for
/// candidates without a lock, and look again under it.
struct OptionalIndex {
    std::atomic<std::uint32_t> plus_one{0};
    [[nodiscard]] bool has() const { return load() != 0; }
    [[nodiscard]] std::uint32_t get() const { return load() - 1; }
    /// Both at once, for those without the lock.
    [[nodiscard]] std::optional<std::uint32_t> look() const {
        const std::uint32_t value = load();
        if (value == 0) return std::nullopt;
        return value - 1;
    }
    /// Release: who takes over after a death finds what was set before.
    void set(std::uint32_t index) { plus_one.store(index + 1, std::memory_order_release); }
    void reset() { plus_one.store(0, std::memory_order_release); }

  private:
    [[nodiscard]] std::uint32_t load() const { return plus_one.load(std::memory_order_relaxed); }
};

/// Where a chunk lives. Its lock bit guards the entry, the page entries of the chunk and its stage image's
/// bits and bytes. It is held for memory copies only: never over a GPU call, another chunk's lock or a system
/// call, but for the write that signals an eventfd, which does not wait.
///
/// A chunk has one home, in VRAM or in the spill. Only in a state that a dead process has left both may be
/// set: then the clean pages are whole in either.
struct alignas(32) ChunkEntry {  // never across two lines of the cache
    enum class Moving : std::uint8_t {
        no,
        copying,  ///< to another home: nobody else writes to the one that it has
        leaving,  ///< the copy is complete: no new pins, so that the home can be changed
    };
    std::atomic<std::uint32_t> locked{0};
    OptionalIndex slot;         ///< 2 MiB of VRAM: segment * slots a segment + slot
    OptionalIndex spill;        ///< slot of the spill
    OptionalIndex image;        ///< of the stage
    std::uint16_t stored = 0;   ///< pages not absent
    std::uint16_t writing = 0;  ///< pages in the state writing: only their requests write to VRAM then
    std::uint32_t pins = 0;     ///< copies in flight from or to its home, which stays while not 0
    std::atomic<std::uint32_t> last_use{0};  ///< StoreParts::use_clock
    Moving moving = Moving::no;
    bool flushing = false;  ///< its image is on its way home

    [[nodiscard]] bool has_home() const { return slot.has() || spill.has(); }
};
static_assert(sizeof(ChunkEntry) == 32);

/// Who sends a dirty image home: the flusher of that GPU, or, for one whose home is the spill, the mover.
inline constexpr std::uint32_t kGpusMax = 8;
inline constexpr std::uint32_t kSpillCarrier = kGpusMax;

struct SegmentEntry {
    enum class State : std::uint32_t { none = 0, in_use = 1 };
    std::atomic<State> state{State::none};  ///< set last and reset first
    std::uint32_t gpu = 0;
};

/// Lines of their own: the flusher looks at the first while writers change the others of this image and all
/// of the next.
struct alignas(64) ImageHeader {
    /// Atomic where the flusher looks before it takes the chunk's lock: chunk + 1 (0 = free), the time of the
    /// oldest dirty page, and dirty.count().
    std::atomic<std::uint32_t> chunk_plus_one{0};
    std::atomic<std::uint32_t> dirty_pages{0};
    std::atomic<std::uint64_t> dirty_since_ns{0};
    std::atomic<std::uint32_t> carrier{0};  ///< changes with the chunk's home, under its lock
    alignas(64) PageBits valid;             ///< the image has the page's newest content
    PageBits dirty;                         ///< the image has it and VRAM does not
    PageBits in_flight;                     ///< being copied to VRAM: the bytes may not change
};

/// Follows from the StateShape; the same for every process that has this state.
struct StateLayout {
    static constexpr std::uint64_t kMagic = 0x50415753'4d415256;  // "VRAMSWAP", little endian
    static constexpr std::uint32_t kVersion = 4;
    std::uint64_t magic = 0;
    std::uint32_t version = 0;
    std::uint32_t chunks = 0;
    std::uint32_t segments_max = 0;
    std::uint32_t images = 0;
    std::uint64_t device_bytes = 0;
    std::uint64_t segment_bytes = 0;
    std::uint64_t pages_offset = 0, chunks_offset = 0, segments_offset = 0, images_offset = 0;
    std::uint64_t total_bytes = 0;
    bool operator==(const StateLayout&) const = default;
};

struct StateHeader : StateLayout {
    std::array<CopyCosts, kGpusMax> costs{};  ///< measured once, while the stage was empty
    std::uint32_t mergers = 0;                ///< chosen once: the stage has room for so many
};

/// What was stored before is in the state before what is stored after, for whoever looks at it when this
/// process is dead. The compiler's order is all that it takes: what a killed thread has stored is a prefix of
/// its program.
inline void keep_order() {
    std::atomic_signal_fence(std::memory_order_seq_cst);
}

/// Holds a chunk's lock for a scope. Spins, then yields: the holder only copies memory.
class ChunkLock {
  public:
    explicit ChunkLock(ChunkEntry& entry);
    ~ChunkLock() { entry_.locked.store(0, std::memory_order_release); }
    ChunkLock(const ChunkLock&) = delete;
    ChunkLock& operator=(const ChunkLock&) = delete;

  private:
    ChunkEntry& entry_;
};

struct StateShape {
    Bytes device{};
    Bytes segment{};
    std::uint32_t images = 0;
    std::uint32_t gpus = 1;
};

class State {
  public:
    /// A new empty state in a memfd. Errors: no_memory, usage.
    static Result<State> create(const StateShape& shape);
    /// Another process's, as it is. Its header is checked, its tables are not (takeover.h). Errors:
    /// no_memory, failed (not a state of this shape and version).
    static Result<State> adopt(const StateShape& shape, const UniqueFd& fd);

    State(State&& other) noexcept;
    State& operator=(State&&) = delete;
    ~State();

    [[nodiscard]] const StateHeader& header() const { return *at<StateHeader>(0); }
    void set_mergers(std::uint32_t mergers) { at<StateHeader>(0)->mergers = mergers; }
    void set_costs(std::uint32_t gpu, const CopyCosts& costs) { at<StateHeader>(0)->costs.at(gpu) = costs; }
    [[nodiscard]] std::span<PageEntry> pages() const;
    [[nodiscard]] std::span<ChunkEntry> chunks() const;
    [[nodiscard]] std::span<SegmentEntry> segments() const;
    [[nodiscard]] std::span<ImageHeader> images() const;
    [[nodiscard]] const UniqueFd& fd() const { return fd_; }
    [[nodiscard]] std::span<std::byte> memory() const { return {base_, size_}; }

  private:
    State(UniqueFd fd, std::byte* base, std::size_t size) : fd_(std::move(fd)), base_(base), size_(size) {}
    template <typename T>
    [[nodiscard]] T* at(std::uint64_t offset) const {
        return reinterpret_cast<T*>(base_ + offset);
    }

    UniqueFd fd_;
    std::byte* base_;
    std::size_t size_;
};

/// Zeroed, touched and locked (best effort without the right to) shared memory with a descriptor to hand on.
struct SharedMemory {
    UniqueFd fd;
    std::span<std::byte> bytes;
};
Result<SharedMemory> make_shared_memory(const char* name, std::size_t size);
/// The same of another process, all of it, if it has that size. Errors: no_memory, failed.
Result<SharedMemory> adopt_shared_memory(const char* name, const UniqueFd& fd, std::size_t size);

}  // namespace vramswap
