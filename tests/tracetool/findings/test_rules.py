"""Each rule on a small trace that has what it looks for, and on one that nearly has it."""

import pytest

from tests.tracetool.small import Small
from tracetool.findings.linting import lint
from tracetool.findings.registry import RULES
from tracetool.findings.settings import Threshold

POINTWISE = "void at::native::vectorized_elementwise_kernel<4, at::native::AddFunctor>"
STEPS = 3


def traced(body, steps=STEPS, **metadata):
    trace = Small(**metadata)
    for number in range(steps):
        with trace.step(number):
            body(trace, number) if body.__code__.co_argcount == 2 else body(trace)
    return trace


@pytest.fixture
def found(tmp_path):
    """What one rule finds: the range, the counts a step, and the cost in us a step."""

    def look(rule, *traces):
        summaries = [trace.summary(tmp_path / f"{number}.json") for number, trace in enumerate(traces)]
        told = [one for each in lint(summaries, [RULES[rule]], Threshold(ns=0)) for one in each.findings]
        return [
            (
                "/".join(one.path[1:]),
                {name: round(value, 3) for name, value in one.counts.items()},
                None if one.cost.ns is None else round(one.cost.ns / 1000, 3),
            )
            for one in told
        ]

    return look


def works(trace):
    """Something that has to be launched after what is looked at."""
    with trace.range("forward"):
        trace.kernel("gemm", op="aten::mm", us=2)


# TT01 -----------------------------------------------------------------------------------------------------------


def test_pageable_copies_with_their_waits(found):
    def step(trace):
        with trace.range("load"), trace.op("aten::copy_"):
            trace.copy(size=4096, us=25, device_us=1)
            trace.sync(us=10)
        works(trace)

    # The call takes 20 us more than one that only starts the copy, and the wait 10.
    counts = {"h2d_pageable_copies": 1, "h2d_pageable_bytes": 4096, "syncs": 1}
    assert found("TT01", traced(step)) == [("load", counts, 30)]


def test_pinned_copies_and_those_of_the_first_step_are_as_they_should_be(found):
    def step(trace, number):
        with trace.range("load"), trace.op("aten::copy_"):
            trace.copy(memory="Pinned", size=4096, us=2)
        if number == 0:
            with trace.range("load"):
                trace.copy(op="aten::copy_")
        works(trace)

    assert found("TT01", traced(step)) == []


def slice_sent(trace, *, wait):
    with trace.range("load"), trace.op("aten::copy_"):
        with trace.op("aten::contiguous"):
            trace.now += 20
        with trace.op("aten::copy_"):
            trace.copy(size=4096, us=5)
            if wait:
                trace.sync()
        trace.kernel(POINTWISE, op="aten::copy_", us=7)
    works(trace)


def test_a_pinned_copy_that_is_not_one(found):
    counts = {"h2d_pageable_copies": 1, "h2d_pageable_bytes": 4096, "kernel_launches": 1}
    # Of the 39 us of the outer op the 6 us of the inner one that makes the copy are left.
    assert found("TT01", traced(lambda trace: slice_sent(trace, wait=False))) == [("load", counts, 33)]


def test_a_copy_of_a_slice_that_waits_was_not_asked_not_to_block(tmp_path):
    summary = traced(lambda trace: slice_sent(trace, wait=True)).summary(tmp_path / "t.json")
    [one] = lint([summary], [RULES["TT01"]], Threshold(ns=0))[0].findings
    assert "asked not to block" not in one.what
    assert "pin_memory=True" in one.mend.code


@pytest.mark.parametrize("rule", ["TT01", "TT09"])
def test_memory_of_a_kind_that_is_not_told(tmp_path, rule):
    def step(trace):
        trace.copy(memory="Host", op="aten::copy_")
        works(trace)

    told = lint([traced(step).summary(tmp_path / "t.json")], [RULES[rule]], Threshold(ns=0))[0]
    assert told.findings == ()
    assert [one.why for one in told.unjudged] == ["the trace does not tell pageable from pinned memory"]


