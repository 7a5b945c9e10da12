#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The harness judges others: what it must notice, tried on made-up reports. Needs no machine."""
import tempfile
import unittest

import kernels
import machine
import results

GOOD = """VM-BOOTED 6.12 4.0
VM-BEGIN demo
all is well
VM-END demo 0 5.0 7.5
VM-KERNEL-LOG
<4>[ 0.1] a warning of the boot
<12>[ 5.0] VM-BEGIN demo
<6>[ 6.0] loop0: detected capacity change
VM-DONE
"""


def judge(report, *scenarios, **how):
    outcome = machine.Outcome(console="", report=report, seconds=9, timed_out=how.get("timed_out", False), status=0)
    return results.judge(outcome, scenarios)


class Verdicts(unittest.TestCase):
    def test_passed(self):
        verdicts = judge(GOOD, "demo", "klog")
        self.assertEqual(verdicts["demo"].status, results.PASSED)
        self.assertEqual(verdicts["demo"].seconds, 2.5)
        self.assertIn("all is well", verdicts["demo"].text)
        self.assertEqual(verdicts["klog"].status, results.PASSED)

    def test_failed_and_skipped(self):
        self.assertEqual(judge(GOOD.replace("demo 0", "demo 1"), "demo")["demo"].status, results.FAILED)
        self.assertEqual(judge(GOOD.replace("demo 0", "demo 139"), "demo")["demo"].status, results.FAILED)
        self.assertEqual(judge(GOOD.replace("demo 0", "demo 77"), "demo")["demo"].status, results.SKIPPED)

    def test_not_begun(self):
        self.assertEqual(judge(GOOD, "fio")["fio"].status, results.FAILED)

    def test_machine_ended_in_the_middle(self):
        verdicts = judge(GOOD[:GOOD.index("VM-END")], "demo", "klog", timed_out=True)
        self.assertEqual(verdicts["demo"].status, results.FAILED)
        self.assertIn("ended after 9 s", verdicts["demo"].text)
        self.assertEqual(verdicts["klog"].status, results.FAILED)

    def test_kernel_log(self):
        for line in ("<4>[ 7.0] WARNING: CPU: 0 PID: 7 at mm/swapfile.c:1",
                     "<3>[ 7.0] INFO: task vm_hog:99 blocked for more than 120 seconds.",
                     "<3>[ 7.0] I/O error, dev loop0, sector 8 op 0x0:(READ)"):
            verdict = judge(GOOD.replace("VM-DONE", line + "\nVM-DONE"), "klog")["klog"]
            self.assertEqual(verdict.status, results.FAILED, line)
            self.assertIn(f"demo: {line}", verdict.text)

    def test_kernel_log_of_the_contract(self):
        line = "<3>[ 7.0] I/O error, dev loop0, sector 8 op 0x0:(READ)\nVM-DONE"
        report = GOOD.replace("VM-DONE", line).replace("VM-BEGIN demo", "VM-BEGIN contract")
        self.assertEqual(judge(report, "klog")["klog"].status, results.PASSED)

    def test_kernel_log_of_nbd(self):
        for line, scenario, status in (("block nbd0: shutting down sockets", "demo", results.PASSED),
                                       ("block nbd0: Other side returned error (5)", "contract", results.PASSED),
                                       ("block nbd0: Other side returned error (5)", "demo", results.FAILED),
                                       ("block nbd0: Connection timed out, retrying (0/2 alive)", "contract",
                                        results.FAILED)):
            report = GOOD.replace("VM-BEGIN demo", f"VM-BEGIN {scenario}").replace("VM-DONE", f"<3>[ 7.0] {line}\nVM-DONE")
            self.assertEqual(judge(report, "klog")["klog"].status, status, f"{scenario}: {line}")

    def test_no_kernel_log(self):
        self.assertEqual(judge(GOOD.replace("VM-DONE", ""), "klog")["klog"].status, results.FAILED)
        self.assertEqual(judge(GOOD.replace("VM-BEGIN demo", ""), "klog")["klog"].status, results.FAILED)


class Folders(unittest.TestCase):
    def test_what_is_written_is_read(self):
        with tempfile.TemporaryDirectory() as folder:
            outcome = machine.Outcome(console="c", report=GOOD, seconds=9, timed_out=False, status=0)
            results.write(folder, results.judge(outcome, ["demo"]), outcome)
            self.assertEqual(results.read(folder, "demo").status, results.PASSED)
            self.assertEqual(results.read(folder, "fio").status, results.FAILED)
            results.write_skip(folder, "no kernel")
            self.assertEqual(results.read(folder, "demo").status, results.SKIPPED)

    def test_no_folder(self):
        self.assertEqual(results.read("/nonexistent", "demo").status, results.FAILED)


class Kernels(unittest.TestCase):
    def test_newest(self):
        newest = kernels._newest  # pylint: disable=protected-access
        self.assertEqual(newest(["linux-image-6.1.0-9-amd64", "linux-image-6.1.0-50-amd64-unsigned",
                                 "linux-image-6.1.0-50-amd64", "linux-image-6.1.0-60-rt-amd64"]),
                         "linux-image-6.1.0-50-amd64")
        self.assertEqual(newest(["linux-image-6.12.90+deb12-amd64", "linux-image-6.12.90+deb12.1-amd64",
                                 "linux-image-6.12.117+deb13-cloud-amd64"]), "linux-image-6.12.90+deb12.1-amd64")
        self.assertIsNone(newest([]))

    def test_unknown_line(self):
        with self.assertRaises(kernels.Unavailable):
            kernels.get_kernel("2.4")


if __name__ == "__main__":
    unittest.main()
