// SPDX-License-Identifier: MIT
// TopScreen: the terminal of `vramswap top`, by ncurses. It is put back as it was when the object goes, on
// whatever way. Owned by the command; one thread; one at a time. The caller handles signals: it blocks those
// that end the program, so that none passes the destructor.
#pragma once

#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "base/result.h"
#include "cli/top_text.h"
#include "cli/top_view.h"

namespace vramswap {

enum class Colours : std::uint8_t { none, if_any };

class TopScreen {
  public:
    /// Takes the terminal of standard input and output. Errors: unavailable, if nothing is known about a
    /// terminal of this name ($TERM), or it cannot place its cursor.
    static Result<std::unique_ptr<TopScreen>> open(Colours colours);
    ~TopScreen();
    TopScreen(const TopScreen&) = delete;
    TopScreen& operator=(const TopScreen&) = delete;

    /// As the terminal is now; it may have been resized.
    [[nodiscard]] ScreenSize size();
    void show(const std::vector<StyledLine>& lines);
    /// Also draws what the terminal should show already.
    void redraw();
    /// The next key that was pressed, or none. Does not block. Keys without a meaning are passed over.
    [[nodiscard]] TopKey key();

  private:
    explicit TopScreen(Colours colours);
    struct Terminal;  ///< ncurses' own; its header has too many macros to be seen from here

    std::unique_ptr<Terminal> terminal_;
};

}  // namespace vramswap
