"""One trace summarised: a row for each range path, with its counts, times and what made them."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from tracetool import environment, health
from tracetool.attribution import OUTSIDE, Causes, attribute, source_frame_label
from tracetool.errors import TraceReadError
from tracetool.events import DEVICE_WORK, Category
from tracetool.folding import DEFAULT_FOLDS, Fold
from tracetool.limits import Limits
from tracetool.metrics import METRICS, PEAK, lookup, op_calls
from tracetool.ranges import BEFORE_WINDOW, NO_RANGE, RangeSource, build
from tracetool.replays import give_back
from tracetool.tally import Tally, Tree, max_by, union_length, union_lengths_up

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tracetool.attribution import Work
    from tracetool.events import BoolArray, IntArray, Trace
    from tracetool.health import Health
    from tracetool.ranges import RangeTable
    from tracetool.replays import Replays

Path = tuple[str, ...]
Counts = dict[str, int]

BY = ("op", "kernel", "function", "line")
"""What contributors are told by."""

_PROFILERS_SYNC = "cudaDeviceSynchronize (the profiler's own)"


@dataclass(frozen=True, slots=True)
class Spread:
    """Least, median and most of a metric over the calls of a range."""

    least: int
    median: float
    most: int

    @property
    def constant(self) -> bool:
        """Whether every call agrees."""
        return self.least == self.most


@dataclass(frozen=True, slots=True)
class Pieces:
    """Pieces of work that a metric counts in a range, as columns.

    Attributes:
        rows: of the summary's work.
        values: how much each adds.
        call: which call of the range, counted from 0; -1 where the row has no calls.
        step: an index into the trace's steps, or -1 outside of them.
    """

    rows: IntArray
    values: IntArray
    call: IntArray
    step: IntArray


class InvariantError(AssertionError):
    """Work was lost or counted twice: a defect in tracetool, never in a trace."""


class TraceSummary:
    """The counts of one trace by range path.

    Rows are numbered as a tree, each path before the paths in it, siblings in order of their first start. The
    last two rows are `(no range)` and `(before the window)`.
    """

    def __init__(
        self,
        trace: Trace,
        sources: Sequence[RangeSource] = (),
        folds: Sequence[Fold] = DEFAULT_FOLDS,
        eager: TraceSummary | None = None,
    ) -> None:
        """Attribute and count. `summarize` is the public way to make one."""
        self.source = trace.path
        self.metadata = trace.metadata
        self.environment = environment.describe(trace.metadata)
        self.event_count = len(trace.events)
        ranges = build(trace.events, sources, folds)
        limits = Limits.of_environment()
        if ranges.paths.bytes_of_all() > limits.paths_bytes:
            raise TraceReadError(
                f"{trace.path} has ranges within ranges whose paths take more than {limits.max_paths_mib:,} MiB, which "
                "is refused: --fold counts some together, TRACETOOL_MAX_PATHS_MIB sets another limit"
            )
        self.work: Work = attribute(trace.events, ranges)
        self.replays: Replays | None = None
        """What became of the work of graph launches, where an eager trace was there to tell its ranges."""
        self.eager_names: list[str] = []
        if eager is not None:
            self.work, self.replays = give_back(
                self.work, eager.work, source=trace.path, eager_source=eager.source, labels=_Labels(eager).causes()
            )
            self.eager_names = eager.work.events.names
        self.tally = Tally(self.work, compiles_noted=environment.as_captured(trace.metadata).get("compiles") is True)
        self.health: Health = health.assess(trace, self.tally, self.replays)
        self._rows = _Rows(self.work.ranges)
        self.check()

    # Rows --------------------------------------------------------------------------------------------------

    @cached_property
    def paths(self) -> list[Path]:
        """The path of each row."""
        return [*self._rows.paths, (NO_RANGE,), (BEFORE_WINDOW,)]

    @property
    def outside_row(self) -> int:
        """The row of `(no range)`."""
        return self._rows.count

    @property
    def before_row(self) -> int:
        """The row of `(before the window)`, which is in no total."""
        return self._rows.count + 1

    def subtree(self, row: int) -> range:
        """A row and the rows of the paths in it."""
        return range(row, row + (int(self._rows.size[row]) if row < self._rows.count else 1))

    def parent(self, row: int) -> int:
        """The row of the path around this one; -1 for none."""
        return int(self._rows.parent[row]) if row < self._rows.count else -1

    @cached_property
    def calls(self) -> IntArray:
        """Times that each row's range ran; 0 for the last two rows."""
        return np.append(np.bincount(self._rows.of_run, minlength=self._rows.count), [0, 0])

    @cached_property
    def ambiguous(self) -> list[bool]:
        """Whether some run of each row overlaps another range without nesting."""
        flags = np.zeros(self._rows.count + 2, dtype=np.bool_)
        flags[self._rows.of_run[self.tally.ranges.ambiguous]] = True
        return [bool(flag) for flag in flags]

    @cached_property
    def replayed(self) -> list[bool]:
        """Whether each row's range did not run in this trace, but has work of graph launches given back to it."""
        ran = np.append(np.bincount(self._rows.of_run, ~self.tally.ranges.via_graph, self._rows.count), [1, 1])
        return [not runs for runs in ran.tolist()]

    @cached_property
    def raw_names(self) -> dict[int, list[str]]:
        """The names that were folded, by row, where they differ from the row's name."""
        found: dict[int, dict[str, None]] = defaultdict(dict)
        names = self.work.events.names
        for row, raw in zip(self._rows.of_run.tolist(), self.tally.ranges.raw_name.tolist(), strict=True):
            if raw >= 0 and names[raw] != self.paths[row][-1]:
                found[row][names[raw]] = None
        return {row: list(raw) for row, raw in found.items()}

    # Metrics -----------------------------------------------------------------------------------------------

    @cached_property
    def metrics(self) -> list[str]:
        """Metrics that count something in this trace, in the order of the registry; without `op_calls`."""
        some = set(self.tally.amounts)
        if self._rows.count:
            some |= {"calls", "cpu_ns"}
        if "gpu_ns" in some:
            some.add("gpu_busy_ns")
        if len(self.tally.peaks.rows):
            some.add(PEAK)
        return [name for name in METRICS if name in some]

    @cached_property
    def op_metrics(self) -> list[str]:
        """The `op_calls` metrics of this trace."""
        return [op_calls(name) for name in self.tally.op_names]

    @cached_property
    def held(self) -> set[str]:
        """Metrics that this trace can hold; of the others nothing can be said, not even 0."""
        return self.tally.held()

    def holds(self, metric: str) -> bool:
        """Whether the trace can hold a metric at all."""
        return metric in self.held or metric not in METRICS

    def own(self, metric: str) -> IntArray:
        """Self of a metric, for each row."""
        if metric == "calls":
            return self.calls
        if metric == "gpu_busy_ns":
            return union_length(*self._device_rows(), self._rows.count + 2)
        if metric == PEAK:
            return max_by(self._rows.of_slot, self._run_values(metric, "self"), self._rows.count + 2)
        return self._by_row(self._run_values(metric, "self"))

    def total(self, metric: str) -> IntArray:
        """Total of a metric, for each row: its own and that of the rows in it."""
        if metric == "calls":
            return self.calls
        if metric == "gpu_busy_ns":
            return union_lengths_up(list(self._device_rows()), self._rows.tree, self._rows.count + 2)
        if metric == "cpu_ns":
            return self._by_row(self._run_values(metric, "total"))
        if metric == PEAK:
            return max_by(self._rows.of_slot, self._run_values(metric, "total"), self._rows.count + 2)
        return self._rows.tree.sums(self.own(metric))

    def value(self, metric: str, scope: str) -> IntArray:
        """`own` or `total`, for scope `self` or `total`; worked out once."""
        key = (metric, scope)
        if key not in self._values:
            found: IntArray = self.own(metric) if scope == "self" else self.total(metric)
            self._values[key] = found
        return self._values[key]

    @cached_property
    def _values(self) -> dict[tuple[str, str], IntArray]:
        return {}

    def counted(self, scope: str = "total") -> list[list[str]]:
        """For each row the metrics, `op_calls` among them, that are not zero there."""
        if scope not in self._counted:
            found: list[list[str]] = [[] for _ in self.paths]
            for name in (*self.metrics, *self.op_metrics):
                for row in np.flatnonzero(self.value(name, scope)).tolist():
                    found[row].append(name)
            self._counted[scope] = found
        return self._counted[scope]

    @cached_property
    def _counted(self) -> dict[str, list[list[str]]]:
        return {}

    def samples(self, metric: str, row: int, scope: str = "total") -> IntArray:
        """The metric of each call of a row, in order of time; empty for the last two rows.

        What did not run in this trace has no time on the CPU, and no sample of it.
        """
        found = self._run_samples(metric, row, scope)
        if metric == "cpu_ns" and self.replays and len(found):
            found = found[~self.tally.ranges.via_graph[self._rows.by_row[self._rows.run_slice(row)]]]
        return found

    def _run_samples(self, metric: str, row: int, scope: str) -> IntArray:
        if row >= self._rows.count:
            return np.empty(0, dtype=np.int64)
        return self._samples_by_row(metric, scope)[self._rows.run_slice(row)]

    def calls_within(self, row: int) -> IntArray:
        """How often a row's range ran in each call of the range around it; for a row without one: empty."""
        around = self.parent(row)
        if around < 0:
            return np.empty(0, dtype=np.int64)
        outer = self._rows.by_row[self._rows.run_slice(around)]
        place = np.zeros(self.tally.runs, dtype=np.int64)
        place[outer] = np.arange(len(outer))
        inner = self._rows.by_row[self._rows.run_slice(row)]
        return np.bincount(place[self.tally.ranges.parent[inner]], minlength=len(outer))

    def step_samples(self, metric: str, row: int, scope: str = "total") -> IntArray:
        """The metric of a row in each profiler step, in the order of the file; what lies outside steps is left out."""
        found = np.zeros(self.step_count + 1, dtype=np.int64)
        take = np.maximum.at if metric == PEAK else np.add.at
        if row < self._rows.count:
            take(
                found,
                self._run_steps[self._rows.by_row[self._rows.run_slice(row)]],
                self._run_samples(metric, row, scope),
            )
        elif metric == PEAK or metric in self.tally.amounts:
            amounts = self.tally.peaks if metric == PEAK else self.tally.amounts_of(metric)
            here = self._rows.of_slot[self.tally.slots(amounts.rows)] == row
            take(found, self.work.step[amounts.rows[here]], amounts.values[here])
        return found[:-1]

    @cached_property
    def _run_steps(self) -> IntArray:
        ranges = self.tally.ranges
        pids = self.work.events.process_numbers()
        steps: IntArray = self.work.steps.at(pids[ranges.thread], ranges.start)
        return steps

    def spreads(self, metric: str, scope: str = "total") -> list[Spread]:
        """Least, median and most over the calls of each row, without the last two rows."""
        if not self._rows.count:
            return []
        values, begins = self._samples_by_row(metric, scope), self._rows.begins
        least, most = np.minimum.reduceat(values, begins), np.maximum.reduceat(values, begins)
        median = least.astype(np.float64)
        for row in np.flatnonzero(least != most).tolist():
            median[row] = np.median(samples := self.samples(metric, row, scope))
            least[row], most[row] = samples.min(), samples.max()
        return [
            Spread(low, middle, high)
            for low, middle, high in zip(least.tolist(), median.tolist(), most.tolist(), strict=True)
        ]

    def _samples_by_row(self, metric: str, scope: str) -> IntArray:
        key = (metric, scope)
        if key not in self._sorted_runs:
            of_runs: IntArray = self._run_values(metric, scope)[: self.tally.runs]
            self._sorted_runs[key] = of_runs[self._rows.by_row]
        return self._sorted_runs[key]

    @cached_property
    def _sorted_runs(self) -> dict[tuple[str, str], IntArray]:
        return {}

    def _run_values(self, metric: str, scope: str) -> IntArray:
        """The metric of each run, and of the two slots without runs (for times of ranges: 0)."""
        lookup(metric)
        tally = self.tally
        if metric == "cpu_ns":
            return np.append(tally.cpu_own() if scope == "self" else tally.cpu_total(), [0, 0])
        if metric == "gpu_busy_ns":
            return tally.busy_own() if scope == "self" else tally.busy_total()
        if metric == "calls":
            return np.append(np.ones(tally.runs, dtype=np.int64), [0, 0])
        if metric == PEAK:
            return tally.peak_own() if scope == "self" else tally.peak_total()
        return tally.own(metric) if scope == "self" else tally.total(metric)

    def _by_row(self, of_runs: IntArray) -> IntArray:
        sums = np.zeros(self._rows.count + 2, dtype=np.int64)
        np.add.at(sums, self._rows.of_slot, of_runs)
        return sums

    def _device_rows(self) -> tuple[IntArray, IntArray, IntArray, IntArray]:
        slot, device, start, end = self.tally.device_intervals()
        return self._rows.of_slot[slot], device, start, end

    # Whole trace, steps, threads ---------------------------------------------------------------------------

    @cached_property
    def totals(self) -> Counts:
        """Every metric over the whole trace, without the work from before the window."""
        found = {}
        for name in self.metrics:
            if name == "gpu_busy_ns":
                rows, device, start, end = self._device_rows()
                # All that is not from before the window is one group, and that another.
                found[name] = int(union_length((rows == self.before_row).astype(np.int8), device, start, end, 2)[0])
            elif name == PEAK:
                found[name] = int(self.own(name)[: self.before_row].max())
            elif name != "calls":
                found[name] = int(self.own(name)[: self.before_row].sum())
        return {name: value for name, value in found.items() if value}

    @property
    def step_count(self) -> int:
        """How many profiler steps the trace has."""
        return len(self.work.steps.number)

    @cached_property
    def steps(self) -> list[tuple[int, Counts]]:
        """The number of each step, and what its calls (on any thread) own."""
        steps = self.work.steps
        found: list[Counts] = [{} for _ in steps.number]
        for name, amounts in self.tally.amounts.items():
            of_step = self.work.step[amounts.rows]
            sums = np.zeros(len(found) + 1, dtype=np.int64)
            np.add.at(sums, of_step, amounts.values)
            for counts, value in zip(found, sums[:-1].tolist(), strict=True):
                if value:
                    counts[name] = value
        peaks = max_by(self.work.step[self.tally.peaks.rows], self.tally.peaks.values, len(found) + 1)
        for counts, peak in zip(found, peaks[:-1].tolist(), strict=True):
            if peak:
                counts[PEAK] = peak
        for counts, length in zip(found, (steps.end - steps.start).tolist(), strict=True):
            counts["cpu_ns"] = length
        return list(zip(steps.number.tolist(), found, strict=True))

    @cached_property
    def via_autograd(self) -> dict[int, Counts]:
        """The part of each row's self that belongs to it via autograd."""
        return self._part(self.work.via_autograd)

    @cached_property
    def via_graph(self) -> dict[int, Counts]:
        """The part of each row's self that a graph launch did, and that an eager trace gave back to it."""
        return self._part(self.work.via_graph) if self.replays else {}

    def _part(self, flags: BoolArray) -> dict[int, Counts]:
        """The part of each row's self that comes from the flagged rows of work."""
        found: dict[int, Counts] = defaultdict(dict)
        for name, amounts in self.tally.amounts.items():
            via = flags[amounts.rows]
            rows = self._rows.of_slot[self.tally.slots(amounts.rows[via])]
            for row, _, value in _grouped(rows, np.zeros_like(rows), amounts.values[via]):
                found[row][name] = value
        return dict(found)

    @property
    def unhealthy(self) -> str:
        """Why its numbers cannot be believed, in a sentence that names it; empty where they can."""
        error = self.health.error
        return "" if error is None else f"{self.source} is not healthy: {error.message}"

    @cached_property
    def threads(self) -> dict[int, dict[int, Counts]]:
        """Self of each row by the thread that did it (an index into the trace's threads)."""
        found: dict[int, dict[int, Counts]] = defaultdict(lambda: defaultdict(dict))
        for name, amounts in self.tally.amounts.items():
            rows = self._rows.of_slot[self.tally.slots(amounts.rows)]
            threads = self.work.thread[amounts.rows]
            here = rows != self.before_row
            for row, thread, value in _grouped(rows[here], threads[here], amounts.values[here]):
                found[row][thread][name] = value
        return {row: dict(by_thread) for row, by_thread in found.items()}

    # Contributors ------------------------------------------------------------------------------------------

    def contributors(self, row: int, by: str, scope: str = "self") -> dict[str, Counts]:
        """What made a row's counts: for each op, kernel, function or line its part of every metric."""
        found: dict[str, Counts] = defaultdict(dict)
        for metric in self.tally.amounts:
            for name, value in self.contributors_to(metric, row, by, scope).items():
                found[name][metric] = value
        return dict(found)

    def contributors_to(self, metric: str, row: int, by: str, scope: str = "self") -> dict[str, int]:
        """What made one of a row's counts: the part of each op, kernel, function or line."""
        entries = self._contributions(metric, by)
        if entries is None:
            return {}
        rows = self.subtree(row) if scope == "total" else range(row, row + 1)
        low, high = np.searchsorted(entries.row, [rows.start, rows.stop])
        found: dict[str, int] = defaultdict(int)
        for name, value in zip(entries.name[low:high], entries.value[low:high].tolist(), strict=True):
            found[name] += value
        return dict(found)

    def _contributions(self, metric: str, by: str) -> _Entries | None:
        if (metric, by) not in self._contributed:
            self._contributed[metric, by] = self._contributions_to(metric, by)
        return self._contributed[metric, by]

    def _contributions_to(self, metric: str, by: str) -> _Entries | None:
        if metric not in self.tally.amounts:
            return None
        amounts = self.tally.amounts[metric]
        label, texts = self._labelled(by)
        names = label[amounts.rows]
        known = names >= 0
        if not known.any():
            return None
        triples = _grouped(self.rows_of(amounts.rows[known]), names[known], amounts.values[known])
        return _Entries(
            np.array([row for row, _, _ in triples], dtype=np.int64),
            [texts(name) for _, name, _ in triples],
            np.array([value for _, _, value in triples], dtype=np.int64),
        )

    @cached_property
    def _contributed(self) -> dict[tuple[str, str], _Entries | None]:
        return {}

    @cached_property
    def _labels(self) -> _Labels:
        return _Labels(self)

    def pieces(self, metric: str, row: int, scope: str = "total") -> Pieces:
        """The pieces of work that an additive metric counts in a row, each with the call of the row it belongs to."""
        amounts, ranges = self.tally.amounts_of(metric), self.tally.ranges
        slot = self.tally.slots(amounts.rows)
        inside = self.subtree(row) if scope == "total" else range(row, row + 1)
        here = (self._rows.of_slot[slot] >= inside.start) & (self._rows.of_slot[slot] < inside.stop)
        slot, rows, values = slot[here], amounts.rows[here], amounts.values[here]
        if row >= self._rows.count:
            return Pieces(rows, values, np.full(len(rows), -1, dtype=np.int64), self.work.step[rows])
        while (outer := self._rows.of_slot[slot] != row).any():
            slot = np.where(outer, ranges.parent[slot], slot)
        runs = self._rows.by_row[self._rows.run_slice(row)]
        call = np.zeros(self.tally.runs, dtype=np.int64)
        call[runs] = np.arange(len(runs))
        return Pieces(rows, values, call[slot], self._run_steps[slot])

    def rows_of(self, rows: IntArray) -> IntArray:
        """The row that each piece of work belongs to directly."""
        found: IntArray = self._rows.of_slot[self.tally.slots(rows)]
        return found

    def runs_of(self, row: int) -> IntArray:
        """The runs of a row's range, as rows of the range table, in order of time; none for the last two rows."""
        if row >= self._rows.count:
            return np.empty(0, dtype=np.int64)
        found: IntArray = self._rows.by_row[self._rows.run_slice(row)]
        return found

    def places(self, rows: IntArray) -> list[tuple[str, str]]:
        """The op that made each piece of work, and where the program called it (its line, else its function)."""
        found: list[list[str]] = []
        for by in ("op", "line", "function"):
            labels, text = self._labelled(by)
            found.append([text(label) if label >= 0 else "" for label in labels[rows].tolist()])
        return [(op, line or function) for op, line, function in zip(*found, strict=True)]

    def _labelled(self, by: str) -> tuple[IntArray, Callable[[int], str]]:
        if by not in self._label_columns:
            self._label_columns[by] = self._labels.by(by)
        return self._label_columns[by]

    @cached_property
    def _label_columns(self) -> dict[str, tuple[IntArray, Callable[[int], str]]]:
        return {}

    # Invariants --------------------------------------------------------------------------------------------

    def check(self) -> None:
        """All work is counted in exactly one self, and totals are the sums of their selfs.

        Raises:
            InvariantError: they are not.
        """
        device = len(self.work.of(*DEVICE_WORK))
        counted = sum(int(self.own(name).sum()) for name in ("kernels", "copies", "memsets"))
        if counted != device:
            raise InvariantError(f"{counted} pieces of device work in all selfs, {device} in the trace")
        roots = [row for row in range(self._rows.count) if self._rows.parent[row] < 0]
        for name, amounts in self.tally.amounts.items():
            whole = int(amounts.values.sum())
            of_runs = self.tally.own(name)
            own = self._by_row(of_runs)
            total = self._rows.tree.sums(own)
            in_totals = int(total[roots].sum() + total[self._rows.count :].sum())
            if not int(own.sum()) == whole == in_totals:
                raise InvariantError(f"{name}: {whole} in the trace, {in_totals} in the totals")
            by_runs = self._by_row(self.tally.tree.sums(of_runs))
            if not np.array_equal(by_runs, total):
                raise InvariantError(f"{name}: totals of the calls do not add up to those of their ranges")


