"""What stands in for CUDA graphs and for a device's stream on a CPU."""

from collections import deque

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class _Recorder(TorchDispatchMode):
    """Notes each operation with its arguments as they are, as a capture does."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:
            raise AssertionError("a step that is recorded looks at a value")
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out


def _tensors(value):
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [tensor for one in value for tensor in _tensors(one)]
    return []


def _storages(value):
    return {tensor.untyped_storage().data_ptr() for tensor in _tensors(value)}


class Recording:
    """The torch operations of some work, done again on the same memory: every number that Python had is baked in.

    Attributes:
        replays: How often the work has been done again.
    """

    def __init__(self, work):
        work()
        with _Recorder() as recorder:
            work()
        self._calls = recorder.calls
        self.replays = 0

    def __call__(self):
        self.replays += 1
        for func, args, kwargs, out in self._calls:
            arguments = _storages([*args, *kwargs.values()])
            again = func(*args, **kwargs)
            for old, new in zip(_tensors(out), _tensors(again), strict=True):
                # What is not a view or the tensor that was written to is memory of the recording's own.
                if old.untyped_storage().data_ptr() not in arguments:
                    old.copy_(new)


class _Place:
    """After so much work of a stream."""

    def __init__(self, stream, count):
        self._stream = stream
        self._count = count

    def query(self):
        return self._stream.done >= self._count

    def synchronize(self):
        self._stream.work_off(self._count)


class Late:
    """A stream that does nothing before somebody waits for it: the latest that a GPU could be."""

    def __init__(self):
        self.done = 0
        self._handed_over = 0
        self._work = deque()

    def launch(self, work):
        self._work.append(work)
        self._handed_over += 1

    def record(self):
        return _Place(self, self._handed_over)

    @torch.inference_mode()
    def work_off(self, count=None):
        """Do what has been handed over, up to a place."""
        while self._work and (count is None or self.done < count):
            self._work.popleft()()
            self.done += 1
