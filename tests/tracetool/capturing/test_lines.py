"""`--lines`: one more step, in which the line that calls each op is noted, for the ops of the steps before."""

import gzip
import json
import sys
import threading

import pytest
import torch
from torch.profiler import record_function
from torch.utils._python_dispatch import _len_torch_dispatch_stack

import tracetool
from tests.tracetool.capturing.captured import events_of, summary_of
from tracetool.capturing import save
from tracetool.capturing.lines import LineNoter
from tracetool.errors import SettingError

TRAIN = """
import torch, tracetool
from torch import nn
from torch.profiler import record_function


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(8), nn.Linear(8, 8)

    def forward(self, x):
        hidden = self.norm(x)
        hidden = self.linear(hidden).relu()
        return x + hidden


class Square(torch.autograd.Function):
    @staticmethod
    def forward(context, x):
        context.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(context, gradient):
        (x,) = context.saved_tensors
        twice = 2 * x
        return twice * gradient


model = nn.Sequential(Block(), Block())
optimizer = torch.optim.SGD(model.parameters())


def train(number):
    with record_function("batch"):
        x = torch.tensor([[float(i) for i in range(8)]] * 4)
        if number % 2:
            x = x.sub(1)
    y = model(x)
    y = Square.apply(y)
    loss = nn.functional.mse_loss(
        y,
        torch.zeros_like(y),
    )
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


for number in range(7):
    train(number)
    tracetool.step()
"""
# Each op that a step makes itself, by the text of the line that calls it.
CALLED = [
    ("aten::lift_fresh", "torch.tensor("),
    ("aten::native_layer_norm", "self.norm(x)"),
    ("aten::linear", "self.linear(hidden)"),
    ("aten::addmm", "self.linear(hidden)"),
    ("aten::relu", "self.linear(hidden)"),
    ("aten::add", "return x + hidden"),
    ("aten::mse_loss", "nn.functional.mse_loss("),
    ("aten::ones_like", "loss.backward()"),
    ("aten::item", "loss.item()"),
    ("autograd::engine::evaluate_function: MseLossBackward0", "nn.functional.mse_loss("),
    ("autograd::engine::evaluate_function: AddmmBackward0", "self.linear(hidden)"),
    ("aten::threshold_backward", "self.linear(hidden)"),
    ("aten::native_layer_norm_backward", "self.norm(x)"),
    ("torch::autograd::AccumulateGrad", "loss.backward()"),
    ("aten::_foreach_add_", "optimizer.step()"),
]


def line_in(text, part):
    (number,) = [number for number, line in enumerate(text.split("\n"), 1) if part in line]
    return f"train.py:{number}"


@pytest.fixture
def train(write):
    return write("train.py", TRAIN)


@pytest.fixture
def trained(capture, train):
    """A script with a window of two steps; the fifth is the one in which lines are noted."""
    return capture(train, "--lines", "--active", "2")


def lines_of(events, name):
    ops = [event for event in events if event.get("cat") == "cpu_op" and event["name"] == name]
    return {event["args"].get("Call line") for event in ops}


def test_ops_have_the_line_that_calls_them(trained):
    assert (trained.code, trained.err) == (0, "")
    assert trained.steps == [2, 3]
    events = trained.events
    found = {name: lines_of(events, name) for name, _ in CALLED if lines_of(events, name)}
    # How the optimizer does it depends on the version; that something of it is there does not.
    assert len(found) >= len(CALLED) - 1
    assert found == {name: {line_in(TRAIN, part)} for name, part in CALLED if name in found}


def test_the_lines_of_python_code_in_a_backward_pass(trained):
    expected = {line_in(TRAIN, part) for part in ("return x * x", "twice = 2 * x", "return twice * gradient")}
    assert lines_of(trained.events, "aten::mul") >= expected


def test_a_step_that_differs_from_the_noted_one(trained):
    # Step 3 takes a branch that the noted step 4 does not.
    assert lines_of(trained.events, "aten::sub") == {None}
    assert lines_of(trained.events, "aten::linear") == {line_in(TRAIN, "self.linear(hidden)")}


def test_how_many_have_their_line_is_said(trained):
    ops = [event for event in trained.events if event.get("cat") == "cpu_op"]
    known = sum("Call line" in event["args"] for event in ops)
    assert trained.about["lines"] == {"ops": len(ops), "known": known}
    assert trained.out.splitlines()[0].endswith(f", 2 steps, {known:,} of {len(ops):,} ops have their line")
    assert known > 0.95 * len(ops)


def test_contributors_are_lines(trained, run):
    row = trained.summary.paths.index(("ProfilerStep",))
    by_line = trained.summary.contributors(row, "line")
    linear = by_line[line_in(TRAIN, "self.linear(hidden)")]
    # Two blocks in two steps: linear and relu, and what goes back through them.
    assert linear["ops"] > 8
    assert by_line[line_in(TRAIN, "loss.item()")]["ops"] == 2
    code, out, _ = run("summary", trained.path, "--format", "json")
    assert code == 0
    assert line_in(TRAIN, "self.linear(hidden)") in out


