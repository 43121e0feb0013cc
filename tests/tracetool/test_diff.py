"""Diffs of hand-written traces: what is lined up, what is compared, and the words for it."""

import contextlib
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tracetool
from tracetool.differ import Cell, Per, Status, Verdict
from tracetool.errors import SettingError
from tracetool.folding import STEP
from tracetool.ranges import BEFORE_WINDOW, NO_RANGE, range_source
from tracetool.render.tables import diff_table
from tracetool.render.verdict import summary_verdict, verdict_of
from tracetool.render.view import View

from .small import Small, healthy
from .traces import GRAPH, PAGEABLE, PINNED


@pytest.fixture
def diff(tmp_path):
    """Compares small traces, labelled a, b, c."""

    def compare(*traces, ranges_as=(), **settings):
        summaries = [
            trace.summary(tmp_path / f"{label}.json", ranges_as=[range_source(text) for text in ranges_as])
            for label, trace in zip("abcd", traces, strict=False)
        ]
        return tracetool.diff(*summaries, **settings)

    return compare


def loop(times, body, *, steps=True, outer=None):
    """A program that runs `body(trace, n)` in each of its steps."""
    trace = Small()

    def run():
        for number in range(times):
            if steps:
                with trace.step(number):
                    body(trace, number)
            else:
                body(trace, number)

    if outer:
        with trace.range(outer):
            run()
    else:
        run()
    return trace


def in_range(name, **counts):
    """A body that does so many kernels, copies and syncs in a range."""

    def body(trace, _):
        with trace.range(name):
            for what, count in counts.items():
                for _ in range(count):
                    getattr(trace, what)()

    return body


def rows(found):
    return {"/".join(row.path): row for row in found.rows}


def verdicts(found, path, metric):
    return list(rows(found)[path].metrics[metric].verdicts)


def means(found, path, metric):
    comparison = rows(found)[path].metrics[metric]
    return [None if cell is None else cell.mean for cell in (comparison.baseline, *comparison.variants)]


# Lining up ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stepped_first", [True, False])
def test_a_trace_with_steps_and_one_without_line_up(diff, stepped_first):
    body = in_range("f", kernel=2)
    sides = [loop(2, body), loop(2, body, steps=False)]
    found = diff(*(sides if stepped_first else reversed(sides)))
    assert not found.differs
    assert set(rows(found)) == {"f", NO_RANGE, BEFORE_WINDOW}
    assert rows(found)["f"].metrics["kernels"].per is Per.CALL
    assert means(found, "f", "kernels") == [2, 2]
    assert verdict_of(found) == "no count of launches, copies, syncs or ops differs"


@pytest.mark.parametrize("scope", ["total", "self"])
@pytest.mark.parametrize("per", [None, Per.TRACE])
@pytest.mark.parametrize("outer", [None, "train"])
def test_work_directly_in_a_step_counts_once_against_a_trace_without_steps(diff, scope, per, outer):
    def body(trace, _):
        trace.kernel(op="aten::mul")

    found = diff(loop(3, body, outer=outer), loop(3, body, steps=False, outer=outer), scope=scope, per=per)
    assert not found.differs
    place = outer or NO_RANGE
    assert means(found, place, "kernels") == [3, 3]
    assert found.contributions(rows(found)[place], "kernels", "op")[0].baseline == 3
    if outer:
        assert means(found, place, "calls") == [1, 1]
    else:
        assert "calls" not in rows(found)[place].metrics
        assert "cpu_ns" not in rows(found)[place].metrics


def test_stepped_traces_of_different_lengths_compare(diff):
    body = in_range("f", kernel=3)
    found = diff(loop(2, body), loop(5, body))
    assert not found.differs
    assert means(found, "f", "kernel_launches") == [3, 3]
    assert means(found, "f", "calls") == [1, 1]
    assert rows(found)["f"].metrics["calls"].per is Per.STEP
    assert [rows(found)["f"].metrics["calls"].baseline.count, rows(found)["f"].metrics["calls"].variants[0].count] == [
        2,
        5,
    ]


def nested(outer):
    def body(trace, _):
        with trace.range(outer), trace.range("inner"):
            trace.kernel()

    return loop(2, body)


