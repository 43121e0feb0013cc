"""What each kernel computes, in plain torch, for tests and for machines without a GPU.

Every function computes in `dtype` (float64 unless asked otherwise) and returns it, so that a test compares a
kernel with a result that is much more exact than the kernel's own. Shapes are those of the kernels.
"""

import math

import torch
import torch.nn.functional as F  # noqa: N812 - the name that every torch program uses
from torch import Tensor

from kernels.rows import Seen, Shaping

FP8_MAX = 448.0


def gather_cache(cache: Tensor, block_table_row: Tensor, length: int) -> Tensor:
    """The first `length` tokens of one sequence: `[length, num_kv_heads, head_dim]`."""
    block_size = cache.shape[1]
    blocks = block_table_row[: -(-length // block_size)].long()
    return cache[blocks].flatten(0, 1)[:length]


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Causal attention of the last `q` of `n` tokens of one sequence over all of them.

    Args:
        query: `[q, num_heads, head_dim]`, the last `q` positions.
        key: `[n, num_kv_heads, head_dim]`.
        value: `[n, num_kv_heads, head_dim]`.
        scale: What scores are multiplied by.
        window: How many positions a query sees, its own included; 0 is all.
        softcap: Scores become `softcap * tanh(score / softcap)`; 0 is off.
        sinks: `[num_heads]` logits that take part in the softmax and carry no value.
        dtype: What is computed in and returned.

    Returns:
        `[q, num_heads, head_dim]`.
    """
    num_queries, num_heads, _ = query.shape
    length, num_kv_heads, _ = key.shape
    key, value = (t.to(dtype).repeat_interleave(num_heads // num_kv_heads, 1) for t in (key, value))
    scores = torch.einsum("qhd,nhd->hqn", query.to(dtype), key) * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    position = torch.arange(length - num_queries, length, device=query.device)[:, None]
    other = torch.arange(length, device=query.device)[None, :]
    hidden = other > position
    if window:
        hidden = hidden | (other <= position - window)
    scores = scores.masked_fill(hidden, -math.inf)
    if sinks is not None:
        sink = sinks.to(dtype)[:, None, None].expand(-1, num_queries, 1)
        scores = torch.cat([scores, sink], -1)
    return torch.einsum("hqn,nhd->qhd", scores.softmax(-1)[..., :length], value)


def paged_attention_decode(
    query: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    *,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """One query token a sequence; see `kernels.paged_attention.paged_attention_decode`."""
    out = torch.zeros(query.shape, dtype=dtype, device=query.device)
    for i, length in enumerate(seq_lens.tolist()):
        if length:
            key, value = (gather_cache(cache, block_table[i], length) for cache in (k_cache, v_cache))
            out[i] = attention(
                query[i : i + 1],
                key,
                value,
                scale=scale,
                window=window,
                softcap=softcap,
                sinks=sinks,
                dtype=dtype,
            )[0]
    return out


def paged_attention_prefill(
    query: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    cu_seqlens_q: Tensor,
    seq_lens: Tensor,
    *,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Several query tokens a sequence; see `kernels.prefill_attention.paged_attention_prefill`."""
    out = torch.zeros(query.shape, dtype=dtype, device=query.device)
    bounds = cu_seqlens_q.tolist()
    for i, length in enumerate(seq_lens.tolist()):
        start, end = bounds[i], bounds[i + 1]
        if end > start:
            key, value = (gather_cache(cache, block_table[i], length) for cache in (k_cache, v_cache))
            out[start:end] = attention(
                query[start:end],
                key,
                value,
                scale=scale,
                window=window,
                softcap=softcap,
                sinks=sinks,
                dtype=dtype,
            )
    return out


def slots(block_table: Tensor, positions: Tensor, block_size: int) -> Tensor:
    """The slot (`block * block_size + offset`) of each sequence's position, -1 for a negative one."""
    safe = positions.clamp(min=0).long()
    block = block_table.gather(1, (safe // block_size)[:, None])[:, 0].long()
    return torch.where(positions < 0, -1, block * block_size + safe % block_size)


def kv_append(k_cache: Tensor, v_cache: Tensor, key: Tensor, value: Tensor, slot_mapping: Tensor) -> None:
    """Write token `i` of key and value to slot `slot_mapping[i]`, in place; negative slots are skipped."""
    block_size = k_cache.shape[1]
    for i, slot in enumerate(slot_mapping.tolist()):
        if slot >= 0:
            k_cache[slot // block_size, slot % block_size] = key[i]
            v_cache[slot // block_size, slot % block_size] = value[i]


def rotary(x: Tensor, positions: Tensor, cos_sin: Tensor, *, dtype: torch.dtype = torch.float64) -> Tensor:
    """Rotary embedding of `x[tokens, heads, head_dim]`, halves as pairs, `cos_sin[max_pos, rotary_dim]`."""
    rotary_dim = cos_sin.shape[1]
    cos, sin = cos_sin[positions.long()].to(dtype)[:, None].chunk(2, -1)
    x = x.to(dtype)
    first, second = x[..., :rotary_dim].chunk(2, -1)
    rotated = [first * cos - second * sin, second * cos + first * sin]
    return torch.cat([*rotated, x[..., rotary_dim:]], -1)


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, dtype: torch.dtype = torch.float64) -> Tensor:
    """Root-mean-square norm over the last dim."""
    x = x.to(dtype)
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight.to(dtype)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, *, dtype: torch.dtype = torch.float64) -> Tensor:
    """Layer norm over the last dim."""
    return F.layer_norm(x.to(dtype), x.shape[-1:], weight.to(dtype), bias.to(dtype), eps)


def gelu(x: Tensor, name: str, *, dtype: torch.dtype = torch.float64) -> Tensor:
    """GELU as model configs name it: `gelu` and `gelu_python` by erf, `quick_gelu`, the others by tanh."""
    x = x.to(dtype)
    if name == "quick_gelu":
        return x * torch.sigmoid(1.702 * x)
    return F.gelu(x, approximate="none" if name in {"gelu", "gelu_python"} else "tanh")


def silu_and_mul(x: Tensor, *, dtype: torch.dtype = torch.float64) -> Tensor:
    """`silu(x[..., :n]) * x[..., n:]` for a last dim of `2n`."""
    gate, up = x.to(dtype).chunk(2, -1)
    return F.silu(gate) * up


def inverse_rotary(o: Tensor, positions: Tensor, cos_sin: Tensor, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Undo the rotation of the last `cos_sin.shape[1]` dims, interleaved pairs; `o[tokens, heads, dim]`.

    In float32 each product and sum is rounded apart, as the kernel does it, so results agree to the bit.
    """
    rotary_dim = cos_sin.shape[1]
    cos, sin = cos_sin[positions.long()].to(dtype)[:, None].chunk(2, -1)
    o = o.to(dtype)
    x, y = o[..., -rotary_dim::2], o[..., 1 - rotary_dim :: 2]
    pairs = torch.stack([x * cos + y * sin, y * cos - x * sin], -1).flatten(-2)
    return torch.cat([o[..., :-rotary_dim], pairs], -1)


def fp8_scale(absmax: Tensor) -> Tensor:
    """The smallest power of two that is at least `max(absmax, 1e-10) / 448`, exactly, as float32."""
    mantissa, exponent = torch.frexp(absmax.double().clamp(min=1e-10))
    # absmax = mantissa * 2**exponent with mantissa in [0.5, 1); 448 = 0.875 * 2**9.
    return torch.ldexp(torch.ones_like(mantissa), exponent - 9 + (mantissa > 0.875)).float()


def quantise_fp8(x: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """Values before the cast to e4m3 and scales, one for each `chunk` of the last dim of float32 `x`."""
    chunks = x.unflatten(-1, (-1, chunk))
    scale = fp8_scale(chunks.abs().amax(-1))
    return (chunks / scale[..., None]).clamp(-FP8_MAX, FP8_MAX).flatten(-2), scale


def _philox(seed: Tensor, c0: Tensor, c1: Tensor) -> Tensor:
    """The first of four 32-bit words of Philox 4x32-10, with counters (c0, c1, 0, 0), as int64."""
    word = 0xFFFFFFFF
    zero = torch.zeros_like(c0 + c1)
    counters = [c0 + zero, c1 + zero, zero, zero]
    low, high = seed & word, (seed >> 32) & word
    for _ in range(10):
        products = []
        for multiplier, counter in ((0xD2511F53, counters[0]), (0xCD9E8D57, counters[2])):
            # 32 x 32 bits in two halves, so that no product passes 63 bits.
            lower = counter * (multiplier & 0xFFFF)
            upper = counter * (multiplier >> 16) + (lower >> 16)
            products.append((upper >> 16, ((upper & 0xFFFF) << 16) | (lower & 0xFFFF)))
        (high0, low0), (high2, low2) = products
        counters = [high2 ^ counters[1] ^ low, low2, high0 ^ counters[3] ^ high, low0]
        low, high = (low + 0x9E3779B9) & word, (high + 0xBB67AE85) & word
    return counters[0]


def gumbel_noise(seeds: Tensor, positions: Tensor, vocab: int) -> Tensor:
    """The noise that `kernels.sampling` adds to each token's score: float64 `[batch, vocab]`."""
    token = torch.arange(vocab, device=seeds.device)[None, :]
    bits = _philox(seeds.long()[:, None], token, positions.long()[:, None] & 0xFFFFFFFF)
    uniform = ((bits >> 9).double() + 0.5) / 2**23
    return -torch.log(-torch.log(uniform))


def sample(logits: Tensor, temperatures: Tensor, seeds: Tensor, positions: Tensor) -> Tensor:
    """One token a sequence, or -1; see `kernels.sampling.sample`."""
    scores = logits.double()
    hot = temperatures > 0
    noise = gumbel_noise(seeds, positions, logits.shape[1])
    warm = scores / temperatures.double().where(hot, 1.0)[:, None] + noise
    best, token = torch.where(hot[:, None], warm, scores).max(-1)
    return torch.where(best > -math.inf, token, -1)


def add_biases(scores: Tensor, biases: Tensor) -> None:
    """Add to single scores, in place; see `kernels.shaping.add_biases`."""
    rows, tokens, bits = biases.unbind(1)
    rows, tokens = rows.long(), tokens.long()
    scores[rows, tokens] = scores[rows, tokens] + bits.contiguous().view(torch.float32).to(scores.dtype)


def penalise(scores: Tensor, shaping: Shaping, seen: Seen, token_ids: Tensor, positions: Tensor) -> None:
    """Add each row's last token to those seen and lower scores, in place; see `kernels.shaping.penalise`."""
    rows, width = (shaping.seats >= 0).nonzero()[:, 0], seen.ids.shape[1]
    seats, last = shaping.seats[rows].long(), token_ids[rows].int()
    in_output = (positions[rows] > shaping.before_output[rows]).int()
    place = torch.arange(width, device=scores.device)[None, :]
    same = (place < seen.sizes[seats][:, None]) & (seen.ids[seats] == last[:, None])
    known = same.any(1)
    at = torch.where(known, same.int().argmax(1), seen.sizes[seats].long())
    seen.ids[seats, at] = last
    seen.counts[seats, at] = torch.where(known, seen.counts[seats, at], 0) + in_output
    seen.sizes[seats] = seen.sizes[seats] + (~known).int()
    filled = place < seen.sizes[seats][:, None]
    of_row, at = filled.nonzero(as_tuple=True)
    row, token = rows[of_row], seen.ids[seats][of_row, at].long()
    count = seen.counts[seats][of_row, at]
    score = scores[row, token]
    repetition, presence, frequency = (
        values[row].to(scores.dtype) for values in (shaping.repetition, shaping.presence, shaping.frequency)
    )
    score = torch.where(score < 0, score * repetition, score / repetition)
    scores[row, token] = score - frequency * count - torch.where(count > 0, presence, 0.0)


def keep_likely(scores: Tensor, shaping: Shaping) -> None:
    """All but the likeliest become -inf, in place; see `kernels.shaping.keep_likely`."""
    vocab = scores.shape[1]
    hot = shaping.temperatures > 0
    wide = scores.double() / shaping.temperatures.double().where(hot, 1.0)[:, None]
    ordered = wide.sort(1, descending=True).values
    top_k = torch.where((shaping.top_k > 0) & (shaping.top_k < vocab), shaping.top_k, vocab).long()
    least = ordered.gather(1, top_k[:, None] - 1)
    keep = wide >= least
    # Sums of float64s differ from 1 in the last bits, which must not cost a token where top-p is off.
    masses = ordered.masked_fill(ordered < least, -math.inf).softmax(1)
    before = masses.cumsum(1) - masses
    top_p = shaping.top_p.double()[:, None]
    kept = ((before < top_p) | (top_p >= 1)).sum(1, keepdim=True).clamp(min=1)
    keep &= wide >= ordered.gather(1, kept - 1)
    keep &= (wide - ordered[:, :1]).exp() >= shaping.min_p.double()[:, None]
    scores.masked_fill_(~(keep | scores.isnan() | ~hot[:, None]), -math.inf)
