"""Counts straight from the rules of the design: every event against every range, plain loops, whole nanoseconds.

It shares nothing with tracetool, and is as slow as it looks. Where the rules leave room, it reads them so:

- A range that lasts no time is contained in one that ends at that moment ("contains it whole").
- Of ranges (or ops) that start together the shorter is the inner one; of equal ones the later in the file.
- Where flows lead to a thread from several callers, the one whose flow arrived last is the caller; before the
  first arrival, the first. Of arrivals at one moment the caller with the lowest pid and tid counts.
- Where flows lead both ways between two threads, the direction with more of them counts; of as many, the one
  from the lower pid and tid.
- Where nothing is open on the caller, and the caller is an autograd thread itself, its caller is asked.
- Without flows between threads, autograd threads are found by their wrappers; threads of one process only.
- An op is around another when it contains it whole.
"""

from __future__ import annotations

import gzip
import itertools
import json
import re
from collections import Counter, defaultdict
from decimal import Decimal, localcontext
from pathlib import Path

NO_RANGE = ("(no range)",)
BEFORE_THE_WINDOW = ("(before the window)",)
WRAPPER = "autograd::engine::evaluate_function"
DEVICE_WORK = ("kernel", "gpu_memcpy", "gpu_memset")
DTYPE_BYTES = {"byte": 1, "bfloat16": 2, "half": 2, "float": 4, "int": 4, "double": 8, "long": 8}

RangePath = tuple[str, ...]


class CircleError(ValueError):
    """Threads call each other in a circle: the rules do not say what that means."""


class Event:
    """One complete event, instant or end of a flow."""

    def __init__(self, index: int, event: dict) -> None:
        self.index = index
        self.category = event.get("cat")
        self.name = event["name"]
        self.thread = (event.get("pid"), event.get("tid"))
        self.start = nanoseconds(event["ts"])
        self.end = self.start + (nanoseconds(event.get("dur", 0)) if event["ph"] == "X" else 0)
        self.args = event.get("args", {})
        self.flow = (event["ph"], event.get("id"))

    @property
    def inwards(self) -> tuple[int, int, int]:
        """Sorts outer before inner."""
        return self.start, -self.end, self.index

    def contains(self, other: Event) -> bool:
        """Whether the other is another one, that lies whole inside (of equal ones: comes later in the file)."""
        same = (self.start, self.end) == (other.start, other.end)
        return self.start <= other.start and other.end <= self.end and (not same or self.index < other.index)

    def is_open(self, moment: int) -> bool:
        """Whether it has begun and not ended."""
        return self.start <= moment < self.end


def nanoseconds(microseconds: Decimal | float) -> int:
    """Exact, whatever the size; a float counts as the shortest decimal that it prints as."""
    with localcontext() as context:
        context.prec = 60
        return int((Decimal(str(microseconds)) * 1000).to_integral_value())


def innermost(events: list[Event]) -> Event | None:
    """The one that started last."""
    return max(events, key=lambda event: event.inwards, default=None)


