"""Rotary position embedding, alone or in one kernel with query and key norms and the append to the cache.

Pairs are the two halves of the rotated dims, as Llama, Qwen and Mistral have them. `cos_sin` is fp32
`[max_positions, rotary_dim]`: the cosines, then the sines, of half of `rotary_dim` angles.
"""

import triton
import triton.language as tl
from torch import Tensor

from kernels import checks
from kernels.early import early, wait_for_inputs
from kernels.sizes import cdiv, next_power_of_2


@triton.jit
def _rotate_and_store(
    x_ptr,
    out_ptr,
    weight_ptr,
    stride_xh,
    stride_oh,
    cos,
    sin,
    eps,
    num_heads,
    HEAD_DIM: tl.constexpr,
    ROTARY_DIM: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_REST: tl.constexpr,
):
    """Norm (with `weight_ptr`), rotate and store the first `num_heads` rows at `x_ptr`."""
    half: tl.constexpr = ROTARY_DIM // 2
    offs_h = tl.arange(0, BLOCK_H)[:, None]
    offs_r = tl.arange(0, BLOCK_R)
    mask_r = offs_r < half
    mask = (offs_h < num_heads) & mask_r[None, :]
    x_ptrs = x_ptr + offs_h * stride_xh + offs_r[None, :]
    first = tl.load(x_ptrs, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(x_ptrs + half, mask=mask, other=0.0).to(tl.float32)
    offs_rest = ROTARY_DIM + tl.arange(0, BLOCK_REST)
    mask_rest = (offs_h < num_heads) & (offs_rest < HEAD_DIM)[None, :]
    if ROTARY_DIM < HEAD_DIM:
        rest = tl.load(x_ptr + offs_h * stride_xh + offs_rest[None, :], mask=mask_rest, other=0.0).to(tl.float32)
    if weight_ptr is not None:
        squares = tl.sum(first * first, 1) + tl.sum(second * second, 1)
        if ROTARY_DIM < HEAD_DIM:
            squares += tl.sum(rest * rest, 1)
        inverse = tl.rsqrt(squares / HEAD_DIM + eps)[:, None]
        first *= inverse * tl.load(weight_ptr + offs_r, mask=mask_r, other=0.0).to(tl.float32)[None, :]
        second *= inverse * tl.load(weight_ptr + half + offs_r, mask=mask_r, other=0.0).to(tl.float32)[None, :]
        if ROTARY_DIM < HEAD_DIM:
            weight = tl.load(weight_ptr + offs_rest, mask=offs_rest < HEAD_DIM, other=0.0).to(tl.float32)
            rest *= inverse * weight[None, :]
    dtype = out_ptr.dtype.element_ty
    out_ptrs = out_ptr + offs_h * stride_oh + offs_r[None, :]
    tl.store(out_ptrs, (first * cos - second * sin).to(dtype), mask=mask)
    tl.store(out_ptrs + half, (second * cos + first * sin).to(dtype), mask=mask)
    if ROTARY_DIM < HEAD_DIM:
        tl.store(out_ptr + offs_h * stride_oh + offs_rest[None, :], rest.to(dtype), mask=mask_rest)


@triton.jit(do_not_specialize=["positions_ptr", "slot_mapping_ptr"])
def rotary_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    k_cache_ptr,
    v_cache_ptr,
    q_weight_ptr,
    k_weight_ptr,
    positions_ptr,
    cos_sin_ptr,
    slot_mapping_ptr,
    eps,
    stride_qt,
    stride_qh,
    stride_kt,
    stride_kh,
    stride_vt,
    stride_vh,
    stride_cs,
    stride_cb,
    stride_cp,
    stride_ch,
    CACHE_BLOCK_SIZE: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ROTARY_DIM: tl.constexpr,
    BLOCK_KV: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_REST: tl.constexpr,
    BLOCK_D: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Grid: (tokens, runs of BLOCK_KV heads). A program takes a run of KV heads and their query heads.

    Queries are rotated in place; so are keys, unless there is a slot mapping: then keys and values go to
    their slots, and a negative slot is left out.
    """
    token = tl.program_id(0).to(tl.int64)
    first_head = tl.program_id(1).to(tl.int64) * BLOCK_KV
    num_heads = tl.minimum(NUM_KV_HEADS - first_head, BLOCK_KV).to(tl.int32)
    if EARLY:
        wait_for_inputs()
    position = tl.load(positions_ptr + token).to(tl.int64)
    offs_r = tl.arange(0, BLOCK_R)
    mask_r = offs_r < ROTARY_DIM // 2
    row_ptr = cos_sin_ptr + position * stride_cs + offs_r
    cos = tl.load(row_ptr, mask=mask_r, other=0.0)[None, :]
    sin = tl.load(row_ptr + ROTARY_DIM // 2, mask=mask_r, other=0.0)[None, :]
    query_ptr += token * stride_qt + first_head * GROUP * stride_qh
    _rotate_and_store(
        query_ptr,
        query_ptr,
        q_weight_ptr,
        stride_qh,
        stride_qh,
        cos,
        sin,
        eps,
        num_heads * GROUP,
        HEAD_DIM,
        ROTARY_DIM,
        BLOCK_Q,
        BLOCK_R,
        BLOCK_REST,
    )
    key_ptr += token * stride_kt + first_head * stride_kh
    if slot_mapping_ptr is None:
        _rotate_and_store(
            key_ptr,
            key_ptr,
            k_weight_ptr,
            stride_kh,
            stride_kh,
            cos,
            sin,
            eps,
            num_heads,
            HEAD_DIM,
            ROTARY_DIM,
            BLOCK_KV,
            BLOCK_R,
            BLOCK_REST,
        )
    else:
        slot = tl.load(slot_mapping_ptr + token).to(tl.int64)
        if slot >= 0:
            target = (slot // CACHE_BLOCK_SIZE) * stride_cb + (slot % CACHE_BLOCK_SIZE) * stride_cp
            target += first_head * stride_ch
            _rotate_and_store(
                key_ptr,
                k_cache_ptr + target,
                k_weight_ptr,
                stride_kh,
                stride_ch,
                cos,
                sin,
                eps,
                num_heads,
                HEAD_DIM,
                ROTARY_DIM,
                BLOCK_KV,
                BLOCK_R,
                BLOCK_REST,
            )
            offs_h = tl.arange(0, BLOCK_KV)[:, None]
            offs_d = tl.arange(0, BLOCK_D)[None, :]
            mask = (offs_h < num_heads) & (offs_d < HEAD_DIM)
            value_ptr += token * stride_vt + first_head * stride_vh
            value = tl.load(value_ptr + offs_h * stride_vh + offs_d, mask=mask)
            tl.store(v_cache_ptr + target + offs_h * stride_ch + offs_d, value, mask=mask)


def _check(
    query: Tensor,
    key: Tensor,
    positions: Tensor,
    cos_sin: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
) -> None:
    checks.shaped("query", query, None, None, None)
    num_tokens, num_heads, head_dim = query.shape
    checks.shaped("key", key, num_tokens, None, head_dim)
    for name, tensor in (("query", query), ("key", key)):
        checks.typed(name, tensor, *checks.FLOATS)
        checks.rows(name, tensor)
    groups = key.shape[1] > 0 and num_heads % key.shape[1] == 0
    checks.require(groups, f"query heads must be a multiple of the {key.shape[1]} KV heads, but are {num_heads}")
    checks.index("positions", positions, num_tokens)
    checks.shaped("cos_sin", cos_sin, None, None)
    checks.rows("cos_sin", cos_sin)
    rotary_dim = cos_sin.shape[1]
    checks.require(
        rotary_dim % 2 == 0 and rotary_dim <= head_dim,
        f"cos_sin must have an even width of at most head_dim ({head_dim}), but it is {rotary_dim}",
    )
    checks.require((q_weight is None) == (k_weight is None), "q_weight and k_weight must be given together, or neither")
    for name, weight in (("q_weight", q_weight), ("k_weight", k_weight)):
        if weight is not None:
            checks.shaped(name, weight, head_dim)


def _launch(
    query: Tensor,
    key: Tensor,
    value: Tensor | None,
    caches: tuple[Tensor, Tensor] | None,
    weights: tuple[Tensor | None, Tensor | None],
    positions: Tensor,
    cos_sin: Tensor,
    slot_mapping: Tensor | None,
    eps: float,
) -> None:
    num_tokens, num_heads, head_dim = query.shape
    num_kv_heads = key.shape[1]
    rotary_dim = cos_sin.shape[1]
    group = num_heads // num_kv_heads
    k_cache, v_cache = caches or (None, None)
    # About eight query heads a program.
    block_kv = min(next_power_of_2(num_kv_heads), next_power_of_2(max(1, 8 // group)))
    rotary_kernel[(num_tokens, cdiv(num_kv_heads, block_kv))](
        query,
        key,
        value,
        k_cache,
        v_cache,
        *weights,
        positions,
        cos_sin,
        slot_mapping,
        eps,
        *query.stride()[:2],
        *key.stride()[:2],
        *(value.stride()[:2] if value is not None else (0, 0)),
        cos_sin.stride(0),
        *(k_cache.stride()[:3] if k_cache is not None else (0, 0, 0)),
        CACHE_BLOCK_SIZE=k_cache.shape[1] if k_cache is not None else 1,
        NUM_KV_HEADS=num_kv_heads,
        GROUP=group,
        HEAD_DIM=head_dim,
        ROTARY_DIM=rotary_dim,
        BLOCK_KV=block_kv,
        BLOCK_Q=next_power_of_2(block_kv * group),
        BLOCK_R=next_power_of_2(rotary_dim // 2),
        BLOCK_REST=next_power_of_2(max(1, head_dim - rotary_dim)),
        BLOCK_D=next_power_of_2(head_dim),
        num_warps=4,
        **early(query.device),
    )


def rotary_embedding(
    query: Tensor,
    key: Tensor,
    positions: Tensor,
    cos_sin: Tensor,
    *,
    q_weight: Tensor | None = None,
    k_weight: Tensor | None = None,
    eps: float = 1e-6,
    check: bool = True,
) -> None:
    """Rotate queries and keys in place, after an RMS norm of each head where weights are given.

    Args:
        query: `[tokens, num_heads, head_dim]`, last dim contiguous.
        key: `[tokens, num_kv_heads, head_dim]`, last dim contiguous.
        positions: int32 or int64 `[tokens]`, rows of `cos_sin`.
        cos_sin: fp32 `[max_positions, rotary_dim]`; dims past `rotary_dim` are not rotated.
        q_weight: `[head_dim]`, the query norm's weight.
        k_weight: `[head_dim]`, the key norm's weight.
        eps: The norms' epsilon.
        check: Check the arguments first.

    Raises:
        ValueError: An argument has the wrong shape, dtype or strides.
    """
    if check:
        _check(query, key, positions, cos_sin, q_weight, k_weight)
    _launch(query, key, None, None, (q_weight, k_weight), positions, cos_sin, None, eps)


def rotary_kv_append(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    positions: Tensor,
    cos_sin: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    *,
    q_weight: Tensor | None = None,
    k_weight: Tensor | None = None,
    eps: float = 1e-6,
    check: bool = True,
) -> None:
    """Rotate queries in place and write rotated keys, and values, to their slots: one launch a layer.

    Args:
        query: `[tokens, num_heads, head_dim]`, last dim contiguous; rotated in place.
        key: `[tokens, num_kv_heads, head_dim]`, last dim contiguous; not changed.
        value: `[tokens, num_kv_heads, head_dim]`, last dim contiguous.
        positions: int32 or int64 `[tokens]`, rows of `cos_sin`.
        cos_sin: fp32 `[max_positions, rotary_dim]`; dims past `rotary_dim` are not rotated.
        k_cache: `[num_blocks, block_size, num_kv_heads, head_dim]`, any strides but a contiguous last dim.
        v_cache: Like `k_cache`, same strides.
        slot_mapping: int32 or int64 `[tokens]`, `block * block_size + offset`; negative tokens are left out
            of the cache.
        q_weight: `[head_dim]`: when given, with `k_weight`, heads pass an RMS norm before they are rotated.
        k_weight: See `q_weight`.
        eps: The norms' epsilon.
        check: Check the arguments first.

    Raises:
        ValueError: An argument has the wrong shape, dtype or strides.
    """
    if check:
        _check(query, key, positions, cos_sin, q_weight, k_weight)
        checks.caches(k_cache, v_cache)
        for name, new in (("key", key), ("value", value)):
            checks.shaped(name, new, query.shape[0], *k_cache.shape[2:])
            checks.typed(name, new, k_cache.dtype)
            checks.rows(name, new)
        checks.index("slot_mapping", slot_mapping, query.shape[0])
    weights = (q_weight, k_weight)
    _launch(query, key, value, (k_cache, v_cache), weights, positions, cos_sin, slot_mapping, eps)
