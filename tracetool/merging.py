"""Traces of variants as one trace, side by side, such that Perfetto shows it right.

Perfetto tells processes by pid, threads by tid and flows by integer ids, drops slices that overlap another of their
thread without nesting, drops times below 0, and reads no metadata but names and sort indices of processes and threads.
So processes, threads and flows are numbered afresh and named after their variant, threads are split into lanes in
which everything nests, and each trace is moved to put the beginning of one step at the same time.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from tracetool.chrome.mend import mend
from tracetool.chrome.source import read_whole
from tracetool.differ import Status, add_outer
from tracetool.errors import SettingError, TraceReadError
from tracetool.folding import STEP
from tracetool.limits import Limits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from tracetool.differ import DiffRow, Side, TraceDiff

Event = dict[str, Any]
Key = tuple[Any, Any]

_NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_LARGEST_US = 2.0**62 / 1000
"""Times beyond this are none; two below it add up within 64 bits of nanoseconds."""

_MOST_COUNTERS = 12
_COUNTED = {"launches": ("kernel_launches", "graph_launches"), "copies": ("copies",)}
_PASSED = frozenset("iIRCbneBE")
_ASYNC = frozenset("bne")
_SPACING = 100


@dataclass(frozen=True, slots=True)
class Merged:
    """A merged trace.

    Attributes:
        text: UTF-8 JSON.
        anchors_ns: Where the step begins that each side is aligned at, on the clock of its own trace.
        shifts_ns: What was added to the times of each side.
        lanes: How many threads had to be split.
        unpaired: Flow events that were left out, because their partner or the slice that they lead from is missing.
    """

    text: bytes
    anchors_ns: tuple[int, ...]
    shifts_ns: tuple[int, ...]
    lanes: int
    unpaired: int


def raw_events(path: str) -> list[Event]:
    """All events of a trace as its file has them.

    Raises:
        TraceReadError: it has none, or is too large to be held whole.
        SettingError: the environment sets a limit that is none.
    """
    limits = Limits.of_environment()
    text = read_whole(path, limits.merge_bytes)
    if len(text) > limits.merge_bytes:
        raise TraceReadError(
            f"{path} has more than {limits.max_merge_mib:,} MiB of JSON, which is not merged: "
            "TRACETOOL_MAX_MERGE_MIB sets another limit"
        )
    try:
        whole = msgspec.json.decode(text)
    except _NOT_JSON:
        try:
            whole = msgspec.json.decode(mend(text)[0])
        except _NOT_JSON as error:
            raise TraceReadError(f"{path} is cut off or no JSON, and cannot be merged: {error}") from None
    events = whole.get("traceEvents") if isinstance(whole, dict) else whole
    if not isinstance(events, list):
        raise TraceReadError(f"{path} has no traceEvents: it is no Chrome trace")
    return [event for event in events if isinstance(event, dict)]


def merge(found: TraceDiff, step: int, describe: Callable[[DiffRow, int], str]) -> Merged:
    """Put the traces of a diff into one.

    Args:
        found: the sides; their files are read again, whole.
        step: which step of each trace begins at the same time, counted from 0; without steps their first events do.
        describe: what became of a row on a variant, in a few words.

    Raises:
        SettingError: a side has no such step.
        TraceReadError: a file cannot be read again.
    """
    anchors = [_anchor(side, step) for side in found.sides]
    traces = [raw_events(side.summary.source) for side in found.sides]
    earliest = min(
        (_ns(event["ts"]) - anchor for events, anchor in zip(traces, anchors, strict=True) for event in _timed(events)),
        default=0,
    )
    shifts = tuple(-anchor - earliest for anchor in anchors)
    numbers = _Numbers()
    out: list[Event] = []
    lanes = unpaired = 0
    for place, (side, events, shift) in enumerate(zip(found.sides, traces, shifts, strict=True)):
        one = _Side(side.label, place, shift, numbers)
        out += one.moved(events)
        out += one.marks(found, describe)
        out += one.names(events)
        lanes += one.split
        unpaired += one.unpaired
    text = msgspec.json.encode({"displayTimeUnit": "ns", "traceEvents": out})
    return Merged(text, tuple(anchors), shifts, lanes, unpaired)


def _anchor(side: Side, step: int) -> int:
    starts = np.sort(side.summary.work.steps.start)
    if step < 0 or (len(starts) and step >= len(starts)) or (not len(starts) and step):
        raise SettingError(
            f"'{side.label}' has {len(starts)} profiler steps, so no step {step} to align at; they count from 0"
        )
    if len(starts):
        return int(starts[step])
    ranges = side.summary.tally.ranges
    times = ranges.start if len(ranges) else side.summary.work.events.start
    return int(times.min(initial=np.iinfo(np.int64).max)) if len(times) else 0


def _ns(microseconds: Any) -> int:
    return round(float(microseconds) * 1000)


def _us(nanoseconds: int) -> float:
    return nanoseconds / 1000


def _timed(events: Iterable[Event]) -> Iterator[Event]:
    for event in events:
        phase = event.get("ph")
        if isinstance(phase, str) and phase != "M" and isinstance(event.get("ts"), int | float | str):
            try:
                microseconds = float(event["ts"])
            except (ValueError, OverflowError):
                continue
            if abs(microseconds) < _LARGEST_US:  # what is no number is not below either
                yield event


@dataclass
class _Numbers:
    """Numbers that no two sides share."""

    pid: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    tid: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    flow: Iterator[int] = field(default_factory=lambda: itertools.count(1))


@dataclass(frozen=True, eq=False, slots=True)
class _Slice:
    start: int
    end: int
    event: Event


class _Lanes:
    """A thread as lanes in which everything nests; times as in the file, in ns."""

    def __init__(self, slices: Sequence[_Slice], tids: Iterator[int]) -> None:
        self.tids: list[int] = []
        self._placed: list[list[_Slice]] = []
        self._parents: list[list[int]] = []
        stacks: list[list[int]] = []
        for one in sorted(slices, key=lambda each: (each.start, -each.end)):
            at = next((at for at in range(len(stacks)) if self._fits(at, stacks[at], one)), len(stacks))
            if at == len(stacks):
                stacks.append([])
                self._open_lane(tids)
            self._parents[at].append(stacks[at][-1] if stacks[at] else -1)
            stacks[at].append(len(self._placed[at]))
            self._placed[at].append(one)
        if not self.tids:
            self._open_lane(tids)
        self._starts = [np.array([one.start for one in lane], dtype=np.int64) for lane in self._placed]

    def _open_lane(self, tids: Iterator[int]) -> None:
        self.tids.append(next(tids))
        self._placed.append([])
        self._parents.append([])

    def _fits(self, at: int, stack: list[int], one: _Slice) -> bool:
        lane = self._placed[at]
        while stack and lane[stack[-1]].end <= one.start:
            stack.pop()
        return not stack or one.end <= lane[stack[-1]].end

    def __iter__(self) -> Iterator[tuple[int, list[_Slice]]]:
        return iter(zip(self.tids, self._placed, strict=True))

    def holder(self, time: int) -> int | None:
        """The tid of the lane with a slice open at a time, the one that started last; None where none is."""
        best: tuple[int, int] | None = None
        for tid, lane, parents, starts in zip(self.tids, self._placed, self._parents, self._starts, strict=True):
            at = int(np.searchsorted(starts, time, "right")) - 1
            while at >= 0 and lane[at].end < time:
                at = parents[at]
            if at >= 0 and (best is None or lane[at].start > best[0]):
                best = (lane[at].start, tid)
        return None if best is None else best[1]


class _Side:
    """The events of one trace, numbered and named for the merged one."""

    def __init__(self, label: str, place: int, shift: int, numbers: _Numbers) -> None:
        self.split = 0
        self.unpaired = 0
        self._label = label
        self._place = place
        self._shift = shift
        self._numbers = numbers
        self._pids: dict[Any, int] = {}
        self._lanes: dict[Key, _Lanes] = {}
        self._added: list[tuple[int, int, str, str]] = []

    def moved(self, events: Sequence[Event]) -> Iterator[Event]:
        """Slices, flows and what else there is, without metadata."""
        timed = list(_timed(events))
        tracks: defaultdict[Key, list[_Slice]] = defaultdict(list)
        for event in timed:
            if event.get("ph") == "X":
                start = _ns(event["ts"])
                tracks[_key(event)].append(_Slice(start, start + _duration(event), event))
        for key, slices in tracks.items():
            self._lanes[key] = lanes = _Lanes(slices, self._numbers.tid)
            self.split += len(lanes.tids) > 1
            pid = self._pid(key[0])
            for tid, lane in lanes:
                for one in lane:
                    yield self._at(one.event, one.start, pid, tid, dur=_us(one.end - one.start))
        yield from self._flows(timed)
        for event in timed:
            phase = event.get("ph")
            if phase in _PASSED:
                key = _key(event)
                lanes = self._lanes.setdefault(key, _Lanes((), self._numbers.tid))
                renumbered = {"id": self._async_id(event)} if phase in _ASYNC else {}
                yield self._at(event, _ns(event["ts"]), self._pid(key[0]), lanes.tids[0], **renumbered)

    def _at(self, event: Event, start: int, pid: int, tid: int, **more: Any) -> Event:
        return {**event, "pid": pid, "tid": tid, "ts": _us(start + self._shift), **more}

    def _pid(self, pid: Any) -> int:
        if pid not in self._pids:
            self._pids[pid] = next(self._numbers.pid)
        return self._pids[pid]

    def _async_id(self, event: Event) -> str:
        return f"{self._place}:{event.get('id')}"

    def _flows(self, timed: Sequence[Event]) -> Iterator[Event]:
        """Flows whose both ends stand on slices: of others Perfetto makes errors, and arrows to nowhere."""
        flows: defaultdict[tuple[Any, ...], list[tuple[Event, int]]] = defaultdict(list)
        for event in timed:
            if event.get("ph") not in ("s", "t", "f"):
                continue
            lanes = self._lanes.get(_key(event))
            tid = None if lanes is None else lanes.holder(_ns(event["ts"]))
            if tid is None:
                self.unpaired += 1
            else:
                flows[str(event.get("cat")), str(event.get("name")), str(event.get("id"))].append((event, tid))
        for ends in flows.values():
            phases = {event["ph"] for event, _ in ends}
            if not {"s", "f"} <= phases:
                self.unpaired += len(ends)
                continue
            number = next(self._numbers.flow)
            for event, tid in ends:
                yield self._at(event, _ns(event["ts"]), self._pid(_key(event)[0]), tid, id=number, bp="e")

    # What is added -----------------------------------------------------------------------------------------

    def marks(self, found: TraceDiff, describe: Callable[[DiffRow, int], str]) -> Iterator[Event]:
        """Where this side differs from the baseline (on the baseline: from any), and counters by range."""
        summary = found.sides[self._place].summary
        ranges = summary.tally.ranges
        rows = {row.path: row for row in _changed(found, self._place)}
        runs: dict[tuple[str, ...], list[int]] = {}
        keys = {number: _lined_up(ranges.paths.path(number)) for number in set(ranges.path.tolist())}
        by_path = {number: rows[key] for number, key in keys.items() if key in rows}
        for run in np.flatnonzero(~ranges.via_graph).tolist():
            if (row := by_path.get(int(ranges.path[run]))) is not None:
                runs.setdefault(row.path, []).append(run)
        if not runs:
            return
        pid = next(self._numbers.pid)
        slices = [
            _Slice(int(ranges.start[run]), int(ranges.end[run]), {"name": _mark(rows[path], self._place, describe)})
            for path, members in runs.items()
            for run in members
        ]
        lanes = _Lanes(slices, self._numbers.tid)
        for tid, lane in lanes:
            self._added.append((pid, tid, f"{self._label}: what changed", "differences"))
            for one in lane:
                marker = {"ph": "X", "cat": "tracetool", "name": one.event["name"]}
                yield self._at(marker, one.start, pid, tid, dur=_us(one.end - one.start))
        for path, members in list(runs.items())[:_MOST_COUNTERS]:
            for noun, metrics in _COUNTED.items():
                values = sum(summary.tally.total(metric)[members] for metric in metrics)
                if not np.any(values):
                    continue
                name = f"{noun} in {path[-1]}"
                for run, value in zip(members, np.asarray(values).tolist(), strict=True):
                    for time, shown in ((ranges.start[run], value), (ranges.end[run], 0)):
                        counter = {"ph": "C", "name": name, "args": {noun: shown}}
                        yield self._at(counter, int(time), pid, lanes.tids[0])

    def names(self, events: Sequence[Event]) -> Iterator[Event]:
        """The names of processes and threads, which begin with the variant's, and their order."""
        known = _known_names(events)
        first = self._place * _SPACING
        for order, (pid, number) in enumerate(sorted(self._pids.items(), key=lambda item: _order(item[0], known))):
            told = known.get(("process_labels", pid)) or known.get(("process_name", pid))
            name = str(told or (pid if isinstance(pid, str) else f"process {pid}")).strip() or "the profiler"
            yield from _process(number, f"{self._label}: {name}", first + order + 1)
        for (pid, tid), lanes in self._lanes.items():
            place = _sort_index(known.get(("thread_sort_index", pid, tid)), tid)
            told = known.get(("thread_name", pid, tid))
            name = str(told or (tid if isinstance(tid, str) else f"thread {tid}")).strip() or "the profiler"
            for lane, number in enumerate(lanes.tids):
                title = f"{self._label}: {name}" + (f" (lane {lane + 1})" if lane else "")
                yield from _thread(self._pids[pid], number, title, place)
        for pid, tid, process, thread in self._added:
            yield from _process(pid, process, first)
            yield from _thread(pid, tid, f"{self._label}: {thread}", 0)


