"""Seed 004: what specialising the fused inverse RoPE + FP8 kernel costs cold, and gains warm."""

import json
import os
import subprocess
import sys
import tempfile
import time

import torch
import triton

from kernels.bench.tables import table
from kernels.bench.timing import graph_time, read_bandwidth_kernel
from kernels.inverse_rope_fp8 import SPECIALIZE, inverse_rope_fp8

TOKENS = (1, 13, 16, 62, 256, 512, 1024, 2048, 4096, 8192)
HEADS, GROUPS, HEAD_DIM, ROTARY_DIM = 64, 8, 512, 64


def _inputs(num_tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
    o = torch.randn(num_tokens, HEADS, HEAD_DIM, device="cuda", dtype=torch.bfloat16)
    positions = torch.randint(4096, (num_tokens,), device="cuda")
    return o, positions, torch.randn(4096, ROTARY_DIM, device="cuda"), GROUPS


def first_calls() -> dict[str, dict[str, float]]:
    """In a fresh process: compile requests, those that the disk cache answered, and the time they take."""
    found = {}
    requests: list[bool] = []
    triton.knobs.compilation.listener = lambda *, cache_hit, **_: requests.append(cache_hit)
    # Another kernel comes first, so that the driver's own start is not counted.
    read_bandwidth_kernel[(1,)](torch.empty(1, device="cuda"), torch.ones(32, device="cuda"), BLOCK=32)
    inputs = {num_tokens: _inputs(num_tokens) for num_tokens in TOKENS}
    for specialize in SPECIALIZE:
        requests.clear()
        seconds = 0.0
        for arguments in inputs.values():
            before = len(requests)
            torch.cuda.synchronize()
            start = time.perf_counter()
            inverse_rope_fp8(*arguments, specialize=specialize)
            torch.cuda.synchronize()
            if len(requests) > before:
                seconds += time.perf_counter() - start
        compiled = len(requests) - sum(requests)
        found[specialize] = {"compiled": compiled, "from_disk": sum(requests), "ms": seconds * 1000}
    return found


def _in_fresh_process(cache: str) -> dict[str, dict[str, float]]:
    environment = {**os.environ, "TRITON_CACHE_DIR": cache}
    command = [sys.executable, "-m", "kernels.bench.fp8"]
    done = subprocess.run(command, env=environment, capture_output=True, check=True, text=True)
    return json.loads(done.stdout)


def run(bandwidth: float) -> str:
    """Two tables: first calls, and warm times in microseconds with their share of the read bandwidth."""
    with tempfile.TemporaryDirectory() as cache:
        cold, disk = _in_fresh_process(cache), _in_fresh_process(cache)
    rows = [
        (name, cold[name]["compiled"], cold[name]["ms"], disk[name]["from_disk"], disk[name]["ms"])
        for name in SPECIALIZE
    ]
    headers = (
        "specialize",
        "compiled, no cache",
        "those calls, ms",
        "loaded, disk cache",
        "those calls, ms",
    )
    first = table(headers, rows)
    rows = []
    for num_tokens in TOKENS:
        arguments = _inputs(num_tokens)
        o = arguments[0]
        values, scales = inverse_rope_fp8(*arguments)
        nbytes = o.numel() * 2 + values.numel() + scales.numel() * 4
        padded = -(-num_tokens // 4) * 4
        whole = scales.as_strided((GROUPS, scales.shape[2], padded), (scales.stride(0), padded, 1))
        buffers = (values.transpose(0, 1), whole)
        times = []
        for specialize in SPECIALIZE:
            options = {"specialize": specialize, "buffers": buffers, "check": False}
            times.append(graph_time([lambda a=arguments, o=options: inverse_rope_fp8(*a, **o)]))
        rate = [nbytes / t.us * 1e6 for t in times]
        rows.append(
            (
                num_tokens,
                *(t.us for t in times),
                times[2].us / times[0].us,
                f"{max(t.spread for t in times):.1%}",
                rate[2] / 1e12,
                rate[2] / bandwidth,
            )
        )
    headers = ("tokens", *SPECIALIZE, "complete / default", "spread", "complete, TB/s", "share of bandwidth")
    return f"{first}\n\n{table(headers, rows)}"


if __name__ == "__main__":
    json.dump(first_calls(), sys.stdout)
