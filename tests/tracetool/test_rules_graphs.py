"""Rule 8: the device work of a graph launch is given back to the ranges of an eager run of the same code."""

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import tracetool
from tracetool.errors import SettingError
from tracetool.graphs import Doubt

from .random_traces import traces
from .traces import GRAPH
from .traces_by_hand import (
    EXACT,
    assert_table,
    call,
    flat,
    kernel,
    launch,
    memcpy,
    memset,
    on,
    op,
    read,
    rng,
    trace,
)

PINNED = "Memcpy HtoD (Pinned -> Device)"


def launches(at, *names, stream=7):
    """A kernel launch every 2 us."""
    return [launch(at + 2 * i, 1000 * at + i, name=name, stream=stream) for i, name in enumerate(names)]


def replay(at, *pieces, gpu_at=None):
    """A graph launch and its pieces, one after the other: names of kernels, on another stream than 7 by `@stream`."""
    gpu_at = at + 5 if gpu_at is None else gpu_at
    return [
        call("cudaGraphLaunch", at, at),
        [
            kernel(gpu_at + 10 * i, at, name=piece.partition("@")[0], stream=int(piece.partition("@")[2] or 7))
            if isinstance(piece, str)
            else {**piece, "ts": gpu_at + 10 * i, "args": {**piece["args"], "correlation": at}}
            for i, piece in enumerate(pieces)
        ],
    ]


def summary(replayed, eager):
    """The summary of a trace whose ranges come from another, after the two have been found to hold the same."""
    content, twin = trace(*replayed), trace(*eager)
    plain = tracetool.summarize(read(content))
    found = tracetool.summarize(read(content), ranges_from=read(twin))
    holds_the_same(plain, found)
    return found


def holds_the_same(plain, found):
    """Device work has only moved, and only down from the ranges of graph launches: what they hold in total stays."""
    found.check()
    assert found.totals == plain.totals
    assert found.steps == plain.steps
    launched = [path for path, count in zip(plain.paths, plain.own("graph_launches").tolist(), strict=True) if count]
    for metric in [*EXACT, *TIMES, *plain.op_metrics]:
        before, after = (dict(zip(one.paths, one.total(metric).tolist(), strict=True)) for one in (plain, found))
        if metric not in ("calls", "gpu_busy_ns"):
            assert found.own(metric).sum() == plain.own(metric).sum(), metric
        if ("(no range)",) not in launched:
            for path in before:
                below = any(len(path) > len(one) and path[: len(one)] == one for one in launched)
                assert below or after[path] == before[path], (metric, path)
    for row, replayed in enumerate(found.replayed):
        assert not replayed or not any(found.own(name)[row] for name in NOT_OF_THE_DEVICE)


TIMES = ("cpu_ns", "gpu_ns", "gpu_busy_ns", "launch_ns", "sync_wait_ns")
NOT_OF_THE_DEVICE = ("kernel_launches", "graph_launches", "syncs", "ops", "cpu_ns", "launch_ns", "sync_wait_ns")


def left(found):
    return [(one.doubt, one.name, one.count) for one in found.replays.left]


def codes(found):
    return {finding.code: (finding.severity.value, finding.message) for finding in found.health.findings}


ATTENTION_AND_MLP = [
    rng("attention", 12, 20),
    launches(13, "qk", "av"),
    rng("mlp", 30, 38),
    launches(31, "gemm", "gemm"),
]
EAGER = [rng("decode", 0, 100), rng("forward", 10, 90), launches(11, "norm"), ATTENTION_AND_MLP]
"""One layer: `norm` in `forward` itself, then `qk av` in `attention` and `gemm gemm` in `mlp`."""


# Full agreement


