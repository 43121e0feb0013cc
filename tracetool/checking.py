"""Holds a trace against budgets and against a baseline; each outcome is a value that can say what it is."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Protocol

import numpy as np

from tracetool import measuring, stats
from tracetool.budgets import Relation
from tracetool.errors import BudgetError, nearest
from tracetool.globs import PathGlob
from tracetool.health import Finding, Severity
from tracetool.metrics import HOST_DIRECTIONS, HOST_MEMORY, METRICS, Needs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracetool.budgets import Allowance, Bound, Budget
    from tracetool.measuring import Cause, Measured, Target
    from tracetool.stats import Ratio
    from tracetool.summary import Path, TraceSummary


class Result(enum.StrEnum):
    """What came of holding a number against its bound."""

    HELD = "held"
    BROKEN = "broken"
    NOT_CHECKED = "not_checked"


@dataclass(frozen=True, slots=True)
class Outcome:
    """A metric of a range, held against a bound.

    Attributes:
        path: of the range; empty for the whole trace.
        metric: its name; `scope` is `total` or `self`.
        per: what the numbers are of.
        against: `budget` or `snapshot`: who set the bound.
        bound: what the numbers may be.
        result: whether they are.
        reason: why it was not checked, in words; else empty.
        limit: the bound's, in the metric's unit; None where it was not checked.
        least: of all numbers; of a time, the median (and `most` as well).
        most: likewise.
        worst: the number that is furthest from the limit, of those that break the bound.
        samples: how many numbers there are; `broken` how many of them break the bound.
        causes: what made those, the greatest part first.
        allowed: what was not counted and how much of it there was in all.
        interval: of a time's median, 95 %; None for a count.
        source: where the bound is written.
    """

    path: Path
    metric: str
    scope: str
    per: str
    against: str
    bound: Bound
    result: Result
    source: str
    reason: str = ""
    limit: Fraction | None = None
    least: int = 0
    most: int = 0
    worst: int = 0
    samples: int = 0
    broken: int = 0
    causes: tuple[Cause, ...] = ()
    allowed: tuple[tuple[Allowance, int], ...] = ()
    interval: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Known:
    """A baseline's numbers for one metric of a range."""

    least: int
    most: int


class Baseline(Protocol):
    """What budgets mean by `baseline`; it raises `BudgetError` for a range that it lacks."""

    def known(self, path: Path, metric: str, scope: str, per: str) -> Known | str:
        """Its numbers; or why it has none, in words."""
        ...

    def times(self, path: Path, metric: str, scope: str, per: str) -> Sequence[int] | str:
        """Its samples of a time; or why it has none, in words."""
        ...


@dataclass(frozen=True, slots=True)
class Check:
    """All that came of checking one trace.

    Attributes:
        summary: the trace's.
        outcomes: in the order of the budgets, then of the snapshot.
        findings: what else is to be known before the outcomes are believed.
        baseline: what was compared with; empty for nothing.
        not_comparable: why it could not be compared, in words; else empty.
        accepted: outcomes that an update made the new baseline.
    """

    summary: TraceSummary
    outcomes: tuple[Outcome, ...]
    findings: tuple[Finding, ...] = ()
    baseline: str = ""
    not_comparable: str = ""
    accepted: tuple[Outcome, ...] | None = field(default=None)

    @property
    def broken(self) -> list[Outcome]:
        """The violations."""
        return [one for one in self.outcomes if one.result is Result.BROKEN]

    @property
    def not_checked(self) -> list[Outcome]:
        """What the trace, or the baseline, says nothing of."""
        return [one for one in self.outcomes if one.result is Result.NOT_CHECKED]


def check(summary: TraceSummary, budgets: Sequence[Budget], baseline: Baseline | None = None) -> list[Outcome]:
    """Hold a trace against budgets.

    Args:
        summary: the trace's.
        budgets: what its numbers may be; each holds for every call (step, trace) of every range that its pattern fits.
        baseline: what relative bounds are relative to.

    Raises:
        BudgetError: a budget fits no range, or one that is ambiguous; it is for steps and there are none; it is
            relative and there is no baseline.
    """
    ranges = measuring.targets(summary)
    outcomes: list[Outcome] = []
    for budget in budgets:
        if budget.bound.relative and baseline is None:
            raise BudgetError(f"{budget.place}: there is no baseline: name one, or give the bound as a number")
        if budget.per == "step" and not summary.step_count:
            raise BudgetError(f"{budget.place}: {summary.source} has no profiler steps: say per = 'call' or 'trace'")
        outcomes += [_held(summary, target, budget, baseline) for target in _fitting(summary, ranges, budget)]
    return outcomes


