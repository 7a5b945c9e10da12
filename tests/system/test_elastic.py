# SPDX-License-Identifier: MIT
"""The options of giving VRAM back, and `resize` and `yield`, against a worker that answers as the test wants."""
import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import threading
import unittest

from harness import BINARY, COMMAND_TIMEOUT_S, SystemTest, wait_for
from test_trouble import in_namespace

MIB = 1 << 20
GIB = 1 << 30


class FakeWorker:
    """Answers on the control socket of a device; each status that is asked for is a step of 256 MiB further."""

    STEP = 256 * MIB

    def __init__(self, runtime, name="t0", vram=GIB, spill=8 * GIB, unmovable=0, leaves=4 * GIB):
        self.requests = []
        self.unmovable = unmovable  # stays, whatever is asked for
        self.leaves = leaves  # what others leave of the GPU
        self.status = {"name": name, "state": "serving", "device": "", "size_bytes": 4 * GIB, "vram_bytes": vram,
                       "vram_target_bytes": vram, "segment_bytes": 128 * MIB, "spill_capacity_bytes": spill,
                       "spill_place": "/srv/swap", "reason": "a reason"}
        self.folder = os.path.join(runtime, name)
        os.makedirs(self.folder, mode=0o700)
        self.lock = open(os.path.join(self.folder, "lock"), "w", encoding="ascii")
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        self.server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.server.bind(os.path.join(self.folder, "control"))
        self.server.listen()
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    def serve(self):
        while True:
            with contextlib.suppress(ConnectionError):
                client = self.server.accept()[0]
                with client:
                    text = client.recv(65536)
                    if text == b"end":
                        return
                    client.send(json.dumps(self.answer(json.loads(text))).encode())

    def answer(self, request):
        if request["op"] != "status":
            self.requests.append(request)
            wanted = self.leaves if request["bytes"] is None else request["bytes"]
            self.status["vram_target_bytes"] = max(self.unmovable, min(wanted, self.leaves))
        else:
            way = self.status["vram_target_bytes"] - self.status["vram_bytes"]
            self.status["vram_bytes"] += max(-self.STEP, min(self.STEP, way))
        return self.status

    def close(self):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as last:
            last.connect(os.path.join(self.folder, "control"))
            last.send(b"end")
        self.thread.join()
        self.server.close()
        self.lock.close()
        shutil.rmtree(self.folder)


