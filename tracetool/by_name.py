"""Device work and compiles by name on every side of a comparison: what is gone, new, changed."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from tracetool.attribution import EARLIER
from tracetool.events import DEVICE_WORK, Category

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracetool.differ import Side
    from tracetool.events import IntArray
    from tracetool.summary import TraceSummary


@dataclass(frozen=True, slots=True)
class Named:
    """What has one name, on every side.

    Attributes:
        name: Of a kernel, a copy, a memset or a compile.
        counts: A step of each side; where some side has no steps, in its whole trace.
        times_ns: Likewise.
    """

    name: str
    counts: tuple[Fraction, ...]
    times_ns: tuple[Fraction, ...]

    @property
    def fate(self) -> str:
        """`gone`, `new`, `changed` or `same`, by the counts of any variant."""
        before, after = self.counts[0], self.counts[1:]
        if not after or all(count == before for count in after):
            return "same"
        if not before:
            return "new"
        return "changed" if all(after) else "gone"


def device_work(sides: Sequence[Side]) -> list[Named]:
    """Kernels, copies and memsets by name, without what was queued before the window; most time first."""
    return _by_name(sides, DEVICE_WORK)


def compiles(sides: Sequence[Side]) -> list[Named]:
    """Kernels compiled just in time, by name, without those that the disk cache had; counts of whole traces."""
    return _by_name(sides, (Category.COMPILE,), by_step=False)


def stepped(sides: Sequence[Side]) -> bool:
    """Whether numbers can be given for a step."""
    return all(side.summary.step_count for side in sides)


def _by_name(sides: Sequence[Side], categories: tuple[Category, ...], *, by_step: bool = True) -> list[Named]:
    per_step = by_step and stepped(sides)
    tables = [_counted(side.summary, categories, in_steps=per_step) for side in sides]
    divisors = [side.summary.step_count if per_step else 1 for side in sides]
    names = dict.fromkeys(name for table in tables for name in table)
    found = [
        Named(
            name,
            tuple(Fraction(table.get(name, (0, 0))[0], by) for table, by in zip(tables, divisors, strict=True)),
            tuple(Fraction(table.get(name, (0, 0))[1], by) for table, by in zip(tables, divisors, strict=True)),
        )
        for name in names
    ]
    return sorted(found, key=lambda one: (-max(one.times_ns), one.name))


def _counted(found: TraceSummary, categories: tuple[Category, ...], *, in_steps: bool) -> dict[str, tuple[int, int]]:
    work, events = found.work, found.work.events
    rows = work.of(*categories)
    rows = rows[(work.step[rows] >= 0) if in_steps else (work.range[rows] != EARLIER)]
    of = work.event[rows]
    of = of[events.cache_hit.at(of, 0) != 1]
    names: IntArray = events.name[of]
    counts = np.bincount(names, minlength=1)
    times = np.bincount(names, events.end[of] - events.start[of], minlength=1)
    return {
        events.names[name]: (int(counts[name]), round(float(times[name]))) for name in np.flatnonzero(counts).tolist()
    }
