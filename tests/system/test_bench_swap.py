# SPDX-License-Identifier: MIT
"""`vramswap bench --swap`: what it tells, whom it refuses to disturb, and that it cleans up whatever happens."""
import json
import os
import pathlib
import signal
import subprocess
import unittest

from harness import BINARY, COMMAND_TIMEOUT_S, SystemTest, texts_of_svg, wait_for

ZRAM_CONTROL = pathlib.Path("/sys/class/zram-control/hot_add")


class SwapBenchTest(SystemTest):
    def setUp(self):
        super().setUp()
        # Whatever happens, no swap file may stay; the scratch folder itself goes later.
        self.addCleanup(lambda: self.assertEqual(self.swap_files(), []))

    def swap_files(self):
        return list(pathlib.Path(self.scratch).glob("*.swap"))

    def arguments(self, *more):
        return ["bench", "--swap", "--gpu", "sim", "--file-in", self.scratch, *more]


class SwapBench(SwapBenchTest):
    def test_json(self):
        plot = os.path.join(self.scratch, "swap.svg")
        result = json.loads(self.vramswap(*self.arguments("--data", "32M", "--json", "--plot", plot)).stdout)
        self.assertIs(result["ok"], True)
        self.assertEqual(result["backend"], "sim")
        self.assertEqual(result["data_bytes"], 32 << 20)
        self.assertEqual(result["ram_limit_bytes"], 8 << 20)
        areas = {area["name"]: area for area in result["results"]}
        self.assertEqual(list(areas), ["vramswap", "zram", "file"])
        self.assertEqual("unavailable" in areas["zram"], not ZRAM_CONTROL.exists())
        for area in areas.values():
            if "unavailable" in area:
                continue
            self.assertIs(area["ok"], True)
            self.assertEqual(area["pages"], 8192)
            self.assertEqual(area["pages_wrong"], 0)
            for key in ("pswpout", "pswpin"):
                self.assertGreaterEqual(area[key], 4096)
            self.assertGreaterEqual(area["used_bytes"], 16 << 20)
            self.assertGreater(area["faults"], 0)
            for key in ("swap_out_gbps", "swap_in_gbps"):
                self.assertGreater(area[key], 0)
            latencies = [area["fault_us"][key] for key in ("p50", "p90", "p99", "p999", "max")]
            self.assertEqual(latencies, sorted(latencies))
            self.assertGreater(latencies[0], 0)
        self.assertGreater(areas["vramswap"]["ram_bytes"], 0)
        self.assertLessEqual({name for name, area in areas.items() if "unavailable" not in area},
                             set(texts_of_svg(plot)))

    def test_table_of_ours_alone(self):
        out = self.vramswap(*self.arguments("--data", "32M", "--against", "none")).stdout
        self.assertIn("OUT GB/s", out)
        self.assertIn("vramswap", out)
        self.assertNotIn("zram", out)

    def test_a_competitor_that_cannot_be(self):
        """A file system in memory takes no swap file: told, and no reason to fail."""
        done = self.vramswap("bench", "--swap", "--gpu", "sim", "--data", "32M", "--against", "file", "--json",
                             "--file-in", "/dev/shm")
        areas = json.loads(done.stdout)["results"]
        self.assertIn("/dev/shm", areas[1]["unavailable"])
        self.assertIs(areas[0]["ok"], True)
        self.assertEqual(list(pathlib.Path("/dev/shm").glob("vramswap-*")), [])

    def test_another_area_of_the_same_priority(self):
        self.up("t0", "--priority", "32767")
        device = self.status()["device"]
        self.assert_told(self.vramswap(*self.arguments(), status=1), device, "32767", "Switch it off")
        self.vramswap("down", "t0")

    def test_bad_input(self):
        self.assert_told(self.vramswap(*self.arguments("--data", "1K"), status=2), "--data 1K")
        self.assert_told(self.vramswap(*self.arguments("--against", "floppy"), status=2), "floppy", "zram")
        self.assert_told(self.vramswap("bench", "--gpu", "sim", "--data", "32M", status=2), "--swap")
        self.assert_told(self.vramswap(*self.arguments("--only", "seq_read_2m"), status=2), "--only")
        self.assert_told(self.vramswap(*self.arguments("--data", "9000G"), status=1), "8.8T", "smaller")


class SwapBenchInterrupted(SwapBenchTest):
    def interrupt_when_used(self, against, sig, what):
        """Sends the signal when an area with `what` in its name has taken pages."""
        def used():
            with open("/proc/swaps", encoding="utf-8") as swaps:
                rows = [line.split() for line in swaps.readlines()[1:]]
            return any(row[0] not in self.before["swaps"] and what in row[0] and int(row[3]) > 4096 for row in rows)
        bench = subprocess.Popen([BINARY, *self.arguments("--data", "64M", "--against", against)],
                                 env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            wait_for(lambda: used() or bench.poll() is not None, f"pages on {what}")
        finally:
            bench.send_signal(sig)  # also if the wait failed: it cleans up
            out, err = bench.communicate(timeout=COMMAND_TIMEOUT_S)
        self.assertEqual(bench.returncode, 1, out + err)
        self.assertIn("interrupted", err)

    def test_on_zram(self):
        if not ZRAM_CONTROL.exists():
            print(f"SKIPPED: {self.id()}: this kernel has no zram", flush=True)
            self.skipTest("this kernel has no zram")
        self.interrupt_when_used("zram", signal.SIGTERM, "/zram")

    def test_on_the_file(self):
        self.interrupt_when_used("file", signal.SIGINT, ".swap")


if __name__ == "__main__":
    unittest.main()
