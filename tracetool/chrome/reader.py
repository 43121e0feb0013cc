"""Reading a trace file in chunks of bounded size; a large file in two processes, each its half of the events."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from tracetool.chrome import halves, quick
from tracetool.chrome.mend import mend
from tracetool.chrome.scan import BOM, HeadScanner, NoEventsError, closes
from tracetool.chrome.source import UNREADABLE, open_bytes
from tracetool.chrome.stream import EventReader, Text
from tracetool.errors import TraceReadError
from tracetool.events import ReadReport, Trace
from tracetool.limits import Limits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CHUNK_BYTES = 1 << 20


def read(
    path: str,
    *,
    chunk_bytes: int = CHUNK_BYTES,
    split_at: int | None = None,
    progress: Callable[[int], object] | None = None,
    limits: Limits | None = None,
) -> Trace:
    """Read a Chrome trace.

    Args:
        path: a JSON file, plain or gzip; `-` for standard input.
        chunk_bytes: how much text is decoded at a time; the result does not depend on it.
        split_at: the byte of JSON near which a second process takes over, 0 for none; by default the middle of a
            large file where there is a second core. The result does not depend on it.
        progress: called with the number of bytes of JSON read so far, after each chunk.
        limits: beyond which a file is refused; by default those of the environment.

    Raises:
        TraceReadError: there is no such file, it holds no Chrome trace, or more than the limits.
        SettingError: the environment sets a limit that is none.
    """
    limits = limits or Limits.of_environment()
    with _told(path), open_bytes(path) as source:
        middle = _middle_of(path) if split_at is None else split_at
        with halves.second_half(path, middle, chunk_bytes) as helper:
            return _TraceReader(path, Text(source, chunk_bytes, progress, limits), helper).read()


def read_head(path: str, *, chunk_bytes: int = CHUNK_BYTES) -> dict[str, Any]:
    """What a Chrome trace says of itself before its events; what stands behind them is not looked for.

    Raises:
        TraceReadError: there is no such file, or it holds no Chrome trace.
    """
    with _told(path), open_bytes(path) as source:
        head = _TraceReader(path, Text(source, chunk_bytes, None, Limits.of_environment()), None).read_head()
    return _read_around(head, b"", closed=False).metadata if head.strip() else {}


@contextlib.contextmanager
def _told(path: str) -> Iterator[None]:
    """Tell of what goes wrong while a file is read in one sentence that names it."""
    try:
        yield
    except NoEventsError as error:
        raise TraceReadError(f"{path} {error}") from None
    except UNREADABLE as error:
        raise TraceReadError(f"{path} cannot be read: {str(error) or 'out of memory'}") from None


def _middle_of(path: str) -> int:
    # Taken quickly, events are there before a second process would be.
    return halves.middle_of(path) if quick.compiled() is None else 0


class _TraceReader:
    def __init__(self, path: str, text: Text, helper: halves.SecondHalf | None) -> None:
        self._path = path
        self._text = text
        self._helper = helper

    def read(self) -> Trace:
        head = self.read_head()
        found = EventReader(self._text, self._helper).read()
        is_list = not head.strip()
        truncated = found.cut_gzip or (not found.closed and (found.unfinished or not is_list))
        around = (
            _Around({}, malformed=bool(found.tail.strip()))
            if is_list
            else _read_around(head, found.tail, closed=found.closed)
        )
        columns = found.columns
        return Trace(
            path=self._path,
            events=columns.table(),
            metadata=around.metadata,
            report=ReadReport(
                truncated=truncated or around.cut,
                unclosed_list=is_list and not found.closed and not truncated,
                malformed_metadata=around.malformed and not truncated,
                replaced_text=found.replaced_text + around.replaced,
                dropped_events=found.lenient_drops + columns.dropped_events,
                bad_numbers=columns.bad_numbers,
                bad_durations=columns.bad_durations,
                unpaired_phases=columns.unpaired_phases,
            ),
        )

    def read_head(self) -> bytes:
        """Read up to the list of events, and leave the window at its opening bracket."""
        scanner = HeadScanner()
        text = self._text
        while (begin := scanner.find(text.buffer)) is None:
            if text.ended:
                raise NoEventsError(_why_no_events(text))
            text.double()
        head = bytes(text.buffer[:begin]).removeprefix(BOM)
        text.drop(begin)
        return head


def _why_no_events(text: Text) -> str:
    if not text.buffer.strip():
        return "is empty" if not text.cut_gzip else "is a gzip file that ends before its first byte"
    return "ends before its 'traceEvents': it is cut off, or no Chrome trace"


@dataclass(frozen=True, slots=True)
class _Around:
    """What the text around the events holds."""

    metadata: dict[str, Any]
    cut: bool = False
    malformed: bool = False
    replaced: int = 0


def _read_around(head: bytes, tail: bytes, *, closed: bool) -> _Around:
    """The top-level keys of the file but the events."""
    text = head + b"[]" + (tail if closed else b"}")
    if (found := _keys(text)) is not None:
        return _Around(found, cut=not closed)
    mended, replaced = mend(text)
    if (found := _keys(mended)) is not None:
        return _Around(found, cut=not closed, replaced=replaced)
    whole = closed and closes(text)
    return _Around(_keys(head + b"[]}") or {}, cut=not whole, malformed=whole)


def _keys(text: bytes) -> dict[str, Any] | None:
    try:
        found = msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    found.pop("traceEvents", None)
    return found
