"""`tracetool.capture`: a `with` block under the profiler."""

from __future__ import annotations

from pathlib import Path

from tracetool.capturing.options import CaptureOptions, window_of
from tracetool.capturing.session import Capture

__all__ = ["capture"]


def capture(
    path: str | Path,
    *,
    wait: int | None = None,
    warmup: int | None = None,
    active: int | None = None,
    stacks: bool = False,
    shapes: bool = False,
    memory: bool = False,
    lines: bool = False,
    cpu: bool = False,
    cold: bool = False,
    force: bool = False,
) -> Capture:
    """Capture what runs inside a `with` block.

        with tracetool.capture("x.json.gz"):
            train()

    Everything is recorded; where the program calls `tracetool.step()`, the trace has steps. With `wait`, `warmup` or
    `active` only those steps are, and the trace is written when the last has ended.

    Args:
        path: Where the trace goes; its name ends with `.json.gz`.
        wait: Steps that run as they are (0).
        warmup: Steps that are recorded and thrown away (2).
        active: Steps that are kept (3).
        stacks: Record Python frames.
        shapes: Record shapes of ops' inputs.
        memory: Record allocations.
        lines: Note the line that calls each op, in one more step after those that are kept.
        cpu: Record nothing of a GPU.
        cold: Compile anew what is compiled just in time.
        force: Replace a file that exists.

    Raises:
        OutputError: the file exists, or cannot be written.
        SettingError: a number of steps is wrong, or lines are asked for without any.
        CaptureError: nothing was recorded.
    """
    options = CaptureOptions(stacks=stacks, shapes=shapes, memory=memory, lines=lines, cpu=cpu, cold=cold)
    return Capture(Path(path), window_of(wait, warmup, active), force=force, options=options)
