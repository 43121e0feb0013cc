"""Counting: what each run of each range owns, metric by metric, and its sums over descendants."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from tracetool import apis, autograd
from tracetool.attribution import EARLIER, OUTSIDE
from tracetool.events import DEVICE_WORK, NO_ID, NO_LINK, Category
from tracetool.metrics import HOST_DIRECTIONS, METRICS, Needs, op_of
from tracetool.nesting import LaneClock, order_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tracetool.attribution import Work
    from tracetool.events import BoolArray, EventTable, IntArray


@dataclass(frozen=True, slots=True)
class Amounts:
    """Rows of work that a metric counts, and how much each adds."""

    rows: IntArray
    values: IntArray


class Tally:
    """Exact and statistical counts of every run of every range.

    Runs are the rows of the range table; two more *slots* follow them, for work outside any range and for work
    from before the window.
    """

    def __init__(self, work: Work, *, compiles_noted: bool = False) -> None:
        """Count; `compiles_noted` says that a trace without compiles had none, and not that nobody looked."""
        self.work = work
        self.compiles_noted = compiles_noted
        self.ranges = work.ranges
        self.runs = len(work.ranges)
        self.tree = Tree(work.ranges.parent)

    def slots(self, rows: IntArray) -> IntArray:
        """The slot of each of some rows of work."""
        of: IntArray = self.work.range[rows]
        of[of == OUTSIDE] = self.runs
        of[of == EARLIER] = self.runs + 1
        return of

    @cached_property
    def amounts(self) -> dict[str, Amounts]:
        """What each additive metric counts; metrics that count nothing here are left out."""
        return {name: amounts for name, amounts in _select(self.work) if len(amounts.rows)}

    @cached_property
    def op_names(self) -> list[str]:
        """Names of all ops that were called."""
        events = self.work.events
        ops = self.work.event[self.work.of(Category.OP)]
        return [events.names[name] for name in events.names_at(ops)]

    def amounts_of(self, metric: str) -> Amounts:
        """Rows and values of an additive metric, `op_calls["..."]` among them."""
        op = op_of(metric)
        if op is None:
            return self.amounts.get(metric, _NOTHING)
        rows = self.work.of(Category.OP)
        events = self.work.events
        name = events.names.index(op) if op in events.names else -1
        rows = rows[events.name[self.work.event[rows]] == name]
        return _ones(rows)

    def own(self, metric: str) -> IntArray:
        """Self of an additive metric, for each slot."""
        amounts = self.amounts_of(metric)
        return _sum_by(self.slots(amounts.rows), amounts.values, self.runs + 2)

    def total(self, metric: str) -> IntArray:
        """Total of an additive metric, for each slot."""
        return self.tree.sums(self.own(metric))

    def held(self) -> set[str]:
        """The metrics that this trace can hold at all; the others are absent, not zero."""
        kinds = set(np.flatnonzero(np.bincount(self.work.category, minlength=1)).tolist())
        has = {
            Needs.NOTHING: True,
            Needs.DEVICE: bool(kinds & {Category.CALL, Category.KERNEL, Category.MEMCPY, Category.MEMSET}),
            Needs.MEMORY: Category.MEMORY in kinds,
            Needs.COMPILES: self.compiles_noted or bool(kinds & {Category.COMPILE, Category.AUTOTUNE}),
        }
        return {name for name, metric in METRICS.items() if has[metric.needs]}

    @cached_property
    def peaks(self) -> Amounts:
        """Allocations, and what was held right after each: on devices, in a trace without any on the host."""
        work, events = self.work, self.work.events
        rows = work.of(Category.MEMORY)
        of = work.event[rows]
        held = events.held_bytes.at(of, NO_ID)
        known = (events.bytes.at(of, 0) > 0) & (held != NO_ID)
        on_device = events.on_device.at(of, 0) == 1
        if on_device.any():
            known &= on_device
        return Amounts(rows[known], held[known])

    def peak_own(self) -> IntArray:
        """The most that was held after an allocation of each slot's own, bytes."""
        return max_by(self.slots(self.peaks.rows), self.peaks.values, self.runs + 2)

    def peak_total(self) -> IntArray:
        """The same over each slot and its descendants."""
        return self.tree.maxima(self.peak_own())

    # Times of runs -----------------------------------------------------------------------------------------

    def cpu_total(self) -> IntArray:
        """Wall time of each run, ns."""
        return self.ranges.end - self.ranges.start

    def cpu_own(self) -> IntArray:
        """Wall time of each run less that of its children on the same thread, ns."""
        own = self.cpu_total()
        parent = self.ranges.parent
        children = np.flatnonzero((parent >= 0) & (self.ranges.thread[parent] == self.ranges.thread))
        np.subtract.at(own, parent[children], self.cpu_total()[children])
        return own

    def busy_own(self) -> IntArray:
        """Time in which device work of each slot's own ran, on each device, summed over devices, ns."""
        owner, device, start, end = self.device_intervals()
        return union_length(owner, device, start, end, self.runs + 2)

    def busy_total(self) -> IntArray:
        """The same over each slot and its descendants."""
        return union_lengths_up(list(self.device_intervals()), self.tree, self.runs + 2)

    def device_intervals(self) -> tuple[IntArray, IntArray, IntArray, IntArray]:
        """Slot, device, start and end (ns) of every piece of device work."""
        work = self.work
        rows = work.of(*DEVICE_WORK)
        events, of = work.events, work.event[rows]
        device = events.process_numbers().astype(np.int32)[events.thread[of]]
        return self.slots(rows), device, events.start[of], events.end[of]


