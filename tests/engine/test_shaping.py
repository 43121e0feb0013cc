"""Biases, penalties, top-k, top-p, min-p and logprobs, in every form of a step, beside transformers' own processors."""

import itertools
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from engine import RequestError, SamplingParams
from engine.sequence import FinishReason
from kernels import reference
from tests.engine.fake import Context, FakeModel, Interrupted, alone, logits, make_core, make_llm, model_of
from tests.engine.recorded import Late

PROMPTS = [[1, 2, 3], [4], list(range(10, 21)), [1, 2, 3, 4, 5], [200, 100]]
FORMS = [
    {"sampler": "item_loop", "inputs": "packed_pinned"},
    {"sampler": "batched"},
    {"sampler": "on_device"},
    {"block_tables": "in_graph"},
    {"block_tables": "in_graph", "overlap": "on"},
    *(
        {"block_tables": "in_graph", "cuda_graph": graph, "graph_sampling": where, "overlap": overlap}
        for graph, where, overlap in itertools.product(["exact", "buckets"], ["inside", "outside"], ["off", "on"])
    ),
]
ASKS = [
    {"temperature": 1.0, "top_k": 3},
    {"temperature": 2.0, "top_p": 0.7},
    {"temperature": 1.5, "min_p": 0.3},
    {"temperature": 1.0, "top_k": 40, "top_p": 0.9, "min_p": 0.05},
    {"repetition_penalty": 1.8, "logit_bias": {2: 120.0, 7: 110.0, 9: 100.0}},
    {"presence_penalty": 30, "frequency_penalty": -4.5, "logit_bias": {4: 120.0, 7: 110.0, 9: 100.0}},
    {"temperature": 1.3, "frequency_penalty": 0.7, "repetition_penalty": 0.6, "top_p": 0.95},
    {"logit_bias": {7: 60.0, 9: 60.5, 11: -math.inf}},
    {"logit_bias": dict.fromkeys(range(0, 256, 2), 80.0), "presence_penalty": 2.0, "temperature": 0.7, "top_k": 10},
]


def processed(scores, context, num_prompt, params):
    """Logits `[vocab]` as transformers' processors and the two penalties that it lacks leave them, in their order."""
    scores = scores.clone()[None]
    for token, bias in params.biases:
        scores[0, token] += bias
    if params.repetition_penalty != 1:
        scores = RepetitionPenaltyLogitsProcessor(params.repetition_penalty)(torch.tensor([context]), scores)
    output = context[num_prompt:]
    for token in set(output):
        scores[0, token] -= params.frequency_penalty * output.count(token) + params.presence_penalty
    if params.temperature:
        scores = TemperatureLogitsWarper(float(params.temperature))(None, scores)
        if params.top_k:
            scores = TopKLogitsWarper(params.top_k)(None, scores)
        if params.top_p < 1:
            scores = TopPLogitsWarper(params.top_p)(None, scores)
        if params.min_p:
            scores = MinPLogitsWarper(params.min_p)(None, scores)
    return scores[0]


def wanted(prompt, params, seed):
    """What is generated, token by token from the definition."""
    tokens, context = list(prompt), Context(prompt)
    for position in range(params.max_tokens):
        scores = processed(logits(torch.tensor([context.hash]))[0], tokens, len(prompt), params)
        row = (
            scores[None],
            torch.tensor([float(params.temperature > 0)]),
            torch.tensor([seed]),
            torch.tensor([position]),
        )
        token = int(reference.sample(*row))
        tokens.append(token)
        context.push(token)
    return tokens[len(prompt) :]


def serve(requests, **options):
    core = make_core(max_num_seqs=len(requests), **options)
    seqs = [core.add(prompt, params) for prompt, params in requests]
    while core.has_work:
        core.step()
        core.check_integrity()
    assert core.blocks.num_free == core.blocks.num_blocks
    return seqs


