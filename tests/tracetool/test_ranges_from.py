"""`--ranges-from`: what commands do with an eager trace, and how what it gives back is shown."""

import json
from pathlib import Path

import pytest

from tracetool.cli import main

from .small import Small
from .test_schemas import validate
from .traces import GRAPH
from .traces import invoke as invoke_at_any_width


def invoke(*arguments, **settings):
    """Run a command on a page that breaks no line, however long the paths of files are."""
    return invoke_at_any_width(*arguments, **settings, env={"COLUMNS": "400"})


def program(*, graph, steps=2, missing=False):
    """A decode step of two layers, launched kernel by kernel, or as one graph in a range of its own."""
    trace = Small()
    for number in range(steps):
        with trace.step(number), trace.range("decode", idle=20):
            trace.copy(memory="Pinned", op="aten::copy_")
            if graph:
                with trace.range("replay"):
                    trace.graph(*["norm", "gemm", "new" if missing else "add"] * 2)
                continue
            for _ in range(2):
                with trace.range("layer"):
                    trace.kernel("norm", op="aten::norm")
                    with trace.range("mlp"):
                        trace.kernel("gemm", op="aten::mm")
                        trace.kernel("add", op="aten::add")
    return trace


@pytest.fixture
def eager(tmp_path):
    return program(graph=False).write(tmp_path / "eager.json")


@pytest.fixture
def graph(tmp_path):
    return program(graph=True).write(tmp_path / "graph.json")


@pytest.fixture
def partly(tmp_path):
    return program(graph=True, missing=True).write(tmp_path / "partly.json")


def rows(text):
    return [" ".join(line.split()) for line in text.splitlines()]


def test_a_summary_shows_the_ranges_and_says_that_they_come_from_a_graph(eager, graph):
    done = invoke("summary", graph, "--ranges-from", eager, "--metric", "kernels", "--metric", "graph_launches")
    assert done.exit_code == 0
    shown = rows(done.stdout)
    assert f"12 of 12 kernels of graphs given back to ranges of {eager}" in shown
    assert "replay 1 6 1" in shown
    assert "layer (via graph) 2 6" in shown
    assert "mlp (via graph) 2 4" in shown
    assert "kernels: aten::add 4, aten::mm 4, aten::norm 4" in shown
    assert shown[-1] == (
        f"next: tracetool summary {graph} --ranges-from {eager} --range /decode/replay --per call --all"
    )


def test_without_the_option_nothing_is_said_of_it(graph):
    done = invoke("summary", graph)
    assert "given back" not in done.stdout
    assert "via graph" not in done.stdout
    found = json.loads(invoke("summary", graph, "--format", "json").stdout)
    assert "graphs" not in found["trace"]
    assert not any({"via_graph", "replayed"} & row.keys() for row in found["ranges"])


def test_markdown(eager, graph):
    text = invoke("summary", graph, "--ranges-from", eager, "--format", "markdown").stdout
    assert "health ok, 12 of 12 kernels of graphs given back to ranges of" in text
    assert "| `ProfilerStep/decode/replay/layer` *via graph* | 2 |" in text


def test_json(eager, partly):
    found = json.loads(invoke("summary", partly, "--ranges-from", eager, "--format", "json").stdout)
    validate("summary", found)
    assert found["trace"]["graphs"] == {
        "ranges_from": eager,
        "launches": 2,
        "pieces": 12,
        "given_back": 8,
        "left": [{"why": "absent", "name": "new", "count": 4}],
    }
    rows = {row["path"][-1]: row for row in found["ranges"]}
    assert rows["layer"]["replayed"] is True
    assert rows["layer"]["calls"] == 4
    assert rows["layer"]["via_graph"] == {"kernels": 4, "graph_kernels": 4, "gpu_ns": 4000}
    assert rows["layer"]["self"]["kernels"] == rows["layer"]["self"]["graph_kernels"] == 4
    assert rows["layer"]["per_call"]["kernels"] == {"min": 2, "median": 2, "max": 2}
    assert "replayed" not in rows["replay"]
    assert "cpu_ns" not in rows["layer"]["total"]
    assert {one["name"]: one["kernels"] for one in rows["mlp"]["contributors"] if one["by"] == "op"} == {"aten::mm": 4}


def test_health(eager, graph, partly):
    found = json.loads(invoke("health", graph, "--ranges-from", eager, "--format", "json").stdout)
    validate("health", found)
    assert found["health"]["verdict"] == "ok"
    assert [one["code"] for one in found["health"]["findings"]] == ["perhaps_cut", "graph_work_given_back"]
    done = invoke("health", partly, "--ranges-from", eager)
    assert done.exit_code == 0
    assert "warning [graph_work_left] 2 graph launches: 8 of 12 kernels given back to ranges of" in done.stdout
    assert "4 without a counterpart there (new x 4)" in " ".join(done.stdout.split())