def test_work_goes_to_the_ranges_that_it_was_captured_in():
    found = summary(
        [rng("decode", 0, 100), rng("forward", 10, 90), replay(20, "norm", "qk", "av", "gemm", "gemm")], EAGER
    )
    assert_table(
        found,
        """
                                    calls  graph_launches  kernels  graph_kernels  kernel_launches
        decode                          1               .        .              .                .
        decode/forward                  1               1        1              1                .
        decode/forward/attention        1               .        2              2                .
        decode/forward/mlp              1               .        2              2                .
        """,
    )
    assert_table(
        found,
        """
                                     gpu_ns  cpu_ns  launch_ns
        decode                        50000  100000       1000
        decode/forward                50000   80000       1000
        decode/forward/attention      20000       .          .
        decode/forward/mlp            20000       .          .
        """,
        scope="total",
    )
    assert found.replays.given == found.replays.pieces == 5
    assert codes(found)["graph_work_given_back"][0] == "info"
    assert codes(found)["graph_work_given_back"][1].startswith(
        "1 graph launch: 5 of 5 kernels given back to ranges of "
    )


def test_the_nearest_range_around_that_both_have_is_lined_up():
    """The replay has a range of its own; what it did lies below that."""
    found = summary(
        [rng("decode", 0, 100), rng("replay", 10, 90), replay(20, "norm", "qk", "av", "gemm", "gemm")], EAGER
    )
    assert_table(
        found,
        """
                                           calls  kernels  graph_launches
        decode                                 1        .               .
        decode/replay                          1        .               1
        decode/replay/forward                  1        1               .
        decode/replay/forward/attention        1        2               .
        decode/replay/forward/mlp              1        2               .
        """,
    )
    assert [path for path, replayed in zip(found.paths, found.replayed, strict=True) if replayed] == [
        ("decode", "replay", "forward"),
        ("decode", "replay", "forward", "attention"),
        ("decode", "replay", "forward", "mlp"),
    ]


def test_calls_are_those_of_the_eager_runs_once_for_each_launch():
    layers = [
        [rng("layer", at, at + 9), rng("attention", at + 1, at + 4), launches(at + 2, "qk"), launches(at + 6, "gemm")]
        for at in (10, 20, 30)
    ]
    work = ["qk", "gemm"] * 3
    steps = [
        [rng(f"ProfilerStep#{n}", at, at + 90), rng("decode", at, at + 90), replay(at + 5, *work)]
        for n, at in ((1, 0), (2, 100))
    ]
    found = summary(steps, [rng("ProfilerStep#7", 0, 99), rng("decode", 5, 95), layers])
    assert_table(
        found,
        """
                                             calls  kernels
        ProfilerStep                             2        .
        ProfilerStep/decode                      2        .
        ProfilerStep/decode/layer                6        6
        ProfilerStep/decode/layer/attention      6        6
        """,
    )
    row = found.paths.index(("ProfilerStep", "decode", "layer"))
    assert found.samples("kernels", row).tolist() == [2] * 6
    assert found.calls_within(row).tolist() == [3, 3]
    assert found.step_samples("kernels", row).tolist() == [6, 6]


def test_a_diff_with_the_eager_trace_finds_only_launches_changed():
    eager, content = (
        trace(*EAGER),
        [rng("decode", 0, 100), rng("forward", 10, 90), replay(20, "norm", "qk", "av", "gemm", "gemm")],
    )
    twin = tracetool.summarize(read(eager))
    found = tracetool.diff(
        twin, tracetool.summarize(read(trace(*content)), ranges_from=twin), labels=["eager", "graph"]
    )
    changed = {"/".join(row.path): sorted(row.changed) for row in found.rows if row.changed}
    everywhere = ["graph_kernels", "graph_launches", "kernel_launches"]
    assert changed == {
        "decode": everywhere,
        "decode/forward": everywhere,
        "decode/forward/attention": ["graph_kernels", "kernel_launches"],
        "decode/forward/mlp": ["graph_kernels", "kernel_launches"],
    }


