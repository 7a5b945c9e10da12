// SPDX-License-Identifier: MIT
// The figures of a device as lines: what `vramswap top` says about it, without the graphs. Pure; any thread;
// they allocate, no errors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "cli/top_model.h"
#include "cli/top_rows.h"
#include "cli/top_text.h"

namespace vramswap {

/// Of sections; a device in trouble is told first of all.
enum SectionRank : std::uint8_t {
    kProblem,
    kStored,
    kFlows,
    kVram,
    kReason,
    kGpu,
    kMoves,
    kPolicy,
    kLegends,
    kSpill,
};

/// Figures that belong together. Sections are shown in the order of the list; where rows are few, those with
/// the lowest rank win.
struct Section {
    SectionRank rank = kProblem;
    std::vector<StyledLine> lines;
};

class FigureWriter {
  public:
    /// REQUIRES: `device` outlives it.
    FigureWriter(const TopDevice& device, std::size_t columns, Charset charset);

    /// Name, state, how full it is, and what it is; without figures in it, what is wrong.
    [[nodiscard]] StyledLine header() const;
    /// The same for a device that has no other line: with rates.
    [[nodiscard]] StyledLine summary() const;
    /// All others but the processes.
    [[nodiscard]] std::vector<Section> sections() const;
    /// Rows that the processes on the GPU would fill.
    [[nodiscard]] std::size_t process_rows() const;
    /// The largest of them, as many as go into `rows`; the last line sums up the others.
    /// REQUIRES: rows <= process_rows().
    [[nodiscard]] std::vector<StyledLine> processes(std::size_t rows) const;
    /// In and out, each in a line that leaves room for a graph at the end.
    [[nodiscard]] std::vector<StyledLine> flows() const;

  private:
    [[nodiscard]] std::vector<StyledLine> problems() const;
    [[nodiscard]] std::vector<StyledLine> stored() const;
    [[nodiscard]] StyledLine moves() const;
    [[nodiscard]] StyledLine vram() const;
    [[nodiscard]] StyledLine spill() const;
    [[nodiscard]] std::vector<StyledLine> reason() const;
    [[nodiscard]] std::vector<StyledLine> policy() const;
    struct GpuLines {
        StyledLine bar, legend;
    };
    [[nodiscard]] GpuLines gpu(const std::string& label, const GpuPart& gpu) const;

    [[nodiscard]] std::vector<StyledLine> identity() const;
    [[nodiscard]] StyledLine flow(std::string_view label, TopFlow TopRates::*flow) const;
    [[nodiscard]] std::string safe(std::string_view text) const { return printable(text, charset_); }

    const TopDevice& device_;
    const Charset charset_;
    const Glyphs& glyphs_;
    const RowWriter rows_;
};

}  // namespace vramswap
