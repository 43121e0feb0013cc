"""What each metric counts."""

import pytest

import tracetool
from tracetool.differ import Per

from .traces_by_hand import (
    PAGEABLE,
    PINNED,
    alloc,
    assert_table,
    call,
    compiled,
    event,
    flow,
    kernel,
    launch,
    memcpy,
    on,
    op,
    rng,
    summary,
)

WRAPPER = "autograd::engine::evaluate_function: AddBackward0"


def value(found, metric, path=("r",), scope="self"):
    return int(found.value(metric, scope)[found.paths.index(path)])


# Copies


def test_copies_by_direction_and_host_memory():
    names = [
        PAGEABLE,
        PINNED,
        "Memcpy HtoD (Host -> Device)",
        "Memcpy DtoH (Device -> Pageable)",
        "Memcpy DtoH (Device -> Pinned)",
        "Memcpy DtoD (Device -> Device)",
        "Memcpy PtoP (Device -> Device)",
        "Memcpy HtoH (Pageable -> Pinned)",
        "CopyBuffer",
    ]
    copies = [[call("cudaMemcpyAsync", i, i), memcpy(5, i, size=2**i, name=name)] for i, name in enumerate(names)]
    found = summary(rng("r", 0, 90), copies)
    assert_table(
        found,
        """
             copies  h2d_copies  d2h_copies  d2d_copies  p2p_copies  other_copies
        r         9           3           2           1           1             2
        """,
    )
    assert_table(
        found,
        """
             copy_bytes  h2d_bytes  d2h_bytes  d2d_bytes  p2p_bytes  other_bytes
        r           511          7         24         32         64          384
        """,
    )
    assert_table(
        found,
        """
             h2d_pageable_copies  h2d_pinned_copies  d2h_pageable_copies  d2h_pinned_copies
        r                      1                  1                    1                  1
        """,
    )
    assert_table(
        found,
        """
             h2d_pageable_bytes  h2d_pinned_bytes  d2h_pageable_bytes  d2h_pinned_bytes
        r                     1                 2                   8                16
        """,
    )


# Syncs


@pytest.mark.parametrize(
    "name",
    [
        *("cudaDeviceSynchronize", "cudaStreamSynchronize", "cudaEventSynchronize", "cuCtxSynchronize"),
        *("hipStreamSynchronize", "cudaMemcpy", "cudaMemcpy2D", "cudaMemcpyToSymbol", "cuMemcpyHtoD_v2"),
        *("hipMemcpyWithStream", "hipMemcpy"),
    ],
)
def test_a_call_that_waits_is_a_sync(name):
    assert value(summary(rng("r", 0, 9), call(name, 1)), "syncs") == 1


@pytest.mark.parametrize(
    "name",
    [
        *("cudaMemcpyAsync", "cuMemcpyHtoDAsync_v2", "cudaMemcpy2DAsync", "cudaEventQuery", "cudaStreamQuery"),
        *("cudaStreamWaitEvent", "cudaMemsetAsync", "cudaGraphAddMemcpyNode", "cudaLaunchKernel"),
    ],
)
def test_a_call_that_does_not_wait_is_none(name):
    assert value(summary(rng("r", 0, 9), call(name, 1)), "syncs") == 0


def test_cuda_sync_events_add_no_syncs_but_refine_the_wait():
    found = summary(
        rng("r", 0, 90),
        call("cudaStreamSynchronize", 1, 1, dur=20),
        {**event("cuda_sync", "Stream Sync", 5, 12, correlation=1), "pid": 0, "tid": 7},
        call("cudaEventQuery", 30, 2),
        {**event("cuda_sync", "Event Sync", 30, 3, correlation=2), "pid": 0, "tid": 7},
        call("cudaDeviceSynchronize", 40, 3, dur=7),
    )
    assert_table(
        found,
        """
             syncs  sync_wait_ns
        r        2         19000
        """,
    )


# Other back ends


@pytest.mark.parametrize(
    "category", ["cuda_runtime", "cuda_driver", "xpu_runtime", "mtia_runtime", "privateuse1_runtime"]
)
@pytest.mark.parametrize("name", ["hipLaunchKernel", "hipExtModuleLaunchKernel", "urEnqueueKernelLaunch"])
def test_calls_of_other_back_ends_count_by_the_same_rules(category, name):
    found = summary(rng("r", 0, 9), call(name, 1, 1, cat=category), kernel(5, 1))
    assert_table(found, "kernel_launches kernels\n r 1 1")


