import math

import pytest
import torch
import triton
import triton.language as tl

from kernels import inverse_rope_fp8 as fp8
from kernels import reference


@triton.jit
def scale_kernel(out_ptr, absmax_ptr, n, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < n
    absmax = tl.maximum(tl.load(absmax_ptr + offs, mask=mask, other=1.0), 1e-10)
    tl.store(out_ptr + offs, fp8.power_of_two(fp8.scale_exponent(absmax)), mask=mask)


def borders():
    """On, just under and just above every 448 * 2**k of a float32, and around the least absmax."""
    edges = torch.tensor([448.0 * 2.0**k for k in range(-42, 120)] + [1e-10], dtype=torch.float32)
    below, above = (edges.nextafter(torch.tensor(to)) for to in (0.0, math.inf))
    return torch.cat([below, edges, above, torch.tensor([0.0, 1e-30])])


def test_scales_are_the_smallest_powers_of_two_that_do(memory, rng):
    absmax = torch.cat([borders(), torch.rand(2000, generator=rng) * 1000])
    n = len(absmax)
    out = memory.unwritten(n, dtype=torch.float32)
    scale_kernel[(triton.cdiv(n, 256),)](out, memory.frozen(absmax), n, BLOCK=256)
    assert torch.equal(out, reference.fp8_scale(absmax).to(out.device))
    exact = absmax.double().clamp(min=1e-10).to(out.device)
    assert (exact <= 448 * out.double()).all()
    assert (exact > 224 * out.double()).all()
    assert torch.equal(torch.frexp(out)[0], torch.full_like(out, 0.5))


class Case:
    def __init__(
        self,
        memory,
        rng,
        *,
        num_tokens,
        num_groups,
        heads_per_group,
        head_dim=512,
        rotary_dim=64,
        dtype=torch.float32,
        packed=False,
        out_dtype=torch.float32,
    ):
        self.memory, self.num_groups, self.packed = memory, num_groups, packed
        num_heads = num_groups * heads_per_group
        # Heads of a wider buffer, and magnitudes over many binades.
        o = torch.randn(num_tokens, num_heads + 1, head_dim, generator=rng)
        o *= torch.exp2(torch.randint(-20, 20, (num_tokens, num_heads + 1, 1), generator=rng))
        o[0, 0, :130] = 0.0
        o[0, 0, 5] = -0.0
        self.o = memory.frozen(o.clamp(-6e4, 6e4).to(dtype))[:, :num_heads]
        self.positions = memory.frozen(torch.randint(50, (num_tokens,), generator=rng))
        angle = torch.rand(50, rotary_dim // 2, generator=rng) * 6.3
        self.cos_sin = memory.frozen(torch.cat([angle.cos(), angle.sin()], 1))
        padded = -(-num_tokens // 4) * 4
        num_scales = heads_per_group * (1 if packed else head_dim // 128)
        values = torch.full((num_groups, num_tokens, heads_per_group * head_dim), math.nan).to(out_dtype)
        scales = memory.unwritten(num_groups, num_scales, padded, dtype=torch.int32 if packed else torch.float32)
        self.buffers = memory.place(values), scales

    def expected(self):
        rotated = reference.inverse_rotary(self.o, self.positions, self.cos_sin)
        values, scales = reference.quantise_fp8(rotated, 128)
        values = values.unflatten(1, (self.num_groups, -1)).flatten(2)
        return values, scales.unflatten(1, (self.num_groups, -1)).flatten(2).transpose(0, 1)

    def check(self, specialize="complete"):
        values, scales = fp8.inverse_rope_fp8(
            self.o,
            self.positions,
            self.cos_sin,
            self.num_groups,
            specialize=specialize,
            packed=self.packed,
            buffers=self.buffers,
        )
        want_values, want_scales = self.expected()
        if self.packed:
            exponents = torch.frexp(want_scales)[1] + 126
            shift = torch.tensor([1, 2**8, 2**16, 2**24], device=exponents.device)
            want_scales = (exponents.unflatten(2, (-1, 4)).long() * shift).sum(-1)
            want_scales = torch.where(want_scales >= 2**31, want_scales - 2**32, want_scales).int()
        assert torch.equal(scales, want_scales)
        assert scales.stride(1) == 1
        num_tokens = len(self.o)
        assert not self.buffers[1][:, :, num_tokens:].any()
        want_values = want_values.to(values.dtype)
        bits = {torch.float32: torch.int32, torch.float8_e4m3fn: torch.uint8}[values.dtype]
        assert torch.equal(values.contiguous().view(bits), want_values.contiguous().view(bits))


SHAPES = [
    {"num_tokens": 1, "num_groups": 1, "heads_per_group": 1},
    {"num_tokens": 2, "num_groups": 2, "heads_per_group": 2},
    {"num_tokens": 13, "num_groups": 2, "heads_per_group": 1, "packed": True},
    {"num_tokens": 16, "num_groups": 1, "heads_per_group": 3},
    {"num_tokens": 35, "num_groups": 1, "heads_per_group": 2, "packed": True},
    {"num_tokens": 5, "num_groups": 1, "heads_per_group": 2, "head_dim": 128, "rotary_dim": 128},
    {"num_tokens": 5, "num_groups": 1, "heads_per_group": 1, "head_dim": 256, "rotary_dim": 32},
]


@pytest.mark.parametrize("specialize", fp8.SPECIALIZE)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_scales_and_values_before_the_cast(memory, rng, shape, specialize):
    # The interpreter's own cast to e4m3 is wrong, so the values are stored as they are before it.
    Case(memory, rng, **shape).check(specialize)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_values_of_16_bit_inputs(memory, rng, dtype):
    Case(memory, rng, num_tokens=6, num_groups=1, heads_per_group=2, dtype=dtype).check()


@pytest.mark.gpu
@pytest.mark.parametrize("specialize", fp8.SPECIALIZE)
@pytest.mark.parametrize("num_tokens", [1, 2, 13, 16, 62, 4097])
@pytest.mark.parametrize("packed", [False, True])
def test_bytes(rng, num_tokens, specialize, packed):
    class Unwatched:
        place = frozen = staticmethod(lambda tensor: tensor.cuda())

        @staticmethod
        def unwritten(*shape, dtype):
            return torch.full(shape, 7, dtype=dtype, device="cuda")

    Case(
        Unwatched,
        rng,
        num_tokens=num_tokens,
        num_groups=2,
        heads_per_group=4,
        dtype=torch.bfloat16,
        packed=packed,
        out_dtype=torch.float8_e4m3fn,
    ).check(specialize)


@pytest.mark.gpu
def test_bytes_at_the_borders():
    absmax = borders()
    absmax = absmax[absmax < 1e30]
    o = torch.zeros(len(absmax), 1, 128)
    o[:, 0, 0] = absmax
    o[:, 0, 1] = -absmax / 3
    cos_sin = torch.tensor([[1.0, 1.0, 0.0, 0.0]]).cuda()
    positions = torch.zeros(len(o), dtype=torch.int64, device="cuda")
    values, scales = fp8.inverse_rope_fp8(o.cuda(), positions, cos_sin, 1)
    want, want_scales = reference.quantise_fp8(o, 128)
    assert torch.equal(scales[0].cpu(), want_scales[:, 0])
    assert torch.equal(values.cpu().view(torch.uint8), want.to(torch.float8_e4m3fn).view(torch.uint8))


@pytest.mark.gpu
def test_addresses_beyond_32_bits(rng):
    num_tokens, num_heads = 2**18 + 5, 16
    o = torch.randn(1, num_heads, 512, generator=rng).bfloat16().cuda().repeat(num_tokens, 1, 1)
    o[-1] = torch.randn(num_heads, 512, generator=rng).bfloat16()
    assert o.numel() > 2**31
    cos_sin = torch.cat([torch.ones(1, 32), torch.zeros(1, 32)], 1).cuda()
    positions = torch.zeros(num_tokens, dtype=torch.int64, device="cuda")
    values, scales = fp8.inverse_rope_fp8(o, positions, cos_sin, 2)
    want, want_scales = reference.quantise_fp8(o[-1:].float(), 128)
    assert torch.equal(
        values[-1].reshape(-1).view(torch.uint8), want.to(torch.float8_e4m3fn).reshape(-1).view(torch.uint8)
    )
    assert torch.equal(scales[:, -1].reshape(-1), want_scales.reshape(-1))


def test_outputs_are_laid_out_as_promised(memory, rng):
    case = Case(memory, rng, num_tokens=5, num_groups=2, heads_per_group=1)
    values, scales = fp8.inverse_rope_fp8(case.o, case.positions, case.cos_sin, 2, buffers=None, specialize="default")
    assert values.shape == (5, 2, 512)
    assert values.dtype == torch.float8_e4m3fn
    assert values.transpose(0, 1).is_contiguous()
    assert scales.shape == (2, 5, 4)
    assert scales.stride() == (4 * 8, 1, 8)


def test_wrong_arguments_are_named(memory, rng):
    case = Case(memory, rng, num_tokens=5, num_groups=2, heads_per_group=1)
    good = {"o": case.o, "positions": case.positions, "cos_sin": case.cos_sin, "num_groups": 2}
    for change, message in [
        ({"num_groups": 3}, "the 2 heads must divide into num_groups, which is 3"),
        ({"specialize": "all"}, "specialize must be 'default', 'num_tokens' or 'complete', but is 'all'"),
        ({"positions": case.positions[1:]}, r"positions must have shape \[5\], but has \[4\]"),
        ({"o": case.o[..., :100]}, "o's last dim must be a multiple of 128, but is 100"),
        ({"o": case.o[..., :128], "packed": True}, "packed scales need a last dim of 512, but it is 128"),
        ({"o": case.o.as_strided((5, 2, 512), (1025, 512, 1))}, "o.s strides must be multiples of 8"),
        ({"cos_sin": case.cos_sin.double()}, "cos_sin must be float32, but is float64"),
        (
            {"cos_sin": case.cos_sin.as_strided((5, 64), (66, 1))},
            "cos_sin's row stride must be a multiple of 4",
        ),
        ({"cos_sin": case.cos_sin[:, :63]}, "cos_sin must have an even width of at most 128, but it is 63"),
    ]:
        with pytest.raises(ValueError, match=message):
            fp8.inverse_rope_fp8(**(good | change))
