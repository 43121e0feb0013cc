"""A decoder's tensors, fused and laid out as it uses them, from whatever source has them under their usual names."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F  # noqa: N812 - the name that every torch program uses
from torch import Tensor

from engine.models.spec import ModelSpec
from engine.ops.interface import Linear, Norm

ROW_MULTIPLE = 64


class TensorSource(Protocol):
    """Where tensors come from: a checkpoint, or random numbers."""

    def get(self, name: str, *shape: int) -> Tensor:
        """The tensor of this name, on the device and in the dtype that the model runs with.

        Raises:
            ModelError: There is none, or it has another shape.
        """
        ...


@dataclass(frozen=True)
class Layer:
    """One layer; `qkv` is queries, keys and values in one, `up` gates and values in one where the MLP is gated."""

    attention_norm: Norm
    qkv: Linear
    out: Linear
    mlp_norm: Norm
    up: Linear
    down: Linear
    q_norm: Tensor | None = None
    k_norm: Tensor | None = None


@dataclass(frozen=True)
class Weights:
    """All of a decoder.

    Attributes:
        embedding: `[rows, hidden]`, at least as many rows as the vocabulary has tokens; likewise `head`.
        position_embedding: `[max_positions, hidden]`, where the model learned one.
    """

    embedding: Tensor
    position_embedding: Tensor | None
    layers: tuple[Layer, ...]
    final_norm: Norm
    head: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, each counted once."""
        tensors = {id(self.embedding): self.embedding, id(self.head): self.head}
        for part in (self.position_embedding, self.final_norm, *self.layers):
            for tensor in _tensors(part):
                tensors[id(tensor)] = tensor
        return sum(tensor.nbytes for tensor in tensors.values())


def _tensors(part: object) -> list[Tensor]:
    if isinstance(part, Tensor):
        return [part]
    if isinstance(part, Norm | Linear | Layer):
        return [tensor for value in vars(part).values() for tensor in _tensors(value)]
    return []


def _rows_filled_up(weight: Tensor) -> Tensor:
    """With rows of zeros up to a multiple of `ROW_MULTIPLE`: products with odd numbers of columns are slow."""
    missing = -len(weight) % ROW_MULTIPLE
    return F.pad(weight, (0, 0, 0, missing)) if missing else weight


def gpt2_weights(spec: ModelSpec, source: TensorSource) -> Weights:
    """GPT-2's names; its linear layers are stored `[in, out]`."""
    hidden, inner = spec.hidden_size, spec.intermediate_size

    def norm(name: str) -> Norm:
        return Norm(source.get(f"{name}.weight", hidden), source.get(f"{name}.bias", hidden))

    def linear(name: str, inputs: int, outputs: int) -> Linear:
        weight = source.get(f"{name}.weight", inputs, outputs).T.contiguous()
        return Linear(weight, source.get(f"{name}.bias", outputs))

    layers = tuple(
        Layer(
            attention_norm=norm(f"h.{i}.ln_1"),
            qkv=linear(f"h.{i}.attn.c_attn", hidden, 3 * hidden),
            out=linear(f"h.{i}.attn.c_proj", hidden, hidden),
            mlp_norm=norm(f"h.{i}.ln_2"),
            up=linear(f"h.{i}.mlp.c_fc", hidden, inner),
            down=linear(f"h.{i}.mlp.c_proj", inner, hidden),
        )
        for i in range(spec.num_layers)
    )
    embedding = _rows_filled_up(source.get("wte.weight", spec.vocab_size, hidden))
    return Weights(
        embedding=embedding,
        position_embedding=source.get("wpe.weight", spec.max_positions, hidden),
        layers=layers,
        final_norm=norm("ln_f"),
        head=embedding if spec.tied else _rows_filled_up(source.get("lm_head.weight", spec.vocab_size, hidden)),
    )


def llama_weights(spec: ModelSpec, source: TensorSource) -> Weights:
    """The names that Llama gave, and Qwen and Mistral took over."""
    hidden, inner = spec.hidden_size, spec.intermediate_size

    def linear(name: str, *outputs: tuple[str, int], inputs: int, bias: bool) -> Linear:
        weights = [source.get(f"{name}.{part}.weight", width, inputs) for part, width in outputs]
        biases = [source.get(f"{name}.{part}.bias", width) for part, width in outputs] if bias else []
        if len(outputs) == 1:
            return Linear(weights[0], *biases)
        return Linear(torch.cat(weights), torch.cat(biases) if bias else None)

    def layer(name: str) -> Layer:
        attention, mlp = f"{name}.self_attn", f"{name}.mlp"
        queries, keys, values = spec.qkv_sizes
        head_norms = [source.get(f"{attention}.{part}_norm.weight", spec.head_dim) for part in "qk" if spec.qk_norm]
        return Layer(
            Norm(source.get(f"{name}.input_layernorm.weight", hidden)),
            linear(
                attention,
                ("q_proj", queries),
                ("k_proj", keys),
                ("v_proj", values),
                inputs=hidden,
                bias=spec.qkv_bias,
            ),
            linear(attention, ("o_proj", hidden), inputs=queries, bias=spec.out_bias),
            Norm(source.get(f"{name}.post_attention_layernorm.weight", hidden)),
            linear(mlp, ("gate_proj", inner), ("up_proj", inner), inputs=hidden, bias=spec.mlp_bias),
            linear(mlp, ("down_proj", hidden), inputs=inner, bias=spec.mlp_bias),
            *head_norms,
        )

    embedding = _rows_filled_up(source.get("embed_tokens.weight", spec.vocab_size, hidden))
    return Weights(
        embedding=embedding,
        position_embedding=None,
        layers=tuple(layer(f"layers.{i}") for i in range(spec.num_layers)),
        final_norm=Norm(source.get("norm.weight", hidden)),
        head=embedding if spec.tied else _rows_filled_up(source.get("lm_head.weight", spec.vocab_size, hidden)),
    )


BUILDERS: dict[str, Callable[[ModelSpec, TensorSource], Weights]] = {
    "gpt2": gpt2_weights,
    "llama": llama_weights,
    "mistral": llama_weights,
    "qwen2": llama_weights,
    "qwen3": llama_weights,
}


def build_weights(spec: ModelSpec, source: TensorSource) -> Weights:
    """All tensors that the spec's family asks for, from this source."""
    return BUILDERS[spec.model_type](spec, source)