# TT02 -----------------------------------------------------------------------------------------------------------


def sends(trace, copies, size=64):
    with trace.range("load"):
        for _ in range(copies):
            trace.now += 3  # the loop around them
            trace.copy(size=size, op="aten::copy_", us=5)
    works(trace)


def test_small_copies_that_could_be_one(found):
    counts = {"h2d_copies": 5, "h2d_bytes": 320}
    # Four times round the loop: 3 us, an op of 6 us and the 1 us after it.
    assert found("TT02", traced(lambda trace: sends(trace, 5))) == [("load", counts, 40)]


def test_few_or_large_copies_are_left_alone(found):
    assert found("TT02", traced(lambda trace: sends(trace, 3))) == []
    assert found("TT02", traced(lambda trace: sends(trace, 5, size=1 << 20))) == []


@pytest.mark.parametrize(("direction", "mend"), [("HtoD", "small copies"), ("DtoH", "small reads")])
def test_small_copies_are_mended_by_where_they_go(tmp_path, direction, mend):
    def step(trace):
        for _ in range(5):
            trace.copy(direction, size=4, op="aten::copy_", us=5)
        works(trace)

    [told] = lint([traced(step).summary(tmp_path / "trace.json")], [RULES["TT02"]], Threshold(ns=0))
    assert [one.mend.of for one in told.findings] == [mend]


def test_what_nonzero_reads_cannot_be_sent_with_something_else(found):
    def step(trace):
        for _ in range(5):
            trace.copy("DtoH", size=4, op="aten::nonzero", us=5)
        works(trace)

    assert found("TT02", traced(step)) == []


def makes_tensor(trace, *, on_device):
    with trace.op("aten::to"):
        if on_device:
            with trace.op("aten::_to_copy"), trace.op("aten::copy_"):
                trace.copy(size=64, us=5)
                trace.sync(us=5)
    with trace.op("aten::lift_fresh"):
        pass


def test_index_tensors_made_from_lists(found):
    def step(trace):
        for _ in range(2):
            with trace.range("layer"):
                makes_tensor(trace, on_device=True)
                trace.kernel("index", op="aten::index_select")

    counts = {"h2d_copies": 2, "h2d_bytes": 128, "syncs": 2}
    # The op around one of them, of 15 us.
    assert found("TT02", traced(step)) == [("layer", counts, 15)]


def test_a_tensor_made_from_a_list_on_the_host_or_once(found):
    def step(trace):
        with trace.range("layer"):
            makes_tensor(trace, on_device=True)
            makes_tensor(trace, on_device=False)
            trace.kernel("index", op="aten::index_select")

    assert found("TT02", traced(step)) == []


# TT03 -----------------------------------------------------------------------------------------------------------


def item(trace, us=20):
    with trace.op("aten::item"), trace.op("aten::_local_scalar_dense"):
        trace.copy("DtoH", size=4, us=2)
        trace.sync(us=us)


def test_a_wait_in_the_middle_of_a_step(found):
    def step(trace):
        with trace.range("layer"):
            trace.kernel("gemm", op="aten::mm", us=2, device_us=24)
            item(trace)
        works(trace)

    # The device is done when the 20 us of waiting are over: without it 6 us of its time are left.
    [(path, counts, cost)] = found("TT03", traced(step))
    assert (path, counts) == ("layer", {"syncs": 1, "sync_wait_ns": 20_000})
    assert 6 <= cost <= 26


def test_what_a_step_ends_with_is_its_result(found):
    def step(trace):
        works(trace)
        with trace.range("read"):
            item(trace)
            trace.sync("cudaDeviceSynchronize")

    assert found("TT03", traced(step)) == []


def test_several_reads_at_the_end_could_be_one(found):
    def step(trace):
        works(trace)
        with trace.range("read"):
            for _ in range(4):
                item(trace, us=5)

    # Three of four reads: an op of 10 us and the 1 us after it.
    assert found("TT03", traced(step)) == [("read", {"syncs": 4, "sync_wait_ns": 20_000}, 33)]


