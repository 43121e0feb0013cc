"""What must hold for any trace: nothing is lost, and the form of the file changes nothing."""

import gzip
import json
import re
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import tracetool

from .oracles import brute_force
from .random_traces import LATE, exact, traces
from .same import assert_same
from .traces_by_hand import assert_equals_brute_force, flat, launch, read, rng, selfs, to_json, trace

# On a busy machine large traces take long to draw, which proves nothing.
FEW = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
MANY = settings(FEW, max_examples=2000)


def equals_brute_force(events):
    content = {"traceEvents": events}
    found = tracetool.summarize(read(content))
    found.check()
    try:
        assert_equals_brute_force(found, content)
    except brute_force.CircleError:
        assume(False)


def everything(found):
    """All that a summary counts, apart from the order of its rows."""
    return (
        selfs(found),
        {path: found.total("gpu_busy_ns")[row] for row, path in enumerate(found.paths)},
        {path: found.total("cpu_ns")[row] for row, path in enumerate(found.paths)},
        {found.paths[row]: counts for row, counts in found.via_autograd.items()},
        {path: found.ambiguous[row] for row, path in enumerate(found.paths)},
        sorted(json.dumps(step, sort_keys=True) for step in found.steps),
        found.totals,
        sorted((finding.code, finding.count) for finding in found.health.findings),
    )


# Counts


@FEW
@given(events=traces())
def test_counts_equal_those_of_the_brute_force_counter(events):
    equals_brute_force(events)


@pytest.mark.slow
@MANY
@given(events=traces(largest=25))
def test_counts_equal_those_of_the_brute_force_counter_thousands_of_times(events):
    equals_brute_force(events)


def of_equal_ranges_only_the_first(events):
    """Of ranges (and ops) that start and end together on a thread, which is the outer is the file's to say.

    Of steps that do, too, whatever their threads: they are of the whole process.
    """
    kept, taken = [], set()
    for one in events:
        span = (one.get("pid"), one.get("ts"), one.get("dur"))
        places = set()
        if one.get("cat") in ("user_annotation", "cpu_op") or str(one.get("cat")).endswith("_runtime"):
            places.add((one["cat"], one["tid"], *span))
        if str(one.get("name")).startswith("ProfilerStep#"):
            places.add(("step", *span))
        # Nor does an id say which of those that carry it, on any thread, is the inner one.
        places |= {
            (key, str(one["args"][key]), *span[1:])
            for key in ("External id", "correlation")
            if places and key in one["args"]
        }
        if not places & taken:
            kept.append(one)
            taken |= places
    return kept


def shuffled_is_the_same(events, order):
    events = of_equal_ranges_only_the_first([e for e in events if e.get("cat") != "cuda_driver"])
    moved = list(events)
    order.shuffle(moved)
    found = tracetool.summarize(read({"traceEvents": events}))
    assert everything(tracetool.summarize(read({"traceEvents": moved}))) == everything(found)


@FEW
@given(events=traces(), order=st.randoms())
def test_shuffling_the_events_changes_nothing(events, order):
    shuffled_is_the_same(events, order)


@pytest.mark.slow
@MANY
@given(events=traces(largest=25), order=st.randoms())
def test_shuffling_the_events_changes_nothing_thousands_of_times(events, order):
    shuffled_is_the_same(events, order)


# Forms of the file


@FEW
@given(events=traces(), chunk=st.integers(1, 4000))
def test_reading_does_not_depend_on_the_size_of_chunks(events, chunk):
    text = to_json(trace(*events, after=[{"traceEvents": 1}, "}]"]))
    assert_same(read(text, chunk_bytes=chunk), read(text))


@settings(FEW, max_examples=15)
@given(events=traces(), chunk=st.integers(1, 4000), part=st.floats(0, 1))
def test_reading_does_not_depend_on_where_a_second_process_takes_over(events, chunk, part):
    text = to_json(trace(*events, after=[{"traceEvents": 1}, "}]"]))
    split = read(text, chunk_bytes=chunk, split_at=int(part * len(text)))
    assert_same(split, read(text, split_at=0))


