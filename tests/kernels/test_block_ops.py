import pytest
import torch

from kernels.block_ops import advance_step, copy_blocks, patch_block_table, patch_state


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layers", [None, 3])
@pytest.mark.parametrize("heads_first", [False, True])
def test_copy_blocks(memory, rng, dtype, layers, heads_first):
    shape = (*([layers] if layers else []), 9, 16, 3, 80)
    before = [torch.randn(shape, generator=rng).to(dtype) for _ in range(2)]
    placed = [memory.place(c.transpose(-3, -2).contiguous() if heads_first else c) for c in before]
    caches = [c.transpose(-3, -2) if heads_first else c for c in placed]
    copy_blocks(*caches, memory.frozen(torch.tensor([[0, 8], [3, 1], [0, 2]])))
    for cache, old in zip(caches, before, strict=True):
        old[..., [8, 1, 2], :, :, :] = old[..., [0, 3, 0], :, :, :]
        assert torch.equal(cache.cpu(), old)


@pytest.mark.parametrize("num_patches", [1, 128, 130])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_patch_block_table(memory, rng, num_patches, dtype):
    before = torch.randint(1000, (20, 11), generator=rng).to(dtype)
    wide = memory.place(before)
    table = wide[:, :10]
    cells = torch.randperm(200, generator=rng)[:num_patches]
    patches = torch.stack([cells // 10, cells % 10, torch.arange(num_patches) + 5000], 1).int()
    patches[1::4, 0] = -1
    patch_block_table(table, memory.frozen(patches))
    for row, column, block in patches.tolist():
        if row >= 0:
            before[row, column] = block
    assert torch.equal(wide.cpu(), before)


@pytest.mark.parametrize("num_patches", [1, 128, 130])
def test_patch_state(memory, rng, num_patches):
    before = torch.randint(-(2**31), 2**31, (500,), generator=rng).int()
    state = memory.place(before)
    cells = torch.randperm(500, generator=rng)
    targets, sources = cells[:num_patches], cells[num_patches : 2 * num_patches].clone()
    sources[::3] = -1
    values = torch.randint(-(2**31), 2**31, (num_patches,), generator=rng)
    patches = torch.stack([targets, sources, values], 1).int()
    patch_state(state, memory.frozen(patches))
    wanted = before.clone()
    for target, source, value in patches.tolist():
        wanted[target] = before[source] if source >= 0 else value
    assert torch.equal(state.cpu(), wanted)


class Step:
    """Sequences in every state that a step can find them in."""

    def __init__(self, memory, rng, num_seqs, num_stops):
        self.block_size, width = 16, 4
        self.lens = torch.randint(1, width * self.block_size - 1, (num_seqs,), generator=rng)
        self.lens[:2] = torch.tensor([15, 16])[:num_seqs]
        self.state = {
            "token_ids": torch.randint(100, (num_seqs,), generator=rng),
            "positions": self.lens.int() - 1,
            "seq_lens": self.lens.int(),
            "slot_mapping": torch.randint(100, (num_seqs,), generator=rng),
            "finished": (torch.arange(num_seqs) % 5 == 3).int(),
        }
        sampled = torch.randint(100, (num_seqs,), generator=rng)
        stop_ids = torch.randint(200, 300, (num_seqs, num_stops), generator=rng)
        if num_stops:
            stop_ids[1::3, -1] = sampled[1::3]
            stop_ids[2::3, 0] = -1
        self.given = {
            "sampled": sampled,
            "stop_ids": stop_ids,
            "max_lens": self.lens + 1 + (torch.arange(num_seqs) % 7 != 4).long(),
            "block_table": torch.randperm(num_seqs * width, generator=rng).view(num_seqs, width).int(),
        }
        self.placed = {name: memory.place(t) for name, t in self.state.items()}
        self.frozen = {name: memory.frozen(t) for name, t in self.given.items()}

    def expected(self, dummy_slot):
        want = {name: t.clone() for name, t in self.state.items()}
        for i in range(len(self.lens)):
            token = int(self.given["sampled"][i])
            stops = token in self.given["stop_ids"][i].tolist() or self.lens[i] + 1 >= self.given["max_lens"][i]
            if stops or want["finished"][i]:
                want["finished"][i] = 1
                want["slot_mapping"][i] = dummy_slot
                continue
            position = int(self.lens[i])
            block = int(self.given["block_table"][i, position // self.block_size])
            want["token_ids"][i] = token
            want["positions"][i] = position
            want["seq_lens"][i] = position + 1
            want["slot_mapping"][i] = block * self.block_size + position % self.block_size
        return want


@pytest.mark.parametrize("num_stops", [0, 1, 3])
@pytest.mark.parametrize(("num_seqs", "dummy_slot"), [(1, -1), (40, 0), (257, -1)])
def test_advance_step(memory, rng, num_seqs, num_stops, dummy_slot):
    step = Step(memory, rng, num_seqs, num_stops)
    advance_step(**step.placed, **step.frozen, block_size=step.block_size, dummy_slot=dummy_slot)
    want = step.expected(dummy_slot)
    for name, tensor in step.placed.items():
        assert torch.equal(tensor.cpu(), want[name]), name
    if num_seqs > 1 and num_stops:
        assert 0 < want["finished"].sum() < num_seqs


def test_a_finished_sequence_stays_where_it_is(memory, rng):
    step = Step(memory, rng, 40, 1)
    step.placed["finished"].fill_(1)
    still = {name: t.clone() for name, t in step.placed.items() if name != "slot_mapping"}
    for _ in range(3):
        advance_step(**step.placed, **step.frozen, block_size=step.block_size)
    assert all(torch.equal(step.placed[name], t) for name, t in still.items())
    assert (step.placed["slot_mapping"] == -1).all()


def test_wrong_arguments_are_named(memory, rng):
    cache = torch.zeros(2, 9, 16, 3, 80)
    pairs = torch.zeros(1, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match="blocks of 1920 values must follow each other without a gap"):
        copy_blocks(cache[:, :, :8], cache[:, :, :8], pairs)
    with pytest.raises(ValueError, match=r"pairs must have shape \[any, 2\], but has \[2, 1\]"):
        copy_blocks(cache, cache, pairs.T)
    with pytest.raises(ValueError, match="patches must be int32 or int64, but is float32"):
        patch_block_table(pairs, torch.zeros(2, 3))
    step = Step(memory, rng, 4, 1)
    with pytest.raises(ValueError, match="block_size must be a power of two, but is 15"):
        advance_step(**step.placed, **step.frozen, block_size=15)
