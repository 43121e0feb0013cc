"""Which interval contains another, and which one is open at a moment.

Intervals lie in *lanes* (threads, processes, ids) and are half open, `start <= t < end`, in integer
nanoseconds. In a lane they are put in order by start, the longer first, of equal ones the first in the file:
so of two that are open at once, the later in order is the inner one. Intervals may overlap without nesting.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tracetool.events import BoolArray, IntArray


def order_of(lane: IntArray, start: IntArray, end: IntArray) -> IntArray:
    """The order described above, as indices."""
    order: IntArray = np.lexsort((-end, start, lane))
    return order


def sweep(lane: IntArray, start: IntArray, end: IntArray) -> tuple[IntArray, IntArray]:
    """Parents of intervals, and the ends up to which each can be the innermost one open.

    An interval's parent is the last one before it, in order, that contains it whole. An interval A that
    another, B, overlaps partly (B starts inside it and ends after it) is never again the innermost one open
    once B has started, so its *effective* end is B's start: with effective ends every lane nests.

    The columns are int64, in `order_of` order. Returns each one's parent (an index in that order, -1 for none)
    and its effective end.
    """
    parent = np.full(len(start), -1, dtype=np.int64)
    effective = end.copy()
    ends = end.tolist()
    stack: list[int] = []
    current = -1
    for i, (of_lane, starts, ends_at) in enumerate(zip(lane.tolist(), start.tolist(), ends, strict=True)):
        if of_lane != current:
            current = of_lane
            stack.clear()
        # One that ends where an empty interval stands still contains it whole.
        while stack and (ends[stack[-1]] < starts or ends[stack[-1]] == starts < ends_at):
            stack.pop()
        while stack and ends[stack[-1]] < ends_at:
            effective[stack.pop()] = starts
        if stack:
            parent[i] = stack[-1]
        stack.append(i)
    return parent, effective


def partly_overlapping(lane: IntArray, start: IntArray, end: IntArray) -> BoolArray:
    """Which intervals overlap another of their lane without one containing the other (any order)."""
    flags = np.zeros(len(start), dtype=np.bool_)
    order = np.argsort(lane, kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(lane[order])) + 1):
        s, e = start[members], end[members]
        by_start = np.argsort(s, kind="stable")
        by_end = np.argsort(e, kind="stable")
        starts, ends = s[by_start], e[by_end]
        # Another starts inside and ends after ...
        reach = _window_max(e[by_start], np.searchsorted(starts, s, "right"), np.searchsorted(starts, e, "left"))
        # ... or started before and ends inside.
        first = -_window_max(-s[by_end], np.searchsorted(ends, s, "right"), np.searchsorted(ends, e, "left"))
        flags[members] = (reach > e) | (first < s)
    return flags


def _window_max(values: IntArray, low: IntArray, high: IntArray) -> IntArray:
    """Largest of `values[low:high]` for each pair; the least int64 but one where the window is empty."""
    out = np.full(len(low), np.iinfo(np.int64).min + 1, dtype=np.int64)
    width = high - low
    table = values
    power = 1
    while power <= len(values):
        here = np.flatnonzero((width >= power) & (width < 2 * power))
        out[here] = np.maximum(table[low[here]], table[high[here] - power])
        table = np.maximum(table[:-power], table[power:]) if len(table) > power else table[:0]
        power *= 2
    return out


_BLOCK = 1 << 16


class OpenIntervals:
    """Answers, for many moments at once, which interval of a lane is open and started last."""

    def __init__(self, lane: IntArray, start: IntArray, end: IntArray) -> None:
        """Take int64 columns of equal length, in any order; lanes are numbers from 0."""
        # Empty intervals are never open.
        kept = np.flatnonzero(end > start)
        order = kept[order_of(lane[kept], start[kept], end[kept])]
        self._index = order
        lanes, starts, ends = lane[order], start[order], end[order]
        self._clock = LaneClock(lanes, starts, ends)
        self._starts = self._clock.key(lanes, starts)
        if not self._set_ends(self._clock.key(lanes, ends)):
            _, effective = sweep(lanes, starts, ends)
            self._set_ends(self._clock.key(lanes, effective))

    def _set_ends(self, ends: IntArray) -> bool:
        """Index the intervals by depth; says whether they nest."""
        count = len(self._starts)
        self._ends = np.sort(ends, kind="stable")
        depth = np.arange(count) - np.searchsorted(self._ends, self._starts, "right")
        # The innermost one open at depth d is the last, so far, that started at depth d.
        self._by_depth = np.argsort(depth, kind="stable")
        self._depth_keys = depth[self._by_depth] * count + self._by_depth
        inner = np.flatnonzero(depth > 0)
        around = self._last_at(depth[inner] - 1, inner)
        return bool(np.all(ends[around] >= ends[inner]))

    def _last_at(self, depth: IntArray, before: IntArray) -> IntArray:
        found = np.searchsorted(self._depth_keys, depth * len(self._starts) + before, "left") - 1
        return self._by_depth[found]

    def at(self, lane: IntArray, time: IntArray) -> IntArray:
        """The interval of `lane` open at `time` that started last, as an index into the columns given; or -1."""
        out = np.full(len(time), -1, dtype=np.int64)
        if not len(self._starts):
            return out
        # In blocks, so that what is needed on the way stays small beside the trace.
        for begin in range(0, len(time), _BLOCK):
            block = slice(begin, begin + _BLOCK)
            key = self._clock.key(lane[block], time[block])
            started = np.searchsorted(self._starts, key, "right")
            depth = started - np.searchsorted(self._ends, key, "right")
            inside = np.flatnonzero(depth > 0)
            out[begin + inside] = self._index[self._last_at(depth[inside] - 1, started[inside])]
        return out


class LaneClock:
    """Packs a lane and a time into one int64 that sorts by lane, then by time."""

    def __init__(self, lane: IntArray, start: IntArray, end: IntArray) -> None:
        self._origin = int(start.min()) if len(start) else 0
        last = int(end.max()) if len(end) else 0
        self._width = last - self._origin + 3
        self._lanes = int(lane.max()) + 1 if len(lane) else 0
        self._ranks: IntArray | None = None
        if self._lanes * self._width >= 2**62:
            self._ranks = np.unique(np.concatenate([start, end]))
            self._width = len(self._ranks) + 1

    def key(self, lane: IntArray, time: IntArray) -> IntArray:
        """The packed lane and time."""
        if self._ranks is None:
            within = np.clip(time - self._origin + 1, 0, self._width - 1)
        else:
            within = np.searchsorted(self._ranks, time, "right")
        # A lane that no interval is in sorts after all of them, where nothing is open.
        return np.minimum(lane, self._lanes).astype(np.int64) * self._width + within