def test_the_noted_step_is_not_recorded(trained, capture, train):
    plain = capture(train, "--active", "2", "--force")
    assert plain.about["lines"] is None
    assert plain.steps == trained.steps
    for metric in ("ops", "calls"):
        for path in plain.summary.paths:
            assert plain.count(metric, *path) == trained.count(metric, *path)
    assert "Call line" not in json.dumps(plain.events)
    assert strip(trained.events) == strip(plain.events)


def strip(events):
    """Names and other arguments, which lines leave as they are."""
    return [
        (event["name"], sorted(event["args"].keys() - {"Call line"}))
        for event in events
        if event.get("cat") in ("cpu_op", "user_annotation")
    ]


def test_nothing_of_it_is_left(trained):
    assert trained.code == 0
    assert _len_torch_dispatch_stack() == 0


# Programs without such a step ---------------------------------------------------------------------------------

NEEDS_STEPS = (
    "lines are noted in one more step after those that are recorded: call tracetool.step() at the end of each step, "
    "and say with --active how many are to be recorded"
)
NONE = "t.json.gz: it has no lines: they are noted in the step after those recorded, and the program ended before that"


def test_a_script_that_is_recorded_whole(capture, train):
    done = capture(train, "--lines")
    assert (done.code, done.out, done.sentence) == (2, "", NEEDS_STEPS)
    assert not done.path.exists()
    with pytest.raises(SettingError) as raised:
        tracetool.capture("t.json.gz", lines=True)
    assert str(raised.value) == NEEDS_STEPS


def test_a_script_that_ends_with_its_window(capture, train):
    done = capture(train, "--lines", "--active", "5")
    assert (done.code, done.sentence) == (2, NONE)
    assert done.steps == [2, 3, 4, 5, 6]
    assert done.about["lines"] is None
    assert _len_torch_dispatch_stack() == 0


ENDS = """
    import torch, tracetool
    for i in range(9):
        torch.ones(3)
        if i == 4:
            raise {error}
        tracetool.step()
"""


@pytest.mark.parametrize(("error", "code"), [("ValueError('too hot')", 2), ("KeyboardInterrupt", 130)])
def test_a_script_that_ends_in_the_noted_step(capture, write, error, code):
    done = capture(write("end.py", ENDS.format(error=error)), "--lines", "--active", "2")
    assert done.code == code
    assert done.err.splitlines()[-1] == f"tracetool: {NONE}"
    assert (done.steps, done.about["interrupted_by"], done.about["lines"]) == ([2, 3], None, None)
    assert _len_torch_dispatch_stack() == 0


def test_a_window_that_is_not_filled(capture, train):
    done = capture(train, "--lines", "--active", "6")
    assert done.sentence == "t.json.gz: only 5 of 6 steps to be recorded ended; the last may be cut"


# Other programs -----------------------------------------------------------------------------------------------


def test_a_callable_is_called_once_more(capture, write):
    write("calls.py", "import torch\nseen = []\ndef work():\n    seen.append(1)\n    torch.ones(3)\n")
    done = capture("calls:work", "--lines", "--active", "2")
    assert (done.code, done.err) == (0, "")
    assert lines_of(done.events, "aten::ones") == {"calls.py:5"}
    assert len(sys.modules["calls"].seen) == 5


def test_a_block(write, workplace, monkeypatch):
    write("work.py", "import torch\ndef work():\n    return torch.ones(3).add(1)\n")
    monkeypatch.syspath_prepend(workplace)
    import work  # noqa: PLC0415 - written just now

    with tracetool.capture("t.json.gz", active=2, lines=True) as one:
        for _ in range(5):
            work.work()
            one.step()
    assert (one.result.lines.ops, one.result.lines.known) == (16, 16)
    assert lines_of(events_of("t.json.gz"), "aten::add") == {"work.py:3"}


def lines_with(program):
    """The lines of `aten::ones` in steps of a program."""
    with tracetool.capture("t.json.gz", active=1, lines=True):
        for _ in range(4):
            program()
            tracetool.step()
    return lines_of(events_of("t.json.gz"), "aten::ones")


def test_files_elsewhere_have_their_whole_path(write, workplace, monkeypatch):
    write("work.py", "import torch\ndef work():\n    torch.ones(3)\n")
    monkeypatch.syspath_prepend(workplace)
    import work  # noqa: PLC0415 - as above

    (workplace / "here").mkdir()
    monkeypatch.chdir(workplace / "here")
    assert lines_with(work.work) == {f"{workplace}/work.py:3"}


def test_the_programs_own_lines_count_before_those_of_packages(write, workplace, monkeypatch):
    write("env/site-packages/installed.py", "import torch\ndef ones():\n    torch.ones(3)\n")
    write("work.py", "import installed\ndef work():\n    installed.ones()\n")
    monkeypatch.syspath_prepend(workplace / "env" / "site-packages")
    monkeypatch.syspath_prepend(workplace)
    import work  # noqa: PLC0415 - as above

    assert lines_with(work.work) == {"work.py:3"}


