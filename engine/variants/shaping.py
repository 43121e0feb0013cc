"""What requests ask of their logits besides temperature: biases, penalties, top-k, top-p, min-p, logprobs.

Nothing here is launched for a batch in which no request asks. What a batch asks for is sent when the batch changes; the
tokens that penalties count are on the device, where each step adds the last one, so that a steady step sends nothing.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from engine.ops.interface import Ops
from engine.sequence import Sequence, TokenLogprob
from engine.staging import Arrival, Returns, Staging
from engine.stream import Stream, stream_of
from kernels.rows import Seen, Shaping, score_rows

# What a row without a request, or one that asks for nothing, has.
_OFF = Shaping(0.0, 0, 0, 1.0, 0.0, 1.0, 0.0, 0.0, -1)  # type: ignore[arg-type]
_FP32 = {"temperatures", "top_p", "min_p", "repetition", "presence", "frequency"}
_LEAST_SEATS, _LEAST_WIDTH = 8, 256
_LEAST_RETURN = 4096


class ArrivingLogprobs:
    """Log-probabilities on their way to the host."""

    def __init__(self, arrival: Arrival, places: list[int], most: int, numbers: dict[int, int]) -> None:
        self._arrival = arrival
        self._places = places
        self._most = most
        self._numbers = numbers

    def wait(self) -> dict[int, TokenLogprob]:
        """By place in the batch, of those that asked."""
        rows = self._arrival.numpy().reshape(len(self._places), 2 + 2 * self._most)
        most, found = self._most, {}
        for place, row in zip(self._places, rows, strict=True):
            count = self._numbers[place]
            ids, logprobs = row[2 : 2 + count].tolist(), row[2 + most : 2 + most + count].view(np.float32).tolist()
            found[place] = TokenLogprob(
                int(row[0]), float(row[1:2].view(np.float32)[0]), dict(zip(ids, logprobs, strict=True))
            )
        return found


class _Logprobs(NamedTuple):
    """Which rows want log-probabilities, and of how many of the likeliest tokens."""

    places: list[int]
    rows: Tensor
    most: int
    numbers: dict[int, int]


class Asked(NamedTuple):
    """What a batch asks for, on the device.

    Attributes:
        shaping: A row for each row of the step.
        biases: As `Ops.add_biases` takes them.
        penalises: Whether somebody asks for a penalty; likewise `cuts`, for top-k, top-p and min-p.
    """

    shaping: Shaping
    biases: Tensor | None
    penalises: bool
    cuts: bool
    logprobs: _Logprobs | None


class _Sender:
    """Sends int32 arrays to the device, each by one copy."""

    def __init__(self, device: torch.device, stream: Stream) -> None:
        self._device = device
        self._staging = Staging(device, stream)

    def __call__(self, values: np.ndarray) -> Tensor:
        self._staging.array(values.size)[:] = values
        target = torch.empty(values.size, dtype=torch.int32, device=self._device)
        self._staging.send(target)
        return target


class _Tokens:
    """The tokens of sequences with penalties, on the device; what each has is known here by its number.

    Args:
        send: Sends int32 arrays.
        ops: Small operations.
        device: Where they are.
        stream: In what order.
    """

    def __init__(self, send: _Sender, ops: Ops, device: torch.device, stream: Stream) -> None:
        self._send = send
        self._ops = ops
        self._device = device
        self._stream = stream
        self._seats: dict[Sequence, int] = {}
        self._known: dict[Sequence, int] = {}
        self._seen_at: dict[Sequence, int] = {}
        self._turn = 0
        self._num_seats, self._width = 0, 0
        self._flat = torch.empty(0)

    def view(self) -> Seen:
        """All of it."""
        seats, width = self._num_seats, self._width
        sizes, ids, counts = self._flat.split((seats, seats * width, seats * width))
        return Seen(sizes, ids.view(seats, width), counts.view(seats, width))

    def seat(self, seqs: list[Sequence]) -> list[int]:
        """A seat for each sequence; those that have ended, or were not seen for a while, lose theirs."""
        self._turn += 1
        for seq in seqs:
            self._seen_at[seq] = self._turn
        # A prefill comes between two steps of a batch, which keeps its seats.
        for seq in [s for s in self._seats if s.finish_reason is not None or self._seen_at[s] < self._turn - 1]:
            del self._seats[seq], self._seen_at[seq]
            self._known.pop(seq, None)
        taken = set(self._seats.values())
        new = [seq for seq in seqs if seq not in self._seats]
        self._grow(len(taken) + len(new), max(seq.max_len for seq in seqs) + 1)
        free = (seat for seat in range(self._num_seats) if seat not in taken)
        for seq in new:
            self._seats[seq] = next(free)
        return [self._seats[seq] for seq in seqs]

    def _grow(self, seats: int, width: int) -> None:
        if seats <= self._num_seats and width <= self._width:
            return
        old, had, was = self.view() if self._num_seats else None, self._num_seats, self._width
        self._num_seats = max(had, _LEAST_SEATS, 1 << (seats - 1).bit_length())
        self._width = max(was, _LEAST_WIDTH, 1 << (width - 1).bit_length())
        self._flat = torch.zeros(self._num_seats * (1 + 2 * self._width), dtype=torch.int32, device=self._device)
        if old is None:
            return
        before, now = old, self.view()

        def copy() -> None:
            now.sizes[:had] = before.sizes
            now.ids[:had, :was] = before.ids
            now.counts[:had, :was] = before.counts

        self._stream.launch(copy)

    def update(self, seqs: list[Sequence]) -> None:
        """See to it that the device knows all tokens of these but the last, which the step adds."""
        patches = []
        for seq in seqs:
            length = seq.next_length
            if self._known.get(seq) != length - 1:
                assert not seq.num_pending, "a sequence whose last token is on the device alone is new here"
                patches.append(self._patches(seq))
            self._known[seq] = length
        if patches:
            target, flat = self._send(np.concatenate(patches)), self._flat
            self._stream.launch(lambda: self._ops.patch_state(flat, target.view(-1, 3)))

    def _patches(self, seq: Sequence) -> np.ndarray:
        """What makes a seat's row the tokens of a sequence, as `Ops.patch_state` takes it."""
        tokens = np.array(seq.tokens[:-1], dtype=np.int64)
        ids = np.unique(tokens)
        output, counts = np.unique(tokens[seq.num_prompt :], return_counts=True)
        in_output = np.zeros(len(ids), dtype=np.int64)
        in_output[np.searchsorted(ids, output)] = counts
        seat, size, width = self._seats[seq], len(ids), self._width
        begin = self._num_seats + seat * width
        patches = np.full((1 + 2 * size, 3), -1, dtype=np.int32)
        patches[0, 0], patches[0, 2] = seat, size
        patches[1 : size + 1, 0] = np.arange(begin, begin + size)
        patches[1 : size + 1, 2] = ids
        begin += self._num_seats * width
        patches[size + 1 :, 0] = np.arange(begin, begin + size)
        patches[size + 1 :, 2] = in_output
        return patches.ravel()


