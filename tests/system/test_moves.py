# SPDX-License-Identifier: MIT
"""Devices whose VRAM is taken away and given back while they are in use: by hand, and because others take it."""
import json
import os
import subprocess
import sys
import unittest

from harness import BINARY, SystemTest, wait_for

MIB = 1 << 20
LOAD = os.environ["VRAMSWAP_VERIFYING_LOAD"]


class Load:
    """verifying_load on a device: from when it has filled it to the end."""

    def __init__(self, device):
        self.process = subprocess.Popen([LOAD, device], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline() == "full\n"

    def end(self):
        """What it found."""
        output = self.process.communicate(timeout=300)[0]
        return json.loads(output)

    def kill(self):
        self.process.kill()
        self.process.communicate()


class Moves(SystemTest):
    def setUp(self):
        super().setUp()
        # Headroom costs nothing here: the simulated GPU has more than the devices need.
        self.environment["VRAMSWAP_SIM"] = "total=2G"
        self.addCleanup(self.take_down)

    def take_down(self):
        self.vramswap("down", "t0", status=None)

    def up_as_block_device(self, *more, size="512M"):
        self.up("t0", "--no-swapon", "--segment", "32M", *more, size=size)
        return self.status()["device"]

    def start_load(self, device):
        load = Load(device)
        self.addCleanup(load.kill)
        return load

    def assert_all_right(self, found):
        self.assertEqual((found["wrong"], found["errors"]), (0, 0), found)
        status = self.status()
        self.assertEqual((status["read_errors"], status["writes_refused"], status["move_errors"]), (0, 0, 0))
        self.assertEqual(status["problem"], "")

    def test_a_full_device_shrinks_to_nothing_and_grows_back_20_times_under_load(self):
        load = self.start_load(self.up_as_block_device())
        for _ in range(20):
            self.vramswap("resize", "t0", "0")
            shrunk = self.status()
            self.assertEqual(shrunk["vram_bytes"], 0)
            self.assertGreaterEqual(shrunk["spilled_bytes"], 512 * MIB)
            self.vramswap("resize", "t0", "100%")
            wait_for(lambda: self.status()["spilled_bytes"] == 0, "everything back from the spill")
        found = load.end()
        print("20 times to nothing and back:", found, file=sys.stderr)
        self.assert_all_right(found)
        status = self.status()
        self.assertGreaterEqual(status["moved_out_bytes"], 19 * 512 * MIB)  # but for what was just being written
        self.assertGreater(status["pages_read_spill"], 0)
        self.vramswap("down", "t0")

    def test_yield_gives_vram_back_for_as_long_as_a_command_runs(self):
        load = self.start_load(self.up_as_block_device())
        told = self.vramswap("yield", "t0", "64M", "--for", BINARY, "status", "t0", "--json")
        seen = json.loads(told.stdout[told.stdout.index("{"):])["devices"][0]
        self.assertLessEqual(seen["vram_bytes"], 64 * MIB)
        self.assertIn("yield", seen["set_by_hand"])
        wait_for(lambda: self.status()["set_by_hand"] == "", "end of the yield")
        self.assert_all_right(load.end())
        self.vramswap("down", "t0")

    def test_one_of_two_gpus_yields_and_the_other_goes_on(self):
        self.environment["VRAMSWAP_SIM"] = "total=1G,gpus=2"
        self.up("t0", "--no-swapon", "--segment", "32M", "--spill", "none", size="512M", gpu="sim:0,sim:1")
        device = self.status()["device"]
        load = self.start_load(device)

        def held():
            return {gpu["selector"]: gpu["vram_bytes"] for gpu in self.status()["gpus"]}

        both = held()
        self.assertEqual(set(both), {"sim:0", "sim:1"})
        self.assertGreaterEqual(min(both.values()), 128 * MIB, "both have their share")
        self.vramswap("yield", "t0", "--gpu", "sim:1")
        self.assertEqual(held()["sim:1"], 0)
        self.assertGreaterEqual(held()["sim:0"], 512 * MIB)
        self.assertEqual(self.status()["set_by_hand"], "yield of sim:1")
        wrong = self.vramswap("resize", "t0", "64M", "--gpu", "sim:2", status=2)
        self.assertIn("sim:0,sim:1", wrong.stderr)
        self.vramswap("yield", "t0", "--end")
        self.vramswap("resize", "t0", "256M", "--gpu", "sim:0")
        self.assertEqual(held()["sim:0"], 256 * MIB)
        self.assertGreaterEqual(held()["sim:1"], 256 * MIB)
        self.assert_all_right(load.end())
        self.vramswap("down", "t0")

    def test_without_a_spill_only_what_is_free_is_given_back(self):
        device = self.up_as_block_device("--spill", "none", size="128M")
        load = self.start_load(device)
        stuck = self.vramswap("resize", "t0", "0", status=1)
        self.assertIn("spill", stuck.stderr)
        self.assertGreaterEqual(self.status()["vram_bytes"], 128 * MIB)
        self.assert_all_right(load.end()) if self.status()["problem"] == "" else load.end()
        self.vramswap("resize", "t0", "auto")
        subprocess.run(["blkdiscard", device], check=True)
        wait_for(lambda: self.status()["stored_bytes"] == 0, "nothing stored")
        self.vramswap("resize", "t0", "0")
        self.assertEqual(self.status()["vram_bytes"], 0)
        self.vramswap("down", "t0")

    def test_more_than_the_gpu_has_lies_in_the_spill(self):
        self.environment["VRAMSWAP_SIM"] = "total=256M"
        device = self.up_as_block_device("--headroom", "32M", size="512M")
        load = self.start_load(device)
        status = self.status()
        self.assertLessEqual(status["vram_bytes"], 224 * MIB)
        self.assertGreaterEqual(status["spilled_bytes"], (512 - 224) * MIB)
        self.assertEqual(status["writes_refused"], 0)
        found = load.end()
        self.assertEqual((found["wrong"], found["errors"]), (0, 0), found)
        self.vramswap("down", "t0")

    def test_nothing_of_the_spill_is_left(self):
        before = set(os.listdir(self.state)) if os.path.isdir(self.state) else set()
        device = self.up_as_block_device(size="64M")
        load = self.start_load(device)
        self.vramswap("resize", "t0", "0")
        load.end()
        pid = self.status()["worker_pid"]
        links = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
        self.assertTrue(any(link.startswith(self.state) and link.endswith("(deleted)") for link in links), links)
        self.vramswap("down", "t0")
        self.assertEqual(set(os.listdir(self.state)) if os.path.isdir(self.state) else set(), before)


if __name__ == "__main__":
    unittest.main()
