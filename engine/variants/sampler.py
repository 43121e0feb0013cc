"""How tokens are chosen from logits and reach the host: the axis `sampler`."""

import math
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from engine.ops.interface import Ops
from engine.sequence import Sequence, TokenLogprob
from engine.staging import Arrival, Returns, Staging
from engine.stream import stream_of
from engine.variants.registry import Registry
from engine.variants.shaping import ArrivingLogprobs, Asked, Shaper


class Tokens(Protocol):
    """What a step sampled, which may still be on its way."""

    def wait(self) -> np.ndarray:
        """The tokens, once they are on the host, as an array of its own; -1 where none could be chosen."""
        ...

    def logprobs(self) -> dict[int, TokenLogprob]:
        """By place in the batch, of those that asked for them."""
        ...


class Known:
    """Tokens that are on the host."""

    def __init__(self, tokens: ArrayLike, logprobs: ArrivingLogprobs | None = None) -> None:
        self._tokens = np.array(tokens, dtype=np.int64)
        self._logprobs = logprobs

    def wait(self) -> np.ndarray:
        return self._tokens

    def logprobs(self) -> dict[int, TokenLogprob]:
        return {} if self._logprobs is None else self._logprobs.wait()


class Arriving:
    """Tokens that an asynchronous copy brings.

    Args:
        arrival: The copy.
        index: Which of its values, in what order.
        logprobs: What comes with them.
    """

    def __init__(
        self,
        arrival: Arrival,
        index: np.ndarray | slice = slice(None),
        logprobs: ArrivingLogprobs | None = None,
    ) -> None:
        self._arrival = arrival
        self._index = index
        self._logprobs = logprobs

    def wait(self) -> np.ndarray:
        return np.array(self._arrival.numpy()[self._index])

    def logprobs(self) -> dict[int, TokenLogprob]:
        return {} if self._logprobs is None else self._logprobs.wait()


