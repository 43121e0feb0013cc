"""Gives the device work of graph launches back to the ranges that it was captured in (rule 8 of the design).

A replay does not say which ranges its work was captured in, but an eager trace of the same step does: there each
kernel has a call, and the call a range. What is compared is all device work of a *stretch*: the nearest range around
a graph launch that the eager trace has too, by its path without profiler steps, and in which it launches no graph;
where there is none, the profiler step, and without steps the launch alone against the whole eager trace. Both sides
are in launch order, what one call owns in the order in which it started; work of the stretch that no graph does is
lined up too, but only with eager work of the same range, and so ties down what lies between.

Runs of the eager range with the same sequence are one. Where they differ, the runs with fewest edits count, all of
them: what these do not agree on stays with the launch.

What is given back lies in new runs, below the run that the launch was made in: for each launch one of every eager run
that some of its work was lined up with, and of those around that. They last no time, since nothing was called in them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tracetool import apis
from tracetool.attribution import OUTSIDE
from tracetool.errors import SettingError
from tracetool.events import DEVICE_WORK, Category
from tracetool.folding import STEP
from tracetool.graphs import ASKED, Doubt, Stretch, align, edits, least_edits
from tracetool.ranges import NewRun, with_runs
from tracetool.tally import Tree

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tracetool.attribution import Work
    from tracetool.events import IntArray
    from tracetool.graphs import Alignment

Path = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Left:
    """Pieces of one name that stay with their launch."""

    doubt: Doubt
    name: str
    count: int


@dataclass(frozen=True, slots=True)
class Varied:
    """A range of the eager trace whose runs do not all do the same work; without a path, its steps."""

    path: Path
    runs: int
    sequences: int


@dataclass(frozen=True, slots=True)
class Replays:
    """What became of the work of graph launches."""

    source: str
    """The eager trace."""
    launches: int
    pieces: int
    """Of device work, of all graph launches."""
    given: int
    """How many of them were lined up."""
    all_kernels: bool
    left: tuple[Left, ...]
    """The others, by why they are left and by name, the most frequent first."""
    varied: tuple[Varied, ...]
    rows: IntArray
    """Rows of work that were lined up."""
    labels: dict[str, IntArray]
    """What the eager work's labels say of those rows; -1 where that is not certain."""


def give_back(
    work: Work, eager: Work, *, source: str, eager_source: str, labels: Mapping[str, IntArray]
) -> tuple[Work, Replays | None]:
    """Give the device work of graph launches back to the ranges of an eager run.

    Args:
        work: of the trace with the graph launches.
        eager: of a trace of the same step without them.
        source: what to call the first trace.
        eager_source: what to call the other.
        labels: columns over the eager work, to be told of the work that is given back.

    Returns:
        The work with its new ranges, and what became of it; None where there are no graph launches.

    Raises:
        SettingError: the eager trace has no counterpart of any graph launch.
    """
    things: dict[object, int] = {}
    replay = _Side(work, things)
    if not replay.graph.any():
        return work, None
    twins = _Twins(_Side(eager, things), eager_source, labels)
    asked = np.flatnonzero(replay.graph)
    if not np.isin(replay.thing[asked], twins.side.thing[~twins.side.graph]).any():
        raise SettingError(
            f"no kernel, copy or memset of the graph launches in {source} is in {eager_source}: name an eager trace "
            "of the same step"
        )
    found = _line_up(replay, twins)
    given = asked[found.place[asked] >= 0]
    changed = _moved(replay, twins.side, found, given)
    left = asked[found.place[asked] < 0]
    names = [work.events.names[name] for name in work.events.name[work.event[replay.rows[left]]].tolist()]
    counts = Counter(zip(found.place[left].tolist(), names, strict=True))
    return changed, Replays(
        source=eager_source,
        launches=len(np.unique(replay.call[asked])),
        pieces=len(asked),
        given=len(given),
        all_kernels=bool(np.all(work.category[replay.rows[asked]] == Category.KERNEL)),
        left=tuple(
            Left(Doubt(doubt), name, count)
            for (doubt, name), count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        ),
        varied=tuple(twins.varied()),
        rows=replay.rows[given],
        labels={name: column[given] for name, column in zip(labels, found.labels, strict=True)},
    )


class _Index:
    """Finds the rows of a column by their values."""

    def __init__(self, values: IntArray) -> None:
        self._order = np.argsort(values, kind="stable")
        self._values = values[self._order]

    def between(self, first: int, end: int) -> IntArray:
        """The rows whose value is at least `first` and less than `end`, in their order."""
        low, high = np.searchsorted(self._values, [first, end])
        return np.sort(self._order[low:high])

    def of(self, value: int) -> IntArray:
        """The rows of one value, in their order."""
        return self.between(value, value + 1)


