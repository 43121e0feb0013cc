"""`tracetool check` and `tracetool snapshot`: what they print, and what never passes."""

import json
import re

import jsonschema
import pytest

from tests.tracetool.small import Small, healthy
from tests.tracetool.test_schemas import schema
from tests.tracetool.traces import GRAPH, PAGEABLE, PINNED


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def budgets(tmp_path):
    def write(body, name="b.toml"):
        (tmp_path / name).write_text(f"[[budgets]]\n{body}\n")
        return name

    return write


def checked(run, trace, *options):
    """Exit code and the outcomes by range and metric."""
    code, out, err = run("check", trace, *options, "--format", "json")
    assert out, err
    found = json.loads(out)
    jsonschema.Draft202012Validator(schema("check")).validate(found)
    return code, {("/".join(one["range"]), one["metric"]): one for one in found["outcomes"]}


def test_a_violation_in_one_sentence(run, budgets, tmp_path):
    trace = Small()
    with trace.range("decode_step"), trace.range("h2d_block_tables"):
        for _ in range(12):
            trace.copy(op="aten::copy_")
    for event in trace.events:
        if event["cat"] == "cpu_op":
            event["args"]["Call line"] = "block_tables.py:88"
    path = trace.write(tmp_path / "t.json")
    file = budgets('range = "decode_step/h2d_block_tables"\nh2d_copies = 1\nsyncs = 0')
    code, out, err = run("check", path, "--budgets", file)
    assert (code, err) == (1, "")
    assert (
        "broken range 'decode_step/h2d_block_tables': 12 h2d_copies a call, budget 1 (+11: aten::copy_ at "
        "block_tables.py:88)\n1 budget broken, 1 of 2 bounds hold\n"
    ) in out
    code, out, _ = run("check", path, "--budgets", file, "--format", "github")
    assert code == 1
    assert out.splitlines()[0] == (
        "::error file=block_tables.py,line=88,title=tracetool::range 'decode_step/h2d_block_tables': 12 h2d_copies a "
        "call, budget 1 (+11: aten::copy_ at block_tables.py:88)"
    )
    code, out, _ = run("check", path, "--budgets", file, "--format", "markdown")
    assert out.startswith("**1 budget broken, 1 of 2 bounds hold**\n")
    assert "- :x: range 'decode\\_step/h2d\\_block\\_tables': 12 h2d\\_copies a call, budget 1" in out


def test_everything_that_holds(run, budgets):
    file = budgets('range = "h2d_batch"\nh2d_copies = 17\nh2d_bytes = "<= 193 KiB"\nsyncs = ">= 17"\n"self.ops" = 18')
    code, out, err = run("check", PAGEABLE, "--budgets", file)
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "4 of 4 bounds hold"
    code, out, _ = run("check", PAGEABLE, "--budgets", file, "--all")
    assert "held range 'train_step/h2d_batch': 17 syncs a call, budget >= 17" in out


@pytest.mark.parametrize("relation", ["<=", "<", ">=", ">", "="])
def test_operators(run, budgets, relation):
    for limit, holds in ((16, relation in (">=", ">")), (17, relation in ("<=", ">=", "=")), (18, relation[0] == "<")):
        file = budgets(f'range = "h2d_batch"\nh2d_copies = "{relation} {limit}"')
        code, found = checked(run, PAGEABLE, "--budgets", file)
        assert code == (0 if holds else 1)
        assert found["train_step/h2d_batch", "h2d_copies"]["result"] == ("held" if holds else "broken")


def varied(tmp_path):
    trace = Small()
    for number, copies in enumerate((1, 3, 1)):
        with trace.step(number), trace.range("f"):
            for _ in range(copies):
                trace.copy(op="aten::copy_")
    return trace.write(tmp_path / "varied.json")


