"""Every kernel as its public function launches it, on tensors without memory; run as a program in a process
without the interpreter, it prints compile keys or compiles, as JSON.
"""

import json
import sys
from unittest import mock

import torch

from kernels import (
    activation,
    block_ops,
    embedding,
    inverse_rope_fp8,
    kv_append,
    linear,
    norms,
    paged_attention,
    prefill_attention,
    rotary,
    sampling,
    shaping,
)
from kernels.offline import launches
from kernels.paged_attention import AUTOTUNE_LAUNCHES
from kernels.rows import Rows, Seen, Shaping

MANY = 2**19
BF16 = torch.bfloat16


def meta(*shape, dtype=BF16):
    return torch.empty(shape, dtype=dtype, device="meta")


def ints(*shape, dtype=torch.int32):
    return meta(*shape, dtype=dtype)


def cache(num_kv_heads=12, head_dim=64, block_size=16, dtype=BF16):
    return meta(1000, block_size, num_kv_heads, head_dim, dtype=dtype)


def append(function, *index_of):
    """An append of `n` tokens that are slices of a fused projection."""

    def call(n):
        key, value = meta(n, 36, 64).split([12, 24], 1)[0], meta(n, 36, 64)[:, 24:]
        function(cache(), cache(), key, value, *(index(n) for index in index_of))

    return call


def decode(num_heads=12, num_kv_heads=12, head_dim=64, dtype=BF16, block_size=16, **options):
    def call(n):
        batch, width = n, 64
        pages = cache(num_kv_heads, head_dim, block_size, dtype)
        new = meta(batch, num_kv_heads, head_dim, dtype=dtype) if options.get("append") else None
        paged_attention.paged_attention_decode(
            meta(batch, num_heads, head_dim, dtype=dtype),
            pages,
            pages,
            ints(batch, width),
            ints(batch),
            key=new,
            value=new,
            sinks=meta(num_heads) if options.get("sinks") else None,
            window=options.get("window", 0),
            softcap=options.get("softcap", 0.0),
        )

    return call


def decode_as(launch):
    """Decode with the tile, warps and stages of one of the autotuner's launches."""

    def call(n):
        with mock.patch.object(paged_attention, "fixed_launch", return_value=launch):
            decode(16, 8, 128)(n)

    return call


def prefill(num_heads=12, num_kv_heads=12, head_dim=64, dtype=BF16, block_size=16, **options):
    def call(n):
        pages = cache(num_kv_heads, head_dim, block_size, dtype)
        query = meta(n, num_heads, head_dim, dtype=dtype)
        sinks = meta(num_heads) if options.pop("sinks", False) else None
        prefill_attention.paged_attention_prefill(
            query, pages, pages, ints(3, 64), ints(4), ints(3), n, sinks=sinks, **options
        )

    return call


POSITIONS = torch.empty(2**19 + 1, dtype=torch.int64)


def quantise(specialize, **options):
    def call(n):
        # `complete` is to serve slices that do not begin at a multiple of 16 bytes as well.
        first = n // 16 % 2 if specialize == "complete" else 0
        inverse_rope_fp8.inverse_rope_fp8(
            meta(n, 8, 512),
            POSITIONS[first : first + n],
            meta(4096, 64, dtype=torch.float32),
            1,
            specialize=specialize,
            **options,
        )

    return call


def rotate(n):
    rotary.rotary_embedding(meta(n, 16, 128), meta(n, 8, 128), ints(n), meta(4096, 128, dtype=torch.float32))


def rotate_and_append(n):
    query, key, value = meta(n, 32, 128).split([16, 8, 8], 1)
    weights = {"q_weight": meta(128), "k_weight": meta(128)}
    cos_sin, pages = meta(4096, 128, dtype=torch.float32), cache(8, 128)
    rotary.rotary_kv_append(query, key, value, ints(n), cos_sin, pages, pages, ints(n), **weights)


def layer_norm(n):
    norms.add_layer_norm(meta(n, 768), meta(n, 768), meta(768), meta(768), 1e-5)


def sample(n):
    state = (meta(n, dtype=torch.float32), ints(n, dtype=torch.int64), ints(n))
    sampling.sample(meta(n, 50257), *state)


