# SPDX-License-Identifier: MIT
"""vramswap top in a terminal: what it shows, and that it puts the terminal back however it ends."""
import contextlib
import fcntl
import json
import os
import pathlib
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import termios
import threading
import time
import unittest

from harness import BINARY, WAIT_LIMIT_S, SystemTest, wait_for

ESCAPE_SEQUENCE = re.compile(rb"\x1b(\[[0-9;?]*[A-Za-z]|\(B|[=>])")
COLOUR = re.compile(rb"\x1b\[[0-9;]*3[0-7]m")
LEAVE_ALTERNATE_SCREEN = b"\x1b[?1049l"
SHOW_CURSOR = b"\x1b[?25h"


class Terminal:
    """A command in a terminal of its own. What it writes is kept, not interpreted."""

    def __init__(self, command, environment, columns=80, rows=24):
        self.master, self.slave = pty.openpty()  # our own end stays open: it tells how the terminal was left
        self.resize(columns, rows)
        self.before = termios.tcgetattr(self.slave)
        self.process = subprocess.Popen(command, env=environment, stdin=self.slave, stdout=self.slave,
                                        stderr=self.slave, start_new_session=True, preexec_fn=self.take_terminal)
        self.written = b""

    def take_terminal(self):
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    def resize(self, columns, rows):
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def press(self, keys):
        os.write(self.master, keys)

    def read_until(self, words):
        """Takes what is written up to now, as soon as these words are in it, however styled; returns it raw."""
        end = time.monotonic() + WAIT_LIMIT_S
        while words not in ESCAPE_SEQUENCE.sub(b"", self.written):
            ready = select.select([self.master], [], [], max(0, end - time.monotonic()))[0]
            if not ready:
                raise AssertionError(f"{words} not within {WAIT_LIMIT_S} s; there is {self.written!r}")
            self.written += os.read(self.master, 65536)
        taken, self.written = self.written, b""
        return taken

    def wait(self):
        """Its exit status; reads on, so that it is not stopped by a full terminal."""
        with open(os.pidfd_open(self.process.pid), "rb") as pidfd:
            while self.process.poll() is None:
                for ready in select.select([self.master, pidfd], [], [], WAIT_LIMIT_S)[0] or [None]:
                    if ready is None:
                        raise AssertionError(f"does not end; wrote {self.written!r}")
                    if ready is self.master:
                        self.written += os.read(self.master, 65536)
        while select.select([self.master], [], [], 0)[0]:
            self.written += os.read(self.master, 65536)
        return self.process.returncode

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.master)
        os.close(self.slave)


class PlayedDevice:
    """A device that is up as far as commands can see: its directory, its lock, and somebody who tells a status."""

    def __init__(self, runtime, status, hangs=False):
        self.folder = pathlib.Path(runtime, status["name"])
        self.folder.mkdir(parents=True)
        self.lock = open(self.folder / "lock", "wb")
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        self.status = status
        self.server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.server.bind(str(self.folder / "control"))
        self.server.listen(16)
        self.thread = None if hangs else threading.Thread(target=self.serve)
        if self.thread:
            self.thread.start()

    def serve(self):
        with contextlib.suppress(OSError):  # at the end
            while True:
                client = self.server.accept()[0]
                with client:
                    client.recv(65536)
                    self.status["pages_read"] += 1000
                    client.send(json.dumps(self.status).encode())

    def close(self):
        self.server.shutdown(socket.SHUT_RDWR)
        if self.thread:
            self.thread.join()
        self.server.close()
        for path in self.folder.iterdir():
            path.unlink()
        self.folder.rmdir()
        self.lock.close()