def test_a_range_whose_parent_was_renamed_is_lined_up_by_its_name_and_says_so(diff):
    found = diff(nested("old"), nested("new"))
    assert {path: row.status for path, row in rows(found).items() if row.status is not Status.SAME} == {
        "old": Status.GONE,
        "new": Status.ADDED,
    }
    inner = rows(found)["old/inner"]
    assert (inner.status, inner.elsewhere) == (Status.SAME, (("new", "inner"),))
    (section,) = [one for one in diff_table(found, View(everything=True)).sections if one.path == ("old", "inner")]
    assert section.note == "lined up by its name with new/inner"


def test_a_name_that_is_left_twice_on_a_side_is_not_guessed(diff):
    def body(*outer):
        def run(trace, _):
            for name in outer:
                with trace.range(name), trace.range("inner"):
                    trace.kernel()

        return run

    found = diff(loop(1, body("a", "b")), loop(1, body("c", "d")))
    statuses = {path: row.status for path, row in rows(found).items() if path.endswith("inner")}
    assert statuses == {
        "a/inner": Status.GONE,
        "b/inner": Status.GONE,
        "c/inner": Status.ADDED,
        "d/inner": Status.ADDED,
    }
    assert not any(any(row.elsewhere) for row in found.rows)


def test_added_and_gone_ranges_stand_where_they_were(diff):
    def body(*names):
        def run(trace, _):
            for name in names:
                with trace.range(name):
                    trace.kernel()

        return run

    found = diff(loop(1, body("one", "two", "three")), loop(1, body("one", "new", "three")))
    assert list(rows(found)) == [STEP, "one", "new", "two", "three", NO_RANGE, BEFORE_WINDOW]
    assert verdicts(found, "new", "kernels") == [Verdict.MORE]
    assert verdicts(found, "two", "kernels") == [Verdict.FEWER]
    assert means(found, "two", "kernels") == [1, None]
    assert verdict_of(found) == "new added; two gone"


def test_every_range_of_every_side_is_in_a_row():
    sides = [tracetool.summarize(tracetool.read(path)) for path in (PAGEABLE, GRAPH, PINNED)]
    found = tracetool.diff(*sides)
    for number, side in enumerate(sides):
        told = sorted(row for line in found.rows if line.parts[number] for row in line.parts[number].rows)
        assert told == list(range(len(side.paths)))


def test_kernels_on_one_side_only_are_named(diff):
    def body(name):
        def run(trace, _):
            with trace.range("f"):
                trace.kernel("common")
                trace.kernel(name)

        return run

    found = diff(loop(2, body("old")), loop(2, body("new")))
    changed = [one for one in found.contributions(rows(found)["f"], "kernels", "kernel") if one.changed]
    assert [(one.name, one.baseline, one.variants) for one in changed] == [("new", 0, (1,)), ("old", 1, (0,))]


def test_work_before_the_window_is_compared_apart(diff):
    one, other = healthy(), healthy()
    other.orphan()
    found = diff(one, other)
    assert means(found, BEFORE_WINDOW, "kernels") == [0, 1]
    assert means(found, STEP, "kernels") == [1, 1]


@st.composite
def programs(draw):
    """A random program of ranges, steps, kernels, copies and syncs, some of it outside any range or step."""
    trace = Small()

    def body(depth):
        for _ in range(draw(st.integers(0, 3))):
            what = draw(st.sampled_from(["kernel", "copy", "sync", "graph", "orphan", "range", "range", "range"]))
            if what == "range" and depth < 3:
                with trace.range(draw(st.sampled_from(["f", "g", "h"]))):
                    body(depth + 1)
            elif what == "graph":
                trace.graph("one", "two")
            elif what != "range":
                getattr(trace, what)()

    body(2)
    for number in range(draw(st.integers(0, 2))):
        with trace.range("outer") if draw(st.booleans()) else contextlib.nullcontext(), trace.step(number):
            body(0)
    body(0)
    return trace


