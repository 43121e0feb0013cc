"""Decoding that stays on the device: `block_tables=in_graph`.

A sequence keeps a row of the device's state while it decodes. A step reads the rows, samples, and moves them on; the
host sends what it alone can know: who joins, who leaves, and which blocks are new. A row that finishes is frozen by the
device itself, so the host may learn of it a step late.
"""

import operator

import numpy as np
from torch import Tensor

from engine import ranges
from engine.config import EngineConfig
from engine.decode_forward import DecodeForward, KeptLogits
from engine.device_state import DeviceState, Patches
from engine.graphs import Capture, Steps
from engine.machine import Machine
from engine.ranges import annotate
from engine.sequence import Sequence
from engine.staging import Returns
from engine.variants.choice import Variants
from engine.variants.inputs import DecodeInputs
from engine.variants.sampler import Arriving
from engine.variants.shaping import Asked, Shaper


class _Rows:
    """Which sequence has which row, and what the device knows of it."""

    def __init__(self, state: DeviceState, steps: Steps, num_rows: int) -> None:
        self._state = state
        self._steps = steps
        self._num_rows = num_rows
        self.size = 0
        self._row_of: dict[Sequence, int] = {}
        # Of each sequence of the batch, in its order.
        self.rows: list[int] = []
        self.index = np.zeros(0, dtype=np.int64)
        # Rows that run on the device though nobody has them; cleared before a step that would compute them.
        self._stale: set[int] = set()
        # Of each row: the list that its blocks were copied from, how many, and its next step's tokens.
        self._tables: list[list[int] | None] = [None] * num_rows
        self._sizes = [0] * num_rows
        self._lengths = np.zeros(num_rows, dtype=np.int64)
        # The batch of the step before, its tables and their sizes.
        self._seqs: list[Sequence] = []
        self._last_tables: list[list[int]] = []
        self._last_sizes: list[int] = []

    def update(self, seqs: list[Sequence]) -> list[Patches]:
        """What the device must be told before a step of this batch, which moves it on by a token."""
        tables = [seq.block_table for seq in seqs]
        sizes = list(map(len, tables))
        # The very list of the step before: its sequences have come a token further, and no other way.
        same = seqs is self._seqs
        patches = []
        if not same or sizes != self._last_sizes or not all(map(operator.is_, tables, self._last_tables)):
            if seqs != self._seqs:
                patches += self._seat(seqs)
            patches += self._compare(seqs, tables, sizes, advanced=same)
            self._seqs, self._last_tables, self._last_sizes = seqs, tables, sizes
        self._lengths[self.index] += 1
        return patches

    def _compare(
        self, seqs: list[Sequence], tables: list[list[int]], sizes: list[int], *, advanced: bool
    ) -> list[Patches]:
        """What the device does not know of seated sequences; it does afterwards.

        Args:
            seqs: The batch.
            tables: Their tables.
            sizes: Of the tables.
            advanced: Whether their lengths are known to be as expected.
        """
        expected = self._lengths[self.index].tolist()
        lengths = expected if advanced else [seq.next_length for seq in seqs]
        joining: list[int] = []
        growing: list[int] = []
        starts: list[int] = []
        for i, (row, table) in enumerate(zip(self.rows, tables, strict=True)):
            if self._tables[row] is not table or lengths[i] != expected[i]:
                assert not seqs[i].num_pending, "a sequence whose last token is on the device alone has been moved"
                joining.append(i)
                self._tables[row], self._lengths[row] = table, seqs[i].num_tokens
            elif self._sizes[row] != sizes[i]:
                growing.append(i)
                starts.append(self._sizes[row])
            self._sizes[row] = sizes[i]
        rows, patches = self.rows, []
        if joining:
            patches.append(self._state.join([rows[i] for i in joining], [seqs[i] for i in joining]))
        if growing:
            patches.append(self._state.blocks([rows[i] for i in growing], [tables[i] for i in growing], starts))
        return patches

    def _seat(self, seqs: list[Sequence]) -> list[Patches]:
        """Give new sequences free rows, and rows past the step's size to sequences within it."""
        patches: list[Patches] = []
        batch = set(seqs)
        for seq in [seq for seq in self._row_of if seq not in batch]:
            self._stale.add(self._row_of.pop(seq))
        self.size = self._steps.rows(len(seqs))
        taken = set(self._row_of.values())
        free = (row for row in range(self.size) if row not in taken)
        for seq in seqs:
            if seq not in self._row_of:
                row = self._row_of[seq] = next(free)
                self._tables[row] = None
                self._stale.discard(row)
        for seq, source in [(seq, row) for seq, row in self._row_of.items() if row >= self.size]:
            row = self._row_of[seq] = next(free)
            patches.append(self._state.move(source, row, seq))
            self._tables[row], self._sizes[row] = seq.block_table, len(seq.block_table)
            self._lengths[row] = self._lengths[source]
            self._stale.discard(row)
            self._stale.add(source)
        idle = sorted(row for row in self._stale if row < self.size)
        if idle:
            patches.append(self._state.leave(idle))
            self._stale.difference_update(idle)
        self.rows = [self._row_of[seq] for seq in seqs]
        self.index = np.array(self.rows, dtype=np.int64)
        return patches


