"""What a range of one trace comes to, by call, step or trace: what budgets and snapshots hold numbers against."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from tracetool.folding import STEP
from tracetool.metrics import lookup
from tracetool.ranges import BEFORE_WINDOW, NO_RANGE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tracetool.events import BoolArray, IntArray
    from tracetool.globs import PathGlob
    from tracetool.summary import Path, Pieces, TraceSummary

WHOLE: Path = ()
"""In place of a path: the whole trace."""


@dataclass(frozen=True, slots=True)
class Target:
    """Rows of a summary that are one range: a path, with and without profiler steps around it.

    Attributes:
        path: without steps; a step's own ends with `ProfilerStep`; empty for the whole trace.
        rows: of the summary.
    """

    path: Path
    rows: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Cause:
    """What made a count.

    Attributes:
        op: its name.
        place: the line that called it, or the function; empty where the trace does not tell.
        amount: its part, for each of the calls, steps or traces that were looked at.
    """

    op: str
    place: str
    amount: Fraction


@dataclass(frozen=True, slots=True)
class Measured:
    """A metric of a range.

    Attributes:
        per: what the samples are of: call, step or trace; of `calls`, a call is one of the range around.
        samples: one number each, those of calls row by row of the target.
        left_out: for each group of work that was left out, how much of it there was in all.
        pieces: what the numbers are made of, where the metric is a sum.
    """

    per: str
    samples: IntArray
    left_out: tuple[int, ...] = ()
    pieces: tuple[Pieces, ...] = ()


def targets(summary: TraceSummary) -> list[Target]:
    """All ranges of a trace, `(no range)` among them, in the summary's order."""
    rows: dict[Path, list[int]] = {}
    for row, path in enumerate(summary.paths):
        if path != (BEFORE_WINDOW,):
            rows.setdefault(bare(path), []).append(row)
    return [Target(path, tuple(found)) for path, found in rows.items() if path != (NO_RANGE,) or any(_works(summary))]


def fitting(summary: TraceSummary, ranges: Sequence[Target], glob: PathGlob) -> list[Target]:
    """Those of a trace's ranges that a pattern fits, with profiler steps in their paths or without."""
    return [
        one for one in ranges if glob.matches(one.path) or any(glob.matches(summary.paths[row]) for row in one.rows)
    ]


def _works(summary: TraceSummary) -> list[str]:
    return summary.counted()[summary.outside_row]


def whole(summary: TraceSummary) -> Target:
    """The whole trace."""
    roots = [row for row in range(summary.outside_row) if summary.parent(row) < 0]
    return Target(WHOLE, (*roots, summary.outside_row))


def bare(path: Sequence[str]) -> Path:
    """A path without the profiler's steps, unless it is a step's own."""
    names = tuple(name for name in path if name != STEP)
    return (*names, STEP) if path[-1] == STEP else names


def measure(
    summary: TraceSummary,
    target: Target,
    metric: str,
    *,
    scope: str = "total",
    per: str = "call",
    leave_out: Sequence[Callable[[str, str], bool]] = (),
) -> Measured:
    """Look a metric of a range up.

    Args:
        summary: the trace's.
        target: one of its ranges.
        metric: any of the registry; for the whole trace an additive one.
        scope: `total` or `self`.
        per: `call`, `step` or `trace`. What has no calls, or is calls, goes by steps, and what lies outside of
            steps by the trace.
        leave_out: tells work that does not count, by its op and its place.
    """
    asked, per = per, _nearest_per(summary, target, metric, per)
    found = _measure(summary, target, metric, scope, per, leave_out)
    if per == "step":
        overall = _measure(summary, target, metric, scope, "trace", leave_out)
        inside, everything = int(found.samples.sum()), int(overall.samples.sum())
        if inside < everything and (asked != "step" or not inside):
            return overall
    return found


def _nearest_per(summary: TraceSummary, target: Target, metric: str, per: str) -> str:
    called = target.path != WHOLE and bool(summary.calls[list(target.rows)].sum())
    if per == "call" and (metric == "calls" or not called):
        if called and not summary.step_count and all(summary.parent(row) >= 0 for row in target.rows):
            return "call"
        per = "step"
    return "trace" if per == "step" and not summary.step_count else per


def _measure(
    summary: TraceSummary,
    target: Target,
    metric: str,
    scope: str,
    per: str,
    leave_out: Sequence[Callable[[str, str], bool]],
) -> Measured:
    if not _is_sum(metric):
        columns = [_samples(summary, row, metric, scope, per) for row in target.rows]
        return Measured(per, np.concatenate(columns) if per == "call" else np.sum(columns, axis=0))
    pieces, samples = [], []
    left_out = [0] * len(leave_out)
    for row in target.rows:
        found = summary.pieces(metric, row, scope)
        if leave_out and len(found.rows):
            places = summary.places(found.rows)
            keep = np.ones(len(found.rows), dtype=np.bool_)
            for number, fits in enumerate(leave_out):
                flags = np.array([fits(*place) for place in places]) & keep
                left_out[number] += int(found.values[flags].sum())
                keep &= ~flags
            found = _kept(found, keep)
        pieces.append(found)
        samples.append(_summed(summary, row, found, per))
    joined = np.concatenate(samples) if per == "call" else np.sum(samples, axis=0)
    return Measured(per, joined, tuple(left_out), tuple(pieces))


def _is_sum(metric: str) -> bool:
    return metric != "cpu_ns" and lookup(metric).additive


def _kept(found: Pieces, keep: BoolArray) -> Pieces:
    return type(found)(found.rows[keep], found.values[keep], found.call[keep], found.step[keep])


def _summed(summary: TraceSummary, row: int, found: Pieces, per: str) -> IntArray:
    """The pieces of one row, added up by call, step or trace."""
    if per == "trace":
        return np.array([found.values.sum()], dtype=np.int64)
    if per == "call":
        index, count = found.call, int(summary.calls[row])
    else:
        index, count = found.step, summary.step_count
    sums = np.zeros(count, dtype=np.int64)
    inside = index >= 0
    np.add.at(sums, index[inside], found.values[inside])
    return sums


def _samples(summary: TraceSummary, row: int, metric: str, scope: str, per: str) -> IntArray:
    """What is no sum of pieces: calls, times of ranges, unions of times."""
    if per == "call":
        return summary.calls_within(row) if metric == "calls" else summary.samples(metric, row, scope)
    if per == "step":
        return summary.step_samples(metric, row, scope)
    return summary.value(metric, scope)[row : row + 1]


def causes(summary: TraceSummary, target: Target, found: Measured, chosen: Sequence[int]) -> list[Cause]:
    """What made some of the samples of a measured metric, the greatest part first; nothing where it is no sum."""
    if not found.pieces:
        return []
    amounts: Counter[tuple[str, str]] = Counter()
    first = 0
    wanted = np.array(sorted(chosen), dtype=np.int64)
    for row, pieces in zip(target.rows, found.pieces, strict=True):
        index = {"call": pieces.call + first, "step": pieces.step, "trace": np.zeros_like(pieces.call)}[found.per]
        here = np.isin(index, wanted)
        for place, value in zip(summary.places(pieces.rows[here]), pieces.values[here].tolist(), strict=True):
            amounts[place] += value
        first += int(summary.calls[row])
    return [
        Cause(op, place, Fraction(amount, max(1, len(chosen))))
        for (op, place), amount in sorted(amounts.items(), key=lambda one: (-one[1], one[0]))
    ]
