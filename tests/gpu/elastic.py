#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Giving VRAM back and keeping out of others' way, on a real GPU.

usage: elastic.py BUILD OUT [STEP...]    BUILD: a folder with vramswap, verifying_load and
store_load; OUT: where the results go

Steps (all but `two`, if none is named):
  ram      32 GiB stored, shrinks to 4 GiB with the spill in RAM (/dev/shm) and back, twice, under a verifying load
  disk     the same with 8 GiB to 1 GiB and a spill in /var/lib/vramswap, beside what that disk does alone
  wipe     a store of 4 GiB ends while its segments are held: what is left in them
  within   every second chunk of 48 GiB discarded, then half of the segments emptied: moves within the GPU
  job      64 GiB stored; another process takes 60 GiB in steps of 1 GiB, 2 GiB a second
  compute  another process computes, with and without swapping as hard as the frontend can, and as the store can without
           one, in both modes of copying
  leave    mode auto, the store without a frontend (loop asks too little for turbo): how long after another process's start
           the policy leaves turbo
  two      a device over two GPUs: the bandwidth of both, and one yields under load

Needs root, /dev/fuse, loop, PyTorch for compute and leave, and RAM: 60 GiB in /dev/shm for job. Prints each result as JSON and
leaves them in OUT/elastic.json. Exit status 1 if a page was wrong, a request or an allocation of the other process failed, or a
step could not be made. --sim tries the script with the simulated GPU and a hundredth of the memory."""
import argparse
import contextlib
import itertools
import json
import mmap
import multiprocessing
import os
import random
import signal
import statistics
import subprocess
import sys
import threading
import time

from compute import COPY_BYTES

HERE = os.path.dirname(os.path.abspath(__file__))
GIB = 1 << 30
CHUNK = 2 << 20
COMPUTE_CPUS = 4  # kept for the other process: what is measured is the GPU


class Setup:
    def __init__(self, arguments):
        self.build, self.out, self.sim = arguments.build, arguments.out, arguments.sim
        self.unit = GIB // 64 if self.sim else GIB
        self.gpu = "sim" if self.sim else "cuda:0"
        self.results, self.failures, self.loads = {}, [], []
        self.environment = dict(os.environ, VRAMSWAP_RUNTIME_DIR=os.path.join(self.out, "run"))
        if self.sim:
            self.environment["VRAMSWAP_SIM"] = "total=5G,gpus=2"

    def size(self, units):
        return f"{units * self.unit >> 20}M"

    def vramswap(self, *arguments, check=True):
        command = [os.path.join(self.build, "vramswap"), *arguments]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        if done.returncode != 0 and check:
            raise RuntimeError(f"{' '.join(command)}: status {done.returncode}: {done.stderr or done.stdout}")
        return done.stdout

    def status(self):
        return json.loads(self.vramswap("status", "--json"))["devices"][0]

    @contextlib.contextmanager
    def device(self, units, *more, gpu=None):
        """Its path. What it ends with is looked at."""
        try:
            self.vramswap("up", "e0", "--gpu", gpu or self.gpu, "--size", self.size(units), "--no-swapon", *more)
            yield self.status()["device"]
            end = self.status()
            for wrong in ("read_errors", "writes_refused", "flush_errors", "move_errors"):
                if end[wrong] != 0:
                    self.fail(f"{wrong}: {end[wrong]}")
            if end["problem"]:
                self.fail(end["problem"])
        finally:
            for load in self.loads:
                load.kill()
                load.wait()
            self.loads.clear()
            self.vramswap("down", "e0", check=False)

    def resize(self, units):
        """GB/s of VRAM that came or went."""
        before, begin = self.status()["vram_bytes"], time.monotonic()
        self.vramswap("resize", "e0", units if isinstance(units, str) else self.size(units))
        seconds = time.monotonic() - begin
        return round(abs(self.status()["vram_bytes"] - before) / seconds / 1e9, 2)

    def fail(self, why):
        print(f"FAILED: {why}", flush=True)
        self.failures.append(why)

    def note(self, step, **figures):
        self.results.setdefault(step, {}).update(figures)
        print(step, json.dumps(figures), flush=True)
        with open(os.path.join(self.out, "elastic.json"), "w") as file:
            json.dump(self.results, file, indent=1)


class Load:
    """verifying_load, from when the device is full."""

    def __init__(self, setup, device, *more):
        self.setup = setup
        begin = time.monotonic()
        self.process = subprocess.Popen([os.path.join(setup.build, "verifying_load"), device, *more],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        setup.loads.append(self.process)
        if self.process.stdout.readline() != "full\n":
            raise RuntimeError("the load cannot fill the device")
        self.fill_s = round(time.monotonic() - begin, 1)

    def pause(self):
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self):
        self.process.send_signal(signal.SIGCONT)

    def end(self):
        found = json.loads(self.process.communicate()[0])
        if found["wrong"] or found["errors"]:
            self.setup.fail(f"the load found {found}")
        return found


def shrink_to_ram(setup):
    with setup.device(32, "--spill", f"/dev/shm:{setup.size(32)}") as device:
        load = Load(setup, device)
        out, back = [], []
        for _ in range(2):
            out.append(setup.resize(4))
            back.append(setup.resize("100%"))
        setup.note("ram", fill_s=load.fill_s, out_gbps=out, back_gbps=back, load=load.end())


def disk_alone(folder, bytes_each, threads):
    """GB/s of direct writes of 2 MiB into files that have their room."""
    data = mmap.mmap(-1, CHUNK)
    data.write(random.randbytes(CHUNK))
    files = []
    for n in range(threads):
        path = os.path.join(folder, f"disk-alone-{n}")
        files.append(os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o600))
        os.unlink(path)
        os.posix_fallocate(files[-1], 0, bytes_each)

    def write(file):
        for at in range(0, bytes_each, CHUNK):
            os.pwrite(file, data, at)

    begin = time.monotonic()
    workers = [threading.Thread(target=write, args=(file,)) for file in files]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    seconds = time.monotonic() - begin
    for file in files:
        os.close(file)
    return round(threads * bytes_each / seconds / 1e9, 2)


def shrink_to_disk(setup):
    folder = "/var/lib/vramswap"
    os.makedirs(folder, mode=0o700, exist_ok=True)
    with setup.device(8, "--spill", f"{folder}:{setup.size(8)}") as device:
        load = Load(setup, device)
        alone, out = [], []
        for _ in range(3):
            load.pause()  # its reads would be in the way of the one and not of the other
            for threads in (1, 4):
                alone.append(disk_alone(folder, setup.unit * 2 // threads, threads))
            out.append(setup.resize(1))
            load.go_on()
            setup.resize("100%")
        found = load.end()
        setup.note("disk", alone_gbps=alone, out_gbps=out, of_best=round(statistics.median(out) / max(alone), 2),
                   wrong=found["wrong"], errors=found["errors"])


def wipe(setup):
    done = subprocess.run([os.path.join(setup.build, "store_load"), setup.gpu, "wipe"], env=setup.environment,
                          capture_output=True, text=True)
    found = json.loads(done.stdout or "null")
    if done.returncode != 0 or found["not_zero_before"] == 0 or found["not_zero_after"] != 0:
        setup.fail(f"wipe: {found} {done.stderr}")
    setup.note("wipe", found=found)


def move_within(setup):
    with setup.device(48, "--spill", "none") as device:
        load = Load(setup, device, "holes")
        before = setup.status()
        setup.resize(26)
        after = setup.status()
        moved = after["compacted_bytes"] - before["compacted_bytes"]
        took_ns = after["compacting_ns"] - before["compacting_ns"]
        setup.note("within", moved_bytes=moved, gbps=round(moved / max(took_ns, 1), 1), load=load.end())


def job_beside(setup):
    with setup.device(64, "--spill", f"/dev/shm:{setup.size(60)}") as device:
        load = Load(setup, device)
        held = setup.status()["vram_bytes"]
        job = subprocess.run([sys.executable, os.path.join(HERE, "step_job.py"), "60", "2"], capture_output=True, text=True)
        if job.returncode != 0:
            setup.fail(f"the job: {job.stdout} {job.stderr}")
        setup.note("job", held_bytes=held, job=json.loads(job.stdout or "null"),
                   vram_bytes_after=setup.status()["vram_bytes"], load=load.end())


def swap_on(device, reading, seed):
    """As hard as the frontend can: 4 KiB reads all over the device, or writes of 256 KiB from its begin to its end."""
    os.sched_setaffinity(0, range(COMPUTE_CPUS, os.cpu_count()) if os.cpu_count() > COMPUTE_CPUS else {0})
    piece = 4096 if reading else 256 << 10
    file = os.open(device, os.O_RDWR | os.O_DIRECT)
    count = os.lseek(file, 0, os.SEEK_END) // piece
    memory = mmap.mmap(-1, piece)
    memory.write(random.Random(seed).randbytes(piece))
    dice = random.Random(seed)
    for n in itertools.count(seed * 997):
        if reading:
            os.preadv(file, [memory], dice.randrange(count) * piece)
        else:
            os.pwrite(file, memory, n % count * piece)


class Swapping:
    def __init__(self, device, readers=8, writers=4):
        self.workers = [multiprocessing.Process(target=swap_on, args=(device, n < readers, n), daemon=True)
                        for n in range(readers + writers)]
        for worker in self.workers:
            worker.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for worker in self.workers:
            worker.kill()
            worker.join()

    def stop(self):
        for worker in self.workers:
            os.kill(worker.pid, signal.SIGSTOP)

    def go_on(self):
        for worker in self.workers:
            os.kill(worker.pid, signal.SIGCONT)


class Compute:
    def __init__(self, gpu=0):
        cpus = set(range(min(COMPUTE_CPUS, os.cpu_count())))
        environment = dict(os.environ, CUDA_DEVICE_ORDER="PCI_BUS_ID", CUDA_VISIBLE_DEVICES=str(gpu))
        self.process = subprocess.Popen([sys.executable, os.path.join(HERE, "compute.py")], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True, env=environment,
                                        preexec_fn=lambda: os.sched_setaffinity(0, cpus))
        self.started = json.loads(self.process.stdout.readline())

    def begin(self, work, seconds):
        self.process.stdin.write(f"{work} {seconds}\n")
        self.process.stdin.flush()

    def result(self):
        return json.loads(self.process.stdout.readline())["per_second"]

    def rate(self, work, seconds):
        self.begin(work, seconds)
        return self.result()

    def end(self):
        self.process.stdin.close()
        self.process.wait()


WORKS = ("memory", "matmul", "decode")


def slowed(compute, stop, go_on, rounds=5, seconds=1.0):
    """By how many per cent each work is, with the load and without it in turns."""
    found = {}
    for work in WORKS:
        each = []
        for _ in range(rounds):
            stop()
            alone = compute.rate(work, seconds)
            go_on()
            each.append(round((alone / compute.rate(work, seconds) - 1) * 100, 2))
        found[work] = {"slower_percent": statistics.median(each), "each": each}
    return found


def compute_beside(setup):
    compute = Compute()
    for work in WORKS:
        compute.rate(work, 0.5)
    if os.cpu_count() > COMPUTE_CPUS:
        os.sched_setaffinity(0, range(COMPUTE_CPUS, os.cpu_count()))  # for the device's processes, too
    for mode in ("copy", "turbo"):
        with setup.device(8, "--spill", "none", "--mode", mode) as device:
            Load(setup, device).end()
            before, begin = setup.status(), time.monotonic()
            with Swapping(device) as swapping:
                found = slowed(compute, swapping.stop, swapping.go_on)
            after, swapped_s = setup.status(), (time.monotonic() - begin) / 2
            gbps = {what: round((after[what] - before[what]) * 4096 / swapped_s / 1e9, 2)
                    for what in ("pages_read", "pages_written")}
            setup.note(f"compute.frontend.{mode}", gbps=gbps, **found)
        load = StoreLoad(setup, mode, seconds=3 * 5 * 2 + 15)
        load.until("full")
        found = slowed(compute, lambda: load.process.send_signal(signal.SIGSTOP),
                       lambda: load.process.send_signal(signal.SIGCONT))
        setup.note(f"compute.store.{mode}", **found)
        load.process.kill()
        load.process.wait()
        alone = StoreLoad(setup, mode, seconds=2)
        alone.until("full")
        setup.note(f"compute.store.{mode}", alone=json.loads(alone.process.communicate()[0].splitlines()[-1]))
    compute.end()


class StoreLoad:
    """The store without a frontend: more than loop can ask for."""

    def __init__(self, setup, mode, seconds, *more, gpus=None):
        command = [os.path.join(setup.build, "store_load"), gpus or setup.gpu, mode, str(seconds), *more]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=setup.environment)

    def until(self, word):
        """The line that begins with it."""
        for line in self.process.stdout:
            if line.startswith(word):
                return line
        raise RuntimeError(f"store_load has ended before '{word}'")


def leave_turbo(setup):
    rounds = []
    for _ in range(3):
        load = StoreLoad(setup, "auto", seconds=40)
        load.until("turbo at")
        compute = Compute()
        compute.rate("memory", 0.5)
        left = float(load.until("copy at").split()[-1])
        rounds.append({"ms_after_context": round((left - compute.started["context_s"]) * 1e3),
                       "ms_after_first_kernel": round((left - compute.started["first_kernel_s"]) * 1e3)})
        compute.end()
        load.process.kill()
        load.process.wait()
    setup.note("leave", rounds=rounds)


def sequential_gbps(device, writing, seconds=4, workers=8):
    """Direct transfers of 1 MiB."""
    piece = 1 << 20

    def work(number, count):
        file = os.open(device, os.O_RDWR | os.O_DIRECT)
        pieces = os.lseek(file, 0, os.SEEK_END) // piece
        memory = mmap.mmap(-1, piece)
        memory.write(random.Random(number).randbytes(piece))
        end = time.monotonic() + seconds
        at = number * pieces // workers
        while time.monotonic() < end:
            (os.pwrite if writing else lambda f, m, o: os.preadv(f, [m], o))(file, memory, at % pieces * piece)
            at += 1
            with count.get_lock():
                count.value += 1

    count = multiprocessing.Value("L", 0)
    processes = [multiprocessing.Process(target=work, args=(n, count)) for n in range(workers)]
    begin = time.monotonic()
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return round(count.value * piece / (time.monotonic() - begin) / 1e9, 2)


def bare_copies(gpus, seconds=3):
    """GB/s of bare copies from each of the GPUs into pinned memory, all at once."""
    others = [Compute(gpu) for gpu in gpus]
    for round_s in (0.2, seconds):  # the first round makes what they copy
        for other in others:
            other.begin("copies", round_s)
        rates = [other.result() for other in others]
    for other in others:
        other.end()
    return [round(rate * COPY_BYTES / 1e9, 2) for rate in rates]


def two_gpus(setup):
    first, second = ("sim:0", "sim:1") if setup.sim else ("cuda:0", "cuda:1")
    both = f"{first},{second}"
    for _ in range(1 if setup.sim else 3):
        if not setup.sim:
            setup.note("two", bare_gbps={gpus: bare_copies(numbers)
                                         for gpus, numbers in ((first, [0]), (second, [1]), (both, [0, 1]))})
        for threads in (16, max(os.cpu_count() - 4, 1)):
            for gpus in (first, second, both):
                large = StoreLoad(setup, "copy", 2, str(threads), gpus=gpus).process.communicate()[0]
                setup.note("two", **{f"{gpus} store, {threads} threads": json.loads(large.splitlines()[-1])})
    for gpu in (first, both):
        with setup.device(16, "--spill", "none", gpu=gpu) as device:
            writing, reading = sequential_gbps(device, True), sequential_gbps(device, False)
            setup.note("two", **{gpu: {"write_gbps": writing, "read_gbps": reading,
                                       "vram": {g["selector"]: g["vram_bytes"] for g in setup.status()["gpus"]}}})
    with setup.device(32, "--spill", f"/dev/shm:{setup.size(8)}", gpu=both) as device:
        load = Load(setup, device)
        begin = time.monotonic()
        setup.vramswap("yield", "e0", "--gpu", second)
        took_s = time.monotonic() - begin
        after = setup.status()
        vram = {gpu["selector"]: gpu["vram_bytes"] for gpu in after["gpus"]}
        if vram[second] != 0:
            setup.fail(f"the second GPU has not yielded: {vram}")
        setup.vramswap("yield", "e0", "--end")
        setup.note("two", yield_s=round(took_s, 2), vram=vram, spilled_bytes=after["spilled_bytes"],
                   moved_out_bytes=after["moved_out_bytes"], load=load.end())


STEPS = {"ram": shrink_to_ram, "disk": shrink_to_disk, "wipe": wipe, "within": move_within, "job": job_beside,
         "compute": compute_beside, "leave": leave_turbo, "two": two_gpus}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sim", action="store_true")
    parser.add_argument("build")
    parser.add_argument("out")
    parser.add_argument("steps", nargs="*", metavar="STEP")
    arguments = parser.parse_args()
    multiprocessing.set_start_method("fork")  # what is run need not be named by a module
    os.makedirs(arguments.out, exist_ok=True)
    setup = Setup(arguments)
    for step in arguments.steps or [name for name in STEPS if name != "two"]:
        begin = time.monotonic()
        try:
            STEPS[step](setup)
        except Exception as error:  # the other steps are worth their time all the same
            setup.fail(f"{step}: {error!r}")
        print(f"{step}: {time.monotonic() - begin:.0f} s", flush=True)
    return 1 if setup.failures else 0


if __name__ == "__main__":
    sys.exit(main())
