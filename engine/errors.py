"""What a user can do wrong, in one tree.

EngineError
├── ConfigError    an option, or a combination of options
├── ModelError     a model's config, checkpoint or tokenizer
└── RequestError   a prompt or its sampling parameters

Each message is one sentence that names the option, file, tensor or request, and what would mend it. After a
RequestError the engine is as it was before the call.
"""

import difflib
from collections.abc import Iterable


class EngineError(Exception):
    """Something that whoever uses the engine can mend."""


class ConfigError(EngineError):
    """An option has a wrong value, or options do not fit each other, the model or the machine."""


class ModelError(EngineError):
    """A model cannot be found, read or run."""


class RequestError(EngineError):
    """A request cannot be served."""


def unknown(kind: str, name: object, names: Iterable[str]) -> str:
    """The sentence for a name that is not one of `names`, with the nearest of them where one is near."""
    names = list(names)
    near = difflib.get_close_matches(str(name), names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names)}"
    return f"unknown {kind} {str(name)!r}; {hint}"
