"""The names of the engine's ranges in a profile, and how code is put into one.

    schedule
    copy_blocks                 only in steps that write to a shared block
    prefill
        build_block_tables, h2d_inputs, model_forward, sample, postprocess
    decode_step
        build_block_tables, h2d_block_tables, h2d_inputs, dense_mask, model_forward, kv_append, sample, postprocess

`model_forward` holds `attention` (`kv_append` in it, where keys and values are written layer by layer) and `mlp`
once a layer. Appends that the seeds make after the forward pass are `decode_step/kv_append`.
"""

from contextlib import AbstractContextManager

import torch.autograd.profiler as autograd_profiler
from torch.profiler import record_function

SCHEDULE = "schedule"
COPY_BLOCKS = "copy_blocks"
PREFILL = "prefill"
DECODE_STEP = "decode_step"
BUILD_BLOCK_TABLES = "build_block_tables"
H2D_BLOCK_TABLES = "h2d_block_tables"
H2D_INPUTS = "h2d_inputs"
DENSE_MASK = "dense_mask"
MODEL_FORWARD = "model_forward"
ATTENTION = "attention"
MLP = "mlp"
KV_APPEND = "kv_append"
SAMPLE = "sample"
POSTPROCESS = "postprocess"


class _Nothing:
    """Neither enters nor leaves anything."""

    __slots__ = ()

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


_NOTHING = _Nothing()


def annotate(name: str) -> AbstractContextManager[object]:
    """A `record_function` range while a profiler runs, else nothing.

    A bare `record_function` costs microseconds even when nobody listens, more than the small launches around it;
    looking first costs a fiftieth of that (`tests/benchmarks/bench_ranges.py` measures both). The flag that is
    looked at is the process's, so ranges of an engine in a thread of its own are there as well.
    """
    return record_function(name) if autograd_profiler._is_profiler_enabled else _NOTHING  # noqa: SLF001
