# SPDX-License-Identifier: MIT
"""`vramswap demo`: the main job end to end, and that it cleans up whatever happens to it."""
import json
import os
import signal
import subprocess
import unittest

from harness import BINARY, COMMAND_TIMEOUT_S, SystemTest, our_cgroups, our_processes, swap_areas, wait_for

KEYS = ["ok", "backend", "gpu", "frontend", "device", "size_bytes", "data_bytes", "pages", "pages_wrong", "pswpout",
        "pswpin", "device_pages_written", "device_pages_read", "swap_out_gbps", "swap_in_gbps", "fault_us"]


class Demo(SystemTest):
    def test_json(self):
        done = self.vramswap("demo", "--gpu", "sim", "--json")
        result = json.loads(done.stdout)
        self.assertEqual(list(result), KEYS)
        self.assertIs(result["ok"], True)
        self.assertEqual(result["backend"], "sim")
        self.assertEqual(result["pages"], 131072)
        self.assertEqual(result["data_bytes"], 512 << 20)
        self.assertEqual(result["size_bytes"], 1 << 30)
        self.assertEqual(result["pages_wrong"], 0)
        for key in ("pswpin", "pswpout", "device_pages_read", "device_pages_written"):
            self.assertGreaterEqual(result[key], result["pages"] // 2)
        for key in ("swap_out_gbps", "swap_in_gbps"):
            self.assertGreater(result[key], 0)
        p50, p90, p99 = (result["fault_us"][k] for k in ("p50", "p90", "p99"))
        self.assertTrue(0 < p50 <= p90 <= p99)
        self.assertNotIn("\r", done.stderr)

    def test_table(self):
        out = self.vramswap("demo", "--data", "64M", "--size", "256M").stdout
        self.assertTrue(out.endswith("ok\n"))
        self.assertIn(", 0 wrong", out)

    def test_cuda_backend_over_a_fake_driver(self):
        """The worker's whole way with the CUDA backend; the driver below it is tests/support/fake_cuda.cc."""
        self.environment.update(LD_LIBRARY_PATH=os.environ["VRAMSWAP_FAKE_DRIVER"], FAKE_CUDA_MEMORY=str(2 << 30))
        done = self.vramswap("demo", "--gpu", "cuda", "--json", "--data", "128M", "--size", "512M")
        result = json.loads(done.stdout)
        self.assertIs(result["ok"], True)
        self.assertEqual(result["backend"], "cuda")
        self.assertEqual(result["pages_wrong"], 0)

    def test_bad_amounts(self):
        self.assert_told(self.vramswap("demo", "--gpu", "sim", "--data", "1K", status=2), "--data 1K")
        self.assert_told(self.vramswap("demo", "--gpu", "sim", "--data", "2G", "--size", "1G", status=2), "do not fit")


class DemoInterrupted(SystemTest):
    def start(self):
        return subprocess.Popen([BINARY, "demo", "--gpu", "sim"], env=self.environment, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, text=True)

    def interrupt_when(self, condition, what, sig):
        demo = self.start()
        try:
            wait_for(condition, what)
            demo.send_signal(sig)
            out, err = demo.communicate(timeout=COMMAND_TIMEOUT_S)
        finally:
            demo.kill()
        self.assertEqual(demo.returncode, 1, out + err)
        self.assertIn("interrupted", err)

    def test_while_starting(self):
        self.interrupt_when(lambda: set(our_processes()) - self.before["processes"], "processes start", signal.SIGINT)

    def test_while_swapping(self):
        self.interrupt_when(lambda: our_cgroups() - self.before["cgroups"], "control group", signal.SIGTERM)

    def test_when_swap_is_used(self):
        def used():
            with open("/proc/swaps", encoding="utf-8") as swaps:
                return any(line.split()[0] not in self.before["swaps"] and int(line.split()[3]) > 4096
                           for line in swaps.readlines()[1:])
        self.interrupt_when(used, "pages on the device", signal.SIGHUP)

    def test_child_killed(self):
        demo = self.start()
        try:
            def procs():
                for group in our_cgroups() - self.before["cgroups"]:
                    try:
                        with open(os.path.join(group, "cgroup.procs"), encoding="utf-8") as f:
                            return f.read().split()
                    except OSError:
                        pass
                return []
            wait_for(lambda: procs() and len(swap_areas()) > len(self.before["swaps"]), "the child in its group")
            for pid in procs():
                os.kill(int(pid), signal.SIGKILL)
            out, err = demo.communicate(timeout=COMMAND_TIMEOUT_S)
        finally:
            demo.kill()
        self.assertEqual(demo.returncode, 1, out + err)
        self.assertIn("killed by signal 9", err)


if __name__ == "__main__":
    unittest.main()
