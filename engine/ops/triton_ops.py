"""The small operations as kernels: one launch each."""

import torch
import torch.nn.functional as F  # noqa: N812 - the name that every torch program uses
from torch import Tensor

from engine.ops.interface import Linear, Norm, Rotary
from engine.ops.torch_ops import TANH_GELUS
from kernels import block_ops, kv_append
from kernels import rotary as rotary_kernels
from kernels import shaping as shaping_kernels
from kernels.activation import bias_gelu, silu_and_mul
from kernels.embedding import embed
from kernels.linear import GATED, LinearLaunch, linear_launch, linear_pieces
from kernels.linear import linear as kernels_linear
from kernels.norms import add_layer_norm, add_rms_norm
from kernels.rows import Rows, Seen, Shaping
from kernels.sampling import BLOCK_V, SamplingWorkspace, sample, sample_and_advance, sampling_workspace
from kernels.sizes import cdiv


def _launch(x: Tensor, weight: Tensor, outputs: int, *, pieces: bool = False) -> LinearLaunch | None:
    """How a kernel of ours multiplies, or None where a library does it."""
    return linear_launch(len(x), outputs, weight.shape[1], x.dtype, pieces=pieces)


class TritonOps:
    """See `engine.ops.interface.Ops`."""

    def __init__(self) -> None:
        self._check = True
        self._workspace: SamplingWorkspace | None = None
        # Of steps on the device: recorded launches know where it is, so it is never replaced by a larger one.
        self._reserved: SamplingWorkspace | None = None

    def trust_arguments(self) -> None:
        self._check = False

    def embed(self, token_ids: Tensor, weight: Tensor, positions: Tensor, position_weight: Tensor | None) -> Tensor:
        if position_weight is None:
            return embed(token_ids, weight, check=self._check)
        return embed(token_ids, weight, positions, position_weight, check=self._check)

    def add_norm(self, x: Tensor, residual: Tensor | None, norm: Norm, eps: float, kind: str) -> Tensor:
        return self._add_norm(x, None, residual, norm, eps, kind)

    def _add_norm(
        self, x: Tensor, x_bias: Tensor | None, residual: Tensor | None, norm: Norm, eps: float, kind: str
    ) -> Tensor:
        if kind == "layer":
            return add_layer_norm(x, residual, norm.weight, norm.bias, eps, x_bias=x_bias, check=self._check)
        return add_rms_norm(x, residual, norm.weight, eps, x_bias=x_bias, check=self._check)

    def linear(self, x: Tensor, linear: Linear) -> Tensor:
        launch = _launch(x, linear.weight, len(linear.weight))
        if launch is None:
            return F.linear(x, linear.weight, linear.bias)
        return kernels_linear(x, linear.weight, linear.bias, launch=launch, check=self._check)

    def linear_gelu(self, x: Tensor, linear: Linear, kind: str) -> Tensor:
        weight, bias = linear.weight, linear.bias
        launch = _launch(x, weight, len(weight))
        if launch is not None:
            return kernels_linear(x, weight, bias, kind, launch=launch, check=self._check)
        if bias is not None and kind in TANH_GELUS and x.is_cuda and x.dtype != torch.float32:
            # Where the product is cuBLASLt's its epilogue has both, by tanh: no kernel of its own. A CPU's is by erf.
            out: Tensor = torch._addmm_activation(bias, x, weight.T, use_gelu=True)  # noqa: SLF001
            return out
        # The bias is the activation kernel's.
        return bias_gelu(F.linear(x, weight), bias, kind, check=self._check)

    def linear_silu_and_mul(self, x: Tensor, linear: Linear) -> Tensor:
        launch = _launch(x, linear.weight, len(linear.weight) // 2)
        if launch is None or linear.bias is not None:
            return silu_and_mul(F.linear(x, linear.weight, linear.bias), check=self._check)
        return kernels_linear(x, linear.weight, None, GATED, launch=launch, check=self._check)

    def linear_add_norm(self, x: Tensor, linear: Linear, residual: Tensor, norm: Norm, eps: float, kind: str) -> Tensor:
        launch = _launch(x, linear.weight, len(linear.weight), pieces=True)
        if launch is None:
            return self.add_norm(F.linear(x, linear.weight, linear.bias), residual, norm, eps, kind)
        pieces = linear_pieces(x, linear.weight, launch=launch, check=self._check)
        return self._add_norm(pieces, linear.bias, residual, norm, eps, kind)

    def rotate(self, query: Tensor, key: Tensor, positions: Tensor, rotary: Rotary) -> None:
        rotary_kernels.rotary_embedding(
            query,
            key,
            positions,
            rotary.cos_sin,
            q_weight=rotary.q_weight,
            k_weight=rotary.k_weight,
            eps=rotary.eps,
            check=self._check,
        )

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
        rotary_kernels.rotary_kv_append(
            query,
            key,
            value,
            positions,
            rotary.cos_sin,
            *caches,
            slots,
            q_weight=rotary.q_weight,
            k_weight=rotary.k_weight,
            eps=rotary.eps,
            check=self._check,
        )

    def append(self, caches: tuple[Tensor, Tensor], key: Tensor, value: Tensor, slots: Tensor) -> None:
        kv_append.kv_append_slot_mapping(*caches, key, value, slots, check=self._check)

    def slots(self, block_table: Tensor, positions: Tensor, block_size: int) -> Tensor:
        return kv_append.compute_slot_mapping(block_table, positions, block_size, check=self._check)

    def copy_blocks(self, k_cache: Tensor, v_cache: Tensor, pairs: Tensor) -> None:
        block_ops.copy_blocks(k_cache, v_cache, pairs, check=self._check)

    def patch_block_table(self, block_table: Tensor, patches: Tensor) -> None:
        block_ops.patch_block_table(block_table, patches, check=self._check)

    def sample(self, logits: Tensor, temperatures: Tensor, seeds: Tensor, positions: Tensor) -> Tensor:
        batch, vocab = logits.shape
        if self._workspace is None or self._workspace.scores.numel() < batch * cdiv(vocab, BLOCK_V):
            self._workspace = sampling_workspace(batch, vocab, logits.device)
        out = torch.empty(batch, dtype=torch.int64, device=logits.device)
        return sample(logits, temperatures, seeds, positions, out=out, workspace=self._workspace, check=self._check)

    def reserve_sampling(self, batch: int, vocab: int, device: torch.device) -> None:
        self._reserved = sampling_workspace(batch, vocab, device)

    def sample_and_advance(self, logits: Tensor, rows: Rows, dummy_block: int) -> None:
        assert self._reserved is not None
        sample_and_advance(logits, rows, dummy_block, workspace=self._reserved, check=self._check)

    def add_biases(self, scores: Tensor, biases: Tensor) -> None:
        shaping_kernels.add_biases(scores, biases, check=self._check)

    def penalise(self, scores: Tensor, shaping: Shaping, seen: Seen, token_ids: Tensor, positions: Tensor) -> None:
        shaping_kernels.penalise(scores, shaping, seen, token_ids, positions, check=self._check)

    def keep_likely(self, scores: Tensor, shaping: Shaping) -> None:
        shaping_kernels.keep_likely(scores, shaping, check=self._check)

    def patch_state(self, state: Tensor, patches: Tensor) -> None:
        block_ops.patch_state(state, patches, check=self._check)
