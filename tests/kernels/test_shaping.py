"""Biases, penalties, top-k, top-p and min-p: kernels beside the reference, and the reference beside transformers."""

import math

import pytest
import torch
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from kernels import reference, shaping
from kernels.rows import Seen, Shaping

BLOCK = shaping.BLOCK_V


def asked(rows, **fields):
    """What rows ask for: numbers for all of them, or a list of one each."""
    off = {
        "temperatures": 1.0,
        "before_output": 0,
        "top_k": 0,
        "top_p": 1.0,
        "min_p": 0.0,
        "repetition": 1.0,
        "presence": 0.0,
        "frequency": 0.0,
        "seats": -1,
    }
    made = {}
    for name, value in (off | fields).items():
        values = value if isinstance(value, list) else [value] * rows
        made[name] = torch.tensor(values, dtype=torch.float32 if isinstance(off[name], float) else torch.int32)
    return Shaping(*(made[name] for name in Shaping._fields))


def on(device, tensors):
    return type(tensors)(*(tensor.to(device) for tensor in tensors))


def logits_of(kind, vocab, rows, rng):
    scores = torch.randn(rows, vocab, generator=rng) * 3
    if kind == "ties":
        scores = scores.round()
    elif kind == "all equal":
        scores = torch.full((rows, vocab), -0.5)
    elif kind == "hidden":
        scores[:, ::2] = -math.inf
    elif kind == "one left":
        scores[:, :-1] = -math.inf
    elif kind == "zeros of both signs":
        scores = scores.clamp(min=0) * torch.tensor([1.0, -1.0]).repeat(vocab)[:vocab]
    elif kind == "wide":
        scores *= 1e4
    return scores


KINDS = ["plain", "ties", "all equal", "hidden", "one left", "zeros of both signs", "wide"]
CUTS = [
    {"top_k": 5},
    {"top_k": 1},
    {"top_p": 0.6},
    {"top_p": 1e-6},
    {"min_p": 0.2},
    {"min_p": 1.0},
    {"top_k": 20, "top_p": 0.8, "min_p": 0.05, "temperatures": 0.7},
    {"top_k": 100_000, "top_p": 0.999},
]


def theirs(scores, cut):
    """Transformers' warpers, in its order."""
    scores = scores / cut.get("temperatures", 1.0)
    if "top_k" in cut:
        scores = TopKLogitsWarper(cut["top_k"])(None, scores)
    if "top_p" in cut:
        scores = TopPLogitsWarper(cut["top_p"])(None, scores)
    if "min_p" in cut:
        scores = MinPLogitsWarper(cut["min_p"])(None, scores)
    return scores > -math.inf


def check_kept(kept, wanted, scores, cut):
    """What is kept is what transformers keeps, and what ties with the last of that; a sum may be off by a bit."""
    for mine, want, row in zip(kept, wanted, scores, strict=True):
        assert not (want & ~mine).any() or "top_p" in cut
        more = row[mine & ~want]
        # Sums in fp32 may put one value, with all that tie with it, on either side of the edge.
        edge = row[want].min()
        assert ((more == edge) | (row[mine].min() == more)).all()
        assert len(set(more[more != edge].tolist())) <= ("top_p" in cut)
        assert len(set(row[want & ~mine].tolist())) <= 1


