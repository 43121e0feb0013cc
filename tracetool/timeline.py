"""One step of a trace, to scale: its ranges, calls and device work as pieces on lanes, bounded in number."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tracetool import apis
from tracetool.events import DEVICE_WORK, Category

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from tracetool.attribution import Work
    from tracetool.events import IntArray, Thread
    from tracetool.summary import TraceSummary

MOST_PIECES = 3000
"""Of one trace; more than this are not told apart on any screen."""
_DEEPEST = 8
_MOST_LANES = 24
_FINEST = 1 / 8000
"""Of what is drawn: what is shorter, and no further from its neighbours, is drawn with them."""
_COARSEST = 1 / 1000
"""From here on kinds are no longer told apart on a lane: each part of it has the colour of its most frequent one."""


class Kind(enum.StrEnum):
    """What a piece is; a reader tells them apart by colour."""

    RANGE = "range"
    LAUNCH = "kernel launch"
    GRAPH_LAUNCH = "graph launch"
    SYNC = "sync"
    OP = "op"
    CALL = "other call"
    KERNEL = "kernel"
    GRAPH_KERNEL = "kernel of a graph"
    H2D_PAGEABLE = "HtoD copy, pageable"
    H2D_PINNED = "HtoD copy, pinned"
    H2D = "HtoD copy"
    D2H_PAGEABLE = "DtoH copy, pageable"
    D2H_PINNED = "DtoH copy, pinned"
    D2H = "DtoH copy"
    D2D = "DtoD copy"
    COPY = "other copy"
    MEMSET = "memset"


KINDS = tuple(Kind)


@dataclass(frozen=True, slots=True)
class Piece:
    """Something that took time, or several alike that lie too close to be told apart."""

    kind: Kind
    name: str
    start_ns: int
    """From the beginning of what is drawn."""
    duration_ns: int
    """From the start of the first to the end of the last."""
    count: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Lane:
    """Pieces on one line: a depth of a thread's ranges, a thread's calls, or a stream."""

    label: str
    where: str
    """The thread or stream in full."""
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class StepTimeline:
    """One step, to scale."""

    what: str
    """What is drawn: `ProfilerStep#3`, a range's name, or the whole trace."""
    duration_ns: int
    """To the end of the last device work that the step's calls own."""
    wall_ns: int
    """Of the step itself, on its thread."""
    lanes: tuple[Lane, ...]
    merged: int
    """Pieces that share a drawn one with others."""
    left_out: int
    """Pieces that are not drawn: on lanes beyond the first, or deeper than can be read."""


def step_timeline(found: TraceSummary, most: int = MOST_PIECES) -> StepTimeline:
    """The step of median wall time; without steps the median call of the longest range, else the whole trace.

    Args:
        found: the trace.
        most: how many pieces there may be; neighbours of one kind on one lane are merged until there are no more.
    """
    what, begin, end, step = _window(found)
    columns = _gathered(_columns(found, begin, end, step))
    if not len(columns.start):
        return StepTimeline(what, max(0, end - begin), max(0, end - begin), (), 0, 0)
    last = max(end, int(columns.end.max()))
    kept, lanes = _chosen_lanes(columns)
    chosen = columns.at(np.flatnonzero(np.isin(columns.lane, kept)))
    merged, pieces = _merged(chosen, found, begin, most, (last - begin) * _FINEST)
    drawn = [
        Lane(lanes[lane].label, lanes[lane].where, tuple(piece for at, piece in pieces if at == lane)) for lane in kept
    ]
    return StepTimeline(
        what,
        last - begin,
        end - begin,
        tuple(drawn),
        merged,
        int(len(columns.start) - len(chosen.start)),
    )


def _window(found: TraceSummary) -> tuple[str, int, int, int | None]:
    """What is drawn, from when to when, and which step it is, if it is one."""
    steps, ranges, events = found.work.steps, found.tally.ranges, found.work.events
    if len(steps.number):
        at = _median_of(steps.end - steps.start)
        return f"ProfilerStep#{steps.number[at]}", int(steps.start[at]), int(steps.end[at]), at
    ran = np.flatnonzero((ranges.parent < 0) & ~ranges.via_graph)
    if len(ran):
        lengths = ranges.end - ranges.start
        weight = np.bincount(ranges.path[ran], lengths[ran])
        runs = ran[ranges.path[ran] == int(weight.argmax())]
        at = int(runs[_median_of(lengths[runs])])
        return ranges.paths.name[int(ranges.path[at])], int(ranges.start[at]), int(ranges.end[at]), None
    rows = found.work.event
    if not len(rows):
        return "the whole trace", 0, 0, None
    return "the whole trace", int(events.start[rows].min()), int(events.end[rows].max()), None


