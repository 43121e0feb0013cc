"""The pytest plugin, in pytest runs of its own: what each feature does, and the words of each failure."""

import importlib
import os
import subprocess
import sys

import pytest
import torch

import tracetool
from tests.tracetool.capturing.captured import count, summary_of

pytest_plugins = ["pytester"]

WORK = """
import pytest
import torch
from torch.profiler import record_function

def work(times=1):
    with record_function("work"):
        for _ in range(times):
            torch.ones(3).add(1)
"""


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """What captures and checks import is there: a pytest run in this process forgets what it is first to import."""
    for name in ("tracetool.baselines", "tracetool.render.sentences"):
        importlib.import_module(name)
    with tracetool.capture(tmp_path_factory.mktemp("first") / "t.json.gz", active=1, warmup=0, lines=True, cpu=True):
        for _ in range(2):
            torch.ones(3)
            tracetool.step()


@pytest.fixture
def project(imported, pytester, monkeypatch):  # noqa: ARG001 - is done once
    """A project with a test file that begins with `WORK`; runs pytest on it, in this process or apart."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)

    def run(body, *arguments, ini="", apart=False):
        pytester.makeini(f"[pytest]\naddopts = --strict-markers --strict-config\n{ini}\n")
        pytester.makepyfile(test_it=WORK + body)
        runpytest = pytester.runpytest_subprocess if apart or "-n" in arguments else pytester.runpytest_inprocess
        # hypothesis is imported anew by each run, for seconds.
        return runpytest("-rA", "-p", "no:cacheprovider", "-p", "no:hypothesispytest", *arguments)

    return run


MIXED = """
@pytest.mark.trace_budget("work", ops=2, op_calls={"aten::add": "<= 1"})
def test_good():
    work()

@pytest.mark.trace_budget("work", ops=2)
@pytest.mark.trace_budget(ops="<= 4", op_calls={"aten::ones": 2})
@pytest.mark.parametrize("times", [1, 2])
def test_params(times):
    work(times)

class TestClass:
    @pytest.mark.trace_budget("work", ops=3)
    def test_method(self):
        work()
"""


@pytest.mark.parametrize("workers", [(), ("-n", "2")])
def test_budgets_of_markers(project, workers):
    # Paths are told from where the process began.
    done = project(MIXED, *workers, apart=True)
    done.assert_outcomes(passed=1, failed=3)
    done.stdout.fnmatch_lines(
        [
            (
                "range 'work': 4 ops a call, budget 2 (+2: aten::add at test_it.py:5 in work x 2, aten::ones at "
                "test_it.py:5 in work x 2)"
            )
        ]
    )
    done.stdout.fnmatch_lines_random(
        [
            "PASSED test_it.py::test_good",
            "FAILED test_it.py::test_params[[]1] - the whole trace: 1 op_calls*",
            "FAILED test_it.py::test_params[[]2] - range 'work': 4 ops a call, budget 2*",
            "FAILED test_it.py::TestClass::test_method - range 'work': 2 ops a call, *",
        ]
    )
    done.stdout.no_fnmatch_line("*BudgetBrokenError*")
    done.stdout.no_fnmatch_line("*pytest_plugin*")


def test_a_test_that_fails_by_itself_keeps_its_own_words(project):
    done = project("""
@pytest.mark.trace_budget("work", ops=99)
def test_own():
    work()
    assert 1 == 2

@pytest.mark.trace_budget("work", ops=99)
def test_skip():
    pytest.skip("not today")

@pytest.mark.xfail(strict=True)
@pytest.mark.trace_budget("work", ops=99)
def test_xfail():
    work()
""")
    done.assert_outcomes(failed=1, skipped=1, xfailed=1)
    done.stdout.fnmatch_lines(["FAILED test_it.py::test_own - assert 1 == 2"])
    done.stdout.no_fnmatch_line("*budget 99*")


def test_async_and_unittest(project):
    done = project("""
import unittest

@pytest.fixture
def anyio_backend():
    return "asyncio"

@pytest.mark.anyio
@pytest.mark.trace_budget("work", ops=3)
async def test_async():
    work()

class TestAsync(unittest.IsolatedAsyncioTestCase):
    @pytest.mark.trace_budget("work", ops=2)
    async def test_good(self):
        work()

    @pytest.mark.trace_budget("work", ops=3)
    async def test_bad(self):
        work()

class TestPlain(unittest.TestCase):
    @pytest.mark.trace_budget("work", ops=3)
    def test_own(self):
        work()
        self.fail("mine")
