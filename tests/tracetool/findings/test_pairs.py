"""Real pairs of an H200: a rule finds the fault and not the mend, and its estimate is near what the mend saved."""

from functools import cache

import pytest

import tracetool
from tests.tracetool.traces import TRACES
from tracetool.findings.linting import lint
from tracetool.findings.registry import RULES
from tracetool.findings.settings import Threshold

FOLDER = TRACES / "findings"
FACTOR = 2

PAIRS = {
    "pageable_copy": "TT01",
    "pinned_but_strided": "TT01",
    "small_copies": "TT02",
    "index_lists": "TT02",
    "sync_in_loop": "TT03",
    "boolean_index": "TT03",
    "recompiles": "TT04",
    "autotune_key": "TT04",
    "launch_bound": "TT05",
    "elementwise_run": "TT06",
    "device_malloc": "TT07",
    "zeroed_buffers": "TT07",
    "layout_churn": "TT08",
    "dtype_churn": "TT08",
    "serial_copy": "TT09",
    "graph_recapture": "TT10",
    "small_graphs": "TT10",
    "eager_remainder": "TT10",
    "input_wait": "TT11",
}


@cache
def summary(path):
    return tracetool.summarize(tracetool.read(str(path)))


def found(path, rule):
    return lint([summary(path)], [RULES[rule]], Threshold())[0].findings


def saved(fault, mend, path=("ProfilerStep",), *, once=False):
    """What `tracetool diff` says that a call of a range (of a step, unless told) takes less, in ns.

    The median, as it is shown; the mean of what comes once in a while.
    """
    [row] = [one for one in tracetool.diff(summary(fault), summary(mend)).rows if one.path == path]
    cells = (row.metrics["cpu_ns"].baseline, *row.metrics["cpu_ns"].variants)
    before, after = (cell.sum / cell.count if once else cell.median for cell in cells)
    return before - after


def test_there_is_a_pair_for_each_rule_that_looks_at_one_trace():
    told = {path.name.split(".")[0] for path in FOLDER.glob("*.fault.json.gz")}
    assert told == {*PAIRS, "ranks_0", "ranks_1"}
    assert {*PAIRS.values(), "TT12"} == set(RULES)


@pytest.mark.parametrize("name", PAIRS)
def test_the_fault_is_found_and_costs_what_the_mend_saves(name):
    fault, mend = (FOLDER / f"{name}.{which}.json.gz" for which in ("fault", "mend"))
    rule = PAIRS[name]
    [one] = found(fault, rule)
    assert found(mend, rule) == ()
    assert one.cost.ns is not None
    assert 1 / FACTOR <= one.cost.ns / saved(fault, mend, once=rule == "TT04") <= FACTOR


def test_one_rank_that_checks_and_logs():
    for which, expected in (("fault", [("log",)]), ("mend", [])):
        ranks = [summary(FOLDER / f"ranks_{rank}.{which}.json.gz") for rank in range(2)]
        first, second = lint(ranks, [RULES["TT12"]], Threshold())
        assert first.findings == ()
        assert [one.path[1:] for one in second.findings] == expected


def test_the_fastest_decode_step_has_nothing_to_mend_however_cheap():
    told = lint([summary(FOLDER / "decode_fastest.json.gz")], RULES.values(), Threshold(ns=0))[0]
    assert told.findings == ()
    assert told.unjudged == ()
    assert told.busy_ns > 0.5 * told.step_ns


def test_the_traces_are_small_healthy_and_name_no_folder_of_the_machine():
    paths = list(FOLDER.glob("*.json.gz"))
    assert len(paths) == 2 * (len(PAIRS) + 2) + 1
    for path in paths:
        assert path.stat().st_size <= 300 * 1024, path
        assert summary(path).health.verdict != "error", path
        told = summary(path).metadata["tracetool"]
        assert told["gpus"] == ["NVIDIA H200"]
        assert told["command"][:2] == ["traces/findings/capture.py", "traces/findings"]
    assert sum(path.stat().st_size for path in TRACES.rglob("*.json.gz")) <= 6 * 2**20
