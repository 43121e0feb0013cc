import pytest
import torch

from kernels import kv_append as kv
from kernels import reference

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


class Step:
    """New keys and values of one step, and caches of which every byte is known before and after."""

    def __init__(self, memory, rng, *, tokens, heads, head_dim, block_size, dtype, heads_first=False):
        num_blocks = tokens + 3
        self.memory, self.block_size = memory, block_size
        shape = (num_blocks, heads, block_size, head_dim) if heads_first else (num_blocks, block_size, heads, head_dim)
        before = [torch.randn(shape, generator=rng).to(dtype) for _ in range(2)]
        caches = [memory.place(cache) for cache in before]
        self.k_cache, self.v_cache = (c.transpose(1, 2) if heads_first else c for c in caches)
        self.expected = [c.clone() for c in (self.k_cache, self.v_cache)]
        # Slices of one fused projection, as a model has them: the token stride is not the width of a row.
        fused = memory.frozen(torch.randn(tokens, 3, heads, head_dim, generator=rng).to(dtype))
        self.key, self.value = fused[:, 1], fused[:, 2]
        self.blocks = memory.frozen(torch.randperm(num_blocks, generator=rng)[:tokens].int())
        self.offsets = memory.frozen(torch.randint(block_size, (tokens,), generator=rng).int())

    def check(self, slots, key=None, value=None):
        reference.kv_append(
            *self.expected,
            self.key if key is None else key,
            self.value if value is None else value,
            slots,
        )
        assert torch.equal(self.k_cache, self.expected[0])
        assert torch.equal(self.v_cache, self.expected[1])

    @property
    def slots(self):
        return self.blocks.long() * self.block_size + self.offsets


SHAPES = [
    # tokens, heads, head_dim, block_size, dtype, heads first
    (1, 1, 64, 16, torch.float32, False),
    (3, 2, 80, 16, torch.float16, True),
    (5, 12, 64, 64, torch.bfloat16, False),
    (4, 3, 256, 128, torch.float16, False),
    (7, 5, 112, 256, torch.float32, True),
]


@pytest.fixture(params=SHAPES, ids=lambda p: "-".join(str(x).removeprefix("torch.") for x in p))
def step(request, memory, rng):
    tokens, heads, head_dim, block_size, dtype, heads_first = request.param
    return Step(
        memory,
        rng,
        tokens=tokens,
        heads=heads,
        head_dim=head_dim,
        block_size=block_size,
        dtype=dtype,
        heads_first=heads_first,
    )


def rows(step, rng):
    """Some rows of the step, out of order."""
    return torch.randperm(len(step.key), generator=rng).to(step.key.device)


def test_torch_indexed(step, rng):
    order = rows(step, rng)
    kv.kv_append_torch_indexed(
        step.k_cache, step.v_cache, step.key, step.value, order, step.blocks.long(), step.offsets.long()
    )
    step.check(step.slots, step.key[order], step.value[order])


def test_triton(step, rng):
    order = rows(step, rng)
    kv.kv_append_triton(step.k_cache, step.v_cache, step.key, step.value, order, step.blocks, step.offsets)
    step.check(step.slots, step.key[order], step.value[order])


def test_triton_identity_pos(step):
    kv.kv_append_triton_identity_pos(step.k_cache, step.v_cache, step.key, step.value, step.blocks, step.offsets)
    step.check(step.slots)


@pytest.mark.parametrize("where", ["first", "last"])
def test_triton_full_batch(step, where):
    pos = 0 if where == "first" else step.block_size - 1
    kv.kv_append_triton_full_batch(step.k_cache, step.v_cache, step.key, step.value, step.blocks, pos)
    step.check(step.blocks.long() * step.block_size + pos)


def test_slot_mapping(step):
    kv.kv_append_slot_mapping(step.k_cache, step.v_cache, step.key, step.value, step.slots)
    step.check(step.slots)


def test_negative_slots_are_left_out(step):
    slots = step.slots
    slots[::2] = -1
    kv.kv_append_slot_mapping(step.k_cache, step.v_cache, step.key, step.value, slots)
    step.check(slots)


def test_batch_of_257(memory, rng):
    step = Step(memory, rng, tokens=257, heads=2, head_dim=64, block_size=16, dtype=torch.float32)
    kv.kv_append_slot_mapping(step.k_cache, step.v_cache, step.key, step.value, step.slots)
    step.check(step.slots)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize(("num_seqs", "block_size"), [(1, 16), (5, 64), (257, 256)])
def test_slots_of_positions(memory, rng, num_seqs, block_size, dtype):
    width = 3
    table = memory.frozen(torch.randperm(num_seqs * width, generator=rng).view(num_seqs, width).int())
    positions = torch.randint(width * block_size, (num_seqs,), generator=rng).to(dtype)
    positions[0] = width * block_size - 1
    positions[1::3] = -1
    positions = memory.frozen(positions)
    out = memory.unwritten(num_seqs, dtype=torch.int64)
    assert kv.compute_slot_mapping(table, positions, block_size, out=out) is out
    assert torch.equal(out, reference.slots(table, positions, block_size))


def test_slots_beyond_32_bits(memory):
    table = memory.frozen(torch.tensor([[2**30]], dtype=torch.int32))
    positions = memory.frozen(torch.tensor([5]))
    assert kv.compute_slot_mapping(table, positions, 16).tolist() == [2**34 + 5]


def test_wrong_arguments_are_named(memory, rng):
    step = Step(memory, rng, tokens=2, heads=2, head_dim=64, block_size=16, dtype=torch.float32)
    good = (step.k_cache, step.v_cache, step.key, step.value)
    with pytest.raises(ValueError, match=r"^key must have shape \[2, 2, 64\], but has \[2, 2, 32\]$"):
        kv.kv_append_slot_mapping(*good[:2], step.key[..., :32], step.value, step.slots)
    with pytest.raises(ValueError, match=r"^value must be float32, but is float16$"):
        kv.kv_append_slot_mapping(*good[:3], step.value.half(), step.slots)
    with pytest.raises(ValueError, match=r"^key must have a contiguous last dim, but its stride there is 2$"):
        kv.kv_append_slot_mapping(
            *good[:2], step.key.transpose(1, 2).contiguous().transpose(1, 2), step.value, step.slots
        )
    with pytest.raises(ValueError, match="same shape, strides and dtype"):
        kv.kv_append_slot_mapping(step.k_cache, step.v_cache[1:], step.key, step.value, step.slots)
    with pytest.raises(ValueError, match=r"^pos must lie in the block of 16 positions, but is 16$"):
        kv.kv_append_triton_full_batch(*good, step.blocks, 16)
    with pytest.raises(ValueError, match=r"^slot_mapping must be int32 or int64, but is float32$"):
        kv.kv_append_slot_mapping(*good, step.slots.float())
    with pytest.raises(ValueError, match=r"^block_size must be a power of two, but is 24$"):
        kv.compute_slot_mapping(step.blocks[:, None], step.offsets, 24)
