"""Lines for the ops of a trace: hand-written ops, what was noted in another step, the expected table beside them."""

import difflib
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tracetool
from tests.tracetool.small import Small
from tracetool.capturing.alignment import Note, align, common
from tracetool.events import Category

THREAD = 1


def notes(*told, thread=THREAD):
    """Notes from texts like `aten::add a.py:1`, with ` backward` where that is only the call of backward."""
    found = []
    for text in told:
        op, line, *backward = text.split()
        found.append(Note(op, None if line == "-" else line, bool(backward)))
    return {thread: found}


def ops(trace, *tree):
    """Ops as text, and the ops inside each as a list after it."""
    for item, inside in itertools.zip_longest(tree, tree[1:]):
        if isinstance(item, str):
            with trace.op(item):
                ops(trace, *(inside if isinstance(inside, list) else []))


class Traced:
    """A step of some ops, and the line of each."""

    def __init__(self, path, *tree, steps=1):
        self.trace = Small(gpu=None)
        for number in range(steps):
            with self.trace.step(number):
                ops(self.trace, *tree)
        self._path = path / "t.json"

    def flow(self, forward, backward):
        """A flow between two ops by their places."""
        of = [event for event in self.trace.events if event["cat"] == "cpu_op"]
        for phase, op in (("s", forward), ("f", backward)):
            event = {**of[op], "ph": phase, "cat": "fwdbwd", "name": "fwdbwd", "id": 100 + forward}
            self.trace.events.append(event)

    def lines(self, told):
        """`name line` for each op in order."""
        events = tracetool.read(self.trace.write(self._path)).events
        found = align(events, told)
        rows = events.of(Category.OP).tolist()
        ids = events.external_id[rows].tolist()
        names = [events.names[events.name[row]] for row in rows]
        shown = [f"{name} {found.of_op.get(one, '-')}" for name, one in zip(names, ids, strict=True)]
        assert (found.ops, found.known) == (len(shown), sum(not line.endswith(" -") for line in shown))
        return shown


def test_equal_sequences(tmp_path):
    traced = Traced(tmp_path, "aten::add", "aten::mul", "aten::add")
    assert traced.lines(notes("aten::add a.py:1", "aten::mul a.py:2", "aten::add a.py:3")) == [
        "aten::add a.py:1",
        "aten::mul a.py:2",
        "aten::add a.py:3",
    ]


def test_what_is_inside_an_op_has_its_line(tmp_path):
    traced = Traced(tmp_path, "aten::_to_copy", ["aten::empty", "aten::copy_"], "aten::copy_")
    assert traced.lines(notes("aten::_to_copy a.py:1", "aten::copy_ a.py:2")) == [
        "aten::_to_copy a.py:1",
        "aten::empty a.py:1",
        "aten::copy_ a.py:1",
        "aten::copy_ a.py:2",
    ]


def test_a_composite_op_has_the_line_of_what_it_is_made_of(tmp_path):
    traced = Traced(
        tmp_path, "aten::linear", ["aten::t", ["aten::transpose"], "aten::resolve_conj", "aten::addmm"], "aten::to"
    )
    assert traced.lines(notes("aten::t a.py:1", "aten::addmm a.py:1")) == [
        "aten::linear a.py:1",
        "aten::t a.py:1",
        "aten::transpose a.py:1",
        "aten::resolve_conj a.py:1",
        "aten::addmm a.py:1",
        # Which did nothing, and was not noted.
        "aten::to -",
    ]


def test_an_op_around_several_lines_has_none(tmp_path):
    traced = Traced(tmp_path, "aten::outer", ["aten::add", "aten::mul"], "Mine", ["aten::add"])
    assert traced.lines(notes("aten::add a.py:1", "aten::mul a.py:2", "aten::add a.py:3")) == [
        "aten::outer -",
        "aten::add a.py:1",
        "aten::mul a.py:2",
        # A function of autograd's: called in one line, and itself calling in others.
        "Mine -",
        "aten::add a.py:3",
    ]


@pytest.mark.parametrize(
    ("noted", "lines"),
    [
        (["aten::add a.py:1", "aten::mul a.py:2", "aten::sub a.py:3"], ["a.py:1", "a.py:2", "a.py:3"]),
        (["aten::add a.py:1", "aten::sub a.py:3"], ["a.py:1", "-", "a.py:3"]),
        (
            ["aten::add a.py:1", "aten::div a.py:9", "aten::mul a.py:2", "aten::sub a.py:3"],
            ["a.py:1", "a.py:2", "a.py:3"],
        ),
        (["aten::add a.py:1", "aten::div a.py:9", "aten::sub a.py:3"], ["a.py:1", "-", "a.py:3"]),
        (["aten::mul a.py:2"], ["-", "a.py:2", "-"]),
        (["aten::div a.py:9"], ["-", "-", "-"]),
        (["aten::add -", "aten::mul a.py:2", "aten::sub a.py:3"], ["-", "a.py:2", "a.py:3"]),
    ],
)
def test_steps_that_differ_a_little(tmp_path, noted, lines):
    traced = Traced(tmp_path, "aten::add", "aten::mul", "aten::sub")
    assert [line.split()[1] for line in traced.lines(notes(*noted))] == lines


