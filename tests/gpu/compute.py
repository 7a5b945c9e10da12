#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""compute.py: somebody else's work on the GPU, by PyTorch. Reads lines "WORK SECONDS" and answers each with a JSON object:
iterations a second. WORK: memory (a memory-bound kernel, back to back), matmul (4096 x 4096 in bf16), decode (a transformer of
12 layers with 1024 tokens of context, one token after the other, as a CUDA graph), copies (256 MiB into pinned memory). Its
first line is a JSON object with monotonic times in seconds: before it had a context, and when its first kernel had run."""
import json
import sys
import time

COPY_BYTES = 256 << 20


def main():
    import torch
    import torch.nn.functional as functional

    before = time.monotonic()
    torch.zeros(1, device="cuda").add_(1)
    torch.cuda.synchronize()
    print(json.dumps({"context_s": before, "first_kernel_s": time.monotonic()}), flush=True)
    torch.manual_seed(1)

    def memory():
        numbers = torch.zeros(1 << 28, device="cuda")
        while True:
            numbers.add_(1)
            yield

    def matmul():
        a, b = (torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        while True:
            torch.matmul(a, b)
            yield

    def decode(width=1024, layers=12, heads=16, batch=4, words=8192, length=1024):
        def weights(*shape):
            return torch.randn(*shape, device="cuda", dtype=torch.bfloat16) * 0.02

        words_of = weights(words, width)
        model = [(weights(3 * width, width), weights(width, width), weights(4 * width, width), weights(width, 4 * width))
                 for _ in range(layers)]
        cache = weights(layers, 2, batch, heads, length, width // heads)
        token = torch.zeros(batch, dtype=torch.long, device="cuda")

        def step():
            x = words_of[token]
            for n, (qkv, out, up, down) in enumerate(model):
                parts = functional.linear(functional.layer_norm(x, (width,)), qkv).view(batch, 3, heads, 1, -1)
                cache[n, 0, :, :, -1] = parts[:, 1, :, 0]
                cache[n, 1, :, :, -1] = parts[:, 2, :, 0]
                seen = functional.scaled_dot_product_attention(parts[:, 0], cache[n, 0], cache[n, 1])
                x = x + functional.linear(seen.reshape(batch, width), out)
                x = x + functional.linear(functional.gelu(functional.linear(functional.layer_norm(x, (width,)), up)), down)
            token.copy_((x @ words_of.T).argmax(-1))

        with torch.inference_mode():
            step()
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                step()
            while True:
                graph.replay()
                yield

    def copies():
        there = torch.zeros(COPY_BYTES, dtype=torch.uint8, device="cuda")
        here = torch.empty(COPY_BYTES, dtype=torch.uint8, pin_memory=True)
        while True:
            here.copy_(there, non_blocking=True)
            yield

    works = {"copies": (copies(), 4), "memory": (memory(), 20), "matmul": (matmul(), 50), "decode": (decode(), 50)}
    for line in sys.stdin:
        name, seconds = line.split()
        work, at_once = works[name]
        begin = now = time.monotonic()
        done = 0
        while now < begin + float(seconds):
            for _ in range(at_once):
                next(work)
            torch.cuda.synchronize()
            done += at_once
            now = time.monotonic()
        print(json.dumps({"per_second": done / (now - begin)}), flush=True)


if __name__ == "__main__":
    main()
