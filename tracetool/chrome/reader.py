"""Reading a trace file in chunks of bounded size."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import msgspec
from isal.igzip_lib import IsalError

from tracetool.chrome.columns import ColumnBuilder
from tracetool.chrome.decode import LenientDecoder, MalformedError, decode_strict
from tracetool.chrome.mend import mend
from tracetool.chrome.scan import BOM, HeadScanner, NoEventsError, closes, exact_edges, likely_ends
from tracetool.chrome.source import open_bytes
from tracetool.errors import TraceReadError
from tracetool.events import ReadReport, Trace

if TYPE_CHECKING:
    from collections.abc import Callable

    from tracetool.chrome.decode import Event

CHUNK_BYTES = 2 << 20
LARGEST_PIECE = 256 << 20
"""A single event, or all that stands before or after the events, may be this large; more is refused."""

_UNREADABLE: tuple[type[Exception], ...] = (zlib.error, cast("type[Exception]", IsalError), OSError, MemoryError)


def read(path: str, *, chunk_bytes: int = CHUNK_BYTES, progress: Callable[[int], object] | None = None) -> Trace:
    """Read a Chrome trace.

    Args:
        path: a JSON file, plain or gzip; `-` for standard input.
        chunk_bytes: how much text is decoded at a time; the result does not depend on it.
        progress: called with the number of bytes of JSON read so far, after each chunk.

    Raises:
        TraceReadError: there is no such file, or it holds no Chrome trace.
    """
    try:
        with open_bytes(path) as source:
            return _TraceReader(path, _Text(source, chunk_bytes, progress)).read()
    except NoEventsError as error:
        raise TraceReadError(f"{path} {error}") from None
    except _UNREADABLE as error:
        raise TraceReadError(f"{path} cannot be read: {error or 'out of memory'}") from None


class _Text:
    """A growing, shrinking window on the text of a file."""

    def __init__(self, source: BinaryIO, chunk_bytes: int, progress: Callable[[int], object] | None) -> None:
        self.buffer = bytearray()
        self.ended = False
        self.cut_gzip = False
        self._source = source
        self._chunk_bytes = chunk_bytes
        self._progress = progress
        self._total = 0

    def grow(self) -> None:
        """Read one more chunk, or notice the end."""
        if len(self.buffer) > LARGEST_PIECE:
            limit = LARGEST_PIECE >> 20
            raise NoEventsError(f"has a single event or header of more than {limit} MiB, which is refused")
        try:
            chunk = self._source.read(self._chunk_bytes)
        except EOFError:
            chunk = b""
            self.cut_gzip = True
        self.ended = not chunk
        self._total += len(chunk)
        # A new object each time: decoded events may still point into the old one.
        self.buffer = self.buffer + chunk
        if self._progress is not None:
            self._progress(self._total)

    def drop(self, position: int) -> None:
        """Forget what stands before `position`."""
        self.buffer = self.buffer[position:]


@dataclass
class _Taken:
    """Events decoded from the front of the window, and what follows them."""

    events: list[Event]
    end: int
    closed: bool


class _TraceReader:
    def __init__(self, path: str, text: _Text) -> None:
        self._path = path
        self._text = text
        self._lenient = LenientDecoder()
        self._columns = ColumnBuilder()

    def read(self) -> Trace:
        head = self._read_head()
        closed = self._read_events()
        tail = self._read_tail() if closed else b""
        is_list = not head.strip()
        unfinished = bool(self._text.buffer.strip(b", \t\r\n"))
        truncated = self._text.cut_gzip or (not closed and (unfinished or not is_list))
        around = _Around({}, malformed=bool(tail.strip())) if is_list else _read_around(head, tail, closed=closed)
        columns, lenient = self._columns, self._lenient
        return Trace(
            path=self._path,
            events=columns.table(),
            metadata=around.metadata,
            report=ReadReport(
                truncated=truncated or around.cut,
                unclosed_list=is_list and not closed and not truncated,
                malformed_metadata=around.malformed and not truncated,
                replaced_text=lenient.replaced_text + around.replaced,
                dropped_events=lenient.dropped_events + columns.dropped_events,
                bad_numbers=columns.bad_numbers,
                bad_durations=columns.bad_durations,
                unpaired_phases=columns.unpaired_phases,
            ),
        )

    def _read_head(self) -> bytes:
        """Read up to the list of events, and leave the window at its opening bracket."""
        scanner = HeadScanner()
        text = self._text
        while (begin := scanner.find(text.buffer)) is None:
            if text.ended:
                raise NoEventsError(_why_no_events(text))
            text.grow()
        head = bytes(text.buffer[:begin]).removeprefix(BOM)
        text.drop(begin)
        return head

    def _read_events(self) -> bool:
        """Read the list of events; says whether it was closed. The window is left behind it."""
        text = self._text
        while True:
            taken = self._take_likely() or self._take_exact()
            if taken is not None:
                self._columns.add(taken.events)
                text.drop(taken.end)
                if taken.closed:
                    return True
            if text.ended:
                self._take_last()
                return False
            text.grow()

    def _take_last(self) -> None:
        """Take what stands at the end of a list that is not closed, if it is a whole event."""
        rest = bytes(self._text.buffer[1:])
        try:
            self._columns.add(decode_strict(memoryview(b"[" + rest + b"]")))
        except MalformedError:
            self._text.buffer = bytearray(rest)
        else:
            self._text.buffer = bytearray()

    def _take_likely(self) -> _Taken | None:
        """Try the places where events usually end: that it decodes proves that it is one."""
        buffer = self._text.buffer
        for end in likely_ends(buffer):
            follows = buffer[end]
            buffer[0], buffer[end] = ord("["), ord("]")
            try:
                with memoryview(buffer) as view:
                    events = decode_strict(view[: end + 1])
            except MalformedError:
                buffer[end] = follows
                continue
            closed = follows == ord("]")
            return _Taken(events, end + closed, closed)
        return None

    def _take_exact(self) -> _Taken | None:
        """Follow the brackets, and decode leniently."""
        buffer = self._text.buffer
        edges = exact_edges(buffer, 1)
        if not edges.ends:
            return None
        end = edges.ends[-1]
        piece = b"[" + bytes(buffer[1:end]) + b"]"
        try:
            events = decode_strict(memoryview(piece))
        except MalformedError:
            events = self._lenient.decode(piece, edges.ends)
        return _Taken(events, end + edges.closed, edges.closed)

    def _read_tail(self) -> bytes:
        while not self._text.ended:
            self._text.grow()
        tail = bytes(self._text.buffer)
        self._text.buffer = bytearray()
        return tail


def _why_no_events(text: _Text) -> str:
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
    mended, replaced = mend(text)
    if (found := _keys(text)) is not None:
        return _Around(found, cut=not closed)
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