def test_every_recorded_step_is_laid_beside_the_noted_one(tmp_path):
    traced = Traced(tmp_path, "aten::add", "aten::mul", steps=3)
    assert traced.lines(notes("aten::add a.py:1", "aten::mul a.py:2")) == ["aten::add a.py:1", "aten::mul a.py:2"] * 3


def test_ops_outside_steps_have_no_line_and_are_not_counted(tmp_path):
    trace = Small(gpu=None)
    ops(trace, "aten::add")
    with trace.step(1):
        ops(trace, "aten::add")
    found = align(tracetool.read(trace.write(tmp_path / "t.json")).events, notes("aten::add a.py:1"))
    assert (found.ops, found.known, list(found.of_op.values())) == (1, 1, ["a.py:1"])


def test_threads_are_laid_beside_their_own_notes(tmp_path):
    trace = Small(gpu=None)
    with trace.step(1):
        for thread in (1, 2, 3):
            trace.thread = thread
            ops(trace, "aten::add")
        trace.thread = 1
    told = notes("aten::add a.py:1") | notes("aten::add a.py:2", thread=2)
    found = align(tracetool.read(trace.write(tmp_path / "t.json")).events, told)
    assert (found.ops, found.known, sorted(found.of_op.values())) == (3, 2, ["a.py:1", "a.py:2"])


def test_an_op_that_is_noted_in_some_places_and_taken_apart_in_others(tmp_path):
    # In inference mode `matmul` is not taken apart before it is noted, outside it is.
    traced = Traced(tmp_path, "aten::matmul", ["aten::mm"], "aten::add", "aten::matmul", ["aten::mm"])
    assert traced.lines(notes("aten::matmul a.py:1", "aten::add a.py:2", "aten::mm a.py:3")) == [
        "aten::matmul a.py:1",
        "aten::mm a.py:1",
        "aten::add a.py:2",
        "aten::matmul a.py:3",
        "aten::mm a.py:3",
    ]


def test_a_tensor_of_python_data_is_noted_when_it_is_done(tmp_path):
    copy = ["aten::_to_copy", ["aten::copy_"]]
    traced = Traced(
        tmp_path,
        *("aten::to", copy, "aten::empty", "aten::to", copy, "aten::lift_fresh", "aten::detach_", ["detach_"]),
        *("aten::add", "aten::to", "aten::lift_fresh"),
    )
    told = ["aten::_to_copy a.py:1", "aten::lift_fresh a.py:2", "aten::add a.py:3", "aten::lift_fresh a.py:4"]
    assert traced.lines(notes(*told)) == [
        *("aten::to a.py:1", "aten::_to_copy a.py:1", "aten::copy_ a.py:1"),
        *("aten::empty a.py:2", "aten::to a.py:2", "aten::_to_copy a.py:2", "aten::copy_ a.py:2"),
        *("aten::lift_fresh a.py:2", "aten::detach_ a.py:2", "detach_ a.py:2"),
        # From numpy nothing is put together, and the op before belongs to somebody else.
        *("aten::add a.py:3", "aten::to -", "aten::lift_fresh a.py:4"),
    ]


def test_ops_that_only_look_as_if_they_made_a_tensor(tmp_path):
    copy = ["aten::_to_copy", ["aten::copy_"]]
    traced = Traced(tmp_path, "aten::empty", "aten::to", copy, "aten::lift_fresh", "aten::add")
    told = ["aten::empty a.py:1", "aten::_to_copy a.py:2", "aten::lift_fresh a.py:3", "aten::add a.py:4"]
    assert traced.lines(notes(*told)) == [
        *("aten::empty a.py:1", "aten::to a.py:2", "aten::_to_copy a.py:2", "aten::copy_ a.py:2"),
        *("aten::lift_fresh a.py:3", "aten::add a.py:4"),
    ]


WRAPPER = "autograd::engine::evaluate_function: "