def test_ops_of_the_eager_run_are_told_where_they_are_certain():
    eager = [
        rng("decode", 0, 100),
        [
            rng("a", 1, 20),
            op("aten::mm", 2, 9),
            launch(3, 1, name="gemm"),
            op("aten::add", 10, 19),
            launch(11, 2, name="add"),
        ],
        [
            rng("b", 21, 40),
            op("aten::relu", 22, 29),
            launch(23, 3, name="x"),
            op("aten::tanh", 30, 39),
            launch(31, 4, name="x"),
        ],
    ]
    found = summary([rng("decode", 0, 100), replay(20, "gemm", "add", "x")], eager)
    ops = {"/".join(path): found.contributors(row, "op") for row, path in enumerate(found.paths)}
    assert {
        path: {name: counts["kernels"] for name, counts in made.items() if "kernels" in counts}
        for path, made in ops.items()
        if made
    } == {
        "decode": {},
        "decode/a": {"aten::mm": 1, "aten::add": 1},
        # It is one of the two.
        "decode/b": {"cudaGraphLaunch": 1},
    }
    assert found.contributors(found.paths.index(("decode", "b")), "kernel")["x"]["kernels"] == 1


# What does not agree


def test_a_kernel_that_is_gone_leaves_the_others_where_they_are():
    found = summary([rng("decode", 0, 100), replay(20, "norm", "av", "gemm", "gemm")], EAGER)
    assert_table(
        found,
        """
                                  kernels
        decode/forward                  1
        decode/forward/attention        1
        decode/forward/mlp              2
        """,
    )
    assert found.replays.left == ()


def test_a_kernel_that_the_eager_run_has_not_stays_with_the_launch_and_is_named():
    found = summary([rng("decode", 0, 100), replay(20, "norm", "qk", "other", "gemm", "gemm", "other")], EAGER)
    assert_table(
        found,
        """
                                  kernels  graph_launches
        decode                          2               1
        decode/forward                  1               .
        decode/forward/attention        1               .
        decode/forward/mlp              2               .
        """,
    )
    assert left(found) == [(Doubt.ABSENT, "other", 2)]
    severity, message = codes(found)["graph_work_left"]
    assert severity == "warning"
    assert "1 graph launch: 4 of 6 kernels given back to ranges of " in message
    assert message.endswith(", 2 stay with the range of the launch: 2 without a counterpart there (other x 2).")


def test_of_a_run_of_equal_kernels_one_too_many_is_never_given_to_a_range():
    found = summary([rng("decode", 0, 100), replay(20, "norm", "qk", "av", "gemm", "gemm", "gemm")], EAGER)
    assert_table(
        found,
        """
                                  kernels
        decode                          3
        decode/forward                  1
        decode/forward/attention        2
        """,
    )
    assert left(found) == [(Doubt.UNCLEAR, "gemm", 3)]
    assert "3 that could be lined up in several ways (gemm x 3)" in codes(found)["graph_work_left"][1]


def test_of_a_run_of_equal_kernels_fewer_are_given_back_where_all_have_one_range():
    assert_table(
        summary([rng("decode", 0, 100), replay(20, "norm", "qk", "av", "gemm")], EAGER),
        """
                                  kernels
        decode/forward                  1
        decode/forward/attention        2
        decode/forward/mlp              1
        """,
    )


def test_of_a_run_of_equal_kernels_in_two_ranges_fewer_stay_where_it_is_unclear():
    eager = [rng("decode", 0, 100), rng("a", 1, 10), launches(2, "k", "k"), rng("b", 20, 30), launches(21, "k", "k")]
    assert_table(
        summary([rng("decode", 0, 100), replay(20, "k", "k", "k")], eager),
        """
                  kernels
        decode          1
        decode/a        1
        decode/b        1
        """,
    )


# Several launches


def test_two_launches_in_one_step_are_lined_up_in_their_order():
    eager = [
        rng("decode", 0, 100),
        [rng("model", 1, 20), launches(2, "gemm", "add")],
        [rng("draft", 21, 40), launches(22, "gemm", "add")],
    ]
    graphs = [rng("decode", 0, 100), replay(20, "gemm", "add"), replay(50, "gemm", "add", gpu_at=60)]
    assert_table(
        summary(graphs, eager),
        """
                      calls  kernels  graph_launches
        decode            1        .               2
        decode/model      1        2               .
        decode/draft      1        2               .
        """,
    )