def test_a_program_that_is_installed_itself(write, workplace, capture, monkeypatch):
    write("env/site-packages/program.py", "import torch\ndef work():\n    torch.ones(3)\n")
    monkeypatch.syspath_prepend(workplace / "env" / "site-packages")
    done = capture("program:work", "--lines")
    assert lines_of(done.events, "aten::ones") == {"env/site-packages/program.py:3"}


def test_threads_of_the_program_are_not_noted(capture, write):
    text = """
        import threading, torch, tracetool
        def work():
            torch.zeros(3)
        for i in range(4):
            torch.ones(3)
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
            tracetool.step()
    """
    done = capture(write("threads.py", text), "--lines", "--active", "1")
    assert (done.code, done.about["lines"]) == (0, {"ops": 6, "known": 3})
    assert lines_of(done.events, "aten::ones") == {"threads.py:6"}
    assert lines_of(done.events, "aten::zeros") == {None}


def test_compiled_code_stays_compiled():
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: x * 2 + 1, backend="eager")
    with tracetool.capture("t.json.gz", active=1, lines=True):
        for _ in range(4):
            compiled(torch.ones(3))
            tracetool.step()
        before = len(torch._dynamo.utils.get_compilation_metrics())
        compiled(torch.ones(3))
    assert len(torch._dynamo.utils.get_compilation_metrics()) == before
    summary = summary_of("t.json.gz")
    assert summary.metadata["tracetool"]["lines"]["known"] > 0
    torch._dynamo.reset()


def test_operations_of_higher_order_go_through():
    from torch._higher_order_ops.cond import cond_op  # noqa: PLC0415 - takes time

    noter = LineNoter()
    noter.start()
    try:
        found = cond_op(True, lambda x: x + 1, lambda x: x - 1, (torch.ones(3),))
    finally:
        noter.stop()
    assert found.tolist() == [2, 2, 2]
    (told,) = noter.notes.values()
    assert [note.op for note in told] == ["aten::ones", "cond"]


def test_ranges_are_no_ops():
    noter = LineNoter()
    noter.start()
    with record_function("range"):
        torch.ones(3)
    noter.stop()
    torch.zeros(3)
    assert [note.op for told in noter.notes.values() for note in told] == ["aten::ones"]


def test_a_mode_of_the_program_on_top_stays_there():
    theirs, ours = LineNoter(), LineNoter()
    ours.start()
    theirs.start()
    ours.stop()
    torch.ones(3)
    assert _len_torch_dispatch_stack() == 2
    theirs.stop()
    ours._mode.__exit__(None, None, None)
    assert _len_torch_dispatch_stack() == 0
    assert not ours.notes
    assert [note.op for told in theirs.notes.values() for note in told] == ["aten::ones"]


def test_an_autograd_thread_has_the_line_of_who_waits_for_it():
    noter = LineNoter()
    noter.start()
    thread = threading.Thread(target=noter.note, args=("aten::mm", None))
    thread.start()
    thread.join()
    noter.stop()
    ((thread_id, (note,)),) = noter.notes.items()
    assert thread_id == thread.native_id
    assert note.op == "aten::mm"
    assert note.line.rpartition(":")[0] == __file__
    assert note.of_backward


# Into the file ------------------------------------------------------------------------------------------------

HOSTILE = ['{"cat": "cpu_op", "args": {"External id": 2}}', "a\\", '"args": {', "}, {", "é"]


@pytest.mark.parametrize("piece", [1, 7, 64, 1 << 20])
def test_lines_are_put_where_they_belong(tmp_path, monkeypatch, piece):
    events = [
        {"ph": "X", "cat": category, "name": name, "ts": 1.5, "dur": 1, "args": {"External id": number}}
        for number, (category, name) in enumerate(
            (category, name) for category in ("cpu_op", "user_annotation") for name in HOSTILE * 4
        )
    ]
    events.insert(3, {"ph": "X", "cat": "cpu_op", "name": "no arguments", "ts": 1})
    events.insert(4, {"ph": "X", "cat": "cpu_op", "name": "other arguments", "ts": 1, "args": {"a": {}}})
    lines = {number: f'some "{number}"\\.py:1' for number in range(0, 40, 3)}
    (tmp_path / "raw").write_text(json.dumps({"schemaVersion": 1, "traceEvents": events}, indent=1))
    monkeypatch.setattr(save, "_HEAD_BYTES", 60)
    monkeypatch.setattr(save, "_PIECE_BYTES", piece)
    save.save(tmp_path / "raw", tmp_path / "t.gz", [], {}, lines, lambda _: None)
    found = json.loads(gzip.decompress((tmp_path / "t.gz").read_bytes()))["traceEvents"]
    for event in events:
        number = event.get("args", {}).get("External id")
        if event["cat"] == "cpu_op" and number in lines:
            event["args"] = {"Call line": lines[number], **event["args"]}
    assert found == events