class Shaper:
    """Knows what a batch asks for, and does it.

    Args:
        ops: Small operations.
        device: Where they run.
        stream: In what order; the device's own when not given.
    """

    def __init__(self, ops: Ops, device: torch.device, stream: Stream | None = None) -> None:
        self._ops = ops
        self._device = device
        self._stream = stream or stream_of(device)
        self._send = _Sender(device, self._stream)
        self._tokens = _Tokens(self._send, ops, device, self._stream)
        self._seqs: list[Sequence] = []
        self._rows: list[int] = []
        self._size = 0
        self._asked: Asked | None = None
        self._penalised: list[Sequence] = []
        self._returns = Returns(_LEAST_RETURN, device, self._stream)

    def ask(self, seqs: list[Sequence], rows: list[int] | None = None, size: int | None = None) -> Asked | None:
        """What the next step of this batch has to do; None where nobody asks for anything.

        Args:
            seqs: The batch.
            rows: Their rows in the step; by default as they come.
            size: Rows of the step, those without a sequence included.
        """
        if seqs != self._seqs or (rows is not None and (rows != self._rows or size != self._size)):
            # Copies, since a caller may change its own.
            self._seqs = list(seqs)
            self._rows = list(range(len(seqs))) if rows is None else list(rows)
            self._size = len(seqs) if size is None else size
            self._asked = self._seat() if any(seq.params.asks for seq in seqs) else None
        if self._asked is not None and self._penalised:
            self._tokens.update(self._penalised)
        return self._asked

    def _seat(self) -> Asked:
        seqs, rows, size = self._seqs, self._rows, self._size
        self._penalised = [seq for seq in seqs if seq.params.penalises]
        seats = dict(zip(self._penalised, self._tokens.seat(self._penalised) if self._penalised else [], strict=True))
        host = np.empty((len(Shaping._fields), size), dtype=np.int32)
        for values, name in zip(host, Shaping._fields, strict=True):
            view = values.view(np.float32) if name in _FP32 else values
            view[:] = getattr(_OFF, name)
            view[rows] = [_field(name, seq, seats) for seq in seqs]
        biases = [
            (row, token, int(np.float32(bias).view(np.int32)))
            for row, seq in zip(rows, seqs, strict=True)
            for token, bias in seq.params.biases
        ]
        places = [i for i, seq in enumerate(seqs) if seq.params.logprobs is not None]
        parts = [host.ravel(), np.array(biases, dtype=np.int32).ravel(), np.array([rows[i] for i in places], np.int32)]
        packed = self._send(np.concatenate(parts))
        fields, bias, wanted = packed.split([part.size for part in parts])
        columns = fields.view(len(Shaping._fields), size)
        shaping = Shaping(
            *(
                column.view(torch.float32) if name in _FP32 else column
                for name, column in zip(Shaping._fields, columns, strict=True)
            )
        )
        numbers = {i: seqs[i].params.logprobs or 0 for i in places}
        return Asked(
            shaping,
            bias.view(-1, 3) if biases else None,
            penalises=bool(self._penalised),
            cuts=any(seq.params.cuts for seq in seqs),
            logprobs=_Logprobs(places, wanted, max(numbers.values()), numbers) if places else None,
        )

    def scores(self, asked: Asked, logits: Tensor, token_ids: Tensor, positions: Tensor) -> Tensor:
        """What takes the place of logits `[rows, vocab]`, in fp32 at least; device work alone.

        Args:
            asked: From `ask`, for this step.
            logits: The model's, which stay as they are.
            token_ids: `[rows]`, the last token of each.
            positions: `[rows]`, where it stands.
        """
        if asked.biases is None and not asked.penalises and not asked.cuts:
            return logits
        ops, dtype = self._ops, torch.promote_types(logits.dtype, torch.float32)
        rows, vocab = logits.shape
        scores = score_rows(rows, vocab, dtype, logits.device).copy_(logits)
        if asked.biases is not None:
            ops.add_biases(scores, asked.biases)
        if asked.penalises:
            ops.penalise(scores, asked.shaping, self._tokens.view(), token_ids, positions)
        if asked.cuts:
            ops.keep_likely(scores, asked.shaping)
        return scores

    def logprobs(self, asked: Asked, logits: Callable[[], Tensor], tokens: Tensor) -> ArrivingLogprobs | None:
        """Log-probabilities of what was sampled, and of the likeliest tokens, by the model alone.

        Args:
            asked: From `ask`, for this step.
            logits: Gives the model's, once what came before is done.
            tokens: `[rows]`, what was sampled.
        """
        wanted = asked.logprobs
        if wanted is None:
            return None
        columns = 2 + 2 * wanted.most
        packed = torch.empty((len(wanted.places), columns), dtype=torch.int32, device=self._device)

        def pack() -> None:
            chosen = tokens[wanted.rows].long()
            wide = logits()[wanted.rows].float()
            total = wide.logsumexp(1, keepdim=True)
            packed[:, 0] = chosen
            floats = packed.view(torch.float32)
            # A row without a token (-1) has no log-probability, and nobody looks at it.
            floats[:, 1:2] = wide.gather(1, chosen.clamp(min=0)[:, None]) - total
            if wanted.most:
                top = wide.topk(min(wanted.most, wide.shape[1]))
                packed[:, 2 : 2 + wanted.most] = top.indices
                floats[:, 2 + wanted.most :] = top.values - total

        self._stream.launch(pack)
        return ArrivingLogprobs(self._returns.fetch(packed.view(-1)), wanted.places, wanted.most, wanted.numbers)


def _field(name: str, seq: Sequence, seats: dict[Sequence, int]) -> float:
    params = seq.params
    values = {
        "temperatures": params.temperature,
        "before_output": seq.num_prompt - 1,
        "top_k": params.top_k,
        "top_p": params.top_p,
        "min_p": params.min_p,
        "repetition": params.repetition_penalty,
        "presence": params.presence_penalty,
        "frequency": params.frequency_penalty,
        "seats": seats.get(seq, -1),
    }
    return values[name]