def test_a_diff_gives_back_on_every_side_that_has_graphs(eager, graph, partly):
    done = invoke("diff", eager, graph, partly, "--ranges-from", eager)
    shown = " ".join(rows(done.stdout))
    assert f" graph 12 of 12 kernels of graphs given back to ranges of {eager}" in shown
    assert f" partly 8 of 12 kernels of graphs given back to ranges of {eager}" in shown
    assert shown.count("of graphs given back") == 2
    assert " decode/layer (lined up by its name with decode/replay/layer; via graph in graph, partly)" in shown
    # A range that did not run has no time to compare.
    layer = done.stdout[done.stdout.index("\ndecode/layer  (") :].partition("\ndecode/layer/mlp")[0]
    assert "kernel_launches" in layer
    assert "cpu_ns" not in layer
    found = json.loads(invoke("diff", eager, graph, "--ranges-from", eager, "--format", "json").stdout)
    validate("diff", found)
    lines = {tuple(line["path"]): line for line in found["ranges"]}
    assert lines["decode", "layer"]["replayed"] == [False, True]
    assert lines["decode", "layer"]["metrics"]["calls"]["verdict"] == ["same"]
    assert lines["decode", "layer"]["metrics"]["kernels"]["verdict"] == ["same"]
    assert lines["decode", "layer"]["metrics"]["cpu_ns"]["verdict"] == ["not_checked"]
    assert "replayed" not in lines["decode",]
    assert "graphs" not in found["baseline"]
    assert found["variants"][0]["graphs"]["given_back"] == 12


def test_times_of_a_range_that_runs_here_too_are_those_of_its_runs(tmp_path):
    """The graph's work is given back to a range that the trace has: it adds calls, but no time on the CPU."""
    both, eager = Small(), Small()
    for trace in (both, eager):
        with trace.range("decode"):
            for number in range(2):
                with trace.range("layer", idle=10):
                    trace.kernel(f"k{number}")
            if trace is both:
                trace.graph("g")
            else:
                with trace.range("layer", idle=10):
                    trace.kernel("g")
    paths = [trace.write(tmp_path / name) for trace, name in ((both, "both.json"), (eager, "eager.json"))]
    found = json.loads(invoke("summary", paths[0], "--ranges-from", paths[1], "--format", "json").stdout)
    validate("summary", found)
    row = next(row for row in found["ranges"] if row["path"] == ["decode", "layer"])
    assert row["calls"] == 3
    assert "replayed" not in row
    assert row["via_graph"]["kernels"] == 1
    assert row["per_call"]["cpu_ns"]["min"] == row["per_call"]["cpu_ns"]["max"] == 12_000
    diffed = json.loads(invoke("diff", *paths, "--ranges-from", paths[1], "--format", "json").stdout)
    line = next(line for line in diffed["ranges"] if line["path"] == ["decode", "layer"])
    assert line["metrics"]["cpu_ns"]["baseline"]["calls"] == 2
    assert line["metrics"]["kernels"]["verdict"] == ["same"]


def test_other_options_read_both_traces_alike(eager, graph):
    done = invoke("summary", graph, "--ranges-from", eager, "--ranges-as", "op:aten::*", "--metric", "kernels")
    shown = rows(done.stdout)
    assert "aten::norm (via graph) 2 2" in shown
    assert "aten::mm (via graph) 2 2" in shown
    assert "--ranges-as 'op:aten::*' --ranges-from" in shown[-1]
    done = invoke("summary", graph, "--ranges-from", eager, "--fold", "mlp|layer", "--metric", "kernels")
    assert "* (via graph) 2 6" in rows(done.stdout)


def test_a_range_that_is_given_back_can_be_asked_for(eager, graph):
    done = invoke("summary", graph, "--ranges-from", eager, "--range", "**/mlp", "--per", "call", "--metric", "kernels")
    assert "ProfilerStep/decode/replay/layer/mlp (via graph) 2 2" in rows(done.stdout)


def test_standard_input_can_be_either_trace_but_not_both(eager, graph):
    done = invoke("summary", graph, "--ranges-from", "-", input=Path(eager).read_text())
    assert done.exit_code == 0
    assert "12 of 12 kernels of graphs given back to ranges of -" in done.stdout
    assert "next:" not in done.stdout


@pytest.fixture
def refused(capsys):
    """The one sentence that a command ends with, and exit code 2."""

    def run(*arguments):
        assert main([str(one) for one in arguments]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("tracetool: ")
        assert len(captured.err.splitlines()) == 1
        return captured.err

    return run


def test_bad_use_is_refused_in_one_sentence(refused, eager, graph, tmp_path):
    other = Small()
    with other.range("f"):
        other.kernel("other")
    other = other.write(tmp_path / "other.json")
    assert "standard input can be read only once" in refused("summary", "-", "--ranges-from", "-")
    assert "there is no such file" in refused("health", graph, "--ranges-from", tmp_path / "none.json")
    assert f"{eager} has no graph launches: leave out --ranges-from" in refused(
        "summary", eager, "--ranges-from", eager
    )
    assert "have no graph launches" in refused("diff", eager, other, "--ranges-from", eager)
    assert "all its ranges that do device work launch graphs" in refused("summary", GRAPH, "--ranges-from", graph)
    assert f"of the graph launches in {graph} is in {other}" in refused("summary", graph, "--ranges-from", other)


def test_an_unhealthy_eager_trace_fails_the_command(eager, graph, capsys, tmp_path):
    cut = tmp_path / "cut.json"
    cut.write_text(Path(eager).read_text()[:-2])
    assert main(["summary", graph, "--ranges-from", str(cut)]) == 2
    captured = capsys.readouterr()
    assert "12 of 12 kernels" in captured.out
    assert f"{cut} is not healthy: The file is cut off" in captured.err