@pytest.mark.parametrize("cut", CUTS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_keeps_what_transformers_keeps(rng, kind, cut):
    scores = logits_of(kind, 700, 4, rng)
    mine = scores.clone()
    reference.keep_likely(mine, asked(4, **cut))
    kept = mine > -math.inf
    assert torch.equal(mine[kept], scores[kept])
    check_kept(kept, theirs(scores, cut), scores, cut)


@pytest.mark.parametrize("vocab", [3, BLOCK, BLOCK + 1, 2 * BLOCK + 77])
@pytest.mark.parametrize("kind", KINDS)
def test_the_kernel_keeps_what_the_reference_keeps(rng, device, kind, vocab):
    cuts = [CUTS[0], CUTS[2], CUTS[4], CUTS[6], {"temperatures": 0.0, "top_k": 1}, {}]
    fields = {name: [cut.get(name, off) for cut in cuts] for name, off in OFF.items()}
    scores = torch.cat([logits_of(kind, vocab, len(cuts), rng), torch.ones(len(cuts), 5)], 1)[:, :vocab]
    want = scores.clone()
    reference.keep_likely(want, asked(len(cuts), **fields))
    got = scores.to(device)
    shaping.keep_likely(got, on(device, asked(len(cuts), **fields)))
    # No sum of these lies so near to its edge that fp32 could see it on the other side.
    assert torch.equal(got.cpu(), want)
    assert torch.equal(want[4:], scores[4:])


OFF = {"temperatures": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


def test_nan_stays_where_a_sampler_sees_it(device):
    scores = torch.tensor([[0.0, math.nan, 3.0, -1.0], [-math.inf] * 4])
    for ask in ({"top_k": 1}, {"top_p": 0.1}, {"min_p": 0.9}):
        for keep, there in ((reference.keep_likely, "cpu"), (shaping.keep_likely, device)):
            got = scores.clone().to(there)
            keep(got, on(there, asked(2, **ask)))
            tokens = reference.sample(got.cpu(), torch.ones(2), torch.zeros(2).long(), torch.zeros(2).long())
            assert tokens.tolist() == [-1, -1]


def seen_of(*sequences, width=50):
    """What is seen of prompts and outputs."""
    seen = Seen(torch.zeros(len(sequences)).int(), *(torch.full((len(sequences), width), 99).int() for _ in "ab"))
    for seat, (prompt, output) in enumerate(sequences):
        for i, token in enumerate(dict.fromkeys([*prompt, *output])):
            seen.ids[seat, i], seen.counts[seat, i] = token, output.count(token)
            seen.sizes[seat] += 1
    return seen


PROMPT, OUTPUT = [5, 7, 7, 299], [7, 8, 8, 8, 0]


@pytest.mark.parametrize("last", [3, 8, 5, 299])
def test_penalties(device, rng, last):
    scores = torch.randn(3, 300, generator=rng)
    # Rows 0 and 2 have seats, the other way round; row 2 stands at the last token of its prompt.
    ask = asked(
        3,
        before_output=[3, 0, 3],
        repetition=[1.3, 9.0, 0.8],
        presence=[0.4, 9.0, -0.6],
        frequency=[-0.25, 9.0, 0.5],
        seats=[1, -1, 0],
    )
    positions = torch.tensor([9, 4, 3])
    seen = seen_of((PROMPT[:-1], []), (PROMPT, OUTPUT))
    want = scores.double().clone()
    for row, prompt, output in ((0, PROMPT, [*OUTPUT, last]), (2, [*PROMPT[:-1], last], [])):
        context = torch.tensor([prompt + output])
        penalty = RepetitionPenaltyLogitsProcessor(float(ask.repetition[row]))
        want[row] = penalty(context, want[row : row + 1])[0]
        for token in set(output):
            want[row, token] -= float(ask.frequency[row]) * output.count(token) + float(ask.presence[row])
    tokens = torch.tensor([last, 0, last])
    for penalise, there in ((reference.penalise, "cpu"), (shaping.penalise, device)):
        got, known = scores.to(there, copy=True), on(there, Seen(*(tensor.clone() for tensor in seen)))
        penalise(got, on(there, ask), known, tokens.to(there), positions.to(there))
        torch.testing.assert_close(got.double().cpu(), want, rtol=1e-6, atol=1e-6)
        after = seen_of(([*PROMPT[:-1], last], []), (PROMPT, [*OUTPUT, last]))
        for seat, size in enumerate(after.sizes.tolist()):
            assert known.sizes[seat] == size
            found = dict(zip(known.ids[seat, :size].tolist(), known.counts[seat, :size].tolist(), strict=True))
            assert found == dict(zip(after.ids[seat, :size].tolist(), after.counts[seat, :size].tolist(), strict=True))


def test_more_tokens_than_a_block_are_seen(device, rng):
    scores, size = torch.randn(1, 3000, generator=rng), 2 * shaping.BLOCK_SEEN + 3
    ids = torch.randperm(3000, generator=rng)[: size + 1].int()[None]
    seen = Seen(torch.tensor([size]).int(), ids.clone(), torch.ones_like(ids))
    ask = asked(1, repetition=1.5, frequency=0.5, seats=0)
    token, position = ids[0, -1:], torch.tensor([5])
    want = scores.clone()
    reference.penalise(want, ask, Seen(*(tensor.clone() for tensor in seen)), token, position)
    got, known = scores.to(device, copy=True), on(device, seen)
    shaping.penalise(got, on(device, ask), known, token.to(device), position.to(device))
    torch.testing.assert_close(got.cpu(), want, rtol=1e-6, atol=1e-6)
    assert (got.cpu() != scores).sum() == known.sizes[0] == size + 1


def test_biases(device, rng):
    scores = torch.randn(3, 300, generator=rng)
    values = {(0, 1): 1.5, (0, 299): -math.inf, (2, 7): -100.0}
    bits = torch.tensor(list(values.values())).view(torch.int32)
    biases = torch.cat([torch.tensor(list(values)), bits[:, None]], 1).int()
    bias = [[[token], value] for (row, token), value in values.items() if row == 0]
    want = scores.clone()
    want[:1] = SequenceBiasLogitsProcessor(bias)(torch.zeros(1, 4).long(), scores[:1])
    want[2, 7] -= 100
    for add, there in ((reference.add_biases, "cpu"), (shaping.add_biases, device)):
        got = scores.to(there, copy=True)
        add(got, biases.to(there))
        assert torch.equal(got.cpu(), want)


def test_wrong_arguments_are_named(device):
    scores, ask = torch.zeros(2, 9, device=device), on(device, asked(2))
    with pytest.raises(ValueError, match="scores must be float32, but is float16"):
        shaping.keep_likely(scores.half(), ask)
    with pytest.raises(ValueError, match=r"top_k must have shape \[2\], but has \[3\]"):
        shaping.keep_likely(scores, ask._replace(top_k=torch.zeros(3, dtype=torch.int32, device=device)))
    with pytest.raises(ValueError, match="biases must be int32, but is int64"):
        shaping.add_biases(scores, torch.zeros(1, 3, dtype=torch.int64, device=device))