def advance(n):
    names = ("token_ids", "positions", "seq_lens", "slot_mapping", "finished", "sampled", "max_lens")
    state = {name: ints(n) for name in names}
    block_ops.advance_step(**state, stop_ids=ints(n, 2), block_table=ints(n, 64), block_size=16)


def sample_and_advance(n):
    fields = {name: ints(n) for name in Rows._fields}
    fields |= {"temperatures": meta(n, dtype=torch.float32), "seeds": ints(n, dtype=torch.int64)}
    fields |= {"stop_ids": ints(n, 8), "block_table": ints(n, 64)}
    workspace = sampling.sampling_workspace(n, 50257, "meta")
    sampling.sample_and_advance(meta(n, 50304)[:, :50257], Rows(**fields), n + 100, workspace=workspace)


def multiply(outputs, inputs, activation=None, *, pieces=False):
    def call(n):
        tokens = min(n, linear.MOST_TOKENS if pieces else 64)
        launch = linear.linear_launch(tokens, outputs, inputs, BF16, pieces=pieces)
        x, weight = meta(tokens, inputs), meta(outputs * (2 if activation == linear.GATED else 1), inputs)
        if pieces:
            linear.linear_pieces(x, weight, launch=launch)
        else:
            linear.linear(x, weight, None if activation == linear.GATED else meta(outputs), activation, launch=launch)

    return call


def beginning_early(module, call):
    """As on a GPU that can, which a tensor without memory does not stand for."""

    def on_hopper(n):
        with mock.patch.object(module, "early", return_value={"EARLY": True, "launch_pdl": True}):
            call(n)

    return on_hopper


def shaping_of(n):
    wide = {"temperatures", "top_p", "min_p", "repetition", "presence", "frequency"}
    return Shaping(**{name: meta(n, dtype=torch.float32) if name in wide else ints(n) for name in Shaping._fields})


def penalise(n):
    seen = Seen(ints(64), ints(64, n + 100), ints(64, n + 100))
    shaping.penalise(meta(n, 50257, dtype=torch.float32), shaping_of(n), seen, ints(n), ints(n))


# How many keys each has over 1..4096 tokens, and over those and 2**19.
KEYS = {
    "kv_append_triton": (append(kv_append.kv_append_triton, ints, ints, ints), 1, 1),
    "kv_append_triton_identity_pos": (append(kv_append.kv_append_triton_identity_pos, ints, ints), 1, 1),
    # Its position is passed by value: here the number modulo the block.
    "kv_append_triton_full_batch": (
        append(kv_append.kv_append_triton_full_batch, ints, lambda n: n % 16),
        1,
        1,
    ),
    "kv_append_slot_mapping": (append(kv_append.kv_append_slot_mapping, ints), 1, 1),
    "compute_slot_mapping": (lambda n: kv_append.compute_slot_mapping(ints(n, 64), ints(n), 16), 1, 1),
    # One where programs share a sequence, one where each has its own.
    "paged_attention_decode": (decode(), 2, 2),
    # One for up to 128 tokens, one for more.
    "paged_attention_prefill": (prefill(), 2, 2),
    # 1, a multiple of 16 or neither, times whether the padded stride is such a multiple: four occur.
    # 2**19 tokens of 4096 values make one more, with a stride that needs 64 bits.
    "inverse_rope_fp8_default": (quantise("default"), 4, 5),
    "inverse_rope_fp8_num_tokens": (quantise("num_tokens"), 2, 3),
    "inverse_rope_fp8_complete": (quantise("complete"), 1, 1),
    "rotary_embedding": (rotate, 1, 1),
    "rotary_kv_append": (rotate_and_append, 1, 1),
    "add_layer_norm": (
        lambda n: norms.add_layer_norm(meta(n, 768), meta(n, 768), meta(768), meta(768), 1e-5),
        1,
        1,
    ),
    "add_rms_norm": (lambda n: norms.add_rms_norm(meta(n, 1024), meta(n, 1024), meta(1024), 1e-5), 1, 1),
    "bias_gelu": (lambda n: activation.bias_gelu(meta(n, 3072), meta(3072), "gelu_new"), 1, 1),
    "silu_and_mul": (lambda n: activation.silu_and_mul(meta(n, 6144)), 1, 1),
    # One for each launch of the table: up to 16 tokens, up to 64, and in pieces up to 256.
    "linear": (multiply(3072, 768, "gelu_new"), 2, 2),
    "linear_pieces": (multiply(768, 3072, pieces=True), 3, 3),
    "embed": (lambda n: embedding.embed(ints(n), meta(50257, 768), ints(n), meta(1024, 768)), 1, 1),
    # Two kernels.
    "sample": (sample, 2, 2),
    "copy_blocks": (lambda n: block_ops.copy_blocks(cache(), cache(), ints(n, 2)), 1, 1),
    "patch_block_table": (lambda n: block_ops.patch_block_table(ints(n, 64), ints(n, 3)), 1, 1),
    "patch_state": (lambda n: block_ops.patch_state(ints(100), ints(n, 3)), 1, 1),
    "advance_step": (advance, 1, 1),
    # Two kernels.
    "sample_and_advance": (sample_and_advance, 2, 2),
    "add_biases": (lambda n: shaping.add_biases(meta(n, 50257, dtype=torch.float32), ints(n, 3)), 1, 1),
    "penalise": (penalise, 1, 1),
    "keep_likely": (lambda n: shaping.keep_likely(meta(n, 50257, dtype=torch.float32), shaping_of(n)), 1, 1),
}