""")
    done.assert_outcomes(passed=1, failed=3)
    done.stdout.fnmatch_lines_random(
        [
            "FAILED test_it.py::test_async - range 'work': 2 ops a call, budget 3 (-1)",
            "FAILED test_it.py::TestAsync::test_bad - range 'work': 2 ops a call, budget 3 (-1)",
            "FAILED test_it.py::TestPlain::test_own - AssertionError: mine",
        ]
    )


@pytest.mark.parametrize(
    ("marker", "words"),
    [
        ('"wrk", ops=1', "trace_budget: budget of range 'wrk': ops: the trace has no such range: did you mean 'work'?"),
        ('"work", opps=1', "trace_budget: budget of range 'work': 'opps' is no metric: did you mean 'ops'?"),
        ('"work", ops="few"', "trace_budget: budget of range 'work': ops = 'few' is no bound: write a number*"),
        ('"work"', "trace_budget: budget of range 'work': it bounds nothing*"),
        ("", "trace_budget: budget of the whole trace: it bounds nothing*"),
        ('"work", "more", ops=1', "trace_budget takes one range, in quotes, and then metrics by name*"),
        ('range="work", ops=1', "trace_budget takes one range, in quotes, and then metrics by name*"),
        ("3, ops=1", "trace_budget: a budget's range is a pattern in quotes, but is 3"),
        ('"work", per="step", ops=1', "*the trace has no profiler steps: say per = 'call' or 'trace'"),
        ('"work", ops="<= baseline"', "*there is no baseline: name one*"),
    ],
)
def test_markers_that_are_wrong(project, marker, words):
    done = project(f"""
@pytest.mark.trace_budget({marker})
def test_one():
    work()
""")
    assert done.ret == 1
    done.stdout.fnmatch_lines([words])
    done.stdout.no_fnmatch_line("*Traceback*")


def test_a_body_that_does_nothing(project):
    done = project("""
@pytest.mark.trace_budget("work", ops=0)
def test_one():
    pass
""")
    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines(["*the trace has no such range*"])


def test_a_body_with_a_profiler_of_its_own(project):
    done = project("""
@pytest.mark.trace_budget("work", ops=2)
def test_one():
    with torch.profiler.profile():
        work()
""")
    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines(["*only one profiler can run in a process*"])


DEVICE = """
@pytest.mark.trace_budget("work", h2d_copies=1, h2d_pageable_copies=0)
def test_marker():
    work()

def test_fixture(trace_capture):
    with trace_capture() as trace:
        work()
    assert trace.range("work").ops == 2
    assert trace.range("work").kernel_launches == 36

def test_check(trace_capture):
    with trace_capture() as trace:
        work()
    trace.check("work", syncs=0)
"""


def test_without_a_device_what_needs_one_is_skipped(project):
    done = project(DEVICE)
    done.assert_outcomes(skipped=3)
    done.stdout.fnmatch_lines_random(
        [
            "SKIPPED [[]1] test_it.py:*: h2d_copies, h2d_pageable_copies cannot be counted: there is no GPU",
            "SKIPPED [[]1] test_it.py:*: kernel_launches: the trace has no device activity *",
            "SKIPPED [[]1] test_it.py:*: range 'work': syncs not checked: the trace has no device activity *",
        ]
    )


FIXTURES = """
def test_steps(trace_capture):
    seen = []
    with trace_capture(warmup=1, steps=2) as trace:
        for number in trace:
            seen.append(number)
            work(2)
    assert seen == [0, 1, 2, 3]
    found = trace.range("work")
    assert (found.ops, found.calls, found.op_calls["aten::add"], found.own.ops) == (4, 1, 2, 4)
    assert found.samples("ops") == [4, 4]
    assert trace.whole.ops == 8
    trace.check("work", ops=4)
    trace.check(per="step", ops="<= 4")

def test_violation(trace_capture):
    with trace_capture(steps=2) as trace:
        for _ in trace:
            work()
    trace.check("work", ops=1)

def test_varied(trace_capture):
    with trace_capture() as trace:
        work(1)
        work(2)
    assert trace.range("work").samples("ops") == [2, 4]
    trace.range("work").ops

def test_unknown_range(trace_capture):
    with trace_capture() as trace:
        work()
    trace.range("wrk")

def test_unknown_metric(trace_capture):
    with trace_capture() as trace:
        work()
    trace.range("work").opps

@pytest.mark.trace_budget("work", ops=3)
def test_with_a_marker(trace_capture):
    with trace_capture(steps=1) as trace:
        for _ in trace:
            work()

@pytest.mark.trace_budget("work", ops=3)
def test_captures_nothing(trace_capture):
    work()

def test_too_early(trace_capture):
    with trace_capture() as trace:
        work()
        trace.range("work")

