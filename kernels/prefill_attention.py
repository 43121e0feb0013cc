"""Prefill attention over a paged cache: several new tokens a sequence, of any length, after a cached prefix.

The new tokens' keys and values are in the cache already (an append comes first), so a prefix that was cached
before, a chunk of a long prompt and a whole prompt are one case: the last `q` positions of a sequence attend
to all of it.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import checks
from kernels.paged_attention import LOG2E, LOWEST, capped, check_attention, finish_rows, tile_offsets
from kernels.sizes import cdiv, next_power_of_2


@triton.jit
def _attend_tile(
    acc,
    peak,
    total,
    query,
    k_head_ptr,
    v_head_ptr,
    table_ptr,
    start,
    pos_q,
    seq_len,
    scale,
    softcap,
    stride_cb,
    stride_cp,
    WINDOW: tl.constexpr,
    CACHE_BLOCK_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MASKED: tl.constexpr,
):
    """One tile of keys; where not MASKED, all of it is visible to every query."""
    offs_d = tl.arange(0, BLOCK_D)[None, :]
    offs = start + tl.arange(0, BLOCK_N)
    live = offs < seq_len
    base = tile_offsets(table_ptr, start, offs, live, stride_cb, stride_cp, CACHE_BLOCK_SIZE, BLOCK_N)
    pointers = base[:, None] + offs_d
    if MASKED:
        mask_kv = live[:, None] & (offs_d < HEAD_DIM)
        key = tl.load(k_head_ptr + pointers, mask=mask_kv, other=0.0)
    elif HEAD_DIM < BLOCK_D:
        mask_kv = tl.broadcast_to(offs_d < HEAD_DIM, [BLOCK_N, BLOCK_D])
        key = tl.load(k_head_ptr + pointers, mask=mask_kv, other=0.0)
    else:
        key = tl.load(k_head_ptr + pointers)
    scores = tl.dot(query, tl.trans(key), input_precision="ieee")
    if softcap is not None:
        scores = capped(scores * scale, softcap)
        factor = LOG2E
    else:
        factor = scale
    if MASKED:
        visible = (offs[None, :] <= pos_q[:, None]) & live[None, :]
        if WINDOW > 0:
            visible &= offs[None, :] > pos_q[:, None] - WINDOW
        # A row that has seen nothing yet counts hidden keys as 1 each, until the tile with its own position,
        # which it always sees, makes those 0.
        scores = tl.where(visible, scores * factor, LOWEST)
        new_peak = tl.maximum(peak, tl.max(scores, 1))
        prob = tl.exp2(scores - new_peak[:, None])
    else:
        # The factor is applied after the maximum, so that it costs nothing in a fused multiply and add.
        new_peak = tl.maximum(peak, tl.max(scores, 1) * factor)
        prob = tl.exp2(scores * factor - new_peak[:, None])
    weight = tl.exp2(peak - new_peak)
    total = total * weight + tl.sum(prob, 1)
    acc = acc * weight[:, None]
    if MASKED or HEAD_DIM < BLOCK_D:
        value = tl.load(v_head_ptr + pointers, mask=mask_kv, other=0.0)
    else:
        value = tl.load(v_head_ptr + pointers)
    acc = tl.dot(prob.to(value.dtype), value, acc, input_precision="ieee")
    return acc, new_peak, total


@triton.jit(do_not_specialize=["block_table_ptr", "cu_seqlens_q_ptr", "seq_lens_ptr", "stride_table"])
def paged_attention_prefill_kernel(
    out_ptr,
    query_ptr,
    k_cache_ptr,
    v_cache_ptr,
    block_table_ptr,
    cu_seqlens_q_ptr,
    seq_lens_ptr,
    sinks_ptr,
    scale,
    softcap,
    stride_ot,
    stride_oh,
    stride_qt,
    stride_qh,
    stride_cb,
    stride_cp,
    stride_ch,
    stride_table,
    WINDOW: tl.constexpr,
    CACHE_BLOCK_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    NUM_STAGES: tl.constexpr,
):
    """Grid: (query heads, sequences, tiles of queries, the last and longest first)."""
    head = tl.program_id(0)
    seq = tl.program_id(1).to(tl.int64)
    tile = tl.num_programs(2) - 1 - tl.program_id(2)
    q_start = tl.load(cu_seqlens_q_ptr + seq).to(tl.int64)
    q_len = (tl.load(cu_seqlens_q_ptr + seq + 1) - q_start).to(tl.int32)
    first_row = tile * BLOCK_M
    if first_row < q_len:
        seq_len = tl.load(seq_lens_ptr + seq).to(tl.int32)
        offs_m = first_row + tl.arange(0, BLOCK_M)
        offs_d = tl.arange(0, BLOCK_D)[None, :]
        mask_m = offs_m < q_len
        mask = mask_m[:, None] & (offs_d < HEAD_DIM)
        rows = (q_start + offs_m)[:, None]
        query = tl.load(query_ptr + rows * stride_qt + head * stride_qh + offs_d, mask=mask, other=0.0)
        table_ptr = block_table_ptr + seq * stride_table
        kv_head = (head // GROUP).to(tl.int64)
        k_head_ptr = k_cache_ptr + kv_head * stride_ch
        v_head_ptr = v_cache_ptr + kv_head * stride_ch
        first_pos = seq_len - q_len + first_row
        pos_q = first_pos + tl.arange(0, BLOCK_M)
        low = 0
        # Tiles that end before every query's position need no mask, without a window.
        unmasked_end = (first_pos + 1) // BLOCK_N * BLOCK_N
        if WINDOW > 0:
            low = tl.maximum(first_pos - WINDOW + 1, 0) // BLOCK_N * BLOCK_N
            unmasked_end = low
        high = tl.minimum(first_pos + BLOCK_M, seq_len)
        acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        peak = tl.full([BLOCK_M], LOWEST, tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        if WINDOW == 0:
            for start in tl.range(low, unmasked_end, BLOCK_N, num_stages=NUM_STAGES):
                acc, peak, total = _attend_tile(
                    acc,
                    peak,
                    total,
                    query,
                    k_head_ptr,
                    v_head_ptr,
                    table_ptr,
                    start,
                    pos_q,
                    seq_len,
                    scale,
                    softcap,
                    stride_cb,
                    stride_cp,
                    WINDOW,
                    CACHE_BLOCK_SIZE,
                    HEAD_DIM,
                    BLOCK_D,
                    BLOCK_N,
                    False,
                )
        for start in tl.range(unmasked_end, high, BLOCK_N, num_stages=NUM_STAGES):
            acc, peak, total = _attend_tile(
                acc,
                peak,
                total,
                query,
                k_head_ptr,
                v_head_ptr,
                table_ptr,
                start,
                pos_q,
                seq_len,
                scale,
                softcap,
                stride_cb,
                stride_cp,
                WINDOW,
                CACHE_BLOCK_SIZE,
                HEAD_DIM,
                BLOCK_D,
                BLOCK_N,
                True,
            )
        offs_h = tl.zeros([BLOCK_M], tl.int32) + head
        result = finish_rows(acc, peak, total, sinks_ptr, offs_h, mask_m)
        out_ptrs = out_ptr + rows * stride_ot + head * stride_oh + offs_d
        tl.store(out_ptrs, result.to(out_ptr.dtype.element_ty), mask=mask)


def prefill_launch(head_dim: int, dtype: torch.dtype, max_seqlen_q: int) -> dict[str, int]:
    """Tile sizes, warps and tiles in flight.

    Those for 16-bit caches with head_dim 64 and 128 are good on an H200 for all lengths tried there; wider
    heads need more warps to hold them.
    """
    if dtype == torch.float32:
        return {"BLOCK_M": 32, "BLOCK_N": 32, "num_warps": 4, "NUM_STAGES": 1}
    if head_dim > 128:
        return {"BLOCK_M": 64, "BLOCK_N": 32, "num_warps": 8, "NUM_STAGES": 2}
    return {"BLOCK_M": 64, "BLOCK_N": 64 if max_seqlen_q > 128 else 32, "num_warps": 4, "NUM_STAGES": 2}


def paged_attention_prefill(
    query: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    cu_seqlens_q: Tensor,
    seq_lens: Tensor,
    max_seqlen_q: int,
    *,
    scale: float | None = None,
    window: int = 0,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
    out: Tensor | None = None,
    check: bool = True,
) -> Tensor:
    """Causal attention of each sequence's last tokens over all its cached tokens, those included.

    Args:
        query: `[tokens, num_heads, head_dim]` in fp16, bf16 or fp32, last dim contiguous: the sequences' new
            tokens one after another.
        k_cache: `[num_blocks, block_size, num_kv_heads, head_dim]`, any strides but a contiguous last dim;
            block size a power of two from 16 to 256, head_dim a multiple of 8 from 64 to 256. It holds the
            new tokens' keys already.
        v_cache: Like `k_cache`, same strides.
        block_table: int32 or int64 `[batch, table_width]`, rows contiguous; entry `i` of a row is the block
            of positions `i * block_size` and on. Entries past a sequence's length are not used.
        cu_seqlens_q: int32 or int64 `[batch + 1]`, where each sequence's tokens begin in `query`, and their
            number at the end. A sequence may have none.
        seq_lens: int32 or int64 `[batch]`, tokens in the cache, the new ones included: at least as many as a
            sequence has new ones.
        max_seqlen_q: The most new tokens of a sequence, known to the host; a larger number is right too.
        scale: What scores are multiplied by, `head_dim ** -0.5` when not given; positive.
        window: Positions that a query sees, its own included; 0 is all.
        softcap: Scores become `softcap * tanh(score / softcap)`; 0 is off.
        sinks: `[num_heads]` logits that take part in the softmax and carry no value.
        out: `[tokens, num_heads, head_dim]`, allocated when not given.
        check: Check the arguments first.

    Returns:
        `out`, in the query's dtype.

    Raises:
        ValueError: An argument has the wrong shape, dtype, strides or value.
    """
    _, num_heads, head_dim = query.shape
    _, block_size, num_kv_heads, _ = k_cache.shape
    batch = seq_lens.shape[0]
    if out is None:
        out = torch.empty_like(query, memory_format=torch.contiguous_format)
    if check:
        check_attention(query, k_cache, v_cache, block_table, seq_lens, out, window, softcap, sinks)
        checks.index("cu_seqlens_q", cu_seqlens_q, batch + 1)
        checks.require(max_seqlen_q > 0, f"max_seqlen_q must be positive, but is {max_seqlen_q}")
        checks.require(scale is None or scale > 0, f"scale must be positive, but is {scale}")
    scale = head_dim**-0.5 if scale is None else scale
    launch = prefill_launch(head_dim, query.dtype, max_seqlen_q)
    paged_attention_prefill_kernel[(num_heads, batch, cdiv(max_seqlen_q, launch["BLOCK_M"]))](
        out,
        query,
        k_cache,
        v_cache,
        block_table,
        cu_seqlens_q,
        seq_lens,
        sinks,
        # Exponents are powers of two; a cap is applied to the scores as they are.
        scale if softcap else scale * LOG2E.value,
        softcap or None,
        *out.stride()[:2],
        *query.stride()[:2],
        *k_cache.stride()[:3],
        block_table.stride(0),
        WINDOW=window,
        CACHE_BLOCK_SIZE=block_size,
        HEAD_DIM=head_dim,
        GROUP=num_heads // num_kv_heads,
        BLOCK_D=next_power_of_2(head_dim),
        **launch,
    )
    return out