def test_two_different_graphs_each_in_a_range_of_its_own():
    eager = [
        [rng("prefill", 0, 40), rng("forward", 1, 39), launches(2, "big", "norm")],
        [
            rng("decode", 50, 90),
            rng("forward", 51, 89),
            launches(52, "small", "norm"),
            rng("sample", 70, 80),
            launches(71, "norm"),
        ],
    ]
    graphs = [
        [rng("prefill", 0, 40), replay(5, "big", "norm")],
        [rng("decode", 50, 90), replay(55, "small", "norm", "norm")],
        [rng("decode", 150, 190), replay(155, "small", "norm", "norm")],
    ]
    assert_table(
        summary(graphs, eager),
        """
                         calls  kernels  graph_launches
        prefill              1        .               1
        prefill/forward      1        2               .
        decode               2        .               2
        decode/forward       2        4               .
        decode/forward/sample  2      2               .
        """,
    )


def test_eager_work_between_graphs_ties_down_what_lies_around_it():
    """Piecewise graphs: attention is launched as ever, what is around it replayed."""

    def layer(at, captured):
        attention = [rng("attention", at + 4, at + 8), launches(at + 5, "attend")]
        if captured:
            return [replay(at + 1, "norm", gpu_at=at + 1), attention, replay(at + 9, "norm", gpu_at=at + 20)]
        return [
            [rng("before", at, at + 3), launches(at + 1, "norm")],
            attention,
            [rng("after", at + 9, at + 12), launches(at + 10, "norm")],
        ]

    ranges = [rng("forward", 0, 300)]
    eager = [ranges, layer(10, captured=False), layer(110, captured=False)]
    found = summary([ranges, layer(10, captured=True), layer(110, captured=True)], eager)
    assert_table(
        found,
        """
                           calls  kernels  graph_kernels  kernel_launches
        forward                1        .              .                .
        forward/before         2        2              2                .
        forward/attention      2        2              .                2
        forward/after          2        2              2                .
        """,
    )
    # Between two attentions, where the eager run has two kernels, one could be of either range.
    found = summary([ranges, layer(10, captured=True), layer(110, captured=True)[1:]], eager)
    assert_table(
        found,
        """
                           kernels
        forward                  1
        forward/before           1
        forward/attention        2
        forward/after            1
        """,
    )


# What graphs hold


def test_forked_streams_are_lined_up_each_by_itself():
    """The copy engine's stream overtakes: by time its kernels come first."""
    eager = [
        rng("decode", 0, 100),
        [rng("main", 1, 20), launches(2, "a", "a")],
        [rng("side", 21, 40), launches(22, "b", "b", stream=8)],
        [rng("join", 41, 60), launches(42, "a")],
    ]
    assert_table(
        summary([rng("decode", 0, 100), replay(20, "b@20", "a", "b@20", "a", "a")], eager),
        """
                     calls  kernels
        decode           1        .
        decode/main      1        2
        decode/side      1        2
        decode/join      1        1
        """,
    )


def test_a_kernel_on_two_streams_stays_where_it_could_be_of_two_ranges():
    eager = [
        rng("decode", 0, 100),
        [rng("main", 1, 20), launches(2, "gemm", "a")],
        [rng("side", 21, 40), launches(22, "gemm", "b", stream=8)],
    ]
    found = summary([rng("decode", 0, 100), replay(20, "gemm@20", "b@20", "gemm", "a")], eager)
    assert_table(
        found,
        """
                     kernels
        decode             2
        decode/main        1
        decode/side        1
        """,
    )
    assert left(found) == [(Doubt.UNCLEAR, "gemm", 2)]


