"""Decoding that stays on the device: what replays do, what travels, and that nothing is written while it is read."""

import itertools

import pytest
import torch

from engine import LLM, SamplingParams
from engine.graphs import Steps, graph_sizes
from engine.staging import Returns, Staging
from tests.engine.checkpoints import hf_generate, random_prompts
from tests.engine.fake import alone, make_core
from tests.engine.recorded import Late, Recording

IN_GRAPH = {"block_tables": "in_graph"}
FORMS = [
    {"cuda_graph": "off", "overlap": "off"},
    {"cuda_graph": "off", "overlap": "on"},
    {"cuda_graph": "exact", "overlap": "on"},
    {"cuda_graph": "buckets", "overlap": "on"},
    {"cuda_graph": "buckets", "overlap": "off", "graph_sampling": "outside"},
    {"cuda_graph": "buckets", "overlap": "on", "kv_append": "fused"},
]
names = pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(form.values()))


def recorded(monkeypatch, path, **options):
    """An engine whose graphs are recordings of torch operations."""
    from engine import loading  # noqa: PLC0415 - patched below

    made = []

    def capture():
        return lambda work: made.append(Recording(work)) or made[-1]

    choose, machine = loading.choose, loading.Machine
    monkeypatch.setattr(loading, "choose", lambda *args: choose(*args, simulated=True))
    monkeypatch.setattr(loading, "Machine", lambda *args: machine(*args[:6], capture))
    monkeypatch.setattr(loading, "CudaCapture", lambda _: None)
    llm = LLM(path, device="cpu", dtype="float32", block_size=4, **options)
    llm.core.runner.capture()
    return llm, made


# Requests come and go while graphs are replayed ---------------------------------------------------------------------

LENGTHS = (1, 3, 4, 5, 8, 15, 17)
NEW = (20, 9, 1, 14, 20, 3, 18)


@names
@pytest.mark.parametrize("family", ["gpt2", "qwen3", "mistral"])
def test_replays_serve_who_joins_ends_and_leaves(checkpoints, monkeypatch, family, form):
    prompts = random_prompts(LENGTHS, 2)
    hf = checkpoints.hf(family)
    wanted = [hf_generate(hf, prompt, new)[0] for prompt, new in zip(prompts, NEW, strict=True)]
    llm, made = recorded(monkeypatch, checkpoints.path(family), num_blocks=80, max_num_seqs=6, **IN_GRAPH | form)
    got, coming, step = {}, list(range(len(prompts))), 0
    llm.add_request([7] * 9, SamplingParams(max_tokens=30), "given up")
    while coming or llm.has_work:
        if coming and step % 2 == 0:
            i = coming.pop(0)
            llm.add_request(prompts[i], SamplingParams(max_tokens=NEW[i]), str(i))
        if step == 11:
            llm.abort("given up")
        for increment in llm.step():
            got.setdefault(increment.request_id, []).extend(increment.token_ids)
        llm.core.check_integrity()
        step += 1
    del got["given up"]
    assert [got[str(i)] for i in range(len(prompts))] == wanted
    assert llm.core.blocks.num_free == llm.core.blocks.num_blocks
    if form["cuda_graph"] != "off":
        assert sum(recording.replays for recording in made) == llm.core.stats.decodes


@pytest.mark.parametrize("block_tables", ["staged_pinned", "shared_pinned", "resident", "per_layer_pageable"])
@pytest.mark.parametrize("cuda_graph", ["exact", "buckets"])
def test_graphs_of_the_forward_pass_alone(checkpoints, monkeypatch, block_tables, cuda_graph):
    prompts = random_prompts(LENGTHS, 2)
    wanted = [hf_generate(checkpoints.hf("gpt2"), prompt, 12)[0] for prompt in prompts]
    options = {"block_tables": block_tables, "cuda_graph": cuda_graph, "max_num_seqs": 5, "num_blocks": 80}
    llm, made = recorded(monkeypatch, checkpoints.path("gpt2"), **options)
    outputs = llm.generate(prompts, SamplingParams(max_tokens=12))
    assert [output.token_ids for output in outputs] == wanted
    assert sum(recording.replays for recording in made) == llm.core.stats.decodes


