"""What a comparison asks of its processes, and what they answer; files between them, so nothing of torch is needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from pathlib import Path


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One process's work.

    Attributes:
        target: As `tracetool capture` takes it; so are `arguments`, `module` and `settings`.
        warm_steps: Steps before any is timed.
        samples: Times to take, each of `steps_per_sample` steps.
        trace: Where a trace goes; None captures nothing.
        window: Fields of a `Window`; empty where none is asked for.
        options: Fields of `CaptureOptions`.
        earlier_samples: What other processes measured, to be kept with the trace.
    """

    target: str
    arguments: list[str]
    module: bool
    settings: dict[str, str]
    warm_steps: int
    samples: int
    steps_per_sample: int
    trace: str | None = None
    window: dict[str, int] = {}
    options: dict[str, bool] = {}
    earlier_samples: list[list[int]] = []


class Answer(msgspec.Struct, frozen=True):
    """What came of a job.

    Attributes:
        samples: Nanoseconds a step, each the mean of some steps.
        result: What the workload's steps came to, if it says so.
        eager: Settings of its twin without CUDA graphs, if it has one and is none.
    """

    samples: list[int]
    result: Any = None
    eager: dict[str, str] | None = None


def said_by(job: Path) -> Path:
    """The file beside a job that has what it says on standard error."""
    return job.with_suffix(".err")
