# SPDX-License-Identifier: MIT
"""up, down, status, doctor, bench on this kernel: what they do, and what they say when asked for nonsense."""
import json
import os
import shutil
import subprocess
import unittest

from harness import BINARY, COMMAND_TIMEOUT_S, SystemTest, memory_of, swap_areas, texts_of_svg


class Commands(SystemTest):
    def test_up_status_down(self):
        self.up("t0", "--priority", "77")
        device = self.status()
        self.assertEqual(device["state"], "armed")
        self.assertEqual(device["priority"], 77)
        self.assertTrue(device["swap"])
        self.assertEqual(device["size_bytes"], 64 << 20)
        self.assertEqual(device["problem"], "")
        self.assertEqual(device["mode"], "copy")
        # The stage with its scratch memory (8M, with many CPUs 12M), and what both processes have for themselves.
        own = sum(memory_of(device[pid], "RssAnon") for pid in ("worker_pid", "guardian_pid"))
        self.assertGreater(device["ram_bytes"], (32 + 8) << 20)
        self.assertGreater(device["ram_bytes"], own)
        self.assertLess(device["ram_bytes"], ((32 + 12 + 1) << 20) + 2 * own)
        self.assertIn(device["device"], swap_areas())
        table = self.vramswap("status").stdout
        self.assertIn("NAME", table)
        self.assertIn("t0", table)
        self.assertEqual(self.vramswap("status", "-o", "name,prio").stdout.split(), ["NAME", "PRIO", "t0", "77"])
        self.vramswap("down", "t0")
        self.assertIsNone(self.status())

    def test_mode_turbo(self):
        self.up("t0", "--mode", "turbo")
        self.assertEqual(self.status()["mode"], "turbo")
        self.assertEqual(self.vramswap("status", "-o", "mode").stdout.split(), ["MODE", "turbo"])
        self.vramswap("down", "t0")

    def test_mode_turbo_where_the_gpu_has_none(self):
        self.environment["VRAMSWAP_SIM"] = "total=2G,turbo=0"
        for more in ((), ("--dry-run",)):
            done = self.up("t0", "--mode", "turbo", *more, status=77)
            self.assert_told(done, "turbo", "simulated GPU", "Use mode copy")
        self.assertIsNone(self.status())

    def test_down_without_a_name(self):
        self.up("only")
        self.up("other")
        self.assert_told(self.vramswap("down", status=2), "several devices", "only, other")
        self.vramswap("down", "other")
        self.vramswap("down")
        self.assert_told(self.vramswap("down", status=1), "no device")

    def test_block_device_without_swap(self):
        self.up("plain", "--no-swapon")
        device = self.status("plain")
        self.assertEqual(device["state"], "serving")
        self.assertFalse(device["swap"])
        self.assertNotIn(device["device"], swap_areas())
        self.vramswap("down", "plain")

    def test_a_device_in_use_is_not_taken_down(self):
        self.up("plain", "--no-swapon")
        with open(self.status("plain")["device"], "rb", buffering=0):
            self.assert_told(self.vramswap("down", "plain", status=1), "use")
        self.vramswap("down", "plain")

    def test_dry_run_changes_nothing(self):
        out = self.vramswap("up", "--gpu", "sim", "--size", "50%", "--dry-run").stdout
        self.assertIn("1G", out)
        self.assertIn("loop", out)
        self.assertFalse(os.path.exists(self.runtime))

    def test_twenty_cycles(self):
        for _ in range(20):
            self.up()
            self.vramswap("down", "t0")

    def test_two_devices_at_once(self):
        self.up("a")
        self.up("b")
        self.assertNotEqual(self.status("a")["device"], self.status("b")["device"])
        self.vramswap("down", "a")
        self.assertEqual(self.status("b")["state"], "armed")
        self.vramswap("down", "b")

    def test_doctor(self):
        findings = json.loads(self.vramswap("doctor", "--json").stdout)["findings"]
        topics = {f["topic"] for f in findings}
        self.assertLessEqual({"kernel", "GPU", "frontend", "RAM"}, topics)
        for finding in findings:
            self.assertIn(finding["severity"], ("ok", "note", "problem"))
            if finding["severity"] == "problem":
                self.assertTrue(finding["remedy"] or finding["text"])
        self.assertIn("kernel", self.vramswap("doctor").stdout)

    def bench(self, *arguments, status=0):
        self.environment["VRAMSWAP_SIM"] = "total=256M"
        return self.vramswap("bench", "--gpu", "sim", "--seconds", "0.05", *arguments, status=status)

    def test_bench(self):
        plot = os.path.join(self.scratch, "bench.svg")
        j = json.loads(self.bench("--quick", "--json", "--plot", plot).stdout)
        for key in ("h2d_gbps", "d2h_gbps", "read_4k_qd1_us"):
            self.assertGreater(j["ceiling"][key], 0)
        self.assertGreater(j["working_set_bytes"], 0)
        for result in j["results"]:
            self.assertLessEqual({"name", "op", "pattern", "block_bytes", "queue_depth", "threads", "mode", "iops",
                                  "gbps", "lat_us", "cpu_s_per_gb", "ram_bytes", "ceiling", "ratio"}, set(result))
            latencies = [result["lat_us"][key] for key in ("p50", "p99", "p999", "max")]
            self.assertEqual(latencies, sorted(latencies))
            self.assertGreater(result["iops"], 0)
            self.assertTrue(("ceiling_us" in result) != ("ceiling_gbps" in result), result["name"])
        results = {r["name"]: r for r in j["results"]}
        self.assertEqual(len(results), len(j["results"]))
        self.assertEqual({r["op"] for r in j["results"]}, {"read", "write", "mixed"})
        self.assertEqual({r["mode"] for r in j["results"]}, {"copy", "turbo"})
        # What a read job says of the pages it reads is so.
        self.assertGreater(results["read_4k_staged"]["stage_share"], 0.99)
        self.assertLess(results["read_4k_random_qd1"]["stage_share"], 0.1)
        self.assertLessEqual(set(results), set(texts_of_svg(plot)))

    def test_bench_of_chosen_measurements(self):
        done = self.bench("--only", "read_64k_seq,write_4k_ack", "--threads", "3", "--json")
        self.assertEqual([r["name"] for r in json.loads(done.stdout)["results"]], ["write_4k_ack", "read_64k_seq"])
        table = self.bench("--only", "mixed_4k_random").stdout
        for word in ("mixed_4k_random", "RATIO", "P99.9us"):
            self.assertIn(word, table)
        self.assert_told(self.bench("--only", "levitate", status=2), "levitate", "read_4k_staged")
        self.assert_told(self.bench("--mode", "sport", status=2), "sport", "turbo")
        report = json.loads(self.bench("--only", "write_4k_ack", "--mergers", "2", "--json").stdout)
        self.assertEqual(report["mergers"], 2)
        self.assertGreater(report["results"][0]["ram_bytes"], (32 + 8) << 20)
        self.assert_told(self.bench("--mergers", "5", status=2), "--mergers")
        self.assert_told(self.bench("--only", "write_4k_ack", "--plot", "/nowhere/x.svg", status=1), "/nowhere/x.svg")

    def test_bench_without_room(self):
        self.environment["VRAMSWAP_SIM"] = "total=256M,taken_mib=200"
        self.assert_told(self.vramswap("bench", "--gpu", "sim", status=1), "56M", "too little")


