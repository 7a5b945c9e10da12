# SPDX-License-Identifier: MIT
"""Workers that die, and others that take over what they held."""
import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import unittest

from harness import BINARY, SystemTest, our_loops, swap_areas, wait_for

KILL_WORKER = str(pathlib.Path(__file__).with_name("kill-worker"))
FIRST_WITH_RESEND = (6, 9)  # FUSE_NOTIFY_RESEND


def can_take_over():
    return tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2]) >= FIRST_WITH_RESEND


def kill(pid):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


class OldKernel(SystemTest):
    @unittest.skipIf(can_take_over(), "this kernel can take over")
    def test_status_tells_of_the_dead_worker(self):
        self.up("t0", "--frontend", "loop")
        kill(self.status()["worker_pid"])
        wait_for(lambda: self.status()["state"] == "worker-dead", "status tells of the dead worker")
        device = self.status()
        self.assertIn("killed by signal 9", device["problem"])
        self.assertIn("vramswap down t0", device["problem"])
        self.assertTrue(device["swap"])
        self.assert_told(self.up(status=1), "up already")
        self.vramswap("down", "t0")


@unittest.skipUnless(can_take_over(), "over loop a worker can be followed by another from Linux 6.9 on")
class Takeover(SystemTest):
    def up_over_loop(self, *more, **kwargs):
        self.up("t0", "--frontend", "loop", *more, **kwargs)
        return self.status()

    def next_worker(self, dead):
        """The status of the device when another one serves."""
        wait_for(lambda: self.status()["worker_pid"] not in (0, dead), "another worker")
        wait_for(lambda: self.status()["state"] in ("serving", "armed"), "it serves")
        return self.status()

    def test_no_page_is_lost_however_often_the_worker_is_killed(self):
        done = subprocess.run([sys.executable, KILL_WORKER, "--kills", "16", "--verbose"], capture_output=True, text=True,
                              timeout=300, check=False)
        print(done.stdout, file=sys.stderr)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_a_swap_area_stays_one(self):
        before = self.up_over_loop()
        self.assertEqual(before["worker_deaths"], 0)
        kill(before["worker_pid"])
        after = self.next_worker(before["worker_pid"])
        self.assertEqual((after["device"], after["state"], after["guardian_pid"], after["worker_deaths"]),
                         (before["device"], "armed", before["guardian_pid"], 1))
        self.assertEqual(after["problem"], "")
        self.assertIn(before["device"], swap_areas())
        self.vramswap("down", "t0")

    def test_a_worker_that_cannot_use_its_gpu_any_more_makes_way(self):
        """The CUDA backend; the driver below it is tests/support/fake_cuda.cc."""
        poison = os.path.join(self.scratch, "poison")
        self.environment.update(LD_LIBRARY_PATH=os.environ["VRAMSWAP_FAKE_DRIVER"], FAKE_CUDA_MEMORY=str(1 << 30),
                                FAKE_CUDA_POISON=poison)
        before = self.up_over_loop("--no-swapon", gpu="cuda:0", size="128M")
        load = subprocess.Popen([os.environ["VRAMSWAP_VERIFYING_LOAD"], before["device"]], stdin=subprocess.PIPE,
                                stdout=subprocess.PIPE, text=True)
        self.addCleanup(load.kill)
        self.assertEqual(load.stdout.readline(), "full\n")
        pathlib.Path(poison).touch()
        after = self.next_worker(before["worker_pid"])
        self.assertFalse(os.path.exists(poison))
        self.assertEqual(after["worker_deaths"], 1)
        found = json.loads(load.communicate(timeout=120)[0])
        self.assertEqual((found["wrong"], found["errors"]), (0, 0), found)
        self.assertEqual(self.status()["problem"], "")
        self.vramswap("down", "t0")

    def test_what_users_have_ordered_still_holds(self):
        before = self.up_over_loop("--no-swapon", "--segment", "32M", size="128M")
        self.vramswap("resize", "t0", "32M")
        command = subprocess.Popen([BINARY, "yield", "t0", "0", "--for", "cat"], env=self.environment, stdin=subprocess.PIPE,
                                   stdout=subprocess.DEVNULL)
        self.addCleanup(command.wait)
        self.addCleanup(command.stdin.close)
        wait_for(lambda: "yield" in self.status()["set_by_hand"], "the yield")
        orders = self.status()["set_by_hand"]
        kill(before["worker_pid"])
        self.assertEqual(self.next_worker(before["worker_pid"])["set_by_hand"], orders)
        command.stdin.close()
        wait_for(lambda: self.status()["set_by_hand"] == "resize 32M", "end of the yield")
        self.vramswap("resize", "t0", "auto")
        self.assertEqual(self.status()["set_by_hand"], "")
        self.vramswap("down", "t0")

    def test_down_right_after_a_death(self):
        device = self.up_over_loop()
        kill(device["worker_pid"])
        self.vramswap("down", "t0", status=None)
        wait_for(lambda: self.status() is None or self.status()["state"] == "serving", "down, or serving again")
        if self.status() is not None:  # the device was not there for a moment, and down said so
            self.vramswap("down", "t0")
        self.assertNotIn(device["device"], swap_areas())

    def test_a_signal_to_the_guardian_right_after_a_death_ends_an_idle_device(self):
        device = self.up_over_loop("--no-swapon")
        os.kill(device["guardian_pid"], signal.SIGSTOP)  # so that both wait for it
        kill(device["worker_pid"])
        os.kill(device["guardian_pid"], signal.SIGTERM)
        os.kill(device["guardian_pid"], signal.SIGCONT)
        wait_for(lambda: self.status() is None and not our_loops() - self.before["loops"], "device gone")

    def test_one_that_cannot_live_is_given_up(self):
        # More descriptors to hand over than a socket takes before somebody reads.
        device = self.up_over_loop("--no-swapon", "--segment", "2M", size="128M")
        with open(device["device"], "wb", buffering=0) as file:
            file.write(os.urandom(128 << 20))
            os.fsync(file.fileno())
        self.assertGreaterEqual(self.status()["vram_bytes"], 128 << 20)
        guardian = device["guardian_pid"]
        begin = [time.monotonic()]

        def is_given_up():
            children = pathlib.Path(f"/proc/{guardian}/task/{guardian}/children").read_text(encoding="ascii").split()
            for child in children:
                kill(int(child))
            if children:
                begin[0] = time.monotonic()
            # The longest pause is 3.2 s. To ask takes time in which a worker could live.
            return time.monotonic() > begin[0] + 5 and self.status()["state"] == "worker-dead"

        wait_for(is_given_up, "no more workers", limit_s=120)
        told = self.status()["problem"]
        self.assertIn("killed by signal 9", told)
        self.assertIn("vramswap down t0", told)
        self.vramswap("down", "t0")
        self.assertFalse(our_loops() - self.before["loops"])


if __name__ == "__main__":
    unittest.main()
