"""What rules find in every real trace here, and nothing else.

The engine's variants have what the seeds mended, and besides that what is true of every eager decode step: it is
launch-bound, which this project's settings know.
"""

import pytest

import tracetool
from tests.tracetool.traces import ROOT
from tracetool.findings.linting import lint
from tracetool.findings.registry import RULES
from tracetool.findings.settings import Threshold, nearest_settings
from tracetool.render.findings import where

EAGER = ("TT05 decode_step/model_forward",)
A_COPY_A_LAYER = (
    "TT02 decode_step/h2d_block_tables",
    "TT01 decode_step/h2d_block_tables = TT02",
    "TT03 decode_step/h2d_block_tables = TT02",
)
TENSORS_FROM_LISTS = (
    "TT02 decode_step/kv_append",
    "TT01 decode_step/kv_append = TT02",
    "TT03 decode_step/kv_append = TT02",
)
A_PAGEABLE_COPY = ("TT05 ProfilerStep", "TT01 forward", "TT03 forward = TT01")
A_CAPTURE = ("TT10 capture", "TT07 capture", "TT07 capture/captured", "TT03 capture")

# A finding that is about the work of a dearer one says so: `= TT02`.
EXPECTED = {
    "traces": {
        # Seed 001: block tables.
        "tables_before": (*EAGER, *A_COPY_A_LAYER, "TT06 decode_step/dense_mask"),
        "tables_before_without_mask": (*EAGER, *A_COPY_A_LAYER),
        "tables_before_crossing": (*EAGER, *A_COPY_A_LAYER),
        # One copy that was meant to be pinned and is not; with a full batch it is.
        "tables_after_as_written": (*EAGER, "TT01 decode_step/h2d_block_tables"),
        "tables_after_as_written_b16": EAGER,
        "tables_after_as_meant": EAGER,
        "tables_after_as_meant_b16": EAGER,
        "tables_shared": EAGER,
        "tables_shared_crossing": EAGER,
        "tables_resident": EAGER,
        "tables_resident_b16": EAGER,
        "tables_resident_crossing": EAGER,
        "tables_resident_crossing_b16": EAGER,
        # Seeds 002 and 003: index tensors from lists in each layer, and one that is an op of four kernels.
        "append_torch_indexed": ("TT05 decode_step", *TENSORS_FROM_LISTS, "TT06 decode_step/kv_append"),
        "append_triton": (*EAGER, *TENSORS_FROM_LISTS),
        "append_triton_identity_pos": (*EAGER, *TENSORS_FROM_LISTS),
        "append_triton_identity_pos_ragged": (*EAGER, *TENSORS_FROM_LISTS),
        "append_triton_full_batch": (*EAGER, *TENSORS_FROM_LISTS),
        "append_triton_full_batch_ragged": (*EAGER, *TENSORS_FROM_LISTS),
        "append_slot_mapping": EAGER,
        "append_fused": EAGER,
        # Seed 000: what the tuner costs in a steady step is in no call of the trace.
        "launch_autotune": EAGER,
        "launch_fixed": EAGER,
        # Seed 004: compiles for new numbers of tokens.
        "fp8_default": ("TT04 ProfilerStep",),
        "fp8_num_tokens": ("TT04 ProfilerStep",),
        "fp8_complete": (),
        # Steps that are one graph.
        "graph_off": EAGER,
        "graph_off_crossing": EAGER,
        **dict.fromkeys(
            [
                f"graph_{name}{suffix}"
                for name in ("exact", "buckets", "no_overlap", "sampling_outside", "forward_alone")
                for suffix in ("", "_crossing")
            ],
            (),
        ),
        "inputs_per_tensor": (*EAGER, "TT02 decode_step/h2d_inputs"),
        "inputs_packed_pinned": EAGER,
        "sampler_item_loop": (*EAGER, "TT02 decode_step/sample"),
        "toy_eager": ("TT05 model_step/layer/mlp",),
        "toy_graph": (),
        "manual_graph": ("TT01 graph_step/h2d_ids", "TT03 graph_step/h2d_ids = TT01"),
        "train_pageable": (
            "TT05 train_step",
            "TT02 train_step/h2d_batch",
            "TT01 train_step/h2d_batch = TT02",
            "TT03 train_step/h2d_batch = TT02",
        ),
        "train_pinned": ("TT05 train_step",),
    },
    "traces/findings": {
        "autotune_key.fault": ("TT04 shift",),
        "autotune_key.mend": (),
        "boolean_index.fault": ("TT05 layer", "TT03 layer"),
        "boolean_index.mend": ("TT05 layer",),
        "decode_fastest": (),
        "device_malloc.fault": ("TT11 prepare", "TT07 prepare"),
        "device_malloc.mend": (),
        "dtype_churn.fault": ("TT08 layer", "TT05 layer"),
        "dtype_churn.mend": (),
        "eager_remainder.fault": ("TT10 forward",),
        "eager_remainder.mend": (),
        "elementwise_run.fault": ("TT05 layer/activation", "TT06 layer/activation = TT05"),
        "elementwise_run.mend": ("TT05 layer",),
        "graph_recapture.fault": ("TT10 forward", "TT07 read", "TT07 forward = TT10", "TT03 forward"),
        "graph_recapture.mend": (),
        "index_lists.fault": ("TT02 gather", "TT05 gather", "TT01 gather = TT02", "TT03 gather = TT02"),
        "index_lists.mend": ("TT05 gather",),
        "input_wait.fault": ("TT11 load_batch",),
        "input_wait.mend": (),
        "launch_bound.fault": ("TT05 forward",),
        "launch_bound.mend": (),
        "layout_churn.fault": ("TT05 layer", "TT08 layer"),
        "layout_churn.mend": ("TT05 layer",),
        "pageable_copy.fault": ("TT01 load", "TT03 load = TT01"),
        "pageable_copy.mend": (),
        "pinned_but_strided.fault": ("TT05 ProfilerStep", "TT01 load"),
        "pinned_but_strided.mend": ("TT05 ProfilerStep",),
        "ranks_0.fault": ("TT05 forward",),
        "ranks_0.mend": ("TT05 forward",),
        "ranks_1.fault": ("TT05 ProfilerStep", "TT03 log"),
        "ranks_1.mend": ("TT05 forward",),
        "recompiles.fault": ("TT04 scale",),
        "recompiles.mend": (),
        "serial_copy.fault": ("TT09 load",),
        "serial_copy.mend": (),
        "small_copies.fault": ("TT02 load", "TT01 load = TT02", "TT03 load = TT02"),
        "small_copies.mend": (),
        "small_graphs.fault": ("TT10 forward",),
        "small_graphs.mend": (),
        "sync_in_loop.fault": ("TT03 layer",),
        "sync_in_loop.mend": (),
        "zeroed_buffers.fault": ("TT05 ProfilerStep", "TT07 clear", "TT06 clear = TT07"),
        "zeroed_buffers.mend": ("TT05 ProfilerStep",),
    },
    "tests/tracetool/real": {
        "checkpointed": ("TT05 ProfilerStep",),
        # nonzero, boolean indexing and a blocking copy, which is what it was made of.
        "copies": ("TT05 copies", "TT03 copies", "TT03 copies", "TT03 copies"),
        "ddp": ("TT05 ddp_step",),
        "gradient_hook": A_PAGEABLE_COPY,
        "memory": A_PAGEABLE_COPY,
        "mixed_backward": A_PAGEABLE_COPY,
        "stacks": A_PAGEABLE_COPY,
        "graph_capture": A_CAPTURE,
        "sync_events": A_CAPTURE,
        "threads_all": ("TT01 worker/inner", "TT03 worker", "TT03 worker/inner = TT01", "TT05 worker/inner"),
        "threads_default": ("TT01 (no range)", "TT03 (no range)"),
    },
}


