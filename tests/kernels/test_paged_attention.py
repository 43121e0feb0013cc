import itertools

import pytest
import torch

from kernels import paged_attention as pa
from kernels import reference
from kernels.kv_append import compute_slot_mapping, kv_append_slot_mapping
from kernels.prefill_attention import paged_attention_prefill
from tests.kernels.helpers import PagedCache, attention_bound
from tests.pairwise import pairwise

AXES = {
    "dtype": [torch.float32, torch.float16],
    "block_size": [16, 32, 64, 128, 256],
    "head_dim": [64, 80, 96, 112, 128, 256],
    "group": [1, 2, 4, 7, 8],
    "shared": [False, True],
    "window": [0, 20],
    "softcap": [0.0, 5.0],
    "sinks": [False, True],
    "new_token": ["cached", "given", "appended"],
    "heads_first": [False, True],
}


def name(case):
    return "-".join(str(value).removeprefix("torch.") for value in case.values())


def lengths_for(block_size, seed):
    """Up to four lengths around the borders of blocks, in another order in each case."""
    borders = [1, 2, block_size - 1, block_size, block_size + 1, 0, 2 * block_size + 1]
    return [borders[(seed + 3 * i) % len(borders)] for i in range(4)]


class Decode:
    """One call of the kernel, everything that it may touch watched, and what it should give."""

    def __init__(
        self,
        memory,
        rng,
        lengths,
        *,
        group,
        head_dim,
        dtype,
        num_kv_heads=2,
        new_token="cached",
        sinks=False,
        **cache,
    ):
        self.memory = memory
        num_heads, batch = group * num_kv_heads, len(lengths)
        self.cache = PagedCache(
            memory, rng, lengths, num_kv_heads=num_kv_heads, head_dim=head_dim, dtype=dtype, **cache
        )
        # Slices of a fused projection: the token stride is not the width of a row.
        fused = memory.frozen(torch.randn(batch, num_heads + 2 * num_kv_heads, head_dim, generator=rng).to(dtype))
        self.query, key, value = fused.split([num_heads, num_kv_heads, num_kv_heads], 1)
        self.options = {"sinks": memory.frozen(torch.randn(num_heads, generator=rng)) if sinks else None}
        self.appends = new_token == "appended"
        self.new = {"key": key, "value": value, "append": self.appends} if new_token != "cached" else {}
        self.scale = head_dim**-0.5

    def caches_with_new_token(self):
        expected = [cache.clone() for cache in self.cache.before]
        if self.new:
            seq_lens = self.cache.seq_lens
            slots = reference.slots(self.cache.block_table, seq_lens - 1, expected[0].shape[1])
            reference.kv_append(*expected, self.new["key"], self.new["value"], slots)
        return expected

    def check(self, out=None, **options):
        if out is None:
            out = self.memory.unwritten(*self.query.shape, dtype=self.query.dtype)
        options = {**self.options, **options}
        given = (self.cache.block_table, self.cache.seq_lens)
        caches = self.cache.k_cache, self.cache.v_cache
        assert pa.paged_attention_decode(self.query, *caches, *given, out=out, **self.new, **options) is out
        expected = self.caches_with_new_token()
        self.cache.check_caches(expected if self.appends else None)
        for passing in ("workspace", "launch"):
            options.pop(passing, None)
        arguments = (self.query, *expected, *given)
        exact = reference.paged_attention_decode(*arguments, scale=self.scale, **options)
        bound = attention_bound(reference.paged_attention_decode, *arguments, scale=self.scale, **options)
        error = (out.double() - exact).abs()
        assert (error <= bound).all(), f"off by up to {(error / bound).max():.2f} of the bound"
        return out


def run(memory, rng, monkeypatch, case, seed):
    case = dict(case)
    most = 10**6 if case.pop("shared") else 1
    monkeypatch.setattr(pa, "max_shared_programs", lambda _, most=most: most)
    monkeypatch.setattr(pa, "split_size", lambda _: 32)
    options = {option: case.pop(option) for option in ("window", "softcap")}
    decode = Decode(memory, rng, lengths_for(case["block_size"], seed), **case)
    decode.check(**options)


@pytest.mark.parametrize(
    ("seed", "case"), list(enumerate(pairwise(AXES))), ids=lambda v: v if isinstance(v, int) else name(v)
)
def test_pairs_of_everything(memory, rng, monkeypatch, case, seed):
    run(memory, rng, monkeypatch, case, seed)


