"""Paged prefill attention beside torch's dense causal attention."""

import itertools

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from kernels.bench.tables import table
from kernels.bench.timing import graph_time
from kernels.prefill_attention import paged_attention_prefill

BF16 = torch.bfloat16


def _row(batch: int, length: int, num_heads: int, num_kv_heads: int, head_dim: int) -> list[object]:
    torch.manual_seed(0)
    tokens = batch * length
    query = torch.randn(tokens, num_heads, head_dim, device="cuda", dtype=BF16)
    key, value = (torch.randn(tokens, num_kv_heads, head_dim, device="cuda", dtype=BF16) for _ in range(2))
    dense = [t.view(batch, length, -1, head_dim).transpose(1, 2) for t in (query, key, value)]
    gqa = num_heads != num_kv_heads
    times = {}
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION):
        with sdpa_kernel(backend):
            call = lambda: scaled_dot_product_attention(*dense, is_causal=True, enable_gqa=gqa)  # noqa: E731
            times[backend] = graph_time([call]).us
    bounds = torch.arange(batch + 1, device="cuda", dtype=torch.int32) * length
    seq_lens = torch.full((batch,), length, device="cuda", dtype=torch.int32)
    out = torch.empty_like(query)
    ours = []
    for block_size in (16, 64):
        blocks = torch.randperm(tokens // block_size, device="cuda").view(batch, -1)
        caches = []
        for new in (key, value):
            pages = new.view(-1, block_size, num_kv_heads, head_dim)
            cache = torch.empty_like(pages)
            cache[blocks.flatten()] = pages
            caches.append(cache)
        arguments = (query, *caches, blocks.int(), bounds, seq_lens, length)
        ours.append(graph_time([lambda a=arguments: paged_attention_prefill(*a, out=out, check=False)]).us)
    flash, cudnn = times.values()
    name = f"{batch} x {length}, {num_heads}/{num_kv_heads} x {head_dim}"
    return [name, *ours, flash, cudnn, ours[0] / flash, ours[1] / flash, ours[0] / cudnn]


def run() -> str:
    """The table; times in microseconds."""
    lengths = ((1, 4096), (8, 1024), (64, 128))
    heads = ((12, 12, 64), (16, 8, 128))
    rows = [_row(*length, *head) for length, head in itertools.product(lengths, heads)]
    headers = (
        "tokens, heads",
        "ours, block 16",
        "ours, block 64",
        "SDPA flash",
        "SDPA cuDNN",
        "block 16 / flash",
        "block 64 / flash",
        "block 16 / cuDNN",
    )
    return table(headers, rows)
