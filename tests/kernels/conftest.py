"""Memory that shows a stray read or write, and inputs that several test files need."""

import math
import os

import pytest
import torch

CUDA = torch.cuda.is_available()
if not CUDA:
    # Read by triton when a kernel is decorated, so it is set before any kernel is imported. Tests that need
    # the compiler run it in a process of its own: an interpreted helper makes a compilation fail.
    os.environ["TRITON_INTERPRET"] = "1"

GUARD = 64  # elements on each side, a multiple of every alignment that the kernels ask for


def pytest_collection_modifyitems(items):
    for item in items:
        if not CUDA and "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture
def device():
    return "cuda" if CUDA else "cpu"


class Memory:
    """Hands out tensors that lie between guard zones, and says whether the zones are as they were."""

    def __init__(self, device):
        self.device = device
        self.zones = []

    def place(self, tensor):
        """A contiguous copy of the tensor between guard zones: NaN for floats, a far index for integers."""
        guard = math.nan if tensor.is_floating_point() else 2**30
        whole = torch.full((tensor.numel() + 2 * GUARD,), guard, dtype=tensor.dtype, device=self.device)
        inner = whole[GUARD : GUARD + tensor.numel()].view(tensor.shape)
        inner.copy_(tensor)
        zones = (whole[:GUARD], whole[-GUARD:])
        self.zones += [(zone, zone.clone()) for zone in zones]
        return inner

    def unwritten(self, *shape, dtype):
        """An output that no kernel has written yet: NaN, or a far index."""
        fill = math.nan if dtype.is_floating_point else 2**30
        return self.place(torch.full(shape, fill, dtype=dtype))

    def frozen(self, tensor):
        """Place an input that no kernel may write."""
        placed = self.place(tensor)
        self.zones.append((placed, placed.clone()))
        return placed

    def check(self):
        for zone, before in self.zones:
            same = (zone == before) | (zone.isnan() & before.isnan())
            assert same.all(), "a kernel wrote outside its output"


@pytest.fixture
def memory(device):
    memory = Memory(device)
    yield memory
    memory.check()


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)
