"""Sampling on the device: greedy, or by temperature through the Gumbel-max trick.

The largest of `logit / temperature + Gumbel noise` is a sample of the softmax. The noise of a token depends
on the sequence's seed, the position and the token alone, so a sample does not depend on the batch or on the
order of execution; `kernels.reference.gumbel_noise` gives the same numbers.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import checks
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
    # 24 bits and a half: never 0, never 1, and exact in fp32.
    uniform = ((bits >> 8).to(tl.int32).to(tl.float32) + 0.5) * (1.0 / 16777216.0)
    return -tl.log(-tl.log(uniform))


@triton.jit(do_not_specialize=["seeds_ptr", "positions_ptr"])
def sample_pieces_kernel(
    scores_ptr,
    tokens_ptr,
    logits_ptr,
    temperatures_ptr,
    seeds_ptr,
    positions_ptr,
    stride_lb,
    VOCAB: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """Grid: (sequences, pieces of the vocabulary)."""
    row = tl.program_id(0).to(tl.int64)
    piece = tl.program_id(1)
    token = piece * BLOCK_V + tl.arange(0, BLOCK_V)
    mask = token < VOCAB
    scores = tl.load(logits_ptr + row * stride_lb + token, mask=mask, other=float("-inf")).to(tl.float32)
    temperature = tl.load(temperatures_ptr + row)
    if temperature > 0:
        seed = tl.load(seeds_ptr + row).to(tl.int64)
        position = tl.load(positions_ptr + row).to(tl.int32)
        scores = scores / temperature + gumbel_noise(seed, position, token)
    best, where = tl.max(scores, 0, return_indices=True)
    tl.store(scores_ptr + row * tl.num_programs(1) + piece, best)
    tl.store(tokens_ptr + row * tl.num_programs(1) + piece, piece * BLOCK_V + where)


@triton.jit
def sample_best_kernel(out_ptr, scores_ptr, tokens_ptr, NUM_PIECES: tl.constexpr, BLOCK_P: tl.constexpr):
    """One program a sequence: the best of the pieces' best."""
    row = tl.program_id(0).to(tl.int64)
    offs = tl.arange(0, BLOCK_P)
    scores = tl.load(scores_ptr + row * NUM_PIECES + offs, mask=offs < NUM_PIECES, other=float("-inf"))
    _, where = tl.max(scores, 0, return_indices=True)
    tl.store(out_ptr + row, tl.load(tokens_ptr + row * NUM_PIECES + where).to(out_ptr.dtype.element_ty))


def sampling_workspace(batch: int, vocab: int, device: torch.device | str) -> SamplingWorkspace:
    """Buffers for batches of up to `batch` sequences."""
    pieces = cdiv(vocab, BLOCK_V)
    return SamplingWorkspace(
        torch.empty(batch * pieces, dtype=torch.float32, device=device),
        torch.empty(batch * pieces, dtype=torch.int32, device=device),
    )


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
        *workspace, logits, temperatures, seeds, positions, logits.stride(0), VOCAB=vocab, BLOCK_V=BLOCK_V
    )
    block_p = next_power_of_2(pieces)
    sample_best_kernel[(batch,)](out, *workspace, NUM_PIECES=pieces, BLOCK_P=block_p, num_warps=1)
    return out
