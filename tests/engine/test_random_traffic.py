"""Whatever comes, every request gets the tokens it would get alone, ends once, and leaves no block behind."""

import random
from collections import Counter
from typing import NamedTuple

import pytest
import torch

from engine import RequestError, SamplingParams
from engine.block_manager import BlockManager
from engine.ops.torch_ops import TorchOps
from engine.runner import Runner
from engine.sequence import FinishReason, Sequence
from engine.timing import Timing
from engine.variants.block_tables import Resident, SharedPinned
from engine.variants.inputs import OnDevice
from tests.engine.fake import LAYERS, VOCAB, Interrupted, make_core, model_of, oracle, poison_free_blocks

# Prompts are made of these, a block each, so that many begin alike and the same tokens come after other beginnings.
WORDS = [random.Random(i).choices(range(VOCAB), k=8) for i in range(2)]
# The last two send different contents to one hash, which must cost hits and nothing else.
HASHES = {"good": hash, "few": lambda content: hash(content) % 5, "of_tokens": lambda content: hash(content[1])}
EOS = tuple(range(0, VOCAB, 32))
# Many more than any of the scripts needs: an engine that goes round in circles fails and does not hang.
MOST_STEPS = 3000


# Scripts


class Add(NamedTuple):
    """A request; it goes on from what an earlier one has by now, or is made of words.

    Attributes:
        words: Bits that choose the words, over and over.
        cut: Tokens of what it begins with, rounded up to whole blocks if `aligned`.
    """

    earlier: int | None
    words: int
    cut: int
    aligned: bool
    tail: list[int]
    params: SamplingParams


class Fork(NamedTuple):
    which: int
    params: SamplingParams


class Abort(NamedTuple):
    which: int


class Interrupt(NamedTuple):
    """A step that is interrupted: in a layer, or (None) where blocks are copied."""

    layer: int | None


class Step(NamedTuple):
    times: int


class Forget(NamedTuple):
    """The prefix cache is reset."""


def draw_params(rng, *, warm, longest):
    return SamplingParams(
        max_tokens=rng.randint(1, longest),
        temperature=rng.choice([0.0, 0.7, 2.0]) if warm else 0.0,
        seed=rng.choice([None, 0, 2**63 - 1]),
        stop_token_ids=rng.choice([(), (), range(7, VOCAB, 20)]),
        ignore_eos=rng.random() < 0.5,
    )


def draw_script(rng, requests):
    """Requests that come in a few at a time, and what happens in between."""
    script = []
    # Drawing tokens costs more than all the rest.
    warm = rng.random() < 0.2
    for i in range(requests):
        script.append(
            Add(
                earlier=rng.randrange(i) if i and rng.random() < 0.4 else None,
                words=rng.choice([0, 0, 1, 2, 5, 6]),
                cut=rng.choice([3, 8, 8, 16, rng.randint(1, 30)]),
                aligned=rng.random() < 0.4,
                tail=[rng.randrange(VOCAB) for _ in range(rng.choice([0, 0, 1, 2]))],
                params=draw_params(rng, warm=warm, longest=14),
            )
        )
        if rng.random() < 0.7:
            script.append(Step(rng.randint(1, 6)))
        event = rng.random()
        if event < 0.2:
            script.append(Fork(rng.randrange(8), draw_params(rng, warm=warm or rng.random() < 0.5, longest=30)))
        elif event < 0.3:
            script.append(Abort(rng.randrange(8)))
        elif event < 0.38:
            script.append(Interrupt(rng.choice([0, LAYERS - 1, None])))
        elif event < 0.39:
            script.append(Forget())
    return script