_NOTHING = Amounts(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))


class Tree:
    """A forest given by parents.

    Attributes:
        parent: of each node; -1 for a root.
        levels: nodes by depth, roots first.
        place: position of each node when each comes before its descendants, siblings in their order.
        size: how many nodes each subtree has.
    """

    def __init__(self, parent: IntArray) -> None:
        self.parent = parent
        self.levels = list(_levels(parent))
        count = len(parent)
        size = np.ones(count, dtype=np.int64)
        for level in reversed(self.levels[1:]):
            np.add.at(size, parent[level], size[level])
        # Number the forest so that each subtree is a run of numbers, beginning with its root.
        siblings = np.lexsort((np.arange(count), parent))
        before = np.cumsum(size[siblings]) - size[siblings]
        ups = parent[siblings]
        first = np.searchsorted(ups, ups, "left")
        offset = np.zeros(count, dtype=np.int64)
        offset[siblings] = before - before[first] if count else before
        place = np.zeros(count, dtype=np.int64)
        for depth, level in enumerate(self.levels):
            place[level] = offset[level] + (place[parent[level]] + 1 if depth else 0)
        self._order = np.empty(count, dtype=np.int64)
        self._order[place] = np.arange(count)
        self.place, self.size = place, size

    def sums(self, own: IntArray) -> IntArray:
        """Each node's value and those of all its descendants; values behind those of nodes stand alone."""
        running = np.concatenate([[0], np.cumsum(own[self._order])])
        sums = own.copy()
        sums[: len(self.place)] = running[self.place + self.size] - running[self.place]
        return sums

    def maxima(self, own: IntArray) -> IntArray:
        """The largest of each node's value and those of all its descendants; values behind those of nodes stay."""
        maxima = own.copy()
        for level in reversed(self.levels[1:]):
            np.maximum.at(maxima, self.parent[level], maxima[level])
        return maxima


def _levels(parent: IntArray) -> Iterator[IntArray]:
    """Nodes by depth, roots first."""
    children = np.argsort(parent, kind="stable")
    ups = parent[children]
    level = np.flatnonzero(parent < 0)
    while len(level):
        yield level
        low, high = np.searchsorted(ups, level, "left"), np.searchsorted(ups, level, "right")
        count = high - low
        within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        level = children[np.repeat(low, count) + within]