@settings(max_examples=60, deadline=None)
@given(st.lists(programs(), min_size=2, max_size=3), st.sampled_from(["self", "total"]))
def test_nothing_that_a_side_counts_is_dropped_or_counted_twice(made, scope):
    with tempfile.TemporaryDirectory() as folder:
        sides = [trace.summary(Path(folder) / f"{number}.json") for number, trace in enumerate(made)]
    found = tracetool.diff(*sides, scope=scope, per=Per.TRACE)
    for number, side in enumerate(sides):
        for metric in ("kernels", "kernel_launches", "h2d_bytes", "syncs"):
            counted = {
                (number and row.elsewhere[number - 1]) or row.path: cell.sum
                for row in found.rows
                if metric in row.metrics
                and (cell := (row.metrics[metric].baseline, *row.metrics[metric].variants)[number]) is not None
            }
            before = counted.pop((BEFORE_WINDOW,), 0)
            assert before == side.own(metric)[side.before_row]
            if scope == "total":  # the outermost ranges, steps left aside, hold everything
                paths = {path for path in counted if path[-1] != STEP}
                stepped = (STEP,) in counted
                tops = {path for path in paths if len(path) == 1}
                direct = int(side.own(metric)[side.paths.index((STEP,))]) if stepped else 0
                assert sum(counted[path] for path in tops) + direct == side.totals.get(metric, 0)
            else:
                assert sum(counted.values()) == side.totals.get(metric, 0)
    assert tracetool.diff(sides[0], sides[0]).differs is False
    for one in (found, tracetool.diff(*sides, scope=scope)):
        assert one.differs == any(row.status is not Status.SAME for row in one.rows)
        assert verdict_of(one)


# Per call, step and trace -------------------------------------------------------------------------------------


def twice(trace, _):
    for _ in range(2):
        with trace.range("f"):
            trace.kernel()


@pytest.mark.parametrize(
    ("per", "expected"), [(None, [1, 1]), (Per.CALL, [1, 1]), (Per.STEP, [2, 2]), (Per.TRACE, [4, 6])]
)
def test_numbers_per_call_step_and_trace(diff, per, expected):
    found = diff(loop(2, twice), loop(3, twice), per=per)
    assert means(found, "f", "kernels") == expected
    assert rows(found)["f"].metrics["kernels"].per is (per or Per.CALL)


def test_calls_are_given_per_step(diff):
    found = diff(loop(2, in_range("f", kernel=1)), loop(2, twice))
    assert means(found, "f", "calls") == [1, 2]
    assert verdicts(found, "f", "calls") == [Verdict.MORE]
    assert means(found, "f", "kernels") == [1, 1]


def test_per_step_needs_steps_on_every_side(diff):
    with pytest.raises(SettingError, match=r"'b' has no profiler steps: compare per call or per trace instead"):
        diff(healthy(), loop(1, in_range("train"), steps=False), per=Per.STEP)


def test_work_outside_the_steps_is_not_dropped(diff):
    def build(extra):
        trace = Small()
        for _ in range(extra):
            trace.kernel("setup")
        for number in range(2):
            with trace.step(number), trace.range("f"):
                trace.kernel()
        return trace

    found = diff(build(1), build(3))
    assert rows(found)[NO_RANGE].metrics["kernels"].per is Per.TRACE
    assert means(found, NO_RANGE, "kernels") == [1, 3]
    assert found.differs
    assert verdict_of(found) == "(no range): 1 kernel launch a trace became 3"


def test_calls_outside_the_steps_are_not_dropped(diff):
    def build(warmups):
        trace = Small()
        for _ in range(warmups):
            with trace.range("warmup"):
                trace.kernel()
        with trace.step(0):
            trace.kernel()
        return trace

    found = diff(build(1), build(2))
    assert (means(found, "warmup", "calls"), rows(found)["warmup"].metrics["calls"].per) == ([1, 2], Per.TRACE)
    assert verdict_of(found) == "warmup: 1 call a trace became 2"


def test_work_of_no_range_in_steps_compares_per_step(diff):
    def build(steps):
        trace = Small()
        for number in range(steps):
            with trace.step(number):
                now, trace.thread = trace.thread, 2
                trace.kernel()
                trace.thread = now
        return trace

    found = diff(build(2), build(4))
    assert (means(found, NO_RANGE, "kernels"), rows(found)[NO_RANGE].metrics["kernels"].per) == ([1, 1], Per.STEP)


