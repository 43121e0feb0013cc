"""What did my change do to the work on the GPU?

As a library: `capture` a program, `step` where its steps end, `read` a trace, `summarize` it, `diff` a baseline with
variants. Each but `step` is imported when first used, so that a program or a pytest run that only mentions tracetool
pays nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from tracetool.stepping import step

if TYPE_CHECKING:
    from tracetool.capturing.block import capture
    from tracetool.chrome import read
    from tracetool.differ import diff
    from tracetool.summary import summarize

__all__ = ["__version__", "capture", "diff", "read", "step", "summarize"]

__version__ = "0.1.0"

_HOMES = {
    "capture": "tracetool.capturing.block",
    "read": "tracetool.chrome",
    "summarize": "tracetool.summary",
    "diff": "tracetool.differ",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'tracetool' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)