PRODUCT = [
    {"dtype": dtype, "block_size": block_size, "head_dim": head_dim, "group": group, "shared": shared}
    for dtype, block_size, head_dim, group, shared in itertools.product(
        [torch.float32, torch.float16, torch.bfloat16], *(AXES[axis] for axis in list(AXES)[1:5])
    )
]


@pytest.mark.gpu
@pytest.mark.parametrize("seed", range(len(PRODUCT)), ids=lambda i: name(PRODUCT[i]))
def test_product(memory, rng, monkeypatch, seed):
    # The options take turns, so that each meets each of the shapes' values.
    options = {
        "window": AXES["window"][seed % 2],
        "softcap": AXES["softcap"][seed // 2 % 2],
        "sinks": seed % 3 == 0,
        "new_token": AXES["new_token"][min(seed % 5, 2)],
        "heads_first": seed % 7 < 3,
    }
    run(memory, rng, monkeypatch, PRODUCT[seed] | options, seed)


def test_batch_of_257(memory, rng):
    lengths = [1 + i % 7 for i in range(257)]
    decode = Decode(memory, rng, lengths, group=2, num_kv_heads=1, head_dim=64, block_size=16, dtype=torch.float32)
    decode.check()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("group", "head_dim"), [(1, 64), (2, 128), (4, 128), (1, 256)])
def test_long_contexts(memory, rng, dtype, group, head_dim):
    decode = Decode(memory, rng, [5000, 1, 0, 2048, 4095], group=group, head_dim=head_dim, block_size=16, dtype=dtype)
    decode.check()


@pytest.mark.parametrize("head_dim", [72, 200, 248])
def test_head_dims_off_every_power_of_two(memory, rng, head_dim):
    shape = {"group": 2, "head_dim": head_dim, "block_size": 16, "dtype": torch.float16}
    Decode(memory, rng, [17, 1], new_token="appended", **shape).check()


@pytest.mark.gpu
def test_addresses_beyond_32_bits(rng):
    num_blocks = 2**31 // (16 * 2 * 64) + 2
    caches = [torch.zeros(num_blocks, 16, 2, 64, dtype=torch.float16, device="cuda") for _ in range(2)]
    new = [torch.randn(17, 2, 64, generator=rng).half().cuda() for _ in range(2)]
    table = torch.tensor([[num_blocks - 1, num_blocks - 3]], dtype=torch.int32, device="cuda")
    positions = torch.arange(17, device="cuda")
    slots = compute_slot_mapping(table.expand(17, 2), positions, 16)
    kv_append_slot_mapping(*caches, *new, slots)
    query = torch.randn(17, 4, 64, generator=rng).half().cuda()
    seq_lens = torch.tensor([17], device="cuda")
    want = reference.attention(query, *new, scale=0.125)
    # An address gone wrong finds zeros: the result is then off by far more than fp16 rounding.
    got = paged_attention_prefill(query, *caches, table, torch.tensor([0, 17], device="cuda"), seq_lens, 17)
    assert (got.double() - want).abs().max() < 0.01
    got = pa.paged_attention_decode(query[-1:], *caches, table, seq_lens)
    assert (got.double() - want[-1]).abs().max() < 0.01


@pytest.mark.parametrize("new_token", AXES["new_token"])
def test_a_result_does_not_depend_on_the_batch(memory, rng, monkeypatch, new_token):
    monkeypatch.setattr(pa, "split_size", lambda _: 32)
    shape = {"group": 2, "head_dim": 64, "block_size": 16, "dtype": torch.float16}
    decode = Decode(memory, rng, [150, 33, 64, 1], new_token=new_token, **shape)
    cache, outs = decode.cache, []
    for most in (1, 4, 10**6):
        monkeypatch.setattr(pa, "max_shared_programs", lambda _, most=most: most)
        for rows in (slice(None), slice(0, 1)):
            out = pa.paged_attention_decode(
                decode.query[rows],
                cache.k_cache,
                cache.v_cache,
                cache.block_table[rows],
                cache.seq_lens[rows],
                **{name: new if name == "append" else new[rows] for name, new in decode.new.items()},
            )
            outs.append(out[0])
    assert all(torch.equal(out, outs[0]) for out in outs)


def test_a_workspace_serves_one_step_after_another(memory, rng, monkeypatch, device):
    monkeypatch.setattr(pa, "max_shared_programs", lambda _: 10**6)
    monkeypatch.setattr(pa, "split_size", lambda _: 16)
    shape = {"group": 2, "head_dim": 64, "block_size": 16, "dtype": torch.float32}
    workspace = pa.decode_workspace(4, 4, 2, 64, 96, device)
    for lengths in ([70, 1, 33, 16], [5, 64], [0, 17, 48]):
        Decode(memory, rng, lengths, **shape).check(workspace=workspace)
        assert not workspace.arrived.any()


