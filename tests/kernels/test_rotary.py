import pytest
import torch

from kernels import reference
from kernels.rotary import rotary_embedding, rotary_kv_append
from tests.kernels.helpers import rounding

SHAPES = [
    # tokens, heads, KV heads, head_dim, rotary_dim, dtype, norm
    (1, 1, 1, 64, 64, torch.float32, False),
    (3, 4, 2, 80, 80, torch.float16, True),
    (5, 7, 1, 96, 48, torch.float32, True),
    (2, 8, 2, 128, 128, torch.float16, False),
    (3, 12, 12, 64, 64, torch.float16, False),
    (2, 33, 11, 64, 32, torch.float32, True),
    (4, 6, 3, 112, 28, torch.float16, True),
    pytest.param((64, 16, 8, 128, 128, torch.bfloat16, True), marks=pytest.mark.gpu),
    pytest.param((257, 32, 8, 128, 64, torch.bfloat16, False), marks=pytest.mark.gpu),
]


class Case:
    def __init__(self, memory, rng, shape):
        tokens, heads, self.kv_heads, head_dim, rotary_dim, self.dtype, norm = shape
        self.heads, self.memory = heads, memory
        fused = torch.randn(tokens, heads + 2 * self.kv_heads, head_dim, generator=rng).to(self.dtype)
        self.before = fused.to(memory.device)
        self.fused = memory.place(fused)
        self.positions = memory.frozen(torch.randint(40, (tokens,), generator=rng))
        angle = torch.rand(40, rotary_dim // 2, generator=rng) * 6.3
        self.cos_sin = memory.frozen(torch.cat([angle.cos(), angle.sin()], 1))
        self.weights = {}
        if norm:
            for name in ("q_weight", "k_weight"):
                self.weights[name] = memory.frozen(torch.randn(head_dim, generator=rng).to(self.dtype))

    def split(self, fused):
        return fused.split([self.heads, self.kv_heads, self.kv_heads], 1)

    def check(self, got, x, name):
        exact = reference.rms_norm(x, self.weights[name], 1e-6) if self.weights else x.double()
        want = reference.rotary(exact, self.positions, self.cos_sin)
        # A sum of two products, after a norm whose sum of head_dim squares and few more roundings are fp32.
        steps = x.shape[-1] + 16
        largest = exact.abs().amax(-1, keepdim=True) * 2
        bound = largest * steps * rounding(torch.float32) + want.abs() * rounding(self.dtype)
        bound += torch.finfo(self.dtype).smallest_normal
        assert ((got.double() - want).abs() <= bound).all()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rotates_in_place(memory, rng, shape):
    case = Case(memory, rng, shape)
    query, key, value = case.split(case.fused)
    rotary_embedding(query, key, case.positions, case.cos_sin, **case.weights)
    old_query, old_key, old_value = case.split(case.before)
    case.check(query, old_query, "q_weight")
    case.check(key, old_key, "k_weight")
    assert torch.equal(value, old_value)


@pytest.mark.parametrize("heads_first", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_appends_what_it_rotated(memory, rng, shape, heads_first):
    case = Case(memory, rng, shape)
    query, key, value = case.split(case.fused)
    tokens, block_size = len(query), 16
    num_blocks = tokens // block_size + 2
    sizes = (num_blocks, block_size, *key.shape[1:])
    caches = [torch.zeros(sizes, dtype=case.dtype) for _ in range(2)]
    caches = [memory.place(c.transpose(1, 2) if heads_first else c) for c in caches]
    caches = [c.transpose(1, 2) if heads_first else c for c in caches]
    slots = torch.randperm(num_blocks * block_size, generator=rng)[:tokens]
    slots[1::3] = -1
    slots = memory.frozen(slots)
    rotary_kv_append(query, key, value, case.positions, case.cos_sin, *caches, slots, **case.weights)
    old_query, old_key, old_value = case.split(case.before)
    case.check(query, old_query, "q_weight")
    assert torch.equal(key, old_key)
    kept = slots >= 0
    block, offset = slots[kept] // block_size, slots[kept] % block_size
    assert torch.equal(caches[1][block, offset], old_value[kept])
    in_cache = torch.zeros_like(old_key)
    in_cache[kept] = caches[0][block, offset]
    rotary = torch.where(kept[:, None, None], old_key, 0.0)
    case.check(in_cache, rotary, "k_weight")
    for cache in caches:
        cache[block, offset] = 0.0
        assert not cache.any()


def test_wrong_arguments_are_named(memory, rng):
    case = Case(memory, rng, (3, 4, 2, 80, 80, torch.float32, True))
    query, key, value = case.split(case.fused)
    with pytest.raises(ValueError, match=r"cos_sin must have an even width of at most head_dim \(80\), but it is 79"):
        rotary_embedding(query, key, case.positions, case.cos_sin[:, :79])
    with pytest.raises(ValueError, match="query heads must be a multiple of the 2 KV heads, but are 3"):
        rotary_embedding(query[:, :3], key, case.positions, case.cos_sin)
    with pytest.raises(ValueError, match="q_weight and k_weight must be given together, or neither"):
        rotary_embedding(query, key, case.positions, case.cos_sin, q_weight=case.weights["q_weight"])
    cache = torch.zeros(2, 16, 2, 64)
    with pytest.raises(ValueError, match=r"key must have shape \[3, 2, 64\], but has \[3, 2, 80\]"):
        rotary_kv_append(query, key, value, case.positions, case.cos_sin, cache, cache, case.positions)
