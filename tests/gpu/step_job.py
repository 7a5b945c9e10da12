#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""step_job.py GIB RATE: a job that takes GIB of the GPU's memory in steps of 1 GiB, RATE GiB a second, as a training job does
that grows, and touches all of it. Prints a JSON object: steps, failed, the least that was free just before a step. Exit status 1
if a step found too little. Talks to libcuda.so.1 alone (function names and types as in cuda.h of CUDA 11)."""
import ctypes
import json
import sys
import time

GIB = 1 << 30


class Cuda:
    def __init__(self):
        self.library = ctypes.CDLL("libcuda.so.1")
        self.call("cuInit", 0)
        context = ctypes.c_void_p()
        self.call("cuCtxCreate_v2", ctypes.byref(context), 0, 0)

    def call(self, name, *arguments):
        status = getattr(self.library, name)(*arguments)
        if status != 0:
            raise MemoryError(f"{name} failed with {status}")

    def free(self):
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self.call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value

    def allocate(self, size):
        address = ctypes.c_uint64()
        self.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size))
        self.call("cuMemsetD8_v2", address, ctypes.c_ubyte(1), ctypes.c_size_t(size))


def main():
    steps, rate = int(sys.argv[1]), float(sys.argv[2])
    cuda = Cuda()
    failed, least = 0, None
    begin = time.monotonic()
    for step in range(steps):
        time.sleep(max(0.0, begin + step / rate - time.monotonic()))  # the pace is what is asked for
        free = cuda.free()
        least = free if least is None else min(least, free)
        try:
            cuda.allocate(GIB)
        except MemoryError as error:
            print(f"step {step}: {error}, {free >> 20} MiB were free", file=sys.stderr)
            failed += 1
    print(json.dumps({"steps": steps, "failed": failed, "least_free_bytes": least,
                      "seconds": round(time.monotonic() - begin, 2)}))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