def test_hip_graphs_and_launches_that_own_nothing():
    events = [call("hipGraphLaunch", 1, 1), kernel(5, 1), call("hipModuleLaunchKernel", 2, 2)]
    assert_table(
        summary(rng("r", 0, 9), *events),
        """
             graph_launches  graph_kernels  unlinked_launches  kernel_launches
        r                 1              1                  1                .
        """,
    )


# Ops


def test_ops_are_those_with_no_other_around_them_in_the_same_innermost_range():
    found = summary(
        op("aten::linear", 0, 100),
        op("aten::mm", 10, 20),
        rng("inner", 30, 60),
        op("aten::relu", 35, 50),
        op("aten::clamp", 36, 40),
        op("aten::add", 70, 80),
        op("aten::tail", 90, 110),
    )
    # linear is around mm and add, not around relu, which is in another range, and not around tail's end.
    assert_table(
        found,
        """
                       ops
        inner            1
        (no range)       2
        """,
    )


def test_evaluate_function_wrappers_are_transparent_and_not_counted():
    found = summary(rng("r", 0, 90), op(WRAPPER, 0, 50), op("AddBackward0", 1, 40), op("aten::add", 2, 30))
    assert value(found, "ops") == 1
    assert value(found, f'op_calls["{WRAPPER}"]') == 1
    assert (
        value(summary(rng("r", 0, 90), op("aten::outer", 0, 60), op(WRAPPER, 0, 50), op("aten::add", 2, 30)), "ops")
        == 1
    )


def test_an_op_is_not_around_those_of_another_run_or_thread():
    found = summary(
        [[rng("r", t, t + 50), op("aten::add", t, t + 50)] for t in (0, 50)], on(2, op("aten::add", 10, 20))
    )
    assert_table(found, "ops\n r 2\n (no range) 1")


def test_op_calls_count_a_name_at_any_depth():
    found = summary(rng("r", 0, 90), op("aten::to", 0, 50), op("aten::copy_", 1, 40), op("aten::copy_", 60, 70))
    assert_table(
        found,
        """
             op_calls["aten::copy_"]  op_calls["aten::to"]  op_calls["aten::none"]  ops
        r                          2                     1                       .    2
        """,
    )
    assert found.op_metrics == ['op_calls["aten::to"]', 'op_calls["aten::copy_"]']


# Collectives, memory, compiles


@pytest.mark.parametrize(("dtype", "size"), [("Float", 4), ("BFloat16", 2), ("Long", 8), ("Byte", 1)])
def test_collectives_and_their_larger_message(dtype, size):
    args = {"Collective name": "_allgather_base", "In msg nelems": 10, "Out msg nelems": 80, "dtype": dtype}
    found = summary(rng("r", 0, 9), launch(1, 1, name="ncclDevKernel_AllGather", **args), launch(2, 2))
    assert_table(found, f"kernels collectives collective_bytes\n r 2 1 {80 * size}")


def test_memory_counts_only_with_memory_profiling():
    mallocs = [call("cudaMalloc", 3), call("cudaMallocHost", 4), call("cudaFree", 5)]
    assert_table(
        summary(rng("r", 0, 9), alloc(1, 512), alloc(2, -512), alloc(3, 1024), mallocs),
        """
             allocs  alloc_bytes  device_mallocs
        r         2         1536               1
        """,
    )
    found = summary(rng("r", 0, 9), mallocs)
    assert not found.holds("allocs")
    assert not found.holds("device_mallocs")
    assert value(found, "device_mallocs") == 0


def held(at, size, total, device=1):
    return alloc(at, size, **{"Total Allocated": total, "Device Type": device})


def test_the_peak_is_the_most_held_after_an_allocation():
    events = [
        rng("r", 0, 20),
        rng("a", 2, 9),
        held(1, 100, 700),
        held(3, 200, 900),
        held(4, -200, 5000),
        held(5, 8, 9999, device=0),
        rng("a", 12, 19),
        held(13, 50, 750),
        held(30, 10, 800),
    ]
    found = summary(*events)
    assert_table(found, "peak_bytes\n r 700\n r/a 900\n (no range) 800")
    assert_table(found, "peak_bytes\n r 900\n r/a 900\n (no range) 800", "total")
    assert found.samples("peak_bytes", found.paths.index(("r", "a"))).tolist() == [900, 750]
    assert found.totals["peak_bytes"] == 900