def test_boolean_indexing_looks_for_true_elements(found):
    def step(trace):
        with trace.range("layer"), trace.op("aten::index"):
            with trace.op("aten::nonzero"):
                trace.kernel("reduce", us=5)
                trace.copy("DtoH", size=4, us=5)
                trace.sync(us=5)
            trace.kernel("index", us=5)
        works(trace)

    # The op inside, of 16 us; the index kernel stands for the one with the mask.
    assert found("TT03", traced(step)) == [("layer", {"syncs": 1, "sync_wait_ns": 5000}, 16)]


def test_an_event_that_has_come_is_no_wait(found):
    def step(trace):
        trace.sync("cudaEventSynchronize", us=2)
        works(trace)

    assert found("TT03", traced(step)) == []


# TT04 -----------------------------------------------------------------------------------------------------------

NOTED = {"tracetool": {"compiles": True}}


def compiles(*signatures):
    def step(trace, number):
        with trace.range("scale"):
            for signature in signatures[number : number + 1]:
                if signature:
                    trace.compile("scale_kernel", us=3000, **signature)
            trace.kernel("scale_kernel")

    return traced(step, **NOTED)


def test_a_kernel_compiled_anew_names_the_argument(found, tmp_path):
    whole = {"signature": "x_ptr: *fp32, num_tokens: i32"}
    sixteen = {**whole, "multiples": "num_tokens"}
    trace = compiles(whole, None, sixteen)
    assert found("TT04", trace) == [("scale", {"compiles": 0.333, "compile_ns": 1_000_000}, 1000)]
    [one] = lint([trace.summary(tmp_path / "t.json")], [RULES["TT04"]], Threshold(ns=0))[0].findings
    assert "its keys differ in num_tokens (i32, i32 /16)" in one.what
    assert "do_not_specialize" in one.mend.text


def test_a_kernel_used_late_wants_a_warm_up(tmp_path):
    trace = compiles(None, {"signature": "x_ptr: *fp32"})
    [one] = lint([trace.summary(tmp_path / "t.json")], [RULES["TT04"]], Threshold(ns=0))[0].findings
    assert "keys" not in one.what
    assert one.mend.of == "the first use of a kernel in a later step"


def test_a_compile_costs_until_the_launch(found):
    def step(trace, number):
        with trace.range("scale"):
            if number:
                trace.compile("scale_kernel", us=3000)
                trace.now += 6000  # the launcher is built
            trace.kernel("scale_kernel")

    assert found("TT04", traced(step, **NOTED)) == [("scale", {"compiles": 0.667, "compile_ns": 2_000_000}, 6000)]


def test_compiles_of_the_first_step_are_how_a_kernel_begins(found):
    assert found("TT04", compiles({"signature": "x_ptr: *fp32"})) == []


def test_a_tuner_that_runs_again(found):
    def step(trace, number):
        if number != 1:
            trace.tune("attention_kernel", us=600)
        trace.kernel("attention_kernel")

    assert found("TT04", traced(step, **NOTED)) == [("", {"autotunes": 0.333, "autotune_ns": 200_000}, 200)]


def test_without_device_work_most_rules_cannot_judge(tmp_path):
    def step(trace):
        with trace.range("f"), trace.op("aten::add"):
            pass

    told = lint([traced(step).summary(tmp_path / "t.json")], RULES.values(), Threshold())[0]
    assert told.findings == ()
    whys = {one.rule.id: one.why for one in told.unjudged}
    assert whys.pop("TT04") == "the trace has no compiles, which `tracetool capture` records"
    assert len(whys) == 10
    assert set(whys.values()) == {"the trace has no device work"}


def test_without_compiles_on_record_nothing_is_said_of_them(tmp_path):
    told = lint([traced(works).summary(tmp_path / "t.json")], [RULES["TT04"]], Threshold())[0]
    assert [one.why for one in told.unjudged] == ["the trace has no compiles, which `tracetool capture` records"]


