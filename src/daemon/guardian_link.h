// SPDX-License-Identifier: MIT
// What worker and guardian say to each other over a socket pair: packets of one fixed struct, with a
// descriptor where one is handed over. Fixed, so that the guardian allocates nothing. The worker's side is an
// FdKeeper. Control threads.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

#include "base/fd_keeper.h"
#include "base/result.h"
#include "base/unique_fd.h"

namespace vramswap {

struct LinkMessage {
    enum class Kind : std::uint32_t {
        keep,     ///< worker: keep the descriptor that comes along under `key`; answered
        drop,     ///< worker: close what is under `key`; answered
        ready,    ///< worker: the device in `text` is up
        failed,   ///< worker: cannot start; `text` is an error as JSON
        held,     ///< guardian: comes along: what a dead worker had it keep under `key`
        go,       ///< guardian: that was all; `text` is how many workers have died
        done,     ///< guardian: keep or drop is done
        refused,  ///< guardian: no room, or no such key
    };
    Kind kind = Kind::done;
    std::array<char, 60> key{};
    std::array<char, 4032> text{};

    static LinkMessage make(Kind kind, std::string_view key, std::string_view text);
    [[nodiscard]] std::string_view key_view() const;
    [[nodiscard]] std::string_view text_view() const;
};

struct ReceivedMessage {
    LinkMessage message;
    UniqueFd fd;
};

/// A packet socket pair. Errors: failed.
struct LinkEnds {
    UniqueFd guardian, worker;
};
Result<LinkEnds> make_link();

/// `fd` -1 = none. Blocks if the other side does not read. Errors: failed.
Result<void> send_message(int link, const LinkMessage& message, int fd);
/// Waits for a packet. Errors: not_found if the other side is gone, failed for a malformed packet.
Result<ReceivedMessage> receive_message(int link);

/// The worker's side.
class GuardianLink final : public FdKeeper {
  public:
    explicit GuardianLink(UniqueFd link) : link_(std::move(link)) {}
    Result<void> keep(std::string_view key, const UniqueFd& fd) override;
    Result<void> drop(std::string_view key) override;
    /// What the guardian says first: what was kept of a worker that has died, if there was one. Waits for it.
    struct Handover {
        HeldFds fds;
        std::uint32_t deaths = 0;
    };
    Result<Handover> receive_handover();
    Result<void> tell_ready(std::string_view device);
    Result<void> tell_failed(std::string_view error);
    /// It has what the frontend needs to be taken over.
    [[nodiscard]] bool keeps_frontend() const { return keeps_frontend_; }
    /// Readable (end of file) when the guardian is gone.
    [[nodiscard]] int fd() const { return link_.get(); }

  private:
    Result<void> ask(const LinkMessage& message, int fd);
    const UniqueFd link_;
    bool keeps_frontend_ = false;
};

}  // namespace vramswap