def test_no_steps(trace_capture):
    with trace_capture() as trace:
        for _ in trace:
            work()

def test_lines_without_steps(trace_capture):
    trace_capture(lines=True)
"""


def test_traces_that_are_asked(project):
    done = project(FIXTURES, apart=True)
    done.assert_outcomes(passed=1, failed=9)
    done.stdout.fnmatch_lines_random(
        [
            (
                "E       AssertionError: range 'work': 2 ops a call, budget 1 (+1: aten::add at test_it.py:8 x 1, "
                "aten::ones at test_it.py:8 x 1)"
            ),
            "E   *BudgetError: ops of 'work' is 2 to 4: ask for samples('ops'), which gives every call's",
            "E   *SettingError: the trace has no range 'wrk': did you mean 'work'?",
            "E   *AttributeError: 'opps' is no metric: did you mean 'ops'?",
            "FAILED test_it.py::test_with_a_marker - range 'work': 2 ops a call, budget 3 *",
            "FAILED test_it.py::test_captures_nothing - the test has a trace_budget and *",
            "E   *ValueError: the trace can be asked after the with block has ended",
            "E   *ValueError: iterate inside the with block, and say how many are recorded: trace_capture(steps=3)",
            "E   *ValueError: trace_capture: warmup and lines are for a capture by steps: say how many, steps=3",
        ]
    )


SNAPSHOT = """
@pytest.mark.parametrize("times", [1, 2])
def test_one(trace_capture, trace_snapshot, times):
    with trace_capture(warmup=0, steps=2) as trace:
        for _ in trace:
            work(times + MORE)
    trace_snapshot(trace)
