"""The residual sum and the norm after it, in one kernel."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import checks
from kernels.early import early, wait_for_inputs
from kernels.sizes import next_power_of_2


@triton.jit
def add_norm_kernel(
    out_ptr,
    x_ptr,
    x_bias_ptr,
    residual_ptr,
    weight_ptr,
    bias_ptr,
    eps,
    stride_xp,
    stride_xt,
    stride_rt,
    HIDDEN: tl.constexpr,
    BLOCK: tl.constexpr,
    PIECES: tl.constexpr,
    CENTRE: tl.constexpr,
    EARLY: tl.constexpr,
):
    """One program a row; with CENTRE a LayerNorm, without it an RMSNorm."""
    row = tl.program_id(0).to(tl.int64)
    offs = tl.arange(0, BLOCK)
    mask = offs < HIDDEN
    weight = tl.load(weight_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    if x_bias_ptr is not None:
        x_bias = tl.load(x_bias_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    if EARLY:
        wait_for_inputs()
    x_ptrs = x_ptr + row * stride_xt + offs
    x = tl.load(x_ptrs, mask=mask, other=0.0).to(tl.float32)
    for piece in tl.static_range(1, PIECES):
        x += tl.load(x_ptrs + piece * stride_xp, mask=mask, other=0.0).to(tl.float32)
    if x_bias_ptr is not None:
        x += x_bias
    if residual_ptr is not None:
        residual_ptrs = residual_ptr + row * stride_rt + offs
        total = x + tl.load(residual_ptrs, mask=mask, other=0.0).to(tl.float32)
        # The norm sees the sum as the next layer will, rounded to its dtype.
        rounded = total.to(residual_ptr.dtype.element_ty)
        tl.store(residual_ptrs, rounded, mask=mask)
        x = rounded.to(tl.float32)
    if CENTRE:
        x = tl.where(mask, x - tl.sum(x, 0) / HIDDEN, 0.0)
    x *= tl.rsqrt(tl.sum(x * x, 0) / HIDDEN + eps)
    x *= weight
    if bias_ptr is not None:
        x += bias
    tl.store(out_ptr + row * HIDDEN + offs, x.to(out_ptr.dtype.element_ty), mask=mask)


def _add_norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    x_bias: Tensor | None,
    out: Tensor | None,
    *,
    centre: bool,
    check: bool,
) -> Tensor:
    num_tokens, hidden = x.shape[-2:]
    pieces = len(x) if x.ndim > 2 else 1
    if out is None:
        out = torch.empty((num_tokens, hidden), dtype=(x if residual is None else residual).dtype, device=x.device)
    if check:
        checks.shaped("x", x, *([None] if x.ndim == 3 else []), None, None)
        checks.shaped("out", out, num_tokens, hidden)
        checks.require(out.is_contiguous(), "out must be contiguous")
        for name, tensor in (("weight", weight), ("bias", bias), ("x_bias", x_bias)):
            if tensor is not None:
                checks.shaped(name, tensor, hidden)
        for name, tensor in (("x", x), ("residual", residual)):
            if tensor is not None:
                checks.typed(name, tensor, *checks.FLOATS)
                checks.rows(name, tensor)
        if residual is not None:
            checks.shaped("residual", residual, num_tokens, hidden)
    block = next_power_of_2(hidden)
    add_norm_kernel[(num_tokens,)](
        out,
        x,
        x_bias,
        residual,
        weight,
        bias,
        eps,
        x.stride(0) if pieces > 1 else 0,
        x.stride(-2),
        residual.stride(0) if residual is not None else 0,
        HIDDEN=hidden,
        BLOCK=block,
        PIECES=pieces,
        CENTRE=centre,
        # Eight values a thread: one 16-byte load of a 16-bit row.
        num_warps=min(16, max(1, block // 256)),
        **early(x.device),
    )
    return out


def add_layer_norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    *,
    x_bias: Tensor | None = None,
    out: Tensor | None = None,
    check: bool = True,
) -> Tensor:
    """`residual += x + x_bias` in place, and the LayerNorm of the sum.

    Args:
        x: `[tokens, hidden]`, rows contiguous; or `[pieces, tokens, hidden]`, which are added up in fp32.
        residual: `[tokens, hidden]`, updated in place; without it the norm is of `x + x_bias`.
        weight: `[hidden]`. It may be read before kernels launched earlier have ended, so none of them may write it;
            likewise `bias` and `x_bias`.
        bias: `[hidden]`, or None.
        eps: The norm's epsilon.
        x_bias: `[hidden]`, or None.
        out: `[tokens, hidden]`, contiguous; allocated when not given, in the residual's dtype.
        check: Check the arguments first.

    Returns:
        `out`.

    Raises:
        ValueError: An argument has the wrong shape, dtype or strides.
    """
    return _add_norm(x, residual, weight, bias, eps, x_bias, out, centre=True, check=check)


def add_rms_norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    eps: float,
    *,
    x_bias: Tensor | None = None,
    out: Tensor | None = None,
    check: bool = True,
) -> Tensor:
    """`residual += x + x_bias` in place, and the RMSNorm of the sum; arguments as `add_layer_norm` has them."""
    return _add_norm(x, residual, weight, None, eps, x_bias, out, centre=False, check=check)