class BadInput(SystemTest):
    def test_not_root(self):
        os.chmod(self.scratch, 0o755)  # the build folder may lie where nobody else can go
        binary = shutil.copy(BINARY, self.scratch)
        for command in (["up", "--gpu", "sim"], ["down", "x"], ["status"], ["top"], ["demo"], ["bench", "--swap"],
                        ["resize", "x", "1G"], ["yield", "x"]):
            done = subprocess.run([binary, *command], env=self.environment, capture_output=True, text=True,
                                  timeout=COMMAND_TIMEOUT_S, check=False, cwd="/", user=65534, group=65534,
                                  extra_groups=[])
            self.assertEqual(done.returncode, 1, done.stderr)
            self.assert_told(done, "needs root", "sudo")

    def test_no_such_gpu(self):
        self.assert_told(self.up(gpu="sim:0,", status=2), "'sim:0,' is no list of GPUs")
        self.assert_told(self.up(gpu="sim:0,sim", status=2), "sim:0 is named twice")
        self.assert_told(self.up(gpu="GPU-12345678", status=1), "no GPU 'GPU-12345678'", "sim:0")

    def test_no_such_frontend(self):
        self.assert_told(self.up("t0", "--frontend", "floppy", status=2), "floppy", "loop")

    def test_bad_sizes(self):
        for size, word in (("0", "zero"), ("150%", "more than 100%"), ("-1G", "negative"), ("1X", "suffix"),
                           ("many", "not a size"), ("100G", "more than GPU sim:0 has (2G)"), ("1M", "less than")):
            done = self.vramswap("up", "--gpu", "sim", "--spill", "none", f"--size={size}", status=2)
            self.assert_told(done, size, word)

    def test_bad_names(self):
        for name in ("../x", "a/b", "x" * 33, ".hidden"):
            self.assert_told(self.up(name, status=2), name, "device name")

    def test_unknown_option_and_command(self):
        self.assert_told(self.up("t0", "--colour", status=2), "--colour")
        self.vramswap("levitate", status=2)
        self.vramswap(status=2)

    def test_bad_priority(self):
        self.assert_told(self.up("t0", "--priority", "40000", status=2), "40000")

    def test_gpu_full(self):
        self.environment["VRAMSWAP_SIM"] = "total=1G,taken_mib=900"
        self.assert_told(self.up("t0", "--spill", "none", size="512M", status=1), "512M", "free", "124M of 1G", "smaller")

    def test_libcuda_missing(self):
        done = self.vramswap("up", "--gpu", "cuda:0", status=None)
        if done.returncode == 0:
            self.vramswap("down")
            self.skipTest("this machine has CUDA")
        self.assertEqual(done.returncode, 77, done.stderr)
        self.assert_told(done, "libcuda.so.1", "Install")

    def test_no_gpu_never_means_sim(self):
        done = self.vramswap("up", status=None)
        if done.returncode == 0:
            self.vramswap("down")
            self.skipTest("this machine has a usable GPU")
        self.assertEqual(done.returncode, 77, done.stderr)
        self.assert_told(done, "no usable GPU", "--gpu sim")

    def test_name_taken(self):
        self.up()
        self.assert_told(self.up(status=1), "'t0' is up already", "vramswap status")
        self.assertEqual(self.status()["state"], "armed")
        self.vramswap("down", "t0")

    def test_no_such_device(self):
        self.assert_told(self.vramswap("down", "nobody", status=1), "no device 'nobody'", "vramswap status")
        self.assert_told(self.vramswap("status", "nobody", status=1), "nobody")
        self.assert_told(self.vramswap("status", "-o", "colour", status=2), "COLOUR", "help")


if __name__ == "__main__":
    unittest.main()
