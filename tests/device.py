"""Where tests of kernels and of the engine run: on a GPU, or in Triton's interpreter."""

import os

import pytest
import torch

CUDA = torch.cuda.is_available()
if not CUDA:
    # Read by triton when a kernel is decorated, so it is set before any kernel is imported. Tests that need
    # the compiler run it in a process of its own: an interpreted helper makes a compilation fail.
    os.environ["TRITON_INTERPRET"] = "1"


def configure(config):
    # Each process of a run has a core; threads of its own would wait for the cores of others at every operation.
    torch.set_num_threads(1)
    # Triton's interpreter turns a loaded loop bound into an int in a way that numpy 1.25 to 2.3 warn of.
    config.addinivalue_line("filterwarnings", "ignore:Conversion of an array with ndim > 0:DeprecationWarning")


def skip_without_gpu(items):
    for item in items:
        if not CUDA and "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
