"""The oracle against figures known beforehand, and against traces small enough to count by eye."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from .lanes import read_trace, split_lanes, to_json, to_ns
from .perfetto_counts import BEFORE_THE_WINDOW, METRICS, NO_RANGE, count, count_trace
from .trace_processor import TraceProcessor, TraceProcessorError, _NodePipe

UNAVAILABLE = TraceProcessor.unavailable()
pytestmark = pytest.mark.skipif(UNAVAILABLE is not None, reason=f"no trace_processor: {UNAVAILABLE}")

TRACES = Path(__file__).parents[3] / "traces"
NAMES = ("train_pageable", "train_pinned", "manual_graph")
STEP = ("ProfilerStep",)
TRAIN = (*STEP, "train_step")
GRAPH = (*STEP, "graph_step")
LOADED = """
    SELECT slice.ts, dur, slice.name, category, parent_id, slice.id,
        extract_arg(arg_set_id, 'args.event_index') AS event_index
    FROM slice
"""


@pytest.fixture(scope="module")
def processor():
    with TraceProcessor() as running:
        yield running


def event(cat, name, start, duration, tid=1, **args):
    """One complete event; underscores in the names of its args stand for spaces."""
    named = {key.replace("_", " "): value for key, value in args.items()}
    return {
        "ph": "X",
        "cat": cat,
        "name": name,
        "pid": 9,
        "tid": tid,
        "ts": start,
        "dur": duration,
        "args": named,
    }


def annotation(name, start, duration, **rest):
    return event("user_annotation", name, start, duration, **rest)


def call(name, start, correlation, duration=1, **rest):
    return event("cuda_runtime", name, start, duration, correlation=correlation, **rest)


def kernel(start, correlation):
    return event("kernel", "some_kernel", start, 1, tid=7, correlation=correlation)


def nonzero(counts):
    return {path: {name: n for name, n in row.items() if n} for path, row in counts.items()}


def counted(processor, *events):
    return nonzero(count_trace({"traceEvents": list(events)}, processor))


# Real traces


@pytest.fixture(params=NAMES)
def real_trace(request):
    return read_trace(TRACES / f"{request.param}.json.gz")


def complete(trace):
    return {i: e for i, e in enumerate(trace["traceEvents"]) if e.get("ph") == "X"}


def test_a_real_trace_loads_without_errors_or_losses(processor, real_trace):
    processor.load(to_json(split_lanes(real_trace)))
    assert processor.error_stats() == {}


def test_every_event_arrives_with_its_nanoseconds(processor, real_trace):
    lanes = split_lanes(real_trace)
    processor.load(to_json(lanes))
    loaded = {row["event_index"]: row for row in processor.query(LOADED)}
    arrived = {
        i: (row["ts"] + lanes["rebased_ns"], row["dur"], row["name"], row["category"]) for i, row in loaded.items()
    }
    assert arrived == {
        i: (int(e["ts"].scaleb(3)), int(e["dur"].scaleb(3)), e["name"], e["cat"])
        for i, e in complete(real_trace).items()
    }


def test_the_self_counts_add_up_to_what_the_file_holds(processor, real_trace):
    totals = sum((Counter(row) for row in count_trace(real_trace, processor).values()), Counter())
    held = Counter(e["cat"] for e in complete(real_trace).values())
    assert totals["calls"] == held["user_annotation"]
    assert totals["kernels"] == held["kernel"]
    assert totals["memsets"] == held["gpu_memset"]
    assert totals["copies"] == held["gpu_memcpy"]
    copied = [e["args"]["bytes"] for e in complete(real_trace).values() if e["cat"] == "gpu_memcpy"]
    assert totals["copy_bytes"] == sum(copied)


def test_pageable_training_copies_and_waits_image_by_image():
    assert nonzero(count(TRACES / "train_pageable.json.gz")) == {
        STEP: {"calls": 2, "syncs": 2},
        TRAIN: {"calls": 2},
        (*TRAIN, "h2d_batch"): {
            "calls": 2,
            "kernel_launches": 2,
            "kernels": 2,
            "copies": 34,
            "copy_bytes": 393_472,
            "h2d_copies": 34,
            "h2d_bytes": 393_472,
            "syncs": 34,
        },
        **TRAINING_AFTER_THE_BATCH,
    }


def test_pinned_training_copies_a_whole_batch_without_waiting(processor):
    assert nonzero(count_trace(read_trace(TRACES / "train_pinned.json.gz"), processor)) == {
        STEP: {"calls": 2, "syncs": 2},
        TRAIN: {"calls": 2},
        (*TRAIN, "h2d_batch"): {
            "calls": 2,
            "copies": 4,
            "copy_bytes": 393_472,
            "h2d_copies": 4,
            "h2d_bytes": 393_472,
        },
        **TRAINING_AFTER_THE_BATCH,
    }


# 48 of the 50 launches in backward are the autograd thread's.
TRAINING_AFTER_THE_BATCH = {
    (*TRAIN, "forward"): {"calls": 2, "kernel_launches": 22, "kernels": 22},
    (*TRAIN, "backward"): {"calls": 2, "kernel_launches": 50, "kernels": 50, "memsets": 2},
    (*TRAIN, "optimizer"): {"calls": 2},
    (*TRAIN, "optimizer", "Optimizer.step#SGD.step"): {"calls": 2, "kernel_launches": 2, "kernels": 2},
    (*TRAIN, "optimizer", "Optimizer.zero_grad#SGD.zero_grad"): {"calls": 2},
    (*TRAIN, "loss_item"): {
        "calls": 2,
        "copies": 2,
        "copy_bytes": 8,
        "d2h_copies": 2,
        "d2h_bytes": 8,
        "syncs": 2,
    },
    NO_RANGE: {"syncs": 1},
}


def test_a_replayed_graph_owns_its_kernels(processor):
    assert nonzero(count_trace(read_trace(TRACES / "manual_graph.json.gz"), processor)) == {
        STEP: {"calls": 2, "syncs": 2},
        GRAPH: {"calls": 2},
        (*GRAPH, "h2d_ids"): {
            "calls": 2,
            "copies": 2,
            "copy_bytes": 64,
            "h2d_copies": 2,
            "h2d_bytes": 64,
            "syncs": 2,
        },
        (*GRAPH, "replay"): {"calls": 2, "graph_launches": 2, "kernels": 14, "graph_kernels": 14},
        (*GRAPH, "d2h"): {
            "calls": 2,
            "copies": 2,
            "copy_bytes": 32,
            "d2h_copies": 2,
            "d2h_bytes": 32,
            "syncs": 2,
        },
        NO_RANGE: {"syncs": 1},
    }


# Attribution, rule by rule


def test_a_row_has_every_metric(processor):
    counts = count_trace({"traceEvents": [annotation("step", 0, 9)]}, processor)
    assert tuple(counts["step",]) == METRICS


def test_steps_are_folded_into_one_path(processor):
    steps = [annotation("ProfilerStep#1", 0, 5), annotation("ProfilerStep#12", 5, 5)]
    assert counted(processor, *steps) == {STEP: {"calls": 2}}


def test_of_two_equal_ranges_the_first_in_the_file_is_the_outer(processor):
    ranges = [annotation("outer", 0, 9), annotation("inner", 0, 9)]
    assert counted(processor, *ranges, call("cudaLaunchKernel", 0, 1), kernel(20, 1)) == {
        ("outer",): {"calls": 1},
        ("outer", "inner"): {"calls": 1, "kernel_launches": 1, "kernels": 1},
    }


def test_overlapping_ranges_keep_the_parent_that_contains_them_whole(processor):
    ranges = [
        annotation("outer", 0, 100),
        annotation("a", 10, 40),
        annotation("b", 20, 60),  # leaves `a` half way
        annotation("in_b", 55, 20),
        annotation("c", 60, 30),  # leaves `b` and `in_b` half way
    ]
    work = [call("cudaLaunchKernel", 25, 1), kernel(200, 1), call("cudaLaunchKernel", 50, 2), kernel(202, 2)]
    assert counted(processor, *ranges, *work) == {
        ("outer",): {"calls": 1},
        ("outer", "a"): {"calls": 1},
        ("outer", "b"): {"calls": 1, "kernel_launches": 2, "kernels": 2},
        ("outer", "b", "in_b"): {"calls": 1},
        ("outer", "c"): {"calls": 1},
    }


def test_a_call_at_the_end_of_a_range_is_no_longer_in_it(processor):
    assert counted(
        processor,
        annotation("first", 0, 10),
        annotation("second", 10, 10),
        call("cudaLaunchKernel", 10, 1),
        kernel(5, 1),
        call("cudaDeviceSynchronize", 20, 2),
    ) == {
        ("first",): {"calls": 1},
        ("second",): {"calls": 1, "kernel_launches": 1, "kernels": 1},
        NO_RANGE: {"syncs": 1},
    }


def test_work_whose_call_is_missing_was_queued_before_the_window(processor):
    copy = event("gpu_memcpy", "Memcpy PtoP (Device -> Device)", 4, 1, tid=7, correlation=5, bytes=16)
    assert counted(processor, annotation("range", 0, 9), kernel(2, 4), copy) == {
        ("range",): {"calls": 1},
        BEFORE_THE_WINDOW: {"kernels": 1, "copies": 1, "copy_bytes": 16},
    }


def test_only_calls_that_own_a_kernel_launched_one(processor):
    assert counted(
        processor,
        annotation("capturing", 0, 9),
        call("cudaLaunchKernel", 1, 1),
        call("cudaGraphLaunch", 3, 2),
        call("cudaMemsetAsync", 5, 3),
        event("gpu_memset", "Memset (Device)", 6, 1, tid=7, correlation=3, bytes=80),
    ) == {("capturing",): {"calls": 1, "memsets": 1}}


def test_a_driver_call_inside_a_runtime_call_owns_the_kernel_alone(processor):
    assert counted(
        processor,
        annotation("range", 0, 20),
        call("cudaLaunchKernel", 1, 1, duration=9),
        annotation("inner", 2, 4),
        event("cuda_driver", "cuLaunchKernel", 3, 1, correlation=1),
        kernel(30, 1),
    ) == {("range",): {"calls": 1}, ("range", "inner"): {"calls": 1, "kernel_launches": 1, "kernels": 1}}


def test_blocking_copies_are_syncs(processor):
    names = ["cudaMemcpy", "cudaMemcpyAsync", "hipMemcpyWithStream", "cuStreamSynchronize", "cudaEventQuery"]
    calls = [call(name, start, start) for start, name in enumerate(names)]
    assert counted(processor, annotation("range", 0, 9), *calls) == {("range",): {"calls": 1, "syncs": 3}}


def test_a_stale_thread_id_is_mended_by_the_external_id(processor):
    stale = {"tid": 66, "External_id": 3}
    assert counted(
        processor,
        annotation("range", 0, 50),
        event("cpu_op", "aten::add", 5, 5, External_id=3),
        call("cudaLaunchKernel", 6, 1, **stale),
        kernel(20, 1),
        call("cudaLaunchKernel", 12, 2, **stale),  # outside the op of that id: its own thread holds
        kernel(22, 2),
    ) == {
        ("range",): {"calls": 1, "kernel_launches": 1, "kernels": 1},
        NO_RANGE: {"kernel_launches": 1, "kernels": 1},
    }


def backward_on_thread_2():
    return [
        annotation("ProfilerStep#1", 0, 99),
        annotation("backward", 50, 40),
        event("cpu_op", "aten::mul", 5, 2),
        event("cpu_op", "autograd::engine::evaluate_function: MulBackward0", 60, 9, tid=2),
        call("cudaLaunchKernel", 61, 1, tid=2),
        kernel(100, 1),
        annotation("nccl:all_reduce", 70, 5, tid=2),
        call("cudaLaunchKernelExC", 71, 2, tid=2),
        kernel(102, 2),
    ]


def flow(kind, start, tid, number=1):
    return {
        "ph": kind,
        "cat": "fwdbwd",
        "name": "fwdbwd",
        "id": number,
        "pid": 9,
        "tid": tid,
        "ts": start,
        "bp": "e",
    }


BACKWARD_IN_ITS_CALLER = {
    STEP: {"calls": 1},
    (*STEP, "backward"): {"calls": 1, "kernel_launches": 1, "kernels": 1},
    (*STEP, "backward", "nccl:all_reduce"): {"calls": 1, "kernel_launches": 1, "kernels": 1},
}


def test_an_autograd_thread_belongs_to_its_caller(processor):
    flows = [flow("s", 5, 1), flow("f", 60, 2)]
    assert counted(processor, *backward_on_thread_2(), *flows) == BACKWARD_IN_ITS_CALLER


def test_without_flows_the_caller_is_the_thread_of_the_steps(processor):
    busier = [event("cpu_op", "aten::mul", i, 1, tid=3) for i in range(5)]
    assert counted(processor, *backward_on_thread_2(), *busier) == BACKWARD_IN_ITS_CALLER


def test_without_flows_and_steps_the_caller_is_the_thread_with_most_ops(processor):
    in_wrapper = [event("cpu_op", "aten::mul", 61 + i, 1, tid=2) for i in range(3)]
    assert counted(processor, *backward_on_thread_2()[1:], *in_wrapper) == {
        ("backward",): {"calls": 1, "kernel_launches": 1, "kernels": 1},
        ("backward", "nccl:all_reduce"): {"calls": 1, "kernel_launches": 1, "kernels": 1},
    }


def test_a_thread_is_never_its_own_caller(processor):
    flows = [flow("s", 5, 1), flow("f", 6, 1)]
    assert counted(processor, *backward_on_thread_2(), *flows) == {
        STEP: {"calls": 1},
        (*STEP, "backward"): {"calls": 1},
        ("nccl:all_reduce",): {"calls": 1, "kernel_launches": 1, "kernels": 1},
        NO_RANGE: {"kernel_launches": 1, "kernels": 1},
    }


# Lanes


def test_origin_and_names_survive_the_move():
    named = {"ph": "M", "name": "thread_name", "pid": "Spans", "tid": "P", "args": {"name": "thread P"}}
    span = {"ph": "X", "name": "a", "pid": "Spans", "tid": "P", "ts": 10, "dur": 4}
    lanes = split_lanes({"traceEvents": [named, span, {**span, "name": "b", "ts": 12}]})["traceEvents"]
    threads = {e["tid"]: e["args"]["name"] for e in lanes if e["name"] == "thread_name"}
    moved = [e for e in lanes if e["ph"] == "X"]
    assert [(e["name"], threads[e["tid"]], e["ts"]) for e in moved] == [
        ("a", "thread P", 0.0),
        ("b", "thread P (lane 2)", 2.0),
    ]
    assert moved[1]["args"] == {"orig_pid": "Spans", "orig_tid": "P", "event_index": 2}


def test_an_event_without_a_duration_is_kept(processor):
    endless = annotation("endless", 3, 0)
    del endless["dur"]
    assert counted(processor, annotation("range", 0, 9), endless) == {
        ("range",): {"calls": 1},
        ("range", "endless"): {"calls": 1},
    }


def test_what_json_does_not_allow_is_read_but_never_handed_on(tmp_path):
    path = tmp_path / "odd.json"
    path.write_bytes(b'{"traceEvents": [{"name": "k\x01\xff", "args": {"rate": NaN}, "ts": 4387790454594.384}]}')
    (odd,) = read_trace(path)["traceEvents"]
    assert odd["name"] == "k\x01\N{REPLACEMENT CHARACTER}"
    assert odd["args"] == {"rate": "NaN"}
    assert to_ns(odd["ts"]) == 4_387_790_454_594_384
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_json({"rate": float("inf")})


@st.composite
def crowded_threads(draw):
    """Events on two threads that start, end, touch and overlap anywhere, some of them instantaneous."""
    base = draw(st.sampled_from([0, 4_387_790_454_594_384]))
    shape = st.tuples(st.integers(0, 30), st.integers(0, 12), st.sampled_from("ab"))
    return [
        {
            "ph": "X",
            "name": f"e{number}",
            "cat": "user_annotation",
            "pid": 0,
            "tid": tid,
            "ts": f"{(base + start) // 1000}.{(base + start) % 1000:03}",
            "dur": duration / 1000,
        }
        for number, (start, duration, tid) in enumerate(draw(st.lists(shape, max_size=25)))
    ]


@settings(max_examples=60, deadline=None)
@given(events=crowded_threads())
def test_no_event_is_lost_moved_in_time_or_given_a_false_parent(processor, events):
    lanes = split_lanes({"traceEvents": events})
    processor.load(to_json(lanes))
    assert processor.error_stats() == {}
    rows = processor.query(LOADED)
    arrived = {row["name"]: (row["ts"] + lanes["rebased_ns"], row["dur"]) for row in rows}
    assert arrived == {e["name"]: (to_ns(e["ts"]), to_ns(e["dur"])) for e in events}
    by_id = {row["id"]: row for row in rows}
    for row in rows:
        if row["parent_id"] is not None:
            holder = by_id[row["parent_id"]]
            assert events[holder["event_index"]]["tid"] == events[row["event_index"]]["tid"]
            assert holder["ts"] <= row["ts"]
            assert row["ts"] + row["dur"] <= holder["ts"] + holder["dur"]


# The process behind it


def test_a_query_that_is_wrong_says_so_and_the_next_one_works(processor):
    with pytest.raises(TraceProcessorError, match="no such table: absent"):
        processor.query("SELECT * FROM absent")
    assert processor.query("SELECT NULL AS a, 9007199254740993 AS b, 'x' AS c") == [
        {"a": None, "b": 9_007_199_254_740_993, "c": "x"}
    ]


def test_what_is_no_trace_is_refused(processor):
    with pytest.raises(TraceProcessorError, match="the trace"):
        processor.load(b"nothing that anyone knows")


def test_lost_events_stop_the_count(processor, monkeypatch):
    monkeypatch.setattr(processor, "error_stats", lambda: {"json_parser_failure": 2})
    with pytest.raises(TraceProcessorError, match=r"lost events: \{'json_parser_failure': 2\}"):
        count_trace({"traceEvents": []}, processor)


def test_the_death_of_node_is_told_with_its_last_words():
    script = "console.error('out of memory'); process.exit(3)"
    pipe = _NodePipe(["node", "-e", script])
    with pytest.raises(TraceProcessorError, match=r"exit status 3\): out of memory"):
        pipe.read(1)
    pipe.close()


def test_node_has_ended_when_the_block_has():
    with TraceProcessor() as running:
        process = running._client.transport._process
    assert process.returncode == 0


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert TraceProcessor.unavailable() == "node is not on the PATH"
    with pytest.raises(TraceProcessorError, match="node is not on the PATH"), TraceProcessor():
        pass
