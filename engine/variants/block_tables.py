"""How block tables get to the GPU: the axis `block_tables`.

A table's row `i` is the blocks of the batch's sequence `i`. Variants `per_layer` send a table for each layer, whose
entries count blocks through all layers' caches (layer `l`'s block `b` is `l * num_blocks + b`), as an engine has them
whose layers own blocks of their own; the others send one for all layers.
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from engine.ops.interface import Ops
from engine.sequence import Sequence
from engine.staging import Staging
from engine.variants.registry import Registry


@dataclass(frozen=True)
class TableSizes:
    """What tables are made for.

    Attributes:
        num_layers: Layers of the model.
        num_blocks: Blocks in each layer's cache.
        width: Blocks that a sequence has at most.
        max_num_seqs: Rows of a batch at most.
    """

    num_layers: int
    num_blocks: int
    width: int
    max_num_seqs: int


class BlockTables(Protocol):
    """`build` does the host's work of a step, `upload` the device's; each in a range of its own.

    Attributes:
        per_layer: Whether `upload` returns `[num_layers, batch, width]`, or `[1, batch, width]`.
    """

    per_layer: ClassVar[bool]

    def __init__(self, sizes: TableSizes, ops: Ops, device: torch.device) -> None: ...

    def build(self, seqs: list[Sequence]) -> None:
        """Prepare the rows of this batch. A device table given out before may be stale from here on."""
        ...

    def upload(self) -> Tensor:
        """The tables on the device, int32, each row contiguous; entries past a sequence's blocks mean nothing."""
        ...


BLOCK_TABLES: Registry[BlockTables] = Registry("block_tables", "how block tables get to the GPU")


def _padded_rows(seqs: list[Sequence], width: int, first_block: int) -> list[list[int]]:
    """Rows as lists, as the seeds' engine makes them for each layer."""
    return [[first_block + block for block in seq.block_table] + [0] * (width - len(seq.block_table)) for seq in seqs]


def _capacity(batch: int, before: int) -> int:
    """Rows to allocate for, as the seeds' engine grows its buffers."""
    return before if batch <= before else max(batch, 2 * before, 16)


@BLOCK_TABLES.register("per_layer_pageable")
class PerLayerPageable:
    """A tensor from lists for each layer, each copied from pageable memory, blocking: seed 001, before."""

    per_layer: ClassVar[bool] = True

    def __init__(self, sizes: TableSizes, ops: Ops, device: torch.device) -> None:
        self._sizes = sizes
        self._device = device
        self._tables = torch.empty(0)
        self._rows: list[Tensor] = []
        self._capacity = 0

    def build(self, seqs: list[Sequence]) -> None:
        sizes = self._sizes
        self._rows = [
            torch.tensor(_padded_rows(seqs, sizes.width, layer * sizes.num_blocks), dtype=torch.int32)
            for layer in range(sizes.num_layers)
        ]
        capacity = _capacity(len(seqs), self._capacity)
        if capacity > self._capacity:
            self._capacity = capacity
            shape = (sizes.num_layers, capacity, sizes.width)
            self._tables = torch.empty(shape, dtype=torch.int32, device=self._device)

    def upload(self) -> Tensor:
        batch = len(self._rows[0])
        for layer, rows in enumerate(self._rows):
            self._tables[layer, :batch].copy_(rows)
        return self._tables[:, :batch]


@BLOCK_TABLES.register("staged_layer_major")
class StagedLayerMajor:
    """One copy of a `[layers, capacity, width]` pinned buffer's first rows: seed 001, after, as it is written."""

    per_layer: ClassVar[bool] = True

    def __init__(self, sizes: TableSizes, ops: Ops, device: torch.device) -> None:
        self._sizes = sizes
        self._device = device
        self._batch = self._capacity = 0
        self._host = self._tables = torch.empty(0)
        self._sent: torch.cuda.Event | None = None

    def build(self, seqs: list[Sequence]) -> None:
        sizes = self._sizes
        self._batch = batch = len(seqs)
        capacity = _capacity(batch, self._capacity)
        if capacity > self._capacity:
            self._capacity = capacity
            shape = (sizes.num_layers, capacity, sizes.width)
            cuda = self._device.type == "cuda"
            self._host = torch.empty(shape, dtype=torch.int32, pin_memory=cuda)
            self._tables = torch.empty(shape, dtype=torch.int32, device=self._device)
            self._sent = torch.cuda.Event() if cuda else None
        # The seed has one buffer, and leaves it to the step's sampling to wait for the copy; here it is made sure of.
        elif self._sent is not None and not self._sent.query():
            self._sent.synchronize()
        for layer in range(sizes.num_layers):
            rows = torch.tensor(_padded_rows(seqs, sizes.width, layer * sizes.num_blocks), dtype=torch.int32)
            self._host[layer, :batch].copy_(rows)

    def upload(self) -> Tensor:
        # A slice with holes, where the batch is smaller than the buffer: not the one pinned copy that it looks like.
        self._tables[:, : self._batch].copy_(self._host[:, : self._batch], non_blocking=True)
        if self._sent is not None:
            self._sent.record()
        return self._tables[:, : self._batch]


