"""Attention over the paged cache: the axes `attention_backend` and `attention_launch`."""

import itertools
from typing import Protocol

import torch
import torch.nn.functional as F  # noqa: N812 - the name that every torch program uses
from torch import Tensor

from engine.variants.registry import Registry


class AttentionBackend(Protocol):
    """Caches are `[num_blocks, block_size, num_kv_heads, head_dim]`, tables int32 `[batch, width]`.

    Windows count the positions that a query sees, its own included; 0 is all. Both results have the shape and dtype of
    the query. Neither method waits for the device.
    """

    def trust_arguments(self) -> None:
        """Check no arguments from here on: a warm-up has passed."""
        ...

    def decode(
        self,
        query: Tensor,
        caches: tuple[Tensor, Tensor],
        block_table: Tensor,
        seq_lens: Tensor,
        max_seq_len: int,
        *,
        scale: float,
        window: int,
        new: tuple[Tensor, Tensor] | None,
        append: bool,
    ) -> Tensor:
        """One query a sequence, `[batch, num_heads, head_dim]`, over `seq_lens` positions, its own the last.

        Args:
            query: The queries.
            caches: Keys and values.
            block_table: Blocks of each sequence.
            seq_lens: int32 or int64 `[batch]`.
            max_seq_len: The longest of them, known to the host.
            scale: What scores are multiplied by.
            window: See above.
            new: The last position's keys and values, `[batch, num_kv_heads, head_dim]`, which the cache does not hold;
                None where it does.
            append: Whether `new` is also written to the cache.
        """
        ...

    def prefill(
        self,
        query: Tensor,
        caches: tuple[Tensor, Tensor],
        block_table: Tensor,
        bounds: tuple[Tensor, list[int]],
        seq_lens: tuple[Tensor, list[int]],
        *,
        scale: float,
        window: int,
    ) -> Tensor:
        """The last tokens of each sequence over all of it; the cache holds them already.

        Args:
            query: `[tokens, num_heads, head_dim]`, sequence after sequence.
            caches: Keys and values.
            block_table: Blocks of each sequence.
            bounds: `[batch + 1]` where each sequence's queries begin, and their number; on the device and as a list.
            seq_lens: `[batch]`, on the device and as a list.
            scale: What scores are multiplied by.
            window: See above.
        """
        ...


ATTENTION: Registry[AttentionBackend] = Registry("attention_backend", "how attention reads the paged cache")
LAUNCHES = {
    "fixed": "tile sizes and warps from a table",
    "autotune": "triton.autotune picks them on the first call, and pays for its wrapper on each",
}


