"""Where each piece of work belongs: its range, its thread, its step (rules 1 to 5 of the design).

What graph launches own belongs to their range here; `replays` can give it back to others (rule 8).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from tracetool import apis, autograd
from tracetool.events import DEVICE_WORK, NO_LINK, Category, EventTable, index_type, is_any
from tracetool.folding import step_number
from tracetool.nesting import OpenIntervals, order_of

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from tracetool.events import BoolArray, IntArray
    from tracetool.ranges import RangeTable

_SOURCE_FRAME = re.compile(r"(.+)\((\d+)\): (.+)", re.DOTALL)

OUTSIDE = -1
"""In place of a range: `(no range)`."""
EARLIER = -2
"""In place of a range: `(before the window)`."""

_BLOCK = 1 << 16
_SPARSEST = 8
"""A table by ids has at most this many places for each id."""
_COUNTED = (Category.CALL, Category.OP, Category.MEMORY, Category.COMPILE, Category.AUTOTUNE, *DEVICE_WORK)


@dataclass(frozen=True, slots=True)
class Steps:
    """The profiler steps of a trace, in the order of the file."""

    number: IntArray
    start: IntArray
    end: IntArray
    pid: IntArray
    _open: OpenIntervals

    def at(self, pid: IntArray, time: IntArray) -> IntArray:
        """The step of each process open at each time, on any thread, as an index; or -1."""
        return self._open.at(pid, time)


@dataclass(frozen=True)
class Work:
    """Columns over all that is counted: calls, ops, device work, allocations, compiles.

    `event` is a row of the trace's events, `range` a row of the range table, `OUTSIDE` or `EARLIER`, `thread`
    the thread that it ran on (for device work: that its call ran on), `via_autograd` whether the range was
    found by rule 3, `step` an index into `steps` or -1, `link` what `owner` and `holder` tell, `via_graph` (device
    work only) whether `range` is one that an eager trace gave it back to.
    """

    events: EventTable
    ranges: RangeTable
    steps: Steps
    event: IntArray
    range: IntArray
    thread: IntArray
    via_autograd: BoolArray
    step: IntArray
    link: IntArray
    via_graph: BoolArray

    @cached_property
    def category(self) -> npt.NDArray[np.int8]:
        """Category of each row."""
        return self.events.category[self.event]

    def owner(self, rows: IntArray) -> IntArray:
        """The row *of this table* with the call that owns each piece of device work; -1 for none, and for all else."""
        return np.where(is_any(self.category[rows], *DEVICE_WORK), self.link[rows], np.int32(-1))

    def owning(self, device: IntArray) -> BoolArray:
        """Of every row, whether some of these pieces of device work are of its making."""
        owning = np.zeros(len(self.event), dtype=np.bool_)
        owner = self.owner(device)
        owning[owner[owner >= 0]] = True
        return owning

    def holder(self, rows: IntArray) -> IntArray:
        """The row of the trace's events with the op or range that carries a call's id and contains its start, or -1."""
        return np.where(self.category[rows] == Category.CALL, self.link[rows], np.int32(-1))

    def of(self, *categories: Category) -> IntArray:
        """Rows of the given categories."""
        if categories not in self._rows:
            self._rows[categories] = np.flatnonzero(is_any(self.category, *categories)).astype(np.int32)
        return self._rows[categories]

    @cached_property
    def _rows(self) -> dict[tuple[Category, ...], IntArray]:
        return {}

    @cached_property
    def owned(self) -> IntArray:
        """Rows of device work that have an owning call in the file."""
        device = self.of(*DEVICE_WORK)
        return device[self.link[device] >= 0]


def attribute(events: EventTable, ranges: RangeTable) -> Work:
    """Say of every piece of work where it belongs."""
    steps = _steps(events)
    rows = events.of(*_COUNTED).astype(np.int32)
    category = events.category[rows]
    device = is_any(category, *DEVICE_WORK)
    thread = events.thread[rows]
    calls = np.flatnonzero(category == Category.CALL).astype(np.int32)
    link = np.full(len(rows), -1, dtype=np.int32)
    holder = _holders(events, rows[calls])
    link[calls] = holder
    thread[calls] = np.where(holder >= 0, events.thread[holder], thread[calls])
    del holder
    host = np.flatnonzero(~device).astype(np.int32)
    found = np.full(len(rows), EARLIER, dtype=np.int32)
    via = np.zeros(len(rows), dtype=np.bool_)
    step = np.full(len(rows), -1, dtype=index_type(len(steps.number)))
    pids = events.process_numbers()
    # In blocks, so that what is needed on the way stays small beside the trace.
    for part in np.array_split(host, len(host) // _BLOCK + 1):
        time = events.start[rows[part]]
        found[part], via[part] = ranges.locate(thread[part], time)
        step[part] = steps.at(pids[thread[part]], time)
    devices = np.flatnonzero(device).astype(np.int32)
    link[devices] = _owners(events, rows, calls, devices)
    owned = devices[link[devices] >= 0]
    owner = link[owned]
    for column in (found, via, step, thread):
        column[owned] = column[owner]
    nothing = np.broadcast_to(np.bool_(False), len(rows))  # one False, seen as many times as there are rows
    return Work(events, ranges, steps, rows, found, thread, via, step, link, nothing)


def _steps(events: EventTable) -> Steps:
    rows = events.of(Category.RANGE)
    numbers = {
        name: number for name in events.names_at(rows) if (number := step_number(events.names[name])) is not None
    }
    rows = rows[np.isin(events.name[rows], np.array(list(numbers), dtype=np.int64))]
    pid = events.process_numbers()[events.thread[rows]]
    start, end = events.start[rows], events.end[rows]
    of_row = np.array([numbers[name] for name in events.name[rows].tolist()], dtype=np.int64)
    return Steps(of_row, start, end, pid, OpenIntervals(pid, start, end))


def _holders(events: EventTable, calls: IntArray) -> IntArray:
    """Rule 2: the op or range that carries each call's external id and contains its start, or -1.

    The call runs on that one's thread: the thread that a call itself names goes stale when threads end, and counts
    only where there is no such op. Of several the innermost.
    """
    holders = events.of(Category.OP, Category.RANGE).astype(np.int32)
    holders = holders[events.external_id[holders] != NO_LINK]
    if (by_id := _ById.of(events.external_id[holders], holders)) is not None:
        found: IntArray = np.empty(len(calls), dtype=np.int32)
        for begin in range(0, len(calls), _BLOCK):
            asked = calls[begin : begin + _BLOCK]
            only, time = by_id.at(events.external_id[asked]), events.start[asked]
            inside = (only >= 0) & (events.start[only] <= time) & (time < events.end[only])
            found[begin : begin + _BLOCK] = np.where(inside, only, -1)
        return found
    order = np.argsort(events.external_id[holders], kind="stable")
    holders = holders[order]
    ids = events.external_id[holders]
    none = np.full(len(calls), -1, dtype=np.int64)
    if not len(ids):
        return none
    wanted, time = events.external_id[calls], events.start[calls]
    place = np.minimum(np.searchsorted(ids, wanted), len(ids) - 1)
    known = ids[place] == wanted
    lane = np.cumsum(np.append(0, ids[1:] != ids[:-1]))
    around = OpenIntervals(lane, events.start[holders], events.end[holders])
    # A lane that no holder is in is where nothing is open.
    found = around.at(np.where(known, lane[place], lane[-1] + 1), time)
    return np.where(found >= 0, holders[found], none)


def _owners(events: EventTable, rows: IntArray, calls: IntArray, device: IntArray) -> IntArray:
    """Rule 1: the call that carries the device work's id, of several the innermost; -1 where there is none."""
    calls = calls[events.correlation[rows[calls]] != NO_LINK]
    if not len(calls):
        return np.full(len(device), -1, dtype=np.int64)
    correlation, wanted = events.correlation[rows[calls]], events.correlation[rows[device]]

    def innermost_last(places: IntArray) -> IntArray:
        of = rows[calls[places]]
        return places[order_of(correlation[places], events.start[of], events.end[of])]

    if (by_id := _ById.of(correlation, calls, innermost_last)) is not None:
        return by_id.at(wanted)
    order = innermost_last(np.arange(len(calls)))
    ids = correlation[order]
    last = np.searchsorted(ids, wanted, "right") - 1
    matches = (last >= 0) & (ids[np.maximum(last, 0)] == wanted) & (wanted != NO_LINK)
    return np.where(matches, calls[order[np.maximum(last, 0)]], -1)


