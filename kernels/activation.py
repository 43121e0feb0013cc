"""The activations between the two halves of an MLP."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import checks
from kernels.early import early, wait_for_inputs
from kernels.sizes import cdiv, next_power_of_2

# What model configs call them, by what they compute.
GELU_KINDS = {
    "gelu": "erf",
    "gelu_python": "erf",
    "gelu_new": "tanh",
    "gelu_fast": "tanh",
    "gelu_accurate": "tanh",
    "gelu_pytorch_tanh": "tanh",
    "quick_gelu": "sigmoid",
}


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x))."""
    # The exponent is never positive, so nothing overflows.
    decay = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1.0, decay) / (1.0 + decay)


@triton.jit
def gelu(x, KIND: tl.constexpr):
    """GELU in fp32, of a kind that `GELU_KINDS` names."""
    if KIND == "erf":
        y = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif KIND == "tanh":
        # 0.5 * (1 + tanh(u)) is sigmoid(2 * u), with u = sqrt(2 / pi) * (x + 0.044715 * x**3).
        y = x * sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    else:
        y = x * sigmoid(1.702 * x)
    return y


@triton.jit
def bias_gelu_kernel(
    out_ptr,
    x_ptr,
    bias_ptr,
    stride_xt,
    WIDTH: tl.constexpr,
    KIND: tl.constexpr,
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Grid: (rows, pieces of a row)."""
    row = tl.program_id(0).to(tl.int64)
    offs = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < WIDTH
    if EARLY:
        wait_for_inputs()
    x = tl.load(x_ptr + row * stride_xt + offs, mask=mask, other=0.0).to(tl.float32)
    if bias_ptr is not None:
        x += tl.load(bias_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * WIDTH + offs, gelu(x, KIND).to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def silu_and_mul_kernel(out_ptr, x_ptr, stride_xt, WIDTH: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr):
    """Grid: (rows, pieces of a row); a row holds WIDTH gates, then WIDTH values."""
    row = tl.program_id(0).to(tl.int64)
    offs = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < WIDTH
    if EARLY:
        wait_for_inputs()
    gate = tl.load(x_ptr + row * stride_xt + offs, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + row * stride_xt + WIDTH + offs, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * WIDTH + offs, (gate * sigmoid(gate) * up).to(out_ptr.dtype.element_ty), mask=mask)


def _check(x: Tensor, out: Tensor, width: int) -> None:
    checks.shaped("x", x, None, None)
    checks.typed("x", x, *checks.FLOATS)
    checks.rows("x", x)
    checks.shaped("out", out, x.shape[0], width)
    checks.require(out.is_contiguous(), "out must be contiguous")


def bias_gelu(x: Tensor, bias: Tensor | None, kind: str, *, out: Tensor | None = None, check: bool = True) -> Tensor:
    """GELU of `x + bias`, in the variant that the model's config names.

    Args:
        x: `[tokens, width]`, rows contiguous.
        bias: `[width]`, or None.
        kind: A key of `GELU_KINDS`: `gelu` is exact, `gelu_new` and its like go by tanh, `quick_gelu` by
            sigmoid.
        out: `[tokens, width]`, contiguous; allocated when not given.
        check: Check the arguments first.

    Returns:
        `out`.

    Raises:
        ValueError: An argument has the wrong shape, dtype, strides or value.
    """
    num_tokens, width = x.shape
    if out is None:
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
    if check:
        _check(x, out, width)
        if bias is not None:
            checks.shaped("bias", bias, width)
        checks.require(kind in GELU_KINDS, f"kind must be one of {', '.join(GELU_KINDS)}, but is {kind!r}")
    block = min(1024, next_power_of_2(width))
    bias_gelu_kernel[(num_tokens, cdiv(width, block))](
        out, x, bias, x.stride(0), WIDTH=width, KIND=GELU_KINDS[kind], BLOCK=block, **early(x.device)
    )
    return out


def silu_and_mul(x: Tensor, *, out: Tensor | None = None, check: bool = True) -> Tensor:
    """`silu(x[:, :width]) * x[:, width:]`.

    Args:
        x: `[tokens, 2 * width]`, rows contiguous: the gates, then the values.
        out: `[tokens, width]`, contiguous; allocated when not given.
        check: Check the arguments first.

    Returns:
        `out`.

    Raises:
        ValueError: An argument has the wrong shape, dtype or strides.
    """
    num_tokens, width = x.shape[0], x.shape[1] // 2
    if out is None:
        out = torch.empty(num_tokens, width, dtype=x.dtype, device=x.device)
    if check:
        checks.require(x.shape[1] % 2 == 0, f"x must have an even width, but it is {x.shape[1]}")
        _check(x, out, width)
    block = min(1024, next_power_of_2(width))
    silu_and_mul_kernel[(num_tokens, cdiv(width, block))](
        out, x, x.stride(0), WIDTH=width, BLOCK=block, **early(x.device)
    )
    return out
