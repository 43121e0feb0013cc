"""Tensors of random numbers, for runs that need a model's shape and not its knowledge."""

import zlib

import torch
from torch import Tensor


class RandomWeights:
    """A source that has every tensor: norms are ones, biases zeros, the rest is normal.

    A tensor depends on the seed, its name and the kind of device, and on nothing else.
    """

    def __init__(self, seed: int, std: float, dtype: torch.dtype, device: torch.device) -> None:
        self.seed = seed
        self.std = std
        self.dtype = dtype
        self.device = device

    def get(self, name: str, *shape: int) -> Tensor:
        """A tensor of this shape."""
        if name.endswith("bias"):
            return torch.zeros(shape, dtype=self.dtype, device=self.device)
        if len(shape) == 1:
            return torch.ones(shape, dtype=self.dtype, device=self.device)
        # One 32-bit number of both: a CPU's generator takes no more than that of its seed.
        generator = torch.Generator(self.device).manual_seed(zlib.crc32(f"{self.seed} {name}".encode()))
        values = torch.empty(shape, dtype=torch.float32, device=self.device)
        return values.normal_(0.0, self.std, generator=generator).to(self.dtype)
