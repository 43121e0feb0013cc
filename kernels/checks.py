"""The sentences that say what is wrong with an argument."""

import torch
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32)
INTS = (torch.int32, torch.int64)


def require(condition: bool, message: str) -> None:
    """Raise `ValueError(message)` unless the condition holds."""
    if not condition:
        raise ValueError(message)


def shaped(name: str, tensor: Tensor, *shape: int | None) -> None:
    """The tensor has this shape; None stands for any size."""
    fits = tensor.ndim == len(shape) and all(
        want is None or want == have for want, have in zip(shape, tensor.shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name} must have shape [{wanted}], but has {list(tensor.shape)}")


def typed(name: str, tensor: Tensor, *dtypes: torch.dtype) -> None:
    """The tensor has one of these dtypes."""
    if tensor.dtype not in dtypes:
        wanted = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise ValueError(f"{name} must be {wanted}, but is {str(tensor.dtype).removeprefix('torch.')}")


def rows(name: str, tensor: Tensor) -> None:
    """The last dim is contiguous."""
    if tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
        raise ValueError(f"{name} must have a contiguous last dim, but its stride there is {tensor.stride(-1)}")


def index(name: str, tensor: Tensor, *shape: int | None) -> None:
    """A tensor of integers of this shape, contiguous in its last dim."""
    typed(name, tensor, *INTS)
    shaped(name, tensor, *shape)
    rows(name, tensor)


def caches(k_cache: Tensor, v_cache: Tensor) -> None:
    """Key and value cache are a pair that the kernels can address."""
    for name, cache in (("k_cache", k_cache), ("v_cache", v_cache)):
        typed(name, cache, *FLOATS)
        shaped(name, cache, None, None, None, None)
        rows(name, cache)
    if (k_cache.shape, k_cache.stride(), k_cache.dtype) != (v_cache.shape, v_cache.stride(), v_cache.dtype):
        raise ValueError("k_cache and v_cache must have the same shape, strides and dtype")
