"""What the fuzzer found, each as small as it could be made by hand."""

import json

import pytest

import tracetool
from tracetool import breakdown
from tracetool.differ import add_outer, outer_paths
from tracetool.errors import TraceReadError
from tracetool.folding import STEP

from .traces import GRAPH, PAGEABLE, PINNED
from .traces_by_hand import call, flow, launch, op, read, rng, to_json, trace

GOOD = [rng("range", 0, 50), *launch(1, 1), op("aten::add", 60, 70)]


def written(path, content):
    path.write_text(content if isinstance(content, str) else to_json(content))
    return path


def sentence(run, *arguments):
    """The one sentence that a command fails with."""
    code, _, err = run(*arguments)
    assert code == 2
    assert err.startswith("tracetool: ")
    assert err.count("\n") == 1
    return err


# Reading


@pytest.mark.parametrize(
    "odd",
    [
        "NaN",  # no event: what is mended in it is no text of ours
        '{"ph": "X", "cat": "cpu_op", "name": "a\\ud800", "ts": 1, "dur": 1}',
        '{"ph": "X", "cat": "cpu_op", "name": "a", "ts": 1, "dur": 1, "args": {"external id": "x"}}',
    ],
)
def test_what_is_counted_does_not_depend_on_how_much_is_read_at_a_time(odd):
    good = [op(f"aten::add{number}", 60 + number, 61 + number, ext=number) for number in range(20)]
    text = to_json(trace(*GOOD, *good, {"here": 1})).replace('{"here": 1}', odd)
    whole = read(text).report
    assert {read(text, chunk_bytes=size).report for size in (20, 50, 100, 300, 1000)} == {whole}


def test_the_last_events_are_read_though_the_file_ends_in_the_same_look():
    text = to_json(trace(*GOOD, {"here": 1}, *GOOD, after=1)).replace('{"here": 1}', '"1e5"')
    for size in range(1, len(text), 7):
        found = read(text, chunk_bytes=size)
        assert len(found.events) == 2 * len(GOOD)
        assert found.metadata == {"schemaVersion": 1, "after": 1}
        assert not found.report.truncated


@pytest.mark.parametrize("options", [5, "x", [1], None, {"shapes": {"deep": [1]}}])
def test_what_a_capture_notes_may_be_anything(options):
    notes = {
        "options": options,
        "axes": options,
        "versions": options,
        "unprofiled_ns_per_step": options,
        "driver": options,
    }
    tracetool.summarize(read(trace(*GOOD, tracetool=notes)))


def test_settings_within_settings_are_shown_as_deep_as_anybody_writes_them():
    deep = {}
    for _ in range(700):
        deep = {"a": deep, "b": 1}
    found = tracetool.summarize(read(trace(*GOOD, deep=deep))).environment
    assert found["deep.a.a.b"] == "1"
    assert len(found) < 50


# Merging


def unmerged(event_):
    return [{**event_, "ts": 1e300}, {**event_, "ts": 10**400}, {**event_, "ts": "nan"}, {**event_, "ts": "-inf"}]


def test_a_merge_leaves_out_times_that_are_none(tmp_path, run):
    odd = written(tmp_path / "odd.json", trace(*GOOD, unmerged(op("odd", 1, 2)), {**op("endless", 1, 2), "dur": 1e300}))
    assert run("merge", odd, PAGEABLE, "-o", tmp_path / "out.json")[0] == 0
    events = json.loads((tmp_path / "out.json").read_text())["traceEvents"]
    assert not [one for one in events if one["name"] == "odd"]
    assert [one["dur"] for one in events if one["name"] == "endless"] == [0]


@pytest.mark.parametrize("field", ["ph", "cat", "name", "id", "pid", "tid"])
def test_a_merge_takes_fields_of_any_type(tmp_path, run, field):
    ends = [{**one, field: [1]} for one in flow(1, 1, 3, 2, 5)]
    odd = written(tmp_path / "odd.json", trace(*GOOD, ends, {**op("odd", 1, 2), field: {"a": 1}}, call("cudaX", 2)))
    assert run("merge", odd, odd, "-o", tmp_path / "out.json")[0] == 0


