"""One layer's KV append by itself, each form beside a baseline (seed 003).

Each call writes one token of each of B sequences to shuffled blocks, at offsets of their own (`triton_full_batch`: at
one offset, which is its condition). What is timed is one of

    eager          calls one after another from Python, index tensors made beforehand: launching included
    --build-index  the same, and each call makes its index tensors from lists, as the seeds' engine does in each layer;
                   `slot_mapping` computes its slots from a block table by a kernel, once a call, where the engine does
                   so once a step
    --graph        calls replayed from a CUDA graph: the kernels alone
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from engine.bench.report import SCHEMA, versions_line
from engine.bench.results import versions
from engine.command import check_target, emit, write
from engine.errors import ConfigError

Call = Callable[[], object]
INT32, INT64 = torch.int32, torch.int64
# Blocks that nobody writes to, so that ids are not simply the rows.
_SPARE_BLOCKS = 8


@dataclass(frozen=True)
class Sizes:
    """Of a layer's cache; as many blocks as sequences, and a few."""

    heads: int
    head_dim: int
    block_size: int
    dtype: str


@dataclass(frozen=True, kw_only=True)
class KVAppendOptions:
    """What `kv-append` is asked for."""

    sizes: Sizes
    batch_sizes: tuple[int, ...]
    forms: tuple[str, ...]
    build_index: bool
    graph: bool
    json_target: str | None

    def __post_init__(self) -> None:
        """Check what can be checked without a GPU."""
        if len(self.forms) < 2:
            raise ConfigError(f"--forms {self.forms[0]} has nothing to be compared with; name another form after it")
        if self.build_index and self.graph:
            raise ConfigError("--build-index copies from pageable memory, which --graph cannot hold; keep one of them")
        if "slot_mapping" in self.forms and self.sizes.block_size & (self.sizes.block_size - 1):
            raise ConfigError(f"slot_mapping needs a power of two for --block-size, not {self.sizes.block_size}")
        check_target(self.json_target)


def make_calls(
    forms: tuple[str, ...], batch: int, sizes: Sizes, device: torch.device, *, build_index: bool
) -> tuple[dict[str, Call], tuple[Tensor, Tensor]]:
    """A call of each form, and the caches that all of them write to."""
    from kernels import kv_append as kv  # noqa: PLC0415 - needs triton

    generator = torch.Generator().manual_seed(0)
    dtype: torch.dtype = getattr(torch, sizes.dtype)
    shape = (batch + _SPARE_BLOCKS, sizes.block_size, sizes.heads, sizes.head_dim)
    caches = torch.zeros(shape, device=device, dtype=dtype), torch.zeros(shape, device=device, dtype=dtype)
    # Slices of one projection, as a model hands them over.
    fused = torch.randn(batch, 3, sizes.heads, sizes.head_dim, generator=generator).to(device, dtype)
    new = fused[:, 1], fused[:, 2]
    rows = list(range(batch))
    blocks = torch.randperm(batch + _SPARE_BLOCKS, generator=generator)[:batch].tolist()
    offsets = torch.randint(sizes.block_size, (batch,), generator=generator).tolist()

    def index(values: list[int], dtype: torch.dtype) -> Callable[[], Tensor]:
        """Gives a tensor of these, made anew or once."""
        made = torch.tensor(values, dtype=dtype, device=device)
        return (lambda: torch.tensor(values, dtype=dtype, device=device)) if build_index else (lambda: made)

    rows64, blocks64, offsets64 = (index(values, INT64) for values in (rows, blocks, offsets))
    rows32, blocks32, offsets32 = (index(values, INT32) for values in (rows, blocks, offsets))
    table = torch.tensor(blocks, dtype=INT32, device=device)[:, None]
    positions = torch.tensor(offsets, dtype=INT32, device=device)

    def compute_slots() -> Tensor:
        return kv.compute_slot_mapping(table, positions, sizes.block_size, check=False)

    # Only where they are wanted: other forms serve blocks of any size.
    slots = compute_slots() if "slot_mapping" in forms else positions
    calls: dict[str, Call] = {
        "torch_indexed": lambda: kv.kv_append_torch_indexed(*caches, *new, rows64(), blocks64(), offsets64()),
        "triton": lambda: kv.kv_append_triton(*caches, *new, rows32(), blocks32(), offsets32(), check=False),
        "triton_identity_pos": lambda: kv.kv_append_triton_identity_pos(
            *caches, *new, blocks32(), offsets32(), check=False
        ),
        "triton_full_batch": lambda: kv.kv_append_triton_full_batch(*caches, *new, blocks32(), offsets[0], check=False),
        "slot_mapping": lambda: kv.kv_append_slot_mapping(
            *caches, *new, compute_slots() if build_index else slots, check=False
        ),
    }
    return {form: calls[form] for form in forms}, caches


def line(batch: int, times: dict[str, float]) -> str:
    """A batch size's times in microseconds, as seed 003 prints them; the first is the baseline."""
    (_, baseline), *others = times.items()
    parts = [f"{form} {us:.2f}us, speedup {baseline / us:.3f}x" for form, us in others]
    return f"B={batch}: baseline {baseline:.2f}us, {', '.join(parts)}"


def run(options: KVAppendOptions) -> None:
    """Time every form at every batch size.

    Raises:
        ConfigError: There is no GPU.
    """
    if not torch.cuda.is_available():
        raise ConfigError("kv-append times a GPU, and torch finds none here")
    from kernels.bench.append import eager_time  # noqa: PLC0415 - needs triton
    from kernels.bench.timing import graph_time  # noqa: PLC0415 - needs triton

    sizes, device = options.sizes, torch.device("cuda")
    how = "in a CUDA graph" if options.graph else "eager"
    index = "index tensors made in each call" if options.build_index else "index tensors made beforehand"
    about = {
        "device": torch.cuda.get_device_name(),
        "versions": versions(),
        **asdict(sizes),
        "timed": f"{how}, {index}",
    }
    text = options.json_target != "-"
    if text:
        emit(f"{about['device']}\n{versions_line(versions())}\n")
        emit(
            f"one layer of {sizes.heads} heads of {sizes.head_dim}, blocks of {sizes.block_size}, {sizes.dtype}; "
            f"{about['timed']}; baseline: {options.forms[0]}\n"
        )
    results = []
    for batch in options.batch_sizes:
        calls, _ = make_calls(options.forms, batch, sizes, device, build_index=options.build_index)
        times = {form: graph_time([call]).us if options.graph else eager_time(call) for form, call in calls.items()}
        results.append({"batch_size": batch, "us": times})
        if text:
            emit(line(batch, times) + "\n")
    if options.json_target is not None:
        found = {"schema": SCHEMA.format("kv-append"), **about, "results": results}
        write(json.dumps(found, indent=1) + "\n", options.json_target)