def test_every_real_trace_is_in_the_table():
    for folder, table in EXPECTED.items():
        assert {path.name.removesuffix(".json.gz") for path in (ROOT / folder).glob("*.json.gz")} == set(table)


def summary(path):
    return tracetool.summarize(tracetool.read(str(ROOT / f"{path}.json.gz")))


def as_told(findings):
    return [f"{one.rule.id} {where(one)}{f' = {one.covered_by}' if one.covered_by else ''}" for one in findings]


@pytest.mark.parametrize(("folder", "name"), [(folder, name) for folder, table in EXPECTED.items() for name in table])
def test_what_is_found(folder, name):
    told = lint([summary(f"{folder}/{name}")], RULES.values(), Threshold())[0].findings
    assert sorted(as_told(told)) == sorted(EXPECTED[folder][name])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tables_before", {*A_COPY_A_LAYER, "TT06 decode_step/dense_mask"}),
        ("append_torch_indexed", {*TENSORS_FROM_LISTS, "TT06 decode_step/kv_append"}),
        ("append_triton", {*TENSORS_FROM_LISTS}),
        ("launch_autotune", set()),
        ("fp8_default", {"TT04 ProfilerStep"}),
    ],
)
def test_with_this_projects_settings_the_seeds_baselines_have_what_the_seeds_mended(name, expected):
    settings = nearest_settings(ROOT)
    [told] = lint([summary(f"traces/{name}")], RULES.values(), settings.threshold, settings.suppressions)
    assert set(as_told(told.findings)) == expected
    assert {one.rule.id for one, _ in told.suppressed} <= {"TT05"}
