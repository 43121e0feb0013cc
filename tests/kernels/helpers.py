"""Inputs, watched memory and error bounds that several test files need."""

import math

import torch

GUARD = 64  # elements on each side, a multiple of every alignment that the kernels ask for


class Memory:
    """Hands out tensors that lie between guard zones, and says whether the zones are as they were."""

    def __init__(self, device):
        self.device = device
        self.zones = []

    def place(self, tensor):
        """A contiguous copy of the tensor between guard zones: NaN for floats, a far index for integers."""
        guard = math.nan if tensor.is_floating_point() else 2**30
        whole = torch.full((tensor.numel() + 2 * GUARD,), guard, dtype=tensor.dtype, device=self.device)
        inner = whole[GUARD : GUARD + tensor.numel()].view(tensor.shape)
        inner.copy_(tensor)
        zones = (whole[:GUARD], whole[-GUARD:])
        self.zones += [(zone, zone.clone()) for zone in zones]
        return inner

    def unwritten(self, *shape, dtype):
        """An output that no kernel has written yet: NaN, or a far index."""
        fill = math.nan if dtype.is_floating_point else 2**30
        return self.place(torch.full(shape, fill, dtype=dtype))

    def frozen(self, tensor):
        """Place an input that no kernel may write."""
        placed = self.place(tensor)
        self.zones.append((placed, placed.clone()))
        return placed

    def check(self):
        for zone, before in self.zones:
            same = (zone == before) | (zone.isnan() & before.isnan())
            assert same.all(), "a kernel wrote outside its output"


class PagedCache:
    """A paged cache of random tokens in a random order of blocks; all that no sequence owns is NaN."""

    def __init__(self, memory, rng, lengths, *, num_kv_heads, head_dim, block_size, dtype, heads_first=False):
        self.lengths = lengths
        width = max(1, *(-(-length // block_size) for length in lengths)) + 1
        num_blocks = len(lengths) * width + 2
        order = torch.randperm(num_blocks, generator=rng)[: len(lengths) * width].view(len(lengths), width)
        # A far index wherever a kernel has no business to look.
        table = torch.full((len(lengths), width), 2**30, dtype=torch.int32)
        caches = [torch.full((num_blocks, block_size, num_kv_heads, head_dim), math.nan) for _ in range(2)]
        for row, length in enumerate(lengths):
            used = -(-length // block_size)
            table[row, :used] = order[row, :used]
            for cache in caches:
                tokens = torch.full((used * block_size, num_kv_heads, head_dim), math.nan)
                tokens[:length] = torch.randn(length, num_kv_heads, head_dim, generator=rng)
                cache[table[row, :used].long()] = tokens.view(used, block_size, num_kv_heads, head_dim)
        placed = [cache.transpose(1, 2) if heads_first else cache for cache in caches]
        placed = [memory.place(cache.to(dtype).contiguous()) for cache in placed]
        self.k_cache, self.v_cache = (c.transpose(1, 2) if heads_first else c for c in placed)
        self.before = self.k_cache.clone(), self.v_cache.clone()
        self.block_table = memory.frozen(table)
        self.seq_lens = memory.frozen(torch.tensor(lengths, dtype=torch.int32))

    def check_caches(self, expected=None):
        """The caches hold what is expected, by default what they held at first, bit for bit."""
        for cache, want in zip((self.k_cache, self.v_cache), expected or self.before, strict=True):
            assert torch.equal(cache.nan_to_num(123.0), want.nan_to_num(123.0))


def rounding(dtype):
    """Half the distance from 1 to the next value: the most that one rounding is off, relatively."""
    return torch.finfo(dtype).eps / 2


def attention_bound(reference, query, k_cache, v_cache, *args, scale, softcap=0.0, **options):
    """How far from exact an attention kernel may be, from its arithmetic.

    Scores are sums of `head_dim` products in fp32, and a few roundings more; the error of a score is the
    relative error of its probability. Probabilities are rounded to the cache's dtype before the second
    product, whose sum runs over `n` positions in fp32; the result is rounded once more.
    """
    head_dim, dtype = query.shape[-1], query.dtype
    steps = k_cache.shape[0] * k_cache.shape[1]
    exact = reference(query, k_cache, v_cache, *args, scale=scale, softcap=softcap, **options).abs()
    weight = reference(query, k_cache, v_cache.abs(), *args, scale=scale, softcap=softcap, **options)
    largest = query.double().norm(dim=-1).max() * k_cache.double().nan_to_num(0).norm(dim=-1).max() * scale
    fp32 = rounding(torch.float32)
    score = (head_dim + 16) * fp32 * largest + 16 * fp32 * softcap
    relative = 2 * score + rounding(dtype) + (steps + 16) * fp32
    return weight * relative + exact * rounding(dtype) + torch.finfo(dtype).smallest_normal