# TT05 -----------------------------------------------------------------------------------------------------------


def launches(trace, device_us):
    with trace.range("forward"):
        for _ in range(12):
            trace.kernel("gemm", op="aten::mm", us=4, device_us=device_us)


def test_a_launch_bound_range(found):
    [(path, counts, cost)] = found("TT05", traced(lambda trace: launches(trace, 1)))
    # From the first launch to the end of the last are 70 us, of which one of 16 us is left; after the last step the
    # device still has 7 us to do, a third of them for each step.
    assert (path, cost) == ("forward", pytest.approx(54 - 7 / 3, abs=0.01))
    assert counts == {"kernel_launches": 12, "launch_ns": 48_000, "gpu_busy_ns": 12_000}


def test_a_set_up_that_runs_once_is_not_launch_bound(found):
    trace = Small()
    launches(trace, 1)
    assert found("TT05", trace) == []
    launches(trace, 1)
    assert len(found("TT05", trace)) == 1


def test_a_pause_between_launches_is_none_of_them(found):
    def step(trace):
        with trace.range("forward"):
            for _ in range(2):
                for _ in range(6):
                    trace.kernel("gemm", op="aten::mm", us=4, device_us=1)
                trace.now += 5000  # a file is read

    # Twice from the first launch of six to the end of the last, 34 us, less four launches of 4 us; after the last
    # step the device still has 1 us to do.
    [(path, _, cost)] = found("TT05", traced(step))
    assert (path, cost) == ("forward", pytest.approx(36, abs=2))

    def rests(trace):
        with trace.range("forward"):
            for _ in range(12):
                trace.kernel("gemm", op="aten::mm", us=4, device_us=1)
                trace.now += 5000

    assert found("TT05", traced(rests)) == []


def test_a_busy_device_is_not_launch_bound(found):
    assert found("TT05", traced(lambda trace: launches(trace, 6))) == []


# TT06 -----------------------------------------------------------------------------------------------------------


def activation(trace, kernels, name=POINTWISE):
    with trace.range("activation"):
        for number in range(kernels):
            trace.kernel(name if number % 3 else POINTWISE, op=f"aten::op{number}", us=4)


def test_a_run_of_elementwise_kernels(found):
    # Four of five ops of 5 us each.
    assert found("TT06", traced(lambda trace: activation(trace, 5))) == [
        ("activation", {"kernel_launches": 5, "gpu_ns": 20_000}, 20)
    ]


def test_elementwise_kernels_between_others(found):
    assert found("TT06", traced(lambda trace: activation(trace, 9, name="gemm"))) == []
    assert found("TT06", traced(lambda trace: activation(trace, 2))) == []


# TT07 -----------------------------------------------------------------------------------------------------------


def test_memory_from_the_driver_in_each_step(found):
    def step(trace):
        with trace.range("prepare"):
            trace.call("cudaFree", us=50)
            trace.call("cudaMalloc", us=100)
        works(trace)

    assert found("TT07", traced(step)) == [("prepare", {"device_mallocs": 2, "cpu_ns": 150_000}, 150)]


def test_memory_taken_in_the_first_step_is_kept(found):
    def step(trace, number):
        if number == 0:
            trace.call("cudaMalloc", us=100)
        works(trace)

    assert found("TT07", traced(step)) == []


def clears(trace, buffers):
    with trace.range("clear"):
        for _ in range(buffers):
            with trace.op("aten::zero_"):
                trace.memset()
    works(trace)


def test_buffers_cleared_one_by_one(found):
    # Four ops of 2 us, and 1 us after each.
    assert found("TT07", traced(lambda trace: clears(trace, 5))) == [("clear", {"memsets": 5, "gpu_ns": 5000}, 12)]


def test_few_buffers_cleared_or_those_of_a_reduction(found):
    assert found("TT07", traced(lambda trace: clears(trace, 3))) == []

    def step(trace):
        for _ in range(5):
            with trace.op("aten::sum"):
                trace.memset()
                trace.kernel("reduce")

    assert found("TT07", traced(step)) == []


