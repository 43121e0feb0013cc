"""Decode attention over a paged cache: one query token a sequence.

A program takes one sequence and one KV head, with the query heads that share it as rows of a matrix product.
Positions are cut into splits of a fixed size; each split is reduced on its own and splits are merged in
order, so a result does not depend on which other sequences are in the batch. Where sequences and heads alone
cannot fill a GPU, several programs share one (sequence, head): each leaves its splits in a workspace, and the
one that finishes last merges them.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import checks
from kernels.early import early, wait_for_inputs
from kernels.sizes import cdiv, next_power_of_2

LOG2E = tl.constexpr(math.log2(math.e))
# Stands for minus infinity: finite, so that a difference of two is 0 and not NaN.
LOWEST = tl.constexpr(-1.0e30)


class Launch(NamedTuple):
    """How the kernel is launched: positions a tile, warps, and tiles in flight."""

    block_n: int
    num_warps: int
    num_stages: int


class DecodeWorkspace(NamedTuple):
    """What programs that share a sequence leave for each other. Two streams must not share one."""

    partial: Tensor
    stats: Tensor
    arrived: Tensor


@triton.jit
def capped(scores, softcap):
    """Scores in (-softcap, softcap), through tanh; the exponent is never positive, so nothing overflows."""
    decay = tl.exp(-2.0 * tl.abs(scores) / softcap)
    magnitude = softcap * (1.0 - decay) / (1.0 + decay)
    return tl.where(scores < 0, -magnitude, magnitude)


@triton.jit
def tile_offsets(
    table_ptr,
    start,
    offs,
    live,
    stride_cb,
    stride_cp,
    CACHE_BLOCK_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Where in the cache the positions `offs` of the tile that begins at `start` lie."""
    # Tiles begin at multiples of BLOCK_N, so one that is no longer than a cache block lies inside it.
    if BLOCK_N <= CACHE_BLOCK_SIZE:
        block = tl.load(table_ptr + start // CACHE_BLOCK_SIZE).to(tl.int64)
    else:
        block = tl.load(table_ptr + offs // CACHE_BLOCK_SIZE, mask=live, other=0).to(tl.int64)
    return block * stride_cb + (offs % CACHE_BLOCK_SIZE).to(tl.int64) * stride_cp


@triton.jit
def _merge(acc, peak, total, other_acc, other_peak, other_total):
    """Two softmax states as one; sums are relative to 2**peak."""
    new_peak = tl.maximum(peak, other_peak)
    weight = tl.exp2(peak - new_peak)
    other_weight = tl.exp2(other_peak - new_peak)
    acc = acc * weight[:, None] + other_acc * other_weight[:, None]
    return acc, new_peak, total * weight + other_total * other_weight


@triton.jit
def finish_rows(acc, peak, total, sinks_ptr, offs_h, mask_h):
    """Divide by the total, a sink's share included; a row that attended to nothing gives 0."""
    if sinks_ptr is not None:
        sink = tl.load(sinks_ptr + offs_h, mask=mask_h, other=0.0).to(tl.float32) * LOG2E
        new_peak = tl.maximum(peak, sink)
        weight = tl.exp2(peak - new_peak)
        acc = acc * weight[:, None]
        total = total * weight + tl.exp2(sink - new_peak)
    return acc / tl.where(total == 0.0, 1.0, total)[:, None]


@triton.jit(do_not_specialize=["block_table_ptr", "seq_lens_ptr", "stride_table", "max_splits"])
def paged_attention_decode_kernel(
    out_ptr,
    query_ptr,
    key_ptr,
    value_ptr,
    k_cache_ptr,
    v_cache_ptr,
    block_table_ptr,
    seq_lens_ptr,
    sinks_ptr,
    partial_ptr,
    stats_ptr,
    arrived_ptr,
    scale,
    softcap,
    stride_ot,
    stride_oh,
    stride_qt,
    stride_qh,
    stride_kt,
    stride_kh,
    stride_vt,
    stride_vh,
    stride_cb,
    stride_cp,
    stride_ch,
    stride_table,
    max_splits,
    WINDOW: tl.constexpr,
    CACHE_BLOCK_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SPLIT: tl.constexpr,
    SHARED: tl.constexpr,
    APPEND: tl.constexpr,
    EARLY: tl.constexpr,
    BLOCK_N: tl.constexpr,
    NUM_STAGES: tl.constexpr,
):
    """Grid: (KV heads, sequences, programs that share one sequence's splits).

    With `key_ptr`, the program that has the last split takes the new token from there and, with APPEND, writes
    its slot, which no program reads. Where softcap is None, `scale` carries the factor to powers of two.
    """
    kv_head = tl.program_id(0)
    seq = tl.program_id(1).to(tl.int64)
    lane = tl.program_id(2)
    if EARLY:
        wait_for_inputs()
    seq_len = tl.load(seq_lens_ptr + seq).to(tl.int32)
    low = 0
    if WINDOW > 0:
        low = tl.maximum(seq_len - WINDOW, 0)
    # This program's share of the splits that hold visible positions.
    first = low // SPLIT
    end = tl.cdiv(seq_len, SPLIT)
    share = tl.cdiv(end - first, tl.num_programs(2))
    my_first = first + lane * share
    my_end = tl.minimum(my_first + share, end)

    offs_d = tl.arange(0, BLOCK_D)[None, :]
    offs_g = tl.arange(0, BLOCK_G)
    offs_h = kv_head * GROUP + offs_g
    mask_h = offs_g < GROUP
    mask = mask_h[:, None] & (offs_d < HEAD_DIM)
    num_heads = tl.num_programs(0) * GROUP
    row = (seq * num_heads + offs_h) * max_splits
    run_acc = tl.zeros([BLOCK_G, BLOCK_D], tl.float32)
    run_peak = tl.full([BLOCK_G], LOWEST, tl.float32)
    run_total = tl.zeros([BLOCK_G], tl.float32)
    # A split that is the only one is no business of other programs.
    several = end - first != 1

    if my_first < my_end:
        query_ptrs = query_ptr + seq * stride_qt + offs_h[:, None] * stride_qh + offs_d
        query = tl.load(query_ptrs, mask=mask, other=0.0)
        table_ptr = block_table_ptr + seq * stride_table
        k_head_ptr = k_cache_ptr + kv_head.to(tl.int64) * stride_ch
        v_head_ptr = v_cache_ptr + kv_head.to(tl.int64) * stride_ch
        low = tl.maximum(low, my_first * SPLIT)
        high = tl.minimum(seq_len, my_end * SPLIT)
        has_last = my_end == end
        if key_ptr is not None:
            high = tl.minimum(high, seq_len - 1)
            # Read and written first, so that nothing waits for it at the end.
            offs_n = tl.arange(0, BLOCK_D)
            mask_n = (offs_n < HEAD_DIM) & has_last
            new_key_ptrs = key_ptr + seq * stride_kt + kv_head * stride_kh + offs_n
            new_key = tl.load(new_key_ptrs, mask=mask_n, other=0.0)
            new_value_ptrs = value_ptr + seq * stride_vt + kv_head * stride_vh + offs_n
            new_value = tl.load(new_value_ptrs, mask=mask_n, other=0.0)
            if APPEND:
                block = tl.load(table_ptr + (seq_len - 1) // CACHE_BLOCK_SIZE).to(tl.int64)
                slot = block * stride_cb + ((seq_len - 1) % CACHE_BLOCK_SIZE).to(tl.int64) * stride_cp
                tl.store(k_head_ptr + slot + offs_n, new_key, mask=mask_n)
                tl.store(v_head_ptr + slot + offs_n, new_value, mask=mask_n)
        acc = run_acc
        peak = run_peak
        total = run_total
        for start in tl.range(low // BLOCK_N * BLOCK_N, high, BLOCK_N, num_stages=NUM_STAGES):
            offs = start + tl.arange(0, BLOCK_N)
            live = (offs >= low) & (offs < high)
            base = tile_offsets(table_ptr, start, offs, live, stride_cb, stride_cp, CACHE_BLOCK_SIZE, BLOCK_N)
            mask_kv = live[:, None] & (offs_d < HEAD_DIM)
            key = tl.load(k_head_ptr + base[:, None] + offs_d, mask=mask_kv, other=0.0)
            scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
            if softcap is not None:
                scores = capped(scores, softcap) * LOG2E
            # A tile has at least one live position, so the peak is a score and hidden ones come out as 0.
            scores = tl.where(live[None, :], scores, LOWEST)
            new_peak = tl.maximum(peak, tl.max(scores, 1))
            weight = tl.exp2(peak - new_peak)
            prob = tl.exp2(scores - new_peak[:, None])
            total = total * weight + tl.sum(prob, 1)
            value = tl.load(v_head_ptr + base[:, None] + offs_d, mask=mask_kv, other=0.0)
            acc = tl.dot(prob.to(value.dtype), value, acc * weight[:, None], input_precision="ieee")
            peak = new_peak
            tile_end = start + BLOCK_N
            if (tile_end % SPLIT == 0) & (tile_end <= (my_end - 1) * SPLIT):
                if SHARED:
                    at = row + start // SPLIT
                    tl.store(partial_ptr + at[:, None] * HEAD_DIM + offs_d, acc, mask=mask)
                    tl.store(stats_ptr + at * 2, peak, mask=mask_h)
                    tl.store(stats_ptr + at * 2 + 1, total, mask=mask_h)
                else:
                    run_acc, run_peak, run_total = _merge(run_acc, run_peak, run_total, acc, peak, total)
                acc = tl.zeros([BLOCK_G, BLOCK_D], tl.float32)
                peak = tl.full([BLOCK_G], LOWEST, tl.float32)
                total = tl.zeros([BLOCK_G], tl.float32)
        if key_ptr is not None:
            if has_last:
                score = tl.sum(query.to(tl.float32) * new_key.to(tl.float32)[None, :], 1) * scale
                if softcap is not None:
                    score = capped(score, softcap) * LOG2E
                new_acc = tl.broadcast_to(new_value.to(tl.float32)[None, :], [BLOCK_G, BLOCK_D])
                one = tl.full([BLOCK_G], 1.0, tl.float32)
                acc, peak, total = _merge(acc, peak, total, new_acc, score, one)
        if SHARED and several:
            at = row + (my_end - 1)
            tl.store(partial_ptr + at[:, None] * HEAD_DIM + offs_d, acc, mask=mask)
            tl.store(stats_ptr + at * 2, peak, mask=mask_h)
            tl.store(stats_ptr + at * 2 + 1, total, mask=mask_h)
        else:
            run_acc, run_peak, run_total = _merge(run_acc, run_peak, run_total, acc, peak, total)

    if SHARED and several:
        # An empty sequence has nobody to wait for; its first program writes the zeros.
        finishes = (seq_len == 0) & (lane == 0)
        arrived_ptr += seq * tl.num_programs(0) + kv_head
        if my_first < my_end:
            # All warps' stores come before the count that tells another program of them.
            tl.debug_barrier()
            finishes = tl.atomic_add(arrived_ptr, 1, sem="acq_rel") == tl.cdiv(end - first, share) - 1
        if finishes:
            # Rows that only fill up the matrix product are left out of the merging.
            offs_m = tl.arange(0, BLOCK_M)
            mask_m = offs_m < GROUP
            merge_heads = kv_head * GROUP + offs_m
            merge_row = (seq * num_heads + merge_heads) * max_splits
            mask_md = mask_m[:, None] & (offs_d < HEAD_DIM)
            acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
            peak = tl.full([BLOCK_M], LOWEST, tl.float32)
            total = tl.zeros([BLOCK_M], tl.float32)
            for split in tl.range(first, end, loop_unroll_factor=4):
                at = merge_row + split
                # Past L1, which does not see what other multiprocessors wrote.
                split_acc = tl.load(
                    partial_ptr + at[:, None] * HEAD_DIM + offs_d,
                    mask=mask_md,
                    other=0.0,
                    cache_modifier=".cg",
                )
                split_peak = tl.load(stats_ptr + at * 2, mask=mask_m, other=0.0, cache_modifier=".cg")
                split_total = tl.load(stats_ptr + at * 2 + 1, mask=mask_m, other=0.0, cache_modifier=".cg")
                acc, peak, total = _merge(acc, peak, total, split_acc, split_peak, split_total)
            merged = finish_rows(acc, peak, total, sinks_ptr, merge_heads, mask_m)
            merged_ptrs = out_ptr + seq * stride_ot + merge_heads[:, None] * stride_oh + offs_d
            tl.store(merged_ptrs, merged.to(out_ptr.dtype.element_ty), mask=mask_md)
            # The next launch counts from 0 again.
            tl.store(arrived_ptr, 0)
    elif lane == 0:
        result = finish_rows(run_acc, run_peak, run_total, sinks_ptr, offs_h, mask_h)
        out_ptrs = out_ptr + seq * stride_ot + offs_h[:, None] * stride_oh + offs_d
        tl.store(out_ptrs, result.to(out_ptr.dtype.element_ty), mask=mask)


AUTOTUNE_LAUNCHES = (
    Launch(16, 1, 3),
    Launch(16, 1, 5),
    Launch(32, 1, 3),
    Launch(64, 2, 3),
    Launch(128, 4, 2),
)
paged_attention_decode_autotuned_kernel = triton.autotune(
    configs=[
        triton.Config({"BLOCK_N": n, "NUM_STAGES": stages}, num_warps=warps, num_stages=stages)
        for n, warps, stages in AUTOTUNE_LAUNCHES
    ],
    key=["CACHE_BLOCK_SIZE", "HEAD_DIM", "GROUP", "SHARED"],
)(paged_attention_decode_kernel)


def fixed_launch(head_dim: int, dtype: torch.dtype) -> Launch:
    """The fastest of the launches tried on an H200 for 16-bit caches with head_dim 64 and 128.

    One warp and small tiles keep programs independent, deep pipelines keep memory busy. Wider heads and fp32
    need more registers than one warp has.
    """
    if dtype == torch.float32:
        return Launch(16, 4, 2)
    if head_dim > 128:
        return Launch(16, 2, 3)
    return Launch(16, 1, 6 if head_dim == 64 else 5)


def split_size(head_dim: int) -> int:
    """Positions a split; fixed for a model, so that results do not depend on the batch."""
    return 128 if head_dim == 64 else 512


def max_shared_programs(head_dim: int) -> int:
    """Programs that run at once on the 132 multiprocessors of an H200, or nearly: six each, or five."""
    return 792 if head_dim == 64 else 660


def num_shared_programs(batch: int, num_kv_heads: int, head_dim: int, splits: int) -> int:
    """How many programs share one sequence and head; it depends on the sizes of batch and table alone."""
    most = max(1, max_shared_programs(head_dim) // max(1, batch * num_kv_heads))
    share = cdiv(splits, most)
    return cdiv(splits, share)


def decode_workspace(
    batch: int, num_heads: int, num_kv_heads: int, head_dim: int, max_tokens: int, device: torch.device | str
) -> DecodeWorkspace:
    """Buffers for `batch` sequences with a block table of up to `max_tokens` positions.

    The counters begin at 0 and every launch leaves them so: one workspace serves all layers and steps.
    """
    splits = cdiv(max_tokens, split_size(head_dim))
    return DecodeWorkspace(
        torch.empty(batch * num_heads * splits * head_dim, dtype=torch.float32, device=device),
        torch.empty(batch * num_heads * splits * 2, dtype=torch.float32, device=device),
        torch.zeros(batch * num_kv_heads, dtype=torch.int32, device=device),
    )


def check_attention(
    query: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    out: Tensor,
    window: int,
    softcap: float,
    sinks: Tensor | None,
) -> None:
    """What decode and prefill attention ask of the arguments that they share."""
    checks.caches(k_cache, v_cache)
    _, block_size, num_kv_heads, head_dim = k_cache.shape
    power = 16 <= block_size <= 256 and block_size & (block_size - 1) == 0
    checks.require(power, f"the cache's block size must be 16, 32, 64, 128 or 256, but is {block_size}")
    fits = 64 <= head_dim <= 256 and head_dim % 8 == 0
    checks.require(fits, f"head_dim must be a multiple of 8 from 64 to 256, but is {head_dim}")
    checks.shaped("query", query, None, None, head_dim)
    num_heads = query.shape[1]
    groups = num_heads > 0 and num_heads % num_kv_heads == 0
    checks.require(groups, f"query heads must be a multiple of the {num_kv_heads} KV heads, but are {num_heads}")
    checks.shaped("out", out, *query.shape)
    for name, tensor in (("query", query), ("out", out)):
        checks.typed(name, tensor, k_cache.dtype)
        checks.rows(name, tensor)
    checks.index("seq_lens", seq_lens, None)
    checks.index("block_table", block_table, seq_lens.shape[0], None)
    checks.require(window >= 0, f"window must be 0 (off) or a number of positions, but is {window}")
    checks.require(softcap >= 0, f"softcap must be 0 (off) or positive, but is {softcap}")
    if sinks is not None:
        checks.shaped("sinks", sinks, num_heads)


def _check_decode(
    query: Tensor,
    k_cache: Tensor,
    seq_lens: Tensor,
    key: Tensor | None,
    value: Tensor | None,
    workspace: DecodeWorkspace | None,
    splits: int,
    launch: str,
) -> None:
    batch, num_heads, head_dim = query.shape
    num_kv_heads = k_cache.shape[2]
    checks.shaped("seq_lens", seq_lens, batch)
    checks.require((key is None) == (value is None), "key and value must be given together, or neither of them")
    for name, new in (("key", key), ("value", value)):
        if new is not None:
            checks.shaped(name, new, batch, num_kv_heads, head_dim)
            checks.typed(name, new, k_cache.dtype)
            checks.rows(name, new)
    if workspace is not None:
        rows = batch * num_heads * splits
        large = (
            workspace.partial.numel() >= rows * head_dim
            and workspace.stats.numel() >= rows * 2
            and workspace.arrived.numel() >= batch * num_kv_heads
        )
        checks.require(
            large,
            f"the workspace is too small for {batch} sequences, {num_heads} heads and {splits} splits: "
            "make one for the largest batch and the widest block table",
        )
    checks.require(launch in {"fixed", "autotune"}, f"launch must be 'fixed' or 'autotune', but is {launch!r}")


def paged_attention_decode(
    query: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    *,
    scale: float | None = None,
    window: int = 0,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
    key: Tensor | None = None,
    value: Tensor | None = None,
    append: bool = True,
    out: Tensor | None = None,
    workspace: DecodeWorkspace | None = None,
    launch: str = "fixed",
    check: bool = True,
) -> Tensor:
    """Attention of one query token a sequence over its cached keys and values.

    The grid depends on the batch and on the width of the block table, never on lengths, so a captured launch
    stays right as sequences grow. Nothing is allocated when `out` and `workspace` are given.

    Args:
        query: `[batch, num_heads, head_dim]` in fp16, bf16 or fp32, last dim contiguous.
        k_cache: `[num_blocks, block_size, num_kv_heads, head_dim]`, any strides but a contiguous last dim;
            block size a power of two from 16 to 256, head_dim a multiple of 8 from 64 to 256.
        v_cache: Like `k_cache`, same strides.
        block_table: int32 or int64 `[batch, table_width]`, rows contiguous; entry `i` of a row is the block
            of positions `i * block_size` and on. Entries past a sequence's length are not used.
        seq_lens: int32 or int64 `[batch]`, positions to attend to, the query's own included; 0 is a padded
            row, which gives 0.
        scale: What scores are multiplied by, `head_dim ** -0.5` when not given.
        window: Positions that a query sees, its own included; 0 is all.
        softcap: Scores become `softcap * tanh(score / softcap)`; 0 is off.
        sinks: `[num_heads]` logits that take part in the softmax and carry no value.
        key: `[batch, num_kv_heads, head_dim]`, the new token's keys, given with `value`: the last position is
            taken from them and not from the cache. Without them the cache must hold it.
        value: See `key`.
        append: Whether the kernel also writes `key` and `value` to the last position's slot.
        out: `[batch, num_heads, head_dim]`, allocated when not given.
        workspace: From `decode_workspace`, made when needed and not given.
        launch: `fixed` takes tile, warps and stages from a table; `autotune` times a few on the first call,
            which must come before a capture.
        check: Check the arguments first.

    Returns:
        `out`, in the query's dtype.

    Raises:
        ValueError: An argument has the wrong shape, dtype, strides or value.
    """
    batch, num_heads, head_dim = query.shape
    _, block_size, num_kv_heads, _ = k_cache.shape
    table_width = block_table.shape[1]
    splits = cdiv(table_width * block_size, split_size(head_dim))
    if out is None:
        out = torch.empty_like(query, memory_format=torch.contiguous_format)
    if check:
        check_attention(query, k_cache, v_cache, block_table, seq_lens, out, window, softcap, sinks)
        _check_decode(query, k_cache, seq_lens, key, value, workspace, splits, launch)
    shared = num_shared_programs(batch, num_kv_heads, head_dim, splits)
    if workspace is None and shared > 1:
        workspace = decode_workspace(batch, num_heads, num_kv_heads, head_dim, table_width * block_size, query.device)
    partial, stats, arrived = workspace if shared > 1 else (None, None, None)
    scale = head_dim**-0.5 if scale is None else scale
    group = num_heads // num_kv_heads
    new = (key.stride(0), key.stride(1), value.stride(0), value.stride(1)) if key is not None else (0, 0, 0, 0)
    arguments = (
        out,
        query,
        key,
        value,
        k_cache,
        v_cache,
        block_table,
        seq_lens,
        sinks,
        partial,
        stats,
        arrived,
        # Exponents are powers of two; a cap is applied to the scores as they are.
        scale if softcap else scale * LOG2E.value,
        softcap or None,
        *out.stride()[:2],
        *query.stride()[:2],
        *new,
        *k_cache.stride()[:3],
        block_table.stride(0),
        splits,
    )
    constants = {
        "WINDOW": window,
        "CACHE_BLOCK_SIZE": block_size,
        "HEAD_DIM": head_dim,
        "GROUP": group,
        "BLOCK_G": max(16, next_power_of_2(group)),
        "BLOCK_M": next_power_of_2(group),
        "BLOCK_D": next_power_of_2(head_dim),
        "SPLIT": split_size(head_dim),
        "SHARED": shared > 1,
        # One compile key for launches that have nothing to append.
        "APPEND": append and key is not None,
        **early(query.device),
    }
    grid = (num_kv_heads, batch, shared)
    if launch == "autotune":
        paged_attention_decode_autotuned_kernel[grid](*arguments, **constants)
    else:
        block_n, num_warps, num_stages = fixed_launch(head_dim, query.dtype)
        paged_attention_decode_kernel[grid](
            *arguments,
            **constants,
            BLOCK_N=block_n,
            NUM_STAGES=num_stages,
            num_warps=num_warps,
        )
    return out
