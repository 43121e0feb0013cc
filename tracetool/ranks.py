"""The traces of a distributed program's ranks side by side: one row a rank, who differs, who holds the others up.

Of each trace only what a row needs is kept, so that memory does not grow with the number of ranks.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from tracetool import apis
from tracetool.differ import Per
from tracetool.errors import SettingError
from tracetool.events import Category
from tracetool.metrics import METRICS, lookup

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tracetool.differ import Cell, TraceDiff
    from tracetool.summary import Path, TraceSummary

STRAGGLES = Fraction(105, 100)
"""A rank that works more than this much of what the median rank does is said to straggle."""

Value = Fraction | int


@dataclass(frozen=True, slots=True)
class Rank:
    """What is kept of one rank's trace. Times are ns, and like the counts of the whole trace."""

    rank: int | None
    source: str
    events: int
    steps: int
    verdict: str
    error: str
    """Why its numbers cannot be believed, or nothing."""
    totals: dict[str, int]
    """Metrics over the ranges that are looked at."""
    counts: dict[tuple[Path, str], int]
    """The exact metrics of each range, its descendants included."""
    step_ns: int
    """Median length of a step; 0 without steps."""
    collective_ns: int
    """Device time in collectives, in which a rank waits for others too."""
    working_ns: int
    """Device time outside collectives; without device work, the time of the steps."""

    @property
    def label(self) -> str:
        """`rank 3`, or the file where no rank is known."""
        return self.source if self.rank is None else f"rank {self.rank}"


def rank_row(
    found: TraceSummary, rank: int | None, shows: Callable[[Path], bool], *, chosen: bool, metrics: Sequence[str] = ()
) -> Rank:
    """Reduce a summary to what its row needs.

    `chosen` says that `shows` leaves ranges out of the totals too; `metrics` are the counts that ranks may differ in,
    all where none is named.
    """
    shown = [shows(path) for path in found.paths]
    names = [name for name in found.metrics if name != "calls"]
    totals = found.totals
    if chosen:
        outer = [row for row, here in enumerate(shown) if here and not _inside(found, row, shown)]
        totals = {name: int(found.value(name, "total")[outer].sum()) for name in names if METRICS[name].additive}
    counts = {
        (path, name): value
        for name in (*names, *(["calls"] if "calls" in found.metrics else []))
        if METRICS[name].exact and (not metrics or name in metrics)
        for path, value, here in zip(found.paths, found.value(name, "total").tolist(), shown, strict=True)
        if value and here
    }
    lengths = sorted((found.work.steps.end - found.work.steps.start).tolist())
    collective = _collective_ns(found)
    device = found.totals.get("gpu_ns", 0)
    return Rank(
        rank=rank,
        source=found.source,
        events=found.event_count,
        steps=found.step_count,
        verdict=found.health.verdict,
        error=found.unhealthy,
        totals={name: value for name, value in totals.items() if value},
        counts=counts,
        step_ns=int(median(lengths)) if lengths else 0,
        collective_ns=collective,
        working_ns=device - collective if device else sum(lengths),
    )


def sharing(one: Rank, earlier: Sequence[Rank]) -> Rank:
    """The same row; where an earlier one has the same counts, they are kept once."""
    return next((replace(one, counts=other.counts) for other in earlier if other.counts == one.counts), one)


def _inside(found: TraceSummary, row: int, shown: Sequence[bool]) -> bool:
    """Whether a range around this one is looked at too."""
    while (row := found.parent(row)) >= 0:
        if shown[row]:
            return True
    return False


def _collective_ns(found: TraceSummary) -> int:
    work, events = found.work, found.work.events
    kernels = work.of(Category.KERNEL)
    named = apis.named(events.names, apis.is_nccl_kernel)
    told = np.isin(kernels, found.tally.amounts_of("collectives").rows)
    here = (told | named[events.name[work.event[kernels]]]) & (found.tally.slots(kernels) <= found.tally.runs)
    of = work.event[kernels[here]]
    return int((events.end[of] - events.start[of]).sum())


@dataclass(frozen=True, slots=True)
class Difference:
    """An exact count of a range on which ranks do not agree."""

    path: Path
    metric: str
    usual: int | None
    """What more than half of the ranks have; None where no value is that common."""
    others: tuple[tuple[Rank, int], ...]
    """The ranks that have something else, all where nothing is usual."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Least, median and most over the ranks."""

    least: Value
    median: Value
    most: Value


