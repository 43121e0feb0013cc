"""Tiny models of many kinds that transformers has, and what `attention_backend=hf` makes of each.

`python -m tests.engine.hf_models [KIND]...` prints the table of engine/README.md.
"""

import sys
import tempfile
import warnings
from pathlib import Path

import torch

from engine import LLM, ModelError, SamplingParams
from tests.engine.checkpoints import hf_generate, random_prompts, shape

# Values that many configs share; what a config does not know it keeps and nobody reads.
COMMON = shape(16, pad_token_id=0)
GPT = {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 128, "n_ctx": 128}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LATENT = EXPERTS | {
    "head_dim": 8,
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "n_routed_experts": 4,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
# Their configs work it out, and take no other.
NO_HEAD_DIM = ("falcon",)
PLAIN = (
    *("apertus", "arcee", "bitnet", "cohere", "cohere2", "diffllama", "ernie4_5", "exaone4", "gemma", "gemma2"),
    *("glm", "glm4", "granite", "helium", "hunyuan_v1_dense", "llama", "ministral", "mistral", "nemotron", "olmo"),
    *("olmo2", "olmo3", "persimmon", "phi", "phi3", "qwen2", "qwen3", "seed_oss", "smollm3", "stablelm", "starcoder2"),
    *("bamba", "jamba", "mamba", "mamba2", "recurrent_gemma", "rwkv"),
    *("biogpt", "gpt_neox", "gpt_neox_japanese", "opt", "xglm", "bloom", "falcon", "mpt"),
)
MIXTURES = (
    *("ernie4_5_moe", "flex_olmo", "gpt_oss", "granitemoe", "granitemoeshared", "minimax", "mixtral"),
    *("olmoe", "phimoe", "qwen2_moe", "qwen3_moe"),
)
OLD = ("gpt2", "gpt_bigcode", "gptj", "codegen", "ctrl", "openai-gpt")
# What each kind needs besides.
KINDS = {
    **{kind: {} for kind in PLAIN},
    **dict.fromkeys(MIXTURES, EXPERTS),
    **dict.fromkeys(OLD, GPT),
    "gpt_neox": {"rotary_pct": 0.25},
    "opt": {"ffn_dim": 96, "word_embed_proj_dim": 64},
    "xglm": {"d_model": 64, "num_layers": 3, "attention_heads": 4, "ffn_dim": 96},
    "bloom": {"n_layer": 3, "n_head": 4},
    "falcon": {"multi_query": False},
    "jamba": EXPERTS | {"attn_layer_period": 3, "attn_layer_offset": 1, "use_mamba_kernels": False},
    "mpt": {"d_model": 64, "n_heads": 4, "n_layers": 3, "max_seq_len": 128},
    "gptj": GPT | {"rotary_dim": 8},
    "codegen": GPT | {"rotary_dim": 8},
    "ctrl": GPT | {"dff": 96},
    "gemma2, no softcap": {"attn_logit_softcapping": None, "query_pre_attn_scalar": 16},
    "gemma3_text": {"layer_types": ["sliding_attention"] * 2 + ["full_attention"]},
    "llama4_text": EXPERTS | {"attention_chunk_size": 8, "intermediate_size_mlp": 96},
    "deepseek_v2": LATENT,
    "deepseek_v3": LATENT,
    "lfm2": {"layer_types": ["conv", "full_attention", "conv"], "conv_L_cache": 3},
    "qwen3_next": EXPERTS
    | {
        "layer_types": ["linear_attention", "linear_attention", "full_attention"],
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "shared_expert_intermediate_size": 32,
    },
    "llama, dynamic rope": {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}},
    "bamba": {"attn_layer_indices": [1], "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16},
    "mamba": {"state_size": 16},
    "mamba2": {"state_size": 16, "num_heads": 8, "head_dim": 16},
}


def make_checkpoint(name, folder):
    """Save a tiny model of this kind, every parameter random and wide."""
    from transformers import AutoConfig, AutoModelForCausalLM  # noqa: PLC0415 - takes seconds
    from transformers.utils import logging  # noqa: PLC0415 - as above

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    torch.manual_seed(5)
    kind = name.partition(",")[0]
    common = {key: value for key, value in COMMON.items() if key != "head_dim" or kind not in NO_HEAD_DIM}
    config = AutoConfig.for_model(kind, **(common | KINDS[name]))
    if getattr(config, "sliding_window", None):
        config = AutoConfig.for_model(kind, **(common | {"sliding_window": 7} | KINDS[name]))
    config._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.normal_(0.0 if parameter_name.endswith("bias") else 1.0, 0.2)
    model.save_pretrained(folder)
    return str(folder)


def load(path, **options):
    options = {"dtype": "float32", "device": "cpu", "num_blocks": 64, "block_size": 4, **options}
    return LLM(path, attention_backend="hf", **options)


def theirs(path, prompts, max_tokens):
    from transformers import AutoModelForCausalLM  # noqa: PLC0415 - takes seconds

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
    return [hf_generate(model, prompt, max_tokens)[0] for prompt in prompts]


def verdict(name):
    """`served`, or the sentence that refuses it."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            path = make_checkpoint(name, Path(folder))
        except Exception as error:  # noqa: BLE001 - a kind that these values do not make
            return f"not made: {type(error).__name__}: {str(error).splitlines()[0]:.90}"
        try:
            llm = load(path)
        except ModelError as error:
            return str(error)
        prompts = random_prompts([1, 3, 9, 17, 30], 1)
        outputs = llm.generate(prompts, SamplingParams(max_tokens=16))
        same = [output.token_ids for output in outputs] == theirs(path, prompts, 16)
        return "served" if same else "WRONG"


if __name__ == "__main__":
    for one in sys.argv[1:] or KINDS:
        sys.stdout.write(f"| {one} | {verdict(one)} |\n")
        sys.stdout.flush()
