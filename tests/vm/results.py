# SPDX-License-Identifier: MIT
"""Takes a machine's report apart: a verdict for each scenario, and one (`klog`) for the kernel's log."""
import dataclasses
import pathlib
import re

PASSED, FAILED, SKIPPED = 0, 1, 77
KERNEL_LOG = "klog"

# Kernel messages of level warning and worse that are as they should be, in any scenario (None) or in one.
ALLOWED = (
    # The contract makes the target fail, and kills servers under their users, to see what the kernel is told.
    ("contract", r"I/O error, dev (loop|ublkb|nbd)\d+, sector"),
    ("contract", r"critical (space allocation|medium|target) error, dev (loop|ublkb|nbd)\d+, sector"),
    ("contract", r"Buffer I/O error on dev (loop|ublkb|nbd)\d+, logical block"),
    ("contract", r"block nbd\d+: Other side returned error \((5|28)\)$"),
    ("contract", r"block nbd\d+: (Send disconnect failed -32|(Receive|Send) control failed \(result -32\))$"),
    ("contract", r"block nbd\d+: (Request send failed, requeueing|Dead connection, failed to find a fallback)$"),
    ("contract", r"Dev nbd\d+: unable to read RDB block \d+$"),
    # So does this one, and lets one stand still for longer than the request timeout.
    ("takeover", r"block nbd\d+: (Send disconnect failed -32|(Receive|Send) control failed \(result -(32|104)\))$"),
    ("takeover", r"block nbd\d+: (Request send failed, requeueing|Dead connection, failed to find a fallback)$"),
    ("takeover", r"block nbd\d+: Connection timed out, retrying \(\d/\d alive\)$"),
    ("takeover", r"I/O error, dev (loop|ublkb|nbd)\d+, sector"),
    ("takeover", r"Buffer I/O error on dev (loop|ublkb|nbd)\d+, logical block"),
    ("takeover", r"Dev (loop|ublkb|nbd)\d+: unable to read RDB block \d+$"),
    # How the driver tells of every disconnect.
    (None, r"block nbd\d+: shutting down sockets$"),
    # "N callbacks suppressed": of a message that was judged where it was shown.
    (None, r"\w+: \d+ callbacks suppressed$"),
    # The emulated machine itself had to wait for a processor of the host.
    (None, r"clocksource: Long readout interval, skipping watchdog check"),
    (None, r"sched: DL replenish lagged too much$"),
    (None, r"hrtimer: interrupt took \d+ ns$"),
)
WARNING_LEVEL = 4


@dataclasses.dataclass
class Verdict:
    """How a scenario ended, and what there is to read about it."""
    status: int
    text: str
    seconds: float = 0.0


def judge(outcome, scenarios):
    """{scenario: Verdict} from a machine's Outcome; a scenario without an end has failed."""
    verdicts = {}
    for name in scenarios:
        if name != KERNEL_LOG:
            verdicts[name] = _judge_scenario(outcome, name)
    if KERNEL_LOG in scenarios:
        verdicts[KERNEL_LOG] = _judge_kernel_log(outcome)
    return verdicts


def _judge_scenario(outcome, name):
    section = re.search(rf"^VM-BEGIN {name}\n(.*?)(?:^VM-END {name} (\d+) ([\d.]+) ([\d.]+)$|\Z)", outcome.report,
                        re.MULTILINE | re.DOTALL)
    if section is None:
        return Verdict(FAILED, f"not begun: {_how_it_ended(outcome)}\n")
    text, status, begin, end = section.groups()
    if status is None:
        return Verdict(FAILED, f"{text}not ended: {_how_it_ended(outcome)}\n")
    seconds = float(end) - float(begin)
    if int(status) == SKIPPED:
        return Verdict(SKIPPED, text, seconds)
    return Verdict(PASSED if int(status) == 0 else FAILED, text, seconds)


def _how_it_ended(outcome):
    if outcome.timed_out:
        return f"the machine was ended after {outcome.seconds:.0f} s"
    return f"the machine ended by itself with status {outcome.status}; its console:\n{outcome.console[-8000:]}"


def _judge_kernel_log(outcome):
    """Fails on any warning since the first scenario began that is not allowed."""
    log = re.search(r"^VM-KERNEL-LOG\n(.*?)^VM-DONE$", outcome.report, re.MULTILINE | re.DOTALL)
    if log is None:
        return Verdict(FAILED, f"no kernel log: {_how_it_ended(outcome)}\n")
    scenario, bad, lines = None, [], 0
    for line in log.group(1).splitlines():
        begin = re.search(r"VM-BEGIN (\S+)", line)
        if begin:
            scenario = begin.group(1)
        elif scenario is not None:
            lines += 1
            if _is_bad(line, scenario):
                bad.append(f"{scenario}: {line}\n")
    text = f"{lines} lines, {len(bad)} bad\n" + "".join(bad[:100])
    return Verdict(FAILED if bad or lines == 0 else PASSED, text)


def _is_bad(line, scenario):
    level = re.match(r"<(\d+)>", line)
    if level is None or int(level.group(1)) % 8 > WARNING_LEVEL:
        return False
    return not any(where in (None, scenario) and re.search(what, line) for where, what in ALLOWED)


def write(folder, verdicts, outcome):
    """What check.py reads; the raw console and report beside it."""
    folder = pathlib.Path(folder)
    (folder / "console").write_text(outcome.console, encoding="utf-8")
    (folder / "report").write_text(outcome.report, encoding="utf-8")
    for name, verdict in verdicts.items():
        (folder / f"{name}.result").write_text(f"{verdict.status} {verdict.seconds:.1f}\n{verdict.text}", encoding="utf-8")


def write_skip(folder, reason):
    (pathlib.Path(folder) / "skipped").write_text(reason, encoding="utf-8")


def read(folder, name):
    """The Verdict that `write` left; a failure if there is none."""
    folder = pathlib.Path(folder)
    if (folder / "skipped").exists():
        return Verdict(SKIPPED, "SKIPPED: " + (folder / "skipped").read_text(encoding="utf-8") + "\n")
    try:
        first, text = (folder / f"{name}.result").read_text(encoding="utf-8").split("\n", 1)
    except OSError as error:
        return Verdict(FAILED, f"the machine left no result: {error}\n")
    status, seconds = first.split()
    return Verdict(int(status), text, float(seconds))