@pytest.mark.parametrize("deep", ["[" * 5000 + "]" * 5000, '{"a":' * 5000 + "1" + "}" * 5000])
def test_a_merge_of_lists_within_lists_is_refused(tmp_path, run, deep):
    odd = written(tmp_path / "odd.json", to_json(trace(*GOOD, {"here": 1})).replace('{"here": 1}', deep))
    assert "cannot be merged" in sentence(run, "merge", odd, PAGEABLE, "-o", tmp_path / "out.json")


# Paths


def test_paths_around_changed_ones():
    changed = [("a", "b", "c"), ("a", "b", "d"), ("a", STEP), ("x", STEP, "y")]
    every = [("a",), ("a", "b"), ("a", "b", "c"), ("a", STEP), ("x",), ("x", STEP), ("x", STEP, "y"), ("z",)]
    assert outer_paths(changed, every) == {("a",), ("a", "b"), ("a", STEP), ("x",), ("x", STEP)}


def test_paths_around_a_deep_one_are_looked_at_once():
    looked = 0

    class Counting(set):
        def __contains__(self, path):
            nonlocal looked
            looked += 1
            return super().__contains__(path)

    known = Counting()
    for depth in range(1, 501):
        add_outer(("deep",) * depth, known)
    assert len(known) == 500
    assert looked < 3 * 500


# Settings and snapshots


@pytest.mark.parametrize("text", ["tool = 5", "[tool]\ntracetool = 5", "[tool]\ntracetool = [1]"])
def test_a_project_whose_settings_are_none(tmp_path, run, monkeypatch, text):
    written(tmp_path / "pyproject.toml", text)
    monkeypatch.chdir(tmp_path)
    assert "there are no workloads here" in sentence(run, "workloads")
    assert "there is nothing to check" in sentence(run, "check", PAGEABLE)


@pytest.mark.parametrize(
    "text", ["x = " + "[" * 5000, "x = " + "{a=" * 5000, "x = " + "9" * 5000, "\0", "x = 1e", "\x1b"]
)
def test_budgets_that_are_no_toml(tmp_path, run, monkeypatch, text):
    target = written(tmp_path / "pyproject.toml", text)
    assert "is not TOML" in sentence(run, "check", PAGEABLE, "--budgets", target)
    monkeypatch.chdir(tmp_path)
    assert "cannot be read" in sentence(run, "workloads")


@pytest.mark.parametrize("number", ["9" * 5000, "1." + "5" * 5000])
def test_a_bound_of_thousands_of_digits(tmp_path, run, number):
    target = written(tmp_path / "budgets.toml", f'[[budgets]]\nrange = "**"\nh2d_copies = "<= {number}"\n')
    assert "is no bound" in sentence(run, "check", PAGEABLE, "--budgets", target)


def test_a_count_of_thousands_of_digits(tmp_path, run):
    text = f"# tracetool snapshot 1\n\nenvironment\n  records device\n\nrange a\n  syncs {'9' * 5000} a call\n"
    target = written(tmp_path / "snapshot.txt", text)
    assert "is no count" in sentence(run, "check", PAGEABLE, "--baseline", target)


def test_a_check_that_fails_twice_says_one_thing(tmp_path, run):
    unhealthy = written(tmp_path / "t.json", trace(rng("range", 0, 50), call("cudaLaunchKernel", 1, 1)))
    budgets = written(tmp_path / "budgets.toml", '[[budgets]]\nper = "trace"\nsyncs = "<= baseline"\n')
    assert "there is no baseline" in sentence(run, "check", unhealthy, "--budgets", budgets)
    assert "is not healthy" in sentence(run, "check", unhealthy, "--baseline", PINNED)


# Holistic Trace Analysis


def test_what_hta_cannot_read_is_one_sentence(run, monkeypatch):
    def fail(_):
        raise json.JSONDecodeError("Invalid control character at", "x", 0)

    monkeypatch.setattr(breakdown, "installed", lambda: True)
    monkeypatch.setattr(breakdown, "_load", fail)
    assert f"HTA cannot read {PAGEABLE}: JSONDecodeError" in sentence(run, "breakdown", PAGEABLE)
    with pytest.raises(TraceReadError):
        breakdown.break_down(
            tracetool.diff(
                tracetool.summarize(tracetool.read(PAGEABLE)), tracetool.summarize(tracetool.read(GRAPH))
            ).sides
        )