def test_the_peak_of_each_step():
    found = summary(
        rng("ProfilerStep#1", 0, 10),
        held(1, 8, 30),
        held(2, 8, 20),
        rng("ProfilerStep#2", 10, 20),
        rng("r", 11, 13),
        held(12, 8, 40),
    )
    assert [counts.get("peak_bytes") for _, counts in found.steps] == [30, 40]
    assert found.step_samples("peak_bytes", found.paths.index(("ProfilerStep", "r"))).tolist() == [0, 40]


def test_the_peak_of_a_trace_without_a_device_is_the_hosts():
    assert_table(summary(rng("r", 0, 9), held(1, 8, 16, device=0), held(2, 8, 24, device=0)), "peak_bytes\n r 24")


def test_a_diff_compares_peaks_and_adds_none_up():
    one = summary(rng("r", 0, 9), held(1, 8, 16), rng("r", 10, 19), held(11, 8, 16))
    other = summary(rng("r", 0, 9), held(1, 8, 16))
    rows = {row.path: row for row in tracetool.diff(one, other, per=Per.TRACE).rows}
    comparison = rows["r",].metrics["peak_bytes"]
    assert (comparison.baseline.sum, comparison.variants[0].sum) == (16, 16)


def test_a_disk_cache_hit_is_no_compile():
    found = summary(rng("r", 0, 90), compiled("k", 0, 30), compiled("k", 40, 45, cache_hit=True))
    assert_table(
        found,
        """
             compiles  compile_cache_hits  compile_ns
        r           1                   1       30000
        """,
    )


# Times


def test_cpu_time_of_self_is_less_the_children_on_the_same_thread():
    found = summary(
        rng("r", 0, 100), rng("a", 10, 30), rng("b", 40, 50), on(2, rng("nccl", 60, 95)), flow(1, 1, 1, 2, 60)
    )
    assert [value(found, "cpu_ns", scope=scope) for scope in ("self", "total")] == [70_000, 100_000]
    assert value(found, "cpu_ns", ("r", "nccl")) == 35_000


def test_device_time_and_busy_time():
    # r's own: 10-20 and 15-25 on device 0 (15 us busy), 10-20 on device 1; a's: 18-28 on device 0.
    found = summary(
        rng("r", 0, 9),
        rng("a", 5, 8),
        [launch(1, 1, gpu_at=10), launch(2, 2, gpu_at=15, stream=8), launch(3, 3, gpu_at=10, device=1)],
        launch(6, 4, gpu_at=18, stream=9),
    )
    assert_table(found, "gpu_ns gpu_busy_ns\n r 30000 25000\n r/a 10000 10000")
    assert_table(found, "gpu_ns gpu_busy_ns\n r 40000 28000\n r/a 10000 10000", "total")


def test_launch_time_is_that_of_launches_alone():
    found = summary(
        rng("r", 0, 90),
        [call("cudaLaunchKernel", 1, 1, dur=3), kernel(9, 1)],
        [call("cudaGraphLaunch", 10, 2, dur=5), kernel(19, 2)],
        [call("cudaMemcpyAsync", 20, 3, dur=9), memcpy(30, 3)],
        call("cudaLaunchKernel", 40, 4, dur=11),
    )
    assert value(found, "launch_ns") == 8_000


# Calls


def test_least_median_and_most_over_the_calls_of_a_range():
    kernels = [launch(t, t) for t in (1, 11, 12, 21, 22, 23, 24)]
    found = summary([rng("r", t, t + 10) for t in (0, 10, 20)], rng("inner", 22, 30), kernels)
    (r, inner) = found.spreads("kernels", "total")
    assert (r.least, r.median, r.most, r.constant) == (1, 2, 4, False)
    assert (inner.least, inner.median, inner.most, inner.constant) == (3, 3, 3, True)
    assert found.spreads("kernels", "self")[0].most == 2
    assert found.samples("kernels", 0).tolist() == [1, 2, 4]


def test_busy_time_of_each_call_is_worked_out_anew():
    found = summary([[rng("r", t, t + 9), launch(t, t + 1, gpu_at=100 + t)] for t in (0, 10, 15)])
    assert found.samples("gpu_busy_ns", 0).tolist() == [10_000, 10_000, 10_000]
    assert value(found, "gpu_busy_ns") == 25_000
