"""Self counts per range path, worked out by trace_processor: what tracetool's own counts must equal.

Written for clarity, not speed, and shares nothing with tracetool: trace_processor parses the file and nests
the ranges, SQL places calls and device work, and Python adds up.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from typing import TYPE_CHECKING

from .lanes import read_trace, split_lanes, to_json
from .trace_processor import TraceProcessor, TraceProcessorError

if TYPE_CHECKING:
    from pathlib import Path

RangePath = tuple[str, ...]
Counts = dict[RangePath, dict[str, int]]

NO_RANGE: RangePath = ("(no range)",)
BEFORE_THE_WINDOW: RangePath = ("(before the window)",)
METRICS = (
    "calls",
    "kernel_launches",
    "graph_launches",
    "kernels",
    "graph_kernels",
    "copies",
    "copy_bytes",
    "h2d_copies",
    "h2d_bytes",
    "d2h_copies",
    "d2h_bytes",
    "d2d_copies",
    "d2d_bytes",
    "memsets",
    "syncs",
)
DIRECTIONS = {"HtoD": "h2d", "DtoH": "d2h", "DtoD": "d2d"}
WRAPPER = "autograd::engine::evaluate_function*"


def innermost_range(thread: str, moment: str, condition: str = "TRUE") -> str:
    """SQL for the id of the range that is open on a thread at a moment and started last."""
    return f"""(
        SELECT open.id FROM annotation open
        WHERE open.thread = {thread} AND open.ts <= {moment} AND {moment} < open.end_ts AND {condition}
        ORDER BY open.ts DESC, open.end_ts, open.event_index DESC LIMIT 1
    )"""


EVENTS = """
    CREATE TABLE event AS SELECT
        id, parent_id, track_id, ts, ts + dur AS end_ts, name, category,
        extract_arg(arg_set_id, 'args.event_index') AS event_index,
        extract_arg(arg_set_id, 'args.orig_pid') || '/' || extract_arg(arg_set_id, 'args.orig_tid') AS thread,
        extract_arg(arg_set_id, 'args.External id') AS external_id,
        extract_arg(arg_set_id, 'args.correlation') AS correlation,
        extract_arg(arg_set_id, 'args.bytes') AS bytes
    FROM slice;
    CREATE INDEX event_by_external_id ON event(external_id);

    CREATE TABLE annotation AS SELECT * FROM event WHERE category = 'user_annotation';
    CREATE INDEX annotation_by_time ON annotation(thread, ts);
"""

# A call runs on the thread of the op or range that its External id names, if that contains the call's start:
# the call's own tid can be that of a thread that has ended.
CALLS = """
    CREATE TABLE call AS SELECT
        event.id, event.name, event.ts, event.end_ts, event.event_index, event.correlation,
        COALESCE((
            SELECT holder.thread FROM event holder
            WHERE holder.category IN ('cpu_op', 'user_annotation')
                AND holder.external_id = event.external_id
                AND holder.ts <= event.ts AND event.ts < holder.end_ts
            ORDER BY holder.ts DESC, holder.end_ts LIMIT 1
        ), event.thread) AS thread
    FROM event WHERE category GLOB '*_runtime' OR category GLOB '*_driver';
    CREATE INDEX call_by_correlation ON call(correlation);
"""

# Of several calls with one correlation id (a driver call inside a runtime call) the innermost owns.
DEVICE_WORK = """
    SELECT category, name, bytes, (
        SELECT call.id FROM call WHERE call.correlation = event.correlation
        ORDER BY call.ts DESC, call.end_ts, call.event_index DESC LIMIT 1
    ) AS owner
    FROM event WHERE category IN ('kernel', 'gpu_memcpy', 'gpu_memset')
"""

# Inside a lane trace_processor's nesting is the parent. A range at the top of a lane can lie inside one of
# another lane of its thread; at the top of an autograd thread it is a child of what its caller is in.
IN_ANOTHER_LANE = "open.track_id <> child.track_id AND child.end_ts <= open.end_ts"
RANGES = f"""
    SELECT id, name, COALESCE(
        parent_id,
        {innermost_range("child.thread", "child.ts", IN_ANOTHER_LANE)},
        {innermost_range("autograd.caller", "child.ts")}
    ) AS parent
    FROM annotation child LEFT JOIN autograd ON autograd.thread = child.thread
"""

PLACED_CALLS = f"""
    SELECT id,
        COALESCE(
            {innermost_range("call.thread", "call.ts")}, {innermost_range("autograd.caller", "call.ts")}
        ) AS range,
        name GLOB '*GraphLaunch*' AS is_graph_launch,
        name GLOB '*Synchronize*'
            OR (name GLOB '*Memcpy*' AND name NOT GLOB '*Async*' AND name NOT GLOB '*Graph*') AS is_sync
    FROM call LEFT JOIN autograd ON autograd.thread = call.thread
"""

# Without steps the caller is the thread that runs most ops that autograd did not call.
STEP_THREAD = """
    SELECT thread FROM annotation WHERE name GLOB 'ProfilerStep#*'
    GROUP BY thread ORDER BY count(*) DESC LIMIT 1