class ByHand(SystemTest):
    def worker(self, **options):
        worker = FakeWorker(self.runtime, **options)
        self.addCleanup(worker.close)
        return worker

    def test_resize(self):
        worker = self.worker(vram=2 * GIB)
        out = self.vramswap("resize", "t0", "512M")
        self.assertRegex(out.stdout, r"^t0 gave back 1.5G of VRAM in [0-9.]+ s \([0-9.]+[MGT]/s\) and holds 512M; up to "
                                     r"512M until `vramswap resize t0 auto`\n$")
        self.assertEqual(out.stderr, "", "no progress line in a pipe")
        self.assertRegex(self.vramswap("resize", "t0", "50%").stdout, "took 1.5G of VRAM .* holds 2G")
        self.vramswap("resize", "t0", "0")
        self.vramswap("resize", "t0", "100M")
        self.assertIn("policy decides again", self.vramswap("resize", "t0", "auto").stdout)
        wanted = [512 * MIB, 2 * GIB, 0, 128 * MIB, None]
        self.assertEqual(worker.requests, [{"op": "resize", "bytes": n} for n in wanted])

    def test_resize_that_others_do_not_allow(self):
        self.worker(leaves=2 * GIB)
        self.assert_told(self.vramswap("resize", "t0", "4G", status=1), "t0", "4G", "may hold 2G", "a reason")

    def test_no_wait(self):
        worker = self.worker(unmovable=GIB)
        self.assertIn("told", self.vramswap("resize", "t0", "0", "--no-wait").stdout)
        self.assertIn("told", self.vramswap("yield", "t0", "--no-wait").stdout)
        self.assertEqual([r["op"] for r in worker.requests], ["resize", "yield"])

    def test_yield_and_its_end(self):
        worker = self.worker()
        self.assertRegex(self.vramswap("yield", "t0").stdout, "gave back 1G of VRAM .* holds 0B; .*yield t0 --end")
        self.assertIn("may take VRAM again", self.vramswap("yield", "t0", "--end").stdout)
        self.vramswap("yield", "t0", "2G")
        self.assertEqual(worker.requests, [{"op": "yield", "bytes": n, "pid": 0} for n in (0, None, 2 * GIB)])

    def test_yield_that_cannot_be(self):
        worker = self.worker(unmovable=768 * MIB, spill=0)
        done = self.vramswap("yield", "t0", status=1)
        self.assert_told(done, "t0 keeps 768M", "was to keep 0B", "there is no spill", "vramswap yield t0 --end")
        worker.status["spill_capacity_bytes"] = worker.status["spilled_bytes"] = GIB
        self.assert_told(self.vramswap("yield", "t0", status=1), "the spill is full (1G)", "Make room in /srv/swap")
        marker = os.path.join(self.scratch, "ran")
        done = self.vramswap("yield", "t0", "--for", "touch", marker, status=1)
        self.assert_told(done, "keeps 768M", "touch was not started", "--no-wait")
        self.assertFalse(os.path.exists(marker))
        self.assertIsNone(worker.requests[-1]["bytes"], "the yield was ended")
        self.vramswap("yield", "t0", "--no-wait", "--for", "touch", marker)
        self.assertTrue(os.path.exists(marker))

    def test_yield_for_a_command(self):
        worker = self.worker()
        out = self.vramswap("yield", "t0", "256M", "--for", "sh", "-c", 'echo $$ "$@"; exit 7', "sh", "--end", "--for", "x",
                            status=7)
        pid = worker.requests[0]["pid"]
        self.assertEqual(worker.requests, [{"op": "yield", "bytes": 256 * MIB, "pid": pid}])
        self.assertEqual(out.stdout, f"{pid} --end --for x\n", "the command is the process that holds the yield")
        self.assertIn("t0 gave back 768M", out.stderr)

    def test_yield_for_a_command_that_gets_signals(self):
        worker = self.worker()
        for number in (signal.SIGINT, signal.SIGTERM):
            with subprocess.Popen([BINARY, "yield", "t0", "--for", "cat"], env=self.environment, stdin=subprocess.PIPE,
                                  stderr=subprocess.DEVNULL) as command:
                wait_for(lambda: self.name_of(command.pid) == "cat", "the command runs")
                command.send_signal(number)
                self.assertEqual(command.wait(COMMAND_TIMEOUT_S), -number)
            self.assertEqual(worker.requests[-1]["pid"], command.pid)
        # Our commands ignore it, and what is ignored stays so over exec.
        self.vramswap("yield", "t0", "--for", "sh", "-c", "kill -PIPE $$", status=-signal.SIGPIPE)

    @staticmethod
    def name_of(pid):
        with open(f"/proc/{pid}/comm", encoding="utf-8") as comm:
            return comm.read().strip()

    def test_an_interrupt_while_it_waits(self):
        worker = self.worker()
        worker.STEP = 1
        for arguments, status in (((), 1), (("--for", "true"), -signal.SIGINT)):
            asked = len(worker.requests)
            with subprocess.Popen([BINARY, "yield", "t0", *arguments], env=self.environment, text=True,
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE) as command:
                wait_for(lambda: len(worker.requests) > asked, "the request")
                command.send_signal(signal.SIGINT)
                _, told = command.communicate(timeout=COMMAND_TIMEOUT_S)
            self.assertEqual(command.returncode, status, told)
            if not arguments:
                self.assertIn("interrupted", told)
                self.assertIn("yield t0 --end", told)

    def test_missing_commands(self):
        worker = self.worker()
        plain = os.path.join(self.scratch, "plain")
        with open(plain, "w", encoding="ascii"):
            os.chmod(plain, 0o644)
        for command, status in (("levitate", 127), ("/nowhere/levitate", 127), (plain, 126)):
            self.assert_told(self.vramswap("yield", "t0", "--for", command, status=status), command, "Nothing was yielded")
        self.assert_told(self.vramswap("yield", "t0", "--for", status=2), "--for has no command")
        self.assertEqual(worker.requests, [])

    def test_bad_amounts(self):
        worker = self.worker()
        for command in ("resize", "yield"):
            for amount, word in (("5G", "more than the device t0 has (4G)"), ("many", "not a size"), ("150%", "100%")):
                self.assert_told(self.vramswap(command, "t0", amount, status=2), amount, word)
        self.vramswap("resize", "t0", status=2)
        self.vramswap("resize", "t0", "-1G", status=2)
        self.vramswap("yield", "t0", "1G", "--end", status=2)
        self.vramswap("yield", "t0", "--end", "--for", "true", status=2)
        self.assertEqual(worker.requests, [])

    def test_devices_that_cannot_be_asked(self):
        for command in (("resize", "nobody", "1G"), ("resize", "nobody", "auto"), ("yield", "nobody"),
                        ("yield", "nobody", "--for", "true"), ("yield", "nobody", "--end")):
            self.assert_told(self.vramswap(*command, status=1), "no device 'nobody'", "vramswap status")
        self.vramswap("resize", "../x", "1G", status=2)
        worker = self.worker()
        worker.status.update(state="draining", problem="it goes down")
        self.assert_told(self.vramswap("yield", "t0", status=1), "t0 is draining", "it goes down")

    def test_status_shows_it(self):
        worker = self.worker()
        worker.status.update(spilled_bytes=GIB, spill_problem="the disk is slow", reason="others use it")
        done = self.vramswap("status")
        self.assertRegex(done.stdout, r"VRAM +SPILL +RAM")
        self.assertEqual(done.stderr, "t0: the disk is slow\n")
        words = self.vramswap("status", "-o", "spill,target,why").stdout.split("\n")
        self.assertEqual(words[0].split(), ["SPILL", "TARGET", "WHY"])
        self.assertEqual(words[1].split(maxsplit=2), ["1G", "1G", "others use it"])
        worker.status.update(spill_capacity_bytes=0, spill_problem="")
        self.assertIn("no spill: VRAM that holds pages cannot be given back", self.vramswap("status").stderr)
        self.assertEqual(self.vramswap("status", "-o", "name,spill").stderr, "")


