"""Two or more traces side by side: what changed, range by range, and what did it.

A range is lined up by its path without profiler steps. A range that has no twin there is lined up by its name
alone where that is plain (one of that name left on each side), and says so. Numbers are compared per call of the
range; where a side has no calls of it, per step; without steps, per trace. How often a range itself ran is compared
per step, without steps per call of the range around it, so that traces of different lengths compare.
"""

from __future__ import annotations

import enum
from collections import Counter
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from tracetool import environment
from tracetool.errors import SettingError
from tracetool.folding import STEP
from tracetool.metrics import METRICS, PEAK, lookup
from tracetool.ranges import BEFORE_WINDOW, NO_RANGE
from tracetool.stats import Ratio, middle, ratio_of_medians
from tracetool.summary import TraceSummary, summarize

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tracetool.events import IntArray, Trace
    from tracetool.summary import Path


class Per(enum.StrEnum):
    """What a number is given for."""

    CALL = "call"
    STEP = "step"
    TRACE = "trace"


class Status(enum.StrEnum):
    """What became of a range."""

    CHANGED = "changed"
    SAME = "same"
    ADDED = "added"
    GONE = "gone"


class Verdict(enum.StrEnum):
    """How a variant's number stands to the baseline's."""

    SAME = "same"
    MORE = "more"
    FEWER = "fewer"
    FASTER = "faster"
    SLOWER = "slower"
    NOISE = "noise"
    TOO_FEW = "too_few"
    NOT_CHECKED = "not_checked"


CHANGES = frozenset({Verdict.MORE, Verdict.FEWER})


@dataclass(frozen=True, slots=True)
class Cell:
    """A metric of a range on one side: its samples, one for each call, step or trace."""

    samples: IntArray

    @property
    def sum(self) -> int:
        """Over all samples."""
        return int(self.samples.sum())

    @property
    def count(self) -> int:
        """Calls, steps or traces."""
        return len(self.samples)

    @property
    def mean(self) -> Fraction:
        """Exactly."""
        return Fraction(self.sum, self.count) if self.count else Fraction(0)

    @property
    def least(self) -> int:
        """Of all samples."""
        return int(self.samples.min(initial=np.iinfo(np.int64).max)) if self.count else 0

    @property
    def most(self) -> int:
        """Of all samples."""
        return int(self.samples.max()) if self.count else 0

    @property
    def median(self) -> float:
        """Of all samples."""
        return middle(np.sort(self.samples)) if self.count else 0.0


@dataclass(frozen=True, slots=True)
class Comparison:
    """One metric of one range over all sides. A cell is None where a side lacks the range or cannot hold the metric."""

    per: Per
    """What the cells' samples are of; for `calls` a call is one of the range around."""
    baseline: Cell | None
    variants: tuple[Cell | None, ...]
    verdicts: tuple[Verdict, ...]
    ratios: tuple[Ratio | None, ...]

    @property
    def changed(self) -> bool:
        """Whether an exact count differs on any variant."""
        return any(verdict in CHANGES for verdict in self.verdicts)


@dataclass(frozen=True, slots=True)
class Contribution:
    """What a contributor adds to a metric on every side, per call, step or trace as the metric is compared."""

    by: str
    name: str
    baseline: Fraction
    variants: tuple[Fraction, ...]

    @property
    def changed(self) -> bool:
        """Whether it differs on any variant."""
        return any(value != self.baseline for value in self.variants)


@dataclass(frozen=True, slots=True)
class Side:
    """One trace of a diff, and what it is called."""

    label: str
    summary: TraceSummary


@dataclass(frozen=True, slots=True)
class DiffRow:
    """One range on all sides."""

    path: Path
    metrics: dict[str, Comparison]
    parts: tuple[_Part | None, ...] = field(repr=False)
    """Where its numbers are, on each side."""
    elsewhere: tuple[Path | None, ...] = ()
    """For each variant, the path that it was found at by its name alone; None where the paths are the same."""

    @property
    def changed(self) -> list[str]:
        """The exact metrics that differ."""
        return [name for name, comparison in self.metrics.items() if comparison.changed]

    @property
    def status(self) -> Status:
        """What became of the range: added or gone on any variant, else changed on any, else the same."""
        fates = {self.fate(variant) for variant in range(len(self.parts) - 1)}
        return next((one for one in (Status.ADDED, Status.GONE, Status.CHANGED) if one in fates), Status.SAME)

    def fate(self, variant: int) -> Status:
        """What became of the range on one variant."""
        before, after = self.parts[0], self.parts[variant + 1]
        if (before is None) != (after is None) and self.path[0] not in (NO_RANGE, BEFORE_WINDOW):
            return Status.ADDED if before is None else Status.GONE
        changed = any(comparison.verdicts[variant] in CHANGES for comparison in self.metrics.values())
        return Status.CHANGED if changed else Status.SAME