def test_counts_that_vary_from_call_to_call_show_least_median_and_most(diff):
    def body(trace, number):
        with trace.range("f"):
            for _ in range((1, 1, 4)[number]):
                trace.kernel()

    found = diff(loop(3, body), loop(3, in_range("f", kernel=2)))
    cell = rows(found)["f"].metrics["kernels"].baseline
    assert (cell.least, cell.median, cell.most, cell.sum, cell.count) == (1, 1.0, 4, 6, 3)
    (line,) = [
        line
        for section in diff_table(found, View(metrics=("kernels",), everything=True)).sections
        if section.path == ("f",)
        for line in section.lines
    ]
    assert (line.baseline, line.variants) == ("1..1..4", ("2",))
    # the mean is the same: nothing changed in all
    assert verdicts(found, "f", "kernels") == [Verdict.SAME]


# Scope, several variants, what one side cannot hold ------------------------------------------------------------


def test_self_leaves_out_the_ranges_inside(diff):
    def body(count):
        def run(trace, _):
            with trace.range("outer"):
                trace.kernel()
                with trace.range("inner"):
                    for _ in range(count):
                        trace.kernel()

        return run

    one, other = loop(1, body(1)), loop(1, body(3))
    assert means(diff(one, other), "outer", "kernels") == [2, 4]
    own = diff(one, other, scope="self")
    assert means(own, "outer", "kernels") == [1, 1]
    assert rows(own)["outer"].status is Status.SAME
    assert means(own, "outer/inner", "kernels") == [1, 3]


def test_several_variants_have_a_verdict_each(diff):
    found = diff(*(loop(2, in_range("f", kernel=count)) for count in (2, 1, 2, 3)))
    assert verdicts(found, "f", "kernels") == [Verdict.FEWER, Verdict.SAME, Verdict.MORE]
    assert rows(found)["f"].status is Status.CHANGED
    assert verdict_of(found) == (
        "b: f: 2 kernel launches a call became 1 | c: no count of launches, copies, syncs or ops differs | "
        "d: f: 2 kernel launches a call became 3"
    )


def test_a_range_that_only_one_variant_has(diff):
    one, other = loop(1, in_range("f", kernel=1)), loop(1, in_range("f", kernel=1))
    with other.range("extra"):
        other.kernel()
    found = diff(one, one, other)
    row = rows(found)["extra"]
    assert (row.fate(0), row.fate(1), row.status) == (Status.SAME, Status.ADDED, Status.ADDED)
    assert row.metrics["kernels"].verdicts == (Verdict.SAME, Verdict.MORE)
    (section,) = [section for section in diff_table(found, View()).sections if section.path == ("extra",)]
    assert section.fate == "added in c"


@pytest.mark.parametrize("cpu_first", [True, False])
def test_what_a_cpu_trace_cannot_hold_is_not_checked(diff, cpu_first):
    cpu, gpu = Small(gpu=None), Small()
    for trace in (cpu, gpu):
        with trace.range("f"), trace.op("aten::add"):
            trace.now += 1
    with gpu.range("f"), gpu.op("aten::add"):
        gpu.kernel()
    found = diff(*((cpu, gpu) if cpu_first else (gpu, cpu)), per=Per.CALL)
    assert verdicts(found, "f", "kernels") == [Verdict.NOT_CHECKED]
    assert verdicts(found, "f", "gpu_ns") == [Verdict.NOT_CHECKED]
    assert None in means(found, "f", "kernels")
    assert verdicts(found, "f", "ops") == [Verdict.SAME]
    assert verdicts(found, "f", 'op_calls["aten::add"]') == [Verdict.SAME]
    assert verdict_of(found).endswith(
        f"; device activity was not compared: {'a' if cpu_first else 'b'} has none on record"
    )


# Causes and environments --------------------------------------------------------------------------------------


