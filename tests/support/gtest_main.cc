// SPDX-License-Identifier: MIT
// main of every GoogleTest program: exit status 77 (ctest: skipped) if every test that ran was skipped, so that a
// skip never looks like a pass; the reasons are printed.
#include <gtest/gtest.h>

#include <cstdio>

int main(int argc, char** argv) {
    ::testing::InitGoogleTest(&argc, argv);
    const int failed = RUN_ALL_TESTS();
    const auto& unit = *::testing::UnitTest::GetInstance();
    if (failed != 0) return failed;
    if (unit.test_to_run_count() == 0) {
        std::puts("no test ran");
        return 1;
    }
    return unit.skipped_test_count() == unit.test_to_run_count() ? 77 : 0;
}
