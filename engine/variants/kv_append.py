"""How a decode step's keys and values get into the cache: the axis `kv_append`.

The seeds' forms run after the forward pass, layer by layer, with index tensors built from lists each time; attention
takes the new token from the projection. The others write inside a layer.
"""

import logging
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from engine.ops.interface import Ops, Rotary
from engine.ranges import KV_APPEND, annotate
from engine.sequence import Sequence
from engine.variants.inputs import DecodeInputs
from engine.variants.registry import Registry

_log = logging.getLogger(__name__)


class LayerStep(NamedTuple):
    """What a layer of a decode step works with.

    Attributes:
        query: `[batch, num_heads, head_dim]`, not rotated yet.
        key: `[batch, num_kv_heads, head_dim]`, not rotated yet.
        value: Like `key`.
        caches: Keys and values of this layer, `[num_blocks, block_size, num_kv_heads, head_dim]`.
        rotary: What the layer rotates with, or None.
        attend: Attention of the queries over the cache: `attend(new, append)`, see `AttentionBackend.decode`.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    caches: tuple[Tensor, Tensor]
    rotary: Rotary | None
    attend: Callable[[tuple[Tensor, Tensor] | None, bool], Tensor]


class KVAppend(Protocol):
    """Called once before a step's forward pass, once in each layer, and once after.

    Args:
        ops: Small operations.
        block_size: Positions a block.
        min_batch: The least batch for which a Triton form is used; smaller ones use torch's indexing.
        rope: Whether layers rotate.

    Attributes:
        notes: How many steps did something else than the name says, by what they did.
    """

    notes: Counter[str]

    def __init__(self, ops: Ops, block_size: int, min_batch: int, *, rope: bool) -> None: ...

    def begin(self, seqs: list[Sequence], inputs: DecodeInputs, block_table: Tensor) -> None:
        """See a step's batch; `block_table` is `[batch, width]`, of blocks within a layer."""
        ...

    def layer(self, step: LayerStep) -> Tensor:
        """Rotate, attend, and write the new token if this is where it is written; `[batch, num_heads, head_dim]`."""
        ...

    def finish(self) -> None:
        """Write what has not been written."""
        ...


KV_APPENDS: Registry[KVAppend] = Registry("kv_append", "how new keys and values get into the cache")


