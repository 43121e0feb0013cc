"""Matrix products of few tokens, where a product takes less time than a library needs to begin it.

A decode step multiplies a few rows by matrices of a megabyte or so, each read once. What counts is how soon a
multiprocessor asks for its part of the matrix: a kernel here begins while the one before it ends, and where outputs are
few, several programs share one, each with a piece of the sum; `kernels.norms` adds the pieces up.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import checks
from kernels.activation import GELU_KINDS, gelu, sigmoid
from kernels.early import early, wait_for_inputs
from kernels.sizes import cdiv

MOST_TOKENS = 256
# Larger matrices keep a library's kernels busy for long enough; not measured.
MOST_WEIGHTS = 2**23
GATED = "silu_and_mul"


class LinearLaunch(NamedTuple):
    """How the kernel is launched.

    Attributes:
        block_m: Tokens of a tile.
        block_n: Outputs of a tile.
        block_k: Inputs of a step.
        pieces: Programs that share an output, each with its part of the inputs.
        head_start: Whether the first step's weights are read before the kernel waits for its inputs.
        num_stages: Steps in flight.
    """

    block_m: int
    block_n: int
    block_k: int
    pieces: int
    head_start: bool
    num_stages: int


def linear_launch(tokens: int, outputs: int, inputs: int, dtype: torch.dtype, *, pieces: bool) -> LinearLaunch | None:
    """The fastest of the launches tried on an H200 for the shapes of GPT-2 and Qwen3-0.6B.

    Args:
        tokens: Rows.
        outputs: Rows of the matrix; of a gated one, half of them.
        inputs: Columns of the matrix.
        dtype: Of both.
        pieces: Whether the result may come in pieces.

    Returns:
        None where a library does as well or better.
    """
    if dtype == torch.float32 or tokens > (MOST_TOKENS if pieces else 64) or outputs * inputs > MOST_WEIGHTS:
        return None
    launch = _launch_pieces(tokens, outputs, inputs) if pieces else LinearLaunch(64, 32, 128, 1, False, 5)
    if tokens <= 16:
        launch = launch._replace(block_m=16)
    fits = outputs % launch.block_n == 0 and inputs % (launch.block_k * launch.pieces) == 0
    return launch if fits else None


def _launch_pieces(tokens: int, outputs: int, inputs: int) -> LinearLaunch:
    if tokens > 64:
        return LinearLaunch(64, 64, 64 if inputs < 1024 else 128, 2, False, 5)
    if tokens > 16:
        return LinearLaunch(64, 32, 64 if inputs % 512 else 128, 4, False, 5)
    if inputs <= 2048 and inputs % 256 == 0:
        # A program has one step, whose weights are there when its inputs come.
        return LinearLaunch(16, 16 if outputs < 1024 else 32, 256, inputs // 256, True, 1)
    return LinearLaunch(16, 32, 128, 4, False, 5)


@triton.jit(do_not_specialize=["num_tokens"])
def linear_kernel(
    out_ptr,
    x_ptr,
    weight_ptr,
    bias_ptr,
    num_tokens,
    stride_x,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STEPS: tl.constexpr,
    HEAD_START: tl.constexpr,
    NUM_STAGES: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Grid: (tiles of outputs, pieces of the sum, tiles of tokens). A gated matrix holds gates, then values."""
    piece = tl.program_id(1)
    offs_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_m = tl.program_id(2) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_k = piece * (BLOCK_K * STEPS) + tl.arange(0, BLOCK_K)
    mask_m = (offs_m < num_tokens)[:, None]
    weight_ptrs = weight_ptr + offs_n[None, :] * INPUTS + offs_k[:, None]
    x_ptrs = x_ptr + offs_m[:, None].to(tl.int64) * stride_x + offs_k[None, :]
    gated: tl.constexpr = ACTIVATION == "silu_and_mul"
    if HEAD_START:
        weight = tl.load(weight_ptrs)
        if gated:
            values = tl.load(weight_ptrs + OUTPUTS * INPUTS)
    if EARLY:
        wait_for_inputs()
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    value_acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    first: tl.constexpr = 1 if HEAD_START else 0
    if HEAD_START:
        x = tl.load(x_ptrs, mask=mask_m, other=0.0)
        acc = tl.dot(x, weight, acc, input_precision="ieee")
        if gated:
            value_acc = tl.dot(x, values, value_acc, input_precision="ieee")
    for step in tl.range(first, STEPS, num_stages=NUM_STAGES):
        x = tl.load(x_ptrs + step * BLOCK_K, mask=mask_m, other=0.0)
        weight = tl.load(weight_ptrs + step * BLOCK_K)
        acc = tl.dot(x, weight, acc, input_precision="ieee")
        if gated:
            values = tl.load(weight_ptrs + OUTPUTS * INPUTS + step * BLOCK_K)
            value_acc = tl.dot(x, values, value_acc, input_precision="ieee")
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + offs_n).to(tl.float32)[None, :]
    if gated:
        acc = acc * sigmoid(acc) * value_acc
    elif ACTIVATION is not None:
        acc = gelu(acc, ACTIVATION)
    out_ptrs = out_ptr + (piece * num_tokens + offs_m[:, None]).to(tl.int64) * OUTPUTS + offs_n[None, :]
    tl.store(out_ptrs, acc.to(out_ptr.dtype.element_ty), mask=mask_m)


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, launch: LinearLaunch) -> None:
    checks.shaped("x", x, None, None)
    checks.typed("x", x, *checks.FLOATS)
    checks.rows("x", x)
    checks.shaped("weight", weight, None, x.shape[1])
    checks.typed("weight", weight, x.dtype)
    checks.require(weight.is_contiguous(), "weight must be contiguous")
    known = activation is None or activation in (*GELU_KINDS, GATED)
    checks.require(known, f"activation must be one of {', '.join((*GELU_KINDS, GATED))}, but is {activation!r}")
    checks.require(
        activation != GATED or (weight.shape[0] % 2 == 0 and bias is None),
        f"{GATED} must have an even number of outputs and no bias",
    )
    outputs, inputs = weight.shape[0] // (2 if activation == GATED else 1), x.shape[1]
    if bias is not None:
        checks.shaped("bias", bias, outputs)
    checks.require(
        outputs % launch.block_n == 0 and inputs % (launch.block_k * launch.pieces) == 0,
        f"{outputs} outputs and {inputs} inputs must be multiples of the launch's {launch.block_n} and "
        f"{launch.block_k * launch.pieces}",
    )


