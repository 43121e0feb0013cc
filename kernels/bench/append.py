"""KV append in each form, GPT-2's shape: what a layer pays, host work and index tensors included."""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from kernels import kv_append as kv
from kernels.bench.tables import table
from kernels.bench.timing import graph_time
from kernels.paged_attention import paged_attention_decode
from kernels.rotary import rotary_kv_append

HEADS, HEAD_DIM, BLOCK_SIZE = 12, 64, 64
# Seed 003's table, measured on another GPU: torch indexed, Triton.
SEED = {
    128: (19.02, 19.01),
    256: (19.61, 19.10),
    512: (20.08, 18.74),
    1024: (29.39, 18.69),
    2048: (50.91, 18.70),
}
INT32, INT64 = torch.int32, torch.int64


def eager_time(call: Callable[[], object], *, calls: int = 100, repeats: int = 7) -> float:
    """Microseconds a call from start to finish, one after another, the GPU's work included."""
    times = []
    for _ in range(repeats + 1):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        torch.cuda.synchronize()
        times.append((time.perf_counter() - start) * 1e6 / calls)
    return statistics.median(times[1:])


def _forms(batch: int) -> dict[str, tuple[Callable[[], object], Callable[[], object]]]:
    """Each form as an engine calls it, from Python lists, and as a graph can hold it, from tensors."""
    torch.manual_seed(0)
    shape = (batch + 8, BLOCK_SIZE, HEADS, HEAD_DIM)
    caches = [torch.zeros(shape, device="cuda", dtype=torch.bfloat16) for _ in range(2)]
    fused = torch.randn(batch, 3, HEADS, HEAD_DIM, device="cuda", dtype=torch.bfloat16)
    query, new = fused[:, 0], (fused[:, 1], fused[:, 2])
    rows, blocks = list(range(batch)), torch.randperm(batch).tolist()
    offsets = torch.randint(BLOCK_SIZE, (batch,)).tolist()

    def index(values: list[int], dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype, device="cuda")

    def indices(dtype: torch.dtype) -> list[Tensor]:
        return [index(values, dtype) for values in (rows, blocks, offsets)]

    r, b, o = indices(INT64)
    r32, b32, o32 = (t.int() for t in (r, b, o))
    slots = b * BLOCK_SIZE + o
    angles = torch.rand(1024, HEAD_DIM // 2, device="cuda") * 6
    cos_sin = torch.cat([angles.cos(), angles.sin()], 1)
    return {
        "torch_indexed": (
            lambda: kv.kv_append_torch_indexed(*caches, *new, *indices(INT64)),
            lambda: kv.kv_append_torch_indexed(*caches, *new, r, b, o),
        ),
        "triton": (
            lambda: kv.kv_append_triton(*caches, *new, *indices(INT32), check=False),
            lambda: kv.kv_append_triton(*caches, *new, r32, b32, o32, check=False),
        ),
        "triton_identity_pos": (
            lambda: kv.kv_append_triton_identity_pos(
                *caches, *new, *(index(v, INT32) for v in (blocks, offsets)), check=False
            ),
            lambda: kv.kv_append_triton_identity_pos(*caches, *new, b32, o32, check=False),
        ),
        "triton_full_batch": (
            lambda: kv.kv_append_triton_full_batch(*caches, *new, index(blocks, INT32), 5, check=False),
            lambda: kv.kv_append_triton_full_batch(*caches, *new, b32, 5, check=False),
        ),
        "slot_mapping": (
            lambda: kv.kv_append_slot_mapping(*caches, *new, slots, check=False),
            lambda: kv.kv_append_slot_mapping(*caches, *new, slots, check=False),
        ),
        "fused with rotary": (
            lambda: rotary_kv_append(query, *new, o, cos_sin, *caches, slots, check=False),
            lambda: rotary_kv_append(query, *new, o, cos_sin, *caches, slots, check=False),
        ),
    }


def _inside_attention(batch: int) -> float:
    """What it adds to decode attention over 128 positions to append the new token itself, in a graph."""
    width = 2
    shape = (batch * width, BLOCK_SIZE, HEADS, HEAD_DIM)
    caches = [torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(2)]
    query, key, value = torch.randn(3, batch, HEADS, HEAD_DIM, device="cuda", dtype=torch.bfloat16)
    table = torch.randperm(batch * width, device="cuda").view(batch, width).int()
    seq_lens = torch.full((batch,), width * BLOCK_SIZE, device="cuda", dtype=INT32)
    arguments = (query, *caches, table, seq_lens)
    times = [
        graph_time([lambda new=new: paged_attention_decode(*arguments, **new, check=False)]).us
        for new in ({}, {"key": key, "value": value})
    ]
    return times[1] - times[0]


def run() -> str:
    """The table; times in microseconds a layer."""
    rows = []
    for batch, seed in SEED.items():
        forms = _forms(batch)
        eager = [eager_time(call) for call, _ in forms.values()]
        graph = [graph_time([call]).us for _, call in forms.values()]
        rows.append((f"{batch} eager", *eager, None, *seed))
        rows.append((f"{batch} in a graph", *graph, _inside_attention(batch), None, None))
    headers = ("batch", *_forms(1), "inside attention, added", "seed: torch indexed", "seed: triton")
    return table(headers, rows)
