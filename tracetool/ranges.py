"""The ranges of a trace: which there are, how they nest, and which one a moment on a thread belongs to."""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tracetool import autograd
from tracetool.errors import SettingError
from tracetool.events import Category
from tracetool.folding import DEFAULT_FOLDS, Fold, fold
from tracetool.globs import name_glob
from tracetool.nesting import OpenIntervals, order_of, partly_overlapping, sweep

if TYPE_CHECKING:
    import re
    from collections.abc import Sequence

    from tracetool.autograd import AutogradThreads
    from tracetool.events import BoolArray, EventTable, IntArray

NO_RANGE = "(no range)"
BEFORE_WINDOW = "(before the window)"

_MODULE = "nn.Module: "
_NAME_BYTES = 8


class SourceKind(enum.StrEnum):
    """What else than `record_function` ranges can serve as ranges."""

    OP = "op"
    PYTHON = "python"
    MODULE = "module"
    THREAD = "thread"


@dataclass(frozen=True, slots=True)
class RangeSource:
    """Other events that are asked to serve as ranges, beside those that a program has."""

    kind: SourceKind
    names: re.Pattern[str]


def range_source(text: str) -> RangeSource:
    """Read `op:GLOB`, `python:GLOB`, `module` or `thread`.

    Raises:
        SettingError: it is none of these.
    """
    kind, colon, glob = text.partition(":")
    if kind in (SourceKind.OP, SourceKind.PYTHON) and glob:
        return RangeSource(SourceKind(kind), name_glob(glob))
    if kind in (SourceKind.MODULE, SourceKind.THREAD) and not colon:
        return RangeSource(SourceKind(kind), name_glob("*"))
    raise SettingError(f"'{text}' cannot serve as ranges: write op:GLOB, python:GLOB, module or thread")


@dataclass(frozen=True, slots=True)
class PathTree:
    """The distinct paths: each is its parent's path and one more (folded) name."""

    parent: list[int]
    name: list[str]

    def path(self, number: int) -> tuple[str, ...]:
        """The names from the outermost to this one."""
        names = []
        while number >= 0:
            names.append(self.name[number])
            number = self.parent[number]
        return tuple(reversed(names))

    def bytes_of_all(self) -> int:
        """What all paths take, each as its names and as text."""
        sizes: list[int] = []
        for parent, name in zip(self.parent, self.name, strict=True):
            sizes.append(_NAME_BYTES + len(name) + (sizes[parent] if parent >= 0 else 0))
        return sum(sizes)

    def number(self, numbers: dict[tuple[int, str], int], parent: int, name: str) -> int:
        """The number of a path, which is added if there is none; `numbers` knows those that there are."""
        if (parent, name) not in numbers:
            numbers[parent, name] = self.add(parent, name)
        return numbers[parent, name]

    def add(self, parent: int, name: str) -> int:
        """The number of a path that is new."""
        self.parent.append(parent)
        self.name.append(name)
        return len(self.name) - 1


@dataclass(frozen=True, slots=True)
class RangeTable:
    """Columns over the times that ranges ran, sorted by thread, start, the longer first; then those via graphs.

    `thread` indexes the trace's threads; times are ns; `parent` is an index into this table or -1.
    """

    thread: IntArray
    start: IntArray
    end: IntArray
    raw_name: IntArray
    """Index into the trace's names; -1 for a thread that serves as a range, and for runs via graphs."""
    parent: IntArray
    via_autograd: BoolArray
    """Opened on an autograd thread outside any range, or inside one that was: its parent is on another thread."""
    via_graph: BoolArray
    """Did not run here: holds device work of a graph launch, as `with_runs` adds them, and lasts no time."""
    ambiguous: BoolArray
    """Overlaps another of its thread without one containing the other."""
    path: IntArray
    """Index into `paths`."""
    paths: PathTree
    _open: OpenIntervals
    _autograd: AutogradThreads

    def __len__(self) -> int:
        return len(self.start)

    def locate(self, thread: IntArray, time: IntArray) -> tuple[IntArray, BoolArray]:
        """The range that each moment on a thread belongs to (rules 2 and 3).

        Returns:
            Indices into this table (-1: no range), and which of them were found *via autograd*.
        """
        return _locate(self._open, self._autograd, self.via_autograd, thread, time)


