"""What requests ask of their logits before a token is drawn: biases, penalties, top-k, top-p and min-p.

All of it changes fp32 scores `[rows, vocab]` in place, in the order of Hugging Face's processors: biases, penalties,
and, of what temperature makes of them, top-k, top-p, min-p. Nothing is sorted: which tokens remain is a threshold,
found by bisection over the values themselves. `kernels.reference` has the same by sorting.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import checks
from kernels.rows import Seen, Shaping
from kernels.sizes import cdiv

BLOCK_V = 4096
BLOCK_SEEN = 1024
BLOCK_BIAS = 128


@triton.jit(do_not_specialize=["biases_ptr", "count"])
def bias_kernel(scores_ptr, biases_ptr, stride_sb, count, BLOCK: tl.constexpr):
    """Grid: pieces of the list; no element comes twice."""
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < count
    row = tl.load(biases_ptr + offs * 3, mask=mask, other=0).to(tl.int64)
    token = tl.load(biases_ptr + offs * 3 + 1, mask=mask, other=0)
    bias = tl.load(biases_ptr + offs * 3 + 2, mask=mask, other=0).to(tl.float32, bitcast=True)
    target = scores_ptr + row * stride_sb + token
    tl.store(target, tl.load(target, mask=mask) + bias, mask=mask)


def add_biases(scores: Tensor, biases: Tensor, *, check: bool = True) -> None:
    """Add to single scores.

    Args:
        scores: fp32 `[rows, vocab]`, rows contiguous.
        biases: int32 `[n, 3]`: row, token, and an fp32's bits; no element comes twice.
        check: Check the arguments first.

    Raises:
        ValueError: An argument has the wrong shape, dtype or strides.
    """
    if check:
        _check_scores(scores)
        checks.shaped("biases", biases, None, 3)
        checks.typed("biases", biases, torch.int32)
    count = len(biases)
    bias_kernel[(cdiv(count, BLOCK_BIAS),)](scores, biases, scores.stride(0), count, BLOCK=BLOCK_BIAS, num_warps=4)


@triton.jit
def _penalised(score, count, repetition, presence, frequency):
    score = tl.where(score < 0, score * repetition, score / repetition)
    return score - frequency * count.to(tl.float32) - tl.where(count > 0, presence, 0.0)


@triton.jit(
    do_not_specialize=[
        "sizes_ptr",
        "ids_ptr",
        "counts_ptr",
        "before_output_ptr",
        "repetition_ptr",
        "presence_ptr",
        "frequency_ptr",
        "seats_ptr",
        "token_ids_ptr",
        "positions_ptr",
        "width",
    ]
)
def penalise_kernel(
    scores_ptr,
    sizes_ptr,
    ids_ptr,
    counts_ptr,
    before_output_ptr,
    repetition_ptr,
    presence_ptr,
    frequency_ptr,
    seats_ptr,
    token_ids_ptr,
    positions_ptr,
    stride_sb,
    width,
    BLOCK: tl.constexpr,
):
    """One program a row: adds its last token to those seen, and lowers the scores of all of them."""
    row = tl.program_id(0).to(tl.int64)
    seat = tl.load(seats_ptr + row).to(tl.int64)
    if seat >= 0:
        token = tl.load(token_ids_ptr + row).to(tl.int32)
        in_output = (tl.load(positions_ptr + row).to(tl.int32) > tl.load(before_output_ptr + row)).to(tl.int32)
        repetition = tl.load(repetition_ptr + row)
        presence = tl.load(presence_ptr + row)
        frequency = tl.load(frequency_ptr + row)
        size = tl.load(sizes_ptr + seat)
        scores_ptr += row * stride_sb
        ids_ptr += seat * width
        counts_ptr += seat * width
        found = 0
        for start in range(0, size, BLOCK):
            offs = start + tl.arange(0, BLOCK)
            mask = offs < size
            ids = tl.load(ids_ptr + offs, mask=mask, other=-1)
            same = mask & (ids == token)
            counts = tl.load(counts_ptr + offs, mask=mask, other=0) + tl.where(same, in_output, 0)
            tl.store(counts_ptr + offs, counts, mask=same)
            found = tl.maximum(found, tl.max(same.to(tl.int32), 0))
            score = tl.load(scores_ptr + ids, mask=mask, other=0.0)
            tl.store(scores_ptr + ids, _penalised(score, counts, repetition, presence, frequency), mask=mask)
        if found == 0:
            tl.store(ids_ptr + size, token)
            tl.store(counts_ptr + size, in_output)
            tl.store(sizes_ptr + seat, size + 1)
            score = tl.load(scores_ptr + token)
            tl.store(scores_ptr + token, _penalised(score, in_output, repetition, presence, frequency))


def penalise(
    scores: Tensor, shaping: Shaping, seen: Seen, token_ids: Tensor, positions: Tensor, *, check: bool = True
) -> None:
    """Add each row's last token to those seen, then lower the scores of tokens that were seen.

    Args:
        scores: fp32 `[rows, vocab]`, rows contiguous.
        shaping: What each row asks for.
        seen: Updated in place; each seat belongs to one row at most, and has room for a token more.
        token_ids: int32 or int64 `[rows]`, each row's last token.
        positions: int32 or int64 `[rows]`, where it stands, counted from 0.
        check: Check the arguments first.

    Raises:
        ValueError: An argument has the wrong shape, dtype or strides.
    """
    rows = len(scores)
    if check:
        _check_scores(scores)
        _check_shaping(shaping, rows)
        checks.index("token_ids", token_ids, rows)
        checks.index("positions", positions, rows)
        for name, tensor in zip(Seen._fields, seen, strict=True):
            checks.typed(name, tensor, torch.int32)
            checks.require(tensor.is_contiguous(), f"{name} must be contiguous")
    penalise_kernel[(rows,)](
        scores,
        *seen,
        shaping.before_output,
        shaping.repetition,
        shaping.presence,
        shaping.frequency,
        shaping.seats,
        token_ids,
        positions,
        scores.stride(0),
        seen.ids.shape[1],
        BLOCK=BLOCK_SEEN,
    )


@triton.jit
def _ordered(score):
    """An int32 for each fp32, in the same order."""
    bits = tl.where(score == 0, 0.0, score).to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def _weights(score, best, temperature):
    """Probabilities, times a factor that is a row's own."""
    return tl.exp((score - best) / temperature)


