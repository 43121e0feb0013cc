"""Jobs of workloads that preload: forked from a process that has imported what takes long, as good as begun anew."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import tracetool
from tests.tracetool.capturing.captured import environment, one_sentence
from tests.tracetool.capturing.test_targets import PYPROJECT
from tracetool.capturing.jobs import Job
from tracetool.errors import CaptureError
from tracetool.processes import Processes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux alone")

WORKLOADS = """
    import atexit, os, signal, sys, time
    from pathlib import Path

    class Axis:
        about, values, default = "what a step does", {}, "nothing"

    class Session:
        def __init__(self, settings):
            self.does = settings["does"]
            atexit.register(Path("ended").write_text, str(os.getpid()))
        def step(self):
            import torch
            torch.ones(3)
            if self.does == "raise":
                raise ValueError("no luck")
            if self.does == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.does == "leave":
                os._exit(3)
            if self.does == "sleep":
                Path("pids").write_text(f"{os.getpid()} {os.getppid()}")
                time.sleep(600)
        def result(self):
            import slow
            slow.jobs += 1
            return {
                "pid": os.getpid(), "parent": os.getppid(), "imported by": slow.pid, "jobs": slow.jobs,
                "variable": os.environ.get("N"), "asks nvml": "PYTORCH_NVML_BASED_CUDA_CHECK" in os.environ,
                "in and out": [os.readlink(f"/proc/self/fd/{i}") for i in (0, 1)],
                "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
                "interrupts": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
                "argv": os.path.basename(sys.argv[0]),
            }

    class Plain:
        name, about = "plain", "imports everything anew"
        axes = {"does": Axis}
        start = Session

    class Toy(Plain):
        name = "toy"
        preload = ["slow", *(["nowhere"] if os.environ.get("N") == "3" else [])]

    WORKLOADS = [Plain, Toy]
"""
SLOW = """
    import os, time
    from pathlib import Path

    pid, jobs = os.getpid(), 0
    with open("imports", "a") as file:
        print(os.environ.get("N"), file=file)
    if os.environ.get("N") == "sleep":
        Path("pids").write_text(str(os.getpid()))
        time.sleep(600)
"""
REFUSED = """
    import threading

    class Workload:
        about, axes, start = "", {}, None

        def __init__(self, name, preload):
            self.name, self.preload = name, preload

    WORKLOADS = [
        Workload(name, preload)
        for name, preload in {"text": "slow", "absent": ["nowhere"], "broken": ["broken"], "driver": ["json"],
                              "cuda": ["json"], "own": ["json"], "busy": ["json", "busy"], "nothing": []}.items()
    ]
"""
REFUSE = """
    import ctypes, sys, torch
    from tracetool.capturing import forking
    from tracetool.errors import TracetoolError

    def say(name):
        try:
            print(forking.preload(name))
        except TracetoolError as error:
            print(error)

    class Driver:
        def __init__(self, *_, **__): pass
        def cuDeviceGetCount(self, _): return Driver.answer

    for name in ("text", "absent", "broken", "nothing"):
        say(name)
    real, ctypes.CDLL = ctypes.CDLL, Driver
    Driver.answer = 3
    say("driver")
    Driver.answer = 0
    say("driver")
    ctypes.CDLL = real
    before, torch.cuda.is_initialized = torch.cuda.is_initialized, lambda: True
    say("cuda")
    torch.cuda.is_initialized = before
    say("busy")
    say("own")
"""


@pytest.fixture
def toy(write):
    write("pyproject.toml", PYPROJECT)
    write("mine.py", WORKLOADS)
    write("slow.py", SLOW)


def job(does="nothing", target="toy"):
    return Job(
        target=target,
        arguments=[],
        module=False,
        settings={"does": does},
        warm_steps=1,
        samples=1,
        steps_per_sample=1,
    )


def is_gone(pid):
    """Whether a process has ended; one that nobody has waited for has, too."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_until(true, process=None):
    end = time.monotonic() + 60
    while not true():
        assert process is None or process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.02)


def pids_in(folder):
    file = folder / "pids"
    return [int(pid) for pid in file.read_text().split()] if file.exists() else []


# Jobs ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("toy")
def test_jobs_are_processes_of_their_own_whatever_became_of_others(workplace):
    with Processes() as processes:
        first = processes.do(job(), {}).result
        for does, sentence in {
            "raise": "ValueError: no luck",
            "die": "it ended with signal 9",
            "leave": "it failed without a word",
        }.items():
            with pytest.raises(CaptureError, match=f"^{sentence}$"):
                processes.do(job(does), {})
        last = processes.do(job(), {}).result
        assert (workplace / "ended").read_text() == str(last["pid"])
        server = first["parent"]
        os.kill(server, signal.SIGKILL)
        wait_until(lambda: is_gone(server))
        another = processes.do(job(), {}).result["parent"]
        assert not is_gone(another)
    assert is_gone(another)
    assert another not in {server, os.getpid()}
    assert server != os.getpid()
    assert first == {
        "pid": first["pid"],
        "parent": server,
        "imported by": server,
        "jobs": 1,
        "variable": None,
        "asks nvml": False,
        "in and out": ["/dev/null", "/dev/null"],
        "blocked": [],
        "interrupts": True,
        "argv": "child.py",
    }
    assert last == first | {"pid": last["pid"]}
    assert len({first["pid"], last["pid"], server}) == 3
    assert (workplace / "imports").read_text() == "None\n" * 2


