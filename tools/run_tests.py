#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""run_tests.py [--limit S] PART...: configures, builds and tests one part after the other, and ends at the first that fails.

ctest's closing lines are the last of the output. Before them it says why tests were skipped, since a skip is never silent;
shows the end of what each failed test printed, since in a log of thousands of lines the last ones are found; and tells
where the time went."""
import argparse
import collections
import dataclasses
import os
import pathlib
import re
import resource
import subprocess
import sys
import time
import xml.etree.ElementTree

ROOT = pathlib.Path(__file__).resolve().parents[1]
SHOWN_LINES = 60
SHOWN_TESTS = 10
WHOLE_OUTPUT = str(10 << 20)  # bytes of a test's output that ctest keeps


@dataclasses.dataclass
class Part:
    """A preset of CMakePresets.json: what is built of it, and which tests run; none where compiling is the test."""
    target: str = "all"
    ctest: tuple | None = ()
    configure: tuple = ("-DVRAMSWAP_TESTS=ON",)


PARTS = {
    "clang": Part(ctest=None, configure=()),
    "asan": Part(target="sanitizer_tests", ctest=("-L", "sanitizer")),
    "tsan": Part(target="sanitizer_tests", ctest=("-L", "sanitizer")),
    "release": Part(),
}


@dataclasses.dataclass
class Test:
    """How a test ended, as ctest tells."""
    name: str
    seconds: float
    failed: bool
    output: str


class Late(Exception):
    """The limit has passed."""


class Run:
    """Steps with a common deadline, timed."""

    def __init__(self, limit_s):
        self.end = None if limit_s is None else time.monotonic() + limit_s
        self.steps = []
        self.tests = []

    def left_s(self):
        if self.end is None:
            return None
        left = self.end - time.monotonic()
        if left <= 0:
            raise Late
        return left

    def step(self, name, action):
        """What `action` returns; its time goes into the table."""
        cpu, begin = cpu_s(), time.monotonic()
        print(f"--- {name}", flush=True)
        try:
            return action()
        finally:
            self.steps.append((name, time.monotonic() - begin, cpu_s() - cpu))

    def call(self, *command, **options):
        try:
            return subprocess.run(command, cwd=ROOT, check=False, timeout=self.left_s(), **options).returncode
        except subprocess.TimeoutExpired as late:
            raise Late from late

    def build(self, name):
        part = PARTS[name]
        return (self.call("cmake", "--preset", name, *part.configure, stdout=subprocess.DEVNULL)
                or self.call("cmake", "--build", "--preset", name, "--target", part.target))

    def test(self, name):
        """(status, ctest's closing lines), which are not shown yet."""
        folder = ROOT / "build" / name
        report = folder / "Testing/tests.xml"
        report.unlink(missing_ok=True)
        command = ["ctest", "--test-dir", folder, "--output-on-failure", "-j", str(len(os.sched_getaffinity(0))),
                   "--output-junit", report, "--test-output-size-passed", WHOLE_OUTPUT,
                   "--test-output-size-failed", WHOLE_OUTPUT, *PARTS[name].ctest]
        left = self.left_s()
        if left is not None:  # what runs then is ended as at a limit of its own; a time that is past means tomorrow
            command += ["--stop-time", time.strftime("%H:%M:%S", time.localtime(time.time() + max(left, 2)))]
        closing = []
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, errors="replace") as ctest:
            for line in ctest.stdout:
                if closing or re.match(r"\d+% tests passed|No tests were found", line):
                    closing.append(line)
                else:
                    print(line, end="", flush=True)
        tests = read_report(report)
        self.tests += [dataclasses.replace(test, name=f"{name}: {test.name}") for test in tests]
        show_skips(tests)
        show_failures(tests)
        if self.end is not None and time.monotonic() >= self.end:  # ctest tells only of those it began
            closing.append("Ended by the limit.\n")
            return ctest.returncode or 1, "".join(closing)
        return ctest.returncode, "".join(closing)

    def show_times(self):
        print("\nWhere the time went (seconds, and of all processors):")
        for name, wall, cpu in self.steps:
            print(f"  {wall:7.0f} {cpu:7.0f}  {name}")
        print("Slowest tests (seconds):")
        for test in sorted(self.tests, key=lambda test: -test.seconds)[:SHOWN_TESTS]:
            print(f"  {test.seconds:7.0f}  {test.name}")


def cpu_s():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def read_report(path):
    """Tests of ctest's report in JUnit's format."""
    try:
        cases = xml.etree.ElementTree.parse(path).iter("testcase")
        return [Test(case.get("name"), float(case.get("time")), case.get("status") == "fail",
                     case.findtext("system-out") or "") for case in cases]
    except (OSError, xml.etree.ElementTree.ParseError) as error:
        print(f"no report of the tests: {error}")
        return []


def show_skips(tests):
    """Each reason once, with the tests that it kept from running."""
    names = collections.defaultdict(set)
    for test in tests:
        for name, reason in re.findall(r"^SKIPPED: (\S+): (.*)$", test.output, re.MULTILINE):
            names[reason].add(name)
    if names:
        print("Skipped, and why:")
    for reason, skipped in sorted(names.items()):
        more = f" and {len(skipped) - 3} more" if len(skipped) > 3 else ""
        print(f"  {', '.join(sorted(skipped)[:3])}{more}: {reason}")


def show_failures(tests):
    for test in tests:
        if test.failed:
            print(f"\n{test.name} failed; the end of what it printed:")
            print("\n".join(test.output.splitlines()[-SHOWN_LINES:]))


def run_parts(run, names):
    """(status, the last lines to show)."""
    for name in names:
        if run.step(f"{name}: build", lambda name=name: run.build(name)) != 0:
            return 1, f"the build of {name} failed\n"
        if PARTS[name].ctest is None:
            continue
        status, closing = run.step(f"{name}: tests", lambda name=name: run.test(name))
        if status != 0 or name == names[-1]:
            return status, closing
        print(closing, end="")
    return 0, ""


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=int, metavar="S", help="seconds until all is ended, as failed")
    parser.add_argument("part", nargs="+", choices=PARTS)
    options = parser.parse_args()
    run = Run(options.limit)
    try:
        status, closing = run_parts(run, options.part)
    except Late:
        status, closing = 1, f"not done within {options.limit} s\n"
    run.show_times()
    print(f"\n{closing}", end="", flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
