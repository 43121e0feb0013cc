"""Autograd threads: which thread called `backward` when an autograd thread ran.

Rule 3 of the design: T is an autograd thread of caller C when `fwdbwd` flows lead from C to T. Where flows come
from several callers, the one whose flow arrived last is the caller. Where flows lead both ways between two
threads, the direction with more of them counts. What is left equal is decided by pid and tid, the lower is the
caller, so that the order of the file does not matter.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tracetool.events import NO_LINK, Category
from tracetool.folding import step_number
from tracetool.nesting import LaneClock, order_of

if TYPE_CHECKING:
    from tracetool.events import BoolArray, EventTable, IntArray

WRAPPER = "autograd::engine::evaluate_function"


def is_wrapper(names: list[str]) -> BoolArray:
    """Which names are autograd's wrappers around backward ops."""
    return np.array([name.startswith(WRAPPER) for name in names], dtype=np.bool_)


@dataclass(frozen=True, slots=True)
class AutogradThreads:
    """The callers of each autograd thread over time: sorted by thread, then by time of arrival, where they change."""

    thread: IntArray
    arrival: IntArray
    caller: IntArray

    def caller_at(self, thread: IntArray, time: IntArray) -> IntArray:
        """Who called each thread at each time (ns); -1 where it is no autograd thread."""
        out = np.full(len(thread), -1, dtype=np.int64)
        if not len(self.thread):
            return out
        clock = LaneClock(self.thread, self.arrival, self.arrival)
        keys = clock.key(self.thread, self.arrival)
        last = np.searchsorted(keys, clock.key(thread, time), "right") - 1
        # Before the first arrival the first caller counts.
        first = np.searchsorted(self.thread, thread, "left")
        found = np.clip(np.maximum(last, first), 0, len(self.thread) - 1)
        known = self.thread[found] == thread
        out[known] = self.caller[found[known]]
        return out


def find(events: EventTable) -> AutogradThreads:
    """The autograd threads of a trace, by flows, or where it has none between threads, by what threads run."""
    by_flows = _by_flows(events)
    return by_flows if len(by_flows.thread) else _by_wrappers(events)


def _by_flows(events: EventTable) -> AutogradThreads:
    pids = events.process_numbers()
    starts, ends = events.of(Category.FLOW_START), events.of(Category.FLOW_END)
    starts, ends = (rows[events.correlation[rows] != NO_LINK] for rows in (starts, ends))
    if not len(starts):
        return _sorted([])
    both = np.concatenate([starts, ends])
    flows, flow = np.unique(events.correlation[both], return_inverse=True)
    key = pids[events.thread[both]] * len(flows) + flow
    # Of several starts of a flow the last in the file counts.
    order = np.argsort(key[: len(starts)], kind="stable")
    known = key[: len(starts)][order]
    last = np.searchsorted(known, key[len(starts) :], "right") - 1
    thread, arrival = events.thread[ends].astype(np.int64), events.start[ends]
    caller = events.thread[starts[order[last]]].astype(np.int64)
    led = (known[last] == key[len(starts) :]) & (caller != thread)
    thread, arrival, caller = thread[led], arrival[led], caller[led]
    rank = np.array(_ranks(events), dtype=np.int64)
    there = _leads(caller, thread, rank)
    thread, arrival, caller = thread[there], arrival[there], caller[there]
    # Of several callers at one moment the lowest.
    order = np.lexsort((rank[caller], arrival, thread))
    thread, arrival, caller = thread[order], arrival[order], caller[order]
    first = np.append(True, (thread[1:] != thread[:-1]) | (arrival[1:] != arrival[:-1]))[: len(thread)]
    thread, arrival, caller = thread[first], arrival[first], caller[first]
    change = np.append(True, (thread[1:] != thread[:-1]) | (caller[1:] != caller[:-1]))[: len(thread)]
    return AutogradThreads(thread[change], arrival[change], caller[change])


def _leads(caller: IntArray, thread: IntArray, rank: IntArray) -> BoolArray:
    """Which flows lead the way that most flows between their two threads do."""
    pairs, which, counts = np.unique(caller * len(rank) + thread, return_inverse=True, return_counts=True)
    if not len(pairs):
        return np.empty(0, dtype=np.bool_)
    callers, threads = np.divmod(pairs, len(rank))
    back = threads * len(rank) + callers
    place = np.minimum(np.searchsorted(pairs, back), len(pairs) - 1)
    against = np.where(pairs[place] == back, counts[place], 0)
    lead: BoolArray = (counts > against) | ((counts == against) & (rank[callers] < rank[threads]))
    return lead[which]


def _by_wrappers(events: EventTable) -> AutogradThreads:
    """Without flows: threads that run wrappers, called by the thread with the steps or with most other ops."""
    ops = events.of(Category.OP)
    if not len(ops):
        return _sorted([])
    wrapper = is_wrapper(events.names)[events.name[ops]]
    pids = events.process_numbers()
    threads = events.thread[ops].astype(np.int64)
    outside = threads[~wrapper & ~_inside(threads, events.start[ops], events.end[ops], wrapper)]
    busiest = Counter(outside.tolist())
    step_names = np.array([step_number(name) is not None for name in events.names], dtype=np.bool_)
    ranges = events.of(Category.RANGE)
    steps = Counter(events.thread[ranges[step_names[events.name[ranges]]]].tolist())
    rank = _ranks(events)
    callers: dict[int, int] = {}
    for thread, count in (steps or busiest).items():
        best = callers.setdefault(int(pids[thread]), thread)
        if (count, -rank[thread]) > ((steps or busiest)[best], -rank[best]):
            callers[int(pids[thread])] = thread
    found = []
    for thread in np.unique(threads[wrapper]).tolist():
        caller = callers.get(int(pids[thread]))
        if caller is not None and caller != thread:
            found.append((thread, 0, caller))
    return _sorted(found)


def _inside(lane: IntArray, start: IntArray, end: IntArray, container: BoolArray) -> BoolArray:
    """Which intervals lie whole inside a container of their lane."""
    order = order_of(lane, start, end)
    clock = LaneClock(lane, start, end)
    reach = clock.key(lane, end)[order]
    around = np.maximum.accumulate(np.where(container[order], reach, -1))
    inside = np.zeros(len(lane), dtype=np.bool_)
    inside[order[1:]] = around[:-1] >= reach[1:]
    return inside


def _ranks(events: EventTable) -> list[int]:
    """Each thread's place when they are sorted by pid and tid, numbers before text."""
    keys = [(isinstance(t.pid, str), t.pid, isinstance(t.tid, str), t.tid) for t in events.threads]
    rank = [0] * len(keys)
    for place, thread in enumerate(sorted(range(len(keys)), key=keys.__getitem__)):
        rank[thread] = place
    return rank


def _sorted(found: list[tuple[int, int, int]]) -> AutogradThreads:
    columns = np.array(sorted(found), dtype=np.int64).reshape(-1, 3)
    return AutogradThreads(columns[:, 0], columns[:, 1], columns[:, 2])