@ATTENTION.register("reference")
class ReferenceAttention:
    """Gathers each sequence's blocks into a dense tensor and calls torch's attention."""

    def trust_arguments(self) -> None:
        pass

    def decode(
        self,
        query: Tensor,
        caches: tuple[Tensor, Tensor],
        block_table: Tensor,
        seq_lens: Tensor,
        max_seq_len: int,
        *,
        scale: float,
        window: int,
        new: tuple[Tensor, Tensor] | None,
        append: bool,
    ) -> Tensor:
        rows = torch.arange(len(query), device=query.device)
        last = seq_lens.long() - 1
        if new is not None and append:
            block_size = caches[0].shape[1]
            blocks = block_table[rows, last // block_size].long()
            for cache, fresh in zip(caches, new, strict=True):
                cache[blocks, last % block_size] = fresh
        key, value = (_gather(cache, block_table, max_seq_len) for cache in caches)
        if new is not None and not append:
            key[rows, last], value[rows, last] = new
        position = torch.arange(max_seq_len, device=query.device)[None, :]
        visible = position <= last[:, None]
        if window:
            visible &= position > last[:, None] - window
        # What no sequence owns may be NaN, which a weight of 0 does not hide.
        value = value.masked_fill(~visible[:, :, None, None], 0.0)
        key = key.masked_fill(~visible[:, :, None, None], 0.0)
        return _attend(query[:, None], key, value, visible[:, None], scale)[:, 0]

    def prefill(
        self,
        query: Tensor,
        caches: tuple[Tensor, Tensor],
        block_table: Tensor,
        bounds: tuple[Tensor, list[int]],
        seq_lens: tuple[Tensor, list[int]],
        *,
        scale: float,
        window: int,
    ) -> Tensor:
        out = torch.empty_like(query, memory_format=torch.contiguous_format)
        for row, (start, end) in enumerate(itertools.pairwise(bounds[1])):
            length = seq_lens[1][row]
            key, value = (_gather(cache, block_table[row : row + 1], length) for cache in caches)
            position = torch.arange(length, device=query.device)
            own = position[length - (end - start) :, None]
            visible = position <= own
            if window:
                visible &= position > own - window
            out[start:end] = _attend(query[None, start:end], key, value, visible[None], scale)[0]
        return out


def _gather(cache: Tensor, block_table: Tensor, length: int) -> Tensor:
    """The first positions of every sequence, `[batch, length, num_kv_heads, head_dim]`."""
    width = -(-length // cache.shape[1])
    return cache[block_table[:, :width].long()].flatten(1, 2)[:, :length]


def _attend(query: Tensor, key: Tensor, value: Tensor, visible: Tensor, scale: float) -> Tensor:
    """`[batch, tokens, heads, head_dim]` all; `visible` is `[batch, queries, keys]`."""
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    out = F.scaled_dot_product_attention(
        query, key, value, attn_mask=visible[:, None], scale=scale, enable_gqa=query.shape[1] != key.shape[1]
    )
    return out.transpose(1, 2)


@ATTENTION.register("hf")
class HFAttention(ReferenceAttention):
    """The model is transformers' own code, any whose attention can be replaced; ours reads the cache for it."""


@ATTENTION.register("triton")
class TritonAttention:
    """The kernels of `kernels.paged_attention` and `kernels.prefill_attention`, which read the blocks in place.

    Args:
        batch: Sequences that decode in a step, at most.
        num_heads: Query heads; `num_kv_heads` and `head_dim` likewise.
        num_kv_heads: See `num_heads`.
        head_dim: See `num_heads`.
        max_tokens: Positions that a block table has room for.
        launch: A key of `LAUNCHES`.
        device: Where it runs.
    """

    def __init__(
        self,
        batch: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        max_tokens: int,
        launch: str,
        device: torch.device,
    ) -> None:
        from kernels.paged_attention import decode_workspace, paged_attention_decode  # noqa: PLC0415 - needs triton
        from kernels.prefill_attention import paged_attention_prefill  # noqa: PLC0415 - needs triton

        self._check = True
        self._launch = launch
        self._workspace = decode_workspace(batch, num_heads, num_kv_heads, head_dim, max_tokens, device)
        self._decode = paged_attention_decode
        self._prefill = paged_attention_prefill

    def trust_arguments(self) -> None:
        self._check = False

    def decode(
        self,
        query: Tensor,
        caches: tuple[Tensor, Tensor],
        block_table: Tensor,
        seq_lens: Tensor,
        max_seq_len: int,
        *,
        scale: float,
        window: int,
        new: tuple[Tensor, Tensor] | None,
        append: bool,
    ) -> Tensor:
        key, value = new or (None, None)
        return self._decode(
            query,
            *caches,
            block_table,
            seq_lens,
            scale=scale,
            window=window,
            key=key,
            value=value,
            append=append,
            workspace=self._workspace,
            launch=self._launch,
            check=self._check,
        )

    def prefill(
        self,
        query: Tensor,
        caches: tuple[Tensor, Tensor],
        block_table: Tensor,
        bounds: tuple[Tensor, list[int]],
        seq_lens: tuple[Tensor, list[int]],
        *,
        scale: float,
        window: int,
    ) -> Tensor:
        longest = max(end - start for start, end in itertools.pairwise(bounds[1]))
        return self._prefill(
            query,
            *caches,
            block_table,
            bounds[0],
            seq_lens[0],
            longest,
            scale=scale,
            window=window,
            check=self._check,
        )
