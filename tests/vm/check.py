#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""check.py TEST RESULTS SCENARIO: shows what a scenario said in the machine that left RESULTS, and ends as it ended."""
import re
import sys

import results


def main():
    test, folder, scenario = sys.argv[1:]
    verdict = results.read(folder, scenario)
    # The reason carries the name of the test wherever it is read.
    print(re.sub(r"^SKIPPED: ", f"SKIPPED: {test}: ", verdict.text, flags=re.MULTILINE), end="")
    print(f"{verdict.seconds:.1f} s in the guest")
    return verdict.status


if __name__ == "__main__":
    sys.exit(main())