class _Side:
    """The device work of one trace that has a call, in launch order, as columns.

    Attributes:
        rows: of the work.
        call: the row of the owning call.
        graph: whether that is a graph launch.
        thing: what it is, in numbers that both sides share.
        stream: it ran on.
        run: the range that it belongs to.
        step: index of its profiler step, or -1.
        tree: of the runs.
        bare: each path without profiler steps.
        of_step: finds pieces by their step.
        of_call: finds pieces by their call.
    """

    def __init__(self, work: Work, things: dict[object, int]) -> None:
        self.work = work
        events, ranges = work.events, work.ranges
        rows = work.of(*DEVICE_WORK)
        rows = rows[work.owner(rows) >= 0]
        owner, event = work.owner(rows), work.event[rows]
        order = np.lexsort((rows, events.end[event], events.start[event], owner, events.start[work.event[owner]]))
        self.rows, event = rows[order], event[order]
        self.call = owner[order]
        launches = apis.named(events.names, apis.is_graph_launch)
        self.graph = launches[events.name[work.event[self.call]]]
        self.thing = _things(work, event, things)
        self.stream = events.thread[event]
        self.run = work.range[self.rows].astype(np.int64)
        self.step = work.step[self.rows]
        self.tree = Tree(ranges.parent)
        self.bare = [
            tuple(name for name in ranges.paths.path(number) if name != STEP)
            for number in range(len(ranges.paths.name))
        ]
        self._is_step = np.array([name == STEP for name in ranges.paths.name], dtype=np.bool_)
        self._by_place = _Index(np.where(self.run >= 0, self.tree.place[self.run] if len(ranges) else -1, -1))
        self.of_step = _Index(self.step)
        self.of_call = _Index(self.call)

    def is_step(self, run: int) -> bool:
        """Whether a run is a profiler step."""
        return bool(self._is_step[self.work.ranges.path[run]])

    def around(self, run: int) -> Iterator[int]:
        """A run and those around it, from the inside."""
        parent = self.work.ranges.parent
        while run >= 0:
            yield run
            run = int(parent[run])

    def bare_path(self, run: int) -> Path:
        """The path of a run without profiler steps."""
        return self.bare[self.work.ranges.path[run]] if run >= 0 else ()

    def within(self, run: int) -> IntArray:
        """The pieces of a run and of those in it."""
        first = int(self.tree.place[run])
        return self._by_place.between(first, first + int(self.tree.size[run]))

    def counts(self, which: IntArray) -> IntArray:
        """How many of some pieces are in each run."""
        inside = self.run[which]
        return self.tree.sums(np.bincount(inside[inside >= 0], minlength=len(self.work.ranges)))

    def places(self, pieces: IntArray, outer: int, numbers: dict[Path, int]) -> IntArray:
        """Numbers for the paths of pieces, without steps, as seen from a run around them (-1: from their step)."""
        run = self.run[pieces]
        path = np.full(len(pieces), OUTSIDE, dtype=np.int64)
        path[run >= 0] = self.work.ranges.path[run[run >= 0]]
        kinds, which = np.unique(path, return_inverse=True)
        seen_from = self.bare_path(outer)
        relative = [self._seen_from(seen_from, kind) if kind >= 0 else () for kind in kinds.tolist()]
        found: IntArray = np.array([numbers.setdefault(one, len(numbers)) for one in relative], dtype=np.int64)[which]
        return found

    def _seen_from(self, outer: Path, path: int) -> Path:
        if outer:
            return self.bare[path][len(outer) :]
        names = self.work.ranges.paths.path(path)
        steps = [depth for depth, name in enumerate(names, 1) if name == STEP]
        return names[steps[-1] if steps else 0 :]


def _things(work: Work, event: IntArray, things: dict[object, int]) -> IntArray:
    """What pieces are: a kernel by its name, a copy by its direction and the kind of host memory, a memset."""
    events = work.events
    kinds, which = np.unique(
        events.name[event].astype(np.int64) * len(Category) + events.category[event], return_inverse=True
    )
    numbers = []
    for kind in kinds.tolist():
        name, category = divmod(kind, len(Category))
        thing: object = (category, events.names[name])
        if category == Category.MEMCPY:
            thing = (category, apis.copy_kind(events.names[name]))
        elif category == Category.MEMSET:
            thing = category
        numbers.append(things.setdefault(thing, len(things)))
    return np.array(numbers, dtype=np.int64)[which]


