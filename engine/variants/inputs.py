"""How a decode step's tokens and lengths get to the GPU: the axes `inputs` and `dense_mask`."""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from engine.sequence import Sequence
from engine.staging import Staging
from engine.variants.registry import Registry


class DecodeInputs(NamedTuple):
    """One token a sequence, on the device, integers `[batch]`.

    Attributes:
        token_ids: The last token of each sequence.
        positions: Its position, counted from 0.
        seq_lens: Positions to attend to, its own included.
    """

    token_ids: Tensor
    positions: Tensor
    seq_lens: Tensor


class Inputs(Protocol):
    """Makes a step's inputs, and sees what the step sampled."""

    def __init__(self, max_num_seqs: int, device: torch.device) -> None: ...

    def prepare(self, seqs: list[Sequence]) -> DecodeInputs:
        """The inputs of this batch, right until the next call."""
        ...

    def sampled(self, seqs: list[Sequence], tokens: Tensor) -> None:
        """What this batch sampled, on the device: the next step's tokens, if its batch is the same."""
        ...


INPUTS: Registry[Inputs] = Registry("inputs", "how a decode step's tokens and lengths get to the GPU")


@INPUTS.register("per_tensor")
class PerTensor:
    """A tensor made from a list for the tokens and one for the lengths, each a blocking copy: the seeds' way."""

    def __init__(self, max_num_seqs: int, device: torch.device) -> None:
        self._device = device

    def prepare(self, seqs: list[Sequence]) -> DecodeInputs:
        token_ids = torch.tensor([seq.tokens[-1] for seq in seqs], device=self._device)
        positions = torch.tensor([len(seq.tokens) - 1 for seq in seqs], device=self._device)
        return DecodeInputs(token_ids, positions, positions + 1)

    def sampled(self, seqs: list[Sequence], tokens: Tensor) -> None:
        pass


class _Packed:
    """Rows of one tensor, filled by one copy."""

    def __init__(self, max_num_seqs: int, device: torch.device) -> None:
        self._staging = Staging(device)
        self._packed = torch.empty(3 * max_num_seqs, dtype=torch.int32, device=device)

    def send(self, seqs: list[Sequence]) -> Tensor:
        """`[3, batch]`: tokens, positions, lengths."""
        host = self._staging.array(3, len(seqs))
        host[0] = [seq.tokens[-1] for seq in seqs]
        host[2] = [len(seq.tokens) for seq in seqs]
        host[1] = host[2] - 1
        packed = self._packed[: 3 * len(seqs)].view(3, len(seqs))
        self._staging.send(packed)
        return packed


@INPUTS.register("packed_pinned")
class PackedPinned:
    """Rows of one pinned tensor, so one asynchronous copy."""

    def __init__(self, max_num_seqs: int, device: torch.device) -> None:
        self._packed = _Packed(max_num_seqs, device)

    def prepare(self, seqs: list[Sequence]) -> DecodeInputs:
        return DecodeInputs(*self._packed.send(seqs))

    def sampled(self, seqs: list[Sequence], tokens: Tensor) -> None:
        pass


@INPUTS.register("on_device")
class OnDevice:
    """What was sampled is still on the device, and lengths move on there; one copy when the batch changes."""

    def __init__(self, max_num_seqs: int, device: torch.device) -> None:
        self._packed = _Packed(max_num_seqs, device)
        self._inputs = torch.empty(3, 0)
        # The batch whose next inputs are on the device, and how long its sequences will then be.
        self._seqs: list[Sequence] = []
        self._lengths: list[int] = []

    def prepare(self, seqs: list[Sequence]) -> DecodeInputs:
        if self._seqs == seqs and self._lengths == [len(seq.tokens) for seq in seqs]:
            self._inputs[1:] += 1
        else:
            self._inputs = self._packed.send(seqs)
        self._seqs = []
        return DecodeInputs(*self._inputs)

    def sampled(self, seqs: list[Sequence], tokens: Tensor) -> None:
        self._inputs[0].copy_(tokens)
        self._seqs = seqs
        self._lengths = [len(seq.tokens) + 1 for seq in seqs]


def build_dense_mask(max_len: int, positions: Tensor) -> Tensor:
    """The `[batch, max_len + 1]` mask that the seeds' engine builds each step and paged attention does not read.

    Args:
        max_len: Tokens of the longest sequence before this step's.
        positions: `[batch]`, tokens of each.
    """
    past = torch.arange(max_len, device=positions.device).unsqueeze(0) < positions.unsqueeze(1)
    new = torch.ones(len(positions), 1, device=positions.device, dtype=past.dtype)
    return torch.cat([past, new], dim=1).to(torch.long)