@dataclass(frozen=True, slots=True)
class _ById:
    """Numbers found by ids that lie close together, as the profiler counts them."""

    low: int
    table: IntArray

    @classmethod
    def of(
        cls, ids: IntArray, numbers: IntArray, chosen_last: Callable[[IntArray], IntArray] | None = None
    ) -> _ById | None:
        """None where the ids lie too far apart, or where some are shared and nothing chooses.

        `chosen_last` is given the places of those that share an id; it sorts them by id, the one that counts last.
        """
        if not len(ids):
            return None
        low, high = int(ids.min()), int(ids.max())
        if high - low >= _SPARSEST * len(ids):
            return None
        table = np.full(high - low + 1, -1, dtype=np.int32)
        place = ids - low
        table[place] = numbers
        lost = np.flatnonzero(table[place] != numbers)
        if len(lost):
            if chosen_last is None:
                return None
            shared = np.zeros(len(table), dtype=np.bool_)
            shared[place[lost]] = True
            sharing = chosen_last(np.flatnonzero(shared[place]))
            last = np.append(ids[sharing[1:]] != ids[sharing[:-1]], True)
            table[place[sharing[last]]] = numbers[sharing[last]]
        return cls(low, table)

    def at(self, ids: IntArray) -> IntArray:
        """The number of each id; -1 for none."""
        known = (ids >= self.low) & (ids < self.low + len(self.table))
        return np.where(known, self.table[np.where(known, ids - self.low, 0)], -1)


