"""Gives the ops of profiled steps the lines that were noted, op by op, in another step.

The step that is noted sees ops where PyTorch dispatches them, below autograd: a composite op (`aten::linear`) is not
among them, but what it is made of (`aten::addmm`) is, and nothing inside that. So of each profiled step the outermost
ops with names that were noted are laid beside the notes, and where the two sequences agree an op takes the line of its
note, with all that is inside it. An op around such ops takes their line where they have only one. A backward op takes
the line of its forward op.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tracetool.autograd import WRAPPER
from tracetool.events import Category
from tracetool.folding import step_number
from tracetool.nesting import order_of, sweep

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tracetool.events import EventTable, IntArray

_MOST_EDITS = 200


class Note(NamedTuple):
    """An op that ran.

    Attributes:
        op: Its name, without the overload.
        line: What called it, `train.py:12`; None where no line of a program did.
        of_backward: Whether that is only the call of `backward()` within which it ran.
    """

    op: str
    line: str | None
    of_backward: bool = False


@dataclass(frozen=True, slots=True)
class Lines:
    """What became of the notes.

    Attributes:
        of_op: The line of each op that has one, by its external id.
        ops: How many ops the profiled steps have; `known` how many of these have a line.
    """

    of_op: dict[int, str]
    ops: int
    known: int


def align(events: EventTable, notes: Mapping[int, Sequence[Note]]) -> Lines:
    """Find the lines of a trace's ops.

    Args:
        events: Of the trace.
        notes: Of another step of the same program, by the operating system's id of the thread.
    """
    tree = _OpTree(events)
    steps = list(_steps_of_threads(events, tree))
    for thread, ops in steps:
        noted = notes.get(thread, ())
        names = {note.op for note in noted}
        _align(tree, tree.outermost(ops, names), noted, names)
    tree.spread()
    _follow_flows(events, tree)
    tree.spread()
    ids = events.external_id[tree.rows].tolist()
    of_op = {external_id: line for external_id, line in zip(ids, tree.line, strict=True) if line is not None}
    inside = [line for _, ops in steps for line in tree.line[ops.start : ops.stop]]
    return Lines(of_op, len(inside), len(inside) - inside.count(None))


class _OpTree:
    """The ops of a trace, thread by thread, each before those inside it.

    `rows` are their rows in the trace, `end` is where the ops inside each end, `parent` the op around it or -1, `line`
    what is known so far, `weak` whether that is nothing or a call of `backward()`, and `made` the ops around one that
    probably make a tensor with it.
    """

    def __init__(self, events: EventTable) -> None:
        rows = events.of(Category.OP)
        self.rows = rows[order_of(events.thread[rows], events.start[rows], events.end[rows])]
        self.thread, self.start = events.thread[self.rows].astype(np.int64), events.start[self.rows]
        self.names = [events.names[name] for name in events.name[self.rows].tolist()]
        parent, _ = sweep(self.thread, self.start, events.end[self.rows])
        self.parent: list[int] = parent.tolist()
        self.end = list(range(1, len(self.names) + 1))
        for op in reversed(range(len(self.names))):
            if self.parent[op] >= 0:
                self.end[self.parent[op]] = max(self.end[self.parent[op]], self.end[op])
        self.line: list[str | None] = [None] * len(self.names)
        self.weak = [True] * len(self.names)
        self.made = self._made()

    def _made(self) -> dict[int, list[int]]:
        """Modes are off while `torch.tensor` and its like read Python data: one op of that alone is noted."""
        made: dict[int, list[int]] = {}
        before: dict[tuple[int, int], list[int]] = defaultdict(list)
        for op, around in enumerate(zip(self.thread.tolist(), self.parent, strict=True)):
            beside = before[around]
            if [self.names[one] for one in (*beside, op)] == ["aten::empty", "aten::to", "aten::lift_fresh"]:
                made[op] = beside
            elif self.names[op] == "aten::detach_" and beside and beside[-1] in made:
                made[beside[-1]].append(op)
            before[around] = [*beside[-1:], op]
        return made

    def between(self, thread: int, begin: int, end: int) -> range:
        """The ops of a thread that start at a time."""
        low, high = np.searchsorted(self.thread, [thread, thread + 1]).tolist()
        first, last = np.searchsorted(self.start[low:high], [begin, end]).tolist()
        return range(low + first, low + last)

    def outermost(self, ops: range, names: set[str]) -> list[int]:
        """The outermost ops with some names, but for those that make a tensor."""
        found: list[int] = []
        op = ops.start
        while op < ops.stop:
            if self.names[op] in names:
                begin = self.made[op][0] if op in self.made else op
                while found and found[-1] >= begin:
                    found.pop()
                found.append(op)
                op = self.end[op]
            else:
                op += 1
        return found

    def set_line(self, op: int, line: str, *, weak: bool) -> None:
        """Give an op and those inside it a line, but for those that have a better one."""
        for one in range(op, self.end[op]):
            if self.weak[one]:
                self.line[one], self.weak[one] = line, weak

    def spread(self) -> None:
        """Give ops without a line that of what is inside, of the tensor that they make, or of what is around."""
        inside: dict[int, str | None] = {}
        for op in reversed(range(len(self.names))):
            if self.line[op] is None and "::" in self.names[op]:
                # Not for a Python function of autograd: that is called in one line, and calls in others.
                self.line[op] = inside.get(op)
            line, parent = self.line[op], self.parent[op]
            if line is not None:
                inside[parent] = line if inside.setdefault(parent, line) == line else None
        for op, others in self.made.items():
            for other in others:
                if self.line[other] is None:
                    self.line[other] = self.line[op]
        for op, parent in enumerate(self.parent):
            if self.line[op] is None and parent >= 0:
                self.line[op] = self.line[parent]


def _steps_of_threads(events: EventTable, tree: _OpTree) -> Iterator[tuple[int, range]]:
    """The ops of each profiled step, thread by thread, with the operating system's id of the thread."""
    pids = events.process_numbers()
    threads = np.unique(tree.thread).tolist()
    for row in events.of(Category.RANGE).tolist():
        if step_number(events.names[events.name[row]]) is None:
            continue
        for thread in threads:
            tid = events.threads[thread].tid
            if pids[thread] == pids[events.thread[row]] and isinstance(tid, int):
                yield tid, tree.between(thread, int(events.start[row]), int(events.end[row]))