def test_copies_are_told_apart_by_direction_and_kind_and_memsets_are_alike():
    eager = [
        rng("decode", 0, 100),
        [rng("load", 1, 20), call("cudaMemcpyAsync", 2, 1), memcpy(3, 1, size=16, name=PINNED)],
        [rng("clear", 21, 30), call("cudaMemsetAsync", 22, 2), memset(23, 2)],
        [rng("store", 31, 40), call("cudaMemcpyAsync", 32, 3), memcpy(33, 3, size=16)],
        [rng("reduce", 41, 50), call("cudaLaunchKernel", 42, 4), kernel(43, 4, name="k")],
    ]
    collective = {"Collective name": "allreduce", "In msg nelems": 8, "Out msg nelems": 8, "dtype": "Float"}
    pieces = [
        memcpy(0, 0, size=24, name=PINNED),
        {**memset(0, 0), "name": "Memset (Unknown)"},
        memcpy(0, 0, size=24, name="Memcpy HtoD (Pageable -> Device)"),
        kernel(0, 0, name="k", **collective),
        memcpy(0, 0, size=4, name="Memcpy DtoD (Device -> Device)"),
    ]
    found = summary([rng("decode", 0, 100), replay(20, *pieces)], eager)
    assert_table(
        found,
        """
                       copies  copy_bytes  h2d_pinned_bytes  h2d_pageable_copies  d2d_copies  memsets  collective_bytes
        decode              1           4                 .                    .           1        .                 .
        decode/load         1          24                24                    .           .        .                 .
        decode/clear        .           .                 .                    .           .        1                 .
        decode/store        1          24                 .                    1           .        .                 .
        decode/reduce       .           .                 .                    .           .        .                32
        """,
    )
    assert "1 graph launch: 4 of 5 pieces of device work given back" in codes(found)["graph_work_left"][1]


def test_pieces_that_started_together_and_a_call_that_owns_several():
    eager = [
        rng("decode", 0, 100),
        rng("a", 1, 9),
        call("cudaLaunchKernelExC", 2, 1),
        kernel(3, 1, name="x"),
        kernel(9, 1, name="y"),
    ]
    assert_table(
        summary(
            [rng("decode", 0, 100), call("cudaGraphLaunch", 5, 5), kernel(9, 5, 4, "y"), kernel(9, 5, 2, "x")], eager
        ),
        "kernels\n decode/a 2",
    )


# Where the launch is, and where its twin is


def test_a_launch_outside_any_range():
    found = summary([replay(20, "qk", "av")], [ATTENTION_AND_MLP])
    assert_table(
        found,
        """
                    calls  kernels  graph_launches
        attention       1        2               .
        (no range)      .        .               1
        """,
    )


def test_a_launch_in_a_step_and_no_other_range_is_lined_up_with_the_steps():
    steps = [rng("ProfilerStep#1", 0, 100), rng("ProfilerStep#2", 100, 200)]
    twin = [[rng("f", at, at + 20), launches(at + 1, "x")] for at in (10, 110)]
    assert_table(
        summary([rng("ProfilerStep#5", 0, 99), replay(20, "x")], [steps, twin]),
        """
                        calls  kernels  graph_launches
        ProfilerStep        1        .               1
        ProfilerStep/f      1        1               .
        """,
    )


def test_a_launch_on_another_thread_than_the_steps():
    graphs = [rng("ProfilerStep#5", 0, 99), on(2, rng("server", 10, 50), replay(20, "x"))]
    eager = [rng("ProfilerStep#5", 0, 99), on(2, rng("loop", 10, 50), rng("f", 15, 40), launches(20, "x"))]
    assert_table(
        summary(graphs, eager), "calls kernels\n ProfilerStep 1 .\n server 1 .\n server/loop 1 .\n server/loop/f 1 1"
    )


