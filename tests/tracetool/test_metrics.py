"""The registry is all there is: what is counted is in it, and what is in it can be counted."""

import json

import pytest

import tracetool
from tracetool.errors import SettingError
from tracetool.metrics import DIRECTIONS, METRICS, Unit, lookup, op_calls, op_of
from tracetool.render import tables, verdict

from .small import Small
from .traces import GRAPH, PAGEABLE, PINNED, invoke


def everything(tmp_path):
    """A trace in which every metric of the registry counts something."""
    trace = Small(gpu="A", distributedInfo={"rank": 0})
    with trace.range("f"):
        trace.kernel(op="aten::mm")
        trace.graph("one", "two")
        trace.lost_launch()
        for direction, memory in [("HtoD", "Pageable"), ("HtoD", "Pinned"), ("DtoH", "Pageable"), ("DtoH", "Pinned")]:
            trace.copy(direction, memory)
        trace.copy("DtoD")
        for name in ("Memcpy PtoP (Device -> Device)", "Memcpy HtoA (Host -> Array)"):
            trace.copy("DtoD")
            trace.events[-1]["name"] = name
        trace.memset()
        trace.sync()
        trace.kernel("ncclDevKernel_AllReduce")
        trace.events[-1]["args"].update(
            {"Collective name": "allreduce", "In msg nelems": 8, "Out msg nelems": 8, "dtype": "Float"}
        )
        trace._call("cudaMalloc", None, [], 1)
        trace.events.append(
            {"ph": "i", "s": "t", "cat": "cpu_instant_event", "name": "[memory]", "pid": 1, "tid": 1, "ts": trace.now}
            | {"args": {"Bytes": 512, "Total Allocated": 512, "Device Type": 1, "Device Id": 0}}
        )
        trace.now += 1
        for hit in (False, True):
            trace._add("compile", "add_kernel", 1, 1, trace.now, 5, cache_hit=hit)
            trace.now += 5
        trace._add("autotune", "add_kernel", 1, 1, trace.now, 5)
        trace.now += 5
    return trace.write(tmp_path / "everything.json")


def emitted(value):
    """Names of metrics anywhere in a JSON summary."""
    names = set(value["totals"])
    for step in value["steps"]:
        names |= set(step["totals"])
    for row in value["ranges"]:
        names |= {*row["self"], *row["total"], *row["per_call"], *row["via_autograd"]}
        for thread in row["threads"]:
            names |= set(thread["self"])
        for one in row["contributors"]:
            names |= set(one) - {"by", "name"}
    return names


@pytest.mark.parametrize("trace", [PAGEABLE, PINNED, GRAPH])
def test_every_metric_that_is_written_is_in_the_registry(trace):
    names = emitted(json.loads(invoke("summary", trace, "--format", "json").stdout))
    assert len(names) > 10
    for name in names:
        assert lookup(name).name == name


def test_every_metric_of_the_registry_can_be_counted(tmp_path):
    path = everything(tmp_path)
    names = emitted(json.loads(invoke("summary", path, "--format", "json").stdout))
    assert {name for name in names if name in METRICS} == set(METRICS) - {"calls"}
    found = json.loads(invoke("diff", path, path, "--format", "json").stdout)
    (row,) = [row for row in found["ranges"] if row["path"] == ["f"]]
    assert {name for name in row["metrics"] if name in METRICS} == set(METRICS)


def test_names_tell_units():
    for name, metric in METRICS.items():
        assert metric.name == name
        assert (metric.unit is Unit.BYTES) == name.endswith("_bytes")
        assert (metric.unit is Unit.NS) == name.endswith("_ns")
        assert metric.exact == (metric.unit is not Unit.NS)
        assert metric.meaning.endswith(".")


def test_only_calls_busy_time_and_peaks_are_not_additive():
    assert {name for name, metric in METRICS.items() if not metric.additive} == {"calls", "gpu_busy_ns", "peak_bytes"}


def test_copies_by_direction_sum_to_all_copies(tmp_path):
    found = tracetool.summarize(tracetool.read(everything(tmp_path)))
    for what, whole in (("copies", "copies"), ("bytes", "copy_bytes")):
        assert sum(found.totals[f"{direction}_{what}"] for direction in DIRECTIONS) == found.totals[whole]


def test_every_name_that_renderers_know_is_in_the_registry():
    known = {*tables.SUMMARY_METRICS, *tables.DETAILS, *tables.SHORT, *verdict._TELLING, *verdict._WORDS}
    assert known <= set(METRICS)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("kernel_launchs", "did you mean 'kernel_launches'?"),
        ("sync", "did you mean 'syncs'?"),
        ("h2d_byte", "did you mean 'h2d_bytes'?"),
        ("zzz", "`tracetool metrics` lists them"),
        ("", "`tracetool metrics` lists them"),
        ('op_calls[""]', "`tracetool metrics` lists them"),
    ],
)
def test_an_unknown_name_gets_a_hint(name, hint):
    with pytest.raises(SettingError) as error:
        lookup(name)
    assert str(error.value) == f"'{name}' is no metric: {hint}"


@pytest.mark.parametrize("op", ["aten::copy_", 'quotes "]', "[x]", "two\nlines", "|"])
def test_op_calls_of_any_op(op):
    assert op_of(op_calls(op)) == op
    metric = lookup(op_calls(op))
    assert (metric.name, metric.unit, metric.exact, metric.additive) == (op_calls(op), Unit.COUNT, True, True)


@pytest.mark.parametrize("name", ["kernels", "op_calls", "op_calls[x]", 'op_calls["x"] '])
def test_what_is_no_op_calls_metric(name):
    assert op_of(name) is None
