"""Greedy output equals Hugging Face's, token by token, in fp32; and a broken engine's does not."""

import itertools

import pytest
import torch

from engine import LLM, SamplingParams
from engine.variants.attention import ReferenceAttention
from engine.variants.choice import AXES, NEEDS_GPU, NEEDS_TRITON
from engine.variants.kv_append import SlotMapping
from tests.engine.checkpoints import FAMILIES, LEAST_GAP, fit, hf_generate, random_prompts
from tests.pairwise import pairwise

# Around the edges of blocks of 4 and 16, shorter and longer than the windows.
LENGTHS = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 33, 40)
# Prompts whose greedy choices are all clear; a new version of torch may want others.
SEEDS = {"gpt2": 2, "llama": 4, "qwen2": 5, "qwen3": 3, "mistral": 3}
NEW_TOKENS = 24
# Two prompts come twice, so that with a prefix cache there is something to find.
REPEATED = (11, 6)


@pytest.fixture(scope="session")
def oracle(checkpoints):
    """Prompts of a family, and what Hugging Face makes of them."""
    made = {}

    def of(family):
        if family not in made:
            prompts = random_prompts(LENGTHS, SEEDS[family])
            outputs, gaps = zip(
                *(hf_generate(checkpoints.hf(family), prompt, NEW_TOKENS) for prompt in prompts), strict=True
            )
            assert min(itertools.chain(*gaps)) > LEAST_GAP, "choose another seed for these prompts"
            made[family] = prompts, list(outputs)
        return made[family]

    return of


def generate(checkpoints, family, prompts, **options):
    options = {"device": "cpu", "dtype": "float32", "block_size": 4, "num_blocks": 400, **options}
    llm = LLM(checkpoints.path(family), **options)
    outputs = llm.generate(prompts, SamplingParams(max_tokens=NEW_TOKENS))
    llm.core.check_integrity()
    assert llm.core.blocks.num_free == llm.core.blocks.num_blocks
    return llm, [output.token_ids for output in outputs]


def check(checkpoints, oracle, family, **options):
    prompts, wanted = oracle(family)
    more = [prompts[i] for i in REPEATED]
    llm, got = generate(checkpoints, family, prompts + more, **options)
    assert got == wanted + [wanted[i] for i in REPEATED]
    return llm


@pytest.mark.parametrize("family", FAMILIES)
def test_defaults(checkpoints, oracle, family):
    check(checkpoints, oracle, family)


VALUES = [
    (axis, value)
    for axis, values in AXES.items()
    for value in values.values
    if (axis, value) not in NEEDS_TRITON | NEEDS_GPU and value != values.cpu
]


@pytest.mark.parametrize(("axis", "value"), VALUES)
@pytest.mark.parametrize("family", ["gpt2", "qwen3"])
def test_each_value_of_each_axis(checkpoints, oracle, family, axis, value):
    llm = check(checkpoints, oracle, family, **{axis: value})
    assert getattr(llm.core.runner.variants, axis) == value