def test_a_budget_holds_for_every_call(run, budgets, tmp_path):
    path = varied(tmp_path)
    code, out, _ = run("check", path, "--budgets", budgets('range = "f"\nh2d_copies = 1'))
    assert code == 1
    assert "range 'f': 1..3 h2d_copies a call, budget 1 (+2 in 1 of 3 calls: aten::copy_)" in out
    for body, code in (
        ('range = "f"\nh2d_copies = "<= 3"', 0),
        ('range = "f"\nper = "trace"\nh2d_copies = 5', 0),
        ('per = "trace"\nh2d_copies = 5', 0),
        ("h2d_copies = 4", 1),
        ('per = "step"\nh2d_copies = "<= 2"', 1),
        ('range = "f"\nper = "step"\nh2d_copies = "< 4"', 0),
        ('range = "f"\ncalls = 1', 0),
    ):
        assert run("check", path, "--budgets", budgets(body))[0] == code


def test_what_is_allowed_is_not_counted_and_said(run, budgets, tmp_path):
    path = varied(tmp_path)
    allow = 'allow = [{ op = "aten::cop*", metric = "h2d_copies", reason = "the ids, once" }]'
    code, out, _ = run("check", path, "--budgets", budgets(f'range = "f"\nh2d_copies = 0\n{allow}'), "--all")
    assert code == 0
    assert "allowed: 5 of aten::cop*, because the ids, once" in out
    allow = 'allow = [{ line = "gone.py:3", reason = "was there" }]'
    code, out, _ = run("check", path, "--budgets", budgets(f'range = "f"\nh2d_copies = 0\n{allow}'))
    assert code == 1
    assert "allowed: nothing of at gone.py:3, because was there" in out


def test_a_cpu_only_trace_is_not_checked_for_a_device(run, budgets, tmp_path):
    trace = Small(gpu=None)
    with trace.range("f"), trace.op("aten::add"):
        trace.now += 1
    path = trace.write(tmp_path / "cpu.json")
    file = budgets('range = "f"\nh2d_copies = 0\nops = 1\ncompiles = 0\nallocs = 0')
    code, out, _ = run("check", path, "--budgets", file)
    assert code == 0
    assert (
        "not checked range 'f': h2d_copies not checked: the trace has no device activity (calls of the CUDA, HIP or "
        "another runtime)\n"
    ) in out
    assert out.splitlines()[-1] == "1 of 4 bounds hold, 3 not checked"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ('range = "h2d_btch"\nops = 1', "has no such range: did you mean 'h2d_batch'?"),
        ('range = "nothing/**/x*"\nops = 1', "has no such range"),
        ('range = "h2d_batch"\nopps = 1', "b.toml: budget of range 'h2d_batch': 'opps' is no metric"),
        ('range = "h2d_batch"\nops = "lots"', "b.toml: budget of range 'h2d_batch': ops = 'lots' is no bound"),
        ('range = "h2d_batch"\nops = "<= baseline"', "there is no baseline: name one"),
        ("ops = 1\nops = 1", "b.toml is not TOML"),
    ],
)
def test_what_is_no_budget_of_this_trace(run, budgets, body, words):
    code, out, err = run("check", PAGEABLE, "--budgets", budgets(body))
    assert (code, out) == (2, "")
    assert words in err
    assert err.startswith("tracetool: ")
    assert err.count("\n") == 1


def test_files_that_are_not_there(run, tmp_path):
    (tmp_path / "empty.toml").write_text("")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    for arguments, words in (
        (("--budgets", "no.toml"), "no.toml cannot be read: No such file or directory"),
        (("--budgets", "empty.toml"), "empty.toml has no budgets"),
        (("--budgets", "bytes.toml"), "bytes.toml cannot be read: it is not UTF-8 text"),
        (("--baseline", "no.txt"), "no.txt cannot be read"),
        (("--baseline", "empty.toml"), "empty.toml is no snapshot: it begins with '# tracetool snapshot 1'"),
        ((), "there is nothing to check"),
        (("--update",), "--update accepts counts into a snapshot: name it with --baseline"),
    ):
        code, out, err = run("check", PAGEABLE, *arguments)
        assert (code, out) == (2, "")
        assert words in err


