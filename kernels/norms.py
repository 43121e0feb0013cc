"""The residual sum and the norm after it, in one kernel."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import checks
from kernels.sizes import next_power_of_2


@triton.jit
def add_norm_kernel(
    out_ptr,
    x_ptr,
    residual_ptr,
    weight_ptr,
    bias_ptr,
    eps,
    stride_xt,
    stride_rt,
    HIDDEN: tl.constexpr,
    BLOCK: tl.constexpr,
    CENTRE: tl.constexpr,
):
    """One program a row; with CENTRE a LayerNorm, without it an RMSNorm."""
    row = tl.program_id(0).to(tl.int64)
    offs = tl.arange(0, BLOCK)
    mask = offs < HIDDEN
    x = tl.load(x_ptr + row * stride_xt + offs, mask=mask, other=0.0).to(tl.float32)
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
    x *= tl.load(weight_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    if bias_ptr is not None:
        x += tl.load(bias_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * HIDDEN + offs, x.to(out_ptr.dtype.element_ty), mask=mask)


def _add_norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    out: Tensor | None,
    *,
    centre: bool,
    check: bool,
) -> Tensor:
    if out is None:
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
    if check:
        checks.shaped("x", x, None, None)
        num_tokens, hidden = x.shape
        checks.shaped("out", out, num_tokens, hidden)
        checks.require(out.is_contiguous(), "out must be contiguous")
        checks.shaped("weight", weight, hidden)
        if bias is not None:
            checks.shaped("bias", bias, hidden)
        for name, tensor in (("x", x), ("residual", residual)):
            if tensor is not None:
                checks.typed(name, tensor, *checks.FLOATS)
                checks.shaped(name, tensor, num_tokens, hidden)
                checks.rows(name, tensor)
    num_tokens, hidden = x.shape
    block = next_power_of_2(hidden)
    add_norm_kernel[(num_tokens,)](
        out,
        x,
        residual,
        weight,
        bias,
        eps,
        x.stride(0),
        residual.stride(0) if residual is not None else 0,
        HIDDEN=hidden,
        BLOCK=block,
        CENTRE=centre,
        # Eight values a thread: one 16-byte load of a 16-bit row.
        num_warps=min(16, max(1, block // 256)),
    )
    return out


def add_layer_norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    *,
    out: Tensor | None = None,
    check: bool = True,
) -> Tensor:
    """`residual += x` in place, and the LayerNorm of the sum.

    Args:
        x: `[tokens, hidden]`, rows contiguous.
        residual: `[tokens, hidden]`, updated in place; without it the norm is of `x`.
        weight: `[hidden]`.
        bias: `[hidden]`, or None.
        eps: The norm's epsilon.
        out: `[tokens, hidden]`, contiguous; allocated when not given.
        check: Check the arguments first.

    Returns:
        `out`.

    Raises:
        ValueError: An argument has the wrong shape, dtype or strides.
    """
    return _add_norm(x, residual, weight, bias, eps, out, centre=True, check=check)


def add_rms_norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    eps: float,
    *,
    out: Tensor | None = None,
    check: bool = True,
) -> Tensor:
    """`residual += x` in place, and the RMSNorm of the sum; arguments as `add_layer_norm` has them."""
    return _add_norm(x, residual, weight, None, eps, out, centre=False, check=check)