REQUESTS = [
    (PROMPTS[i % len(PROMPTS)], SamplingParams(max_tokens=6 + 2 * (i % 4), seed=i, **ask))
    for i, ask in enumerate([*ASKS, {}, {"temperature": 1.0}])
]
WANTED = [wanted(prompt, params, params.seed) for prompt, params in REQUESTS]


def test_most_of_what_is_asked_for_changes_tokens():
    plain = [
        alone(prompt, SamplingParams(params.max_tokens, params.temperature), seed=params.seed)
        for prompt, params in REQUESTS
    ]
    assert sum(one != other for one, other in zip(plain, WANTED, strict=True)) >= len(ASKS) - 1


@pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(form.values()))
def test_every_form_of_a_step_gives_what_transformers_gives(form):
    assert [seq.output for seq in serve(REQUESTS, **form)] == WANTED


@pytest.mark.parametrize("form", [FORMS[1], FORMS[-1]], ids=["eager", "graph"])
def test_preemption_and_small_batches_change_nothing(form):
    more = {"num_blocks": 8, "max_num_batched_tokens": 9, "prefix_cache": False}
    core = make_core(max_num_seqs=3, max_active=5, **form, **more)
    seqs = [core.add(prompt, params) for prompt, params in REQUESTS]
    while core.has_work:
        core.step()
    assert core.stats.preemptions
    assert [seq.output for seq in seqs] == WANTED


def test_requests_that_come_and_go_keep_their_tokens_apart():
    core = make_core(max_num_seqs=4, block_tables="in_graph", overlap="on", num_blocks=200)
    seqs = []
    for request in REQUESTS * 2:
        seqs.append(core.add(*request))
        for _ in range(2):
            core.step()
    while core.has_work:
        core.step()
    assert [seq.output for seq in seqs] == WANTED * 2


def test_more_tokens_than_there_was_room_for():
    """The first request makes room for few tokens, the next for many while the first is under way."""
    params = [SamplingParams(max_tokens=most, frequency_penalty=0.5) for most in (40, 270)]
    core = make_core(max_num_seqs=2, block_tables="in_graph", overlap="on", num_blocks=200, max_model_len=300)
    seqs = [core.add([1, 2], params[0])]
    for _ in range(5):
        core.step()
    seqs.append(core.add([1, 3], params[1]))
    while core.has_work:
        core.step()
    assert [seq.output for seq in seqs] == [wanted(seq.tokens[:2], seq.params, 0) for seq in seqs]


def test_on_a_device_that_is_late():
    """Decoding alone: a prefill goes by torch's own calls, which do not wait for their turn here."""
    stream = Late()
    core = make_core(stream=stream, overlap="on", block_tables="in_graph", cuda_graph="off")
    prefill = core.runner.prefill
    from engine.staging import Staging  # noqa: PLC0415

    core.runner._staging = Staging(torch.device("cpu"))
    core.runner.prefill = lambda chunks: (stream.work_off(), prefill(chunks))[1]
    seqs = [core.add(prompt, params) for prompt, params in REQUESTS]
    while core.has_work:
        core.step()
    assert [seq.output for seq in seqs] == WANTED


@pytest.mark.parametrize("form", [FORMS[1], FORMS[4], FORMS[-1]], ids=["eager", "overlap", "graph"])
def test_an_interruption_costs_no_token(form):
    core = make_core(max_num_seqs=len(REQUESTS), **form)
    seqs = [core.add(prompt, params) for prompt, params in REQUESTS]
    for _ in range(4):
        core.step()
    model_of(core).interrupt_in = 0
    with pytest.raises(Interrupted):
        core.step()
    while core.has_work:
        core.step()
    assert [seq.output for seq in seqs] == WANTED


# Logprobs