def draw_options(rng):
    """Small limits of every kind, few blocks, and a value for each axis."""
    block_size, max_model_len = rng.randint(1, 8), rng.randint(8, 40)
    longest = -(-max_model_len // block_size)
    sampler = rng.choice(["item_loop", "batched", "batched", "on_device"])
    return {
        "block_size": block_size,
        "max_model_len": max_model_len,
        "num_blocks": rng.choice([longest, longest + 1, 2 * longest, max(1, longest // 2), 4 * longest]),
        "prefix_cache": rng.choice([True, True, False]),
        "mode": rng.choice(["online", "online", "offline", "naive"]),
        "max_num_seqs": rng.choice([1, 2, 4, 8, 8]),
        "max_active": rng.choice([None, None, 1, 2, 5, 12]),
        "max_num_batched_tokens": rng.choice([1, 2, 5, 16, 100, 100]),
        "prefill_max_batch_size": rng.choice([None, None, 1, 2]),
        "prefill_max_tokens": rng.choice([None, None, 1, 3, 20]),
        "chunked_prefill": rng.choice([True, False]),
        "decode_first": rng.choice([True, False]),
        "block_tables": rng.choice(
            ["per_layer_pageable", "staged_layer_major", "staged_pinned", "shared_pinned", "resident", "resident"]
        ),
        "dense_mask": rng.choice(["off", "on"]),
        "inputs": rng.choice(["per_tensor", "packed_pinned", *(["on_device"] * 2 if sampler != "item_loop" else [])]),
        "kv_append": rng.choice(["torch_indexed", "slot_mapping", "fused"]),
        "sampler": sampler,
        "rope": rng.choice([False, True]),
        "hashes": rng.choice(["good", "good", *HASHES]),
        "seed": rng.choice([0, 5]),
    } | draw_device_loop(rng)


def draw_device_loop(rng):
    """In half of all cases, decoding that stays on the device; in a third of all, graphs."""
    graphs = rng.choice(["off", "exact", "buckets"])
    if rng.random() < 0.5:
        form = {"kv_append": rng.choice(["slot_mapping", "fused"])} if graphs != "off" else {}
        return form | {"cuda_graph": graphs}
    return {
        "block_tables": "in_graph",
        "inputs": "on_device",
        "sampler": "on_device",
        "dense_mask": "off",
        "kv_append": rng.choice(["slot_mapping", "fused"]),
        "overlap": rng.choice(["on", "off"]),
        "cuda_graph": graphs,
        "graph_sampling": rng.choice(["auto", "outside"]),
    }


# What is served, and what must come of it


class Request:
    """A request in the engine, and the tokens and the end that it must come to."""

    def __init__(self, seq, core):
        self.seq = seq
        self.seen = len(seq.tokens)
        self.ends = 0
        self.wanted, self.reason = oracle(
            seq.tokens,
            seq.num_prompt,
            seq.params,
            seed=seq.seed,
            eos=model_of(core).spec.eos_token_ids,
            max_model_len=core.runner.max_model_len,
        )

    @property
    def wrong(self):
        tokens = self.seq.tokens
        if self.seq.finish_reason is FinishReason.ABORT:
            return tokens != self.wanted[: len(tokens)]
        return (tokens, self.seq.finish_reason) != (self.wanted, self.reason)


class Traffic:
    """Plays a script to an engine, and looks after each step whether everything is as it must be.

    Args:
        core: The engine.
        careful: Whether to look; without, only outputs can show an error.
    """

    def __init__(self, core, *, careful=True):
        self.core = core
        self.careful = careful
        self.requests = []
        self.happened = Counter()
        self.seats = core.scheduler._max_active
        self.plan = None
        self._plan_step, core.scheduler.schedule = core.scheduler.schedule, self._spy_plan
        self._take_copies, core.blocks.take_copies = core.blocks.take_copies, self._spy_copies
        self._decoded_since_idle = False

    @property
    def live(self):
        return [request for request in self.requests if not request.ends]

    @property
    def wrong(self):
        return [request for request in self.requests if request.wrong]

    def play(self, script):
        for action in script:
            getattr(self, f"_{type(action).__name__.lower()}")(action)
        self._step(Step(MOST_STEPS))
        if self.careful:
            self._check_end()
        return self

    def _add(self, action):
        size = self.core.config.block_size
        cut = -(-action.cut // size) * size if action.aligned else action.cut
        words = (WORDS[action.words >> (i % 4) & 1][:size] for i in range(-(-cut // size)))
        source = [token for word in words for token in word]
        if action.earlier is not None and self.requests:
            source = self.requests[action.earlier % len(self.requests)].seq.tokens
        prompt = source[:cut] + ([] if action.aligned else action.tail)
        if self._fits(len(prompt), action.params):
            self.requests.append(Request(self.core.add(prompt, action.params), self.core))
            return
        with pytest.raises(RequestError, match=r"leaves no room|cache blocks"):
            self.core.add(prompt, action.params)
        self.happened["refused"] += 1

    def _fits(self, num_prompt, params):
        """Whether a request can be served: its last token is not computed, and needs no place in the cache."""
        room = self.core.runner.max_model_len
        most = min(num_prompt + params.max_tokens, room) - 1
        return num_prompt < room and most <= self.core.blocks.num_blocks * self.core.config.block_size

    def _fork(self, action):
        told = len(self.core._early)
        self.core.settle()
        self._after_step(self.core._early[told:])
        able = [r.seq for r in self.live if r.seq.prefilled and r.seq.num_output < action.params.max_tokens]
        if not able:
            return
        parent = able[action.which % len(able)]
        if not self._fits(parent.num_prompt, action.params):
            with pytest.raises(RequestError, match="cache blocks"):
                self.core.fork(parent.request_id, action.params)
            return
        child = self.core.fork(parent.request_id, action.params)
        self.requests.append(Request(child, self.core))
        self.seats += 1
        self.happened["forks"] += 1

    def _abort(self, action):
        if self.live:
            request = self.live[action.which % len(self.live)]
            self.core.abort(request.seq.request_id)
            request.ends += 1
            self.happened["aborts"] += 1
            self._look()

    def _forget(self, _):
        self.core.reset_prefix_cache()
        self.happened["resets"] += 1

    def _interrupt(self, action):
        model, ops = model_of(self.core), self.core.runner._machine.ops
        model.interrupt_in, ops.interrupt_copy = action.layer, action.layer is None
        try:
            self._step(Step(1))
        except Interrupted:
            self._after_step(None)
            self.happened["interruptions"] += 1
            assert not self.core.scheduler.running
        model.interrupt_in, ops.interrupt_copy = None, False

    def _step(self, action):
        for _ in range(action.times):
            if not self.core.has_work:
                return
            before = list(self.core.scheduler.running)
            told = len(self.core._early)
            advanced = self.core.step()[told:]
            if self.careful:
                self._check_plan(before)
                # Of prompts only one can be half done.
                assert sum(not seq.prefilled for seq in self.core.scheduler.running.values()) <= 1
            self._after_step(advanced)
        assert not self.core.has_work or action.times < MOST_STEPS, "requests do not end"

    def _after_step(self, advanced):
        """Note who got a token; `advanced` is who the engine says did, if it says."""
        for request in self.live:
            seq = request.seq
            got = len(seq.tokens) - request.seen
            if self.careful:
                # With overlap, what is given up for lack of blocks gets the token of the step before first.
                assert 0 <= got <= (2 if self.core._overlap else 1)
                assert got or seq.finish_reason is None
                assert advanced is None or advanced.count(seq) == got
            request.seen += got
            request.ends += seq.finish_reason is not None
        self._look()

    def _look(self):
        core, scheduler = self.core, self.core.scheduler
        poison_free_blocks(core)
        if not self.careful:
            return
        core.check_integrity()
        under_way = {r.seq.request_id for r in self.live}
        assert scheduler.waiting.keys() | scheduler.running.keys() == core._seqs.keys() == under_way
        assert not scheduler.waiting.keys() & scheduler.running.keys()
        assert not any(seq.block_table or seq.num_computed for seq in scheduler.waiting.values())
        for seq in scheduler.running.values():
            assert seq.num_computed < len(seq.tokens)
            assert len(seq.block_table) * core.config.block_size >= seq.num_computed

    def _spy_plan(self):
        if not self.core.scheduler.running:
            self._decoded_since_idle = False
        self.plan = self._plan_step()
        for chunk in self.plan.prefill:
            length = len(chunk.seq.tokens)
            whole = chunk.start == length - 1 and length % self.core.config.block_size == 0
            self.happened["whole_prompt_hits"] += whole and chunk.seq.num_cached_prompt == chunk.start
            self.happened["chunked"] += not chunk.last
        return self.plan

    def _spy_copies(self):
        copies = self._take_copies()
        for _, target in copies:
            at_once = any(target in chunk.seq.block_table for chunk in self.plan.prefill)
            self.happened["copies_at_admission" if at_once else "copies_of_forks"] += 1
        return copies

    def _check_plan(self, before):
        limits, prefill, decode = self.core.scheduler.limits, self.plan.prefill, self.plan.decode
        tokens = sum(chunk.end - chunk.start for chunk in prefill)
        if limits.chunked_prefill or len(prefill) != 1:
            assert tokens <= limits.prefill_max_tokens
            assert tokens + len(decode) <= limits.max_num_batched_tokens
        elif not limits.decode_first:
            assert len(decode) <= max(0, limits.max_num_batched_tokens - tokens)
        assert limits.chunked_prefill or all(chunk.last for chunk in prefill)
        assert len(prefill) <= limits.prefill_max_batch_size
        assert len(decode) <= limits.max_num_seqs
        # A fork takes a seat of its own.
        assert len(self.core.scheduler.running) <= self.seats
        new = [chunk.seq for chunk in prefill if chunk.seq.request_id not in before]
        assert limits.mode != "offline" or not (new and self._decoded_since_idle)
        self._decoded_since_idle |= bool(decode)

    def _check_end(self):
        core = self.core
        assert all(request.ends == 1 for request in self.requests)
        assert not core.has_work
        assert not core._seqs
        assert core.blocks.num_free == core.blocks.num_blocks
        assert core.stats.preemptions == sum(request.seq.num_preemptions for request in self.requests)
        assert not self.wrong


# How often things must at least happen in a run.
LEAST = {
    "preemptions": 100,
    "hits": 400,
    "whole_prompt_hits": 150,
    "copies_at_admission": 30,
    "copies_of_forks": 100,
    "evictions": 500,
    "chunked": 300,
    "forks": 100,
    "aborts": 70,
    "refused": 100,
    "interruptions": 40,
    "resets": 5,
    "stop": 100,
    "length": 1000,
}


def serve(options, script, **how):
    options = dict(options)
    hash_content = HASHES[options.pop("hashes")]
    core = make_core(eos=EOS, **options)
    core.blocks._hash = hash_content
    return Traffic(core, **how).play(script)


def check(rng, requests, happened):
    options, script = draw_options(rng), draw_script(rng, requests)
    try:
        traffic = serve(options, script)
    except BaseException as error:
        error.add_note(f"options = {options}\nscript = {script}")
        raise
    happened.update(traffic.happened)
    happened["requests"] += len(traffic.requests)
    happened["steps"] += traffic.core.stats.steps
    happened["preemptions"] += traffic.core.stats.preemptions
    happened["hits"] += traffic.core.prefix_cache_stats.hits
    happened["evictions"] += traffic.core.prefix_cache_stats.evicted_blocks
    happened.update(str(request.reason) for request in traffic.requests)


@pytest.mark.parametrize(
    ("scripts", "requests"),
    [(60, 30), pytest.param(600, 60, marks=pytest.mark.slow)],
    ids=["thousands", "many_thousands"],
)
def test_every_request_gets_what_it_would_get_alone(scripts, requests):
    happened = Counter()
    for seed in range(scripts):
        # Not drawn by hypothesis: what that draws depends on which other modules are loaded.
        check(random.Random(seed), requests, happened)
    # None of it says anything about what has not happened.
    assert happened["requests"] > 20 * scripts
    for what, least in LEAST.items():
        assert happened[what] >= least, what


# What traffic hardly ever meets


def test_a_batch_that_came_back_with_another_length_is_sent_anew():
    # Between two steps of one batch a sequence can be preempted, admitted again and get a token by its prefill.
    inputs = OnDevice(4, torch.device("cpu"))
    one, two = (Sequence("", [number], 1, SamplingParams(), 0, Timing(0.0)) for number in (5, 6))
    inputs.prepare([one, two])
    inputs.sampled([one, two], torch.tensor([7, 8]))
    one.given += [7]
    two.given += [8, 9]
    assert [row.tolist() for row in inputs.prepare([one, two])] == [[7, 9], [1, 2], [2, 3]]


def test_a_resident_table_is_patched_only_where_it_changes(monkeypatch):
    patches = []
    patch = TorchOps.patch_block_table
    monkeypatch.setattr(TorchOps, "patch_block_table", lambda *args: patches.append(args[2].tolist()) or patch(*args))
    core = make_core(block_tables="resident", block_size=4)
    core.add([1, 2, 3], SamplingParams(max_tokens=10))
    while core.has_work:
        core.step()
    # Ten tokens, the first by the prefill and the last not computed: two more blocks.
    assert patches == [[[0, 0, 0]], [[0, 1, 1]], [[0, 2, 2]]]


# What is served here is broken on purpose, and must not go unnoticed


def a_block_of_another_sequence(monkeypatch):
    upload = SharedPinned.upload

    def wrong(self):
        tables = upload(self)
        tables[0, 0, 0] = tables[0, -1, 0]
        return tables

    monkeypatch.setattr(SharedPinned, "upload", wrong)
    return {"block_tables": "shared_pinned"}


def two_blocks_of_one_sequence_swapped(monkeypatch):
    upload = Resident.upload

    def wrong(self):
        tables = upload(self).clone()
        if tables.shape[2] > 1:
            tables[0, 0, :2] = tables[0, 0, :2].flip(0)
        return tables

    monkeypatch.setattr(Resident, "upload", wrong)
    return {"block_tables": "resident"}


def a_table_that_changes_in_place(monkeypatch):
    unshare = BlockManager._unshare

    def wrong(self, seq, index):
        table = seq.block_table
        unshare(self, seq, index)
        table[:] = seq.block_table
        seq.block_table = table

    monkeypatch.setattr(BlockManager, "_unshare", wrong)
    return {"block_tables": "resident"}


def a_copy_that_is_not_made(monkeypatch):
    monkeypatch.setattr(Runner, "copy_blocks", lambda _self, _pairs: None)
    return {}


def a_shared_block_that_is_written_to(monkeypatch):
    monkeypatch.setattr(BlockManager, "_unshare", lambda _self, _seq, _index: None)
    return {}


def a_slot_beside_the_right_one(monkeypatch):
    slots = TorchOps.slots
    monkeypatch.setattr(TorchOps, "slots", lambda *args: (slots(*args) - 1).clamp(min=0))
    return {"kv_append": "slot_mapping"}


def a_collision_that_is_taken_for_a_hit(monkeypatch):
    monkeypatch.setattr(BlockManager, "_holds", lambda *_: True)
    return {"prefix_cache": True, "hashes": "few"}


def right_tokens_after_a_wrong_beginning(monkeypatch):
    monkeypatch.setattr(BlockManager, "_holds", lambda self, block, _, tokens: self._content[block].tokens == tokens)
    return {"prefix_cache": True, "hashes": "of_tokens"}


def inputs_of_the_step_before(monkeypatch):
    prepare = OnDevice.prepare

    def wrong(self, seqs):
        self._seqs = seqs if len(self._seqs) == len(seqs) else []
        self._lengths = [len(seq.tokens) for seq in seqs]
        return prepare(self, seqs)

    monkeypatch.setattr(OnDevice, "prepare", wrong)
    return {"inputs": "on_device", "sampler": "batched"}


def some_are_wrong(options, scripts=12):
    # Enough room for sequences to run beside each other.
    room = {"num_blocks": 80, "block_size": 4, "max_model_len": 40, "mode": "online", "max_active": 12}
    room |= {"max_num_seqs": 8, "max_num_batched_tokens": 100, "inputs": "packed_pinned", "block_tables": "resident"}
    room |= {"cuda_graph": "off", "graph_sampling": "outside", "overlap": "off"}
    for seed in range(scripts):
        rng = random.Random(seed)
        if serve(draw_options(rng) | room | options, draw_script(rng, 30), careful=False).wrong:
            return True
    return False


@pytest.mark.parametrize(
    "broken",
    [
        a_block_of_another_sequence,
        two_blocks_of_one_sequence_swapped,
        a_table_that_changes_in_place,
        a_copy_that_is_not_made,
        a_shared_block_that_is_written_to,
        a_slot_beside_the_right_one,
        a_collision_that_is_taken_for_a_hit,
        right_tokens_after_a_wrong_beginning,
        inputs_of_the_step_before,
    ],
)
def test_outputs_show(monkeypatch, broken):
    assert some_are_wrong(broken(monkeypatch))


def test_outputs_do_not_show_what_is_not_there():
    assert not some_are_wrong({}, scripts=6)