def summarize(
    trace: Trace,
    *,
    ranges_as: Sequence[RangeSource] = (),
    folds: Sequence[Fold] = DEFAULT_FOLDS,
    ranges_from: TraceSummary | Trace | None = None,
) -> TraceSummary:
    """Count the work of each range of a trace.

    Args:
        trace: as `tracetool.read` gives it.
        ranges_as: other events that serve as ranges too; see `tracetool.ranges.range_source`.
        folds: how names with counters are folded; see `tracetool.folding`.
        ranges_from: an eager trace of the same step, or its summary: the device work of this trace's graph launches
            is given back to the ranges that it was captured in; `replays` of the result says how much of it. A trace
            without graph launches is counted as it is.

    Raises:
        SettingError: `ranges_from` has no counterpart of any of this trace's graph launches.
        TraceReadError: paths of ranges within ranges take more than the limit.
    """
    if ranges_from is not None and not isinstance(ranges_from, TraceSummary):
        ranges_from = TraceSummary(ranges_from, ranges_as, folds)
    return TraceSummary(trace, ranges_as, folds, ranges_from)


@dataclass(frozen=True, slots=True)
class _Entries:
    """Contributions to one metric, sorted by row."""

    row: IntArray
    name: list[str]
    value: IntArray


class _Labels:
    """Names the contributor of each row of work."""

    def __init__(self, summary: TraceSummary) -> None:
        self._work = summary.work
        self._causes = Causes(summary.work)
        events = summary.work.events
        self._replays = summary.replays
        self._profilers_name = len(events.names)
        self._names = [*events.names, _PROFILERS_SYNC, *summary.eager_names]
        last = int(summary.work.steps.end.max(initial=np.iinfo(np.int64).min))
        calls = summary.work.of(Category.CALL)
        of = summary.work.event[calls]
        self._profilers = calls[
            (summary.work.range[calls] == OUTSIDE)
            & (events.start[of] >= last)
            & np.array([name == "cudaDeviceSynchronize" for name in events.names], dtype=np.bool_)[events.name[of]]
            & bool(summary.step_count)
        ]

    def by(self, by: str) -> tuple[IntArray, Callable[[int], str]]:
        """A label for each row of work (-1: none), and what turns labels into text."""
        labels = {"op": self._ops, "kernel": self._kernels, "function": self._functions, "line": self._lines}[by]()
        if self._replays and by in self._replays.labels:
            labels, theirs = labels.copy(), self._replays.labels[by]
            labels[self._replays.rows[theirs >= 0]] = self._profilers_name + 1 + theirs[theirs >= 0]
        if by == "function":
            return labels, lambda name: source_frame_label(self._names[name])
        return labels, self._names.__getitem__

    def causes(self) -> dict[str, IntArray]:
        """What made each row of work, for every kind of contributor that a replay does not tell; -1 for nothing."""
        events, ops = self._work.events, self._none()
        inside = self._innermost_ops >= 0
        ops[inside] = events.name[self._innermost_ops[inside]]
        return {"op": ops, "function": self._functions(), "line": self._lines()}

    def _none(self) -> IntArray:
        return np.full(len(self._work.event), -1, dtype=np.int32)

    def _kernels(self) -> IntArray:
        label, device = self._none(), self._work.of(*DEVICE_WORK)
        label[device] = self._work.events.name[self._work.event[device]]
        return label

    def _functions(self) -> IntArray:
        label, events = self._none(), self._work.events
        if len(events.of(Category.PYTHON)):
            found = self._causes.innermost_function(np.arange(len(label)))
            label[found >= 0] = events.name[found[found >= 0]]
        return label

    def _lines(self) -> IntArray:
        events = self._work.events
        if not len(events.line.rows):
            return np.broadcast_to(np.int32(-1), len(self._work.event))  # one -1, seen as many times as there are rows
        label, around = self._none(), self._innermost_ops >= 0
        label[around] = events.line.at(self._innermost_ops[around], -1)
        return label

    def _ops(self) -> IntArray:
        """Where no op is around it, a call contributes by its own name, and device work by its call's."""
        work, events = self._work, self._work.events
        label = self._none()
        for begin in range(0, len(label), _BLOCK):
            part = slice(begin, begin + _BLOCK)
            around = self._innermost_ops[part]
            label[part] = events.name[np.where(around >= 0, around, work.event[part])]
        bare = work.owned[self._innermost_ops[work.owned] < 0]
        label[bare] = events.name[work.event[work.owner(bare)]]
        label[self._profilers] = self._profilers_name
        return label

    @cached_property
    def _innermost_ops(self) -> IntArray:
        """The op around each row of work; of an op, itself."""
        return self._causes.innermost_ops(ops_themselves=True)


