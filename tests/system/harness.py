# SPDX-License-Identifier: MIT
"""Runs the vramswap binary for system tests and shows that nothing of it stays behind.

Every test has a runtime directory of its own and a simulated GPU. After each one the machine is compared with
before: swap areas, loop devices, processes, control groups, directories."""
import json
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import time
import unittest
import xml.etree.ElementTree

BINARY = os.environ["VRAMSWAP_BINARY"]
COMMAND_TIMEOUT_S = 120
WAIT_LIMIT_S = 30


def wait_for(condition, what, limit_s=WAIT_LIMIT_S):
    """Polls until the condition holds; a limit, not a synchronisation: the condition decides."""
    end = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"{what}: not within {limit_s} s")
        os.sched_yield()


def swap_areas():
    with open("/proc/swaps", encoding="utf-8") as swaps:
        return {line.split()[0] for line in swaps.readlines()[1:]}


def memory_of(pid, field):
    """Bytes, of /proc/PID/status."""
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) << 10
    raise KeyError(field)


def our_loops():
    """Loop devices whose backing file is one of ours."""
    loops = set()
    for path in pathlib.Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            if "vramswap-" in path.read_text():
                loops.add(path.parts[3])
        except OSError:  # gone between glob and read
            pass
    return loops


def our_processes():
    """Pids of guardians and workers (zombies have no command line)."""
    found = {}
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if len(words) > 1 and words[1].startswith(b"internal-"):
            found[int(path.parts[2])] = words[1].decode()
    return found


def our_cgroups():
    found = set()
    for folder, below, _ in os.walk("/sys/fs/cgroup"):  # passes over what vanishes meanwhile
        found.update(os.path.join(folder, name) for name in below
                     if name.startswith(("vramswap-demo-", "vramswap-bench-")))
    return found


def zram_devices():
    return {path.name for path in pathlib.Path("/sys/block").glob("zram*")}


def texts_of_svg(path):
    """The words of a picture; fails unless it is well-formed."""
    root = xml.etree.ElementTree.parse(path).getroot()
    return [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]


def machine_state():
    return {"swaps": swap_areas(), "loops": our_loops(), "processes": set(our_processes()), "cgroups": our_cgroups(),
            "zrams": zram_devices()}


def require_machine():
    """Reasons for which no system test can run here; None if they can."""
    if os.geteuid() != 0:
        return "system tests need root"
    for node in ("/dev/fuse", "/dev/loop-control"):
        if not os.path.exists(node):
            return f"{node} is missing"
    return None


class SystemTest(unittest.TestCase):
    """A clean runtime directory, helpers to run commands, and the check that all is as before."""

    maxDiff = None

    def setUp(self):
        reason = require_machine()
        if reason:
            print(f"SKIPPED: {self.id()}: {reason}", flush=True)
            self.skipTest(reason)
        self.scratch = tempfile.mkdtemp(prefix="vramswap-test-")
        self.addCleanup(shutil.rmtree, self.scratch, ignore_errors=True)
        self.runtime = os.path.join(self.scratch, "run")
        self.state = os.path.join(self.scratch, "state")
        self.environment = dict(os.environ, VRAMSWAP_RUNTIME_DIR=self.runtime, VRAMSWAP_STATE_DIR=self.state,
                                VRAMSWAP_SIM="total=2G")
        self.environment.pop("JOURNAL_STREAM", None)
        self.before = machine_state()
        self.addCleanup(self.leave_no_trace)

    def leave_no_trace(self):
        """Cleans up after a failed test, and fails if there was something to clean up."""
        try:
            wait_for(lambda: machine_state() == self.before, "clean machine")
            left = None
        except AssertionError:
            left = machine_state()
        for area in swap_areas() - self.before["swaps"]:
            subprocess.run(["swapoff", area], check=False, timeout=COMMAND_TIMEOUT_S)
        for pid in set(our_processes()) - self.before["processes"]:
            os.kill(pid, signal.SIGKILL)
        for loop in our_loops() - self.before["loops"]:
            subprocess.run(["losetup", "-d", f"/dev/{loop}"], check=False, timeout=COMMAND_TIMEOUT_S)
        for zram in zram_devices() - self.before["zrams"]:
            pathlib.Path("/sys/class/zram-control/hot_remove").write_text(zram.removeprefix("zram"), encoding="ascii")
        self.assertIsNone(left, "left on the machine")
        self.assertEqual(os.listdir(self.runtime) if os.path.isdir(self.runtime) else [], [])

    def vramswap(self, *arguments, prefix=(), status=0, **overrides):
        """Runs a command and checks its exit status; returns standard output and error as one object."""
        options = dict(env=self.environment, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False)
        options.update(overrides)
        done = subprocess.run([*prefix, BINARY, *arguments], **options)
        if status is not None:
            self.assertEqual(done.returncode, status, f"{arguments}: {done.stdout}{done.stderr}")
        return done

    def up(self, name="t0", *more, size="64M", gpu="sim", **kwargs):
        return self.vramswap("up", name, "--gpu", gpu, "--size", size, *more, **kwargs)

    def status(self, name="t0"):
        devices = json.loads(self.vramswap("status", "--json").stdout)["devices"]
        return next((d for d in devices if d["name"] == name), None)

    def assert_told(self, done, *words):
        """The message names the thing, the value and the remedy."""
        for word in words:
            self.assertIn(word, done.stderr)