class _AfterForward:
    """The seeds' forms: attention takes the new token as an argument, and each layer's append comes afterwards."""

    def __init__(self, ops: Ops, block_size: int, min_batch: int, *, rope: bool) -> None:
        self._ops = ops
        self._block_size = block_size
        self._min_batch = min_batch
        self.notes: Counter[str] = Counter()
        self._seqs: list[Sequence] = []
        self._positions = torch.empty(0)
        self._layers: list[LayerStep] = []

    def begin(self, seqs: list[Sequence], inputs: DecodeInputs, block_table: Tensor) -> None:
        self._seqs = seqs
        self._positions = inputs.positions
        self._layers = []

    def layer(self, step: LayerStep) -> Tensor:
        if step.rotary is not None:
            self._ops.rotate(step.query, step.key, self._positions, step.rotary)
        self._layers.append(step)
        return step.attend((step.key, step.value), False)

    def finish(self) -> None:
        small = len(self._seqs) < self._min_batch
        if small:
            self._note(f"torch_indexed, for batches under {self._min_batch}")
        for step in self._layers:
            with annotate(KV_APPEND):
                blocks, offsets = self._where()
                if small:
                    _append_torch_indexed(step, blocks, offsets)
                else:
                    self._append(step, blocks, offsets)
        self._layers = []

    def _append(self, step: LayerStep, blocks: list[int], offsets: list[int]) -> None:
        raise NotImplementedError

    def _where(self) -> tuple[list[int], list[int]]:
        """Block and offset of each sequence's new token, from its table, as the seeds look them up for each layer."""
        size = self._block_size
        positions = [len(seq.tokens) - 1 for seq in self._seqs]
        blocks = [seq.block_table[p // size] for seq, p in zip(self._seqs, positions, strict=True)]
        return blocks, [p % size for p in positions]

    def _note(self, what: str) -> None:
        if what not in self.notes:
            _log.warning("kv_append does %s", what)
        self.notes[what] += 1


def _index(values: list[int], like: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor from a list: on a GPU, a copy from pageable memory that blocks."""
    return torch.tensor(values, dtype=dtype, device=like.device)


def _append_torch_indexed(step: LayerStep, blocks: list[int], offsets: list[int]) -> None:
    rows, block_idx, pos = (_index(v, step.key, torch.int64) for v in (list(range(len(blocks))), blocks, offsets))
    for cache, new in zip(step.caches, (step.key, step.value), strict=True):
        cache[block_idx, pos] = new.index_select(0, rows)


@KV_APPENDS.register("torch_indexed")
class TorchIndexed(_AfterForward):
    """After the forward pass, for each layer: three index tensors from lists, two gathers, two indexed stores."""

    def _append(self, step: LayerStep, blocks: list[int], offsets: list[int]) -> None:
        _append_torch_indexed(step, blocks, offsets)


@KV_APPENDS.register("triton")
class Generic(_AfterForward):
    """After the forward pass, for each layer: three index tensors from lists, one kernel (seed 003)."""

    def _append(self, step: LayerStep, blocks: list[int], offsets: list[int]) -> None:
        from kernels.kv_append import kv_append_triton  # noqa: PLC0415 - needs triton

        rows, block_idx, pos = (_index(v, step.key, torch.int32) for v in (list(range(len(blocks))), blocks, offsets))
        kv_append_triton(*step.caches, step.key, step.value, rows, block_idx, pos, check=False)


@KV_APPENDS.register("triton_identity_pos")
class IdentityPos(_AfterForward):
    """As `triton`, without the index tensor of rows (seed 002)."""

    def _append(self, step: LayerStep, blocks: list[int], offsets: list[int]) -> None:
        from kernels.kv_append import kv_append_triton_identity_pos  # noqa: PLC0415 - needs triton

        block_idx, pos = (_index(v, step.key, torch.int32) for v in (blocks, offsets))
        kv_append_triton_identity_pos(*step.caches, step.key, step.value, block_idx, pos, check=False)


@KV_APPENDS.register("triton_full_batch")
class FullBatch(IdentityPos):
    """As `triton_identity_pos`, the offset by value where all sequences stand at the same one in their blocks."""

    def finish(self) -> None:
        if len({len(seq.tokens) % self._block_size for seq in self._seqs}) > 1 and len(self._seqs) >= self._min_batch:
            self._note("triton_identity_pos, where offsets in blocks differ")
        super().finish()

    def _append(self, step: LayerStep, blocks: list[int], offsets: list[int]) -> None:
        from kernels.kv_append import kv_append_triton_full_batch  # noqa: PLC0415 - needs triton

        if len(set(offsets)) > 1:
            super()._append(step, blocks, offsets)
            return
        block_idx = _index(blocks, step.key, torch.int32)
        kv_append_triton_full_batch(*step.caches, step.key, step.value, block_idx, offsets[0], check=False)


class _InLayer:
    """Forms that write inside a layer, to slots that are computed on the device once a step."""

    def __init__(self, ops: Ops, block_size: int, min_batch: int, *, rope: bool) -> None:
        self._ops = ops
        self._block_size = block_size
        self._rope = rope
        self.notes: Counter[str] = Counter()
        self._positions = self._slots = torch.empty(0)

    def begin(self, seqs: list[Sequence], inputs: DecodeInputs, block_table: Tensor) -> None:
        self._positions = inputs.positions
        if self._needs_slots():
            with annotate(KV_APPEND):
                self._slots = self._ops.slots(block_table, inputs.positions, self._block_size)

    def _needs_slots(self) -> bool:
        return True

    def finish(self) -> None:
        pass


@KV_APPENDS.register("slot_mapping")
class SlotMapping(_InLayer):
    """One kernel a step computes slots, one a layer writes to them before attention reads them."""

    def layer(self, step: LayerStep) -> Tensor:
        if step.rotary is not None:
            self._ops.rotate(step.query, step.key, self._positions, step.rotary)
        with annotate(KV_APPEND):
            self._ops.append(step.caches, step.key, step.value, self._slots)
        return step.attend(None, False)


@KV_APPENDS.register("fused")
class Fused(_InLayer):
    """No kernel of its own in a layer: one with the rotary embedding, or inside attention where there is none."""

    def _needs_slots(self) -> bool:
        return self._rope

    def layer(self, step: LayerStep) -> Tensor:
        if step.rotary is None:
            return step.attend((step.key, step.value), True)
        self._ops.rotate_and_append(
            step.query, step.key, step.value, self._positions, step.rotary, step.caches, self._slots
        )
        return step.attend(None, False)