# Every kernel in the forms that differ in what is compiled, not only in constants.
COMPILED = {
    **{name: (call, 5) for name, (call, *_) in KEYS.items()},
    "paged_attention_decode, not shared": (decode(), 2048),
    "paged_attention_decode, all options": (
        decode(28, 4, 112, append=True, sinks=True, window=100, softcap=30.0),
        5,
    ),
    "paged_attention_decode, fp32": (decode(8, 4, 128, torch.float32), 2048),
    "paged_attention_prefill, short": (prefill(16, 8, 128), 5),
    "paged_attention_prefill, long": (prefill(16, 8, 128), 500),
    "paged_attention_prefill, all options": (prefill(28, 4, 112, sinks=True, window=100, softcap=30.0), 500),
    "add_rms_norm, first": (lambda n: norms.add_rms_norm(meta(n, 1024), None, meta(1024), 1e-5), 5),
    "bias_gelu, exact": (lambda n: activation.bias_gelu(meta(n, 3072), None, "gelu"), 5),
    "bias_gelu, quick": (lambda n: activation.bias_gelu(meta(n, 3072), None, "quick_gelu"), 5),
    "embed, no positions": (lambda n: embedding.embed(ints(n), meta(50257, 768)), 5),
    "linear, gated": (multiply(3072, 1024, linear.GATED), 64),
    "linear_pieces, many tokens": (multiply(768, 3072, pieces=True), 256),
    **{
        f"{name}, early": (beginning_early(module, KEYS[name][0]), 5)
        for name, module in {
            "linear_pieces": linear,
            "add_layer_norm": norms,
            "rotary_kv_append": rotary,
            "paged_attention_decode": paged_attention,
            "sample_and_advance": sampling,
        }.items()
    },
    "inverse_rope_fp8, packed": (quantise("complete", packed=True), 5),
}
# The same kernels in sizes that take long to compile.
LARGE = {
    "paged_attention_decode, fp16, wide heads": (decode(16, 2, 256, torch.float16, block_size=64), 5),
    **{f"paged_attention_decode, {launch}": (decode_as(launch), 5) for launch in AUTOTUNE_LAUNCHES},
    "paged_attention_prefill, fp16, wide heads": (prefill(16, 2, 256, torch.float16, block_size=64), 500),
    "paged_attention_prefill, fp32": (prefill(8, 4, 128, torch.float32), 500),
}


def count_keys(most):
    counts = {}
    for name, (call, *_) in KEYS.items():
        numbers = [*range(1, most + 1), MANY]
        keys = [{launch.name + launch.key() for launch in launches(lambda n=n, c=call: c(n))} for n in numbers]
        few = set().union(*keys[:-1])
        counts[name] = [len(few), len(few | keys[-1])]
    return counts


def compile_all(cases):
    return {
        name: {launch.name: len(launch.compile().asm["cubin"]) for launch in launches(lambda c=call, n=n: c(n))}
        for name, (call, n) in cases.items()
    }


if __name__ == "__main__":
    what, which = sys.argv[1:]
    found = count_keys(int(which)) if what == "keys" else compile_all({"usual": COMPILED, "large": LARGE}[which])
    json.dump(found, sys.stdout)
