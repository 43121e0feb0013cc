"""What can be captured: scripts, modules, callables, workloads; with what arguments; and what cannot."""

import importlib.metadata
import json

import pytest

from tests.tracetool.capturing.captured import one_sentence
from tracetool.workloads import find_workloads

WORK = """
    import torch
    from torch.profiler import record_function

    with record_function("work"):
        torch.ones(3).add(1)
"""
ARGUMENTS = """
    import json, sys, torch

    torch.ones(3)
    with open("seen.json", "w") as file:
        json.dump({"argv": sys.argv, "name": __name__, "first": sys.path[0]}, file)
"""
CALLS = """
    import torch
    from torch.profiler import record_function

    def work(*arguments):
        with record_function("work"), record_function("|".join(arguments) or "nothing"):
            torch.ones(3).add(1)

    class Trainer:
        def step(self):
            work("method")

    trainer = Trainer()
    NUMBER = 3
"""
WORKLOADS = """
    import torch
    from torch.profiler import record_function

    class Axis:
        def __init__(self, about, values, default):
            self.about, self.values, self.default = about, values, default

    class Session:
        closed = False
        def __init__(self, settings):
            if settings["size"] == "0":
                raise ValueError("size is too small")
            self.settings = settings
        def step(self):
            if self.settings["size"] == "1":
                raise ValueError("nothing fits in")
            with record_function(f"size {self.settings['size']}"):
                torch.ones(int(self.settings["size"]))
        def close(self):
            Session.closed = True

    class Toy:
        name, about = "toy", "makes ones"
        axes = {"size": Axis("how many", {}, "2"), "kind": Axis("of what kind", {"a": "one", "b": "other"}, "a")}
        start = Session

    WORKLOADS = [Toy]
"""
PYPROJECT = '[tool.tracetool]\nworkloads = ["mine"]\n'


@pytest.fixture
def toy(write):
    write("pyproject.toml", PYPROJECT)
    write("mine.py", WORKLOADS)


# Scripts and modules ------------------------------------------------------------------------------------------


def test_a_script_is_recorded_whole(capture, run, write):
    done = capture(write("train.py", WORK))
    assert (done.code, done.err) == (0, "")
    first, last = done.out.splitlines()
    assert first == f"t.json.gz  {len(done.summary.work.events)} events"
    assert last == "next: tracetool summary t.json.gz"
    assert done.count("ops", "work") == 2
    assert done.steps == []
    assert run(*last.split()[2:])[0] == 0


def test_a_script_finds_what_python_would_show_it(capture, write, workplace):
    done = capture(write("folder/seen.py", ARGUMENTS), "--lr", "0.1", "-x", "file")
    assert done.code == 0
    seen = json.loads((workplace / "seen.json").read_text())
    assert seen["argv"] == ["folder/seen.py", "--lr", "0.1", "-x", "file"]
    assert seen["name"] == "__main__"
    assert seen["first"] == str(workplace / "folder")


@pytest.mark.parametrize(
    ("arguments", "seen"),
    [
        (["-o", "t.json.gz", "seen.py", "--lr", "0.1"], ["--lr", "0.1"]),
        (["seen.py", "--lr", "0.1", "-o", "t.json.gz"], ["--lr", "0.1"]),
        (["seen.py", "-o", "t.json.gz", "--lr=0.1", "a b"], ["--lr=0.1", "a b"]),
        (["-o", "t.json.gz", "seen.py", "--", "-o", "x", "--force", "-m"], ["-o", "x", "--force", "-m"]),
        (["-o", "t.json.gz", "--", "seen.py", "-o", "x"], ["-o", "x"]),
    ],
)
def test_arguments_of_the_program(run, write, workplace, arguments, seen):
    write("seen.py", ARGUMENTS)
    code, _, err = run("capture", *arguments)
    assert (code, err) == (0, "")
    assert json.loads((workplace / "seen.json").read_text())["argv"] == ["seen.py", *seen]


