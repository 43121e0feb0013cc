"""Host memory that asynchronous copies read or write."""

import math

import numpy as np
import torch
from torch import Tensor

from engine.stream import Event, Stream, stream_of

_LEAST_NUMEL = 1024


def pinned(numel: int, device: torch.device) -> Tensor:
    """int32 host memory, pinned where there is a GPU to pin it for."""
    return torch.empty(numel, dtype=torch.int32, pin_memory=device.type == "cuda")


class Staging:
    """Pinned host buffers, written in turn, each sent to the device by one asynchronous copy.

    A buffer is not handed out again before the copy that reads it has ended: an event after each copy says so. With
    two in turn that has happened long ago, so looking costs a query and no wait. On a CPU ordinary memory serves,
    and copies are made at once.

    Args:
        device: Where copies go.
        stream: In what order; the device's own when not given.
    """

    COPIES_IN_FLIGHT = 2

    def __init__(self, device: torch.device, stream: Stream | None = None) -> None:
        self._device = device
        self._stream = stream or stream_of(device)
        self._buffers = [pinned(_LEAST_NUMEL, device) for _ in range(self.COPIES_IN_FLIGHT)]
        self._events: list[Event | None] = [None] * self.COPIES_IN_FLIGHT
        self._turn = 0

    def array(self, *shape: int) -> np.ndarray:
        """An int32 array to write to, uninitialised; `send` sends it."""
        self._turn = (self._turn + 1) % self.COPIES_IN_FLIGHT
        self._await(self._events[self._turn])
        numel = math.prod(shape)
        if self._buffers[self._turn].numel() < numel:
            self._buffers[self._turn] = pinned(2 * numel, self._device)
        return self._buffers[self._turn][:numel].numpy().reshape(shape)

    @staticmethod
    def _await(event: Event | None) -> None:
        # A query first: it costs less than a wait, and a trace shows waits alone.
        if event is not None and not event.query():
            event.synchronize()

    def send(self, target: Tensor) -> None:
        """Copy what `array` last gave into a contiguous int32 tensor on the device with as many elements."""
        source = self._buffers[self._turn][: target.numel()].view(target.shape)
        self._stream.launch(lambda: target.copy_(source, non_blocking=True))
        self._events[self._turn] = self._stream.record()


class Arrival:
    """int32 values on their way to the host; `numpy` waits for them.

    They are gone when as many copies as the ring has buffers have been started after theirs.
    """

    def __init__(self, buffer: Tensor, event: Event) -> None:
        self._buffer = buffer
        self._event = event

    def numpy(self) -> np.ndarray:
        """The values, once they are there."""
        self._event.synchronize()
        return self._buffer.numpy()


class Returns:
    """Pinned host buffers that values from the device are copied to in turn, without waiting.

    Args:
        numel: Values that a buffer holds at first; a larger copy makes larger ones.
        device: Where they come from.
        stream: In what order.
    """

    # One is read by the host while another is written.
    BUFFERS = 3

    def __init__(self, numel: int, device: torch.device, stream: Stream) -> None:
        self._device = device
        self._stream = stream
        self._turn = 0
        self._make(numel)

    def _make(self, numel: int) -> None:
        self._buffers = [pinned(numel, self._device) for _ in range(self.BUFFERS)]

    def fetch(self, source: Tensor) -> Arrival:
        """Begin to copy a contiguous int32 tensor `[n]`."""
        if source.numel() > self._buffers[0].numel():
            # Values under way keep the buffer that they come to.
            self._make(2 * source.numel())
        self._turn = (self._turn + 1) % self.BUFFERS
        buffer = self._buffers[self._turn][: source.numel()]
        self._stream.launch(lambda: buffer.copy_(source, non_blocking=True))
        return Arrival(buffer, self._stream.record())
