"""The memory that keys and values of all layers lie in."""

import torch
from torch import Tensor


class KVCache:
    """`[num_layers, num_blocks, block_size, num_kv_heads, head_dim]`, once for keys and once for values.

    Memory is not initialised: nobody reads a position before it has been written.
    """

    def __init__(
        self,
        num_layers: int,
        num_blocks: int,
        block_size: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (num_layers, num_blocks, block_size, num_kv_heads, head_dim)
        self.keys = torch.empty(shape, dtype=dtype, device=device)
        self.values = torch.empty(shape, dtype=dtype, device=device)
        self.layers: list[tuple[Tensor, Tensor]] = list(zip(self.keys, self.values, strict=True))
        # All layers' blocks in one row, for tables that count them so.
        self.flat = self.keys.flatten(0, 1), self.values.flatten(0, 1)

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return self.keys.nbytes + self.values.nbytes

    @staticmethod
    def block_nbytes(num_layers: int, block_size: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype) -> int:
        """Bytes of one block in all layers."""
        return 2 * num_layers * block_size * num_kv_heads * head_dim * dtype.itemsize
