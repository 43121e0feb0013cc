"""Folding: names that carry counters or hashes become one name, so that their calls are one range."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tracetool.errors import SettingError

if TYPE_CHECKING:
    from collections.abc import Sequence

STEP = "ProfilerStep"
_STEP_NUMBER = re.compile(r"ProfilerStep#([0-9]{1,18})")


@dataclass(frozen=True, slots=True)
class Fold:
    """What a pattern matches in a name is replaced."""

    pattern: re.Pattern[str]
    replacement: str


DEFAULT_FOLDS = (
    Fold(re.compile(r"^ProfilerStep#\d+$"), STEP),
    # Inductor: `## Call CompiledFxGraph f<hash> ##`
    Fold(re.compile(r"\bCompiledFxGraph f[0-9a-z]{20,}"), "CompiledFxGraph"),
    # Dynamo: `Torch-Compiled Region: 0/1`
    Fold(re.compile(r"^Torch-Compiled Region: \d+/\d+(?:_\d+)?$"), "Torch-Compiled Region"),
    # vLLM: `execute_8192_context_9(sq...)_generation_0(...)`
    Fold(re.compile(r"^execute_(?:\d+_)?context_\d+.*$", re.DOTALL), "execute_context"),
)


def user_fold(regex: str) -> Fold:
    """A fold as a user writes it: what the regular expression matches becomes `*`.

    Raises:
        SettingError: it is no regular expression, or matches nothing but the empty text.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what a later Python may read otherwise, on standard error
            pattern = re.compile(regex)
    except re.error as error:
        raise SettingError(f"the fold '{regex}' is no regular expression: {error}") from None
    if not regex or pattern.fullmatch(""):
        raise SettingError(f"the fold '{regex}' matches the empty text: name what is to be folded")
    return Fold(pattern, "*")


def fold(name: str, folds: Sequence[Fold] = DEFAULT_FOLDS) -> str:
    """The name under which calls of a range are counted together."""
    for rule in folds:
        replacement = rule.replacement
        name = rule.pattern.sub(lambda _, text=replacement: text, name)  # type: ignore[misc]
    return name


def step_number(name: str) -> int | None:
    """N of `ProfilerStep#N`; None for any other name."""
    match = _STEP_NUMBER.fullmatch(name)
    return int(match.group(1)) if match else None