def _by_first(values: IntArray) -> IntArray:
    """Values numbered in the order in which they first come."""
    _, first, which = np.unique(values, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    found: IntArray = rank[which]
    return found


@dataclass(frozen=True, slots=True)
class _Twin:
    """An eager stretch: its pieces, the run around them (-1: a step, or the trace), and what is to be told of them."""

    pieces: IntArray
    outer: int
    stretch: Stretch
    labels: list[IntArray]


class _Twins:
    """The eager runs that a stretch with graph launches can be lined up with."""

    def __init__(self, side: _Side, source: str, labels: Mapping[str, IntArray]) -> None:
        self.side = side
        self.numbers: dict[Path, int] = {}
        self.labels = [column[side.rows] for column in labels.values()]
        self._found: dict[Path, list[_Twin]] = {}
        self._runs: dict[Path, list[int]] = {}
        if not len(side.rows):
            raise SettingError(
                f"{source} has no device work: name an eager trace of the same step that was captured on the device"
            )
        everything, graphs = np.arange(len(side.rows)), np.flatnonzero(side.graph)
        eager = (side.counts(everything) > 0) & (side.counts(graphs) == 0)
        for run in np.flatnonzero(eager).tolist():
            if not side.is_step(run):
                self._runs.setdefault(side.bare_path(run), []).append(run)
        if not self._runs:
            annotated = any(self.side.bare_path(run) for run in set(side.run.tolist()))
            why = "all its ranges that do device work launch graphs" if annotated else "its device work is in no range"
            raise SettingError(
                f"{source} cannot say where a graph's work belongs: {why}; name a trace of the same step with ranges "
                "and without graphs"
            )
        stretches = [side.of_step.of(step) for step in range(len(side.work.steps.number))]
        self.has_steps = any(len(pieces) and not side.graph[pieces].any() for pieces in stretches)
        self._outermost = [
            pieces
            for pieces in (stretches if self.has_steps else [everything])
            if len(pieces) and not side.graph[pieces].any()
        ]

    def has(self, path: Path) -> bool:
        """Whether a range of that path did device work without a graph."""
        return path in self._runs

    def of(self, path: Path) -> list[_Twin]:
        """The different sequences of a range, or for the empty path of steps or of the whole trace."""
        if path not in self._found:
            different: dict[tuple[bytes, ...], _Twin] = {}
            for pieces, outer in self._stretches(path):
                stretch = Stretch(
                    self.side.thing[pieces],
                    self.side.places(pieces, outer, self.numbers),
                    _by_first(self.side.stream[pieces]),
                )
                key = _signature(stretch)
                if key not in different:
                    different[key] = _Twin(pieces, outer, stretch, [column[pieces] for column in self.labels])
            self._found[path] = list(different.values())
        return self._found[path]

    def _stretches(self, path: Path) -> list[tuple[IntArray, int]]:
        if path:
            return [(self.side.within(run), run) for run in self._runs[path]]
        return [(pieces, -1) for pieces in self._outermost]

    def varied(self) -> Iterator[Varied]:
        """Of the ranges that were asked for, those that did different work from run to run."""
        for path, twins in self._found.items():
            if len(twins) > 1:
                yield Varied(path, len(self._runs[path]) if path else len(self._outermost), len(twins))


def _signature(stretch: Stretch) -> tuple[bytes, ...]:
    return stretch.thing.tobytes(), stretch.place.tobytes(), stretch.lane.tobytes()


class _Unit(NamedTuple):
    """A stretch with graph launches: in a run, in a step, or one launch alone."""

    kind: str
    number: int


def _unit_of(side: _Side, twins: _Twins, call: int) -> tuple[_Unit, Path]:
    """The stretch that a launch is looked at in, and the path that the eager trace has it at."""
    step = int(side.work.step[call])
    for run in side.around(int(side.work.range[call])):
        if side.is_step(run):
            if twins.has_steps:
                break
        elif twins.has(path := side.bare_path(run)):
            return _Unit("range", run), path
    return (_Unit("step", step) if step >= 0 else _Unit("launch", call)), ()


@dataclass(frozen=True, slots=True)
class _Found:
    """What is known of each piece of a side.

    Attributes:
        place: a number of 0 or more where it was lined up, else a `Doubt`.
        twin: the eager piece, or -1.
        outer: the eager run around it from which places are told.
        labels: of the eager piece.
    """

    place: IntArray
    twin: IntArray
    outer: IntArray
    labels: list[IntArray]

    @classmethod
    def nothing(cls, pieces: int, labels: int) -> _Found:
        """Nothing known of so many pieces."""
        none = np.full(pieces, -1, dtype=np.int64)
        return cls(none, none.copy(), none.copy(), [none.copy() for _ in range(labels)])

    def take(self, pieces: IntArray, which: IntArray, part: _Found) -> None:
        """Take over what is known of some pieces of a stretch."""
        mine = (self.place, self.twin, self.outer, *self.labels)
        for column, values in zip(mine, (part.place, part.twin, part.outer, *part.labels), strict=True):
            column[pieces[which]] = values[which]


def _line_up(side: _Side, twins: _Twins) -> _Found:
    """Find the place of every piece that a graph launch owns."""
    launches: dict[_Unit, tuple[Path, list[int]]] = {}
    for call in np.unique(side.call[side.graph]).tolist():
        unit, path = _unit_of(side, twins, call)
        launches.setdefault(unit, (path, []))[1].append(call)
    found = _Found.nothing(len(side.rows), len(twins.labels))
    known: dict[tuple[Path, tuple[bytes, ...]], _Found] = {}
    for unit, (path, calls) in launches.items():
        pieces = _pieces_of(side, unit)
        outer = unit.number if unit.kind == "range" else -1
        graph = side.graph[pieces]
        stretch = Stretch(
            side.thing[pieces],
            np.where(graph, ASKED, side.places(pieces, outer, twins.numbers)),
            _lanes(side.call[pieces], side.stream[pieces], graph),
        )
        key = (path, _signature(stretch))
        if key not in known:
            known[key] = _nearest(stretch, twins.of(path)) or _Found.nothing(len(pieces), len(twins.labels))
        found.take(pieces, np.flatnonzero(graph & np.isin(side.call[pieces], calls)), known[key])
    return found


def _pieces_of(side: _Side, unit: _Unit) -> IntArray:
    if unit.kind == "range":
        return side.within(unit.number)
    return (side.of_step if unit.kind == "step" else side.of_call).of(unit.number)


def _lanes(call: IntArray, stream: IntArray, graph: IntArray) -> IntArray:
    """Streams of a graph's pieces, numbered within each launch in the order in which it uses them."""
    lane = np.zeros(len(call), dtype=np.int64)
    of_call = _Index(call)
    for one in np.unique(call[graph]).tolist():
        here = of_call.of(one)
        lane[here] = _by_first(stream[here])
    return lane


def _nearest(stretch: Stretch, twins: list[_Twin]) -> _Found | None:
    """What all those eager runs agree on from which a stretch differs least; None where there is no eager run."""
    best: list[_Twin] = []
    fewest = len(stretch) + max((len(twin.pieces) for twin in twins), default=0) + 1
    bounds = [least_edits(stretch, twin.stretch) for twin in twins]
    for number in sorted(range(len(twins)), key=bounds.__getitem__):
        if bounds[number] > fewest:
            break
        differing = edits(stretch, twins[number].stretch)
        if differing < fewest:
            best, fewest = [], differing
        if differing == fewest:
            best.append(twins[number])
    if not best:
        return None
    answers = [align(stretch, twin.stretch, twin.labels) for twin in best]
    place, labels = _agreed(answers)
    first = answers[0]
    return _Found(
        place,
        np.where(place >= 0, best[0].pieces[first.partner], -1),
        np.full(len(stretch), best[0].outer, dtype=np.int64),
        labels,
    )


def _agreed(answers: list[Alignment]) -> tuple[IntArray, list[IntArray]]:
    """Places and labels that all answers give; where they differ, the place is unclear."""
    place, labels = answers[0].place.copy(), [label.copy() for label in answers[0].labels]
    for other in answers[1:]:
        place[place != other.place] = Doubt.UNCLEAR
        for label, theirs in zip(labels, other.labels, strict=True):
            label[label != theirs] = -1
    return place, labels


def _moved(side: _Side, eager: _Side, found: _Found, given: IntArray) -> Work:
    """The work with what is given back in runs of its own, below those of the launches."""
    work = side.work
    # Launch by launch, ranges come in the order of the eager run.
    given = given[np.lexsort((found.twin[given], work.events.start[work.event[side.call[given]]]))]
    runs: list[NewRun] = []
    number: dict[tuple[int, int], int] = {}
    target = side.run[given].copy()
    columns = (side.call[given], eager.run[found.twin[given]], found.outer[given])
    for place, (call, run, outer) in enumerate(zip(*(column.tolist() for column in columns), strict=True)):
        missing = []
        inside = int(work.range[call])
        for one in eager.around(run):
            if one == outer or (outer < 0 and eager.is_step(one)):
                break
            if (call, one) in number:
                inside = number[call, one]
                break
            if not eager.is_step(one):
                missing.append(one)
        for one in reversed(missing):
            name = eager.work.ranges.paths.name[eager.work.ranges.path[one]]
            runs.append(NewRun(inside, name, int(work.thread[call]), int(work.events.start[work.event[call]])))
            inside = number[call, one] = len(work.ranges) + len(runs) - 1
        target[place] = inside
    rows = side.rows[given]
    moved = work.range.copy()
    moved[rows] = target
    via = work.via_graph.copy()
    via[rows] = target >= len(work.ranges)
    return replace(work, ranges=with_runs(work.ranges, runs), range=moved, via_graph=via)
