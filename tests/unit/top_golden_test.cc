// SPDX-License-Identifier: MIT
// Frames of `vramswap top`: compared with tests/golden/top/*.txt, and drawn in every size. With
// VRAMSWAP_UPDATE_GOLDEN=1 it writes them instead: look at them before they are committed.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <array>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "cli/top_view.h"
#include "support/top_scenes.h"

namespace vramswap {
namespace {

std::string text_of(const std::vector<StyledLine>& lines) {
    std::string text;
    for (const StyledLine& line : lines) {
        std::string row = line.text();
        row.erase(row.find_last_not_of(' ') + 1);
        text += row + "\n";
    }
    return text;
}

void expect_golden(const std::string& name, const std::string& text) {
    const std::filesystem::path file = std::filesystem::path(TOP_GOLDEN_DIR) / (name + ".txt");
    if (std::getenv("VRAMSWAP_UPDATE_GOLDEN") != nullptr) {
        std::ofstream(file) << text;
        return;
    }
    std::stringstream expected;
    expected << std::ifstream(file).rdbuf();
    EXPECT_EQ(text, expected.str()) << name << ": if this is meant: VRAMSWAP_UPDATE_GOLDEN=1";
}

constexpr std::array kCharsets{Charset::ascii, Charset::utf8};
const char* name_of(Charset charset) {
    return charset == Charset::ascii ? "ascii" : "utf8";
}

class TopGolden : public ::testing::TestWithParam<std::string> {};

TEST_P(TopGolden, ScreensAreAsRecorded) {
    const TopModel model = test::top_scene(GetParam());
    for (const ScreenSize size : {ScreenSize{80, 24}, ScreenSize{40, 12}, ScreenSize{160, 50}})
        for (const Charset charset : kCharsets)
            expect_golden(fmt::format("{}.{}x{}.{}", GetParam(), size.columns, size.rows, name_of(charset)),
                          text_of(draw_screen(model, {}, size, charset)));
}

TEST_P(TopGolden, PlainFramesAreAsRecorded) {
    expect_golden(GetParam() + ".once", text_of(draw_plain(test::top_scene(GetParam()), 80, Charset::ascii)));
}

void expect_inside(const std::vector<StyledLine>& lines, ScreenSize size, Charset charset) {
    ASSERT_LE(lines.size(), size.rows) << size.columns << "x" << size.rows;
    for (const StyledLine& line : lines) {
        const std::string text = line.text();
        ASSERT_LE(columns_of(text), size.columns) << size.columns << "x" << size.rows << ": " << text;
        ASSERT_EQ(line.columns(), columns_of(text)) << text;
        // Every character of ASCII is a column.
        ASSERT_TRUE(charset == Charset::utf8 || text.size() == line.columns()) << text;
    }
}

TEST_P(TopGolden, NothingLeavesAScreenOfAnySize) {
    const TopModel model = test::top_scene(GetParam());
    TopState help;
    help.page = TopState::Page::help;
    for (std::size_t columns = 1; columns <= 170; columns += columns < 84 ? 1 : 9)
        for (const std::size_t rows : {1u, 2u, 3u, 4u, 5u, 6u, 7u, 9u, 12u, 18u, 24u, 25u, 40u, 56u}) {
            const ScreenSize size{columns, rows};
            const Charset charset = columns % 2 == 0 ? Charset::ascii : Charset::utf8;
            expect_inside(draw_screen(model, {}, size, charset), size, charset);
            expect_inside(draw_screen(model, help, size, charset), size, charset);
        }
}

INSTANTIATE_TEST_SUITE_P(Scenes, TopGolden, ::testing::ValuesIn(test::top_scenes()),
                         [](const auto& scene) { return scene.param; });

TEST(TopGoldenHelp, IsAsRecorded) {
    TopState state;
    state.page = TopState::Page::help;
    expect_golden("help.80x24.utf8", text_of(draw_screen(test::top_scene("busy"), state, {}, Charset::utf8)));
}

}  // namespace
}  // namespace vramswap