@pytest.mark.parametrize(("cuda_graph", "right"), [("off", True), ("exact", False)])
def test_a_value_that_is_baked_in_shows(checkpoints, monkeypatch, cuda_graph, right):
    """A position that the host counts is right step by step, and in a recording what it was then."""
    from engine.variants.kv_append import SlotMapping  # noqa: PLC0415 - changed below

    begin, positions = SlotMapping.begin, itertools.count(9)

    def counted(self, seqs, inputs, block_table):
        position = torch.full_like(inputs.positions, next(positions))
        begin(self, seqs, inputs._replace(positions=position), block_table)

    options = {"num_blocks": 80, "max_num_seqs": 1, "cuda_graph": cuda_graph, **IN_GRAPH}
    llm, _ = recorded(monkeypatch, checkpoints.path("gpt2"), **options)
    monkeypatch.setattr(SlotMapping, "begin", counted)
    llm.core.runner.capture()
    positions = itertools.count(9)
    (prompt,) = random_prompts([9], 2)
    tokens = llm.generate([prompt], SamplingParams(max_tokens=12))[0].token_ids
    assert (tokens == hf_generate(checkpoints.hf("gpt2"), prompt, 12)[0]) == right


def test_stops_of_the_host_and_of_the_device_agree():
    """More stop ids than the device looks for: the host finds them, and drops what came after."""
    params = SamplingParams(max_tokens=40, stop_token_ids=range(0, 256, 9))
    core = make_core(overlap="on", **IN_GRAPH)
    seqs = [core.add([i, i + 1], params) for i in range(6)]
    while core.has_work:
        core.step()
    assert [seq.output for seq in seqs] == [alone([i, i + 1], params) for i in range(6)]
    assert any(len(seq.output) < 40 for seq in seqs)


def test_the_last_token_is_known_beforehand():
    """No step is launched for a sequence that the step under way brings to its length."""
    core = make_core(overlap="on", **IN_GRAPH)
    core.add([1, 2, 3], SamplingParams(max_tokens=5))
    while core.has_work:
        core.step()
    assert core.stats.decodes == 4


def test_what_has_ended_keeps_its_blocks_until_the_step_is_done():
    core = make_core(overlap="on", prefix_cache=False, **IN_GRAPH)
    one, _ = (core.add([i, 2, 3], SamplingParams(max_tokens=30), str(i)) for i in (1, 2))
    for _ in range(3):
        core.step()
    held = list(one.block_table)
    core.abort("1")
    assert not set(held) & set(core.blocks._free)
    core.check_integrity()
    core.step()
    assert set(held) <= set(core.blocks._free)


# Races --------------------------------------------------------------------------------------------------------------


def serve_late(monkeypatch, *, buffers, fenced=True, returns=None):
    """Tokens of requests on a device that does everything as late as it may."""
    monkeypatch.setattr(Staging, "COPIES_IN_FLIGHT", buffers)
    if not fenced:
        monkeypatch.setattr(Staging, "_await", staticmethod(lambda _: None))
    if returns is not None:
        monkeypatch.setattr(Returns, "BUFFERS", returns)
    stream = Late()
    core = make_core(overlap="on", stream=stream, block_size=1, **IN_GRAPH)
    runner = core.runner
    prefill = runner.prefill
    # A prefill goes by torch's own calls, which here do not wait for their turn.
    runner._staging = Staging(torch.device("cpu"))
    runner.prefill = lambda chunks: (stream.work_off(), prefill(chunks))[1]
    params = SamplingParams(max_tokens=20)
    seqs = [core.add([i, 5], params) for i in range(4)]
    while core.has_work:
        core.step()
    return [seq.output for seq in seqs] == [alone([i, 5], params) for i in range(4)]


def test_buffers_in_turn_are_not_written_while_they_are_read(monkeypatch):
    assert serve_late(monkeypatch, buffers=2)


def test_one_buffer_is_safe_behind_its_fence(monkeypatch):
    assert serve_late(monkeypatch, buffers=1)


def test_one_buffer_without_a_fence_gives_wrong_tokens(monkeypatch):
    assert not serve_late(monkeypatch, buffers=1, fenced=False)


def test_a_value_fetched_while_another_is_looked_at_has_a_buffer_of_its_own():
    stream = Late()
    returns = Returns(4, torch.device("cpu"), stream)
    values = [torch.full((3,), i, dtype=torch.int32) for i in range(Returns.BUFFERS)]
    arrivals = [returns.fetch(value) for value in values]
    assert [arrival.numpy().tolist() for arrival in arrivals] == [[i] * 3 for i in range(Returns.BUFFERS)]


# Sizes --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [1, 3, 8, 60, 64, 100, 256, 1000])
def test_buckets_hold_every_batch(most):
    sizes = graph_sizes("buckets", most)
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == most
    steps = Steps("buckets", most)
    assert all(steps.rows(batch) == min(size for size in sizes if size >= batch) for batch in range(1, most + 1))
    assert graph_sizes("exact", most) == list(range(most, 0, -1))
