"""What people see: terminals of any width, Markdown and JSON, whatever the names in a trace are."""

import json
import re
from fractions import Fraction

import numpy as np
import pytest
from rich.cells import cell_len

import tracetool
from tracetool.differ import Cell
from tracetool.metrics import ALL, METRICS, Unit
from tracetool.render import json as as_json
from tracetool.render import markdown, terminal, words
from tracetool.render.view import View

from .small import Small, healthy
from .traces import GRAPH, PAGEABLE, PINNED

EVIL = "\x1b[31m`|``<script>alert(1)</script>\r\n[x](http://y) *b* _c_ ~~d~~ &amp; $e$ #1 \\ /\x07\u202e"
LONG_KERNEL = "void cutlass::Kernel2<" + "x" * 158 + "::tail_of_the_name>"
LONG_RANGE = "model.layers." + "y" * 170 + ".tail_of_the_range"
WIDTHS = [40, 60, 80, 120, 200]
ESCAPE = "\x1b"


def summarize(path):
    return tracetool.summarize(tracetool.read(path))


@pytest.fixture(scope="module")
def real():
    return {path: summarize(path) for path in (PAGEABLE, PINNED, GRAPH)}


def odd(name, kernel=LONG_KERNEL, count=1):
    trace = Small(gpu=name)
    with trace.range("outer"):
        for _ in range(count):
            with trace.range(name):
                trace.kernel(kernel, op=name)
                trace.copy(op=name)
    return trace


def pages(found, changes, **settings):
    """Every terminal page about a summary and a diff."""
    view = View(command="next: a command")
    yield terminal.summary(found, view, **settings)
    yield terminal.summary(found, View(everything=True), **settings)
    yield terminal.health(found, **settings)
    yield terminal.metrics(ALL, **settings)
    yield terminal.diff(changes, view, **settings)
    yield terminal.diff(changes, View(everything=True), **settings)


# Terminal -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", WIDTHS)
def test_no_line_is_wider_than_the_terminal_but_the_command(real, width):
    command = "next: tracetool summary " + "x" * 300
    changes = tracetool.diff(real[PAGEABLE], real[PINNED], real[GRAPH])
    for found in real.values():
        for page in (
            *pages(found, changes, width=width, colour=False),
            terminal.summary(found, View(command=command), width=width, colour=False),
        ):
            lines = page.splitlines()
            too_wide = [line for line in lines if cell_len(line) > width and line != command]
            assert not too_wide
            assert not any(line != line.rstrip() for line in lines)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", [LONG_RANGE, EVIL, "\u4e2d\u6587" * 60])
def test_no_odd_name_makes_a_line_too_wide(tmp_path, width, name):
    one, other = odd(name).summary(tmp_path / "a.json"), odd(name, count=2).summary(tmp_path / "b.json")
    for page in pages(one, tracetool.diff(one, other), width=width, colour=False):
        assert max(map(cell_len, page.splitlines())) <= width


@pytest.mark.parametrize("width", [40, 80])
def test_both_ends_of_long_names_are_readable(tmp_path, width):
    one = odd(LONG_RANGE).summary(tmp_path / "a.json")
    other = odd(LONG_RANGE, "other" + LONG_KERNEL).summary(tmp_path / "b.json")
    page = terminal.summary(one, View(), width=width, colour=False)
    (line,) = [line for line in page.splitlines() if "mo" in line and "..." in line and "made" not in line][:1]
    assert re.search(r"mod?e?.*\.\.\..*ge\b", line)
    page = terminal.diff(tracetool.diff(one, other), View(everything=True), width=width, colour=False)
    assert "model" in page
    assert "range" in page


@pytest.mark.parametrize("width", [40, 60, 80])
def test_deep_ranges_keep_their_names(tmp_path, width):
    trace = Small()

    def dive(depth):
        with trace.range(f"depth{depth}"):
            trace.kernel()
            if depth < 25:
                dive(depth + 1)

    dive(0)
    page = terminal.summary(trace.summary(tmp_path / "t.json"), View(), width=width, colour=False)
    for depth in range(26):
        assert f"depth{depth} " in page