def test_a_module_is_run_as_python_does(capture, write, workplace):
    write("package/__init__.py", "")
    write("package/other.py", "VALUE = 1\n")
    write("package/run.py", "from .other import VALUE\n" + ARGUMENTS.replace("\n    ", "\n"))
    done = capture("-m", "package.run", "--lr", "0.1")
    assert (done.code, done.err) == (0, "")
    seen = json.loads((workplace / "seen.json").read_text())
    assert seen["argv"] == [str(workplace / "package" / "run.py"), "--lr", "0.1"]
    assert seen["name"] == "__main__"
    assert {"kind": "module", "module": "package.run", "arguments": ["--lr", "0.1"]}.items() <= done.about.items()


def test_a_package_is_a_module_too(capture, write, workplace):
    write("package/__init__.py", "")
    write("package/__main__.py", ARGUMENTS)
    assert capture("-m", "package").code == 0
    assert json.loads((workplace / "seen.json").read_text())["name"] == "__main__"


def test_a_program_that_goes_elsewhere_is_saved_where_it_began(capture, write, workplace):
    write("away.py", "import os, torch\ntorch.ones(3)\nos.mkdir('sub')\nos.chdir('sub')\n")
    done = capture("away.py")
    assert (done.code, done.err) == (0, "")
    assert done.path.is_file()
    assert list((workplace / "sub").iterdir()) == []


# Callables ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "range_name"),
    [(["calls:work"], "nothing"), (["calls:work", "1", "-x"], "1|-x"), (["calls:trainer.step"], "method")],
)
def test_a_callable_is_called_once_a_step(capture, write, target, range_name):
    write("calls.py", CALLS)
    done = capture(*target)
    assert (done.code, done.err) == (0, "")
    assert ", 3 steps" in done.out
    assert done.steps == [2, 3, 4]
    assert done.count("calls", "ProfilerStep", "work", range_name) == 3
    assert done.about["callable"] == target[0]
    assert done.about["arguments"] == target[1:]


# Workloads ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("toy")
def test_a_workload_with_its_axes(capture):
    done = capture("toy", "--set", "size=5", "--set", "kind = b", "--active", "2")
    assert (done.code, done.err) == (0, "")
    assert done.count("calls", "ProfilerStep", "size 5") == 2
    assert {"kind": "workload", "workload": "toy", "axes": {"size": "5", "kind": "b"}}.items() <= done.about.items()
    assert done.summary.environment["size"] == "5"


@pytest.mark.usefixtures("toy")
def test_a_workload_by_default_and_to_its_end(capture):
    assert capture("toy").about["axes"] == {"size": "2", "kind": "a"}
    (toy,) = find_workloads_here()
    assert toy.start.closed


def find_workloads_here():
    from pathlib import Path  # noqa: PLC0415 - the folder is another in each test

    return find_workloads(Path.cwd()).values()


@pytest.mark.usefixtures("toy")
def test_a_workload_that_cannot_be_set_up(capture):
    done = capture("toy", "--set", "size=0")
    assert (done.code, done.out) == (2, "")
    assert done.sentence == "toy cannot be set up: size is too small"
    assert not done.path.exists()


@pytest.mark.usefixtures("toy")
def test_a_workload_that_fails_in_a_step_needs_no_traceback(capture):
    done = capture("toy", "--set", "size=1", "--wait", "0", "--warmup", "1", "--active", "1")
    assert done.code == 2
    assert done.sentence == "toy failed with ValueError: nothing fits in"
    assert not done.path.exists()