class Top(SystemTest):
    def setUp(self):
        super().setUp()
        self.environment.update(TERM="xterm-256color", LC_ALL="C")
        self.environment.pop("NO_COLOR", None)
        self.environment.pop("COLUMNS", None)

    def top(self, *arguments, **size):
        terminal = Terminal([BINARY, "top", "--interval", "0.1", *arguments], self.environment, **size)
        self.addCleanup(terminal.close)
        return terminal

    def played(self, name, hangs=False, **more):
        status = dict(name=name, state="armed", device="/dev/none", frontend="ublk", gpu="cuda:0", gpu_name="a GPU",
                      mode="copy", worker_pid=os.getpid(), guardian_pid=os.getpid(), size_bytes=8 << 30,
                      stored_bytes=1 << 30, vram_bytes=2 << 30, pages_read=0, pages_written=0)
        device = PlayedDevice(self.runtime, dict(status, **more), hangs)
        self.addCleanup(device.close)

    def assert_ended_well(self, terminal):
        self.assertEqual(terminal.wait(), 0, terminal.written)
        self.assertEqual(termios.tcgetattr(terminal.slave), terminal.before, "settings of the terminal")
        self.assertIn(LEAVE_ALTERNATE_SCREEN, terminal.written)
        self.assertIn(SHOW_CURSOR, terminal.written)
        after = terminal.written.rpartition(LEAVE_ALTERNATE_SCREEN)[2]
        self.assertNotRegex(after, rb"[a-z]{3}", "written onto the user's own screen")

    def test_no_device(self):
        terminal = self.top()
        terminal.read_until(b"No device is up")
        terminal.press(b"q")
        self.assert_ended_well(terminal)

    def test_a_device_is_watched_until_it_is_gone(self):
        self.up("t0")
        terminal = self.top()
        terminal.read_until(b"MB/s")
        self.vramswap("down", "t0")
        terminal.read_until(b"gone")
        terminal.press(b"q")
        self.assert_ended_well(terminal)

    def test_signals_leave_the_terminal_as_it_was(self):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            with self.subTest(number.name):
                terminal = self.top()
                terminal.read_until(b"No device is up")
                terminal.process.send_signal(number)
                self.assert_ended_well(terminal)
        terminal = self.top()
        terminal.read_until(b"No device is up")
        terminal.press(b"\x03")  # Control-C, as the terminal turns it into a signal
        self.assert_ended_well(terminal)

    def test_keys(self):
        self.played("a")
        self.played("b")
        terminal = self.top()
        terminal.read_until(b"> a")
        terminal.press(b"h")
        terminal.read_until(b"select a device")
        terminal.press(b"h")
        terminal.read_until(b"stored")
        terminal.press(b"\x1bOBp")  # down, pause: drawn at once
        terminal.read_until(b"PAUSED")
        terminal.press(b"++\x0c")  # Control-L draws all again
        screen = terminal.read_until(b"h help")
        self.assertIn(b"> b", ESCAPE_SEQUENCE.sub(b"", screen))
        self.assertIn(b"every 0.5 s", ESCAPE_SEQUENCE.sub(b"", screen))
        terminal.press(b"q")
        self.assert_ended_well(terminal)

    def test_the_window_is_resized(self):
        self.played("a")
        terminal = self.top(columns=40, rows=8)
        self.assertNotIn(b"peak", terminal.read_until(b"h help"))
        terminal.resize(100, 40)
        terminal.read_until(b"peak")
        terminal.resize(3, 2)
        terminal.resize(30, 6)
        terminal.read_until(b"q quit")
        terminal.press(b"q")
        self.assert_ended_well(terminal)

    def test_no_color(self):
        self.played("a")
        terminal = self.top()
        self.assertRegex(terminal.read_until(b"h help"), COLOUR)
        terminal.press(b"q")
        self.assert_ended_well(terminal)
        self.environment["NO_COLOR"] = "1"
        terminal = self.top()
        self.assertNotRegex(terminal.read_until(b"h help"), COLOUR)
        terminal.press(b"q")
        self.assert_ended_well(terminal)

    def test_names_cannot_steer_the_terminal(self):
        self.played("a", gpu_total_bytes=80 << 30,
                    gpu_processes=[dict(pid=1, name="x\x1b]0;owned\x07y", memory_bytes=1 << 30)])
        terminal = self.top()
        self.assertNotIn(b"\x1b]0", terminal.read_until(b"owned"))
        terminal.press(b"q")
        self.assert_ended_well(terminal)

    def test_a_worker_that_hangs(self):
        self.played("a", hangs=True)
        terminal = self.top("a")
        screen = terminal.read_until(b"has not answered within 1 s")
        self.assertIn(b"silent", screen)
        terminal.press(b"q")
        self.assert_ended_well(terminal)

    def test_a_worker_that_died(self):
        self.played("a", state="worker-dead", worker_pid=0, problem="the worker was killed. Run `vramswap down a`")
        terminal = self.top()
        self.assertIn(b"worker-dead", terminal.read_until(b"vramswap down a"))
        terminal.press(b"q")
        self.assert_ended_well(terminal)

    def test_a_worker_that_is_killed_under_it(self):
        self.up("t0", "--no-swapon")
        terminal = self.top()
        terminal.read_until(b"serving")
        dead = self.status("t0")["worker_pid"]
        os.kill(dead, signal.SIGKILL)
        wait_for(lambda: self.status("t0")["worker_pid"] != dead, "status knows that it is dead")
        wait_for(lambda: self.status("t0")["state"] in ("serving", "worker-dead"), "followed, or given up by an old kernel")
        self.vramswap("down", "t0")
        terminal.press(b"q")
        self.assert_ended_well(terminal)

    def test_unknown_terminal(self):
        self.environment["TERM"] = "teletype-of-1930"
        self.played("a")
        terminal = self.top()
        self.assertEqual(terminal.wait(), 0)
        for word in (b"'teletype-of-1930'", b"not known", b"xterm", b"stored"):
            self.assertIn(word, terminal.written)
        self.assertEqual(termios.tcgetattr(terminal.slave), terminal.before)

    def test_one_frame(self):
        self.assertIn("No device is up", self.vramswap("top").stdout)
        self.up("t0")
        for arguments in (["--once"], []):
            frame = self.vramswap("top", "t0", "--interval", "0.1", *arguments).stdout
            for word in ("t0  armed", "stored", "MB/s", "VRAM", "sim:0"):
                self.assertIn(word, frame)
            self.assertNotIn("\x1b", frame)
            self.assertLessEqual(max(len(line) for line in frame.splitlines()), 80)
        self.environment["COLUMNS"] = "40"
        frame = self.vramswap("top", "--interval", "0.1").stdout
        self.assertLessEqual(max(len(line) for line in frame.splitlines()), 40)
        self.environment["LC_ALL"] = "C.UTF-8"
        self.assertIn("░", self.vramswap("top", "--interval", "0.1").stdout)
        self.vramswap("down", "t0")

    def test_bad_input(self):
        self.assert_told(self.vramswap("top", "nobody", status=1), "no device 'nobody'")
        self.assert_told(self.vramswap("top", "../x", status=2), "../x")
        for interval in ("0", "-1", "fast", "3600"):
            self.assert_told(self.vramswap("top", f"--interval={interval}", status=2), "--interval")


if __name__ == "__main__":
    unittest.main()