def test_columns_left_out_for_want_of_width_are_named(real):
    wide = terminal.summary(real[PAGEABLE], View(), width=200, colour=False)
    assert "want of width" not in wide
    narrow = " ".join(terminal.summary(real[PAGEABLE], View(), width=60, colour=False).split())
    assert "Not shown for want of width: DtoH, syncs, ops, cpu, gpu busy." in narrow
    narrowest = terminal.summary(real[PAGEABLE], View(), width=40, colour=False).splitlines()
    (headings,) = [line for line in narrowest if line.startswith("range")]
    assert "launches" in headings


@pytest.mark.parametrize("name", ["plain", EVIL])
def test_colour_only_when_asked(tmp_path, name):
    one, other = odd(name).summary(tmp_path / "a.json"), odd(name, count=2).summary(tmp_path / "b.json")
    changes = tracetool.diff(one, other)
    for page in pages(one, changes, width=100, colour=False):
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", page)
    for page in pages(one, changes, width=100, colour=True):
        assert ESCAPE in page
        styles = re.compile(r"\x1b\[[0-9;]*m")
        assert ESCAPE not in styles.sub("", page)


def test_colours_change_no_text(real):
    changes = tracetool.diff(real[PAGEABLE], real[PINNED])
    for plain, coloured in zip(
        pages(real[PAGEABLE], changes, width=100, colour=False),
        pages(real[PAGEABLE], changes, width=100, colour=True),
        strict=True,
    ):
        stripped = re.sub(r"\x1b\[[0-9;]*m", "", coloured)
        assert [line.rstrip() for line in stripped.splitlines()] == plain.splitlines()


def test_three_lines_of_header_a_table_a_verdict_and_a_command(tmp_path):
    found = healthy().summary(tmp_path / "t.json")
    found.source = "t.json"
    page = terminal.summary(found, View(command="next: this"), width=100, colour=False)
    assert (
        page.splitlines()
        == [
            "t.json  24 events, 2 steps, 4 ranges",
            "captured on Toy GPU",
            "health ok",
            "",
            "range (per step)     calls  launches  HtoD  HtoD bytes  syncs  ops      cpu  gpu busy",
            "ProfilerStep             1         1     1        64 B      1    2  16.0 us   2.00 us",
            "  train                  1         1     1        64 B      1    2  14.0 us   2.00 us",
            "    load                 1               1        64 B      1    1  5.00 us   1.00 us",
            "    forward              1         1                             1  6.00 us   1.00 us",
            "",
            "made by, in the whole trace",
            "  launches: aten::addmm 2",
            "  HtoD: aten::copy_ 2",
            "  syncs: cudaStreamSynchronize 2",
            "",
            "A step: 1 HtoD copy, 1 sync, 1 kernel launch. train/forward makes 100% of the kernel launches.",
            "next: this",
        ]
        or len(str(tmp_path)) > 60
    )


def test_a_diff_shows_what_changed_with_ratios_and_causes(tmp_path):
    one, other = odd("f").summary(tmp_path / "a.json"), odd("f", count=2).summary(tmp_path / "b.json")
    one.source, other.source = "a.json", "b.json"
    page = terminal.diff(tracetool.diff(one, other), View(command="next: this"), width=100, colour=False)
    assert page.splitlines() == [
        "a  a.json  8 events, 0 steps, 2 ranges",
        "b  b.json  15 events, 0 steps, 2 ranges",
        "captured on f",
        "health a ok, b ok",
        "",
        "  metric                            a        b",
        "outer",
        "  kernel_launches a call            1        2  x2                 new f x 1",
        "  h2d_copies a call                 1        2  x2                 new f x 1",
        "  h2d_bytes a call               64 B    128 B  x2                 f +64 B",
        "  ops a call                        2        4  x2                 new f x 2",
        "  cpu_ns, profiled, a call    9.00 us  17.0 us  too few samples",
        "outer/f",
        "  calls a call of its parent        1        2  x2",
        "  cpu_ns, profiled, a call    7.00 us  7.00 us  too few samples",
        "",
        "outer/f: 1 call a call of its parent became 2",
        "next: this",
    ]


