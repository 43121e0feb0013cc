"""Writing one new key and value per sequence into the paged cache, in each form that an engine may use.

Caches are `[num_blocks, block_size, num_kv_heads, head_dim]` with any strides but a contiguous last dim, so a
cache that is stored heads first is passed as a transposed view. `key` and `value` are `[tokens, num_kv_heads,
head_dim]`, also with any strides but the last, so slices of a fused projection need no copy. All take
`check=False` to skip the checks of their arguments once a first call has passed them.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import checks
from kernels.early import early, wait_for_inputs
from kernels.sizes import cdiv, next_power_of_2


def kv_append_torch_indexed(
    k_cache: Tensor,
    v_cache: Tensor,
    key: Tensor,
    value: Tensor,
    batch_idx: Tensor,
    block_idx: Tensor,
    pos: Tensor,
) -> None:
    """Write row `batch_idx[i]` of key and value to `cache[block_idx[i], pos[i]]` with torch's own indexing.

    Args:
        k_cache: `[num_blocks, block_size, num_kv_heads, head_dim]`, written in place; `v_cache` likewise.
        v_cache: See `k_cache`.
        key: `[tokens, num_kv_heads, head_dim]`.
        value: `[tokens, num_kv_heads, head_dim]`.
        batch_idx: int64 `[n]`, rows of key and value.
        block_idx: int64 `[n]`.
        pos: int64 `[n]`, offsets inside the block.
    """
    k_cache[block_idx, pos] = key.index_select(0, batch_idx)
    v_cache[block_idx, pos] = value.index_select(0, batch_idx)


@triton.jit
def _store_token(
    k_cache_ptr,
    v_cache_ptr,
    key_ptr,
    value_ptr,
    token,
    block,
    pos,
    stride_cb,
    stride_cp,
    stride_ch,
    stride_kt,
    stride_kh,
    stride_vt,
    stride_vh,
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    offs_h = tl.arange(0, BLOCK_H)[:, None]
    offs_d = tl.arange(0, BLOCK_D)[None, :]
    mask = (offs_h < NUM_HEADS) & (offs_d < HEAD_DIM)
    token = token.to(tl.int64)
    key = tl.load(key_ptr + token * stride_kt + offs_h * stride_kh + offs_d, mask=mask)
    value = tl.load(value_ptr + token * stride_vt + offs_h * stride_vh + offs_d, mask=mask)
    target = block.to(tl.int64) * stride_cb + pos * stride_cp + offs_h * stride_ch + offs_d
    tl.store(k_cache_ptr + target, key, mask=mask)
    tl.store(v_cache_ptr + target, value, mask=mask)


@triton.jit(do_not_specialize=["batch_idx_ptr", "block_idx_ptr", "pos_ptr"])
def kv_append_generic_kernel(
    k_cache_ptr,
    v_cache_ptr,
    key_ptr,
    value_ptr,
    batch_idx_ptr,
    block_idx_ptr,
    pos_ptr,
    stride_cb,
    stride_cp,
    stride_ch,
    stride_kt,
    stride_kh,
    stride_vt,
    stride_vh,
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program a token: row, block and offset all come from index tensors."""
    pid = tl.program_id(0)
    _store_token(
        k_cache_ptr,
        v_cache_ptr,
        key_ptr,
        value_ptr,
        tl.load(batch_idx_ptr + pid),
        tl.load(block_idx_ptr + pid),
        tl.load(pos_ptr + pid).to(tl.int64),
        stride_cb,
        stride_cp,
        stride_ch,
        stride_kt,
        stride_kh,
        stride_vt,
        stride_vh,
        NUM_HEADS,
        HEAD_DIM,
        BLOCK_H,
        BLOCK_D,
    )