def test_int64_tables_and_the_default_output(memory, rng):
    decode = Decode(memory, rng, [17, 3], group=2, head_dim=64, block_size=16, dtype=torch.float32)
    cache = decode.cache
    out, wide = (
        pa.paged_attention_decode(decode.query, cache.k_cache, cache.v_cache, table, lens)
        for table, lens in (
            (cache.block_table, cache.seq_lens),
            (cache.block_table.long(), cache.seq_lens.long()),
        )
    )
    assert out.is_contiguous()
    assert torch.equal(out, wide)


def test_autotune_gives_the_same(memory, rng, monkeypatch, device):
    if device == "cpu":
        # Without a driver there is nothing to time: the first of the launches is as good as any.
        kernel = pa.paged_attention_decode_autotuned_kernel
        monkeypatch.setattr(kernel, "_do_bench", lambda call, quantiles: call() or [1.0] * len(quantiles))
    decode = Decode(memory, rng, [40, 17], group=2, head_dim=64, block_size=16, dtype=torch.float16)
    decode.check(launch="autotune")


@pytest.mark.gpu
@pytest.mark.parametrize("shared", [1, 10**6])
def test_a_captured_launch_follows_growing_sequences(memory, rng, monkeypatch, shared):
    monkeypatch.setattr(pa, "max_shared_programs", lambda _: shared)
    shape = {"group": 2, "head_dim": 128, "block_size": 16, "dtype": torch.float16}
    decode = Decode(memory, rng, [700, 1, 130, 300], **shape)
    cache = decode.cache
    given = (decode.query, cache.k_cache, cache.v_cache, cache.block_table)
    seq_lens = torch.ones_like(cache.seq_lens)
    out = torch.empty_like(decode.query)
    buffers = {"out": out, "workspace": pa.decode_workspace(4, 4, 2, 128, 720, "cuda")}
    pa.paged_attention_decode(*given, seq_lens, **buffers)
    allocated = torch.cuda.memory_stats()["allocation.all.allocated"]
    pa.paged_attention_decode(*given, seq_lens, **buffers)
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == allocated
    # A synchronisation with the host would fail inside a capture.
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        pa.paged_attention_decode(*given, seq_lens, **buffers)
    for lengths in ([700, 1, 130, 300], [1, 1, 129, 0], [513, 1, 16, 257]):
        seq_lens.copy_(torch.tensor(lengths))
        out.fill_(torch.nan)
        graph.replay()
        exact = reference.paged_attention_decode(*given, seq_lens, scale=decode.scale)
        bound = attention_bound(reference.paged_attention_decode, *given, seq_lens, scale=decode.scale)
        assert ((out.double() - exact).abs() <= bound).all()


def test_wrong_arguments_are_named(memory, rng, device):
    decode = Decode(memory, rng, [17, 3], group=2, head_dim=64, block_size=16, dtype=torch.float32)
    cache = decode.cache
    good = {
        "query": decode.query,
        "k_cache": cache.k_cache,
        "v_cache": cache.v_cache,
        "block_table": cache.block_table,
        "seq_lens": cache.seq_lens,
    }
    small = pa.decode_workspace(1, 4, 2, 64, 16, device)
    wide = torch.zeros(2, 1, 2, 264, device=device)
    for change, message in [
        ({"query": decode.query[:, :3]}, "query heads must be a multiple of the 2 KV heads, but are 3"),
        ({"query": decode.query.half()}, "query must be float32, but is float16"),
        ({"query": decode.query[..., :32]}, r"query must have shape \[any, any, 64\], but has \[2, 4, 32\]"),
        ({"seq_lens": cache.seq_lens[:1]}, r"block_table must have shape \[1, any\], but has \[2, 3\]"),
        ({"k_cache": wide, "v_cache": wide}, "block size must be 16, 32, 64, 128 or 256, but is 1"),
        (
            {"k_cache": cache.k_cache[..., ::2]},
            "k_cache must have a contiguous last dim, but its stride there is 2",
        ),
        ({"key": decode.query[:, :2]}, "key and value must be given together, or neither of them"),
        ({"window": -1}, "window must be 0"),
        ({"softcap": -1.0}, "softcap must be 0"),
        ({"workspace": small}, "the workspace is too small for 2 sequences, 4 heads and 1 splits"),
        ({"launch": "best"}, "launch must be 'fixed' or 'autotune', but is 'best'"),
    ]:
        with pytest.raises(ValueError, match=message):
            pa.paged_attention_decode(**(good | change))