# TT08 -----------------------------------------------------------------------------------------------------------


def casts(trace, times, op="aten::_to_copy"):
    for _ in range(times):
        with trace.range("layer"):
            with trace.op("aten::to"), trace.op(op):
                trace.kernel("void at::native::elementwise_kernel<direct_copy>", op="aten::copy_", us=3)
            trace.kernel("gemm", op="aten::mm")


def test_the_same_cast_over_and_over(found):
    # Four ops of 8 us.
    assert found("TT08", traced(lambda trace: casts(trace, 4))) == [
        ("layer", {"kernel_launches": 4, "gpu_ns": 12_000}, 32)
    ]


def test_the_same_change_of_layout_over_and_over(found):
    [(path, counts, _)] = found("TT08", traced(lambda trace: casts(trace, 4, "aten::contiguous")))
    assert (path, counts["kernel_launches"]) == ("layer", 4)


def test_what_another_op_changes_for_itself(found):
    def step(trace):
        for _ in range(5):
            with trace.range("layer"), trace.op("aten::linear"):
                with trace.op("aten::to"), trace.op("aten::_to_copy"):
                    trace.kernel("void at::native::elementwise_kernel<direct_copy>", op="aten::copy_", us=3)
                trace.kernel("gemm", op="aten::addmm")

    assert found("TT08", traced(step)) == []


def test_a_few_casts_or_other_copies(found):
    assert found("TT08", traced(lambda trace: casts(trace, 3))) == []
    assert found("TT08", traced(lambda trace: casts(trace, 5, "aten::other"))) == []


# TT09 -----------------------------------------------------------------------------------------------------------


def batch(trace, stream):
    with trace.range("load"):
        trace.copy(memory="Pinned", size=1 << 22, op="aten::copy_", us=2, device_us=50, stream=stream)
    with trace.range("forward"):
        trace.kernel("gemm", op="aten::mm", us=2, device_us=200)
    with trace.range("read"):
        trace.sync(us=256)


def test_a_copy_on_the_stream_that_computes(found):
    [(path, counts, cost)] = found("TT09", traced(lambda trace: batch(trace, 7)))
    assert (path, counts) == ("load", {"copies": 1, "copy_bytes": 1 << 22, "gpu_ns": 50_000})
    assert 35 <= cost <= 50


def test_a_copy_on_a_stream_of_its_own(found):
    assert found("TT09", traced(lambda trace: batch(trace, 20))) == []


# TT10 -----------------------------------------------------------------------------------------------------------


def test_a_graph_captured_anew_in_each_step(found):
    def step(trace):
        with trace.range("forward"):
            trace.call("cudaStreamBeginCapture", us=1)
            trace.lost_launch()
            trace.call("cudaStreamEndCapture", us=10)
            trace.call("cudaGraphInstantiate", us=100)
            trace.graph("gemm", "relu")

    assert found("TT10", traced(step)) == [("forward", {"cpu_ns": 112_000}, 112)]


def test_a_capture_begins_with_the_wait_before_it(found):
    def step(trace, launches):
        with trace.range("forward"):
            trace.sync("cudaDeviceSynchronize", us=5)
            for _ in range(launches):
                trace.kernel("gemm")
            trace.now += 300  # garbage is collected
            trace.call("cudaStreamBeginCapture", us=1)
            trace.call("cudaGraphInstantiate", us=100)
            trace.graph("gemm", "relu")

    assert found("TT10", traced(lambda trace: step(trace, 0))) == [("forward", {"cpu_ns": 406_000}, 406)]
    assert found("TT10", traced(lambda trace: step(trace, 9))) == [("forward", {"cpu_ns": 101_000}, 101)]


def test_a_graph_captured_in_the_first_step(found):
    def step(trace, number):
        if number == 0:
            trace.call("cudaStreamBeginCapture")
            trace.call("cudaGraphInstantiate")
        trace.graph(*["gemm"] * 20)

    assert found("TT10", traced(step)) == []


