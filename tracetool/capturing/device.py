"""Whether there is a device to record."""

from __future__ import annotations

import torch


def has_device() -> bool:
    """Whether torch finds a GPU."""
    return torch.cuda.is_available()
