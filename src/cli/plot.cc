// SPDX-License-Identifier: MIT
#include "cli/plot.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <string_view>

#include "sys/process.h"

namespace vramswap {
namespace {

// In the units of the picture.
constexpr double kNamesWidth = 230, kPanelWidth = 400, kGap = 60, kMargin = 20;
constexpr double kRowHeight = 24, kTop = 112, kBottom = 50;
constexpr double kRatesX = kMargin + kNamesWidth;
constexpr double kLatencyX = kRatesX + kPanelWidth + kGap;
constexpr double kWidth = kLatencyX + kPanelWidth + kMargin + 20;

constexpr std::array kBarColours{"#2b6cb0", "#dd8a2b"};
constexpr std::array kDotColours{"#2f855a", "#d69e2e", "#dd6b20", "#c53030"};
constexpr std::array kPercentileNames{"p50", "p99", "p99.9", "max"};
constexpr const char* kCeilingColour = "#cbd5e0";
constexpr const char* kGridColour = "#e2e8f0";

std::string escaped(std::string_view text) {
    std::string out;
    for (const char c : text) {
        if (c == '&')
            out += "&amp;";
        else if (c == '<')
            out += "&lt;";
        else if (c == '>')
            out += "&gt;";
        else if (c == '"')
            out += "&quot;";
        else if (static_cast<unsigned char>(c) >= 0x20)
            out += c;
    }
    return out;
}

/// 1, 2 or 5 times a power of ten: at most ten of them up to `highest`.
double tick_step(double highest) {
    const double power = std::pow(10, std::floor(std::log10(highest / 10)));
    for (const double factor : {1.0, 2.0, 5.0})
        if (highest / (power * factor) <= 10) return power * factor;
    return power * 10;
}

std::string time_name(double us) {
    if (us < 1) return fmt::format("{:g} ns", us * 1000);
    if (us < 1000) return fmt::format("{:g} us", us);
    return us < 1e6 ? fmt::format("{:g} ms", us / 1000) : fmt::format("{:g} s", us / 1e6);
}

class Drawing {
  public:
    explicit Drawing(const Plot& plot) : plot_(plot) {
        for (const PlotRow& row : plot.rows) {
            for (const double rate : row.gbps) highest_gbps_ = std::max(highest_gbps_, rate);
            highest_gbps_ = std::max(highest_gbps_, row.ceiling_gbps);
            for (const double us : row.latency_us) note_latency(us);
            note_latency(row.ceiling_us);
            has_ceiling_ = has_ceiling_ || row.ceiling_gbps > 0 || row.ceiling_us > 0;
        }
        highest_gbps_ *= 1.3;  // room for the figures beside the bars
    }

    std::string draw() {
        const double height = kTop + rows_height() + kBottom;
        out_ = fmt::format(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0}\" height=\"{1}\" viewBox=\"0 0 {0} {1}\" "
            "font-family=\"sans-serif\" font-size=\"12\">\n"
            "<rect width=\"{0}\" height=\"{1}\" fill=\"#ffffff\"/>\n",
            kWidth, height);
        text(kMargin, 30, plot_.title, "start", "font-size=\"18\" font-weight=\"bold\"");
        text(kMargin, 50, plot_.subtitle, "start", "fill=\"#4a5568\"");
        draw_rate_axis();
        draw_latency_axis();
        draw_legends();
        double y = kTop;
        for (const PlotRow& row : plot_.rows) {
            draw_row(row, y);
            y += kRowHeight;
        }
        return out_ + "</svg>\n";
    }

  private:
    void note_latency(double us) {
        if (us <= 0) return;
        lowest_decade_ = std::min(lowest_decade_, std::floor(std::log10(us)));
        highest_decade_ = std::max(highest_decade_, std::ceil(std::log10(us)));
    }
    [[nodiscard]] double rows_height() const { return kRowHeight * static_cast<double>(plot_.rows.size()); }
    [[nodiscard]] double rate_width(double gbps) const { return kPanelWidth * gbps / highest_gbps_; }
    [[nodiscard]] double latency_x(double us) const {
        const double decades = std::max(1.0, highest_decade_ - lowest_decade_);
        const double at = us > 0 ? std::log10(us) - lowest_decade_ : 0;
        return kLatencyX + kPanelWidth * at / decades;
    }

