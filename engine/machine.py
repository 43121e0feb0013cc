"""What the engine runs with: a model, operations, a device."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from engine.graphs import Capture
from engine.models.decoder import Attend
from engine.models.spec import ModelSpec
from engine.ops.interface import Ops, Rotary
from engine.stream import Immediate, Stream
from engine.variants.attention import AttentionBackend


class Model(Protocol):
    """What the runner asks of a model; `engine.models.decoder.Decoder` is one."""

    spec: ModelSpec
    rotary: list[Rotary | None]

    def forward(self, token_ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """Hidden states `[tokens, hidden]`; `attend` is called once a layer."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """`[rows, vocab]` of hidden states `[rows, hidden]`."""
        ...


class Machine(NamedTuple):
    """What a runner runs with.

    Attributes:
        model: The model.
        ops: Small operations; the model's own too.
        attention: How it reads the cache.
        device: Where all of it is.
        dtype: What the cache holds.
        stream: In what order the device works.
        capture: Makes what records steps, for `cuda_graph`; a new one each time that all are recorded.
    """

    model: Model
    ops: Ops
    attention: AttentionBackend
    device: torch.device
    dtype: torch.dtype
    stream: Stream = Immediate()
    capture: Callable[[], Capture] | None = None
