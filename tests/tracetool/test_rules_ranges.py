"""Ranges, steps and folding, autograd threads: small traces, and what each range must count."""

import pytest

from tracetool.errors import SettingError
from tracetool.ranges import range_source

from .traces_by_hand import (
    assert_table,
    call,
    compiled,
    findings,
    flow,
    kernel,
    launch,
    on,
    op,
    python,
    rng,
    summary,
    thread_name,
    trace,
)

WRAPPER = "autograd::engine::evaluate_function: MulBackward0"


def calls_of(found):
    rows = zip(found.paths, found.calls.tolist(), strict=True)
    return {"/".join(path): calls for path, calls in rows if calls}


# Parents


def test_the_parent_is_the_innermost_that_contains_it_whole():
    ranges = [rng("outer", 0, 100), rng("middle", 10, 50), rng("inner", 20, 50), rng("late", 50, 100)]
    assert calls_of(summary(*ranges)) == {"outer": 1, "outer/middle": 1, "outer/middle/inner": 1, "outer/late": 1}


def test_of_equal_ranges_the_first_in_the_file_is_the_outer():
    assert_table(
        summary(rng("first", 0, 9), rng("second", 0, 9), *launch(0, 1)),
        """
                        calls  kernels
        first               1        .
        first/second        1        1
        """,
    )


def test_ranges_that_overlap_keep_the_parent_that_contains_them_whole():
    ranges = [rng("outer", 0, 100), rng("a", 10, 50), rng("b", 20, 80), rng("in_b", 55, 75), rng("c", 60, 90)]
    found = summary(*ranges)
    assert calls_of(found) == {"outer": 1, "outer/a": 1, "outer/b": 1, "outer/b/in_b": 1, "outer/c": 1}
    assert dict(zip(found.paths, found.ambiguous, strict=True)) == {
        ("outer",): False,
        ("outer", "a"): True,
        ("outer", "b"): True,
        ("outer", "b", "in_b"): True,
        ("outer", "c"): True,
        ("(no range)",): False,
        ("(before the window)",): False,
    }
    assert findings(trace(*ranges))["ambiguous_ranges"] == "warning"


def test_in_an_overlap_the_range_that_started_last_has_the_work():
    assert_table(
        summary(rng("a", 0, 50), rng("b", 20, 80), launch(10, 1), launch(30, 2), launch(60, 3), launch(80, 4)),
        """
                      kernels
        a                   1
        b                   2
        (no range)          1
        """,
    )


def test_a_range_without_length_has_a_parent_and_no_work():
    assert_table(
        summary(rng("outer", 0, 10), rng("empty", 5, 5), rng("at the end", 10, 10), launch(5, 1)),
        """
                          calls  kernels
        outer                 1        1
        outer/empty           1        .
        outer/at the end      1        .
        """,
    )


def test_ranges_are_half_open():
    assert_table(
        summary(rng("first", 0, 10), rng("second", 10, 20), launch(0, 1), launch(10, 2), launch(20, 3)),
        """
                      kernels
        first               1
        second              1
        (no range)          1
        """,
    )


def test_a_range_on_another_thread_is_no_parent():
    assert calls_of(summary(rng("outer", 0, 100), on(2, rng("inner", 10, 20)))) == {"outer": 1, "inner": 1}


def test_one_path_has_all_its_calls_and_total_adds_descendants():
    found = summary(
        [[rng("step", t, t + 50), rng("a", t, t + 20), rng("b", t, t + 9), launch(t, t + 1)] for t in (0, 100)],
        launch(120, 7),
        launch(130, 8),
    )
    assert_table(
        found,
        """
                     calls  kernels
        step             2        2
        step/a           2        .
        step/a/b         2        2
        """,
    )
    assert_table(
        found,
        """
                     calls  kernels
        step             2        4
        step/a           2        2
        step/a/b         2        2
        """,
        "total",
    )


# Steps and folding


def test_steps_are_folded_and_process_wide():
    found = summary(
        rng("ProfilerStep#7", 0, 50),
        rng("ProfilerStep#8", 50, 100),
        on(2, rng("worker", 10, 90), launch(20, 1), launch(60, 2), launch(70, 3)),
        on(1, launch(60, 4), pid=8),
    )
    assert_table(
        found,
        """
                        calls  kernels
        ProfilerStep        2        .
        worker              1        3
        (no range)          .        1
        """,
    )
    assert [(number, counts["kernels"]) for number, counts in found.steps] == [(7, 1), (8, 2)]
    assert found.raw_names[found.paths.index(("ProfilerStep",))] == ["ProfilerStep#7", "ProfilerStep#8"]


def test_device_work_counts_in_the_step_of_its_call_not_of_its_time():
    found = summary(rng("ProfilerStep#1", 0, 50), rng("ProfilerStep#2", 50, 100), launch(49, 1, gpu_at=60))
    assert [counts.get("kernels", 0) for _, counts in found.steps] == [1, 0]


# Autograd threads


def backward(*more):
    return summary(
        rng("ProfilerStep#1", 0, 100),
        rng("backward", 50, 90),
        on(2, op(WRAPPER, 60, 70), launch(61, 1), rng("nccl:all_reduce", 75, 95), launch(76, 2), launch(92, 3)),
        on(2, launch(96, 4)),
        *more,
    )


