"""Variants captured and timed in processes of their own, and laid side by side."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib import resources
from itertools import pairwise
from pathlib import Path

import jsonschema
import pytest
import torch

import tracetool
from tests.tracetool.capturing.captured import ROOT, environment, one_sentence
from tests.tracetool.capturing.test_targets import PYPROJECT, WORKLOADS
from tracetool import comparing, stepping
from tracetool.capturing import child
from tracetool.capturing.jobs import Answer
from tracetool.comparing import combinations, variation
from tracetool.errors import CaptureError, SettingError
from tracetool.processes import Processes

TRACES = ROOT / "traces"


def schema(kind):
    return json.loads(resources.files(tracetool).joinpath(f"schemas/{kind}-1.json").read_text())


def validate(found):
    jsonschema.Draft202012Validator(schema("compare")).validate(found)
    if found["diff"] is not None:
        jsonschema.Draft202012Validator(schema("diff")).validate(found["diff"])


@pytest.fixture
def compare(run):
    """Compares, and gives exit code, the JSON and standard error."""

    def call(*arguments):
        code, out, err = run("compare", "--format", "json", *arguments)
        found = json.loads(out) if out else None
        if found is not None:
            validate(found)
        return code, found, err

    return call


@pytest.fixture
def toy(write):
    write("pyproject.toml", PYPROJECT)
    write("mine.py", WORKLOADS + "    Toy.preload = ['json']\n")


@pytest.fixture
def jobs(monkeypatch, toy):  # noqa: ARG001 - it has the workload
    """Answers jobs in this process: with traces of this repository and times that are made up."""
    seen = []
    answers = {}

    def answer(_, job, variables):
        seen.append((job, dict(variables)))
        key = next((key for key in answers if key in job.settings.values()), None)
        trace, samples, more = answers.get(key, ("train_pinned", [100] * 10, {}))
        if isinstance(trace, Exception):
            raise trace
        if job.trace is not None:
            shutil.copyfile(trace if isinstance(trace, Path) else TRACES / f"{trace}.json.gz", job.trace)
        return Answer([] if job.trace else samples, **more)

    monkeypatch.setattr(Processes, "do", answer)
    return seen, answers


# What is varied ------------------------------------------------------------------------------------------------


def test_what_can_be_varied():
    assert variation("tables=a, b,a") == comparing.Variation("axis", "tables", ("a", "b"))
    assert variation("env:NAME=1,2") == comparing.Variation("env", "NAME", ("1", "2"))
    assert variation("arg:--lr=0.1,0.2") == comparing.Variation("arg", "--lr", ("0.1", "0.2"))


@pytest.mark.parametrize("text", ["tables", "=a,b", "env:=a,b", "what:ever=a,b", "env:NAME"])
def test_what_cannot(text):
    with pytest.raises(SettingError, match="is not AXIS=A,B, env:NAME=A,B or arg:--FLAG=A,B"):
        variation(text)


def test_combinations_have_the_first_of_each_first():
    found = combinations([variation("kind=a,b"), variation("env:N=1,2"), variation("arg:--x=3")], {"size": "4"}, ["in"])
    assert [one.label for one in found] == [
        f"kind={kind} N={number} --x=3" for kind in ("a", "b") for number in ("1", "2")
    ]
    assert found[3].settings == {"size": "4", "kind": "b"}
    assert found[3].environment == {"N": "2"}
    assert found[3].arguments == ("in", "--x", "3")


@pytest.mark.parametrize(
    ("variations", "settings", "message"),
    [
        (["kind=a"], {}, "needs two variants at least"),
        (["kind=a,b", "kind=c,d"], {}, "kind is given twice"),
        (["kind=a,b"], {"kind": "a"}, "so --set kind=a cannot hold"),
    ],
)
def test_combinations_that_cannot_be(variations, settings, message):
    with pytest.raises(SettingError, match=message):
        combinations([variation(text) for text in variations], settings, [])


# In processes --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("toy")
def test_a_variant_that_fails_leaves_the_others(compare, workplace):
    code, found, err = compare("toy", "--vary", "size=2,1,3", "--rounds", "0", "--active", "1", "--warmup", "0")
    assert (code, err) == (2, "")
    assert found["failures"] == {"1": "ValueError: nothing fits in"}
    assert [side["label"] for side in (found["diff"]["baseline"], *found["diff"]["variants"])] == ["2", "3"]
    assert sorted(found["traces"]) == ["2", "3"]
    for path in found["traces"].values():
        about = tracetool.read(str(workplace / path)).metadata["tracetool"]
        assert about["workload"] == "toy"
        assert about["window"] == {"wait": 0, "warmup": 0, "active": 1}


def test_a_script_by_a_variable(compare, write):
    script = write("work.py", "import os, torch\nfor _ in range(int(os.environ['N'])): torch.ones(3)\n")
    code, found, err = compare(script, "--vary", "env:N=1,3", "--rounds", "0")
    assert (code, err) == (0, "")
    rows = {tuple(row["path"]): row["metrics"] for row in found["diff"]["ranges"]}
    ones = rows["(no range)",]['op_calls["aten::ones"]']
    assert (ones["baseline"]["sum"], ones["variants"][0]["sum"]) == (1, 3)
    assert "kernels" not in rows["(no range)",]


def test_without_a_gpu_it_says_so(run, jobs):
    _, answers = jobs
    said = "no GPU was at work: ops and times are compared; launches, copies and syncs are not in these traces"
    assert said not in run("compare", "toy", "--vary", "kind=a,b", "--rounds", "0")[1]
    with tracetool.capture("cpu.json.gz", cpu=True):
        torch.ones(3)
    answers.update({kind: (Path("cpu.json.gz").absolute(), [1], {}) for kind in "ab"})
    assert said in run("compare", "toy", "--vary", "kind=a,b", "--rounds", "0", "--force")[1]


def test_ctrl_c_ends_the_child_too(write, workplace):
    write("slow.py", "import os, time, pathlib\npathlib.Path('pid').write_text(str(os.getpid()))\ntime.sleep(600)\n")
    command = [sys.executable, "-m", "tracetool", "compare", "slow.py", "--vary", "env:N=1,2"]
    process = subprocess.Popen(command, cwd=workplace, env=environment(), stderr=subprocess.PIPE, text=True)
    while not (workplace / "pid").exists() or not (workplace / "pid").read_text():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert one_sentence(err.strip()) == "interrupted; nothing was captured yet"
    with pytest.raises(ProcessLookupError):
        os.kill(int((workplace / "pid").read_text()), 0)


# What is made of their answers ----------------------------------------------------------------------------------


def test_the_variants_take_turns_and_are_captured_last(compare, jobs):
    seen, answers = jobs
    answers["b"] = ("train_pageable", [50] * 10, {})
    code, found, _ = compare("toy", "--vary", "kind=a,b", "--rounds", "4", "--samples", "10")
    assert code == 0
    order = ["".join((job.settings["kind"], "!" if job.trace else "")) for job, _ in seen]
    assert order == ["a", "b", "b", "a", "a", "b", "b", "a", "a!", "b!"]
    assert all(first.samples == second.samples for (first, _), (second, _) in pairwise(seen[:8]))
    kept = seen[9][0].earlier_samples
    assert kept == [[50] * 10] * 4
    baseline, variant = found["unprofiled"]
    assert (baseline["step_ns"], baseline["ratio"]) == (100, None)
    assert variant == {
        "label": "b",
        "processes": 4,
        "samples": 40,
        "step_ns": 50,
        "ratio": {"value": 0.5, "low": 0.5, "high": 0.5},
    }


@pytest.mark.usefixtures("jobs")
def test_three_processes_are_too_few_for_a_verdict(run):
    code, out, _ = run("compare", "toy", "--vary", "kind=a,b", "--rounds", "3")
    assert code == 0
    assert "b  100 ns  too few processes to say how it compares: --rounds 4 or more" in out
    assert "faster" not in out.partition("a step, unprofiled")[2]


@pytest.mark.parametrize(
    ("results", "same", "different"),
    [
        ({"a": [1], "b": [1]}, True, []),
        ({"a": [1], "b": [2]}, False, ["b"]),
        ({"a": None, "b": None}, None, []),
    ],
)
def test_results_are_compared_where_the_workload_says_them(compare, jobs, results, same, different):
    _, answers = jobs
    answers.update({kind: ("train_pinned", [1], {"result": result}) for kind, result in results.items()})
    _, found, _ = compare("toy", "--vary", "kind=a,b", "--rounds", "0")
    assert (found["same_results"], found["different_results"]) == (same, different)


def test_graphs_are_given_back_to_the_ranges_of_the_eager_twin(compare, jobs):
    seen, answers = jobs
    answers["b"] = ("toy_graph", [1], {"eager": {"kind": "eager"}})
    answers["eager"] = ("toy_eager", [1], {})
    answers["a"] = ("toy_eager", [1], {})
    code, found, _ = compare("toy", "--vary", "kind=a,b", "--rounds", "0", "--traces", "kept")
    assert code == 0
    assert [job.settings["kind"] for job, _ in seen] == ["a", "b", "eager"]
    assert seen[-1][0].trace == "kept/b.eager.json.gz"
    rows = {tuple(row["path"]): row["metrics"] for row in found["diff"]["ranges"]}
    kernels = rows["model_step", "layer", "mlp"]["kernels"]
    assert kernels["baseline"]["sum"] == kernels["variants"][0]["sum"] == 36
    assert found["graphs_not_given_back"] == {}


@pytest.mark.parametrize(
    ("eager", "twin", "why"),
    [
        (None, None, "the workload names no twin without graphs"),
        ({"kind": "eager"}, CaptureError("out of memory"), "its twin without graphs failed: out of memory"),
        ({"kind": "eager"}, "train_pinned", "51 of 51 pieces do not line up with the eager twin"),
    ],
)
def test_graphs_that_cannot_be_given_back_stay_and_say_so(compare, jobs, eager, twin, why):
    _, answers = jobs
    answers["b"] = ("toy_graph", [1], {"eager": eager})
    answers["eager"] = (twin, [1], {})
    _, found, _ = compare("toy", "--vary", "kind=a,b", "--rounds", "0")
    assert found["graphs_not_given_back"] == {"b": why}
    rows = {tuple(row["path"]): row["metrics"] for row in found["diff"]["ranges"]}
    assert rows["model_step",]["graph_kernels"]["variants"][0]["sum"] == 51


def test_traces_that_are_there_are_kept(run, jobs, workplace):
    seen, _ = jobs
    (workplace / "kept").mkdir()
    (workplace / "kept" / "b.json.gz").write_bytes(b"mine")
    command = ("compare", "toy", "--vary", "kind=a,b", "--rounds", "0", "--traces", "kept")
    code, _, err = run(*command)
    assert code == 2
    assert one_sentence(err).startswith("kept/b.json.gz exists already; name another folder with --traces")
    assert not seen
    assert run(*command, "--force")[0] == 0
    assert (workplace / "kept" / "b.json.gz").read_bytes() == (TRACES / "train_pinned.json.gz").read_bytes()


def test_a_baseline_that_fails_is_the_end(run, jobs):
    _, answers = jobs
    answers["a"] = (CaptureError("no luck"), [], {})
    code, out, err = run("compare", "toy", "--vary", "kind=a,b", "--rounds", "0")
    assert (code, out) == (2, "")
    assert one_sentence(err) == "the baseline a failed: no luck"


# The child's clock ---------------------------------------------------------------------------------------------


def job(**more):
    return child.Job(
        target="x", arguments=[], module=False, settings={}, warm_steps=2, samples=2, steps_per_sample=3, **more
    )


@pytest.mark.parametrize(("steps", "samples"), [(0, 1), (4, 1), (5, 1), (8, 2), (10, 2)])
def test_a_programs_steps_are_timed_and_without_enough_its_run(steps, samples):
    program = child.Program("x", {}, lambda: [stepping.step() for _ in range(steps)])
    assert len(child._run(program, job()).samples) == samples
    assert not stepping._listeners