    void text(double x, double y, std::string_view words, const char* anchor, const char* more = "") {
        out_ += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\" {}>{}</text>\n", x, y, anchor,
                            more, escaped(words));
    }
    void rect(double x, double y, double width, double height, const char* colour) {
        out_ +=
            fmt::format("<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\" fill=\"{}\"/>\n",
                        x, y, std::max(width, 0.5), height, colour);
    }
    void line(double x1, double y1, double x2, double y2, const char* colour) {
        out_ += fmt::format("<line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" stroke=\"{}\"/>\n",
                            x1, y1, x2, y2, colour);
    }
    void dot(double x, double y, const char* colour) {
        out_ += fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"4\" fill=\"{}\"/>\n", x, y, colour);
    }
    void diamond(double x, double y) {
        out_ +=
            fmt::format("<path d=\"M{:.1f} {:.1f} l6 6 l-6 6 l-6 -6 z\" fill=\"{}\" stroke=\"#718096\"/>\n",
                        x, y - 6, kCeilingColour);
    }

    void draw_rate_axis() {
        const double step = tick_step(highest_gbps_);
        for (int i = 0; i * step <= highest_gbps_; ++i) {
            const double x = kRatesX + rate_width(i * step);
            line(x, kTop - 4, x, kTop + rows_height(), kGridColour);
            text(x, kTop - 8, fmt::format("{:g}", i * step), "middle", "fill=\"#4a5568\"");
        }
        text(kRatesX + kPanelWidth, kTop + rows_height() + 18, "GB/s", "end", "fill=\"#4a5568\"");
    }

    void draw_latency_axis() {
        for (double decade = lowest_decade_; decade <= highest_decade_; ++decade) {
            const double us = std::pow(10, decade);
            line(latency_x(us), kTop - 4, latency_x(us), kTop + rows_height(), kGridColour);
            text(latency_x(us), kTop - 8, time_name(us), "middle", "fill=\"#4a5568\"");
        }
        text(kLatencyX + kPanelWidth, kTop + rows_height() + 18, "latency, logarithmic", "end",
             "fill=\"#4a5568\"");
    }

    void draw_legends() {
        double x = kRatesX;
        const double y = kTop - 36;
        for (std::size_t i = 0; i < plot_.rates.size(); ++i) {
            rect(x, y, 12, 12, kBarColours[i % kBarColours.size()]);
            text(x + 17, y + 10, plot_.rates[i], "start");
            x += 32 + 7.0 * static_cast<double>(plot_.rates[i].size());
        }
        if (has_ceiling_) {
            rect(x, y, 12, 12, kCeilingColour);
            text(x + 17, y + 10, "the hardware alone", "start");
        }
        x = kLatencyX;
        for (std::size_t i = 0; i < kPercentileNames.size(); ++i) {
            dot(x + 6, y + 6, kDotColours[i]);
            text(x + 14, y + 10, kPercentileNames[i], "start");
            x += 62;
        }
        if (!has_ceiling_) return;
        diamond(x + 6, y + 6);
        text(x + 16, y + 10, "the hardware alone (p50)", "start");
    }

    void draw_row(const PlotRow& row, double y) {
        const double middle = y + kRowHeight / 2;
        text(kRatesX - 10, middle + 4, row.name, "end");
        if (row.ceiling_gbps > 0)
            rect(kRatesX, y + 3, rate_width(row.ceiling_gbps), kRowHeight - 6, kCeilingColour);
        const double bar = (kRowHeight - 10) / static_cast<double>(std::max<std::size_t>(1, row.gbps.size()));
        std::string values;
        for (std::size_t i = 0; i < row.gbps.size(); ++i) {
            rect(kRatesX, y + 5 + bar * static_cast<double>(i), rate_width(row.gbps[i]), bar,
                 kBarColours[i % kBarColours.size()]);
            values += fmt::format("{}{:.{}f}", i == 0 ? "" : " / ", row.gbps[i], row.gbps[i] < 10 ? 2 : 1);
        }
        if (row.ceiling_gbps > 0 && !row.gbps.empty())
            values += fmt::format(" ({:.2f})", row.gbps.front() / row.ceiling_gbps);
        const double longest = std::max(row.ceiling_gbps, row.gbps.empty() ? 0 : std::ranges::max(row.gbps));
        text(kRatesX + rate_width(longest) + 5, middle + 4, values, "start", "font-size=\"11\"");
        draw_latencies(row, middle);
    }

    void draw_latencies(const PlotRow& row, double y) {
        line(latency_x(row.latency_us.front()), y, latency_x(row.latency_us.back()), y, "#a0aec0");
        if (row.ceiling_us > 0) diamond(latency_x(row.ceiling_us), y);
        for (std::size_t i = row.latency_us.size(); i-- > 0;)
            dot(latency_x(row.latency_us[i]), y, kDotColours[i]);
    }

    const Plot& plot_;
    bool has_ceiling_ = false;
    double highest_gbps_ = 1e-3;
    double lowest_decade_ = 3, highest_decade_ = 0;
    std::string out_;
};

}  // namespace

std::string to_svg(const Plot& plot) {
    return Drawing(plot).draw();
}

Result<void> write_plot(const Plot& plot, const std::string& path) {
    if (path.empty()) return {};
    return write_file(path, to_svg(plot), FileCreate::if_absent);
}

}  // namespace vramswap
