"""Budgets as they are written: every operator and unit, every way to get one wrong."""

from fractions import Fraction

import pytest

from tracetool.budgets import Bound, Relation, parse_bound, parse_table, parse_toml
from tracetool.errors import BudgetError
from tracetool.metrics import lookup

COUNT, BYTES, TIME = "h2d_copies", "h2d_bytes", "cpu_ns"


@pytest.mark.parametrize(
    ("metric", "text", "relation", "number", "relative"),
    [
        (COUNT, 1, "=", 1, False),
        (COUNT, 0, "=", 0, False),
        (COUNT, "= 3", "=", 3, False),
        (COUNT, "==3", "=", 3, False),
        (COUNT, "<= 140", "<=", 140, False),
        (COUNT, "< 1_000", "<", 1000, False),
        (COUNT, ">=1,000", ">=", 1000, False),
        (COUNT, " > 5 ", ">", 5, False),
        (COUNT, "<= baseline", "<=", 1, True),
        (COUNT, "baseline", "=", 1, True),
        (COUNT, "<= baseline * 1.05", "<=", Fraction(105, 100), True),
        (COUNT, ">=baseline*2", ">=", 2, True),
        (BYTES, "<= 64 KiB", "<=", 64 << 10, False),
        (BYTES, "<= 1.5 MiB", "<=", 3 << 19, False),
        (BYTES, "<= 2 GiB", "<=", 2 << 30, False),
        (BYTES, "<= 1 TiB", "<=", 1 << 40, False),
        (BYTES, "<= 3 kB", "<=", 3000, False),
        (BYTES, "<= 3MB", "<=", 3 * 10**6, False),
        (BYTES, "<= 3 GB", "<=", 3 * 10**9, False),
        (BYTES, "<= 7 B", "<=", 7, False),
        (BYTES, "<= 7", "<=", 7, False),
        (TIME, "<= 2.5 ms", "<=", 2_500_000, False),
        (TIME, "<= 30 us", "<=", 30_000, False),
        (TIME, "<= 1 s", "<=", 10**9, False),
        (TIME, ">= 8 ns", ">=", 8, False),
        (TIME, "<= baseline * 1.1", "<=", Fraction(11, 10), True),
    ],
)
def test_bounds(metric, text, relation, number, relative):
    assert parse_bound(lookup(metric), text) == Bound(Relation(relation), Fraction(number), relative)


@pytest.mark.parametrize(
    ("metric", "text", "words"),
    [
        (COUNT, "lots", "h2d_copies = 'lots' is no bound: write a number, or text like '<= 140'"),
        (COUNT, "", "is no bound"),
        (COUNT, "<= ", "is no bound"),
        (COUNT, "<= -1", "is no bound"),
        (COUNT, -1, "is no bound"),
        (COUNT, 1.5, "is no bound"),
        (COUNT, True, "is no bound"),
        (COUNT, None, "is no bound"),
        (COUNT, "=> 3", "is no bound"),
        (COUNT, "<= 3 4", "is no bound"),
        (COUNT, "<= baseline + 3", "is no bound"),
        (COUNT, "<= basline", "is no bound"),
        (COUNT, "<= 3 KiB", "h2d_copies is a count, which has no unit, not 'KiB'"),
        (COUNT, "<= 2.5", "is no whole number of count"),
        (BYTES, "<= 64 kib", "h2d_bytes is counted in B, kB, MB, GB, TB, KiB, MiB, GiB, TiB, not 'kib'"),
        (BYTES, "<= 3 ms", "not 'ms'"),
        (BYTES, "<= 0.3 B", "no whole number of bytes"),
        (TIME, "<= 3 B", "cpu_ns is counted in ns, us, ms, s, not 'B'"),
        (TIME, "3 ms", "a time is never exact: bound it with '<=' or '>='"),
        (TIME, "baseline", "a time is never exact"),
    ],
)
def test_bounds_that_cannot_be_read(metric, text, words):
    with pytest.raises(BudgetError) as raised:
        parse_bound(lookup(metric), text)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("relation", list(Relation))
def test_what_holds(relation):
    expected = {"=": [0, 1, 0], "<=": [1, 1, 0], ">=": [0, 1, 1], "<": [1, 0, 0], ">": [0, 0, 1]}[relation]
    assert [relation.holds(value, 5) for value in (4, 5, 6)] == [bool(one) for one in expected]


def test_a_file_of_budgets():
    text = """
    [[budgets]]
    range = "decode/h2d"
    h2d_copies = 1
    "self.syncs" = 0
    self.ops = "<= 3"
    op_calls."aten::copy_" = 2
    'op_calls["aten::to"]' = 1
    allow = [{ op = "aten::item", line = "a.py:3", metric = "syncs", reason = "it prints" }]

    [[budgets]]
    per = "step"
    kernel_launches = "<= 140"
    """
    found = {(one.pattern, one.scope, one.metric.name): one for one in parse_toml(text, "b.toml")}
    assert set(found) == {
        ("decode/h2d", "total", "h2d_copies"),
        ("decode/h2d", "self", "syncs"),
        ("decode/h2d", "self", "ops"),
        ("decode/h2d", "total", 'op_calls["aten::copy_"]'),
        ("decode/h2d", "total", 'op_calls["aten::to"]'),
        ("", "total", "kernel_launches"),
    }
    assert found["", "total", "kernel_launches"].per == "step"
    assert found["decode/h2d", "self", "syncs"].allowed[0].reason == "it prints"
    assert found["decode/h2d", "total", "h2d_copies"].allowed == ()