@triton.jit(do_not_specialize=["block_idx_ptr", "pos_ptr"])
def kv_append_identity_pos_kernel(
    k_cache_ptr,
    v_cache_ptr,
    key_ptr,
    value_ptr,
    block_idx_ptr,
    pos_ptr,
    stride_cb,
    stride_cp,
    stride_ch,
    stride_kt,
    stride_kh,
    stride_vt,
    stride_vh,
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program a token: row i is sequence i, its block and offset come from index tensors."""
    pid = tl.program_id(0)
    _store_token(
        k_cache_ptr,
        v_cache_ptr,
        key_ptr,
        value_ptr,
        pid,
        tl.load(block_idx_ptr + pid),
        tl.load(pos_ptr + pid).to(tl.int64),
        stride_cb,
        stride_cp,
        stride_ch,
        stride_kt,
        stride_kh,
        stride_vt,
        stride_vh,
        NUM_HEADS,
        HEAD_DIM,
        BLOCK_H,
        BLOCK_D,
    )


# `pos` changes every step: specialised, it would compile anew for 1 and for multiples of 16.
@triton.jit(do_not_specialize=["block_idx_ptr", "pos"])
def kv_append_full_batch_kernel(
    k_cache_ptr,
    v_cache_ptr,
    key_ptr,
    value_ptr,
    block_idx_ptr,
    pos,
    stride_cb,
    stride_cp,
    stride_ch,
    stride_kt,
    stride_kh,
    stride_vt,
    stride_vh,
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program a token: row i is sequence i, and all sequences write the same offset of their block."""
    pid = tl.program_id(0)
    _store_token(
        k_cache_ptr,
        v_cache_ptr,
        key_ptr,
        value_ptr,
        pid,
        tl.load(block_idx_ptr + pid),
        pos.to(tl.int64),
        stride_cb,
        stride_cp,
        stride_ch,
        stride_kt,
        stride_kh,
        stride_vt,
        stride_vh,
        NUM_HEADS,
        HEAD_DIM,
        BLOCK_H,
        BLOCK_D,
    )


@triton.jit(do_not_specialize=["slot_mapping_ptr"])
def kv_append_slot_mapping_kernel(
    k_cache_ptr,
    v_cache_ptr,
    key_ptr,
    value_ptr,
    slot_mapping_ptr,
    stride_cb,
    stride_cp,
    stride_ch,
    stride_kt,
    stride_kh,
    stride_vt,
    stride_vh,
    BLOCK_SIZE: tl.constexpr,
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program a token: its slot is block * BLOCK_SIZE + offset, negative for a token to leave out."""
    pid = tl.program_id(0)
    slot = tl.load(slot_mapping_ptr + pid).to(tl.int64)
    if slot >= 0:
        _store_token(
            k_cache_ptr,
            v_cache_ptr,
            key_ptr,
            value_ptr,
            pid,
            slot // BLOCK_SIZE,
            slot % BLOCK_SIZE,
            stride_cb,
            stride_cp,
            stride_ch,
            stride_kt,
            stride_kh,
            stride_vt,
            stride_vh,
            NUM_HEADS,
            HEAD_DIM,
            BLOCK_H,
            BLOCK_D,
        )


def _sizes(k_cache: Tensor, key: Tensor, value: Tensor) -> dict[str, int]:
    """The strides and constants that every form passes to its kernel."""
    _, _, num_heads, head_dim = k_cache.shape
    stride_cb, stride_cp, stride_ch, _ = k_cache.stride()
    return {
        "stride_cb": stride_cb,
        "stride_cp": stride_cp,
        "stride_ch": stride_ch,
        "stride_kt": key.stride(0),
        "stride_kh": key.stride(1),
        "stride_vt": value.stride(0),
        "stride_vh": value.stride(1),
        "NUM_HEADS": num_heads,
        "HEAD_DIM": head_dim,
        "BLOCK_H": next_power_of_2(num_heads),
        "BLOCK_D": next_power_of_2(head_dim),
    }


def _check(k_cache: Tensor, v_cache: Tensor, key: Tensor, value: Tensor) -> None:
    checks.caches(k_cache, v_cache)
    for name, new in (("key", key), ("value", value)):
        checks.shaped(name, new, key.shape[0], *k_cache.shape[2:])
        checks.typed(name, new, k_cache.dtype)
        checks.rows(name, new)


def kv_append_triton(
    k_cache: Tensor,
    v_cache: Tensor,
    key: Tensor,
    value: Tensor,
    batch_idx: Tensor,
    block_idx: Tensor,
    pos: Tensor,
    *,
    check: bool = True,
) -> None:
    """Write row `batch_idx[i]` of key and value to `cache[block_idx[i], pos[i]]`, one launch for both.

    Args:
        k_cache: `[num_blocks, block_size, num_kv_heads, head_dim]`, written in place; `v_cache` likewise.
        v_cache: See `k_cache`.
        key: `[tokens, num_kv_heads, head_dim]`, the cache's dtype.
        value: `[tokens, num_kv_heads, head_dim]`, the cache's dtype.
        batch_idx: int32 or int64 `[n]`, rows of key and value.
        block_idx: int32 or int64 `[n]`.
        pos: int32 or int64 `[n]`, offsets inside the block.
        check: Check the arguments first.

    Raises:
        ValueError: An argument has the wrong shape, dtype or strides.
    """
    if check:
        _check(k_cache, v_cache, key, value)
        for name, tensor in (("batch_idx", batch_idx), ("block_idx", block_idx), ("pos", pos)):
            checks.index(name, tensor, batch_idx.shape[0])
    kv_append_generic_kernel[(batch_idx.shape[0],)](
        k_cache, v_cache, key, value, batch_idx, block_idx, pos, **_sizes(k_cache, key, value)
    )


def kv_append_triton_identity_pos(
    k_cache: Tensor,
    v_cache: Tensor,
    key: Tensor,
    value: Tensor,
    block_idx: Tensor,
    pos: Tensor,
    *,
    check: bool = True,
) -> None:
    """Write row `i` of key and value to `cache[block_idx[i], pos[i]]`: no batch index to build.

    Args:
        k_cache: `[num_blocks, block_size, num_kv_heads, head_dim]`, written in place; `v_cache` likewise.
        v_cache: See `k_cache`.
        key: `[tokens, num_kv_heads, head_dim]`, the cache's dtype.
        value: `[tokens, num_kv_heads, head_dim]`, the cache's dtype.
        block_idx: int32 or int64 `[tokens]`.
        pos: int32 or int64 `[tokens]`, offsets inside the block.
        check: Check the arguments first.

    Raises:
        ValueError: An argument has the wrong shape, dtype or strides.
    """
    if check:
        _check(k_cache, v_cache, key, value)
        checks.index("block_idx", block_idx, key.shape[0])
        checks.index("pos", pos, key.shape[0])
    kv_append_identity_pos_kernel[(key.shape[0],)](
        k_cache, v_cache, key, value, block_idx, pos, **_sizes(k_cache, key, value)
    )


def kv_append_triton_full_batch(
    k_cache: Tensor,
    v_cache: Tensor,
    key: Tensor,
    value: Tensor,
    block_idx: Tensor,
    pos: int,
    *,
    check: bool = True,
) -> None:
    """Write row `i` of key and value to `cache[block_idx[i], pos]`: all sequences stand at one offset.

    Args:
        k_cache: `[num_blocks, block_size, num_kv_heads, head_dim]`, written in place; `v_cache` likewise.
        v_cache: See `k_cache`.
        key: `[tokens, num_kv_heads, head_dim]`, the cache's dtype.
        value: `[tokens, num_kv_heads, head_dim]`, the cache's dtype.
        block_idx: int32 or int64 `[tokens]`.
        pos: The offset inside the block, by value.
        check: Check the arguments first.

    Raises:
        ValueError: An argument has the wrong shape, dtype or strides, or `pos` is outside the block.
    """
    if check:
        _check(k_cache, v_cache, key, value)
        checks.index("block_idx", block_idx, key.shape[0])
        block_size = k_cache.shape[1]
        checks.require(0 <= pos < block_size, f"pos must lie in the block of {block_size} positions, but is {pos}")
    kv_append_full_batch_kernel[(key.shape[0],)](
        k_cache, v_cache, key, value, block_idx, pos, **_sizes(k_cache, key, value)
    )


def kv_append_slot_mapping(
    k_cache: Tensor,
    v_cache: Tensor,
    key: Tensor,
    value: Tensor,
    slot_mapping: Tensor,
    *,
    check: bool = True,
) -> None:
    """Write row `i` of key and value to slot `slot_mapping[i]`; one mapping serves all layers of a step.

    Args:
        k_cache: `[num_blocks, block_size, num_kv_heads, head_dim]`, written in place; `v_cache` likewise.
        v_cache: See `k_cache`.
        key: `[tokens, num_kv_heads, head_dim]`, the cache's dtype.
        value: `[tokens, num_kv_heads, head_dim]`, the cache's dtype.
        slot_mapping: int32 or int64 `[tokens]`, `block * block_size + offset`; negative tokens are left out.
        check: Check the arguments first.

    Raises:
        ValueError: An argument has the wrong shape, dtype or strides.
    """
    if check:
        _check(k_cache, v_cache, key, value)
        checks.index("slot_mapping", slot_mapping, key.shape[0])
    kv_append_slot_mapping_kernel[(key.shape[0],)](
        k_cache,
        v_cache,
        key,
        value,
        slot_mapping,
        BLOCK_SIZE=k_cache.shape[1],
        **_sizes(k_cache, key, value),
    )


@triton.jit(do_not_specialize=["block_table_ptr", "positions_ptr", "num_seqs", "stride_table"])
def slot_mapping_kernel(
    slot_mapping_ptr,
    block_table_ptr,
    positions_ptr,
    num_seqs,
    stride_table,
    CACHE_BLOCK_SIZE: tl.constexpr,
    BLOCK_B: tl.constexpr,
    EARLY: tl.constexpr,
):
    """The slot of each sequence's position."""
    offs = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    mask = offs < num_seqs
    if EARLY:
        wait_for_inputs()
    position = tl.load(positions_ptr + offs, mask=mask, other=-1)
    live = mask & (position >= 0)
    column = position // CACHE_BLOCK_SIZE
    block = tl.load(block_table_ptr + offs.to(tl.int64) * stride_table + column, mask=live, other=0)
    slot = block.to(tl.int64) * CACHE_BLOCK_SIZE + position % CACHE_BLOCK_SIZE
    tl.store(slot_mapping_ptr + offs, tl.where(live, slot, -1), mask=mask)


def compute_slot_mapping(
    block_table: Tensor, positions: Tensor, block_size: int, *, out: Tensor | None = None, check: bool = True
) -> Tensor:
    """The slot that each sequence writes at its position, once a step for all layers.

    Args:
        block_table: int32 `[num_seqs, table_width]`, rows contiguous.
        positions: int32 or int64 `[num_seqs]`, counted in tokens from 0; a negative one gives slot -1.
        block_size: Positions in a block, a power of two.
        out: int64 `[num_seqs]` to write to; allocated when not given.
        check: Check the arguments first.

    Returns:
        int64 `[num_seqs]`, `block * block_size + offset`.

    Raises:
        ValueError: An argument has the wrong shape or dtype, or `block_size` is not a power of two.
    """
    num_seqs = positions.shape[0]
    if out is None:
        out = torch.empty(num_seqs, dtype=torch.int64, device=positions.device)
    if check:
        checks.index("block_table", block_table, num_seqs, None)
        checks.index("positions", positions, num_seqs)
        checks.shaped("out", out, num_seqs)
        checks.typed("out", out, torch.int64)
        power = block_size > 0 and block_size & (block_size - 1) == 0
        checks.require(power, f"block_size must be a power of two, but is {block_size}")
    block_b = 256
    slot_mapping_kernel[(cdiv(num_seqs, block_b),)](
        out,
        block_table,
        positions,
        num_seqs,
        block_table.stride(0),
        CACHE_BLOCK_SIZE=block_size,
        BLOCK_B=block_b,
        **early(positions.device),
    )
    return out