"""


@pytest.mark.parametrize("workers", [(), pytest.param(("-n", "2"), marks=pytest.mark.slow)])
def test_snapshots(project, pytester, monkeypatch, workers):
    # The file of tests changes within a second, and would be taken for what was compiled before.
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    done = project("MORE = 0" + SNAPSHOT)
    done.assert_outcomes(failed=2)
    done.stdout.fnmatch_lines(
        ["E * there is no snapshot __trace_snapshots__/test_it/test_one_1*.txt: run pytest --trace-update, *"]
    )
    assert not (pytester.path / "__trace_snapshots__").exists()
    done = project("MORE = 0" + SNAPSHOT, "--trace-update", *workers)
    done.assert_outcomes(passed=2)
    done.stdout.fnmatch_lines(
        ["*= trace snapshots =*", "test_it.py::test_one[[]*[]]: range 'work': 1 calls a step, was 0"]
    )
    files = sorted((pytester.path / "__trace_snapshots__" / "test_it").iterdir())
    assert len(files) == 2
    before = [file.read_text() for file in files]
    done = project("MORE = 0" + SNAPSHOT, *workers)
    done.assert_outcomes(passed=2)
    done.stdout.no_fnmatch_line("*trace snapshots*")
    done = project("MORE = 1" + SNAPSHOT)
    done.assert_outcomes(failed=2)
    done.stdout.fnmatch_lines(
        [
            "E * range 'work': 4 ops a call, snapshot 2 (+2: aten::add at test_it.py:8 x 2, *",
            "E * pytest --trace-update accepts this into __trace_snapshots__/test_it/test_one_1*.txt",
        ]
    )
    assert [file.read_text() for file in files] == before
    project("MORE = 1" + SNAPSHOT, ini="trace_update = true").assert_outcomes(passed=2)
    assert [file.read_text() for file in files] != before
    for file in files:
        file.write_text(file.read_text().replace("  torch ", "  torch 0."))
    done = project("MORE = 1" + SNAPSHOT)
    done.assert_outcomes(skipped=2)
    done.stdout.fnmatch_lines(["SKIPPED * not comparable: *holds for torch 0.*"])


@pytest.mark.parametrize(("arguments", "ini"), [(("--trace-off",), ""), ((), "trace_off = true")])
def test_off(project, arguments, ini):
    done = project(MIXED + SNAPSHOT.replace("MORE", "0"), *arguments, ini=ini)
    done.assert_outcomes(passed=4, skipped=2)
    done.stdout.fnmatch_lines(["SKIPPED * --trace-off: nothing is captured"])


@pytest.mark.parametrize(("arguments", "ini"), [(("--trace-dir", "kept"), ""), ((), "trace_dir = kept")])
def test_traces_of_failed_tests_are_kept(project, pytester, arguments, ini):
    done = project(MIXED, *arguments, ini=ini)
    done.assert_outcomes(passed=1, failed=3)
    done.stdout.fnmatch_lines(["the trace is kept, to look at it:", "tracetool open kept/test_it*.json.gz"])
    kept = sorted(path.name for path in (pytester.path / "kept").iterdir())
    assert len(kept) == 3
    assert not any("good" in name for name in kept)
    command = next(line for line in done.stdout.lines if line.startswith("tracetool open kept/"))
    assert count(summary_of(pytester.path / command.split()[-1]), "calls", "work") == 1


def test_a_folder_that_cannot_be_written(project, pytester):
    (pytester.path / "kept").write_text("a file")
    done = project(MIXED, "--trace-dir", "kept")
    done.assert_outcomes(passed=1, failed=3)
    done.stdout.fnmatch_lines(["the trace cannot be kept in *kept: File exists"])


def test_the_marker_and_the_options_are_explained(pytester):
    done = pytester.runpytest_subprocess("--markers", "-p", "no:cacheprovider")
    done.stdout.fnmatch_lines(["@pytest.mark.trace_budget(range, [*], per='call', allow=[[]...], [*][*]metrics): *"])
    done = pytester.runpytest_subprocess("--help", "-p", "no:cacheprovider")
    done.stdout.fnmatch_lines(["*--trace-update*", "*--trace-dir=DIR*", "*--trace-off*", "*trace_update (bool):*"])


def test_unused_it_is_silent_and_imports_nothing(pytester):
    pytester.makepyfile(
        """
        import sys

        def test_one():
            heavy = {"torch", "numpy", "click", "rich", "msgspec", "isal", "triton"}
            assert not heavy & set(sys.modules)
            ours = {name for name in sys.modules if name.partition(".")[0] == "tracetool"}
            assert ours <= {"tracetool", "tracetool.stepping", "tracetool.pytest_plugin"}
        """
    )
    with_it = pytester.runpytest_subprocess("-p", "no:anyio", "-p", "no:hypothesispytest")
    with_it.assert_outcomes(passed=1)
    without = pytester.runpytest_subprocess("-p", "no:tracetool", "-p", "no:anyio", "-p", "no:hypothesispytest")
    without.assert_outcomes(passed=1)
    told = [line for line in with_it.stdout.lines if "tracetool" in line and not line.startswith("plugins:")]
    assert told == []


def test_without_torch(pytester):
    pytester.makeconftest(
        """
        import importlib.util, sys

        class NoTorch:
            def find_spec(self, name, path=None, target=None):
                if name == "torch":
                    raise ModuleNotFoundError("No module named 'torch'", name="torch")

        sys.meta_path.insert(0, NoTorch())
        found = importlib.util.find_spec
        importlib.util.find_spec = lambda name, *rest: None if name == "torch" else found(name, *rest)
        """
    )
    pytester.makepyfile(
        """
        import pytest

        def test_unused():
            pass

        @pytest.mark.trace_budget("work", ops=1)
        def test_marker():
            pass

        def test_fixture(trace_capture):
            pass
        """
    )
    done = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    done.assert_outcomes(passed=1, errors=2)
    done.stdout.fnmatch_lines_random(
        [
            "trace_budget captures with torch, which is not installed: pip install 'tracetool[[]capture]'",
            "trace_capture captures with torch, which is not installed: pip install 'tracetool[[]capture]'",
        ]
    )


GPU = """
@pytest.mark.trace_budget("work", ops=2)
def test_cpu_first():
    work()

@pytest.mark.trace_budget("work", kernel_launches=1, h2d_copies=1, h2d_pinned_copies=0, syncs=1)
def test_then_the_gpu():
    with record_function("work"):
        torch.ones(1000).to("cuda").add(1)

@pytest.mark.trace_budget("work", ops=2)
def test_and_the_cpu_again():
    work()

def test_and_a_snapshot(trace_capture, trace_snapshot):
    x = torch.ones(1000, device="cuda")
    with trace_capture(steps=2) as trace:
        for _ in trace:
            with record_function("work"):
                x.add(1)
    assert trace.range("work").kernel_launches == 1
    trace_snapshot(trace)
"""


@pytest.mark.gpu
def test_a_capture_of_the_cpu_leaves_the_gpu_visible(project):
    project(GPU, "--trace-update").assert_outcomes(passed=4)
    project(GPU).assert_outcomes(passed=4)
    done = project(GPU.replace("kernel_launches=1", "kernel_launches=0"))
    done.assert_outcomes(passed=3, failed=1)
    done.stdout.fnmatch_lines(
        ["FAILED *::test_then_the_gpu - range 'work': 1 kernel_launches a call, budget 0 (+1: aten::add*"]
    )


def test_the_plugin_is_an_entry_point():
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--co", "-q", "-p", "no:cacheprovider", os.devnull],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "tracetool" not in done.stderr
