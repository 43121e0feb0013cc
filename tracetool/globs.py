"""Patterns over range paths and over names: only `*` and `**` are special, a backslash escapes.

Real names hold brackets, bars, spaces and slashes, so nothing else has a meaning.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING

from tracetool.errors import SettingError

if TYPE_CHECKING:
    from collections.abc import Sequence

_TOKENS = re.compile(r"\\(.)|(\*+)|(/)|([^\\*/]+)|(\\)", re.DOTALL)
_SEPARATOR = "\0"


class PathGlob:
    r"""A pattern over paths: `decode_step/*/kv_append`.

    `*` stands for any text within one name, `**` for any number of names (none too), `/` separates names,
    and `\/` is a slash in a name. A pattern may begin at any depth; a leading `/` ties it to the top.
    """

    def __init__(self, pattern: str) -> None:
        """Compile a pattern.

        Raises:
            SettingError: it is empty, or ends with a lone backslash.
        """
        self.pattern = pattern
        if not pattern.strip("/"):
            raise SettingError(f"the range pattern '{pattern}' is empty: name a range, or use '**' for all")
        body = pattern.removeprefix("/")
        parts = [] if pattern.startswith("/") else [f"(?:[^{_SEPARATOR}]*{_SEPARATOR})*"]
        for element in _elements(body):
            if element is None:
                parts.append(f"(?:[^{_SEPARATOR}]*{_SEPARATOR})*")
            else:
                parts.append(f"{element}{_SEPARATOR}")
        self._regex = re.compile("".join(parts), re.DOTALL)

    def matches(self, path: Sequence[str]) -> bool:
        """Whether the pattern fits the path from the top (or from any depth) to its end."""
        text = "".join(name.replace(_SEPARATOR, " ") + _SEPARATOR for name in path)
        return self._regex.fullmatch(text) is not None


def _elements(pattern: str) -> list[str | None]:
    """One regular expression a name; None for `**`."""
    elements: list[str | None] = []
    current = ""
    stars = False
    for match in _tokens(pattern):
        escaped, star, slash, plain, _ = match.groups()
        if slash:
            elements.append(None if stars and not current else current)
            current, stars = "", False
        elif star:
            stars = len(star) > 1 and not current
            current += "" if stars else f"[^{_SEPARATOR}]*"
        else:
            current += (f"[^{_SEPARATOR}]*" if stars else "") + re.escape(escaped or plain)
            stars = False
    elements.append(None if stars and not current else current)
    return elements


@lru_cache(maxsize=64)
def name_glob(pattern: str) -> re.Pattern[str]:
    """A pattern over single names, in which `*` stands for any text (slashes too).

    Raises:
        SettingError: it ends with a lone backslash.
    """
    regex = ""
    for match in _tokens(pattern):
        escaped, star, slash, plain, _ = match.groups()
        regex += ".*" if star else re.escape(escaped or slash or plain)
    return re.compile(regex, re.DOTALL)


def _tokens(pattern: str) -> list[re.Match[str]]:
    found = list(_TOKENS.finditer(pattern))
    if found and found[-1].group(5):
        raise SettingError(f"the pattern '{pattern}' ends with a lone backslash: write \\\\ for a backslash")
    return found
