"""Memory that shows a stray read or write."""

import pytest
import torch

from tests.device import CUDA, configure, skip_without_gpu
from tests.kernels.helpers import Memory


def pytest_configure(config):
    configure(config)


def pytest_collection_modifyitems(items):
    skip_without_gpu(item for item in items if "tests/kernels/" in item.nodeid)


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