@triton.jit(do_not_specialize=["temperatures_ptr", "top_k_ptr", "top_p_ptr", "min_p_ptr"])
def keep_likely_kernel(
    scores_ptr,
    temperatures_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    stride_sb,
    VOCAB: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program a row; a row is read from the L2 cache once a halving.

    Whether enough tokens (or enough probability) lie at or over a value is asked of the middle of what is left, and
    the answer moves an end to the nearest score there is.
    """
    row = tl.program_id(0).to(tl.int64)
    temperature = tl.load(temperatures_ptr + row)
    top_k = tl.load(top_k_ptr + row)
    top_p = tl.load(top_p_ptr + row)
    min_p = tl.load(min_p_ptr + row)
    top_k = tl.where(top_k < VOCAB, top_k, 0)
    if (temperature > 0) & ((top_k > 0) | (top_p < 1) | (min_p > 0)):
        scores_ptr += row * stride_sb
        offs = tl.arange(0, BLOCK)
        bests = tl.full([BLOCK], float("-inf"), tl.float32)
        leasts = tl.full([BLOCK], 0x7FFFFFFF, tl.int32)
        for start in range(0, VOCAB, BLOCK):
            mask = start + offs < VOCAB
            score = tl.load(scores_ptr + start + offs, mask=mask, other=float("-inf"))
            bests = tl.maximum(bests, score)
            leasts = tl.minimum(leasts, tl.where(mask, _ordered(score), 0x7FFFFFFF))
        best = tl.max(bests, 0)
        top = _ordered(best)
        # Of a row that has no token left every weight is 0.
        best = tl.where(best == float("-inf"), 0.0, best)
        low = tl.min(leasts, 0)
        if top_k > 0:
            high = top
            while low < high:
                middle = (low.to(tl.int64) + (high.to(tl.int64) - low.to(tl.int64) + 1) // 2).to(tl.int32)
                counts = tl.zeros([BLOCK], tl.int32)
                over = tl.full([BLOCK], 0x7FFFFFFF, tl.int32)
                under = tl.full([BLOCK], -0x7FFFFFFF, tl.int32)
                for start in range(0, VOCAB, BLOCK):
                    mask = start + offs < VOCAB
                    key = _ordered(tl.load(scores_ptr + start + offs, mask=mask, other=float("-inf")))
                    above = mask & (key >= middle)
                    counts += above.to(tl.int32)
                    over = tl.minimum(over, tl.where(above, key, 0x7FFFFFFF))
                    under = tl.maximum(under, tl.where(mask & (key < middle), key, -0x7FFFFFFF))
                count = tl.sum(counts, 0)
                if count >= top_k:
                    low = tl.min(over, 0)
                    # Nothing between it and the next has as many.
                    high = tl.where(count == top_k, low, high)
                else:
                    high = tl.max(under, 0)
        if top_p < 1:
            sums = tl.zeros([BLOCK], tl.float32)
            for start in range(0, VOCAB, BLOCK):
                score = tl.load(scores_ptr + start + offs, mask=start + offs < VOCAB, other=float("-inf"))
                sums += tl.where(_ordered(score) >= low, _weights(score, best, temperature), 0.0)
            wanted = top_p * tl.sum(sums, 0)
            high = top
            while low < high:
                middle = (low.to(tl.int64) + (high.to(tl.int64) - low.to(tl.int64) + 1) // 2).to(tl.int32)
                sums = tl.zeros([BLOCK], tl.float32)
                over = tl.full([BLOCK], 0x7FFFFFFF, tl.int32)
                under = tl.full([BLOCK], -0x7FFFFFFF, tl.int32)
                for start in range(0, VOCAB, BLOCK):
                    mask = start + offs < VOCAB
                    score = tl.load(scores_ptr + start + offs, mask=mask, other=float("-inf"))
                    key = _ordered(score)
                    above = mask & (key >= middle)
                    sums += tl.where(above, _weights(score, best, temperature), 0.0)
                    over = tl.minimum(over, tl.where(above, key, 0x7FFFFFFF))
                    under = tl.maximum(under, tl.where(mask & (key < middle), key, -0x7FFFFFFF))
                if tl.sum(sums, 0) >= wanted:
                    low = tl.min(over, 0)
                else:
                    high = tl.max(under, 0)
        for start in range(0, VOCAB, BLOCK):
            mask = start + offs < VOCAB
            score = tl.load(scores_ptr + start + offs, mask=mask, other=float("-inf"))
            goes = (_ordered(score) < low) | (_weights(score, best, temperature) < min_p)
            # NaN stays, so that whoever samples sees it.
            tl.store(scores_ptr + start + offs, float("-inf"), mask=mask & goes & (score == score))


def keep_likely(scores: Tensor, shaping: Shaping, *, check: bool = True) -> None:
    """Set the scores of all but the likeliest tokens to -inf: top-k, of those top-p, of those min-p.

    Scores that tie with the last to remain remain as well. Greedy rows stay as they are.

    Args:
        scores: fp32 `[rows, vocab]`, rows contiguous, not divided by temperatures.
        shaping: What each row asks for.
        check: Check the arguments first.

    Raises:
        ValueError: An argument has the wrong shape, dtype or strides.
    """
    rows, vocab = scores.shape
    if check:
        _check_scores(scores)
        _check_shaping(shaping, rows)
    keep_likely_kernel[(rows,)](
        scores,
        shaping.temperatures,
        shaping.top_k,
        shaping.top_p,
        shaping.min_p,
        scores.stride(0),
        VOCAB=vocab,
        BLOCK=BLOCK_V,
        num_warps=16,
    )


_FP32 = {"temperatures", "top_p", "min_p", "repetition", "presence", "frequency"}


def _check_scores(scores: Tensor) -> None:
    checks.typed("scores", scores, torch.float32)
    checks.shaped("scores", scores, None, None)
    checks.rows("scores", scores)


def _check_shaping(shaping: Shaping, rows: int) -> None:
    for name, tensor in zip(Shaping._fields, shaping, strict=True):
        checks.typed(name, tensor, torch.float32 if name in _FP32 else torch.int32)
        checks.shaped(name, tensor, rows)
        checks.rows(name, tensor)
