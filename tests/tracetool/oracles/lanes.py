"""Prepares a Kineto trace for Perfetto's trace_processor, which drops the events that it cannot nest."""

from __future__ import annotations

import gzip
import itertools
import json
from collections import defaultdict
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

RANGE = "user_annotation"


@dataclass(frozen=True, eq=False)
class Slice:
    """A complete event, in whole nanoseconds of the file's own clock."""

    start: int
    end: int
    index: int  # its place in the file
    event: dict

    @property
    def order(self) -> tuple[int, int, int]:
        """Outer before inner; of equal ones, the first in the file is the outer."""
        return self.start, -self.end, self.index


def read_trace(path: str | Path) -> dict:
    """A Chrome trace, plain or gzipped, with times as Decimal: a float of 4e12 us has lost nanoseconds."""
    data = Path(path).read_bytes()
    if data.startswith(b"\x1f\x8b"):
        data = gzip.decompress(data)
    # Kernel names can hold control characters and invalid UTF-8; NaN, which is no JSON, becomes a string.
    return json.loads(data.decode(errors="replace"), parse_float=Decimal, parse_constant=str, strict=False)


def to_json(trace: dict) -> bytes:
    """The trace as trace_processor reads it; a NaN, over which it would lose all args of an event, raises."""
    return json.dumps(trace, default=float, ensure_ascii=False, allow_nan=False).encode(errors="replace")


def to_ns(microseconds: Decimal | float | str) -> int:
    """Whole nanoseconds; a float counts as the shortest decimal that it prints as."""
    return int((Decimal(str(microseconds)) * 1000).to_integral_value())


def split_lanes(trace: dict) -> dict:
    """A copy of the trace in which every thread is a set of lanes whose complete events nest.

    Every complete event is kept, with its origin in `args` (`orig_pid`, `orig_tid`, and `event_index`, its
    place in the file). Pids and tids are numbered afresh, since trace_processor wants them to be integers and
    treats 0 as its own. The ranges of a thread get lanes of their own, so that no op stands between a range
    and its parent. Times start at 0, which is `rebased_ns` on the file's clock: trace_processor's doubles are
    off by up to 3 ns at 4e12 us. An event without `dur`, which it would drop, lasts no time. All other events
    are left out: flows would point at the wrong lanes, and instants and counters carry no work.
    """
    slices = _complete_events(trace)
    base = min((one.start for one in slices), default=0)
    names = _names(trace)
    pids: defaultdict[object, int] = defaultdict(itertools.count(1).__next__)
    tids = itertools.count(1)
    events = []
    for (pid, tid, is_ranges), members in _by_track(slices).items():
        process = names.get(("process_name", pid, None), str(pid))
        thread = names.get(("thread_name", pid, tid), str(tid)) + (" ranges" if is_ranges else "")
        for number, lane in enumerate(_nesting_lanes(members), start=1):
            place = {"pid": pids[pid], "tid": next(tids)}
            title = thread if number == 1 else f"{thread} (lane {number})"
            events.append({"ph": "M", "name": "process_name", **place, "args": {"name": process}})
            events.append({"ph": "M", "name": "thread_name", **place, "args": {"name": title}})
            events += [_moved(one, base, place) for one in lane]
    return {"traceEvents": events, "rebased_ns": base}


def _complete_events(trace: dict) -> list[Slice]:
    slices = []
    for index, event in enumerate(trace["traceEvents"]):
        if event.get("ph") == "X":
            start = to_ns(event["ts"])
            duration = max(0, to_ns(event.get("dur", 0)))
            slices.append(Slice(start, start + duration, index, event))
    return slices


def _names(trace: dict) -> dict[tuple[str, object, object], str]:
    """The names of processes (whose tid counts for nothing) and threads, from the metadata events."""
    names = {}
    for event in trace["traceEvents"]:
        if event.get("ph") == "M" and event["name"] in ("process_name", "thread_name"):
            tid = event.get("tid") if event["name"] == "thread_name" else None
            names[event["name"], event.get("pid"), tid] = str(event["args"]["name"])
    return names


def _by_track(slices: list[Slice]) -> dict[tuple[object, object, bool], list[Slice]]:
    tracks = defaultdict(list)
    for one in slices:
        tracks[one.event.get("pid"), one.event.get("tid"), one.event.get("cat") == RANGE].append(one)
    return tracks


def _nesting_lanes(slices: list[Slice]) -> list[list[Slice]]:
    """Spreads the slices of a track over lanes.

    A slice goes right into the innermost slice that contains it, if nothing else is open there, and else to
    the top of a free lane: so a parent inside a lane is always the true one, and only a slice at the top of
    a lane may have its parent in another.
    """
    lanes: list[list[Slice]] = []
    stacks: list[list[Slice]] = []
    for one in sorted(slices, key=lambda each: each.order):
        for stack in stacks:
            while stack and stack[-1].end <= one.start:
                stack.pop()
        holders = [held for stack in stacks for held in stack if held.end >= one.end]
        innermost = max(holders, key=lambda each: each.order, default=None)
        # A free lane's stack is empty: its top is then None, and never the innermost of some.
        tops = [stack[-1] if stack else None for stack in stacks]
        wanted = innermost if innermost in tops else None
        if wanted not in tops:
            lanes.append([])
            stacks.append([])
            tops.append(None)
        chosen = tops.index(wanted)
        lanes[chosen].append(one)
        stacks[chosen].append(one)
    return lanes


def _moved(one: Slice, base: int, place: dict[str, int]) -> dict:
    origin = {
        "orig_pid": one.event.get("pid"),
        "orig_tid": one.event.get("tid"),
        "event_index": one.index,
    }
    times = {"ts": (one.start - base) / 1000, "dur": (one.end - one.start) / 1000}
    return {**one.event, **place, **times, "args": {**(one.event.get("args") or {}), **origin}}
