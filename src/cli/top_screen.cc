// SPDX-License-Identifier: MIT
#include "cli/top_screen.h"

#define NCURSES_NOMACROS 1
#include <curses.h>
#include <fmt/format.h>
#include <sys/ioctl.h>
#include <term.h>
#include <unistd.h>
// term.h has macros for every capability of a terminal.
#undef columns
#undef lines

#include <algorithm>
#include <array>
#include <cstdlib>
#include <string_view>

namespace vramswap {
namespace {

constexpr int kCtrlL = 'L' & 0x1f;

/// Number of the colour pair for a style; 0: the terminal's own.
short pair_of(TextStyle style) {
    switch (style) {
        case TextStyle::good:
            return 1;
        case TextStyle::warning:
        case TextStyle::stage:
            return 2;
        case TextStyle::bad:
            return 3;
        case TextStyle::vram:
            return 4;
        case TextStyle::spill:
            return 5;
        case TextStyle::others:
            return 6;
        case TextStyle::plain:
        case TextStyle::strong:
        case TextStyle::dim:
        case TextStyle::bar:
            break;
    }
    return 0;
}
constexpr std::array<short, 6> kPairs{COLOR_GREEN, COLOR_YELLOW,  COLOR_RED,
                                      COLOR_CYAN,  COLOR_MAGENTA, COLOR_BLUE};

attr_t attributes_of(TextStyle style) {
    switch (style) {
        case TextStyle::strong:
        case TextStyle::bad:
            return A_BOLD;
        case TextStyle::dim:
            return A_DIM;
        case TextStyle::bar:
            return A_REVERSE;
        default:
            return A_NORMAL;
    }
}

Result<void> check_terminal() {
    const char* name = std::getenv("TERM");
    int found = 0;
    const bool known = ::setupterm(name, STDOUT_FILENO, &found) == OK;
    char cup[] = "cup";  // tigetstr takes no const
    const char* const moves = known ? ::tigetstr(cup) : nullptr;
    const bool usable = moves != nullptr && reinterpret_cast<std::intptr_t>(moves) != -1;
    if (known) ::del_curterm(::cur_term);
    if (usable) return {};
    return Error{Errc::unavailable, 0,
                 fmt::format("a terminal '{}' (TERM) {}", name == nullptr ? "" : name,
                             known ? "cannot place its cursor" : "is not known on this machine"),
                 "Set TERM to what the terminal is like, such as xterm or vt100; --once needs nothing of it"};
}

}  // namespace

struct TopScreen::Terminal {
    SCREEN* screen = nullptr;
    bool colours = false;
};

Result<std::unique_ptr<TopScreen>> TopScreen::open(Colours colours) {
    if (auto fine = check_terminal(); !fine) return std::move(fine).error();
    std::unique_ptr<TopScreen> screen(new TopScreen(colours));
    if (screen->terminal_->screen == nullptr)
        return Error{Errc::unavailable, 0, "cannot use the terminal for a live view", "Use --once"};
    return screen;
}

TopScreen::TopScreen(Colours colours) : terminal_(std::make_unique<Terminal>()) {
    constexpr int kEscapeMs = 25;  // the default of a second makes Escape feel broken
    terminal_->screen = ::newterm(nullptr, stdout, stdin);
    if (terminal_->screen == nullptr) return;
    ::set_escdelay(kEscapeMs);
    ::cbreak();
    ::noecho();
    ::nonl();
    ::keypad(::stdscr, TRUE);
    ::nodelay(::stdscr, TRUE);
    ::curs_set(0);
    if (colours == Colours::none || !::has_colors()) return;
    ::start_color();
    ::use_default_colors();
    for (std::size_t i = 0; i < kPairs.size(); ++i) ::init_pair(static_cast<short>(i + 1), kPairs.at(i), -1);
    terminal_->colours = true;
}

TopScreen::~TopScreen() {
    if (terminal_->screen == nullptr) return;
    ::curs_set(1);
    ::endwin();
    ::delscreen(terminal_->screen);
}

ScreenSize TopScreen::size() {
    winsize now{};
    if (::ioctl(STDOUT_FILENO, TIOCGWINSZ, &now) == 0 && now.ws_row > 0 && now.ws_col > 0 &&
        (now.ws_row != ::LINES || now.ws_col != ::COLS))
        ::resizeterm(now.ws_row, now.ws_col);
    return {static_cast<std::size_t>(std::max(1, ::COLS)), static_cast<std::size_t>(std::max(1, ::LINES))};
}

void TopScreen::show(const std::vector<StyledLine>& lines) {
    ::werase(::stdscr);
    int row = 0;
    for (const StyledLine& line : lines) {
        ::wmove(::stdscr, row++, 0);
        for (const Span& span : line.spans()) {
            const short pair = terminal_->colours ? pair_of(span.style) : short{0};
            ::wattr_set(::stdscr, attributes_of(span.style), pair, nullptr);
            ::waddnstr(::stdscr, span.text.c_str(), static_cast<int>(span.text.size()));
        }
    }
    ::wattr_set(::stdscr, A_NORMAL, 0, nullptr);
    ::wrefresh(::stdscr);
}

void TopScreen::redraw() {
    ::clearok(::stdscr, TRUE);
}

TopKey TopScreen::key() {
    for (int c = ::wgetch(::stdscr); c != ERR; c = ::wgetch(::stdscr)) {
        switch (c) {
            case 'q':
            case 'Q':
                return TopKey::quit;
            case 'p':
            case 'P':
            case ' ':
                return TopKey::pause;
            case 'h':
            case 'H':
            case '?':
            case KEY_F(1):
                return TopKey::help;
            case '+':
            case '=':
                return TopKey::slower;
            case '-':
                return TopKey::faster;
            case KEY_UP:
            case 'k':
                return TopKey::up;
            case KEY_DOWN:
            case 'j':
                return TopKey::down;
            case kCtrlL:
                redraw();
                break;
            default:
                break;
        }
    }
    return TopKey::none;
}

}  // namespace vramswap
