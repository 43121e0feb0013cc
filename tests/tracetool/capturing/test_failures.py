"""Programs that fail, exit or are interrupted: what was captured is kept, and said."""

import pytest

PARTLY = """
    import sys, torch
    from torch.profiler import record_function

    with record_function("before"):
        torch.ones(3).add(1)
    {end}
"""
KEPT = "; what was captured until then is in t.json.gz"


@pytest.fixture
def partly(write):
    def ending(end):
        return write("part.py", PARTLY.format(end=end))

    return ending


@pytest.mark.parametrize(
    ("end", "code", "sentence", "noted"),
    [
        ("sys.exit()", 0, None, None),
        ("sys.exit(0)", 0, None, None),
        ("sys.exit(3)", 2, "part.py exited with 3", "SystemExit: 3"),
        ("sys.exit('no data')", 2, "part.py exited with 'no data'", "SystemExit: no data"),
        ("raise KeyboardInterrupt", 130, "interrupted", "Ctrl-C"),
    ],
)
def test_programs_that_exit(capture, partly, end, code, sentence, noted):
    done = capture(partly(end))
    assert done.code == code
    assert done.err == ("" if sentence is None else f"tracetool: {sentence}{KEPT}\n")
    assert done.count("ops", "before") == 2
    assert done.about["interrupted_by"] == noted


def test_a_script_that_fails_shows_where(capture, partly):
    done = capture(partly("raise ValueError('no data')"))
    assert done.code == 2
    first, second, third, *_, error, last = done.err.splitlines()
    assert first == "Traceback (most recent call last):"
    assert second == '  File "part.py", line 7, in <module>'
    assert third == "    raise ValueError('no data')"
    assert error == "ValueError: no data"
    assert last == f"tracetool: part.py failed with ValueError: no data{KEPT}"
    assert done.about["interrupted_by"] == "ValueError: no data"
    assert done.count("ops", "before") == 2


def test_a_traceback_of_a_program_in_a_folder_named_like_us(capture, write):
    done = capture(write("tracetool/runpy/fail.py", "import torch\ntorch.ones(3)\n1 / 0\n"))
    assert '  File "tracetool/runpy/fail.py", line 3, in <module>' in done.err.splitlines()


def test_an_error_without_words(capture, partly):
    err = capture(partly("raise AssertionError")).err
    assert err.endswith(f"tracetool: part.py failed with AssertionError: AssertionError{KEPT}\n")


def test_a_callable_that_fails_in_a_recorded_step(capture, write):
    write("calls.py", "import torch\ncalls = []\ndef work():\n    calls.append(1)\n    torch.ones(6)[len(calls)]\n")
    done = capture("calls:work", "--active", "9")
    assert done.code == 2
    assert f"calls:work failed with IndexError: index 6 is out of bounds for dimension 0 with size 6{KEPT}" in done.err
    assert done.err.endswith("t.json.gz: only 3 of 9 steps to be recorded ended; the last may be cut\n")
    assert done.steps == [2, 3, 4, 5]


def test_ctrl_c_before_a_window_is_filled(capture, write):
    text = "import torch, tracetool\nfor i in range(5):\n    torch.ones(3)\n    tracetool.step()\n"
    done = capture(write("cut.py", text + "raise KeyboardInterrupt\n"), "--active", "9")
    assert done.code == 130
    assert f"tracetool: interrupted{KEPT}" in done.err.splitlines()
    assert done.about["interrupted_by"] == "Ctrl-C"


def test_a_failure_after_the_window_is_none_of_the_trace(capture, write):
    text = "import torch, tracetool\nfor i in range(9):\n    torch.ones(3)\n    tracetool.step()\nraise ValueError\n"
    done = capture(write("late.py", text), "--active", "2")
    assert done.code == 2
    assert done.about["interrupted_by"] is None
    assert done.steps == [2, 3]


def test_a_failure_before_anything_was_recorded(capture, write):
    done = capture(write("early.py", "raise ValueError('at once')\n"))
    assert done.code == 2
    assert done.err.endswith("tracetool: early.py failed with ValueError: at once\n")
    assert not done.path.exists()


def test_a_file_that_exists_survives_a_capture_of_nothing(capture, write, workplace):
    (workplace / "t.json.gz").write_bytes(b"mine")
    assert capture(write("early.py", "raise ValueError\n"), "--force").code == 2
    assert (workplace / "t.json.gz").read_bytes() == b"mine"
    assert capture(write("empty.py", "x = 1\n"), "--force").code == 2
    assert (workplace / "t.json.gz").read_bytes() == b"mine"


# Other profilers ----------------------------------------------------------------------------------------------

OWN_PROFILER = """
    import torch
    from torch.profiler import ProfilerActivity, profile, record_function

    with record_function("before"):
        torch.ones(3)
    with profile(activities=[ProfilerActivity.CPU]):
        torch.ones(3)
"""
OWN_CAPTURE = """
    import torch, tracetool
    from torch.profiler import record_function

    with record_function("before"):
        torch.ones(3)
    with tracetool.capture("inner.json.gz"):
        torch.ones(3)
"""
TWO = (
    "only one profiler can run in a process, and another one runs or was about to: leave out the program's own "
    "torch.profiler.profile or tracetool.capture, or run the program without tracetool capture"
)


@pytest.mark.parametrize("program", [OWN_PROFILER, OWN_CAPTURE])
def test_a_program_with_a_profiler_of_its_own(capture, write, workplace, program):
    done = capture(write("own.py", program))
    assert (done.code, done.sentence) == (2, TWO)
    assert not (workplace / "inner.json.gz").exists()
    assert done.count("ops", "before") == 1
    # And nothing is left that would stand in the way of the next one.
    assert capture(write("plain.py", "import torch\ntorch.ones(3)\n"), "--force").code == 0


@pytest.mark.parametrize("program", [OWN_PROFILER, OWN_CAPTURE])
def test_a_profiler_of_its_own_outside_the_window(capture, write, program):
    done = capture(write("own.py", program), "--wait", "5")
    assert (done.code, done.sentence) == (2, TWO)
    assert not done.path.exists()
