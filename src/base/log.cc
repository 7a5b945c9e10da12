// SPDX-License-Identifier: MIT
#include "base/log.h"

#include <unistd.h>

#include <array>
#include <atomic>
#include <cstdlib>

namespace vramswap {
namespace {

struct Settings {
    bool prefixed = false;
    LogLevel most_verbose = LogLevel::info;
    std::string_view name = "vramswap";
};
Settings settings;

/// A bounded multi-producer single-consumer ring: a slot's `turn` says whose it is.
struct Slot {
    std::atomic<std::uint64_t> turn{0};
    LogLevel level{};
    const char* text = nullptr;
    std::uint64_t value = 0;
};
constexpr std::size_t kSlots = 256;
std::array<Slot, kSlots> ring;
std::atomic<std::uint64_t> head{0};
std::atomic<std::uint64_t> dropped{0};
std::uint64_t tail = 0;

}  // namespace

void log_configure(LogStyle style, LogLevel most_verbose, std::string_view name) {
    settings.prefixed = style == LogStyle::prefixed ||
                        (style == LogStyle::automatic && std::getenv("JOURNAL_STREAM") != nullptr);
    settings.most_verbose = most_verbose;
    settings.name = name;
}

void log_message(LogLevel level, std::string_view text) {
    if (level > settings.most_verbose) return;
    try {
        const std::string line = settings.prefixed ? fmt::format("<{}>{}\n", static_cast<int>(level), text)
                                                   : fmt::format("{}: {}\n", settings.name, text);
        [[maybe_unused]] const auto written = ::write(STDERR_FILENO, line.data(), line.size());
    } catch (...) {  // out of memory while telling something: nothing sensible is left to do
    }
}

void log_event(LogLevel level, const char* text, std::uint64_t value) noexcept {
    std::uint64_t at = head.load(std::memory_order_relaxed);
    for (;;) {
        Slot& slot = ring[at % kSlots];
        const std::uint64_t turn = slot.turn.load(std::memory_order_acquire);
        const std::uint64_t free_turn = at / kSlots * 2;
        if (turn == free_turn) {
            if (!head.compare_exchange_weak(at, at + 1, std::memory_order_relaxed)) continue;
            slot.level = level;
            slot.text = text;
            slot.value = value;
            slot.turn.store(free_turn + 1, std::memory_order_release);
            return;
        }
        if (turn < free_turn) {  // still unread from the lap before
            dropped.fetch_add(1, std::memory_order_relaxed);
            return;
        }
        at = head.load(std::memory_order_relaxed);
    }
}

void log_drain() {
    for (;; ++tail) {
        Slot& slot = ring[tail % kSlots];
        const std::uint64_t full_turn = tail / kSlots * 2 + 1;
        if (slot.turn.load(std::memory_order_acquire) != full_turn) break;
        log_message(slot.level, fmt::format("{} ({})", slot.text, slot.value));
        slot.turn.store(full_turn + 1, std::memory_order_release);
    }
    const std::uint64_t lost = dropped.exchange(0, std::memory_order_relaxed);
    if (lost != 0)
        log_message(LogLevel::warning, fmt::format("{} log events dropped: the ring was full", lost));
}

}  // namespace vramswap
