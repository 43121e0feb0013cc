"""Whose work it is: calls, their threads, device work, and who made it."""

from .traces_by_hand import (
    assert_table,
    call,
    compiled,
    event,
    kernel,
    launch,
    memcpy,
    memset,
    on,
    op,
    python,
    rng,
    summary,
)

# Rule 1: device work belongs where its call belongs


def test_device_work_belongs_to_the_range_of_its_call_whenever_it_runs():
    assert_table(
        summary(
            rng("a", 0, 10),
            rng("b", 10, 90),
            launch(9, 1, gpu_at=50, stream=3),
            {**event("gpu_user_annotation", "b", 50, 10), "pid": 0, "tid": 3},
        ),
        "kernels\n a 1",
    )


def test_a_call_owns_all_the_device_work_with_its_id():
    found = summary(
        rng("r", 0, 90), call("cudaLaunchKernelExC", 1, 1), kernel(5, 1), kernel(20, 1), memset(30, 1), memcpy(40, 1)
    )
    assert_table(
        found,
        """
             kernel_launches  kernels  memsets  copies
        r                  1        2        1       1
        """,
    )


def test_of_several_calls_with_one_id_the_innermost_owns():
    assert_table(
        summary(
            rng("outer", 0, 90),
            call("cudaLaunchKernel", 1, 1, dur=20),
            rng("inner", 5, 15),
            call("cuLaunchKernel", 6, 1, cat="cuda_driver"),
            kernel(30, 1),
        ),
        """
                       kernel_launches  kernels  unlinked_launches
        outer/inner                  1        1                  .
        """,
    )


# Launches


def test_launches_are_told_by_what_they_own():
    found = summary(
        rng("r", 0, 90),
        [call("INVALID", 1, 1), kernel(5, 1)],
        [call("cudaMemcpyAsync", 2, 2), memcpy(5, 2)],
        [call("cudaGraphLaunch", 3, 3), kernel(5, 3), kernel(6, 3), memcpy(7, 3)],
        [call("cudaGraphLaunch", 4, 4), memset(7, 4)],
        [call("cudaLaunchKernel", 5, 5), call("cudaGraphLaunch", 6, 6), call("cudaLaunchKernel", 7)],
        call("cudaLaunchHostFunc", 8, 8),
    )
    assert_table(
        found,
        """
             kernel_launches  graph_launches  kernels  graph_kernels  unlinked_launches
        r                  1               2        3              2                  3
        """,
    )


def test_a_graphs_work_belongs_to_the_range_of_its_launch():
    assert_table(
        summary(
            rng("capture", 0, 10),
            call("cudaLaunchKernel", 1, 1),
            rng("replay", 20, 30),
            call("cudaGraphLaunch", 21, 2),
            [kernel(40 + 10 * i, 2) for i in range(3)],
        ),
        """
                 kernel_launches  graph_launches  graph_kernels  unlinked_launches
        capture                .               .              .                  1
        replay                 .               1              3                  .
        """,
    )


# Rule 2: the true thread of a call


def test_a_stale_thread_is_mended_by_the_external_id():
    assert_table(
        summary(
            rng("r", 0, 50),
            op("aten::add", 5, 10, ext=3),
            on(66, call("cudaLaunchKernel", 6, 1, ext=3), call("cudaLaunchKernel", 12, 2, ext=3)),
            kernel(20, 1),
            kernel(30, 2),
        ),
        """
                     kernels
        r                  1
        (no range)         1
        """,
    )


def test_a_range_can_carry_the_external_id_too():
    found = summary(rng("r", 0, 50, **{"External id": 4}), on(66, call("cudaLaunchKernel", 6, 1, ext=4)), kernel(9, 1))
    assert_table(found, "kernels\n r 1")
    (by_thread,) = found.threads.values()
    assert [found.work.events.threads[number].tid for number in by_thread] == [1]


def test_an_id_whose_op_does_not_contain_the_call_says_nothing():
    # Ends are not inside: the op is over when the second call starts.
    assert_table(
        summary(
            rng("mine", 0, 50),
            on(2, rng("other", 0, 50), op("aten::add", 5, 10, ext=3)),
            call("cudaStreamSynchronize", 5, ext=3),
            call("cudaStreamSynchronize", 10, ext=3),
        ),
        """
                 syncs
        mine         1
        other        1
        """,
    )