class _Likeliest:
    """The likeliest tokens and their logits, from one kernel into one buffer, so that one copy brings both.

    A logit that is NaN is the largest there is, so the logit tells whether the token means something.

    Args:
        logits: `[batch, vocab]`.
    """

    def __init__(self, logits: Tensor) -> None:
        self._batch, self._dtype = len(logits), logits.dtype
        # Tokens are 8 bytes each, and all of it a multiple of 4.
        self._end = self._batch * (8 + logits.dtype.itemsize)
        self._buffer = torch.empty(-(-self._end // 4) * 4, dtype=torch.uint8, device=logits.device)
        best, self.tokens = self._split(self._buffer)
        torch.max(logits, -1, out=(best, self.tokens))

    def _split(self, buffer: Tensor) -> tuple[Tensor, Tensor]:
        return buffer[8 * self._batch : self._end].view(self._dtype), buffer[: 8 * self._batch].view(torch.int64)

    @property
    def int32(self) -> Tensor:
        """The buffer."""
        return self._buffer.view(torch.int32)

    def on_host(self, int32: Tensor | None = None) -> np.ndarray:
        """The tokens, from a copy of the buffer that has arrived or from one that is made now."""
        buffer = self._buffer.cpu() if int32 is None else int32.view(torch.uint8)
        best, tokens = self._split(buffer)
        return np.where((best > -math.inf).numpy(), tokens.numpy(), -1)


class _ArrivingLikeliest:
    """`_Likeliest` that an asynchronous copy brings."""

    def __init__(self, likeliest: _Likeliest, arrival: Arrival, logprobs: ArrivingLogprobs | None) -> None:
        self._likeliest = likeliest
        self._arrival = arrival
        self._logprobs = logprobs

    def wait(self) -> np.ndarray:
        return self._likeliest.on_host(torch.from_numpy(self._arrival.numpy()))

    def logprobs(self) -> dict[int, TokenLogprob]:
        return {} if self._logprobs is None else self._logprobs.wait()


class Sampler(Protocol):
    """Chooses a token for each sequence; the choice depends on its logits, its seed and its output position alone."""

    def __init__(self, ops: Ops, device: torch.device) -> None: ...

    def sample(
        self, logits: Tensor, seqs: list[Sequence], token_ids: Callable[[], Tensor], positions: Tensor
    ) -> tuple[Tokens, Tensor | None]:
        """Sample, and begin to bring the result to the host.

        Args:
            logits: `[batch, vocab]`.
            seqs: One a row.
            token_ids: Gives `[batch]` on the device, the last token of each, for those who ask for it.
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


class _Eager:
    """Samplers whose launches the host makes one by one."""

    def __init__(self, ops: Ops, device: torch.device) -> None:
        self._ops = ops
        self._parameters = _Parameters(device)
        self._shaper = Shaper(ops, device)

    def _shape(
        self, logits: Tensor, seqs: list[Sequence], token_ids: Callable[[], Tensor], positions: Tensor
    ) -> tuple[Tensor, Asked | None]:
        """What is sampled from, and what was asked for."""
        asked = self._shaper.ask(seqs)
        if asked is None:
            return logits, None
        return self._shaper.scores(asked, logits, token_ids(), positions), asked

    def _logprobs(self, asked: Asked | None, logits: Tensor, tokens: Tensor) -> ArrivingLogprobs | None:
        return None if asked is None else self._shaper.logprobs(asked, lambda: logits, tokens)


@SAMPLERS.register("item_loop")
class ItemLoop(_Eager):
    """One sequence after another, each with a copy to the host and a wait: how a first engine does it."""

    def sample(
        self, logits: Tensor, seqs: list[Sequence], token_ids: Callable[[], Tensor], positions: Tensor
    ) -> tuple[Tokens, Tensor | None]:
        scores, asked = self._shape(logits, seqs, token_ids, positions)
        if _greedy(seqs):
            tokens = [int(_Likeliest(row[None]).on_host()[0]) for row in scores]
        else:
            parameters = self._parameters.of(seqs, positions)
            rows = [[values[i : i + 1] for values in (scores, *parameters)] for i in range(len(seqs))]
            tokens = [int(self._ops.sample(*row).item()) for row in rows]
        if asked is None or asked.logprobs is None:
            return Known(tokens), None
        return Known(tokens, self._logprobs(asked, logits, torch.tensor(tokens, device=logits.device))), None


@SAMPLERS.register("batched")
class Batched(_Eager):
    """All sequences at once, one copy to the host and one wait."""

    def sample(
        self, logits: Tensor, seqs: list[Sequence], token_ids: Callable[[], Tensor], positions: Tensor
    ) -> tuple[Tokens, Tensor | None]:
        scores, asked = self._shape(logits, seqs, token_ids, positions)
        if _greedy(seqs):
            likeliest = _Likeliest(scores)
            return Known(likeliest.on_host(), self._logprobs(asked, logits, likeliest.tokens)), likeliest.tokens
        tokens = self._ops.sample(scores, *self._parameters.of(seqs, positions))
        return Known(tokens.tolist(), self._logprobs(asked, logits, tokens)), tokens


@SAMPLERS.register("on_device")
class OnDevice(_Eager):
    """All sequences at once; one copy into pinned memory that nothing waits for until tokens are looked at."""

    def __init__(self, ops: Ops, device: torch.device) -> None:
        super().__init__(ops, device)
        self._returns = Returns(_LEAST_ROWS, device, stream_of(device))

    def sample(
        self, logits: Tensor, seqs: list[Sequence], token_ids: Callable[[], Tensor], positions: Tensor
    ) -> tuple[Tokens, Tensor | None]:
        scores, asked = self._shape(logits, seqs, token_ids, positions)
        if _greedy(seqs):
            likeliest = _Likeliest(scores)
            logprobs = self._logprobs(asked, logits, likeliest.tokens)
            return _ArrivingLikeliest(likeliest, self._returns.fetch(likeliest.int32), logprobs), likeliest.tokens
        tokens = self._ops.sample(scores, *self._parameters.of(seqs, positions)).int()
        return Arriving(self._returns.fetch(tokens), logprobs=self._logprobs(asked, logits, tokens)), tokens