SERVING = {
    "prefix_cache": [True, False],
    "chunked_prefill": [True, False],
    "max_num_batched_tokens": [8192, 24],
    "decode_first": [False, True],
    "mode": ["online", "offline", "naive"],
    "block_size": [4, 3, 16],
    "max_num_seqs": [256, 3],
    # The longest request needs 63 positions: 16 blocks of 4, and nothing else runs beside it.
    "tokens_in_cache": [1600, 64],
}
CASES = pairwise(
    {
        "family": FAMILIES,
        **{
            axis: [v for v in values.values if (axis, v) not in NEEDS_TRITON | NEEDS_GPU]
            for axis, values in AXES.items()
        },
        **SERVING,
    }
)


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_pairs_of_everything(checkpoints, oracle, case):
    case = dict(case)
    family, tokens = case.pop("family"), case.pop("tokens_in_cache")
    fit(case)
    llm = check(checkpoints, oracle, family, num_blocks=-(-tokens // case["block_size"]), **case)
    if tokens == 64 and case["mode"] != "naive" and case["max_num_seqs"] > 3:
        assert llm.core.stats.preemptions > 0


def test_preemption_is_forced(checkpoints, oracle):
    llm = check(checkpoints, oracle, "llama", num_blocks=20, prefix_cache=False)
    assert llm.core.stats.preemptions > 3


def test_a_prompt_comes_in_chunks(checkpoints, oracle):
    prompts, wanted = oracle("qwen2")
    llm, got = generate(checkpoints, "qwen2", prompts[-1:], max_num_batched_tokens=16)
    assert got == wanted[-1:]
    assert llm.core.stats.prefills == 3


def test_a_whole_prompt_is_in_the_prefix_cache(checkpoints, oracle):
    prompts, wanted = oracle("mistral")
    llm, _ = generate(checkpoints, "mistral", prompts)
    again = llm.generate(prompts, SamplingParams(max_tokens=NEW_TOKENS))
    assert [output.token_ids for output in again] == wanted
    # Whole blocks of a prompt are found; of a prompt that ends with a block all but the last token.
    cached = {len(output.prompt_token_ids): output.num_cached_prompt for output in again}
    assert cached == {length: min(length // 4 * 4, length - 1) for length in LENGTHS}


def test_a_fork_goes_on_as_its_parent_would(checkpoints, oracle):
    prompts, wanted = oracle("gpt2")
    llm = LLM(checkpoints.path("gpt2"), device="cpu", block_size=4, num_blocks=64)
    params = SamplingParams(max_tokens=NEW_TOKENS)
    parent = llm.add_request(prompts[10], params)
    tokens = {parent: []}
    while llm.has_work:
        for increment in llm.step():
            tokens[increment.request_id] += increment.token_ids
        if len(tokens) < 3 and len(tokens[parent]) in {3, 6}:
            tokens[llm.fork(parent, params)] = list(tokens[parent])
        llm.core.check_integrity()
    assert list(tokens.values()) == [wanted[10]] * 3


def test_half_precision_weights_are_read_as_they_are_asked_for(checkpoints):
    llm = LLM(checkpoints.path("llama"), device="cpu", dtype="float16", num_blocks=16)
    assert llm.core.runner.cache.keys.dtype == torch.float16
    assert len(llm.generate([[1, 2, 3]], SamplingParams(max_tokens=4))[0].token_ids) == 4


# What must be seen. Each mutation breaks decoding alone, so that prefill cannot be what shows it.


def attention_zeroed(monkeypatch):
    monkeypatch.setattr(ReferenceAttention, "decode", lambda _self, query, *_, **__: torch.zeros_like(query))


def block_ids_swapped(monkeypatch):
    decode = ReferenceAttention.decode

    def swapped(self, query, caches, table, lens, *args, **kwargs):
        # Each sequence reads its last but one token's block from its neighbour.
        rows, columns = torch.arange(len(lens)), (lens - 2).clamp(min=0) // caches[0].shape[1]
        table = table.clone()
        table[rows, columns] = table[rows, columns].roll(1)
        return decode(self, query, caches, table, lens, *args, **kwargs)

    monkeypatch.setattr(ReferenceAttention, "decode", swapped)


def last_token_dropped(monkeypatch):
    decode = ReferenceAttention.decode
    monkeypatch.setattr(
        ReferenceAttention,
        "decode",
        lambda self, query, caches, table, lens, *args, **kwargs: decode(
            self, query, caches, table, (lens - 1).clamp(min=1), *args, **kwargs
        ),
    )


def window_ignored(monkeypatch):
    decode = ReferenceAttention.decode
    monkeypatch.setattr(
        ReferenceAttention,
        "decode",
        lambda *args, **kwargs: decode(*args, **kwargs | {"window": 0}),
    )


def rope_off_by_one(monkeypatch):
    begin = SlotMapping.begin

    def shifted(self, *args):
        begin(self, *args)
        self._positions = self._positions + 1

    monkeypatch.setattr(SlotMapping, "begin", shifted)


MUTATIONS = [
    (attention_zeroed, FAMILIES),
    (block_ids_swapped, FAMILIES),
    (last_token_dropped, FAMILIES),
    (window_ignored, ("qwen2", "mistral")),
    (rope_off_by_one, ("llama", "qwen2", "qwen3", "mistral")),
]


@pytest.mark.parametrize(
    ("mutation", "family"),
    [(mutation, family) for mutation, families in MUTATIONS for family in families],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_broken_engine_is_seen(checkpoints, oracle, monkeypatch, mutation, family):
    prompts, wanted = oracle(family)
    mutation(monkeypatch)
    _, got = generate(checkpoints, family, prompts)
    # Two of GPT-2's outputs repeat themselves, and do so without the last token too.
    assert sum(a != b for a, b in zip(got, wanted, strict=True)) >= len(prompts) - 2
