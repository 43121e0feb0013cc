"""`with tracetool.capture(...)`, and `tracetool.step()` where nothing is captured."""

import subprocess
import sys

import pytest
import torch
from torch.profiler import ProfilerActivity, profile, record_function

import tracetool
from tests.tracetool.capturing.captured import count, environment, summary_of
from tracetool import stepping
from tracetool.errors import CaptureError, OutputError, SettingError


def work():
    with record_function("work"):
        torch.ones(3).add(1)


def test_a_block(tmp_path):
    with tracetool.capture("x.json.gz") as one:
        work()
    assert one.result.path.name == "x.json.gz"
    assert one.result.warning is None
    assert (one.result.events, one.result.steps) == (len(tracetool.read("x.json.gz").events), 0)
    assert count(summary_of(tmp_path / "x.json.gz"), "ops", "work") == 2


def test_steps_of_a_block():
    with tracetool.capture("x.json.gz") as one:
        for _ in range(4):
            work()
            tracetool.step()
    assert one.result.steps == 3
    assert [number for number, _ in summary_of("x.json.gz").steps] == [1, 2, 3]


@pytest.mark.parametrize("step", [tracetool.step, None])
def test_a_window_of_a_block(step, tmp_path):
    with tracetool.capture("x.json.gz", wait=1, warmup=1, active=2) as one:
        for number in range(6):
            assert (tmp_path / "x.json.gz").exists() is (number >= 4)
            work()
            (step or one.step)()
    assert one.result.steps == 2
    summary = summary_of("x.json.gz")
    assert [number for number, _ in summary.steps] == [2, 3]
    assert count(summary, "calls", "ProfilerStep", "work") == 2


def test_options_of_a_block():
    with tracetool.capture("x.json.gz", stacks=True, shapes=True, memory=True, cpu=True, cold=True):
        work()
    summary = summary_of("x.json.gz")
    assert all(summary.metadata["tracetool"]["options"][name] for name in ("stacks", "shapes", "memory", "cpu", "cold"))
    assert count(summary, "allocs", "work") >= 2


def test_an_exception_goes_on_and_what_was_recorded_stays():
    one = tracetool.capture("x.json.gz")

    def failing():
        with one:
            work()
            _ = 1 / 0

    with pytest.raises(ZeroDivisionError):
        failing()
    assert one.result is not None
    summary = summary_of("x.json.gz")
    assert count(summary, "ops", "work") == 2
    assert summary.metadata["tracetool"]["interrupted_by"] == "ZeroDivisionError: division by zero"


def test_an_exception_at_once_is_the_one_that_is_seen(tmp_path):
    with pytest.raises(ZeroDivisionError), tracetool.capture("x.json.gz", active=2) as one:
        _ = 1 / 0
    assert one.result is None
    assert list(tmp_path.iterdir()) == []


def test_nothing_recorded(tmp_path):
    with pytest.raises(CaptureError, match="the program ran no op"), tracetool.capture("x.json.gz"):
        pass
    with pytest.raises(CaptureError, match="0 of 5 steps ended"), tracetool.capture("x.json.gz", active=3):
        work()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("path", "settings", "error", "words"),
    [
        ("x.json", {}, CaptureError, "must be named"),
        ("no/x.json.gz", {}, OutputError, "there is no folder no"),
        ("x.json.gz", {"active": 0}, SettingError, "--active must be at least 1"),
        ("x.json.gz", {"wait": -1}, SettingError, "must be 0 or more"),
    ],
)
def test_what_cannot_be_captured(path, settings, error, words):
    with pytest.raises(error, match=words):
        tracetool.capture(path, **settings)


def test_a_file_that_exists(tmp_path):
    (tmp_path / "x.json.gz").write_bytes(b"mine")
    with pytest.raises(OutputError, match="exists already"):
        tracetool.capture("x.json.gz")
    with tracetool.capture("x.json.gz", force=True):
        work()
    assert count(summary_of("x.json.gz"), "ops", "work") == 2


def test_one_after_another():
    for name in ("a.json.gz", "b.json.gz"):
        with tracetool.capture(name):
            work()
        assert count(summary_of(name), "ops", "work") == 2


def test_while_another_profiler_runs(tmp_path):
    with profile(activities=[ProfilerActivity.CPU]) as other:
        with pytest.raises(CaptureError, match="only one profiler can run"), tracetool.capture("x.json.gz"):
            pass
        work()
    assert "work" in {event.name for event in other.events()}
    assert list(tmp_path.iterdir()) == []


def test_other_profilers_run_again_afterwards():
    with tracetool.capture("x.json.gz"):
        work()
    with profile(activities=[ProfilerActivity.CPU]) as other:
        work()
    assert "work" in {event.name for event in other.events()}


def test_a_step_outside_any_capture_does_nothing():
    assert tracetool.step() is None
    assert stepping._listeners == []


def test_a_step_outside_any_capture_loads_nothing():
    program = "import sys, tracetool\ntracetool.step()\nassert not {'torch', 'numpy', 'click'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60, env=environment())