def _median_of(values: IntArray) -> int:
    """Where the lower median is."""
    return int(np.argsort(values, kind="stable")[(len(values) - 1) // 2])


@dataclass(frozen=True, slots=True)
class _LaneKey:
    """Which lane: `order` sorts host threads (the one with the longest ranges first) before devices' streams."""

    order: tuple[int, int, int]
    label: str
    where: str


@dataclass(frozen=True, slots=True)
class _Columns:
    lane: IntArray
    """Index into `keys`."""
    kind: IntArray
    """Index into `KINDS`."""
    name: IntArray
    """Index into the trace's names, then the names of paths (from `-1` downwards)."""
    start: IntArray
    end: IntArray
    bytes: IntArray
    keys: tuple[_LaneKey, ...]

    def at(self, rows: IntArray) -> _Columns:
        return _Columns(
            self.lane[rows],
            self.kind[rows],
            self.name[rows],
            self.start[rows],
            self.end[rows],
            self.bytes[rows],
            self.keys,
        )


def _gathered(parts: Iterable[_Columns]) -> _Columns:
    """Parts with lanes of their own, as one."""
    keys: list[_LaneKey] = []
    lanes: list[IntArray] = []
    found: list[_Columns] = []
    for part in parts:
        lanes.append(part.lane + len(keys))
        keys += part.keys
        found.append(part)
    if not found:
        none = np.empty(0, dtype=np.int64)
        return _Columns(none, none, none, none, none, none, ())
    return _Columns(
        np.concatenate(lanes),
        np.concatenate([part.kind for part in found]),
        np.concatenate([part.name for part in found]),
        np.concatenate([part.start for part in found]),
        np.concatenate([part.end for part in found]),
        np.concatenate([part.bytes for part in found]),
        tuple(keys),
    )


def _columns(found: TraceSummary, begin: int, end: int, step: int | None) -> Iterator[_Columns]:
    work = found.work
    start = work.events.start[work.event]
    if step is not None:
        here = work.step == step
    else:
        within = (start >= begin) & (start < max(end, begin + 1))
        here = within.copy()
        here[work.owned] = within[work.owner(work.owned)]
    threads: dict[int, int] = {}
    yield from _ranges(found, begin, end, threads)
    if np.any(here & (work.category == Category.CALL)):
        yield from _calls(work, np.flatnonzero(here), threads)
    else:
        yield from _ops(work, np.flatnonzero(here), threads)
    yield from _device(work, np.flatnonzero(here & (start >= begin)))


def _ranges(found: TraceSummary, begin: int, end: int, threads: dict[int, int]) -> Iterator[_Columns]:
    """A lane for each depth of each thread's ranges; notes the threads, those with most time in ranges first."""
    ranges = found.tally.ranges
    rows = np.flatnonzero((ranges.start >= begin) & (ranges.start < end) & ~ranges.via_graph)
    depth = np.zeros(len(ranges), dtype=np.int64)
    for row in range(len(ranges)):  # a parent on the same thread stands before what is in it
        parent = int(ranges.parent[row])
        if parent >= 0 and ranges.thread[parent] == ranges.thread[row] and ranges.start[parent] >= begin:
            depth[row] = depth[parent] + 1
    lengths = ranges.end[rows] - ranges.start[rows]
    for thread in sorted(
        set(ranges.thread[rows].tolist()), key=lambda one: -int(lengths[ranges.thread[rows] == one].sum())
    ):
        place = threads.setdefault(thread, len(threads))
        label = _name_of(found.work.events.threads[thread])
        on_thread = rows[ranges.thread[rows] == thread]
        for level in range(int(depth[on_thread].max()) + 1):
            at = on_thread[depth[on_thread] == level]
            key = _LaneKey((0, place, level), f"ranges {place + 1}" if not level else "", f"ranges of {label}")
            if level >= _DEEPEST:
                key = _LaneKey((2, place, level), "", "")
            names = np.where(ranges.raw_name[at] >= 0, ranges.raw_name[at], -1 - ranges.path[at])
            kinds = np.full(len(at), KINDS.index(Kind.RANGE))
            zeros = np.zeros(len(at), dtype=np.int64)
            yield _Columns(zeros, kinds, names, ranges.start[at], ranges.end[at], zeros, (key,))


def _calls(work: Work, here: IntArray, threads: dict[int, int]) -> Iterator[_Columns]:
    events = work.events
    rows = here[work.category[here] == Category.CALL]
    of = work.event[rows]
    kind = np.full(len(rows), KINDS.index(Kind.CALL), dtype=np.int64)
    kind[apis.named(events.names, apis.is_sync)[events.name[of]]] = KINDS.index(Kind.SYNC)
    kind[work.owning(work.of(Category.KERNEL))[rows]] = KINDS.index(Kind.LAUNCH)
    graphs = apis.named(events.names, apis.is_graph_launch)[events.name[of]]
    kind[work.owning(work.owned)[rows] & graphs] = KINDS.index(Kind.GRAPH_LAUNCH)
    thread = work.thread[rows]
    for one in dict.fromkeys([*threads, *thread.tolist()]):
        at = np.flatnonzero(thread == one)
        if not len(at):
            continue
        place = threads.setdefault(one, len(threads))
        key = _LaneKey((0, place, 1000), f"calls {place + 1}", f"calls of {_name_of(events.threads[one])}")
        zeros = np.zeros(len(at), dtype=np.int64)
        yield _Columns(zeros, kind[at], events.name[of[at]], events.start[of[at]], events.end[of[at]], zeros, (key,))


def _ops(work: Work, here: IntArray, threads: dict[int, int]) -> Iterator[_Columns]:
    """The outermost ops of each thread: all that a trace without calls of a GPU's runtime has to show."""
    events = work.events
    rows = here[work.category[here] == Category.OP]
    for one in dict.fromkeys([*threads, *work.thread[rows].tolist()]):
        of = work.event[rows[work.thread[rows] == one]]
        of = of[np.lexsort((-events.end[of], events.start[of]))]
        reach = np.maximum.accumulate(events.end[of])
        outer = np.ones(len(of), dtype=np.bool_)
        outer[1:] = events.end[of][1:] > reach[:-1]
        of = of[outer]
        if len(of):
            place = threads.setdefault(one, len(threads))
            key = _LaneKey((0, place, 1000), f"ops {place + 1}", f"outermost ops of {_name_of(events.threads[one])}")
            zeros = np.zeros(len(of), dtype=np.int64)
            kind = np.full(len(of), KINDS.index(Kind.OP))
            yield _Columns(zeros, kind, events.name[of], events.start[of], events.end[of], zeros, (key,))


def _name_of(thread: Thread) -> str:
    """Kineto's names say `thread 405 (python3)` already."""
    return thread.name or f"thread {thread.tid}"


def _device(work: Work, here: IntArray) -> Iterator[_Columns]:
    events = work.events
    rows = here[np.isin(work.category[here], DEVICE_WORK)]
    of = work.event[rows]
    kinds = {name: KINDS.index(_copy(events.names[name])) for name in np.unique(events.name[of]).tolist()}
    kind = np.array([kinds[name] for name in events.name[of].tolist()], dtype=np.int64)
    kind[events.category[of] == Category.MEMSET] = KINDS.index(Kind.MEMSET)
    kernel = events.category[of] == Category.KERNEL
    kind[kernel] = KINDS.index(Kind.KERNEL)
    graphs = apis.named(events.names, apis.is_graph_launch)
    owner = work.owner(rows)
    in_graph = kernel & (owner >= 0)
    in_graph[in_graph] = graphs[events.name[work.event[owner[in_graph]]]]
    kind[in_graph] = KINDS.index(Kind.GRAPH_KERNEL)
    stream = events.thread[of]
    sizes = events.bytes.at(of, 0)
    several = len({events.threads[one].pid for one in stream.tolist()}) > 1
    ordered = sorted(set(stream.tolist()), key=lambda one: (str(events.threads[one].pid), str(events.threads[one].tid)))
    for place, one in enumerate(ordered):
        at = np.flatnonzero(stream == one)
        thread = events.threads[one]
        device = f"GPU {thread.pid} " if several else ""
        where = f"GPU {thread.pid}, stream {thread.tid}"
        key = _LaneKey((1, place, 0), f"{device}stream {thread.tid}", where)
        zeros = np.zeros(len(at), dtype=np.int64)
        yield _Columns(
            zeros, kind[at], events.name[of[at]], events.start[of[at]], events.end[of[at]], sizes[at], (key,)
        )


def _copy(name: str) -> Kind:
    direction, memory = apis.copy_kind(name)
    return {
        ("h2d", "pageable"): Kind.H2D_PAGEABLE,
        ("h2d", "pinned"): Kind.H2D_PINNED,
        ("h2d", ""): Kind.H2D,
        ("d2h", "pageable"): Kind.D2H_PAGEABLE,
        ("d2h", "pinned"): Kind.D2H_PINNED,
        ("d2h", ""): Kind.D2H,
        ("d2d", ""): Kind.D2D,
    }.get((direction, memory), Kind.COPY)


def _chosen_lanes(columns: _Columns) -> tuple[list[int], Sequence[_LaneKey]]:
    """The lanes that are drawn, in their order: of too many, those of the first threads and of all devices."""
    order = sorted(range(len(columns.keys)), key=lambda lane: columns.keys[lane].order)
    shown = [lane for lane in order if columns.keys[lane].order[0] < 2]
    device = [lane for lane in shown if columns.keys[lane].order[0] == 1]
    host = [lane for lane in shown if columns.keys[lane].order[0] == 0]
    device = device[: _MOST_LANES // 2]
    return [*host[: _MOST_LANES - len(device)], *device], columns.keys


def _merged(
    columns: _Columns, found: TraceSummary, begin: int, most: int, finest: float
) -> tuple[int, list[tuple[int, Piece]]]:
    """Pieces by lane; short ones that lie close are one where there are too many, of their most frequent kind."""
    whole = finest / _FINEST
    reach = finest
    groups = _neighbours(columns, reach)
    while len(np.unique(groups)) > most:
        reach *= 2
        groups = _neighbours(columns, reach) if reach <= whole * _COARSEST else _bins(columns, begin, reach)
    order = np.lexsort((columns.start, groups))
    one, group = columns.at(order), groups[order]
    begins = np.flatnonzero(np.append(True, group[1:] != group[:-1]))
    counts = np.diff(np.append(begins, len(order)))
    ends, sizes = np.maximum.reduceat(one.end, begins), np.add.reduceat(one.bytes, begins)
    names, paths = found.work.events.names, found.tally.ranges.paths
    pieces = []
    for at, count, end, size in zip(begins.tolist(), counts.tolist(), ends.tolist(), sizes.tolist(), strict=True):
        kinds = one.kind[at : at + count]
        kind = int(np.bincount(kinds).argmax()) if count > 1 else int(kinds[0])
        number = int(one.name[at + int(np.argmax(kinds == kind))])
        name = names[number] if number >= 0 else paths.name[-1 - number]
        start = int(one.start[at])
        pieces.append((int(one.lane[at]), Piece(KINDS[kind], name, start - begin, end - start, count, size)))
    pieces.sort(key=lambda item: (item[0], item[1].start_ns))
    return int(counts[counts > 1].sum()), pieces


def _neighbours(columns: _Columns, reach: float) -> IntArray:
    """The same number for neighbours of one kind on a lane that are shorter than `reach`, and no further apart."""
    order = np.lexsort((columns.start, columns.kind, columns.lane))
    one = columns.at(order)
    short = one.end - one.start < reach
    joins = np.zeros(len(order), dtype=np.bool_)
    joins[1:] = (one.lane[1:] == one.lane[:-1]) & (one.kind[1:] == one.kind[:-1]) & short[1:] & short[:-1]
    joins[1:] &= one.start[1:] - one.end[:-1] < reach
    groups = np.empty(len(order), dtype=np.int64)
    groups[order] = np.cumsum(~joins)
    return groups


def _bins(columns: _Columns, begin: int, width: float) -> IntArray:
    """The same number for whatever is short and begins in one part of a lane, of any kind."""
    short = columns.end - columns.start < width
    place = np.where(short, ((columns.start - begin) // width).astype(np.int64), -1 - np.arange(len(columns.start)))
    _, groups = np.unique(np.stack([columns.lane, place]), axis=1, return_inverse=True)
    found: IntArray = groups.reshape(-1)
    return found
