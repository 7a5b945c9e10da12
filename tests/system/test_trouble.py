# SPDX-License-Identifier: MIT
"""When things go wrong under us: missing kernel parts, refused calls, dead processes, no RAM to go back to."""
import os
import pathlib
import signal
import subprocess
import unittest

from harness import BINARY, COMMAND_TIMEOUT_S, SystemTest, our_loops, swap_areas, wait_for


def in_namespace(script, environment):
    """Runs a shell script in a mount namespace of its own: what it mounts is seen by nobody else."""
    return subprocess.run(["unshare", "--mount", "--propagation", "private", "sh", "-euc", script], env=environment,
                          capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False)


class Kernel(SystemTest):
    def without_device_node(self, node):
        """`up` where /dev has only the given nodes missing."""
        script = f"""
            mkdir {self.scratch}/dev
            for n in null zero urandom fuse loop-control; do
                [ "$n" = {node} ] || cp -a /dev/$n {self.scratch}/dev/
            done
            mount --bind {self.scratch}/dev /dev
            {BINARY} up t0 --gpu sim --size 64M"""
        return in_namespace(script, self.environment)

    def test_no_fuse(self):
        done = self.without_device_node("fuse")
        self.assertEqual(done.returncode, 77, done.stderr)
        self.assert_told(done, "/dev/fuse", "modprobe fuse")

    def test_no_loop(self):
        done = self.without_device_node("loop-control")
        self.assertEqual(done.returncode, 77, done.stderr)
        self.assert_told(done, "/dev/loop-control", "modprobe loop")


class Refusals(SystemTest):
    def test_swapon_refused(self):
        for error, words in (("EBUSY", ("in use",)), ("EPERM", ("swapon",)), ("ENOMEM", ("memory",))):
            # strace answers in the kernel's place; only `up` itself is traced, and it alone calls swapon.
            trace = ("strace", "-qq", "-o", "/dev/null", "-e", "trace=swapon", "-e", f"inject=swapon:error={error}")
            done = self.up(prefix=trace, status=1)
            self.assert_told(done, "/dev/loop", *words)
            self.assertIsNone(self.status())

    def test_worker_that_cannot_start(self):
        self.environment["VRAMSWAP_SIM"] = "total=2G,fail_allocations=1000"
        self.assert_told(self.up(status=1), "simulated GPU has no 128M free")
        self.assertIsNone(self.status())

    def test_guardian_that_cannot_start(self):
        trace = ("strace", "-qq", "-o", "/dev/null", "-e", "trace=memfd_create", "-e", "inject=memfd_create:error=ENOMEM")
        self.assertRegex(self.up(prefix=trace, status=1).stderr, "vramswap: .*memory")
        self.assertIsNone(self.status())


class NoRam(SystemTest):
    def test_down_refuses_when_ram_cannot_take_the_pages(self):
        self.up()
        device = self.status()["device"]
        swaps = f"Filename Type Size Used Priority\\n{device} partition 65532 60000 32767\\n"
        meminfo = "MemTotal: 1048576 kB\\nMemFree: 10240 kB\\nMemAvailable: 70000 kB\\nSwapTotal: 65532 kB\\nSwapFree: 5532 kB\\n"
        script = f"""
            printf '{swaps}' > {self.scratch}/swaps
            printf '{meminfo}' > {self.scratch}/meminfo
            mount --bind {self.scratch}/swaps /proc/swaps
            mount --bind {self.scratch}/meminfo /proc/meminfo
            {BINARY} down t0"""
        done = in_namespace(script, self.environment)
        self.assertEqual(done.returncode, 1, done.stdout + done.stderr)
        self.assert_told(done, device, "missing", "Nothing was changed")
        self.assertRegex(done.stderr, r"room for [0-9.]+M: [0-9.]+M is missing")
        self.assertEqual(self.status()["state"], "armed")
        self.assertIn(device, swap_areas())
        self.vramswap("down", "t0")


class Deaths(SystemTest):
    def kill(self, pid):
        os.kill(pid, signal.SIGKILL)

    def test_guardian_killed(self):
        self.up()
        guardian = self.status()["guardian_pid"]
        self.kill(guardian)
        wait_for(lambda: self.status()["problem"] == "the guardian is gone", "status tells of the dead guardian")
        self.assertEqual(self.status()["state"], "armed")
        self.assert_told(self.up(status=1), "up already")
        self.vramswap("down", "t0")

    def test_both_killed_and_cleaned_by_down(self):
        self.up()
        device = self.status()
        self.kill(device["guardian_pid"])
        self.kill(device["worker_pid"])
        wait_for(lambda: self.status()["state"] == "stale", "status tells of the stale device")
        self.assertIn("down t0", self.status()["problem"])
        self.vramswap("down", "t0")
        self.assertIsNone(self.status())

    def test_stale_directory_is_taken_over_by_up(self):
        self.up("t0", "--no-swapon")
        device = self.status()
        self.kill(device["guardian_pid"])
        self.kill(device["worker_pid"])
        wait_for(lambda: self.status()["state"] == "stale", "status tells of the stale device")
        self.assertTrue(os.path.exists(os.path.join(self.runtime, "t0", "control")))
        self.up()
        self.assertEqual(self.status()["state"], "armed")
        self.vramswap("down", "t0")

    def test_sigterm_to_the_daemon_in_use_changes_nothing(self):
        self.up()
        device = self.status()
        for pid in (device["guardian_pid"], device["worker_pid"]):
            os.kill(pid, signal.SIGTERM)
        log = os.path.join(self.runtime, "t0", "log")
        wait_for(lambda: "in use as swap" in pathlib.Path(log).read_text(encoding="utf-8"), "refusal in the log")
        self.assertEqual(self.status()["state"], "armed")
        self.vramswap("down", "t0")

    def test_sigterm_to_an_idle_block_device_ends_it(self):
        self.up("t0", "--no-swapon")
        os.kill(self.status()["guardian_pid"], signal.SIGTERM)
        wait_for(lambda: self.status() is None and not our_loops() - self.before["loops"], "device gone")


if __name__ == "__main__":
    unittest.main()