class BruteForce:
    """The exact counts of a trace.

    Attributes:
        own: every exact metric of each path's self; rows and metrics without counts are absent.
        peak: the most that was held after an allocation of each path's self.
        via_autograd: the part of it that rule 3 gave.
        by_thread: the same by path, then thread as (pid, tid); without what came before the window.
        steps: (number of the step, exact metrics), in the order of the file.
        busy: time in which device work of each path ran, ns: {path: (of its self, of its total)}.
    """

    def __init__(self, trace: dict) -> None:
        events = trace["traceEvents"]
        known = [Event(i, e) for i, e in enumerate(events) if e.get("ph") in ("X", "i", "s", "f") and "ts" in e]
        complete = [event for event in known if event.flow[0] == "X"]
        self.ranges = [e for e in complete if e.category == "user_annotation"]
        self.ops = [e for e in complete if e.category == "cpu_op"]
        self.calls = [e for e in complete if str(e.category).endswith(("_runtime", "_driver"))]
        self.device = [e for e in complete if e.category in DEVICE_WORK]
        self.compiles = [e for e in complete if e.category == "compile"]
        self.autotunes = [e for e in complete if e.category == "autotune"]
        self.memory = [e for e in known if e.category == "cpu_instant_event" and e.name == "[memory]"]
        self.flows = [e for e in known if e.category == "fwdbwd" and e.flow[0] in ("s", "f")]
        self.callers = self._callers_by_flows() or self._callers_by_wrappers()
        if self.has_circle:
            raise CircleError
        self.parents, self.adopted = self._parents()
        self.own: defaultdict[RangePath, Counter] = defaultdict(Counter)
        self.peak: dict[RangePath, int] = {}
        self.via_autograd: defaultdict[RangePath, Counter] = defaultdict(Counter)
        self.by_thread: defaultdict[RangePath, defaultdict] = defaultdict(lambda: defaultdict(Counter))
        self._by_step = {step.index: Counter() for step in self.ranges if step.name.startswith("ProfilerStep#")}
        self._pieces: list[tuple[RangePath, Event]] = []
        for one in self.ranges:
            self.own[self.path(one)]["calls"] += 1
        self._count()
        self.steps = [(int(trace["traceEvents"][i]["name"].split("#")[1]), c) for i, c in self._by_step.items()]

    # Ranges ------------------------------------------------------------------------------------------------

    def _parents(self) -> tuple[dict[int, Event | None], set[int]]:
        parents, adopted = {}, set()
        for one in self.ranges:
            around = [other for other in self.ranges if other.thread == one.thread and other.contains(one)]
            parents[one.index] = innermost(around)
        for one in self.ranges:
            if parents[one.index] is None:
                found = self._open_on_callers(one.thread, one.start)
                if found is not None and found is not one:
                    parents[one.index] = found
                    adopted.add(one.index)
        return parents, adopted

    def path(self, one: Event) -> RangePath:
        """Folded names from the outermost range to this one."""
        parent = self.parents[one.index]
        name = re.sub(r"^ProfilerStep#\d+$", "ProfilerStep", one.name)
        return (*(self.path(parent) if parent else ()), name)

    @property
    def has_circle(self) -> bool:
        """Whether threads call each other in a circle."""
        callers = {thread: {caller for _, caller in arrivals} for thread, arrivals in self.callers.items()}
        for thread, direct in callers.items():
            reached = set(direct)
            while more := {caller for other in reached for caller in callers.get(other, ())} - reached:
                reached |= more
            if thread in reached:
                return True
        return False

    def _is_via(self, one: Event) -> bool:
        """Whether the range, or one around it on its thread, was opened at the top of an autograd thread."""
        parent = self.parents[one.index]
        return one.index in self.adopted or (parent is not None and self._is_via(parent))

    def _open(self, thread: tuple, moment: int) -> Event | None:
        return innermost([one for one in self.ranges if one.thread == thread and one.is_open(moment)])

    def _open_on_callers(self, thread: tuple, moment: int) -> Event | None:
        asked = {thread}
        while (thread := self._caller(thread, moment)) is not None and thread not in asked:
            asked.add(thread)
            found = self._open(thread, moment)
            if found is not None:
                return found
        return None

    def _place(self, thread: tuple, moment: int) -> tuple[Event | None, bool]:
        """The range that a moment on a thread belongs to, and whether it was found via autograd."""
        own = self._open(thread, moment)
        if own is not None:
            return own, self._is_via(own)
        found = self._open_on_callers(thread, moment)
        return found, found is not None

    # Autograd threads --------------------------------------------------------------------------------------

    def _caller(self, thread: tuple, moment: int) -> tuple | None:
        arrivals = sorted(
            ((arrival, caller) for arrival, caller in self.callers.get(thread, ())), key=lambda a: (a[0], a[1])
        )
        before = [arrival for arrival, _ in arrivals if arrival <= moment]
        if not arrivals:
            return None
        wanted = max(before) if before else arrivals[0][0]
        return min(caller for arrival, caller in arrivals if arrival == wanted)

    def _callers_by_flows(self) -> dict[tuple, list[tuple[int, tuple]]]:
        links = [
            (begin.thread, end.thread, end.start)
            for end in self.flows
            for begin in self.flows
            if (begin.flow[0], end.flow[0]) == ("s", "f")
            and begin.flow[1] == end.flow[1]
            and begin.thread[0] == end.thread[0]
            and begin.thread != end.thread
        ]
        many = Counter((caller, called) for caller, called, _ in links)
        callers = defaultdict(list)
        for caller, called, arrival in links:
            there, back = many[caller, called], many[called, caller]
            if there > back or (there == back and caller < called):
                callers[called].append((arrival, caller))
        return callers

    def _callers_by_wrappers(self) -> dict[tuple, list[tuple[int, tuple]]]:
        wrappers = [op for op in self.ops if op.name.startswith(WRAPPER)]
        steps = Counter(one.thread for one in self.ranges if re.fullmatch(r"ProfilerStep#\d+", one.name))
        outside = Counter(
            op.thread
            for op in self.ops
            if op not in wrappers and not any(w.thread == op.thread and w.contains(op) for w in wrappers)
        )
        callers = {}
        for thread in {op.thread for op in wrappers}:
            peers = {other: n for other, n in (steps or outside).items() if other[0] == thread[0]}
            if peers:
                most = max(peers.values())
                caller = min(other for other, n in peers.items() if n == most)
                if caller != thread:
                    callers[thread] = [(0, caller)]
        return callers

    # Counting ----------------------------------------------------------------------------------------------

    def _count(self) -> None:
        place = {call.index: (self._true_thread(call), call.start) for call in self.calls}
        owned = defaultdict(list)
        for piece in self.device:
            owner = self._owner(piece)
            if owner is None:
                self.own[BEFORE_THE_WINDOW].update(device_counts(piece, None))
                self._pieces.append((BEFORE_THE_WINDOW, piece))
            else:
                owned[owner.index].append(piece)
                path = self._add(*place[owner.index], device_counts(piece, owner))
                self._pieces.append((path, piece))
        for call in self.calls:
            self._add(*place[call.index], self._call_counts(call, owned[call.index]))
        for op in self.ops:
            outermost = not op.name.startswith(WRAPPER) and not self._has_op_around(op)
            self._add(op.thread, op.start, {f'op_calls["{op.name}"]': 1, "ops": int(outermost)})
        on_device = any(event.args.get("Device Type", 0) for event in self.memory)
        for event in self.memory:
            if event.args["Bytes"] > 0:
                path = self._add(event.thread, event.start, {"allocs": 1, "alloc_bytes": event.args["Bytes"]})
                if (event.args.get("Device Type", 0) != 0) == on_device and "Total Allocated" in event.args:
                    self.peak[path] = max(self.peak.get(path, 0), event.args["Total Allocated"])
        for compiled in self.compiles:
            metric = "compile_cache_hits" if compiled.args.get("cache_hit") else "compiles"
            self._add(compiled.thread, compiled.start, {metric: 1})
        for tuned in self.autotunes:
            self._add(tuned.thread, tuned.start, {"autotunes": 1})

    def _add(self, thread: tuple, moment: int, counts: dict[str, int]) -> RangePath:
        counts = {name: value for name, value in counts.items() if value}
        one, via = self._place(thread, moment)
        path = self.path(one) if one else NO_RANGE
        if counts:
            self.own[path].update(counts)
            self.by_thread[path][thread].update(counts)
            if via:
                self.via_autograd[path].update(counts)
            step = innermost(
                [s for s in self.ranges if s.index in self._by_step and s.thread[0] == thread[0] and s.is_open(moment)]
            )
            if step is not None:
                self._by_step[step.index].update(counts)
        return path

    def _true_thread(self, call: Event) -> tuple:
        wanted = call.args.get("External id")
        around = [
            event
            for event in self.ops + self.ranges
            if wanted is not None and event.args.get("External id") == wanted and event.is_open(call.start)
        ]
        holder = innermost(around)
        return holder.thread if holder else call.thread

    def _owner(self, piece: Event) -> Event | None:
        wanted = piece.args.get("correlation")
        return innermost([c for c in self.calls if wanted is not None and c.args.get("correlation") == wanted])

    def _call_counts(self, call: Event, owned: list[Event]) -> dict[str, int]:
        wanted = call.args.get("correlation")
        linked = wanted is not None and any(piece.args.get("correlation") == wanted for piece in self.device)
        is_graph = "GraphLaunch" in call.name
        is_launch = is_graph or re.search("Launch.*Kernel", call.name) is not None
        is_copy = re.match("[a-z]*Memcpy", call.name) is not None
        mallocs = {"cudaMalloc", "cudaMallocAsync", "cudaMallocManaged", "hipMalloc", "cuMemCreate", "cuMemAlloc_v2"}
        return {
            "kernel_launches": int(not is_graph and any(piece.category == "kernel" for piece in owned)),
            "graph_launches": int(is_graph and bool(owned)),
            "unlinked_launches": int(is_launch and not linked),
            "syncs": int("Synchronize" in call.name or (is_copy and "Async" not in call.name)),
            "device_mallocs": int(bool(self.memory) and call.name in mallocs),
        }

    def _has_op_around(self, op: Event) -> bool:
        return any(
            other.thread == op.thread
            and other.contains(op)
            and not other.name.startswith(WRAPPER)
            and self._place(other.thread, other.start)[0] is self._place(op.thread, op.start)[0]
            for other in self.ops
        )

    # Times -------------------------------------------------------------------------------------------------

    @property
    def busy(self) -> dict[RangePath, tuple[int, int]]:
        """Time in which device work of each path's self, and of its total, ran: per device, summed, in ns."""
        return {
            path: (
                self._busy(lambda other, path=path: other == path),
                self._busy(lambda other, path=path: other[: len(path)] == path),
            )
            for path in self.own
        }

    def _busy(self, wanted) -> int:
        total = 0
        for device in {piece.thread[0] for _, piece in self._pieces}:
            pieces = [p for path, p in self._pieces if wanted(path) and p.thread[0] == device]
            edges = sorted({p.start for p in pieces} | {p.end for p in pieces})
            total += sum(
                b - a for a, b in itertools.pairwise(edges) if any(p.start <= a and b <= p.end for p in pieces)
            )
        return total