def test_many_small_graphs(found):
    def step(trace, graphs):
        with trace.range("forward"):
            for _ in range(graphs):
                trace.now += 9
                trace.graph("gemm", "relu")

    [(path, counts, cost)] = found("TT10", traced(lambda trace: step(trace, 5)))
    assert (path, counts) == ("forward", {"graph_launches": 5, "graph_kernels": 10})
    # Between five launches are four times 9 us; after the last step the device still has some of its ten kernels to do.
    assert 34 <= cost <= 36
    assert found("TT10", traced(lambda trace: step(trace, 3))) == []


def test_launches_beside_a_graph(found):
    def step(trace, beside):
        trace.graph("gemm", "relu")
        with trace.range("rest"):
            for _ in range(beside):
                trace.kernel("gemm", op="aten::mm", us=3, device_us=0.5)

    [(path, counts, cost)] = found("TT10", traced(lambda trace: step(trace, 10)))
    assert (path, counts) == ("rest", {"kernel_launches": 10, "graph_launches": 1})
    # Ten ops of 4 us, and the 1 us between two of them; at the end the device has 5 us to do.
    assert 45 <= cost <= 49
    assert found("TT10", traced(lambda trace: step(trace, 9))) == []


# TT11 -----------------------------------------------------------------------------------------------------------


def test_the_device_waits_for_the_input(found):
    def step(trace):
        with trace.range("load_batch", idle=100):
            pass
        works(trace)

    assert found("TT11", traced(step)) == [("load_batch", {"cpu_ns": 101_000}, 101)]


def test_a_host_that_is_late_with_everything_is_not_late_for_its_input(found):
    def step(trace, after):
        with trace.range("load_batch", idle=100):
            pass
        works(trace)
        with trace.range("bookkeeping", idle=after):
            pass

    assert found("TT11", traced(lambda trace: step(trace, 60))) == [("load_batch", {"cpu_ns": 101_000}, 101)]
    assert found("TT11", traced(lambda trace: step(trace, 120))) == []


def test_an_optimizer_that_clears_its_gradients_prepares_no_input(found):
    def step(trace):
        with trace.range("Optimizer.zero_grad#SGD.zero_grad", idle=100):
            pass
        works(trace)

    assert found("TT11", traced(step)) == []


def test_a_host_that_prepares_while_the_device_works(found):
    def step(trace):
        works(trace)
        with trace.range("load_batch", idle=100):
            pass

    assert found("TT11", traced(step)) == []


# TT12 -----------------------------------------------------------------------------------------------------------


def rank(number, reads):
    def step(trace):
        works(trace)
        with trace.range("log"):
            for _ in range(reads):
                item(trace)

    return traced(step, distributedInfo={"rank": number})


def test_a_rank_that_does_more(found):
    told = found("TT12", rank(0, 0), rank(1, 2), rank(2, 0))
    assert told == [("log", {"syncs": 2, "d2h_copies": 2}, None)]


def test_ranks_that_do_the_same(found):
    assert found("TT12", rank(0, 1), rank(1, 1)) == []


def test_stages_of_a_pipeline_do_different_work(tmp_path):
    def stage(number):
        def step(trace):
            with trace.range(f"stage{number}"):
                trace.kernel("gemm", op="aten::mm")

        return traced(step, distributedInfo={"rank": number})

    told = lint([stage(n).summary(tmp_path / f"{n}.json") for n in range(2)], [RULES["TT12"]], Threshold())
    assert [len(each.findings) for each in told] == [0, 0]
    assert "stages of a pipeline" in told[0].unjudged[0].why


def test_traces_that_are_no_ranks(tmp_path):
    summaries = [traced(works).summary(tmp_path / f"{number}.json") for number in range(2)]
    told = lint(summaries, [RULES["TT12"]], Threshold())
    assert [one.why for each in told for one in each.unjudged] == [
        "it compares ranks: give the traces of two or more, which name them (distributedInfo)"
    ]