@pytest.mark.usefixtures("toy")
def test_workloads_are_found_from_a_folder_further_down(workplace, monkeypatch, run):
    (workplace / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(workplace / "a" / "b")
    code, out, err = run("workloads")
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == "toy: makes ones:"
    assert {"size=2", "kind=a", "one", "other"} <= set(out.split())


@pytest.mark.usefixtures("toy")
def test_workloads_by_name(run):
    assert run("workloads", "toy")[0] == 0
    code, out, err = run("workloads", "tyo")
    assert (code, out, one_sentence(err)) == (2, "", "'tyo' is no workload: did you mean 'toy'?")


class EntryPoint:
    name = "theirs"

    def __init__(self, loaded):
        self.load = lambda: loaded


@pytest.mark.usefixtures("toy")
def test_workloads_of_installed_packages(run, monkeypatch):
    class Installed:
        name, about, axes, start = "installed", "from elsewhere", {}, None

    def points(*, group):
        assert group == "tracetool.workloads"
        return [EntryPoint(Installed)]

    monkeypatch.setattr(importlib.metadata, "entry_points", points)
    code, out, _ = run("workloads")
    assert code == 0
    assert out.index("installed: from elsewhere") < out.index("toy: makes ones")


@pytest.mark.parametrize(
    ("project", "module", "sentence"),
    [
        ('[tool.tracetool]\nworkloads = "mine"\n', "", "tool.tracetool.workloads must be a list of module names"),
        ("[tool.tracetool\n", "", "pyproject.toml cannot be read: "),
        (PYPROJECT, "import nowhere\n", "cannot be imported: ModuleNotFoundError: No module named 'nowhere'"),
        (PYPROJECT, "", "has no list WORKLOADS"),
        (PYPROJECT, "WORKLOADS = [3]\n", "offers a workload without 'name': 3"),
        (PYPROJECT, WORKLOADS + "    WORKLOADS = [Toy, Toy]\n", "offers a workload 'toy', and so does another"),
    ],
)
def test_workloads_that_are_none(run, write, project, module, sentence):
    write("pyproject.toml", project)
    write("mine.py", module)
    code, out, err = run("workloads")
    assert (code, out) == (2, "")
    assert sentence in one_sentence(err)


def test_no_workloads_at_all(run):
    code, _, err = run("workloads")
    assert code == 2
    assert one_sentence(err).startswith("there are no workloads here: name modules that offer some under ")


# What does not exist ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        (["nosuch.py"], "there is no script nosuch.py"),
        (["-m", "nosuch"], "there is no module 'nosuch' here or in this environment"),
        (["-m", "calls.nosuch"], "there is no module 'calls.nosuch' here or in this environment"),
        (
            ["nosuch:f"],
            "nosuch:f: the module 'nosuch' cannot be imported: ModuleNotFoundError: No module named 'nosuch'",
        ),
        (["calls:wrok"], "calls:wrok: calls has no 'wrok': did you mean 'work'?"),
        (["calls:trainer.stop"], "calls:trainer.stop: calls.trainer has no 'stop': did you mean 'step'?"),
        (["calls:"], "calls:: calls has no '': there are NUMBER, Trainer, record_function, torch, trainer, work"),
        (["calls:NUMBER"], "calls:NUMBER cannot be called: it is 3"),
        (["tyo"], "'tyo' is no workload (did you mean 'toy'?), no script, and no package.module:function"),
        (["toy", "5"], "a workload takes no arguments, but --set axis=value; '5' is not understood"),
        (["toy", "--set", "sise=1"], "toy has no axis 'sise': did you mean 'size'?"),
        (["toy", "--set", "kind=c"], "toy: kind cannot be 'c': there are a, b"),
        (["calls:work", "--set", "size=1"], "--set is for workloads; calls:work is none, give it arguments of its own"),
    ],
)
@pytest.mark.usefixtures("toy")
def test_names_that_stand_for_nothing(capture, write, target, sentence):
    write("calls.py", CALLS)
    done = capture(*target)
    assert (done.code, done.out, done.sentence) == (2, "", sentence)
    assert not done.path.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["toy", "--set", "size"], "'size' is not AXIS=VALUE"),
        (["toy", "--set", "=5"], "'=5' is not AXIS=VALUE"),
        (["toy", "--active", "many"], "'many' is not a valid integer"),
        ([], "Missing argument 'TARGET'"),
    ],
)
def test_bad_usage(capture, arguments, words):
    done = capture(*arguments)
    assert (done.code, done.out) == (2, "")
    assert words in done.err


def test_a_name_without_any_workloads(capture):
    sentence = capture("decode").sentence
    assert sentence == "'decode' is no workload (there are none), no script, and no package.module:function"