def test_per_step_without_steps(run, budgets, tmp_path):
    trace = Small()
    with trace.range("f"):
        trace.kernel()
    code, _, err = run("check", trace.write(tmp_path / "t.json"), "--budgets", budgets('per = "step"\nkernels = 1'))
    assert code == 2
    assert "has no profiler steps: say per = 'call' or 'trace'" in err


def test_an_ambiguous_range_is_an_error(run, budgets, tmp_path):
    trace = Small()
    with trace.range("f"):
        trace.kernel()
    trace.events.append(dict(trace.events[0], name="g", ts=trace.events[0]["ts"] + 1.5, dur=100))
    path = trace.write(tmp_path / "t.json")
    code, _, err = run("check", path, "--budgets", budgets('range = "f"\nkernels = 1'))
    assert code == 2
    assert "range 'f' of" in err
    assert "overlaps another range of its thread without nesting" in err


def test_bad_health_never_passes(run, budgets, tmp_path):
    trace = Small()
    with trace.range("f"):
        trace.lost_launch()
    path = trace.write(tmp_path / "t.json")
    file = budgets('range = "f"\nkernels = 0\nops = 0')
    code, out, err = run("check", path, "--budgets", file)
    assert code == 2
    assert "2 of 2 bounds hold" in out
    assert "is not healthy" in err
    code, out, _ = run("check", path, "--budgets", file, "--format", "github")
    assert code == 2
    assert out.startswith("::error title=tracetool::")
    code, _, err = run("snapshot", path, "-o", "s.txt")
    assert code == 2
    assert run("check", path, "--baseline", "s.txt", "--update")[0] == 2
    assert not (tmp_path / "s.txt").exists()


def test_unknown_kinds_of_memory_are_warned_of(run, budgets, tmp_path):
    trace = Small()
    with trace.range("f"):
        trace.copy()
    for event in trace.events:
        if event["cat"] == "gpu_memcpy":
            event["name"] = "Memcpy HtoD (Unknown -> Device)"
    path = trace.write(tmp_path / "t.json")
    code, out, _ = run("check", path, "--budgets", budgets('range = "f"\nh2d_pageable_copies = 0'))
    assert code == 0
    assert "warning 1 h2d_copies do not say whether their host memory is pageable or pinned" in out
    _, out, _ = run("check", path, "--budgets", budgets('range = "f"\nh2d_copies = 1'))
    assert "do not say" not in out


