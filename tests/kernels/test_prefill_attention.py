import itertools

import pytest
import torch

from kernels import reference
from kernels.prefill_attention import paged_attention_prefill
from tests.device import CUDA
from tests.kernels.helpers import PagedCache, attention_bound
from tests.pairwise import pairwise

AXES = {
    "dtype": [torch.float32, torch.float16],
    "block_size": [16, 32, 64, 128, 256],
    "head_dim": [64, 80, 96, 112, 128, 256],
    "group": [1, 2, 4, 7, 8],
    "window": [0, 20],
    "softcap": [0.0, 5.0],
    "sinks": [False, True],
    "heads_first": [False, True],
}


def name(case):
    return "-".join(str(value).removeprefix("torch.") for value in case.values())


def lengths_for(block_size, seed):
    """Up to four (new, all) pairs: whole prompts, chunks after a prefix, one token, none at all."""
    borders = [
        (1, 1),
        (block_size + 1, block_size + 1),
        (1, block_size),
        (0, 7),
        (block_size - 1, 2 * block_size + 1),
        (2, block_size + 2),
        (0, 0),
        (min(70, 2 * block_size), 2 * block_size),
    ]
    return [borders[(seed + 3 * i) % len(borders)] for i in range(4)]


def run(memory, rng, pairs, *, dtype, head_dim, group, sinks=False, num_kv_heads=2, longest=0, **case):
    options = {option: case.pop(option, 0) for option in ("window", "softcap")}
    new, lengths = zip(*pairs, strict=True)
    cache = PagedCache(memory, rng, lengths, num_kv_heads=num_kv_heads, head_dim=head_dim, dtype=dtype, **case)
    num_heads, tokens = group * num_kv_heads, sum(new)
    fused = memory.frozen(torch.randn(tokens, num_heads + 2, head_dim, generator=rng).to(dtype))
    query = fused[:, 1:-1]
    cu_seqlens_q = memory.frozen(torch.tensor([0, *itertools.accumulate(new)]))
    options["sinks"] = memory.frozen(torch.randn(num_heads, generator=rng)) if sinks else None
    out = memory.unwritten(*query.shape, dtype=dtype)
    arguments = (query, cache.k_cache, cache.v_cache, cache.block_table, cu_seqlens_q, cache.seq_lens)
    assert paged_attention_prefill(*arguments, max(longest, *new, 1), out=out, **options) is out
    cache.check_caches()
    exact = reference.paged_attention_prefill(*arguments, scale=head_dim**-0.5, **options)
    bound = attention_bound(reference.paged_attention_prefill, *arguments, scale=head_dim**-0.5, **options)
    error = (out.double() - exact).abs()
    assert (error <= bound).all(), f"off by up to {(error / bound).max():.2f} of the bound"
    return out


def lasts(case):
    """Whether a case takes the interpreter many seconds."""
    return not CUDA and case["dtype"] is torch.float16 and case["block_size"] >= 128


PAIRS = [
    pytest.param(seed, case, marks=pytest.mark.slow if lasts(case) else (), id=f"{seed}-{name(case)}")
    for seed, case in enumerate(map(dict, pairwise(AXES)))
]


@pytest.mark.parametrize(("seed", "case"), PAIRS)
def test_pairs_of_everything(memory, rng, case, seed):
    run(memory, rng, lengths_for(case["block_size"], seed), **case)


PRODUCT = [
    {"dtype": dtype, "block_size": block_size, "head_dim": head_dim, "group": group}
    for dtype, block_size, head_dim, group in itertools.product(
        [torch.float32, torch.float16, torch.bfloat16], *(AXES[axis] for axis in list(AXES)[1:4])
    )
]


@pytest.mark.gpu
@pytest.mark.parametrize("seed", range(len(PRODUCT)), ids=lambda i: name(PRODUCT[i]))
def test_product(memory, rng, seed):
    # The options take turns, so that each meets each of the shapes' values.
    options = {
        "window": AXES["window"][seed % 2],
        "softcap": AXES["softcap"][seed // 2 % 2],
        "sinks": seed % 3 == 0,
        "heads_first": seed % 7 < 3,
    }
    run(memory, rng, lengths_for(PRODUCT[seed]["block_size"], seed), **PRODUCT[seed], **options)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("group", "head_dim"), [(1, 64), (2, 128), (4, 128), (1, 256)])
@pytest.mark.parametrize("window", [0, 300])
def test_long_prompts(memory, rng, dtype, group, head_dim, window):
    pairs = [(1000, 1000), (257, 2048), (1, 900), (0, 5), (640, 641)]
    run(memory, rng, pairs, dtype=dtype, group=group, head_dim=head_dim, block_size=16, window=window)


def test_batch_of_257(memory, rng):
    pairs = [(1 + i % 3, 1 + i % 7 + i % 3) for i in range(257)]
    run(memory, rng, pairs, dtype=torch.float32, group=1, num_kv_heads=1, head_dim=64, block_size=16)


def test_a_larger_bound_on_lengths_changes_nothing(memory, rng):
    shape = {"dtype": torch.float16, "group": 1, "num_kv_heads": 1, "head_dim": 64, "block_size": 16}
    state = rng.get_state()
    whole = run(memory, rng, [(150, 150)], **shape)
    rng.set_state(state)
    wide = run(memory, rng, [(150, 150)], longest=400, **shape)
    assert torch.equal(whole, wide)


def test_wrong_arguments_are_named(memory, rng):
    cache = PagedCache(memory, rng, [17, 3], num_kv_heads=2, head_dim=64, block_size=16, dtype=torch.float32)
    query = torch.zeros(5, 4, 64, device=memory.device)
    bounds = torch.tensor([0, 2, 5], device=memory.device)
    given = (cache.k_cache, cache.v_cache, cache.block_table)
    with pytest.raises(ValueError, match=r"cu_seqlens_q must have shape \[3\], but has \[2\]"):
        paged_attention_prefill(query, *given, bounds[1:], cache.seq_lens, 3)
    with pytest.raises(ValueError, match="max_seqlen_q must be positive, but is 0"):
        paged_attention_prefill(query, *given, bounds, cache.seq_lens, 0)
    with pytest.raises(ValueError, match="query must be float32, but is float16"):
        paged_attention_prefill(query.half(), *given, bounds, cache.seq_lens, 3)
    with pytest.raises(ValueError, match=r"scale must be positive, but is -1\.0"):
        paged_attention_prefill(query, *given, bounds, cache.seq_lens, 3, scale=-1.0)