def device_counts(piece: Event, owner: Event | None) -> dict[str, int]:
    """What one kernel, copy or memset counts."""
    if piece.category == "gpu_memset":
        return {"memsets": 1}
    if piece.category == "kernel":
        counts = {"kernels": 1, "graph_kernels": int(owner is not None and "GraphLaunch" in owner.name)}
        if "Collective name" in piece.args:
            elements = max(piece.args.get("In msg nelems", 0), piece.args.get("Out msg nelems", 0))
            size = DTYPE_BYTES[piece.args["dtype"].lower()]
            counts |= {"collectives": 1, "collective_bytes": elements * size}
        return {name: value for name, value in counts.items() if value}
    size = piece.args.get("bytes", 0)
    words = {"HtoD": "h2d", "DtoH": "d2h", "DtoD": "d2d", "PtoP": "p2p"}
    direction = next((short for word, short in words.items() if word in piece.name), "other")
    counts = {"copies": 1, "copy_bytes": size, f"{direction}_copies": 1, f"{direction}_bytes": size}
    host = {"h2d": r"\((\w+) ->", "d2h": r"-> (\w+)\)"}.get(direction)
    memory = re.search(host, piece.name).group(1).lower() if host and re.search(host, piece.name) else ""
    if memory in ("pageable", "pinned"):
        counts |= {f"{direction}_{memory}_copies": 1, f"{direction}_{memory}_bytes": size}
    return {name: value for name, value in counts.items() if value}


def read_exactly(path: str | Path) -> dict:
    """A Chrome trace, plain or gzipped, with exact times."""
    data = Path(path).read_bytes()
    if data.startswith(b"\x1f\x8b"):
        data = gzip.decompress(data)
    return json.loads(data, parse_float=Decimal)


def count(trace: dict) -> BruteForce:
    """Count a trace that `read_exactly` gave or a test wrote."""
    return BruteForce(trace)
