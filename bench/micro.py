#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Runs the micro-benchmarks and prints nanoseconds a page and the ratios to a bare memcpy of the same run.

usage: micro.py PROGRAM [--json FILE] [--repetitions N]
Exit status 1 if a ratio is above its limit. Use a quiet machine; repetitions of all benchmarks are interleaved,
the median counts, the fastest is shown beside it."""
import argparse
import json
import subprocess
import sys

# what, beside what, at most
LIMITS = (
    ("store_write", "memcpy_cold_to_stage", 2.5),
    ("store_write", "memcpy_cold_to_one_page", 2.5),
    ("store_read_staged", "memcpy_cold_to_one_page", 1.6),
)


def run(program, repetitions):
    command = [program, "--benchmark_format=json", f"--benchmark_repetitions={repetitions}",
               "--benchmark_enable_random_interleaving=true", "--benchmark_min_time=0.1"]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def times_of(output):
    """Sorted nanoseconds a page of each benchmark's repetitions."""
    times = {}
    for b in output["benchmarks"]:
        if b.get("error_occurred"):
            sys.exit(f"{b['name']}: {b['error_message']}")
        if b["run_type"] == "iteration":
            times.setdefault(b["name"].split("/")[0], []).append(b["ns_per_page"])
    return {name: sorted(values) for name, values in times.items()}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("--json", help="also write the program's output here")
    parser.add_argument("--repetitions", type=int, default=9)
    options = parser.parse_args()
    output = run(options.program, options.repetitions)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(output, file, indent=1)
    times = times_of(output)
    median = {name: values[len(values) // 2] for name, values in times.items()}
    print(f"{'':32}{'median ns':>10}{'fastest':>10}")
    for name, values in times.items():
        print(f"{name:32}{median[name]:10.0f}{values[0]:10.0f}")
    print()
    worst = 0
    for what, beside, limit in LIMITS:
        ratio = median[what] / median[beside]
        fastest = times[what][0] / times[beside][0]
        verdict = "ok" if ratio <= limit else "ABOVE THE LIMIT"
        print(f"{what} / {beside}: {ratio:.2f} (fastest {fastest:.2f}), at most {limit}: {verdict}")
        worst = max(worst, ratio / limit)
    return 0 if worst <= 1 else 1


if __name__ == "__main__":
    sys.exit(main())