"""
BUSIEST_THREAD = f"""
    SELECT thread FROM event
    WHERE category = 'cpu_op' AND name NOT GLOB '{WRAPPER}'
        AND NOT EXISTS (SELECT 1 FROM ancestor_slice(event.id) op WHERE op.name GLOB '{WRAPPER}')
    GROUP BY thread ORDER BY count(*) DESC LIMIT 1
"""
WRAPPER_THREADS = f"SELECT DISTINCT thread FROM event WHERE category = 'cpu_op' AND name GLOB '{WRAPPER}'"


def count(trace_path: str | Path) -> Counts:
    """The self counts of a trace file, every metric for every row."""
    with TraceProcessor() as processor:
        return count_trace(read_trace(trace_path), processor)


def count_trace(trace: dict, processor: TraceProcessor) -> Counts:
    """The self counts of a trace that `read_trace` gave or a test wrote, by a running trace_processor."""
    processor.load(to_json(split_lanes(trace)))
    if lost := processor.error_stats():
        raise TraceProcessorError(f"the oracle itself is wrong, trace_processor lost events: {lost}")
    processor.query(EVENTS)
    processor.query(CALLS)
    _store_autograd_threads(_autograd_callers(trace, processor), processor)
    paths = _range_paths(processor.query(RANGES))
    rows: defaultdict[RangePath, Counter[str]] = defaultdict(Counter)
    for path in paths.values():
        rows[path]["calls"] += 1
    _add_work(rows, processor.query(PLACED_CALLS), processor.query(DEVICE_WORK), paths)
    return {path: {metric: counted[metric] for metric in METRICS} for path, counted in rows.items() if counted.total()}


def _autograd_callers(trace: dict, processor: TraceProcessor) -> dict[str, str]:
    """The caller of every autograd thread; where flows come from several, the one with most of them."""
    flows = _forward_backward_flows(trace)
    if flows:
        crossing = Counter((caller, thread) for caller, thread in flows if caller != thread)
        rarest_first = reversed(crossing.most_common())  # so that the most common is the one that stays
        return {thread: caller for (caller, thread), _ in rarest_first}
    main = processor.query(STEP_THREAD) or processor.query(BUSIEST_THREAD)
    runners = [row["thread"] for row in processor.query(WRAPPER_THREADS)]
    return {thread: main[0]["thread"] for thread in runners if main and thread != main[0]["thread"]}


def _forward_backward_flows(trace: dict) -> list[tuple[str, str]]:
    """The threads that each `fwdbwd` flow leads from and to, read from the file itself."""
    ends: dict[str, dict[object, str]] = {"s": {}, "f": {}}
    for event in trace["traceEvents"]:
        if event.get("cat") == "fwdbwd" and event.get("ph") in ends:
            ends[event["ph"]][event["id"]] = f"{event['pid']}/{event['tid']}"
    return [(ends["s"][flow], ends["f"][flow]) for flow in ends["s"] if flow in ends["f"]]


def _store_autograd_threads(callers: dict[str, str], processor: TraceProcessor) -> None:
    processor.query("CREATE TABLE autograd (thread TEXT, caller TEXT)")
    for thread, caller in callers.items():
        processor.query(f"INSERT INTO autograd VALUES ({_quoted(thread)}, {_quoted(caller)})")


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _range_paths(ranges: list[dict]) -> dict[int, RangePath]:
    by_id = {row["id"]: row for row in ranges}

    def path(range_id: int | None) -> RangePath:
        if range_id is None:
            return ()
        row = by_id[range_id]
        return (*path(row["parent"]), re.sub(r"^ProfilerStep#\d+$", "ProfilerStep", row["name"]))

    return {range_id: path(range_id) for range_id in by_id}


def _add_work(rows: dict[RangePath, Counter], calls: list[dict], work: list[dict], paths: dict[int, RangePath]) -> None:
    row_of = {call["id"]: rows[paths.get(call["range"], NO_RANGE)] for call in calls}
    owned = defaultdict(set)
    graph_launches = {call["id"] for call in calls if call["is_graph_launch"]}
    for piece in work:
        owner = piece["owner"]
        owned[owner].add(piece["category"])
        row = rows[BEFORE_THE_WINDOW] if owner is None else row_of[owner]
        row.update(_work_counts(piece, in_graph=owner in graph_launches))
    for call in calls:
        row = row_of[call["id"]]
        row["syncs"] += call["is_sync"]
        if call["is_graph_launch"]:
            row["graph_launches"] += bool(owned[call["id"]])
        else:
            row["kernel_launches"] += "kernel" in owned[call["id"]]


def _work_counts(piece: dict, *, in_graph: bool) -> dict[str, int]:
    if piece["category"] == "kernel":
        return {"kernels": 1, "graph_kernels": int(in_graph)}
    if piece["category"] == "gpu_memset":
        return {"memsets": 1}
    size = piece["bytes"] or 0
    counts = {"copies": 1, "copy_bytes": size}
    for word, direction in DIRECTIONS.items():
        if word in piece["name"]:
            counts |= {f"{direction}_copies": 1, f"{direction}_bytes": size}
    return counts
