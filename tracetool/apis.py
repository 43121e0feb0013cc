"""What runtime and driver calls, and copies, are by name: CUDA's, HIP's and those of other back ends."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from tracetool.events import BoolArray

_LAUNCH = re.compile(r".*(?:Launch.*Kernel|GraphLaunch)", re.DOTALL)
_MEMCPY_CALL = re.compile(r"[a-z]+Memcpy(?!.*Async)", re.DOTALL)
_DEVICE_MALLOC = re.compile(r"(?:cudaMalloc|hipMalloc|hipExtMalloc|cuMemAlloc|cuMemCreate)(?!.*Host)")
_DIRECTION = re.compile(r"\b(HtoD|DtoH|DtoD|PtoP)\b")
_MEMORY_KINDS = re.compile(r"\((\w+)\s*->\s*(\w+)\)")


def is_graph_launch(name: str) -> bool:
    """A call that launches a graph: `cudaGraphLaunch`, `hipGraphLaunch`."""
    return "GraphLaunch" in name


def is_launch(name: str) -> bool:
    """A call that by its name launches a kernel or a graph: `*Launch*Kernel*` or `*GraphLaunch*`."""
    return _LAUNCH.match(name) is not None


def is_sync(name: str) -> bool:
    """A call on which the CPU waits for the device: `*Synchronize*`, and copies that are not asynchronous."""
    return "Synchronize" in name or _MEMCPY_CALL.match(name) is not None


def is_nccl_kernel(name: str) -> bool:
    """Whether a kernel is one of NCCL's."""
    return name.startswith(("ncclKernel", "ncclDevKernel"))


def is_device_malloc(name: str) -> bool:
    """A call that takes device memory from the driver."""
    return _DEVICE_MALLOC.match(name) is not None


class CopyKind(NamedTuple):
    """Direction (`h2d`, `d2h`, `d2d`, `p2p`, `other`) and host memory (`pageable`, `pinned` or empty)."""

    direction: str
    memory: str


def copy_kind(name: str) -> CopyKind:
    """What a copy is, from a name such as `Memcpy HtoD (Pageable -> Device)`."""
    found = _DIRECTION.search(name)
    direction = {"HtoD": "h2d", "DtoH": "d2h", "DtoD": "d2d", "PtoP": "p2p"}.get(
        found.group(1) if found else "", "other"
    )
    kinds = _MEMORY_KINDS.search(name)
    host = {"h2d": 1, "d2h": 2}.get(direction)
    memory = kinds.group(host).lower() if kinds and host else ""
    return CopyKind(direction, memory if memory in ("pageable", "pinned") else "")


def named(names: list[str], test: Callable[[str], bool]) -> BoolArray:
    """Which of a trace's names pass a test."""
    return np.fromiter((test(name) for name in names), dtype=np.bool_, count=len(names))
