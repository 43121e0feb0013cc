"""What keeps a decode step on the device: block copies, table patches, and moving on by a token."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import checks
from kernels.sizes import cdiv, next_power_of_2


@triton.jit(do_not_specialize=["pairs_ptr"])
def copy_blocks_kernel(
    k_cache_ptr, v_cache_ptr, pairs_ptr, stride_layer, BLOCK_NUMEL: tl.constexpr, BLOCK: tl.constexpr
):
    """Grid: (pairs, layers, pieces of a block)."""
    pid = tl.program_id(0)
    source = tl.load(pairs_ptr + 2 * pid).to(tl.int64)
    target = tl.load(pairs_ptr + 2 * pid + 1).to(tl.int64)
    offs = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < BLOCK_NUMEL
    layer = tl.program_id(1).to(tl.int64) * stride_layer
    key = tl.load(k_cache_ptr + layer + source * BLOCK_NUMEL + offs, mask=mask)
    value = tl.load(v_cache_ptr + layer + source * BLOCK_NUMEL + offs, mask=mask)
    tl.store(k_cache_ptr + layer + target * BLOCK_NUMEL + offs, key, mask=mask)
    tl.store(v_cache_ptr + layer + target * BLOCK_NUMEL + offs, value, mask=mask)


def copy_blocks(k_cache: Tensor, v_cache: Tensor, pairs: Tensor, *, check: bool = True) -> None:
    """Copy whole blocks of keys and values, in all layers at once (copy on write of a shared block).

    Args:
        k_cache: `[layers, num_blocks, block_size, num_kv_heads, head_dim]`, or without layers; a block must
            lie in one piece, in any order of its dims.
        v_cache: Like `k_cache`, same strides.
        pairs: int32 or int64 `[n, 2]`, contiguous: from which block to which. No block may be the target of
            two pairs, nor the target of one and the source of another.
        check: Check the arguments first.

    Raises:
        ValueError: An argument has the wrong shape, dtype or strides.
    """
    if k_cache.ndim == 4:
        k_cache, v_cache = k_cache[None], v_cache[None]
    num_layers, _, *sizes = k_cache.shape
    numel = sizes[0] * sizes[1] * sizes[2]
    if check:
        checks.caches(k_cache[0], v_cache[0])
        checks.require(k_cache.stride() == v_cache.stride(), "k_cache and v_cache must have the same strides")
        checks.require(k_cache.stride(1) == numel, f"blocks of {numel} values must follow each other without a gap")
        checks.index("pairs", pairs, None, 2)
        checks.require(pairs.is_contiguous(), "pairs must be contiguous")
    block = min(2048, next_power_of_2(numel))
    copy_blocks_kernel[(pairs.shape[0], num_layers, cdiv(numel, block))](
        k_cache, v_cache, pairs, k_cache.stride(0), BLOCK_NUMEL=numel, BLOCK=block
    )


@triton.jit(do_not_specialize=["patches_ptr", "num_patches", "stride_table"])
def patch_block_table_kernel(block_table_ptr, patches_ptr, num_patches, stride_table, BLOCK: tl.constexpr):
    """BLOCK patches a program."""
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < num_patches
    row = tl.load(patches_ptr + 3 * offs, mask=mask, other=-1).to(tl.int64)
    column = tl.load(patches_ptr + 3 * offs + 1, mask=mask, other=0)
    block = tl.load(patches_ptr + 3 * offs + 2, mask=mask, other=0)
    target_ptrs = block_table_ptr + row * stride_table + column
    tl.store(target_ptrs, block.to(block_table_ptr.dtype.element_ty), mask=row >= 0)


def patch_block_table(block_table: Tensor, patches: Tensor, *, check: bool = True) -> None:
    """Write single entries of a block table that lives on the device, whatever their number in one launch.

    Args:
        block_table: int32 or int64 `[num_seqs, table_width]`, rows contiguous; changed in place.
        patches: int32 or int64 `[n, 3]`, contiguous: row, column, block. Patches of a negative row are left
            out, so that a buffer can keep its size. No entry may be patched twice.
        check: Check the arguments first.

    Raises:
        ValueError: An argument has the wrong shape, dtype or strides.
    """
    if check:
        checks.index("block_table", block_table, None, None)
        checks.index("patches", patches, None, 3)
        checks.require(patches.is_contiguous(), "patches must be contiguous")
    num_patches, block = patches.shape[0], 128
    patch_block_table_kernel[(cdiv(num_patches, block),)](
        block_table, patches, num_patches, block_table.stride(0), BLOCK=block
    )


@triton.jit(do_not_specialize=["patches_ptr", "num_patches"])
def patch_state_kernel(state_ptr, patches_ptr, num_patches, BLOCK: tl.constexpr):
    """BLOCK patches a program."""
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < num_patches
    target = tl.load(patches_ptr + 3 * offs, mask=mask, other=0)
    source = tl.load(patches_ptr + 3 * offs + 1, mask=mask, other=-1)
    value = tl.load(patches_ptr + 3 * offs + 2, mask=mask, other=0)
    moved = mask & (source >= 0)
    value = tl.where(moved, tl.load(state_ptr + source, mask=moved, other=0), value)
    tl.store(state_ptr + target, value, mask=mask)


def patch_state(state: Tensor, patches: Tensor, *, check: bool = True) -> None:
    """Write single elements of a state that lives on the device, whatever their number in one launch.

    Args:
        state: int32, contiguous, fewer than 2**31 elements; changed in place.
        patches: int32 `[n, 3]`, contiguous: the element, the element that it becomes a copy of or -1, and its value
            where that is -1. No element may be written twice, nor written and copied from.
        check: Check the arguments first.

    Raises:
        ValueError: An argument has the wrong shape, dtype or strides.
    """
    if check:
        for name, tensor in (("state", state), ("patches", patches)):
            checks.typed(name, tensor, torch.int32)
            checks.require(tensor.is_contiguous(), f"{name} must be contiguous")
        checks.shaped("patches", patches, None, 3)
    num_patches, block = patches.shape[0], 128
    patch_state_kernel[(cdiv(num_patches, block),)](state, patches, num_patches, BLOCK=block)


@triton.jit(do_not_specialize=["num_seqs", "stride_table", "dummy_slot"])
def advance_step_kernel(
    token_ids_ptr,
    positions_ptr,
    seq_lens_ptr,
    slot_mapping_ptr,
    finished_ptr,
    sampled_ptr,
    stop_ids_ptr,
    max_lens_ptr,
    block_table_ptr,
    num_seqs,
    stride_table,
    dummy_slot,
    CACHE_BLOCK_SIZE: tl.constexpr,
    NUM_STOPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """BLOCK sequences a program."""
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < num_seqs
    finished = tl.load(finished_ptr + offs, mask=mask, other=1)
    running = mask & (finished == 0)
    sampled = tl.load(sampled_ptr + offs, mask=running, other=-1)
    length = tl.load(seq_lens_ptr + offs, mask=running, other=0)
    stops = length + 1 >= tl.load(max_lens_ptr + offs, mask=running, other=0)
    for i in tl.static_range(NUM_STOPS):
        stop_id = tl.load(stop_ids_ptr + offs * NUM_STOPS + i, mask=running, other=-1)
        stops = stops | ((stop_id >= 0) & (stop_id == sampled))
    goes_on = running & (stops == 0)
    position = tl.load(positions_ptr + offs, mask=goes_on, other=0) + 1
    column = position // CACHE_BLOCK_SIZE
    block = tl.load(block_table_ptr + offs.to(tl.int64) * stride_table + column, mask=goes_on, other=0)
    slot = block.to(tl.int64) * CACHE_BLOCK_SIZE + position % CACHE_BLOCK_SIZE
    tl.store(finished_ptr + offs, 1, mask=running & stops)
    tl.store(token_ids_ptr + offs, sampled.to(token_ids_ptr.dtype.element_ty), mask=goes_on)
    tl.store(positions_ptr + offs, position, mask=goes_on)
    tl.store(seq_lens_ptr + offs, length + 1, mask=goes_on)
    tl.store(slot_mapping_ptr + offs, tl.where(goes_on, slot, dummy_slot), mask=mask)


def advance_step(
    token_ids: Tensor,
    positions: Tensor,
    seq_lens: Tensor,
    slot_mapping: Tensor,
    finished: Tensor,
    *,
    sampled: Tensor,
    stop_ids: Tensor,
    max_lens: Tensor,
    block_table: Tensor,
    block_size: int,
    dummy_slot: int = -1,
    check: bool = True,
) -> None:
    """Move every running sequence on by the token that was just sampled; all in place, all on the device.

    A sequence finishes when the sampled token is one of its stop ids, or makes it as long as it may be. From
    then on its token, position and length stay and its slot is `dummy_slot`, where writing does no harm.

    Args:
        token_ids: int32 or int64 `[num_seqs]`, the next step's input.
        positions: int32 or int64 `[num_seqs]`, of those tokens, counted from 0.
        seq_lens: int32 or int64 `[num_seqs]`, tokens to attend to.
        slot_mapping: int64 `[num_seqs]`, where the next step writes its keys and values.
        finished: int32 `[num_seqs]`, 0 while a sequence runs; padded rows are 1 from the start.
        sampled: int32 or int64 `[num_seqs]`.
        stop_ids: int32 or int64 `[num_seqs, n]`, contiguous; -1 fills rows up.
        max_lens: int32 or int64 `[num_seqs]`, tokens that a sequence may have in all, prompt and output.
        block_table: int32 or int64 `[num_seqs, table_width]`, rows contiguous; it must hold the next
            position's block.
        block_size: Positions in a block.
        dummy_slot: A finished sequence's slot; negative ones are left out by the append kernels.
        check: Check the arguments first.

    Raises:
        ValueError: An argument has the wrong shape, dtype or strides.
    """
    num_seqs = token_ids.shape[0]
    if check:
        for name, tensor in (
            ("token_ids", token_ids),
            ("positions", positions),
            ("seq_lens", seq_lens),
            ("slot_mapping", slot_mapping),
            ("finished", finished),
            ("sampled", sampled),
            ("max_lens", max_lens),
        ):
            checks.index(name, tensor, num_seqs)
        checks.index("stop_ids", stop_ids, num_seqs, None)
        checks.require(stop_ids.is_contiguous(), "stop_ids must be contiguous")
        checks.index("block_table", block_table, num_seqs, None)
        power = block_size > 0 and block_size & (block_size - 1) == 0
        checks.require(power, f"block_size must be a power of two, but is {block_size}")
    block = 128
    advance_step_kernel[(cdiv(num_seqs, block),)](
        token_ids,
        positions,
        seq_lens,
        slot_mapping,
        finished,
        sampled,
        stop_ids,
        max_lens,
        block_table,
        num_seqs,
        block_table.stride(0),
        dummy_slot,
        CACHE_BLOCK_SIZE=block_size,
        NUM_STOPS=stop_ids.shape[1],
        BLOCK=block,
    )