def test_of_several_holders_of_an_id_the_innermost_tells():
    assert_table(
        summary(
            rng("a", 0, 50),
            op("aten::linear", 0, 40, ext=3),
            on(2, rng("b", 0, 50), op("aten::mm", 10, 20, ext=3)),
            on(66, call("cudaStreamSynchronize", 12, ext=3), call("cudaStreamSynchronize", 30, ext=3)),
        ),
        "syncs\n a 1\n b 1",
    )


def test_a_call_belongs_to_the_range_open_at_its_start():
    assert_table(
        summary(rng("a", 0, 10), call("cudaDeviceSynchronize", 9, dur=50), rng("b", 10, 90)),
        "syncs\n a 1",
    )


# Rules 4 and 5


def test_calls_outside_of_ranges_and_the_profilers_own_sync():
    found = summary(
        rng("ProfilerStep#1", 0, 50),
        launch(60, 1),
        call("cudaDeviceSynchronize", 90),
        call("cudaStreamSynchronize", 95),
    )
    assert_table(
        found,
        """
                      kernels  syncs
        (no range)          1      2
        """,
    )
    made = found.contributors(found.outside_row, "op")
    assert {name: counts["syncs"] for name, counts in made.items() if "syncs" in counts} == {
        "cudaDeviceSynchronize (the profiler's own)": 1,
        "cudaStreamSynchronize": 1,
    }


def test_a_sync_inside_of_a_step_or_without_steps_is_the_programs():
    for events in (
        [rng("ProfilerStep#1", 0, 50), call("cudaDeviceSynchronize", 40)],
        [call("cudaDeviceSynchronize", 9)],
    ):
        found = summary(*events)
        (row,) = [row for row, syncs in enumerate(found.own("syncs")) if syncs]
        assert list(found.contributors(row, "op")) == ["cudaDeviceSynchronize"]


def test_work_without_its_call_came_before_the_window_and_is_in_no_total():
    found = summary(rng("r", 0, 90), launch(1, 1), kernel(2, 77), memcpy(3, 78, size=16), kernel(4, None))
    assert_table(
        found,
        """
                               kernels  copies  copy_bytes
        r                            1       .           .
        (before the window)          2       1          16
        """,
    )
    assert found.totals["kernels"] == 1
    assert "copies" not in found.totals
    assert found.totals["gpu_busy_ns"] == found.totals["gpu_ns"] == 10_000


# Rule 6


def test_self_total_and_the_whole_trace_add_up():
    found = summary(rng("a", 0, 50), rng("b", 10, 20), [launch(t, t) for t in (1, 11, 12, 30, 60)], kernel(70, 99))
    found.check()
    assert_table(found, "kernels\n a 2\n a/b 2\n (no range) 1\n (before the window) 1")
    assert_table(found, "kernels\n a 4\n a/b 2\n (no range) 1\n (before the window) 1", "total")
    assert found.totals["kernels"] == 5


# What did it


def test_contributors_by_op_kernel_function_and_line():
    found = summary(
        rng("r", 0, 90),
        python("train.py(7): main", 0, 90),
        python("torch/nn/functional.py(20): linear", 5, 30),
        op("aten::linear", 6, 30, **{"Call line": "train.py:12"}),
        op("aten::mm", 8, 20, **{"Call line": "train.py:13"}),
        launch(10, 1, name="gemm"),
        launch(25, 2, name="bias"),
        launch(40, 3, name="bare"),
    )
    row = found.paths.index(("r",))

    def kernels(by):
        return {name: counts["kernels"] for name, counts in found.contributors(row, by).items() if "kernels" in counts}

    assert kernels("op") == {"aten::mm": 1, "aten::linear": 1, "cudaLaunchKernel": 1}
    assert kernels("kernel") == {"gemm": 1, "bias": 1, "bare": 1}
    assert kernels("function") == {"train.py:7 in main": 3}
    assert kernels("line") == {"train.py:13": 1, "train.py:12": 1}


def test_contributors_of_a_total_are_those_of_all_descendants():
    found = summary(rng("a", 0, 90), rng("b", 10, 20), launch(1, 1, name="k"), launch(11, 2, name="k"))
    assert found.contributors(0, "kernel")["k"]["kernels"] == 1
    assert found.contributors(0, "kernel", "total")["k"]["kernels"] == 2


def test_compiles_belong_to_the_range_open_on_their_thread():
    assert_table(
        summary(
            rng("a", 0, 50),
            compiled("triton_0", 1, 9),
            compiled("triton_0", 10, 11, cache_hit=True),
            on(2, compiled("triton_1", 1, 9)),
        ),
        """
                      compiles  compile_cache_hits
        a                    1                   1
        (no range)           1                   .
        """,
    )
