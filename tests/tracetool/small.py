"""Hand-written traces of a few events: `Small` writes what Kineto would have written for a tiny program."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

import tracetool

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tracetool.folding import Fold
    from tracetool.ranges import RangeSource
    from tracetool.summary import TraceSummary

GPU = "Toy GPU"
_KINDS = {"HtoD": "{memory} -> Device", "DtoH": "Device -> {memory}", "DtoD": "Device -> Device"}


class Small:
    """A program on one thread, told call by call; the clock moves on with every event.

    Times are microseconds. Each call, its op and its device work take 1 us unless told otherwise.
    """

    def __init__(self, *, gpu: str | None = GPU, thread: int = 1, **metadata: Any) -> None:
        self.events: list[dict[str, Any]] = []
        self.metadata = {"schemaVersion": 1, "deviceProperties": [{"id": 0, "name": gpu}] if gpu else [], **metadata}
        self.now = 1000.0
        self.thread = thread
        self._id = 0
        self._free: dict[int, float] = {}

    @contextlib.contextmanager
    def range(self, name: str, *, idle: float = 0) -> Iterator[None]:
        """A record_function range; `idle` makes it last longer."""
        with self._slice("user_annotation", name):
            self.now += idle
            yield

    @contextlib.contextmanager
    def op(self, name: str) -> Iterator[None]:
        with self._slice("cpu_op", name):
            yield

    @contextlib.contextmanager
    def python(self, name: str) -> Iterator[None]:
        with self._slice("python_function", name):
            yield

    def step(self, number: int) -> contextlib.AbstractContextManager[None]:
        return self.range(f"ProfilerStep#{number}")

    def kernel(self, name: str = "kernel", *, op: str | None = None, us: float = 1, device_us: float = 0) -> None:
        """A launch of `us`, of a kernel of `device_us` (as long as the launch, unless told)."""
        self._call("cudaLaunchKernel", op, [("kernel", name, {})], us, device_us)

    def graph(self, *kernels: str) -> None:
        self._call("cudaGraphLaunch", None, [("kernel", name, {}) for name in kernels], 1)

    def copy(
        self,
        direction: str = "HtoD",
        memory: str = "Pageable",
        *,
        size: int = 64,
        op: str | None = None,
        us: float = 1,
        device_us: float = 0,
        stream: int = 7,
    ) -> None:
        name = f"Memcpy {direction} ({_KINDS[direction].format(memory=memory)})"
        self._call("cudaMemcpyAsync", op, [("gpu_memcpy", name, {"bytes": size})], us, device_us, stream)

    def memset(self) -> None:
        self._call("cudaMemsetAsync", None, [("gpu_memset", "Memset (Device)", {"bytes": 4})], 1)

    def sync(self, name: str = "cudaStreamSynchronize", *, us: float = 1) -> None:
        self._call(name, None, [], us)

    def call(self, name: str, *, us: float = 1) -> None:
        """A call that owns nothing."""
        self._call(name, None, [], us)

    def compile(self, name: str, *, us: float, signature: str = "", multiples: str = "", hit: bool = False) -> None:
        """A kernel compiled, as our own capture notes it."""
        told = {"cache_hit": hit, "signature": signature, "multiples_of_16": multiples}
        self._add("compile", name, 1, self.thread, self.now, us, **told)
        self.now += us

    def tune(self, name: str, *, us: float) -> None:
        """A run of an autotuner, as our own capture notes it."""
        self._add("autotune", name, 1, self.thread, self.now, us)
        self.now += us

    def orphan(self, name: str = "early") -> None:
        """Device work whose call is not in the file."""
        self._id += 1
        self._add("kernel", name, 0, 7, self.now, 1, correlation=10_000 + self._id)
        self.now += 1

    def lost_launch(self) -> None:
        """A launch call that owns no device work."""
        self._call("cudaLaunchKernel", None, [], 1)

    @contextlib.contextmanager
    def _slice(self, category: str, name: str) -> Iterator[None]:
        self._id += 1
        begin, place, number = self.now, len(self.events), self._id
        self.now += 1
        yield
        self._add(category, name, 1, self.thread, begin, self.now - begin, **{"External id": number})
        self.events.insert(place, self.events.pop())
        self.now += 1

    def _call(
        self,
        name: str,
        op: str | None,
        work: Sequence[tuple[str, str, dict[str, int]]],
        us: float,
        device_us: float = 0,
        stream: int = 7,
    ) -> None:
        with self.op(op) if op else contextlib.nullcontext():
            self._id += 1
            number = self._id
            self._add("cuda_runtime", name, 1, self.thread, self.now, us, correlation=number)
            for category, what, args in work:
                begin = max(self.now, self._free.get(stream, 0))
                self._add(category, what, 0, stream, begin, device_us or us, correlation=number, **args)
                self._free[stream] = begin + (device_us or us) if device_us else begin
            self.now += us

    def _add(self, cat: str, name: str, pid: int, tid: int, ts: float, dur: float, **args: Any) -> None:
        self.events.append(
            {"ph": "X", "cat": cat, "name": name, "pid": pid, "tid": tid, "ts": ts, "dur": dur, "args": args}
        )

    def write(self, path: Path) -> str:
        """Save as a Chrome trace; gives the path as text."""
        path.write_text(json.dumps({**self.metadata, "traceEvents": self.events}))
        return str(path)

    def summary(
        self, path: Path, *, ranges_as: Sequence[RangeSource] = (), folds: Sequence[Fold] | None = None
    ) -> TraceSummary:
        """Save, read and summarise."""
        trace = tracetool.read(self.write(path))
        return tracetool.summarize(trace, ranges_as=ranges_as, **({} if folds is None else {"folds": folds}))


def healthy() -> Small:
    """Two steps with a copy, a kernel and a sync in ranges, and nothing to complain of."""
    trace = Small()
    for number in range(2):
        with trace.step(number), trace.range("train"):
            with trace.range("load"):
                trace.copy(op="aten::copy_")
                trace.sync()
            with trace.range("forward"), trace.op("aten::linear"):
                trace.kernel("gemm", op="aten::addmm")
    return trace