class Ranks:
    """The ranks of one program, those that stand out first."""

    def __init__(self, rows: Sequence[Rank], metrics: Sequence[str], per: Per | None = None) -> None:
        """Lay rows side by side; `metrics` are the columns, `per` is for a step where all ranks have steps.

        Raises:
            SettingError: a rank has no steps, and numbers are asked for per step, or they are asked for per call.
        """
        if per is Per.CALL:
            raise SettingError("ranks are laid side by side per step or per trace, not per call")
        stepless = next((one for one in rows if not one.steps), None)
        if per is Per.STEP and stepless is not None:
            raise SettingError(f"{stepless.source} has no profiler steps: give numbers per trace instead")
        self.per = per or (Per.TRACE if stepless is not None else Per.STEP)
        self.metrics = tuple(metrics)
        self._given = tuple(rows)

    @cached_property
    def rows(self) -> tuple[Rank, ...]:
        """Unhealthy ranks first, then those whose counts differ, then stragglers, the slowest first; then the rest."""

        def place(one: Rank) -> tuple[bool, bool, Value, bool, int, str]:
            straggle = self.straggles(one)
            return (
                not one.error,
                not self.differs(one),
                -straggle if straggle else 0,
                one.rank is None,
                one.rank or 0,
                one.source,
            )

        return tuple(sorted(self._given, key=place))

    def value(self, one: Rank, metric: str) -> Value:
        """A metric of a rank, per step or per trace."""
        total = one.totals.get(metric, 0)
        additive = lookup(metric).additive
        return Fraction(total, one.steps) if self.per is Per.STEP and additive else total

    def time(self, one: Rank, total: int) -> Value:
        """A time of a rank, ns, per step or per trace."""
        return Fraction(total, one.steps) if self.per is Per.STEP else total

    def spread(self, of: Callable[[Rank], Value]) -> Spread:
        """Least, median and most of anything that ranks have."""
        values = sorted(of(one) for one in self._given)
        return Spread(values[0], median(map(Fraction, values)), values[-1])

    def straggles(self, one: Rank) -> Fraction | None:
        """How many times as long as the median rank a straggler works; None for the others."""
        usual = self._usual_work
        ratio = Fraction(self.time(one, one.working_ns)) / usual if usual else Fraction(0)
        return ratio if ratio > STRAGGLES else None

    @cached_property
    def _usual_work(self) -> Fraction:
        return Fraction(self.spread(lambda one: self.time(one, one.working_ns)).median)

    def differs(self, one: Rank) -> bool:
        """Whether some exact count of a rank is not that of most ranks."""
        return id(one) in self._differing

    @cached_property
    def _differing(self) -> set[int]:
        return {id(one) for difference in self.differences for one, _ in difference.others}

    @cached_property
    def differences(self) -> tuple[Difference, ...]:
        """Every exact count of a range on which the ranks do not agree, per step where numbers are."""
        keys = {key: None for one in self._given for key in one.counts}
        found = []
        for path, metric in keys:
            values = [one.counts.get((path, metric), 0) for one in self._given]
            if len(set(values)) == 1:
                continue
            [(value, times)] = Counter(values).most_common(1)
            usual = value if 2 * times > len(values) else None
            others = tuple(
                (one, value) for one, value in zip(self._given, values, strict=True) if usual is None or value != usual
            )
            found.append(Difference(path, metric, usual, others))
        return tuple(found)

    @cached_property
    def by_rank(self) -> list[tuple[Rank, list[Difference]]]:
        """The differences from what is usual, by rank."""
        found: dict[int, list[Difference]] = defaultdict(list)
        for difference in self.differences:
            if difference.usual is not None:
                for one, _ in difference.others:
                    found[id(one)].append(difference)
        return [(one, found[id(one)]) for one in self.rows if id(one) in found]


@dataclass(frozen=True, slots=True)
class Change:
    """A count of a range that changed between two traces of a rank: means, and for what they are."""

    path: Path
    metric: str
    per: str
    baseline: float | None
    variant: float | None


@dataclass(frozen=True, slots=True)
class RankDiff:
    """What is kept of the diff of one rank."""

    rank: int | None
    sources: tuple[str, str]
    health: tuple[str, str]
    error: str
    differs: bool
    changes: tuple[Change, ...]
    verdict: str

    @property
    def label(self) -> str:
        """`rank 3`, or the files' common name where no rank is known."""
        return self.sources[0] if self.rank is None else f"rank {self.rank}"


def rank_diff(
    found: TraceDiff, rank: int | None, shows: Callable[[Path], bool], metrics: Sequence[str], verdict: str
) -> RankDiff:
    """Reduce a diff to what its row needs: the exact counts that changed in the ranges that are looked at."""
    first, second = (side.summary for side in found.sides)
    changes = tuple(
        Change(row.path, name, str(compared.per), *(_mean(cell) for cell in (compared.baseline, compared.variants[0])))
        for row in found.rows
        if shows(row.path)
        for name in row.changed
        if (not metrics or name in metrics) and lookup(name).exact
        for compared in [row.metrics[name]]
    )
    return RankDiff(
        rank=rank,
        sources=(first.source, second.source),
        health=(first.health.verdict, second.health.verdict),
        error=first.unhealthy or second.unhealthy,
        differs=found.differs,
        changes=changes,
        verdict=verdict,
    )


def _mean(cell: Cell | None) -> float | None:
    return None if cell is None else float(cell.mean)


@dataclass(frozen=True, slots=True)
class RanksDiff:
    """Two runs of a distributed program, rank by rank, those that differ first.

    Attributes:
        labels: what the two runs are called.
        rows: one a rank that both have.
        alone: the traces of either run whose rank the other has not.
    """

    labels: tuple[str, str]
    rows: tuple[RankDiff, ...]
    alone: tuple[tuple[str, ...], tuple[str, ...]]

    @property
    def ordered(self) -> tuple[RankDiff, ...]:
        """Unhealthy ranks first, then those that differ."""
        return tuple(
            sorted(
                self.rows,
                key=lambda one: (not one.error, not one.differs, one.rank is None, one.rank or 0, one.sources),
            )
        )

    @property
    def differs(self) -> bool:
        """Whether any rank does, or only one run has it."""
        return any(one.differs for one in self.rows) or any(self.alone)
