"""Sampling on the device: greedy, or by temperature through the Gumbel-max trick.

The largest of `logit / temperature + Gumbel noise` is a sample of the softmax. The noise of a token depends
on the sequence's seed, the position and the token alone, so a sample does not depend on the batch or on the
order of execution; `kernels.reference.gumbel_noise` gives the same numbers.

A row of which a logit is NaN, or every one -inf, has no token: -1 stands for it.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import checks
from kernels.early import early, wait_for_inputs
from kernels.rows import Rows, readable_width
from kernels.sizes import cdiv, next_power_of_2

BLOCK_V = 4096


class SamplingWorkspace(NamedTuple):
    """Each piece's best token and its score."""

    scores: Tensor
    tokens: Tensor


@triton.jit
def gumbel_noise(seed, position, token):
    """Noise of a token of the vocabulary, by Philox."""
    zero = tl.zeros_like(token)
    bits, _, _, _ = tl.philox(seed, token, zero + position, zero, zero)
    # 23 bits and a half are exact in fp32, and so never 0 and never 1, of which the noise would be infinite.
    uniform = ((bits >> 9).to(tl.int32).to(tl.float32) + 0.5) * (1.0 / 8388608.0)
    return -tl.log(-tl.log(uniform))


@triton.jit(do_not_specialize=["temperatures_ptr", "seeds_ptr", "positions_ptr", "before_output_ptr"])
def sample_pieces_kernel(
    scores_ptr,
    tokens_ptr,
    logits_ptr,
    temperatures_ptr,
    seeds_ptr,
    positions_ptr,
    before_output_ptr,
    stride_lb,
    VOCAB: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_V: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Grid: (sequences, pieces of the vocabulary)."""
    row = tl.program_id(0).to(tl.int64)
    piece = tl.program_id(1)
    token = piece * BLOCK_V + tl.arange(0, BLOCK_V)
    if EARLY:
        wait_for_inputs()
    scores = tl.load(logits_ptr + row * stride_lb + token, mask=token < WIDTH, other=float("-inf")).to(tl.float32)
    scores = tl.where(token < VOCAB, scores, float("-inf"))
    temperature = tl.load(temperatures_ptr + row)
    if temperature > 0:
        seed = tl.load(seeds_ptr + row).to(tl.int64)
        position = tl.load(positions_ptr + row).to(tl.int32)
        if before_output_ptr is not None:
            position -= tl.load(before_output_ptr + row)
        scores = scores / temperature + gumbel_noise(seed, position, token)
    best, where = tl.max(scores, 0, return_indices=True)
    nan = tl.max((scores != scores).to(tl.int32), 0)
    tl.store(scores_ptr + row * tl.num_programs(1) + piece, best)
    tl.store(tokens_ptr + row * tl.num_programs(1) + piece, tl.where(nan > 0, -1, piece * BLOCK_V + where))


@triton.jit
def best_token(scores_ptr, tokens_ptr, row, NUM_PIECES: tl.constexpr, BLOCK_P: tl.constexpr):
    """The best of a row's pieces' best, or -1."""
    offs = tl.arange(0, BLOCK_P)
    scores = tl.load(scores_ptr + row * NUM_PIECES + offs, mask=offs < NUM_PIECES, other=float("-inf"))
    tokens = tl.load(tokens_ptr + row * NUM_PIECES + offs, mask=offs < NUM_PIECES, other=0)
    best, where = tl.max(scores, 0, return_indices=True)
    token = tl.sum(tl.where(offs == where, tokens, 0), 0)
    return tl.where((tl.min(tokens, 0) < 0) | (best == float("-inf")), -1, token)


@triton.jit
def sample_best_kernel(
    out_ptr, scores_ptr, tokens_ptr, NUM_PIECES: tl.constexpr, BLOCK_P: tl.constexpr, EARLY: tl.constexpr
):
    """One program a sequence: the best of the pieces' best."""
    row = tl.program_id(0).to(tl.int64)
    if EARLY:
        wait_for_inputs()
    token = best_token(scores_ptr, tokens_ptr, row, NUM_PIECES, BLOCK_P)
    tl.store(out_ptr + row, token.to(out_ptr.dtype.element_ty))


def sampling_workspace(batch: int, vocab: int, device: torch.device | str) -> SamplingWorkspace:
    """Buffers for batches of up to `batch` sequences."""
    pieces = cdiv(vocab, BLOCK_V)
    return SamplingWorkspace(
        torch.empty(batch * pieces, dtype=torch.float32, device=device),
        torch.empty(batch * pieces, dtype=torch.int32, device=device),
    )


def _read_width(logits: Tensor) -> int:
    """How much of a row is read: more than its logits where its memory goes on so far, since then it is read in words.

    A mask that may end anywhere makes each logit a load of its own.
    """
    vocab = logits.shape[1]
    width = readable_width(vocab)
    return width if logits.stride(0) >= width else vocab


def sample(
    logits: Tensor,
    temperatures: Tensor,
    seeds: Tensor,
    positions: Tensor,
    *,
    out: Tensor | None = None,
    workspace: SamplingWorkspace | None = None,
    check: bool = True,
) -> Tensor:
    """One token a sequence, without a word to the host.

    Args:
        logits: `[batch, vocab]` in fp32, fp16 or bf16, rows contiguous.
        temperatures: fp32 `[batch]`; 0 is greedy: the largest logit, the first of equals.
        seeds: int64 `[batch]`.
        positions: int32 or int64 `[batch]`, the output's position, which makes its noise its own.
        out: int32 or int64 `[batch]`; int64 is allocated when not given.
        workspace: From `sampling_workspace`, made when not given.
        check: Check the arguments first.

    Returns:
        `out`.

    Raises:
        ValueError: An argument has the wrong shape, dtype or strides.
    """
    batch, vocab = logits.shape
    if out is None:
        out = torch.empty(batch, dtype=torch.int64, device=logits.device)
    if workspace is None:
        workspace = sampling_workspace(batch, vocab, logits.device)
    pieces = cdiv(vocab, BLOCK_V)
    if check:
        checks.typed("logits", logits, *checks.FLOATS)
        checks.rows("logits", logits)
        checks.shaped("temperatures", temperatures, batch)
        checks.typed("temperatures", temperatures, torch.float32)
        checks.shaped("seeds", seeds, batch)
        checks.typed("seeds", seeds, torch.int64)
        checks.index("positions", positions, batch)
        checks.index("out", out, batch)
        enough = workspace.scores.numel() >= batch * pieces and workspace.tokens.numel() >= batch * pieces
        checks.require(enough, f"the workspace is too small for {batch} sequences and {vocab} tokens")
    sample_pieces_kernel[(batch, pieces)](
        *workspace,
        logits,
        temperatures,
        seeds,
        positions,
        None,
        logits.stride(0),
        VOCAB=vocab,
        WIDTH=_read_width(logits),
        BLOCK_V=BLOCK_V,
        **early(logits.device),
    )
    block_p = next_power_of_2(pieces)
    sample_best_kernel[(batch,)](
        out, *workspace, NUM_PIECES=pieces, BLOCK_P=block_p, num_warps=1, **early(logits.device)
    )
    return out


@triton.jit(
    do_not_specialize=[
        "token_ids_ptr",
        "positions_ptr",
        "seq_lens_ptr",
        "finished_ptr",
        "max_lens_ptr",
        "stop_ids_ptr",
        "block_table_ptr",
        "sampled_ptr",
        "stride_stops",
        "stride_table",
        "dummy_block",
    ]
)
def sample_advance_kernel(
    token_ids_ptr,
    positions_ptr,
    seq_lens_ptr,
    finished_ptr,
    max_lens_ptr,
    stop_ids_ptr,
    block_table_ptr,
    sampled_ptr,
    scores_ptr,
    tokens_ptr,
    stride_stops,
    stride_table,
    dummy_block,
    NUM_STOPS: tl.constexpr,
    NUM_PIECES: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_P: tl.constexpr,
    EARLY: tl.constexpr,
):
    """One program a sequence: the best of the pieces' best, and where that leaves the sequence."""
    row = tl.program_id(0).to(tl.int64)
    if EARLY:
        wait_for_inputs()
    token = best_token(scores_ptr, tokens_ptr, row, NUM_PIECES, BLOCK_P)
    offs_s = tl.arange(0, BLOCK_S)
    stop_ids = tl.load(stop_ids_ptr + row * stride_stops + offs_s, mask=offs_s < NUM_STOPS, other=-1)
    length = tl.load(seq_lens_ptr + row) + 1
    position = tl.load(positions_ptr + row) + 1
    # A row without a token ends; -1 fills stop ids up, too.
    stops = (length >= tl.load(max_lens_ptr + row)) | (tl.max((stop_ids == token).to(tl.int32), 0) > 0) | (token < 0)
    if tl.load(finished_ptr + row) == 0:
        tl.store(token_ids_ptr + row, tl.maximum(token, 0))
        tl.store(sampled_ptr + row, token)
        if stops:
            # From here on it reads and writes one position of a block that is nobody's.
            tl.store(finished_ptr + row, 1)
            tl.store(positions_ptr + row, 0)
            tl.store(seq_lens_ptr + row, 1)
            tl.store(block_table_ptr + row * stride_table, dummy_block)
        else:
            tl.store(positions_ptr + row, position)
            tl.store(seq_lens_ptr + row, length)


def sample_and_advance(
    logits: Tensor, rows: Rows, dummy_block: int, *, workspace: SamplingWorkspace, check: bool = True
) -> None:
    """Sample a token for every running sequence and move it on by that token; two launches, nothing from the host.

    A sequence finishes when the token is one of its stop ids, or makes it as long as it may be, or when there is none.
    From then on its token stays, and it stands at position 0 of `dummy_block`, where writing does no harm.

    Args:
        logits: `[num_seqs, vocab]` in fp32, fp16 or bf16, rows contiguous.
        rows: Updated in place.
        dummy_block: A block of the cache that belongs to no sequence.
        workspace: From `sampling_workspace`.
        check: Check the arguments first.

    Raises:
        ValueError: An argument has the wrong shape, dtype or strides.
    """
    num_seqs, vocab = logits.shape
    pieces = cdiv(vocab, BLOCK_V)
    if check:
        checks.typed("logits", logits, *checks.FLOATS)
        checks.rows("logits", logits)
        for name, tensor in zip(Rows._fields, rows, strict=True):
            dtype = {"temperatures": torch.float32, "seeds": torch.int64}.get(name, torch.int32)
            checks.typed(name, tensor, dtype)
            checks.shaped(name, tensor, num_seqs, *([None] if name in {"stop_ids", "block_table"} else []))
            checks.rows(name, tensor)
        enough = workspace.scores.numel() >= num_seqs * pieces and workspace.tokens.numel() >= num_seqs * pieces
        checks.require(enough, f"the workspace is too small for {num_seqs} sequences and {vocab} tokens")
    sample_pieces_kernel[(num_seqs, pieces)](
        *workspace,
        logits,
        rows.temperatures,
        rows.seeds,
        rows.positions,
        rows.before_output,
        logits.stride(0),
        VOCAB=vocab,
        WIDTH=_read_width(logits),
        BLOCK_V=BLOCK_V,
        **early(logits.device),
    )
    num_stops = rows.stop_ids.shape[1]
    sample_advance_kernel[(num_seqs,)](
        rows.token_ids,
        rows.positions,
        rows.seq_lens,
        rows.finished,
        rows.max_lens,
        rows.stop_ids,
        rows.block_table,
        rows.sampled,
        *workspace,
        rows.stop_ids.stride(0),
        rows.block_table.stride(0),
        dummy_block,
        NUM_STOPS=num_stops,
        NUM_PIECES=pieces,
        BLOCK_S=next_power_of_2(num_stops),
        BLOCK_P=next_power_of_2(pieces),
        num_warps=1,
        **early(logits.device),
    )
