# SPDX-License-Identifier: MIT
"""One emulated machine (QEMU without KVM): boots, is watched, and is gone in the end whatever happens."""
import ctypes
import dataclasses
import os
import pathlib
import resource
import signal
import subprocess
import sys
import threading
import time

QEMU = "qemu-system-x86_64"
# What emulation is slowest at: five levels of page tables, and copies of bytes one by one (then it takes words).
CPU = "max,la57=off,erms=off,fsrm=off"
# Both processors at once on two of the host's, in the host's time; or one instruction after the other, and the guest's time
# is what they count: slower, but what it measures does not depend on what else the host does.
FAST = ("-accel", "tcg,thread=multi")
STEADY = ("-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off")
KERNEL_WORDS = ("console=ttyS0", "loglevel=5", "log_buf_len=4M", "rootfstype=ramfs", "panic=-1", "oops=panic",
                "mitigations=off", "nokaslr", "cryptomgr.notests", "random.trust_cpu=on", "no_timer_check",
                # A busy host makes the machine wait for seconds: what is called a lockup takes longer.
                "tsc=reliable", "watchdog_thresh=30", "rcupdate.rcu_cpu_stall_timeout=60")


@dataclasses.dataclass
class Outcome:
    """What a machine left: its console, its report (second serial port), and how it ended."""
    console: str
    report: str
    seconds: float
    timed_out: bool
    status: int
    cpu_s: float = 0.0  # of the host's processors

    @property
    def booted(self):
        return "VM-BOOTED" in self.report


class Machine:
    """`words` go to the kernel's command line; `report` is a file that the guest writes to by its second serial port."""

    def __init__(self, kernel, initramfs, report, memory_mib=1024, cpus=2, words=(), steady=False):
        self.report = pathlib.Path(report)
        accelerator = STEADY if steady else FAST
        self.command = [QEMU, *accelerator, "-cpu", CPU, "-smp", str(cpus), "-m", str(memory_mib),
                        "-nodefaults", "-display", "none", "-no-reboot", "-kernel", str(kernel.image),
                        "-initrd", str(initramfs), "-append", " ".join([*KERNEL_WORDS, *words])]

    def interact(self):
        """A shell in the guest on this terminal; C-a x ends the machine."""
        return subprocess.run([*self.command, "-serial", "mon:stdio", "-serial", "null"], check=False).returncode

    def run(self, limit_s, echo=False):
        """Boots and waits for the guest to switch itself off, at most limit_s seconds."""
        begin, cpu = time.monotonic(), _cpu_of_children()
        command = [*self.command, "-monitor", "none", "-serial", "stdio", "-serial", f"file:{self.report}"]
        lines, late, parent = [], threading.Event(), os.getpid()
        # pylint: disable=consider-using-with
        qemu = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                text=True, errors="replace", preexec_fn=lambda: _die_with(parent))

        def end():
            late.set()
            qemu.kill()

        timer = threading.Timer(limit_s, end)
        previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # ctest ends a late test so: unwind
        timer.start()
        try:
            for line in qemu.stdout:
                lines.append(line.replace("\r", ""))
                if echo:
                    print(lines[-1], end="", flush=True)
            qemu.wait()
        finally:
            timer.cancel()
            qemu.kill()
            qemu.wait()
            signal.signal(signal.SIGTERM, previous)
        report = self.report.read_text(encoding="utf-8", errors="replace") if self.report.exists() else ""
        return Outcome("".join(lines), report.replace("\r", ""), time.monotonic() - begin, late.is_set(), qemu.returncode,
                       _cpu_of_children() - cpu)


def _cpu_of_children():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _die_with(parent):
    """PR_SET_PDEATHSIG: even a killed test leaves no machine behind."""
    ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
