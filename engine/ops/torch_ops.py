"""The small operations in plain torch: several launches each, on any device, in any floating-point dtype."""

import torch
import torch.nn.functional as F  # noqa: N812 - the name that every torch program uses
from torch import Tensor

from engine.ops.interface import Linear, Norm, Rotary
from kernels import reference
from kernels.rows import Rows, Seen, Shaping

TANH_GELUS = ("gelu_new", "gelu_fast", "gelu_accurate", "gelu_pytorch_tanh")
GELUS = ("gelu", "gelu_python", "quick_gelu", *TANH_GELUS)


class TorchOps:
    """See `engine.ops.interface.Ops`."""

    def trust_arguments(self) -> None:
        pass

    def embed(self, token_ids: Tensor, weight: Tensor, positions: Tensor, position_weight: Tensor | None) -> Tensor:
        x = F.embedding(token_ids, weight)
        return x if position_weight is None else x + F.embedding(positions, position_weight)

    def add_norm(self, x: Tensor, residual: Tensor | None, norm: Norm, eps: float, kind: str) -> Tensor:
        if residual is not None:
            x = residual.add_(x)
        if kind == "layer":
            return F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, eps)
        return _rms_norm(x, norm.weight, eps)

    def linear(self, x: Tensor, linear: Linear) -> Tensor:
        return F.linear(x, linear.weight, linear.bias)

    def linear_gelu(self, x: Tensor, linear: Linear, kind: str) -> Tensor:
        x = self.linear(x, linear)
        if kind == "quick_gelu":
            return x * torch.sigmoid(1.702 * x)
        return F.gelu(x, approximate="tanh" if kind in TANH_GELUS else "none")

    def linear_silu_and_mul(self, x: Tensor, linear: Linear) -> Tensor:
        gate, up = self.linear(x, linear).chunk(2, -1)
        return F.silu(gate) * up

    def linear_add_norm(self, x: Tensor, linear: Linear, residual: Tensor, norm: Norm, eps: float, kind: str) -> Tensor:
        return self.add_norm(self.linear(x, linear), residual, norm, eps, kind)

    def rotate(self, query: Tensor, key: Tensor, positions: Tensor, rotary: Rotary) -> None:
        for x, weight in ((query, rotary.q_weight), (key, rotary.k_weight)):
            normed = x if weight is None else _rms_norm(x, weight, rotary.eps)
            x.copy_(reference.rotary(normed, positions, rotary.cos_sin, dtype=_at_least_fp32(x.dtype)))

    def rotate_and_append(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        positions: Tensor,
        rotary: Rotary,
        caches: tuple[Tensor, Tensor],
        slots: Tensor,
    ) -> None:
        self.rotate(query, key, positions, rotary)
        self.append(caches, key, value, slots)

    def append(self, caches: tuple[Tensor, Tensor], key: Tensor, value: Tensor, slots: Tensor) -> None:
        for cache, new in zip(caches, (key, value), strict=True):
            cache.flatten(0, 1)[slots] = new

    def slots(self, block_table: Tensor, positions: Tensor, block_size: int) -> Tensor:
        blocks = block_table.gather(1, (positions // block_size).long()[:, None])[:, 0]
        return blocks.long() * block_size + positions % block_size

    def copy_blocks(self, k_cache: Tensor, v_cache: Tensor, pairs: Tensor) -> None:
        source, target = pairs.unbind(1)
        for cache in (k_cache, v_cache):
            cache[:, target] = cache[:, source]

    def patch_block_table(self, block_table: Tensor, patches: Tensor) -> None:
        rows, columns, blocks = patches.unbind(1)
        block_table[rows, columns] = blocks

    def sample(self, logits: Tensor, temperatures: Tensor, seeds: Tensor, positions: Tensor) -> Tensor:
        return reference.sample(logits, temperatures, seeds, positions)

    def reserve_sampling(self, batch: int, vocab: int, device: torch.device) -> None:
        pass

    def sample_and_advance(self, logits: Tensor, rows: Rows, dummy_block: int) -> None:
        token = reference.sample(logits, rows.temperatures, rows.seeds, rows.positions - rows.before_output)
        running, length = rows.finished == 0, rows.seq_lens + 1
        # A row without a token (-1) ends; -1 fills stop ids up, too.
        stops = (length >= rows.max_lens) | (rows.stop_ids == token[:, None]).any(1) | (token < 0)
        ends, goes_on = running & stops, running & ~stops
        rows.token_ids.copy_(torch.where(running, token.clamp(min=0), rows.token_ids))
        rows.sampled.copy_(torch.where(running, token, rows.sampled))
        rows.finished.masked_fill_(ends, 1)
        rows.positions.add_(goes_on).masked_fill_(ends, 0)
        rows.seq_lens.add_(goes_on).masked_fill_(ends, 1)
        rows.block_table[:, 0].masked_fill_(ends, dummy_block)

    def add_biases(self, scores: Tensor, biases: Tensor) -> None:
        reference.add_biases(scores, biases)

    def penalise(self, scores: Tensor, shaping: Shaping, seen: Seen, token_ids: Tensor, positions: Tensor) -> None:
        reference.penalise(scores, shaping, seen, token_ids, positions)

    def keep_likely(self, scores: Tensor, shaping: Shaping) -> None:
        reference.keep_likely(scores, shaping)

    def patch_state(self, state: Tensor, patches: Tensor) -> None:
        targets, sources, values = patches.long().unbind(1)
        state[targets] = torch.where(sources >= 0, state[sources.clamp(min=0)], values.to(state.dtype))


def _at_least_fp32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.to(_at_least_fp32(x.dtype))
    return weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)
