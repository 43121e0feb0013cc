"""What a step would take without some of its work: the trace replayed with it left out.

The CPU goes through its calls as it did, less what is cut out of its time. A piece of device work begins once its
launch has reached the device and the work before it on its stream is done; a sync ends once the work that it waited for
is done. This is the simulation of Zhu et al., Daydream: Accurately Estimating the Efficacy of Optimizations for DNN
Training (USENIX ATC 2020), on one clock for all threads of a step, which take turns there: autograd's thread works
while its caller waits.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from tracetool import apis
from tracetool.events import DEVICE_WORK, Category

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracetool.attribution import Work
    from tracetool.events import BoolArray, IntArray

_LATE = 1.5
"""Device work that begins later after its launch than this times the usual latency was in its stream's queue."""

_SYNC_NS = 2_000
"""What a call that waits takes at least, when there is nothing to wait for."""

_MOST_PIECES = 50_000
"""More device work than this is not replayed: later steps are as the earlier ones."""


@dataclass(frozen=True, slots=True)
class Change:
    """What is left out.

    Attributes:
        cuts: intervals of CPU time, ns, as (start, end).
        device: rows of device work that are not there any more.
        apart: rows of device work that goes on beside all other: nothing waits for it.
    """

    cuts: Sequence[tuple[int, int]] = ()
    device: IntArray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    apart: IntArray = field(default_factory=lambda: np.empty(0, dtype=np.int64))


class WhatIf:
    """Replays the steps of a trace (without steps: all of it).

    Args:
        work: of the trace.
    """

    def __init__(self, work: Work) -> None:
        events = work.events
        device = work.of(*DEVICE_WORK)
        device = device[work.owner(device) >= 0]
        steps = work.steps
        inside = work.step[device] >= 0 if len(steps.number) else np.ones(len(device), dtype=np.bool_)
        device = device[inside]
        ends = np.sort(steps.end)
        if len(ends):
            self.start, self.end, self.units = int(steps.start.min()), int(ends[-1]), len(ends)
            if len(device) > _MOST_PIECES:
                launched = np.searchsorted(np.sort(events.start[work.event[work.owner(device)]]), ends)
                self.units = max(1, int(np.searchsorted(launched, _MOST_PIECES, "right")))
                self.end = int(ends[self.units - 1])
        else:
            self.start, self.end, self.units = int(events.start.min()), int(events.end.max()), 1
        calls = work.of(Category.CALL)
        of = work.event[calls]
        syncs = calls[
            apis.named(events.names, apis.is_sync)[events.name[of]]
            & (events.start[of] >= self.start)
            & (events.start[of] < self.end)
        ]
        launch = events.start[work.event[work.owner(device)]]
        device, launch = device[launch < self.end], launch[launch < self.end]
        self._moments = self._in_order(work, device, launch, syncs)
        self._device_rows = device
        self._usual = self._latency(self._moments)
        self._base = self._makespan(Change())

    def _latency(self, moments: _Moments) -> float:
        """From a launch to the beginning of its work where the stream has nothing else to do: the median, ns."""
        free: dict[int, int] = {}
        found, least = [], None
        for at, sync, start, end, stream in zip(*(column.tolist() for column in moments.times()), strict=True):
            if sync:
                continue
            if at >= free.get(stream, self.start):
                found.append(start - at)
            least = start - at if least is None else min(least, start - at)
            free[stream] = max(end, free.get(stream, self.start))
        return float(np.median(found)) if found else float(least or 0)

    def _in_order(self, work: Work, device: IntArray, launch: IntArray, syncs: IntArray) -> _Moments:
        """Launches of device work and syncs by time; what one launch owns, by its own time."""
        events = work.events
        rows = np.concatenate([device, syncs])
        of = work.event[rows]
        moment = np.concatenate([launch, events.start[work.event[syncs]]])
        is_sync = np.arange(len(rows)) >= len(device)
        order = np.lexsort((events.start[of], moment))
        rows, of, moment, is_sync = rows[order], of[order], moment[order], is_sync[order]
        return _Moments(rows, moment, is_sync, events.start[of], events.end[of], events.thread[of])

    def saved(self, change: Change) -> float:
        """Time that a step would take less, ns; never below 0."""
        return max(0.0, (self._base - self._makespan(change)) / self.units)

    def _makespan(self, change: Change) -> float:
        moments = self._moments
        cut = _Cuts(change.cuts)
        gone = np.isin(moments.rows, change.device)
        apart = np.isin(moments.rows, change.apart)
        before_start, before_end = cut.before(moments.moment), cut.before(moments.end)
        usual = round(self._usual)
        free: dict[int, int] = {}
        free_then: dict[int, int] = {}
        done = done_then = self.start
        saved_wait = 0
        for at, sync, start, end, stream, is_gone, is_apart, cut_start, cut_end in zip(
            moments.moment.tolist(),
            moments.is_sync.tolist(),
            moments.start.tolist(),
            moments.end.tolist(),
            moments.stream.tolist(),
            gone.tolist(),
            apart.tolist(),
            before_start.tolist(),
            before_end.tolist(),
            strict=True,
        ):
            now = at - cut_start - saved_wait
            if sync:
                if cut_end - cut_start >= end - start:
                    continue  # it is cut out whole
                waited = start < done_then <= end
                ends = max(now + min(end - start, _SYNC_NS), done + end - done_then) if waited else now + end - start
                saved_wait = end - cut_end - ends
                continue
            last = free_then.get(stream, self.start)
            queued = start - at > _LATE * usual and at < last
            free_then[stream] = max(last, end)
            done_then = max(done_then, end)
            if is_gone:
                continue
            ready = now + (usual if queued else start - at)
            begins = max(ready, free.get(stream, self.start) + (max(0, start - last) if queued else 0))
            if is_apart:
                continue
            free[stream] = begins + end - start
            done = max(done, free[stream])
        finish = self.end - int(cut.before(np.array([self.end]))[0]) - saved_wait
        return float(max(finish, done))


@dataclass(frozen=True, slots=True)
class _Moments:
    """Columns over launches and syncs, in order of `moment`: when the CPU came to them."""

    rows: IntArray
    moment: IntArray
    is_sync: BoolArray
    start: IntArray
    end: IntArray
    stream: IntArray

    def times(self) -> tuple[IntArray, BoolArray, IntArray, IntArray, IntArray]:
        """Those that say when and where."""
        return self.moment, self.is_sync, self.start, self.end, self.stream


class _Cuts:
    """Disjoint intervals, and how much of them lies before a moment."""

    def __init__(self, cuts: Sequence[tuple[int, int]]) -> None:
        merged: list[list[int]] = []
        for start, end in sorted(cuts):
            if merged and start <= merged[-1][1]:
                merged[-1][1] = max(merged[-1][1], end)
            elif end > start:
                merged.append([start, end])
        self._start = np.array([start for start, _ in merged], dtype=np.int64)
        self._end = np.array([end for _, end in merged], dtype=np.int64)
        self._sum = np.concatenate([[0], np.cumsum(self._end - self._start)])

    def before(self, time: IntArray) -> IntArray:
        """How much of the intervals lies before each moment."""
        begun = np.searchsorted(self._start, time, "right")
        if not len(self._start):
            return np.zeros(len(time), dtype=np.int64)
        last = np.maximum(begun - 1, 0)
        within = np.where(begun > 0, np.minimum(time, self._end[last]) - self._start[last], 0)
        found: IntArray = self._sum[last] + within
        return found
