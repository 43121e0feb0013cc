"""tracetool against counters that share nothing with it: brute force, and Perfetto's trace_processor."""

from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings

import tracetool

from .oracles import brute_force, perfetto_counts
from .oracles.trace_processor import TraceProcessor
from .random_traces import traces
from .traces_by_hand import assert_equals_brute_force, read, selfs, to_json

HERE = Path(__file__).parent
REAL = sorted([*HERE.joinpath("real").glob("*.json.gz"), *HERE.parents[1].joinpath("traces").rglob("*.json.gz")])
UNAVAILABLE = TraceProcessor.unavailable()
FEW = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
MANY = settings(FEW, max_examples=1000)
needs_perfetto = pytest.mark.skipif(UNAVAILABLE is not None, reason=f"no trace_processor: {UNAVAILABLE}")


@pytest.fixture(scope="module")
def processor():
    with TraceProcessor() as running:
        yield running


def reached(counts):
    """The counts that trace_processor's oracle has too."""
    rows = {
        path: {name: row[name] for name in perfetto_counts.METRICS if row.get(name)} for path, row in counts.items()
    }
    return {path: row for path, row in rows.items() if row}


def test_every_trace_of_the_repository_is_compared():
    root = HERE.parents[1]
    folders = [one for one in root.iterdir() if one.is_dir() and not one.name.startswith(".")]
    there = {
        path for folder in folders for path in folder.rglob("*.json*") if path.name.endswith((".json.gz", ".json"))
    }
    schemas = {path for path in there if path.parent.name == "schemas"}
    assert sorted(there - schemas) == sorted(REAL)
    assert len(REAL) >= 45


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.name)
def test_real_traces_equal_brute_force(path):
    found = tracetool.summarize(tracetool.read(str(path)))
    found.check()
    assert_equals_brute_force(found, brute_force.read_exactly(path))


@needs_perfetto
@pytest.mark.parametrize("path", REAL, ids=lambda path: path.name)
def test_real_traces_equal_trace_processor(path, processor):
    found = tracetool.summarize(tracetool.read(str(path)))
    assert reached(selfs(found)) == reached(perfetto_counts.count_trace(perfetto_counts.read_trace(path), processor))


def within_reach(events):
    """Generated events that the rules leave no room in, which trace_processor's oracle fills differently.

    Each flow leads from thread 1 to another, so that no thread has two callers or calls its own; every process
    has steps on one thread only, and there are flows wherever there are wrappers.
    """
    flows = [one for one in events if one.get("cat") == "fwdbwd"]
    links = {}
    for one in flows:
        links.setdefault((one["pid"], one["id"]), []).append((one["ph"], one["tid"]))
    straight = all(
        sorted(ph for ph, _ in ends) == ["f", "s"] and all((tid == 1) == (ph == "s") for ph, tid in ends)
        for ends in links.values()
    )
    wrappers = any("evaluate_function" in one.get("name", "") for one in events)
    return straight and (bool(flows) or not wrappers) and all(one["pid"] != 8 for one in flows)


def equals_trace_processor(events, processor):
    assume(within_reach(events))
    content = {"traceEvents": [lasting({**one, "args": plain(one.get("args", {}))}) for one in events]}
    found = tracetool.summarize(read(to_json(content)))
    assert reached(selfs(found)) == reached(perfetto_counts.count_trace(content, processor))


def lasting(event):
    """Ranges last: the oracle takes one without length, where another ends, for not contained in it."""
    empty = event.get("cat") == "user_annotation" and event["dur"] == 0
    return {**event, "dur": Decimal("0.001")} if empty else event


def plain(args):
    return {key: float(value) if isinstance(value, Decimal) else value for key, value in args.items()}


@needs_perfetto
@FEW
@given(events=traces())
def test_generated_traces_equal_trace_processor(processor, events):
    equals_trace_processor(events, processor)


@needs_perfetto
@pytest.mark.slow
@MANY
@given(events=traces(largest=25))
def test_thousands_of_generated_traces_equal_trace_processor(processor, events):
    equals_trace_processor(events, processor)