def test_the_eager_trace_has_steps_and_the_other_has_none():
    eager = [
        [
            rng(f"ProfilerStep#{n}", at, at + 100),
            rng("decode", at + 1, at + 99),
            rng("f", at + 2, at + 50),
            launches(at + 3, "x"),
        ]
        for n, at in ((1, 0), (2, 100))
    ]
    assert_table(
        summary([rng("decode", 0, 50), replay(20, "x")], eager),
        "calls kernels\n decode 1 .\n decode/f 1 1",
    )
    # And without a range that both have: each launch by itself, with a step.
    assert_table(
        summary([rng("replay", 0, 50), replay(20, "x"), replay(40, "x")], eager),
        "calls kernels\n replay 1 .\n replay/decode 2 .\n replay/decode/f 2 2",
    )


def test_the_eager_trace_has_no_steps_and_the_other_has_some():
    graphs = [[rng(f"ProfilerStep#{n}", at, at + 99), replay(at + 20, "x", "y")] for n, at in ((1, 0), (2, 100))]
    assert_table(
        summary(graphs, [rng("f", 0, 20), launches(1, "x"), rng("g", 20, 40), launches(21, "y")]),
        """
                        calls  kernels
        ProfilerStep        2        .
        ProfilerStep/f      2        2
        ProfilerStep/g      2        2
        """,
    )


def test_steps_inside_of_a_range_are_nearer_than_the_range():
    graphs = [
        rng("train", 0, 300),
        [[rng(f"ProfilerStep#{n}", at, at + 90), replay(at + 20, "x")] for n, at in ((1, 0), (2, 100))],
    ]
    eager = [rng("train", 0, 300), rng("ProfilerStep#1", 0, 90), rng("f", 1, 50), launches(2, "x")]
    # A path is told from the step on, where it is the step that is lined up.
    assert_table(
        summary(graphs, eager),
        """
                                     calls  kernels
        train                            1        .
        train/ProfilerStep               2        .
        train/ProfilerStep/f             2        2
        """,
    )


def test_a_range_without_device_work_or_with_graphs_is_no_twin():
    eager = [
        rng("decode", 0, 100),
        [rng("replay", 1, 20), rng("empty", 2, 10)],
        [rng("f", 21, 40), launches(22, "x")],
        [rng("decode", 200, 300), rng("replay", 201, 250), replay(210, "x")],
    ]
    found = summary([rng("decode", 0, 100), rng("replay", 1, 50), replay(20, "x")], eager)
    assert_table(found, "calls kernels\n decode 1 .\n decode/replay 1 .\n decode/replay/f 1 1")


def test_a_trace_that_ran_eagerly_before_can_be_its_own_twin():
    content = [rng("decode", 0, 100), rng("f", 1, 50), launches(2, "x"), rng("decode", 200, 300), replay(220, "x")]
    assert_table(
        summary(content, content),
        """
                  calls  kernels  graph_kernels
        decode        2        .              .
        decode/f      2        2              1
        """,
    )


# The eager range ran several times


def test_runs_that_differ_are_said_and_the_nearest_is_used():
    eager = [
        [rng("decode", 0, 50), rng("a", 1, 40), launches(2, "x", "y", "z")],
        [rng("decode", 100, 150), rng("b", 101, 140), launches(102, "x", "y")],
        [rng("decode", 200, 250), rng("a", 201, 240), launches(202, "x", "y", "z")],
    ]
    found = summary([rng("decode", 0, 50), replay(10, "x", "y")], eager)
    assert_table(found, "calls kernels\n decode 1 .\n decode/b 1 2")
    severity, message = codes(found)["eager_runs_differ"]
    assert severity == "info"
    assert "'decode' ran 3 times with 2 different sequences of device work" in message
    assert "eager_runs_differ" not in codes(summary([rng("decode", 0, 50), replay(10, "x", "y")], eager[1:2] * 1))


def test_runs_that_are_as_near_as_each_other_must_agree():
    eager = [
        [rng("decode", 0, 50), [rng("a", 1, 20), launches(2, "x")], [rng("c", 21, 40), launches(22, "y")]],
        [rng("decode", 100, 150), [rng("b", 101, 120), launches(102, "x")], [rng("c", 121, 140), launches(122, "y")]],
    ]
    found = summary([rng("decode", 0, 50), replay(10, "x", "y")], eager)
    assert_table(found, "calls kernels\n decode 1 1\n decode/c 1 1")
    assert left(found) == [(Doubt.UNCLEAR, "x", 1)]


