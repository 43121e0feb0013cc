"""Models by name, as their configs; with random weights they need no download."""

from typing import TYPE_CHECKING, Any

from engine.errors import ConfigError, unknown

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# Wide enough heads for the kernels (64), few enough of everything else for a test.
_TINY = {
    "vocab_size": 320,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "eos_token_id": None,
    "bos_token_id": None,
}

PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", {}),
    "qwen3-0.6b": (
        "qwen3",
        {
            "vocab_size": 151936,
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 40960,
            "rope_theta": 1000000.0,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": True,
            "eos_token_id": 151645,
            "bos_token_id": 151643,
        },
    ),
    "tiny-gpt2": (
        "gpt2",
        {
            "vocab_size": 320,
            "n_embd": 128,
            "n_layer": 2,
            "n_head": 2,
            "n_positions": 256,
            "initializer_range": 0.2,
            "eos_token_id": None,
            "bos_token_id": None,
        },
    ),
    "tiny-llama": ("llama", _TINY),
    "tiny-mistral": ("mistral", _TINY | {"sliding_window": 24}),
    "tiny-qwen2": (
        "qwen2",
        _TINY | {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1},
    ),
    "tiny-qwen3": ("qwen3", _TINY | {"tie_word_embeddings": True}),
}


def preset_config(name: str) -> "PreTrainedConfig":
    """The config of a preset.

    Raises:
        ConfigError: There is no such preset.
    """
    from transformers import AutoConfig  # noqa: PLC0415 - takes seconds

    if name not in PRESETS:
        raise ConfigError(unknown("preset", name, PRESETS))
    model_type, values = PRESETS[name]
    return AutoConfig.for_model(model_type, **values)
