"""What did my change do to the work on the GPU?

As a library: `read` a trace, `summarize` it, `diff` a baseline with variants. Each is imported when first used,
so that a program or a pytest run that only mentions tracetool pays nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tracetool.chrome import read
    from tracetool.differ import diff
    from tracetool.summary import summarize

__all__ = ["__version__", "diff", "read", "summarize"]

__version__ = "0.1.0"

_HOMES = {"read": "tracetool.chrome", "summarize": "tracetool.summary", "diff": "tracetool.differ"}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'tracetool' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)