BACKWARD = """
                                               calls  kernels
    ProfilerStep                                   1        1
    ProfilerStep/backward                          1        1
    ProfilerStep/backward/nccl:all_reduce          1        2
"""


def test_flows_name_the_caller_of_an_autograd_thread():
    found = backward(flow(1, 1, 5, 2, 60))
    assert_table(found, BACKWARD)
    via = {found.paths[row][-1]: counts["kernels"] for row, counts in found.via_autograd.items()}
    assert via == {"ProfilerStep": 1, "backward": 1, "nccl:all_reduce": 2}


def test_without_flows_wrappers_tell_and_the_thread_of_the_steps_called():
    busier = on(3, *[op("aten::mul", 10 * i, 10 * i + 1) for i in range(5)])
    assert_table(backward(busier), BACKWARD)


def test_without_flows_and_steps_the_thread_with_most_ops_outside_wrappers_called():
    assert_table(
        summary(
            rng("backward", 50, 90),
            op("aten::mul", 1, 2),
            on(2, op(WRAPPER, 60, 70), [op("aten::mul", 61 + i, 62 + i) for i in range(5)], launch(61, 1)),
        ),
        """
                    kernels
        backward          1
        """,
    )


def test_a_range_that_starts_with_its_callers_is_still_its_child_in_any_order():
    here, there = rng("backward", 50, 90), on(2, rng("nccl:all_reduce", 50, 60))
    for both in ([here, there], [there, here]):
        assert calls_of(summary(*both, flow(1, 1, 5, 2, 55))) == {"backward": 1, "backward/nccl:all_reduce": 1}


def test_without_a_range_open_on_the_caller_there_is_none():
    assert_table(
        summary(rng("forward", 0, 10), on(2, launch(50, 1)), flow(1, 1, 5, 2, 50)),
        """
                      kernels
        (no range)          1
        """,
    )


def test_a_backward_on_the_calling_thread_is_under_the_rule_for_every_call():
    found = summary(rng("backward", 50, 90), op(WRAPPER, 60, 70), launch(61, 1), flow(1, 1, 5, 1, 60))
    assert_table(found, "kernels\n backward 1")
    assert found.via_autograd == {}


def test_a_mixed_backward_does_not_make_the_caller_an_autograd_thread():
    flows = [flow(1, 1, 5, 2, 60), flow(2, 1, 6, 2, 65), flow(3, 2, 7, 1, 80)]
    assert_table(
        summary(rng("backward", 50, 90), on(2, rng("own", 50, 80), launch(95, 1)), launch(92, 2), flows),
        """
                         kernels
        (no range)             2
        """,
    )


def test_of_several_callers_the_last_to_arrive_counts():
    assert_table(
        summary(
            rng("one", 0, 100),
            on(3, rng("other", 0, 100)),
            on(2, launch(20, 1), launch(60, 2)),
            flow(1, 1, 1, 2, 10),
            flow(2, 3, 1, 2, 50),
        ),
        """
                 kernels
        one            1
        other          1
        """,
    )


# Other events that serve as ranges


def test_ops_serve_as_ranges():
    found = summary(
        rng("step", 0, 100),
        op("aten::linear", 10, 50),
        op("aten::mm", 20, 40),
        op("prims::mm", 60, 70),
        launch(30, 1),
        launch(65, 2),
        ranges_as=["op:aten::*"],
    )
    assert_table(
        found,
        """
                                       calls  kernels  ops
        step                               1        1    1
        step/aten::linear                  1        .    1
        step/aten::linear/aten::mm         1        1    1
        """,
    )


def test_python_functions_and_modules_serve_as_ranges():
    events = [
        python("nn.Module: Linear_0", 0, 50),
        python("model.py(12): forward", 10, 40),
        python("nn.Module: ReLU_0", 60, 90),
        launch(20, 1),
        launch(70, 2),
    ]
    assert calls_of(summary(*events, ranges_as=["module"])) == {"nn.Module: Linear_0": 1, "nn.Module: ReLU_0": 1}
    assert_table(
        summary(*events, ranges_as=["python:model.py*"]),
        """
                                   kernels
        model.py(12): forward            1
        (no range)                       1
        """,
    )


def test_threads_serve_as_ranges():
    found = summary(
        thread_name(2, "loader"),
        rng("step", 10, 50),
        launch(20, 1),
        on(2, launch(30, 2), compiled("k", 40, 60)),
        ranges_as=["thread"],
    )
    assert_table(
        found,
        """
                               calls  kernels  compiles
        thread 1                   1        .         .
        thread 1/step              1        1         .
        thread 2 (loader)          1        1         1
        """,
    )


@pytest.mark.parametrize("text", ["op", "op:", "module:x", "thread:1", "kernel:*", ""])
def test_what_cannot_serve_as_ranges_is_refused(text):
    with pytest.raises(SettingError, match="cannot serve as ranges"):
        range_source(text)


def test_a_range_of_its_own_comes_before_the_callers():
    found = summary(
        rng("backward", 0, 90),
        on(2, rng("hook", 20, 40), call("cudaLaunchKernel", 30, 1)),
        kernel(50, 1),
        flow(1, 1, 1, 2, 10),
    )
    assert_table(found, "kernels\n backward/hook 1")
