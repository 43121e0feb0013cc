"""What a decode step finds on the device, and how the host changes it.

Everything is an element of one int32 tensor, so that any change, a sequence that joins or one that enters a new block,
is an element's number and its value, and all of a step's changes are one copy and one kernel.
"""

import numpy as np
import torch
from torch import Tensor

from engine.ops.interface import Ops
from engine.sequence import Sequence
from engine.staging import Staging
from engine.stream import Stream
from kernels.rows import Rows

# Fields begin at multiples of this, so that all are aligned alike.
_ALIGNED = 16
# Stop ids that the device looks for. A sequence that has more stops on the host, a step later.
NUM_STOPS = 8
# Where a patch copies no element.
_VALUE = -1
# In the order in which `join` has them.
_SETTINGS = ("token_ids", "positions", "seq_lens", "finished", "max_lens", "before_output")
# What steps change: of a field of several elements, the first.
_MOVED = ("token_ids", "positions", "seq_lens", "finished", "block_table")

# int32 `[n, 3]`: an element, the element that it becomes a copy of or `_VALUE`, its value.
Patches = np.ndarray


class DeviceState:
    """See `kernels.rows.Rows` for what is known of each row.

    Args:
        num_rows: Sequences that decode in a step at most.
        width: Blocks of a sequence at most.
        dummy_block: A block that belongs to no sequence.
        ops: Small operations.
        device: Where it lives.
        stream: In what order it changes.
    """

    def __init__(
        self, num_rows: int, width: int, dummy_block: int, ops: Ops, device: torch.device, stream: Stream
    ) -> None:
        self.dummy_block = dummy_block
        self._ops = ops
        self._stream = stream
        self._staging = Staging(device, stream)
        sizes = dict.fromkeys(Rows._fields, 1) | {"seeds": 2, "stop_ids": NUM_STOPS, "block_table": width}
        self._sizes = sizes
        self._first: dict[str, int] = {}
        end = 0
        for name, size in sizes.items():
            self._first[name] = end
            end += -(-num_rows * size // _ALIGNED) * _ALIGNED
        self._flat = torch.empty(end, dtype=torch.int32, device=device)
        self._num_rows = num_rows
        self._views: dict[int, Rows] = {}
        self.reset()

    def reset(self) -> None:
        """Rows without sequences, in the memory that recorded steps know."""
        rows = self.rows(self._num_rows)
        self._flat.zero_()
        rows.finished.fill_(1)
        rows.seq_lens.fill_(1)
        rows.stop_ids.fill_(-1)
        rows.block_table[:, 0].fill_(self.dummy_block)

    def rows(self, count: int) -> Rows:
        """The first rows."""
        if count not in self._views:
            self._views[count] = self._view(count)
        return self._views[count]

    def _view(self, count: int) -> Rows:
        fields: dict[str, Tensor] = {}
        for name, size in self._sizes.items():
            first = self._first[name]
            fields[name] = self._flat[first : first + count * size].view(count, size)
        wide = {"stop_ids", "block_table"}
        for name in fields.keys() - wide:
            fields[name] = fields[name].flatten()
        fields["temperatures"] = fields["temperatures"].view(torch.float32)
        fields["seeds"] = fields["seeds"].view(torch.int64)
        return Rows(**fields)

    def patch(self, patches: Patches) -> Tensor:
        """Write changes to memory that the next `send` reads.

        Returns:
            Where they will be on the device.
        """
        self._staging.array(*patches.shape)[:] = patches
        return torch.empty(patches.shape, dtype=torch.int32, device=self._flat.device)

    def send(self, target: Tensor) -> None:
        """One copy, one kernel: what was written is the state of whatever is launched from here on."""
        self._staging.send(target)
        self._stream.launch(lambda: self._ops.patch_state(self._flat, target))

    # Changes ------------------------------------------------------------------------------------------------------

    def join(self, rows: list[int], seqs: list[Sequence]) -> Patches:
        """Sequences whose tokens the host knows take rows."""
        settings = np.array(
            [
                (seq.tokens[-1], len(seq.tokens) - 1, len(seq.tokens), 0, seq.max_len, seq.num_prompt - 1)
                for seq in seqs
            ],
            dtype=np.int32,
        )
        stop_ids = np.full((len(seqs), NUM_STOPS), -1, dtype=np.int32)
        for row, seq in zip(stop_ids, seqs, strict=True):
            stops = [*seq.stops][:NUM_STOPS]
            row[: len(stops)] = stops
        temperatures = np.array([[seq.params.temperature] for seq in seqs], dtype=np.float32).view(np.int32)
        seeds = np.array([[seq.seed] for seq in seqs], dtype=np.int64).view(np.int32)
        fields = self._targets(rows, *_SETTINGS, "temperatures", "seeds", "stop_ids")
        own = _values(fields, np.hstack([settings, temperatures, seeds, stop_ids]))
        return np.concatenate([own, self.blocks(rows, [seq.block_table for seq in seqs], [0] * len(seqs))])

    def move(self, source: int, row: int, seq: Sequence) -> Patches:
        """A sequence goes to another row; what a step under way makes of it goes with it."""
        # Of a sequence that has finished unknown to the host its first block is the dummy block.
        moved = np.array([self._element(name, row) for name in _MOVED], dtype=np.int32)
        patches = self.join([row], [seq])
        patches = patches[~np.isin(patches[:, 0], moved)]
        sources = np.array([self._element(name, source) for name in _MOVED], dtype=np.int32)
        return np.concatenate([patches, np.stack([moved, sources, np.zeros_like(moved)], 1)])

    def leave(self, rows: list[int]) -> Patches:
        """Rows have no sequence any more."""
        values = np.tile(np.array([1, 0, 1], dtype=np.int32), (len(rows), 1))
        own = _values(self._targets(rows, "finished", "positions", "seq_lens"), values)
        return np.concatenate([own, self.blocks(rows, [[self.dummy_block]] * len(rows), [0] * len(rows))])

    def blocks(self, rows: list[int], block_tables: list[list[int]], starts: list[int]) -> Patches:
        """Sequences' blocks, each from its block `start` on."""
        counts = [len(table) - start for table, start in zip(block_tables, starts, strict=True)]
        first = [self._element("block_table", row) + start for row, start in zip(rows, starts, strict=True)]
        ends = np.cumsum(counts)
        targets = np.repeat(first, counts) + np.arange(ends[-1] if counts else 0) - np.repeat(ends - counts, counts)
        blocks = [block for table, start in zip(block_tables, starts, strict=True) for block in table[start:]]
        return _values(targets, np.array(blocks, dtype=np.int32))

    def _element(self, name: str, row: int) -> int:
        """Where a row's field begins."""
        return self._first[name] + row * self._sizes[name]

    def _targets(self, rows: list[int], *names: str) -> np.ndarray:
        """Elements of fields, `[rows, elements of all these fields]`."""
        first = [self._first[name] + i for name in names for i in range(self._sizes[name])]
        strides = [self._sizes[name] for name in names for _ in range(self._sizes[name])]
        targets: np.ndarray = np.array(first) + np.array(rows)[:, None] * np.array(strides)
        return targets


def _values(targets: np.ndarray, values: np.ndarray) -> Patches:
    """Elements get values."""
    patches = np.empty((targets.size, 3), dtype=np.int32)
    patches[:, 0], patches[:, 1], patches[:, 2] = targets.ravel(), _VALUE, values.ravel()
    return patches