@dataclass(frozen=True, slots=True)
class _Part:
    """Rows of a summary that are one row of a diff, and the rows of which only the self counts there."""

    rows: tuple[int, ...]
    own_only: tuple[int, ...] = ()


class TraceDiff:
    """A baseline and its variants, lined up."""

    def __init__(self, sides: Sequence[Side], *, scope: str = "total", per: Per | None = None) -> None:
        """Line up and compare. `diff` is the public way to make one."""
        self.sides = tuple(sides)
        self.scope = scope
        self.per = per
        self.environment = environment.differences([side.summary.environment for side in sides])
        self.stepped = all(side.summary.step_count for side in sides)
        if per is Per.STEP and not self.stepped:
            without = next(side for side in sides if not side.summary.step_count)
            raise SettingError(f"'{without.label}' has no profiler steps: compare per call or per trace instead")
        self.rows = [self._row(*line) for line in self._lines()]

    @property
    def baseline(self) -> Side:
        """The side that the others are compared with."""
        return self.sides[0]

    @property
    def variants(self) -> tuple[Side, ...]:
        """The other sides."""
        return self.sides[1:]

    @property
    def differs(self) -> bool:
        """Whether any exact count differs anywhere."""
        return any(row.status is not Status.SAME for row in self.rows)

    @cached_property
    def metrics(self) -> list[str]:
        """Metrics that count something on any side, in the order of the registry, then ops by name."""
        some = {name for side in self.sides for name in side.summary.metrics}
        ops = dict.fromkeys(name for side in self.sides for name in side.summary.op_metrics)
        return [*(name for name in METRICS if name in some), *ops]

    def contributions(self, row: DiffRow, metric: str, by: str) -> list[Contribution]:
        """What made a metric of a row, matched on all sides by name; what changed most comes first."""
        comparison = row.metrics[metric]
        cells = (comparison.baseline, *comparison.variants)
        found: list[Counter[str]] = []
        for side, part in zip(self.sides, row.parts, strict=True):
            counts: Counter[str] = Counter()
            if part is not None:
                for number, scope in _scoped(part, self.scope, metric):
                    counts.update(side.summary.contributors_to(metric, number, by, scope))
            found.append(counts)
        divided = [
            {
                name: Fraction(value, cell.count) if cell and cell.count else Fraction(0)
                for name, value in counts.items()
            }
            for counts, cell in zip(found, cells, strict=True)
        ]
        names = dict.fromkeys(name for counts in divided for name in counts)
        zero = Fraction(0)
        contributions = [
            Contribution(by, name, divided[0].get(name, zero), tuple(side.get(name, zero) for side in divided[1:]))
            for name in names
        ]
        return sorted(
            (one for one in contributions if one.baseline or any(one.variants)),
            key=lambda one: (-max(abs(value - one.baseline) for value in one.variants), one.name),
        )

    # Lining up ---------------------------------------------------------------------------------------------

    def _lines(self) -> Iterable[tuple[Path, tuple[_Part | None, ...], tuple[Path | None, ...]]]:
        tables = [_by_key(side.summary, stepped=self.stepped, scope=self.scope) for side in self.sides]
        first, others = tables[0], tables[1:]
        moved = [_by_name_alone(first, other) for other in others]
        taken = [set(found.values()) for found in moved]
        for key in _in_tree_order(tables, taken):
            parts: list[_Part | None] = [first.get(key)]
            elsewhere: list[Path | None] = []
            for table, found in zip(others, moved, strict=True):
                other = found.get(key)
                parts.append(table.get(key if other is None else other))
                elsewhere.append(other)
            yield key, tuple(parts), tuple(elsewhere)

    def _row(self, path: Path, parts: tuple[_Part | None, ...], elsewhere: tuple[Path | None, ...]) -> DiffRow:
        counted: set[str] = set()
        for side, part in zip(self.sides, parts, strict=True):
            if part is None:
                continue
            for row in part.rows:
                counted.update(side.summary.counted(self.scope)[row])
            for row in part.own_only:
                counted.update(name for name in side.summary.counted("self")[row] if name not in _OF_STEPS)
        metrics = {name: self._compare(name, parts) for name in self.metrics if name in counted}
        return DiffRow(path, metrics, parts, elsewhere)

    # Comparing ---------------------------------------------------------------------------------------------

    def _compare(self, metric: str, parts: tuple[_Part | None, ...]) -> Comparison:
        per = self._per_of(metric, parts)
        cells = [self._cell(side.summary, part, metric, per) for side, part in zip(self.sides, parts, strict=True)]
        exact = lookup(metric).exact
        held = [_holds(side.summary, part, metric) for side, part in zip(self.sides, parts, strict=True)]
        verdicts, ratios = [], []
        for cell, holds in zip(cells[1:], held[1:], strict=True):
            ratio = None
            if not (held[0] and holds):
                verdict = Verdict.NOT_CHECKED
            elif exact:
                verdict = _exact_verdict(cells[0], cell)
            else:
                ratio = None if cells[0] is None or cell is None else ratio_of_medians(cells[0].samples, cell.samples)
                verdict = _time_verdict(ratio)
            verdicts.append(verdict)
            ratios.append(ratio)
        return Comparison(per, cells[0], tuple(cells[1:]), tuple(verdicts), tuple(ratios))

    def _per_of(self, metric: str, parts: tuple[_Part | None, ...]) -> Per:
        called = any(
            side.summary.calls[row]
            for side, part in zip(self.sides, parts, strict=True)
            for row in (part.rows if part is not None else ())
        )
        if metric == "calls" and self.per is None and not self.stepped and self._nested(parts):
            return Per.CALL
        per = self.per or (Per.CALL if called else Per.STEP)
        if per is Per.CALL and (metric == "calls" or not called or any(part and part.own_only for part in parts)):
            per = Per.STEP
        if per is Per.STEP and (not self.stepped or (self.per is not Per.STEP and self._outside(metric, parts))):
            per = Per.TRACE
        return per

    def _nested(self, parts: tuple[_Part | None, ...]) -> bool:
        """Whether the range lies in another on every side that has it: then that one's calls are what to count by."""
        return all(
            side.summary.parent(row) >= 0
            for side, part in zip(self.sides, parts, strict=True)
            for row in (part.rows if part is not None else ())
        )

    def _outside(self, metric: str, parts: tuple[_Part | None, ...]) -> bool:
        """Whether a comparison per step would lose what lies outside the steps, and one per trace would not mislead.

        It would mislead where the sides have different numbers of steps, unless nothing at all lies in them.
        """
        inside, lost = False, False
        for side, part in zip(self.sides, parts, strict=True):
            for row in part.rows if part is not None else ():
                whole = int(side.summary.value(metric, self.scope)[row])
                in_steps = int(side.summary.step_samples(metric, row, self.scope).sum()) if whole else 0
                inside = inside or in_steps > 0
                lost = lost or in_steps < whole
        return lost and (not inside or len({side.summary.step_count for side in self.sides}) == 1)

    def _cell(self, summary: TraceSummary, part: _Part | None, metric: str, per: Per) -> Cell | None:
        if part is None or not _holds(summary, part, metric):
            return None
        if per is Per.CALL:
            samples = [
                summary.calls_within(row) if metric == "calls" else summary.samples(metric, row, self.scope)
                for row in part.rows
            ]
            return Cell(samples[0] if len(samples) == 1 else np.concatenate(samples))
        pieces = _scoped(part, self.scope, metric)
        whole = np.max if metric == PEAK else np.sum
        if per is Per.STEP:
            return Cell(whole([summary.step_samples(metric, row, scope) for row, scope in pieces], axis=0))
        return Cell(np.array([whole([int(summary.value(metric, scope)[row]) for row, scope in pieces])]))


