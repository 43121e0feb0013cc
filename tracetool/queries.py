"""A trace that can be asked: `trace.range("decode_step").kernel_launches`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from tracetool import checking, measuring
from tracetool.budgets import parse_table
from tracetool.chrome import read
from tracetool.errors import BudgetError, SettingError, TraceReadError, nearest
from tracetool.globs import PathGlob
from tracetool.metrics import METRICS, Needs, lookup, op_calls
from tracetool.render.sentences import sentence
from tracetool.summary import summarize

if TYPE_CHECKING:
    from pathlib import Path

    from tracetool.measuring import Target
    from tracetool.summary import TraceSummary


class NotRecordedError(SettingError):
    """What is asked for cannot be in the trace: there was no device, say."""


class Trace:
    """A trace that was captured, and the questions that it answers.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def summary(self) -> TraceSummary:
        """All that is counted in it."""
        return summarize(replace(read(str(self.path)), path="the trace"))

    def range(self, pattern: str) -> RangeCounts:
        """The counts of a range.

        Args:
            pattern: as `PathGlob` has it; it fits one range.

        Raises:
            SettingError: it fits none, or several.
        """
        ranges = measuring.targets(self.summary)
        found = measuring.fitting(self.summary, ranges, PathGlob(pattern))
        if not found:
            names = dict.fromkeys(one.path[-1] for one in ranges)
            raise SettingError(f"the trace has no range '{pattern}': {nearest(pattern.rpartition('/')[2], names)}")
        if len(found) > 1:
            paths = ", ".join("/".join(one.path) for one in found[:4])
            raise SettingError(f"'{pattern}' fits {len(found)} ranges ({paths}): write more of the path of one")
        return RangeCounts(self.summary, found[0], "total")

    @property
    def whole(self) -> RangeCounts:
        """The counts of the whole trace."""
        return RangeCounts(self.summary, measuring.whole(self.summary), "total")

    def check(self, pattern: str = "", /, **settings: object) -> None:
        """Hold the trace against budgets, as the marker `trace_budget` writes them.

        Raises:
            AssertionError: a budget is broken; each violation is a line.
            BudgetError: a budget cannot be read, or fits no range.
            NotRecordedError: something in it cannot be checked.
            TraceReadError: the trace is not healthy.
        """
        __tracebackhide__ = True
        table = {"range": pattern, **settings} if pattern else settings
        budgets = parse_table(table, "check")
        self.require_health(needs_device=checking.needs_device(budgets))
        outcomes = checking.check(self.summary, budgets)
        broken = [sentence(one) for one in outcomes if one.result is checking.Result.BROKEN]
        if broken:
            raise AssertionError("\n".join(broken))
        unchecked = [sentence(one) for one in outcomes if one.result is checking.Result.NOT_CHECKED]
        if unchecked:
            raise NotRecordedError("; ".join(unchecked))

    def require_health(self, *, needs_device: bool) -> None:
        """Refuse a trace whose numbers cannot be believed.

        Raises:
            TraceReadError: it is one.
        """
        __tracebackhide__ = True
        finding = checking.unfit(self.summary, needs_device=needs_device)
        if finding is not None:
            raise TraceReadError(f"the trace is not healthy: {finding.message}")


@dataclass(frozen=True, slots=True, repr=False)
class RangeCounts:
    """The metrics of one range, as attributes: each is what every call has.

    Attributes:
        summary: the trace's.
        target: the range.
        scope: `total`, or `self` for what the range does directly.
    """

    summary: TraceSummary
    target: Target
    scope: str

    def __getattr__(self, metric: str) -> int:
        """A metric for each call of the range (of the whole trace: over all of it; `calls`: for each step).

        Raises:
            AttributeError: there is no such metric.
            NotRecordedError: the trace cannot hold it.
            BudgetError: calls differ; `samples` gives them all.
        """
        __tracebackhide__ = True
        if metric not in METRICS:
            raise AttributeError(f"'{metric}' is no metric: {nearest(metric, METRICS)}")
        return self._constant(metric)

    def __repr__(self) -> str:
        """For pytest's account of a failed assertion."""
        return f"<range {'/'.join(self.target.path) or 'of the whole trace'!r}>"

    @property
    def own(self) -> RangeCounts:
        """What the range does directly, without the ranges in it."""
        return RangeCounts(self.summary, self.target, "self")

    @property
    def op_calls(self) -> OpCalls:
        """Ops by name: `op_calls["aten::copy_"]`."""
        return OpCalls(self)

    def samples(self, metric: str, per: str = "call") -> list[int]:
        """A metric of each call, step or trace; times in nanoseconds.

        Raises:
            SettingError: there is no such metric.
            NotRecordedError: the trace cannot hold it.
            TraceReadError: the trace is not healthy.
        """
        __tracebackhide__ = True
        known = lookup(metric)
        device = known.needs is Needs.DEVICE
        if (finding := checking.unfit(self.summary, needs_device=device)) is not None:
            raise TraceReadError(f"the trace is not healthy: {finding.message}")
        if reason := checking.lacking(self.summary, metric):
            raise NotRecordedError(f"{metric}: {reason}")
        asked = "trace" if self.target.path == measuring.WHOLE and per == "call" else per
        found = measuring.measure(self.summary, self.target, metric, scope=self.scope, per=asked)
        return list(map(int, found.samples))

    def _constant(self, metric: str) -> int:
        __tracebackhide__ = True
        found = self.samples(metric)
        if min(found, default=0) != max(found, default=0):
            raise BudgetError(
                f"{metric} of '{'/'.join(self.target.path)}' is {min(found)} to {max(found)}: ask for "
                f"samples('{metric}'), which gives every call's"
            )
        return found[0] if found else 0


@dataclass(frozen=True, slots=True)
class OpCalls:
    """Ops of a range by their names."""

    counts: RangeCounts

    def __getitem__(self, op: str) -> int:
        """How often each call of the range runs an op, at any depth; 0 for one that it does not run."""
        __tracebackhide__ = True
        return self.counts._constant(op_calls(op))  # noqa: SLF001 - its own half