def test_contributions_are_matched_on_both_sides(diff):
    def body(copies, op):
        def run(trace, _):
            with trace.range("f"), trace.python("tables.py(70): build"):
                for _ in range(copies):
                    trace.copy(op=op)
                trace.kernel("gemm", op="aten::mm")

        return run

    found = diff(loop(2, body(12, "aten::copy_")), loop(2, body(1, "aten::copy_")))
    row = rows(found)["f"]
    (one,) = found.contributions(row, "h2d_copies", "op")
    assert (one.name, one.baseline, one.variants, one.changed) == ("aten::copy_", 12, (1,), True)
    (where,) = found.contributions(row, "h2d_copies", "function")
    assert (where.name, where.baseline, where.variants) == ("tables.py:70 in build", 12, (1,))
    (section,) = [one for one in diff_table(found, View()).sections if one.path == ("f",)]
    causes = {line.metric.name: line.causes for line in section.lines}
    assert causes["h2d_copies"] == "gone aten::copy_ x 11 in tables.py:70 in build"
    assert causes["h2d_pageable_bytes"] == "aten::copy_ -704 B in tables.py:70 in build"

    replaced = diff(loop(2, body(2, "aten::copy_")), loop(2, body(2, "aten::to")))
    told = replaced.contributions(rows(replaced)["f"], "h2d_copies", "op")
    assert [(one.name, one.baseline, one.variants) for one in told] == [("aten::copy_", 2, (0,)), ("aten::to", 0, (2,))]


@pytest.mark.parametrize("per", [None, Per.TRACE])
@pytest.mark.parametrize("scope", ["total", "self"])
def test_contributions_add_up_to_what_they_explain(per, scope):
    sides = [tracetool.summarize(tracetool.read(path)) for path in (PAGEABLE, PINNED)]
    found = tracetool.diff(*sides, per=per, scope=scope)
    checked = 0
    for row in found.rows:
        for metric in ("kernel_launches", "h2d_copies", "syncs", "ops"):
            if metric not in row.metrics:
                continue
            comparison = row.metrics[metric]
            for side, cell in enumerate((comparison.baseline, *comparison.variants)):
                told = [(one.baseline, *one.variants)[side] for one in found.contributions(row, metric, "op")]
                assert sum(told) == cell.mean, (row.path, metric)
                checked += 1
    assert checked > 20


def test_environments_that_differ_are_told(tmp_path):
    one, other = Small(gpu="H200", cuda_driver_version=13000), Small(gpu="H100", cuda_driver_version=13000, seed="7")
    found = tracetool.diff(one.summary(tmp_path / "a.json"), other.summary(tmp_path / "b.json"))
    assert found.environment == {"gpu": ["H200", "H100"], "seed": ["-", "7"]}


# Times --------------------------------------------------------------------------------------------------------


def timed(*lengths):
    trace = Small()
    for length in lengths:
        with trace.range("f"):
            trace.sync(us=length)
    return trace


STEADY = (100, 101, 99, 102, 98, 100, 101, 99)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (STEADY, [time / 2 for time in STEADY], Verdict.FASTER),
        (STEADY, [time * 2 for time in STEADY], Verdict.SLOWER),
        (STEADY, STEADY[::-1], Verdict.NOISE),
        (STEADY, [10, 500, 20, 400, 30, 300, 150, 90], Verdict.NOISE),
        (STEADY[:5], [time / 2 for time in STEADY], Verdict.TOO_FEW),
        (STEADY, [time / 2 for time in STEADY[:5]], Verdict.TOO_FEW),
        (STEADY[:6], [time / 2 for time in STEADY[:6]], Verdict.FASTER),
    ],
)
def test_times_are_called_faster_or_slower_only_beyond_noise(diff, before, after, expected):
    found = diff(timed(*before), timed(*after))
    assert verdicts(found, "f", "sync_wait_ns") == [expected]
    # times alone change no range and no exit code
    assert verdicts(found, "f", "syncs") == [Verdict.SAME]
    if len(before) == len(after):
        assert rows(found)["f"].status is Status.SAME


