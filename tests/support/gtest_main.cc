// SPDX-License-Identifier: MIT
// main of every GoogleTest program: exit status 77 (ctest: skipped) if every test that ran was skipped, so
// that a skip never looks like a pass; the reasons are printed.
#include <gtest/gtest.h>

#include <cstdio>

namespace {

/// One line for each skip, which tools/run_tests.py shows again at the end.
class SkipPrinter : public ::testing::EmptyTestEventListener {
    void OnTestEnd(const ::testing::TestInfo& test) override {
        if (!test.result()->Skipped()) return;
        const char* why = "no reason given";
        for (int i = 0; i < test.result()->total_part_count(); ++i)
            if (test.result()->GetTestPartResult(i).skipped())
                why = test.result()->GetTestPartResult(i).message();
        std::printf("SKIPPED: %s.%s: %s\n", test.test_suite_name(), test.name(), why);
    }
};

}  // namespace

int main(int argc, char** argv) {
    ::testing::InitGoogleTest(&argc, argv);
    auto& unit = *::testing::UnitTest::GetInstance();
    unit.listeners().Append(new SkipPrinter);  // owned by the list
    const int failed = RUN_ALL_TESTS();
    if (failed != 0) return failed;
    if (unit.test_to_run_count() == 0) {
        std::puts("no test ran");
        return 1;
    }
    return unit.skipped_test_count() == unit.test_to_run_count() ? 77 : 0;
}
