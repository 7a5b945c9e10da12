// SPDX-License-Identifier: MIT
// The screen of `vramswap top`: what keys change, and the lines for a screen of any size. Pure; any thread;
// allocates, no errors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "cli/top_model.h"
#include "cli/top_text.h"

namespace vramswap {

enum class TopKey : std::uint8_t { none, up, down, quit, pause, help, slower, faster };

/// What the user has chosen.
struct TopState {
    enum class Run : std::uint8_t { live, paused, ended } run = Run::live;
    enum class Page : std::uint8_t { devices, help } page = Page::devices;
    std::string selected;  ///< name; the first, if there is none such
    double interval_s = 1;
};
inline constexpr double kTopIntervalMinS = 0.1, kTopIntervalMaxS = 60;

/// What the key makes of it.
[[nodiscard]] TopState pressed(TopState state, TopKey key, const TopModel& model);

struct ScreenSize {
    std::size_t columns = 80;
    std::size_t rows = 24;
};

/// At most so many rows, none wider than so many columns. The selected device has the most room.
[[nodiscard]] std::vector<StyledLine> draw_screen(const TopModel& model, const TopState& state,
                                                  ScreenSize size, Charset charset);
/// All devices with all their figures, for a file or a pipe.
[[nodiscard]] std::vector<StyledLine> draw_plain(const TopModel& model, std::size_t columns, Charset charset);

}  // namespace vramswap
