"""What the engine's real traces in `traces/` show: the counts of each variant's step, exactly.

GPT-2 has 12 layers (L) and the batch 8 sequences (B) unless a name says 16.
"""

from functools import cache

import pytest

import tracetool

from .traces import ROOT

STEP = ("ProfilerStep",)
SEND = (*STEP, "decode_step", "h2d_block_tables")
APPEND = (*STEP, "decode_step", "kv_append")
APPEND_OF_A_LAYER = (*STEP, "decode_step", "model_forward", "attention", "kv_append")
INPUTS = (*STEP, "decode_step", "h2d_inputs")
SAMPLE = (*STEP, "decode_step", "sample")
MASK = (*STEP, "decode_step", "dense_mask")
COUNTED = ("kernel_launches", "h2d_pageable_copies", "h2d_pinned_copies", "h2d_bytes", "d2h_copies", "syncs")

TABLE_BYTES = 8 * 64 * 4
"""Of one layer's table: a row of 1024 / 16 int32 for each sequence."""


@cache
def summary(name):
    return tracetool.summarize(tracetool.read(str(ROOT / "traces" / f"{name}.json.gz")))


def counted(name, path, metrics=COUNTED):
    """What a range counts in each step; every step must agree."""
    found = summary(name)
    row = found.paths.index(path)
    samples = {metric: set(found.step_samples(metric, row).tolist()) for metric in metrics}
    assert all(len(values) == 1 for values in samples.values()), samples
    return tuple(values.pop() for values in samples.values())


def test_each_is_healthy_small_and_says_how_it_was_made():
    paths = [path for path in (ROOT / "traces").glob("*.json.gz") if summary(path.name[:-8]).metadata.get("tracetool")]
    assert len(paths) > 30
    for path in paths:
        found = summary(path.name[:-8])
        assert found.health.verdict == "ok", path
        assert path.stat().st_size <= 300 * 1024, path
        about = found.metadata["tracetool"]
        assert about["gpus"] == ["NVIDIA H200"], path
        assert about["git"]["commit"], path
        assert {"python", "torch", "triton", "transformers", "cuda"} <= set(about["versions"]), path
    assert sum(path.stat().st_size for path in paths) <= 6 * 2**20


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # Seed 001.               launches  pageable  pinned  bytes  d2h  syncs
        ("tables_before", (0, 12, 0, 12 * TABLE_BYTES, 0, 12)),
        ("tables_before_without_mask", (0, 12, 0, 12 * TABLE_BYTES, 0, 12)),
        # Meant to be one pinned copy; smaller than its buffer it is a pageable one, and a kernel that lays it out.
        ("tables_after_as_written", (1, 1, 0, 12 * TABLE_BYTES, 0, 0)),
        ("tables_after_as_written_b16", (0, 0, 1, 24 * TABLE_BYTES, 0, 0)),
        ("tables_after_as_meant", (0, 0, 1, 12 * TABLE_BYTES, 0, 0)),
        ("tables_after_as_meant_b16", (0, 0, 1, 24 * TABLE_BYTES, 0, 0)),
        ("tables_shared", (0, 0, 1, TABLE_BYTES, 0, 0)),
        ("tables_resident", (0, 0, 0, 0, 0, 0)),
        ("tables_resident_b16", (0, 0, 0, 0, 0, 0)),
        # A sequence enters a new block in each step: row, column and block of one change, and a kernel that writes it.
        ("tables_before_crossing", (0, 12, 0, 12 * TABLE_BYTES, 0, 12)),
        ("tables_shared_crossing", (0, 0, 1, TABLE_BYTES, 0, 0)),
        ("tables_resident_crossing", (1, 0, 1, 12, 0, 0)),
        ("tables_resident_crossing_b16", (1, 0, 1, 12, 0, 0)),
    ],
)
def test_block_tables(name, expected):
    assert counted(name, SEND) == expected


def test_the_dense_mask_is_five_kernels_and_no_copy():
    assert counted("tables_before", MASK) == (5, 0, 0, 0, 0, 0)
    with_mask, without = (counted(name, STEP) for name in ("tables_before", "tables_before_without_mask"))
    assert with_mask == (95, 12, 0, 12 * TABLE_BYTES, 1, 13)
    assert without == (90, 12, 0, 12 * TABLE_BYTES, 1, 13)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # Seeds 002 and 003: 4, 1 kernels a layer; 3, 2, 1 index tensors a layer, each a pageable copy and a sync.
        ("append_torch_indexed", (4 * 12, 3 * 12, 0, 3 * 12 * 8 * 8, 0, 3 * 12)),
        ("append_triton", (12, 3 * 12, 0, 3 * 12 * 8 * 4, 0, 3 * 12)),
        ("append_triton_identity_pos", (12, 2 * 12, 0, 2 * 12 * 8 * 4, 0, 2 * 12)),
        ("append_triton_identity_pos_ragged", (12, 2 * 12, 0, 2 * 12 * 8 * 4, 0, 2 * 12)),
        ("append_triton_full_batch", (12, 12, 0, 12 * 8 * 4, 0, 12)),
        # Ragged lengths have no one position: it does what identity_pos does.
        ("append_triton_full_batch_ragged", (12, 2 * 12, 0, 2 * 12 * 8 * 4, 0, 2 * 12)),
        # One kernel makes the slots of a step.
        ("append_slot_mapping", (1, 0, 0, 0, 0, 0)),
    ],
)
def test_kv_append(name, expected):
    assert counted(name, APPEND) == expected


