"""Paged decode attention beside FlashInfer and dense attention, on nine shapes."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from kernels.bench.tables import table
from kernels.bench.timing import Time, copies_for, graph_time
from kernels.paged_attention import decode_workspace, paged_attention_decode

BF16 = torch.bfloat16


class Shape(NamedTuple):
    """One decode step; `earlier` is FlashInfer 0.5.3's time on another H200, its better path."""

    batch: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    length: int
    block_size: int
    earlier: float

    @property
    def name(self) -> str:
        """As the tables have it."""
        heads = f"{self.num_heads}/{self.num_kv_heads}x{self.head_dim}"
        return f"B{self.batch} {heads} L{self.length} block {self.block_size}"

    @property
    def nbytes(self) -> int:
        """Keys and values, each read once."""
        return self.batch * self.length * self.num_kv_heads * self.head_dim * 4

    @property
    def context(self) -> int:
        """Positions that the models with such heads can have: GPT-2, Qwen3."""
        return 1024 if self.head_dim == 64 else 40960


SHAPES = (
    Shape(64, 12, 12, 64, 512, 16, 30.3),
    Shape(64, 12, 12, 64, 512, 64, 30.6),
    Shape(256, 12, 12, 64, 512, 16, 103.9),
    Shape(8, 12, 12, 64, 1024, 16, 12.1),
    Shape(1024, 12, 12, 64, 256, 16, 204.7),
    Shape(64, 16, 8, 128, 1024, 16, 71.4),
    Shape(256, 16, 8, 128, 1024, 16, 267.2),
    Shape(8, 16, 8, 128, 8192, 16, 71.6),
    Shape(64, 32, 8, 128, 4096, 16, 253.8),
)


def _caches(shape: Shape, *, heads_first: bool) -> list[tuple[Tensor, Tensor]]:
    """Several caches of the shape, to be used in turn; the same blocks serve the same sequences in all."""
    num_blocks = shape.batch * shape.length // shape.block_size
    inner = (shape.block_size, shape.num_kv_heads)
    if heads_first:
        inner = inner[::-1]

    def cache() -> Tensor:
        stored = torch.randn(num_blocks, *inner, shape.head_dim, device="cuda", dtype=BF16)
        return stored.transpose(1, 2) if heads_first else stored

    return [(cache(), cache()) for _ in range(copies_for(shape.nbytes))]


def time_ours(shape: Shape, caches: list[tuple[Tensor, Tensor]], query: Tensor, blocks: Tensor, context: int) -> Time:
    """Our kernel, its merging included, with a block table for `context` positions."""
    width = context // shape.block_size
    block_table = torch.zeros(shape.batch, width, dtype=torch.int32, device="cuda")
    block_table[:, : blocks.shape[1]] = blocks
    seq_lens = torch.full((shape.batch,), shape.length, dtype=torch.int32, device="cuda")
    workspace = decode_workspace(shape.batch, shape.num_heads, shape.num_kv_heads, shape.head_dim, context, "cuda")
    out = torch.empty_like(query)

    def call(k_cache: Tensor, v_cache: Tensor) -> Callable[[], object]:
        arguments = (query, k_cache, v_cache, block_table, seq_lens)
        return lambda: paged_attention_decode(*arguments, out=out, workspace=workspace, check=False)

    return graph_time([call(*cache) for cache in caches])


def time_dense(shape: Shape) -> Time:
    """Torch's attention over keys and values that lie in one piece."""
    sizes = (shape.batch, shape.num_kv_heads, shape.length, shape.head_dim)
    query = torch.randn(shape.batch, shape.num_heads, 1, shape.head_dim, device="cuda", dtype=BF16)
    gqa = shape.num_heads != shape.num_kv_heads

    def call() -> Callable[[], object]:
        key, value = (torch.randn(sizes, device="cuda", dtype=BF16) for _ in range(2))
        return lambda: scaled_dot_product_attention(query, key, value, enable_gqa=gqa)

    return graph_time([call() for _ in range(copies_for(shape.nbytes))])


def time_flashinfer(
    shape: Shape, caches: list[tuple[Tensor, Tensor]], query: Tensor, blocks: Tensor, layout: str
) -> Time | None:
    """FlashInfer's better path in this layout, or None where it is not installed."""
    try:
        import flashinfer  # noqa: PLC0415 - only this comparison needs it
    except ImportError:
        return None
    stored = [tuple(c.transpose(1, 2) if layout == "HND" else c for c in cache) for cache in caches]
    pages = torch.arange(shape.batch + 1, dtype=torch.int32, device="cuda") * blocks.shape[1]
    last = torch.full((shape.batch,), shape.block_size, dtype=torch.int32, device="cuda")
    out = torch.empty_like(query)
    times = []
    for tensor_cores in (False, True):
        wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
            torch.empty(256 * 2**20, dtype=torch.uint8, device="cuda"),
            layout,
            use_tensor_cores=tensor_cores,
        )
        sizes = (shape.num_heads, shape.num_kv_heads, shape.head_dim, shape.block_size)
        wrapper.plan(pages, blocks.flatten(), last, *sizes, q_data_type=BF16, kv_data_type=BF16)
        calls = [lambda c=cache, w=wrapper: w.run(query, c, out=out) for cache in stored]
        times.append(graph_time(calls))
    return min(times)


def _geomean(ratios: list[float]) -> float:
    return math.exp(sum(map(math.log, ratios)) / len(ratios))


def run(bandwidth: float) -> str:
    """The table; times in microseconds."""
    rows, here, earlier = [], [], []
    for shape in SHAPES:
        torch.manual_seed(0)
        num_blocks = shape.batch * shape.length // shape.block_size
        blocks = torch.randperm(num_blocks, device="cuda").view(shape.batch, -1).int()
        query = torch.randn(shape.batch, shape.num_heads, shape.head_dim, device="cuda", dtype=BF16)
        ours, theirs = {}, {}
        wide = None
        for layout in ("NHD", "HND"):
            caches = _caches(shape, heads_first=layout == "HND")
            ours[layout] = time_ours(shape, caches, query, blocks, shape.length)
            theirs[layout] = time_flashinfer(shape, caches, query, blocks, layout)
            if layout == "NHD":
                wide = time_ours(shape, caches, query, blocks, shape.context)
            del caches
        dense = time_dense(shape)
        known = [t.us for t in theirs.values() if t]
        best = min(known) if known else None
        earlier.append(ours["NHD"].us / shape.earlier)
        if best:
            here.append(ours["NHD"].us / best)
        floor = shape.nbytes / bandwidth * 1e6
        rows.append(
            (
                shape.name,
                ours["NHD"].us,
                f"{ours['NHD'].spread:.1%}",
                ours["HND"].us,
                wide.us,
                *(t.us if t else None for t in theirs.values()),
                ours["NHD"].us / best if best else None,
                shape.earlier,
                ours["NHD"].us / shape.earlier,
                dense.us,
                floor,
                floor / ours["NHD"].us,
            )
        )
    headers = (
        "shape",
        "ours",
        "spread",
        "ours HND",
        "ours, table for the whole context",
        "FlashInfer NHD",
        "FlashInfer HND",
        "ours / best",
        "FlashInfer earlier",
        "ours / earlier",
        "dense SDPA",
        "bytes",
        "share of bandwidth",
    )
    means = f"geometric mean of ours / FlashInfer's earlier run: {_geomean(earlier):.3f}"
    if here:
        means += f"; of ours / FlashInfer's best here: {_geomean(here):.3f}, worst {max(here):.3f}"
    return f"{table(headers, rows)}\n\n{means}"