def test_a_narrow_diff_says_the_same_in_lines(real):
    page = terminal.diff(tracetool.diff(real[PAGEABLE], real[PINNED]), View(), width=50, colour=False)
    assert "metric: train_pageable -> train_pinned" in page
    assert "  h2d_copies a call: 17 -> 2 x0.118\n      gone aten::copy_ x 15\n" in page


def test_environment_that_differs_comes_before_the_table(tmp_path):
    one, other = Small(gpu="H200").summary(tmp_path / "a.json"), Small(gpu="H100").summary(tmp_path / "b.json")
    one.source, other.source = "a.json", "b.json"
    page = terminal.diff(tracetool.diff(one, other), View(), width=100, colour=False)
    assert "differs gpu: H200 -> H100" in page.splitlines()[:5]


def test_nothing_to_show_is_said(tmp_path):
    found = healthy().summary(tmp_path / "a.json")
    same = terminal.diff(tracetool.diff(found, found), View(), width=100, colour=False)
    assert "No range that is shown differs; --all shows what is the same." in same
    empty = terminal.summary(Small().summary(tmp_path / "b.json"), View(), width=100, colour=False)
    assert "Nothing is counted in the ranges that are shown." in empty
    assert "health error: There is nothing to count" in empty


# Markdown -----------------------------------------------------------------------------------------------------


def cells(line):
    """Cells of a row of a GitHub table: a pipe is text only behind an odd number of backslashes."""
    assert line.startswith("| ")
    assert line.endswith(" |")
    return re.split(r"(?<!\\)(?:\\\\)*\|", line)[1:-1]


def tables_of(text):
    table = []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            table.append(cells(line))
        elif table:
            yield table
            table = []


def markdowns(one, other):
    for view in (View(), View(everything=True), View(metrics=('op_calls["a|b"]', "kernels"), everything=True)):
        yield markdown.summary(one, view)
        yield markdown.diff(tracetool.diff(one, other), view)
    yield markdown.health(one)
    yield markdown.metrics(ALL)


@pytest.mark.parametrize("name", ["plain", EVIL, LONG_RANGE, "a|b", "\\|", "`", "``|``", "a\\"])
def test_markdown_tables_have_their_columns_and_no_live_names(tmp_path, name):
    one, other = odd(name, name).summary(tmp_path / "a.json"), odd(name, name, count=2).summary(tmp_path / "b.json")
    count = 0
    for text in markdowns(one, other):
        for table in tables_of(text):
            count += 1
            assert len({len(row) for row in table}) == 1
            assert all(set(cell.strip()) == {"-"} for cell in table[1])
        for ours in ("<details>", "</details>", "<summary>", "</summary>"):
            assert text.count(ours) <= 1
            text = text.replace(ours, "")  # noqa: PLW2901 (what is folded is ours, and nobody else's)
        without_code = re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", text.replace("\\`", ""))
        assert not re.search(r"(?<!\\)<", without_code)
        assert not re.search(r"(?<!\\)\[x", without_code)
        assert not re.search(r"[\x00-\x09\x0b-\x1f]", text)
    assert count >= 7


def test_markdown_names_keep_their_text():
    assert markdown._name("a|b") == "`a\\|b`"
    assert markdown._name("a`b") == "`` a`b ``"
    assert markdown._name("a``b") == "``` a``b ```"
    assert markdown._name("a\nb") == "`a b`"
    assert markdown.plain("a_b*c[d]<e>|`") == "a\\_b\\*c\\[d\\]\\<e\\>\\|\\`"
    assert len(markdown._name("x" * 500)) <= 122


@pytest.mark.parametrize("most", [1000, 60_000])
def test_markdown_is_bounded_and_says_what_it_left_out(most):
    blocks = ["**verdict**", *(f"| {number} | {'x' * 90} |" for number in range(2000))]
    text = markdown.bounded(blocks, most)
    assert len(text) <= most
    shown = text.count("| x")
    assert f"And {2001 - shown - 1:,} more lines, for GitHub takes no longer comment" in text
    assert markdown.bounded(blocks[:5]) == "\n".join(blocks[:5]) + "\n"


def test_markdown_of_any_diff_is_a_comment(tmp_path):
    sides = [odd("x" * 900 + str(at), "k" * 900, count=at + 1).summary(tmp_path / f"{at}.json") for at in range(60)]
    text = markdown.diff(tracetool.diff(*sides, labels=[f"{at}{'y' * 900}" for at in range(60)]), View(everything=True))
    assert len(text) < 65_536


def test_markdown_of_the_real_pair(real):
    text = markdown.diff(tracetool.diff(real[PAGEABLE], real[PINNED]), View())
    assert text.startswith("**train\\_step/h2d\\_batch: 17 pageable HtoD copies a call became 2 pinned, ")
    assert "| `train_step/h2d_batch` | kernel\\_launches a call | 1 | 0 gone | gone aten::cat x 1 |" in text
    assert "- train\\_pageable: `" in text


