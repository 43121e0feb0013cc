"""A CUDA graph of the forward pass alone, fed by whatever sends a step's tables and inputs.

The graph reads memory of its own, so each step copies there, on the device, what the variants of `block_tables` and
`inputs` have made; sampling is outside.
"""

import torch
from torch import Tensor

from engine import ranges
from engine.config import EngineConfig
from engine.decode_forward import DecodeForward, KeptLogits
from engine.graphs import Capture, Steps
from engine.machine import Machine
from engine.ranges import annotate
from engine.variants.block_tables import BLOCK_TABLES
from engine.variants.choice import Variants
from engine.variants.inputs import DecodeInputs


class GraphedForward:
    """See above; arguments as `DeviceLoop` has them."""

    def __init__(
        self,
        machine: Machine,
        forward: DecodeForward,
        config: EngineConfig,
        variants: Variants,
        max_model_len: int,
        dummy_block: int,
    ) -> None:
        most, device = config.max_num_seqs, machine.device
        layers = machine.model.spec.num_layers if BLOCK_TABLES[variants.block_tables].per_layer else 1
        self._forward = forward
        self._stream = machine.stream
        self._max_seq_len = max_model_len
        self._inputs = torch.empty((3, most), dtype=torch.int32, device=device)
        self._tables = torch.empty(
            (layers, most, -(-max_model_len // config.block_size)), dtype=torch.int32, device=device
        )
        # A row without a sequence: token 0 at position 0 of a block that is nobody's.
        self._padding = torch.tensor([[0], [0], [1]], dtype=torch.int32, device=device)
        first = torch.arange(layers, dtype=torch.int32, device=device) * (dummy_block + 1)
        self._dummy_blocks = (first + dummy_block)[:, None]
        self._logits = KeptLogits(most)
        self._steps = Steps(variants.cuda_graph, most)
        self.reset()

    def reset(self) -> None:
        """Rows without sequences, in the memory that recorded steps know."""
        self._tables.zero_()
        self._pad(0, self._inputs.shape[1])

    def _pad(self, start: int, end: int) -> None:
        self._inputs[:, start:end] = self._padding
        self._tables[:, start:end, 0] = self._dummy_blocks

    def capture(self, capture: Capture, *, most: int | None = None) -> None:
        """Record graphs; see `Steps.capture`."""
        self._steps.capture(capture, self._step, most=most)

    def launch(self, inputs: DecodeInputs, tables: Tensor) -> Tensor:
        """Logits `[batch, vocab_size]` of a batch, right until the next call."""
        batch = len(inputs.token_ids)
        size = self._steps.rows(batch)
        with annotate(ranges.H2D_INPUTS):
            for row, values in zip(self._inputs, inputs, strict=True):
                row[:batch].copy_(values)
            self._tables[:, :batch, : tables.shape[2]].copy_(tables)
            if batch < size:
                self._pad(batch, size)
        self._stream.launch(lambda: self._steps(size, self._step))
        return self._logits.rows(batch)

    def _step(self, size: int) -> None:
        inputs = DecodeInputs(*self._inputs[:, :size])
        self._logits.keep(self._forward(inputs, self._tables[:, :size], self._max_seq_len))