# Bad use


@pytest.mark.parametrize(
    ("eager", "why"),
    [
        ([rng("decode", 0, 9)], "has no device work: name an eager trace of the same step"),
        ([rng("decode", 0, 9), kernel(1, 77)], "has no device work"),
        (
            [launches(1, "x")],
            "its device work is in no range; name a trace of the same step with ranges and without graphs",
        ),
        ([rng("ProfilerStep#1", 0, 50), launches(1, "x")], "its device work is in no range"),
        ([rng("decode", 0, 9), replay(1, "x")], "all its ranges that do device work launch graphs"),
        ([rng("decode", 0, 9), launches(1, "other")], "no kernel, copy or memset of the graph launches in "),
    ],
)
def test_a_trace_that_cannot_tell_ranges_is_refused_in_a_sentence(eager, why):
    with pytest.raises(SettingError, match=why) as failure:
        tracetool.summarize(read(trace(rng("decode", 0, 50), replay(10, "x"))), ranges_from=read(trace(*eager)))
    assert "trace.json" in str(failure.value)


def test_a_trace_without_graph_launches_stays_as_it_is():
    content = read(trace(*EAGER))
    found = tracetool.summarize(content, ranges_from=content)
    assert found.replays is None
    assert found.paths == tracetool.summarize(content).paths
    assert not any(found.replayed)


# Any programs, any traces, and a real one


class Written:
    """A program written as the two traces of it, eager and with graphs; and where each piece truly belongs."""

    def __init__(self):
        self.eager, self.graphs, self.now, self.truth = [], [], 0, {}

    def _tick(self):
        self.now += 1
        return self.now

    def run(self, nodes, dropped, around=(), captured=None):
        """Write nodes: text is a kernel, a pair a range or (in the first level of ranges) what a graph captured."""
        for node in nodes:
            at = self._tick()
            if isinstance(node, str):
                self.eager.append(launch(at, at, name=node))
                if captured is None:
                    self.graphs.append(launch(at, at, name=node))
                elif dropped.draw():
                    captured.append(kernel(0, 0, name=node))
                    self.truth.setdefault(around, []).append(node)
                continue
            name, inside = node
            if name == "graph":
                pieces = []
                self.run(inside, dropped, around, pieces)
                if pieces:
                    self.graphs.append(replay(at, *pieces))
                continue
            places = [events for events in (self.eager, self.graphs) if captured is None or events is self.eager]
            starts = [len(events) for events in places]
            self.run(inside, dropped, (*around, name), captured)
            for events, start in zip(places, starts, strict=True):
                events.insert(start, rng(name, at, self._tick()))


class Choices:
    """Whether a graph has a piece of the eager run."""

    def __init__(self, kept):
        self.kept = list(kept)

    def draw(self):
        return self.kept.pop() if self.kept else True


kernels = st.sampled_from(["k", "l", "m"])
captured_nodes = st.recursive(
    kernels, lambda inner: st.tuples(st.sampled_from("abc"), st.lists(inner, max_size=4)), max_leaves=12
)
graphs_and_others = st.one_of(
    kernels,
    st.tuples(st.just("graph"), st.lists(captured_nodes, min_size=1, max_size=4)),
    st.tuples(st.sampled_from("ab"), st.lists(kernels, max_size=2)),
)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(nodes=st.lists(graphs_and_others, min_size=1, max_size=5), kept=st.lists(st.booleans(), max_size=6))
def test_what_is_given_back_is_true_and_without_losses_it_is_all(nodes, kept):
    written = Written()
    written.run([("step", nodes)], Choices(kept))
    content = read(trace(*written.graphs))
    plain = tracetool.summarize(content)
    assume("graph_launches" in plain.totals)
    found = tracetool.summarize(content, ranges_from=read(trace(*written.eager)))
    holds_the_same(plain, found)
    for row, path in enumerate(found.paths):
        given_back = found.via_graph.get(row, {}).get("kernels", 0)
        assert given_back <= len(written.truth.get(path, []))
        if all(kept) and path != ("step",):
            assert given_back == len(written.truth.get(path, []))
    if all(kept):
        assert found.replays.given == found.replays.pieces