@FEW
@given(events=traces(), level=st.sampled_from([0, 1, 9]))
def test_gzip_equals_plain(events, level):
    text = to_json(trace(*events))
    assert_same(read(gzip.compress(text.encode(), level)), read(text))


SPACES = [{"indent": 1}, {"separators": (",", ":")}, {"separators": (" , ", "\t:\r\n")}]


@FEW
@given(events=traces(), style=st.sampled_from(SPACES), chunk=st.sampled_from([50, 1000, 1 << 20]))
def test_spaces_and_line_breaks_change_nothing(events, style, chunk):
    text = to_json(trace(*events))
    # Times that Python's floats have been through, as other tools write them.
    again = json.dumps(json.loads(text), **style)
    assert_same(read(again, chunk_bytes=chunk), read(text))


@FEW
@given(events=traces())
def test_a_bare_list_equals_the_object(events):
    bare, whole = read(to_json(flat(events))), read(to_json({"traceEvents": events}))
    assert_same(bare, whole)


@FEW
@given(events=traces(), odd=st.sampled_from([b"\xff", b"\x01", b"\\q"]), chunk=st.integers(20, 3000))
def test_one_odd_event_does_not_change_how_the_others_are_read(events, odd, chunk):
    more = rng("<here>", 0, 1)
    text = to_json(trace(*events, more, *events)).encode().replace(b"<here>", odd)
    assert_same(read(text, chunk_bytes=chunk), read(text))
    clean = read(to_json(trace(*events, more, *events)))
    assert np.array_equal(read(text).events.start, clean.events.start)


NESTED = st.recursive(
    st.one_of(st.none(), st.booleans(), st.text('{}[]",:\\ /ab\n', max_size=8), st.integers(-9, 9)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text('{}[]",a', max_size=4), inner)),
    max_leaves=6,
)


@FEW
@given(values=st.lists(NESTED, max_size=4), chunk=st.integers(1, 300))
def test_brackets_and_quotes_inside_of_events_mislead_no_one(values, chunk):
    ranges = [rng(f"r{i}", i, i + 1, x=value, y=[{"z": value}]) for i, value in enumerate(values)]
    found = read(json.dumps(trace(ranges, after=values)), chunk_bytes=chunk)
    assert found.events.names == [f"r{i}" for i in range(len(values))]
    assert found.metadata["after"] == values
    assert found.report.dropped_events == 0


# Times


@FEW
@given(start=st.integers(0, 10**15), length=st.integers(0, 10**9), gap=st.integers(0, 10**6))
def test_times_are_exact_to_the_nanosecond_at_any_size(start, length, gap):
    base = LATE + start
    one = exact({**rng("a", 0, 0), "ts": 0, "dur": length}, base)
    other = exact({**rng("b", 0, 0), "ts": length + gap, "dur": 1}, base)
    events = read({"traceEvents": [one, other]}).events
    assert (events.start - base).tolist() == [0, length + gap]
    assert (events.end - base).tolist() == [length, length + gap + 1]


def test_digits_beyond_nanoseconds_round_half_to_even():
    digits = ["1.0004", "1.0005", "1.0015", "1.00050000000000000000000000001", "4387790454594.3845", "1e-3", "0.5E1"]
    ranges = [{**rng("r", 0, 0), "ts": Decimal(text)} for text in digits]
    text = re.sub(r"E([+-])", r"e\1", to_json(trace(ranges)))
    assert read(text).events.start.tolist() == [1000, 1000, 1002, 1001, 4_387_790_454_594_384, 1, 5000]


def test_late_traces_count_as_early_ones():
    events = [rng("a", 0, 9), rng("b", 9, 20), launch(8, 1), launch(9, 2)]
    early = [exact({**e, "ts": e["ts"] * 1, "dur": e["dur"]}) for e in flat(events)]
    late = [exact(e, LATE) for e in flat(events)]
    assert selfs(tracetool.summarize(read(trace(early)))) == selfs(tracetool.summarize(read(trace(late))))
