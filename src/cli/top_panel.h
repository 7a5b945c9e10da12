// SPDX-License-Identifier: MIT
// The part of the screen of `vramswap top` that shows one device: as much as there is room for, the most
// important first. Pure; any thread; allocates, no errors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "cli/top_model.h"
#include "cli/top_text.h"

namespace vramswap {

enum class Marker : std::uint8_t { none, other, selected };
enum class Pictures : std::uint8_t { none, of_history };

struct PanelLook {
    std::size_t columns = 80;
    std::size_t rows = 24;
    Charset charset = Charset::ascii;
    Marker marker = Marker::none;
    Pictures pictures = Pictures::of_history;
    std::uint64_t now_ns = 0;  ///< where the history ends
};

/// Lines no wider than `columns`, `rows` of them at most and one at least.
[[nodiscard]] std::vector<StyledLine> draw_panel(const TopDevice& device, const PanelLook& look);

/// Rows that the panel of a device can fill at most.
[[nodiscard]] std::size_t panel_rows_wanted(const TopDevice& device, std::size_t columns, Charset charset);
/// Rows that a panel makes good use of.
inline constexpr std::size_t kPanelRowsBrief = 4;    ///< header, where chunks are, in, out
inline constexpr std::size_t kPanelRowsUsual = 17;   ///< all figures, and small graphs
inline constexpr std::size_t kPanelRowsAtMost = 49;  ///< more is not better

}  // namespace vramswap
