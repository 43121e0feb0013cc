"""Programmatic dependent launch: a kernel begins while the one before it ends, and waits where it must.

A kernel waits before it reads or writes what another may have to do with. Weights, which no kernel writes, it may read
before. It lets the next kernel begin only after its own wait, so that whatever was launched before the kernel before it
has ended. See "Programmatic Dependent Launch and Synchronization" in NVIDIA's CUDA programming guide.
"""

import functools

import torch
import triton
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def wait_for_inputs():
    """From here on everything that was launched before is done, and can be read."""
    gdc_wait()
    gdc_launch_dependents()


@functools.cache
def early(device: torch.device) -> dict[str, bool]:
    """Keywords of a launch: whether kernels on this device begin early, for the kernel and for Triton."""
    begins_early = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)
    return {"EARLY": begins_early, "launch_pdl": begins_early}
