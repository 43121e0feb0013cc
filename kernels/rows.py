"""What a decode step on the device knows of its sequences."""

from typing import NamedTuple

import torch
from torch import Tensor

from kernels.sizes import cdiv


class Rows(NamedTuple):
    """What a step on the device knows of each sequence, int32 `[num_seqs]` unless said, all changed in place.

    Attributes:
        token_ids: The last token; the next step's input.
        positions: Its position, counted from 0.
        seq_lens: Positions to attend to, its own included.
        finished: 0 while a sequence runs; padded rows are 1 from the start.
        max_lens: Tokens that a sequence may have in all, prompt and output.
        before_output: Tokens of the prompt, less one: a position less this is the output's.
        temperatures: fp32; 0 is greedy.
        seeds: int64.
        stop_ids: `[num_seqs, n]`; -1 fills rows up.
        block_table: `[num_seqs, width]`.
        sampled: What the last step sampled, -1 where it could not; the host's to fetch.
    """

    token_ids: Tensor
    positions: Tensor
    seq_lens: Tensor
    finished: Tensor
    max_lens: Tensor
    before_output: Tensor
    temperatures: Tensor
    seeds: Tensor
    stop_ids: Tensor
    block_table: Tensor
    sampled: Tensor


class Shaping(NamedTuple):
    """What the requests of a batch ask of their logits besides temperature, `[rows]` each, int32 unless said.

    Attributes:
        temperatures: fp32; 0 is greedy.
        before_output: Tokens of the prompt, less one.
        top_k: How many of the likeliest tokens remain, and those that tie with the last; 0 is all.
        top_p: fp32; tokens remain until their probabilities sum up to this; 1 is all.
        min_p: fp32; tokens remain that have at least this share of the likeliest one's probability; 0 is all.
        repetition: fp32; positive logits of tokens that occur are divided by it, others multiplied; 1 is off.
        presence: fp32; what is taken from the logits of tokens that occur in the output; 0 is off.
        frequency: fp32; the same, times how often they occur.
        seats: A row of `Seen`, or -1 where no penalty is asked for.
    """

    temperatures: Tensor
    before_output: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    repetition: Tensor
    presence: Tensor
    frequency: Tensor
    seats: Tensor


class Seen(NamedTuple):
    """The tokens of some sequences, each once, int32.

    Attributes:
        sizes: `[seats]`, how many there are.
        ids: `[seats, width]`, the tokens.
        counts: `[seats, width]`, how often each occurs in the output.
    """

    sizes: Tensor
    ids: Tensor
    counts: Tensor


def readable_width(vocab: int) -> int:
    """Values of a row that begins and ends where kernels read words."""
    return cdiv(vocab, 16) * 16


def score_rows(rows: int, vocab: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory for scores `[rows, vocab]`, whose rows begin at multiples of 16, so that kernels read them in words."""
    return torch.empty((rows, readable_width(vocab)), dtype=dtype, device=device)[:, :vocab]