@pytest.mark.parametrize("form", FORMS[:5] + FORMS[-2:], ids=lambda form: "-".join(form.values()))
def test_logprobs_are_the_models_own(form):
    params = [
        SamplingParams(max_tokens=4, logprobs=3, repetition_penalty=1.5),
        SamplingParams(max_tokens=6, temperature=1.0),
        SamplingParams(max_tokens=5, logprobs=0, temperature=1.0, top_k=2),
    ]
    seqs = serve([([i, 5], one) for i, one in enumerate(params)], **form)
    assert not seqs[1].logprobs
    for seq in (seqs[0], seqs[2]):
        assert [one.token_id for one in seq.logprobs] == seq.output
        for i, one in enumerate(seq.logprobs):
            model = logits(torch.tensor([Context(seq.tokens[: seq.num_prompt + i]).hash]))[0].log_softmax(0)
            assert one.logprob == pytest.approx(float(model[one.token_id]), rel=1e-5)
            top = model.topk(seq.params.logprobs)
            assert list(one.top) == top.indices.tolist()
            assert list(one.top.values()) == pytest.approx(top.values.tolist(), rel=1e-5)


# What others pay


class _Counted(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(form.values()))
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_batch_that_does_not_ask_does_what_it_does_where_nobody_ever_asked(form, temperature):
    def steady(core):
        for i in range(3):
            core.add([i, 2], SamplingParams(max_tokens=20, temperature=temperature))
        for _ in range(4):
            core.step()
        with _Counted() as counted:
            core.step()
        return counted.calls

    fresh = steady(make_core(block_size=64, max_model_len=64, num_blocks=8, max_num_seqs=4, **form))
    core = make_core(block_size=64, max_model_len=64, num_blocks=8, max_num_seqs=4, **form)
    core.add([1, 2], SamplingParams(max_tokens=4, temperature=1.0, top_k=3, frequency_penalty=1.0, logprobs=2))
    while core.has_work:
        core.step()
    assert steady(core) == fresh


# Distributions


@pytest.mark.parametrize(
    "ask", [{"top_k": 4}, {"top_p": 0.8}, {"min_p": 0.3}, {"top_k": 6, "frequency_penalty": 0.4}], ids=str
)
def test_draws_follow_the_exact_distribution(ask):
    """Chi-squared of the second token over seeds: passes 27.9 once in a thousand at 9 degrees of freedom at most."""
    draws, prompt = 600, [3, 1, 4]
    params = SamplingParams(max_tokens=1, temperature=2.0, seed=0, **ask)
    core = make_core(max_num_seqs=draws, num_blocks=2 * draws, max_num_batched_tokens=10_000)
    seqs = [core.add(prompt, SamplingParams(max_tokens=1, temperature=2.0, seed=seed, **ask)) for seed in range(draws)]
    while core.has_work:
        core.step()
    exact = processed(logits(torch.tensor([Context(prompt).hash]))[0], prompt, 3, params).softmax(0)
    counts = torch.tensor([seq.output[0] for seq in seqs]).bincount(minlength=256)
    possible = exact > 0
    assert counts[~possible].sum() == 0
    assert 2 <= possible.sum() <= 10
    expected = exact[possible] * draws
    assert ((counts[possible] - expected) ** 2 / expected).sum() < 27.9


# What goes wrong


def test_a_request_whose_logits_are_nan_ends_alone():
    """Of three requests, one meets NaN at its fourth token."""
    for form in FORMS:
        core = make_core(max_num_seqs=3, **form)
        bad = alone([2, 5], SamplingParams(max_tokens=20))
        poisoned = Context([2, 5, *bad[:3]]).hash
        model = model_of(core)

        def poison(hidden, model=model, poisoned=poisoned):
            found = FakeModel.logits(model, hidden)
            return found.masked_fill((hidden[:, 0].long() == poisoned)[:, None], math.nan)

        model.logits = poison
        core.runner.capture()
        seqs = [core.add([i, 5], SamplingParams(max_tokens=12)) for i in range(4)]
        while core.has_work:
            core.step()
            core.check_integrity()
        assert [seq.output for i, seq in enumerate(seqs) if i != 2] == [
            alone([i, 5], SamplingParams(max_tokens=12)) for i in (0, 1, 3)
        ]
        assert (seqs[2].output, seqs[2].finish_reason) == (bad[:3], FinishReason.ERROR)
        assert "not numbers (NaN)" in seqs[2].error
        assert core.blocks.num_free == core.blocks.num_blocks