def _locate(
    opened: OpenIntervals, callers: AutogradThreads, via_ranges: BoolArray, thread: IntArray, time: IntArray
) -> tuple[IntArray, BoolArray]:
    thread = thread.astype(np.int64)
    found = opened.at(thread, time)
    via = np.zeros(len(found), dtype=np.bool_)
    own = found >= 0
    via[own] = via_ranges[found[own]]
    left = np.flatnonzero(~own)
    asked = thread[left]
    # A caller may itself be an autograd thread (activation checkpointing), but no chain is longer than that.
    for _ in range(3):
        asked = callers.caller_at(asked, time[left])
        called = asked >= 0
        left, asked = left[called], asked[called]
        if not len(left):
            break
        found[left] = opened.at(asked, time[left])
        via[left] = found[left] >= 0
        still = found[left] < 0
        left, asked = left[still], asked[still]
    return found, via


def build(events: EventTable, sources: Sequence[RangeSource] = (), folds: Sequence[Fold] = DEFAULT_FOLDS) -> RangeTable:
    """Find the ranges of a trace, with their parents and paths."""
    rows, raw_name, thread, start, end = _candidates(events, sources)
    order = order_of(thread, start, end)
    rows, raw_name, thread, start, end = (column[order] for column in (rows, raw_name, thread, start, end))
    parent, effective = sweep(thread, start, end)
    overlap = partly_overlapping(thread, start, end) if np.any(effective < end) else np.zeros(len(end), np.bool_)
    opened = OpenIntervals(thread, start, end)
    callers = autograd.find(events)
    via = _adopt(parent, thread, start, opened, callers)
    path, paths = _paths(*_folded(events, raw_name, thread, folds), parent, start)
    graph = np.zeros(len(via), dtype=np.bool_)
    return RangeTable(thread, start, end, raw_name, parent, via, graph, overlap, path, paths, opened, callers)


class NewRun(NamedTuple):
    """A range that a graph launch did the work of: within which run, or -1; its name; the launch's thread and time."""

    parent: int
    name: str
    thread: int
    time: int


def with_runs(ranges: RangeTable, runs: Sequence[NewRun]) -> RangeTable:
    """Add runs behind those that there are; each may lie within an earlier one of them."""
    tree = PathTree(list(ranges.paths.parent), list(ranges.paths.name))
    numbers = {step: number for number, step in enumerate(zip(tree.parent, tree.name, strict=True))}
    path = ranges.path.tolist()
    for run in runs:
        path.append(tree.number(numbers, path[run.parent] if run.parent >= 0 else -1, run.name))
    parent, _, thread, time = zip(*runs, strict=True) if runs else ((), (), (), ())
    no, yes = np.zeros(len(runs), dtype=np.bool_), np.ones(len(runs), dtype=np.bool_)
    return replace(
        ranges,
        thread=np.append(ranges.thread, np.array(thread, dtype=np.int64)),
        start=np.append(ranges.start, np.array(time, dtype=np.int64)),
        end=np.append(ranges.end, np.array(time, dtype=np.int64)),
        raw_name=np.append(ranges.raw_name, np.full(len(runs), -1, dtype=np.int64)),
        parent=np.append(ranges.parent, np.array(parent, dtype=np.int64)),
        via_autograd=np.append(ranges.via_autograd, no),
        via_graph=np.append(ranges.via_graph, yes),
        ambiguous=np.append(ranges.ambiguous, no),
        path=np.array(path, dtype=np.int64),
        paths=tree,
    )


def _candidates(
    events: EventTable, sources: Sequence[RangeSource]
) -> tuple[IntArray, IntArray, IntArray, IntArray, IntArray]:
    """Rows that serve as ranges, in the order of the file; threads that do come first, as row -1."""
    serves = events.category == Category.RANGE
    for source in sources:
        if source.kind == SourceKind.THREAD:
            continue
        category = Category.OP if source.kind == SourceKind.OP else Category.PYTHON
        module = source.kind == SourceKind.MODULE
        named = np.array(
            [
                (not module or name.startswith(_MODULE)) and source.names.fullmatch(name) is not None
                for name in events.names
            ],
            dtype=np.bool_,
        )
        serves |= (events.category == category) & named[events.name]
    rows = np.flatnonzero(serves)
    thread = events.thread[rows].astype(np.int64)
    name = events.name[rows].astype(np.int64)
    start, end = events.start[rows], events.end[rows]
    if any(source.kind == SourceKind.THREAD for source in sources):
        which, first, last = _thread_spans(events)
        none = np.full(len(which), -1, dtype=np.int64)
        rows, name = np.concatenate([none, rows]), np.concatenate([none, name])
        thread = np.concatenate([which, thread])
        start, end = np.concatenate([first, start]), np.concatenate([last, end])
    return rows, name, thread, start, end


