#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""tools/run_tests.py judges others: what it must pass on, tried with a cmake and a ctest of our own."""
import os
import pathlib
import stat
import subprocess
import tempfile
import unittest

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "tools/run_tests.py"

CMAKE = """#!/bin/sh
echo "cmake $*" >>"$LOG"
case "$*" in *"--build --preset $BROKEN_BUILD "*) exit 1 ;; esac
"""
# Its tests: one passes, one fails in $BROKEN_TESTS, one is skipped.
CTEST = """#!/bin/sh
echo "ctest $*" >>"$LOG"
part=$(basename "$2") status=0 failed=0
while [ "$1" != --output-junit ]; do shift; done
[ "$part" != "$BROKEN_TESTS" ] || { status=8 failed=1; }
sleep "${SLEEP:-0}"
echo "running"
mkdir -p "$(dirname "$2")"
cat >"$2" <<END
<testsuite>
<testcase name="long" time="77.5" status="run"><system-out>all is well</system-out></testcase>
<testcase name="bad" time="1" status="$([ $failed = 1 ] && echo fail || echo run)"><system-out>torn page</system-out></testcase>
<testcase name="none" time="0" status="notrun"><system-out>SKIPPED: none: no such device</system-out></testcase>
</testsuite>
END
echo "50% tests passed, $failed tests failed out of 3"
echo "closing of $part"
exit $status
"""


class RunTests(unittest.TestCase):
    def run_tests(self, *arguments, **environment):
        """(status, output, the calls of cmake and ctest)."""
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder)
            for name, text in (("cmake", CMAKE), ("ctest", CTEST)):
                (root / name).write_text(text, encoding="utf-8")
                (root / name).chmod(stat.S_IRWXU)
            (root / "tools").mkdir()
            script = root / "tools/run_tests.py"
            script.write_text(SCRIPT.read_text(encoding="utf-8"), encoding="utf-8")
            script.chmod(stat.S_IRWXU)
            log = root / "log"
            done = subprocess.run([script, *arguments], capture_output=True, text=True, check=False, timeout=100,
                                  env=dict(os.environ, PATH=f"{root}:{os.environ['PATH']}", LOG=str(log), **environment))
            self.assertEqual(done.stderr, "")
            return done.returncode, done.stdout, log.read_text(encoding="utf-8")

    def test_all_pass(self):
        status, output, calls = self.run_tests("clang", "asan", "release")
        self.assertEqual(status, 0, output)
        self.assertTrue(output.endswith("failed out of 3\nclosing of release\n"), output)
        self.assertIn("closing of asan", output)
        self.assertIn("none: no such device", output)
        self.assertRegex(output, r"\n +78  asan: long\n")
        for step in ("clang: build", "asan: build", "asan: tests", "release: build", "release: tests"):
            self.assertRegex(output, rf"\n +\d+ +\d+  {step}\n")
        self.assertNotIn("build/clang", calls)
        self.assertRegex(calls, r"ctest --test-dir \S+/build/asan .* -L sanitizer\n")

    def test_a_failed_build_ends_it(self):
        status, output, calls = self.run_tests("asan", "release", BROKEN_BUILD="asan")
        self.assertEqual(status, 1)
        self.assertTrue(output.endswith("the build of asan failed\n"), output)
        self.assertNotIn("ctest", calls)

    def test_a_failed_test_ends_it_and_is_shown(self):
        status, output, calls = self.run_tests("asan", "release", BROKEN_TESTS="asan")
        self.assertEqual(status, 8)
        self.assertIn("bad failed; the end of what it printed:\ntorn page\n", output)
        self.assertTrue(output.endswith("1 tests failed out of 3\nclosing of asan\n"), output)
        self.assertNotIn("release", calls)

    def test_a_limit_is_a_failure(self):
        status, output, calls = self.run_tests("--limit", "5", "asan", SLEEP="6")
        self.assertEqual(status, 1)
        self.assertTrue(output.endswith("closing of asan\nEnded by the limit.\n"), output)
        self.assertRegex(calls, r"--stop-time \d\d:\d\d:\d\d\n")


if __name__ == "__main__":
    unittest.main()