def test_budgets_of_the_nearest_pyproject(run, tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").write_text('[[tool.tracetool.budgets]]\nrange = "h2d_batch"\nh2d_copies = 1\n')
    (tmp_path / "inner").mkdir()
    monkeypatch.chdir(tmp_path / "inner")
    code, out, _ = run("check", PAGEABLE)
    assert code == 1
    assert "17 h2d_copies a call, budget 1" in out


# Snapshots ----------------------------------------------------------------------------------------------------------


def test_a_snapshot_holds_for_its_own_trace(run, tmp_path):
    assert run("snapshot", PAGEABLE, "-o", "s.txt") == (0, "", "")
    text = (tmp_path / "s.txt").read_text()
    assert "\nrange train_step/h2d_batch\n  calls 1 a step\n" in text
    assert "\n  gpu NVIDIA H200\n  cuda 13.0\n  records device\n" in text
    assert run("snapshot", PAGEABLE)[1] == text
    code, out, _ = run("check", PAGEABLE, "--baseline", "s.txt")
    assert code == 0
    assert re.search(r"(\d+) of \1 bounds hold", out)
    assert run("snapshot", PAGEABLE, "-o", "s.txt") == (0, "", "")


def test_what_differs_is_said_where_it_is_made_and_can_be_accepted(run, tmp_path):
    run("snapshot", PAGEABLE, "-o", "s.txt")
    code, out, _ = run("check", PINNED, "--baseline", "s.txt")
    assert code == 1
    assert "broken range 'train_step/h2d_batch': 2 h2d_copies a call, snapshot 17 (-15)\n" in out
    assert "'ProfilerStep': 2 h2d_copies" not in out
    assert "more counts that follow from these; --all shows them" in out
    assert out.splitlines()[-1] == f"accept: tracetool check {PINNED} --baseline s.txt --update"
    code, err = run("snapshot", PINNED, "-o", "s.txt")[::2]
    assert code == 2
    assert "s.txt has other counts for NVIDIA H200, cuda 13.0 already; --force replaces them" in err
    before = (tmp_path / "s.txt").read_text()
    code, out, _ = run("check", PINNED, "--baseline", "s.txt", "--update")
    assert code == 0
    assert "accepted range 'train_step/h2d_batch': 2 h2d_copies a call, was 17\n" in out
    assert (tmp_path / "s.txt").read_text() != before
    assert run("check", PINNED, "--baseline", "s.txt")[0] == 0
    code, out, _ = run("check", PINNED, "--baseline", "s.txt", "--update")
    assert (code, out.splitlines()[-1]) == (0, "accepted no change into s.txt")
    assert run("check", PAGEABLE, "--baseline", "s.txt", "--update")[0] == 0
    assert (tmp_path / "s.txt").read_text() == before


def test_an_update_makes_the_file(run, tmp_path):
    assert run("check", PAGEABLE, "--baseline", "new.txt", "--update")[0] == 0
    assert (tmp_path / "new.txt").read_text() == run("snapshot", PAGEABLE)[1]


def test_ranges_that_come_and_go(run, tmp_path):
    one, other = Small(), Small()
    for trace, name in ((one, "old"), (other, "new")):
        with trace.range("f"), trace.range(name):
            trace.kernel()
    run("snapshot", one.write(tmp_path / "one.json"), "-o", "s.txt")
    code, out, _ = run("check", other.write(tmp_path / "other.json"), "--baseline", "s.txt")
    assert code == 1
    assert "range 'f/new': 1 calls a call of its parent, snapshot 0 (+1)" in out
    assert "range 'f/old': 0 calls a call of its parent, snapshot 1 (-1)" in out


def elsewhere(tmp_path):
    trace = healthy()
    trace.metadata["deviceProperties"] = [{"id": 0, "name": "Another GPU"}]
    return trace.write(tmp_path / "elsewhere.json")


def test_another_environment_is_not_comparable(run, tmp_path):
    here, there = healthy().write(tmp_path / "here.json"), elsewhere(tmp_path)
    run("snapshot", here, "-o", "s.txt")
    code, out, err = run("check", there, "--baseline", "s.txt")
    assert code == 2
    assert "not comparable: s.txt holds for Toy GPU, and this trace is of Another GPU" in out
    assert "--any-env compares all the same" in err
    assert run("check", there, "--baseline", "s.txt", "--any-env")[0] == 0
    code, out, _ = run("check", there, "--baseline", "s.txt", "--update")
    assert code == 0
    text = (tmp_path / "s.txt").read_text()
    assert text.count("\nenvironment\n") == 2
    assert text.index("Another GPU") < text.index("Toy GPU")
    assert run("check", there, "--baseline", "s.txt")[0] == run("check", here, "--baseline", "s.txt")[0] == 0


def test_relative_bounds(run, budgets):
    run("snapshot", PINNED, "-o", "s.txt")
    for bound, expected in (
        ("<= baseline", 1),
        ("<= baseline * 8", 1),
        ("<= baseline * 8.5", 0),
        (">= baseline", 0),
        ("baseline", 1),
    ):
        file = budgets(f'range = "h2d_batch"\nh2d_copies = "{bound}"')
        assert run("check", PAGEABLE, "--budgets", file, "--baseline", "s.txt")[0] == expected
        assert run("check", PAGEABLE, "--budgets", file, "--baseline", PINNED)[0] == expected
    _, out, _ = run(
        "check",
        PAGEABLE,
        "--budgets",
        budgets('range = "h2d_batch"\nh2d_copies = "<= baseline * 1.5"'),
        "--baseline",
        "s.txt",
    )
    assert "17 h2d_copies a call, budget <= baseline * 1.5 = 3 (+14: aten::copy_)" in out


def test_what_a_baseline_does_not_have(run, budgets):
    run("snapshot", GRAPH, "-o", "s.txt")
    code, _, err = run(
        "check",
        PAGEABLE,
        "--baseline",
        "s.txt",
        "--budgets",
        budgets('range = "h2d_batch"\nh2d_copies = "<= baseline"'),
    )
    assert code == 2
    assert "the baseline s.txt has no range 'train_step/h2d_batch'" in err
    run("snapshot", PAGEABLE, "-o", "t.txt")
    file = budgets('range = "h2d_batch"\n"self.syncs" = "<= baseline"\ncpu_ns = "<= baseline"\nop_calls.x = "baseline"')
    code, out, _ = run("check", PAGEABLE, "--baseline", "t.txt", "--budgets", file)
    assert code == 0
    assert "the snapshot t.txt does not tell what ranges do themselves" in out
    assert "the snapshot t.txt holds no times" in out
    assert "the snapshot t.txt has no ops by name on record" in out


def timed(path, us):
    trace = Small()
    for number in range(8):
        with trace.step(number), trace.range("f", idle=us + number % 3):
            trace.kernel()
    return trace.write(path)


def test_a_time_breaks_a_bound_only_with_its_whole_interval(run, budgets, tmp_path):
    slow, fast = timed(tmp_path / "slow.json", 1000), timed(tmp_path / "fast.json", 500)
    for bound, trace, expected in (
        ("<= baseline * 1.05", slow, "broken"),
        ("<= baseline * 1.05", fast, "held"),
        ("<= baseline", fast, "not_checked"),
        ("<= 600 us", slow, "broken"),
        ("<= 600 us", fast, "held"),
    ):
        file = budgets(f'range = "f"\ncpu_ns = "{bound}"')
        code, found = checked(run, trace, "--budgets", file, "--baseline", fast)
        assert found["f", "cpu_ns"]["result"] == expected
        assert code == (1 if expected == "broken" else 0)
    _, out, _ = run("check", slow, "--budgets", budgets('range = "f"\ncpu_ns = "<= 600 us"'))
    assert re.search(
        r"1\.0\d ms cpu_ns, profiled, a call, budget <= 600 us \(\+\d+ us; 95 % interval of the median", out
    )
    code, found = checked(run, PAGEABLE, "--budgets", budgets('range = "h2d_batch"\ncpu_ns = "<= 1 us"'))
    assert (code, found["train_step/h2d_batch", "cpu_ns"]["result"]) == (0, "not_checked")
    assert "2 samples are too few" in found["train_step/h2d_batch", "cpu_ns"]["reason"]


def test_annotations_are_escaped(run, budgets, tmp_path):
    trace = Small()
    with trace.range("50%:a,b\r\n"):
        trace.kernel("k", op="op%\n")
    path = trace.write(tmp_path / "t.json")
    code, out, _ = run("check", path, "--budgets", budgets('range = "50%*"\nkernels = 0'), "--format", "github")
    assert code == 1
    assert len(out.splitlines()) == 2
    assert out.startswith("::error title=tracetool::range '50%25:a,b'")
    assert "aten" not in out
    from tracetool.render import github  # noqa: PLC0415 - its escaping alone

    assert github._data("a%\r\nb") == "a%25%0D%0Ab"
    assert github._property("a:b,c%") == "a%3Ab%2Cc%25"


def test_formats_and_files(run, budgets, tmp_path):
    file = budgets('range = "h2d_batch"\nh2d_copies = 1')
    for form in ("terminal", "markdown", "json", "github"):
        assert run("check", PAGEABLE, "--budgets", file, "--format", form, "-o", f"{form}.txt") == (1, "", "")
        assert "17 h2d" in (tmp_path / f"{form}.txt").read_text()
    assert run("check", PAGEABLE, "--budgets", file, "-o", "json.txt")[0] == 2