def diff(
    baseline: TraceSummary | Trace,
    *variants: TraceSummary | Trace,
    labels: Sequence[str] = (),
    scope: str = "total",
    per: Per | None = None,
) -> TraceDiff:
    """Compare one or more variants with a baseline.

    Args:
        baseline: as `tracetool.summarize` gives it, or `tracetool.read`.
        *variants: likewise.
        labels: a name for each side; by default their file names.
        scope: `total` (a range and what is in it) or `self`.
        per: what numbers are compared for; by default per call where a range has calls.

    Raises:
        SettingError: there is no variant, the labels are not one for each side, or `per` is `step` and a side has
            no steps.
    """
    if not variants:
        raise SettingError("a diff needs a baseline and at least one variant")
    summaries = [side if isinstance(side, TraceSummary) else summarize(side) for side in (baseline, *variants)]
    return lay_out(summaries, labels=labels, scope=scope, per=per)


def lay_out(
    summaries: Sequence[TraceSummary], *, labels: Sequence[str] = (), scope: str = "total", per: Per | None = None
) -> TraceDiff:
    """The same of a baseline and its variants in one sequence, and of a single trace, which is then all baseline."""
    if labels and len(labels) != len(summaries):
        raise SettingError(f"{len(labels)} names for {len(summaries)} traces: give one name for each, in their order")
    names = list(labels) or _file_labels([summary.source for summary in summaries])
    return TraceDiff(
        [Side(name, summary) for name, summary in zip(names, summaries, strict=True)], scope=scope, per=per
    )