def _run(
    out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, launch: LinearLaunch
) -> Tensor:
    tokens, inputs = x.shape
    outputs = out.shape[-1]
    linear_kernel[(outputs // launch.block_n, launch.pieces, cdiv(tokens, launch.block_m))](
        out,
        x,
        weight,
        bias,
        tokens,
        x.stride(0),
        OUTPUTS=outputs,
        INPUTS=inputs,
        ACTIVATION=GELU_KINDS.get(activation, activation),
        BLOCK_M=launch.block_m,
        BLOCK_N=launch.block_n,
        BLOCK_K=launch.block_k,
        STEPS=inputs // launch.block_k // launch.pieces,
        HEAD_START=launch.head_start,
        NUM_STAGES=launch.num_stages,
        num_warps=4,
        num_stages=launch.num_stages,
        **early(x.device),
    )
    return out


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    *,
    launch: LinearLaunch,
    check: bool = True,
) -> Tensor:
    """`activation(x @ weight.T + bias)`, summed in fp32.

    Args:
        x: `[tokens, inputs]`, rows contiguous.
        weight: `[outputs, inputs]`, contiguous, `x`'s dtype. It may be read before kernels launched earlier have ended,
            so none of them may write it.
        bias: `[outputs]`, or None.
        activation: A key of `kernels.activation.GELU_KINDS`; or `silu_and_mul`, for which the matrix holds gates, then
            values; or None.
        launch: From `linear_launch`, of one piece.
        check: Check the arguments first.

    Returns:
        `[tokens, outputs]`, in `x`'s dtype.

    Raises:
        ValueError: An argument has the wrong shape, dtype, strides or value.
    """
    if check:
        checks.require(launch.pieces == 1, f"launch must have one piece, but has {launch.pieces}")
        _check(x, weight, bias, activation, launch)
    outputs = weight.shape[0] // (2 if activation == GATED else 1)
    return _run(x.new_empty((len(x), outputs)), x, weight, bias, activation, launch)


def linear_pieces(x: Tensor, weight: Tensor, *, launch: LinearLaunch, check: bool = True) -> Tensor:
    """Pieces that add up to `x @ weight.T`; arguments and errors as `linear` has them.

    Returns:
        fp32 `[launch.pieces, tokens, outputs]`.
    """
    if check:
        _check(x, weight, None, None, launch)
    out = torch.empty((launch.pieces, len(x), len(weight)), dtype=torch.float32, device=x.device)
    return _run(out, x, weight, None, None, launch)
