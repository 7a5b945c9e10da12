// SPDX-License-Identifier: MIT
// Log lines on standard error with the priority prefixes of sd-daemon(3) ("<6>text") when systemd reads them,
// plain otherwise. log_message writes with one write(2) and may block: control threads only. I/O threads use
// log_event, which stores into a fixed lock-free ring; a control thread prints it with log_drain.
#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <string_view>
#include <utility>

namespace vramswap {

/// Numbers are syslog(3) priorities.
enum class LogLevel : std::uint8_t { error = 3, warning = 4, notice = 5, info = 6, debug = 7 };

/// How lines begin. automatic: prefixes if $JOURNAL_STREAM is set.
enum class LogStyle : std::uint8_t { automatic, plain, prefixed };
/// Not thread-safe; call before threads exist. `name` must live for ever and stands before plain lines.
void log_configure(LogStyle style, LogLevel most_verbose, std::string_view name);

/// Writes one line. May block on standard error. Never throws.
void log_message(LogLevel level, std::string_view text);

template <typename... Args>
void log_info(fmt::format_string<Args...> format, Args&&... args) {
    log_message(LogLevel::info, fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
void log_warning(fmt::format_string<Args...> format, Args&&... args) {
    log_message(LogLevel::warning, fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
void log_error(fmt::format_string<Args...> format, Args&&... args) {
    log_message(LogLevel::error, fmt::format(format, std::forward<Args>(args)...));
}

/// Records an event from an I/O thread: no allocation, no system call, no lock. `text` must be a literal.
/// When the ring is full the event is counted as dropped and log_drain says so.
void log_event(LogLevel level, const char* text, std::uint64_t value) noexcept;

/// Prints what log_event recorded. One thread at a time (the control thread).
void log_drain();

}  // namespace vramswap
