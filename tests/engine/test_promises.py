"""What each variant promises of a steady decode step, as budgets: two layers, four sequences, no new block."""

import pytest

from engine import LLM, SamplingParams
from tests.engine.checkpoints import random_prompts

LAYERS = 2
BUILD, SEND = "/decode_step/build_block_tables", "/decode_step/h2d_block_tables"
INPUTS = "/decode_step/h2d_inputs"


def promise(axis, value, *budgets):
    """A parameter of the test that carries budgets as markers."""
    marks = [pytest.mark.trace_budget(where, **bounds) for where, bounds in budgets]
    return pytest.param({axis: value}, id=value, marks=marks)


def copies(pageable, pinned, syncs):
    return {"h2d_pageable_copies": pageable, "h2d_pinned_copies": pinned, "syncs": syncs}


NOTHING = (BUILD, copies(0, 0, 0))
PROMISES = [
    promise("block_tables", "per_layer_pageable", NOTHING, (SEND, copies(LAYERS, 0, LAYERS))),
    promise("block_tables", "staged_layer_major", NOTHING, (SEND, copies(1, 0, 0))),
    promise("block_tables", "staged_pinned", NOTHING, (SEND, copies(0, 1, 0))),
    promise("block_tables", "shared_pinned", NOTHING, (SEND, copies(0, 1, 0))),
    promise("block_tables", "resident", NOTHING, (SEND, copies(0, 0, 0))),
    promise("inputs", "per_tensor", (INPUTS, copies(2, 0, 2))),
    promise("inputs", "packed_pinned", (INPUTS, copies(0, 1, 0))),
    promise("inputs", "on_device", (INPUTS, copies(0, 0, 0))),
]


@pytest.mark.gpu
@pytest.mark.parametrize("options", PROMISES)
def test_a_steady_step_keeps_its_promise(checkpoints, trace_capture, options):
    llm = LLM(checkpoints.path("gpt2", 64), num_blocks=64, max_num_seqs=16, **options)
    for prompt in random_prompts([3] * 4, 0):
        llm.add_request(prompt, SamplingParams(max_tokens=12))
    with trace_capture(warmup=3, steps=3, lines=False) as trace:
        for _ in trace:
            llm.step()
