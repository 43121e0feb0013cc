"""How tokens are chosen from logits and reach the host: the axis `sampler`."""

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from engine.ops.interface import Ops
from engine.sequence import Sequence
from engine.staging import Arrival, Returns, Staging
from engine.stream import stream_of
from engine.variants.registry import Registry


class Tokens(Protocol):
    """What a step sampled, which may still be on its way."""

    def wait(self) -> list[int]:
        """The tokens, once they are on the host."""
        ...


class Known:
    """Tokens that are on the host."""

    def __init__(self, tokens: list[int]) -> None:
        self._tokens = tokens

    def wait(self) -> list[int]:
        return self._tokens


class Arriving:
    """Tokens that an asynchronous copy brings.

    Args:
        arrival: The copy.
        index: Which of its values, in what order.
    """

    def __init__(self, arrival: Arrival, index: np.ndarray | slice = slice(None)) -> None:
        self._arrival = arrival
        self._index = index

    def wait(self) -> list[int]:
        tokens: list[int] = self._arrival.numpy()[self._index].tolist()
        return tokens


class Sampler(Protocol):
    """Chooses a token for each sequence; the choice depends on its logits, its seed and its output position alone."""

    def __init__(self, ops: Ops, device: torch.device) -> None: ...

    def sample(self, logits: Tensor, seqs: list[Sequence], positions: Tensor) -> tuple[Tokens, Tensor | None]:
        """Sample, and begin to bring the result to the host.

        Args:
            logits: `[batch, vocab]`.
            seqs: One a row.
            positions: `[batch]` on the device, of the last token of each, counted from 0.

        Returns:
            The tokens, and the same on the device where they are together there.
        """
        ...


# Rows of the first buffers.
_LEAST_ROWS = 1024

SAMPLERS: Registry[Sampler] = Registry("sampler", "how tokens are chosen and reach the host")


class _Parameters:
    """Temperatures, seeds and output positions of a batch on the device; one copy when the batch changes."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._staging = Staging(device)
        self._seqs: list[Sequence] = []
        self._seeds = self._temperatures = self._before_output = torch.empty(0)

    def of(self, seqs: list[Sequence], positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """fp32 temperatures, int64 seeds and output positions, `[batch]` each."""
        if self._seqs != seqs:
            batch = len(seqs)
            host = self._staging.array(4 * batch)
            host[: 2 * batch].view(np.int64)[:] = [seq.seed for seq in seqs]
            host[2 * batch : 3 * batch].view(np.float32)[:] = [seq.params.temperature for seq in seqs]
            host[3 * batch :] = [seq.num_prompt - 1 for seq in seqs]
            packed = torch.empty(4 * batch, dtype=torch.int32, device=self._device)
            self._staging.send(packed)
            self._seeds = packed[: 2 * batch].view(torch.int64)
            self._temperatures = packed[2 * batch : 3 * batch].view(torch.float32)
            self._before_output = packed[3 * batch :]
            self._seqs = seqs
        return self._temperatures, self._seeds, positions - self._before_output


def _greedy(seqs: list[Sequence]) -> bool:
    return not any(seq.params.temperature for seq in seqs)


@SAMPLERS.register("item_loop")
class ItemLoop:
    """One sequence after another, each with a copy to the host and a wait: how a first engine does it."""

    def __init__(self, ops: Ops, device: torch.device) -> None:
        self._ops = ops
        self._parameters = _Parameters(device)

    def sample(self, logits: Tensor, seqs: list[Sequence], positions: Tensor) -> tuple[Tokens, Tensor | None]:
        if _greedy(seqs):
            return Known([int(row.argmax().item()) for row in logits]), None
        parameters = self._parameters.of(seqs, positions)
        rows = [[values[i : i + 1] for values in (logits, *parameters)] for i in range(len(seqs))]
        return Known([int(self._ops.sample(*row).item()) for row in rows]), None


@SAMPLERS.register("batched")
class Batched:
    """All sequences at once, one copy to the host and one wait."""

    def __init__(self, ops: Ops, device: torch.device) -> None:
        self._ops = ops
        self._parameters = _Parameters(device)

    def sample(self, logits: Tensor, seqs: list[Sequence], positions: Tensor) -> tuple[Tokens, Tensor | None]:
        tokens = self._choose(logits, seqs, positions)
        return Known(tokens.tolist()), tokens

    def _choose(self, logits: Tensor, seqs: list[Sequence], positions: Tensor) -> Tensor:
        if _greedy(seqs):
            return logits.argmax(-1)
        return self._ops.sample(logits, *self._parameters.of(seqs, positions))


@SAMPLERS.register("on_device")
class OnDevice(Batched):
    """All sequences at once; one copy into pinned memory that nothing waits for until tokens are looked at."""

    def __init__(self, ops: Ops, device: torch.device) -> None:
        super().__init__(ops, device)
        self._stream = stream_of(device)
        self._device = device
        self._returns = Returns(_LEAST_ROWS, device, self._stream)
        self._room = _LEAST_ROWS

    def sample(self, logits: Tensor, seqs: list[Sequence], positions: Tensor) -> tuple[Tokens, Tensor | None]:
        tokens = self._choose(logits, seqs, positions).int()
        if len(seqs) > self._room:
            self._room = 2 * len(seqs)
            self._returns = Returns(self._room, self._device, self._stream)
        return Arriving(self._returns.fetch(tokens)), tokens