def test_nobody_finds_the_blocks_of_what_went_wrong():
    core = make_core(block_size=2)
    model = model_of(core)
    model.logits = lambda hidden: FakeModel.logits(model, hidden) * math.nan
    core.add([1, 2, 3, 4, 5], SamplingParams())
    core.step()
    del model.logits
    seq = core.add([1, 2, 3, 4, 5], SamplingParams(max_tokens=4))
    while core.has_work:
        core.step()
    assert (seq.output, seq.num_cached_prompt) == (alone([1, 2, 3, 4, 5], SamplingParams(max_tokens=4)), 0)


def test_a_request_that_rules_every_token_out_ends_with_an_error():
    llm = make_llm()
    never = SamplingParams(logit_bias=dict.fromkeys(range(256), -math.inf))
    outputs = llm.generate([[1], [2]], [never, SamplingParams(max_tokens=3)])
    assert [output.finish_reason for output in outputs] == ["error", "length"]
    assert "rules every token out" in outputs[0].error
    assert outputs[1].error is None


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"top_k": -1, "temperature": 1}, r"top_k must be 0 \(off\) or a number of tokens, but is -1"),
        ({"top_k": 1.0, "temperature": 1}, "top_k must be an integer, but is 1.0"),
        ({"top_p": 0.0, "temperature": 1}, "top_p must be over 0 and at most 1, but is 0.0"),
        ({"top_p": math.nan, "temperature": 1}, "top_p must be over 0 and at most 1, but is nan"),
        ({"min_p": 1.5, "temperature": 1}, "min_p must be from 0 to 1, but is 1.5"),
        ({"top_p": 0.5}, "top_p=0.5 needs a temperature above 0, since 0 draws nothing"),
        ({"n": 2}, "n=2 needs a temperature above 0"),
        ({"n": 0, "temperature": 1}, "n must be from 1 to 64, but is 0"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be from 1e-3 to 1e3, but is 0.0"),
        ({"presence_penalty": "a"}, "presence_penalty must be a number, but is 'a'"),
        ({"frequency_penalty": math.inf}, "frequency_penalty must be from -100 to 100, but is inf"),
        ({"logprobs": 21}, "logprobs must be from 0 to 20, but is 21"),
        ({"logprobs": True}, "logprobs must be an integer, but is True"),
        ({"logit_bias": 5}, "logit_bias must map token ids to numbers, but is 5"),
        ({"logit_bias": {"a": 1.0}}, "a token id of logit_bias must be an integer, but is 'a'"),
        ({"logit_bias": {1: math.inf}}, "the logit_bias of token 1 must be -inf or from -1e4 to 1e4, but is inf"),
        ({"logit_bias": [(1, 2.0), (1, 3.0)]}, "logit_bias names a token twice"),
        ({"stop": 5}, "stop must be a text or several, but is 5"),
        ({"stop": ["a", ""]}, "a stop must be a text that is not empty, but is ''"),
        ({"include_stop": True}, "include_stop is for stop"),
    ],
    ids=str,
)
def test_wrong_values_are_one_sentence(wrong, sentence):
    with pytest.raises(RequestError, match=sentence):
        SamplingParams(**wrong)


def test_a_bias_of_an_unknown_token_is_refused():
    with pytest.raises(RequestError, match="logit_bias names the token id 256, but the model's ids go from 0 to 255"):
        make_core().add([1], SamplingParams(logit_bias={256: 1.0}))
