"""Making invalid JSON valid, as little as possible: what profilers are known to write wrongly."""

from __future__ import annotations

import re

_PIECES = re.compile(r'"(?:[^"\\]|\\.)*"|-?\b(?:NaN|Infinity|nan|inf)\b', re.DOTALL)
_BAD_IN_STRING = re.compile(
    r"[\x00-\x1f]"
    r"|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    r"|\\u[dD][89a-fA-F][0-9a-fA-F]{2}"
    r'|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})'
    r"|\\"
)
_HALF = re.compile(r"\\u[dD][89a-fA-F]")
_PAIR_LENGTH = 12
_REPLACEMENT = "\ufffd"


def mend(text: bytes) -> tuple[bytes, int]:
    """Replace what JSON does not allow, and say how many pieces that was.

    Bytes that are not UTF-8, control characters and halves of surrogate pairs become U+FFFD, a backslash that
    escapes nothing is kept as a backslash, and NaN and infinities become null.
    """
    count = 0

    def mend_in_string(match: re.Match[str]) -> str:
        nonlocal count
        found = match.group()
        if found == "\\":
            count += 1
            return "\\\\"
        if len(found) == 1 or (_HALF.match(found) and len(found) < _PAIR_LENGTH):
            count += 1
            return _REPLACEMENT
        return found

    def mend_piece(match: re.Match[str]) -> str:
        nonlocal count
        found = match.group()
        if found.startswith('"'):
            return _BAD_IN_STRING.sub(mend_in_string, found)
        count += 1
        return "null"

    decoded = text.decode("utf-8", "replace")
    count += decoded.count(_REPLACEMENT) - text.count(_REPLACEMENT.encode())
    return _PIECES.sub(mend_piece, decoded).encode(), count
