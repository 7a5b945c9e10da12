// SPDX-License-Identifier: MIT
// Replays tests/golden/policy/*.trace and compares the plans with *.plan. With VRAMSWAP_UPDATE_GOLDEN=1 it
// writes them instead: read the difference before it is committed.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "support/policy_trace.h"

namespace vramswap {
namespace {

std::vector<std::string> traces() {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(POLICY_GOLDEN_DIR))
        if (entry.path().extension() == ".trace") names.push_back(entry.path().stem().string());
    std::sort(names.begin(), names.end());
    return names;
}

class PolicyGolden : public ::testing::TestWithParam<std::string> {};

TEST_P(PolicyGolden, PlansAreAsRecorded) {
    const std::filesystem::path file = std::filesystem::path(POLICY_GOLDEN_DIR) / GetParam();
    const auto plans = test::replay(file.string() + ".trace");
    ASSERT_TRUE(plans) << plans.error().text();
    const std::string expected_file = file.string() + ".plan";
    if (std::getenv("VRAMSWAP_UPDATE_GOLDEN") != nullptr) {
        std::ofstream(expected_file) << *plans;
        GTEST_SKIP() << "wrote " << expected_file;
    }
    std::stringstream expected;
    expected << std::ifstream(expected_file).rdbuf();
    EXPECT_EQ(*plans, expected.str()) << "if this is meant: VRAMSWAP_UPDATE_GOLDEN=1";
}

INSTANTIATE_TEST_SUITE_P(Traces, PolicyGolden, ::testing::ValuesIn(traces()), [](const auto& trace) {
    std::string name = trace.param;
    std::replace(name.begin(), name.end(), '-', '_');
    return name;
});

}  // namespace
}  // namespace vramswap
