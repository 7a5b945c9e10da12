// SPDX-License-Identifier: MIT
// Result<T>: a value or an Error with context. Control path only: it may allocate. The I/O path uses
// IoStatus (base/io_status.h). Any thread; no shared state.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

namespace vramswap {

/// What kind of failure it is; decides the exit status of a command.
enum class Errc : std::uint8_t {
    failed,       ///< it did not work
    usage,        ///< the caller asked for something that makes no sense
    unavailable,  ///< this machine cannot do it (no GPU, no driver, kernel too old)
    exists,       ///< there already is one
    not_found,    ///< there is none
    busy,         ///< somebody else uses it
    no_memory,    ///< not enough RAM or VRAM
    gpu_lost,     ///< the GPU or its context can no longer be used by this process
};

/// A failure told as users need it: what failed with the value in it, and what to do next.
struct Error {
    Errc code = Errc::failed;
    int sys = 0;          ///< errno, or 0
    std::string message;  ///< what failed, naming the thing and the value
    std::string hint{};   ///< what to do next; may be empty

    /// "message: strerror(sys). hint" in one line.
    [[nodiscard]] std::string text() const;
    /// Puts "context: " before the message.
    [[nodiscard]] Error in(std::string_view context) &&;
};

/// Error with the present errno.
[[nodiscard]] Error sys_error(std::string message, std::string hint = {});

template <typename T>
class [[nodiscard]] Result {
  public:
    Result(T value) : state_(std::in_place_index<0>, std::move(value)) {}
    Result(Error error) : state_(std::in_place_index<1>, std::move(error)) {}

    [[nodiscard]] bool has_value() const { return state_.index() == 0; }
    explicit operator bool() const { return has_value(); }

    /// REQUIRES: has_value(); otherwise throws std::bad_variant_access.
    T& value() & { return std::get<0>(state_); }
    const T& value() const& { return std::get<0>(state_); }
    T&& value() && { return std::get<0>(std::move(state_)); }
    T& operator*() & { return value(); }
    const T& operator*() const& { return value(); }
    T&& operator*() && { return std::move(*this).value(); }
    T* operator->() { return &value(); }
    const T* operator->() const { return &value(); }

    /// REQUIRES: !has_value().
    Error& error() & { return std::get<1>(state_); }
    const Error& error() const& { return std::get<1>(state_); }
    Error&& error() && { return std::get<1>(std::move(state_)); }

    T value_or(T fallback) && { return has_value() ? std::move(*this).value() : std::move(fallback); }

  private:
    std::variant<T, Error> state_;
};

template <>
class [[nodiscard]] Result<void> {
  public:
    Result() = default;
    Result(Error error) : error_(std::move(error)), ok_(false) {}

    [[nodiscard]] bool has_value() const { return ok_; }
    explicit operator bool() const { return ok_; }
    Error& error() & { return error_; }
    const Error& error() const& { return error_; }
    Error&& error() && { return std::move(error_); }

  private:
    Error error_{};
    bool ok_ = true;
};

}  // namespace vramswap