def outer_paths(changed: Iterable[Path], paths: Iterable[Path]) -> set[Path]:
    """The paths that have a changed one in them: a change shows in every range around the one that it was made in."""
    around_only: set[Path] = set()
    around: set[Path] = set()
    for path in changed:
        if path[-1] == STEP:
            around_only.add(path[:-1])
        elif path not in ((NO_RANGE,), (BEFORE_WINDOW,)):
            add_outer(path, around)
    return {
        path for path in paths if (path[:-1] in around if path[-1] == STEP else path in around or path in around_only)
    }


def add_outer(path: Path, known: set[Path]) -> None:
    """Add all paths around this one, the empty one too, to a set that has each only with all paths around it.

    Each is looked at once, however many paths lie in it: a path of a thousand names has a thousand around it.
    """
    for depth in range(len(path) - 1, -1, -1):
        if path[:depth] in known:
            return
        known.add(path[:depth])


def _file_labels(sources: Sequence[str]) -> list[str]:
    """File names without their endings; where two are alike, numbered."""
    stems = [source.replace("\\", "/").rsplit("/", 1)[-1].split(".")[0] or source for source in sources]
    return [stem if stems.count(stem) == 1 else f"{stem} ({number})" for number, stem in enumerate(stems, 1)]


_OF_STEPS = frozenset({"calls", "cpu_ns"})
"""What is a step's own and would not be there without it, unlike the work that lies in it."""


def _scoped(part: _Part, scope: str, metric: str) -> list[tuple[int, str]]:
    merged = () if metric in _OF_STEPS else part.own_only
    return [*((row, scope) for row in part.rows), *((row, "self") for row in merged)]


def _holds(summary: TraceSummary, part: _Part | None, metric: str) -> bool:
    """Whether a side can tell a metric of a range: one that only holds what graphs did has no time on the CPU."""
    replayed = metric == "cpu_ns" and part is not None and all(summary.replayed[row] for row in part.rows)
    return summary.holds(metric) and not replayed


def _by_key(summary: TraceSummary, *, stepped: bool, scope: str) -> dict[Path, _Part]:
    """Rows of a summary by the path under which they are lined up, in the summary's order.

    Where some side has no steps, what lies directly in a step counts for the range around it, as it does there
    (in whose total it is already), or for `(no range)`.
    """
    rows: dict[Path, list[int]] = {}
    own_only: dict[Path, list[int]] = {}
    for number, path in enumerate(summary.paths):
        key = tuple(name for name in path if name != STEP)
        if path[-1] != STEP:
            rows.setdefault(key, []).append(number)
        elif stepped:
            rows.setdefault((*key, STEP), []).append(number)
        elif not key or scope == "self":
            own_only.setdefault(key or (NO_RANGE,), []).append(number)
    return {key: _Part(tuple(found), tuple(own_only.get(key, ()))) for key, found in rows.items()}


def _by_name_alone(first: dict[Path, _Part], other: dict[Path, _Part]) -> dict[Path, Path]:
    """Ranges without a twin at their path whose name is the only one left on both sides."""
    gone = [path for path in first if path not in other]
    added = [path for path in other if path not in first]
    names_gone, names_added = Counter(path[-1] for path in gone), Counter(path[-1] for path in added)
    by_name = {path[-1]: path for path in added}
    return {
        path: by_name[path[-1]]
        for path in gone
        if path[-1] != STEP and names_gone[path[-1]] == names_added[path[-1]] == 1
    }


def _in_tree_order(tables: Sequence[dict[Path, _Part]], taken: Sequence[set[Path]]) -> list[Path]:
    """All paths, the baseline's in its order; those of the variants behind the nearest one that they follow there."""
    last = [(NO_RANGE,), (BEFORE_WINDOW,)]
    order = [path for path in tables[0] if path not in last]
    for table, found in zip(tables[1:], taken, strict=True):
        previous = -1
        place = {path: number for number, path in enumerate(order)}
        fresh: list[tuple[int, Path]] = []
        for path in table:
            if path in place:
                previous = place[path]
            elif path not in last and path not in found:
                fresh.append((previous, path))
        for after, path in reversed(fresh):
            order.insert(after + 1, path)
    return [*order, *last]


def _exact_verdict(baseline: Cell | None, variant: Cell | None) -> Verdict:
    before = baseline.mean if baseline else Fraction(0)
    after = variant.mean if variant else Fraction(0)
    if before == after:
        return Verdict.SAME
    return Verdict.MORE if after > before else Verdict.FEWER


def _time_verdict(ratio: Ratio | None) -> Verdict:
    if ratio is None:
        return Verdict.TOO_FEW
    if ratio.faster:
        return Verdict.FASTER
    return Verdict.SLOWER if ratio.slower else Verdict.NOISE