def _thread_spans(events: EventTable) -> tuple[IntArray, IntArray, IntArray]:
    """CPU threads, and from their first event to just after their last one."""
    just_in_time = (Category.COMPILE, Category.AUTOTUNE)
    on_cpu = events.of(Category.RANGE, Category.OP, Category.CALL, Category.PYTHON, Category.MEMORY, *just_in_time)
    thread = events.thread[on_cpu].astype(np.int64)
    first = np.full(len(events.threads), np.iinfo(np.int64).max)
    last = np.full(len(events.threads), np.iinfo(np.int64).min)
    np.minimum.at(first, thread, events.start[on_cpu])
    np.maximum.at(last, thread, events.end[on_cpu])
    which = np.unique(thread)
    return which, first[which], last[which] + 1


def _adopt(
    parent: IntArray, thread: IntArray, start: IntArray, opened: OpenIntervals, callers: AutogradThreads
) -> BoolArray:
    """Give ranges at the top of autograd threads the parent that rule 3 names; says which are under one."""
    via = np.zeros(len(parent), dtype=np.bool_)
    top = np.flatnonzero(parent < 0)
    caller = callers.caller_at(thread[top], start[top])
    top, caller = top[caller >= 0], caller[caller >= 0]
    found, _ = _locate(opened, callers, via, caller, start[top])
    top, found = top[found >= 0], found[found >= 0]
    earlier = start[found] < start[top]
    parent[top[earlier]] = found[earlier]
    via[top[earlier]] = True
    # Where threads call each other in a circle, ranges that start together could be within themselves.
    for child, holder in zip(top[~earlier].tolist(), found[~earlier].tolist(), strict=True):
        if not _is_within(parent, holder, child):
            parent[child] = holder
            via[child] = True
    if via.any():
        own = np.where(via, -1, parent).tolist()
        flags = via.tolist()
        for i, up in enumerate(own):
            flags[i] = flags[i] or (up >= 0 and flags[up])
        via = np.array(flags, dtype=np.bool_)
    return via


def _is_within(parent: IntArray, node: int, holder: int) -> bool:
    """Whether a node is another, or one of its descendants."""
    while node >= 0 and node != holder:
        node = int(parent[node])
    return node >= 0


def _folded(
    events: EventTable, raw_name: IntArray, thread: IntArray, folds: Sequence[Fold]
) -> tuple[list[str], list[int]]:
    """The folded names, each once, and the number of that of each run."""
    numbers: dict[str, int] = {}
    # Behind the names stand the threads, which serve as ranges where there is no name.
    which = np.where(raw_name >= 0, raw_name, len(events.names) + thread)
    of = np.zeros(len(events.names) + len(events.threads), dtype=np.int64)
    for one in np.flatnonzero(np.bincount(which, minlength=1)).tolist():
        named = one < len(events.names)
        name = fold(events.names[one], folds) if named else f"thread {events.threads[one - len(events.names)].label}"
        of[one] = numbers.setdefault(name, len(numbers))
    return list(numbers), of[which].tolist()


def _paths(names: list[str], name: list[int], parent: IntArray, start: IntArray) -> tuple[IntArray, PathTree]:
    """Number the paths as their first runs start."""
    tree = PathTree([], [])
    # Of the path around, of the first name in it, and so on.
    numbers: dict[int, int] = {}
    path = [-1] * len(name)
    parents = parent.tolist()
    for first in np.argsort(start, kind="stable").tolist():
        # A parent comes earlier, unless it starts at the same moment on another thread.
        waiting = [first] if path[first] < 0 else []
        while waiting and (around := parents[waiting[-1]]) >= 0 and path[around] < 0:
            waiting.append(around)
        for i in reversed(waiting):
            up = path[parents[i]] if parents[i] >= 0 else -1
            key = (up + 1) * len(names) + name[i]
            if key not in numbers:
                numbers[key] = tree.add(up, names[name[i]])
            path[i] = numbers[key]
    return np.array(path, dtype=np.int64), tree