def _sum_by(group: IntArray, values: IntArray, groups: int) -> IntArray:
    sums = np.zeros(groups, dtype=np.int64)
    np.add.at(sums, group, values)
    return sums


def max_by(group: IntArray, values: IntArray, groups: int) -> IntArray:
    """The largest value of each group, which is not negative; 0 for none."""
    maxima = np.zeros(groups, dtype=np.int64)
    np.maximum.at(maxima, group, values)
    return maxima


def union_length(group: IntArray, device: IntArray, start: IntArray, end: IntArray, groups: int) -> IntArray:
    """Length of the union of intervals, by group and device, summed over a group's devices."""
    group, _, start, end = _merged(group, device, start, end)
    return _sum_by(group, end - start, groups)


def union_lengths_up(intervals: list[IntArray], tree: Tree, groups: int) -> IntArray:
    """The same over each node of a tree with its descendants; groups outside the tree stand alone.

    Takes group, device, start and end out of the list that it is given, so that they need not be there any longer.
    """
    depth = np.zeros(groups, dtype=np.int64)
    for number, level in enumerate(tree.levels):
        depth[level] = number
    of_group = depth[intervals[0]]
    by_depth = np.argsort(of_group, kind="stable").astype(np.int32)
    edges = np.searchsorted(of_group[by_depth], np.arange(max(1, len(tree.levels)) + 1)).tolist()
    del of_group
    levels = [[column[by_depth[low:high]] for column in intervals] for low, high in itertools.pairwise(edges)]
    intervals.clear()
    del by_depth
    sums = np.zeros(groups, dtype=np.int64)
    below = [column[:0] for column in levels[0]]
    while levels:
        # One column after the other, so that not all are there twice at once.
        here = [np.concatenate([own, below.pop(0)]) for own in levels.pop()]
        below = _merged(*here)
        del here
        level = np.unique(below[0])
        sums[level] = _sum_by(np.searchsorted(level, below[0]), below[3] - below[2], len(level))
        if levels:
            below[0] = tree.parent[below[0]]
    return sums


def _merged(group: IntArray, device: IntArray, start: IntArray, end: IntArray) -> list[IntArray]:
    """Overlapping intervals of one group and device joined."""
    if len(group) <= _MOST_AT_ONCE or group.min() == group.max():
        return _merged_at_once(group, device, start, end)
    parts = [_merged_at_once(group[part], device[part], start[part], end[part]) for part in _parts(group)]
    # One column after the other, so that not all are there twice at once.
    return [np.concatenate([part.pop(0) for part in parts]) for _ in range(4)]


def _merged_at_once(group: IntArray, device: IntArray, start: IntArray, end: IntArray) -> list[IntArray]:
    if not len(group):
        return [group, device, start, end]
    lane: IntArray = group.astype(np.int64) * (int(device.max()) + 1) + device
    clock = LaneClock(lane, start, end)
    # One after the other, so that not all are there twice at once.
    begun = clock.key(lane, start)
    order = np.argsort(begun, kind="stable")
    begun = begun[order]
    ended = clock.key(lane, end)
    del lane
    ended = ended[order]
    np.maximum.accumulate(ended, out=ended)
    first = np.append(True, begun[1:] > ended[:-1])
    del begun, ended
    begins = np.flatnonzero(first)
    furthest = np.maximum.reduceat(end[order], begins)
    order = order[begins]
    return [group[order], device[order], start[order], furthest]


# What each metric counts --------------------------------------------------------------------------------------


def _select(work: Work) -> Iterator[tuple[str, Amounts]]:
    yield from _select_calls(work)
    yield from _select_device_work(work)
    yield from _select_ops(work)
    yield from _select_memory(work)
    yield from _select_compiles(work)


def _ones(rows: IntArray) -> Amounts:
    # One 1, seen as many times as there are rows.
    return Amounts(rows.astype(np.int32, copy=False), np.broadcast_to(np.int64(1), len(rows)))