def _key(event: Event) -> Key:
    return _plain(event.get("pid")), _plain(event.get("tid"))


def _plain(value: Any) -> Any:
    return value if isinstance(value, int | str) else str(value)


def _duration(event: Event) -> int:
    try:
        duration = _ns(event.get("dur", 0))
    except (TypeError, ValueError, OverflowError):
        return 0
    return duration if 0 <= duration < _LARGEST_US * 1000 else 0


def _lined_up(path: tuple[str, ...]) -> tuple[str, ...]:
    """As a diff lines it up: without profiler steps."""
    return tuple(name for name in path if name != STEP)


def _changed(found: TraceDiff, side: int) -> list[DiffRow]:
    """The innermost ranges that differ: on a variant from the baseline, on the baseline from any variant."""
    changed = [
        row
        for row in found.rows
        if (row.status if not side else row.fate(side - 1)) is not Status.SAME and row.path[-1] != STEP
    ]
    outer: set[tuple[str, ...]] = set()
    for row in changed:
        add_outer(row.path, outer)
    return [row for row in changed if row.path not in outer]


def _mark(row: DiffRow, side: int, describe: Callable[[DiffRow, int], str]) -> str:
    said = "" if not side else describe(row, side - 1)
    return f"{row.path[-1]}: {said}" if said else f"{row.path[-1]}: differs in a variant" if not side else row.path[-1]


