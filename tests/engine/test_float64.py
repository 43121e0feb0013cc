"""Two hundred requests on a real model in float64, where no rounding turns a choice: exactly what each gets alone."""

import random
from itertools import groupby

import pytest
import torch

from engine import LLM, SamplingParams
from engine.variants.attention import ReferenceAttention

CONTEXT = 64
VOCAB = 320
TEXTS = [random.Random(i).choices(range(VOCAB), k=40) for i in range(4)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from transformers import GPT2Config, GPT2LMHeadModel  # noqa: PLC0415 - takes seconds
    from transformers.utils import logging  # noqa: PLC0415 - takes seconds

    logging.disable_progress_bar()
    config = GPT2Config(
        vocab_size=VOCAB,
        n_embd=32,
        n_layer=2,
        n_head=2,
        n_positions=CONTEXT,
        # With less, most of what a tiny model generates does not depend on attention.
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("float64")
    GPT2LMHeadModel(config).double().save_pretrained(path)
    return path


def draw_requests(count):
    """Prompts, many of which begin alike, and how many tokens each asks for; some reach the end of the context."""
    rng = random.Random(1)
    requests = []
    for _ in range(count):
        tail = rng.choices(range(VOCAB), k=rng.choice([0, 1, 3]))
        prompt = rng.choice(TEXTS)[: rng.choice([1, 3, 8, 16, 17, 24, 40])] + tail
        requests.append((prompt, rng.choice([1, 4, 12, 20, 30])))
    return requests


@pytest.fixture(scope="module")
def served_alone(folder):
    """Requests, and what Hugging Face generates for each."""
    from transformers import AutoModelForCausalLM  # noqa: PLC0415 - takes seconds

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    requests = draw_requests(200)
    wanted = {}
    by_length = sorted(enumerate(requests), key=lambda pair: len(pair[1][0]))
    for length, group in groupby(by_length, key=lambda pair: len(pair[1][0])):
        numbers, pairs = zip(*group, strict=True)
        ids = torch.tensor([prompt for prompt, _ in pairs])
        longest = min(CONTEXT, length + max(count for _, count in pairs))
        rows = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_length=longest, do_sample=False, pad_token_id=0
        ).tolist()
        for number, row, (_, count) in zip(numbers, rows, pairs, strict=True):
            wanted[number] = row[length : length + count]
    return requests, [wanted[number] for number in range(len(requests))]


def serve(folder, requests, **options):
    """Serve requests that come in a few at a time, by a cache that holds few of them."""
    # The longest request needs 16 blocks.
    llm = LLM(str(folder), dtype="float64", device="cpu", block_size=4, num_blocks=24, max_num_seqs=12, **options)
    rng = random.Random(2)
    got, coming = {}, list(enumerate(requests))
    while coming or llm.has_work:
        for _ in range(min(len(coming), rng.choice([0, 1, 3]))):
            number, (prompt, count) = coming.pop(0)
            llm.add_request(prompt, SamplingParams(max_tokens=count), request_id=f"request {number}")
        for increment in llm.step():
            got.setdefault(increment.request_id, []).extend(increment.token_ids)
        llm.core.check_integrity()
    assert llm.core.blocks.num_free == llm.core.blocks.num_blocks
    return llm, [got[f"request {number}"] for number in range(len(requests))]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mode": "offline", "chunked_prefill": False, "block_tables": "staged_pinned", "kv_append": "torch_indexed"},
        {"decode_first": True, "max_num_batched_tokens": 16, "kv_append": "fused", "prefix_cache": False},
    ],
    ids=["online", "offline", "small_steps"],
)
def test_two_hundred_requests_get_what_each_gets_alone(folder, served_alone, options):
    requests, wanted = served_alone
    llm, got = serve(folder, requests, **options)
    assert got == wanted
    assert llm.core.stats.preemptions > 10
    assert llm.core.prefix_cache_stats.hits > 10 or options.get("prefix_cache") is False


def test_without_attention_nearly_all_get_something_else(folder, served_alone, monkeypatch):
    requests, wanted = served_alone
    monkeypatch.setattr(ReferenceAttention, "decode", lambda _self, query, *_, **__: torch.zeros_like(query))
    _, got = serve(folder, requests)
    long = [(one, other) for one, other in zip(got, wanted, strict=True) if len(other) >= 12]
    assert len(long) > 80
    assert sum(one != other for one, other in long) > 0.95 * len(long)
