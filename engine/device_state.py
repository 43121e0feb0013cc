"""What a decode step finds on the device, and how the host changes it.

Everything is an element of one int32 tensor, so that any change, a sequence that joins or one that enters a new block,
is an element's number and its value, and all of a step's changes are one copy and one kernel.
"""

from collections.abc import Iterable

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
COPY, VALUE = -1, -1

Patch = tuple[int, int, int]


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

    def patch(self, patches: list[Patch]) -> Tensor:
        """Write changes to memory that the next `send` reads.

        Returns:
            Where they will be on the device.
        """
        self._staging.array(len(patches), 3)[:] = patches
        return torch.empty((len(patches), 3), dtype=torch.int32, device=self._flat.device)

    def send(self, target: Tensor) -> None:
        """One copy, one kernel: what was written is the state of whatever is launched from here on."""
        self._staging.send(target)
        self._stream.launch(lambda: self._ops.patch_state(self._flat, target))

    # Changes ------------------------------------------------------------------------------------------------------

    def join(self, row: int, seq: Sequence) -> Iterable[Patch]:
        """A sequence whose tokens the host knows takes a row."""
        length = len(seq.tokens)
        stops = [*seq.stops][:NUM_STOPS]
        low, high = np.array([seq.seed], dtype=np.int64).view(np.int32).tolist()
        yield from self._settings(row, seq, length)
        yield from self._write(row, "temperatures", [int(np.float32(seq.params.temperature).view(np.int32))])
        yield from self._write(row, "seeds", [low, high])
        yield from self._write(row, "stop_ids", stops + [-1] * (NUM_STOPS - len(stops)))
        yield from self.blocks(row, seq.block_table, 0)

    def _settings(self, row: int, seq: Sequence, length: int) -> Iterable[Patch]:
        for name, value in (
            ("token_ids", seq.tokens[-1]),
            ("positions", length - 1),
            ("seq_lens", length),
            ("finished", 0),
            ("max_lens", seq.max_len),
            ("before_output", seq.num_prompt - 1),
        ):
            yield self._first[name] + row, VALUE, value

    def move(self, source: int, row: int, seq: Sequence) -> Iterable[Patch]:
        """A sequence goes to another row; what a step under way makes of it goes with it."""
        moving = ("token_ids", "positions", "seq_lens", "finished")
        for target, _, value in self.join(row, seq):
            name = next((name for name in moving if target == self._first[name] + row), None)
            if name is None and target != self._first["block_table"] + row * self._sizes["block_table"]:
                yield target, VALUE, value
        for name in moving:
            yield self._first[name] + row, self._first[name] + source, 0
        # Of a sequence that has finished unknown to the host this is the dummy block.
        table, width = self._first["block_table"], self._sizes["block_table"]
        yield table + row * width, table + source * width, 0

    def leave(self, row: int) -> Iterable[Patch]:
        """A row has no sequence any more."""
        for name, value in (("finished", 1), ("positions", 0), ("seq_lens", 1)):
            yield self._first[name] + row, VALUE, value
        yield self._first["block_table"] + row * self._sizes["block_table"], VALUE, self.dummy_block

    def blocks(self, row: int, block_table: list[int], start: int) -> Iterable[Patch]:
        """A sequence's blocks, from its block `start` on."""
        first = self._first["block_table"] + row * self._sizes["block_table"]
        for column in range(start, len(block_table)):
            yield first + column, VALUE, block_table[column]

    def _write(self, row: int, name: str, values: list[int]) -> Iterable[Patch]:
        size = self._sizes[name]
        for i, value in enumerate(values):
            yield self._first[name] + row * size + i, VALUE, value
