"""Where kernels run in these tests, and memory that shows a stray read or write."""

import os

import pytest
import torch

from tests.kernels.helpers import Memory

CUDA = torch.cuda.is_available()
if not CUDA:
    # Read by triton when a kernel is decorated, so it is set before any kernel is imported. Tests that need
    # the compiler run it in a process of its own: an interpreted helper makes a compilation fail.
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_configure(config):
    # Triton's interpreter turns a loaded loop bound into an int in a way that numpy 1.25 to 2.3 warn of.
    config.addinivalue_line("filterwarnings", "ignore:Conversion of an array with ndim > 0:DeprecationWarning")


def pytest_collection_modifyitems(items):
    for item in items:
        if not CUDA and "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture
def device():
    return "cuda" if CUDA else "cpu"


@pytest.fixture
def memory(device):
    memory = Memory(device)
    yield memory
    memory.check()


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)
