"""What the engine asks of an implementation of its small operations."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from kernels.rows import Rows, Seen, Shaping


@dataclass(frozen=True)
class Norm:
    """`[hidden]` each; RMSNorms have no bias."""

    weight: Tensor
    bias: Tensor | None = None


@dataclass(frozen=True)
class Linear:
    """`weight` is `[out, in]`."""

    weight: Tensor
    bias: Tensor | None = None


class Rotary(NamedTuple):
    """What a layer rotates with.

    Attributes:
        cos_sin: fp32 `[max_positions, rotary_dim]`: cosines, then sines, of half as many angles.
        q_weight: `[head_dim]` of the RMSNorm before the rotation, where the model has one; likewise `k_weight`.
        eps: The norm's epsilon.
    """

    cos_sin: Tensor
    q_weight: Tensor | None
    k_weight: Tensor | None
    eps: float


class Ops(Protocol):
    """Index tensors are int32 or int64 everywhere; `tokens` counts the tokens of a forward pass."""

    def trust_arguments(self) -> None:
        """Check no arguments from here on: a warm-up has passed."""
        ...

    def embed(self, token_ids: Tensor, weight: Tensor, positions: Tensor, position_weight: Tensor | None) -> Tensor:
        """`weight[token_ids]`, plus `position_weight[positions]` where there is one: `[tokens, hidden]`."""
        ...

    def add_norm(self, x: Tensor, residual: Tensor | None, norm: Norm, eps: float, kind: str) -> Tensor:
        """Add `x` to the residual in place, where there is one, and return the norm of the sum (or of `x`).

        Args:
            x: `[tokens, hidden]`, not changed.
            residual: `[tokens, hidden]`, or None.
            norm: Weights.
            eps: Epsilon.
            kind: `layer` or `rms`.
        """
        ...

    def linear(self, x: Tensor, linear: Linear) -> Tensor:
        """`x @ weight.T + bias`: `[tokens, out]`."""
        ...

    def linear_gelu(self, x: Tensor, linear: Linear, kind: str) -> Tensor:
        """The GELU, of the kind that a config names, of `linear`."""
        ...

    def linear_silu_and_mul(self, x: Tensor, linear: Linear) -> Tensor:
        """`silu(first half) * second half` of each row of `linear`."""
        ...

    def linear_add_norm(self, x: Tensor, linear: Linear, residual: Tensor, norm: Norm, eps: float, kind: str) -> Tensor:
        """`linear`, then `add_norm`."""
        ...

    def rotate(self, query: Tensor, key: Tensor, positions: Tensor, rotary: Rotary) -> None:
        """Norm and rotate `[tokens, heads, head_dim]` queries and keys in place."""
        ...

    def rotate_and_append(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        positions: Tensor,
        rotary: Rotary,
        caches: tuple[Tensor, Tensor],
        slots: Tensor,
    ) -> None:
        """`rotate`, then `append`, in one launch. Keys themselves need not be left rotated."""
        ...

    def append(self, caches: tuple[Tensor, Tensor], key: Tensor, value: Tensor, slots: Tensor) -> None:
        """Write `key[i]` and `value[i]` to position `slots[i] % block_size` of block `slots[i] // block_size`."""
        ...

    def slots(self, block_table: Tensor, positions: Tensor, block_size: int) -> Tensor:
        """The slot of each sequence's position: int64 `[batch]`, for `block_table` `[batch, width]`."""
        ...

    def copy_blocks(self, k_cache: Tensor, v_cache: Tensor, pairs: Tensor) -> None:
        """Copy blocks in all layers of `[layers, num_blocks, ...]` caches; pairs `[n, 2]` are source, target."""
        ...

    def patch_block_table(self, block_table: Tensor, patches: Tensor) -> None:
        """Write entries of a table; patches `[n, 3]` are row, column, block, and no entry comes twice."""
        ...

    def sample(self, logits: Tensor, temperatures: Tensor, seeds: Tensor, positions: Tensor) -> Tensor:
        """A token for each row: `[batch]`, integers; -1 where a logit is NaN or all are -inf.

        Args:
            logits: `[batch, vocab]`, compared in fp32 at least.
            temperatures: fp32 `[batch]`; 0 is greedy.
            seeds: int64 `[batch]`.
            positions: `[batch]`, of the token in its output, which with the seed makes its random numbers.
        """
        ...

    def reserve_sampling(self, batch: int, vocab: int, device: torch.device) -> None:
        """Make room for `sample_and_advance` with so many rows; what it uses then stays where it is."""
        ...

    def sample_and_advance(self, logits: Tensor, rows: Rows, dummy_block: int) -> None:
        """Sample a token for every running row, and move the row on by it.

        A row finishes when the token is one of its stop ids or makes it as long as it may be; then it keeps that token,
        and stands at position 0 of the dummy block.
        """
        ...

    def add_biases(self, scores: Tensor, biases: Tensor) -> None:
        """Add to single scores, in place; biases `[n, 3]` are row, token and an fp32's bits, no element twice."""
        ...

    def penalise(self, scores: Tensor, shaping: Shaping, seen: Seen, token_ids: Tensor, positions: Tensor) -> None:
        """Add each row's last token to those seen, and lower the scores of all of them, in place.

        Args:
            scores: `[rows, vocab]`, fp32 at least.
            shaping: What each row asks for.
            seen: Updated; a seat belongs to one row at most.
            token_ids: `[rows]`, the last tokens.
            positions: `[rows]`, where they stand.
        """
        ...

    def keep_likely(self, scores: Tensor, shaping: Shaping) -> None:
        """Set all but the likeliest scores to -inf, in place: top-k, of those top-p, of those min-p; ties remain."""
        ...

    def patch_state(self, state: Tensor, patches: Tensor) -> None:
        """Write elements of an int32 state; patches `[n, 3]` are element, element to copy or -1, value."""
        ...