def test_budgets_of_a_pyproject():
    text = '[project]\nname = "x"\n[[tool.tracetool.budgets]]\nrange = "f"\nops = 1\n'
    assert [one.metric.name for one in parse_toml(text, "pyproject.toml")] == ["ops"]
    assert parse_toml('[project]\nname = "x"\n', "pyproject.toml") == []
    assert parse_toml("[tool.tracetool]\nworkloads = []\n", "pyproject.toml") == []


def budgets(body):
    return f'[[budgets]]\nrange = "f"\n{body}\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "b.toml has no budgets: write at least one table [[budgets]]"),
        ("# nothing\n", "has no budgets"),
        ("[[budgets]\n", "b.toml is not TOML"),
        (budgets("ops = 1\nops = 2"), "b.toml is not TOML: Cannot overwrite a value"),
        (budgets("self.ops = 1\n'self.ops' = 2"), "range 'f': self.ops is bounded twice"),
        (budgets("op_calls.a = 1\n'op_calls[\"a\"]' = 2"), 'op_calls["a"] is bounded twice'),
        ("[[budget]]\nops = 1\n", "b.toml has 'budget', which is not known there: budgets are tables [[budgets]]"),
        ("budgets = 3\n", "budgets are tables [[budgets]], one for each range"),
        ("budgets = [3]\n", "budgets are tables [[budgets]], one for each range"),
        ("[budgets.f]\nops = 1\n", "budgets are tables [[budgets]], one for each range"),
        (budgets(""), "b.toml: budget of range 'f': it bounds nothing"),
        (budgets("opps = 1"), "b.toml: budget of range 'f': 'opps' is no metric: did you mean 'ops'?"),
        (budgets("ops = 'few'"), "b.toml: budget of range 'f': ops = 'few' is no bound"),
        (budgets("ops = [1]"), "ops = [1] is no bound"),
        (budgets("ops.x = 1"), "budget of range 'f': ops is a table"),
        (budgets("ops = 1\nper = 'second'"), "per is one of call, step, trace, but is 'second'"),
        (budgets("ops = 1\nper = 1"), "per is one of call, step, trace, but is 1"),
        ('[[budgets]]\nrange = ""\nops = 1\n', "the range pattern '' is empty"),
        ('[[budgets]]\nrange = "a\\\\"\nops = 1\n', "ends with a lone backslash"),
        ("[[budgets]]\nrange = 3\nops = 1\n", "a budget's range is a pattern in quotes, but is 3"),
        ("[[budgets]]\nper = 'call'\nops = 1\n", "a whole trace has no calls"),
        ("[[budgets]]\ncalls = 1\n", "calls is a range's, and not a whole trace's"),
        ("[[budgets]]\ncpu_ns = '<= 1 s'\n", "cpu_ns is a range's, and not a whole trace's"),
        (budgets("ops = 1\nallow = 'x'"), "allow is a list of tables"),
        (budgets("ops = 1\nallow = ['x']"), "each entry of allow is a table of texts"),
        (budgets("ops = 1\nallow = [{op = 1, reason = 'y'}]"), "each entry of allow is a table of texts"),
        (budgets("ops = 1\nallow = [{op = 'x'}]"), "an entry of allow says why"),
        (budgets("ops = 1\nallow = [{op = 'x', reason = ' '}]"), "an entry of allow says why"),
        (budgets("ops = 1\nallow = [{reason = 'x'}]"), "names what it is for: an op, a line"),
        (budgets("ops = 1\nallow = [{opp = 'x', reason = 'y'}]"), "allow has no setting 'opp': did you mean 'op'?"),
        (budgets("ops = 1\nallow = [{op = 'x', metric = 'opps', reason = 'y'}]"), "allow: 'opps' is no metric"),
        (budgets("calls = 1\nallow = [{op = 'x', reason = 'y'}]"), "calls is no sum of what ops do"),
    ],
)
def test_files_that_are_wrong(text, words):
    with pytest.raises(BudgetError) as raised:
        parse_toml(text, "b.toml")
    assert words in str(raised.value)
    assert "b.toml" in str(raised.value)


def test_a_table_of_a_marker():
    [budget] = parse_table({"range": "f", "per": "trace", "op_calls": {"aten::add": "<= 2"}}, "trace_budget")
    assert (budget.per, budget.metric.name, budget.place) == (
        "trace",
        'op_calls["aten::add"]',
        "trace_budget: budget of range 'f': op_calls[\"aten::add\"]",
    )