def _fitting(summary: TraceSummary, ranges: Sequence[Target], budget: Budget) -> list[Target]:
    if not budget.pattern:
        return [measuring.whole(summary)]
    found = measuring.fitting(summary, ranges, PathGlob(budget.pattern))
    if not found:
        names = dict.fromkeys(path[-1] for path in (one.path for one in ranges))
        last = budget.pattern.rstrip("/").rpartition("/")[2]
        raise BudgetError(f"{budget.place}: {summary.source} has no such range: {nearest(last, names)}")
    for one in found:
        if any(summary.ambiguous[row] for row in one.rows):
            raise BudgetError(
                f"{budget.place}: range '{'/'.join(one.path)}' of {summary.source} overlaps another range of its "
                "thread without nesting, so what is in it is not certain: end ranges in the order that they begin"
            )
    return found


def lacking(summary: TraceSummary, metric: str) -> str:
    """Why a trace can say nothing of a metric, in words; empty where it can."""
    if summary.holds(metric):
        return ""
    return f"the trace has no {METRICS[metric].needs}"


def _held(summary: TraceSummary, target: Target, budget: Budget, baseline: Baseline | None) -> Outcome:
    name = budget.metric.name
    outcome = Outcome(
        target.path, name, budget.scope, budget.per, "budget", budget.bound, Result.NOT_CHECKED, budget.source
    )
    if reason := lacking(summary, name):
        return replace(outcome, reason=reason)
    leave_out = [one.fits for one in budget.allowed]
    measured = measuring.measure(summary, target, name, scope=budget.scope, per=budget.per, leave_out=leave_out)
    outcome = replace(outcome, per=measured.per, allowed=tuple(zip(budget.allowed, measured.left_out, strict=True)))
    if not len(measured.samples):
        return replace(outcome, reason="the range has no calls of its own in this trace")
    if not budget.metric.exact:
        return _time_held(outcome, measured, baseline)
    limits = _limits(outcome, baseline)
    if isinstance(limits, str):
        return replace(outcome, reason=limits)
    return _count_held(summary, target, outcome, measured, limits)


def _limits(outcome: Outcome, baseline: Baseline | None) -> tuple[Fraction, Fraction] | str:
    """The limits for the least and for the most of all numbers, or why there are none."""
    bound = outcome.bound
    if not bound.relative or baseline is None:
        return bound.number, bound.number
    known = baseline.known(outcome.path, outcome.metric, outcome.scope, outcome.per)
    if isinstance(known, str):
        return known
    return bound.limit(Fraction(known.least)), bound.limit(Fraction(known.most))


def _count_held(
    summary: TraceSummary, target: Target, outcome: Outcome, measured: Measured, limits: tuple[Fraction, Fraction]
) -> Outcome:
    """Every sample against the limits: at least what is asked of the least, at most what is asked of the most."""
    samples = measured.samples.tolist()
    relation, (low, high) = outcome.bound.relation, limits
    if relation is Relation.EXACTLY:
        broken = [i for i, value in enumerate(samples) if not low <= value <= high]
        if not broken and (min(samples), max(samples)) != (low, high):
            broken = list(range(len(samples)))
    else:
        limit = low if relation in (Relation.AT_LEAST, Relation.ABOVE) else high
        broken = [i for i, value in enumerate(samples) if not relation.holds(value, limit)]
    nearer = {i: low if samples[i] < low or relation in (Relation.AT_LEAST, Relation.ABOVE) else high for i in broken}
    worst = max(broken, key=lambda i: abs(samples[i] - nearer[i]), default=0)
    return replace(
        outcome,
        result=Result.BROKEN if broken else Result.HELD,
        limit=nearer.get(worst, high),
        least=min(samples),
        most=max(samples),
        worst=samples[worst],
        samples=len(samples),
        broken=len(broken),
        causes=tuple(measuring.causes(summary, target, measured, broken)) if broken else (),
    )


def _time_held(outcome: Outcome, measured: Measured, baseline: Baseline | None) -> Outcome:
    """A time breaks its bound only where the whole interval of its median does."""
    before: Sequence[int]
    if outcome.bound.relative and baseline is not None:
        times = baseline.times(outcome.path, outcome.metric, outcome.scope, outcome.per)
        if isinstance(times, str):
            return replace(outcome, reason=times)
        before, factor = times, outcome.bound.number
    else:
        before, factor = [int(outcome.bound.number)] * len(measured.samples), Fraction(1)
    ratio = stats.ratio_of_medians(before, measured.samples)
    if ratio is None:
        fewest = min(len(before), len(measured.samples))
        return replace(
            outcome, reason=f"{fewest} samples are too few for an interval of a time: it takes {stats.FEWEST}"
        )
    reference = float(np.median(np.asarray(before)))
    median = int(np.median(measured.samples))
    told = replace(
        outcome,
        limit=factor * Fraction(reference),
        least=median,
        most=median,
        worst=median,
        samples=len(measured.samples),
        interval=(ratio.low * reference, ratio.high * reference),
    )
    return _judged(told, ratio, factor)


