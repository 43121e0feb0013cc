"""What a profiler sees of a decode step: the ranges everywhere, and on a GPU what each variant does, counted."""

import threading

import pytest
import torch
from torch._C._profiler import _ExperimentalConfig
from torch.profiler import ProfilerActivity, profile

import tracetool
from engine import LLM, SamplingParams, ranges
from engine.ranges import annotate
from tests.engine.checkpoints import random_prompts

# Tokens in front of which a block of 16 ends.
EDGE = 17


class Traced:
    """Decode steps of a batch under a profiler, one after another, read by tracetool."""

    def __init__(self, path, llm, *, batch, length, steps, before=3, **params):
        """Prompts are so long that the sequences have `length` tokens when the first traced step begins."""
        prompts = random_prompts([length - before] * batch, 0)
        for prompt in prompts:
            llm.add_request(prompt, SamplingParams(max_tokens=before + steps + 1, **params))
        for _ in range(before):
            llm.step()
        activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * torch.cuda.is_available()]
        with profile(activities=activities, acc_events=True) as profiler:
            for _ in range(steps):
                llm.step()
        profiler.export_chrome_trace(str(path))
        self.summary = tracetool.summarize(tracetool.read(str(path)))
        self.steps = steps

    def count(self, metric, *paths):
        """Of these ranges together, a step."""
        rows = [self.summary.paths.index(path) for path in paths if path in self.summary.paths]
        total = sum(int(self.summary.total(metric)[row]) for row in rows)
        assert total % self.steps == 0
        return total // self.steps


@pytest.fixture
def traced(checkpoints, tmp_path):
    def trace(family="gpt2", *, batch=4, length=6, steps=3, options=None, **params):
        options = {"num_blocks": 64, "max_num_seqs": 16} | (options or {})
        llm = LLM(checkpoints.path(family, 64), **options)
        return Traced(tmp_path / "trace.json", llm, batch=batch, length=length, steps=steps, **params)

    return trace


STEP = ("decode_step",)
BUILD, SEND = (*STEP, "build_block_tables"), (*STEP, "h2d_block_tables")
INPUTS, MASK, SAMPLE = (*STEP, "h2d_inputs"), (*STEP, "dense_mask"), (*STEP, "sample")
FORWARD = (*STEP, "model_forward")
ATTENTION, MLP = (*FORWARD, "attention"), (*FORWARD, "mlp")
APPEND_AFTER, APPEND_INSIDE = (*STEP, "kv_append"), (*ATTENTION, "kv_append")


def test_ranges_of_a_step(traced):
    trace = traced(options={"device": "cpu", "dense_mask": "on"})
    paths = {BUILD, SEND, INPUTS, MASK, SAMPLE, FORWARD, ATTENTION, MLP, APPEND_AFTER, APPEND_INSIDE}
    assert {path for path in trace.summary.paths if path[0] == "decode_step"} == {*paths, STEP, (*STEP, "postprocess")}
    layers = 2
    assert [trace.count("calls", path) for path in (STEP, ATTENTION, MLP, APPEND_INSIDE)] == [1, layers, layers, layers]
    assert trace.count("calls", ("schedule",)) == 1


def test_ranges_of_a_prefill(checkpoints, tmp_path):
    llm = LLM(checkpoints.path("llama", 64), device="cpu", num_blocks=16)
    trace = Traced(tmp_path / "trace.json", llm, batch=2, length=9, steps=1, before=0)
    inside = ("build_block_tables", "h2d_inputs", "model_forward", "sample", "postprocess")
    assert {path[1] for path in trace.summary.paths if path[0] == "prefill" and len(path) == 2} == set(inside)


def test_nothing_is_recorded_without_a_profiler():
    assert annotate("a") is annotate("b")
    with annotate("a"), annotate("b"):
        pass


def test_threads_of_their_own_have_ranges_too(tmp_path):
    def work():
        with annotate(ranges.DECODE_STEP):
            torch.ones(3)

    everything = _ExperimentalConfig(profile_all_threads=True)
    with profile(activities=[ProfilerActivity.CPU], experimental_config=everything) as profiler:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    profiler.export_chrome_trace(str(tmp_path / "trace.json"))
    assert STEP in tracetool.summarize(tracetool.read(str(tmp_path / "trace.json"))).paths


# On a GPU: each variant's work in a steady step, of two layers and four sequences unless said.

L, B = 2, 4
# What is varied one axis at a time.
EAGER = {"block_tables": "resident", "sampler": "batched", "cuda_graph": "off"}
WHERE = {"block_tables": (BUILD, SEND), "inputs": (INPUTS,), "sampler": (SAMPLE,), "dense_mask": (MASK,)}
METRICS = ("h2d_pageable_copies", "h2d_pinned_copies", "syncs", "kernel_launches")
STEADY = [
    # axis, value, pageable, pinned, syncs, launches
    ("block_tables", "per_layer_pageable", L, 0, L, 0),
    ("block_tables", "staged_layer_major", 1, 0, 0, 1),
    ("block_tables", "staged_pinned", 0, 1, 0, 0),
    ("block_tables", "shared_pinned", 0, 1, 0, 0),
    ("block_tables", "resident", 0, 0, 0, 0),
    ("inputs", "per_tensor", 2, 0, 2, 1),
    ("inputs", "packed_pinned", 0, 1, 0, 0),
    ("inputs", "on_device", 0, 0, 0, 1),
    ("dense_mask", "off", 0, 0, 0, 0),
]