class UpOptions(SystemTest):
    def setUp(self):
        super().setUp()
        # A temporary directory may be in RAM, which is no place for a spill.
        self.disk = tempfile.mkdtemp(prefix="vramswap-test-", dir="/var/tmp")
        self.addCleanup(shutil.rmtree, self.disk, ignore_errors=True)
        self.state = self.environment["VRAMSWAP_STATE_DIR"] = os.path.join(self.disk, "state")

    def plan(self, *arguments, size="64M", status=0):
        return self.up("t0", "--dry-run", *arguments, size=size, status=status)

    def assert_refused(self, *arguments, words, status=2):
        """Neither a plan nor a device comes of it, and nothing stays behind."""
        self.assert_told(self.plan(*arguments, status=status), *words)
        self.assert_told(self.up("t0", *arguments, status=status), *words)
        self.assertFalse(os.path.exists(self.runtime))
        self.assertFalse(os.path.exists(self.state))

    def test_plan_of_the_defaults(self):
        out = self.plan().stdout
        self.assertRegex(out, rf"spill +{self.state}, up to 64M, room for [0-9.]+[MGT] now\n")
        self.assertRegex(out, r"VRAM +in segments of 128M, as much as it has use for; .*: what suits the GPU\n")
        self.assertIn("mode auto", out)
        self.assertFalse(os.path.exists(self.state), "a plan changes nothing")

    def test_plan_of_everything(self):
        out = self.plan("--headroom", "15%", "--spill", f"{self.disk}:32M", "--vram-max", "50%", "--segment", "16M",
                        "--mode", "turbo", "--swap-rate-max", "500M/s").stdout
        for word in ("segments of 16M, at most 50% of each GPU", "15%", f"{self.disk}, up to 32M", "mode turbo", "500M/s while others"):
            self.assertIn(word, out)
        self.assertRegex(self.plan("--spill", "none").stdout, "spill +none: VRAM that holds pages cannot be given back\n")

    def test_default_directory(self):
        out = self.up()
        self.assertIn(f"spill in {self.state}", out.stdout)
        self.assertEqual(stat.S_IMODE(os.stat(self.state).st_mode), 0o700)
        self.assertEqual(os.listdir(self.state), [])
        self.assert_told(self.up(status=1), "up already")
        self.assertTrue(os.path.exists(self.state))
        self.vramswap("down", "t0")

    def test_default_directory_of_a_device_that_fails(self):
        self.environment["VRAMSWAP_SIM"] = "total=2G,fail_allocations=1000"
        self.up(status=1)
        self.assertFalse(os.path.exists(self.state))

    def test_no_spill_is_told(self):
        done = self.up("t0", "--spill", "none")
        self.assert_told(done, "t0: no spill. VRAM that holds pages cannot be given back")
        self.assertNotIn("spill in", done.stdout)
        self.vramswap("down", "t0")

    def test_default_place_in_ram(self):
        self.environment["VRAMSWAP_STATE_DIR"] = "/dev/shm/vramswap-test-state"
        done = self.up()
        self.assert_told(done, "no spill", "/dev/shm", "is in RAM", "cannot be given back")
        self.assertFalse(os.path.exists("/dev/shm/vramswap-test-state"))
        self.vramswap("down", "t0")
        self.assert_told(self.up("t0", "--spill", "/dev/shm"), "is in RAM")
        self.vramswap("down", "t0")

    def test_a_full_disk(self):
        script = f"""
            truncate -s 128M {self.disk}/image
            mkfs.ext4 -q {self.disk}/image
            mkdir {self.disk}/small
            mount -o loop {self.disk}/image {self.disk}/small
            {BINARY} up t0 --dry-run --gpu sim --size 64M
            {BINARY} up t0 --dry-run --gpu sim --size 64M --spill {self.disk}/small || echo "exit $?"
            {BINARY} up t0 --dry-run --gpu sim --size 64M --segment 16M --spill {self.disk}/small
            {BINARY} up t0 --dry-run --gpu sim --size 2200M --segment 16M || echo "exit $?"
            {BINARY} doctor --json"""
        done = in_namespace(script, dict(self.environment, VRAMSWAP_STATE_DIR=f"{self.disk}/small/state"))
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertRegex(done.stdout, r"spill +none \(\S+/small has room for [0-9.]+M, less than a segment \(128M\); a tenth of "
                                      r"the disk stays free\): VRAM that holds pages cannot be given back")
        self.assertIn("exit 1", done.stdout)
        self.assert_told(done, "/small has room for", "less than a segment (128M)", "--spill none")
        self.assertRegex(done.stdout, r"spill +\S+/small, up to 64M")
        self.assertRegex(done.stderr, "--size 2200M is more than 2G of GPU sim:0 and [0-9.]+M of spill in")
        self.assertIn("exit 2", done.stdout)
        self.assertIn('"topic": "spill"', done.stdout)

    def test_larger_than_the_gpu(self):
        self.assertIn("device    t0, 2.1G", self.plan(size="2200M").stdout)
        self.assert_told(self.plan("--spill", "none", size="2200M", status=2), "2200M", "more than GPU sim:0 has (2G)")
        self.assert_told(self.plan("--spill", f"{self.disk}:100M", size="2200M", status=2),
                         "2200M", "2G of GPU sim:0 and 100M of spill", self.disk)
        self.plan("--spill", f"{self.disk}:152M", size="2200M")
        self.assert_told(self.plan("--vram-max", "1G", "--spill", f"{self.disk}:152M", size="1500M", status=2),
                         "1500M", "1G of GPU sim:0 and 152M of spill")
        self.assert_told(self.plan("--vram-max", "1G", "--spill", "none", size="1500M", status=2),
                         "1500M", "--vram-max allows (1G)")
        self.assert_told(self.plan(size="900T", status=2), "900T", "spill in", "smaller size")

    def test_a_full_gpu(self):
        self.environment["VRAMSWAP_SIM"] = "total=1G,taken_mib=900"
        self.assertIn("device    t0, 512M", self.plan(size="512M").stdout)

    def test_bad_spills(self):
        file = os.path.join(self.disk, "file")
        with open(file, "w", encoding="ascii"):
            pass
        self.assert_refused("--spill", "/nowhere/at/all", words=("/nowhere/at/all", "no place", "Make the directory"), status=1)
        self.assert_refused("--spill", file, words=(file, "neither a directory nor a block device"))
        self.assert_refused("--spill", "swap", words=("'swap'", "auto, none, or the whole path"))
        self.assert_refused("--spill", f"{self.disk}:900T", words=(f"{self.disk}:900T", "more than there is room for"))
        self.assert_refused("--spill", f"{self.disk}:10%", words=("10%", "such as 20G"))
        self.assert_refused("--spill", f"{self.disk}:many", words=("many", "not a size"))
        self.assert_refused("--spill", "/proc", words=("/proc",), status=77)

    def test_a_block_device_in_use(self):
        image = os.path.join(self.disk, "vramswap-image")
        with open(image, "wb") as disk:
            disk.truncate(64 * MIB)
        attached = subprocess.run(["losetup", "--find", "--show", image], capture_output=True, text=True, check=True,
                                  timeout=COMMAND_TIMEOUT_S)
        device = attached.stdout.strip()
        try:
            self.assertIn(f"{device}, up to 64M, room for 62M", self.plan("--spill", device, "--segment", "16M").stdout)
            self.assert_told(self.plan("--spill", f"{device}:64M", "--segment", "16M", status=2), f"{device}:64M", "62M")
            subprocess.run(["mkfs.ext4", "-q", device], check=True, timeout=COMMAND_TIMEOUT_S)
            script = f"""
                mkdir {self.disk}/there
                mount {device} {self.disk}/there
                {BINARY} up t0 --dry-run --gpu sim --size 64M --spill {device}"""
            done = in_namespace(script, self.environment)
            self.assertEqual(done.returncode, 1, done.stdout)
            self.assert_told(done, device, "mounted", "lsblk")
        finally:
            subprocess.run(["losetup", "-d", device], check=True, timeout=COMMAND_TIMEOUT_S)

    def test_bad_values(self):
        for option, value, *words in (
                ("--segment", "3M", "multiple of 2M", "--segment 4M"), ("--segment", "10%", "share"),
                ("--segment", "0", "zero"), ("--segment", "4G", "more than GPU sim:0 has (2G)", "128M"),
                ("--headroom", "150%", "more than 100%"), ("--headroom", "2G", "all that GPU sim:0 has (2G)", "less"),
                ("--headroom", "much", "not a size"), ("--vram-max", "3G", "more than GPU sim:0 has (2G)"),
                ("--vram-max", "64M", "less than a segment (128M)"), ("--vram-max", "-1G", "negative"),
                ("--swap-rate-max", "fast", "not a size"), ("--swap-rate-max", "10%", "share"),
                ("--mode", "sport", "turbo")):
            self.assert_refused(f"{option}={value}", words=(option, value, *words))


if __name__ == "__main__":
    unittest.main()