def test_a_time_that_was_nothing_before(diff):
    def body(waits):
        def run(trace, _):
            with trace.range("f"):
                trace.kernel()
                if waits:
                    trace.sync(us=50)

        return run

    found = diff(loop(8, body(waits=False), steps=False), loop(8, body(waits=True), steps=False))
    assert verdicts(found, "f", "sync_wait_ns") == [Verdict.SLOWER]
    both = diff(loop(8, body(waits=False), steps=False), loop(8, body(waits=False), steps=False))
    assert "sync_wait_ns" not in rows(both)["f"].metrics


def test_times_of_a_range_on_one_side_are_never_faster_or_slower(diff):
    extra = timed(*STEADY)
    with extra.range("g"):
        extra.now += 9
    found = diff(timed(*STEADY), extra)
    assert verdicts(found, "g", "cpu_ns") == [Verdict.TOO_FEW]


def test_medians_are_given_with_their_ratio(diff):
    found = diff(timed(*STEADY), timed(*(time / 4 for time in STEADY)))
    comparison = rows(found)["f"].metrics["sync_wait_ns"]
    assert comparison.baseline.median == 100_000
    assert comparison.ratios[0].value == pytest.approx(0.25)
    assert comparison.ratios[0].low <= 0.25 <= comparison.ratios[0].high < 1
    (line,) = [
        line
        for section in diff_table(found, View(metrics=("sync_wait_ns",))).sections
        if section.path == ("f",)
        for line in section.lines
    ]
    assert (line.baseline, line.variants, line.ratios) == ("100 us", ("25.0 us",), ("x0.25 faster",))


# Words --------------------------------------------------------------------------------------------------------

ONE, TWO = in_range("f", kernel=1), in_range("f", kernel=2)


@pytest.mark.parametrize(
    ("before", "after", "sentence"),
    [
        (ONE, ONE, "no count of launches, copies, syncs or ops differs"),
        (ONE, TWO, "f: 1 kernel launch a call became 2"),
        (TWO, ONE, "f: 2 kernel launches a call became 1"),
        (in_range("f", kernel=1, sync=1), ONE, "f: 1 sync a call gone"),
        (ONE, in_range("f", kernel=1, sync=2), "f: 2 syncs a call new"),
        (in_range("f", copy=12), in_range("f", copy=1), "f: 12 pageable HtoD copies a call became 1"),
        (ONE, in_range("f", kernel=1, memset=1), "f: 1 memset a call new"),
        (ONE, twice, "f: 1 call a step became 2"),
    ],
)
def test_verdicts(diff, before, after, sentence):
    found = diff(loop(2, before), loop(2, after))
    assert verdict_of(found) == sentence


def test_the_verdict_tells_what_was_renamed(diff):
    found = diff(loop(2, ONE), loop(2, in_range("g", kernel=1)))
    assert sorted(verdict_of(found).split("; ")) == ["f gone", "g added"]


def copying(memory, size=64, count=3, op="aten::copy_"):
    def body(trace, _):
        with trace.range("f"):
            for _ in range(count):
                trace.copy(memory=memory, size=size, op=op)

    return body


def test_verdicts_of_copies(diff):
    base = loop(2, copying("Pageable"))
    assert verdict_of(diff(base, loop(2, copying("Pinned")))) == "f: 3 pageable HtoD copies a call became pinned"
    assert (
        verdict_of(diff(base, loop(2, copying("Pinned", count=1))))
        == "f: 3 pageable HtoD copies a call became 1 pinned"
    )
    assert verdict_of(diff(base, loop(2, copying("Pageable", size=128)))) == (
        "f: 192 B of copies a call became 384 B, 192 B of HtoD copies a call became 384 B"
    )
    assert verdict_of(diff(base, loop(2, copying("Pageable", op="aten::to")))) == (
        'f: other ops: op_calls["aten::copy_"], op_calls["aten::to"]'
    )


def test_the_verdict_names_the_innermost_range_and_leaves_out_no_direct_change(diff):
    def body(outer, inner):
        def run(trace, _):
            with trace.range("outer"):
                for _ in range(outer):
                    trace.kernel()
                with trace.range("inner"):
                    for _ in range(inner):
                        trace.kernel()

        return run

    assert verdict_of(diff(loop(2, body(1, 1)), loop(2, body(1, 2)))) == "outer/inner: 1 kernel launch a call became 2"
    assert verdict_of(diff(loop(2, body(1, 1)), loop(2, body(2, 1)))) == "outer: 2 kernel launches a call became 3"