class _Rows:
    """A host copy of a batch's rows that is kept from step to step, so that a step costs what has changed.

    A row is known by the list that it was copied from and how much of it (see `Sequence.block_table`).
    """

    def __init__(self, max_num_seqs: int, width: int) -> None:
        self.array = np.zeros((max_num_seqs, width), dtype=np.int32)
        self._copied: list[tuple[list[int] | None, int]] = [(None, 0)] * max_num_seqs

    def update(self, seqs: list[Sequence]) -> list[tuple[int, int, int]]:
        """Bring the first `len(seqs)` rows up to date; the entries that changed, as (row, column, block)."""
        changes: list[tuple[int, int, int]] = []
        for row, seq in enumerate(seqs):
            table = seq.block_table
            copied, length = self._copied[row]
            if copied is table and length == len(table):
                continue
            start = length if copied is table else 0
            self.array[row, start : len(table)] = table[start:]
            self._copied[row] = (table, len(table))
            changes += [(row, column, table[column]) for column in range(start, len(table))]
        return changes


@BLOCK_TABLES.register("staged_pinned")
class StagedPinned:
    """One pinned copy of all layers' tables, batch-major, so that any batch is one piece of the buffer."""

    per_layer: ClassVar[bool] = True

    def __init__(self, sizes: TableSizes, ops: Ops, device: torch.device) -> None:
        shape = (sizes.max_num_seqs, sizes.num_layers, sizes.width)
        self._rows = _Rows(sizes.max_num_seqs, sizes.width)
        self._first_blocks = np.arange(sizes.num_layers, dtype=np.int32)[None, :, None] * sizes.num_blocks
        self._staging = Staging(device)
        self._tables = torch.empty(shape, dtype=torch.int32, device=device)
        self._batch = 0

    def build(self, seqs: list[Sequence]) -> None:
        self._batch = len(seqs)
        self._rows.update(seqs)
        host = self._staging.array(self._batch, *self._tables.shape[1:])
        np.add(self._rows.array[: self._batch, None], self._first_blocks, out=host)

    def upload(self) -> Tensor:
        tables = self._tables[: self._batch]
        self._staging.send(tables)
        return tables.transpose(0, 1)


@BLOCK_TABLES.register("shared_pinned")
class SharedPinned:
    """One pinned copy of one table that serves all layers: a layer's share of the bytes."""

    per_layer: ClassVar[bool] = False

    def __init__(self, sizes: TableSizes, ops: Ops, device: torch.device) -> None:
        self._rows = _Rows(sizes.max_num_seqs, sizes.width)
        self._staging = Staging(device)
        self._table = torch.empty((sizes.max_num_seqs, sizes.width), dtype=torch.int32, device=device)
        self._batch = 0

    def build(self, seqs: list[Sequence]) -> None:
        self._batch = len(seqs)
        self._rows.update(seqs)
        self._staging.array(self._batch, self._table.shape[1])[:] = self._rows.array[: self._batch]

    def upload(self) -> Tensor:
        table = self._table[: self._batch]
        self._staging.send(table)
        return table[None]


@BLOCK_TABLES.register("resident")
class Resident:
    """The table lives on the GPU and changes travel: nothing in a steady step, else one pinned copy, one kernel."""

    per_layer: ClassVar[bool] = False

    def __init__(self, sizes: TableSizes, ops: Ops, device: torch.device) -> None:
        self._rows = _Rows(sizes.max_num_seqs, sizes.width)
        self._staging = Staging(device)
        self._ops = ops
        self._table = torch.zeros((sizes.max_num_seqs, sizes.width), dtype=torch.int32, device=device)
        self._patches = 0
        self._batch = 0

    def build(self, seqs: list[Sequence]) -> None:
        self._batch = len(seqs)
        changes = self._rows.update(seqs)
        self._patches = len(changes)
        if changes:
            self._staging.array(len(changes), 3)[:] = changes

    def upload(self) -> Tensor:
        if self._patches:
            patches = torch.empty((self._patches, 3), dtype=torch.int32, device=self._table.device)
            self._staging.send(patches)
            self._ops.patch_block_table(self._table, patches)
        return self._table[None, : self._batch]


@BLOCK_TABLES.register("in_graph")
class InGraph(Resident):
    """As `resident`, with all else that a step needs: it samples and moves on without the host (`DeviceLoop`)."""
