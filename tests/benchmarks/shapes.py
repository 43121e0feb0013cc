"""Traces that are large in one way each: many events, ranges, steps, threads or names, deep nesting, Python frames."""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_DEEP = 500
_HEAD = b'{\n  "schemaVersion": 1,\n  "deviceProperties": [{"id": 0, "name": "Toy"}],\n  "traceEvents": ['
_EVENT = (
    b'\n  {\n    "ph": "X", "cat": "%s", "name": "%s", "pid": %d, "tid": %d,\n'
    b'    "ts": %d.%03d, "dur": %d.%03d,\n    "args": {\n      %s\n    }\n  }'
)
_START = 4_000_000_000_000_000


def event(category: bytes, name: bytes, thread: int, start: int, length: int, args: bytes = b"", pid: int = 1) -> bytes:
    """One event as Kineto writes it; times in ns."""
    start += _START + start // 1000 % 7  # a clock that is as fine as it looks
    return _EVENT % (category, name, pid, thread, *divmod(start, 1000), *divmod(length, 1000), args)


def launches(number: int, thread: int, start: int, name: bytes = b"aten::mm") -> Iterator[bytes]:
    """An op that launches a kernel, with that kernel: three events within 1000 ns."""
    ids = b'"External id": %d, "correlation": %d' % (number, number)
    yield event(b"cpu_op", name, thread, start, 900, b'"External id": %d' % number)
    yield event(b"cuda_runtime", b"cudaLaunchKernel", thread, start + 100, 300, ids)
    yield event(b"kernel", b"gemm", 7, start + 500, 400, ids, pid=0)


def _events(size: int) -> Iterator[bytes]:
    yield event(b"user_annotation", b"forward", 1, 0, size * 1000)
    for number in range(size // 3):
        yield from launches(number, 1, 3000 * number + 10)


def _ranges(size: int) -> Iterator[bytes]:
    for number in range(size // 2):
        yield event(b"user_annotation", b"range %d" % (number % 20), 1, 2000 * number, 1900)
        yield event(b"user_annotation", b"inner", 1, 2000 * number + 100, 1000)


def _steps(size: int) -> Iterator[bytes]:
    for number in range(size // 4):
        yield event(b"user_annotation", b"ProfilerStep#%d" % number, 1, 4000 * number, 3900)
        yield from launches(number, 1, 4000 * number + 10)


def _threads(size: int) -> Iterator[bytes]:
    for number in range(size // 4):
        thread = 10 + number % (size // 80)
        yield event(b"user_annotation", b"worker", thread, 4000 * number, 3900)
        yield from launches(number, thread, 4000 * number + 10)


def _depth(size: int) -> Iterator[bytes]:
    for number in range(size // (_DEEP + 3)):
        start = 3 * _DEEP * 1000 * number
        for level in range(_DEEP):
            yield event(b"user_annotation", b"level", 1, start + level, 2 * (_DEEP * 1000 - level))
        yield from launches(number, 1, start + 2 * _DEEP)


def _names(size: int) -> Iterator[bytes]:
    for number in range(size // 3):
        yield from launches(number, 1, 3000 * number, b"op number %d of many" % number)


def _stacks(size: int) -> Iterator[bytes]:
    """A CPU-only trace with stacks: 24 frames of Python around each op."""
    for number in range(size // 25):
        start = 50_000 * number
        for level in range(24):
            args = b'"Python parent id": %d, "Python id": %d, "Ev Idx": %d' % (level, number * 24 + level, number)
            name = b"/usr/lib/python3/dist-packages/torch/nn/modules/module.py(%d): _call_impl" % (1500 + level)
            yield event(b"python_function", name, 1, start + level, 40_000 - 2 * level, args)
        yield event(b"cpu_op", b"aten::mm", 1, start + 100, 900, b'"External id": %d' % number)


SHAPES = {
    "events": _events,
    "ranges": _ranges,
    "steps": _steps,
    "threads": _threads,
    "depth": _depth,
    "names": _names,
    "stacks": _stacks,
}


def write(shape: str, target: Path, size: int) -> int:
    """Write a trace of about `size` events, gzip; returns how many."""
    count = 0
    with gzip.open(target, "wb", compresslevel=1) as out:
        out.write(_HEAD)
        for one in SHAPES[shape](size):
            out.write(b"," + one if count else one)
            count += 1
        out.write(b"\n  ]\n}\n")
    return count