def _known_names(events: Sequence[Event]) -> dict[tuple[Any, ...], Any]:
    found: dict[tuple[Any, ...], Any] = {}
    for event in events:
        if event.get("ph") == "M" and isinstance(event.get("args"), dict):
            what, values = event.get("name"), list(event["args"].values())
            if values and what in ("process_name", "process_labels"):
                found[what, _plain(event.get("pid"))] = values[0]
            elif values and what in ("thread_name", "thread_sort_index"):
                found[what, *_key(event)] = values[0]
            elif values and what == "process_sort_index":
                found[what, _plain(event.get("pid"))] = values[0]
    return found


def _order(pid: Any, known: dict[tuple[Any, ...], Any]) -> tuple[int, str]:
    return _sort_index(known.get(("process_sort_index", pid)), 0), str(pid)


def _sort_index(told: Any, other: Any) -> int:
    value = told if isinstance(told, int) else other if isinstance(other, int) else 0
    return max(0, min(value, 2**31 - 1))


def _process(pid: int, name: str, order: int) -> Iterator[Event]:
    yield {"ph": "M", "name": "process_name", "pid": pid, "tid": 0, "ts": 0, "args": {"name": name}}
    yield {"ph": "M", "name": "process_sort_index", "pid": pid, "tid": 0, "ts": 0, "args": {"sort_index": order}}


def _thread(pid: int, tid: int, name: str, order: int) -> Iterator[Event]:
    yield {"ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "ts": 0, "args": {"name": name}}
    yield {"ph": "M", "name": "thread_sort_index", "pid": pid, "tid": tid, "ts": 0, "args": {"sort_index": order}}
