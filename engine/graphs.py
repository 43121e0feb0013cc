"""CUDA graphs: work that is recorded once and launched as one from then on."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch

from engine.ranges import MODEL_FORWARD, annotate

Work = Callable[[], None]


class Capture(Protocol):
    """Records what work does to the device, values of Python objects as they are at that moment.

    Work only touches tensors that live as long as the recording, and never waits for the device.
    """

    def __call__(self, work: Work) -> Work:
        """What does the recorded work again."""
        ...


class CudaCapture:
    """Records CUDA graphs that share one pool of memory: what one leaves there is right until the next replay of any.

    Args:
        device: Where work runs.
    """

    def __init__(self, device: torch.device) -> None:
        # Without this a profiler that starts later does not see what graphs launch.
        from torch.profiler._utils import _init_for_cuda_graphs  # noqa: PLC0415 - torch has it where it has CUDA

        _init_for_cuda_graphs()
        # What a collection frees in the middle of a recording, such as an older graph, would spoil it.
        gc.collect()
        # cuBLAS's workspace of this stream must come from the graphs' memory: others, such as torch.compile, have all
        # workspaces freed, and a recording goes on writing to the one that it knows.
        torch._C._cuda_clearCublasWorkspaces()  # noqa: SLF001 - what torch itself calls
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)

    def __call__(self, work: Work) -> Work:
        """Run once, so that nothing is compiled or allocated for the first time under capture, then record."""
        work()
        graph = torch.cuda.CUDAGraph()
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        # `torch.cuda.graph` would collect garbage before each of what may be hundreds of captures.
        with torch.cuda.stream(self._stream), _no_collection():
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                work()
            finally:
                graph.capture_end()
        current.wait_stream(self._stream)
        return graph.replay


@contextmanager
def _no_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def graph_sizes(kind: str, most: int) -> list[int]:
    """Batch sizes that have a graph, largest first; the largest is `most`.

    Args:
        kind: `exact`, one a batch size, or `buckets`, whose gaps grow with the size.
        most: Rows of a batch at most.
    """
    if kind == "exact":
        return list(range(most, 0, -1))
    sizes = {1, 2, 4, *range(8, 64, 8), *range(64, 128, 16), *range(128, 256, 32), *range(256, most, 64)}
    return sorted({size for size in sizes if size < most} | {most}, reverse=True)


class Steps:
    """A step on the device for each batch size: launched piece by piece, or replayed.

    Attributes:
        captures: Whether steps are recorded.

    Args:
        kind: `off`, `exact` or `buckets`.
        most: Rows of a batch at most.
    """

    def __init__(self, kind: str, most: int) -> None:
        self.captures = kind != "off"
        self.sizes = sorted(graph_sizes(kind if self.captures else "exact", most))
        self._size_of = [0, *_round_up(self.sizes)]
        self._replays: dict[int, Work] = {}

    def rows(self, batch: int) -> int:
        """Rows of the step that serves a batch."""
        return self._size_of[batch]

    def capture(self, capture: Capture, step: Callable[[int], None], *, most: int | None = None) -> None:
        """Record a graph for each size, the largest first, so that the others find room in its memory.

        Args:
            capture: What records.
            step: Runs a step of so many rows.
            most: Record so many only.
        """
        if not self.captures:
            return
        self.forget()
        for rows in sorted(self.sizes, reverse=True)[:most]:
            self._replays[rows] = capture(_with(step, rows))

    def first(self, capture: Capture, step: Callable[[int], None], rows: int) -> None:
        """Do the step of so many rows, and record it if it has not been; work that may be done twice."""
        if self.captures and rows not in self._replays:
            self._replays[rows] = capture(_with(step, rows))
        self(rows, step)

    def forget(self) -> None:
        """Give up recordings, since what they touch is gone; until others are made, steps run piece by piece."""
        self._replays = {}

    def __call__(self, rows: int, step: Callable[[int], None]) -> None:
        """Do the step of so many rows: as it was recorded or, with ranges of its own, piece by piece."""
        replay = self._replays.get(rows)
        if replay is None:
            step(rows)
        else:
            with annotate(MODEL_FORWARD):
                replay()


def _with(step: Callable[[int], None], rows: int) -> Work:
    return lambda: step(rows)


def _round_up(sizes: list[int]) -> list[int]:
    """For each batch from 1, the least size that holds it."""
    return [size for before, size in zip([0, *sizes], sizes, strict=False) for _ in range(size - before)]
