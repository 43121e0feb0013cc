"""The small kernels of a step: norms, activations, embedding."""

import pytest
import torch

from kernels import activation, reference
from kernels.embedding import embed
from kernels.norms import add_layer_norm, add_rms_norm
from tests.kernels.helpers import rounding

DTYPES = [torch.float32, torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.gpu)]
SIZES = [(1, 64), (3, 80), (5, 768), (2, 1000), (257, 96)]


def close(got, want, dtype, absolute):
    """Within one rounding of the output, and of `absolute`, the error of what was computed in fp32."""
    bound = want.abs() * rounding(dtype) + absolute + torch.finfo(dtype).smallest_normal
    assert ((got.double() - want).abs() <= bound).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kind", ["layer", "rms"])
@pytest.mark.parametrize("residual", [False, True])
def test_add_norm(memory, rng, size, dtype, kind, residual):
    tokens, hidden = size
    wide = memory.frozen((torch.randn(tokens, hidden + 8, generator=rng) * 3 + 1).to(dtype))
    x = wide[:, :hidden]
    residual = memory.place(torch.randn(tokens, hidden, generator=rng).to(dtype)) if residual else None
    weight, bias = (memory.frozen(torch.randn(hidden, generator=rng).to(dtype)) for _ in range(2))
    total = x if residual is None else (x.float() + residual.float()).to(dtype)
    out = memory.unwritten(tokens, hidden, dtype=dtype)
    if kind == "layer":
        assert add_layer_norm(x, residual, weight, bias, 1e-5, out=out) is out
        want = reference.layer_norm(total, weight, bias, 1e-5)
        centred = total.double() - total.double().mean(-1, keepdim=True)
    else:
        assert add_rms_norm(x, residual, weight, 1e-5, out=out) is out
        want = reference.rms_norm(total, weight, 1e-5)
        centred = total.double()
    if residual is not None:
        assert torch.equal(residual, total)
    # The mean is off by up to `hidden` roundings of the largest value, and so is every value less the mean.
    scale = total.double().abs().amax(-1, keepdim=True) / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    close(out, want, dtype, (4 * scale * weight.double().abs() + 1) * (hidden + 16) * rounding(torch.float32))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", activation.GELU_KINDS)
@pytest.mark.parametrize("with_bias", [False, True])
def test_bias_gelu(memory, rng, kind, dtype, with_bias):
    width = 1500
    x = memory.frozen((torch.randn(3, width + 4, generator=rng) * 4).to(dtype))[:, :width]
    bias = memory.frozen(torch.randn(width, generator=rng).to(dtype)) if with_bias else None
    out = memory.unwritten(3, width, dtype=dtype)
    assert activation.bias_gelu(x, bias, kind, out=out) is out
    total = x.double() if bias is None else x.double() + bias.double()
    # In fp32 the tail of 1 + erf(x) is a difference of numbers near 1; the rest is a few roundings of
    # arguments of up to 2 * |u|, which are relative errors of the sigmoid.
    u = 1.6 * (total.abs() + 0.045 * total.abs() ** 3) + 2
    exact = reference.gelu(total, kind)
    absolute = 4 * total.abs() * rounding(torch.float32) + 8 * u * exact.abs() * rounding(torch.float32)
    close(out, exact, dtype, absolute)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [64, 1100])
def test_silu_and_mul(memory, rng, width, dtype):
    x = memory.frozen((torch.randn(3, 2 * width, generator=rng) * 4).to(dtype))
    out = memory.unwritten(3, width, dtype=dtype)
    assert activation.silu_and_mul(x, out=out) is out
    want = reference.silu_and_mul(x)
    steps = x[:, :width].double().abs() + 8
    close(out, want, dtype, want.abs() * steps * rounding(torch.float32))


def test_activations_of_very_large_values_are_finite(memory):
    x = memory.frozen(torch.tensor([[-1e4, -200.0, 200.0, 1e4]]))
    for kind in activation.GELU_KINDS:
        assert torch.equal(activation.bias_gelu(x, None, kind), x.clamp(min=0.0))
    pairs = torch.cat([x, torch.ones_like(x)], 1)
    assert torch.equal(activation.silu_and_mul(pairs), x.clamp(min=0.0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hidden", [64, 1100])
@pytest.mark.parametrize("with_positions", [False, True])
def test_embedding(memory, rng, hidden, dtype, with_positions):
    weight = memory.frozen(torch.randn(30, hidden, generator=rng).to(dtype))
    position_weight = memory.frozen(torch.randn(9, hidden, generator=rng).to(dtype))
    ids = memory.frozen(torch.tensor([29, 0, 7]))
    positions = memory.frozen(torch.tensor([8, 0, 3], dtype=torch.int32))
    out = memory.unwritten(3, hidden, dtype=dtype)
    extra = (positions, position_weight) if with_positions else ()
    assert embed(ids, weight, *extra, out=out) is out
    want = weight[ids].double() + (position_weight[positions.long()].double() if with_positions else 0.0)
    close(out, want, dtype, want.abs() * rounding(torch.float32))


def test_wrong_arguments_are_named():
    x = torch.zeros(2, 64)
    weight = torch.zeros(64)
    with pytest.raises(ValueError, match=r"residual must have shape \[2, 64\], but has \[2, 32\]"):
        add_rms_norm(x, x[:, :32], weight, 1e-5)
    with pytest.raises(ValueError, match="out must be contiguous"):
        add_layer_norm(x, None, weight, weight, 1e-5, out=torch.zeros(64, 2).T)
    with pytest.raises(ValueError, match=r"kind must be one of gelu, .*, but is 'relu'"):
        activation.bias_gelu(x, None, "relu")
    with pytest.raises(ValueError, match="x must have an even width, but it is 63"):
        activation.silu_and_mul(x[:, :63])
    with pytest.raises(ValueError, match="positions and position_weight must be given together, or neither"):
        embed(torch.zeros(2, dtype=torch.int64), x, torch.zeros(2, dtype=torch.int64))
