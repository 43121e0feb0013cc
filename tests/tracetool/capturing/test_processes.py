"""What needs a process of its own: Ctrl-C, children, exit codes, clean standard error, terminals, quick imports."""

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tracetool.capturing.captured import (
    Captured,
    environment,
    events_of,
    files_in,
    one_sentence,
    process,
    summary_of,
)

CHILDREN = """
    import multiprocessing, os, torch
    from torch.profiler import record_function

    def child(number):
        with record_function("in a child"):
            return os.getpid(), float(torch.ones(3).sum())

    if __name__ == "__main__":
        torch.set_num_threads(1)
        with record_function("before"):
            torch.ones(3)
        with multiprocessing.get_context("{method}").Pool(2) as pool:
            found = pool.map(child, range(4))
        assert [total for _, total in found] == [3.0] * 4
        assert os.getpid() not in {{pid for pid, _ in found}}
        with record_function("after"):
            torch.ones(3)
"""


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_children_neither_break_a_capture_nor_are_captured(write, workplace, method):
    write("children.py", CHILDREN.format(method=method))
    done = Captured(*ended(process("capture", "children.py", "-o", "t.json.gz")), workplace / "t.json.gz")
    assert done.code == 0
    # From Python 3.12 on, forking beside threads is warned of.
    assert done.err == "" or method == "fork"
    assert "Traceback" not in done.err
    assert [done.count("calls", name) for name in ("before", "in a child", "after")] == [1, 0, 1]
    assert len({event["pid"] for event in done.events if event.get("cat") == "cpu_op"}) == 1
    assert files_in(workplace) == ["children.py", "t.json.gz"]


def ended(done):
    return done.returncode, done.stdout, done.stderr


WAITS = """
    import signal, torch
    from torch.profiler import record_function

    # Whoever started the tests in the background may have had SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with record_function("before"):
        torch.ones(3).add(1)
    print("ready", flush=True)
    signal.pause()
"""


def test_ctrl_c_keeps_what_was_captured(write, workplace):
    write("waits.py", WAITS)
    with subprocess.Popen(
        [sys.executable, "-m", "tracetool", "capture", "waits.py", "-o", "t.json.gz"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    ) as child:
        try:
            assert child.stdout.readline() == "ready\n"
            child.send_signal(signal.SIGINT)
            out, err = child.communicate(timeout=60)
        finally:
            child.kill()
    assert child.returncode == 130
    assert one_sentence(err) == "interrupted; what was captured until then is in t.json.gz"
    assert out.splitlines()[0].startswith("t.json.gz  ")
    done = Captured(child.returncode, out, err, workplace / "t.json.gz")
    assert done.count("ops", "before") == 2
    assert done.about["interrupted_by"] == "Ctrl-C"
    assert files_in(workplace) == ["t.json.gz", "waits.py"]


def test_the_console_script_finds_workloads_and_says_nothing_else(write, workplace):
    write("pyproject.toml", '[tool.tracetool]\nworkloads = ["mine"]\n')
    write(
        "mine.py",
        """
        import torch
        class Toy:
            name, about, axes = "toy", "makes ones", {}
            def start(self, settings):
                return self
            def step(self):
                torch.ones(3)
        WORKLOADS = [Toy()]
        """,
    )
    (workplace / "below").mkdir()
    script = Path(sys.executable).with_name("tracetool")
    done = subprocess.run(
        [script, "capture", "toy", "-o", "t.json.gz", "--warmup", "0", "--active", "2"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=workplace / "below",
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[1] == "next: tracetool summary t.json.gz"
    assert [number for number, _ in summary_of(workplace / "below" / "t.json.gz").steps] == [0, 1]


def test_progress_is_for_a_terminal(write):
    write("calls.py", "import torch\ndef work():\n    torch.ones(3)\n")
    reading, writing = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-m", "tracetool", "capture", "calls:work", "-o", "t.json.gz", "--wait", "1", "--warmup", "1"],
        stdout=subprocess.PIPE,
        stderr=writing,
        timeout=120,
        check=False,
        env=environment(),
    )
    os.close(writing)
    shown = b""
    try:
        while piece := os.read(reading, 1 << 16):
            shown += piece
    except OSError:  # a terminal without anybody at the other end
        pass
    finally:
        os.close(reading)
    assert done.returncode == 0
    lines = shown.decode().split("\r\x1b[K")
    assert lines == [
        "",
        "calls:work: step 1 of 5 (not recorded)",
        "calls:work: step 2 of 5 (warm-up)",
        *(f"calls:work: step {number} of 5 (recorded)" for number in (3, 4, 5)),
        "calls:work: captured; running to its end",
        "",
    ]
    assert events_of("t.json.gz")


@pytest.mark.parametrize(
    "arguments", [["--help"], ["capture", "--help"], ["workloads", "--help"], ["capture"], ["workloads"]]
)
def test_help_loads_nothing_heavy(arguments):
    program = (
        "import sys\nfrom tracetool.cli import main\n"
        f"assert main({arguments!r}) == {0 if '--help' in arguments else 2}\n"
        "assert not {'torch', 'triton', 'transformers', 'numpy'} & sys.modules.keys()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False, env=environment()
    )
    assert done.returncode == 0, done.stderr