def _durations(work: Work, rows: IntArray) -> IntArray:
    of = work.event[rows]
    return work.events.end[of] - work.events.start[of]


def _is(events: EventTable, rows: IntArray, flags: BoolArray) -> BoolArray:
    return flags[events.name[rows]]


def _select_calls(work: Work) -> Iterator[tuple[str, Amounts]]:
    events = work.events
    calls = work.of(Category.CALL)
    of = work.event[calls]
    owns_kernel, owns = work.owning(work.of(Category.KERNEL)), work.owning(work.owned)
    graph = _is(events, of, apis.named(events.names, apis.is_graph_launch))
    launches = calls[owns_kernel[calls] & ~graph]
    graph_launches = calls[owns[calls] & graph]
    yield "kernel_launches", _ones(launches)
    yield "graph_launches", _ones(graph_launches)
    launch = calls[_is(events, of, apis.named(events.names, apis.is_launch)) & ~owns[calls]]
    yield "unlinked_launches", _ones(_without_device_work(work, launch))
    syncs = calls[_is(events, of, apis.named(events.names, apis.is_sync))]
    yield "syncs", _ones(syncs)
    both = np.concatenate([launches, graph_launches])
    yield "launch_ns", Amounts(both, _durations(work, both))
    yield "sync_wait_ns", Amounts(syncs, _waits(work, syncs))


def _without_device_work(work: Work, calls: IntArray) -> IntArray:
    """Those of some calls whose id no device work carries (that of an outer call with the same id is carried)."""
    events = work.events
    ids = events.correlation[work.event[calls]]
    device = events.correlation[work.event[work.of(*DEVICE_WORK)]] if len(calls) else ids
    alone: BoolArray = (ids == NO_LINK) | ~np.isin(ids, device)
    return calls[alone]


def _waits(work: Work, syncs: IntArray) -> IntArray:
    """How long each sync waited: its own duration, or that of the cuda_sync event with its id."""
    events = work.events
    waits = _durations(work, syncs)
    refined = events.of(Category.SYNC)
    if not len(refined):
        return waits
    ids = events.correlation[refined]
    order = order_of(ids, events.end[refined] - events.start[refined], np.zeros(len(ids), dtype=np.int64))
    wanted = events.correlation[work.event[syncs]]
    last = np.searchsorted(ids[order], wanted, "right") - 1
    match = (last >= 0) & (ids[order[np.maximum(last, 0)]] == wanted) & (wanted != NO_LINK)
    longest = refined[order[last[match]]]
    waits[match] = events.end[longest] - events.start[longest]
    return waits


def _select_device_work(work: Work) -> Iterator[tuple[str, Amounts]]:
    events = work.events
    kernels = work.of(Category.KERNEL)
    yield "kernels", _ones(kernels)
    graph = apis.named(events.names, apis.is_graph_launch)
    owned = kernels[work.owner(kernels) >= 0]
    yield "graph_kernels", _ones(owned[_is(events, work.event[work.owner(owned)], graph)])
    memsets = work.of(Category.MEMSET)
    yield "memsets", _ones(memsets)
    collectives = kernels[events.collective_bytes.at(work.event[kernels], NO_ID) != NO_ID]
    yield "collectives", _ones(collectives)
    yield "collective_bytes", Amounts(collectives, events.collective_bytes.at(work.event[collectives], 0))
    copies = work.of(Category.MEMCPY)
    yield from _select_copies(work, copies)
    device = np.concatenate([kernels, copies, memsets])
    yield "gpu_ns", Amounts(device, _durations(work, device))


