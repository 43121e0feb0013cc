"""Which interval contains another, and which one is open at a moment.

Intervals lie in *lanes* (threads, processes, ids) and are half open, `start <= t < end`, in integer
nanoseconds. In a lane they are put in order by start, the longer first, of equal ones the first in the file:
so of two that are open at once, the later in order is the inner one. Intervals may overlap without nesting.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tracetool.events import BoolArray, IntArray


_LARGEST_KEY = 2**62


def order_of(lane: IntArray, start: IntArray, end: IntArray) -> IntArray:
    """The order described above, as indices."""
    if not len(lane):
        return np.empty(0, dtype=np.int64)
    first, last = int(start.min()), int(start.max())
    low, high = int(lane.min()), int(lane.max())
    order: IntArray
    if (high - low + 1) * (last - first + 1) >= _LARGEST_KEY:
        order = np.lexsort((-end, start, lane))
        return order
    # Files have most in order, which makes it quick to sort by one number.
    keys = (lane.astype(np.int64) - low) * (last - first + 1) + (start - first)
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    same = keys[1:] == keys[:-1]
    if same.any():
        together = np.flatnonzero(np.append(same, False) | np.append(False, same))
        which = order[together]
        order[together] = which[np.lexsort((-end[which], keys[together]))]
    return order


def sweep(lane: IntArray, start: IntArray, end: IntArray) -> tuple[IntArray, IntArray]:
    """Parents of intervals, and the ends up to which each can be the innermost one open.

    An interval's parent is the last one before it, in order, that contains it whole. An interval A that
    another, B, overlaps partly (B starts inside it and ends after it) is never again the innermost one open
    once B has started, so its *effective* end is B's start: with effective ends every lane nests.

    The columns are int64, in `order_of` order. Returns each one's parent (an index in that order, -1 for none)
    and its effective end.
    """
    if np.all(start < end) and (nested := _Nested.of(lane, start, end)) is not None:
        return nested.parent, end.copy()
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


class _Nested:
    """Intervals of which any two of a lane that overlap lie one in the other, by depth."""

    def __init__(self, starts: IntArray, ends: IntArray) -> None:
        """Take the keys of starts and ends, of intervals in `order_of` order of which none is empty."""
        count = len(starts)
        self._starts = starts
        self._ends = np.sort(ends, kind="stable")
        depth = np.arange(count) - np.searchsorted(self._ends, starts, "right")
        # The innermost one open at depth d is the last, so far, that started at depth d.
        self._by_depth = np.argsort(depth, kind="stable")
        self._depth_keys = depth[self._by_depth] * count + self._by_depth
        inner = np.flatnonzero(depth > 0)
        self.parent = np.full(count, -1, dtype=np.int64)
        self.parent[inner] = self._last_at(depth[inner] - 1, inner)

    @classmethod
    def of(cls, lane: IntArray, start: IntArray, end: IntArray) -> _Nested | None:
        """None where two overlap and do not nest."""
        clock = LaneClock(lane, start, end)
        ends = clock.key(lane, end)
        found = cls(clock.key(lane, start), ends)
        inner = np.flatnonzero(found.parent >= 0)
        return found if np.all(ends[found.parent[inner]] >= ends[inner]) else None

    def _last_at(self, depth: IntArray, before: IntArray) -> IntArray:
        found = np.searchsorted(self._depth_keys, depth * len(self._starts) + before, "left") - 1
        return self._by_depth[found]

    def at(self, key: IntArray) -> IntArray:
        """Which interval is open at each moment, given as keys, and started last; or -1."""
        started = np.searchsorted(self._starts, key, "right")
        depth = started - np.searchsorted(self._ends, key, "right")
        inside = np.flatnonzero(depth > 0)
        found = np.full(len(key), -1, dtype=np.int64)
        found[inside] = self._last_at(depth[inside] - 1, started[inside])
        return found

    @cached_property
    def changes(self) -> tuple[IntArray, IntArray]:
        """The moments from which on another interval is open, and which; at first none is."""
        moments = np.sort(np.concatenate([self._starts, self._ends]), kind="stable")
        return moments, np.append(self.at(moments), -1)


class OpenIntervals:
    """Answers, for many moments at once, which interval of a lane is open and started last."""

    def __init__(self, lane: IntArray, start: IntArray, end: IntArray) -> None:
        """Take int64 columns of equal length, in any order; lanes are numbers from 0."""
        # Empty intervals are never open.
        kept = np.flatnonzero(end > start)
        order = kept[order_of(lane[kept], start[kept], end[kept])]
        self._index = np.append(order, -1)
        lanes, starts, ends = lane[order], start[order], end[order]
        self._clock = LaneClock(lanes, starts, ends)
        nested = _Nested.of(lanes, starts, ends)
        if nested is None:
            _, effective = sweep(lanes, starts, ends)
            nested = _Nested(self._clock.key(lanes, starts), self._clock.key(lanes, effective))
        self._nested = nested

    def at(self, lane: IntArray, time: IntArray) -> IntArray:
        """The interval of `lane` open at `time` that started last, as an index into the columns given; or -1."""
        out = np.full(len(time), -1, dtype=np.int64)
        if len(self._index) == 1:
            return out
        # In blocks, so that what is needed on the way stays small beside the trace.
        for begin in range(0, len(time), _BLOCK):
            block = slice(begin, begin + _BLOCK)
            key = self._clock.key(lane[block], time[block])
            if len(time) < len(self._index):
                found = self._nested.at(key)
            else:
                moments, which = self._nested.changes
                found = which[np.searchsorted(moments, key, "right") - 1]
            out[block] = self._index[found]
        return out


class LaneClock:
    """Packs a lane and a time into one int64 that sorts by lane, then by time."""

    def __init__(self, lane: IntArray, start: IntArray, end: IntArray) -> None:
        self._origin = int(start.min()) if len(start) else 0
        last = int(end.max()) if len(end) else 0
        self._width = last - self._origin + 3
        self._lanes = int(lane.max()) + 1 if len(lane) else 0
        self._ranks: IntArray | None = None
        if self._lanes * self._width >= _LARGEST_KEY:
            self._ranks = np.unique(np.concatenate([start, end]))
            self._width = len(self._ranks) + 1

    def key(self, lane: IntArray, time: IntArray) -> IntArray:
        """The packed lane and time."""
        if self._ranks is None:
            within = time - (self._origin - 1)
            np.clip(within, 0, self._width - 1, out=within)
        else:
            within = np.searchsorted(self._ranks, time, "right")
        # A lane that no interval is in sorts after all of them, where nothing is open.
        # In place, since there may be a key for every event.
        key: IntArray = np.minimum(lane, self._lanes).astype(np.int64, copy=False)
        key *= self._width
        key += within
        return key
