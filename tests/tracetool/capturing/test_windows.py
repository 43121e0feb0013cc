"""Which steps of a program are recorded: all, those of a window, or fewer than were asked for."""

import pytest

from tests.tracetool.capturing.captured import count

STEPS = """
    import os, sys, torch, tracetool
    from torch.profiler import record_function

    for number in range(int(sys.argv[1])):
        with record_function("work"):
            torch.ones(number + 1).add(1)
        tracetool.step()
    with open("after.txt", "w") as file:
        file.write(str(os.path.exists("t.json.gz")))
"""


@pytest.fixture
def steps(write):
    return write("steps.py", STEPS)


def test_whole_with_steps_between_their_ends(capture, steps):
    done = capture(steps, "4")
    assert (done.code, done.err) == (0, "")
    assert ", 3 steps" in done.out
    # What comes before the first end may be anything, so it is no step.
    assert done.steps == [1, 2, 3]
    assert done.count("calls", "work") == 1
    assert done.count("calls", "ProfilerStep", "work") == 3
    assert done.about["window"] is None


def test_one_end_of_a_step_makes_none(capture, steps):
    done = capture(steps, "1")
    assert (done.code, done.steps) == (0, [])
    assert done.count("calls", "work") == 1


@pytest.mark.parametrize(
    ("options", "recorded"),
    [
        (["--wait", "1", "--warmup", "1", "--active", "2"], [2, 3]),
        (["--active", "1"], [2]),
        (["--wait", "3"], [5, 6, 7]),
        (["--warmup", "0", "--active", "2"], [0, 1]),
        (["--wait", "2", "--warmup", "0", "--active", "1"], [2]),
    ],
)
def test_the_steps_of_a_window(capture, steps, options, recorded):
    done = capture(steps, "9", *options)
    assert (done.code, done.err) == (0, "")
    assert done.steps == recorded
    assert done.count("calls", "ProfilerStep", "work") == len(recorded)
    assert done.count("calls", "work") == 0


def test_a_window_is_saved_when_its_last_step_ends(capture, steps, workplace):
    assert capture(steps, "9", "--active", "1").code == 0
    assert (workplace / "after.txt").read_text() == "True"


def test_a_window_of_all_steps(capture, steps):
    done = capture(steps, "5")
    assert done.code == 0
    done = capture(steps, "5", "--active", "3", "--force")
    assert (done.code, done.steps) == (0, [2, 3, 4])


def test_fewer_steps_than_were_asked_for(capture, steps):
    done = capture(steps, "4", "--active", "3")
    assert done.code == 2
    assert done.sentence == "t.json.gz: only 2 of 3 steps to be recorded ended; the last may be cut"
    assert done.count("calls", "ProfilerStep", "work") == 2
    assert "next:" not in done.out


@pytest.mark.parametrize("ended", [0, 1])
def test_no_step_that_is_kept(capture, steps, ended):
    done = capture(steps, str(ended), "--wait", "1", "--warmup", "2", "--active", "3")
    assert (done.code, done.out) == (2, "")
    assert done.sentence == (
        f"nothing was recorded: {ended} of 6 steps ended, of which the first 3 are not kept; call tracetool.step() at "
        "the end of each step, or leave out --wait, --warmup and --active to record everything"
    )
    assert not done.path.exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--active", "0"], "--active must be at least 1, or nothing is captured; it is 0"),
        (["--active", "-1"], "--active must be at least 1, or nothing is captured; it is -1"),
        (["--wait", "-1"], "--wait and --warmup must be 0 or more"),
        (["--warmup", "-1"], "--wait and --warmup must be 0 or more"),
    ],
)
def test_windows_of_no_steps(capture, steps, workplace, options, sentence):
    done = capture(steps, "9", *options)
    assert (done.code, done.out, done.sentence) == (2, "", sentence)
    assert not (workplace / "after.txt").exists()


def test_a_program_without_anything_to_record(capture, write):
    done = capture(write("empty.py", "x = 1\n"))
    assert (done.code, done.out) == (2, "")
    assert done.sentence == "nothing was recorded: the program ran no op, no range and nothing on the GPU meanwhile"
    assert not done.path.exists()


def test_counts_are_those_of_the_steps_alone(capture, steps):
    done = capture(steps, "9", "--wait", "4", "--warmup", "1", "--active", "1")
    assert count(done.summary, "ops", "ProfilerStep") == count(done.summary, "ops", "ProfilerStep", "work") == 2
