"""What a capture is asked for."""

from __future__ import annotations

from dataclasses import dataclass

from tracetool.errors import SettingError

ENDING = ".json.gz"
"""How a trace's file name ends."""

DEFAULT_WAIT, DEFAULT_WARMUP, DEFAULT_ACTIVE = 0, 2, 3


@dataclass(frozen=True, slots=True)
class Window:
    """Which steps of a program are recorded.

    Attributes:
        wait: Steps that run as they are.
        warmup: Steps that the profiler records and throws away, so that its own start is not in the trace.
        active: Steps that are kept.

    Raises:
        SettingError: a number is negative, or no step is kept.
    """

    wait: int = DEFAULT_WAIT
    warmup: int = DEFAULT_WARMUP
    active: int = DEFAULT_ACTIVE

    def __post_init__(self) -> None:
        """Check the numbers."""
        if min(self.wait, self.warmup) < 0:
            raise SettingError("--wait and --warmup must be 0 or more")
        if self.active < 1:
            raise SettingError(f"--active must be at least 1, or nothing is captured; it is {self.active}")

    @property
    def steps(self) -> int:
        """All of them."""
        return self.wait + self.warmup + self.active

    def phase(self, step: int) -> str:
        """What becomes of a step, counted from 0."""
        if step < self.wait:
            return "not recorded"
        if step < self.wait + self.warmup:
            return "warm-up"
        return "recorded" if step < self.steps else "after the window"


def window_of(wait: int | None, warmup: int | None, active: int | None) -> Window | None:
    """The window that options ask for; None where none of them is given."""
    if wait is None and warmup is None and active is None:
        return None
    return Window(
        DEFAULT_WAIT if wait is None else wait,
        DEFAULT_WARMUP if warmup is None else warmup,
        DEFAULT_ACTIVE if active is None else active,
    )


@dataclass(frozen=True, slots=True)
class CaptureOptions:
    """What the profiler records besides ranges, ops, calls and device work.

    Attributes:
        stacks: Python frames around each op.
        shapes: Shapes of ops' inputs.
        memory: Allocations and releases.
        lines: The line that calls each op, noted in one more step after the window.
        cpu: Nothing of a GPU, even where there is one.
        cold: Kernels that are compiled just in time are compiled anew, whatever caches on disk hold.
    """

    stacks: bool = False
    shapes: bool = False
    memory: bool = False
    lines: bool = False
    cpu: bool = False
    cold: bool = False
