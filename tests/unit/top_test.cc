// SPDX-License-Identifier: MIT
// What `vramswap top` makes of statuses, keys and foreign texts; frames are in top_golden_test.cc.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <deque>
#include <string>
#include <vector>

#include "cli/top_graph.h"
#include "cli/top_model.h"
#include "cli/top_text.h"
#include "cli/top_view.h"
#include "support/top_scenes.h"

namespace vramswap {
namespace {

constexpr std::uint64_t kSecond = 1'000'000'000;

TEST(TopModel, RatesAreOfTheTimeBetweenTwoLooks) {
    TopModel model;
    DeviceStatus s = test::busy_device("a");
    model.add(kSecond, {s});
    EXPECT_FALSE(model.devices()[0].rates) << "one look has no rate";
    s.pages_read += 1000;
    s.moved_out = s.moved_out + mib(1);
    model.add(3 * kSecond, {s});
    ASSERT_TRUE(model.devices()[0].rates);
    const TopRates rates = *model.devices()[0].rates;
    EXPECT_DOUBLE_EQ(rates.in.pages_per_s, 500);
    EXPECT_DOUBLE_EQ(rates.in.bytes_per_s(), 500 * 4096);
    EXPECT_DOUBLE_EQ(rates.out.pages_per_s, 0);
    EXPECT_DOUBLE_EQ(rates.moved_out, static_cast<double>(mib(1).n) / 2);
}

TEST(TopModel, CountersOfAnotherWorkerGiveNoRate) {
    TopModel model;
    DeviceStatus s = test::busy_device("a");
    s.pages_read = 1000;
    model.add(kSecond, {s});
    s.worker_pid += 1;
    s.pages_read = 5000;
    model.add(2 * kSecond, {s});
    EXPECT_FALSE(model.devices()[0].rates);
    s.pages_read = 10;  // it has begun again without a new process id
    model.add(3 * kSecond, {s});
    EXPECT_FALSE(model.devices()[0].rates);
    s.pages_read = 20;
    model.add(4 * kSecond, {s});
    ASSERT_TRUE(model.devices()[0].rates);
    EXPECT_DOUBLE_EQ(model.devices()[0].rates->in.pages_per_s, 10);
}

TEST(TopModel, ADeviceThatIsGoneIsToldForAWhileAndCanComeBack) {
    TopModel model;
    const DeviceStatus s = test::busy_device("a");
    model.add(kSecond, {s});
    model.add(2 * kSecond, {});
    ASSERT_EQ(model.devices().size(), 1u);
    EXPECT_EQ(model.devices()[0].presence, TopDevice::Presence::gone);
    EXPECT_FALSE(model.devices()[0].has_figures());
    model.add(3 * kSecond, {s});
    EXPECT_EQ(model.devices()[0].presence, TopDevice::Presence::here);
    EXPECT_FALSE(model.devices()[0].rates) << "of a time in which nobody looked";
    model.add(3 * kSecond + TopModel::kGoneStaysNs + 1, {});
    EXPECT_TRUE(model.devices().empty());
}

TEST(TopModel, DevicesAreSortedAsTheyComeAndGo) {
    TopModel model;
    model.add(1, {test::busy_device("b")});
    model.add(2, {test::busy_device("c"), test::busy_device("a")});
    std::string names;
    for (const auto& d : model.devices()) names += d.status.name;
    EXPECT_EQ(names, "abc");
}

TEST(TopModel, HistoryHasAnEnd) {
    TopModel model;
    for (std::uint64_t i = 1; i < TopModel::kHistoryPoints + 100; ++i) model.add(i, {test::busy_device("a")});
    EXPECT_EQ(model.devices()[0].history.size(), TopModel::kHistoryPoints);
}

TEST(TopModel, PercentilesAreOfWhatCameBetween) {
    std::vector<std::uint64_t> before(64), after(64);
    EXPECT_FALSE(percentiles_between(before, after)) << "nothing came";
    before[40] = after[40] = 1'000'000;  // long ago
    after[20] += 98;                     // 2^10 to 2^10.5 ns
    after[30] += 2;                      // 2^15 to 2^15.5 ns
    const auto p = percentiles_between(before, after);
    ASSERT_TRUE(p);
    EXPECT_GT(p->p50_ns, 1024);
    EXPECT_LT(p->p50_ns, 1449);
    EXPECT_GT(p->p99_ns, 32768);
    EXPECT_LT(p->p99_ns, 46341);
    EXPECT_FALSE(percentiles_between(after, before)) << "it went backwards";
    EXPECT_TRUE(percentiles_between({}, after)) << "a worker that told none before";
}

TEST(TopModel, PlacesAddUpToTheSize) {
    DeviceStatus s = test::busy_device("a");
    struct Amounts {
        Bytes stored, staged, spilled;
    };
    for (const auto& [stored, staged, spilled] :
         {Amounts{gib(3), mib(30), gib(1)}, Amounts{mib(10), mib(30), gib(1)},
          Amounts{gib(20), mib(30), gib(9)}, Amounts{}}) {
        s.stored = stored;
        s.staged = staged;
        s.spilled = spilled;
        const Places p = places_of(s);
        EXPECT_EQ(p.vram + p.stage + p.spill + p.free, s.size);
        EXPECT_LE(p.stage, staged);
        EXPECT_LE(p.spill, spilled);
    }
}

TEST(TopText, ForeignTextCannotSteerTheTerminal) {
    EXPECT_EQ(printable("ok \033[2J\r\n\x9b\xff", Charset::utf8), "ok ?[2J????");
    EXPECT_EQ(printable("\xc2\x9b"
                        "31m \xe2\x80\xae"
                        "evil",
                        Charset::utf8),
              "?31m ?evil");
    EXPECT_EQ(printable("Gerät 模型", Charset::utf8), "Gerät 模型");
    EXPECT_EQ(printable("Gerät 模型", Charset::ascii), "Ger?t ??");
    EXPECT_EQ(printable("\xe6\xa8", Charset::utf8), "??") << "cut short";
}

TEST(TopText, ColumnsAreNotBytes) {
    EXPECT_EQ(columns_of("Gerät"), 5u);
    EXPECT_EQ(columns_of("模型"), 4u);
    EXPECT_EQ(columns_of("e\xcc\x81"), 1u) << "an accent of its own";
    StyledLine line("模型 loads");
    line.cut(4, "…");
    EXPECT_EQ(line.text(), "模…") << "no half characters";
    StyledLine fits("four");
    fits.cut(4, "…");
    EXPECT_EQ(fits.text(), "four");
    fits.cut(0, "…");
    EXPECT_EQ(fits.text(), "");
}

TEST(TopText, FiguresStayInTheirColumns) {
    for (double n = 0.001; n < 1e12; n *= 1.7) {
        EXPECT_LE(format_rate(n).size(), 9u) << n;
        EXPECT_LE(columns_of(format_duration(n, Charset::utf8)), 6u) << n;
        if (n < 1e9) {
            EXPECT_LE(format_count(n).size(), 6u) << n;
        }
    }
    EXPECT_EQ(format_rate(0), "0 MB/s");
    EXPECT_EQ(format_rate(1), "0.1 MB/s") << "not nothing";
    EXPECT_EQ(format_rate(999.6e6), "1.0 GB/s");
    EXPECT_EQ(format_duration(140'000, Charset::ascii), "140 us");
    EXPECT_EQ(format_count(999.9), "1.0k");
}

TEST(TopGraph, ABarIsAsWideAsToldAndShowsEveryPart) {
    for (std::size_t columns = 1; columns < 40; ++columns) {
        const StyledLine bar = draw_bar({{1, "a"}, {1e6, "b"}, {1, "c"}, {1e5, "d"}}, 1e6 + 1e5 + 2, columns);
        EXPECT_EQ(bar.columns(), columns);
        if (columns < 4) continue;
        for (const char part : std::string("abcd"))
            EXPECT_NE(bar.text().find(part), std::string::npos) << bar.text();
    }
    EXPECT_EQ(draw_bar({{1, "a"}}, 0, 3).text(), "   ") << "of nothing";
}

TEST(TopGraph, TimeStandsStillInItsColumns) {
    std::deque<TopPoint> history;
    for (std::uint64_t s = 0; s < 20; ++s)
        history.push_back({.from_ns = s * kSecond, .until_ns = (s + 1) * kSecond, .in = s == 11 ? 7.0 : 1.0});
    const auto at = [&](std::uint64_t now_s) {
        const auto columns = columns_of_time(history, &TopPoint::in, now_s * kSecond, 5 * kSecond, 6);
        return std::ranges::find(columns, 7.0) - columns.begin();
    };
    EXPECT_EQ(at(20), at(24)) << "the same column as long as it lasts";
    EXPECT_EQ(at(25), at(24) - 1);
    const auto columns = columns_of_time(history, &TopPoint::in, 20 * kSecond, 5 * kSecond, 6);
    EXPECT_EQ(columns, (std::vector<double>{-1, 1, 1, 7, 1, -1}));
    EXPECT_GE(step_for(38) * 38, 180 * kSecond);
}

TEST(TopGraph, LittleIsSeenAndNothingIsNot) {
    const auto rows = draw_graph({-1, 0, 0.001, 4, 8}, {8, 2, TextStyle::plain, Charset::utf8});
    ASSERT_EQ(rows.size(), 2u);
    EXPECT_EQ(rows[0].text(), "    █");
    EXPECT_EQ(rows[1].text(), " _▁██");
}

TEST(TopKeys, DoWhatTheFooterSays) {
    TopModel model;
    model.add(1, {test::busy_device("a"), test::busy_device("b")});
    TopState state;
    state = pressed(state, TopKey::up, model);
    EXPECT_EQ(state.selected, "a") << "there is none above";
    state = pressed(state, TopKey::down, model);
    state = pressed(state, TopKey::down, model);
    EXPECT_EQ(state.selected, "b");
    state = pressed(state, TopKey::slower, model);
    EXPECT_EQ(state.interval_s, 2);
    for (int i = 0; i < 20; ++i) state = pressed(state, TopKey::faster, model);
    EXPECT_EQ(state.interval_s, kTopIntervalMinS);
    for (int i = 0; i < 20; ++i) state = pressed(state, TopKey::slower, model);
    EXPECT_EQ(state.interval_s, kTopIntervalMaxS);
    state = pressed(state, TopKey::pause, model);
    EXPECT_EQ(state.run, TopState::Run::paused);
    EXPECT_NE(draw_screen(model, state, {}, Charset::ascii)[0].text().find("PAUSED"), std::string::npos);
    EXPECT_EQ(pressed(state, TopKey::pause, model).run, TopState::Run::live);
    state = pressed(state, TopKey::help, model);
    EXPECT_EQ(state.page, TopState::Page::help);
    EXPECT_EQ(pressed(state, TopKey::help, model).page, TopState::Page::devices);
    EXPECT_EQ(pressed(state, TopKey::quit, model).run, TopState::Run::ended);
}

TEST(TopScreen, TheSelectedDeviceIsShownHoweverManyThereAre) {
    TopModel model;
    std::vector<DeviceStatus> devices;
    for (char c = 'a'; c <= 'z'; ++c) devices.push_back(test::busy_device(std::string(3, c)));
    model.add(1, devices);
    TopState state;
    for (const auto& device : devices) {
        state.selected = device.name;
        const auto lines = draw_screen(model, state, {80, 10}, Charset::ascii);
        EXPECT_TRUE(std::ranges::any_of(lines, [&](const auto& line) {
            return line.text().starts_with("> " + device.name);
        })) << device.name;
    }
}

TEST(TopScreen, TroubleStandsOut) {
    const TopModel model = test::top_scene("trouble");
    std::string bad;
    for (const StyledLine& line : draw_screen(model, {}, {80, 40}, Charset::ascii))
        for (const Span& span : line.spans())
            if (span.style == TextStyle::bad) bad += span.text;
    for (const char* words : {"worker-dead", "killed by signal 9", "2 pages not read", "gone"})
        EXPECT_NE(bad.find(words), std::string::npos) << words;
}

}  // namespace
}  // namespace vramswap