def test_the_verdict_stops_after_three_ranges(diff):
    def body(count):
        def run(trace, _):
            for name in "vwxyz":
                with trace.range(name):
                    for _ in range(count):
                        trace.kernel()

        return run

    assert verdict_of(diff(loop(1, body(1)), loop(1, body(2)))) == (
        "v: 1 kernel launch a call became 2; w: 1 kernel launch a call became 2; x: 1 kernel launch a call became 2; "
        "and 2 more ranges"
    )


def test_one_profiled_time_differs_and_two_differ(diff):
    before, after = timed(*STEADY), timed(*(time * 3 for time in STEADY))
    found = diff(before, after)
    differing = sum(
        verdict in (Verdict.FASTER, Verdict.SLOWER)
        for row in found.rows
        for one in row.metrics.values()
        for verdict in one.verdicts
    )
    assert differing == 2  # cpu_ns and sync_wait_ns
    assert verdict_of(found) == "no count of launches, copies, syncs or ops differs; 2 profiled times differ"


def test_summaries_in_a_sentence(tmp_path):
    assert summary_verdict(healthy().summary(tmp_path / "a.json")) == (
        "A step: 1 HtoD copy, 1 sync, 1 kernel launch. train/forward makes 100% of the kernel launches."
    )
    cpu = Small(gpu=None)
    with cpu.range("f"), cpu.op("aten::add"):
        cpu.now += 1
    assert summary_verdict(cpu.summary(tmp_path / "b.json")) == "No device work; 1 op a trace."
    outside = Small()
    with outside.step(0):
        outside.now += 1
    outside.kernel()
    assert summary_verdict(outside.summary(tmp_path / "c.json")) == "A trace: 1 kernel launch."


# What diff refuses --------------------------------------------------------------------------------------------


def test_labels_are_one_for_each_side(diff, tmp_path):
    found = diff(healthy(), healthy(), labels=["left", "right"])
    assert [side.label for side in found.sides] == ["left", "right"]
    with pytest.raises(SettingError, match="3 names for 2 traces"):
        diff(healthy(), healthy(), labels=["x", "y", "z"])
    with pytest.raises(SettingError, match="at least one variant"):
        tracetool.diff(healthy().summary(tmp_path / "a.json"))


def test_files_of_one_name_are_numbered(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "y").mkdir()
    sides = [healthy().summary(tmp_path / name / "trace.json") for name in "xy"]
    assert [side.label for side in tracetool.diff(*sides).sides] == ["trace (1)", "trace (2)"]


def test_a_hundred_thousand_samples_keep_exact_sums():
    cell = Cell(np.full(100_000, 2**40, dtype=np.int64))
    assert (cell.sum, cell.mean, cell.median) == (100_000 * 2**40, 2**40, float(2**40))


def test_traces_of_different_lengths_without_steps_compare(tmp_path):
    def loop(times, inner, name):
        trace = Small()
        for _ in range(times):
            with trace.range("iteration"):
                for _ in range(inner):
                    with trace.range("layer"):
                        trace.kernel(op="aten::add")
        return trace.summary(tmp_path / name)

    short, long, deep = loop(2, 3, "short.json"), loop(5, 3, "long.json"), loop(5, 4, "deep.json")
    same = {row.path: row for row in tracetool.diff(short, long).rows}
    assert same["iteration", "layer"].status is Status.SAME
    assert same["iteration",].changed == ["calls"]
    assert same["iteration",].metrics["calls"].per is Per.TRACE
    more = {row.path: row for row in tracetool.diff(short, deep).rows}["iteration", "layer"].metrics["calls"]
    assert (more.per, more.baseline.mean, more.variants[0].mean) == (Per.CALL, 3, 4)


def test_traces_are_summarised_on_the_way():
    one, other = tracetool.read(str(PAGEABLE)), tracetool.read(str(PINNED))
    found = tracetool.diff(one, tracetool.summarize(other))
    assert found.differs
    assert [side.label for side in found.sides] == ["train_pageable", "train_pinned"]