@pytest.mark.gpu
@pytest.mark.parametrize(("axis", "value", "pageable", "pinned", "syncs", "launches"), STEADY)
def test_a_steady_step(traced, axis, value, pageable, pinned, syncs, launches):
    trace = traced(options=EAGER | {axis: value})
    assert [trace.count(m, *WHERE[axis]) for m in METRICS] == [pageable, pinned, syncs, launches]


@pytest.mark.gpu
def test_a_buffer_as_large_as_the_batch_is_pinned_after_all(traced):
    trace = traced(batch=16, options=EAGER | {"block_tables": "staged_layer_major"})
    assert [trace.count(m, BUILD, SEND) for m in METRICS] == [0, 1, 0, 0]


@pytest.mark.gpu
@pytest.mark.parametrize("batch", [1, 4])
def test_a_step_into_new_blocks_is_one_copy_and_one_kernel(traced, batch):
    trace = traced(batch=batch, length=EDGE, steps=1, options=EAGER)
    assert [trace.count(m, BUILD, SEND) for m in METRICS] == [0, 1, 0, 1]


@pytest.mark.gpu
def test_the_dense_mask_is_launches_and_no_copies(traced):
    trace = traced(options=EAGER | {"dense_mask": "on"})
    assert trace.count("kernel_launches", MASK) >= 4
    assert [trace.count(m, MASK) for m in METRICS[:3]] == [0, 0, 0]


APPENDS = [
    # value, pageable and syncs, launches after the forward pass, launches in layers and before them
    ("torch_indexed", 3 * L, 4 * L, 0),
    ("triton", 3 * L, L, 0),
    ("triton_identity_pos", 2 * L, L, 0),
    ("triton_full_batch", L, L, 0),
    ("slot_mapping", 0, 1, L),
    ("fused", 0, 0, 0),
]


@pytest.mark.gpu
@pytest.mark.parametrize(("value", "copies", "outside", "inside"), APPENDS)
def test_appends_of_a_steady_step(traced, value, copies, outside, inside):
    trace = traced(options=EAGER | {"kv_append": value})
    assert trace.count("h2d_pageable_copies", APPEND_AFTER, APPEND_INSIDE) == copies
    assert trace.count("syncs", APPEND_AFTER, APPEND_INSIDE) == copies
    assert trace.count("kernel_launches", APPEND_AFTER) == outside
    assert trace.count("kernel_launches", APPEND_INSIDE) == inside


@pytest.mark.gpu
def test_fused_with_rotary_computes_slots_once_a_step(traced):
    trace = traced("llama", options=EAGER | {"kv_append": "fused"})
    assert [trace.count("kernel_launches", path) for path in (APPEND_AFTER, APPEND_INSIDE)] == [1, 0]


@pytest.mark.gpu
@pytest.mark.parametrize(("value", "each"), [("item_loop", B), ("batched", 1)])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_samplers(traced, value, each, temperature):
    trace = traced(options=EAGER | {"sampler": value}, temperature=temperature)
    assert [trace.count(m, SAMPLE) for m in ("d2h_copies", "syncs", "h2d_copies")] == [each, each, 0]


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("value", "inputs", "launches"), [("item_loop", "packed_pinned", B), ("batched", "on_device", 2)]
)
def test_launches_of_greedy_samplers(traced, value, inputs, launches):
    # With inputs on the device, one of the two hands tokens to the next step.
    trace = traced(options=EAGER | {"sampler": value, "inputs": inputs})
    assert trace.count("kernel_launches", SAMPLE) == launches


@pytest.mark.gpu
@pytest.mark.parametrize(("family", "a_layer"), [("gpt2", 8), ("llama", 8)])
def test_an_eager_step_sends_nothing_and_waits_once(traced, family, a_layer):
    trace = traced(family, options=EAGER)
    assert [trace.count(m, STEP) for m in ("h2d_copies", "d2h_copies", "syncs")] == [0, 1, 1]
    layers = [trace.count("kernel_launches", path) // L for path in (ATTENTION, MLP)]
    # Some matrix products are two launches, a split of the sum and its end.
    assert sum(layers) <= a_layer + 4


# Each step whole: graph launches, other launches, copies to the device and to the host, waits.
WHOLE = ("graph_launches", "kernel_launches", "h2d_copies", "d2h_copies", "syncs")


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("cuda_graph", ["exact", "buckets"])
@pytest.mark.parametrize("overlap", ["on", "off"])
def test_a_steady_step_is_one_launch_and_one_copy(traced, family, cuda_graph, overlap):
    trace = traced(family, before=5, length=8, options={"cuda_graph": cuda_graph, "overlap": overlap})
    assert [trace.count(metric, STEP) for metric in WHOLE] == [1, 0, 0, 1, 1]


@pytest.mark.gpu
@pytest.mark.parametrize("batch", [1, 4])
def test_a_step_on_the_device_into_new_blocks_is_one_copy_and_one_kernel_more(traced, batch):
    trace = traced(batch=batch, before=5, length=EDGE, steps=1)
    assert [trace.count(metric, STEP) for metric in WHOLE] == [1, 1, 1, 1, 1]


@pytest.mark.gpu
def test_sampling_outside_of_the_graph_is_two_launches_more(traced):
    trace = traced(before=5, length=8, options={"graph_sampling": "outside"})
    assert [trace.count(metric, STEP) for metric in WHOLE] == [1, 2, 0, 1, 1]