def test_backward_ops_have_the_line_of_their_forward_op(tmp_path):
    traced = Traced(
        tmp_path,
        *("aten::relu", "aten::mm", "aten::ones_like"),
        *(f"{WRAPPER}MmBackward0", ["MmBackward0", ["aten::mm", "aten::mm"], "aten::sum"]),
        *(f"{WRAPPER}ReluBackward0", ["ReluBackward0", ["aten::threshold_backward"]]),
        *(f"{WRAPPER}torch::autograd::AccumulateGrad", ["torch::autograd::AccumulateGrad", ["aten::detach"]]),
    )
    traced.flow(1, 3)
    traced.flow(0, 9)  # some versions end it at the op inside the wrapper
    told = [
        *("aten::relu a.py:1", "aten::mm a.py:2", "aten::ones_like a.py:5"),
        *("aten::mm a.py:5 backward", "aten::mm a.py:5 backward", "aten::sum a.py:5 backward"),
        *("aten::threshold_backward a.py:5 backward", "aten::detach a.py:5 backward"),
    ]
    assert traced.lines(notes(*told)) == [
        *("aten::relu a.py:1", "aten::mm a.py:2", "aten::ones_like a.py:5"),
        *(f"{WRAPPER}MmBackward0 a.py:2", "MmBackward0 a.py:2", *["aten::mm a.py:2"] * 2, "aten::sum a.py:2"),
        *(f"{WRAPPER}ReluBackward0 a.py:1", "ReluBackward0 a.py:1", "aten::threshold_backward a.py:1"),
        f"{WRAPPER}torch::autograd::AccumulateGrad a.py:5",
        *("torch::autograd::AccumulateGrad a.py:5", "aten::detach a.py:5"),
    ]


def test_python_code_of_a_backward_pass_has_its_own_lines(tmp_path):
    traced = Traced(tmp_path, "aten::mul", f"{WRAPPER}MineBackward", ["MineBackward", ["aten::mul", "aten::add"]])
    traced.flow(0, 1)
    told = ["aten::mul a.py:1", "aten::mul a.py:8", "aten::add a.py:9 backward"]
    assert traced.lines(notes(*told)) == [
        "aten::mul a.py:1",
        f"{WRAPPER}MineBackward a.py:1",
        "MineBackward a.py:1",
        "aten::mul a.py:8",
        "aten::add a.py:1",
    ]


def test_a_forward_op_that_was_not_noted_itself(tmp_path):
    traced = Traced(
        tmp_path, "aten::reshape", ["aten::_reshape_alias", "aten::view"], f"{WRAPPER}XBackward0", ["XBackward0"]
    )
    traced.flow(1, 3)
    assert traced.lines(notes("aten::view a.py:1"))[3:] == [f"{WRAPPER}XBackward0 a.py:1", "XBackward0 a.py:1"]


def test_flows_that_lead_nowhere(tmp_path):
    traced = Traced(tmp_path, "aten::mul", f"{WRAPPER}MulBackward0")
    traced.flow(0, 1)
    traced.trace.events = [event for event in traced.trace.events if event["ph"] != "s"]
    assert traced.lines(notes("aten::mul a.py:1")) == ["aten::mul a.py:1", f"{WRAPPER}MulBackward0 -"]


def test_without_ops_or_notes(tmp_path):
    trace = Small(gpu=None)
    with trace.step(1):
        pass
    events = tracetool.read(trace.write(tmp_path / "t.json")).events
    assert align(events, notes("aten::add a.py:1")).of_op == {}
    assert Traced(tmp_path, "aten::add").lines({}) == ["aten::add -"]


# Sequences ----------------------------------------------------------------------------------------------------


def longest(one, other):
    """The length of the longest common subsequence, by the table of all prefixes."""
    row = [0] * (len(other) + 1)
    for a in one:
        before = row
        row = [0]
        for b, diagonal, above in zip(other, before, before[1:], strict=False):
            row.append(diagonal + 1 if a == b else max(above, row[-1]))
    return row[-1]


@given(st.text("abc", max_size=30), st.text("abc", max_size=30))
def test_common_is_a_longest_common_subsequence(one, other):
    pairs = common(one, other)
    assert all(one[i] == other[j] for i, j in pairs)
    assert all(i < k and j < m for (i, j), (k, m) in itertools.pairwise(pairs))
    assert len(pairs) == longest(one, other)


@given(st.text("ab", min_size=1, max_size=200), st.text("xy", min_size=1, max_size=200))
def test_nothing_in_common(one, other):
    assert common(one, other) == []


def test_sequences_that_differ_in_many_places_are_followed_to_their_end():
    layer = ["norm", "mm", "mm", "softmax", "mm", "add"]
    one = layer * 2000
    other = [op for number, op in enumerate(one) if number % 7] + ["last"]
    pairs = common(one, other)
    assert all(one[i] == other[j] for i, j in pairs)
    assert len(pairs) > 0.97 * (len(other) - 1)
    # The quicker way is not worse than the standard library's slow one on what both can do.
    blocks = difflib.SequenceMatcher(None, one[:700], other[:600], autojunk=False).get_matching_blocks()
    assert len(common(one[:700], other[:600])) >= sum(block.size for block in blocks)