# JSON ---------------------------------------------------------------------------------------------------------


def test_json_hides_nothing(real):
    for found in real.values():
        value = json.loads(as_json.summary(found, View()))
        expected = {tuple(path) for row, path in enumerate(found.paths) if found.calls[row] or found.counted()[row]}
        assert [tuple(row["path"]) for row in value["ranges"]] == [path for path in found.paths if path in expected]
        by_path = {tuple(row["path"]): row for row in value["ranges"]}
        for scope in ("self", "total"):
            for row, path in enumerate(found.paths):
                told = by_path.get(path, {scope: {}})[scope]
                counts = {name: int(found.value(name, scope)[row]) for name in found.counted(scope)[row]}
                counts.pop("calls", None)
                assert told == counts
        for metric in value["totals"]:
            if METRICS[metric].additive:
                inside = [row for row in value["ranges"] if row["path"] != ["(before the window)"]]
                assert sum(row["self"].get(metric, 0) for row in inside) == value["totals"][metric]


def test_json_tells_work_outside_ranges_and_before_the_window(tmp_path):
    trace = healthy()
    trace.orphan()
    trace.kernel()
    value = json.loads(as_json.summary(trace.summary(tmp_path / "t.json"), View()))
    last = {row["path"][0]: row for row in value["ranges"][-2:]}
    assert (last["(no range)"]["self"]["kernels"], last["(no range)"]["calls"]) == (1, 0)
    assert last["(before the window)"]["self"]["kernels"] == 1
    assert value["totals"]["kernels"] == 3


def test_json_of_a_metric_has_no_empty_entries(real):
    value = json.loads(as_json.summary(real[PAGEABLE], View(metrics=("syncs",))))
    assert value["totals"] == {"syncs": 39}
    for row in value["ranges"]:
        assert set(row["self"]) <= {"syncs"}
        assert all(one["syncs"] for one in row["contributors"])
        assert all(thread["self"] for thread in row["threads"])
    assert any(row["contributors"] for row in value["ranges"])


def test_json_of_a_diff_has_every_row_and_every_metric(real):
    changes = tracetool.diff(real[PAGEABLE], real[GRAPH])
    value = json.loads(as_json.diff(changes, View()))
    assert [tuple(row["path"]) for row in value["ranges"]] == [row.path for row in changes.rows]
    for row, told in zip(changes.rows, value["ranges"], strict=True):
        assert set(told["metrics"]) == set(row.metrics)


def test_json_says_which_range_was_matched_by_name(tmp_path):
    sides = []
    for outer in ("old", "new"):
        trace = Small()
        with trace.range(outer), trace.range("inner"):
            trace.kernel()
        sides.append(trace.summary(tmp_path / f"{outer}.json"))
    value = json.loads(as_json.diff(tracetool.diff(*sides), View()))
    matched = [row for row in value["ranges"] if "matched_by_name" in row]
    assert [(row["path"], row["matched_by_name"]) for row in matched] == [(["old", "inner"], [["new", "inner"]])]