def _select_copies(work: Work, copies: IntArray) -> Iterator[tuple[str, Amounts]]:
    events = work.events
    names = events.name[work.event[copies]]
    kinds = {name: apis.copy_kind(events.names[name]) for name in events.names_at(work.event[copies])}
    size = events.bytes.at(work.event[copies], 0)

    def both(prefix: str, copy: str, rows: BoolArray) -> Iterator[tuple[str, Amounts]]:
        yield f"{prefix}copies", _ones(copies[rows])
        yield f"{copy}bytes", Amounts(copies[rows], size[rows])

    yield from both("", "copy_", np.ones(len(copies), dtype=np.bool_))
    for direction in sorted({kind.direction for kind in kinds.values()}):
        here = np.isin(names, [name for name, kind in kinds.items() if kind.direction == direction])
        yield from both(f"{direction}_", f"{direction}_", here)
    for kind in sorted({kind for kind in kinds.values() if kind.memory and kind.direction in HOST_DIRECTIONS}):
        here = np.isin(names, [name for name, other in kinds.items() if other == kind])
        yield from both(f"{kind.direction}_{kind.memory}_", f"{kind.direction}_{kind.memory}_", here)


def _select_ops(work: Work) -> Iterator[tuple[str, Amounts]]:
    """Ops that no other op contains whole inside the same innermost range of their thread."""
    events = work.events
    ops = work.of(Category.OP)
    ops = ops[~_is(events, work.event[ops], autograd.is_wrapper(events.names))]
    if not len(ops):
        return
    group = work.thread[ops].astype(np.int64) * (len(work.ranges) + 2) + work.range[ops] + 2
    outer = [ops[part][_outermost(events, work.event[ops[part]], group[part])] for part in _parts(group)]
    yield "ops", _ones(np.sort(np.concatenate(outer)))


_MOST_AT_ONCE = 1 << 17


def _parts(group: IntArray) -> Iterator[IntArray]:
    """All places, whole groups together, in parts that keep what is needed on the way small beside the trace."""
    if len(group) <= _MOST_AT_ONCE:
        yield np.arange(len(group))
        return
    edges = np.arange(0, len(group), _MOST_AT_ONCE)
    lows = np.unique(np.partition(group, edges)[edges])
    for low, high in itertools.pairwise([*lows.tolist(), int(group.max()) + 1]):
        yield np.flatnonzero((group >= low) & (group < high))


def _outermost(events: EventTable, rows: IntArray, group: IntArray) -> IntArray:
    """Which events are in no other one of their group, as places in the columns given."""
    start, end = events.start[rows], events.end[rows]
    order = order_of(group, start, end)
    group, start, end = group[order], start[order], end[order]
    lane = np.cumsum(np.append(False, group[1:] != group[:-1]))
    reach = LaneClock(lane, start, end).key(lane, end)
    outer = np.ones(len(rows), dtype=np.bool_)
    # The first of a lane is outermost whatever lies in other lanes, whose keys are all smaller.
    outer[1:] = np.maximum.accumulate(reach)[:-1] < reach[1:]
    return order[outer]


def _select_memory(work: Work) -> Iterator[tuple[str, Amounts]]:
    events = work.events
    memory = work.of(Category.MEMORY)
    if not len(memory):
        return
    size = events.bytes.at(work.event[memory], 0)
    taken = size > 0
    yield "allocs", _ones(memory[taken])
    yield "alloc_bytes", Amounts(memory[taken], size[taken])
    calls = work.of(Category.CALL)
    yield (
        "device_mallocs",
        _ones(calls[_is(events, work.event[calls], apis.named(events.names, apis.is_device_malloc))]),
    )


def _select_compiles(work: Work) -> Iterator[tuple[str, Amounts]]:
    compiles = work.of(Category.COMPILE)
    hit = work.events.cache_hit.at(work.event[compiles], 0) == 1
    yield "compiles", _ones(compiles[~hit])
    yield "compile_cache_hits", _ones(compiles[hit])
    yield "compile_ns", Amounts(compiles[~hit], _durations(work, compiles[~hit]))
    tunings = work.of(Category.AUTOTUNE)
    yield "autotunes", _ones(tunings)
    yield "autotune_ns", Amounts(tunings, _durations(work, tunings))