def test_kv_append_inside_the_forward_pass():
    assert counted("append_slot_mapping", APPEND_OF_A_LAYER) == (12, 0, 0, 0, 0, 0)
    assert APPEND not in summary("append_fused").paths
    assert APPEND_OF_A_LAYER not in summary("append_fused").paths
    launches = {name: counted(name, STEP)[0] for name in ("append_torch_indexed", "append_triton", "append_fused")}
    assert launches == {"append_torch_indexed": 138, "append_triton": 102, "append_fused": 90}


@pytest.mark.parametrize(
    ("name", "path", "expected"),
    [
        ("inputs_per_tensor", INPUTS, (1, 2, 0, 128, 0, 2)),
        ("inputs_packed_pinned", INPUTS, (0, 0, 1, 96, 0, 0)),
        ("append_fused", INPUTS, (1, 0, 0, 0, 0, 0)),
        ("sampler_item_loop", SAMPLE, (8, 0, 0, 0, 8, 8)),
        ("inputs_packed_pinned", SAMPLE, (1, 0, 0, 0, 1, 1)),
    ],
)
def test_inputs_and_samplers(name, path, expected):
    assert counted(name, path) == expected


GRAPHS = ("graph_launches", "graph_kernels", *COUNTED)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # One graph launch and one DtoH copy. Where a sequence enters a new block, also one pinned copy of 12 bytes and
        # one kernel before the graph.
        #                        graphs  its kernels  launches  pageable  pinned  bytes  d2h  syncs
        ("graph_exact", (1, 89, 0, 0, 0, 0, 1, 1)),
        ("graph_exact_crossing", (1, 89, 1, 0, 1, 12, 1, 1)),
        ("graph_buckets", (1, 89, 0, 0, 0, 0, 1, 1)),
        ("graph_buckets_crossing", (1, 89, 1, 0, 1, 12, 1, 1)),
        ("graph_no_overlap", (1, 89, 0, 0, 0, 0, 1, 1)),
        ("graph_no_overlap_crossing", (1, 89, 1, 0, 1, 12, 1, 1)),
        # Two kernels sample after the graph, which keeps its logits with one.
        ("graph_sampling_outside", (1, 88, 2, 0, 0, 0, 1, 1)),
        ("graph_sampling_outside_crossing", (1, 88, 3, 0, 1, 12, 1, 1)),
        # The host's tables: a kernel for the inputs before the graph, and two that sample after it.
        ("graph_forward_alone", (1, 88, 3, 0, 0, 0, 1, 1)),
        ("graph_forward_alone_crossing", (1, 88, 4, 0, 1, 12, 1, 1)),
        # The same on the device without a graph.
        ("graph_off", (0, 0, 90, 0, 0, 0, 1, 1)),
        ("graph_off_crossing", (0, 0, 91, 0, 1, 12, 1, 1)),
    ],
)
def test_steps_that_stay_on_the_device(name, expected):
    assert counted(name, STEP, GRAPHS) == expected


def test_kernels_of_a_step_that_is_a_graph_are_given_back():
    """All but the two that sample, which the eager step launches in a range of their own."""
    twin = summary("graph_off")
    given = tracetool.summarize(
        tracetool.read(str(ROOT / "traces" / "graph_exact_crossing.json.gz")),
        ranges_from=tracetool.read(str(ROOT / "traces" / "graph_off.json.gz")),
    )
    forward = ("ProfilerStep", "decode_step", "model_forward")
    for path in ((*forward, "attention"), (*forward, "mlp")):
        kernels = given.total("graph_kernels")[given.paths.index(path)]
        assert kernels == twin.total("kernel_launches")[twin.paths.index(path)] > 0


def test_a_tuned_launch_is_the_same_work():
    assert counted("launch_fixed", STEP) == counted("launch_autotune", STEP) == (90, 0, 0, 0, 1, 1)
    for name in ("launch_fixed", "launch_autotune"):
        totals = summary(name).totals
        assert not {"compiles", "autotunes"} & set(totals)


def test_specialisations_over_200_numbers_of_tokens():
    compiles = {name: summary(f"fp8_{name}").totals["compiles"] for name in ("default", "num_tokens", "complete")}
    assert compiles == {"default": 3, "num_tokens": 2, "complete": 1}
    for name in compiles:
        assert summary(f"fp8_{name}").totals["kernel_launches"] == summary(f"fp8_{name}").step_count == 200


def test_a_graphs_kernels_are_given_back_to_the_ranges_of_its_eager_twin():
    eager = summary("toy_eager")
    graph = tracetool.summarize(tracetool.read(str(ROOT / "traces" / "toy_graph.json.gz")), ranges_from=eager)
    assert (graph.replays.given, graph.replays.pieces) == (51, 51)
    for path, value in zip(eager.paths, eager.total("kernels").tolist(), strict=True):
        if path[-1] not in ("(no range)", "(before the window)"):
            assert int(graph.total("kernels")[graph.paths.index(path)]) == value, path
    assert int(graph.total("kernel_launches").sum()) == 0
