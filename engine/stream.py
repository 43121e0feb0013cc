"""The order in which the device does what the host asks for."""

from collections.abc import Callable
from typing import Protocol

import torch


class Event(Protocol):
    """A place in a stream."""

    def query(self) -> bool:
        """Whether everything before it is done."""
        ...

    def synchronize(self) -> None:
        """Wait until everything before it is done."""
        ...


class Stream(Protocol):
    """Work that is done in order, after the call that hands it over has returned."""

    def launch(self, work: Callable[[], object]) -> None:
        """Hand over work: copies and kernels, which may begin at once or later."""
        ...

    def record(self) -> Event:
        """The place after all work so far."""
        ...


class _Passed:
    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        pass


class Immediate:
    """Work is done when it is handed over: a CPU."""

    _passed = _Passed()

    def launch(self, work: Callable[[], object]) -> None:
        work()

    def record(self) -> Event:
        return self._passed


class CurrentStream:
    """Torch's current stream on a GPU; torch's own calls are asynchronous there."""

    def launch(self, work: Callable[[], object]) -> None:
        work()

    def record(self) -> Event:
        event = torch.cuda.Event()
        event.record()
        return event


def stream_of(device: torch.device) -> Stream:
    """How work gets to this device."""
    return CurrentStream() if device.type == "cuda" else Immediate()
