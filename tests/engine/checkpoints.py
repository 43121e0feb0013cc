"""Tiny models of each family as Hugging Face saves them, and what Hugging Face itself generates with them.

With default initialisation most greedy outputs of a tiny model stay the same when attention is replaced by zeros, so
these are initialised ten times as widely; norms and biases are random too, windows are shorter than contexts, and no
token ends a text.
"""

import random
from functools import cache

import torch

VOCAB = 320
# Greedy choices whose two best logits are closer than this are not compared: they are not in any of the cases.
LEAST_GAP = 1e-3


def sizes(head_dim):
    """Layers and heads: fewer of the wide ones that kernels need, which an interpreter runs."""
    return (3, 4) if head_dim < 64 else (2, 2)


def shape(head_dim, **more):
    layers, heads = sizes(head_dim)
    return {
        "vocab_size": VOCAB,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2,
        "head_dim": head_dim,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-6,
        "initializer_range": 0.2,
        "bos_token_id": None,
        "eos_token_id": None,
        **more,
    }


def configs(head_dim=16):
    """Model type and config values of each family."""
    layers, heads = sizes(head_dim)
    return {
        "gpt2": (
            "gpt2",
            {
                "vocab_size": VOCAB,
                "n_embd": heads * head_dim,
                "n_layer": layers,
                "n_head": heads,
                "n_positions": 128,
                "initializer_range": 0.2,
                "scale_attn_by_inverse_layer_idx": True,
                "bos_token_id": None,
                "eos_token_id": None,
            },
        ),
        "llama": (
            "llama",
            shape(
                head_dim,
                attention_bias=True,
                mlp_bias=True,
                rope_parameters={
                    "rope_type": "llama3",
                    "rope_theta": 10000.0,
                    "factor": 4.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 32,
                },
            ),
        ),
        # Its last layer sees a window, those before it everything.
        "qwen2": ("qwen2", shape(head_dim, use_sliding_window=True, sliding_window=7, max_window_layers=layers - 1)),
        # Heads wider than hidden_size / num_attention_heads.
        "qwen3": ("qwen3", shape(2 * head_dim if head_dim < 64 else head_dim, tie_word_embeddings=True)),
        "mistral": ("mistral", shape(head_dim, sliding_window=7)),
    }


FAMILIES = tuple(configs())


class Checkpoints:
    """Folders of checkpoints, by family and head_dim."""

    def __init__(self, folder):
        self.folder = folder
        self.path = cache(self._path)
        self.hf = cache(self._hf)

    def _path(self, family, head_dim=16):
        path = self.folder / f"{family}-{head_dim}"
        make_model(family, head_dim).save_pretrained(path)
        return str(path)

    def _hf(self, family, head_dim=16, dtype=torch.float32, device="cpu"):
        from transformers import AutoModelForCausalLM  # noqa: PLC0415 - takes seconds

        path = self.path(family, head_dim)
        return AutoModelForCausalLM.from_pretrained(path, dtype=dtype).to(device).eval()


def make_model(family, head_dim=16, **changes):
    """A model with random weights, all of them."""
    from transformers import AutoConfig, AutoModelForCausalLM  # noqa: PLC0415 - takes seconds
    from transformers.utils import logging  # noqa: PLC0415 - as above

    logging.disable_progress_bar()
    kind, values = configs(head_dim)[family]
    torch.manual_seed(11)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **(values | changes)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.normal_(0.0 if name.endswith("bias") else 1.0, 0.2)
    return model.eval()


def random_prompts(lengths, seed):
    rng = random.Random(seed)
    return [[rng.randrange(VOCAB) for _ in range(length)] for length in lengths]


def hf_generate(model, prompt, max_new_tokens):
    """What Hugging Face makes of one prompt, and how far apart the two best logits were at each token."""
    ids = torch.tensor([prompt], device=model.device)
    with torch.no_grad():
        out = model.generate(
            ids,
            # Left to itself, generate takes a pad token inside the prompt for padding.
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )
    best = torch.stack([logits[0].topk(2).values for logits in out.logits])
    return out.sequences[0, len(prompt) :].tolist(), (best[:, 0] - best[:, 1]).tolist()


def fit(case):
    """Change values of axes that do not go with the others of a case."""
    if case["block_tables"] == "in_graph" or case["overlap"] == "on":
        case |= {"block_tables": "in_graph", "inputs": "on_device", "sampler": "on_device", "dense_mask": "off"}
        if case["kv_append"] not in {"fused", "slot_mapping"}:
            case["kv_append"] = "fused"
    else:
        case["graph_sampling"] = "outside"
    if case["sampler"] == "item_loop" and case["inputs"] == "on_device":
        case["inputs"] = "packed_pinned"
    if case["kv_append"] not in {"fused", "slot_mapping"} or case["attention_backend"] == "hf":
        case["cuda_graph"] = "off"
    if case["cuda_graph"] == "off":
        case["graph_sampling"] = "outside"
