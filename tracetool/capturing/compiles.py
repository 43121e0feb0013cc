"""Notes what is compiled and tuned just in time while a program is captured.

Triton tells of every compilation request that its memory could not serve, through `triton.knobs.compilation.listener`
(Triton 3.3 and newer), those that the disk cache served among them. What torch.compile compiled is read from its own
metrics afterwards; these do not say on which thread, so they are put on the main thread, where it is called. Kernels
that Inductor compiles in processes of its own are within torch.compile's time and not told one by one.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class HostEvent:
    """Something that happened on a thread of this process.

    Attributes:
        category: `compile`, `autotune`, or a range's `user_annotation`.
        name: Of the kernel or function.
        start_ns: Unix time.
        duration_ns: How long it took.
        thread: The operating system's id of the thread.
        arguments: What else is known, as JSON has it.
    """

    category: str
    name: str
    start_ns: int
    duration_ns: int
    thread: int
    arguments: dict[str, Any] = field(default_factory=dict)

    def as_chrome(self, base_ns: int) -> str:
        """The event's JSON in a trace whose times are microseconds after `base_ns`, all three decimals kept."""
        words = {"ph": "X", "cat": self.category, "name": self.name, "pid": os.getpid(), "tid": self.thread}
        times = f'"ts": {_microseconds(self.start_ns - base_ns)}, "dur": {_microseconds(self.duration_ns)}'
        return f"{json.dumps(words)[:-1]}, {times}, {json.dumps({'args': self.arguments})[1:]}"


def _microseconds(ns: int) -> str:
    sign = "-" if ns < 0 else ""
    return f"{sign}{abs(ns) // 1000}.{abs(ns) % 1000:03d}"


class CompileRecorder:
    """Listens from `start` to `stop`; `events` are what was heard."""

    def __init__(self) -> None:
        self.events: list[HostEvent] = []
        self._listener_before: Any = None
        self._run_before: Any = None
        self._began = 0.0

    @property
    def hears_triton(self) -> bool:
        """Whether this Triton, if there is one, tells of its compilations."""
        return _triton_knobs() is not None or importlib.util.find_spec("triton") is None

    def start(self) -> None:
        """Begin to listen."""
        self._began = time.time()
        knobs = _triton_knobs()
        if knobs is None:
            return
        self._listener_before = knobs.compilation.listener
        knobs.compilation.listener = self._heard_triton
        from triton.runtime.autotuner import Autotuner

        before = self._run_before = Autotuner.run

        @functools.wraps(before)
        def run(tuner: Any, *arguments: Any, **keywords: Any) -> Any:
            known, start = len(tuner.cache), time.time_ns()
            result = before(tuner, *arguments, **keywords)
            if len(tuner.cache) > known:
                self._heard_tuning(tuner, start)
            return result

        Autotuner.run = run

    def stop(self) -> None:
        """Listen no more, and look up what torch.compile did meanwhile."""
        knobs = _triton_knobs()
        if knobs is not None and self._run_before is not None:
            from triton.runtime.autotuner import Autotuner

            knobs.compilation.listener = self._listener_before
            Autotuner.run = self._run_before
        self.events += _compiled_by_torch(self._began)

    def _heard_triton(
        self, *, src: Any, metadata: dict[str, Any], metadata_group: dict[str, str], times: Any, cache_hit: bool
    ) -> None:
        end = time.time_ns()
        stages = {"make IR": times.ir_initialization, **dict(times.lowering_stages), "store": times.store_results}
        duration = sum(stages.values()) * 1000
        arguments = {
            "backend": "triton",
            "cache_hit": cache_hit,
            "key": str(metadata.get("hash", "")),
            "signature": ", ".join(f"{name}: {kind}" for name, kind in getattr(src, "signature", {}).items()),
            "multiples_of_16": ", ".join(_multiples_of_16(src)),
            "num_warps": metadata.get("num_warps"),
            "stages_us": stages,
        }
        name = str(metadata.get("name") or getattr(src, "name", "?"))
        self.events.append(HostEvent("compile", name, end - duration, duration, threading.get_native_id(), arguments))
        if self._listener_before is not None:
            self._listener_before(
                src=src, metadata=metadata, metadata_group=metadata_group, times=times, cache_hit=cache_hit
            )

    def _heard_tuning(self, tuner: Any, start: int) -> None:
        duration = int((getattr(tuner, "bench_time", None) or 0.0) * 1e9)
        timings = getattr(tuner, "configs_timings", None) or {}
        arguments = {
            "backend": "triton",
            "tried": {str(config): timing for config, timing in timings.items()},
            "best": str(tuner.best_config),
        }
        name = str(getattr(tuner.base_fn, "__name__", "?"))
        self.events.append(HostEvent("autotune", name, start, duration, threading.get_native_id(), arguments))


def _multiples_of_16(source: Any) -> list[str]:
    """The arguments that a kernel was compiled for as multiples of 16, by which keys differ where signatures do not."""
    names = list(getattr(source, "signature", {}))
    attributes = getattr(source, "attrs", None) or {}
    return [
        names[path[0]] for path, told in attributes.items() if ["tt.divisibility", 16] in [list(one) for one in told]
    ]


def _triton_knobs() -> Any:
    """Triton's settings, where it is installed and tells of compilations."""
    if importlib.util.find_spec("triton") is None:
        return None
    try:
        from triton import knobs
    except ImportError:
        return None
    return knobs if hasattr(knobs, "compilation") and hasattr(knobs.compilation, "listener") else None


def _compiled_by_torch(since: float) -> list[HostEvent]:
    """What torch.compile compiled since a time, by its own records."""
    utils = sys.modules.get("torch._dynamo.utils")
    if utils is None:
        return []
    found = []
    for metrics in utils.get_compilation_metrics():
        start, seconds = metrics.start_time, metrics.entire_frame_compile_time_s
        if start is None or seconds is None or start < since:
            continue
        place = f"{metrics.co_filename}:{metrics.co_firstlineno}"
        arguments = {
            "backend": "torch.compile",
            "cache_hit": False,
            "key": str(metrics.compile_id),
            "function": place,
            "ops": metrics.graph_op_count,
            "failed": metrics.fail_reason,
        }
        name = f"torch.compile {metrics.co_name}"
        begun = int(start * 1e9)
        found.append(HostEvent("compile", name, begun, int(seconds * 1e9), _main_thread(), arguments))
    return found


def _main_thread() -> int:
    thread = threading.main_thread().native_id
    assert thread is not None
    return thread
