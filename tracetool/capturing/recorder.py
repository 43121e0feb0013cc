"""Runs torch's profiler over a program, whole or by steps."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.profiler import ProfilerActivity as Activity
from torch.profiler import profile, schedule, supported_activities

from tracetool import stepping
from tracetool.capturing.alone import Alone
from tracetool.capturing.compiles import CompileRecorder, HostEvent
from tracetool.capturing.lines import LineNoter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from tracetool.capturing.alignment import Note
    from tracetool.capturing.options import CaptureOptions, Window


class Recorder:
    """Records from `start` to `finish`.

    With a window, `tracetool.step()` (or `step` itself) ends each step, and the steps of the window are recorded;
    without one everything is, and what lies between two ends of steps is marked as a profiler step. Lines are noted in
    the step after the window, which is not recorded.

    Args:
        options: What is recorded.
        window: Which steps.
        on_step: Told how many steps have ended.
        on_complete: Told when the last step that is needed has ended.
    """

    def __init__(
        self,
        options: CaptureOptions,
        window: Window | None,
        *,
        on_step: Callable[[int], None] | None = None,
        on_complete: Callable[[], None] | None = None,
    ) -> None:
        self.window = window
        self.steps = 0
        self.raw: Path | None = None
        self._compiles = CompileRecorder()
        self._on_step = on_step
        self._on_complete = on_complete
        self._ends: list[tuple[int, int]] = []
        self._noter = LineNoter() if options.lines else None
        self._folder = tempfile.TemporaryDirectory(prefix="tracetool-")
        self._cold = _cold_caches(Path(self._folder.name)) if options.cold else contextlib.nullcontext()
        self._recording = contextlib.ExitStack()
        self._listening = contextlib.ExitStack()
        activities = {Activity.CPU} if options.cpu else set(supported_activities())
        self.expects_device = bool(activities - {Activity.CPU}) and torch.cuda.is_available()
        self._profiler = profile(
            activities=sorted(activities, key=str),
            schedule=None if window is None else _schedule(window),
            on_trace_ready=self._export,
            record_shapes=options.shapes,
            profile_memory=options.memory,
            with_stack=options.stacks,
            experimental_config=_experimental(all_threads=not options.memory),
        )

    @property
    def hears_compiles(self) -> bool:
        """Whether all compilations are noted."""
        return self._compiles.hears_triton

    @property
    def steps_needed(self) -> int | None:
        """How many steps there have to be, where that is known."""
        return None if self.window is None else self.window.steps + (self._noter is not None)

    @property
    def notes(self) -> Mapping[int, Sequence[Note]] | None:
        """What was noted of lines, by thread; None where no step was noted from beginning to end."""
        return self._noter.notes if self._noter is not None and self.steps == self.steps_needed else None

    def start(self) -> None:
        """Begin.

        Raises:
            CaptureError: another profiler runs.
        """
        with contextlib.ExitStack() as begun:
            begun.enter_context(Alone(lambda one: one is self._profiler.profiler))
            begun.enter_context(self._cold)
            self._compiles.start()
            begun.callback(self._compiles.stop)
            with _without_advice():
                self._profiler.start()
            begun.callback(self._profiler.stop)
            self._recording = begun.pop_all()
        stepping.listen(self.step)
        self._listening.callback(stepping.unlisten, self.step)

    def step(self) -> None:
        """A step has ended."""
        self.steps += 1
        self._ends.append((time.time_ns(), threading.get_native_id()))
        if self.window is not None and self.steps <= self.window.steps:
            with _without_advice():
                self._profiler.step()
        if self._on_step is not None:
            self._on_step(self.steps)
        if self.steps == self.steps_needed:
            if self._on_complete is not None:
                self._on_complete()
        elif self.window is not None and self._noter is not None and self.steps == self.window.steps:
            self._recording.close()
            self._noter.start()
            self._listening.callback(self._noter.stop)

    def finish(self) -> Path | None:
        """End; what was recorded, as Kineto writes it, or None where nothing was. To be called once."""
        self._stop()
        return self.raw

    def _stop(self) -> None:
        self._listening.close()
        self._recording.close()

    def close(self) -> None:
        """Stop, if that has not happened, and delete what `finish` gave."""
        try:
            self._stop()
        finally:
            self._folder.cleanup()

    def host_events(self) -> list[HostEvent]:
        """Compilations, and the steps of a program that is recorded whole."""
        return [*self._compiles.events, *(self._marked_steps() if self.window is None else [])]

    def _marked_steps(self) -> list[HostEvent]:
        return [
            HostEvent("user_annotation", f"ProfilerStep#{number}", start, end - start, thread)
            for number, ((start, _), (end, thread)) in enumerate(zip(self._ends, self._ends[1:], strict=False), 1)
        ]

    def _export(self, profiler: profile) -> None:
        path = Path(self._folder.name) / "raw.json"
        profiler.export_chrome_trace(str(path))
        self.raw = path


@contextlib.contextmanager
def _without_advice() -> Iterator[None]:
    """Keep to itself what the profiler advises whoever wants the events of several cycles: here there is one."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Warning: Profiler clears events")
        yield


def _schedule(window: Window) -> Callable[[int], Any]:
    with warnings.catch_warnings():
        # That a window without warm-up steps skews times, which is for who asks for it to judge.
        warnings.simplefilter("ignore")
        return schedule(wait=window.wait, warmup=window.warmup, active=window.active, repeat=1)


def _experimental(*, all_threads: bool) -> Any:
    """Sync events and all threads, where this torch can record them; with all threads it records no allocations."""
    from torch._C._profiler import _ExperimentalConfig

    for settings in (
        {"enable_cuda_sync_events": True, "profile_all_threads": all_threads},
        {"enable_cuda_sync_events": True},
    ):
        try:
            return _ExperimentalConfig(**settings)  # type: ignore[arg-type] # its keywords are not declared
        except TypeError:
            continue
    return None


@contextlib.contextmanager
def _cold_caches(folder: Path) -> Iterator[None]:
    """Empty caches of compiled kernels, in a folder of their own."""
    patch = {"TRITON_CACHE_DIR": folder / "triton", "TORCHINDUCTOR_CACHE_DIR": folder / "inductor"}
    before = {name: os.environ.get(name) for name in patch}
    os.environ.update({name: str(value) for name, value in patch.items()})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
