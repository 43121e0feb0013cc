"""Fixed launch parameters beside `triton.autotune`: what the choice costs each time it is made."""

import torch

from kernels.bench.append import eager_time
from kernels.bench.tables import table
from kernels.bench.timing import graph_time, host_time
from kernels.paged_attention import decode_workspace, paged_attention_decode

LAYERS = 12


def run() -> str:
    """The table; GPT-2's heads, 64 sequences of 128 positions; microseconds."""
    batch, heads, head_dim, block_size, length = 64, 12, 64, 16, 128
    torch.manual_seed(0)
    blocks = torch.randperm(batch * length // block_size, device="cuda").view(batch, -1).int()
    caches = [
        torch.randn(blocks.numel(), block_size, heads, head_dim, device="cuda", dtype=torch.bfloat16)
        for _ in range(2 * LAYERS)
    ]
    query = torch.randn(batch, heads, head_dim, device="cuda", dtype=torch.bfloat16)
    seq_lens = torch.full((batch,), length, dtype=torch.int32, device="cuda")
    workspace = decode_workspace(batch, heads, heads, head_dim, length, "cuda")
    out = torch.empty_like(query)
    rows = []
    for launch in ("fixed", "autotune"):

        def layer(i: int, launch: str = launch) -> None:
            pair = caches[2 * i : 2 * i + 2]
            options = {"out": out, "workspace": workspace, "launch": launch, "check": False}
            paged_attention_decode(query, *pair, blocks, seq_lens, **options)

        def step(layer=layer) -> None:
            for i in range(LAYERS):
                layer(i)

        step()
        host = host_time(lambda layer=layer: layer(0))
        rows.append((launch, host.us, f"{host.spread:.1%}", eager_time(step), graph_time([step], launches=5).us))
    headers = ("launch", "host, one launch", "spread", f"step of {LAYERS} layers, eager", "step, in a graph")
    return table(headers, rows)
