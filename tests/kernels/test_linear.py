"""Matrix products of few tokens, whole and in pieces."""

import pytest
import torch

from kernels import reference
from kernels.activation import GELU_KINDS
from kernels.linear import GATED, MOST_WEIGHTS, LinearLaunch, linear, linear_launch, linear_pieces
from kernels.norms import add_layer_norm, add_rms_norm
from tests.kernels.helpers import rounding

DTYPES = [torch.float32, torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.gpu)]
LAUNCHES = [
    # One step or several, of one tile of tokens or several, with and without a head start.
    LinearLaunch(16, 16, 32, 1, False, 2),
    LinearLaunch(16, 32, 32, 1, True, 1),
    LinearLaunch(64, 32, 32, 1, True, 2),
    LinearLaunch(16, 16, 32, 3, True, 1),
    LinearLaunch(16, 32, 16, 3, False, 3),
]


def case(memory, rng, dtype, tokens, outputs, inputs):
    """Rows in a wider tensor, weights, a bias."""
    x = memory.frozen(torch.randn(tokens, inputs + 8, generator=rng).to(dtype))[:, :inputs]
    return x, *(memory.frozen(torch.randn(*size, generator=rng).to(dtype)) for size in ((outputs, inputs), (outputs,)))


def assert_close(got, exact, sizes, dtype):
    """Within one rounding of the output, and an fp32 sum's error by the sum of sizes of what is added up."""
    bound = exact.abs() * rounding(dtype) + 300 * sizes * rounding(torch.float32)
    assert ((got.double() - exact).abs() <= bound).all()


@pytest.mark.parametrize("launch", [one for one in LAUNCHES if one.pieces == 1], ids=str)
@pytest.mark.parametrize("tokens", [1, 17])
@pytest.mark.parametrize("activation", [None, *dict.fromkeys(GELU_KINDS.values()), GATED])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_product_whole(memory, rng, dtype, activation, tokens, launch):
    outputs = 64
    x, weight, bias = case(memory, rng, dtype, tokens, outputs * (2 if activation == GATED else 1), 96)
    kind = next((name for name, how in GELU_KINDS.items() if how == activation), activation)
    bias = None if activation == GATED else bias
    got = linear(x, weight, bias, kind, launch=launch)
    exact, sizes = x.double() @ weight.double().T, x.double().abs() @ weight.double().abs().T
    if bias is not None:
        exact, sizes = exact + bias.double(), sizes + bias.double().abs()
    if activation == GATED:
        gate, value = exact.chunk(2, 1)
        # Errors of the gate count as often as the value is large, and the other way round.
        exact = reference.silu_and_mul(exact)
        sizes = sizes[:, :outputs] * (value.abs() + 1) + sizes[:, outputs:] * (gate.abs() + 1)
    elif activation is not None:
        exact = reference.gelu(exact, kind)
    assert (got.shape, got.dtype) == ((tokens, outputs), dtype)
    assert_close(got, exact, sizes, dtype)


@pytest.mark.parametrize("launch", LAUNCHES, ids=str)
@pytest.mark.parametrize("tokens", [1, 17])
@pytest.mark.parametrize("dtype", DTYPES)
def test_pieces_add_up(memory, rng, dtype, tokens, launch):
    x, weight, _ = case(memory, rng, dtype, tokens, 64, 96)
    pieces = linear_pieces(x, weight, launch=launch)
    assert (pieces.shape, pieces.dtype) == ((launch.pieces, tokens, 64), torch.float32)
    width = 96 // launch.pieces
    for i, piece in enumerate(pieces):
        part = slice(i * width, (i + 1) * width)
        exact = x[:, part].double() @ weight[:, part].double().T
        assert_close(piece, exact, x[:, part].double().abs() @ weight[:, part].double().abs().T, torch.float32)


@pytest.mark.parametrize("kind", ["layer", "rms"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_norm_of_pieces_is_that_of_their_sum(memory, rng, dtype, kind):
    pieces = memory.frozen(torch.randn(3, 5, 80, generator=rng))
    x_bias, weight, bias, start = (memory.frozen(torch.randn(80, generator=rng).to(dtype)) for _ in range(4))
    residual = memory.place(start.cpu().repeat(5, 1))
    if kind == "layer":
        got = add_layer_norm(pieces, residual, weight, bias, 1e-5, x_bias=x_bias)
        want = reference.layer_norm(residual, weight, bias, 1e-5)
    else:
        got = add_rms_norm(pieces, residual, weight, 1e-5, x_bias=x_bias)
        want = reference.rms_norm(residual, weight, 1e-5)
    total = pieces.double().sum(0) + x_bias.double() + start.double()
    sizes = pieces.double().abs().sum(0) + x_bias.double().abs() + start.double().abs()
    assert_close(residual, total, sizes, dtype)
    assert got.dtype == dtype
    # Of values near 1 and weights of a few.
    assert ((got.double() - want).abs() <= want.abs() * rounding(dtype) + 1e-4).all()


# GPT-2, Qwen3-0.6B, and what they are not.
@pytest.mark.parametrize("tokens", [1, 16, 17, 64, 65, 256])
@pytest.mark.parametrize(
    ("outputs", "inputs"), [(768, 768), (768, 3072), (1024, 2048), (1024, 3072), (64, 256), (4096, 1024)]
)
def test_launches_fit(tokens, outputs, inputs):
    for pieces in (False, True):
        launch = linear_launch(tokens, outputs, inputs, torch.bfloat16, pieces=pieces)
        assert (launch is None) == (not pieces and tokens > 64)
        if launch is not None:
            assert pieces or launch.pieces == 1
            assert outputs % launch.block_n == inputs % (launch.block_k * launch.pieces) == 0
            steps = inputs // launch.block_k // launch.pieces
            assert steps > 1 or launch.head_start or launch.num_stages > 1


@pytest.mark.parametrize(
    ("tokens", "outputs", "inputs", "dtype"),
    [
        (257, 768, 768, torch.bfloat16),
        (8, 768, 768, torch.float32),
        (8, 768, MOST_WEIGHTS // 768 + 256, torch.bfloat16),
        (8, 769, 768, torch.bfloat16),
        (8, 768, 769, torch.bfloat16),
    ],
)
def test_what_a_library_does(tokens, outputs, inputs, dtype):
    assert linear_launch(tokens, outputs, inputs, dtype, pieces=True) is None


def test_wrong_arguments_are_named():
    x, launch = torch.zeros(2, 96), LinearLaunch(16, 32, 32, 1, False, 2)
    with pytest.raises(ValueError, match=r"weight must have shape \[any, 96\], but has \[64, 95\]"):
        linear(x, torch.zeros(64, 95), launch=launch)
    with pytest.raises(ValueError, match="weight must be contiguous"):
        linear(x, torch.zeros(96, 64).T, launch=launch)
    with pytest.raises(ValueError, match=r"activation must be one of gelu, .*, silu_and_mul, but is 'relu'"):
        linear(x, torch.zeros(64, 96), None, "relu", launch=launch)
    with pytest.raises(ValueError, match="silu_and_mul must have an even number of outputs and no bias"):
        linear(x, torch.zeros(64, 96), torch.zeros(64), GATED, launch=launch)
    with pytest.raises(ValueError, match="65 outputs and 96 inputs must be multiples of the launch's 32 and 32"):
        linear(x, torch.zeros(65, 96), launch=launch)
    with pytest.raises(ValueError, match="launch must have one piece, but has 3"):
        linear(x, torch.zeros(64, 96), launch=launch._replace(pieces=3))
