"""What each variant promises of a steady decode step, as budgets: two layers, four sequences, no new block."""

import pytest

from engine import LLM, SamplingParams
from tests.engine.checkpoints import random_prompts

LAYERS, SEQS = 2, 4
STEP = "/decode_step"
BUILD, SEND = f"{STEP}/build_block_tables", f"{STEP}/h2d_block_tables"
INPUTS, SAMPLE = f"{STEP}/h2d_inputs", f"{STEP}/sample"
ATTENTION = f"{STEP}/model_forward/attention"
APPEND, APPEND_IN_LAYER = f"{STEP}/kv_append", f"{ATTENTION}/kv_append"
# What is varied an axis at a time.
EAGER = {"block_tables": "resident", "inputs": "on_device", "sampler": "batched", "cuda_graph": "off"}
IN_GRAPH = {"block_tables": "in_graph"}


def promise(options, *budgets):
    """A parameter of the test that carries budgets as markers."""
    marks = [pytest.mark.trace_budget(where, **bounds) for where, bounds in budgets]
    return pytest.param(options, id="-".join(options.values()), marks=marks)


def eager(axis, value, *budgets):
    return promise({axis: value}, *budgets)


def copies(pageable, pinned, syncs):
    return {"h2d_pageable_copies": pageable, "h2d_pinned_copies": pinned, "syncs": syncs}


def launches(number):
    return {"kernel_launches": number, **copies(0, 0, 0)}


def append_after(tensors, kernels):
    """After the forward pass, for each layer: index tensors from lists, each a copy that waits, and kernels."""
    return APPEND, {**copies(tensors, 0, tensors), "kernel_launches": kernels}


def whole(more):
    """A step that is one graph, more launches after it, and one copy to the host that somebody waits for."""
    counts = {"graph_launches": 1, "kernel_launches": more, "h2d_copies": 0, "d2h_copies": 1, "d2h_pageable_copies": 0}
    return STEP, {**counts, "syncs": 1, "compiles": 0}


NOTHING = (BUILD, copies(0, 0, 0))
PROMISES = [
    eager("block_tables", "per_layer_pageable", NOTHING, (SEND, copies(LAYERS, 0, LAYERS))),
    eager("block_tables", "staged_layer_major", NOTHING, (SEND, copies(1, 0, 0))),
    eager("block_tables", "staged_pinned", NOTHING, (SEND, copies(0, 1, 0))),
    eager("block_tables", "shared_pinned", NOTHING, (SEND, copies(0, 1, 0))),
    eager("block_tables", "resident", NOTHING, (SEND, copies(0, 0, 0))),
    eager("inputs", "per_tensor", (INPUTS, copies(2, 0, 2))),
    eager("inputs", "packed_pinned", (INPUTS, copies(0, 1, 0))),
    eager("inputs", "on_device", (INPUTS, copies(0, 0, 0))),
    eager("kv_append", "torch_indexed", append_after(3, 4)),
    eager("kv_append", "triton", append_after(3, 1)),
    eager("kv_append", "triton_identity_pos", append_after(2, 1)),
    eager("kv_append", "triton_full_batch", append_after(1, 1)),
    eager("kv_append", "slot_mapping", (APPEND, launches(1)), (APPEND_IN_LAYER, launches(1)), (STEP, copies(0, 0, 1))),
    eager("kv_append", "fused", (ATTENTION, copies(0, 0, 0)), (STEP, copies(0, 0, 1))),
    promise(
        {"sampler": "item_loop", "inputs": "packed_pinned"},
        (SAMPLE, {**launches(SEQS), "d2h_copies": SEQS, "syncs": SEQS}),
    ),
    eager("sampler", "batched", (SAMPLE, {"d2h_copies": 1, "syncs": 1})),
    eager("sampler", "on_device", (SAMPLE, {"d2h_copies": 1, "d2h_pageable_copies": 0, "syncs": 0})),
    *(
        promise(IN_GRAPH | {"cuda_graph": graphs, "overlap": overlap}, whole(0))
        for graphs in ("exact", "buckets")
        for overlap in ("off", "on")
    ),
    promise(IN_GRAPH | {"cuda_graph": "buckets", "graph_sampling": "outside"}, whole(2)),
]


@pytest.mark.gpu
@pytest.mark.parametrize("options", PROMISES)
def test_a_steady_step_keeps_its_promise(checkpoints, trace_capture, options):
    options = options if "cuda_graph" in options else EAGER | options
    llm = LLM(checkpoints.path("gpt2", 64), num_blocks=64, max_num_seqs=16, **options)
    for prompt in random_prompts([3] * SEQS, 0):
        llm.add_request(prompt, SamplingParams(max_tokens=12))
    with trace_capture(warmup=3, steps=3, lines=False) as trace:
        for _ in trace:
            llm.step()


# Whoever asks for more than a graph that samples has gets a graph of the forward pass alone; after it logits are
# widened, biased, penalised and cut, and sampled from in two launches. Nothing is sent.
ASKING = {"temperature": 1.0, "top_k": 5, "top_p": 0.9, "frequency_penalty": 0.5, "logit_bias": {3: 1.0}}
SHAPED = [
    promise(IN_GRAPH | {"cuda_graph": "buckets", "graph_sampling": "inside", "overlap": "on"}, whole(6)),
    promise(IN_GRAPH | {"cuda_graph": "buckets", "graph_sampling": "outside", "overlap": "off"}, whole(6)),
]


@pytest.mark.gpu
@pytest.mark.parametrize("options", SHAPED)
def test_a_steady_step_that_changes_logits_keeps_its_promise(checkpoints, trace_capture, options):
    llm = LLM(checkpoints.path("gpt2", 64), num_blocks=64, max_num_seqs=16, **options)
    for prompt in random_prompts([3] * SEQS, 0):
        llm.add_request(prompt, SamplingParams(max_tokens=12, **ASKING))
    with trace_capture(warmup=3, steps=3, lines=False) as trace:
        for _ in trace:
            llm.step()


@pytest.mark.gpu
@pytest.mark.parametrize("options", [promise(IN_GRAPH | {"cuda_graph": "buckets", "overlap": "on"}, whole(0))])
def test_a_steady_step_after_somebody_has_asked_is_what_it_was_before(checkpoints, trace_capture, options):
    llm = LLM(checkpoints.path("gpt2", 64), num_blocks=64, max_num_seqs=16, **options)
    llm.generate([[1, 2], [3]], SamplingParams(max_tokens=6, logprobs=2, **ASKING))
    for prompt in random_prompts([3] * SEQS, 0):
        llm.add_request(prompt, SamplingParams(max_tokens=12))
    with trace_capture(warmup=3, steps=3, lines=False) as trace:
        for _ in trace:
            llm.step()