class DeviceLoop:
    """See above.

    Args:
        machine: What steps run with.
        forward: A step's forward pass.
        config: Options.
        variants: The axes, settled.
        max_model_len: Tokens of a request at most.
        dummy_block: A block of the cache that belongs to no sequence.
    """

    def __init__(
        self,
        machine: Machine,
        forward: DecodeForward,
        config: EngineConfig,
        variants: Variants,
        max_model_len: int,
        dummy_block: int,
    ) -> None:
        width = -(-max_model_len // config.block_size)
        most = config.max_num_seqs
        device, stream = machine.device, machine.stream
        self._machine = machine
        self._forward = forward
        self._max_seq_len = max_model_len
        self._samples_inside = variants.graph_sampling == "inside"
        self._state = DeviceState(most, width, dummy_block, machine.ops, device, stream)
        machine.ops.reserve_sampling(most, machine.model.spec.vocab_size, device)
        self._returns = Returns(most, device, stream)
        self._steps = Steps(variants.cuda_graph, most)
        # Steps for batches that ask for more than a graph that samples has; recorded when first needed.
        self._bare_steps = Steps(variants.cuda_graph, most) if self._samples_inside else self._steps
        self._capture: Capture | None = None
        self._most = most
        self._logits = KeptLogits(most)
        self.reset()

    def reset(self) -> None:
        """Forget all sequences; recordings stay right."""
        self._machine.stream.launch(self._state.reset)
        self._rows = _Rows(self._state, self._steps, self._most)
        self._shaper = Shaper(self._machine.ops, self._machine.device, self._machine.stream)

    def capture(self, capture: Capture, *, most: int | None = None) -> None:
        """Record graphs, where there are to be any; see `Steps.capture`. No sequence may have a row."""
        self._capture = capture
        self._bare_steps.forget()
        self._steps.capture(capture, self._step, most=most)

    def launch(self, seqs: list[Sequence]) -> Arriving:
        """Begin a step of this batch, whose tables have room for each sequence's last token."""
        state, stream = self._state, self._machine.stream
        with annotate(ranges.BUILD_BLOCK_TABLES):
            patches = self._rows.update(seqs)
            target = state.patch(np.concatenate(patches)) if patches else None
        with annotate(ranges.H2D_BLOCK_TABLES):
            if target is not None:
                state.send(target)
        size = self._rows.size
        asked = self._shaper.ask(seqs, self._rows.rows, size)
        if asked is not None:
            return self._launch_shaped(asked, size)
        stream.launch(lambda: self._steps(size, self._step))
        with annotate(ranges.SAMPLE):
            if not self._samples_inside:
                stream.launch(lambda: self._sample(self._logits.rows(size), size))
            arrival = self._returns.fetch(state.rows(size).sampled)
        return Arriving(arrival, self._rows.index)

    def _launch_shaped(self, asked: Asked, size: int) -> Arriving:
        """A step that samples after its forward pass, from what requests make of the logits."""
        rows, stream, shaper = self._state.rows(size), self._machine.stream, self._shaper
        capture = self._capture if self._samples_inside else None
        steps, step = self._bare_steps, self._bare_step
        stream.launch(lambda: steps(size, step) if capture is None else steps.first(capture, step, size))
        with annotate(ranges.SAMPLE):

            def sample() -> None:
                self._sample(shaper.scores(asked, self._logits.rows(size), rows.token_ids, rows.positions), size)

            stream.launch(sample)
            logprobs = shaper.logprobs(asked, lambda: self._logits.rows(size), rows.sampled)
            arrival = self._returns.fetch(rows.sampled)
        return Arriving(arrival, self._rows.index, logprobs)

    def repeat(self) -> None:
        """The last step's launches, once more, with nothing from the host before or after."""
        size = self._rows.size
        self._steps(size, self._step)
        if not self._samples_inside:
            self._sample(self._logits.rows(size), size)

    def _step(self, size: int) -> None:
        """What is recorded. It reads nothing that changes from step to step but the state."""
        if self._samples_inside:
            self._sample(self._run_forward(size), size)
        else:
            self._bare_step(size)

    def _bare_step(self, size: int) -> None:
        """A step that leaves its logits to be sampled from."""
        self._logits.keep(self._run_forward(size))

    def _run_forward(self, size: int) -> Tensor:
        rows = self._state.rows(size)
        inputs = DecodeInputs(rows.token_ids, rows.positions, rows.seq_lens)
        return self._forward(inputs, rows.block_table[None], self._max_seq_len)

    def _sample(self, logits: Tensor, size: int) -> None:
        self._machine.ops.sample_and_advance(logits, self._state.rows(size), self._state.dummy_block)