# Words --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0, Unit.COUNT, "0"),
        (1234567, Unit.COUNT, "1,234,567"),
        (Fraction(3, 2), Unit.COUNT, "1.50"),
        (Fraction(1, 1000), Unit.COUNT, "0.001"),
        (0, Unit.BYTES, "0 B"),
        (1023, Unit.BYTES, "1,023 B"),
        (1024, Unit.BYTES, "1 KiB"),
        (1536, Unit.BYTES, "1.5 KiB"),
        (3 * 2**40, Unit.BYTES, "3 TiB"),
        (0, Unit.NS, "0 ns"),
        (999, Unit.NS, "999 ns"),
        (1500, Unit.NS, "1.50 us"),
        (12_345, Unit.NS, "12.3 us"),
        (123_456, Unit.NS, "123 us"),
        (2_500_000_000, Unit.NS, "2.50 s"),
    ],
)
def test_numbers(value, unit, text):
    assert words.number(value, unit) == text


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [(2, 2, ""), (0, 2, "new"), (2, 0, "gone"), (17, 2, "x0.118"), (1, 1000, "x1000"), (3, 4, "x1.33")],
)
def test_ratios(before, after, text):
    assert words.ratio(before, after) == text


def test_spreads():
    assert words.spread(None, "kernels") == "-"
    assert words.spread(Cell(np.array([3, 3])), "kernels") == "3"
    assert words.spread(Cell(np.array([1, 5, 2])), "kernels") == "1..2..5"
    assert words.spread(Cell(np.array([1000, 3000, 2000])), "cpu_ns") == "2.00 us"


def test_shortened_names_keep_both_ends():
    assert words.shorten("short", 10) == "short"
    assert words.shorten("a" * 50 + "z" * 50, 20) == "a" * 12 + "..." + "z" * 5
    assert words.shorten("two\nlines\tand\x1bescape", 40) == "two lines and\N{REPLACEMENT CHARACTER}escape"


def test_causes_of_several_variants_are_told_apart(real):
    changes = tracetool.diff(real[GRAPH], real[PAGEABLE], real[PINNED])
    page = terminal.diff(changes, View(), width=200, colour=False)
    assert "aten::copy_ 16 B -> 0 B, 0 B; aten::_local_scalar_dense 0 B -> 4 B, 4 B" in page
    assert "aten::sum 0 -> 3, 3; and 14 more" in page


def test_one_thing_is_told_in_the_singular(tmp_path):
    sick = Small()
    with sick.range("f"):
        sick.lost_launch()
    stray = healthy()
    stray.kernel()
    told = [
        one.message
        for number, trace in enumerate((sick, stray))
        for one in trace.summary(tmp_path / f"{number}.json").health.findings
    ]
    assert any(message.startswith("1 launch call and not one device event: ") for message in told)
    assert "1 range ends with the trace and is perhaps cut." in told
    assert "1 piece of device work was queued outside any range." in told


def test_more_ranges_than_anybody_reads_are_counted_and_shown_on_demand(tmp_path):
    events = []
    for number in range(450):
        start = 100 * number
        events += [
            {"ph": "X", "cat": "user_annotation", "name": f"r{number}", "pid": 1, "tid": 1, "ts": start, "dur": 90},
            {"ph": "X", "cat": "cpu_op", "name": "aten::add", "pid": 1, "tid": 1, "ts": start + 1, "dur": 5},
        ]
    path = tmp_path / "many.json"
    path.write_text(json.dumps({"traceEvents": events}))
    found = tracetool.summarize(tracetool.read(str(path)))
    shown = terminal.summary(found, View(), width=100, colour=False)
    assert "And 50 more ranges: --range chooses, --all shows them all." in shown
    assert "r399 " in shown
    assert "r400 " not in shown
    assert "r449 " in terminal.summary(found, View(everything=True), width=100, colour=False)
    assert "And 50 more ranges" in markdown.summary(found, View())
    other = tmp_path / "none.json"
    other.write_text(json.dumps({"traceEvents": events[:2]}))
    compared = tracetool.diff(found, tracetool.read(str(other)))
    assert "And 49 more ranges" in terminal.diff(compared, View(), width=100, colour=False)
    assert "And 49 more ranges" in markdown.diff(compared, View())