@pytest.mark.usefixtures("toy")
def test_without_preload_each_job_begins_anew(workplace):
    with Processes() as processes:
        found = [processes.do(job(target="plain"), {}).result for _ in range(2)]
    assert [one["parent"] for one in found] == [os.getpid()] * 2
    assert [one["imported by"] for one in found] == [one["pid"] for one in found]
    assert [(one["in and out"], one["blocked"], one["argv"]) for one in found] == [
        (["/dev/null"] * 2, [], "child.py")
    ] * 2
    assert (workplace / "imports").read_text() == "None\n" * 2


@pytest.mark.usefixtures("toy")
def test_each_environment_has_a_server_that_may_refuse(run, workplace):
    code, out, err = run("compare", "toy", "--vary", "env:N=1,3", "--rounds", "1", "--samples", "1", "--format", "json")
    assert code == 0
    assert err == (
        "note: the workload 'toy' cannot preload 'nowhere': ModuleNotFoundError: No module named 'nowhere'; "
        "its processes begin anew\n"
    )
    assert json.loads(out)["failures"] == {}
    # A server for the round and one for captures; of what refuses, by the one server and by both jobs.
    assert sorted((workplace / "imports").read_text().split()) == ["1", "1", "3", "3", "3"]
    assert sorted(path.name for path in (workplace / "tracetool-compare").iterdir()) == ["1.json.gz", "3.json.gz"]


# Interrupts and ends -------------------------------------------------------------------------------------------


@pytest.fixture
def begin(toy, workplace):  # noqa: ARG001 - it has the workload
    """Begins a comparison, and waits until something in it sleeps; gives it, and processes that are to end with it."""

    def call(*arguments):
        command = [sys.executable, "-m", "tracetool", "compare", "toy", "--rounds", "0", "--warmup", "0", *arguments]
        process = subprocess.Popen(command, cwd=workplace, env=environment(), stderr=subprocess.PIPE, text=True)
        wait_until(lambda: pids_in(workplace), process)
        return process, pids_in(workplace)

    return call


def test_ctrl_c_keeps_what_the_job_captured_and_ends_the_server(begin, workplace):
    process, pids = begin("--set", "does=sleep", "--vary", "env:N=1,2")
    assert len(pids) == 2
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert one_sentence(err.strip()) == "interrupted; what was captured until then is in tracetool-compare"
    assert all(map(is_gone, pids))
    about = tracetool.read(str(workplace / "tracetool-compare" / "1.json.gz")).metadata["tracetool"]
    assert about["interrupted_by"] == "Ctrl-C"


def test_ctrl_c_ends_a_server_that_imports(begin):
    process, pids = begin("--vary", "env:N=sleep,1")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert one_sentence(err.strip()) == "interrupted; nothing was captured yet"
    assert all(map(is_gone, pids))


def test_nothing_outlives_a_comparison_that_is_killed(begin):
    process, pids = begin("--set", "does=sleep", "--vary", "env:N=1,2")
    process.kill()
    process.communicate(timeout=60)
    wait_until(lambda: all(map(is_gone, pids)))


# Refusals ------------------------------------------------------------------------------------------------------


def test_what_cannot_be_forked_is_refused(write, workplace):
    write("pyproject.toml", PYPROJECT)
    write("mine.py", REFUSED)
    write("broken.py", "raise RuntimeError('no\\nluck')\n")
    write("busy.py", "import threading, time\nthreading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n")
    script = write("refuse.py", REFUSE)
    done = subprocess.run(
        [sys.executable, script],
        cwd=workplace,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.splitlines() == [
        "the workload 'text' has a preload that is no list of module names: 'slow'",
        "the workload 'absent' cannot preload 'nowhere': ModuleNotFoundError: No module named 'nowhere'",
        "the workload 'broken' cannot preload 'broken': RuntimeError: no",
        "False",
        "True",
        "the workload 'driver' can preload nothing: CUDA is initialised once it is imported",
        "the workload 'cuda' can preload nothing: CUDA is initialised once it is imported",
        "the workload 'busy' cannot preload 'busy': a thread runs once that is imported",
        "the workload 'own' can preload nothing: a thread runs once it is imported",
    ]