class _Rows:
    """Rows of a summary: distinct paths in tree order, and the runs of each."""

    def __init__(self, ranges: RangeTable) -> None:
        parent = np.array(ranges.paths.parent, dtype=np.int64)
        self.count = len(parent)
        tree = Tree(parent)
        place = tree.place
        self.parent = np.full(self.count, -1, dtype=np.int64)
        has_parent = parent >= 0
        self.parent[place[has_parent]] = place[parent[has_parent]]
        self.size = np.empty(self.count, dtype=np.int64)
        self.size[place] = tree.size
        self.tree = Tree(self.parent)
        numbers = np.empty(self.count, dtype=np.int64)
        numbers[place] = np.arange(self.count)
        self._numbers = numbers
        self._tree_of_paths = ranges.paths
        self.of_run = place[ranges.path] if self.count else np.empty(0, dtype=np.int64)
        self.of_slot = np.append(self.of_run, [self.count, self.count + 1]).astype(np.int32)
        self.by_row = np.lexsort((ranges.start, self.of_run))
        self.begins = np.searchsorted(self.of_run[self.by_row], np.arange(self.count), "left")

    @cached_property
    def paths(self) -> list[Path]:
        return [self._tree_of_paths.path(number) for number in self._numbers.tolist()]

    def run_slice(self, row: int) -> slice:
        end = self.begins[row + 1] if row + 1 < self.count else len(self.by_row)
        return slice(int(self.begins[row]), int(end))


_DENSE = 1 << 16
_BLOCK = 1 << 16


def _grouped(first: IntArray, second: IntArray, values: IntArray) -> list[tuple[int, int, int]]:
    """Sums of values by pairs, as (first, second, sum), sorted."""
    if not len(first):
        return []
    width = int(second.max()) + 1
    if (size := (int(first.max()) + 1) * width) <= max(_DENSE, len(first)):
        # Summed in place: sorting would take several times as long.
        pair = first.astype(np.int64) * width + second
        sums, there = np.zeros(size, dtype=np.int64), np.zeros(size, dtype=np.bool_)
        np.add.at(sums, pair, values)
        there[pair] = True
        pairs = np.flatnonzero(there)
        return list(zip((pairs // width).tolist(), (pairs % width).tolist(), sums[pairs].tolist(), strict=True))
    order = np.lexsort((second, first))
    first, second, values = first[order], second[order], values[order]
    new = np.ones(len(first), dtype=np.bool_)
    new[1:] = (first[1:] != first[:-1]) | (second[1:] != second[:-1])
    begins = np.flatnonzero(new)
    sums = np.add.reduceat(values, begins)
    return list(zip(first[begins].tolist(), second[begins].tolist(), sums.tolist(), strict=True))
