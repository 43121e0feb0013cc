"""One trace as rules look at it: its work by step, range and op, and what a step would take without some of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from tracetool import apis, autograd
from tracetool.attribution import EARLIER, Causes
from tracetool.events import DEVICE_WORK, Category
from tracetool.findings.finding import Cost, Culprit
from tracetool.findings.whatif import WhatIf
from tracetool.folding import step_number
from tracetool.nesting import order_of, sweep
from tracetool.tally import union_length

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tracetool.events import BoolArray, IntArray
    from tracetool.findings.whatif import Change
    from tracetool.summary import Path, TraceSummary

_MOST_CULPRITS = 3


@dataclass(frozen=True, slots=True)
class Group:
    """Work of one kind in one range.

    Attributes:
        row: of the summary.
        name: what it has in common besides: an op's name, say.
        rows: of the work, in order of time.
    """

    row: int
    name: str
    rows: IntArray


class Subject:
    """A trace and what rules ask of it.

    Args:
        summary: of the trace.
    """

    def __init__(self, summary: TraceSummary) -> None:
        self.summary = summary
        self.work = summary.work
        self.events = summary.work.events
        self.units = summary.step_count or 1

    @cached_property
    def has_device_work(self) -> bool:
        """Whether anything of a device is on record."""
        return bool(len(self.work.of(*DEVICE_WORK)))

    # Steps -------------------------------------------------------------------------------------------------

    @property
    def unit(self) -> str:
        """What numbers are of: `step`, or `trace` where there are no steps."""
        return "step" if self.summary.step_count else "trace"

    @cached_property
    def step_ns(self) -> float:
        """Time of a step, the median; without steps from the first event to the last."""
        steps = self.work.steps
        if len(steps.number):
            return float(np.median(steps.end - steps.start))
        return float(self.events.end.max() - self.events.start.min()) if len(self.events) else 0.0

    @cached_property
    def busy_ns(self) -> float:
        """Time of a step in which some device works, the mean."""
        rows = self.steady(self.work.of(*DEVICE_WORK))
        of = self.work.event[rows]
        zero = np.zeros(len(rows), dtype=np.int64)
        return float(union_length(zero, zero, self.events.start[of], self.events.end[of], 1)[0]) / self.units

    def steady(self, rows: IntArray) -> IntArray:
        """Those that a step owns, in order of time; without steps those of the window."""
        inside = self.work.step[rows] >= 0 if self.summary.step_count else self.work.range[rows] != EARLIER
        rows = rows[inside]
        return rows[np.argsort(self.start(rows), kind="stable")]

    def repeated(self, rows: IntArray) -> bool:
        """Whether most steps have some of the work; without steps, whether several calls of its range have."""
        if not self.summary.step_count:
            return len(np.unique(self.slot(rows))) > 1
        return len(np.unique(self.work.step[rows])) * 2 > self.summary.step_count

    def per_step(self, rows: IntArray) -> float:
        """How many of the work a step has: the median over steps that have any."""
        if not self.summary.step_count:
            return float(len(rows))
        counts = np.bincount(self.work.step[rows])
        return float(np.median(counts[counts > 0])) if len(rows) else 0.0

    # Work --------------------------------------------------------------------------------------------------

    def start(self, rows: IntArray) -> IntArray:
        """When the CPU began it: of device work, its call."""
        return self.events.start[self.work.event[self.call(rows)]]

    def duration(self, rows: IntArray) -> IntArray:
        """How long each piece took, ns."""
        of = self.work.event[rows]
        return self.events.end[of] - self.events.start[of]

    def times(self, rows: IntArray) -> list[tuple[int, int]]:
        """When each piece of work itself began and ended, ns."""
        of = self.work.event[rows]
        return list(zip(self.events.start[of].tolist(), self.events.end[of].tolist(), strict=True))

    def call(self, rows: IntArray) -> IntArray:
        """The call that owns each piece of device work; of a call itself."""
        owner = self.work.owner(rows)
        return np.where(owner >= 0, owner, rows)

    def slot(self, rows: IntArray) -> IntArray:
        """Which run of a range each belongs to."""
        return self.summary.tally.slots(rows)

    def row(self, rows: IntArray) -> IntArray:
        """The summary's row of each."""
        return self.summary.rows_of(rows)

    def raw_name(self, rows: IntArray) -> list[str]:
        """The name of each as the file has it: a kernel's, a call's."""
        return [self.events.names[name] for name in self.events.name[self.work.event[rows]].tolist()]

    def named(self, rows: IntArray, test: Callable[[str], bool]) -> IntArray:
        """Those whose own name passes a test."""
        return rows[self.named_mask(rows, test)]

    def named_mask(self, rows: IntArray, test: Callable[[str], bool]) -> BoolArray:
        """Which of them have a name that passes a test."""
        found: BoolArray = apis.named(self.events.names, test)[self.events.name[self.work.event[rows]]]
        return found

    def copies(self, direction: str, memory: str = "") -> IntArray:
        """Copies of a direction (and of a kind of host memory) in steps."""

        def fits(name: str) -> bool:
            kind = apis.copy_kind(name)
            return kind.direction == direction and memory in ("", kind.memory)

        return self.steady(self.named(self.work.of(Category.MEMCPY), fits))

    @cached_property
    def untold_memory(self) -> str:
        """Why nothing can be said of pageable and pinned memory, where the trace does not tell them apart."""
        copies = np.concatenate([self.copies("h2d"), self.copies("d2h")])
        kinds = {apis.copy_kind(name).memory for name in set(self.raw_name(copies))}
        return "the trace does not tell pageable from pinned memory" if kinds == {""} else ""

    def amounts(self, metric: str) -> IntArray:
        """What a metric counts, in steps."""
        return self.steady(self.summary.tally.amounts_of(metric).rows)

    def bytes(self, rows: IntArray) -> IntArray:
        """Bytes of copies and memsets."""
        return self.events.bytes.at(self.work.event[rows], 0)

    def groups(self, rows: IntArray, names: Sequence[str]) -> Iterator[Group]:
        """Work by its range and a name."""
        keys: dict[tuple[int, str], list[int]] = {}
        for work, row, name in zip(rows.tolist(), self.row(rows).tolist(), names, strict=True):
            keys.setdefault((row, name), []).append(work)
        for (row, name), members in keys.items():
            yield Group(row, name, np.array(members, dtype=np.int64))

    def path(self, row: int) -> Path:
        """The path of a row."""
        return self.summary.paths[row]

    def calls(self, row: int) -> float:
        """How often a range ran a step."""
        return float(self.summary.calls[row]) / self.units

    # Ops ---------------------------------------------------------------------------------------------------

    @cached_property
    def _parents(self) -> IntArray:
        """The op around each op, as rows of the trace's events; -1 for none, and for what is no op."""
        events = self.events
        ops = events.of(Category.OP)
        ops = ops[~autograd.is_wrapper(events.names)[events.name[ops]]]
        lane = events.thread[ops].astype(np.int64)
        order = ops[order_of(lane, events.start[ops], events.end[ops])]
        parent, _ = sweep(
            events.thread[order].astype(np.int64),
            events.start[order].astype(np.int64),
            events.end[order].astype(np.int64),
        )
        found = np.full(len(events), -1, dtype=np.int64)
        found[order] = np.where(parent >= 0, order[parent], -1)
        return found

    @cached_property
    def _innermost(self) -> IntArray:
        """The op around each row of work; -1 for none."""
        return Causes(self.work).innermost_ops()

    def op(self, rows: IntArray) -> IntArray:
        """The innermost op around each piece of work, as a row of the trace's events; -1 for none."""
        return self._innermost[rows]

    def chain(self, row: int) -> list[str]:
        """Names of the ops around a piece of work, the innermost first."""
        return [self._op_name(op) for op in self._around(row)]

    def chains(self, rows: IntArray) -> list[list[str]]:
        """The same of several."""
        return [self.chain(row) for row in rows.tolist()]

    def around(self, rows: IntArray, name: str) -> IntArray:
        """The outermost op of a name around each piece of work, as a row of the events; -1 for none."""
        found = [[op for op in self._around(row) if self._op_name(op) == name] for row in rows.tolist()]
        return np.array([ops[-1] if ops else -1 for ops in found], dtype=np.int64)

    def _op_name(self, op: int) -> str:
        name: str = self.events.names[self.events.name[op]]
        return name

    def outermost(self, row: int) -> int:
        """The outermost op around a piece of work inside its innermost range, as a row of the events; -1 for none."""
        begun = self._begun(row)
        inside = [op for op in self._around(row) if self.events.start[op] >= begun]
        return inside[-1] if inside else -1

    def _begun(self, row: int) -> int:
        """When the range around a piece of work began."""
        run = int(self.slot(np.array([row]))[0])
        return int(self.work.ranges.start[run]) if run < len(self.work.ranges) else int(np.iinfo(np.int64).min)

    def _around(self, row: int) -> list[int]:
        found, op = [], int(self._innermost[row])
        while op >= 0:
            found.append(op)
            op = int(self._parents[op])
        return found

    def span(self, row: int) -> tuple[int, int]:
        """The CPU time of a piece of work: its outermost op, or its call where no op is around it."""
        op = self.outermost(row)
        event = op if op >= 0 else int(self.work.event[int(self.call(np.array([row]))[0])])
        return int(self.events.start[event]), int(self.events.end[event])

    @cached_property
    def _ops_by_time(self) -> dict[int, IntArray]:
        """Ops of each thread, by their start."""
        ops = self.events.of(Category.OP)
        ops = ops[np.argsort(self.events.start[ops], kind="stable")]
        threads = self.events.thread[ops]
        return {thread: ops[threads == thread] for thread in np.unique(threads).tolist()}

    def followed_by(self, rows: IntArray, name: str) -> BoolArray:
        """After which pieces of work the next op of the thread, once the outermost around it has ended, has a name."""
        found = np.zeros(len(rows), dtype=np.bool_)
        outermost = np.array([self.outermost(row) for row in rows.tolist()], dtype=np.int64)
        named = apis.named(self.events.names, lambda one: one == name)
        for thread, ops in self._ops_by_time.items():
            mine = np.flatnonzero((outermost >= 0) & (self.events.thread[outermost] == thread))
            after = np.searchsorted(self.events.start[ops], self.events.end[outermost[mine]], "left")
            mine, after = mine[after < len(ops)], after[after < len(ops)]
            found[mine] = named[self.events.name[ops[after]]]
        return found

    def with_op_of(self, rows: IntArray) -> IntArray:
        """Device work that the innermost ops around some rows own."""
        ops = self.op(rows)
        device = self.steady(self.work.of(*DEVICE_WORK))
        return device[np.isin(self.op(device), ops[ops >= 0])]

    def inside(self, name: str, ops: IntArray) -> IntArray:
        """Device work whose outermost op of a name is one of some."""
        device = self.steady(self.work.of(*DEVICE_WORK))
        return device[np.isin(self.around(device, name), ops[ops >= 0])]

    def outermost_end(self, rows: IntArray) -> IntArray:
        """When the outermost run around each piece of work ends; outside any range, the trace."""
        ranges = self.work.ranges
        ends = np.full(len(rows), int(self.events.end.max(initial=0)), dtype=np.int64)
        for place, slot in enumerate(self.slot(rows).tolist()):
            run = slot if slot < len(ranges) else -1
            while run >= 0:
                ends[place] = ranges.end[run]
                run = int(ranges.parent[run])
        return ends

    def op_names(self, rows: IntArray) -> list[str]:
        """What made each: the innermost op, or the call."""
        return [op for op, _ in self.summary.places(rows)]

    def culprits(self, rows: IntArray) -> tuple[Culprit, ...]:
        """The ops (and lines) that make some work, the most frequent first."""
        counted = Counter(self.summary.places(rows)).most_common(_MOST_CULPRITS)
        return tuple(Culprit(op, place, count / self.units) for (op, place), count in counted)

    # Runs and device time ----------------------------------------------------------------------------------

    @cached_property
    def first_step(self) -> int:
        """The step that began first, as an index into the steps; -1 where there are none."""
        steps = self.work.steps
        return int(steps.start.argmin()) if len(steps.number) else -1

    def repeated_later(self, rows: IntArray) -> bool:
        """Whether most steps after the first have some of the work."""
        steps = self.summary.step_count
        if steps < 2:
            return self.repeated(rows)
        return len(np.unique(self.work.step[rows])) * 2 > steps - 1

    def runs(self, row: int) -> list[tuple[int, int]]:
        """When each run of a range in a step began and ended."""
        ranges = self.work.ranges
        of = self.summary.runs_of(row)
        of = of[~ranges.via_graph[of]]
        if self.summary.step_count:
            pids = self.events.process_numbers()[ranges.thread[of]]
            of = of[self.work.steps.at(pids, ranges.start[of]) >= 0]
        return list(zip(ranges.start[of].tolist(), ranges.end[of].tolist(), strict=True))

    def begins_step(self, start: int, end: int) -> bool:
        """Whether an interval lies in a step before anything was launched there."""
        steps = self.work.steps
        for begin, stop in zip(steps.start.tolist(), steps.end.tolist(), strict=True):
            if begin <= start < stop:
                return not self.launches_between(begin, end)
        return False

    def busy(self, device: IntArray) -> int:
        """Time in which some of the device work ran, ns, on all devices together."""
        of = self.work.event[device]
        zero = np.zeros(len(of), dtype=np.int64)
        return int(union_length(zero, zero, self.events.start[of], self.events.end[of], 1)[0])

    def busy_between(self, spans: Sequence[tuple[int, int]], device: IntArray) -> int:
        """The part of that within some intervals of time."""
        of = self.work.event[device]
        start, end = self.events.start[of], self.events.end[of]
        busy = 0
        for begin, stop in spans:
            here = (start < stop) & (end > begin)
            zero = np.zeros(int(np.count_nonzero(here)), dtype=np.int64)
            busy += int(union_length(zero, zero, np.maximum(start[here], begin), np.minimum(end[here], stop), 1)[0])
        return busy

    def covered(self, spans: Sequence[tuple[int, int]]) -> int:
        """The time that intervals cover, ns."""
        start, end = (np.array([span[side] for span in spans], dtype=np.int64) for side in (0, 1))
        zero = np.zeros(len(spans), dtype=np.int64)
        return int(union_length(zero, zero, start, end, 1)[0])

    def kernels_of(self, launches: IntArray) -> dict[int, list[int]]:
        """The kernels that each of some calls owns."""
        kernels = self.work.of(Category.KERNEL)
        kernels = kernels[np.isin(self.work.owner(kernels), launches)]
        found: dict[int, list[int]] = {launch: [] for launch in launches.tolist()}
        for kernel, owner in zip(kernels.tolist(), self.work.owner(kernels).tolist(), strict=True):
            found[owner].append(kernel)
        return found

    def by_graph(self, device: IntArray) -> BoolArray:
        """Which device work a graph launch owns."""
        names = self.events.name[self.work.event[self.call(device)]]
        return apis.named(self.events.names, apis.is_graph_launch)[names]

    def compiled_for(self, compiles: IntArray) -> list[int]:
        """What each compile was for, as an index into the trace's names; -1 where that is not told."""
        found: list[int] = self.events.compiled_for.at(self.work.event[compiles], -1).tolist()
        return found

    # Estimates ---------------------------------------------------------------------------------------------

    @cached_property
    def what_if(self) -> WhatIf:
        """Replays of the trace."""
        return WhatIf(self.work)

    def cost(self, rows: IntArray, change: Change, how: str, *, steps: int = 0, most: float | None = None) -> Cost:
        """What a step would take less after a change; no number where the work is beside the steps' own thread.

        Args:
            rows: the work that the change is about.
            change: what is left out.
            how: the words for that.
            steps: over how many steps it is spread; all of them unless told.
            most: no more than this, ns, whatever the replay says.
        """
        steps = steps or self.units
        if not self._in_turn(rows):
            length = self.covered(change.cuts)
            return Cost(
                None, "other threads work meanwhile: the trace does not tell what waits for this one", length / steps
            )
        saved = self.what_if.saved(change) * self.units / steps
        return Cost(saved if most is None else min(saved, most), how)

    def _in_turn(self, rows: IntArray) -> bool:
        """Whether work is on the thread that the steps are on, or on autograd's, which works while that one waits."""
        others = rows[~self.work.via_autograd[rows]]
        return bool(np.isin(self.work.thread[others], list(self._main_threads)).all())

    @cached_property
    def _main_threads(self) -> set[int]:
        """The threads of the steps; without steps, or with steps on a thread that calls nothing, the busiest."""
        events, calls = self.events, self.work.of(Category.CALL)
        ranges = events.of(Category.RANGE)
        steps = [row for row in ranges.tolist() if step_number(events.names[events.name[row]]) is not None]
        if steps:
            return set(events.thread[np.array(steps)].tolist())
        threads, counts = np.unique(self.work.thread[calls], return_counts=True)
        return {int(threads[counts.argmax()])} if len(threads) else set()

    @cached_property
    def _launches(self) -> IntArray:
        """Rows of all calls that own device work, by time."""
        calls = np.unique(self.work.owner(self.work.owned))
        return calls[np.argsort(self.events.start[self.work.event[calls]], kind="stable")]

    @cached_property
    def _launch_times(self) -> IntArray:
        return self.events.start[self.work.event[self._launches]]

    def launches_between(self, start: int, end: int, *, reads: bool = True) -> int:
        """How many calls that own device work begin in an interval, on any thread; with or without reads (DtoH)."""
        times = self._launch_times if reads else self._launch_times_without_reads
        low, high = np.searchsorted(times, [start, end])
        return int(high - low)

    def until_launch(self, row: int) -> tuple[int, int]:
        """From the beginning of work on the host to the first call in its run of a range that owns device work.

        Without one, to its own end.
        """
        event = int(self.work.event[row])
        slots = self.slot(self._launches) == self.slot(np.array([row]))
        later = self._launch_times[slots & (self._launch_times >= self.events.end[event])]
        return int(self.events.start[event]), int(later[0] if len(later) else self.events.end[event])

    @cached_property
    def _launch_times_without_reads(self) -> IntArray:
        reads = self.work.owner(self.copies("d2h"))
        return self._launch_times[~np.isin(self._launches, reads)]

    @cached_property
    def launches(self) -> IntArray:
        """Calls that own device work, or whose name says that they launch some, in steps."""
        calls = self.work.of(Category.CALL)
        by_name = self.named(calls, apis.is_launch)
        return self.steady(np.union1d(self._launches, by_name))

    def loop_cuts(self, rows: IntArray) -> list[tuple[int, int]]:
        """CPU time that goes when of work done over and over in each run of a range only the first is left.

        From the end of one to the end of the next, where nothing else was launched between them: the loop around them
        goes too. Else the op's own time.
        """
        return [
            (start if self.launches_between(last, start) else last, end)
            for last, start, end in self._in_sequence(rows)
            if start >= last
        ]

    def gaps(self, rows: IntArray) -> list[tuple[int, int]]:
        """CPU time between work done over and over in one run of a range, where nothing else was launched in it."""
        return [
            (last, start)
            for last, start, _ in self._in_sequence(rows)
            if start > last and not self.launches_between(last, start)
        ]

    def _in_sequence(self, rows: IntArray) -> Iterator[tuple[int, int, int]]:
        """Of work that follows other work in one run of a range: when that ended, and its own CPU time."""
        before: dict[int, int] = {}
        for row, slot in zip(rows.tolist(), self.slot(rows).tolist(), strict=True):
            start, end = self.span(row)
            if slot in before:
                yield before[slot], start, end
            before[slot] = end

    def within(self, rows: IntArray, spans: Sequence[tuple[int, int]]) -> IntArray:
        """Those that begin within some intervals of time."""
        start = self.start(rows)
        inside = np.zeros(len(rows), dtype=np.bool_)
        for begin, stop in spans:
            inside |= (start >= begin) & (start < stop)
        return rows[inside]
