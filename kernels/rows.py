"""What a decode step on the device knows of its sequences."""

from typing import NamedTuple

from torch import Tensor


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
