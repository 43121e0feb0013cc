"""Every kernel once or more on small, hostile shapes, to be run under compute-sanitizer on a GPU:

PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck python -m tests.kernels.sanitized
"""

import torch

from kernels import activation, block_ops, kv_append, linear, norms, paged_attention, rotary
from kernels.embedding import embed
from kernels.inverse_rope_fp8 import SPECIALIZE, inverse_rope_fp8
from kernels.prefill_attention import paged_attention_prefill
from kernels.sampling import sample


def randn(*shape, dtype=torch.bfloat16):
    return torch.randn(shape, device="cuda", dtype=dtype)


def ints(*values):
    return torch.tensor(values, device="cuda")


def attention(group, head_dim, block_size, dtype):
    lengths, kv_heads = [2 * block_size + 1, 1, 0, block_size], 2
    table = torch.randperm(12, device="cuda").view(4, 3)
    caches = [randn(12, block_size, kv_heads, head_dim, dtype=dtype) for _ in range(2)]
    seq_lens, sinks = ints(*lengths), randn(group * kv_heads)
    query = randn(4, group * kv_heads, head_dim, dtype=dtype)
    new = {
        "key": randn(4, kv_heads, head_dim, dtype=dtype),
        "value": randn(4, kv_heads, head_dim, dtype=dtype),
    }
    paged_attention.split_size = lambda _: 32
    for most in (1, 10**6):
        paged_attention.max_shared_programs = lambda _, most=most: most
        paged_attention.paged_attention_decode(query, *caches, table, seq_lens)
        options = {"window": 20, "softcap": 5.0, "sinks": sinks, **new}
        paged_attention.paged_attention_decode(query, *caches, table, seq_lens, **options)
    news = [block_size + 1, 1, 0, block_size]
    prompt = randn(sum(news), group * kv_heads, head_dim, dtype=dtype)
    bounds = ints(0, *torch.tensor(news).cumsum(0).tolist())
    paged_attention_prefill(prompt, *caches, table, bounds, seq_lens, max(news))
    options = {"window": 20, "softcap": 5.0, "sinks": sinks}
    paged_attention_prefill(prompt, *caches, table, bounds, seq_lens, max(news), **options)


def step(tokens, heads, head_dim, block_size):
    caches = [randn(tokens, block_size, heads, head_dim) for _ in range(2)]
    key, value, query = (randn(tokens, heads, head_dim) for _ in range(3))
    rows, offsets = torch.randperm(tokens, device="cuda"), torch.randint(block_size, (tokens,), device="cuda")
    kv_append.kv_append_triton(*caches, key, value, rows, rows, offsets)
    kv_append.kv_append_triton_identity_pos(*caches, key, value, rows, offsets)
    kv_append.kv_append_triton_full_batch(*caches, key, value, rows, block_size - 1)
    slots = kv_append.compute_slot_mapping(rows[:, None], offsets, block_size)
    slots[0] = -1
    kv_append.kv_append_slot_mapping(*caches, key, value, slots)
    cos_sin = randn(block_size, head_dim, dtype=torch.float32)
    rotary.rotary_embedding(query, key, offsets, cos_sin)
    weights = {"q_weight": randn(head_dim), "k_weight": randn(head_dim)}
    rotary.rotary_kv_append(query, key, value, offsets, cos_sin, *caches, slots, **weights)
    x, hidden = randn(tokens, head_dim * 10 + 2), head_dim * 10 + 2
    norms.add_layer_norm(x, x.clone(), randn(hidden), randn(hidden), 1e-5)
    norms.add_rms_norm(x, x.clone(), randn(hidden), 1e-5)
    for count in (1, 2):
        launch = linear.LinearLaunch(16, 16, 32, count, count == 1, 2)
        few, weight = randn(tokens, 64), randn(hidden // 16 * 16, 64)
        pieces = linear.linear_pieces(few, weight, launch=launch)
        norms.add_rms_norm(pieces, randn(tokens, weight.shape[0]), randn(weight.shape[0]), 1e-5)
    for kind in activation.GELU_KINDS:
        activation.bias_gelu(x, randn(hidden), kind)
    activation.silu_and_mul(x)
    embed(rows, randn(tokens, hidden), offsets, randn(block_size, hidden))
    sample(randn(tokens, 5003), torch.rand(tokens, device="cuda"), rows, offsets)
    block_ops.copy_blocks(*caches, ints([0, tokens - 1]))
    table = rows[:, None].repeat(1, 3)
    block_ops.patch_block_table(table, ints([0, 2, 5], [-1, 9, 9], [tokens - 1, 0, 1]))
    state = [rows.clone(), offsets.clone(), offsets + 1, slots, (rows % 3 == 0).int()]
    given = {"sampled": rows, "stop_ids": rows[:, None].contiguous(), "max_lens": rows * 0 + 99}
    block_ops.advance_step(*state, **given, block_table=table, block_size=block_size)


def main():
    torch.manual_seed(0)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        for group, head_dim, block_size in ((1, 64, 16), (7, 80, 32), (2, 128, 16), (4, 256, 64)):
            attention(group, head_dim, block_size, dtype)
    step(5, 3, 64, 16)
    step(130, 1, 112, 64)
    for specialize in SPECIALIZE:
        for packed in (False, True):
            for tokens in (1, 13):
                positions, angles = torch.arange(tokens, device="cuda"), randn(13, 64, dtype=torch.float32)
                o = randn(tokens, 4, 512)
                inverse_rope_fp8(o, positions, angles, 2, specialize=specialize, packed=packed)
    torch.cuda.synchronize()
    print("every kernel ran")  # noqa: T201 - run by hand, this is its result


if __name__ == "__main__":
    main()
