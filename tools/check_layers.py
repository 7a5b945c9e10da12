#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Fails on an #include against the arrows of docs/architecture.md, and on what the conventions forbid.

Run as a test; prints every violation with its place."""
import pathlib
import re
import sys

# folder -> folders whose headers it may include (besides its own)
ALLOWED = {
    "base": set(),
    "gpu": {"base"},
    "front": {"base"},
    "store": {"base", "gpu", "front"},
    "policy": {"base"},
    "sys": {"base"},
    "ctl": {"base"},
    "cli": {"base", "ctl", "sys"},
    "daemon": {"base", "gpu", "front", "store", "policy", "sys", "ctl", "cli"},
}
# Of gpu and front, other folders see the seams alone.
SEAMS = {
    "store": {"gpu/backend.h", "front/target.h"},
    "daemon": None,  # sees everything
}
LINES_MAX = 600
HEADER_LINES_MAX = 300


def violations(root):
    for path in sorted((root / "src").rglob("*")):
        if path.suffix not in (".h", ".cc"):
            continue
        relative = path.relative_to(root / "src")
        folder = relative.parts[0]
        text = path.read_text()
        lines = text.splitlines()
        where = f"src/{relative}"
        if not lines or "SPDX-License-Identifier: MIT" not in lines[0]:
            yield f"{where}:1: no SPDX line"
        if len(lines) > (HEADER_LINES_MAX if path.suffix == ".h" else LINES_MAX):
            yield f"{where}: {len(lines)} lines: has it one subject?"
        for number, line in enumerate(lines, 1):
            include = re.match(r'#include "([^"]+)"', line)
            if include:
                target = include.group(1)
                other = target.split("/")[0]
                if other not in ALLOWED:
                    yield f"{where}:{number}: include of unknown folder: {target}"
                elif other != folder and other not in ALLOWED[folder]:
                    yield f"{where}:{number}: {folder} may not include {target}"
                elif other != folder and folder in SEAMS and SEAMS[folder] is not None \
                        and other in ("gpu", "front") and target not in SEAMS[folder]:
                    yield f"{where}:{number}: {folder} sees only the seams, not {target}"
            if folder != "base" and re.search(r"\bstd::mutex\b|\bstd::lock_guard\b|\bstd::unique_lock\b", line):
                yield f"{where}:{number}: use base/mutex.h"
            if folder in ("daemon", "store", "front", "gpu") and re.search(r"\bswap_off\s*\(|\bswapoff\s*\(", line) \
                    and not line.lstrip().startswith(("//", "///")):
                yield f"{where}:{number}: swapoff(2) is for commands alone, never for worker or guardian"
            if folder in ("gpu", "front", "store", "policy") and re.search(r"\bsleep_for\b|\busleep\b", line):
                yield f"{where}:{number}: no sleeps"


def main():
    found = list(violations(pathlib.Path(__file__).resolve().parent.parent))
    for violation in found:
        print(violation)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
