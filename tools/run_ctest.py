#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""run_ctest.py BUILD [ctest options]: runs ctest in a build folder. Afterwards it says why tests were skipped, since a skip is
never silent, and shows the end of what each failed test printed, since in a log of thousands of lines the last ones are found."""
import collections
import pathlib
import re
import subprocess
import sys

SHOWN_LINES = 60


def outputs(log):
    """(test, verdict, what it printed) for each test of ctest's LastTest.log."""
    pattern = (r'^\d+/\d+ Test: (\S+)\n.*?^Output:\n-+\n(.*?)^<end of output>\n.*?^-+\n(Test \w+)[^\n]*\n"\1" end time')
    for name, output, verdict in re.findall(pattern, log, re.MULTILINE | re.DOTALL):
        yield name, verdict, output


def show_skips(log):
    """Each reason once, with the tests that it kept from running."""
    tests = collections.defaultdict(set)
    for test, reason in re.findall(r"^SKIPPED: (\S+): (.*)$", log, re.MULTILINE):
        tests[reason].add(test)
    if tests:
        print("Skipped, and why:")
    for reason, names in sorted(tests.items()):
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        print(f"  {', '.join(sorted(names)[:3])}{more}: {reason}")


def main():
    build = pathlib.Path(sys.argv[1])
    status = subprocess.run(["ctest", "--test-dir", build, "--output-on-failure", *sys.argv[2:]], check=False).returncode
    log = (build / "Testing/Temporary/LastTest.log").read_text(encoding="utf-8", errors="replace")
    show_skips(log)
    if status != 0:
        for name, verdict, output in outputs(log):
            if verdict != "Test Passed":  # a skipped one has passed, for ctest
                print(f"\n{name} failed; the end of what it printed:")
                print("\n".join(output.splitlines()[-SHOWN_LINES:]))
    return status


if __name__ == "__main__":
    sys.exit(main())