class Causes:
    """What made each row of work, asked for only where counts are explained."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._wrapper = autograd.is_wrapper(work.events.names)

    def innermost_ops(self, *, ops_themselves: bool = False) -> IntArray:
        """The event of the innermost op around each row of work, for ops perhaps they themselves; -1 for none.

        Where a call's external id names an op around it, that is the one: the profiler gives calls the id of the
        innermost op or range.
        """
        work, events = self._work, self._work.events
        found = np.full(len(work.event), -1, dtype=np.int32)
        for begin in range(0, len(found), _BLOCK):
            rows = np.arange(begin, min(begin + _BLOCK, len(found)))
            holder = work.holder(self._causes(rows))
            is_one = (events.category[holder] == Category.OP) & ~self._wrapper[events.name[holder]]
            itself = ops_themselves & (work.category[rows] == Category.OP)
            found[rows] = np.where(itself, work.event[rows], np.where(is_one, holder, -1))
        left = np.flatnonzero(found < 0)
        ops = work.event[work.of(Category.OP)]
        found[left] = self._innermost(ops[~self._wrapper[events.name[ops]]], left)
        return found

    def innermost_function(self, rows: IntArray) -> IntArray:
        """The event of the innermost Python frame of a source file around each row; -1 for none.

        Frames of the program count before those of installed packages, of torch and of the standard library.
        """
        events = self._work.events
        frames = events.of(Category.PYTHON)
        source = apis.named(events.names, is_source_frame)[events.name[frames]]
        own = source & ~apis.named(events.names, _is_library_frame)[events.name[frames]]
        found = self._innermost(frames[own], rows)
        missing = np.flatnonzero(found < 0)
        found[missing] = self._innermost(frames[source], rows[missing])
        return found

    def _causes(self, rows: IntArray) -> IntArray:
        """Device work was caused where its call was made; all else by itself."""
        owner = self._work.owner(rows)
        return np.where(owner >= 0, owner, rows)

    def _innermost(self, intervals: IntArray, rows: IntArray) -> IntArray:
        work, events = self._work, self._work.events
        times = events.start[work.event[self._causes(rows)]]
        # Most ops are around nothing that is asked for here.
        asked = np.sort(times)
        parts = (intervals[begin : begin + _BLOCK] for begin in range(0, len(intervals), _BLOCK))
        intervals = np.concatenate([intervals[:0], *(part[_around_any(events, part, asked)] for part in parts)])
        if not len(intervals):
            return np.full(len(rows), -1, dtype=np.int64)
        around = OpenIntervals(
            events.thread[intervals].astype(np.int64), events.start[intervals], events.end[intervals]
        )
        found = around.at(work.thread[rows], times)
        return np.where(found >= 0, intervals[found], -1)


def _around_any(events: EventTable, rows: IntArray, times: IntArray) -> BoolArray:
    """Which events are open at one of some sorted times."""
    first = np.searchsorted(times, events.start[rows], "left")
    around: BoolArray = np.searchsorted(times, events.end[rows], "left") > first
    return around


def is_source_frame(name: str) -> bool:
    """A Python frame of a source file, `file.py(70): build`, against built-ins and nn.Modules."""
    return _SOURCE_FRAME.fullmatch(name) is not None


def source_frame_label(name: str) -> str:
    """`file.py(70): build` as `file.py:70 in build`."""
    match = _SOURCE_FRAME.fullmatch(name)
    return f"{match.group(1)}:{match.group(2)} in {match.group(3)}" if match else name


def _is_library_frame(name: str) -> bool:
    return (
        "site-packages/" in name
        or "dist-packages/" in name
        or name.startswith(("torch/", "<frozen ", "contextlib.py(", "threading.py(", "runpy.py("))
    )
