"""The decoder: one forward pass, for every family."""

from collections.abc import Callable

import torch.nn.functional as F  # noqa: N812 - the name that every torch program uses
from torch import Tensor

from engine.models.spec import ModelSpec
from engine.models.weights import Weights
from engine.ops.interface import Ops, Rotary
from engine.ranges import ATTENTION, MLP, annotate

# Layer, query, key and value to attention's output. It rotates, and sees to it that the cache gets keys and values.
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


class Decoder:
    """A model's spec, weights and arithmetic. It knows nothing of caches: attention is the caller's.

    Args:
        spec: What the model is made of.
        weights: Its tensors.
        cos_sin: fp32 `[max_positions, rotary_dim]`, or None where positions are embedded.
        ops: Small operations.
    """

    def __init__(self, spec: ModelSpec, weights: Weights, cos_sin: Tensor | None, ops: Ops) -> None:
        self.spec = spec
        self.weights = weights
        self.ops = ops
        self.rotary = [
            None if cos_sin is None else Rotary(cos_sin, layer.q_norm, layer.k_norm, spec.norm_eps)
            for layer in weights.layers
        ]

    def forward(self, token_ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """Hidden states after the last norm.

        Args:
            token_ids: Integers `[tokens]`.
            positions: Integers `[tokens]`, counted from 0.
            attend: Called once a layer, with `[tokens, heads, head_dim]` views of the fused projection.

        Returns:
            `[tokens, hidden_size]`.
        """
        spec, weights, ops = self.spec, self.weights, self.ops
        tokens, layers = len(token_ids), weights.layers
        residual = ops.embed(token_ids, weights.embedding, positions, weights.position_embedding)
        x = ops.add_norm(residual, None, layers[0].attention_norm, spec.norm_eps, spec.norm)
        # Each half of a layer ends with the norm that begins the next one.
        norms = [*(layer.attention_norm for layer in layers[1:]), weights.final_norm]
        for i, (layer, next_norm) in enumerate(zip(layers, norms, strict=True)):
            with annotate(ATTENTION):
                qkv = ops.linear(x, layer.qkv).view(tokens, -1, spec.head_dim)
                query, key, value = qkv.split((spec.num_heads, spec.num_kv_heads, spec.num_kv_heads), 1)
                x = attend(i, query, key, value).reshape(tokens, -1)
                x = ops.linear_add_norm(x, layer.out, residual, layer.mlp_norm, spec.norm_eps, spec.norm)
            with annotate(MLP):
                if spec.gated:
                    x = ops.linear_silu_and_mul(x, layer.up)
                else:
                    x = ops.linear_gelu(x, layer.up, spec.activation)
                x = ops.linear_add_norm(x, layer.down, residual, next_norm, spec.norm_eps, spec.norm)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """`[rows, vocab_size]` of hidden states `[rows, hidden_size]`."""
        return F.linear(hidden, self.weights.head)[:, : self.spec.vocab_size]