def _align(tree: _OpTree, ops: Sequence[int], notes: Sequence[Note], names: set[str]) -> None:
    pairs = common([tree.names[op] for op in ops], [note.op for note in notes])
    for op, note in pairs:
        line = notes[note].line
        if line is not None:
            tree.set_line(ops[op], line, weak=notes[note].of_backward)
    ends = [(-1, -1), *pairs, (len(ops), len(notes))]
    for (op, note), (next_op, next_note) in itertools.pairwise(ends):
        unused = notes[note + 1 : next_note]
        # An op that is noted in some places is made of others elsewhere, in inference mode and out of it for one; and
        # what looks as if it made a tensor can be ops of their own.
        inner = [range(one + 1, tree.end[one]) for one in ops[op + 1 : next_op]]
        inner += [range(one, tree.end[one]) for end in ops[next_op : next_op + 1] for one in tree.made.get(end, ())[:2]]
        more = [one for inside in inner for one in tree.outermost(inside, names)] if unused else []
        if more:
            _align(tree, more, unused, names)


def _follow_flows(events: EventTable, tree: _OpTree) -> None:
    """Give backward ops the line of their forward op, but for those that Python code of the backward pass called."""
    at = {key: op for op, key in enumerate(zip(tree.thread.tolist(), tree.start.tolist(), strict=True))}
    forward = {flow: at.get(place) for flow, place in _ends_of_flows(events, Category.FLOW_START)}
    for flow, place in _ends_of_flows(events, Category.FLOW_END):
        source, op = forward.get(flow), at.get(place)
        if source is None or op is None:
            continue
        line = tree.line[source]
        if line is not None:
            around = tree.parent[op]
            wrapped = around >= 0 and tree.names[around].startswith(WRAPPER)
            tree.set_line(around if wrapped else op, line, weak=False)


def _ends_of_flows(events: EventTable, category: Category) -> Iterator[tuple[int, tuple[int, int]]]:
    rows: IntArray = events.of(category)
    columns = (events.correlation, events.thread, events.start)
    for flow, thread, start in zip(*(column[rows].tolist() for column in columns), strict=True):
        yield flow, (thread, start)


def common(one: Sequence[str], other: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs of places where two sequences agree, in order: as many as their shortest edit leaves (Myers, 1986).

    Of sequences that differ in hundreds of places not quite as many: what has been followed furthest by then is kept,
    and the rest begun anew, so that the time stays in proportion to their length.
    """
    pairs: list[tuple[int, int]] = []
    i = j = 0
    while i < len(one) and j < len(other):
        end = _furthest(one[i:], other[j:])
        found = []
        run: _Run | None = end
        while run is not None:
            found += [(i + run.x - k, j + run.y - k) for k in range(1, run.length + 1)]
            run = run.before
        pairs += reversed(found)
        i, j = i + end.x, j + end.y
    return pairs


@dataclass(frozen=True, slots=True)
class _Run:
    """Places that agree one after another, up to `x` in one sequence and `y` in the other, and the run before."""

    before: _Run | None
    x: int
    y: int
    length: int


def _furthest(one: Sequence[str], other: Sequence[str]) -> _Run:
    """The runs that lead to the end of both sequences, or with so many edits as are allowed furthest."""
    runs: dict[int, _Run] = {}
    for edits in range(_MOST_EDITS + 1):
        for diagonal in range(-edits, edits + 1, 2):
            down, right = runs.get(diagonal + 1), runs.get(diagonal - 1)
            if right is None or (down is not None and down.x > right.x):
                before, x = down, down.x if down is not None else 0
            else:
                before, x = right, right.x + 1
            start, y = x, x - diagonal
            while x < len(one) and y < len(other) and one[x] == other[y]:
                x, y = x + 1, y + 1
            runs[diagonal] = _Run(before, x, y, x - start)
            if x >= len(one) and y >= len(other):
                return runs[diagonal]
    return max(runs.values(), key=lambda run: run.x + run.y)