GRAPH_BESIDE = [rng("a", 0, 90), replay(70, "k", "k", {**memset(0, 0)}, "ncclDevKernel_AllReduce_Sum_f32_RING_LL")]
EAGER_BESIDE = [
    rng("a", 0, 90),
    rng("b", 10, 80),
    launches(20, "k", "k"),
    call("cudaMemsetAsync", 60, 66),
    memset(61, 66),
]


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(events=traces(), twin=traces())
def test_nothing_is_lost_in_any_trace(events, twin):
    content = read({"traceEvents": [*events, *flat(GRAPH_BESIDE)]})
    plain = tracetool.summarize(content)
    found = tracetool.summarize(content, ranges_from=read({"traceEvents": [*twin, *flat(EAGER_BESIDE)]}))
    holds_the_same(plain, found)
    assert found.replays.given + sum(one.count for one in found.replays.left) == found.replays.pieces
    assert found.via_graph.keys() <= set(range(found.outside_row))


def eager_twin_of_the_real_trace():
    """What `manual_graph` would have been without its graph: five `addn2`, an addition and a multiplication."""
    content = json.loads(gzip.decompress(Path(GRAPH).read_bytes()))
    replaced = [one for one in content["traceEvents"] if one.get("name") == "cudaGraphLaunch"]
    events = [one for one in content["traceEvents"] if one not in replaced and one.get("cat") not in ("kernel", "ac2g")]
    for graph in replaced:
        number = graph["args"]["correlation"]
        kernels = [
            one for one in content["traceEvents"] if one.get("cat") == "kernel" and one["args"]["correlation"] == number
        ]
        assert len(kernels) == 7
        for place, one in enumerate(kernels):
            inside = {"pid": graph["pid"], "tid": graph["tid"], "ph": "X"}
            at = graph["ts"] + 3 * place
            events.append(
                {
                    **inside,
                    "cat": "user_annotation",
                    "name": "layer" if place < 5 else "head",
                    "ts": at,
                    "dur": 2,
                    "args": {},
                }
            )
            events.append(
                {
                    **inside,
                    "cat": "cuda_runtime",
                    "name": "cudaLaunchKernel",
                    "ts": at + 0.5,
                    "dur": 1,
                    "args": {"correlation": number * 100 + place},
                }
            )
            events.append({**one, "args": {"correlation": number * 100 + place}})
    return flat(events)


def test_the_real_trace_with_a_twin_made_of_its_own_kernels():
    graph = tracetool.read(GRAPH)
    eager = read({"traceEvents": eager_twin_of_the_real_trace()})
    plain, found = tracetool.summarize(graph), tracetool.summarize(graph, ranges_from=eager)
    holds_the_same(plain, found)
    assert_table(
        found,
        """
                                              calls  graph_launches  kernels  h2d_copies  d2h_copies
        ProfilerStep                              2               .        .           .           .
        ProfilerStep/graph_step                   2               .        .           .           .
        ProfilerStep/graph_step/h2d_ids           2               .        .           2           .
        ProfilerStep/graph_step/replay            2               2        .           .           .
        ProfilerStep/graph_step/replay/layer     10               .       10           .           .
        ProfilerStep/graph_step/replay/head       4               .        4           .           .
        ProfilerStep/graph_step/d2h               2               .        .           .           2
        """,
    )
    assert "2 graph launches: 14 of 14 kernels given back" in codes(found)["graph_work_given_back"][1]
    assert found.totals["kernels"] == 14
