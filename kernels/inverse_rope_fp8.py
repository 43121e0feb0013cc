"""Undoing the rotary embedding of attention outputs and quantising them to FP8, in one kernel.

Three ways to compile the same computation, to be compared: Triton keys a compiled kernel by whether each
integer argument is 1, a multiple of 16 or neither, and by whether it fits 32 bits, so a kernel whose token
count changes is compiled again and again unless told otherwise.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import checks
from kernels.sizes import cdiv

CHUNK = 128
FP8_MAX = tl.constexpr(448.0)
# What strides of `o` and `cos_sin` are multiples of, and tokens that scales are padded to a multiple of.
ALIGNED = tl.constexpr(8)
COS_ALIGNED = tl.constexpr(4)
PADDED = tl.constexpr(4)
SPECIALIZE = ("default", "num_tokens", "complete")


@triton.jit
def scale_exponent(absmax):
    """The biased exponent of the smallest power of two that is at least absmax / 448; absmax is normal."""
    bits = absmax.to(tl.int32, bitcast=True)
    # 448 is 1.75 * 2**8: 8 less than absmax's own exponent, and one more where its mantissa is over 1.75.
    # Logarithms would do it too, but come out too small at the float just above 448 * 2**k.
    return (bits >> 23) - 8 + ((bits & 0x7FFFFF) > 0x600000).to(tl.int32)


@triton.jit
def power_of_two(biased_exponent):
    """The float32 with this exponent and no mantissa."""
    return (biased_exponent << 23).to(tl.float32, bitcast=True)


@triton.jit
def _inverse_rope_fp8(
    o_ptr,
    positions_ptr,
    cos_sin_ptr,
    fp8_ptr,
    scale_ptr,
    num_tokens,
    stride_ot,
    stride_oh,
    stride_cs,
    stride_fg,
    stride_ft,
    stride_sg,
    stride_sk,
    NUM_HEADS: tl.constexpr,
    HEADS_PER_GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ROTARY_DIM: tl.constexpr,
    CHUNK: tl.constexpr,
    PACKED: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    # One head of BLOCK_T tokens: several tokens a program, because their scales lie side by side.
    num_chunks: tl.constexpr = HEAD_DIM // CHUNK
    pid = tl.program_id(0)
    head = pid % NUM_HEADS
    group = (head // HEADS_PER_GROUP).to(tl.int64)
    head_in_group = head % HEADS_PER_GROUP
    offs_t = (pid // NUM_HEADS).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    live = offs_t < num_tokens
    # The padding is written too, with zeros.
    padded = offs_t < tl.cdiv(num_tokens, PADDED) * PADDED
    offs_c = tl.arange(0, CHUNK)
    o_ptrs = o_ptr + offs_t[:, None] * stride_ot + head.to(tl.int64) * stride_oh + offs_c[None, :]
    fp8_ptrs = fp8_ptr + group * stride_fg + offs_t[:, None] * stride_ft + head_in_group * HEAD_DIM
    fp8_ptrs += offs_c[None, :]
    scale_ptrs = scale_ptr + group * stride_sg + offs_t
    exponents = tl.zeros([BLOCK_T], tl.int32)
    for chunk in tl.static_range(num_chunks):
        o = tl.load(o_ptrs + chunk * CHUNK, mask=live[:, None], other=0.0).to(tl.float32)
        if chunk == num_chunks - 1:
            x, y = tl.split(tl.reshape(o, [BLOCK_T, CHUNK // 2, 2]))
            # Pairs before the rotated ones pass through untouched, signs of zeros included.
            pair = tl.arange(0, CHUNK // 2) - (CHUNK - ROTARY_DIM) // 2
            rotated = (pair >= 0)[None, :] & live[:, None]
            position = tl.load(positions_ptr + offs_t, mask=live, other=0).to(tl.int64)
            cos_ptrs = cos_sin_ptr + position[:, None] * stride_cs + pair[None, :]
            cos = tl.load(cos_ptrs, mask=rotated, other=1.0)
            sin = tl.load(cos_ptrs + ROTARY_DIM // 2, mask=rotated, other=0.0)
            new_x = tl.where(rotated, x * cos + y * sin, x)
            new_y = tl.where(rotated, y * cos - x * sin, y)
            o = tl.reshape(tl.join(new_x, new_y), [BLOCK_T, CHUNK])
        exponent = scale_exponent(tl.maximum(tl.max(tl.abs(o), 1), 1e-10))
        # The reciprocal of a power of two is exact, a division by it is not rounded exactly.
        scaled = o * power_of_two(254 - exponent)[:, None]
        quantised = tl.minimum(tl.maximum(scaled, -FP8_MAX), FP8_MAX).to(fp8_ptr.dtype.element_ty)
        tl.store(fp8_ptrs + chunk * CHUNK, quantised, mask=live[:, None])
        if PACKED:
            exponents |= exponent << (8 * chunk)
        else:
            index = (head_in_group * num_chunks + chunk).to(tl.int64)
            tl.store(scale_ptrs + index * stride_sk, tl.where(live, power_of_two(exponent), 0.0), mask=padded)
    if PACKED:
        tl.store(scale_ptrs + head_in_group.to(tl.int64) * stride_sk, tl.where(live, exponents, 0), mask=padded)


def _kernel(
    o_ptr,
    positions_ptr,
    cos_sin_ptr,
    fp8_ptr,
    scale_ptr,
    num_tokens,
    stride_ot,
    stride_oh,
    stride_cs,
    stride_fg,
    stride_ft,
    stride_sg,
    stride_sk,
    NUM_HEADS: tl.constexpr,
    HEADS_PER_GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ROTARY_DIM: tl.constexpr,
    CHUNK: tl.constexpr,
    PACKED: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    _inverse_rope_fp8(
        o_ptr,
        positions_ptr,
        cos_sin_ptr,
        fp8_ptr,
        scale_ptr,
        num_tokens,
        stride_ot,
        stride_oh,
        stride_cs,
        stride_fg,
        stride_ft,
        stride_sg,
        stride_sk,
        NUM_HEADS,
        HEADS_PER_GROUP,
        HEAD_DIM,
        ROTARY_DIM,
        CHUNK,
        PACKED,
        BLOCK_T,
    )


inverse_rope_fp8_default_kernel = triton.jit(_kernel, repr=lambda _: "inverse_rope_fp8_default_kernel")
inverse_rope_fp8_num_tokens_kernel = triton.jit(
    _kernel, do_not_specialize=["num_tokens"], repr=lambda _: "inverse_rope_fp8_num_tokens_kernel"
)


# An integer that is not specialised is still keyed by its width, unless it is declared to be 64 bits wide.
# And nothing is known of it: without the hint that rows stay aligned, loads and stores shrink to single
# elements.
@triton.jit(
    do_not_specialize=[
        "positions_ptr",
        "num_tokens",
        "stride_ot",
        "stride_oh",
        "stride_cs",
        "stride_fg",
        "stride_ft",
        "stride_sg",
        "stride_sk",
    ]
)
def inverse_rope_fp8_complete_kernel(
    o_ptr,
    positions_ptr,
    cos_sin_ptr,
    fp8_ptr,
    scale_ptr,
    num_tokens: tl.int64,
    stride_ot: tl.int64,
    stride_oh: tl.int64,
    stride_cs: tl.int64,
    stride_fg: tl.int64,
    stride_ft: tl.int64,
    stride_sg: tl.int64,
    stride_sk: tl.int64,
    NUM_HEADS: tl.constexpr,
    HEADS_PER_GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ROTARY_DIM: tl.constexpr,
    CHUNK: tl.constexpr,
    PACKED: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """One compilation whatever the number of tokens."""
    _inverse_rope_fp8(
        o_ptr,
        positions_ptr,
        cos_sin_ptr,
        fp8_ptr,
        scale_ptr,
        num_tokens,
        stride_ot // ALIGNED * ALIGNED,
        stride_oh // ALIGNED * ALIGNED,
        stride_cs // COS_ALIGNED * COS_ALIGNED,
        stride_fg // CHUNK * CHUNK,
        stride_ft // CHUNK * CHUNK,
        stride_sg // PADDED * PADDED,
        stride_sk // PADDED * PADDED,
        NUM_HEADS,
        HEADS_PER_GROUP,
        HEAD_DIM,
        ROTARY_DIM,
        CHUNK,
        PACKED,
        BLOCK_T,
    )


_KERNELS = {
    "default": inverse_rope_fp8_default_kernel,
    "num_tokens": inverse_rope_fp8_num_tokens_kernel,
    "complete": inverse_rope_fp8_complete_kernel,
}
# The fastest of those tried on an H200 at 8192 tokens.
BLOCK_T, NUM_WARPS = 8, 1


def _outputs(o: Tensor, num_groups: int, *, packed: bool) -> tuple[Tensor, Tensor]:
    num_tokens, num_heads, head_dim = o.shape
    heads_per_group = num_heads // num_groups
    fp8 = torch.empty(num_groups, num_tokens, heads_per_group * head_dim, dtype=torch.float8_e4m3fn, device=o.device)
    padded = cdiv(num_tokens, PADDED.value) * PADDED.value
    num_scales = heads_per_group * (1 if packed else head_dim // CHUNK)
    dtype = torch.int32 if packed else torch.float32
    return fp8, torch.empty(num_groups, num_scales, padded, dtype=dtype, device=o.device)


def _check(o: Tensor, positions: Tensor, cos_sin: Tensor, num_groups: int, specialize: str, *, packed: bool) -> None:
    checks.typed("o", o, torch.bfloat16, torch.float16, torch.float32)
    checks.shaped("o", o, None, None, None)
    checks.rows("o", o)
    aligned = o.stride(0) % ALIGNED.value == 0 and o.stride(1) % ALIGNED.value == 0
    checks.require(aligned, f"o's strides must be multiples of {ALIGNED.value}, but are {o.stride()}")
    num_tokens, num_heads, head_dim = o.shape
    checks.require(head_dim % CHUNK == 0, f"o's last dim must be a multiple of {CHUNK}, but is {head_dim}")
    checks.require(
        not packed or head_dim == 4 * CHUNK,
        f"packed scales need a last dim of {4 * CHUNK}, but it is {head_dim}",
    )
    checks.require(
        num_groups > 0 and num_heads % num_groups == 0,
        f"the {num_heads} heads must divide into num_groups, which is {num_groups}",
    )
    checks.index("positions", positions, num_tokens)
    checks.typed("cos_sin", cos_sin, torch.float32)
    checks.shaped("cos_sin", cos_sin, None, None)
    checks.rows("cos_sin", cos_sin)
    rotary_dim = cos_sin.shape[1]
    checks.require(
        rotary_dim % 2 == 0 and rotary_dim <= CHUNK,
        f"cos_sin must have an even width of at most {CHUNK}, but it is {rotary_dim}",
    )
    checks.require(
        cos_sin.stride(0) % COS_ALIGNED.value == 0,
        f"cos_sin's row stride must be a multiple of {COS_ALIGNED.value}, but is {cos_sin.stride(0)}",
    )
    checks.require(
        specialize in SPECIALIZE,
        f"specialize must be 'default', 'num_tokens' or 'complete', but is {specialize!r}",
    )


def inverse_rope_fp8(
    o: Tensor,
    positions: Tensor,
    cos_sin: Tensor,
    num_groups: int,
    *,
    specialize: str = "complete",
    packed: bool = False,
    buffers: tuple[Tensor, Tensor] | None = None,
    check: bool = True,
) -> tuple[Tensor, Tensor]:
    """Rotate the last dims of each head back and quantise chunks of 128 values to e4m3 with a scale each.

    A scale is the smallest power of two that is at least `max(absmax, 1e-10) / 448`. Products and sums are
    rounded one by one (no contraction to FMA), so results are the same bits wherever they are computed.

    Args:
        o: `[num_tokens, num_heads, head_dim]` in bf16 (fp16, fp32), last dim contiguous; head_dim a multiple
            of 128 (512 in the model that this is for), strides multiples of 8.
        positions: int32 or int64 `[num_tokens]`, rows of `cos_sin`.
        cos_sin: fp32 `[max_positions, rotary_dim]`: cosines, then sines, of the last `rotary_dim` dims, which
            are rotated as interleaved pairs; at most 128 wide, rows a multiple of 4 apart.
        num_groups: Heads are split into so many groups, each contiguous in the output.
        specialize: Which compilation: Triton's `default`, `num_tokens` not specialised, or `complete`: none
            of the integers, 64 bits wide, so that one compilation serves any number of tokens.
        packed: Scales as exponent bytes, those of a head's four chunks in one int32, lowest byte first.
        buffers: The two outputs' storage, `[num_groups, num_tokens, heads_per_group * head_dim]` e4m3 and
            `[num_groups, scales, padded_tokens]`; allocated when not given.
        check: Check the arguments first.

    Returns:
        e4m3 `[num_tokens, num_groups, heads_per_group * head_dim]` (a view: groups are outermost in memory),
        and scales `[num_groups, num_tokens, scales]` with contiguous tokens: fp32, one a chunk, or int32, one
        a head. In memory tokens are padded to a multiple of 4, with zeros.

    Raises:
        ValueError: An argument has the wrong shape, dtype, strides or value.
    """
    if check:
        _check(o, positions, cos_sin, num_groups, specialize, packed=packed)
    fp8, scales = buffers or _outputs(o, num_groups, packed=packed)
    num_tokens, num_heads, head_dim = o.shape
    _KERNELS[specialize][(cdiv(num_tokens, BLOCK_T) * num_heads,)](
        o,
        positions,
        cos_sin,
        fp8,
        scales,
        num_tokens,
        o.stride(0),
        o.stride(1),
        cos_sin.stride(0),
        fp8.stride(0),
        fp8.stride(1),
        scales.stride(0),
        scales.stride(1),
        NUM_HEADS=num_heads,
        HEADS_PER_GROUP=num_heads // num_groups,
        HEAD_DIM=head_dim,
        ROTARY_DIM=cos_sin.shape[1],
        CHUNK=CHUNK,
        PACKED=packed,
        BLOCK_T=BLOCK_T,
        num_warps=NUM_WARPS,
        # With 64 registers a multiprocessor holds 32 programs of a warp, the most that it takes.
        maxnreg=64,
        enable_fp_fusion=False,
    )
    return fp8.transpose(0, 1), scales[:, :, :num_tokens].transpose(1, 2)
