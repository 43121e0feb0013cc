"""From a Hugging Face config to a spec: what each family's config says, and what it leaves to be known."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from engine.errors import ModelError
from engine.models.spec import ModelSpec

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# Rotations whose frequencies depend on how long a sequence (or the longest of its batch) has become.
LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")


def _refuse(config: "PreTrainedConfig", what: str, why: str) -> ModelError:
    return ModelError(f"this {config.model_type} model cannot be run: {what}, and {why}")


def _eos(config: "PreTrainedConfig") -> tuple[int, ...]:
    ids = config.eos_token_id
    return () if ids is None else (ids,) if isinstance(ids, int) else tuple(ids)


def _gpt2(config: Any) -> ModelSpec:
    if config.add_cross_attention:
        raise _refuse(config, "it has cross attention", "there is no encoder here to attend to")
    head_dim = config.n_embd // config.n_head
    scale = head_dim**-0.5 if config.scale_attn_weights else 1.0
    by_layer = config.scale_attn_by_inverse_layer_idx
    return ModelSpec(
        model_type="gpt2",
        vocab_size=config.vocab_size,
        hidden_size=config.n_embd,
        intermediate_size=config.n_inner or 4 * config.n_embd,
        num_layers=config.n_layer,
        num_heads=config.n_head,
        num_kv_heads=config.n_head,
        head_dim=head_dim,
        max_positions=config.n_positions,
        norm="layer",
        norm_eps=config.layer_norm_epsilon,
        activation=config.activation_function,
        rope=False,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        qk_norm=False,
        windows=(0,) * config.n_layer,
        scales=tuple(scale / (i + 1) if by_layer else scale for i in range(config.n_layer)),
        tied=config.tie_word_embeddings,
        eos_token_ids=_eos(config),
        initializer_range=config.initializer_range,
    )


def _llama(config: Any) -> ModelSpec:
    kind = config.model_type
    if config.hidden_act not in {"silu", "swish"}:
        raise _refuse(config, f"its activation is {config.hidden_act!r}", "only 'silu' is built for gated MLPs")
    rope_type = config.rope_parameters["rope_type"]
    if rope_type in LENGTH_DEPENDENT_ROPE:
        raise _refuse(config, f"its rope_type is {rope_type!r}", "such a rotation changes keys that are cached already")
    layers = config.num_hidden_layers
    window = getattr(config, "sliding_window", None) or 0
    types = getattr(config, "layer_types", None) or ["sliding_attention" if window else "full_attention"] * layers
    attention_bias = getattr(config, "attention_bias", False)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return ModelSpec(
        model_type=kind,
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_layers=layers,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=head_dim,
        max_positions=config.max_position_embeddings,
        norm="rms",
        norm_eps=config.rms_norm_eps,
        activation="silu_gated",
        rope=True,
        # Qwen2 has these biases whatever its config says; Mistral has none.
        qkv_bias=kind == "qwen2" or attention_bias,
        out_bias=kind != "qwen2" and attention_bias,
        mlp_bias=kind == "llama" and config.mlp_bias,
        qk_norm=kind == "qwen3",
        windows=tuple(window if layer == "sliding_attention" else 0 for layer in types),
        scales=(head_dim**-0.5,) * layers,
        tied=config.tie_word_embeddings,
        eos_token_ids=_eos(config),
        initializer_range=config.initializer_range,
    )


FAMILIES: dict[str, Callable[[Any], ModelSpec]] = {
    "gpt2": _gpt2,
    "llama": _llama,
    "mistral": _llama,
    "qwen2": _llama,
    "qwen3": _llama,
}


def read_spec(config: "PreTrainedConfig") -> ModelSpec:
    """The table that describes this model.

    Raises:
        ModelError: The family is not one of `FAMILIES`, or the model has something that is not built.
    """
    family = FAMILIES.get(config.model_type)
    if family is None:
        supported = ", ".join(FAMILIES)
        raise ModelError(f"models of type {config.model_type!r} are not supported; there are {supported}")
    if getattr(config, "quantization_config", None) is not None:
        raise _refuse(config, "its weights are quantised", "only fp32, fp16 and bf16 weights are read")
    spec = family(config)
    if spec.num_heads * spec.head_dim != spec.hidden_size and not spec.rope:
        raise _refuse(
            config, f"{spec.hidden_size} is not a multiple of {spec.num_heads} heads", "heads are of one width"
        )
    if spec.num_heads % spec.num_kv_heads:
        heads = f"{spec.num_heads} query heads do not share {spec.num_kv_heads} KV heads"
        raise _refuse(config, heads, "every KV head serves as many queries")
    return spec


def rotary_table(config: "PreTrainedConfig", num_positions: int, device: torch.device) -> Tensor:
    """Cosines, then sines, of every position's angles: fp32 `[num_positions, rotary_dim]`.

    The frequencies, and the factor that some scalings put on cosines and sines, are Hugging Face's own.
    """
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding  # noqa: PLC0415 - takes seconds

    rotary = LlamaRotaryEmbedding(config)
    angles = torch.outer(torch.arange(num_positions, dtype=torch.float32), rotary.inv_freq.float().cpu())
    table: Tensor = torch.cat([angles.cos(), angles.sin()], 1) * rotary.attention_scaling
    return table.to(device)
