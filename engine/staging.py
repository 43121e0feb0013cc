"""Host memory that asynchronous copies read."""

import math

import numpy as np
import torch
from torch import Tensor

_COPIES_IN_FLIGHT = 2
_LEAST_NUMEL = 1024


class Staging:
    """Pinned host buffers, written in turn, each sent to the device by one asynchronous copy.

    A buffer is not handed out again before the copy that reads it has ended: an event after each copy says so. With
    two in turn that has happened long ago, so looking costs a query and no wait. On a CPU ordinary memory serves,
    and copies are made at once.

    Args:
        device: Where copies go.
    """

    def __init__(self, device: torch.device) -> None:
        self._pinned = device.type == "cuda"
        self._buffers = [self._allocate(_LEAST_NUMEL) for _ in range(_COPIES_IN_FLIGHT)]
        self._events: list[torch.cuda.Event | None] = [None] * _COPIES_IN_FLIGHT
        self._turn = 0

    def _allocate(self, numel: int) -> Tensor:
        return torch.empty(numel, dtype=torch.int32, pin_memory=self._pinned)

    def array(self, *shape: int) -> np.ndarray:
        """An int32 array to write to, uninitialised; `send` sends it."""
        self._turn = (self._turn + 1) % _COPIES_IN_FLIGHT
        event = self._events[self._turn]
        if event is not None and not event.query():
            event.synchronize()
        numel = math.prod(shape)
        if self._buffers[self._turn].numel() < numel:
            self._buffers[self._turn] = self._allocate(2 * numel)
        return self._buffers[self._turn][:numel].numpy().reshape(shape)

    def send(self, target: Tensor) -> None:
        """Copy what `array` last gave into a contiguous int32 tensor on the device with as many elements."""
        source = self._buffers[self._turn][: target.numel()].view(target.shape)
        target.copy_(source, non_blocking=True)
        if self._pinned:
            event = self._events[self._turn] or torch.cuda.Event()
            event.record()
            self._events[self._turn] = event
