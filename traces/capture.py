"""Captures the engine's traces of this folder anew: `python traces/capture.py FOLDER`, on a machine with a GPU.

With beginnings of names after the folder only those. Each is what `tracetool capture` makes of a workload of the
engine; the settings are below, and in each trace.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tracetool.cli import main as tracetool

DECODE = ("decode", "--wait", "0", "--warmup", "2", "--active", "2")
# What is varied an axis at a time.
EAGER = {"block_tables": "resident", "sampler": "batched", "cuda_graph": "off"}
# A block of 16 ends in each step of a batch of 8.
CROSSING = {"lengths": "crossing"}
BEFORE = {"block_tables": "per_layer_pageable", "dense_mask": "on"}

# Seed 001: how block tables get to the GPU, and the dense mask. Batches of 8; `b16` fills the seed's buffer.
TABLES = {
    "tables_before": BEFORE,
    "tables_before_without_mask": {"block_tables": "per_layer_pageable"},
    "tables_after_as_written": {"block_tables": "staged_layer_major"},
    "tables_after_as_written_b16": {"block_tables": "staged_layer_major", "batch_size": "16"},
    "tables_after_as_meant": {"block_tables": "staged_pinned"},
    "tables_after_as_meant_b16": {"block_tables": "staged_pinned", "batch_size": "16"},
    "tables_shared": {"block_tables": "shared_pinned"},
    "tables_resident": {"block_tables": "resident"},
    "tables_resident_b16": {"block_tables": "resident", "batch_size": "16"},
    "tables_before_crossing": {"block_tables": "per_layer_pageable", **CROSSING},
    "tables_shared_crossing": {"block_tables": "shared_pinned", **CROSSING},
    "tables_resident_crossing": {"block_tables": "resident", **CROSSING},
    "tables_resident_crossing_b16": {"block_tables": "resident", "batch_size": "16", **CROSSING},
}
# Seeds 002 and 003: how keys and values get into the cache.
APPENDS = {
    **{
        f"append_{form}": {"kv_append": form}
        for form in ("torch_indexed", "triton", "triton_identity_pos", "triton_full_batch", "slot_mapping", "fused")
    },
    "append_triton_full_batch_ragged": {"kv_append": "triton_full_batch", "lengths": "ragged"},
    "append_triton_identity_pos_ragged": {"kv_append": "triton_identity_pos", "lengths": "ragged"},
}
# Seed 000: the launch of attention.
LAUNCHES = {"launch_fixed": {}, "launch_autotune": {"attention_launch": "autotune"}}
# A step with ranges, eager and as a CUDA graph.
TOY = Path(__file__).with_name("toy_graph.py")
# What else a step may do.
STEPS = {
    "inputs_per_tensor": {"inputs": "per_tensor"},
    "inputs_packed_pinned": {"inputs": "packed_pinned"},
    "sampler_item_loop": {"sampler": "item_loop"},
}
# Steps that are one graph, whole or of the forward pass alone; `graph_off` is their eager twin.
GRAPHS = {
    f"graph_{name}{suffix}": settings | lengths
    for name, settings in {
        "off": {"cuda_graph": "off", "block_tables": "in_graph"},
        "exact": {"cuda_graph": "exact"},
        "buckets": {"cuda_graph": "buckets"},
        "no_overlap": {"overlap": "off"},
        "sampling_outside": {"graph_sampling": "outside"},
        "forward_alone": {"block_tables": "resident"},
    }.items()
    for suffix, lengths in {"": {}, "_crossing": CROSSING}.items()
}
# Seed 004: with empty caches, 200 numbers of tokens of which none comes twice.
COLD = {f"fp8_{specialize}": {"specialize": specialize} for specialize in ("default", "num_tokens", "complete")}


def main(folder: Path, *wanted: str) -> int:
    """Capture those whose names begin so, all by default; how many failed."""
    folder.mkdir(parents=True, exist_ok=True)
    failed = 0
    # Processes first: an engine in this one takes the GPU's memory, and keeps it.
    for name, settings in _chosen(COLD, wanted):
        each = ["prefill_shapes", "--cold", "--warmup", "0", "--active", "200", *_set(settings)]
        failed += _said(name, _process([*each, *_to(folder, name)]))
    for name, form in _chosen({"toy_eager": "eager", "toy_graph": "graph"}, wanted):
        # The profiler's first step in a process is slow, so that the second is the first of the window.
        window = ["--warmup", "2", "--active", "3"]
        failed += _said(name, _process([os.path.relpath(TOY), *window, *_to(folder, name), "--", form]))
    eager = {name: EAGER | settings for name, settings in (TABLES | APPENDS | LAUNCHES | STEPS).items()}
    for name, settings in _chosen(eager | GRAPHS, wanted):
        failed += _said(name, tracetool(["capture", *DECODE, *_set(settings), *_to(folder, name)]))
    return failed


def _chosen(named: dict[str, Any], wanted: tuple[str, ...]) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in named.items() if name.startswith(wanted or ("",))]


def _set(settings: dict[str, str]) -> list[str]:
    return [word for axis, value in settings.items() for word in ("--set", f"{axis}={value}")]


def _to(folder: Path, name: str) -> list[str]:
    return ["-o", str(folder / f"{name}.json.gz"), "--force"]


def _process(arguments: list[str]) -> int:
    """Capture in a process of its own, whose memory of compiled kernels is empty too."""
    return subprocess.run([sys.executable, "-m", "tracetool", "capture", *arguments], check=False).returncode


def _said(name: str, code: int) -> bool:
    if code:
        sys.stderr.write(f"{name}: exit code {code}\n")
    return code != 0


if __name__ == "__main__":
    sys.exit(min(main(Path(sys.argv[1]), *sys.argv[2:]), 1))
