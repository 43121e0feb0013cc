"""Finding the edges of events by bracket depth, so that line breaks do not matter."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_BRACKETS = re.compile(rb'"(?:[^"\\]++|\\.)*+"|["{}\[\]]', re.DOTALL)
_BRACKETS_AND_COMMAS = re.compile(rb'"(?:[^"\\]++|\\.)*+"|["{}\[\],]', re.DOTALL)
_FOLLOWS_KEY = re.compile(rb"\s*(?:([^\s:])|:\s*(\S))")
_LIKELY_SPLIT = re.compile(rb"\}\s*(,)\s*\{")
_LIKELY_END = re.compile(rb"\}\s*(?:,\s*\{|\])")
_CANDIDATES = 3
MOST_MARKS = 4_000_000
"""Texts, brackets and commas of one event: each takes a moment, and none of a profiler's has a thousand."""
BOM = b"\xef\xbb\xbf"
_TAIL = 1 << 13

SPLIT_WINDOW = 1 << 16
"""How far behind a position `likely_split` looks."""


class NoEventsError(ValueError):
    """The text is not a trace; the message completes a sentence that begins with the file's name."""


class HeadScanner:
    """Looks for the list of events in a growing buffer that holds the beginning of a file."""

    def __init__(self) -> None:
        self._position = 0
        self._depth = 0

    def find(self, text: bytes | bytearray) -> int | None:
        """Position of the `[` that opens the events, or None where `text` does not reach that far.

        Raises:
            NoEventsError: the text is not JSON, or its `traceEvents` is not a list.
        """
        if self._depth == 0:
            begin = len(text) - len(text.removeprefix(BOM).lstrip())
            if begin == len(text):
                return None
            if text[begin : begin + 1] == b"[":
                return begin
            if text[begin : begin + 1] != b"{":
                raise NoEventsError(_why_not_json(text))
            self._depth, self._position = 1, begin + 1
        for token in _BRACKETS.finditer(text, self._position):
            found = token.group()
            if found == b'"':
                break
            if found == b'"traceEvents"' and self._depth == 1:
                follows = _FOLLOWS_KEY.match(text, token.end())
                if follows is None:
                    break
                if follows.group(2) == b"[":
                    return follows.start(2)
                if follows.group(2):
                    raise NoEventsError("has a 'traceEvents' that is not a list")
            self._depth += _step(found)
            if self._depth == 0:
                raise NoEventsError("is JSON without 'traceEvents': it is not a Chrome trace")
            self._position = token.end()
        return None


def _why_not_json(text: bytes | bytearray) -> str:
    if text.startswith(b"\x1f\x8b"):
        return "is gzip within gzip: undo one of them with gunzip"
    if text.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "is not JSON as a trace has it, but UTF-16: write it as UTF-8"
    return "is not JSON: a trace begins with { or ["


def likely_ends(text: bytearray) -> list[int]:
    """Positions near the end, the last first, of a `,` or `]` that probably follows a whole event."""
    tail = max(0, len(text) - _TAIL)
    found = [match.start() for match in _LIKELY_END.finditer(text, tail)]
    return [_after_brace(text, position) for position in reversed(found[-_CANDIDATES:])]


def likely_split(text: bytearray, position: int) -> int | None:
    """The first comma behind `position` that probably follows a whole event; None where none is near."""
    if position < 0:
        return None
    found = _LIKELY_SPLIT.search(text, position, position + SPLIT_WINDOW)
    return found.start(1) if found else None


def _after_brace(text: bytearray, position: int) -> int:
    position += 1
    while text[position] in b" \t\r\n":
        position += 1
    return position


@dataclass(frozen=True, slots=True)
class Edges:
    """Where the events of a piece of text end: each event's `,` or `]`, and whether the list is closed."""

    ends: list[int]
    closed: bool


def exact_edges(text: bytes | bytearray, begin: int) -> Edges:
    """The edges of all whole events in a text that holds the list's content from `begin` on.

    Raises:
        NoEventsError: a bracket closes what was never opened.
    """
    ends: list[int] = []
    for position, token in _outermost(text, begin):
        ends.append(position)
        if token == b"]":
            return Edges(ends, closed=True)
    return Edges(ends, closed=False)


def closes(text: bytes) -> bool:
    """Whether every bracket and quote that a text opens is closed."""
    depth = 0
    for match in _BRACKETS.finditer(text):
        if match.group() == b'"':
            return False
        depth += _step(match.group())
    return depth <= 0


def _outermost(text: bytes | bytearray, begin: int) -> Iterator[tuple[int, bytes]]:
    depth = marks = 0
    for match in _BRACKETS_AND_COMMAS.finditer(text, begin):
        token = match.group()
        if token == b'"':
            return
        marks += 1
        if marks > MOST_MARKS:
            raise NoEventsError(f"has one event of more than {MOST_MARKS:,} values, which is refused")
        if depth == 0 and token in (b",", b"]"):
            marks = 0
            yield match.start(), token
            if token == b"]":
                return
        else:
            depth += _step(token)
            if depth < 0:
                raise NoEventsError(f"is malformed JSON: a stray {token.decode()} among its events")


def _step(token: bytes) -> int:
    if token in (b"{", b"["):
        return 1
    return -1 if token in (b"}", b"]") else 0