def _judged(told: Outcome, ratio: Ratio, factor: Fraction) -> Outcome:
    relation = told.bound.relation
    ends = [relation.holds(ratio.low, float(factor)), relation.holds(ratio.high, float(factor))]
    if all(ends):
        return replace(told, result=Result.HELD)
    if not any(ends):
        return replace(told, result=Result.BROKEN, broken=told.samples)
    return replace(told, reason="the 95 % interval of its median holds the limit, so the times do not tell")


# What stands against a check ------------------------------------------------------------------------------------


def unknown_memory(summary: TraceSummary, budgets: Sequence[Budget]) -> list[Finding]:
    """Warnings of copies whose kind of host memory is not known, where a budget asks for pageable or pinned."""
    found = []
    for direction in HOST_DIRECTIONS:
        kinds = [f"{direction}_{memory}_{what}" for memory in HOST_MEMORY for what in ("copies", "bytes")]
        if not any(budget.metric.name in kinds for budget in budgets):
            continue
        unknown = summary.totals.get(f"{direction}_copies", 0) - sum(
            summary.totals.get(f"{direction}_{memory}_copies", 0) for memory in HOST_MEMORY
        )
        if unknown:
            found.append(
                Finding(
                    "unknown_memory_kind",
                    Severity.WARNING,
                    f"{unknown} {direction}_copies do not say whether their host memory is pageable or pinned, and a "
                    f"budget asks: they count as neither; bound {direction}_copies instead.",
                    unknown,
                )
            )
    return found


def unfit(summary: TraceSummary, *, needs_device: bool) -> Finding | None:
    """The gravest finding that keeps a trace from passing anything.

    Args:
        summary: the trace's.
        needs_device: whether anything that is asked of it is about the device; if not, a program that used none,
            although it was recorded, is as good as any.
    """
    for finding in summary.health.findings:
        idle = finding.code == "no_device_events" and not finding.count
        if finding.severity is Severity.ERROR and (needs_device or not idle):
            return finding
    return None


def needs_device(budgets: Sequence[Budget]) -> bool:
    """Whether any budget asks for what only a device does."""
    return bool(device_metrics(budgets))


def device_metrics(budgets: Sequence[Budget]) -> list[str]:
    """The metrics of budgets that only a device does anything for."""
    return list(dict.fromkeys(one.metric.name for one in budgets if one.metric.needs is Needs.DEVICE))


def no_baseline_for(path: Path, source: str) -> BudgetError:
    """What is wrong with a budget relative to a baseline that lacks the range."""
    return BudgetError(
        f"the baseline {source} has no range '{'/'.join(path)}', to which a budget is relative: make a new baseline, "
        "or give the bound as a number"
    )


class TraceBaseline:
    """Another trace as the baseline.

    Args:
        summary: its.
    """

    def __init__(self, summary: TraceSummary) -> None:
        self._summary = summary
        self._targets = {one.path: one for one in measuring.targets(summary)}

    def known(self, path: Path, metric: str, scope: str, per: str) -> Known | str:
        """Its numbers; or why it has none."""
        found = self._samples(path, metric, scope, per)
        return found if isinstance(found, str) else Known(min(found), max(found))

    def times(self, path: Path, metric: str, scope: str, per: str) -> Sequence[int] | str:
        """Its samples; or why it has none."""
        return self._samples(path, metric, scope, per)

    def _samples(self, path: Path, metric: str, scope: str, per: str) -> list[int] | str:
        target = measuring.whole(self._summary) if path == measuring.WHOLE else self._targets.get(path)
        if target is None:
            raise no_baseline_for(path, self._summary.source)
        if lacking(self._summary, metric):
            return f"the baseline {self._summary.source} has no {METRICS[metric].needs}"
        measured = measuring.measure(self._summary, target, metric, scope=scope, per=per)
        if measured.per != per:
            return f"the baseline {self._summary.source} has it a {measured.per}, this trace a {per}"
        return measured.samples.tolist() or f"the baseline {self._summary.source} has no calls of it"
